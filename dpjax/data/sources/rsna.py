"""RSNA Pneumonia Detection Challenge, stage 2, as Kaggle ships it.

    stage_2_train_images/{patientId}.dcm   or .png, .jpg, ...
    stage_2_train_labels.csv               patientId,x,y,width,height,Target: a
                                           row a box, or one row with Target 0
    stage_2_detailed_class_info.csv        patientId,class; may be left out

The tables name exams by what they call the patient; the DICOM header has no
other patient. The test images have no labels and are left alone. Shih et al.,
Augmenting the National Institutes of Health chest radiograph dataset with
expert annotations of possible pneumonia, 2019.
"""

import collections
import pathlib
from collections.abc import Sequence

from dpjax.data import radiograph
from dpjax.data.sources import facts as facts_lib
from dpjax.data.sources import files, tables
from dpjax.data.sources import guess as guess_lib
from dpjax.errors import SourceFault

CLASSES = ('Normal', 'No Lung Opacity / Not Normal', 'Lung Opacity')
FRAME = (1024.0, 1024.0)  # of every image as shipped; boxes count in it

_CELLS = ('x', 'y', 'width', 'height')
_LESION = 'Lung Opacity'


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
  images = files.Files(source, ['stage_2_train_images'], ignore)
  table = source / 'stage_2_train_labels.csv'
  exams = {}  # id -> (first row, file, Target, boxes)
  for row in tables.rows(
    table, ('patientId', *_CELLS, 'Target'), faults, check=False
  ):
    id = row['patientId']
    with faults.at(row, id):
      file = images.find(id)
      row.check()
      boxes = _boxes(row)
      if id not in exams:
        exams[id] = row, file, row['Target'], boxes
        continue
      first, _, target, others = exams[id]
      if target != row['Target']:
        raise SourceFault(
          f'Target {row["Target"]}, but {target} in row {first.number}'
        )
      if not boxes or boxes[0] in others:
        raise SourceFault(f'{id} stands in the file twice with this box')
      others += boxes

  classes = _read_classes(
    source / 'stage_2_detailed_class_info.csv', table, exams, faults
  )
  records = []
  for id, (row, file, target, boxes) in exams.items():
    with faults.at(row, id):
      if classes is not None and id not in classes:
        raise SourceFault(f'stage_2_detailed_class_info.csv has no row of {id}')
      records.append(
        files.record(
          file,
          id,
          boxes=tuple(boxes),
          names=(_LESION,) * len(boxes),
          frame=FRAME,
          classes=(classes[id],) if classes else (),
          findings=(_LESION,) if target == '1' else (),
          where=str(row),
        )
      )
  images.add_unnamed(faults, table)
  return [record for record in records if record.id not in faults.left_out]


def recognise(facts: facts_lib.Facts) -> guess_lib.Guess | None:
  """Whether a folder is of this layout; None: it is not."""
  table = facts.table('stage_2_train_labels.csv')
  images = facts.below('stage_2_train_images')
  if not (table and images and table.has('patientId', *_CELLS, 'Target')):
    return None
  guess = guess_lib.Guess(
    'rsna',
    'RSNA Pneumonia Detection Challenge, stage 2, by stage_2_train_labels.csv',
    3,
  )
  exams = collections.Counter(
    id
    for id, target in zip(
      table.cells('patientId'), table.cells('Target'), strict=True
    )
    if target == '1'
  )
  every = set(table.cells('patientId'))
  guess.say(
    'labels',
    f'the number of boxes: {len(every):,} exams in the table,'
    f' {len(every) - len(exams):,} of them without a box',
  )
  guess.say('boxes', f'{exams.total():,}, in pixels of 1024 x 1024')
  guess.say('split', 'drawn')
  guess.say('patients', 'not known: patientId names exams')
  without = sorted(id for id in every if not facts.find(id))
  guess_lib.add_missing(guess, without, len(every), 'exams')
  return guess


def _boxes(row):
  """The boxes of a row: one, or none where Target is 0."""
  cells = [row[name] for name in _CELLS]
  if row['Target'] not in ('0', '1'):
    raise SourceFault(f'Target {row["Target"]!r}; wanted 0 or 1')
  if row['Target'] == '1':
    if not any(cells):
      raise SourceFault('Target 1 without a box')
    return [tables.box(*cells)]
  if any(cells):
    raise SourceFault(f'Target 0 with the box {",".join(cells)}')
  return []


def _read_classes(path, table, exams, faults):
  """{id: class}; None if there is no such file."""
  if not path.exists():
    return None
  classes: dict[str, str] = {}
  for row in tables.rows(path, ('patientId', 'class'), faults, check=False):
    id, name = row['patientId'], row['class']
    with faults.at(row, id):
      if id not in exams:
        raise SourceFault(f'{id!r} is not in {table.name}')
      row.check()
      if name not in CLASSES:
        raise SourceFault(f'class {name!r} is none of {", ".join(CLASSES)}')
      # A row a box, so the same class may well stand there again.
      if classes.setdefault(id, name) != name:
        raise SourceFault(f'class {name} of {id}, but {classes[id]} before')
  return classes
