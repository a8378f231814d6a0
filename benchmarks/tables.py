"""The tables of docs/results.md and remedies.md, computed again from their csv.

python -m benchmarks.tables                   prints all of them
python -m benchmarks.tables --write           puts them into the pages
python -m benchmarks.tables --collect=STUDY --name=NAME
                                              makes the csv files of a study

A table of a page stands below a line `<!-- benchmarks.tables: NAME -->`. It is
made of NAME.csv and NAME-images.csv (study_files.py says what is in them).
For the studies phantom, nih and competition, whose predictions were not kept,
the second file is the page's of that time, without errors, and so are ms and
always_0.
"""

import argparse
import itertools
import pathlib
import re
from collections.abc import Iterator

from benchmarks.study_files import RESULTS, SHIFTED, Study, collect
from dpjax import atomic
from dpjax.errors import UserError
from dpjax.evaluation import localisation
from dpjax.metrics import score_table
from dpjax.studies import tables

PAGES = (RESULTS.with_name('results.md'), RESULTS.with_name('remedies.md'))

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
# Each on the plain network and on the paper's, in the order of their table.
REMEDIES = {
  'none': 'none',
  'focal': 'class-balanced focal loss from the start',
  'deferred': 'deferred class weights',
  'late': 'late, frozen (the default)',
  'late-9999': 'late, frozen, beta .9999',
  'late-unfrozen': 'late, unfrozen',
  'logit-adjusted': 'logit adjustment',
  f'none-{SHIFTED}': 'prior shift',
}
_NETWORKS = {'plain': 'plain', 'full': 'full recipe'}
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
_OF_RECIPES = (*_SHOWN, 'quadratic_kappa')
_IN_BOX = 'cam energy_in_box'


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
  # Those that follow were trained beside other work: times say nothing.
  found['phantom-again'] = _means(
    Study('phantom-again'), TECHNIQUES, _OF_RECIPES, timed=False
  )
  for study in _studies('recipe'):
    found[study.name] = _means(study, RECIPES, _OF_RECIPES, timed=False)
    found[f'{study.name}-differences'] = _asked(study)
    found[f'{study.name}-seeds'] = _each_seed(study, RECIPES, _OF_RECIPES)
  for study in _studies('remedies'):
    found[study.name] = _remedies(study)
    found[f'{study.name}-full-minus-plain'] = _full_minus_plain(study)
  return found


def _studies(kind):
  return [
    Study(file.stem)
    for file in sorted(RESULTS.glob(f'{kind}-*.csv'))
    if not file.stem.endswith('-images')
  ]


def _means(study, titles, shown=_SHOWN, timed=True):
  """The runs of a study over their seeds, and what always 0 would score."""
  own = [run for run in titles if run in study.runs]
  columns = study.known(shown, own)
  rows = [
    [
      titles[run],
      str(len(study.runs[run])),
      *(study.mean(run, column) for column in (*columns, _IN_BOX)),
      *([f'{study.seconds(run):.0f}'] if timed else []),
    ]
    for run in own
  ]
  share = study.first(own[0], 'always_0')
  if share is not None:
    always = _always_0(share, 5 if 'balanced_accuracy_0_2' in columns else 2)
    cells = [tables.number(always[column]) for column in columns]
    rows.append(['always 0', '', *cells, '', *([''] if timed else [])])
  heads = [score_table.SUMMARY[column].short for column in columns]
  last = ['in box', *(['training, s'] if timed else [])]
  return tables.markdown(['technique', 'runs', *heads, *last], rows)


def _each_seed(study, titles, shown):
  """The runs of a study, a row a run."""
  own = [run for run in titles if run in study.runs]
  columns = study.known(shown, own)
  rows = [
    [str(seed), titles[run], *(tables.number(scores[c]) for c in columns)]
    for seed in sorted(study.runs[own[0]])
    for run in own
    if (scores := study.runs[run].get(seed))
  ]
  heads = [score_table.SUMMARY[column].short for column in columns]
  return tables.markdown(['seed', 'technique', *heads], rows)


def _always_0(share, classes):
  """The scores of that answer where class 0 is `share` of the images."""
  return {
    'accuracy': share,
    'balanced_accuracy': 1 / classes,
    'balanced_accuracy_0_2': 1 / 3,
    'macro_f1': 2 * share / (1 + share) / classes,
    'auroc_any_lesion': 0.5,
    'quadratic_kappa': 0.0,
  }


def _to_above(study):
  """Each technique minus the row above it, and the last minus the first."""
  names = [*TECHNIQUES]
  pairs = [(a, b, TECHNIQUES[a]) for b, a in itertools.pairwise(names)]
  pairs.append((names[-1], names[0], 'last row - first'))
  return _differences(study, pairs, 'technique')


def _asked(study):
  pairs = [(a, b, f'{a} - {b}') for a, b in _ASKED]
  return _differences(study, _there(study, pairs), 'difference', _OF_RECIPES)


def _remedies(study):
  titles = {
    f'{network}-{remedy}': f'{title}: {of_remedy}'
    for remedy, of_remedy in REMEDIES.items()
    for network, title in _NETWORKS.items()
  }
  return _means(study, titles, _OF_RECIPES, timed=False)


def _full_minus_plain(study):
  pairs = [(f'full-{r}', f'plain-{r}', title) for r, title in REMEDIES.items()]
  return _differences(
    study, _there(study, pairs), 'full recipe - plain', _OF_RECIPES
  )


def _there(study, pairs):
  """Those of the pairs of which the study has both runs."""
  return [pair for pair in pairs if {*pair[:2]} <= study.runs.keys()]


def _differences(study, pairs, head, shown=_SHOWN):
  columns = study.known(shown, [a for a, *_ in pairs])
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
  columns = study.known(_SHOWN, [run for run, _ in _methods(study)])
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
  """{name: Markdown} of the tables that stand on a page."""
  return {found[1]: found[2].rstrip('\n') for found in _PLACE.finditer(text)}


def rewritten(text: str, computed: dict[str, str]) -> str:
  """A page with its tables computed again.

  Raises:
    KeyError: it has a place for a table that there is not.
  """
  return _PLACE.sub(
    lambda found: (
      f'<!-- benchmarks.tables: {found[1]} -->\n{computed[found[1]]}\n'
    ),
    text,
  )


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
    try:
      collect(given.collect, given.name)
    except UserError as error:
      parser.exit(2, f'error: --collect: {error}\n')
    return
  computed = every_table()
  if given.write:
    for page in PAGES:
      text = page.read_text(encoding='utf-8')
      atomic.write_text(page, rewritten(text, computed))
    return
  for name, table in computed.items():
    print(f'{name}\n{table}\n')


if __name__ == '__main__':
  main()
