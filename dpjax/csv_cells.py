"""Cells of csv files that no spreadsheet runs.

A spreadsheet program takes a cell that begins with =, +, -, @, a tab or a
carriage return for a formula, and an id or the name of a class may begin so.
Such a text is written with an apostrophe before it, and one that begins with
apostrophes and then such a sign with one more; `read` takes one away. Numbers
stay numbers, negative ones too. Files without these apostrophes, of earlier
versions, read as they are.

Source: OWASP, CSV Injection.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")
_NUMBER = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf', re.I)


def harmless(cell: object) -> object:
  """A cell as it is written: a text that would be run gets an apostrophe."""
  if not isinstance(cell, str) or _NUMBER.fullmatch(cell):
    return cell
  return f"'{cell}" if _FORMULA.match(cell) else cell


def original(cell: str) -> str:
  """The text of a cell that `harmless` made."""
  return cell[1:] if _GUARDED.match(cell) else cell


def write(
  stream: TextIO, rows: Iterable[Sequence[object]], lineterminator: str = '\n'
) -> None:
  """Writes rows of harmless cells to a text stream (opened with newline='')."""
  plain = csv.writer(stream, lineterminator=lineterminator)
  # Before Python 3.13 a carriage return alone is not quoted, and ends the row.
  quoted = csv.writer(
    stream, lineterminator=lineterminator, quoting=csv.QUOTE_ALL
  )
  for row in rows:
    cells = [*map(harmless, row)]
    returns = any(isinstance(cell, str) and '\r' in cell for cell in cells)
    (quoted if returns else plain).writerow(cells)


def read(stream: Iterable[str]) -> Iterator[list[str]]:
  """The rows that `write` has written, or others have.

  Raises:
    csv.Error: a row is none.
  """
  for row in csv.reader(stream):
    yield [*map(original, row)]
