"""VinDr-CXR, as PhysioNet ships it or as Kaggle does.

PhysioNet:

    train/{image_id}.dicom, test/...        or .png, .jpg, ...
    annotations/annotations_train.csv       image_id,rad_id,class_name,x_min,
                                            y_min,x_max,y_max
    annotations/annotations_test.csv        likewise, mostly without rad_id
    annotations/image_labels_train.csv      image_id,rad_id; a column of 0 and 1
                                            for each label
    annotations/image_labels_test.csv       likewise, mostly without rad_id

Kaggle:

    train/{image_id}.dicom
    train.csv                               the columns of annotations_train.csv
    train_meta.csv                          image_id,dim0,dim1: the originals'
                                            height and width; smaller copies of
                                            the set have it (xhlulu's on Kaggle,
                                            without train.csv), or the columns
                                            width,height in train.csv

The three readers of a training image drew their boxes apart from each other; a
test image has those that five agreed on. Kaggle's test part has no labels and
is left alone. Nguyen et al., VinDr-CXR: an open dataset of chest X-rays with
radiologist's annotations, 2022.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence

from dpjax.data import radiograph
from dpjax.data.decode import raster
from dpjax.data.sources import boxes as boxes_lib
from dpjax.data.sources import facts as facts_lib
from dpjax.data.sources import files, tables
from dpjax.data.sources import guess as guess_lib
from dpjax.errors import SourceFault, UserError

NORMAL = 'No finding'
# Labels of the image as a whole, never boxed.
GLOBAL = ('COPD', 'Lung tumor', 'Other diseases', 'Pneumonia', 'Tuberculosis')
# Boxes of two readers that overlap so much (intersection over union) are one
# lesion.
OVERLAP = 0.5

_CORNERS = ('x_min', 'y_min', 'x_max', 'y_max')
_ALL = ''  # the reader of a table without rad_id: all of them


@dataclasses.dataclass(frozen=True)
class _Scan:
  """An image of the tables.

  Attributes:
    row: the first that names it.
    file: its image.
    readings: reader -> what he saw, (name, box), the box None for a label of
      the whole image; no entry for a reader who did not read it.
    frame: width and height of the original image, None where `file` is that.
  """

  row: tables.Row
  file: pathlib.Path
  readings: dict[str, list[tuple[str, radiograph.Box | None]]]
  frame: tuple[float, float] | None


def read(
  source: str | pathlib.Path,
  faults: tables.Faults,
  readers: str = 'union',
  sizes: str = '',
  ignore: Sequence[str] = (),
) -> list[radiograph.Radiograph]:
  """Reads the tables of the set in the folder `source`; decodes no image.

  Args:
    source: the folder.
    faults: takes what is wrong with an image or a row.
    readers: whose boxes and labels count. 'union': everybody's; 'majority':
      what more than half of an image's readers saw; 'R8': that reader's, and
      images that he did not read are unlabelled. Test images have one reading,
      by all, that always counts.
    sizes: of the original images: 'WIDTHxHEIGHT', a table in the source, or
      'files': the images are the originals. '': train_meta.csv or the columns
      width,height of the tables of boxes, if there; else the images' own.
    ignore: see files.Files.

  Raises:
    UserError: one line that names what is wrong with a table or the folder,
      or an unknown reader.
  """
  source = pathlib.Path(source)
  folder = source / 'annotations'
  if not folder.is_dir():
    folder = source
  boxes, labels = (
    {part: folder / f'{table}_{part}.csv' for part in ('train', 'test')}
    for table in ('annotations', 'image_labels')
  )
  frame_of = _frames(source, sizes, faults)
  part = functools.partial(_read_part, source, faults, ignore, frame_of)
  scans: dict[str | None, dict[str, _Scan]] = {}  # by split
  if boxes['train'].exists():
    train = part('train', boxes['train'], labels['train'])
    scans['train'] = train
    # Either says that there is a test part; the other one is then missed.
    if (source / 'test').exists() or boxes['test'].exists():
      scans['test'] = part('test', boxes['test'], labels['test'], train)
  elif (source / 'train.csv').exists():
    scans[None] = part('train', source / 'train.csv', None)
  else:
    raise UserError(
      f'config.data.source: {source} has neither'
      ' annotations/annotations_train.csv (PhysioNet) nor train.csv (Kaggle)'
    )
  if not sizes:
    _check_originals(scans)
  known = {
    reader
    for part in scans.values()
    for scan in part.values()
    for reader in scan.readings
  } - {_ALL}
  if readers not in ('union', 'majority', *known):
    order = sorted(known, key=lambda name: (len(name), name))
    raise UserError(
      f'config.data.vindr_readers: no reader {readers!r}; wanted'
      f' {", ".join(["union", "majority", *order])}'
    )
  return [
    _record(id, scan, split, readers)
    for split, part in scans.items()
    for id, scan in part.items()
    if id not in faults.left_out
  ]


def recognise(facts: facts_lib.Facts) -> guess_lib.Guess | None:
  """Whether a folder is of this layout; None: it is not."""
  table = facts.table('annotations/annotations_train.csv')
  whose = 'PhysioNet'
  if table is None:
    table, whose = facts.table('train.csv'), 'Kaggle'
  wanted = ('image_id', 'class_name', 'rad_id', *_CORNERS)
  if not (table and table.has(*wanted) and facts.below('train')):
    return None
  guess = guess_lib.Guess(
    'vindr', f'VinDr-CXR as {whose} ships it, by the columns of {table.path}', 3
  )
  names = table.cells('class_name')
  images = {*table.cells('image_id')}
  guess.say(
    'labels',
    f'the number of lesions: {len(images):,} images, {names.count(NORMAL):,} of'
    f' {len(names):,} rows {NORMAL!r}; boxes of {len({*table.cells("rad_id")})}'
    ' readers are put together (data.vindr_readers)',
  )
  _guess_sizes(guess, facts, table)
  kept = whose == 'PhysioNet' and facts.below('test')
  guess.say('split', 'test is kept' if kept else 'drawn')
  guess.say('patients', 'not named, nor are studies')
  return guess


def _guess_sizes(guess, facts, table):
  """Says which sizes boxes count in."""
  if facts.table('train_meta.csv') or table.has('width', 'height'):
    where = 'train_meta.csv' if facts.table('train_meta.csv') else table.path
    guess.say('boxes', f'in pixels of the originals, whose sizes {where} has')
    return
  rows = zip(table.cells('image_id'), *map(table.cells, _CORNERS[2:]),
             strict=True)  # fmt: skip
  boxed = [row for row in rows if all(row)]
  for id, right, bottom in facts_lib.spread(boxed, 50):
    for path in facts.find(id)[:1]:
      size = raster.size(str(facts.root / path))
      if size and (float(right) > size[0] + 2 or float(bottom) > size[1] + 2):
        guess.say(
          'boxes',
          f'in pixels of originals that are not here: one of {id} reaches'
          f' {right}, {bottom}, and the image is {size[0]} x {size[1]}',
          original_sizes='WIDTHxHEIGHT',
        )
        guess.unknown.append(
          'The size of the original images, which the boxes need. Put it for'
          ' WIDTHxHEIGHT if all have one, or name a table in the folder with'
          ' image_id,width,height.'
        )
        return
  guess.say('boxes', "in the images' own pixels")


def _record(id, scan, split, readers):
  readings = scan.readings
  quorum = 1
  if readers == 'majority':
    quorum = len(readings) // 2 + 1
  elif readers != 'union' and _ALL not in readings:
    readings = {r: seen for r, seen in readings.items() if r == readers}
  lesions, labels = _agreed(readings, quorum)
  findings = tuple(dict.fromkeys([name for name, _ in lesions] + labels))
  return files.record(
    scan.file,
    id,
    boxes=tuple(box for _, box in lesions),
    names=tuple(name for name, _ in lesions),
    frame=scan.frame,
    classes=(findings or (NORMAL,)) if readings else (),
    findings=findings if readings else None,
    split=split,
    where=str(scan.row),
  )


def _agreed(readings, quorum):
  """What at least `quorum` readers saw: [(name, box)] and [label]."""
  # name -> what was seen of it, and by whom
  boxes: dict[str, list] = {}
  labels: dict[str, set[str]] = {}
  for reader, seen in readings.items():
    for name, box in seen:
      if box is None:
        labels.setdefault(name, set()).add(reader)
      else:
        boxes.setdefault(name, []).append((reader, box))
  lesions = [
    (name, box)
    for name, drawn in boxes.items()
    for box in _lesions(drawn, quorum)
  ]
  return lesions, [name for name, by in labels.items() if len(by) >= quorum]


def _lesions(drawn, quorum):
  """One box for each lesion that at least `quorum` readers drew.

  Boxes of one class are a lesion if they hang together by overlaps of two
  readers. Its corners are the mean over its readers, a reader with several
  boxes counting as their mean.

  Args:
    drawn: [(reader, box)].
    quorum: number of readers.
  """
  groups: list[list] = []
  for reader, box in drawn:
    lesion, far = [(reader, box)], []
    for group in groups:
      if any(
        other != reader and boxes_lib.overlap(box, theirs) >= OVERLAP
        for other, theirs in group
      ):
        lesion = group + lesion
      else:
        far.append(group)
    groups = [*far, lesion]
  lesions = []
  for group in groups:
    by_reader: dict[str, list] = {}
    for reader, box in group:
      by_reader.setdefault(reader, []).append(box)
    if len(by_reader) >= quorum:
      lesions.append(_mean([_mean(boxes) for boxes in by_reader.values()]))
  return lesions


def _mean(boxes):
  return tuple(sum(corner) / len(boxes) for corner in zip(*boxes, strict=True))


def _read_part(
  source, faults, ignore, frame_of, part, box_table, label_table, others=()
):
  """{id: _Scan} of a part; `others` are the ids of the other one."""
  images = files.Files(source, [part], ignore)
  who = () if part == 'test' else ('rad_id',)
  scans = {}

  def reading(row):
    """What the row's reader saw of its image so far, to be added to."""
    id = row['image_id']
    if id not in scans:
      if id in others:
        raise SourceFault(f'{id} is in the other part as well')
      file = images.find(f'{part}/{id}')
      scans[id] = _Scan(row, file, {}, frame_of(row))
    row.check()
    if 'rad_id' in row.cells and not row['rad_id']:
      raise SourceFault('no rad_id')
    return scans[id].readings.setdefault(row['rad_id'] or _ALL, [])

  if label_table:
    _read_labels(label_table, who, reading, faults)
  labelled = frozenset(scans)
  for row in tables.rows(
    box_table, ('image_id', 'class_name', *who, *_CORNERS), faults, check=False
  ):
    id = row['image_id']
    with faults.at(row, id):
      if label_table and id not in labelled:
        raise SourceFault(f'{id!r} is not in {label_table.name}')
      reading(row).extend(_seen(row))
  images.add_unnamed(faults, box_table)
  return scans


def _frames(source, sizes, faults):
  """A call (row) -> width and height of its image's original, or None."""
  side = re.fullmatch(r'(\d+)x(\d+)', sizes)
  if sizes == 'files':
    return lambda row: None
  if side:
    frame = float(side[1]), float(side[2])
    return lambda row: frame
  table = source / (sizes or 'train_meta.csv')
  if not sizes and not table.exists():
    return _own_frame
  frames = {}
  for row in tables.rows(table, ('image_id',), faults):
    with faults.at(row, row['image_id']):
      frame = _own_frame(row, ('dim1', 'dim0')) or _own_frame(row)
      if frame is None:
        raise SourceFault('no width,height nor dim1,dim0')
      frames[row['image_id']] = frame

  def frame_of(row):
    id = row['image_id']
    # Kaggle's table of sizes is one for each part.
    if id not in frames:
      raise SourceFault(f'{id!r} is not in {table.name}, which has the sizes')
    return frames[id]

  return frame_of


def _own_frame(row, columns=('width', 'height')):
  """Width and height as the row itself has them, if it does."""
  cells = [row[column] for column in columns]
  if not all(cells):
    return None
  frame = tuple(
    tables.number(*pair) for pair in zip(cells, columns, strict=True)
  )
  if min(frame) <= 0:
    raise SourceFault(f'an image of {" x ".join(cells)} pixels')
  return frame


def _check_originals(scans):
  """Refuses smaller copies whose originals nobody tells the size of.

  Such boxes would be clipped to the copy, or lie beside it.
  """
  for part in scans.values():
    for id, scan in part.items():
      boxes = [b for seen in scan.readings.values() for _, b in seen if b]
      if not boxes or scan.frame:
        continue
      size = raster.size(str(scan.file))
      corner = tuple(max(box[i] for box in boxes) for i in (2, 3))
      if size and any(c > s + 2 for c, s in zip(corner, size, strict=True)):
        raise UserError(
          f'config.data.original_sizes: {id} has a box up to'
          f' {corner[0]:g}, {corner[1]:g}, and its image is'
          f' {size[0]} x {size[1]} pixels; boxes count in the original, so name'
          ' a table with image_id,width,height of the originals (or'
          ' WIDTHxHEIGHT where all are alike; files: the images are the'
          ' originals)'
        )


def _read_labels(path, who, reading, faults):
  once = set()
  for row in tables.rows(path, ('image_id', *who), faults, check=False):
    id = row['image_id']
    with faults.at(row, id):
      seen = reading(row)
      if (id, row['rad_id']) in once:
        raise SourceFault(f'{id} stands in the file twice')
      once.add((id, row['rad_id']))
      for name, cell in row.cells.items():
        if name in ('image_id', 'rad_id', ''):
          continue
        value = tables.number(cell, name)
        if value not in (0, 1):
          raise SourceFault(f'{name} {cell!r}; wanted 0 or 1')
        if value == 1 and name != NORMAL:
          seen.append((_spelt(name), None))


def _seen(row):
  """[(name, box)] of a row; none for 'No finding'."""
  name = _spelt(row['class_name'])
  cells = [row[corner] for corner in _CORNERS]
  if not name:
    raise SourceFault('no class_name')
  if name == NORMAL:
    if any(cells):
      raise SourceFault(f'{NORMAL} with the box {",".join(cells)}')
    return []
  if name in GLOBAL and not any(cells):
    return [(name, None)]
  return [(name, tables.corners(*cells))]


def _spelt(name):
  # The test tables have it in the singular.
  return 'Other diseases' if name == 'Other disease' else name
