"""What is wrong with boxes in any source: units, and lesions drawn twice."""

import re
from collections.abc import Iterable, Sequence

from dpjax.data import radiograph
from dpjax.data.sources import tables
from dpjax.errors import SourceFault, UserError

# Boxes of which intersection over union is as much are, most likely, of one
# lesion that was drawn twice.
NEAR = 0.85


# What columns are called, without case and signs.
_OF = {
  'x': ('xmin', 'minx', 'xmax', 'maxx', 'x', 'x0', 'x1', 'x2', 'left', 'right',
        'width', 'w'),
  'y': ('ymin', 'miny', 'ymax', 'maxy', 'y', 'y0', 'y1', 'y2', 'top', 'bottom',
        'height', 'h'),
}  # fmt: skip
_SIDES = ('width', 'w', 'height', 'h')
# Of the third and fourth column.
_FAR = ('xmax', 'maxx', 'x1', 'x2', 'right', 'ymax', 'maxy', 'y1', 'y2',
        'bottom')  # fmt: skip


def check(
  records: Sequence[radiograph.Radiograph], faults: tables.Faults, hint: str
) -> list[radiograph.Radiograph]:
  """The records that are right, of those of a source.

  An image with the same box twice is a fault: its lesions would be counted
  wrong. So is one with a box in shares of it among others in pixels. One with
  boxes that are nearly the same is remarked upon.

  Args:
    records: as read.
    faults: takes what is wrong with an image.
    hint: see `check_unit`.

  Raises:
    UserError: one line: no box is in pixels.
  """
  framed = [r for r in records if r.boxes and r.frame != radiograph.UNIT]
  if framed:
    place = f'{framed[0].where or framed[0].id} and all others'
    check_unit((box for r in framed for box in r.boxes), place, hint)
  kept, near = [], []
  for record in records:
    with faults.at(record.where or record.id, record.id):
      _check_twice(record)
      _check_shares(record)
      kept.append(record)
      near += [record] * _has_near(record.boxes)
  if near:
    some = len(near) > 1
    faults.remarks.append(
      f'{len(near)} image{"s have" if some else " has"} boxes that nearly'
      f' coincide (IoU of {NEAR} or more), such as {near[0].id}: the label'
      ' "count" counts each; look whether one lesion was drawn twice'
    )
  return kept


def check_unit(
  boxes: Iterable[radiograph.Box], place: object, hint: str
) -> None:
  """Refuses boxes that all lie in 0..1: they are shares and no pixels.

  Args:
    boxes: of a table or json that counts in pixels.
    place: that has them.
    hint: how such boxes are read.

  Raises:
    UserError: one line.
  """
  boxes = list(boxes)
  if boxes and max(max(box) for box in boxes) <= 1:
    raise UserError(
      f'{place}: all boxes lie in 0..1, so they are shares of the image and no'
      f' pixels; {hint}'
    )


def check_form(columns: Sequence[str], form: str) -> None:
  """Refuses columns of boxes whose names say another form.

  Args:
    columns: four.
    form: 'sides': of the left upper corner's x and y, width and height;
      'corners': of its x and y, and of those of the right lower corner.

  Raises:
    UserError: one line.
  """
  plain = [re.sub('[^a-z0-9]', '', column.lower()) for column in columns]
  field = 'config.data.csv.box_'
  for name, column in zip(plain[2:], columns[2:], strict=True):
    if form == 'sides' and name in _FAR:
      raise UserError(
        f'{field}columns: {column!r} is a corner by its name, and not a side;'
        f' say --{field}form=corners, and the columns in the order of left,'
        ' top, right, bottom'
      )
    if form == 'corners' and name in _SIDES:
      raise UserError(
        f'{field}columns: {column!r} is a side by its name, and {field}form is'
        ' corners; say sides'
      )
  for name, column, axis in zip(plain, columns, 'xyxy', strict=True):
    if name in _OF['x' if axis == 'y' else 'y']:
      raise UserError(
        f'{field}columns: {column!r} stands where {axis} is wanted; the order'
        ' is x, y, x, y'
      )


def overlap(a: radiograph.Box, b: radiograph.Box) -> float:
  """Intersection over union of two boxes."""
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  if width <= 0 or height <= 0:
    return 0.0
  shared = width * height
  areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
  union = sum(areas) - shared
  return shared / union if union > 0 else 0.0  # too small for a float


def _check_twice(record):
  names = record.names or ('',) * len(record.boxes)
  seen = set()
  for box, name in zip(record.boxes, names, strict=True):
    if (box, name) in seen:
      corners = ', '.join(f'{value:g}' for value in box)
      raise SourceFault(
        f'the same box stands there twice: {corners}'
        + f' ({name})' * bool(name)
        + '; was the image labelled twice?'
      )
    seen.add((box, name))


def _check_shares(record):
  if record.frame == radiograph.UNIT:
    return
  for box in record.boxes:
    if max(box) <= 1:
      corners = ', '.join(f'{value:g}' for value in box)
      raise SourceFault(
        f'the box {corners} lies in 0..1, as shares of the image do, and others'
        ' count in pixels; write it in pixels too'
      )


def _has_near(boxes):
  return any(
    overlap(a, b) >= NEAR for i, a in enumerate(boxes) for b in boxes[:i]
  )
