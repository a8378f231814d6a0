"""What a study's table says, against scipy, scikit-learn and by hand."""

import csv
import dataclasses

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from dpjax.errors import UserError
from dpjax.metrics import predictions, resampling, score_table
from dpjax.studies import runs, tables
from tests import fakes
from tests.studies import fake_runs


def make_run(seed, **scores):
  """A finished run of these scores, with no files."""
  result = {'scores': scores, 'localisation': {}}
  return runs.Run(seed, f'seed{seed}', result)


class NoImages:
  """In place of tables.Images where there are no files."""

  def resampled(self, a, b=()):
    return {}


@pytest.fixture(scope='module')
def models(tmp_path_factory):
  """Six runs with predictions.csv: two rows of three seeds."""
  root = tmp_path_factory.mktemp('models')
  split = fakes.make_split(60, 16, seed=3)
  rows = []
  for row, strength in enumerate((1.0, 1.8)):
    rows.append([])
    for seed in range(3):
      folder = root / f'{row}-{seed}'
      folder.mkdir()
      rng = np.random.default_rng([row, seed])
      fake_runs.write_evaluation(folder, split, rng, strength)
      result = {
        'class_names': ['0', '1', '2'],
        'localisation': {},
        'threshold': 0.5 + 0.1 * row,
        'temperature': 1.2 + 0.1 * row,
      }
      rows[-1].append(runs.Run(seed, folder, result))
  return rows


def test_means_over_seeds_have_the_t_interval_of_scipy():
  values = [0.5, 0.62, 0.55]
  own = [make_run(i, accuracy=v, kappa=None) for i, v in enumerate(values)]
  found = tables.over_seeds([*own, runs.Run(3, 'x', error='diverged')])
  low, high = stats.t.interval(
    0.95, 2, loc=np.mean(values), scale=stats.sem(values)
  )
  assert found['accuracy']['mean'] == pytest.approx(np.mean(values))
  assert found['accuracy']['interval'] == pytest.approx([low, high])
  assert found['accuracy']['num_runs'] == 3
  assert found['kappa']['mean'] is None


def test_differences_pair_the_seeds_that_both_rows_finished():
  a = [make_run(0, f1=0.9), make_run(1, f1=0.1), make_run(2, f1=0.8)]
  b = [make_run(2, f1=0.5), make_run(1, f1=0.0), make_run(0, f1=0.7)]
  a[1] = dataclasses.replace(a[1], result={}, error='diverged')
  found = tables.differences(a, b, NoImages())['f1']
  assert found['num_runs'] == 2
  assert found['mean'] == pytest.approx((0.2 + 0.3) / 2)
  # By hand: s = .0707, t(1) at .975 is 12.706, s / sqrt(2) = .05.
  half = 12.7062 * 0.05
  assert found['interval'] == pytest.approx(
    [0.25 - half, 0.25 + half], abs=1e-5
  )
  test = stats.ttest_rel([0.9, 0.8], [0.7, 0.5])
  assert found['p_value'] == pytest.approx(test.pvalue)


def test_rows_without_a_common_seed_have_no_difference():
  a, b = [make_run(0, f1=0.9)], [make_run(1, f1=0.5)]
  assert tables.differences(a, b, NoImages()) == {}


def test_grad_cam_stands_beside_the_other_scores():
  run = make_run(0, f1=0.9)
  run.result['localisation'] = {'cam': {'scores': {'iou': 0.3}}}
  assert tables.values(run) == {'f1': 0.9, 'cam/iou': 0.3}


def test_intervals_over_images_average_the_seeds_in_each_resample(models):
  resamples, seed = 150, 4
  found = tables.Images(resamples, seed).interval(models[1], models[0])
  read = [
    [
      predictions.read_predictions(run.workdir / 'predictions.csv')
      for run in row
    ]
    for row in models
  ]
  labels = read[0][0][1]
  wanted = {'accuracy': [], 'balanced_accuracy': [], 'auroc_any_lesion': []}
  counts = np.concatenate([*resampling.draws(labels, resamples, seed, True)])
  for count in counts:
    drawn = np.repeat(np.arange(len(labels)), count.astype(int))
    truth = labels[drawn]
    means = []
    for row in read:
      probabilities = [p[drawn] for _, _, p, _ in row]
      answers = [p.argmax(axis=1) for p in probabilities]
      means.append([
        np.mean([metrics.accuracy_score(truth, a) for a in answers]),
        np.mean([metrics.balanced_accuracy_score(truth, a) for a in answers]),
        np.mean([
          metrics.roc_auc_score(truth > 0, 1 - p[:, 0]) for p in probabilities
        ]),
      ])  # fmt: skip
    for name, first, second in zip(wanted, *means, strict=True):
      wanted[name].append(second - first)
  for name, values in wanted.items():
    want = np.quantile(values, [0.025, 0.975])
    np.testing.assert_allclose(found[name], want, atol=1e-9)


def test_intervals_over_images_of_one_run_and_of_a_pair_are_the_bootstraps(
  models,
):
  def given(run):
    file = run.workdir / 'predictions.csv'
    _, labels, probabilities, _ = predictions.read_predictions(file)
    own = run.result['threshold'], run.result['temperature']
    return labels, probabilities, *own

  a, b = models[1][0], models[0][0]
  images = tables.Images(60, 5)
  labels, p_a, threshold_a, temperature_a = given(a)
  one = resampling.bootstrap_intervals(
    labels, p_a, None, resamples=60, seed=5, ordinal=True,
    threshold=threshold_a, temperature=temperature_a,
  )  # fmt: skip
  assert images.interval([a]) == one
  assert None not in [v for k, v in one.items() if k != 'balanced_accuracy_0_2']
  _, p_b, threshold_b, temperature_b = given(b)
  pair = resampling.paired_bootstrap(
    labels, p_a, p_b, None, resamples=60, seed=5, ordinal=True,
    threshold=(threshold_a, threshold_b),
    temperature=(temperature_a, temperature_b),
  )  # fmt: skip
  assert images.interval([a], [b]) == {
    name: value['interval'] for name, value in pair.items()
  }


def test_a_run_without_a_threshold_has_no_interval_of_a_sensitivity(models):
  other = dataclasses.replace(
    models[0][1], result={**models[0][1].result, 'threshold': None}
  )
  images = tables.Images(10, 0)
  assert images.interval(models[0][:2])['sensitivity_any_lesion'] is not None
  found = images.interval([models[0][0], other])
  assert found['sensitivity_any_lesion'] is None
  assert found['specificity_any_lesion'] is None
  assert found['nll_scaled'] is not None


def test_a_row_against_itself_differs_nowhere(models):
  found = tables.Images(50, 0).interval(models[0], models[0])
  assert found['accuracy'] == found['nll'] == [0, 0]


def test_an_interval_over_images_holds_the_score_and_shrinks_with_runs(models):
  images = tables.Images(400, 0)
  one, all_three = (images.interval(models[0][:n]) for n in (1, 3))
  width = {n: v['nll'][1] - v['nll'][0] for n, v in ((1, one), (3, all_three))}
  assert 0 < width[3] < width[1]


def test_runs_scored_on_other_images_are_refused(models, tmp_path):
  split = fakes.make_split(60, 16, seed=9)
  fake_runs.write_evaluation(tmp_path, split, np.random.default_rng(0))
  other = dataclasses.replace(models[0][0], workdir=tmp_path)
  with pytest.raises(UserError, match='has other images or labels'):
    tables.Images(10, 0).interval([models[0][0], other])


def test_a_repeated_evaluation_is_read_anew(models, tmp_path):
  split = fakes.make_split(60, 16, seed=3)
  images = tables.Images(30, 0)
  run = dataclasses.replace(models[0][0], workdir=tmp_path)
  found = []
  for seed in (0, 1):
    (tmp_path / 'predictions.csv').unlink(missing_ok=True)
    fake_runs.write_evaluation(tmp_path, split, np.random.default_rng(seed))
    found.append(images.interval([run])['nll'])
  assert found[0] != found[1]


@pytest.mark.parametrize(
  ('value', 'sign', 'text'),
  [
    (0.6123, '', '.612'),
    (-0.0124, '', '-.012'),
    (0.05, '+', '+.050'),
    (1.0, '', '1.000'),
    (0.99951, '', '1.000'),
    (-1.0, '+', '-1.000'),
    (10.5, '', '10.500'),
    (0.0, '', '.000'),
    (None, '+', '-'),
  ],
)
def test_numbers_have_three_decimals_and_no_leading_zero(value, sign, text):
  assert tables.number(value, sign) == text


def test_half_an_interval_too_wide_for_a_score_says_so():
  entry = {'mean': 0.5, 'interval': [-1.2, 2.2]}
  assert tables.with_half(entry) == '.500±>1'
  entry['interval'] = [0.4, 0.6]
  assert tables.with_half(entry, '+', ' ') == '+.500 ± .100'
  entry['interval'] = None
  assert tables.with_half(entry) == '.500'
  assert tables.with_half(None) == tables.with_half({'mean': None}) == '-'


def test_a_bar_in_a_name_stays_in_its_cell():
  text = tables.markdown(['a', 'b'], [['x|y', '1']])
  assert text.splitlines() == ['| a | b |', '| --- | --- |', r'| x\|y | 1 |']


def test_the_runs_are_listed_with_their_scores_an_undefined_one_empty():
  first = make_run(0, accuracy=0.5, macro_f1=None)
  seconds = {'pretraining': 2.0, 'training': 12.34}
  timed = {**first.result, 'seconds': seconds, 'images_per_second': 50.0}
  of = {
    'a, b': [
      dataclasses.replace(first, result=timed),
      runs.Run(1, 'x', error='diverged'),
    ]
  }
  header, *rows = csv.reader(tables.runs_csv(of).splitlines())
  assert header[:4] == ['row', 'seed', 'training_seconds', 'accuracy']
  (row,) = rows
  found = dict(zip(header, row, strict=True))
  assert (found['row'], found['seed']) == ('a, b', '0')
  assert found['training_seconds'] == '12.3'
  assert float(found['accuracy']) == 0.5
  assert found['macro_f1'] == ''


def test_patients_of_a_study_are_drawn_with_all_their_images(tmp_path):
  split = fakes.make_split(60, 16, seed=3)
  run = runs.Run(0, tmp_path, {'class_names': ['0', '1', '2']})
  found = []
  for owners in (None, np.arange(60) // 4):
    whose = dataclasses.replace(split, owners=owners)
    fake_runs.write_evaluation(tmp_path, whose, np.random.default_rng(0))
    found.append(tables.Images(50, 1).interval([run])['accuracy'])
  file = tmp_path / 'predictions.csv'
  _, labels, probabilities, patients = predictions.read_predictions(file)
  by_patient = resampling.bootstrap_intervals(
    labels, probabilities, None, resamples=50, seed=1, patients=patients
  )
  assert found[1] == by_patient['accuracy'] != found[0]


def test_a_run_that_knows_no_patients_is_drawn_by_those_of_the_other(tmp_path):
  split = fakes.make_split(60, 16, seed=3)
  pair, read = [], []
  for i, owners in enumerate((None, np.arange(60) // 4)):
    folder = tmp_path / str(i)
    folder.mkdir()
    whose = dataclasses.replace(split, owners=owners)
    fake_runs.write_evaluation(folder, whose, np.random.default_rng(i))
    pair.append(runs.Run(0, folder, {'class_names': ['0', '1', '2']}))
    read.append(predictions.read_predictions(folder / 'predictions.csv'))
  before, after = read
  assert before.patients is None and after.patients is not None
  want = resampling.paired_bootstrap(
    before.labels, before.probabilities, after.probabilities, '012',
    resamples=50, seed=1, patients=after.patients, any_lesion=True,
  )['accuracy']['interval']  # fmt: skip
  found = tables.Images(50, 1).interval(pair[:1], pair[1:])['accuracy']
  np.testing.assert_allclose(found, want)


def test_a_difference_has_one_interval_of_seeds_and_images(models):
  images = tables.Images(120, 2)
  a, b = models[1], models[0]
  for row in models:
    for i, run in enumerate(row):
      file = run.workdir / 'predictions.csv'
      _, labels, p, _ = predictions.read_predictions(file)
      accuracy = metrics.accuracy_score(labels, p.argmax(axis=1))
      scores = dict.fromkeys(score_table.SUMMARY) | {'accuracy': accuracy}
      row[i] = dataclasses.replace(run, result={**run.result, 'scores': scores})
  found = tables.differences(a, b, images)['accuracy']
  per_seed = [
    tables.values(x)['accuracy'] - tables.values(y)['accuracy']
    for x, y in zip(a, b, strict=True)
  ]
  over_images = images.resampled(a, b)['accuracy']
  seeds, over_images = np.var(per_seed, ddof=1) / 3, np.var(over_images)
  halves = (
    stats.t.ppf(0.975, 2) * np.sqrt(seeds),
    1.959964 * np.sqrt(over_images),
  )
  half = np.hypot(*halves)
  want = np.mean(per_seed) + half * np.array([-1, 1])
  assert found['both_interval'] == pytest.approx(want, abs=1e-6)
  assert tables.whole_interval(found) == found['both_interval']
  assert tables.with_half(found, '+').endswith(f'±{tables.number(half)}')
  # Of one seed there is no spread over seeds.
  one = tables.differences(a[:1], b[:1], images)['accuracy']
  assert one['both_interval'] is None is one['interval']
  assert tables.whole_interval(one) == one['image_interval']
