"""What predict reads: an image, a folder of them, or a table of names."""

import contextlib
import pathlib
from typing import NamedTuple

from dpjax.data.decode import formats
from dpjax.data.sources import files as source_files
from dpjax.data.sources import tables
from dpjax.errors import UserError, printable
from dpjax.evaluation import files as files_lib

OVERLAYS = 'overlays'  # where predict draws
_TABLES = ('.csv', '.gz')


class Input(NamedTuple):
  """One file to look at.

  Attributes:
    name: as the answers call it: its path from the folder, or the cell, on one
      line: what is not printable stands as Python writes it ('\\n', '\\udcff'),
      and a backslash twice.
    path: where it is.
  """

  name: str
  path: str


def find(
  given: str | pathlib.Path, flag: str = '--input='
) -> tuple[list[Input], list[str]]:
  """The files that a path means, and what should be known of them.

  A folder is looked through at any depth, for images by their suffix or else
  their content; hidden files are none, nor are pictures that predict has drawn.
  Of a table the column counts that names files in its first row: absolute, or
  from the table's folder.

  Args:
    given: an image or DICOM file, a folder, or a csv.
    flag: what it was given by, for an error.

  Returns:
    the files, and lines on what was passed over.

  Raises:
    UserError: one line: nothing there, no image in it, or a table without a
      header.
  """
  path = pathlib.Path(given)
  if path.is_dir():
    files = source_files.Files(path)
    faults = tables.Faults('skip')
    files.remark_unread(faults)
    found = [
      Input(_printable(file.relative_to(files.root).as_posix()), str(file))
      for file in files.found
      if not _is_drawn(file)
    ]
    if not found:
      more = f'; {faults.remarks[0]}' if faults.remarks else ''
      raise UserError(f'{flag}{given} holds no image{more}')
    return found, faults.remarks
  if not path.exists():
    raise UserError(f'{flag}{given}: no such file or folder')
  is_table = path.suffix.lower() in _TABLES and formats.kind(path) is None
  return _of_table(path, flag) if is_table else [
    Input(_printable(path.name), str(path))
  ], []


def _of_table(table, flag):
  """The files of a csv, in its order, each once."""
  rows = [*tables.rows(table, (), tables.Faults('fail'))]
  if not rows:
    raise UserError(f'{flag}{table} has no row below its header')
  # Its first file would be taken for a header, and not be answered.
  if first := next((c for c in rows[0].cells if _is_file(table, c)), None):
    raise UserError(
      f'{flag}{table}: its first row names the file {first}; wanted a header'
      ' above it, such as file'
    )
  column = next((c for c in rows[0].cells if _is_file(table, rows[0][c])), None)
  if column is None:
    raise UserError(
      f'{rows[0]}: none of its cells ({", ".join(rows[0].cells)}) is a file;'
      f' wanted a path, absolute or from {table.parent}'
    )
  if empty := next((row for row in rows if not row[column]), None):
    raise UserError(f'{empty}: its {column!r} is empty; wanted a file')
  cells = dict.fromkeys(row[column] for row in rows)
  return [Input(_printable(cell), str(table.parent / cell)) for cell in cells]


def _printable(name):
  """A name that no reader of lines cuts, from which the file can be found."""
  return printable(name.replace('\\', '\\\\'))


def _is_drawn(file):
  """Whether predict has drawn it, in an --output inside of the --input."""
  folder = file.parent
  return (
    folder.name == OVERLAYS and (folder.parent / files_lib.ANSWERS).exists()
  )


def _is_file(table, cell):
  with contextlib.suppress(OSError, ValueError):
    return bool(cell) and (table.parent / cell).is_file()
  return False
