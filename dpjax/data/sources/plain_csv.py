"""A table with a row an image, and perhaps one with a row a lesion.

    images/1.png ...        anywhere in the source
    labels.csv              image,label,patient_id,split; the last two if there
    boxes.csv               image,x,y,width,height and perhaps finding; if there

The columns may have any names (config.data.csv). `image` is the file's name,
with or without its suffix, or its path from the source. A label is the name of
a class, or several with | between them; a number must be whole and 0 or more.
An empty one leaves the image unlabelled, boxes or not. A box is in pixels of
the stored image, x and y of its left upper corner.
"""

import math
import pathlib
from collections.abc import Sequence

from dpjax.data import radiograph, vocabulary
from dpjax.data.sources import files as files_lib
from dpjax.data.sources import folder, tables
from dpjax.errors import SourceFault, UserError

# How programs write an empty cell, in lower case.
_MISSING = ('nan', 'na', 'n/a', 'null')


def read(
  source: str | pathlib.Path,
  faults: tables.Faults,
  *,
  labels: str = 'labels.csv',
  image: str = 'image',
  label: str = 'label',
  patient: str = 'auto',
  split: str = 'auto',
  metadata: Sequence[str] = (),
  boxes: str = 'auto',
  box_image: str = 'image',
  box_columns: Sequence[str] = ('x', 'y', 'width', 'height'),
  box_name: str = 'auto',
  frame: Sequence[float] = (),
  patient_pattern: str = '',
) -> list[radiograph.Radiograph]:
  """Reads the tables of the set in the folder `source`; decodes no image.

  Args:
    source: the folder.
    faults: takes what is wrong with a row or an image.
    labels: the table of images, in the source.
    image, label, patient, split: its columns; all but `image` may be '': none.
      'auto': patient_id and split, if they are there.
    metadata: more columns, to be carried as text.
    boxes: the table of boxes; 'auto': boxes.csv, if it is there; '': none.
    box_image, box_columns, box_name: its columns; 'auto': finding, if it is
      there.
    frame: width and height that boxes count in, if not the image's.
    patient_pattern: see folder.patients; for images without a patient in the
      table.

  Raises:
    UserError: one line: a table or column that is missing, or a bad setting.
  """
  if frame and not (len(frame) == 2 and all(map(_is_length, frame))):
    raise UserError(
      f'config.data.csv.frame: {tuple(frame)}; wanted a width and a height'
    )
  if len(box_columns) != 4:
    raise UserError(
      f'config.data.csv.box_columns: {tuple(box_columns)}; wanted four, of x,'
      ' y, width and height'
    )
  files = files_lib.Files(source)
  table = files.root / labels
  there = folder.header(table, [image])
  patient = _column(patient, 'patient_id', there)
  split = _column(split, 'split', there)
  names = folder.patients(files.found, patient_pattern)

  records, out, row = {}, set(), None
  wanted = [image, *filter(None, [label, patient, split]), *metadata]
  for row in tables.rows(table, wanted, faults, check=False):
    file = None
    with faults.at(row, row[image]):
      file = files.find(row[image])
      if file in out:
        continue
      if file in records:
        # The rows may differ, and neither can be trusted.
        id = records.pop(file).id
        out.add(file)
        faults.add(row, f'{id} stands in the table twice', id)
        continue
      row.check()
      classes = _classes(row[label] if label else '')
      records[file] = files_lib.record(
        file,
        row[image],
        classes=classes,
        findings=tuple(n for n in classes if not vocabulary.is_normal(n))
        if classes
        else None,
        group=(row[patient] if patient else '') or names[file],
        split=_split(row[split]) if split else None,
        frame=tuple(frame) or None,
        metadata={column: row[column] for column in metadata},
        where=str(row),
      )
      continue
    out.add(file)
  if row is None:
    raise UserError(f'{table}: no rows; wanted one for each image')
  files.add_unnamed(faults, table)

  if boxes == 'auto':
    boxes = 'boxes.csv' if (files.root / 'boxes.csv').exists() else ''
  if boxes:
    table = files.root / boxes
    there = folder.header(table, [box_image])
    records = folder.with_boxes(
      records,
      table,
      files,
      faults,
      image=box_image,
      columns=box_columns,
      name=_column(box_name, 'finding', there),
    )
  return list(records.values())


def _column(name, usual, there):
  """The column that is meant; '': none."""
  if name == 'auto':
    return usual if usual in there else ''
  return name


def _is_length(value):
  return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _classes(cell):
  """The names in a label cell, each once."""
  if not cell:
    return ()
  names = [name.strip() for name in cell.split('|')]
  if not all(name and name.isprintable() for name in names):
    raise SourceFault(f'label {cell!r}; wanted names with | between them')
  for name in names:
    if name.lower() in _MISSING:
      raise SourceFault(f'label {name!r}; an empty cell leaves it unlabelled')
    if not name.isdecimal() and _is_number(name):
      raise SourceFault(
        f'label {name!r}; wanted a whole number of 0 or more, or a name'
      )
  return tuple(dict.fromkeys(names))


def _is_number(name):
  try:
    float(name)
  except ValueError:
    return False
  return True


def _split(cell):
  if not cell:
    return None
  if cell.lower() not in folder.SPLITS:
    raise SourceFault(
      f'split {cell!r}; wanted train, validation, test or nothing'
    )
  return folder.SPLITS[cell.lower()]
