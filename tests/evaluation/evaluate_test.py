"""The evaluate command: what it scores, and what it refuses."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from dpjax import leakage, prepare
from dpjax.config import record as record_lib
from dpjax.data import store as store_lib
from dpjax.errors import UserError
from dpjax.evaluation import evaluate
from dpjax.metrics import predictions, resampling, unlike
from dpjax.training import build as build_lib
from dpjax.training import checkpoint, optim
from tests import fakes

STORE = fakes.make_store()


@pytest.fixture(autouse=True)
def data(monkeypatch):
  """Every evaluation in this file finds a small set in memory."""
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: STORE)


def make_config(**changes):
  return fakes.make_config(
    model__stage_sizes=(1,), model__width=4, mgacr__stages=('stage1',),
    stage='retrain', init__backbone='None', evaluate__resamples=20, **changes,
  )  # fmt: skip


@pytest.fixture(scope='module')
def run():
  return build_lib.build(make_config(), 'retrain', STORE)


@pytest.fixture(scope='module')
def states(run):
  """{step: state} of the two checkpoints of `trained`; other networks."""
  optimizer, _ = optim.make(steps=1, **run.settings.optim)
  first = build_lib.initial_state(run, optimizer)
  classifier = {'kernel': np.float32(2), 'bias': np.float32([-1, 0.5, 0.7])}
  params = {**first.params, 'backbone': {**first.params['backbone']}}
  params['backbone']['fc'] = {
    'kernel': first.params['backbone']['fc']['kernel'] * classifier['kernel'],
    'bias': jax.numpy.asarray(classifier['bias']),
  }
  return {3: first, 6: first.replace(params=params)}


@pytest.fixture(scope='module')
def trained(run, states, tmp_path_factory):
  """The workdir of a run of two validations, the first the better one."""
  workdir = tmp_path_factory.mktemp('trained')
  record_lib.save(run.config, workdir / 'config.json')
  leakage.write(workdir, 'retrain', run.records)
  saved = checkpoint.Checkpoints(workdir, best='balanced_accuracy')
  record = {
    'training': 1.0,
    'wall': 2.0,
    'trained_on': leakage.fingerprint(run.records),
  }
  for step, score in ((3, 0.9), (6, 0.1)):
    saved.save(step, states[step], {}, record, {'balanced_accuracy': score})
  saved.close()
  return workdir


@pytest.fixture
def workdir(trained, tmp_path):
  """A copy of `trained` that a test may write to."""
  return shutil.copytree(trained, tmp_path / 'run')


def probabilities(workdir):
  with open(workdir / 'predictions.csv', newline='') as file:
    rows = list(csv.reader(file))[1:]
  return [row[0] for row in rows], np.array(
    [[float(p) for p in row[3:6]] for row in rows]
  )


@pytest.fixture(scope='module')
def expected(run, states):
  """{(step, split): class probabilities}, by the network alone."""

  @jax.jit
  def forward(state, grey):
    variables = {
      'params': state.params['backbone'],
      'batch_stats': state.batch_stats['backbone'],
    }
    pixels = (grey[..., None] / 255.0 - 0.5) / 0.25
    logits, _ = run.objective.backbone.apply(variables, pixels)
    return jax.nn.softmax(logits)

  names = ('validation', 'test')
  grey = np.concatenate([STORE.split(name).pixels for name in names])
  found = {}
  for step, state in states.items():
    rows = np.asarray(forward(state, grey.astype(np.float32)))
    parts = np.split(rows, [len(STORE.split('validation'))])
    found |= {
      (step, name): rows for name, rows in zip(names, parts, strict=True)
    }
  # Else a test of which checkpoint was taken could not fail.
  assert np.abs(found[3, 'test'] - found[6, 'test']).max() > 0.05
  return found


@pytest.mark.parametrize(
  ('which', 'split', 'step', 'mode', 'devices'),
  [
    ('last', 'test', 6, 'jit', 1),
    ('best', 'validation', 3, 'pmap', 4),
    ('best', 'test', 3, 'shard_map', 4),
  ],
)
def test_the_named_checkpoint_meets_the_named_split_whole_and_in_order(
  which, split, step, mode, devices, expected, workdir
):
  config = make_config(
    evaluate__checkpoint=which,
    evaluate__split=split,
    evaluate__batch_size=6,  # no multiple of the devices, nor the split of it
    parallel__mode=mode,
    parallel__devices=devices,
  )
  result = evaluate.evaluate(config, workdir)
  assert (result['checkpoint'], result['step']) == (which, step)
  scored = STORE.split(split)
  ids, found = probabilities(workdir)
  np.testing.assert_array_equal(ids, scored.ids)
  np.testing.assert_allclose(found, expected[step, split], atol=1e-4)
  accuracy = (found.argmax(axis=1) == scored.labels).mean()
  np.testing.assert_allclose(result['scores']['accuracy'], accuracy)
  assert json.loads((workdir / 'evaluation.json').read_text()) == result


def test_what_is_chosen_is_chosen_on_validation(workdir, expected):
  result = evaluate.evaluate(make_config(), workdir)
  labels = STORE.split('validation').labels
  chosen = expected[6, 'validation']
  lesion = 1 - chosen[:, 0]
  youden = [
    (lesion[labels > 0] >= t).mean() + (lesion[labels == 0] < t).mean()
    for t in (result['threshold'], *np.linspace(0, 1, 101))
  ]
  assert youden[0] >= max(youden) - 1e-9

  def loss(temperature):
    logits = np.log(chosen) / temperature
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()

  around = result['temperature'] * np.array([0.8, 1, 1.25])
  assert result['temperature'] in (0.05, 20) or np.argmin([*map(loss, around)])
  assert result['chosen_on'] == 'validation'
  found = workdir / 'predictions_validation.csv'
  assert len(found.read_text().splitlines()) == 1 + len(labels)
  # Where validation itself is scored there is nothing left to choose on.
  result = evaluate.evaluate(make_config(evaluate__split='validation'), workdir)
  assert result['threshold'] is result['temperature'] is None
  assert result['scores']['sensitivity_any_lesion'] is None
  assert not found.exists()


def test_maps_are_kept_of_every_image_with_a_box_and_scored_there(workdir):
  result = evaluate.evaluate(make_config(), workdir)
  split = STORE.split('test')
  maps = fakes.read_npz(workdir / 'maps.npz')
  boxed = set(split.ids[split.num_boxes > 0])
  # The split is small enough that all the others are kept, too.
  assert set(maps['ids']) == set(split.ids)
  assert set(maps) == {'ids', 'cam', 'att_pos/stage1', 'att_neg/stage1'}
  assert maps['cam'].shape == (len(split), 12, 12)
  with open(workdir / 'localisation.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert {row['id'] for row in rows} == boxed
  found = result['localisation']
  assert set(found) == {'cam', 'att_pos/stage1', 'random', 'centre', 'prior'}
  for name, scored in found.items():
    for score, mean in scored['scores'].items():
      column = [float(row[f'{name}/{score}']) for row in rows]
      np.testing.assert_allclose(mean, np.mean(column), rtol=1e-4)


def features_of(state, run, split):
  """Logits, features of the only stage, and the kernel of the classifier."""
  grey = split.pixels[..., None].astype(np.float32)
  backbone = {
    'params': state.params['backbone'],
    'batch_stats': state.batch_stats['backbone'],
  }
  logits, features = run.objective.backbone.apply(
    backbone, (grey / 255.0 - 0.5) / 0.25
  )
  kernel = np.asarray(backbone['params']['fc']['kernel'])
  return logits, features['stage1'], kernel


def assert_cam_is(workdir, split, features, alpha):
  maps = fakes.read_npz(workdir / 'maps.npz')
  cam = np.einsum('nhwk,nk->nhw', features, alpha) / 144
  order = [list(split.ids).index(name) for name in maps['ids']]
  want = np.maximum(cam, 0)[order]
  np.testing.assert_allclose(maps['cam'], want, rtol=2e-2, atol=1e-3)
  assert want.max() > 0.01


def test_training_features_are_kept_and_validation_is_hardly_unlike_them(
  workdir, states, run
):
  evaluate.evaluate(make_config(), workdir)
  known = unlike.read(workdir / 'features.npz')
  split = STORE.split('train')
  _, features, _ = features_of(states[6], run, split)
  pooled = np.asarray(features).mean(axis=(1, 2))
  np.testing.assert_allclose(known.features, unlike.unit(pooled), atol=1e-4)
  assert 1 / 13 <= known.alarms <= 2 / 13  # One of the twelve at the most.
  assert np.isnan(known.aspects).all()  # The set does not say.


def test_the_cam_is_that_of_the_log_odds_of_any_lesion(workdir, states, run):
  result = evaluate.evaluate(make_config(), workdir)
  assert (result['cam_target'], result['cam_stage']) == ('lesion', 'stage1')
  split = STORE.split('test')
  logits, features, kernel = features_of(states[6], run, split)
  lesion = np.asarray(
    jax.nn.softmax(logits[:, 1:])
  )  # of log(sum_{c > 0} exp z_c)
  alpha = lesion @ kernel[:, 1:].T - kernel[:, 0]
  assert_cam_is(workdir, split, features, alpha)


def test_where_no_class_is_normal_the_cam_is_of_the_label_and_recorded_so(
  workdir, states, run, monkeypatch
):
  names = ('mass', 'nodule', 'oedema')
  monkeypatch.setattr(fakes.Store, 'class_names', names)
  result = evaluate.evaluate(make_config(), workdir)
  split = STORE.split('test')
  _, features, kernel = features_of(states[6], run, split)
  assert_cam_is(workdir, split, features, kernel.T[split.labels])
  written = json.loads((workdir / 'evaluation.json').read_text())
  for found in result, written:
    # What was used, beside what was asked for.
    assert (found['cam_target'], found['cam_stage']) == ('label', 'stage1')
    assert found['settings']['cam_target'] == 'lesion'
    assert found['settings']['cam_stage'] == 'last'


def test_a_network_that_answers_with_nan_is_refused(workdir, states):
  params = {**states[6].params, 'backbone': {**states[6].params['backbone']}}
  classifier = params['backbone']['fc']
  params['backbone']['fc'] = {**classifier, 'bias': classifier['bias'] * np.nan}
  shutil.rmtree(workdir / 'checkpoints')
  saved = checkpoint.Checkpoints(workdir)
  broken = states[6].replace(params=params)
  saved.save(6, broken, {}, {'training': 1.0, 'wall': 2.0})
  saved.close()
  assert 'answers of step 6 are not finite' in refused(workdir)


def test_every_column_of_metadata_is_a_grouping(workdir, monkeypatch):
  split = fakes.make_store().split('test')
  monkeypatch.setattr(
    fakes.Split,
    'metadata',
    {'sex': np.array(['F', 'M', ''] * 5)[: len(split)]},
  )
  found = evaluate.evaluate(make_config(), workdir)['subgroups']['sex']
  _, probability = probabilities(workdir)
  right = probability.argmax(axis=1) == split.labels
  assert set(found) == {'F', 'M', 'unknown'}
  for i, name in enumerate(('F', 'M', 'unknown')):
    rows = np.arange(len(split)) % 3 == i
    assert found[name]['num_images'] == rows.sum()
    np.testing.assert_allclose(
      found[name]['scores']['accuracy'], right[rows].mean()
    )


def test_a_set_without_boxes_is_scored_without_maps(workdir, monkeypatch):
  other = fakes.make_store()
  for name in ('validation', 'test'):
    other.splits[name].num_boxes[:] = 0
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: other)
  result = evaluate.evaluate(make_config(), workdir)
  assert result['localisation'] == {}
  assert result['cam_target'] is result['cam_stage'] is None
  assert not (workdir / 'maps.npz').exists()
  assert not (workdir / 'localisation.csv').exists()


def test_the_network_is_the_trained_one_whatever_the_config_says(
  workdir, expected
):
  config = fakes.make_config(
    model__width=16, mgacr__attention=False, mgacr__features=False,
    data__mean=0.1, retrain__optim__clip=0.0, evaluate__resamples=20,
  )  # fmt: skip
  record = (workdir / 'config.json').read_text()
  evaluate.evaluate(config, workdir)
  _, found = probabilities(workdir)
  np.testing.assert_allclose(found, expected[6, 'test'], atol=1e-4)
  assert (workdir / 'config.json').read_text() == record


def test_a_recipe_is_scored_by_its_second_stage_and_a_save_there_left_alone(
  trained, tmp_path
):
  shutil.copytree(trained, tmp_path / 'retrain')
  under_way = tmp_path / 'retrain' / 'checkpoints' / '9.orbax-checkpoint-tmp'
  under_way.mkdir()
  evaluate.evaluate(make_config(), tmp_path)
  assert (tmp_path / 'retrain' / 'evaluation.json').is_file()
  assert under_way.is_dir()


def test_a_run_of_another_machine_is_opened_as_this_one_has_it(
  workdir, trained, tmp_path
):
  record = record_lib.load(workdir / 'config.json')
  record.update_from_flattened_dict(
    {
      'parallel.mode': 'pmap',
      'parallel.devices': 64,
      'data.placement': 'resident',
      'data.render': 'device',
      'data.threads': 99,
      'model.dtype': 'bfloat16',
      'train.steps_per_dispatch': 16,
    }
  )
  record_lib.save(record, workdir / 'config.json')
  evaluate.evaluate(make_config(), workdir)
  here = shutil.copytree(trained, tmp_path / 'here')
  evaluate.evaluate(make_config(), here)
  for name in ('predictions.csv', 'localisation.csv'):
    assert (workdir / name).read_bytes() == (here / name).read_bytes()


def test_a_set_that_was_moved_is_found_where_the_config_says(
  workdir, tmp_path, monkeypatch
):
  def opened(config):
    raise UserError(config.data.path)

  monkeypatch.setattr(prepare, 'open_prepared', opened)
  moved = tmp_path / 'moved'
  assert refused(workdir, data__path=str(moved)) == 'memory'
  moved.mkdir()
  assert refused(workdir, data__path=str(moved)) == str(moved)


def refused(workdir, **changes):
  """The one line that evaluate refuses with; nothing is written."""
  with pytest.raises(UserError) as error:
    evaluate.evaluate(make_config(**changes), workdir)
  assert not (workdir / 'evaluation.json').exists()
  assert not (workdir / 'predictions.csv').exists()
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('there', [True, False])
def test_a_folder_without_a_run_is_refused_and_stays_as_it_is(there, tmp_path):
  workdir = tmp_path / 'none'
  if there:
    workdir.mkdir()
  message = refused(workdir)
  assert f'--workdir={workdir}' in message and 'config.json' in message
  assert workdir.exists() == there and not list(tmp_path.glob('none/*'))


def test_a_stage_that_the_run_lacks_is_refused(workdir):
  config = make_config()
  config.evaluate.cam_stage = 'stage2'  # as of a wider config's flags
  with pytest.raises(UserError, match='stages of this run are stage1'):
    evaluate.evaluate(config, workdir)
  assert not (workdir / 'predictions.csv').exists()


def test_a_run_of_stage_one_is_refused(workdir):
  config = record_lib.load(workdir / 'config.json')
  config.stage = 'pretrain'
  record_lib.save(config, workdir / 'config.json')
  assert 'holds a run of pretrain' in refused(workdir)


@pytest.mark.parametrize(('which', 'left'), [('last', None), ('best', 5)])
def test_a_run_without_that_checkpoint_is_refused(
  which, left, run, states, workdir
):
  shutil.rmtree(workdir / 'checkpoints')
  if left:  # saved between validations
    saved = checkpoint.Checkpoints(workdir)
    saved.save(left, states[3], {}, {'training': 1.0, 'wall': 1.0})
    saved.close()
  message = refused(workdir, evaluate__checkpoint=which)
  assert f'no {which} checkpoint' in message and str(workdir) in message
  assert (workdir / 'checkpoints').exists() == bool(left)


@pytest.mark.parametrize('fault', ['one without a label', 'empty'])
def test_a_split_that_is_not_labelled_is_refused(fault, workdir, monkeypatch):
  split = fakes.make_split(0 if fault == 'empty' else 5, 48, seed=9)
  split.labels[3:4] = -1
  other = dataclasses.replace(STORE, splits={**STORE.splits, 'test': split})
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: other)
  message = refused(workdir)
  assert 'config.evaluate.split: test' in message and 'labelled' in message


def test_another_set_may_be_scored_but_not_one_of_more_classes(
  workdir, monkeypatch
):
  others = {
    'three': fakes.make_store(test=7, seed=70),
    'four': dataclasses.replace(
      fakes.make_store(seed=80),
      num_classes=4,
      splits={'test': fakes.make_split(8, 48, seed=80, num_classes=4)},
    ),
  }
  monkeypatch.setattr(store_lib, 'load', lambda path: others[path])
  message = refused(workdir, evaluate__path='four')
  assert 'config.evaluate.path: the classes of' in message
  assert '0, 1, 2, 3' in message
  result = evaluate.evaluate(make_config(evaluate__path='three'), workdir)
  assert result['num_images'] == 7
  assert probabilities(workdir)[0][0] == '72-0'


def test_the_set_beside_the_run_must_be_the_one_it_was_trained_on(
  workdir, monkeypatch
):
  # As after another draw of the splits: what is now test was trained on.
  splits = {**STORE.splits, 'train': fakes.make_split(48, 48, seed=90)}
  other = dataclasses.replace(STORE, splits=splits)
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: other)
  assert 'not the set that the run was trained on' in refused(workdir)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_images_that_were_trained_on_are_not_scored_from_any_set(
  split, workdir, monkeypatch
):
  # Another set, which holds one of the training images under another name.
  other = fakes.make_store(seed=100)
  seen = STORE.split('train').pixels[7]
  other.splits[split].pixels[5] = seen
  monkeypatch.setattr(store_lib, 'load', lambda path: other)
  changes = {'evaluate__path': 'other', 'evaluate__split': split}
  message = refused(workdir, **changes)
  id = other.splits[split].ids[5]
  assert f'1 of the {len(other.splits[split])} images' in message
  assert f'{id} is 0-7 of its retrain' in message
  other.splits[split].pixels[5] //= 2  # A copy is no better.
  assert f'{id} is a copy of 0-7 of its retrain' in refused(workdir, **changes)
  other.splits[split].pixels[5] = other.splits[split].pixels[6]
  assert evaluate.evaluate(make_config(**changes), workdir)['split'] == split


def test_the_training_split_itself_is_not_scored(workdir):
  message = refused(workdir, evaluate__split='train')
  assert '48 of the 48 images of train' in message


@pytest.mark.parametrize('content', [None, b'', b'a,b\n', b'id\n1\n', b'\xff'])
def test_a_run_without_its_list_of_training_images_is_not_scored(
  workdir, content
):
  file = workdir / leakage.FILE
  file.unlink()
  if content is not None:
    file.write_bytes(content)
  assert str(file) in refused(workdir)


def test_a_run_of_an_earlier_version_is_scored(workdir):
  record = json.loads((workdir / 'config.json').read_text())
  del record['model']['network'], record['retrain']['freeze']
  (workdir / 'config.json').write_text(json.dumps(record))
  assert evaluate.evaluate(make_config(), workdir)['num_images'] == 13


def test_an_evaluation_that_breaks_off_leaves_no_scores_of_another(
  workdir, monkeypatch
):
  evaluate.evaluate(make_config(), workdir)

  def killed(*args, **kwargs):
    raise KeyboardInterrupt

  monkeypatch.setattr(resampling, 'bootstrap_intervals', killed)
  with pytest.raises(KeyboardInterrupt):
    evaluate.evaluate(make_config(evaluate__checkpoint='best'), workdir)
  assert not (workdir / 'evaluation.json').exists()


def to_score(monkeypatch, other, split='test'):
  """What there is to score of another set, for a run on STORE."""
  monkeypatch.setattr(store_lib, 'load', lambda path: other)
  config = make_config(evaluate__split=split, evaluate__path=other.path)
  return evaluate.images_to_score(config.evaluate, STORE)


def test_nothing_is_chosen_on_images_that_are_scored_wherever_they_are(
  monkeypatch, capsys
):
  other = fakes.make_store(seed=100)
  assert to_score(monkeypatch, other).validation is STORE.split('validation')
  assert not capsys.readouterr().err
  copy = dataclasses.replace(STORE, path='copy')
  assert to_score(monkeypatch, copy, 'validation').validation is None
  assert 'holds 12 of the 12 validation' in capsys.readouterr().err
  assert to_score(monkeypatch, copy).validation is STORE.split('validation')
  # One is enough, under another name and in another split.
  other.split('test').pixels[4] = STORE.split('validation').pixels[2]
  assert to_score(monkeypatch, other).validation is None
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('warning: ') and 'holds 1 of the 12' in line


def test_another_set_must_hold_squares_of_the_kind_that_was_trained_on(
  monkeypatch, capsys
):
  other = dataclasses.replace(fakes.make_store(seed=100), path='other')
  padded = dataclasses.replace(other, info={'fit': 'pad'})
  with pytest.raises(UserError) as error:
    to_score(monkeypatch, padded)
  assert '\n' not in str(error.value)
  assert 'other was made with data.fit=pad' in str(error.value)
  assert '--config.data.fit=stretch' in str(error.value)
  large = dataclasses.replace(other, size=96)
  assert to_score(monkeypatch, large).split is large.split('test')
  (line,) = capsys.readouterr().err.splitlines()
  assert 'of 96 pixels' in line and '--config.data.store_size=48' in line


def test_an_evaluation_is_by_patient_where_one_has_several_images(
  workdir, monkeypatch
):
  plain = evaluate.evaluate(make_config(), workdir)
  splits = {
    name: dataclasses.replace(split, owners=np.arange(len(split)) // 2)
    for name, split in STORE.splits.items()
  }
  whose = dataclasses.replace(STORE, splits=splits)
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: whose)
  found = evaluate.evaluate(make_config(), workdir)
  assert (plain['num_patients'], found['num_patients']) == (13, 7)
  assert found['scores'] == plain['scores']
  for name in ('predictions', 'predictions_validation'):
    read = predictions.read_predictions(workdir / f'{name}.csv')
    assert read.patients.tolist() == [str(i // 2) for i in range(len(read.ids))]
  answers = STORE.split('test').labels, probabilities(workdir)[1]
  wanted = resampling.bootstrap_intervals(
    *answers, STORE.class_names, resamples=20, seed=0, ordinal=True,
    threshold=found['threshold'], temperature=found['temperature'],
    patients=splits['test'].groups,
  )  # fmt: skip
  for name in ('accuracy', 'macro_f1'):
    assert found['intervals'][name] == pytest.approx(wanted[name])
  iou = found['localisation']['cam']['intervals']
  assert iou != plain['localisation']['cam']['intervals']
