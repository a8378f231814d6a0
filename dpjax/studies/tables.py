"""What the table of a study says of a row: means, differences, intervals.

Two kinds of spread: over seeds (t intervals of the runs of a row, as if it were
trained again), and over images (a bootstrap of the scored split, the trained
networks held fixed). A difference has a third interval, of both.
"""

import io
import pathlib
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np

from dpjax import atomic, csv_cells
from dpjax.data import vocabulary
from dpjax.errors import UserError
from dpjax.evaluation import files, localisation
from dpjax.metrics import (
  predictions,
  resampling,
  score_table,
  significance,
)
from dpjax.metrics import scores as scores_lib
from dpjax.studies import runs
from dpjax.studies import tasks as tasks_lib

# The scores that are shown, and the heads of their columns; the JSON has all.
MAIN = {
  **{
    name: score_table.SUMMARY[name].short
    for name in (
      'accuracy',
      'balanced_accuracy',
      'balanced_accuracy_0_2',
      'macro_f1',
      'auroc_any_lesion',
    )
  },
  'cam/energy_in_box': localisation.SCORES['energy_in_box'].short,
}
_EXPLAINED = {
  'balanced_accuracy': 'balanced: mean recall of the classes.',
  'balanced_accuracy_0_2': 'bal. 0-2: mean recall of classes 0 to 2.',
  'auroc_any_lesion': 'AUROC: any lesion against none.',
  'cam/energy_in_box': "in box: share of Grad-CAM's sum inside of the boxes.",
}
# What stands beside a difference, under its table.
INTERVAL = (
  'Its 95 % interval is over seeds and images: the t interval over the seeds,'
  ' and the\ninterval over the images (stratified bootstrap, by patient where'
  ' one has several), their halves added as squares.\nOf one seed, in brackets:'
  ' over the images, the network held fixed. Of Grad-CAM: over the seeds.'
)
_LEVEL = 0.95


def finished(of: Sequence[runs.Run]) -> list[runs.Run]:
  """Those that have a result."""
  return [run for run in of if run.state == 'finished']


def values(run: runs.Run) -> dict[str, float | None]:
  """Every flat score of a finished run, and of its Grad-CAM ('cam/...')."""
  cam = run.result['localisation'].get('cam', {}).get('scores', {})
  return {**run.result['scores'], **{f'cam/{k}': v for k, v in cam.items()}}


def over_seeds(of: Sequence[runs.Run]) -> dict[str, dict[str, Any]]:
  """Each score's mean over the finished runs, with its t interval.

  Returns:
    {score: what significance.over_seeds returns}; {} without a finished run.
  """
  found = [values(run) for run in finished(of)]
  names = dict.fromkeys(name for scores in found for name in scores)
  return {
    name: significance.over_seeds([scores.get(name) for scores in found])
    for name in names
  }


def differences(
  a: Sequence[runs.Run], b: Sequence[runs.Run], images: 'Images'
) -> dict[str, dict[str, Any]]:
  """Each score's mean difference a - b over the seeds that both finished.

  Returns:
    {score: what significance.paired_over_seeds returns, and of the same
    difference, where the bootstrap over images has one, 'image_interval' and
    'both_interval' (significance.over_seeds_and_images)}; {} without such a
    seed.
  """
  pairs = common(a, b)
  scores = [(values(x), values(y)) for x, y in pairs]
  names = dict.fromkeys(name for x, y in scores for name in (*x, *y))
  found = {
    name: significance.paired_over_seeds(
      [x.get(name) for x, _ in scores], [y.get(name) for _, y in scores]
    )
    for name in names
  }
  if pairs:
    drawn = images.resampled(*zip(*pairs, strict=True))
    for name, means in drawn.items():
      interval = resampling.percentile_interval(means, _LEVEL)
      if interval is None or found[name]['mean'] is None:
        continue
      found[name]['image_interval'] = interval
      found[name]['both_interval'] = significance.over_seeds_and_images(
        [resampling.difference(x[name], y[name]) for x, y in scores],
        float(np.nanvar(means)),
      )
  return found


def whole_interval(entry: dict[str, Any]) -> list[float] | None:
  """The one interval of a difference that is shown.

  Over seeds and images; of one seed over images; of Grad-CAM, whose images are
  not resampled, over seeds.
  """
  return (
    entry.get('both_interval')
    or entry['interval']
    or entry.get('image_interval')
  )


def common(
  a: Sequence[runs.Run], b: Sequence[runs.Run]
) -> list[tuple[runs.Run, runs.Run]]:
  """The finished runs of both that share a seed."""
  of_b = {run.seed: run for run in finished(b)}
  return [(run, of_b[run.seed]) for run in finished(a) if run.seed in of_b]


class Images:
  """The bootstrap over the scored images, the same resamples for all runs.

  Where a patient has several, patients are drawn.

  So a mean over runs, or a difference of means, can be taken within each
  resample. Every run is resampled once. Of one run, or one pair, the intervals
  are those of `resampling.bootstrap_intervals` and `paired_bootstrap` with this
  seed.
  """

  def __init__(self, resamples: int, seed: int):
    self._resamples = resamples
    self._seed = seed
    self._ids: list[str] = []
    self._labels = np.empty(0, int)
    self._patients: np.ndarray | None = None
    self._read: dict[tuple, np.ndarray] = {}  # probabilities
    self._drawn: dict[tuple, dict[str, np.ndarray]] = {}

  def interval(
    self, a: Sequence[runs.Run], b: Sequence[runs.Run] = ()
  ) -> dict[str, list[float] | None]:
    """95 % intervals of the mean over runs a, or of mean(a) - mean(b).

    Args:
      a: finished runs.
      b: finished runs, or none.

    Returns:
      {score: [low, high]}, of the summary scores; None where undefined. A
      threshold and a temperature are those of each run.

    Raises:
      UserError: one line: the runs were not scored on the same images.
    """
    return {
      name: resampling.percentile_interval(values, _LEVEL)
      for name, values in self.resampled(a, b).items()
    }

  def resampled(
    self, a: Sequence[runs.Run], b: Sequence[runs.Run] = ()
  ) -> dict[str, np.ndarray]:
    """{score: (R,)} of what `interval` is the interval of; NaN: undefined."""
    for run in (*a, *b):  # First, so that all know the patients.
      self._probabilities(run)
    drawn_a, drawn_b = ([self._resampled(run) for run in of] for of in (a, b))
    found = {}
    for name in score_table.SUMMARY:
      found[name] = np.mean([drawn[name] for drawn in drawn_a], axis=0)
      if drawn_b:
        found[name] = found[name] - np.mean(
          [drawn[name] for drawn in drawn_b], axis=0
        )
    return found

  def _probabilities(self, run):
    """Of the run's images (N, C), which must be those of the runs before."""
    file = run.workdir / files.PREDICTIONS
    key = file, file.stat().st_mtime_ns
    if key not in self._read:
      ids, labels, found, patients = predictions.read_predictions(file)
      if not self._ids:
        self._ids, self._labels = ids, labels
      if ids != self._ids or not np.array_equal(labels, self._labels):
        raise UserError(
          f'{file} has other images or labels than the runs before it; a study'
          ' needs the same ones'
        )
      # A run that was evaluated before there was the column knows no patients.
      if self._patients is None and patients is not None:
        self._patients, self._drawn = patients, {}
      self._read[key] = found
    return key, self._read[key]

  def _resampled(self, run):
    read, probabilities = self._probabilities(run)
    chosen = {
      name: run.result.get(name) for name in ('threshold', 'temperature')
    }
    key = *read, *chosen.values()
    if key not in self._drawn:
      score = scores_lib.scorer(
        self._labels,
        probabilities,
        None,
        **vocabulary.meaning(run.result['class_names']),
        **chosen,
      )
      (self._drawn[key],) = resampling.resampled(
        [score], self._labels, self._resamples, self._seed, stratified=True,
        patients=self._patients,
      )  # fmt: skip
    return self._drawn[key]


def write(
  workdir: pathlib.Path,
  name: str,
  by_row: Mapping[str, Sequence[runs.Run]],
  table: dict[str, Any],
) -> None:
  """Writes NAME.json, the table so far, and NAME_runs.csv, its runs."""
  atomic.write_json(workdir / f'{name}.json', table)
  atomic.write_text(workdir / f'{name}_runs.csv', runs_csv(by_row))


def finish(
  workdir: pathlib.Path,
  name: str,
  text: str,
  markdown: str,
  figures: dict[str, matplotlib.figure.Figure | None],
) -> str:
  """Writes what people read of a study, beside what `write` wrote.

  Args:
    workdir: of the study.
    name: of its files.
    text: the table, to be printed.
    markdown: of NAME.md.
    figures: {file: figure, or None where there is nothing to draw}.

  Returns:
    `text`, and a line that names the files.
  """
  atomic.write_text(workdir / f'{name}.md', markdown)
  written = [f'{name}.json', f'{name}_runs.csv', f'{name}.md']
  for file, figure in figures.items():
    if figure is not None:
      figure.savefig(workdir / file)
      written.append(file)
  paths = ', '.join(str(workdir / file) for file in written)
  return f'{text}\nwritten: {paths}'


def about(by_row: Mapping[str, Sequence[runs.Run]]) -> dict[str, Any]:
  """What was run and scored, as the JSON of a study begins.

  Args:
    by_row: {row: its runs, one a seed}.
  """
  done = [run for own in by_row.values() for run in finished(own)]
  result = done[0].result if done else {}
  return {
    'seeds': sorted({run.seed for own in by_row.values() for run in own}),
    **{
      key: result.get(key)
      for key in ('data', 'split', 'device', 'num_images', 'class_names')
    },
  }


def describe(table: dict[str, Any]) -> str:
  """The same in a line."""
  states = [run['state'] for row in table['rows'] for run in row['runs']]
  done = states.count('finished')
  text = f'{done} of {len(states)} runs, {seeds(table["seeds"])}'
  if not done:
    return text
  return (
    f'{text}; {table["num_images"]} images of {table["split"]} in'
    f' {table["data"]}; {table["device"]}'
  )


def mean_seconds(of: Sequence[runs.Run]) -> dict[str, float]:
  """Run.seconds, its mean over the finished runs; {} without one."""
  found = [run.seconds for run in finished(of)]
  return {
    name: float(np.mean([seconds[name] for seconds in found]))
    for name in (found[0] if found else ())
  }


def records(of: Sequence[runs.Run]) -> list[dict[str, Any]]:
  """The runs as the JSON of a study lists them."""
  return [
    {
      'seed': run.seed,
      # In the study's own, which may move.
      'workdir': tasks_lib.short(run.workdir),
      'state': run.state,
      'error': run.error,
      **({'seconds': run.seconds} if run.state == 'finished' else {}),
    }
    for run in of
  ]


def runs_csv(by_row: Mapping[str, Sequence[runs.Run]]) -> str:
  """The finished runs as CSV: row, seed, seconds of training, main scores."""
  file = io.StringIO()
  rows = [['row', 'seed', 'training_seconds', *MAIN]]
  for name, own in by_row.items():
    for run in finished(own):
      found = values(run)
      scores = (found.get(score) for score in MAIN)
      rows.append(
        [
          name,
          str(run.seed),
          f'{run.seconds["training"]:.1f}',
          *('' if score is None else f'{score:.6f}' for score in scores),
        ]
      )
  csv_cells.write(file, rows)
  return file.getvalue()


def shown(scores: Sequence[dict[str, Any]]) -> dict[str, str]:
  """Those of MAIN that a row has a number for."""
  return {
    name: title
    for name, title in MAIN.items()
    if any(row.get(name) and row[name]['mean'] is not None for row in scores)
  }


def explained(columns: Iterable[str]) -> str:
  """What the columns hold, in lines of at most 80 columns."""
  parts = [_EXPLAINED[name] for name in columns if name in _EXPLAINED]
  return textwrap.fill(' '.join(parts), 80)


def number(value: float | None, sign: str = '') -> str:
  """'.612', '-.012', '1.000'; '-' for None. sign '+' shows that of a gain."""
  if value is None:
    return '-'
  text = f'{value:{sign}.3f}'
  return text.replace('0.', '.', 1) if abs(value) < 0.9995 else text


def with_half(
  entry: dict[str, Any] | None, sign: str = '', gap: str = ''
) -> str:
  """'.612±.034', the mean and half of its interval, which is symmetric.

  That is the one over seeds, and of a difference the one over images too.
  """
  if not entry or entry['mean'] is None:
    return '-'
  text = number(entry['mean'], sign)
  interval = entry.get('both_interval') or entry['interval']
  if interval is None:
    return text
  half = (interval[1] - interval[0]) / 2
  return f'{text}{gap}±{gap}{number(half) if half < 1 else ">1"}'


def span(interval: Sequence[float] | None, sign: str = '') -> str:
  """'.590 to .633'; '-' for None."""
  if interval is None:
    return '-'
  return ' to '.join(number(value, sign) for value in interval)


def short(text: str, width: int) -> str:
  """`text` in at most `width` columns."""
  return text if len(text) <= width else f'{text[: width - 3]}...'


def wrapped(lines: Sequence[str], width: int) -> str:
  """The lines as one text; what is too wide goes on in a line below."""
  lines = '\n'.join(lines).split('\n')
  return '\n'.join(
    line if len(line) <= width else textwrap.fill(line, width) for line in lines
  )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table."""
  # A bar in a name would begin a new cell.
  lines = [[cell.replace('|', '\\|') for cell in row] for row in rows]
  return '\n'.join(
    f'| {" | ".join(row)} |' for row in [header, ['---'] * len(header), *lines]
  )


def seeds(numbers: Sequence[int]) -> str:
  """'seed 0', 'seeds 0, 1, 2'."""
  text = ', '.join(map(str, numbers))
  return f'seed{"s" * (len(numbers) > 1)} {text}'


def states(row: dict[str, Any]) -> set[str]:
  """Of the runs of a row of the JSON."""
  return {run['state'] for run in row['runs']}


def diverged(rows: Sequence[dict[str, Any]]) -> list[str]:
  """A line for each run of the rows of the JSON that did."""
  return [
    f'{row["name"]}, seed {run["seed"]}, diverged: {run["error"]}'
    for row in rows
    for run in row['runs']
    if run['state'] == 'diverged'
  ]
