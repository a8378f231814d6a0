"""scikit-learn's methods on pixels and on features, against it directly."""

import dataclasses
import functools
import json

import cv2
import jax
import numpy as np
import pytest
from sklearn import ensemble, neighbors, svm, tree

from dpjax import leakage
from dpjax.data.feed import pipeline
from dpjax.errors import UserError
from dpjax.metrics import predictions, scores
from dpjax.studies import classical, runs
from dpjax.studies import tasks as tasks_lib
from dpjax.training import build as build_lib
from dpjax.training import checkpoint
from tests import fakes
from tests.studies import fake_runs

STORE = fake_runs.STORE
SIDE = 8


def make_task(tmp_path, backbone=None):
  return tasks_lib.make_task(
    fake_runs.make_config(), tmp_path, 'method', 'classical', backbone
  )


def pixels_of(name):
  """(N, 64), an image at a time."""
  return np.stack([
    cv2.resize(p, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel() / 255
    for p in STORE.split(name).pixels
  ])  # fmt: skip


@pytest.fixture(scope='module')
def inputs():
  return classical.Inputs(functools.partial(classical.pixels, side=SIDE))


@pytest.mark.parametrize(
  ('method', 'direct'),
  [
    ('knn', neighbors.KNeighborsClassifier()),
    ('tree', tree.DecisionTreeClassifier(random_state=0)),
    ('adaboost', ensemble.AdaBoostClassifier(random_state=0)),
    ('forest', ensemble.RandomForestClassifier(random_state=0)),
  ],
)
def test_a_method_on_pixels_equals_scikit_learn_on_them(
  method, direct, tmp_path, inputs
):
  task = make_task(tmp_path)
  classical.train(task, method, STORE, inputs)
  direct.fit(pixels_of('train').astype(np.float32), STORE.split('train').labels)
  for name, file in (
    ('test', 'predictions.csv'),
    ('validation', 'predictions_validation.csv'),
  ):
    ids, labels, found, _ = predictions.read_predictions(task.workdir / file)
    want = direct.predict_proba(pixels_of(name).astype(np.float32))
    np.testing.assert_allclose(found, want, atol=1e-12)
    assert ids == STORE.split(name).ids.tolist()
    np.testing.assert_array_equal(labels, STORE.split(name).labels)
  result = json.loads((task.workdir / 'evaluation.json').read_text())
  want = scores.scores(STORE.split('test').labels, found_of(task), '012')
  for name in ('accuracy', 'auroc_any_lesion', 'nll', 'recall/2'):
    assert result['scores'][name] == pytest.approx(want['scores'][name])
    assert name in result['intervals']
  assert result['localisation'] == {}
  assert result['chosen_on'] == 'validation' and result['temperature'] > 0
  assert 0 < result['seconds']['training'] < 60
  assert runs.look(task).result == result


def found_of(task):
  return predictions.read_predictions(task.workdir / 'predictions.csv')[2]


def test_the_svm_has_a_polynomial_kernel_and_probabilities():
  rows = pixels_of('train')
  labels = STORE.split('train').labels
  fitted = classical.fit('svm', rows, labels, seed=0)
  found = classical.predict(fitted, pixels_of('test'), 3)
  np.testing.assert_allclose(found.sum(axis=1), 1)
  # Fitted on all images: its order is that of the plain machine.
  own = svm.SVC(kernel='poly').fit(rows, labels)
  inner = fitted.calibrated_classifiers_[0].estimator
  np.testing.assert_allclose(
    inner.decision_function(pixels_of('test')),
    own.decision_function(pixels_of('test')),
  )


@pytest.mark.parametrize('counts', [(9, 3, 1), (9, 4, 0), (9, 2, 2)])
@pytest.mark.parametrize('method', list(classical.METHODS))
def test_rare_and_absent_classes_pass_through_every_method(method, counts):
  labels = np.repeat(np.arange(3), counts)
  rows = np.random.default_rng(0).normal(size=(len(labels), 4))
  rows += labels[:, None]
  fitted = classical.fit(method, rows.astype(np.float32), labels, seed=0)
  found = classical.predict(fitted, rows.astype(np.float32), 3)
  assert found.shape == (len(labels), 3)
  np.testing.assert_allclose(found.sum(axis=1), 1)
  if not counts[2]:
    assert not found[:, 2].any()


@pytest.mark.parametrize('method', list(classical.METHODS))
def test_one_class_is_nothing_to_learn_from(method):
  with pytest.raises(UserError, match='needs two classes in the training'):
    classical.fit(method, np.zeros((5, 2)), np.ones(5, int), seed=0)


def test_a_seed_gives_the_same_answers_and_another_others():
  rows, labels = pixels_of('train'), STORE.split('train').labels
  first, again, other = (
    classical.predict(classical.fit('forest', rows, labels, s), rows, 3)
    for s in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_inputs_are_made_once_a_split():
  made = []

  def make(split):
    made.append(split)
    return np.zeros((len(split), 1), np.float32)

  inputs = classical.Inputs(make)
  for name in ('train', 'test', 'train'):
    inputs(STORE.split(name))
  assert made == [STORE.split('train'), STORE.split('test')]


def test_features_are_the_pooled_ones_of_stage_i(tmp_path):
  config = fake_runs.make_config(evaluate__batch_size=7)
  run = build_lib.build(config, 'pretrain', STORE)
  optimizer, _ = build_lib.make_optimizer(run, 1)
  state = build_lib.initial_state(run, optimizer)
  saved = checkpoint.Checkpoints(tmp_path)
  saved.save(1, state, {}, {})
  saved.close()
  split = STORE.split('test')  # 30: the last batch of 7 is not whole
  found = classical.Features(config, STORE, str(tmp_path))(split)
  grey = split.pixels[..., None].astype(np.float32)
  variables = {
    'params': state.params['backbone'],
    'batch_stats': state.batch_stats['backbone'],
  }
  want, _ = jax.jit(run.objective.backbone.apply)(
    variables, (grey / 255 - 0.5) / 0.25
  )
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ('change', 'array'),
  [
    (
      {'model__stage_sizes': (1, 1)},
      r'layer2_0/\S+ is \(.*\) there and missing',
    ),
    ({'model__width': 8}, r'bias is \(8,\) there and \(4,\) here'),
  ],
)
def test_features_of_another_network_are_refused(tmp_path, change, array):
  other = build_lib.build(fake_runs.make_config(**change), 'pretrain', STORE)
  shapes = jax.eval_shape(other.objective.init, jax.random.key(0))
  saved = checkpoint.Checkpoints(tmp_path)
  state = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
  saved.save(1, state, {}, {})
  saved.close()
  with pytest.raises(UserError, match=array):
    classical.Features(fake_runs.make_config(), STORE, str(tmp_path))


def test_a_split_without_labels_is_refused(tmp_path, inputs):
  bare = dataclasses.replace(
    STORE.split('test'), labels=np.full(30, -1, np.int32)
  )
  store = fakes.Store({**STORE.splits, 'test': bare}, STORE.size)
  with pytest.raises(UserError, match='must be a labelled split'):
    classical.train(make_task(tmp_path), 'knn', store, inputs)
  store = fakes.Store({**STORE.splits, 'train': bare}, STORE.size)
  with pytest.raises(UserError, match='has no label'):
    classical.train(make_task(tmp_path), 'knn', store, inputs)


def test_images_that_were_fitted_on_are_not_scored(tmp_path, inputs):
  store = fakes.Store(
    {**STORE.splits, 'test': STORE.split('train')}, STORE.size
  )
  with pytest.raises(UserError, match='24 of the 24 images'):
    classical.train(make_task(tmp_path), 'knn', store, inputs)


def test_what_a_given_backbone_has_seen_is_not_scored(tmp_path, inputs):
  backbone = tmp_path / 'elsewhere'
  backbone.mkdir()
  log = {'step': 1, 'split': 'train', 'seconds_training': 100.0}
  (backbone / 'metrics.jsonl').write_text(json.dumps(log) + '\n')
  records = pipeline.Records((STORE.split('validation'),))
  leakage.write(backbone, 'pretrain', records)
  task = make_task(tmp_path, str(backbone))
  classical.train(task, 'knn', STORE, inputs)
  result = json.loads((task.workdir / 'evaluation.json').read_text())
  assert result['seconds']['pretraining'] == 100
  assert result['seconds']['training'] > 100
  records = pipeline.Records((STORE.split('test'),))
  leakage.write(backbone, 'pretrain', records)
  with pytest.raises(UserError, match='30 of the 30 images of test'):
    classical.train(task, 'knn', STORE, inputs)
