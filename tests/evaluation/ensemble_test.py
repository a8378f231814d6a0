"""The mean of several runs, as one classifier."""

import dataclasses
import json

import numpy as np
import pytest

from dpjax import prepare
from dpjax.config import record as record_lib
from dpjax.errors import UserError
from dpjax.evaluation import against, ensemble, evaluate, files
from dpjax.metrics import calibration, predictions, scores
from dpjax.report import run_files
from tests import fakes

STORE = fakes.make_store(train=6, validation=30, test=40)
CONFIG = fakes.make_config(evaluate__resamples=20)


@pytest.fixture(autouse=True)
def data(monkeypatch):
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: STORE)


def answers(seed, split):
  """What a member says: random, leaning to the truth."""
  rng = np.random.default_rng([seed, len(split)])
  logits = rng.normal(size=(len(split), 3))
  logits[np.arange(len(split)), split.labels] += 1
  return predictions.softmax(logits)


def write_member(workdir, seed, names='012', own=STORE, **changes):
  """A run on `own` as evaluate leaves it."""
  workdir.mkdir(parents=True)
  record_lib.save(CONFIG, workdir / 'config.json')
  images = evaluate.images_to_score(CONFIG.evaluate, own)
  result = evaluate.score_classifier(
    workdir, CONFIG.evaluate, list(names), images,
    lambda split: (
      answers(seed, split),
      {'inference': 2.0, 'images_per_second': 30.0},
    ),
  )  # fmt: skip
  evaluate.write(workdir, {**result, 'device': 'none', **changes})
  return workdir


@pytest.fixture
def members(tmp_path):
  return [write_member(tmp_path / f'seed{i}' / 'run', i) for i in range(3)]


def test_an_ensemble_is_scored_as_the_mean_of_its_members(members, tmp_path):
  output = tmp_path / 'of' / 'three'
  result = ensemble.evaluate_ensemble(CONFIG, members, output)
  mean = {
    name: np.mean([answers(i, STORE.split(name)) for i in range(3)], axis=0)
    for name in ('validation', 'test')
  }
  for name, file in (('test', 'predictions'),
                     ('validation', 'predictions_validation')):  # fmt: skip
    found = predictions.read_predictions(output / f'{file}.csv')
    assert found.ids == [*STORE.split(name).ids]
    np.testing.assert_allclose(found.probabilities, mean[name], atol=1e-12)
  validation = STORE.split('validation')
  threshold = calibration.choose_threshold(
    validation.labels, mean['validation']
  )
  assert result['threshold'] == pytest.approx(threshold)
  wanted = scores.scores(
    STORE.split('test').labels, mean['test'], '012', ordinal=True,
    threshold=result['threshold'], temperature=result['temperature'],
  )  # fmt: skip
  assert result['scores'] == pytest.approx(wanted['scores'])
  assert result['members'] == [str(member) for member in members]
  assert result['images_per_second'] == pytest.approx(10)
  assert json.loads((output / files.EVALUATION).read_text()) == result
  # Both losses are convex: that of the mean is at most the mean of theirs.
  singles = [files.read_evaluation(m, ('scores',)) for m in members]
  for loss in ('nll', 'brier'):
    each = [single['scores'][loss] for single in singles]
    assert result['scores'][loss] < np.mean(each)


def test_an_ensemble_is_compared_and_reported_as_a_run_is(members, tmp_path):
  output = tmp_path / 'both'
  ensemble.evaluate_ensemble(CONFIG, members[:2], output)
  found = against.compare_runs(output, members[2], resamples=20, seed=0)
  assert found['num_images'] == 40 and found['localisation'] == {}
  read = run_files.read(output, 'both')
  assert read.evaluation['members'] == [str(m) for m in members[:2]]
  assert len(read.probabilities) == 40


def test_the_order_of_a_members_rows_does_not_matter(members, tmp_path):
  first = ensemble.evaluate_ensemble(CONFIG, members, tmp_path / 'a')
  for name in (files.PREDICTIONS, files.VALIDATION):
    head, *rows = (members[1] / name).read_text().splitlines()
    (members[1] / name).write_text('\n'.join([head, *rows[::-1]]) + '\n')
  again = ensemble.evaluate_ensemble(CONFIG, members, tmp_path / 'b')
  assert {**again, 'seconds': 0} == {**first, 'seconds': 0}


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({'names': 'abc'}, 'its classes are a, b, c and those of'),
    ({'split': 'validation'}, 'evaluated on validation of memory, and not on'),
    ({'data': 'elsewhere'}, 'evaluated on test of elsewhere, and not on test'),
    ({'checkpoint': 'best'}, 'evaluated at its best checkpoint, and not at'),
  ],
)
def test_members_of_other_classes_sets_splits_or_checkpoints_are_refused(
  members, tmp_path, changes, reason
):
  other = write_member(tmp_path / 'other', 7, **changes)
  with pytest.raises(UserError) as error:
    ensemble.evaluate_ensemble(CONFIG, [*members, other], tmp_path / 'x')
  line = str(error.value)
  assert line.startswith(str(other)) and reason in line and '\n' not in line
  assert not (tmp_path / 'x').exists()


def test_a_member_of_other_images_is_refused(members, tmp_path):
  text = (members[1] / files.PREDICTIONS).read_text()
  (members[1] / files.PREDICTIONS).write_text(text.replace('2-5,', '9-5,'))
  with pytest.raises(
    UserError, match=r'not of the images and classes.*run evaluate there again'
  ):
    ensemble.evaluate_ensemble(CONFIG, members, tmp_path / 'x')


def test_a_member_without_checkpoints_goes_with_any(members, tmp_path):
  other = write_member(tmp_path / 'other', 7, checkpoint=None)
  found = ensemble.evaluate_ensemble(CONFIG, [*members, other], tmp_path / 'x')
  assert found['members'][-1] == str(other)


def test_folds_are_scored_together_without_what_a_validation_would_choose(
  members, tmp_path, capsys
):
  # Another fold of the same set is tested on the same images.
  splits = {**STORE.splits, 'validation': fakes.make_split(30, 48, seed=50)}
  fold = write_member(
    tmp_path / 'fold', 7, own=dataclasses.replace(STORE, splits=splits)
  )
  runs = [members[0], fold]
  found = ensemble.evaluate_ensemble(CONFIG, runs, tmp_path / 'x')
  wanted = answers(0, STORE.split('test')) + answers(7, STORE.split('test'))
  read = predictions.read_predictions(tmp_path / 'x' / files.PREDICTIONS)
  np.testing.assert_allclose(read.probabilities, wanted / 2, atol=1e-12)
  assert (
    found['chosen_on'] is found['threshold'] is found['temperature'] is None
  )
  (line,) = capsys.readouterr().err.splitlines()
  assert 'no threshold' in line and f'{fold / files.VALIDATION}: not of' in line
  (fold / files.VALIDATION).unlink()  # As of a set without a validation split.
  found = ensemble.evaluate_ensemble(CONFIG, runs, tmp_path / 'x')
  assert found['threshold'] is None
  assert f'{fold} has no' in capsys.readouterr().err


@pytest.mark.parametrize(('asked', 'lines'), [('none', 0), ('balanced', 1)])
def test_members_that_have_learnt_to_shift_their_answers_are_told_once(
  asked, lines, members, tmp_path, capsys
):
  config = fakes.make_config(evaluate__resamples=20, evaluate__prevalence=asked)
  for i, member in enumerate(members):
    own = fakes.make_config(stage='retrain')
    own.loss.classification = ('ce', 'cb_focal', 'cb_focal')[i]
    record_lib.save(own, member / 'config.json')
  ensemble.evaluate_ensemble(config, members, tmp_path / 'x')
  said = capsys.readouterr().err.splitlines()
  assert len(said) == lines
  assert all('was trained under cb_focal, which' in line for line in said)


def test_other_shares_are_reached_from_what_all_members_were_trained_on(
  members, tmp_path, monkeypatch
):
  other = fakes.make_store(train=33, validation=30, test=40)
  other.split('train').labels[:11] = 2
  own = fakes.make_config(data__path='other')
  record_lib.save(own, members[2] / 'config.json')
  monkeypatch.setattr(
    prepare, 'open_prepared',
    lambda config: other if config.data.path == 'other' else STORE,
  )  # fmt: skip
  config = fakes.make_config(
    evaluate__resamples=20, evaluate__prevalence='balanced'
  )
  found = ensemble.evaluate_ensemble(config, members, tmp_path / 'x')
  labels = [2 * [*STORE.split('train').labels], [*other.split('train').labels]]
  counts = np.bincount(np.concatenate(labels), minlength=3)
  np.testing.assert_allclose(
    found['prior_shift']['trained'], counts / counts.sum()
  )


def test_what_is_no_ensemble_is_refused(members, tmp_path):
  def refused(workdirs, output=tmp_path / 'x'):
    with pytest.raises(UserError) as error:
      ensemble.evaluate_ensemble(CONFIG, workdirs, output)
    return str(error.value)

  assert 'is named twice' in refused([members[0], members[0]])
  assert 'holds a run' in refused(members, members[0])
  ensemble.evaluate_ensemble(CONFIG, members[:2], tmp_path / 'mean')
  for order in (
    [tmp_path / 'mean', members[2]],
    [members[2], tmp_path / 'mean'],
  ):
    assert f'it is a mean of runs: name {members[0]}, ' in refused(order)
  (members[1] / files.EVALUATION).unlink()
  assert 'run evaluate there first' in refused(members)
  assert 'holds no config.json' in refused([tmp_path / 'none', members[0]])
