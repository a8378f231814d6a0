"""The csv files of a study in docs/results: read, and made of its runs.

NAME.csv          a row a run: seed, seconds, scores, maps against boxes; and a
                  row RUN-shifted where evaluate.prevalence was asked for
NAME-images.csv   a row a score, or a difference of two runs, both averaged
                  over the seeds: its interval over the images, and `error`,
                  the standard error over them
"""

import csv
import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dpjax import atomic
from dpjax.errors import UserError
from dpjax.evaluation import files, localisation
from dpjax.metrics import resampling, significance
from dpjax.studies import runs, tables

SHIFTED = 'shifted'  # ends the name of a run whose answers were shifted
RESULTS = pathlib.Path(__file__).resolve().parents[1] / 'docs' / 'results'
_COLUMNS = (
  'accuracy', 'balanced_accuracy', 'balanced_accuracy_0_2', 'macro_f1',
  'auroc_any_lesion', 'average_precision_any_lesion', 'quadratic_kappa', 'ece',
  'brier', 'nll', 'ece_scaled',
  *(f'{map_} {score}'
    for map_ in ('cam', 'att_pos/stage1', 'att_pos/stage2', 'att_pos/stage3')
    for score in localisation.SCORES),
)  # fmt: skip


class Images(NamedTuple):
  """What the images make of a score, or of a difference; None: not kept."""

  interval: list[float]
  error: float | None


class Study:
  """What docs/results holds of a study.

  Attributes:
    name: of its files.
    runs: {run: {seed: {column: number, or None}}}.
    images: {(run, run that is taken off or '', score): Images}.
  """

  def __init__(self, name: str, folder: pathlib.Path = RESULTS):
    self.name = name
    self.runs: dict[str, dict[int, dict[str, float | None]]] = {}
    for row in _read(folder / f'{name}.csv'):
      own = self.runs.setdefault(row.pop('run'), {})
      numbers = {k: float(v) if v else None for k, v in row.items()}
      own[int(row['seed'])] = numbers
    self.images: dict[tuple[str, str, str], Images] = {}
    beside = folder / f'{name}-images.csv'
    for row in _read(beside) if beside.is_file() else ():
      self.images[row['run'], row['minus'], row['score']] = Images(
        [float(row['low']), float(row['high'])],
        float(row['error']) if row['error'] else None,
      )

  def values(self, run: str, column: str) -> list[float | None]:
    """Of each seed, in order."""
    own = self.runs[run]
    return [own[seed].get(column) for seed in sorted(own)]

  def first(self, run: str, column: str) -> float | None:
    """Of the first seed."""
    return self.values(run, column)[0]

  def seconds(self, run: str) -> float:
    """Mean training time, stage I in it."""
    both = zip(
      self.values(run, 'pretraining_seconds'),
      self.values(run, 'training_seconds'),
      strict=True,
    )
    return sum(a + b for a, b in both) / len(self.runs[run])

  def known(self, columns: Sequence[str], among: Sequence[str]) -> list[str]:
    """Those of the columns that one of the runs has."""
    return [
      column
      for column in columns
      if any(self.first(run, column) is not None for run in among)
    ]

  def mean(self, run: str, column: str) -> str:
    """'.612 ± .034': over the seeds."""
    return tables.with_half(
      significance.over_seeds(self.values(run, column)), gap=' '
    )

  def difference(self, a: str, b: str, column: str) -> str:
    """a - b, paired by seed, with its interval.

    '+.012 ± .034' over seeds and images; where no error over the images was
    kept, over the seeds, and their interval in brackets.
    """
    pair = self._pairs(a, b, column)
    entry = significance.paired_over_seeds(*pair)
    images = self._images(a, b, column)
    if images and images.error is not None and entry['interval']:
      entry['both_interval'] = significance.over_seeds_and_images(
        [*map(resampling.difference, *pair)], images.error**2
      )
    text = tables.with_half(entry, '+', ' ')
    if images and 'both_interval' not in entry:
      text += f' ({tables.span(images.interval, "+")})'
    return text

  def _images(self, a, b, column):
    """Images of a - b; the file has a pair once, either way round."""
    if found := self.images.get((a, b, column)):
      return found
    if found := self.images.get((b, a, column)):
      low, high = found.interval
      return Images([-high, -low], found.error)
    return None

  def _pairs(self, a, b, column):
    seeds = sorted(self.runs[a].keys() & self.runs[b].keys())
    return [[self.runs[x][s].get(column) for s in seeds] for x in (a, b)]


def collect(
  workdir: pathlib.Path,
  name: str,
  folder: pathlib.Path = RESULTS,
  *,
  resamples: int = 2000,
  seed: int = 0,
) -> None:
  """Writes NAME.csv and NAME-images.csv of the finished runs of a study.

  Args:
    workdir: of the study, its runs in seedN/RUN.
    name: of the files.
    folder: of the files.
    resamples: of the bootstrap over the images.
    seed: of the bootstrap.

  Raises:
    UserError: there is no finished run.
  """
  found: dict[str, list[runs.Run]] = {}
  for place in sorted(pathlib.Path(workdir).glob('seed*/*')):
    own = files.workdir_of(place)
    if (own / files.EVALUATION).is_file():
      result = files.read_evaluation(own, ('scores', 'num_images'))
      number = int(place.parent.name.removeprefix('seed'))
      found.setdefault(place.name, []).append(runs.Run(number, own, result))
  if not found:
    raise UserError(f'{workdir} holds no finished run (seedN/RUN)')
  rows = [_row(run, run_) for run, own in found.items() for run_ in own]
  rows += [
    _row(f'{run}-{SHIFTED}', dataclasses.replace(run_, result=shifted))
    for run, own in found.items()
    for run_ in own
    if (shifted := _shifted(run_.result))
  ]
  rows.sort(key=lambda row: (row['seed'], row['run']))
  _write(folder / f'{name}.csv', rows)
  drawn = tables.Images(resamples, seed)
  order = sorted(found)
  pairs = [*((run, '') for run in order), *itertools.combinations(order, 2)]
  rows = []
  for a, b in pairs:
    of = [found[a]]
    if b:
      of = [*zip(*tables.common(found[a], found[b]), strict=True)]
    # Runs without a seed in common have no difference.
    for score, values in drawn.resampled(*of).items() if of else ():
      interval = resampling.percentile_interval(values, 0.95)
      if interval is not None:
        numbers = (*interval, float(np.nanstd(values)))
        rows.append(
          {'run': a, 'minus': b, 'score': score}
          | dict(zip(('low', 'high', 'error'), map(_digits, numbers),
                     strict=True))
        )  # fmt: skip
  _write(folder / f'{name}-images.csv', rows)


def _shifted(result):
  """The result of a run as evaluate.prevalence shifts it; None without."""
  shift = result.get('prior_shift')
  return shift and {
    **result,
    **{key: shift[key] for key in ('scores', 'confusion_matrix')},
    'localisation': {},
  }


def _row(name, run):
  result = run.result
  seconds = run.seconds
  scores = dict(result['scores'])
  for map_, own in (result.get('localisation') or {}).items():
    scores |= {f'{map_} {k}': v for k, v in own['scores'].items()}
  class_0 = sum(result['confusion_matrix'][0]) / result['num_images']
  numbers = {
    'pretraining_seconds': seconds['pretraining'],
    'training_seconds': seconds['training'] - seconds['pretraining'],
    'ms_per_image': seconds['ms_per_image'],
    'always_0': class_0,
    **{column: scores.get(column) for column in _COLUMNS},
  }
  return {
    'run': name,
    'seed': run.seed,
    'images': result['num_images'],
    **{column: _digits(value) for column, value in numbers.items()},
  }


def _digits(value: float | None) -> str:
  return '' if value is None else f'{value:.5g}'


def _read(file) -> list[dict[str, Any]]:
  with open(file, newline='', encoding='utf-8') as stream:
    return list(csv.DictReader(stream))


def _write(file, rows):
  with (
    atomic.replacing(file) as temporary,
    open(temporary, 'w', newline='', encoding='utf-8') as stream,
  ):
    writer = csv.DictWriter(stream, [*rows[0]], lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
