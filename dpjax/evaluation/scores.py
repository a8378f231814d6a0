"""Scores of a classifier on labelled images, and how sure they are.

One argument order everywhere: `labels` (N,) whole numbers in 0..C-1, then
`probabilities` (N, C) whose rows sum to 1. An image's prediction is its most
probable class, the lowest one on a tie. A score that these images leave
undefined is None: no score is made up by a convention for 0/0.

The scores come from scikit-learn. The bootstrap does not call it: it computes
the same scores for a block of resamples at once, each resample being a row of
counts that says how often every image was drawn.
"""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# The scores that get an interval, and their names in the table.
_TITLES = {
  'accuracy': 'accuracy',
  'balanced_accuracy': 'balanced accuracy',
  'balanced_accuracy_0_2': 'balanced accuracy, classes 0 to 2',
  'macro_f1': 'macro F1',
  'auroc_any_lesion': 'AUROC, any lesion',
}
# Count tables are made for so many (resample, image) pairs at a time: 8 MiB.
_BLOCK = 2**20
_WIDTH = 80  # columns of the printed table
_NAME_WIDTH = 28  # columns of it that a class name may take


def scores(
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  *,
  any_lesion: bool = True,
) -> dict[str, Any]:
  """Scores the predictions of one model.

  With TP_c, FP_c and FN_c counted one class against the rest,

      recall_c = TP_c / (TP_c + FN_c)    precision_c = TP_c / (TP_c + FP_c)
      F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c)

  and balanced accuracy and macro F1 are the unweighted means of recall_c and
  F1_c over the classes that occur in `labels`, where neither can be 0/0. A
  class that is never predicted enters both with 0; a class that is predicted
  but never true enters neither, though its images lower the others.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    class_names: C distinct names, for the keys of `per_class`.
    any_lesion: whether class 0 means "no lesion", which `auroc_any_lesion`
      needs.

  Returns:
    A dict that `json.dump` takes as it is:
      num_images: N.
      accuracy, balanced_accuracy, macro_f1: floats.
      balanced_accuracy_0_2: mean recall of classes 0 to 2, steadier where
        the rare classes hold a handful of images. None unless C > 3.
      auroc_any_lesion: AUROC of 1 - p_0 for label > 0. None without
        `any_lesion`, or if all images are on one side.
      majority_accuracy: the accuracy of always answering the commonest class.
      per_class: name -> precision (None if never predicted), recall and auroc
        against the rest (None without both sides), f1 (None if neither true
        nor predicted), support (the number of its images).
      confusion_matrix: C lists of C counts, rows the true class.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: macro F1 as the mean of the classes' F1, Opitz and Burst (2019),
  arXiv 1911.03347, Eq. 1; balanced accuracy, Brodersen et al. (2010).
  """
  from sklearn import metrics  # Here, so that training never imports it.

  labels, probabilities = _checked(labels, probabilities)
  num_classes = probabilities.shape[1]
  class_names = _checked_names(class_names, num_classes)
  predictions = probabilities.argmax(axis=1)
  support = np.bincount(labels, minlength=num_classes)  # (C,)
  present = np.flatnonzero(support)

  def mean_recall(classes: np.ndarray) -> float | None:
    # Not balanced_accuracy_score: it warns of predictions outside `labels`.
    if not classes.size:
      return None
    return float(
      metrics.recall_score(labels, predictions, labels=classes, average='macro')
    )

  def auroc(positive: np.ndarray, score: np.ndarray) -> float | None:
    if positive.all() or not positive.any():
      return None
    return float(metrics.roc_auc_score(positive, score))

  precision, recall, f1, _ = metrics.precision_recall_fscore_support(
    labels,
    predictions,
    labels=np.arange(num_classes),
    zero_division=np.nan,
  )
  return {
    'num_images': len(labels),
    'accuracy': float(metrics.accuracy_score(labels, predictions)),
    'balanced_accuracy': mean_recall(present),
    'balanced_accuracy_0_2': (
      mean_recall(present[present <= 2]) if num_classes > 3 else None
    ),
    'macro_f1': float(
      metrics.f1_score(labels, predictions, labels=present, average='macro')
    ),
    # -p_0 ranks as 1 - p_0 does, without the ties that rounding 1 - p_0 makes.
    'auroc_any_lesion': (
      auroc(labels > 0, -probabilities[:, 0]) if any_lesion else None
    ),
    'majority_accuracy': float(support.max() / len(labels)),
    'per_class': {
      name: {
        'precision': _number(precision[c]),
        'recall': _number(recall[c]),
        'f1': _number(f1[c]),
        'auroc': auroc(labels == c, probabilities[:, c]),
        'support': int(support[c]),
      }
      for c, name in enumerate(class_names)
    },
    'confusion_matrix': metrics.confusion_matrix(
      labels, predictions, labels=np.arange(num_classes)
    ).tolist(),
  }


def summary(
  labels: np.ndarray, probabilities: np.ndarray, *, any_lesion: bool = True
) -> dict[str, float | None]:
  """The summary scores of `scores` alone, without scikit-learn.

  For validation during training, which is not to import it.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    any_lesion: whether class 0 means "no lesion".

  Returns:
    {score: float, or None where undefined}: accuracy, balanced_accuracy,
    balanced_accuracy_0_2, macro_f1, auroc_any_lesion, as in `scores`.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.
  """
  labels, probabilities = _checked(labels, probabilities)
  once = np.ones((1, len(labels)))
  values = _weighted_scores(labels, probabilities, once, any_lesion)
  return {name: _number(value[0]) for name, value in values.items()}


def bootstrap(
  labels: np.ndarray,
  probabilities: np.ndarray,
  *,
  resamples: int = 2000,
  seed: int,
  stratified: bool = True,
  level: float = 0.95,
  any_lesion: bool = True,
) -> dict[str, list[float] | None]:
  """Percentile bootstrap intervals of the summary scores.

  Images are drawn with replacement, N of N, `resamples` times; an interval
  runs from the (1 - level)/2 to the (1 + level)/2 quantile of a score over
  the resamples. It holds the model fixed: the spread over training seeds is
  not in it.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    resamples: how many resamples are drawn.
    seed: of the draws; equal seeds give equal intervals.
    stratified: draw within each class, so that every resample has the class
      sizes of `labels`. Otherwise draw over all images: a resample then scores
      the classes that it happens to hold, and is left out of the scores that
      it leaves undefined.
    level: the share of the resamples that an interval covers.
    any_lesion: as in `scores`.

  Returns:
    score -> [low, high], or None where `scores` gives None, for accuracy,
    balanced_accuracy, balanced_accuracy_0_2, macro_f1 and auroc_any_lesion.
    A class of one image adds no spread: its interval is too short, not wide.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, 13.3.
  """
  labels, probabilities = _checked(labels, probabilities)
  _check_resampling(resamples, level)
  (values,) = _resampled_scores(
    labels, [probabilities], resamples, seed, stratified, any_lesion
  )
  return {name: _interval(value, level) for name, value in values.items()}


def paired_bootstrap(
  labels: np.ndarray,
  probabilities_a: np.ndarray,
  probabilities_b: np.ndarray,
  *,
  resamples: int = 2000,
  seed: int,
  stratified: bool = True,
  level: float = 0.95,
  any_lesion: bool = True,
) -> dict[str, dict[str, Any]]:
  """Differences a - b of two models on the same images, with intervals.

  Both models are scored on the same resamples, so what makes an image hard
  for both cancels: these intervals are shorter than two separate ones suggest.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities_a: (N, C) of model a, rows in the order of `labels`.
    probabilities_b: (N, C) of model b, likewise.
    resamples: as in `bootstrap`.
    seed: as in `bootstrap`; an equal seed draws the same resamples there.
    stratified: as in `bootstrap`.
    level: as in `bootstrap`.
    any_lesion: as in `scores`.

  Returns:
    score -> {'difference': a - b on `labels`, 'interval': [low, high]}, both
    None where `scores` gives None, for the scores of `bootstrap`.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: as `bootstrap`.
  """
  models = []
  for name, probabilities in ('a', probabilities_a), ('b', probabilities_b):
    try:
      checked_labels, probabilities = _checked(labels, probabilities)
    except ValueError as error:
      raise ValueError(f'model {name}: {error}') from None
    models.append(probabilities)
  if models[0].shape != models[1].shape:
    raise ValueError(
      f'probabilities of model a have the shape {models[0].shape}, of model b '
      f'{models[1].shape}: both need the same classes'
    )
  _check_resampling(resamples, level)
  once = np.ones((1, len(checked_labels)))
  point_a, point_b = (
    _weighted_scores(checked_labels, p, once, any_lesion) for p in models
  )
  values_a, values_b = _resampled_scores(
    checked_labels, models, resamples, seed, stratified, any_lesion
  )
  return {
    name: {
      'difference': _number(point_a[name][0] - point_b[name][0]),
      'interval': _interval(values_a[name] - values_b[name], level),
    }
    for name in _TITLES
  }


def format_table(
  scores: dict[str, Any],
  intervals: dict[str, list[float] | None] | None = None,
  *,
  level: float = 0.95,
) -> str:
  """Sets what `scores` returned as plain text, at most 80 columns wide.

  Args:
    scores: what `scores` returned.
    intervals: what `bootstrap` returned, or None for no intervals.
    level: the level that the intervals were made for, for their heading.

  Returns:
    Lines without a final newline: a row per class, the summary, and the
    confusion matrix (in several blocks where its columns need them). A dash
    stands for None, and a line says so.
  """
  names = [
    _shorten(name if name == str(c) else f'{c} {name}')
    for c, name in enumerate(scores['per_class'])
  ]
  num_classes = len(names)
  width = max(map(len, [*names, 'class']))
  count = scores['num_images']
  lines = [
    f'{count} image{"s" * (count != 1)}, {num_classes} classes',
    '',
    f'{"class":<{width}}  precision  recall     F1  AUROC  images',
  ]
  for name, row in zip(names, scores['per_class'].values(), strict=True):
    lines.append(
      f'{name:<{width}}  {_decimal(row["precision"]):>9}  '
      f'{_decimal(row["recall"]):>6}  {_decimal(row["f1"]):>5}  '
      f'{_decimal(row["auroc"]):>5}  {row["support"]:>6}'
    )

  titles = dict(_TITLES)
  if num_classes <= 3:
    del titles['balanced_accuracy_0_2']
  # Next to the accuracy, which says little unless it is well above this.
  titles = {
    'accuracy': titles.pop('accuracy'),
    'majority_accuracy': 'accuracy of always the commonest class',
    **titles,
  }
  summary_width = max(map(len, titles.values()))
  heading = f'{"summary":<{summary_width}}  value'
  lines += [
    '',
    heading if intervals is None else f'{heading}  {100 * level:g} % interval',
  ]
  for key, title in titles.items():
    line = f'{title:<{summary_width}}  {_decimal(scores[key]):>5}'
    if intervals and intervals.get(key):
      low, high = map(_decimal, intervals[key])
      line += f'  {low} to {high}'
    lines.append(line)
  rows = [*scores['per_class'].values(), {key: scores[key] for key in titles}]
  if any(None in row.values() for row in rows):
    lines.append('-: undefined on these images, or not for these classes')

  matrix = scores['confusion_matrix']
  cell = max(len(str(n)) for row in [range(num_classes), *matrix] for n in row)
  cell += 2  # the gap before it
  block = (_WIDTH - width) // cell
  lines += ['', 'confusion matrix (row: true class, column: predicted class)']
  for start in range(0, num_classes, block):
    columns = range(start, min(start + block, num_classes))
    if start:
      lines.append('')
    lines.append(' ' * width + ''.join(f'{c:>{cell}}' for c in columns))
    for name, row in zip(names, matrix, strict=True):
      cells = ''.join(f'{row[c]:>{cell}}' for c in columns)
      lines.append(f'{name:<{width}}{cells}')
  return '\n'.join(lines)


def write_predictions(
  path: str | Path,
  ids: Sequence[str],
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str],
) -> None:
  """Writes predictions.csv: id,label,prediction,p_<class 0>,p_<class 1>,...

  Classes are numbers in `label` and `prediction`. A probability is written
  with the fewest digits that give the same number back in its own type, float64
  or else float32. The file appears whole or not at all.

  Args:
    path: of the file; one that is there is replaced.
    ids: N distinct image ids.
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    class_names: C distinct names, for the header.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.
  """
  path = Path(path)
  checked_labels, checked = _checked(labels, probabilities)
  class_names = _checked_names(class_names, checked.shape[1])
  ids = [str(image) for image in ids]
  if len(ids) != len(checked_labels):
    raise ValueError(f'{len(ids)} ids for {len(checked_labels)} labels')
  if twice := _first_repeated(ids):
    raise ValueError(f'ids must be distinct, but {ids[twice]!r} comes twice')
  if np.asarray(probabilities).dtype != np.float64:
    checked = checked.astype(np.float32)

  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    with temporary.open('w', newline='', encoding='utf-8') as file:
      writer = csv.writer(file, lineterminator='\n')
      writer.writerow(
        ['id', 'label', 'prediction', *(f'p_{name}' for name in class_names)]
      )
      rows = zip(ids, checked_labels, checked, strict=True)
      for image, label, row in rows:
        writer.writerow([image, label, row.argmax(), *map(str, row)])
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def read_predictions(
  path: str | Path,
) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Reads a file that `write_predictions` wrote, or one of its layout.

  Args:
    path: of the file.

  Returns:
    ids, a list of N strings; labels (N,) int64; probabilities (N, C) float64.

  Raises:
    ValueError: if the file cannot be read, or a row is not what the layout
      says; the line names the file, the row (the header is row 1) and the
      reason.
  """
  try:
    with Path(path).open(newline='', encoding='utf-8-sig') as file:
      rows = list(csv.reader(file))
  except OSError as error:
    raise ValueError(f'{path}: {error.strerror}') from None
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f'{path}: not a CSV file in UTF-8 ({error})') from None

  header = rows[0] if rows else []
  if (
    header[:3] != ['id', 'label', 'prediction']
    or len(header) < 5
    or not all(column.startswith('p_') for column in header[3:])
  ):
    raise ValueError(
      f'{path}, row 1: the header must be id,label,prediction and a p_<class> '
      f'for each of at least 2 classes, not {_shorten(",".join(header))!r}'
    )
  if len(rows) == 1:
    raise ValueError(f'{path}: there are no rows below the header')

  ids, labels, predictions, probabilities = [], [], [], []
  for number, row in enumerate(rows[1:], start=2):
    if len(row) != len(header):
      raise ValueError(
        f'{path}, row {number}: {len(row)} fields where the header has '
        f'{len(header)}'
      )
    try:
      labels.append(int(row[1]))
      predictions.append(int(row[2]))
      probabilities.append([float(field) for field in row[3:]])
    except ValueError as error:
      raise ValueError(
        f'{path}, row {number}: label and prediction must be whole numbers and '
        f'the rest after the id numbers ({error})'
      ) from None
    ids.append(row[0])

  if twice := _first_repeated(ids):
    raise ValueError(f'{path}, row {twice + 2}: id {ids[twice]!r} comes again')
  labels, probabilities = _checked(
    labels, probabilities, place=f'{path}, row', first=2
  )
  for i, (prediction, row) in enumerate(
    zip(predictions, probabilities, strict=True)
  ):
    # A tie may have gone to either class in a file that others wrote.
    if not 0 <= prediction < len(row) or row[prediction] != row.max():
      raise ValueError(
        f'{path}, row {i + 2}: prediction {prediction} is not the most '
        f'probable class, {row.argmax()}'
      )
  return ids, labels, probabilities


def _checked(
  labels: Any, probabilities: Any, place: str = 'image', first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns int64 labels and float64 probabilities, or names the first fault.

  A fault of image i is reported at `place` number i + first.
  """
  labels = np.asarray(labels)
  probabilities = np.asarray(probabilities)
  if labels.ndim != 1:
    raise ValueError(f'labels must be (N,), not of shape {labels.shape}')
  if probabilities.ndim != 2 or probabilities.shape[1] < 2:
    raise ValueError(
      'probabilities must be (N, C) with at least 2 classes, not of shape '
      f'{probabilities.shape}'
    )
  if len(labels) != len(probabilities):
    raise ValueError(
      f'{len(labels)} labels for {len(probabilities)} rows of probabilities'
    )
  if not len(labels):
    raise ValueError('there are no images to score')
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f'labels must be whole numbers, not {labels.dtype}')
  try:
    probabilities = probabilities.astype(np.float64)
  except (TypeError, ValueError):
    raise ValueError(
      f'probabilities must be numbers, not {probabilities.dtype}'
    ) from None

  num_classes = probabilities.shape[1]
  faults = (labels < 0) | (labels >= num_classes)
  if faults.any():
    i = faults.argmax()
    raise ValueError(
      f'{place} {i + first}: label {labels[i]} is not in 0..{num_classes - 1}'
    )
  for faults, reason in (
    (~np.isfinite(probabilities), 'is not finite'),
    (probabilities < 0, 'is negative'),
  ):
    if faults.any():
      i, c = np.argwhere(faults)[0]
      raise ValueError(
        f'{place} {i + first}: the probability of class {c} {reason} '
        f'({probabilities[i, c]:g})'
      )
  totals = probabilities.sum(axis=1)
  faults = np.abs(totals - 1) > 1e-3  # Half precision sums to within 5e-4.
  if faults.any():
    i = faults.argmax()
    raise ValueError(
      f'{place} {i + first}: the probabilities sum to {totals[i]:g}, not to 1'
    )
  return labels.astype(np.int64), probabilities


def _checked_names(class_names: Sequence[str], num_classes: int) -> list[str]:
  names = [str(name) for name in class_names]
  if len(names) != num_classes:
    raise ValueError(
      f'{len(names)} class names for {num_classes} columns of probabilities'
    )
  if twice := _first_repeated(names):
    raise ValueError(
      f'class names must be distinct, but {names[twice]!r} comes twice'
    )
  return names


def _check_resampling(resamples: int, level: float) -> None:
  if resamples < 1:
    raise ValueError(f'resamples must be at least 1, not {resamples}')
  if not 0 < level < 1:
    raise ValueError(f'level must lie between 0 and 1, not {level}')


def _first_repeated(items: list[str]) -> int | None:
  """The place of the first item that stood before; never 0."""
  seen = set()
  for i, item in enumerate(items):
    if item in seen:
      return i
    seen.add(item)
  return None


def _resampled_scores(
  labels: np.ndarray,  # (N,)
  models: Sequence[np.ndarray],  # each (N, C)
  resamples: int,
  seed: int,
  stratified: bool,
  any_lesion: bool,
) -> list[dict[str, np.ndarray]]:
  """For each model, score -> (R,) over the same resamples."""
  blocks = [[] for _ in models]
  for counts in _draws(labels, resamples, seed, stratified):
    for model, probabilities in zip(blocks, models, strict=True):
      model.append(_weighted_scores(labels, probabilities, counts, any_lesion))
  return [
    {name: np.concatenate([block[name] for block in model]) for name in _TITLES}
    for model in blocks
  ]


def _draws(
  labels: np.ndarray, resamples: int, seed: int, stratified: bool
) -> Iterator[np.ndarray]:
  """Yields (R', N) float64 blocks: how often a resample drew each image."""
  rng = np.random.default_rng(seed)
  n = len(labels)
  if stratified:
    strata = [np.flatnonzero(labels == c) for c in np.unique(labels)]
  else:
    strata = [np.arange(n)]
  block = max(1, _BLOCK // n)
  for start in range(0, resamples, block):
    size = min(block, resamples - start)
    drawn = [s[rng.integers(len(s), size=(size, len(s)))] for s in strata]
    cells = np.concatenate(drawn, axis=1) + n * np.arange(size)[:, None]
    counts = np.bincount(cells.ravel(), minlength=size * n)
    yield counts.reshape(size, n).astype(np.float64)


def _weighted_scores(
  labels: np.ndarray,  # (N,)
  probabilities: np.ndarray,  # (N, C)
  counts: np.ndarray,  # (R, N) float64: the multiplicity of each image
  any_lesion: bool,
) -> dict[str, np.ndarray]:
  """The summary scores of R resamples: score -> (R,), NaN where undefined."""
  num_classes = probabilities.shape[1]
  cells = labels * num_classes + probabilities.argmax(axis=1)  # (N,)
  one_hot = np.eye(num_classes**2)[cells]  # (N, C * C)
  # Sums of whole numbers below 2**53: exact in any order.
  confusion = (counts @ one_hot).reshape(-1, num_classes, num_classes)
  right = np.einsum('rcc->rc', confusion)  # (R, C)
  true = confusion.sum(axis=2)  # (R, C)
  predicted = confusion.sum(axis=1)  # (R, C)
  present = true > 0
  recall = _ratio(right, true)
  f1 = _ratio(2 * right, np.where(present, true + predicted, 0))
  undefined = np.full(len(counts), np.nan)
  return {
    'accuracy': right.sum(axis=1) / true.sum(axis=1),
    'balanced_accuracy': _mean_defined(recall),
    'balanced_accuracy_0_2': (
      _mean_defined(recall[:, :3]) if num_classes > 3 else undefined
    ),
    'macro_f1': _mean_defined(f1),
    'auroc_any_lesion': (
      _weighted_auroc(labels > 0, -probabilities[:, 0], counts)
      if any_lesion
      else undefined
    ),
  }


def _weighted_auroc(
  positive: np.ndarray,  # (N,) bool
  score: np.ndarray,  # (N,)
  counts: np.ndarray,  # (R, N)
) -> np.ndarray:
  """AUROC of R resamples, (R,), NaN where one side is empty.

  The share of (positive, negative) pairs that the score puts in order, ties
  counting one half (Hanley and McNeil, 1982): over the distinct scores s,

      sum_s P_s (N_{<s} + N_s / 2) / (P N)
  """
  order = np.argsort(score, kind='stable')
  starts = np.flatnonzero(np.diff(score[order], prepend=-np.inf))
  counts, positive = counts[:, order], positive[order]
  positives = np.add.reduceat(counts * positive, starts, axis=1)  # (R, S)
  negatives = np.add.reduceat(counts * ~positive, starts, axis=1)  # (R, S)
  upto = negatives.cumsum(axis=1)
  ordered = (positives * (upto - negatives / 2)).sum(axis=1)
  return _ratio(ordered, positives.sum(axis=1) * upto[:, -1])


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
  """top / bottom, NaN where bottom is 0."""
  nan = np.full(bottom.shape, np.nan)
  return np.divide(top, bottom, out=nan, where=bottom > 0)


def _mean_defined(values: np.ndarray) -> np.ndarray:
  """(R, C) -> (R,) the mean of the values that are not NaN, NaN if none is."""
  return _ratio(
    np.nansum(values, axis=1), (~np.isnan(values)).sum(axis=1).astype(float)
  )


def _interval(values: np.ndarray, level: float) -> list[float] | None:
  values = values[~np.isnan(values)]
  if not values.size:
    return None
  return np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()


def _number(value: float) -> float | None:
  return None if np.isnan(value) else float(value)


def _decimal(value: float | None) -> str:
  return '-' if value is None else f'{value:.3f}'


def _shorten(text: str) -> str:
  return text if len(text) <= _NAME_WIDTH else f'{text[: _NAME_WIDTH - 3]}...'
