"""Reads the layout of the paper's own source, the yanxishe.com/23 competition.

    train.csv          id,label                     (no header)
    train_bboxes.csv   filename,x,y,width,height    (header; filename = id)
    train/{id}.jpg     or .jpeg or .png, of any size

and likewise `test`, where the source has it. A box is in pixels of the stored
image; an image without a box has no lesion, and the label is the number of
boxes. The csv files decide: other files in the folders are not looked at.
"""

import csv
import functools
import math
import os
import pathlib

from dpjax.data import radiograph

_BOX_HEADER = ['filename', 'x', 'y', 'width', 'height']
_SUFFIXES = ('.jpg', '.jpeg', '.png')

_Box = tuple[float, float, float, float]


def read(source: str | os.PathLike) -> list[radiograph.Radiograph]:
  """Reads the set in the folder `source`; no image is opened.

  Ids are 'train/7' and 'test/7', since both parts may count from 0. The source
  names no patients, so each image is its own group. A test part with neither
  of its csv files is read with label None: it is never evaluated.

  Args:
    source: the folder that holds train.csv.

  Raises:
    ValueError: one line that names the file, the row and the wanted form: a
      missing file, a malformed row, an image that is not there, or a label
      that is not the image's number of boxes.
  """
  source = pathlib.Path(source)
  if not source.is_dir():
    raise ValueError(f'{source}: no such folder; it must hold train.csv')
  radiographs = _read_labelled(source, 'train')
  if any((source / name).exists() for name in ('test.csv', 'test_bboxes.csv')):
    radiographs += _read_labelled(source, 'test')
  elif (source / 'test').is_dir():
    radiographs += _read_unlabelled(source, 'test')
  return radiographs


def _read_labelled(source, part):
  """The Radiographs of {part}.csv, in its order."""
  labels = _read_labels(source / f'{part}.csv')
  boxes = _read_boxes(source / f'{part}_bboxes.csv', labels)
  images = _find_images(source / part)
  for name, (row, label) in labels.items():
    where = f'{source / part}.csv, row {row}'
    if name not in images:
      raise ValueError(
        f'{where}: {part}/{name}.jpg is not there, nor as .jpeg or .png'
      )
    if label != len(boxes[name]):
      raise ValueError(
        f'{where}: the label of {name} is {label}, but {part}_bboxes.csv holds'
        f' {len(boxes[name])} boxes; it must be the number of boxes'
      )
  return [
    _radiograph(part, name, images[name], label, tuple(boxes[name]))
    for name, (_, label) in labels.items()
  ]


def _read_unlabelled(source, part):
  """The Radiographs of a folder without csv files, sorted by name."""
  images = _find_images(source / part)
  return [
    _radiograph(part, name, images[name], None, ()) for name in sorted(images)
  ]


def _radiograph(part, name, image, label, boxes):
  identity = f'{part}/{name}'
  return radiograph.Radiograph(
    id=identity,
    pixels=functools.partial(radiograph.read_grey, image),
    label=label,
    boxes=boxes,
    group=identity,
    split=part,
    box_units='pixels',
  )


def _read_labels(path: pathlib.Path) -> dict[str, tuple[int, int]]:
  """Returns id -> (row, label), in the order of the file."""
  labels = {}
  for row, cells in _rows(path):
    wanted = 'must be id,label (no header; a label is an integer, 0 or more)'
    if len(cells) != 2 or not cells[0] or not _is_count(cells[1]):
      raise ValueError(f'{path}, row {row}: {",".join(cells)!r} {wanted}')
    name = cells[0]
    if name in labels:
      raise ValueError(
        f'{path}, row {row}: {name} is already in row {labels[name][0]}; every'
        ' image must have one row'
      )
    labels[name] = (row, int(cells[1]))
  if not labels:
    raise ValueError(f'{path}: no rows; it must hold id,label for every image')
  return labels


def _read_boxes(path: pathlib.Path, names) -> dict[str, list[_Box]]:
  """Returns id -> [(x0, y0, x1, y1), ...] in pixels, for each of `names`."""
  boxes = {name: [] for name in names}
  rows = _rows(path)
  header = next(rows, (1, []))[1]
  if header != _BOX_HEADER:
    raise ValueError(
      f'{path}, row 1: {",".join(header)!r} must be the header'
      f' {",".join(_BOX_HEADER)!r}'
    )
  for row, cells in rows:
    where = f'{path}, row {row}: {",".join(cells)!r}'
    try:
      name = cells[0]
      x, y, width, height = map(float, cells[1:])
    except (IndexError, ValueError):
      raise ValueError(
        f'{where} must be {",".join(_BOX_HEADER)} with four numbers'
      ) from None
    if name not in boxes:
      raise ValueError(f'{where}: {name!r} must be an id of the other csv file')
    if not all(map(math.isfinite, (x, y, width, height))):
      raise ValueError(f'{where}: the four numbers must be finite')
    if width <= 0 or height <= 0:
      raise ValueError(f'{where}: width and height must be positive')
    boxes[name].append((x, y, x + width, y + height))
  return boxes


def _rows(path):
  """Yields (row counted from 1, stripped cells) of the rows that hold any."""
  try:
    # utf-8-sig: spreadsheet programs put a byte order mark before row 1.
    with open(path, encoding='utf-8-sig', newline='') as file:
      reader = csv.reader(file)
      for cells in reader:
        if any(cells):
          yield reader.line_num, [cell.strip() for cell in cells]
  except FileNotFoundError:
    raise ValueError(f'{path}: no such file; the layout needs it') from None
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f'{path}: must be a csv file in UTF-8 ({error})') from None


def _is_count(text):
  return text.isascii() and text.isdigit()


def _find_images(folder: pathlib.Path) -> dict[str, str]:
  """Returns id -> path of the image files in `folder`, by one listing."""
  if not folder.is_dir():
    raise ValueError(f'{folder}: no such folder; it must hold the images')
  images = {}
  with os.scandir(folder) as entries:
    for entry in entries:
      name, suffix = os.path.splitext(entry.name)
      if suffix.lower() not in _SUFFIXES:
        continue
      if name in images:
        raise ValueError(
          f'{entry.path}: {name} has two image files; it must have one'
        )
      images[name] = entry.path
  return images
