"""The library: what a trained run says, asked from Python."""

import dataclasses
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

import dpjax
from dpjax.errors import SourceFault, UserError
from dpjax.evaluation import ensemble, files
from dpjax.metrics import calibration, predictions
from dpjax.serving import model as model_lib
from tests import fakes


@pytest.fixture(scope='module')
def model(served):
  return dpjax.load(served.workdir)


@pytest.fixture(scope='module')
def paths(served):
  """The test split's source files, in its order."""
  return [served.files / f'{id}.png' for id in served.data.split('test').ids]


def test_the_library_is_light_to_import():
  code = 'import sys, dpjax; print(*sys.modules)'
  found = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert not {'jax', 'numpy', 'flax', 'absl'} & set(found.stdout.split())


def test_source_files_get_what_evaluate_says_of_the_prepared_set(
  served, model, paths
):
  ids, _, raw, _ = predictions.read_predictions(
    served.workdir / files.PREDICTIONS
  )
  assert ids == [path.stem for path in paths]
  # Else a model that always says the same would do.
  assert np.ptp(raw, axis=0).max() > 0.1
  (network,) = model.networks
  plain = model_lib.Model([dataclasses.replace(network, temperature=None)])
  found = plain.predict(paths)
  np.testing.assert_allclose(found.probabilities, raw, atol=1e-5)
  names = served.data.class_names
  assert found.prediction == [names[c] for c in raw.argmax(1)]
  found = model.predict(paths)
  wanted = calibration.scale(raw, served.result['temperature'])
  np.testing.assert_allclose(found.probabilities, wanted, atol=1e-5)
  np.testing.assert_allclose(found.p_any_lesion, 1 - wanted[:, 0], atol=1e-5)


def test_the_threshold_is_that_of_the_calibrated_validation_split(
  served, model, paths
):
  _, labels, raw, _ = predictions.read_predictions(
    served.workdir / files.VALIDATION
  )
  scaled = calibration.scale(raw, served.result['temperature'])
  assert model.threshold == calibration.choose_threshold(labels, scaled)
  found = model.predict(paths)
  np.testing.assert_array_equal(
    found.positive, found.p_any_lesion >= model.threshold
  )
  assert found.spread is None


def test_answers_and_threshold_are_for_the_shares_that_are_asked_for(
  served, model, paths
):
  shares = np.array([0.2, 0.3, 0.1, 0.4, 0.0])
  asked = dpjax.load(served.workdir, prevalence='0.2,0.3,0.1,0.4,0')
  labels = served.data.split('train').labels
  trained = np.bincount(labels[labels >= 0], minlength=5)

  def moved(p):  # Bayes, row by row.
    p = calibration.scale(p, served.result['temperature'])
    p *= np.divide(shares, trained, out=np.zeros(5), where=trained > 0)
    return p / p.sum(axis=1, keepdims=True)

  _, _, raw, _ = predictions.read_predictions(
    served.workdir / files.PREDICTIONS
  )
  found = asked.predict(paths)
  np.testing.assert_allclose(found.probabilities, moved(raw), atol=1e-5)
  assert np.abs(found.probabilities - model.predict(paths).probabilities).max()
  _, labels, raw, _ = predictions.read_predictions(
    served.workdir / files.VALIDATION
  )
  assert asked.threshold == calibration.choose_threshold(labels, moved(raw))
  assert asked.notes[-2] == (
    'it answers for these shares of the classes: 0 0.2, 1 0.3, 2 0.1, 3 0.4,'
    ' 4 0'
  )
  assert 'shifted again they go too far' in asked.notes[-1]


def test_shares_are_refused_where_those_in_training_are_not_known(
  served, model
):
  with pytest.raises(UserError, match="is 'even'; wanted none, balanced, or"):
    dpjax.load(served.workdir, prevalence='even')
  with pytest.raises(UserError, match='has 2 shares; the run tells 5 classes'):
    dpjax.load(served.workdir, prevalence='0.5,0.5')
  (network,) = model.networks
  earlier = dataclasses.replace(network, class_counts=None)
  with pytest.raises(UserError, match='one does not say how many images'):
    model_lib.Model([earlier], prevalence='balanced')


def test_a_file_an_array_and_a_batch_of_any_size_are_answered_alike(
  model, paths
):
  whole = model.predict(paths)
  one = model.predict(str(paths[2]))
  arrays = model.predict([cv2.imread(str(p), cv2.IMREAD_GRAYSCALE)
                          for p in paths[:3]])  # fmt: skip
  np.testing.assert_allclose(
    one.probabilities[0], whole.probabilities[2], atol=1e-6
  )
  np.testing.assert_allclose(
    arrays.probabilities, whole.probabilities[:3], atol=1e-6
  )
  np.testing.assert_allclose(
    model.embed(paths[:3]), whole.embeddings[:3], atol=1e-5
  )


def test_maps_are_those_that_evaluate_keeps(served, model, paths):
  kept = fakes.read_npz(served.workdir / files.MAPS)
  for id, i in zip(kept['ids'][:3], range(3), strict=True):
    found = model.explain(served.files / f'{id}.png')
    assert found.square.shape == (served.data.size,) * 2
    assert set(found.maps) == set(kept) - {'ids'}
    for name, value in found.maps.items():
      np.testing.assert_allclose(value, kept[name][i], atol=2e-3)


def test_an_ensemble_says_what_evaluate_says_of_it_and_how_far_its_runs_differ(
  served, second, paths, tmp_path
):
  runs = served.workdir, second
  result = ensemble.evaluate_ensemble(served.config, runs, tmp_path / 'both')
  _, _, raw, _ = predictions.read_predictions(
    tmp_path / 'both' / files.PREDICTIONS
  )
  both = dpjax.load(*runs)
  assert both.temperature == pytest.approx(result['temperature'], rel=1e-3)
  found = both.predict(paths)
  np.testing.assert_allclose(
    found.probabilities, calibration.scale(raw, both.temperature), atol=1e-5
  )
  each = np.stack(
    [
      predictions.read_predictions(run / files.PREDICTIONS).probabilities
      for run in runs
    ]
  )
  lesion = 1 - each[:, :, 0]
  np.testing.assert_allclose(
    found.spread, lesion.max(0) - lesion.min(0), atol=1e-5
  )
  assert found.spread.max() > 0.01 and both.threshold is not None
  assert (
    found.embeddings.shape[1] == 2 * dpjax.load(second).embed(paths[0]).shape[1]
  )


def test_a_mean_that_nothing_calibrates_says_so(served, second):
  runs = [dpjax.load(run).networks[0] for run in (served.workdir, second)]
  lacking = dataclasses.replace(runs[1], validation=None)
  both = model_lib.Model([runs[0], lacking])
  assert (both.temperature, both.threshold) == (None, None)
  (note,) = both.notes
  assert 'not calibrated' in note and str(second) in note


def test_runs_that_do_not_go_together_are_refused_in_a_line(
  served, second, tmp_path
):
  other = shutil.copytree(second, tmp_path / 'other')
  record = json.loads((other / 'config.json').read_text())
  record['data']['store_size'] = 96
  (other / 'config.json').write_text(json.dumps(record))
  with pytest.raises(UserError, match='no ensemble: the squares are 64 pixels'):
    dpjax.load(served.workdir, other)


def test_a_run_counts_once_in_a_mean(served, second, tmp_path):
  link = tmp_path / 'again'
  link.symlink_to(served.workdir)
  with pytest.raises(UserError, match='again is named twice'):
    dpjax.load(served.workdir, second, link)


@pytest.mark.parametrize(
  ('file', 'damage', 'told'),
  [
    (
      'config.json',
      lambda record: record.clear(),
      r'config\.json: config\.\S+ is missing',
    ),
    (
      files.EVALUATION,
      lambda record: record.update(temperature=0.0),
      r'evaluation\.json is damaged \(temperature is 0\.0\)',
    ),
    (
      files.EVALUATION,
      lambda record: record.update(threshold=float('nan')),
      r'evaluation\.json is damaged \(threshold is nan\)',
    ),
  ],
)
def test_a_record_that_cannot_be_is_refused_in_a_line(
  file, damage, told, served, tmp_path
):
  copy = shutil.copytree(served.workdir, tmp_path / 'copy')
  record = json.loads((copy / file).read_text())
  damage(record)
  (copy / file).write_text(json.dumps(record))
  with pytest.raises(UserError, match=told):
    dpjax.load(copy)


def test_what_another_network_left_is_refused_in_a_line(served, tmp_path):
  copy = shutil.copytree(served.workdir, tmp_path / 'copy')
  with np.load(copy / files.FEATURES) as kept:
    known = dict(kept)
  wide = np.concatenate([known['features']] * 2, axis=1)
  np.savez(copy / files.FEATURES, **{**known, 'features': wide})
  with pytest.raises(UserError, match=r'features\.npz holds features of'):
    dpjax.load(copy)
  shutil.copy(served.workdir / files.FEATURES, copy)
  found = predictions.read_predictions(copy / files.VALIDATION)
  more = np.pad(found.probabilities, [(0, 0), (0, 1)])
  names = [f'c{i}' for i in range(more.shape[1])]
  predictions.write_predictions(
    copy / files.VALIDATION, found.ids, found.labels, more, names, found.ids
  )
  with pytest.raises(
    UserError, match=r'predictions_validation\.csv: . classes'
  ):
    dpjax.load(copy)


def test_a_run_that_was_not_evaluated_answers_without_threshold(
  served, model, paths, tmp_path
):
  bare = tmp_path / 'bare'
  shutil.copytree(served.workdir / 'checkpoints', bare / 'checkpoints')
  shutil.copy(served.workdir / 'config.json', bare)
  record = json.loads((bare / 'config.json').read_text())
  record['data']['path'] = '/nowhere'  # The set is not needed either.
  (bare / 'config.json').write_text(json.dumps(record))
  plain = dpjax.load(bare)
  assert (plain.threshold, plain.class_names) == (None, model.class_names)
  assert len(plain.notes) == 1 and 'not evaluated' in plain.notes[0]
  found = plain.predict(paths[:4])
  assert found.positive is None and found.unlike_training is None
  scaled = calibration.scale(found.probabilities, served.result['temperature'])
  np.testing.assert_allclose(
    scaled, model.predict(paths[:4]).probabilities, atol=1e-5
  )


def test_thresholds_of_another_checkpoint_are_not_taken(served, tmp_path):
  copy = shutil.copytree(served.workdir, tmp_path / 'copy')
  result = json.loads((copy / files.EVALUATION).read_text())
  (copy / files.EVALUATION).write_text(json.dumps(result | {'step': 9}))
  found = dpjax.load(copy)
  assert found.threshold is None and found.networks[0].temperature is None
  assert 'evaluated at step 9, and this is 3' in found.notes[0]


def test_thresholds_of_other_weights_of_that_step_are_not_taken(
  served, second, tmp_path
):
  copy = shutil.copytree(served.workdir, tmp_path / 'copy')
  shutil.rmtree(copy / 'checkpoints')  # As if it was trained once more.
  shutil.copytree(second / 'checkpoints', copy / 'checkpoints')
  plain = dpjax.load(copy)
  assert (plain.threshold, plain.temperature) == (None, None)
  assert 'evaluated with other weights than step 3 has now' in plain.notes[0]


def test_what_is_no_radiograph_of_a_chest_is_flagged(served, model, paths):
  assert sum(map(bool, model.predict(paths).unlike_training)) <= 3
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (256, 256), np.uint8)
  half = cv2.imread(str(paths[0]), cv2.IMREAD_GRAYSCALE)
  dark = (half // 8).astype(np.uint8)
  film, dim, strip = model.predict([noise, dark, half[:80]]).unlike_training
  assert film
  assert 'grey levels' in dim
  assert 'aspect' in strip


@pytest.mark.parametrize(
  'content', [b'', b'no image', b'\x89PNG\r\n\x1a\nhalf']
)
def test_a_file_that_cannot_be_read_is_named(model, content, tmp_path):
  file = tmp_path / 'x.png'
  file.write_bytes(content)
  with pytest.raises(SourceFault, match=r'^/.*x\.png: ') as error:
    model.predict([file])
  assert '\n' not in str(error.value)
  assert str(error.value).count('x.png') == 1


@pytest.mark.parametrize('broken', [np.nan, np.inf])
def test_an_answer_that_is_not_finite_is_none(broken, served, model, paths):
  (network,) = model.networks
  params = {**network.state.params}
  head = params['backbone']['fc']
  params['backbone'] = {
    **params['backbone'],
    'fc': {**head, 'bias': head['bias'].at[1].set(broken)},
  }
  diverged = dataclasses.replace(
    network,
    workdir=network.workdir / 'other',
    state=network.state.replace(params=params),
  )
  with pytest.raises(UserError, match='step 3 is not finite') as error:
    model_lib.Model([network, diverged]).predict(paths[:2])
  assert str(paths[0]) in str(error.value)
  assert str(served.workdir) in str(error.value)


def test_what_is_no_image_and_no_run_is_refused(model, tmp_path):
  with pytest.raises(ValueError, match=r'\(H, W\) uint8'):
    model.predict(np.zeros((8, 8, 3), np.uint8))
  with pytest.raises(ValueError, match='no images'):
    model.predict([])
  with pytest.raises(UserError, match=r'holds no config\.json'):
    dpjax.load(tmp_path)


@pytest.mark.parametrize('which', ['bset', '3', 3, ''])
def test_a_checkpoint_of_another_name_is_not_the_last(served, which):
  with pytest.raises(UserError, match='wanted last or best'):
    dpjax.load(served.workdir, checkpoint=which)


def test_an_array_of_one_grey_level_is_named(model, paths):
  fine = cv2.imread(str(paths[0]), cv2.IMREAD_GRAYSCALE)
  with pytest.raises(SourceFault, match=r'^array 1: all of it is one grey'):
    model.predict([fine, np.full((9, 9), 7, np.uint8)])


def test_a_dicom_file_is_answered_as_the_same_png(model, paths, tmp_path):
  pytest.importorskip('pydicom')
  pixels = cv2.imread(str(paths[0]), cv2.IMREAD_GRAYSCALE)
  fakes.write_dicom(tmp_path / 'x.dcm', pixels)
  np.testing.assert_allclose(
    model.predict(tmp_path / 'x.dcm').probabilities,
    model.predict(paths[0]).probabilities,
    atol=1e-6,
  )
