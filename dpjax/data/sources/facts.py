"""What lies in a folder, as `inspect` needs it: names, tables, some images.

Bounded, so that it takes seconds also where a hundred thousand files lie: of a
folder with very many subfolders only some are looked into, of a table the first
rows are read, and of the images only the names. What was not looked at,
`Facts.limits` says.
"""

import collections
import csv
import dataclasses
import functools
import gzip
import json
import os
import pathlib
import time
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dpjax.data import vocabulary
from dpjax.data.decode import formats, image_file
from dpjax.data.sources import files as files_lib
from dpjax.errors import UserError

MAX_FILES = 300_000
MAX_SUBFOLDERS = 500  # of one folder that are looked into
MAX_ROWS = 50_000  # of a table
MAX_JSON = 200 << 20  # bytes
MAX_SNIFFED = 200  # files without a known suffix whose beginning is read
SECONDS = 15

_PACKED = ('.zip', '.tar', '.tgz', '.7z', '.rar', '.gz')
# Of images and tables that nothing here reads.
_FOREIGN = ('.img', '.nii', '.npy', '.npz', '.h5', '.hdf5', '.mat', '.parquet',
            '.tfrecord', '.xlsx', '.xls', '.pkl', '.mhd')  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Table:
  """The beginning of a csv.

  Attributes:
    path: from the source.
    columns: its first row.
    rows: the rows behind that, so far as they were read.
    whole: whether those are all.
  """

  path: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  whole: bool

  @property
  def name(self) -> str:
    return self.path.rpartition('/')[2]

  def cells(self, column: str) -> list[str]:
    """The cells of a column, '' where a row is too short."""
    i = self.columns.index(column)
    return [row[i] if i < len(row) else '' for row in self.rows]

  def has(self, *columns: str) -> bool:
    """Whether it has all of these columns."""
    return set(columns) <= set(self.columns)


@dataclasses.dataclass(frozen=True)
class Facts:
  """What lies in a folder.

  Attributes:
    root: the folder.
    images: paths from it, sorted: those that the readers would take for images.
    tables: every csv.
    jsons: path of a json -> what it holds, or None where that was not read.
    packed: archives; foreign: files of forms that nothing here reads.
    linked: links to folders, which are not followed.
    limits: what was not looked at, a line each.
  """

  root: pathlib.Path
  images: tuple[str, ...]
  tables: tuple[Table, ...]
  jsons: dict[str, Any]
  packed: tuple[str, ...]
  foreign: tuple[str, ...]
  linked: tuple[str, ...]
  limits: tuple[str, ...]

  @functools.cached_property
  def by_name(self) -> dict[str, list[str]]:
    """{name of an image, bare as `bare` makes it: paths}."""
    found = collections.defaultdict(list)
    for path in self.images:
      found[bare(path)].append(path)
    return found

  @property
  def incomplete(self) -> bool:
    """Whether there may be images, or rows, that nobody looked at."""
    return bool(self.limits)

  def find(self, cell: str) -> list[str]:
    """The images that a cell may name."""
    paths = self.by_name.get(bare(cell), [])
    if not paths and self.limits and '/' in cell:
      # It may lie where nobody looked.
      for path in (cell, cell.partition('/')[2]):
        if os.path.isfile(self.root / path):
          return [path]
    folders = clean(cell).split('/')[:-1]
    for wanted in (folders, folders[1:]):  # The set's own folder may be gone.
      near = [p for p in paths if p.split('/')[-len(wanted) - 1 : -1] == wanted]
      if wanted and near:
        return near
    return paths

  def table(self, path: str) -> Table | None:
    """The table of that path."""
    return next((t for t in self.tables if t.path == path), None)

  def below(self, folder: str) -> list[str]:
    """The images in a folder and all below it."""
    return [path for path in self.images if path.startswith(f'{folder}/')]


def look(root: pathlib.Path) -> Facts:
  """Looks at a folder.

  Raises:
    UserError: it is none, or cannot be read.
  """
  if not root.is_dir():
    raise UserError(f'--source: {root} is not a folder')
  files, linked, limits = _walk(root)
  kinds = collections.defaultdict(list)
  for path in files:
    kinds[_kind(path)].append(path)
  images = kinds['image'] + _sniffed(root, kinds[''], limits)
  tables = [_read_table(root, path) for path in kinds['table'][:100]]
  for table in tables:
    if table and not table.whole:
      limits.append(f'{table.path}: the first {len(table.rows):,} rows')
  return Facts(
    root=root,
    images=tuple(sorted(images)),
    tables=tuple(filter(None, tables)),
    jsons={p: _read_json(root / p) for p in kinds['json'][:100]},
    packed=tuple(kinds['packed']),
    foreign=tuple(kinds['foreign']),
    linked=tuple(linked),
    limits=tuple(limits),
  )


def clean(cell: str) -> str:
  """A path of a table as the readers take it."""
  path = cell.strip().replace('\\', '/')
  if not path.isascii():
    path = unicodedata.normalize('NFC', path)
  while path.startswith('./'):
    path = path[2:]
  return path


def bare(path: str) -> str:
  """The name of an image for comparing: no folder, no suffix, lower case."""
  name = clean(path).rpartition('/')[2]
  stem, suffix = os.path.splitext(name)
  return (stem if suffix.lower() in formats.SUFFIXES else name).casefold()


def spread(items: Sequence[Any], count: int) -> list[Any]:
  """So many of the items at most, evenly over all."""
  if len(items) <= count:
    return list(items)
  return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def is_masks(path: str) -> bool:
  """Whether an image lies in a folder that is named after masks."""
  return any(map(vocabulary.is_masks, path.split('/')[:-1]))


def upright_size(path: pathlib.Path) -> tuple[int, int] | None:
  """Width and height of an image that the readers decode; None: they do not."""
  try:
    height, width = image_file.read(str(path)).shape
  except UserError:
    return None
  return width, height


def mask_folders(images: Iterable[str]) -> set[str]:
  """The names of the folders of masks that images lie in."""
  return {
    folder
    for path in images
    for folder in path.split('/')[:-1]
    if vocabulary.is_masks(folder)
  }


def _walk(root):
  """(files, links to folders, what was not looked at), level by level."""
  files: list[str] = []
  linked: list[str] = []
  limits: list[str] = []
  ends = time.monotonic() + SECONDS
  queue = collections.deque([''])
  while queue:
    folder = queue.popleft()
    if len(files) > MAX_FILES or time.monotonic() > ends:
      limits.append(
        f'{len(files):,} files were looked at; {len(queue) + 1:,} folders were'
        ' not'
      )
      break
    inner = []
    try:
      with os.scandir(root / folder) as entries:
        for entry in entries:
          if files_lib.is_hidden(entry.name):
            continue
          path = f'{folder}{entry.name}'
          if entry.is_dir(follow_symlinks=False):
            inner.append(f'{path}/')
          elif entry.is_dir():
            linked.append(path)
          elif entry.is_file():
            files.append(path)
    except OSError as error:
      raise UserError(
        f'{root / folder}: cannot be read: {error.strerror}'
      ) from error
    inner.sort()
    if len(inner) > MAX_SUBFOLDERS:
      limits.append(
        f'{MAX_SUBFOLDERS} of the {len(inner):,} folders in {folder or "it"}'
      )
      inner = spread(inner, MAX_SUBFOLDERS)
    queue.extend(inner)
  return sorted(files), sorted(linked), limits


def _kind(path):
  name = path.rpartition('/')[2].lower()
  suffix = os.path.splitext(name)[1]
  if suffix in formats.SUFFIXES:
    return 'image'
  if suffix == '.csv' or name.endswith('.csv.gz'):
    return 'table'
  for kind, suffixes in (
    ('json', ('.json',)),
    ('packed', _PACKED),
    ('foreign', _FOREIGN),
    ('text', ('.txt', '.md', '.pdf', '.html', '.xml', '.yaml', '.yml', '.py')),
  ):
    if suffix in suffixes:
      return kind
  return '' if name != 'dicomdir' else 'text'


def _sniffed(root, paths, limits):
  """Those of the files without a known suffix that begin like an image.

  If all that were read do, or none does, so do the others.
  """
  read = spread(paths, MAX_SNIFFED)
  found = [
    path for path in read if formats.kind(root / path) not in (None, 'BMP')
  ]
  if len(read) == len(paths):
    return found
  limits.append(f'the beginning of {len(read)} of {len(paths):,} files without'
                ' the suffix of an image')  # fmt: skip
  return list(paths) if len(found) == len(read) else found


def _read_table(root, path):
  """The Table; None where it is no text with rows."""
  opened = gzip.open if path.lower().endswith('.gz') else open
  try:
    with opened(
      root / path, 'rt', newline='', encoding='utf-8-sig', errors='replace'
    ) as file:
      lines = _stripped(csv.reader(file))
      columns = next(lines, ())
      rows: list[tuple[str, ...]] = []
      for cells in lines:
        if len(rows) == MAX_ROWS:
          return Table(path, columns, tuple(rows), False)
        rows.append(cells)
  except (OSError, EOFError, zlib.error, csv.Error):
    return None
  while columns and not columns[-1]:
    columns = columns[:-1]
  return Table(path, columns, tuple(rows), True) if columns else None


def _stripped(reader: Iterable[list[str]]) -> Iterator[tuple[str, ...]]:
  for row in reader:
    cells = tuple(cell.strip() for cell in row)
    if any(cells):
      yield cells


def _read_json(path):
  """What a json holds; None where that is not known."""
  try:
    if path.stat().st_size > MAX_JSON:
      return None
    return json.loads(path.read_text('utf-8-sig'))
  except (OSError, ValueError, RecursionError):
    return None
