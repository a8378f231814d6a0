"""Answers under other shares of the classes, scored beside the plain ones."""

import numpy as np
import pytest

from dpjax.errors import UserError
from dpjax.evaluation import evaluate, prior_shift, text
from dpjax.metrics import predictions, prevalence, scores
from tests import fakes

STORE = fakes.make_store()
NAMES = STORE.class_names


def score(tmp_path, asked):
  """evaluation.json of a classifier that leans to the commonest class."""
  config = fakes.make_config(
    evaluate__prevalence=asked, evaluate__resamples=20
  ).evaluate
  images = evaluate.images_to_score(config, STORE)
  images.counts[:] = 80, 15, 5

  def predict(split):
    rng = np.random.default_rng(len(split))
    logits = rng.normal(size=(len(split), 3)) + np.log([0.8, 0.15, 0.05])
    logits[np.arange(len(split)), split.labels] += 1.5
    return predictions.softmax(logits), {
      'inference': 1.0, 'images_per_second': None
    }  # fmt: skip

  return evaluate.score_classifier(tmp_path, config, NAMES, images, predict)


@pytest.mark.parametrize(
  ('changes', 'warned'),
  [
    ({'loss__classification': 'ce'}, False),
    ({'loss__classification': 'cb_focal'}, True),
    (
      {
        'stage': 'finetune',
        'finetune__epochs': 1.0,
        'init__backbone': 'r',
        'loss__classification': 'ce',
      },
      True,
    ),
  ],
)
def test_answers_that_were_learnt_shifted_are_not_shifted_without_a_word(
  changes, warned
):
  config = fakes.make_config(**{'stage': 'retrain'} | changes)
  assert ('shifted again' in (prior_shift.too_far(config) or '')) == warned


def test_the_shifted_answers_are_scored_beside_the_plain(tmp_path):
  plain = score(tmp_path, 'none')
  assert plain['prior_shift'] is None
  result = score(tmp_path, 'balanced')
  found = result['prior_shift']
  assert result['scores'] == plain['scores']
  for file, got in (
    ('predictions.csv', found['scores']),
    ('predictions_validation.csv', found['validation']['shifted']),
  ):
    read = predictions.read_predictions(tmp_path / file)
    moved = prevalence.shift(read.probabilities, [80, 15, 5], np.ones(3) / 3)
    want = scores.scores(read.labels, moved, NAMES, ordinal=True)['scores']
    for name in ('accuracy', 'balanced_accuracy', 'macro_f1'):
      assert got[name] == pytest.approx(want[name])
  assert found['trained'] == [0.8, 0.15, 0.05]
  low, high = found['intervals']['balanced_accuracy']
  assert low <= found['scores']['balanced_accuracy'] <= high
  assert (
    found['validation']['plain']['balanced_accuracy']
    != found['validation']['shifted']['balanced_accuracy']
  )
  lines = text.format_table(result).splitlines()
  (line,) = [one for one in lines if one.startswith('balanced accuracy  ')
             and one.count('.') == 4]  # fmt: skip
  assert line.split()[2:4] == [
    f'{of["scores"]["balanced_accuracy"]:.3f}' for of in (result, found)
  ]
  assert 'shifted to 0.333, 0.333, 0.333' in lines
  assert any(one.startswith('on validation: accuracy ') for one in lines)


def test_shares_of_another_number_of_classes_are_refused_at_once(tmp_path):
  with pytest.raises(UserError, match='2 shares; the run tells 3'):
    score(tmp_path, '0.5,0.5')
  assert not list(tmp_path.iterdir())
