"""Runs beside each other, and beside always the same answer."""

import numpy as np
import pytest
from sklearn import metrics

from dpjax.evaluation import beside
from dpjax.metrics import resampling, scores

NAMES = ['0', '1', '2', '3']
LABELS = np.repeat(np.arange(4), [30, 9, 6, 5])


def evaluated(seed):
  """As evaluate writes it."""
  rng = np.random.default_rng(seed)
  p = rng.dirichlet(np.ones(4), len(LABELS))
  return {
    **scores.scores(LABELS, p, NAMES, ordinal=True),
    'intervals': resampling.bootstrap_intervals(
      LABELS, p, NAMES, resamples=20, seed=0, ordinal=True
    ),
  }


def test_always_the_commonest_class_is_scored_as_by_others():
  found = beside.constant_scores(evaluated(0))
  answers = np.zeros_like(LABELS)
  assert found['accuracy'] == pytest.approx(0.6)
  assert found['balanced_accuracy'] == pytest.approx(
    metrics.balanced_accuracy_score(LABELS, answers)
  )
  assert found['macro_f1'] == pytest.approx(
    metrics.f1_score(LABELS, answers, average='macro')
  )
  assert found['auroc_any_lesion'] == 0.5
  assert found['quadratic_kappa'] == 0


def test_each_run_has_a_row_of_its_scores_and_one_of_their_intervals():
  results = {'a': evaluated(0), 'b': evaluated(1)}
  _, _, head, always, *rows = beside.format_beside(results).splitlines()
  assert head.split()[:2] == ['accuracy', 'balanced']
  assert always.split()[:4] == ['always', '0', '0.600', '0.250']
  for (name, result), values, spans in zip(
    results.items(), rows[::2], rows[1::2], strict=True
  ):
    want = [f'{result["scores"][key]:.3f}' for key in beside.SHOWN]
    assert values.split() == [name, *want]
    for key, span in zip(beside.SHOWN, spans.split(), strict=True):
      low, high = result['intervals'][key]
      assert span == f'{low:.2f}-{high:.2f}'
