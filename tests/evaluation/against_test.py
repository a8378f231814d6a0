"""Two evaluated runs: their difference, and what cannot be compared."""

import csv
import json
import shutil

import numpy as np
import pytest

from dpjax.errors import UserError
from dpjax.evaluation import against, files, text
from dpjax.metrics import predictions, resampling, scores, significance

NAMES = ['0', '1', '2']
N = 60


def write_run(
  workdir, seed, *, ids=None, labels=None, names=NAMES, maps=True, patients=None
):
  """The files of an evaluated run with made-up predictions."""
  workdir.mkdir(exist_ok=True)
  rng = np.random.default_rng(seed)
  ids = [f'image-{i}' for i in range(N)] if ids is None else ids
  labels = np.arange(N) % 3 if labels is None else labels
  probabilities = rng.dirichlet(np.ones(len(names)), N)
  probabilities[np.arange(N), labels] += seed
  probabilities /= probabilities.sum(axis=1, keepdims=True)
  predictions.write_predictions(
    workdir / files.PREDICTIONS, ids, labels, probabilities, names, patients
  )
  (workdir / files.EVALUATION).write_text(
    json.dumps({'class_names': names, 'threshold': 0.4, 'temperature': 1.5})
  )
  if maps:
    with open(workdir / files.LOCALISATION, 'w', newline='') as file:
      writer = csv.writer(file)
      writer.writerow(['id', 'cam/energy_in_box', 'cam/iou'])
      writer.writerows([name, rng.random(), ''] for name in sorted(ids))
  return workdir, probabilities


def compare(a, b):
  return against.compare_runs(a, b, resamples=200, seed=0)


def test_the_difference_is_that_of_the_two_whatever_the_order_of_rows(tmp_path):
  a, p_a = write_run(tmp_path / 'a', 1)
  order = np.random.default_rng(5).permutation(N)
  labels = np.arange(N) % 3
  b, p_b = write_run(
    tmp_path / 'b', 0, ids=[f'image-{i}' for i in order], labels=labels[order]
  )
  found = compare(a, b)
  written = json.loads(against.write(found).read_text())
  assert written == {**found, 'a': '.'}  # the folder that it is in
  p_b = p_b[np.argsort(order)]
  options = {'threshold': 0.4, 'temperature': 1.5, 'ordinal': True}
  want_a, want_b = (
    scores.scores(labels, p, NAMES, **options)['scores'] for p in (p_a, p_b)
  )
  for name, value in found['scores'].items():
    if want_a[name] is not None:
      difference = want_a[name] - want_b[name]
      np.testing.assert_allclose(value['difference'], difference, atol=1e-9)
  right_a, right_b = (p.argmax(axis=1) == labels for p in (p_a, p_b))
  assert found['mcnemar']['only_a_right'] == (right_a & ~right_b).sum()
  assert found['scores']['accuracy']['interval'][0] > 0
  assert 'accuracy' in text.format_comparison(found)


def test_maps_are_compared_image_by_image(tmp_path):
  (a, _), (b, _) = (write_run(tmp_path / n, i) for i, n in enumerate('ab'))
  found = compare(a, b)['localisation']
  rows = []
  for workdir in (a, b):
    with open(workdir / files.LOCALISATION, newline='') as file:
      rows.append({r['id']: r for r in csv.DictReader(file)})
  want = np.mean(
    [
      float(row['cam/energy_in_box'])
      - float(rows[1][name]['cam/energy_in_box'])
      for name, row in rows[0].items()
    ]
  )
  np.testing.assert_allclose(found['cam']['energy_in_box']['difference'], want)
  assert 'iou' not in found['cam']  # It is undefined there.
  (b / files.LOCALISATION).unlink()
  assert compare(a, b)['localisation'] == {}


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (
      {'ids': [f'other-{i}' for i in range(N)]},
      '120 images were scored either',
    ),
    ({'labels': np.zeros(N, int)}, 'image-1 has another label'),
    ({'names': ['0', '1', '2', '3']}, 'its classes are 0, 1, 2, 3'),
  ],
)
def test_runs_on_other_images_labels_or_classes_are_refused(
  changes, words, tmp_path
):
  a, _ = write_run(tmp_path / 'a', 1)
  b, _ = write_run(tmp_path / 'b', 0, **changes)
  with pytest.raises(UserError, match=words) as error:
    compare(a, b)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('content', 'told'),
  [
    (None, 'run evaluate there first'),
    (b'', 'is damaged'),
    (b'{', 'is damaged'),
    (b'\xff\x00', 'is damaged'),
    (b'[' * 100_000, 'nested too deep'),
    (b'[1]', 'holds no object'),
    (b'{}', 'it has no class_names'),
    (b'{"class_names": [1, 2], "threshold": 1, "temperature": 1}',
     'class_names is'),
    (b'{"class_names": ["a"], "threshold": "x", "temperature": 1}',
     "threshold is 'x'"),
  ],
  ids=range(9),
)  # fmt: skip
def test_a_run_that_is_not_evaluated_is_refused(content, told, tmp_path):
  a, _ = write_run(tmp_path / 'a', 1)
  b, _ = write_run(tmp_path / 'b', 0)
  file = b / files.EVALUATION
  file.unlink()
  if content is not None:
    file.write_bytes(content)
  with pytest.raises(UserError) as error:
    compare(a, b)
  line = str(error.value)
  assert line.startswith(str(file)) and told in line and '\n' not in line


def test_an_evaluation_is_read_once_with_all_that_is_needed_of_it(tmp_path):
  runs = [write_run(tmp_path / n, i)[0] for i, n in enumerate('ab')]
  with pytest.raises(UserError, match='it has no intervals'):
    against.read_evaluation(runs[1], ('intervals',))
  wanted = compare(*runs)
  results = [against.read_evaluation(run) for run in runs]
  for run in runs:
    (run / files.EVALUATION).unlink()
  assert wanted == against.compare_runs(
    *runs, resamples=200, seed=0, results=results
  )


def test_predictions_of_another_evaluation_are_refused(tmp_path):
  a, _ = write_run(tmp_path / 'a', 1)
  b, _ = write_run(tmp_path / 'b', 0)
  c, _ = write_run(tmp_path / 'c', 0, names=['0', '1', '2', '3'])
  shutil.copy(c / files.PREDICTIONS, b)
  with pytest.raises(UserError, match=r'csv: 4 classes, .* names 3; run') as e:
    compare(a, b)
  assert str(b / files.PREDICTIONS) in str(e.value)


def test_a_run_of_an_earlier_version_is_told_so(tmp_path):
  a, _ = write_run(tmp_path / 'a', 1)
  b, _ = write_run(tmp_path / 'b', 0)
  (b / files.EVALUATION).write_text(json.dumps({'scores': {}}))
  with pytest.raises(UserError, match='no class_names: it is of another'):
    compare(a, b)


def test_maps_of_other_images_are_no_pairs(tmp_path):
  a, _ = write_run(tmp_path / 'a', 1)
  b, _ = write_run(tmp_path / 'b', 0)
  file = b / files.LOCALISATION
  file.write_text(file.read_text().replace('image-0,', 'image-60,'))
  with pytest.raises(UserError, match='2 images have boxes either'):
    compare(a, b)


def test_runs_are_compared_by_patient_where_either_knows_them(tmp_path):
  patients = np.arange(N) // 3
  a, p_a = write_run(tmp_path / 'a', 1, patients=patients)
  b, p_b = write_run(tmp_path / 'b', 0)
  c, _ = write_run(tmp_path / 'c', 1)
  found, turned, blind = compare(a, b), compare(b, a), compare(c, b)
  assert (found['num_patients'], blind['num_patients']) == (20, N)
  # In the order of the ids.
  order = np.argsort([f'image-{i}' for i in range(N)])
  labels = (np.arange(N) % 3)[order]
  wanted = resampling.paired_bootstrap(
    labels, p_a[order], p_b[order], NAMES, resamples=200, seed=0,
    patients=patients[order].astype(str), ordinal=True,
    threshold=(0.4, 0.4), temperature=(1.5, 1.5),
  )  # fmt: skip
  assert found['scores'] == wanted != blind['scores']
  assert found['mcnemar'] == significance.mcnemar(
    labels, p_a[order], p_b[order], patients[order]
  )
  assert found['mcnemar']['p_value'] == turned['mcnemar']['p_value']
  assert found['localisation'] != blind['localisation']
  said = text.format_comparison(found)
  assert '; by patient, p = ' in said
  assert 'intervals: over the 20 patients, each with all their images' in said
  assert 'patient' not in text.format_comparison(blind)
