"""What a classifier said of each image: checked, written and read.

One argument order in all of `metrics`: `labels` (N,) whole numbers in
0..C-1, then `probabilities` (N, C) whose rows sum to 1. An image's prediction
is its most probable class, the lowest one on a tie.
"""

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from dpjax import atomic, csv_cells
from dpjax.errors import UserError

_PATIENT = 'patient'  # the last column, where patients are known


class Predictions(NamedTuple):
  """What predictions.csv holds.

  Attributes:
    ids: N distinct image ids.
    labels: (N,) int64.
    probabilities: (N, C) float64.
    patients: (N,) str, whose each image is; None if the file does not say.
  """

  ids: list[str]
  labels: np.ndarray
  probabilities: np.ndarray
  patients: np.ndarray | None


def check(
  labels: ArrayLike,
  probabilities: ArrayLike,
  place: str = 'image',
  first: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns int64 labels and float64 probabilities, or names the first fault.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1 within 0.001.
    place: what a row is called in an error.
    first: the number of row 0 there.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.
  """
  labels, probabilities = np.asarray(labels), np.asarray(probabilities)
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


def softmax(logits: np.ndarray) -> np.ndarray:
  """The probabilities of logits (N, C), in float64."""
  logits = np.asarray(logits, np.float64)
  exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return exp / exp.sum(axis=-1, keepdims=True)


def check_names(class_names: Sequence[str], num_classes: int) -> list[str]:
  """Returns the names as strings; ValueError if not C distinct ones."""
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


def write_predictions(
  path: str | Path,
  ids: Iterable[str],
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  patients: np.ndarray | None = None,
) -> None:
  """Writes predictions.csv: id,label,prediction,p_<class 0>,p_<class 1>,...

  Where a patient has several images the last column is `patient`. Classes are
  numbers in `label` and `prediction`. A probability is written with the fewest
  digits that give the same number back in its own type, float64 or else
  float32. The file appears whole or not at all.

  Args:
    path: of the file; one that is there is replaced.
    ids: N distinct image ids.
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    class_names: C distinct names, for the header.
    patients: (N,) the number of each image's patient; None: unknown.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.
  """
  checked_labels, checked = check(labels, probabilities)
  class_names = check_names(class_names, checked.shape[1])
  ids = [str(image) for image in ids]
  if len(ids) != len(checked_labels):
    raise ValueError(f'{len(ids)} ids for {len(checked_labels)} labels')
  if twice := _first_repeated(ids):
    raise ValueError(f'ids must be distinct, but {ids[twice]!r} comes twice')
  if np.asarray(probabilities).dtype != np.float64:
    checked = checked.astype(np.float32)
  more: list[list[str]] = [[] for _ in ids]
  if patients is not None and len(np.unique(patients)) < len(ids):
    more = [[str(patient)] for patient in patients]

  with (
    atomic.replacing(path) as temporary,
    open(temporary, 'w', newline='', encoding='utf-8') as file,
  ):
    header = ['id', 'label', 'prediction', *(f'p_{n}' for n in class_names)]
    header += [_PATIENT] * bool(more[0])
    answers = zip(ids, checked_labels, checked, more, strict=True)
    rows = (
      [image, y, p.argmax(), *map(str, p), *patient]
      for image, y, p, patient in answers
    )
    csv_cells.write(file, itertools.chain([header], rows))


def read_predictions(path: str | Path) -> Predictions:
  """Reads a file that `write_predictions` wrote, or one of its layout.

  Args:
    path: of the file.

  Raises:
    UserError: if the file cannot be read, or a row is not what the layout
      says; the line names the file, the row (the header is row 1) and the
      reason.
  """
  try:
    with Path(path).open(newline='', encoding='utf-8-sig') as file:
      rows = list(csv_cells.read(file))
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}') from None
  except (UnicodeDecodeError, csv.Error) as error:
    raise UserError(f'{path}: not a CSV file in UTF-8 ({error})') from None

  header = rows[0] if rows else []
  named = header[-1:] == [_PATIENT]
  classes = header[3 : len(header) - named]
  if (
    header[:3] != ['id', 'label', 'prediction']
    or len(classes) < 2
    or not all(column.startswith('p_') for column in classes)
  ):
    raise UserError(
      f'{path}, row 1: the header must be id,label,prediction and a p_<class> '
      f'for each of at least 2 classes, not {",".join(header)[:40]!r}'
    )
  if len(rows) == 1:
    raise UserError(f'{path}: there are no rows below the header')

  ids, labels, predictions, probabilities, patients = [], [], [], [], []
  for number, row in enumerate(rows[1:], start=2):
    if len(row) != len(header):
      raise UserError(
        f'{path}, row {number}: {len(row)} fields where the header has '
        f'{len(header)}'
      )
    try:
      labels.append(int(row[1]))
      predictions.append(int(row[2]))
      probabilities.append([float(x) for x in row[3 : 3 + len(classes)]])
    except ValueError as error:
      raise UserError(
        f'{path}, row {number}: label and prediction must be whole numbers and '
        f'the rest after the id numbers ({error})'
      ) from None
    ids.append(row[0])
    patients.append(row[-1])

  if twice := _first_repeated(ids):
    raise UserError(f'{path}, row {twice + 2}: id {ids[twice]!r} comes again')
  try:
    checked_labels, checked = check(
      labels, probabilities, place=f'{path}, row', first=2
    )
  except ValueError as error:  # Here the numbers are the user's.
    raise UserError(str(error)) from None
  for i, (prediction, p) in enumerate(zip(predictions, checked, strict=True)):
    # A tie may have gone to either class in a file that others wrote.
    if not 0 <= prediction < len(p) or p[prediction] != p.max():
      raise UserError(
        f'{path}, row {i + 2}: prediction {prediction} is not the most '
        f'probable class, {p.argmax()}'
      )
  whose = np.array(patients) if named else None
  return Predictions(ids, checked_labels, checked, whose)


def mean(
  members: Mapping[str, Predictions], ids: Sequence[str], labels: np.ndarray
) -> np.ndarray:
  r"""What several classifiers say together.

  .. math:: p(c | x) = \frac{1}{M} \sum_m p_m(c | x)

  Args:
    members: by what an error calls them, each in an order of its own.
    ids: of the N images, in the order wanted.
    labels: (N,) of these.

  Returns:
    (N, C).

  Raises:
    UserError: one line: a member is of other images, labels or classes.

  Source: Lakshminarayanan et al. (2017), arXiv 1612.01474, section 2.4.
  """
  ids = [str(image) for image in ids]
  total, count = np.zeros(()), None
  for place, found in members.items():
    at = {image: i for i, image in enumerate(found.ids)}
    count = count or found.probabilities.shape[1]
    if at.keys() != set(ids) or found.probabilities.shape[1] != count:
      raise UserError(f'{place}: not of the images and classes of this set')
    rows = [at[image] for image in ids]
    if (wrong := found.labels[rows] != labels).any():
      first = ids[int(wrong.argmax())]
      raise UserError(f'{place}: {first} has another label in the set')
    total = total + found.probabilities[rows]
  return total / len(members)


def _first_repeated(items: list[str]) -> int | None:
  """The place of the first item that stood before; never 0."""
  seen = set()
  for i, item in enumerate(items):
    if item in seen:
      return i
    seen.add(item)
  return None
