"""ChestX-ray14 of the NIH Clinical Center.

    Data_Entry_2017*.csv      Image Index, Finding Labels (A|B), Patient ID, ...
    BBox_List_2017.csv        boxes of some test images; may be left out
    train_val_list.txt, test_list.txt     an image a line; both or neither
    images_001/images/*.png   ... images_012, or anywhere in the folder

Boxes count in the 1024 x 1024 pixels of the images as shipped. No box does not
mean no lesion. Labels were read from the reports by a program. Wang et al.,
ChestX-ray8: hospital-scale chest X-ray database and benchmarks, 2017.
"""

import pathlib
from collections.abc import Sequence

from dpjax.data import radiograph
from dpjax.data.sources import facts as facts_lib
from dpjax.data.sources import files, tables
from dpjax.data.sources import guess as guess_lib
from dpjax.errors import SourceFault, UserError

NORMAL = 'No Finding'
FINDINGS = (
  'Atelectasis',
  'Cardiomegaly',
  'Consolidation',
  'Edema',
  'Effusion',
  'Emphysema',
  'Fibrosis',
  'Hernia',
  'Infiltration',
  'Mass',
  'Nodule',
  'Pleural_Thickening',
  'Pneumonia',
  'Pneumothorax',
)
FRAME = (1024.0, 1024.0)

# The commas in the headers "Bbox [x,y,w,h]" split them.
_CELLS = ('Bbox [x', 'y', 'w', 'h]')
# What its releases call them.
_AGE = ('Patient Age',)
_SEX = ('Patient Gender', 'Patient Sex')
_VIEW = ('View Position',)
_LISTS = {'train': 'train_val_list.txt', 'test': 'test_list.txt'}


def read(
  source: str | pathlib.Path,
  faults: tables.Faults,
  ignore: Sequence[str] = (),
) -> list[radiograph.Radiograph]:
  """Reads the tables of the set in the folder `source`; decodes no image.

  Args:
    source: the folder.
    faults: takes what is wrong with an image or a row.
    ignore: see files.Files.

  Raises:
    UserError: one line that names what is wrong with a table or the folder.
  """
  source = pathlib.Path(source)
  found = sorted(source.glob('Data_Entry_2017*.csv'))
  if len(found) != 1:
    raise UserError(
      f'config.data.source: {source} has {len(found)} files'
      ' Data_Entry_2017*.csv; wanted one'
    )
  table = found[0]
  splits = _read_splits(source, faults)
  images = files.Files(source, ignore=ignore)
  entries = {}  # id -> (row, file, findings)
  for row in tables.rows(
    table, ('Image Index', 'Finding Labels', 'Patient ID'), faults, check=False
  ):
    id = row['Image Index']
    with faults.at(row, id):
      # Without its suffix: it may have been converted.
      file = images.find(id.removesuffix('.png'))
      row.check()
      if id in entries:
        raise SourceFault(f'{id} stands in the file twice')
      if not tables.patient(row['Patient ID']):
        raise SourceFault('no Patient ID')
      if splits and len(splits.get(id, ())) != 1:
        raise SourceFault(
          f'{id} is in {"both" if id in splits else "neither"} of'
          f' {" and ".join(_LISTS.values())}'
        )
      entries[id] = row, file, _findings(row['Finding Labels'])

  boxes = _read_boxes(source / 'BBox_List_2017.csv', table, entries, faults)
  records = [
    files.record(
      file,
      id,
      boxes=tuple(box for _, box in boxes.get(id, ())),
      names=tuple(name for name, _ in boxes.get(id, ())),
      frame=FRAME,
      group=row['Patient ID'],
      classes=findings or (NORMAL,),
      findings=findings,
      split=min(splits[id]) if splits else None,
      metadata=_metadata(row),
      where=str(row),
    )
    for id, (row, file, findings) in entries.items()
  ]
  images.add_unnamed(faults, table)
  _remark_missing(table, faults)
  return [record for record in records if record.id not in faults.left_out]


def recognise(facts: facts_lib.Facts) -> guess_lib.Guess | None:
  """Whether a folder is of this layout; None: it is not."""
  found = [t for t in facts.tables if t.path.startswith('Data_Entry_2017')]
  if not (found and found[0].has('Image Index', 'Finding Labels')):
    return None
  table = found[0]
  guess = guess_lib.Guess('nih', f'NIH ChestX-ray14, by {table.path}', 3)
  labels = table.cells('Finding Labels')
  normal = labels.count(NORMAL)
  guess.say(
    'labels',
    f'none {normal:,}, any finding {len(labels) - normal:,}; findings are read'
    ' from reports by a program',
  )
  boxes = facts.table('BBox_List_2017.csv')
  if boxes:
    guess.say('boxes', f'{len(boxes.rows):,}, in pixels of 1024 x 1024; no box'
              ' does not mean no lesion')  # fmt: skip
  lists = [name for name in _LISTS.values() if (facts.root / name).is_file()]
  both = ' and '.join(_LISTS.values())
  kept = f'by {both}' if lists else f'drawn, as {both} are not there'
  guess.say('split', kept)
  if len(lists) == 1:
    guess.odd.append(f'{lists[0]} is there alone; both lists or neither')
  guess.say('patients', "the column 'Patient ID'")
  if len(found) > 1:
    guess.odd.append(f'{found[1].path} is there too; one of them must go')
  ids = dict.fromkeys(table.cells('Image Index'))
  without = [id for id in ids if not facts.find(id)]
  if not facts.incomplete:
    guess_lib.add_missing(guess, without, len(ids), 'images of the table')
  return guess


def _read_splits(source, faults):
  """{id: the splits whose lists name it}; empty without lists."""
  splits: dict[str, set[str]] = {}
  if any((source / name).exists() for name in _LISTS.values()):
    for split, name in _LISTS.items():
      for row in tables.rows(source / name, ('image',), faults, header=False):
        splits.setdefault(row['image'], set()).add(split)
  return splits


def _findings(text):
  """The names in 'A|B', () for 'No Finding'."""
  names = tuple(dict.fromkeys(name.strip() for name in text.split('|')))
  if names == (NORMAL,):
    return ()
  for name in names:
    if name not in FINDINGS:
      raise SourceFault(
        f'finding {name!r} in {text!r}; wanted {NORMAL}, or some of'
        f' {", ".join(FINDINGS)}'
      )
  return names


def _read_boxes(path, table, entries, faults):
  """{id: [(name, box)]}; empty if there is no such file."""
  boxes: dict[str, list] = {}
  if not path.exists():
    return boxes
  for row in tables.rows(
    path, ('Image Index', 'Finding Label', *_CELLS), faults, check=False
  ):
    id, name = row['Image Index'], row['Finding Label']
    with faults.at(row, id):
      if id not in entries:
        raise SourceFault(f'{id!r} is not in {table.name}')
      row.check()
      if name == 'Infiltrate':  # as this table calls it
        name = 'Infiltration'
      if name not in FINDINGS:
        raise SourceFault(f'finding {name!r} is none of {", ".join(FINDINGS)}')
      box = tables.box(*(row[cell] for cell in _CELLS))
      boxes.setdefault(id, []).append((name, box))
  return boxes


def _metadata(row):
  values = {
    'age': radiograph.age(_of(row, _AGE)),
    'sex': _of(row, _SEX),
    'view': _of(row, _VIEW),
  }
  return {name: value for name, value in values.items() if value}


def _of(row, columns):
  """The cell of the first column that is there; '' if none is."""
  return next((row[column] for column in columns if row[column]), '')


def _remark_missing(table, faults):
  """Says which metadata the table does not have, under any of its names."""
  row = next(tables.rows(table, (), tables.Faults('skip')), None)
  lacking = [
    ' or '.join(map(repr, columns))
    for columns in (_AGE, _SEX, _VIEW)
    if row and not set(columns) & row.cells.keys()
  ]
  if lacking:
    faults.remarks.append(
      f'{table} has no column {", nor ".join(lacking)}: the set goes without'
    )
