"""A prepared set: a TFDS set of uint8 squares, and a table beside it.

A folder with, for a set named NAME,

    NAME-SPLIT.array_record-0000I-of-0000N   the images
    features.json, dataset_info.json         what makes it a TFDS set
    table.npz        ids, labels, boxes, patients, digests, metadata; read whole
    manifest.csv     the same for people
    summary.json     counts, what was clipped, where it came from
    duplicates.csv   copies, if there are any
    left_out.csv     images that are in no split, if there are any
    odd_images.csv   nearly flat, dark or saturated images, if there are any
    quarantine.csv   what was left out with --on_error=skip, if anything

build.py makes it; it is written and read without TensorFlow.
"""

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import threading
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from dpjax import csv_cells
from dpjax.errors import UserError

FORMAT = 3  # of the folder; a change voids older ones
SPLITS = ('train', 'validation', 'test', 'unlabelled')
METADATA = 'metadata '  # begins the names of such columns
MANIFEST = ('id', 'split', 'label', 'patient', 'num_boxes', 'boxes', 'sha256',
            'source_xxh3', 'perceptual_hash')  # fmt: skip


def read_table(file: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of an .npz."""
  # numpy leaves a file open that it cannot read, unless it was opened for it.
  with open(file, 'rb') as stream, np.load(stream, allow_pickle=False) as rows:
    return dict(rows)


class Rows(Protocol):
  """Radiographs to read: a `Split`, or a part of one; its attributes."""

  @property
  def ids(self) -> np.ndarray: ...

  @property
  def labels(self) -> np.ndarray: ...

  @property
  def boxes(self) -> np.ndarray: ...

  @property
  def num_boxes(self) -> np.ndarray: ...

  @property
  def groups(self) -> np.ndarray: ...

  def __len__(self) -> int: ...

  def images(self, indices: np.ndarray) -> np.ndarray: ...

  def check_unchanged(self) -> None: ...


@dataclasses.dataclass
class Split:
  """One split: its table in memory, its images on demand.

  Attributes:
    ids: (N,) str.
    labels: (N,) int32; -1: unlabelled.
    boxes: (N, K, 4) float32 in 0..1, padded with zeros to the set's maximum.
    num_boxes: (N,) int32.
    groups: (N,) int32, number of the patient.
    digests: (N,) str, sha256 of the stored pixels.
    source_digests: (N,) str, of the decoded image (shards.digest).
    hashes: (N, 32) uint8, perceptual hash (duplicates.fingerprint).
    metadata: column -> (N,) str; '' where unknown.
    size: side of the images, pixels.
    files: the array_record files, in order.
  """

  ids: np.ndarray
  labels: np.ndarray
  boxes: np.ndarray
  num_boxes: np.ndarray
  groups: np.ndarray
  digests: np.ndarray
  source_digests: np.ndarray
  hashes: np.ndarray
  metadata: dict[str, np.ndarray]
  size: int
  files: tuple[str, ...]

  def __post_init__(self) -> None:
    self._source: Any = None  # of array_record, which has no types
    self._stamps = {file: _stamp(file) for file in self.files}
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self.ids)

  def __getstate__(self) -> dict[str, Any]:
    # A reader does not travel to another process; it opens there anew.
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self.__post_init__()

  def images(self, indices: np.ndarray) -> np.ndarray:
    """The stored squares (B, S, S) uint8 of records `indices` (B,).

    Raises:
      UserError: one is damaged.
    """
    if len(indices) == 0:
      return np.empty((0, self.size, self.size), np.uint8)
    self._open()
    images = np.empty((len(indices), self.size, self.size), np.uint8)
    for image, index in zip(images, indices, strict=True):
      # One by one: a list of records is read by threads of its own, which
      # costs more than it gains beside the threads of the pipeline.
      with self._reading():
        record = self._source[int(index)]
      try:
        start, stop = _payload(record, b'image')
      except (StopIteration, KeyError, IndexError):  # No record of ours.
        start = stop = 0
      if stop - start != image.size:
        raise self._unreadable('it is no square of this set')
      image[...] = np.frombuffer(record, np.uint8, image.size, start).reshape(
        image.shape
      )
    return images

  def check_unchanged(self) -> None:
    """Checks that the files are those that were opened; reads none of them.

    Raises:
      UserError: another set, or nothing, has come in their place.
    """
    for file, stamp in self._stamps.items():
      if _stamp(file) != stamp:
        raise UserError(
          f'{file} was changed while it was in use; prepare it again, and the'
          ' same command goes on from the newest checkpoint'
        )

  def _open(self):
    with self._lock:
      if self._source is None:
        from array_record.python import array_record_data_source

        with self._reading():
          self._source = array_record_data_source.ArrayRecordDataSource(
            list(self.files)
          )

  @contextlib.contextmanager
  def _reading(self):
    try:
      yield
    # Of the reader: a checksum or an index that does not fit, no such file.
    except (RuntimeError, ValueError, OSError) as error:
      raise self._unreadable(str(error).partition('\n')[0]) from error

  def _unreadable(self, reason):
    folder = pathlib.Path(self.files[0]).parent
    return UserError(
      f'{folder}: an image cannot be read ({reason}); prepare it again'
    )


def _stamp(file):
  """What tells a file from one that has come in its place; None: no file."""
  try:
    found = os.stat(file)
  except FileNotFoundError:
    return None
  return found.st_size, found.st_mtime_ns


def _payload(record, name):
  """Where the bytes of feature `name` stand in a serialised tf.Example.

  Example {1: Features {1: repeated entry {1: name, 2: Feature {1: BytesList
  {1: bytes}}}}}, in protobuf's wire format. Read here since the library that
  reads it, tfds, imports OpenCV, and a copy less.
  """
  _, start, stop = next(_fields(record, 0, len(record)))  # Features
  for _, entry, end in _fields(record, start, stop):
    parts = {field: (a, b) for field, a, b in _fields(record, entry, end)}
    if record[slice(*parts[1])] == name:
      _, a, b = next(_fields(record, *parts[2]))  # BytesList
      _, a, b = next(_fields(record, a, b))  # its first value
      return a, b
  raise UserError(f'a record has no feature {name!r}')


def _fields(record, position, stop):
  """Yields (field, start, stop) of length-delimited protobuf fields."""
  while position < stop:
    field = record[position] >> 3
    length, shift = 0, 0
    while True:
      position += 1
      byte = record[position]
      length |= (byte & 0x7F) << shift
      shift += 7
      if byte < 0x80:
        break
    position += 1
    yield field, position, position + length
    position += length


@dataclasses.dataclass(frozen=True)
class Store:
  """A prepared set.

  Attributes:
    path: its folder.
    size: side of the images, pixels.
    num_classes: classes 0..num_classes - 1.
    class_names: of each.
    splits: name -> Split, those that are there.
    info: summary.json.
  """

  path: str
  size: int
  num_classes: int
  class_names: tuple[str, ...]
  splits: dict[str, Split]
  info: dict[str, Any]

  def split(self, name: str) -> Split:
    """The split `name`.

    Raises:
      UserError: the set has none of that name.
    """
    if name not in self.splits:
      raise UserError(
        f'{self.path} has no split {name}; it has {", ".join(self.splits)}'
      )
    return self.splits[name]


def read_summary(path: str | pathlib.Path) -> dict[str, Any]:
  """summary.json of a prepared set; nothing else is read.

  Raises:
    UserError: one line: no set there, or one of another format.
  """
  path = pathlib.Path(path)
  try:
    info = json.loads((path / 'summary.json').read_text())
    found = info['format']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'config.data.path: {path} is not a prepared set; make one with python -m'
      ' dpjax.main prepare'
    ) from error
  if found != FORMAT:
    raise UserError(
      f'config.data.path: {path} has format {found} and this is {FORMAT};'
      ' prepare it again'
    )
  return info


def load(path: str | pathlib.Path) -> Store:
  """Opens a prepared set; reads its table and no image.

  Raises:
    UserError: one line: no set there, or not a whole one.
  """
  path = pathlib.Path(path)
  info = read_summary(path)
  try:
    table = read_table(path / 'table.npz')
    tfds_info = json.loads((path / 'dataset_info.json').read_text())
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(
      f'config.data.path: {path} is not whole ({error}); prepare it again'
    ) from error
  num_bytes = {s['name']: int(s['numBytes']) for s in tfds_info['splits']}
  splits = {}
  for name in SPLITS:
    rows = table['splits'] == name
    if not rows.any():
      continue
    pattern = f'{info["name"]}-{name}.array_record-?????-of-?????'
    files = sorted(path.glob(pattern))
    there = sum(file.stat().st_size for file in files)
    if there != num_bytes[name]:
      raise UserError(
        f'config.data.path: {path} has {there} of {num_bytes[name]} bytes of'
        f' {name}: a file is missing or cut short; prepare it again'
      )
    columns = ('ids', 'labels', 'boxes', 'num_boxes', 'groups', 'digests',
               'source_digests', 'hashes')  # fmt: skip
    splits[name] = Split(
      **{column: table[column][rows] for column in columns},
      metadata={
        column.removeprefix(METADATA): table[column][rows]
        for column in table
        if column.startswith(METADATA)
      },
      size=info['size'],
      files=tuple(map(str, files)),
    )
  return Store(
    path=str(path),
    size=info['size'],
    num_classes=info['num_classes'],
    class_names=tuple(info['class_names']),
    splits=splits,
    info=info,
  )


def manifest(table: dict[str, np.ndarray]) -> Iterator[Sequence[str]]:
  """The rows of manifest.csv, the header first: the table, for people.

  Args:
    table: of table.npz.
  """
  boxes = (
    ';'.join(' '.join(f'{v:.9g}' for v in box) for box in own[:count])
    for own, count in zip(table['boxes'], table['num_boxes'], strict=True)
  )
  columns = (
    table['ids'],
    table['splits'],
    table['labels'],
    table['groups'],
    table['num_boxes'],
    boxes,
    table['digests'],
    table['source_digests'],
    (row.tobytes().hex() for row in table['hashes']),
  )
  metadata = {
    name: column for name, column in table.items() if name.startswith(METADATA)
  }
  yield [*MANIFEST, *(name.removeprefix(METADATA) for name in metadata)]
  for row in zip(*columns, *metadata.values(), strict=True):
    yield [str(cell) for cell in row]


def verify(path: str | pathlib.Path) -> int:
  """Checks a prepared set against its manifest: every image, every cell.

  Returns:
    The number of images.

  Raises:
    UserError: one line: what is missing, added or changed, the first of it.
  """
  data = load(path)
  file = pathlib.Path(path) / 'manifest.csv'
  for name in ('features.json', 'label.labels.txt'):
    if not (pathlib.Path(path) / name).is_file():
      raise UserError(f'{path}: {name} is missing; prepare it again')
  try:
    with open(file, newline='', encoding='utf-8') as stream:
      written = [*csv_cells.read(stream)]
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise UserError(f'{file}: not a readable manifest ({error})') from error
  found = [*manifest(read_table(pathlib.Path(path) / 'table.npz'))]
  for wanted, row in itertools.zip_longest(written, found, fillvalue=()):
    if wanted != row:
      cells = itertools.zip_longest(found[0], wanted, row)
      column, there, here = next(cell for cell in cells if cell[1] != cell[2])
      raise UserError(
        f'{path}: {(row or wanted)[0]} is not as {file} has it: {column}'
        f' {here!r}, there {there!r}; prepare it again'
      )
  for name, split in data.splits.items():
    for start in range(0, len(split), 256):
      rows = np.arange(start, min(start + 256, len(split)))
      for number, image in zip(rows, split.images(rows), strict=True):
        if hashlib.sha256(image).hexdigest() != split.digests[number]:
          raise UserError(
            f'{path}: the image of {split.ids[number]} in {name} is not as'
            f' {file.name} has it (sha256); prepare it again'
          )
  return len(found) - 1
