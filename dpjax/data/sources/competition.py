"""The layout of the paper's own source, the competition it took its set from.

    train/{id}.jpg       or .png, .dcm, ...; any size
    train.csv            no header: id,label; label = number of lesion boxes
    train_bboxes.csv     filename,x,y,width,height; filename = id; pixels of
                         the stored image; no row = no lesion
    test/, test.csv, test_bboxes.csv   likewise, if there; kept as the test part

The source names no patients. A test folder without tables has no labels and is
left alone.
"""

import collections
import pathlib
from collections.abc import Sequence

from dpjax.data import radiograph
from dpjax.data.sources import facts as facts_lib
from dpjax.data.sources import files, tables
from dpjax.data.sources import guess as guess_lib
from dpjax.errors import SourceFault, UserError

_COLUMNS = ('x', 'y', 'width', 'height')


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
  if not (source / 'train.csv').is_file():
    raise UserError(
      f'config.data.source: {source} has no train.csv; it must be a folder in'
      " the competition's layout (docs/datasets.md)"
    )
  records = _read_part(source, 'train', None, faults, ignore)
  # Either file says that the part is labelled; the other one is then missed.
  if any((source / f'test{end}.csv').exists() for end in ('', '_bboxes')):
    records += _read_part(source, 'test', 'test', faults, ignore)
  return records


def recognise(facts: facts_lib.Facts) -> guess_lib.Guess | None:
  """Whether a folder is of this layout; None: it is not."""
  boxes = facts.table('train_bboxes.csv')
  if not (boxes and facts.table('train.csv') and facts.below('train')):
    return None
  guess = guess_lib.Guess(
    'competition',
    "the layout of the paper's competition, by train.csv, train_bboxes.csv and"
    ' the folder train',
    3,
  )
  for part in ('train', 'test'):
    table = facts.table(f'{part}.csv')
    if table is None:
      continue
    # It has no header: its first row is an image.
    rows = [table.columns, *table.rows]
    counts = collections.Counter(row[1] for row in rows if len(row) > 1)
    shown = ', '.join(f'{n}: {counts[n]:,}' for n in sorted(counts))
    guess.say('labels', f'{part}: the number of boxes, {shown}')
    there = len(facts.below(part))
    if there != len(rows):
      guess.odd.append(f'{part}.csv has {len(rows):,} rows and the folder'
                       f' {part} {there:,} images')  # fmt: skip
  kept = 'test is kept' if facts.table('test.csv') else 'drawn'
  guess.say('split', kept)
  guess.say(
    'patients',
    'not named, so two exams of one patient may come to both sides of a split',
  )
  return guess


def _read_part(source, part, split, faults, ignore):
  images = files.Files(source, [part], ignore)
  table = source / f'{part}.csv'
  labels = {}  # id -> (row, file, label)
  for row in tables.rows(
    table, ('id', 'label'), faults, header=False, check=False
  ):
    # The two parts number their images alike.
    id = f'{part}/{row["id"]}'
    label = row['label']
    with faults.at(row, id):
      row.check()
      if not (label.isdecimal() and len(label) < 10):
        raise SourceFault(
          f'label {label!r} is no whole number of 0 or more (the file has no'
          ' header)'
        )
      file = images.find(id)
      if id in labels:
        raise SourceFault(f'{row["id"]} stands in the file twice')
      labels[id] = row, file, int(label)

  box_table = source / f'{part}_bboxes.csv'
  boxes: dict[str, list[radiograph.Box]] = {id: [] for id in labels}
  for row in tables.rows(
    box_table, ('filename', *_COLUMNS), faults, check=False
  ):
    id = f'{part}/{row["filename"]}'
    with faults.at(row, id):
      if id not in boxes:
        raise SourceFault(f'{row["filename"]!r} is not in {table.name}')
      row.check()
      boxes[id].append(tables.box(*(row[name] for name in _COLUMNS)))

  records = []
  for id, (row, file, count) in labels.items():
    found = tuple(boxes[id])
    with faults.at(row, id):
      if len(found) != count:
        raise SourceFault(
          f'label {count} of {id}, but {len(found)} boxes in {box_table.name};'
          ' the label counts them'
        )
      records.append(
        files.record(
          file,
          id,
          boxes=found,
          findings=('lesion',) * len(found),
          names=('lesion',) * len(found),
          split=split,
          where=str(row),
        )
      )
  images.add_unnamed(faults, table)
  return [record for record in records if record.id not in faults.left_out]
