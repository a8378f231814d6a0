"""Rows of cells as lines of text whose columns are aligned."""

from collections.abc import Sequence


def pad(
  rows: Sequence[Sequence[str]], sides: str, least: Sequence[int] = (0,)
) -> list[list[str]]:
  """Pads each cell to the width of its column.

  Args:
    rows: of one length, the head among them.
    sides: of each column '<' (words, to the left) or '>' (numbers, to the
      right); the last one goes for all further columns.
    least: of each column the least width; likewise.
  """
  columns = [*zip(*rows, strict=True)]
  formats = []
  for i, cells in enumerate(columns):
    side, width = (of[min(i, len(of) - 1)] for of in (sides, least))
    formats.append(f'{side}{max(width, *map(len, cells))}')
  return [[*map(format, row, formats)] for row in rows]


def lines(
  rows: Sequence[Sequence[str]],
  sides: str,
  least: Sequence[int] = (0,),
  gap: str = '  ',
) -> list[str]:
  """Those cells in lines, `gap` between them and no blanks at the end."""
  return [gap.join(row).rstrip() for row in pad(rows, sides, least)]
