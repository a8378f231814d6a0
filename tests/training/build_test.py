"""From a config and a set to a run, its losses and its first state."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from dpjax.distributed import parallel
from dpjax.errors import UserError
from dpjax.training import build as build_lib
from tests import fakes


def build(stage='retrain', data=None, **changes):
  config = fakes.make_config(
    model__stage_sizes=(1,), model__width=4, mgacr__stages=('stage1',),
    **changes,
  )  # fmt: skip
  return build_lib.build(config, stage, data or fakes.make_store())


def test_class_counts_are_of_every_class_and_of_this_split_alone():
  split = fakes.make_split(10, 8, seed=0)  # labels 0, 1, 2, 0, 1, ...
  counts = build_lib.class_counts(split, num_classes=5)
  np.testing.assert_array_equal(counts, [4, 3, 3, 0, 0])


def test_a_set_of_one_class_is_refused_in_stage_two():
  split = dataclasses.replace(
    fakes.make_split(10, 8, seed=0), labels=np.zeros(10, np.int32)
  )
  with pytest.raises(UserError, match=r'data\.path: the set has 1 class;'):
    build_lib.class_counts(split, num_classes=1)


def test_an_unlabelled_training_image_is_refused_by_name_in_stage_two():
  data = fakes.make_store()
  data.split('train').labels[5] = -1
  with pytest.raises(UserError, match=r'data\.path: 0-5 .*no label'):
    build('retrain', data)
  build('pretrain', data)  # needs none


def test_a_file_of_weights_is_named_once_in_an_error(tmp_path):
  run = build('retrain')
  for name in ('w.pth', 'w.npz', 'none.npz'):
    if name != 'none.npz':
      (tmp_path / name).write_bytes(b'\x80\x02no torch')
    with pytest.raises(UserError, match=r'^config\.init\.backbone: ') as error:
      build_lib.read_backbone(str(tmp_path / name), run)
    assert str(error.value).count(name) == 1 and '\n' not in str(error.value)


@pytest.mark.parametrize('average', [0.0, 0.99])
def test_a_state_for_devices_that_are_not_there_has_the_same_arrays(average):
  config = fakes.make_config(
    model__stage_sizes=(1,), model__width=4, mgacr__stages=('stage1',),
    retrain__average=average,
  )  # fmt: skip
  absent = parallel.Topology(tuple(jax.devices()[:1]), free_bytes=10**9)

  def arrays(topology):
    run = build_lib.build(config, 'retrain', fakes.make_store(), topology)
    optimizer, _ = build_lib.make_optimizer(run, 10)
    state = build_lib.initial_state(run, optimizer)
    return jax.tree.map(lambda x: (x.shape, x.dtype), state)

  assert arrays(absent) == arrays(None)


@pytest.mark.parametrize(
  ('mode', 'devices'), [('jit', 1), ('pmap', 4), ('shard_map', 4)]
)
def test_a_state_is_restored_to_where_a_fresh_one_lies(mode, devices):
  run = build(
    parallel__mode=mode, parallel__devices=devices, retrain__average=0.9
  )
  optimizer, _ = build_lib.make_optimizer(run, 10)

  def same(shape, array):
    assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
    assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)

  shapes = build_lib.state_shapes(run, optimizer)
  jax.tree.map(same, shapes, build_lib.initial_state(run, optimizer))


def test_late_class_weights_begin_where_they_began_when_a_run_is_extended():
  late = {'loss__begin': 0.5, 'loss__classification': 'cb_ce'}
  once = build(retrain__epochs=4.0, **late)
  steps = once.total_steps
  assert once.objective.begin == steps // 2 > 0
  again = build(retrain__epochs=8.0, retrain__optim__begin=steps, **late)
  assert again.objective.begin == once.objective.begin


COUNTS = np.array([700, 200, 90, 9, 1])


def weights(**loss):
  """Weight of each class: the loss of logits that prefer none, over log C."""
  config = fakes.make_config(
    loss__classification='cb_ce',
    **{f'loss__{name}': value for name, value in loss.items()},
  ).loss
  loss = build_lib.classification_loss(config, COUNTS)
  values = loss(np.zeros((5, 5), np.float32), np.arange(5))
  return np.asarray(values, np.float64) / np.log(5)


@pytest.mark.parametrize('beta', [0.0, 0.9, 0.9999, 1.0])
def test_normalised_by_images_a_training_image_weighs_one_on_average(beta):
  found = weights(normalize='images', beta=beta)
  np.testing.assert_allclose(
    (found * COUNTS).sum() / COUNTS.sum(), 1.0, rtol=1e-5
  )


@pytest.mark.parametrize('beta', [0.0, 0.9, 0.9999, 1.0])
def test_normalised_by_classes_the_weights_sum_to_their_number(beta):
  found = weights(normalize='classes', beta=beta)
  np.testing.assert_allclose(found.sum(), 5.0, rtol=1e-5)


def test_logit_adjustment_takes_its_prior_from_the_training_counts():
  settings = fakes.make_config(loss__classification='logit_adjusted').loss
  loss = build_lib.classification_loss(settings, COUNTS)
  values = loss(np.zeros((5, 5), np.float32), np.arange(5))
  np.testing.assert_allclose(values, -np.log(COUNTS / 1000), rtol=1e-5)
  # A class of no image has a finite loss.
  loss = build_lib.classification_loss(settings, np.array([5, 0]))
  assert np.isfinite(loss(np.zeros((1, 2), np.float32), np.array([1]))).all()


@pytest.mark.parametrize(
  ('word', 'plain'),
  [('cb_ce', 'ce'), ('cb_focal', 'focal'), ('logit_adjusted', 'ce')],
)
@pytest.mark.parametrize('normalize', ['images', 'classes'])
def test_before_class_weights_hold_the_loss_is_the_plain_one(
  word, plain, normalize
):
  logits = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
  early, want = (
    of(
      fakes.make_config(
        loss__classification=name, loss__normalize=normalize
      ).loss,
      COUNTS,
    )(logits, np.arange(5))
    for of, name in (
      (build_lib.unweighted_loss, word),
      (build_lib.classification_loss, plain),
    )
  )
  np.testing.assert_allclose(early, want, rtol=1e-6)


def test_smoothing_reaches_every_loss_that_may_have_it():
  logits = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
  for word in ('ce', 'cb_ce', 'logit_adjusted'):
    plain, smooth = (
      build_lib.classification_loss(
        fakes.make_config(loss__classification=word, loss__smoothing=s).loss,
        COUNTS,
      )(logits, np.arange(5))
      for s in (0.0, 0.2)
    )
    assert (np.abs(plain - smooth) > 1e-3).all()


def test_the_normalisation_scales_the_weights_and_nothing_else():
  ratio = weights(normalize='images') / weights(normalize='classes')
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
  # Eq. 8, written out.
  want = (1 - 0.9999) / (1 - 0.9999**COUNTS)
  np.testing.assert_allclose(
    weights(normalize='classes', beta=0.9999), 5 * want / want.sum(), rtol=1e-4
  )


@pytest.fixture
def torch_file(tmp_path):
  """An .npz in torch's layout and names, as of ImageNet: (path, arrays)."""
  rng = np.random.default_rng(0)
  shapes = {'conv1.weight': (4, 3, 7, 7)}
  for block in ('conv1', 'conv2'):
    shapes[f'layer1.0.{block}.weight'] = (4, 4, 3, 3)
  for norm in ('bn1', 'layer1.0.bn1', 'layer1.0.bn2'):
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{norm}.{leaf}'] = (4,)
  shapes |= {'fc.weight': (1000, 4), 'fc.bias': (1000,)}
  arrays = {k: rng.random(s).astype(np.float32) for k, s in shapes.items()}
  arrays['bn1.num_batches_tracked'] = np.int64(100)
  np.savez(tmp_path / 'imagenet.npz', **arrays)
  return str(tmp_path / 'imagenet.npz'), arrays


@pytest.mark.parametrize('mode', ['jit', 'shard_map'])
def test_torch_weights_reach_the_backbone_and_the_classifier_stays_fresh(
  mode, torch_file
):
  path, arrays = torch_file
  devices = 1 if mode == 'jit' else 4
  run = build(
    init__backbone=path, parallel__mode=mode, parallel__devices=devices
  )
  backbone = build_lib.read_backbone(path, run)
  state = build_lib.initial_state(run, optax.sgd(0.1), backbone, path)
  params = state.params['backbone']
  stem = arrays['conv1.weight'].sum(axis=1, keepdims=True)
  for kernel, want in (
    (params['conv1']['kernel'], stem),
    (
      params['layer1_0']['conv2']['kernel'],
      arrays['layer1.0.conv2.weight'],
    ),
  ):
    np.testing.assert_array_equal(kernel, want.transpose(2, 3, 1, 0))
  np.testing.assert_array_equal(params['bn1']['scale'], arrays['bn1.weight'])
  np.testing.assert_array_equal(
    state.batch_stats['backbone']['layer1_0']['bn2']['var'],
    arrays['layer1.0.bn2.running_var'],
  )
  assert params['fc']['kernel'].shape == (4, 3)
  assert 'attention' in state.params
  # Where the compiled step takes it.
  for leaf in jax.tree.leaves(state):
    assert len(leaf.sharding.device_set) == devices


def test_a_prefix_of_weights_is_taken_off_and_said(
  torch_file, tmp_path, capsys
):
  path, arrays = torch_file
  run = build(init__backbone=path)
  moco = {f'module.encoder_q.{name}': arrays[name] for name in arrays}
  file = tmp_path / 'moco.npz'
  np.savez(file, **moco, **{'module.queue': np.zeros(3)})
  jax.tree.map(
    np.testing.assert_array_equal,
    build_lib.read_backbone(str(file), run),
    build_lib.read_backbone(path, run),
  )
  assert capsys.readouterr().out == (
    f'init.backbone: {file}: the prefix module.encoder_q. is taken off; left'
    ' out beside it: 1\n'
  )


def test_torch_weights_of_another_network_are_refused_by_array(torch_file):
  path, _ = torch_file
  config = fakes.make_config(model__stage_sizes=(2,), mgacr__stages=('stage1',),
                             model__width=4)  # fmt: skip
  run = build_lib.build(config, 'retrain', fakes.make_store())
  with pytest.raises(UserError, match=r'layer1\.1\.\S+ is missing') as error:
    build_lib.read_backbone(path, run)
  assert str(error.value).startswith(f'config.init.backbone: {path}: ')
