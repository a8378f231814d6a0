"""A folder for each class, as most small sets come.

    normal/1.png ...        or train/normal/1.png ..., test/normal/2.png ...
    normal/patient7/1.png   where none lies in the class's folder itself
    boxes.csv               image,x,y,width,height and perhaps finding; if there

The folder's name is the class, or what `class_pattern` finds in the path. A box
is in pixels of the stored image, x and y of its left upper corner; `image` is
the path from the source, or the file's name where no other file has it.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from dpjax.data import radiograph, vocabulary
from dpjax.data.decode import formats
from dpjax.data.sources import files as files_lib
from dpjax.data.sources import tables
from dpjax.errors import SourceFault, UserError


def read(
  source: str | pathlib.Path,
  faults: tables.Faults,
  *,
  patient_pattern: str = '',
  class_pattern: str = '',
  ignore: Sequence[str] = (),
) -> list[radiograph.Radiograph]:
  """Reads the set in the folder `source`; decodes no image.

  Args:
    source: the folder.
    faults: takes what is wrong with an image.
    patient_pattern: see `patients`.
    class_pattern: regular expression that is searched in an image's path; the
      class is what it finds. Empty: the name of a folder.
    ignore: see files.Files.

  Raises:
    UserError: one line: no folders of classes, or a broken table or pattern.
  """
  files = files_lib.Files(source, ignore=ignore)
  files.add_linked(faults)  # No table would miss a class that lies there.
  if class_pattern:
    place = _by_pattern(class_pattern)
  else:
    place = _by_folder(files, bool(patient_pattern))
  patient = patients(files, patient_pattern)
  records = {}
  for file in files.found:
    parts = file.relative_to(files.root).parts
    id = '/'.join(parts)
    with faults.at(file, id):
      if not id.isprintable():
        raise SourceFault('its name has signs that cannot be printed')
      split, name = place(parts)
      records[file] = files_lib.record(
        files.checked(file),
        id,
        classes=(name,),
        findings=() if vocabulary.is_normal(name) else (name,),
        group=patient[file],
        split=split,
        where=str(file),
      )
  files.remark_unread(faults)
  table = files.root / 'boxes.csv'
  if table.exists():
    name = 'finding' if 'finding' in header(table, ['image']) else ''
    records = with_boxes(records, table, files, faults, name=name)
  return list(records.values())


def _by_folder(files, patients_named):
  """Where an image's path has its class: a call (parts) -> (split, class)."""
  paths = [file.relative_to(files.root).parts for file in files.found]
  has_splits = any(len(p) > 1 and vocabulary.split(p[0]) for p in paths)
  wanted = 'CLASS/IMAGE'
  if has_splits:
    wanted = 'SPLIT/CLASS/IMAGE (SPLIT being train, validation or test)'
  depth = wanted.count('/') + 1
  depths = {len(p) for p in paths}
  if max(depths, default=0) < depth:
    raise UserError(
      f'config.data.source: {files.given} has no folders of classes with'
      f' images; wanted {wanted}, or config.data.layout=csv, which takes images'
      ' without classes'
    )
  # Of folders below those of the classes, such as a patient's, the images may
  # lie in all or in none: else they are something else's.
  deep = depth not in depths
  if deep:
    deepest = [p for p in paths if len(p) > depth]
    _check_below(files.given, deepest, depth, wanted)
    if not patients_named:
      _check_patients(deepest, depth)

  def place(parts):
    split = vocabulary.split(parts[0]) if has_splits else None
    name, *below = parts[depth - 2 : -1] or ('',)
    reason, other = '', parts[0]
    if len(parts) < depth or (has_splits and split is None):
      reason = 'is in no folder of a class'
    elif below and not deep:
      reason = f'is in no folder of a class, but in {"/".join(below)} below one'
      other = below[0]
    elif vocabulary.is_masks(parts[-2]):
      reason, other = f'is in a folder {parts[-2]!r}, of masks', parts[-2]
    if reason:
      raise SourceFault(
        f'{reason}; wanted {wanted}; config.data.ignore passes over what is no'
        f' radiograph of the set, as ({other!r},)'
      )
    return split, name

  return place


def _check_below(source, paths, depth, wanted):
  """Refuses a source that lies above the set: its folders are no classes."""
  for path in paths:
    for folder in path[depth - 1 : -1]:
      normal = vocabulary.is_normal(folder) and not folder.isdecimal()
      if normal or vocabulary.split(folder):
        raise UserError(
          f'config.data.source: {source} has a folder {folder!r} in'
          f' {path[depth - 2]!r}, which is no class, then; wanted {wanted}'
        )


def _check_patients(paths, depth):
  """Refuses folders below a class's that may well be those of patients."""
  first: dict[Sequence[str], Sequence[str]] = {}
  for path in paths:
    suffix = pathlib.PurePath(path[-1]).suffix.lower()
    if formats.SUFFIXES.get(suffix, 'DICOM') == 'DICOM':
      continue  # It names the patient itself.
    other = first.setdefault(path[: depth - 1], path)
    if other[:-1] != path[:-1]:
      one, two = ('/'.join(p) for p in (other, path))
      raise UserError(
        f'config.data.patient_pattern: {one} and {two} are of one class and lie'
        ' in folders of their own; if these are patients, give'
        " '([^/]+)/[^/]+$', and if not, '.+'; config.data.ignore passes over a"
        ' folder that has no radiographs, such as masks'
      )


def _by_pattern(pattern):
  """As `_by_folder`, for a class that `pattern` finds."""
  search = _search('class_pattern', pattern)

  def place(parts):
    name = search('/'.join(parts))
    if not name:
      raise SourceFault(
        f'config.data.class_pattern {pattern!r} finds no class in its path'
      )
    return vocabulary.split(parts[0]) if len(parts) > 1 else None, name

  return place


def patients(
  files: files_lib.Files, pattern: str
) -> dict[pathlib.Path, str | None]:
  """The patient of each file, None where its path does not tell.

  Args:
    files: of the set.
    pattern: regular expression that is searched in the files' names; in their
      paths from the source where it has a / or is in no name. The patient is
      its first group that takes part, or all that it matches where it has no
      groups. Empty: no name tells.

  Raises:
    UserError: no regular expression, or one that matches no path.
  """
  if not pattern:
    return dict.fromkeys(files.found)
  search = _search('patient_pattern', pattern)
  found = {}
  if '/' not in pattern:
    found = {file: search(file.name) for file in files.found}
  if not any(found.values()):
    found = {
      file: search(file.relative_to(files.root).as_posix())
      for file in files.found
    }
  # Else a slip of the pen would make every image a patient of its own.
  if found and not any(found.values()):
    raise UserError(
      f'config.data.patient_pattern: {pattern!r} finds a patient in no file'
      f' name or path, such as {files.found[0].relative_to(files.root)}'
    )
  return found


def _search(field: str, pattern: str) -> Callable[[str], str | None]:
  """What a field's regular expression finds in a text, if anything."""
  try:
    expression = re.compile(pattern)
  except (re.error, RecursionError, OverflowError) as error:
    raise UserError(
      f'config.data.{field}: {pattern!r} is no regular expression ({error})'
    ) from error

  def search(text):
    match = expression.search(text)
    parts = (match.groups() or (match[0],)) if match else ()
    return next(filter(None, parts), None)

  return search


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
  form: str = 'sides',
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
    columns: of the left upper corner's x and y, and what `form` says.
    form: 'sides': width and height; 'corners': the other corner's x and y.
  """
  boxes: dict[pathlib.Path, list] = {file: [] for file in records}
  read_box = {'sides': tables.box, 'corners': tables.corners}[form]
  wanted = (image, *columns, *filter(None, [name]))
  for row in tables.rows(table, wanted, faults, check=False):
    cell, finding = row[image], row[name] if name else ''
    owners = []
    try:
      owners = [files.find(cell)]
      row.check()
      if not finding.isprintable():
        raise SourceFault(f'{finding!r} cannot name a finding')
      if not vocabulary.is_normal_box(finding):
        box = read_box(*(row[column] for column in columns))
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
