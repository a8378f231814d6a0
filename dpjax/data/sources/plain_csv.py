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

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from dpjax.data import radiograph, vocabulary
from dpjax.data.sources import files as files_lib
from dpjax.data.sources import folder, tables
from dpjax.errors import SourceFault, UserError

# How programs write an empty cell, in lower case.
_MISSING = ('nan', 'na', 'n/a', 'null')


@dataclasses.dataclass(frozen=True)
class Tables:
  """The tables of a source and their columns: config.data.csv.

  Attributes:
    labels: the table of images, in the source.
    image, label, patient, split: its columns; all but `image` may be '': none.
      'auto': patient_id and split, if they are there.
    metadata: more columns, to be carried as text.
    boxes: the table of boxes; 'auto': boxes.csv, if it is there; '': none.
    box_image, box_columns, box_name: its columns; 'auto': finding, if it is
      there.
    frame: width and height that boxes count in, if not the image's.
  """

  labels: str = 'labels.csv'
  join: Sequence[str] = ()
  where: str = ''
  image: str = 'image'
  label: str = 'label'
  rle: str = ''
  patient: str = 'auto'
  split: str = 'auto'
  metadata: Sequence[str] = ()
  boxes: str = 'auto'
  box_image: str = 'image'
  box_form: str = 'sides'
  box_columns: Sequence[str] = ('x', 'y', 'width', 'height')
  box_name: str = 'auto'
  frame: Sequence[float] = ()


def read(
  source: str | pathlib.Path,
  faults: tables.Faults,
  *,
  patient_pattern: str = '',
  **settings: Any,
) -> list[radiograph.Radiograph]:
  """Reads the tables of the set in the folder `source`; decodes no image.

  Args:
    source: the folder.
    faults: takes what is wrong with a row or an image.
    patient_pattern: see folder.patients; for images without a patient in the
      table.
    **settings: the fields of `Tables`.

  Raises:
    UserError: one line: a table or column that is missing, or a bad setting.
  """
  names = Tables(**settings)
  files = files_lib.Files(source)
  names = _found(names, files.root)
  patient = folder.patients(files.found, patient_pattern)
  records = _read_labels(names, files, faults, patient)
  if names.boxes:
    records = folder.with_boxes(
      records,
      files.root / names.boxes,
      files,
      faults,
      image=names.box_image,
      columns=names.box_columns,
      name=names.box_name,
    )
  return list(records.values())


def find(source: str | pathlib.Path, **settings: Any) -> dict[str, str]:
  """What the settings that may be 'auto' stand for in this source.

  Args:
    source: the folder.
    **settings: the fields of `Tables`; others are passed over.

  Returns:
    patient, split, boxes and box_name, '' for none.

  Raises:
    UserError: one line: a table that is missing, or a bad setting.
  """
  known = {field.name for field in dataclasses.fields(Tables)}
  names = Tables(**{k: v for k, v in settings.items() if k in known})
  names = _found(names, pathlib.Path(source).resolve())
  return {
    name: getattr(names, name)
    for name in ('patient', 'split', 'boxes', 'box_name')
  }


def _found(names, root):
  """The `Tables` without 'auto'."""
  there = folder.header(root / names.labels, [names.image])
  boxes = names.boxes
  if boxes == 'auto':
    boxes = 'boxes.csv' if (root / 'boxes.csv').exists() else ''
  beside = folder.header(root / boxes, [names.box_image]) if boxes else ()
  return dataclasses.replace(
    names,
    patient=_column(names.patient, 'patient_id', there),
    split=_column(names.split, 'split', there),
    boxes=boxes,
    box_name=_column(names.box_name, 'finding', beside),
  )


def _column(name, usual, there):
  """The column that is meant; '': none."""
  if name == 'auto':
    return usual if usual in there else ''
  return name


def _read_labels(names, files, faults, patient):
  """{file: record without boxes} of the table of images."""
  table = files.root / names.labels
  columns = [names.image, *filter(None, [names.label, names.patient,
             names.split]), *names.metadata]  # fmt: skip
  records, out, row = {}, set(), None
  for row in tables.rows(table, columns, faults, check=False):
    file = None
    with faults.at(row, row[names.image]):
      file = files.find(row[names.image])
      if file in out:
        continue
      if file in records:
        # The rows may differ, and neither can be trusted.
        id = records.pop(file).id
        out.add(file)
        faults.add(row, f'{id} stands in the table twice', id)
        continue
      row.check()
      records[file] = _record(row, names, file, patient[file])
      continue
    out.add(file)
  if row is None:
    raise UserError(f'{table}: no rows; wanted one for each image')
  files.add_unnamed(faults, table)
  return records


def _record(row, names, file, patient):
  """The record of a row; `patient` as the file's name tells."""
  classes = _classes(row[names.label] if names.label else '')
  findings = tuple(name for name in classes if not vocabulary.is_normal(name))
  return files_lib.record(
    file,
    row[names.image],
    classes=classes,
    findings=findings if classes else None,
    group=(row[names.patient] if names.patient else '') or patient,
    split=_split(row[names.split]) if names.split else None,
    frame=tuple(names.frame) or None,
    metadata={column: row[column] for column in names.metadata},
    where=str(row),
  )


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
