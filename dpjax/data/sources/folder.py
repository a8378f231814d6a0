"""A folder for each class, as most small sets come.

    normal/1.png ...        or train/normal/1.png ..., test/normal/2.png ...
    boxes.csv               image,x,y,width,height and perhaps finding; if there

The folder's name is the class. A box is in pixels of the stored image, x and y
of its left upper corner; `image` is the path from the source, or the file's
name where no other file has it.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence

from dpjax.data import radiograph, vocabulary
from dpjax.data.sources import files as files_lib
from dpjax.data.sources import tables
from dpjax.errors import SourceFault, UserError

# What folders and cells call the sides of a split, in lower case.
SPLITS = {
  'train': 'train',
  'val': 'validation',
  'valid': 'validation',
  'validation': 'validation',
  'test': 'test',
}


def read(
  source: str | pathlib.Path,
  faults: tables.Faults,
  *,
  patient_pattern: str = '',
) -> list[radiograph.Radiograph]:
  """Reads the set in the folder `source`; decodes no image.

  Args:
    source: the folder.
    faults: takes what is wrong with an image.
    patient_pattern: see `patients`.

  Raises:
    UserError: one line: no folders of classes, or a broken table or pattern.
  """
  files = files_lib.Files(source)
  parts = {file: file.relative_to(files.root).parts for file in files.found}
  wanted = 'CLASS/IMAGE'
  if any(len(p) > 1 and p[0].lower() in SPLITS for p in parts.values()):
    wanted = 'SPLIT/CLASS/IMAGE (SPLIT being train, validation or test)'
  depth = wanted.count('/') + 1
  if not any(len(p) == depth for p in parts.values()):
    raise UserError(
      f'config.data.source: {source} has no folders of classes with images;'
      f' wanted {wanted}, or config.data.layout=csv, which takes images without'
      ' classes'
    )
  patient = patients(files.found, patient_pattern)
  records = {}
  for file, place in parts.items():
    id = '/'.join(place)
    with faults.at(file, id):
      split = SPLITS.get(place[0].lower()) if depth == 3 else None
      if len(place) != depth or (depth == 3 and split is None):
        raise SourceFault(f'is in no folder of a class; wanted {wanted}')
      if not id.isprintable():
        raise SourceFault('its name has signs that cannot be printed')
      name = place[-2]
      records[file] = files_lib.record(
        files.checked(file),
        id,
        classes=(name,),
        findings=() if vocabulary.is_normal(name) else (name,),
        group=patient[file],
        split=split,
        where=str(file),
      )
  table = files.root / 'boxes.csv'
  if table.exists():
    name = 'finding' if 'finding' in header(table, ['image']) else ''
    records = with_boxes(records, table, files, faults, name=name)
  return list(records.values())


def patients(
  files: Sequence[pathlib.Path], pattern: str
) -> dict[pathlib.Path, str | None]:
  """The patient of each file, None where its name does not tell.

  Args:
    files: of the set.
    pattern: regular expression that is searched in a file's name; the patient
      is its first group that takes part, or all that it matches where it has
      no groups. Empty: no name tells.

  Raises:
    UserError: no regular expression, or one that matches no name.
  """
  if not pattern:
    return dict.fromkeys(files)
  try:
    expression = re.compile(pattern)
  except (re.error, RecursionError, OverflowError) as error:
    raise UserError(
      f'config.data.patient_pattern: {pattern!r} is no regular expression'
      f' ({error})'
    ) from error
  found = {}
  for file in files:
    match = expression.search(file.name)
    parts = (match.groups() or (match[0],)) if match else ()
    found[file] = next(filter(None, parts), None)
  # Else a slip of the pen would make every image a patient of its own.
  if files and not any(found.values()):
    raise UserError(
      f'config.data.patient_pattern: {pattern!r} finds a patient in no file'
      f' name, such as {files[0].name!r}'
    )
  return found


def header(table: pathlib.Path, columns: Sequence[str]) -> tuple[str, ...]:
  """The columns of a csv, which must have `columns`; () if it has no rows."""
  row = next(tables.rows(table, columns, tables.Faults('skip')), None)
  return tuple(row.cells) if row else ()


def with_boxes(
  records: Mapping[pathlib.Path, radiograph.Radiograph],
  table: pathlib.Path,
  files: files_lib.Files,
  faults: tables.Faults,
  *,
  image: str = 'image',
  columns: Sequence[str] = ('x', 'y', 'width', 'height'),
  name: str = '',
) -> dict[pathlib.Path, radiograph.Radiograph]:
  """The records with the boxes of a table, a row a box.

  A row that is named a normal finding is no box.

  Args:
    records: by their file.
    table: the csv.
    files: of the source.
    faults: takes the bad rows. An image that has one is left out whole: its
      boxes could not be counted.
    image, name: columns of the image, and of the finding or ''.
    columns: of the left upper corner's x and y, width and height.
  """
  boxes = {file: [] for file in records}
  wanted = (image, *columns, *filter(None, [name]))
  for row in tables.rows(table, wanted, faults, check=False):
    cell, finding = row[image], row[name] if name else ''
    owners = []
    try:
      owners = [files.find(cell)]
      row.check()
      if not finding.isprintable():
        raise SourceFault(f'{finding!r} cannot name a finding')
      if not vocabulary.is_normal(finding):
        box = tables.box(*(row[column] for column in columns))
        boxes.get(owners[0], []).append((box, finding))
    except SourceFault as fault:
      # Where two files have the name, it may be the box of either.
      owners = owners or files.named(cell)
      for file in owners:
        if boxes.pop(file, None) is not None:
          faults.add(row, str(fault), records[file].id)
      if not owners:
        faults.add(row, str(fault))
  return {
    file: dataclasses.replace(
      record,
      boxes=tuple(box for box, _ in boxes[file]),
      names=tuple(finding for _, finding in boxes[file]) if name else (),
    )
    for file, record in records.items()
    if file in boxes
  }
