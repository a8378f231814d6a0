"""A table with a row an image, and perhaps one with a row a lesion.

    images/1.png ...        anywhere in the source
    labels.csv              image,label,patient_id,split; the last two if there
    boxes.csv               image,x,y,width,height and perhaps finding; if there

The columns may have any names (config.data.csv). `image` is the file's name,
with or without its suffix, or its path from the source. A label is the name of
a class, or several with | between them or as a list, "['A', 'B']"; a number
must be whole and 0 or more. An empty one leaves the image unlabelled, boxes or
not. In place of a label there may be a column for each finding, 1 where it is
there, 0 where it is not, -1 where that is uncertain. A box is in pixels of the
stored image, x and y of its left upper corner; or boxes are those of run-length
masks.
"""

import ast
import dataclasses
import math
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dpjax.data import radiograph, vocabulary
from dpjax.data.sources import boxes as boxes_lib
from dpjax.data.sources import files as files_lib
from dpjax.data.sources import folder, tables
from dpjax.errors import SourceFault, UserError

# The class of an image with none of the findings that have a column.
NEGATIVE = 'negative'
_ABNORMAL = 'abnormal'  # of one that is not normal, where no finding has one
_LESION = 'lesion'  # what a mask covers


@dataclasses.dataclass(frozen=True)
class Tables:
  """The tables of a source and their columns: config.data.csv.

  Attributes:
    labels: the table of images, in the source; several with commas between
      them, each a side of the split where their names say so.
    join: more tables, whose columns are added to it; what one of them would
      say of an image that it has no row for is unknown.
    where: the rows that are read (tables.Where).
    image, label, patient, split: its columns; all but `image` may be '': none.
      'auto': patient_id and split, if they are there, or the one column that
      differs in case and signs alone: 'Patient ID'. `label` may be several
      with commas between them, or a tuple: each a finding.
    rle: its column of run-length masks, or ''.
    metadata: more columns, to be carried as text.
    boxes: the table of boxes; 'auto': boxes.csv, if it is there; '': none.
    box_image, box_columns, box_name: its columns; 'auto': finding, if it is
      there.
    box_form: of a box: 'sides' or 'corners'.
    frame: width and height that boxes count in, if not the image's.

  Raises:
    UserError: one line: `frame` or `box_columns` is none, or the columns are
      called otherwise than `box_form` says.
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

  def __post_init__(self) -> None:
    frame, columns = tuple(self.frame), tuple(self.box_columns)
    if frame and not (len(frame) == 2 and all(map(_is_length, frame))):
      raise UserError(
        f'config.data.csv.frame: {frame}; wanted a width and a height'
      )
    if self.rle and not all(
      float(side).is_integer() for side in frame or (0.5,)
    ):
      raise UserError(
        f'config.data.csv.frame: {frame}; with config.data.csv.rle it must be'
        ' the whole width and height that masks count in, (1024, 1024) for'
        " SIIM-ACR's"
      )
    if len(columns) != 4:
      raise UserError(
        f'config.data.csv.box_columns: {columns}; wanted four, of x, y, width'
        ' and height'
      )
    boxes_lib.check_form(columns, self.box_form)

  @property
  def findings(self) -> tuple[str, ...]:
    """The columns of findings; () where `label` is one column of classes."""
    if self.label.startswith('('):
      try:
        names = ast.literal_eval(self.label)
      except (ValueError, SyntaxError):
        names = None
      if isinstance(names, str):
        names = (names,)
      if not isinstance(names, tuple) or not all(
        isinstance(name, str) for name in names
      ):
        raise UserError(
          f'config.data.csv.label: {self.label!r}; wanted a column, or several'
          ' with commas between them'
        )
      return names
    names = tuple(name.strip() for name in self.label.split(','))
    return names if len(names) > 1 else ()


@dataclasses.dataclass(frozen=True)
class Meaning:
  """What cells of a label mean, and who asks.

  Attributes:
    uncertain: -1 in a column of findings: 'ignore', 'positive' or 'negative'.
    blank: an empty cell there: 'ignore' or 'negative'.
    classes: of an image with several findings the class is the first of these.
    policy: of labels.assign; under 'class' two findings need `classes`.
  """

  uncertain: str = 'ignore'
  blank: str = 'ignore'
  classes: Sequence[str] = ()
  policy: str = 'class'

  def of(self, value: int | None) -> bool | None:
    """Whether a finding is there, by its cell's value; None: not known."""
    if value == -1:
      return {'positive': True, 'negative': False}.get(self.uncertain)
    if value is None:
      return {'negative': False}.get(self.blank)
    return value == 1


def read(
  source: str | pathlib.Path,
  faults: tables.Faults,
  *,
  patient_pattern: str = '',
  ignore: Sequence[str] = (),
  uncertain: str = 'ignore',
  blank: str = 'ignore',
  classes: Sequence[str] = (),
  policy: str = 'class',
  **settings: Any,
) -> list[radiograph.Radiograph]:
  """Reads the tables of the set in the folder `source`; decodes no image.

  Args:
    source: the folder.
    faults: takes what is wrong with a row or an image.
    patient_pattern: see folder.patients; for images without a patient in the
      table.
    ignore: see files.Files.
    uncertain, blank, classes, policy: see Meaning.
    **settings: the fields of `Tables`.

  Raises:
    UserError: one line: a table or column that is missing, or a bad setting.
  """
  names = Tables(**settings)
  files = files_lib.Files(source, ignore=ignore)
  names = _found(names, files.root)
  patient = folder.patients(files, patient_pattern)
  reader = _Images(
    names, files, faults, patient, Meaning(uncertain, blank, classes, policy)
  )
  records = reader.read()
  if names.boxes:
    records = folder.with_boxes(
      records,
      files.root / names.boxes,
      files,
      faults,
      image=names.box_image,
      columns=names.box_columns,
      form=names.box_form,
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
    UserError: one line: a table that is missing, a bad setting, or two
      columns that 'auto' may mean.
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
  there = {
    column
    for table in (*_label_tables(names, root), *names.join)
    for column in folder.header(root / table, [])
  }
  boxes = names.boxes
  if boxes == 'auto':
    boxes = 'boxes.csv' if (root / 'boxes.csv').exists() else ''
  beside = folder.header(root / boxes, [names.box_image]) if boxes else ()
  return dataclasses.replace(
    names,
    patient=_column(names, 'patient', 'patient_id', there),
    split=_column(names, 'split', 'split', there),
    boxes=boxes,
    box_name=_column(names, 'box_name', 'finding', {*beside}),
  )


def _column(names, field, usual, there):
  """The column that a field means; '': none."""
  name = getattr(names, field)
  if name != 'auto':
    return name
  if usual in there:
    return usual
  # A column that names images may well be called patientId, as RSNA's is.
  others = sorted(there - {names.image, names.box_image})
  alike = [c for c in others if tables.plain(c) == tables.plain(usual)]
  if len(alike) > 1:
    raise UserError(
      f'config.data.csv.{field}: auto may mean {alike[0]!r} or {alike[1]!r};'
      ' name one of them'
    )
  return alike[0] if alike else ''


def _label_tables(names, root):
  """{table of images: its side of the split, or None}."""
  if (root / names.labels).exists() or ',' not in names.labels:
    return {names.labels: None}
  found = [name.strip() for name in names.labels.split(',')]
  sides = []
  for name in found:
    words = {vocabulary.split(w) for w in re.split('[^a-z]+', name.lower())}
    named = words - {None}
    sides.append(named.pop() if len(named) == 1 else None)
  if None in sides or len(set(sides)) < len(sides):
    sides = [None] * len(found)
  return dict(zip(found, sides, strict=True))


class _Images:
  """Reads the table of images, row by row."""

  def __init__(
    self,
    names: Tables,
    files: files_lib.Files,
    faults: tables.Faults,
    patient: Mapping[pathlib.Path, str | None],
    meaning: Meaning,
  ):
    self.names = names
    self.files = files
    self.faults = faults
    self.patient = patient
    self.meaning = meaning
    self.findings = names.findings
    # A column of classes has either names and numbers, or 1, 0 and what is
    # neither: -1, perhaps blanks. Which, only all its rows tell.
    self.names_met: set[str] = set()
    # (row, file) with -1
    self.uncertain: list[tuple[tables.Row, pathlib.Path]] = []
    # where a class stands in for it
    self.first_blank: tables.Row | None = None

  def read(self):
    """{file: record}, without boxes but for those of masks."""
    records: dict[pathlib.Path, radiograph.Radiograph] = {}
    masks: dict[pathlib.Path, list[str]] = {}
    out, row = set(), None
    where = tables.Where(self.names.where)
    for row, side in self._rows(where):
      cell = row[self.names.image]
      if not (row.fault or where(row)):
        self.files.pass_over(cell)
        continue
      file = None
      with self.faults.at(row, cell):
        file = self.files.find(cell)
        if file in out:
          continue
        try:
          row.check()
          record = self._record(row, file, side)
          self._check_again(row, record, records.get(file), masks.get(file))
        except SourceFault as fault:
          # The rows may differ, and neither can be trusted.
          before = records.pop(file, None)
          out.add(file)
          self.faults.add(row, str(fault), before.id if before else cell)
          continue
        records.setdefault(file, record)
        if self.names.rle:
          masks.setdefault(file, []).append(row[self.names.rle])
        continue
      if file is not None:
        out.add(file)
    if row is None:
      raise UserError(
        f'{self.files.root / self.names.labels}: no rows; wanted one for each'
        ' image'
      )
    where.check()
    where.remark(self.faults)
    self._check_labels(records)
    self.files.add_unnamed(self.faults, *self._paths)
    return self._with_masks(records, masks) if self.names.rle else records

  @property
  def _paths(self):
    root = self.files.root
    return [root / name for name in _label_tables(self.names, root)]

  def _rows(self, where):
    """(row, its side of the split) of all tables of images, joined."""
    names = self.names
    wanted = dict.fromkeys(
      filter(None, [names.image, *(self.findings or (names.label,)),
             names.patient, names.split, names.rle, *where.columns,
             *names.metadata])
    )  # fmt: skip
    sides = _label_tables(names, self.files.root)
    joined = []
    for path, side in zip(self._paths, sides.values(), strict=True):
      there = folder.header(path, [names.image])
      joins = [
        _Join(self.files.root / name, there, wanted, self.faults)
        for name in names.join
      ]
      added = _added(joins)
      own = [column for column in wanted if column not in added]
      for row in tables.rows(path, own, self.faults, check=False):
        absent = [join for join in joins if not join.add_to(row)]
        if absent and (where(row) or not row.cells.keys() >= {*where.columns}):
          for join in absent:
            join.absent += 1
        yield row, side
      joined.append(joins)
    for one in zip(*joined, strict=True):
      _check_found(one, self.faults)

  def _record(self, row, file, side):
    """The record of a row, without boxes."""
    names = self.names
    patient = tables.patient(row[names.patient]) if names.patient else ''
    if self.findings:
      classes, findings = self._of_findings(row)
    else:
      classes = self._classes(row, file) if names.label else ()
      findings = tuple(n for n in classes if not vocabulary.is_normal(n))
      findings = findings if classes else None
    return files_lib.record(
      file,
      row[names.image],
      classes=classes,
      findings=findings,
      group=patient or self.patient[file],
      split=_split(row[names.split]) if names.split else side,
      frame=tuple(names.frame) or None,
      metadata={column: row[column] for column in names.metadata},
      where=str(row),
    )

  def _check_again(self, row, record, before, masks):
    """Raises SourceFault where the image has had a row that this denies."""
    if before is None:
      return
    id, mask = before.id, row[self.names.rle] if self.names.rle else ''
    if not self.names.rle or mask in masks:
      raise SourceFault(f'{id} stands in the table twice')
    if '-1' in (mask, *masks):
      raise SourceFault(f'{id} stands in the table twice, with a mask and none')
    for field in ('classes', 'group', 'split', 'metadata'):
      if getattr(record, field) != getattr(before, field):
        raise SourceFault(f'{id} stands in the table twice, with two {field}')

  def _of_findings(self, row):
    """(classes, findings) of a row with a column for each finding."""
    states = {
      column: self.meaning.of(tables.finding(row[column], column))
      if column in row.cells
      else None
      for column in self.findings
    }
    there = [column for column, state in states.items() if state]
    if len(there) > 1 and self.meaning.policy == 'class':
      ranked = [name for name in self.meaning.classes if name in there]
      if not self.meaning.classes:
        raise SourceFault(
          f'has both {there[0]} and {there[1]}; config.data.classes ranks them,'
          ' and the first is the class'
        )
      classes = (*ranked[:1],) or (*there,)
    elif there:
      classes = (*there,)
    elif None in states.values():
      return (), None
    elif all(map(vocabulary.is_normal, states)):
      return (_ABNORMAL,), (_ABNORMAL,)
    elif any(map(vocabulary.is_normal, states)):
      return (), None  # Not normal, by something that has no column here.
    else:
      return (NEGATIVE,), ()
    return classes, tuple(n for n in there if not vocabulary.is_normal(n))

  def _classes(self, row, file):
    """The names in a label cell, each once."""
    cell = row[self.names.label]
    if not cell:
      if self.meaning.of(None) is None or self.names.label not in row.cells:
        return ()
      self.first_blank = self.first_blank or row
      return ('0',)
    if re.fullmatch(r'-1(\.0*)?', cell):
      self.uncertain.append((row, file))
      state = self.meaning.of(-1)
      return () if state is None else (str(int(state)),)
    names = [*tables.names(cell)]
    if not all(name and name.isprintable() for name in names):
      raise SourceFault(f'label {cell!r}; wanted names with | between them')
    for i, name in enumerate(names):
      if name.lower() in tables.MISSING:
        raise SourceFault(f'label {name!r}; an empty cell leaves it unlabelled')
      # As pandas writes whole numbers.
      if len(names) == 1 and re.fullmatch(r'\d+\.0*', name):
        name = names[i] = name.partition('.')[0]
      if not name.isdecimal() and _is_number(name):
        raise SourceFault(
          f'label {name!r}; wanted a whole number of 0 or more, or a name'
        )
      self.names_met.add(name)
    return tuple(dict.fromkeys(names))

  def _check_labels(self, records):
    """Takes -1, and no class for a blank, beside 1 and 0 only."""
    other = min(self.names_met - {'0', '1'}, default=None)
    if other is None:
      return
    if self.first_blank:
      raise UserError(
        f'{self.first_blank}: config.data.blank={self.meaning.blank} is for'
        f' findings that are 1 or 0, and {self.names.label!r} has {other!r}'
      )
    for row, file in self.uncertain:
      self.faults.add(
        row,
        f'label {row[self.names.label]!r}; wanted a whole number of 0 or more,'
        ' or a name (-1 is an uncertain finding beside 1 and 0 only, and here'
        f' is {other!r})',
        row[self.names.image],
      )
      records.pop(file, None)

  def _with_masks(self, records, masks):
    """The records with the boxes of their masks."""
    width, height = map(int, self.names.frame)
    found = {}
    for file, record in records.items():
      with self.faults.at(record.where, record.id):
        runs = [mask for mask in masks[file] if mask != '-1']
        boxes = tables.run_length_boxes(runs, width, height) if runs else ()
        seen = {}
        if not self.names.label:
          seen = {
            'classes': (_LESION if boxes else vocabulary.NORMAL[0],),
            'findings': (_LESION,) * bool(boxes),
          }
        found[file] = dataclasses.replace(
          record, boxes=(*boxes,), names=(_LESION,) * len(boxes), **seen
        )
    return found


class _Join:
  """A table whose columns are added to the rows of another one.

  Attributes:
    path: of it.
    columns: that it adds.
    asked: the first key that was looked up.
    found: how many rows it was added to.
    absent: how many of the rows that are read, as far as is known, it was not.
  """

  def __init__(
    self,
    path: pathlib.Path,
    there: Sequence[str],
    wanted: Collection[str],
    faults: tables.Faults,
  ):
    """Reads it.

    Args:
      path: of it.
      there: the columns of the other one: those that both have find the rows.
      wanted: the columns of interest.
      faults: takes what is wrong with its rows.
    """
    own = folder.header(path, [])
    self.path = path
    self.asked: tuple[str, ...] = ()
    self.found = self.absent = 0
    self._keys = [column for column in own if column in there]
    if own and there and not self._keys:
      raise UserError(
        f'config.data.csv.join: {path} has no column of the table of images;'
        f' has {",".join(own)}; wanted one of {",".join(there)}'
      )
    self.columns = [c for c in own if c in wanted and c not in there]
    self._cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in tables.rows(path, [], faults):
      cells = {column: row[column] for column in self.columns}
      if self._cells.setdefault(self._key(row), cells) != cells:
        raise UserError(
          f'{row}: a second row of {", ".join(self._key(row))}, which says'
          ' something else'
        )

  def _key(self, row):
    return tuple(row[column] for column in self._keys)

  def add_to(self, row):
    """Adds its cells to a row; False where it should, and has none for it."""
    if not self.columns or row.fault:
      return True
    key = self._key(row)
    self.asked = self.asked or key
    cells = self._cells.get(key)
    if cells is None:
      return False
    self.found += 1
    row.cells.update(cells)
    return True

  def no_row(self):
    """The error where it has no row for any that was looked up."""
    other = ', '.join(next(iter(self._cells), ()))
    return UserError(
      f'config.data.csv.join: {self.path} has no row for any image, by'
      f' {", ".join(self._keys)}: it has {other!r} where the table of images'
      f' has {", ".join(self.asked)!r}; wanted keys that are written alike'
    )


def _added(joins):
  """{column: the table that adds it}.

  Raises:
    UserError: two tables would add one: each may say something else.
  """
  added: dict[str, pathlib.Path] = {}
  for join in joins:
    for column in join.columns:
      if column in added:
        raise UserError(
          f'config.data.csv.join: both {added[column]} and {join.path} have the'
          f' column {column!r}; name one of them'
        )
      added[column] = join.path
  return added


def _check_found(joins, faults):
  """Remarks on rows of all tables of images that a joined table lacks."""
  asked = [join for join in joins if join.asked]
  if asked and not any(join.found for join in asked):
    raise asked[0].no_row()
  absent = sum(join.absent for join in asked)
  if absent:
    faults.remarks.append(
      f'{absent:,} rows of the table of images have none in {asked[0].path}'
      f' (config.data.csv.join): its {", ".join(asked[0].columns)} of these'
      ' images are unknown'
    )


def _is_length(value):
  return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _is_number(name):
  try:
    float(name)
  except ValueError:
    return False
  return True


def _split(cell):
  if not cell:
    return None
  side = vocabulary.split(cell)
  if side is None:
    raise SourceFault(
      f'split {cell!r}; wanted nothing, or one of {vocabulary.split_words()}'
    )
  return side
