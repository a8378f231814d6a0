"""The tables of docs/results.md, computed again from docs/results/*.csv.

python -m benchmarks.tables                   prints all of them
python -m benchmarks.tables --write           puts them into docs/results.md
python -m benchmarks.tables --collect=STUDY --name=NAME
                                              makes the csv files of a study

A table of the page stands below a line `<!-- benchmarks.tables: NAME -->`. What
it is made of:

    NAME.csv          a row a run: seed, seconds, scores, maps against boxes
    NAME-images.csv   a row a score, or a difference of two runs, both averaged
                      over the seeds: its interval over the images, and `error`,
                      the standard error over them

For the studies phantom, nih and competition, whose predictions were not kept,
the second file is the page's of that time, without errors, and so are ms and
always_0.
"""

import argparse
import csv
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dpjax import atomic
from dpjax.evaluation import files, localisation
from dpjax.metrics import resampling, score_table, significance
from dpjax.studies import runs, tables

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'docs' / 'results'
PAGE = ROOT / 'docs' / 'results.md'

# Table I: what its rows are called on the page.
TECHNIQUES = {
  'resnet18': 'ResNet18',
  'contrastive-pre-training': '+ contrastive pre-training',
  'mask-guided-attention': '+ mask-guided attention',
  'contrastive-regulation': '+ contrastive regulation',
  'class-balanced-focal-loss': '+ class-balanced focal loss',
}
# The recipe's own question, in the order of its table.
RECIPES = {
  'plain': 'plain network',
  'plain-late': 'plain network, late class weights',
  'full': 'full recipe, class weights from the start',
  'full-late': 'full recipe, late class weights (the default)',
}
_ASKED = (('full-late', 'plain'), ('full-late', 'plain-late'))
# Table II: beginnings of the names, in the order of the table.
METHODS = {
  'knn': 'KNN',
  'decision-tree': 'decision tree',
  'adaboost': 'AdaBoost',
  'random-forest': 'random forest',
  'svm': 'SVM',
  'vgg16': 'VGG16',
  'resnet-1-1-1-1': 'ResNet (1,1,1,1)',
  'resnet50': 'ResNet50',
  'recipe': 'recipe',
}
_SHOWN = ('accuracy', 'balanced_accuracy', 'balanced_accuracy_0_2', 'macro_f1',
          'auroc_any_lesion')  # fmt: skip
_IN_BOX = 'cam energy_in_box'
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

  def shown(self, among: Sequence[str]) -> list[str]:
    """Those of _SHOWN that one of the runs has."""
    return [
      c for c in _SHOWN if any(self.first(r, c) is not None for r in among)
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
    entry = significance.paired_over_seeds(*self._pairs(a, b, column))
    images = self.images.get((a, b, column))
    if images and images.error is not None and entry['interval']:
      pairs = zip(*self._pairs(a, b, column), strict=True)
      entry['both_interval'] = significance.over_seeds_and_images(
        [x - y for x, y in pairs], images.error**2
      )
    text = tables.with_half(entry, '+', ' ')
    if images and 'both_interval' not in entry:
      text += f' ({tables.span(images.interval, "+")})'
    return text

  def _pairs(self, a, b, column):
    seeds = sorted(self.runs[a].keys() & self.runs[b].keys())
    return ([self.runs[x][s].get(column) for s in seeds] for x in (a, b))


def every_table() -> dict[str, str]:
  """{name: Markdown} of all tables, in the order of the files."""
  found = {}
  for name in ('phantom', 'nih', 'competition'):
    study = Study(name)
    found[name] = _means(study, TECHNIQUES)
    found[f'{name}-differences'] = _to_above(study)
    if name == 'phantom':
      found[f'{name}-maps'] = _maps(study)
    found[f'{name}-comparison'] = _comparison(study)
    if name == 'phantom':
      found[f'{name}-recipe-minus'] = _recipe_minus(study)
  for file in sorted(RESULTS.glob('recipe-*.csv')):
    if file.stem.endswith('-images'):
      continue
    study = Study(file.stem)
    found[study.name] = _means(study, RECIPES)
    found[f'{study.name}-differences'] = _asked(study)
  return found


def _means(study, titles):
  """The runs of a study over their seeds, and what always 0 would score."""
  own = [run for run in titles if run in study.runs]
  columns = study.shown(own)
  rows = [
    [
      titles[run],
      str(len(study.runs[run])),
      *(study.mean(run, column) for column in (*columns, _IN_BOX)),
      f'{study.seconds(run):.0f}',
    ]
    for run in own
  ]
  share = study.first(own[0], 'always_0')
  if share is not None:
    always = _always_0(share, 5 if 'balanced_accuracy_0_2' in columns else 2)
    cells = [tables.number(always[column]) for column in columns]
    rows.append(['always 0', '', *cells, '', ''])
  heads = [score_table.SUMMARY[column].short for column in columns]
  return tables.markdown(
    ['technique', 'runs', *heads, 'in box', 'training, s'], rows
  )


def _always_0(share, classes):
  """The scores of that answer where class 0 is `share` of the images."""
  return {
    'accuracy': share,
    'balanced_accuracy': 1 / classes,
    'balanced_accuracy_0_2': 1 / 3,
    'macro_f1': 2 * share / (1 + share) / classes,
    'auroc_any_lesion': 0.5,
  }


def _to_above(study):
  """Each technique minus the row above it, and the last minus the first."""
  names = [*TECHNIQUES]
  pairs = [(a, b, TECHNIQUES[a]) for b, a in itertools.pairwise(names)]
  pairs.append((names[-1], names[0], 'last row - first'))
  return _differences(study, pairs, 'technique')


def _asked(study):
  pairs = [
    (a, b, f'{a} - {b}') for a, b in _ASKED if {a, b} <= study.runs.keys()
  ]
  return _differences(study, pairs, 'difference')


def _differences(study, pairs, head):
  columns = study.shown([a for a, *_ in pairs])
  rows = [
    [title, *(study.difference(a, b, column) for column in (*columns, _IN_BOX))]
    for a, b, title in pairs
  ]
  heads = [score_table.SUMMARY[column].short for column in columns]
  return tables.markdown([head, *heads, 'in box'], rows)


def _maps(study):
  """Maps against the boxes; row 4 is the one before the class weights."""
  row_4, full = list(TECHNIQUES)[3:]
  wanted = [
    *((f'map+ of stage {i}, row 4', row_4, f'att_pos/stage{i}')
      for i in (1, 2, 3)),
    ('map+ of stage 1, full recipe', full, 'att_pos/stage1'),
    ('Grad-CAM, ResNet18', 'resnet18', 'cam'),
    ('Grad-CAM, row 4', row_4, 'cam'),
    ('Grad-CAM, full recipe', full, 'cam'),
  ]  # fmt: skip
  rows = [
    [title, *(study.mean(run, f'{map_} {s}') for s in localisation.SCORES)]
    for title, run, map_ in wanted
  ]
  heads = [title.long for title in localisation.SCORES.values()]
  return tables.markdown(['map', *heads], rows)


def _methods(study) -> Iterator[tuple[str, str]]:
  """(run, title) of Table II."""
  for start, title in METHODS.items():
    # 'knn-64-px' before 'knn-features'.
    for run in sorted(study.runs):
      rest = run.removeprefix(start)
      if rest == run or (rest and not rest.startswith('-')):
        continue
      words = re.sub(r'^-(\d+)-px$', r', \1 px', rest)
      words = re.sub(r'^-width-(\d+)$', r', width \1', words)
      yield run, title + words.replace('-features', ', features')


def _comparison(study):
  """The methods of Table II, of one seed: intervals are over the images."""
  columns = study.shown([run for run, _ in _methods(study)])
  rows = []
  for run, title in _methods(study):
    cells = []
    for column in columns:
      interval = study.images[run, '', column].interval
      value = tables.number(study.first(run, column))
      cells.append(f'{value} ({tables.span(interval)})')
    rate = f'{study.first(run, "ms_per_image"):.2f}'
    rows.append([title, f'{study.seconds(run):.1f}', rate, *cells])
  heads = [score_table.SUMMARY[column].short for column in columns]
  return tables.markdown(['method', 'train s', 'ms', *heads], rows)


def _recipe_minus(study):
  columns = ('balanced_accuracy', 'auroc_any_lesion')
  rows = [
    [title, *(study.difference('recipe', run, column) for column in columns)]
    for run, title in _methods(study)
    if run != 'recipe'
  ]
  heads = [score_table.SUMMARY[column].long for column in columns]
  return tables.markdown(['method', *heads], rows)


# --- the page ---------------------------------------------------------------

_PLACE = re.compile(
  r'^<!-- benchmarks\.tables: (\S+) -->\n((?:\|.*\n)*)', re.MULTILINE
)


def on_page(text: str) -> dict[str, str]:
  """{name: Markdown} of the tables that stand on the page."""
  return {found[1]: found[2].rstrip('\n') for found in _PLACE.finditer(text)}


def rewritten(text: str, computed: dict[str, str]) -> str:
  """The page with its tables computed again.

  Raises:
    KeyError: it has a place for a table that there is not.
  """
  return _PLACE.sub(
    lambda found: (
      f'<!-- benchmarks.tables: {found[1]} -->\n{computed[found[1]]}\n'
    ),
    text,
  )


# --- a study's files --------------------------------------------------------


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
  """
  found: dict[str, list[runs.Run]] = {}
  for place in sorted(pathlib.Path(workdir).glob('seed*/*')):
    own = files.workdir_of(place)
    if (own / files.EVALUATION).is_file():
      result = files.read_evaluation(own, ('scores', 'num_images'))
      number = int(place.parent.name.removeprefix('seed'))
      found.setdefault(place.name, []).append(runs.Run(number, own, result))
  rows = [_row(run, run_) for run, own in found.items() for run_ in own]
  rows.sort(key=lambda row: (row['seed'], row['run']))
  _write(folder / f'{name}.csv', rows)
  drawn = tables.Images(resamples, seed)
  order = [r for r in reversed(RECIPES) if r in found]
  order += [r for r in sorted(found) if r not in RECIPES]
  pairs = [*((run, '') for run in order), *itertools.combinations(order, 2)]
  rows = []
  for a, b in pairs:
    if b:
      of = zip(*tables.common(found[a], found[b]), strict=True)
    else:
      of = (found[a],)
    for score, values in drawn.resampled(*of).items():
      interval = resampling.percentile_interval(values, 0.95)
      if interval is not None:
        numbers = (*interval, float(values.std()))
        rows.append(
          {'run': a, 'minus': b, 'score': score}
          | dict(zip(('low', 'high', 'error'), map(_digits, numbers),
                     strict=True))
        )  # fmt: skip
  _write(folder / f'{name}-images.csv', rows)


def _row(name, run):
  result = run.result
  seconds = runs.seconds(run)
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
    'test_images': result['num_images'],
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


def main() -> None:
  """Prints, writes or collects."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--write', action='store_true')
  parser.add_argument('--collect', metavar='STUDY', type=pathlib.Path)
  parser.add_argument('--name')
  given = parser.parse_args()
  if given.collect:
    if not given.name:
      parser.error('--collect needs --name, of the files in docs/results')
    collect(given.collect, given.name)
    return
  computed = every_table()
  if given.write:
    text = PAGE.read_text(encoding='utf-8')
    atomic.write_text(PAGE, rewritten(text, computed))
    return
  for name, table in computed.items():
    print(f'{name}\n{table}\n')


if __name__ == '__main__':
  main()
