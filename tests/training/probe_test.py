"""k-NN and linear probe of stage I."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
from sklearn import linear_model, neighbors

from dpjax import prepare
from dpjax.training import batches, loop, probe, programs
from dpjax.training import build as build_lib
from tests import fakes


def data(n=300, d=6, m=80, seed=0):
  rng = np.random.default_rng(seed)
  labels, wanted = (rng.choice(3, size, p=[0.7, 0.2, 0.1]) for size in (n, m))
  features, queries = (
    (rng.normal(size=(len(of), d)) + np.eye(3, d)[of] * 1.5).astype(np.float32)
    for of in (labels, wanted)
  )
  return features, labels, queries, wanted


def test_the_nearest_are_those_of_scikit_learn():
  features, labels, queries, _ = data()
  theirs = neighbors.KNeighborsClassifier(
    n_neighbors=20, metric='cosine', algorithm='brute',
    weights=lambda distance: np.exp((1 - distance) / 0.07),
  ).fit(features, labels)  # fmt: skip
  np.testing.assert_allclose(
    probe.knn(features, labels, queries, 3),
    theirs.predict_proba(queries), rtol=1e-3, atol=1e-6,
  )  # fmt: skip


def test_the_linear_probe_is_balanced_ridge_regression():
  features, labels, queries, _ = data()
  mean, std = features.mean(axis=0), features.std(axis=0)
  counts = np.bincount(labels)
  theirs = linear_model.Ridge(alpha=1e-3).fit(
    (features - mean) / std,
    np.eye(3)[labels],
    sample_weight=1 / (counts[labels] * 3),
  )
  answers = theirs.predict((queries - mean) / std)
  want = np.exp(answers) / np.exp(answers).sum(axis=1, keepdims=True)
  found = probe.linear(features, labels, queries, 3)
  np.testing.assert_allclose(found, want, rtol=1e-4)


def test_features_that_hold_the_classes_are_told_from_noise():
  features, labels, queries, wanted = data()
  for of in probe.knn, probe.linear:
    right = of(features, labels, queries, 3).argmax(1) == wanted
    assert right.mean() > 0.75
    noise = np.random.default_rng(1).normal(size=features.shape)
    blind = of(noise, labels, queries, 3).argmax(1) == wanted
    assert blind.mean() < right.mean()


def test_a_class_that_is_missing_and_features_that_are_0_do_no_harm():
  features, labels, queries, _ = data()
  few = labels < 2
  for of in probe.knn, probe.linear:
    assert np.isfinite(of(features[few], labels[few], queries, 3)).all()
    zero = of(0 * features, labels, 0 * queries, 3)
    assert np.isfinite(zero).all()


@pytest.mark.parametrize('labelled', [True, False])
def test_stage_one_logs_it_at_each_validation(
  tmp_path, monkeypatch, capsys, labelled
):
  store = fakes.make_store()
  if not labelled:
    store.split('validation').labels[0] = -1
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: store)
  config = fakes.make_config(
    model__stage_sizes=(1,), model__width=4, mgacr__stages=('stage1',),
    pretrain__probe=True, pretrain__epochs=1.0,
  )  # fmt: skip
  loop.train(config, 'pretrain', tmp_path)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  (entry,) = (e for e in map(json.loads, lines) if e['split'] == 'validation')
  names = {
    f'{which}/{score}'
    for which in ('knn', 'linear')
    for score in ('balanced_accuracy', 'auroc_any_lesion')
  }
  assert names <= set(entry) if labelled else not names & set(entry)
  said = capsys.readouterr().out
  line = 'pretrain.probe: not every image of validation has a label'
  assert (line in said) is not labelled


@pytest.mark.parametrize('placement', ['resident', 'stream'])
def test_it_waits_for_no_compiler_and_reads_no_resident_image_again(
  monkeypatch, placement
):
  store = fakes.make_store()
  extra = dataclasses.replace(
    fakes.make_split(20, 48, 9), labels=np.full(20, -1, np.int32)
  )
  store = dataclasses.replace(
    store, splits={**store.splits, 'unlabelled': extra}
  )
  run = build_lib.build(
    fakes.make_config(
      model__stage_sizes=(1,), model__width=4, mgacr__stages=('stage1',),
      pretrain__probe=True, data__placement=placement, data__render='device',
    ),
    'pretrain', store,
  )  # fmt: skip
  optimizer, _ = build_lib.make_optimizer(run, 4)
  state = build_lib.initial_state(run, optimizer)
  images, held_out = (
    batches.resident_images(run, records)
    for records in (run.records, store.split('validation'))
  )
  with contextlib.closing(programs.Programs()) as compiled:
    probed = probe.make(run, compiled, state, images, held_out)
    # A signal from here on must not end it: what is there is not saved yet.
    monkeypatch.setattr(programs, 'first_call', None)
    monkeypatch.setattr(programs.Programs, '__getitem__', None)
    if placement == 'resident':
      monkeypatch.setattr(fakes.Split, 'images', None)
    found = probed(state)
  monkeypatch.undo()
  features = {}
  for name in ('train', 'validation'):
    grey = store.split(name).pixels[..., None] / np.float32(255)
    images = (grey - run.config.data.mean) / run.config.data.std
    network = {k: tree['backbone'] for k, tree in state.network.items()}
    features[name], _ = run.objective.backbone.apply(network, images)
  want = probe.linear(
    np.asarray(features['train']), store.split('train').labels,
    np.asarray(features['validation']), 3,
  ).argmax(1)  # fmt: skip
  wanted = store.split('validation').labels
  recall = np.mean([(want[wanted == c] == c).mean() for c in range(3)])
  assert found['linear/balanced_accuracy'] == pytest.approx(recall)
