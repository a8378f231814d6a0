"""The objectives of both stages: what teaches what, and what does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpjax.training import batches, objectives, steps
from dpjax.training import build as build_lib
from tests import fakes
from tests.fakes import SMALL


@functools.cache
def build(stage='retrain', **changes):
  return build_lib.build(
    fakes.make_config(**changes), stage, fakes.make_store()
  )


def first_batch(built):
  stream = iter(batches.training_stream(built))
  batch = next(stream)
  stream.close()
  return {k: v for k, v in batch.items() if k not in ('index', 'valid')}


def fresh(built):
  """Its first variables: {'params', 'batch_stats'}."""
  return build_lib.initial_state(built, optax.sgd(0.0)).network


def loss_and_gradient(built):
  variables = fresh(built)
  return jax.jit(
    jax.value_and_grad(built.objective.loss, has_aux=True), static_argnums=3
  )(variables['params'], variables['batch_stats'], first_batch(built), None)


def norm(tree):
  return float(optax.tree.norm(tree))


def test_the_total_is_the_weighted_sum_of_the_terms_it_logs():
  (total, (metrics, _)), _ = loss_and_gradient(
    build(mgacr__weight_pos=0.5, mgacr__weight_neg=2.0, mgacr__weight_feat=0.25)
  )
  want = (
    metrics['loss/classification']
    + 0.5 * metrics['loss/att_pos']
    + 2.0 * metrics['loss/att_neg']
    + 0.25 * metrics['loss/feat']
  )
  np.testing.assert_allclose(total, want, rtol=1e-6)


@pytest.mark.parametrize(
  ('changes', 'absent'),
  [
    ({'mgacr__attention': False}, {'loss/att_pos', 'loss/att_neg'}),
    ({'mgacr__features': False}, {'loss/feat'}),
    (
      {'mgacr__attention': False, 'mgacr__features': False},
      {'loss/att_pos', 'loss/att_neg', 'loss/feat'},
    ),
  ],
)
def test_a_flag_takes_its_terms_out(changes, absent):
  built = build(**SMALL, **changes)
  (_, (metrics, _)), grads = loss_and_gradient(built)
  every = {'loss/classification', 'loss/att_pos', 'loss/att_neg', 'loss/feat'}
  assert {k for k in metrics if k.startswith('loss/')} == every - absent
  assert ('attention' in grads) == (len(absent) < 3)


@pytest.mark.parametrize('classification', ['ce', 'focal', 'cb_ce', 'cb_focal'])
@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_every_classification_loss_teaches_the_backbone(classification, kind):
  loss = build_lib.classification_loss(
    fakes.make_config(
      loss__classification=classification, loss__kind=kind
    ).loss,
    np.array([900, 90, 9]),
  )
  logits = jnp.array([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
  labels = jnp.array([2, 0])
  assert loss(logits, labels).shape == (2,)
  gradient = jax.grad(lambda x: loss(x, labels).sum())(logits)
  assert np.abs(gradient).min() > 0


def test_the_rare_class_weighs_more_under_the_class_balanced_loss():
  config = fakes.make_config(loss__classification='cb_ce').loss
  loss = build_lib.classification_loss(config, np.array([900, 90, 9]))
  even = jnp.zeros((3, 3))
  values = loss(even, jnp.arange(3))
  assert values[0] < values[1] < values[2]


@pytest.mark.parametrize('term', ['att_pos', 'att_neg', 'feat'])
def test_each_mgacr_term_alone_reaches_every_stage_of_the_backbone(term):
  weights = dict.fromkeys(('att_pos', 'att_neg', 'feat'), 0.0) | {term: 1.0}
  built = build()
  model = objectives.Retraining(
    backbone=built.objective.backbone,
    attention=built.objective.attention,
    pixels=built.objective.pixels,
    classification=lambda logits, labels: 0.0 * logits[:, 0],
    weights=weights,
    mgacr=built.objective.mgacr,
  )
  variables = fresh(built)
  grads = jax.jit(
    jax.grad(lambda p, b: model.loss(p, variables['batch_stats'], b, None)[0])
  )(variables['params'], first_batch(built))
  backbone = grads['backbone']
  assert all(norm(backbone[f'layer{i}_0']) > 1e-8 for i in (1, 2))
  assert norm(backbone['fc']) == 0
  if term == 'feat':  # Its maps are stop-gradiented by default.
    assert norm(grads['attention']) == 0
  else:
    assert norm(grads['attention']) > 1e-8


def test_removing_the_heads_leaves_the_logits_bit_identical():
  taught, plain = build(), build(mgacr__attention=False, mgacr__features=False)
  variables = fresh(taught)
  batch = first_batch(taught)

  @jax.jit
  def with_heads(variables, batch):
    params, stats = variables['params'], variables['batch_stats']
    logits, features = taught.objective.backbone.apply(
      {'params': params['backbone'], 'batch_stats': stats['backbone']},
      taught.objective.pixels.views(batch)[:, 0],
    )
    maps = taught.objective.attention.apply(
      {'params': params['attention'], 'batch_stats': stats['attention']},
      features,
    )
    return logits, maps

  without = jax.jit(
    functools.partial(steps.eval_step, objective=plain.objective)
  )
  state = steps.TrainState(
    step=0,
    params={'backbone': variables['params']['backbone']},
    batch_stats={'backbone': variables['batch_stats']['backbone']},
    opt_state=(),
  )
  want, maps = with_heads(variables, batch)
  assert maps['stage1'][0].shape == (16, 12, 12)  # They were computed.
  np.testing.assert_array_equal(without(state, batch)['logits'], want)


def test_both_views_pass_in_one_forward_with_one_set_of_statistics():
  built = build('pretrain')
  variables = fresh(built)
  params, stats = variables['params'], variables['batch_stats']
  batch = first_batch(built)
  loss = jax.jit(built.objective.loss, static_argnums=3)
  _, (_, new) = loss(params, stats, batch, None)
  swapped = {**batch, 'views': batch['views'][:, ::-1]}
  _, (_, again) = loss(params, stats, swapped, None)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    new,
    again,
  )


def test_bfloat16_computes_with_float32_parameters_statistics_and_losses():
  built = build(model__dtype='bfloat16', **SMALL)
  (total, (metrics, stats)), grads = loss_and_gradient(built)
  leaves = jax.tree.leaves((total, metrics, stats, grads))
  assert {leaf.dtype for leaf in leaves} == {np.dtype('float32')}
  (want, _), _ = loss_and_gradient(build(**SMALL))
  np.testing.assert_allclose(total, want, rtol=0.05)


def test_images_with_lesions_but_no_box_teach_no_mask():
  built = build(mgacr__lesions_only=(), **SMALL)
  variables = fresh(built)
  loss = jax.jit(built.objective.loss, static_argnums=3)

  def terms(batch):
    _, (metrics, _) = loss(
      variables['params'], variables['batch_stats'], batch, None
    )
    return {k: float(v) for k, v in metrics.items()}

  batch = first_batch(built)
  some = np.flatnonzero(batch['label'] > 0)[:2]
  bare = {k: np.copy(v) for k, v in batch['masks'].items()}
  for mask in bare.values():
    mask[some] = 0
  annotated = np.copy(batch['annotated'])
  annotated[some] = 0
  known = terms({**batch, 'masks': bare, 'annotated': annotated})
  taught = terms({**batch, 'masks': bare})
  left_out = terms({**batch, 'annotated': annotated})
  for name in ('loss/att_pos', 'loss/att_neg'):
    assert known[name] == left_out[name]  # What their mask holds is no matter.
    assert known[name] != taught[name]


def test_three_views_are_the_mean_over_their_three_pairs():
  built = build('pretrain', pretrain__views='three', **SMALL)
  variables = fresh(built)
  batch = first_batch(built)
  assert batch['views'].shape[:2] == (16, 3)

  def outputs(views):
    got = built.objective.outputs(
      variables['params'], variables['batch_stats'], {'views': views}, None
    )
    return got['loss'], got['contrastive_accuracy']

  # In evaluation rows do not depend on each other, so pairs can go apart.
  pairs = [outputs(batch['views'][:, [*p]]) for p in ((0, 1), (0, 2), (1, 2))]
  for got, *three in zip(outputs(batch['views']), *pairs, strict=True):
    np.testing.assert_allclose(got, np.mean(three, axis=0), rtol=1e-4)


def test_mgacr_is_left_out_of_a_set_without_a_box(capsys):
  store = fakes.make_store()
  for split in store.splits.values():
    split.num_boxes[:] = 0
  built = build_lib.build(fakes.make_config(), 'retrain', store)
  assert built.objective.attention is None
  assert 'no image of the training split has a box' in capsys.readouterr().err


@pytest.mark.parametrize('stage', ['pretrain', 'retrain'])
def test_vgg16_fits_both_stages(stage):
  built = build(stage, model__network='vgg16')
  variables = jax.eval_shape(built.objective.init, jax.random.key(0))
  (total, _), grads = jax.eval_shape(
    jax.value_and_grad(
      functools.partial(built.objective.loss, axis_name=None), has_aux=True
    ),
    variables['params'],
    variables['batch_stats'],
    first_batch(built),
  )
  assert total.shape == ()
  assert 'conv5_3' in grads['backbone']


def test_fine_tuning_is_weighted_logistic_regression_on_the_features():
  """The gradient of cb_ce over the classifier, written out."""
  store = fakes.make_uneven_store()
  config = fakes.make_config(finetune__loss__beta=0.99)
  built = build_lib.build(config, 'finetune', store)
  (total, (metrics, stats)), grads = loss_and_gradient(built)
  variables = fresh(built)
  batch = first_batch(built)
  backbone = {name: part['backbone'] for name, part in variables.items()}
  _, features = built.objective.backbone.apply(
    backbone, built.objective.pixels.views(batch)[:, 0], train=False
  )
  pooled = np.asarray(features['pooled'], np.float64)  # (B, D)
  fc = jax.tree.map(np.float64, dict(backbone['params']['fc']))
  logits = pooled @ fc['kernel'] + fc['bias']
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  counts = np.array([32, 12, 4])
  w = (1 - 0.99) / (1 - 0.99**counts)
  w *= counts.sum() / (w * counts).sum()
  w, label = w[batch['label']], batch['label']
  rows = np.arange(len(label))
  np.testing.assert_allclose(
    total, np.mean(-w * np.log(p[rows, label])), rtol=1e-5
  )
  error = p.copy()
  error[rows, label] -= 1
  error *= w[:, None] / len(w)
  got = grads['backbone']['fc']
  np.testing.assert_allclose(
    got['kernel'], pooled.T @ error, rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(
    got['bias'], error.sum(axis=0), rtol=1e-4, atol=1e-6
  )
  # Nothing else learns, and no statistics move.
  np.testing.assert_allclose(norm(grads), norm(got), rtol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, stats, variables['batch_stats'])
  assert set(metrics) == {'loss/classification', 'accuracy'}


def test_fine_tuning_of_everything_keeps_the_terms_of_stage_two():
  tuned = build('finetune', finetune__freeze=False, **SMALL)
  (_, (metrics, _)), grads = loss_and_gradient(tuned)
  taught = build(loss__classification='cb_ce', **SMALL)
  (_, (want, _)), other = loss_and_gradient(taught)
  assert metrics == want
  jax.tree.map(np.testing.assert_array_equal, grads, other)


def test_a_frozen_backbone_gets_no_gradient():
  built = build(retrain__freeze=True, init__backbone='auto', **SMALL)
  _, grads = loss_and_gradient(built)
  assert norm({k: v for k, v in grads['backbone'].items() if k != 'fc'}) == 0
  assert norm(grads['backbone']['fc']) > 0
