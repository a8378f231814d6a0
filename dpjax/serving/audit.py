"""The audit command: which images and patients two sets share.

A set is a prepared one, a training manifest (leakage.FILE), the run or recipe
that has it, or a folder or csv of image files that nobody has prepared.
"""

import csv
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import tqdm

from dpjax import atomic, csv_cells, leakage
from dpjax.config import record as record_lib
from dpjax.data import store
from dpjax.data.decode import image_file
from dpjax.data.prepare import duplicates, shards
from dpjax.errors import SourceFault, UserError
from dpjax.evaluation import files as files_lib
from dpjax.serving import decode, inputs

COLUMNS = ('set_a', 'id_a', 'set_b', 'id_b', 'what', 'bits')
_NEAR = 16  # bits in which near copies may differ: config.split.near
_SIZE = 256  # of the squares whose hashes are compared, pixels


@dataclasses.dataclass(frozen=True)
class Listed:
  """The images of a set.

  Attributes:
    path: of the set, as given.
    ids: of its N images.
    digests: of the decoded images (shards.digest).
    hashes: (N, 32) uint8 (duplicates.fingerprint).
    patients: who each image is of, within the set; '' where nobody says.
    named: whether these are names that hold in other sets, too.
  """

  path: str
  ids: list[str]
  digests: list[str]
  hashes: np.ndarray
  patients: list[str]
  named: bool = False


def audit(
  paths: Sequence[str],
  output: str | pathlib.Path,
  *,
  workers: int = 1,
  progress: bool = True,
) -> list[str]:
  """Compares every two of some sets; writes what they share.

  Args:
    paths: of two sets or more.
    output: the csv to write, COLUMNS; `what` is 'exact' (the same grey levels),
      'near' (up to 16 `bits` of 256 differ) or 'patient' (a DICOM PatientID in
      both).
    workers: processes that decode files.
    progress: a bar on stderr.

  Returns:
    A line for every two sets, and notes.

  Raises:
    UserError: one line: fewer than two sets, or one that is none; `output`
      cannot be written.
  """
  if len(paths) < 2:
    raise UserError(
      'audit: name two sets or more: prepared sets, folders of images, or'
      f' {leakage.FILE}'
    )
  _check_writable(pathlib.Path(output))
  fits = {path: fit for path in paths if (fit := _fit(path)) is not None}
  known = {*fits.values()} - {''}
  fit = min(known, default='stretch')
  notes = []
  if len(known) > 1:
    notes.append(
      'note: the sets are squares by stretch and by pad: near copies of images'
      ' that are not square are missed'
    )
  notes += [
    f'note: {path}: no config.json beside it says whether its squares are by'
    ' stretch or by pad: near copies of images that are not square may be'
    ' missed'
    for path, fit_of_it in fits.items()
    if not fit_of_it
  ]
  sets = []
  for path in paths:
    listed, remarks = _list(path, fit, workers, progress)
    sets.append(listed)
    notes += remarks
  rows, lines = [], []
  for one, other in itertools.combinations(sets, 2):
    found = _shared(one, other)
    rows += [(one.path, a, other.path, b, *what) for a, b, *what in found]
    lines.append(_line(one, other, found))
  with (
    atomic.replacing(output) as temporary,
    open(temporary, 'w', newline='', encoding='utf-8') as stream,
  ):
    csv_cells.write(stream, [COLUMNS, *rows])
  return [*notes, *lines]


def _check_writable(output):
  """Refuses an output that cannot be written, before hours of decoding."""
  if output.is_dir():
    raise UserError(f'--output={output} is a folder; wanted a csv to write')
  if not os.access(output.parent, os.W_OK):
    raise UserError(
      f'--output={output}: {output.parent} is no folder that can be written in'
    )


def _fit(path):
  """How the squares of a set were made; '': not on record; None: files."""
  if _is_prepared(path):
    return store.read_summary(path)['fit']
  manifest = _manifest(path)
  if manifest is None:
    return None
  record = manifest.with_name('config.json')
  config = record_lib.load(record) if record.is_file() else {}
  return config.get('data', {}).get('fit', '')


def _is_prepared(path):
  return (pathlib.Path(path) / 'summary.json').is_file()


def _manifest(path):
  """The training manifest of a run or a recipe, or the file that is one."""
  file = pathlib.Path(path)
  if file.is_dir():
    file = files_lib.workdir_of(file) / leakage.FILE
    return file if file.is_file() else None
  return file if file.is_file() and _is_manifest(file) else None


def _list(path, fit, workers, progress):
  """The images of a set of any kind, and lines on what is left out."""
  if _is_prepared(path):
    return _prepared(path), []
  if file := _manifest(path):
    rows = leakage.rows(file)
    hashes = [[*bytes.fromhex(row[3])] for row in rows]
    return Listed(
      str(path), [row[1] for row in rows], [row[2] for row in rows],
      np.array(hashes, np.uint8), [''] * len(rows),
    ), []  # fmt: skip
  return _files(path, fit, workers, progress)


def _is_manifest(file):
  try:
    with open(file, newline='', encoding='utf-8') as stream:
      return next(csv.reader(stream), []) == [*leakage.COLUMNS]
  except (UnicodeDecodeError, csv.Error):
    return False


def _prepared(path):
  splits = [*store.load(path).splits.values()]

  def column(name):
    return [value for split in splits for value in getattr(split, name)]

  return Listed(
    str(path), column('ids'), [str(d) for d in column('source_digests')],
    np.concatenate([split.hashes for split in splits]),
    [str(group) for group in column('groups')],
  )  # fmt: skip


def _files(path, fit, workers, progress):
  found, remarks = inputs.find(path, '')
  ids: list[str] = []
  looked: list[tuple[str, np.ndarray, str]] = []
  faults = 0
  looks = decode.ordered(
    functools.partial(_look, fit=fit), [one.path for one in found], workers
  )
  bar = tqdm.tqdm(
    zip(found, looks, strict=True), desc=f'audit {path}', total=len(found),
    unit='img', disable=not progress, dynamic_ncols=True,
  )  # fmt: skip
  for one, look in bar:
    if isinstance(look, SourceFault):
      remarks.append(f'note: {one.path}: {look}')
      faults += 1
      continue
    ids.append(one.name)
    looked.append(look)
  if not ids:
    raise UserError(f'{path}: none of its {faults} images can be read')
  digests, hashes, patients = map(list, zip(*looked, strict=True))
  listed = Listed(str(path), ids, digests, np.stack(hashes), patients, True)
  return listed, remarks


def _look(path, fit):
  """Digest, hash and patient of a file."""
  with decode.unnamed(path):
    pixels = image_file.read(path)
    patient = image_file.header(path).get('patient', '')
  square, _ = shards.square(pixels, np.zeros((0, 4)), _SIZE, fit)
  return shards.digest(pixels), duplicates.fingerprint(square), patient


def _shared(one, other):
  """(id, id, what, bits) of what both have."""
  copies = duplicates.between(
    one.digests, one.hashes, other.digests, other.hashes, _NEAR
  )
  found: list[tuple[str, str, str, int | str]] = [
    (
      one.ids[copy.first],
      other.ids[copy.second],
      'exact' if copy.exact else 'near',
      copy.distance,
    )
    for copy in copies
  ]
  if one.named and other.named:
    whose = {p: i for p, i in zip(other.patients, other.ids, strict=True) if p}
    found += [
      (id, whose[patient], 'patient', '')
      for id, patient in zip(one.ids, one.patients, strict=True)
      if patient in whose
    ]
  return found


def _line(one, other, found):
  images = [row for row in found if row[2] != 'patient']
  exact = sum(row[2] == 'exact' for row in images)
  text = (
    f'{one.path} and {other.path}: {len(images):,} of {len(one.ids):,} images'
    f' of the first are in the second ({exact:,} exactly,'
    f' {len(images) - exact:,} nearly)'
  )
  owner = dict(zip(one.ids, one.patients, strict=True))
  patients = {owner[row[0]] for row in found} - {''}
  if any(one.patients):
    text += f', of {len(patients):,} of its {len({*one.patients} - {""}):,}'
    text += ' patients'
  return text
