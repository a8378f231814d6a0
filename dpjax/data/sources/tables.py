"""Tables of a source, and what is wrong in them, row by row.

A fault is one line that names file, row and reason. `Faults` decides what
becomes of it: an error at once (`--on_error=fail`), or an entry of
quarantine.csv (`skip`).
"""

import csv
import dataclasses
import difflib
import gzip
import math
import pathlib
import re
import reprlib
import zlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dpjax.errors import SourceFault, UserError, printable

# How programs write an empty cell, in lower case.
MISSING = ('nan', 'na', 'n/a', 'null')


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a table.

  Attributes:
    file: the table.
    number: of the line in the file that it begins at, the first being 1.
    cells: column -> stripped text.
    fault: what is wrong with it, if it has another length than the header.
  """

  file: pathlib.Path
  number: int
  cells: dict[str, str]
  fault: str = ''

  def __getitem__(self, column: str) -> str:
    return self.cells.get(column, '')

  def __str__(self) -> str:
    return f'{self.file}, row {self.number}'

  def check(self) -> None:
    """Raises its fault, if it has one."""
    if self.fault:
      raise SourceFault(self.fault)


class Faults:
  """Where faults go.

  Attributes:
    found: (place, id, reason) of each that was left out, one for an image.
    left_out: ids of the images that were.
    remarks: lines on what is no fault, and should be known.
  """

  def __init__(self, on_error: str = 'fail'):
    """Opens a list; `on_error` is 'fail' or 'skip'."""
    self.on_error = on_error
    self.found: list[tuple[str, str, str]] = []
    self.left_out: set[str] = set()
    self.remarks: list[str] = []

  def add(
    self, place: Row | pathlib.Path | str, reason: str, id: str = ''
  ) -> None:
    """Notes a fault, unless its image is left out already.

    Args:
      place: the row, or the file.
      reason: in one line.
      id: of the image that is left out for it, if there is one.

    Raises:
      UserError: 'fail' is asked for: the line.
    """
    fault = printable(str(place)), printable(id), printable(reason)
    if self.on_error == 'fail':
      raise UserError(f'{fault[0]}: {fault[2]}')
    if id not in self.left_out:
      self.found.append(fault)
    if id:
      self.left_out.add(id)

  def at(self, place: Row | pathlib.Path | str, id: str = '') -> '_At':
    """Takes a `SourceFault` that the block raises for one of this place.

    The rest of the block is then left out, and nothing else.
    """
    return _At(self, place, id)


@dataclasses.dataclass(frozen=True)
class _At:
  """The block of `Faults.at`. It may swallow, as its type has to say."""

  faults: Faults
  place: Row | pathlib.Path | str
  id: str

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind: object, error: object, trace: object) -> bool:
    if not isinstance(error, SourceFault):
      return False
    self.faults.add(self.place, str(error), self.id)
    return True


def rows(
  path: pathlib.Path,
  columns: Sequence[str],
  faults: Faults,
  *,
  header: bool = True,
  check: bool = True,
) -> Iterator[Row]:
  """The rows of a csv, blank ones left out.

  A byte order mark, Windows line ends and blanks around cells are no faults,
  nor are empty cells behind the last column. A file .gz is unpacked.

  Args:
    path: the file.
    columns: that must be there, in any order; others may be.
    faults: takes rows of another length.
    header: the first row names the columns. Else they are `columns`, in order.
    check: give rows of another length to `faults`. Else they are yielded too,
      for a reader that has to leave out their image: it calls row.check().

  Raises:
    UserError: the file is missing, empty, no csv or not UTF-8, or a column is
      missing: one line.
  """
  lines = _lines(path, columns)
  names = list(columns)
  if header:
    number, names = next(lines, (1, []))
    while names and not names[-1]:
      names.pop()
    _check_header(path, number, names, columns)
  empty = True
  for number, cells in lines:
    empty = False
    fault = ''
    if len(cells) < len(names) or any(cells[len(names) :]):
      fault = f'{len(cells)} cells; wanted {len(names)}: {",".join(names)}'
    row = Row(path, number, dict(zip(names, cells, strict=False)), fault)
    if fault and check:
      faults.add(row, fault)
    else:
      yield row
  if empty and not header:
    raise UserError(f'{path}: no rows; wanted {",".join(columns)}')


def _lines(path, columns):
  """Yields (line number from 1, stripped cells), blank rows left out."""
  try:
    # Spreadsheet programs write a byte order mark: utf-8-sig skips it.
    with _open(path)(path, 'rt', newline='', encoding='utf-8-sig') as file:
      # strict: else a quote that is never closed swallows the rows behind it.
      reader = csv.reader(file, strict=True)
      number = 1
      for cells in reader:
        cells = [cell.strip() for cell in cells]
        if any(cells):
          yield number, cells
        number = reader.line_num + 1
  except FileNotFoundError as error:
    raise UserError(
      f'{path}: no such file; wanted a csv of {",".join(columns)}'
    ) from error
  except UnicodeDecodeError as error:
    raise UserError(
      f'{path}: not UTF-8 text ({_first_undecodable(path)}); save it as UTF-8'
    ) from error
  except csv.Error as error:
    raise UserError(f'{path}: not a csv file ({error})') from error
  except (OSError, EOFError, zlib.error) as error:  # the last two: of gzip
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'{path}: cannot be read: {reason}') from error


def _open(path):
  return gzip.open if path.suffix.lower() == '.gz' else open


def _first_undecodable(path):
  with _open(path)(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      try:
        line.decode('utf-8-sig' if number == 1 else 'utf-8')
      except UnicodeDecodeError:
        return f'row {number}'
  return 'its end'


def _check_header(path, number, names, columns):
  for column in columns:
    if column not in names:
      near = difflib.get_close_matches(column, names, n=1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise UserError(
        f'{path}, row {number}: no column {column!r} in the header'
        f' {",".join(names)!r}{hint}'
      )
  # Of all columns where it is not known yet which are read.
  for name in columns or filter(None, names):
    if names.count(name) > 1:
      raise UserError(f'{path}, row {number}: two columns are {name!r}')


class Where:
  """Which rows of a table are read: 'Column=Value;Other=A|B'.

  Attributes:
    columns: that it looks at.
  """

  def __init__(self, text: str):
    """Reads the condition; '' lets every row pass.

    Raises:
      UserError: one line: it is none.
    """
    self.text = text
    self._wanted = {}
    for part in filter(None, map(str.strip, text.split(';'))):
      column, equals, values = map(str.strip, part.partition('='))
      if not (column and equals):
        raise UserError(
          f'config.data.csv.where: {part!r}; wanted Column=Value, or'
          ' Column=A|B, and several with ; between them'
        )
      self._wanted[column] = {value.strip() for value in values.split('|')}
    self.columns = tuple(self._wanted)
    self._folded = {
      column: {value.casefold() for value in values}
      for column, values in self._wanted.items()
    }
    self._met: dict[str, set[str]] = {c: set() for c in self.columns}
    self._passed = not self.columns
    # Cells that differ from a wanted one in nothing but case.
    self._nearly: dict[str, set[str]] = {c: set() for c in self.columns}

  def __call__(self, row: Row) -> bool:
    """Whether the row is read."""
    passes = True
    for column, values in self._wanted.items():
      cell = row[column]
      passes &= cell in values
      if cell not in values and cell.casefold() in self._folded[column]:
        self._nearly[column].add(cell)
      if not self._passed and len(self._met[column]) < 9:
        self._met[column].add(cell)
    self._passed |= passes
    return passes

  def check(self) -> None:
    """Raises UserError if no row has passed so far: one line."""
    if not self._passed:
      met = '; '.join(
        f'{column} is {", ".join(map(repr, sorted(values)[:8]))}'
        for column, values in self._met.items()
      )
      raise UserError(f'config.data.csv.where: no row has {self.text!r}: {met}')

  def remark(self, faults: Faults) -> None:
    """Says which rows were passed over for their case alone."""
    for column, cells in self._nearly.items():
      if cells:
        some = ', '.join(map(repr, sorted(cells)[:8]))
        faults.remarks.append(
          printable(
            f'rows in which {column} is {some} are passed over, as'
            f' config.data.csv.where={self.text!r} has it in another case: add'
            ' them with | if they are wanted'
          )
        )


# An entry of a list in a cell, quoted or bare; possessive: in linear time.
_ENTRY = (
  r"""\s*+('(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+"|[^,'"\[\]\s][^,'"\[\]]*+|)"""
  r'\s*+'
)


def names(cell: str) -> tuple[str, ...]:
  """The names in a cell: 'A|B', or a list as Python writes it: "['A', 'B']".

  Raises:
    SourceFault: a list of another form.
  """
  if not cell.startswith('['):
    return tuple(name.strip() for name in cell.split('|'))
  if not re.fullmatch(rf'\[{_ENTRY}(?:,{_ENTRY})*\]', cell):
    raise SourceFault(
      f'{reprlib.repr(cell)} is no list of names, such as {["A", "B"]}'
    )
  found = (
    entry[1:-1] if entry[:1] in ('"', "'") else entry
    for entry in re.findall(f'(?:^|,){_ENTRY}(?=,|$)', cell[1:-1])
  )
  return tuple(filter(None, map(str.strip, found)))


def finding(cell: str, column: str) -> int | None:
  """What the cell of a column of findings says: 1, 0, -1, or None: nothing.

  Raises:
    SourceFault: something else.
  """
  text = cell.lower()
  if text in MISSING or not text:
    return None
  known = {'1': 1, '0': 0, '-1': -1, 'true': 1, 'false': 0}
  head, _, zeros = text.partition('.')
  value = known.get(head if not zeros.strip('0') else text)
  if value is None:
    raise SourceFault(f'{column} {cell!r}; wanted 1, 0, -1 or nothing')
  return value


def plain(column: str) -> str:
  """The name of a column without signs and in lower case."""
  return re.sub('[^a-z0-9]', '', column.lower())


def patient(cell: str) -> str:
  """The patient in a cell; '' where it says, in words too, that it has none."""
  return '' if cell.lower() in MISSING else cell


def number(text: str, what: str) -> float:
  """The finite number in a cell.

  Raises:
    SourceFault: it is none.
  """
  try:
    value = float(text)
  except ValueError:
    raise SourceFault(f'{what} {text!r} is no number') from None
  if not math.isfinite(value):
    raise SourceFault(f'{what} {text!r} is not finite')
  return value


def box(
  x: str, y: str, width: str, height: str
) -> tuple[float, float, float, float]:
  """Cells of a box's left upper corner and sides as (x0, y0, x1, y1).

  Raises:
    SourceFault: no finite numbers, or a side of 0 or less.
  """
  left, top = number(x, 'x'), number(y, 'y')
  right, bottom = left + number(width, 'width'), top + number(height, 'height')
  # Two finite numbers may add up to no finite one.
  if not (left < right < math.inf and top < bottom < math.inf):
    raise SourceFault(
      f'a box of width {width} and height {height}; wanted above 0'
    )
  return left, top, right, bottom


def corners(
  x0: str, y0: str, x1: str, y1: str
) -> tuple[float, float, float, float]:
  """Cells of a box's corners as (x0, y0, x1, y1).

  Raises:
    SourceFault: no finite numbers, or corners the wrong way round.
  """
  left, top = number(x0, 'x_min'), number(y0, 'y_min')
  right, bottom = number(x1, 'x_max'), number(y1, 'y_max')
  if right <= left or bottom <= top:
    raise SourceFault(
      f'a box from {x0}, {y0} to {x1}, {y1}; wanted x_min below x_max and y_min'
      ' below y_max'
    )
  return left, top, right, bottom


def run_length_boxes(
  masks: Iterable[str], width: int, height: int
) -> list[tuple[float, float, float, float]]:
  """The boxes (x0, y0, x1, y1) of what run-length masks cover together.

  One for each connected component, by 8 neighbours. A mask reads, as SIIM-ACR
  has it, 'GAP LENGTH GAP LENGTH ...' down the columns from the left upper
  pixel, each gap from the end of the run before it.

  Args:
    masks: of one image.
    width, height: of the frame that they count in, pixels.

  Raises:
    SourceFault: a mask of another form, or one that ends outside of the frame.
  """
  import cv2  # Training reads no masks, and imports this module.

  runs = np.concatenate([_runs(mask, width * height) for mask in masks])  # K, 2
  first = int(runs[:, 0].min()) // height  # columns
  last = int(runs[:, 1].max() - 1) // height
  covered = np.zeros((last - first + 1) * height, np.uint8)
  for start, end in runs - first * height:
    covered[start:end] = 1
  _, _, stats, _ = cv2.connectedComponentsWithStats(
    np.ascontiguousarray(covered.reshape(-1, height).T), connectivity=8
  )
  return [
    (float(first + x), float(y), float(first + x + w), float(y + h))
    for x, y, w, h, _ in stats[1:].tolist()  # the first is what is not covered
  ]


def _runs(mask, pixels):
  """(K, 2): where each run begins and ends."""
  words = mask.split()
  if not words or len(words) % 2 or not all(w.isdecimal() for w in words):
    raise SourceFault(
      f'mask {reprlib.repr(mask)}; wanted -1, or pairs of gap and length'
    )
  if any(len(word) > 10 for word in words):
    raise SourceFault(f'mask {reprlib.repr(mask)} ends outside of the image')
  ends = np.cumsum(np.array(words, np.int64)).reshape(-1, 2)
  if (ends[:, 1] == ends[:, 0]).any():
    raise SourceFault(f'mask {reprlib.repr(mask)} has a run of length 0')
  if ends[-1, 1] > pixels:
    raise SourceFault(f'mask {reprlib.repr(mask)} ends outside of the image')
  return ends
