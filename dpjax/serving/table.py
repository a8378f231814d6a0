"""predictions.csv of the predict command: its columns, written and read."""

import pathlib
from collections.abc import Iterator, Sequence

from dpjax import csv_cells
from dpjax.serving.model import Predictions

PREDICTIONS = 'predictions.csv'
_AFTER = ('p_any_lesion', 'positive', 'spread', 'unlike_training')


def header(class_names: Sequence[str]) -> list[str]:
  """The columns: file, prediction, p_CLASS of each class, and _AFTER."""
  return ['file', 'prediction', *(f'p_{n}' for n in class_names), *_AFTER]


def rows(names: Sequence[str], answers: Predictions) -> list[list[str]]:
  """A row an image; what the model does not know is empty.

  Args:
    names: of the files.
    answers: to them.
  """
  decided = answers.positive
  flagged = answers.unlike_training
  return [
    [
      name,
      prediction,
      *(f'{p:.9g}' for p in answers.probabilities[i]),
      _number(answers.p_any_lesion, i),
      '' if decided is None else str(int(decided[i])),
      _number(answers.spread, i),
      '' if flagged is None else '; '.join(flagged[i]),
    ]
    for i, (name, prediction) in enumerate(
      zip(names, answers.prediction, strict=True)
    )
  ]


def read(file: pathlib.Path) -> Iterator[dict[str, str]]:
  """The rows of the file as {column: cell}, one after the other."""
  with open(file, newline='', encoding='utf-8') as stream:
    found = csv_cells.read(stream)
    columns = next(found, [])
    for row in found:
      yield dict(zip(columns, row, strict=True))


def probabilities(row: dict[str, str]) -> dict[str, float]:
  """{class: p} of a row of `read`."""
  columns = [*row][2 : -len(_AFTER)]
  return {name.removeprefix('p_'): float(row[name]) for name in columns}


def counted(count: int, noun: str) -> str:
  """'1 file', '1,200 files'."""
  return f'{count:,} {noun}{"s" * (count != 1)}'


def _number(values, i):
  return '' if values is None else f'{values[i]:.9g}'
