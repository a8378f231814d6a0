"""The layout of the paper's own source, the competition it took its set from.

    train/{id}.jpg       or .png; any size
    train.csv            no header: id,label; label = number of lesion boxes
    train_bboxes.csv     filename,x,y,width,height; filename = id; pixels of
                         the stored image; no row = no lesion
    test/, test.csv, test_bboxes.csv   likewise, if there; kept as the test part

The source has no patient ids, so each image is its own group. A test folder
without test.csv has no labels and is left alone.
"""

import csv
import math
import pathlib

from dpjax.data import radiograph

_BOX_HEADER = ['filename', 'x', 'y', 'width', 'height']


def read(source: str | pathlib.Path) -> list[radiograph.Radiograph]:
  """Reads the tables of the set in the folder `source`; decodes no image.

  Raises:
    ValueError: one line that names file, row and reason.
  """
  source = pathlib.Path(source)
  if not (source / 'train.csv').is_file():
    raise ValueError(
      f'config.data.source: {source} has no train.csv; it must be a folder in'
      " the competition's layout (docs/datasets.md)"
    )
  records = _read_part(source, 'train', split=None)
  # Either file says that the part is labelled; the other one is then missed.
  if any((source / f'test{end}.csv').exists() for end in ('', '_bboxes')):
    records += _read_part(source, 'test', split='test')
  return records


def _read_part(source, part, split):
  labels = _read_labels(source / f'{part}.csv')
  boxes = _read_boxes(source / f'{part}_bboxes.csv', labels)
  records = []
  for id, (label, row) in labels.items():
    where = f'{source / part}.csv, row {row}'
    if len(boxes[id]) != label:
      raise ValueError(
        f'{where}: label {label} of {id}, but {len(boxes[id])} boxes in'
        f' {part}_bboxes.csv; the label counts them'
      )
    files = [source / part / f'{id}.{end}' for end in ('jpg', 'png')]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
      raise ValueError(f'{where}: {files[0]} is missing (nor is there a .png)')
    records.append(
      radiograph.from_file(
        found,
        # The two parts number their images alike.
        id=f'{part}/{id}',
        label=label,
        boxes=tuple(boxes[id]),
        split=split,
      )
    )
  return records


def _rows(path, content):
  """Yields (row from 1, stripped cells), blank rows left out."""
  try:
    # Spreadsheet programs write a byte order mark: utf-8-sig skips it.
    with open(path, newline='', encoding='utf-8-sig') as file:
      for row, cells in enumerate(csv.reader(file), 1):
        cells = [cell.strip() for cell in cells]
        if any(cells):
          yield row, cells
  except FileNotFoundError as error:
    raise ValueError(f'{path}: no such file; it must hold {content}') from error
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8 text') from error
  except csv.Error as error:
    raise ValueError(f'{path}: not a csv file ({error})') from error


def _read_labels(path):
  """{id: (label, row)} in the file's order."""
  labels = {}
  for row, cells in _rows(path, 'id,label'):
    where = f'{path}, row {row}'
    if len(cells) != 2:
      raise ValueError(f'{where}: {len(cells)} cells; wanted id,label')
    id, label = cells
    if not label.isdecimal():
      raise ValueError(
        f'{where}: label {label!r} is no whole number of 0 or more (the file'
        ' has no header)'
      )
    # A csv names files of its own folder and no others. An unprintable id
    # would break the one line of any later error.
    plain = id == pathlib.PurePath(id).name and id != '..' and id.isprintable()
    if not (id and plain):
      raise ValueError(f'{where}: {id!r} cannot name an image')
    if id in labels:
      raise ValueError(f'{where}: {id} stands in the file twice')
    labels[id] = int(label), row
  if not labels:
    raise ValueError(f'{path}: no rows; wanted id,label')
  return labels


def _read_boxes(path, labels):
  """{id: [(x0, y0, x1, y1)]} in pixels, for every id of `labels`."""
  boxes = {id: [] for id in labels}
  wanted = f'the header {",".join(_BOX_HEADER)} and a row for each lesion'
  rows = _rows(path, wanted)
  row, header = next(rows, (1, []))
  if header != _BOX_HEADER:
    raise ValueError(f'{path}, row {row}: wanted {wanted}')
  for row, cells in rows:
    where = f'{path}, row {row}'
    if len(cells) != 5:
      raise ValueError(f'{where}: {len(cells)} cells; wanted 5')
    if cells[0] not in boxes:
      raise ValueError(f'{where}: {cells[0]!r} is not in the label file')
    try:
      x, y, width, height = (float(cell) for cell in cells[1:])
    except ValueError:
      raise ValueError(f'{where}: {cells[1:]} are not four numbers') from None
    if not all(map(math.isfinite, (x, y, width, height))) or not (
      width > 0 and height > 0
    ):
      raise ValueError(
        f'{where}: x, y, width, height {cells[1:]}; wanted finite numbers and'
        ' a width and height above 0'
      )
    boxes[cells[0]].append((x, y, x + width, y + height))
  return boxes
