"""Evaluated runs beside each other, and beside always the same answer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpjax import text_table
from dpjax.data import vocabulary
from dpjax.errors import printable
from dpjax.metrics import score_table, scores

# Those by which runs on a long tail are judged, of score_table.SUMMARY.
SHOWN = ('accuracy', 'balanced_accuracy', 'macro_f1', 'auroc_any_lesion',
         'quadratic_kappa')  # fmt: skip

NEEDED = ('num_images', 'scores', 'per_class', 'intervals')  # of the results


def constant_scores(result: dict[str, Any]) -> dict[str, float | None]:
  """The scores of always answering the class that is commonest.

  Args:
    result: evaluation.json of any run on the images.
  """
  names = [*result['per_class']]
  support = [row['support'] for row in result['per_class'].values()]
  labels = np.repeat(np.arange(len(names)), support)
  answers = np.zeros((len(labels), len(names)))
  answers[:, np.argmax(support)] = 1
  found = scores.scores(labels, answers, names, **vocabulary.meaning(names))
  return found['scores']


def format_beside(
  results: Mapping[str, dict[str, Any]], *, level: float = 0.95
) -> str:
  """A row for always the commonest class, and one for each run.

  Args:
    results: evaluation.json by what its run is called; all of the same images.
    level: that the intervals were made for.

  Returns:
    Lines without a final newline: each score with its interval below it.
  """
  first = next(iter(results.values()))
  commonest = max(
    first['per_class'], key=lambda name: first['per_class'][name]['support']
  )
  constant = constant_scores(first)
  shown = [name for name in SHOWN if first['scores'].get(name) is not None]
  rows = [['', *(score_table.SUMMARY[name].short for name in shown)]]
  rows.append(
    [f'always {commonest}', *(_cell(constant[name]) for name in shown)]
  )
  for called, result in results.items():
    rows.append([called, *(_cell(result['scores'][name]) for name in shown)])
    spans = (result['intervals'].get(name) for name in shown)
    rows.append(['', *(_span(interval) for interval in spans)])
  rows = [[printable(row[0]), *row[1:]] for row in rows]
  heading = (
    f'{first["num_images"]} images, with {100 * level:g} % intervals over them'
  )
  return '\n'.join([heading, '', *text_table.lines(rows, '<>')])


def _cell(value):
  return '-' if value is None else f'{value:.3f}'


def _span(interval):
  return '{:.2f}-{:.2f}'.format(*interval) if interval else ''
