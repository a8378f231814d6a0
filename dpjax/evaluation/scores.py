"""Scores of a classifier on labelled images, and the tables of them.

A score that these images leave undefined is None: no score is made up by a
convention for 0/0. The scores come from scikit-learn where it has them.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpjax.data import tables
from dpjax.evaluation import bootstrap, calibration, predictions

# The scores of the summary, and their names in the table.
_TITLES = {
  'accuracy': 'accuracy',
  'majority_accuracy': 'accuracy of always the commonest class',
  'balanced_accuracy': 'balanced accuracy',
  'balanced_accuracy_0_2': 'balanced accuracy, classes 0 to 2',
  'macro_f1': 'macro F1',
  'quadratic_kappa': 'quadratic kappa',
  'auroc_any_lesion': 'any lesion: AUROC',
  'average_precision_any_lesion': 'any lesion: average precision',
  'sensitivity_any_lesion': 'any lesion: sensitivity',
  'specificity_any_lesion': 'any lesion: specificity',
  'ece': 'calibration error, 15 bins',
  'brier': 'Brier score',
  'nll': 'log loss, nats',
  'ece_scaled': 'calibration error, scaled',
  'brier_scaled': 'Brier score, scaled',
  'nll_scaled': 'log loss, scaled',
}
# The scores of a class, and their columns.
_COLUMNS = {
  'precision': 'precision',
  'recall': 'recall',
  'specificity': 'specif.',
  'f1': 'F1',
  'auroc': 'AUROC',
  'average_precision': 'AP',
}
_LOCALISATION = {
  'pointing_game': 'pointing game',
  'energy_in_box': 'energy in box',
  'iou': 'IoU',
  'pixel_ap': 'pixel AP',
}
_WIDTH = 80  # columns of the printed table
_NAME_WIDTH = 22  # columns of it that a class or a value may take
_DASH = re.compile(r'  -( |$)')  # what stands for None


def scores(
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  *,
  any_lesion: bool = True,
  ordinal: bool = False,
  threshold: float | None = None,
  temperature: float | None = None,
) -> dict[str, Any]:
  """Scores the predictions of one model.

  With TP_c, FP_c, FN_c and TN_c counted one class against the rest,

      recall_c = TP_c / (TP_c + FN_c)    precision_c = TP_c / (TP_c + FP_c)
      F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c)
      specificity_c = TN_c / (TN_c + FP_c)

  and balanced accuracy and macro F1 are the unweighted means of recall_c and
  F1_c over the classes that occur in `labels`, where neither can be 0/0. A
  class that is never predicted enters both with 0; a class that is predicted
  but never true enters neither, though its images lower the others.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    class_names: C distinct names.
    any_lesion: whether class 0 means "no lesion", which the scores of any
      lesion need.
    ordinal: whether the classes are counts, which quadratic kappa needs.
    threshold: an image is called a lesion if 1 - p_0 is at least this. Chosen
      on other images, by `calibration.choose_threshold`.
    temperature: to scale the probabilities by. Chosen on other images, by
      `calibration.fit_temperature`.

  Returns:
    A dict that `json.dump` takes as it is:
      num_images: N.
      scores: flat name -> float or None:
        accuracy, balanced_accuracy, macro_f1.
        balanced_accuracy_0_2: mean recall of classes 0 to 2, steadier where
          the rare classes hold a handful of images. None unless C > 3.
        auroc_any_lesion, average_precision_any_lesion: of 1 - p_0 for
          label > 0. None without `any_lesion`, or if all images are on one
          side.
        sensitivity_any_lesion, specificity_any_lesion: at `threshold`. None
          also without one, or without images of that side.
        quadratic_kappa: agreement beyond chance, a miss weighing the square
          of its distance. None without `ordinal`, or if truth and predictions
          are one and the same class.
        ece: expected calibration error, 15 bins (`calibration`).
        brier: mean of sum_c (p_c - [c is true])^2, 0 to 2.
        nll: mean of -ln p of the true class, p at least `calibration.FLOOR`.
        ece_scaled, brier_scaled, nll_scaled: of the scaled probabilities, None
          without `temperature`.
        precision/NAME (None if never predicted), recall/NAME (None without
          such images), specificity/NAME (None without others), f1/NAME (None
          if neither true nor predicted), auroc/NAME and average_precision/NAME
          against the rest (None without both sides) of every class.
      per_class: name -> the last six, and support (the number of its images).
      confusion_matrix: C lists of C counts, rows the true class.
      majority_accuracy: the accuracy of always answering the commonest class.
      reliability: `calibration.reliability`.
      reliability_scaled: of the scaled probabilities, None without
        `temperature`.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: macro F1 as the mean of the classes' F1, Opitz and Burst (2019),
  arXiv 1911.03347, Eq. 1; balanced accuracy, Brodersen et al. (2010); kappa,
  Cohen (1968); calibration error, Guo et al. (2017), Eq. 3; Brier (1950).
  """
  from sklearn import metrics  # Here, so that training never imports it.

  labels, probabilities = predictions.check(labels, probabilities)
  num_classes = probabilities.shape[1]
  class_names = predictions.check_names(class_names, num_classes)
  predicted = probabilities.argmax(axis=1)
  support = np.bincount(labels, minlength=num_classes)  # (C,)
  present = np.flatnonzero(support)

  def mean_recall(classes: np.ndarray) -> float | None:
    # Not balanced_accuracy_score: it warns of predictions outside `labels`.
    if not classes.size:
      return None
    return float(
      metrics.recall_score(labels, predicted, labels=classes, average='macro')
    )

  def ranked(positive: np.ndarray, score: np.ndarray) -> list[float | None]:
    if positive.all() or not positive.any():
      return [None, None]
    auroc = metrics.roc_auc_score(positive, score)
    return [
      float(auroc),
      float(metrics.average_precision_score(positive, score)),
    ]

  flat = dict.fromkeys(bootstrap.SUMMARY)
  flat['accuracy'] = float(metrics.accuracy_score(labels, predicted))
  flat['balanced_accuracy'] = mean_recall(present)
  if num_classes > 3:
    flat['balanced_accuracy_0_2'] = mean_recall(present[present <= 2])
  flat['macro_f1'] = float(
    metrics.f1_score(labels, predicted, labels=present, average='macro')
  )
  if any_lesion:
    # -p_0 ranks as 1 - p_0 does, without the ties that rounding 1 - p_0 makes.
    lesion = labels > 0
    flat['auroc_any_lesion'], flat['average_precision_any_lesion'] = ranked(
      lesion, -probabilities[:, 0]
    )
    if threshold is not None:
      called = calibration.lesion_score(probabilities) >= threshold
      flat['sensitivity_any_lesion'] = _share(called[lesion])
      flat['specificity_any_lesion'] = _share(~called[~lesion])
  constant = labels.max() == labels.min() == predicted.max() == predicted.min()
  if ordinal and not constant:
    flat['quadratic_kappa'] = float(
      metrics.cohen_kappa_score(
        labels, predicted, labels=np.arange(num_classes), weights='quadratic'
      )
    )
  reliability = {'reliability': None, 'reliability_scaled': None}
  for suffix, given in _variants(probabilities, temperature).items():
    diagram = calibration.reliability(labels, given)
    reliability[f'reliability{suffix}'] = diagram
    flat[f'ece{suffix}'] = calibration.expected_error(diagram)
    flat[f'brier{suffix}'] = float(
      calibration.squared_error(labels, given).mean()
    )
    flat[f'nll{suffix}'] = float(calibration.log_loss(labels, given).mean())

  precision, recall, f1, _ = metrics.precision_recall_fscore_support(
    labels,
    predicted,
    labels=np.arange(num_classes),
    zero_division=np.nan,
  )
  per_class = {}
  for c, name in enumerate(class_names):
    auroc, average_precision = ranked(labels == c, probabilities[:, c])
    row = {
      'precision': _number(precision[c]),
      'recall': _number(recall[c]),
      'specificity': _share(predicted[labels != c] != c),
      'f1': _number(f1[c]),
      'auroc': auroc,
      'average_precision': average_precision,
    }
    flat |= {f'{key}/{name}': value for key, value in row.items()}
    per_class[name] = {**row, 'support': int(support[c])}
  return {
    'num_images': len(labels),
    'scores': flat,
    'per_class': per_class,
    'confusion_matrix': metrics.confusion_matrix(
      labels, predicted, labels=np.arange(num_classes)
    ).tolist(),
    'majority_accuracy': float(support.max() / len(labels)),
    **reliability,
  }


def summary(
  labels: np.ndarray, probabilities: np.ndarray, *, any_lesion: bool = True
) -> dict[str, float | None]:
  """Five of the scores of `scores`, without scikit-learn.

  For validation during training, which is not to import it.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    any_lesion: whether class 0 means "no lesion".

  Returns:
    {name: float, or None where undefined}: accuracy, balanced_accuracy,
    balanced_accuracy_0_2, macro_f1, auroc_any_lesion.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.
  """
  labels, probabilities = predictions.check(labels, probabilities)
  score = bootstrap.scorer(labels, probabilities, None, any_lesion=any_lesion)
  values = score(np.ones((1, len(labels))))
  return {name: _number(values[name][0]) for name in bootstrap.SUMMARY[:5]}


def format_table(result: dict[str, Any], *, level: float = 0.95) -> str:
  """Sets what evaluation.json holds as plain text, at most 80 columns wide.

  Args:
    result: what `scores` returned, and of evaluation.json what there is:
      'intervals', 'threshold', 'temperature', 'chosen_on', 'localisation',
      'subgroups'.
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
  lines = [f'{count} image{"s" * (count != 1)}, {len(names)} classes', '']
  lines += _class_rows(names, result['per_class'])
  lines += ['', *_summary_rows(result, intervals, level)]
  lines += ['', *_matrix_rows(names, result['confusion_matrix'])]
  if result.get('localisation'):
    lines += ['', *_localisation_rows(result['localisation'], level)]
  if subgroups := result.get('subgroups'):
    lines += ['', f'subgroups (with {100 * level:g} % intervals)']
    for column, groups in subgroups.items():
      lines += [*_subgroup_rows(column, groups), '']
    lines.pop()
  lines = [line.rstrip() for line in lines]
  if any(_DASH.search(line) for line in lines):
    lines += ['', '-: undefined on these images, or not for these classes']
  return '\n'.join(lines)


def format_comparison(
  comparison: dict[str, Any], *, level: float = 0.95
) -> str:
  """Sets the comparison of two models as plain text, at most 80 columns wide.

  What the models are called is not shortened.

  Args:
    comparison: 'a', 'b': what the models are called; 'scores': what
      `bootstrap.paired_bootstrap` returned; and, where there are, 'mcnemar':
      what `bootstrap.mcnemar` returned; 'localisation': map -> score ->
      {'difference', 'interval'}.
    level: the level that the intervals were made for, for their heading.

  Returns:
    Lines without a final newline. A star marks a difference whose interval
    leaves out 0.
  """
  rows = comparison['scores']
  lines = [f'a: {comparison["a"]}', f'b: {comparison["b"]}', '']
  lines = [tables.printable(line) for line in lines]
  titles = {
    name: title
    for name, title in _TITLES.items()
    if name in rows and rows[name]['difference'] is not None
  }
  width = max(map(len, titles.values()))
  lines.append(f'{"difference":<{width}}   a - b   {100 * level:g} % interval')
  for name, title in titles.items():
    lines.append(
      f'{title:<{width}}  {_signed(rows[name])} {_signed_span(rows[name])}'
    )

  classes = [
    name.partition('/')[2] for name in rows if name.startswith('recall/')
  ]
  if classes:
    names = _numbered(classes)
    width = max(map(len, [*names, 'a - b, class'])) + 1
    heading = ''.join(f'{title:>9}' for title in _COLUMNS.values())
    lines += ['', f'{"a - b, class":<{width}}{heading}']
    for name, title in zip(classes, names, strict=True):
      cells = (_signed(rows[f'{key}/{name}']) for key in _COLUMNS)
      lines.append(f'{title:<{width}}' + ''.join(f'{c:>9}' for c in cells))

  if test := comparison.get('mcnemar'):
    lines += [
      '',
      f'images that a alone has right: {test["only_a_right"]}, b alone:'
      f' {test["only_b_right"]}; McNemar p = {test["p_value"]:.3g}',
    ]
  if maps := comparison.get('localisation'):
    lines += ['', _columns('a - b, map', _LOCALISATION.values())]
    for name, differences in maps.items():
      cells = [differences.get(key) for key in _LOCALISATION]
      lines.append(_columns(_shorten(name, 15), map(_signed, cells)))
      spans = [_signed_span(cell) for cell in cells]
      if any(spans):
        # Without the 0 before the point, to keep them apart.
        spans = [span.replace('0.', '.') for span in spans]
        lines.append(_columns('', spans))
  lines = [line.rstrip() for line in lines]
  lines += ['', f'*: the {100 * level:g} % interval leaves out 0']
  if any(_DASH.search(line) for line in lines):
    lines.append('-: undefined for a or b')
  lines.append('lower is better: calibration error, Brier score, log loss')
  return '\n'.join(lines)


def _class_rows(names, per_class):
  width = max(map(len, [*names, 'class']))
  heading = ''.join(f'  {title:>5}' for title in _COLUMNS.values())
  lines = [f'{"class":<{width}}{heading}  images']
  for name, row in zip(names, per_class.values(), strict=True):
    cells = ''.join(
      f'  {_decimal(row[key]):>{max(5, len(title))}}'
      for key, title in _COLUMNS.items()
    )
    lines.append(f'{name:<{width}}{cells}  {row["support"]:>6}')
  return lines


def _summary_rows(result, intervals, level):
  values = {
    **result['scores'],
    'majority_accuracy': result['majority_accuracy'],
  }
  left_out = set()
  if len(result['per_class']) <= 3:
    left_out.add('balanced_accuracy_0_2')
  if values['quadratic_kappa'] is None:
    left_out.add('quadratic_kappa')
  if result.get('threshold') is None:
    left_out |= {'sensitivity_any_lesion', 'specificity_any_lesion'}
  if values['ece_scaled'] is None:
    left_out |= {'ece_scaled', 'brier_scaled', 'nll_scaled'}
  titles = {
    name: title for name, title in _TITLES.items() if name not in left_out
  }
  width = max(map(len, titles.values()))
  heading = f'{"summary":<{width}}  value'
  lines = [f'{heading}  {100 * level:g} % interval' if intervals else heading]
  for name, title in titles.items():
    line = f'{title:<{width}}  {_decimal(values[name]):>5}'
    lines.append(f'{line}  {_span(intervals.get(name))}')
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


def _matrix_rows(names, matrix):
  num_classes = len(names)
  width = max(map(len, names))
  cell = max(len(str(n)) for row in [range(num_classes), *matrix] for n in row)
  cell += 2  # the gap before it
  block = (_WIDTH - width) // cell
  lines = ['confusion matrix (row: true class, column: predicted class)']
  for start in range(0, num_classes, block):
    columns = range(start, min(start + block, num_classes))
    if start:
      lines.append('')
    lines.append(' ' * width + ''.join(f'{c:>{cell}}' for c in columns))
    for name, row in zip(names, matrix, strict=True):
      cells = ''.join(f'{row[c]:>{cell}}' for c in columns)
      lines.append(f'{name:<{width}}{cells}')
  return lines


def _localisation_rows(maps, level):
  count = max(row['num_images'] for row in maps.values())
  lines = [
    f'localisation on {count} image{"s" * (count != 1)} with boxes'
    f' (below: {100 * level:g} % intervals)',
    _columns('map', _LOCALISATION.values()),
  ]
  for name, row in maps.items():
    values = (_decimal(row['scores'].get(key)) for key in _LOCALISATION)
    lines.append(_columns(_shorten(name, 15), values))
    spans = [_span(row['intervals'].get(key)) for key in _LOCALISATION]
    if any(spans):
      lines.append(_columns('', spans))
  return lines


def _subgroup_rows(column, groups):
  """Two scores of each value, with intervals; evaluation.json has the rest."""
  shown = ['balanced_accuracy', 'auroc_any_lesion']
  if all(row['scores'][shown[1]] is None for row in groups.values()):
    shown[1] = 'macro_f1'
  names = {value: _shorten(value) for value in groups}
  width = max(map(len, [*names.values(), _shorten(column)]))
  heading = f'{_shorten(column):<{width}}  images'
  for key in shown:
    heading += f'  {_TITLES[key]:<22}'
  lines = [heading]
  for value, row in groups.items():
    line = f'{names[value]:<{width}}  {row["num_images"]:>6}'
    for key in shown:
      span = _span((row.get('intervals') or {}).get(key))
      line += f'  {_decimal(row["scores"][key]):>5}  {span:<15}'
    lines.append(line)
  return lines


def _columns(name, cells):
  """A row of a table of four columns."""
  return f'{name:<15}' + ''.join(f'{cell:>16}' for cell in cells)


def _numbered(names):
  """Class names with their numbers before them, short enough for a table."""
  return [
    _shorten(name if name == str(c) else f'{c} {name}')
    for c, name in enumerate(names)
  ]


def _variants(probabilities, temperature):
  """Suffix of the score -> the probabilities that it is of."""
  if temperature is None:
    return {'': probabilities}
  scaled = calibration.scale(probabilities, temperature)
  return {'': probabilities, '_scaled': scaled}


def _share(flags: np.ndarray) -> float | None:
  """The share of flags that are set, None of none."""
  return float(flags.mean()) if flags.size else None


def _number(value: float) -> float | None:
  return None if np.isnan(value) else float(value)


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
  text = tables.printable(text)
  return text if len(text) <= width else f'{text[: width - 3]}...'
