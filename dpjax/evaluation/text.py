"""The scores and a comparison as plain text, at most 80 columns wide."""

import re
from collections.abc import Sequence
from typing import Any

from dpjax import text_table
from dpjax.errors import printable
from dpjax.evaluation import localisation, prior_shift
from dpjax.metrics import score_table

_WIDTH = 80  # columns of the printed table
_NAME_WIDTH = 22  # columns of it that a class or a value may take
_DASH = re.compile(r'  -( |$)')  # what stands for None
_CLASS_HEADS = [score.short for score in score_table.PER_CLASS.values()]
_MAP_HEADS = [title.long for title in localisation.SCORES.values()]


def format_table(result: dict[str, Any], *, level: float = 0.95) -> str:
  """Sets what evaluation.json holds as plain text, at most 80 columns wide.

  Args:
    result: what `scores.scores` returned, and of evaluation.json what there is:
      'intervals', 'threshold', 'temperature', 'chosen_on', 'localisation',
      'subgroups', 'prior_shift'.
    level: the level that the intervals were made for, for their heading.

  Returns:
    Lines without a final newline: a row per class, the summary, the confusion
    matrix (in several blocks where its columns need them), and the maps and
    the subgroups where there are any. A dash stands for None, and a line says
    so.
  """
  names = _numbered(result['per_class'])
  intervals = result.get('intervals') or {}
  count = result['num_images']
  whose = _by_patient(result)
  of = f' of {result["num_patients"]} patients' if whose else ''
  lines = [f'{count} image{"s" * (count != 1)}{of}, {len(names)} classes', '']
  lines += _class_rows(names, result['per_class'])
  lines += ['', *_summary_rows(result, intervals, level)]
  if shift := result.get('prior_shift'):
    lines += ['', *_shift_rows(result, shift, level)]
  lines += ['', *_matrix_rows(names, result['confusion_matrix'])]
  if result.get('localisation'):
    lines += ['', *_localisation_rows(result['localisation'], level)]
  if subgroups := result.get('subgroups'):
    lines += ['', f'subgroups (with {100 * level:g} % intervals)']
    for column, groups in subgroups.items():
      lines += [*_subgroup_rows(column, groups), '']
    lines.pop()
  lines = [line.rstrip() for line in lines]
  notes = []
  if any(_DASH.search(line) for line in lines):
    notes = ['-: undefined on these images, or not for these classes']
  if whose and (intervals or result.get('localisation')):
    notes.append(whose)
  if notes:
    lines += ['', *notes]
  return '\n'.join(lines)


def format_comparison(
  comparison: dict[str, Any], *, level: float = 0.95
) -> str:
  """Sets the comparison of two models as plain text, at most 80 columns wide.

  What the models are called is not shortened.

  Args:
    comparison: 'a', 'b': what the models are called; 'scores': what
      `resampling.paired_bootstrap` returned; and, where there are, 'mcnemar':
      what `significance.mcnemar` returned; 'localisation': map -> score ->
      {'difference', 'interval'}.
    level: the level that the intervals were made for, for their heading.

  Returns:
    Lines without a final newline. A star marks a difference whose interval
    leaves out 0.
  """
  rows = comparison['scores']
  lines = [f'a: {comparison["a"]}', f'b: {comparison["b"]}', '']
  lines = [printable(line) for line in lines]
  shown = {
    name: score.long
    for name, score in score_table.SUMMARY.items()
    if name in rows and rows[name]['difference'] is not None
  }
  lines += text_table.lines(
    [('difference', f' a - b   {100 * level:g} % interval')]
    + [
      (title, f'{_signed(rows[name])} {_signed_span(rows[name])}')
      for name, title in shown.items()
    ],
    '<',
  )

  classes = [
    name.partition('/')[2] for name in rows if name.startswith('recall/')
  ]
  if classes:
    names = _numbered(classes)
    table = [['a - b, class ', *_CLASS_HEADS]]
    for name, title in zip(classes, names, strict=True):
      keys = (f'{key}/{name}' for key in score_table.PER_CLASS)
      table.append([f'{title} ', *(_signed(rows[key]) for key in keys)])
    lines += ['', *text_table.lines(table, '<>', (0, 9), gap='')]

  whose = _by_patient(comparison)
  if test := comparison.get('mcnemar'):
    name = 'by patient, p' if whose else 'McNemar p'
    lines += [
      '',
      f'images that a alone has right: {test["only_a_right"]}, b alone:'
      f' {test["only_b_right"]}; {name} = {test["p_value"]:.3g}',
    ]
  if maps := comparison.get('localisation'):
    found = {}
    for name, differences in maps.items():
      cells = [differences.get(key) for key in localisation.SCORES]
      # Without the 0 before the point, to keep them apart.
      spans = [_signed_span(cell).replace('0.', '.') for cell in cells]
      found[name] = [*map(_signed, cells)], spans
    lines += ['', *_map_rows('a - b, map', found)]
  lines = [line.rstrip() for line in lines]
  lines += ['', f'*: the {100 * level:g} % interval leaves out 0']
  lines += [whose] * bool(whose)
  if any(_DASH.search(line) for line in lines):
    lines.append('-: undefined for a or b')
  lower = dict.fromkeys(
    score.long.partition(',')[0]
    for score in score_table.SUMMARY.values()
    if score.lower_is_better
  )
  lines.append(f'lower is better: {", ".join(lower)}')
  return '\n'.join(lines)


def _by_patient(result):
  """What intervals are over, where it is not the images; else ''."""
  count = result.get('num_patients')
  if count in (None, result.get('num_images')):
    return ''
  return f'intervals: over the {count} patients, each with all their images'


def _class_rows(names, per_class):
  rows = [['class', *_CLASS_HEADS, 'images']]
  for name, row in zip(names, per_class.values(), strict=True):
    cells = (_decimal(row[key]) for key in score_table.PER_CLASS)
    rows.append([name, *cells, str(row['support'])])
  return text_table.lines(rows, '<>', (5,))


def _summary_rows(result, intervals, level):
  values = {
    **result['scores'],
    'majority_accuracy': result['majority_accuracy'],
  }
  met = {
    score.needs
    for name, score in score_table.SUMMARY.items()
    if values[name] is not None
  }
  shown = {}
  for name, score in score_table.SUMMARY.items():
    # Of what stands for nothing here no dash is shown, but for the lesions.
    if score.needs in met or score.needs <= {'any_lesion'}:
      shown[name] = score.long
    if name == 'accuracy':  # Beside what it is to be held against.
      shown['majority_accuracy'] = 'accuracy of always the commonest class'
  heading = f'{100 * level:g} % interval' if intervals else ''
  rows = [('summary', 'value', heading)]
  for name, title in shown.items():
    rows.append((title, _decimal(values[name]), _span(intervals.get(name))))
  lines = text_table.lines(rows, '<><')
  chosen = [
    f'{title} {result[name]:.3f}'
    for name, title in (
      ('threshold', 'threshold of any lesion'),
      ('temperature', 'temperature'),
    )
    if result.get(name) is not None
  ]
  if chosen:
    where = result.get('chosen_on')
    lines.append(', '.join(chosen) + (f': chosen on {where}' if where else ''))
  return lines


def _shift_rows(result, shift, level):
  """The answers under other shares of the classes, beside the plain ones."""
  rows = [['classes in other shares', 'as it is', 'shifted',
           f'{100 * level:g} % interval']]  # fmt: skip
  for name in prior_shift.SHOWN:
    value = shift['scores'].get(name)
    if value is None:
      continue
    rows.append(
      [
        score_table.SUMMARY[name].long,
        _decimal(result['scores'][name]),
        _decimal(value),
        _span(shift['intervals'].get(name)),
      ]
    )
  shares = ', '.join(f'{share:.3g}' for share in shift['shares'])
  lines = [*text_table.lines(rows, '<>><'), f'shifted to {shares}']
  if on := shift['validation']:
    changes = (
      f'{score_table.SUMMARY[name].short} {_decimal(on["plain"][name])} to'
      f' {_decimal(on["shifted"][name])}'
      for name in prior_shift.SHOWN[:2]
    )
    lines.append(f'on validation: {", ".join(changes)}')
  return lines


def _matrix_rows(names, matrix):
  num_classes = len(names)
  width = max(map(len, names))
  cell = max(len(str(n)) for row in [range(num_classes), *matrix] for n in row)
  block = (_WIDTH - width) // (cell + 2)  # the gap before it
  lines = ['confusion matrix (row: true class, column: predicted class)']
  for start in range(0, num_classes, block):
    if start:
      lines.append('')
    rows = [
      [name, *map(str, row[start : start + block])]
      for name, row in zip(
        ['', *names], [range(num_classes), *matrix], strict=True
      )
    ]
    lines += text_table.lines(rows, '<>', (0, cell))
  return lines


def _localisation_rows(maps, level):
  count = max(row['num_images'] for row in maps.values())
  lines = [
    f'localisation on {count} image{"s" * (count != 1)} with boxes'
    f' (below: {100 * level:g} % intervals)',
  ]
  found = {
    name: (
      [_decimal(row['scores'].get(key)) for key in localisation.SCORES],
      [_span(row['intervals'].get(key)) for key in localisation.SCORES],
    )
    for name, row in maps.items()
  }
  return lines + _map_rows('map', found)


def _subgroup_rows(column, groups):
  """Two scores of each value, with intervals; evaluation.json has the rest."""
  shown = ['balanced_accuracy', 'auroc_any_lesion']
  if all(row['scores'][shown[1]] is None for row in groups.values()):
    shown[1] = 'macro_f1'
  heads = (score_table.SUMMARY[key].long for key in shown)
  rows = [[_shorten(column), 'images', *heads]]
  for value, row in groups.items():
    spans = row.get('intervals') or {}
    cells = (
      f'{_decimal(row["scores"][key]):>5}  {_span(spans.get(key))}'
      for key in shown
    )
    rows.append([_shorten(value), str(row['num_images']), *cells])
  return text_table.lines(rows, '<><', (0, 0, 22))


def _map_rows(head, maps):
  """A table of {map: (a cell for each score, their intervals or '')}."""
  rows = [[head, *_MAP_HEADS]]
  for name, (cells, spans) in maps.items():
    rows.append([_shorten(name, 15), *cells])
    if any(spans):
      rows.append(['', *spans])
  return text_table.lines(rows, '<>', (15, 16), gap='')


def _numbered(names):
  """Class names with their numbers before them, short enough for a table."""
  return [
    _shorten(name if name == str(c) else f'{c} {name}')
    for c, name in enumerate(names)
  ]


def _decimal(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'


def _span(interval: Sequence[float] | None) -> str:
  return '{:.3f} to {:.3f}'.format(*interval) if interval else ''


def _signed(row: dict[str, Any] | None) -> str:
  """A difference with its sign, and a star if its interval leaves out 0."""
  if row is None or row['difference'] is None:
    return '- '
  interval = row['interval']
  star = '*' if interval and (interval[0] > 0 or interval[1] < 0) else ' '
  return f'{row["difference"]:+.3f}{star}'


def _signed_span(row: dict[str, Any] | None) -> str:
  if row is None or not row['interval']:
    return ''
  return '{:+.3f} to {:+.3f}'.format(*row['interval'])


def _shorten(text: str, width: int = _NAME_WIDTH) -> str:
  text = printable(text)
  return text if len(text) <= width else f'{text[: width - 3]}...'
