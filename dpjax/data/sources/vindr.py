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

The three readers of a training image drew their boxes apart from each other; a
test image has those that five agreed on. Kaggle's test part has no labels and
is left alone. Nguyen et al., VinDr-CXR: an open dataset of chest X-rays with
radiologist's annotations, 2022.
"""

import dataclasses
import pathlib

from dpjax.data import radiograph
from dpjax.data.sources import files, tables
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
  """

  row: tables.Row
  file: pathlib.Path
  readings: dict[str, list[tuple[str, radiograph.Box | None]]]


def read(
  source: str | pathlib.Path, faults: tables.Faults, readers: str = 'union'
) -> list[radiograph.Radiograph]:
  """Reads the tables of the set in the folder `source`; decodes no image.

  Args:
    source: the folder.
    faults: takes what is wrong with an image or a row.
    readers: whose boxes and labels count. 'union': everybody's; 'majority':
      what more than half of an image's readers saw; 'R8': that reader's, and
      images that he did not read are unlabelled. Test images have one reading,
      by all, that always counts.

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
  scans = {}  # split -> {id: _Scan}
  if boxes['train'].exists():
    train = _read_part(source, 'train', boxes['train'], labels['train'], faults)
    scans['train'] = train
    # Either says that there is a test part; the other one is then missed.
    if (source / 'test').exists() or boxes['test'].exists():
      scans['test'] = _read_part(
        source, 'test', boxes['test'], labels['test'], faults, train
      )
  elif (source / 'train.csv').exists():
    table = source / 'train.csv'
    scans[None] = _read_part(source, 'train', table, None, faults)
  else:
    raise UserError(
      f'config.data.source: {source} has neither'
      ' annotations/annotations_train.csv (PhysioNet) nor train.csv (Kaggle)'
    )
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
    classes=(findings or (NORMAL,)) if readings else (),
    findings=findings if readings else None,
    split=split,
    where=str(scan.row),
  )


def _agreed(readings, quorum):
  """What at least `quorum` readers saw: [(name, box)] and [label]."""
  boxes, labels = {}, {}  # name -> what was seen of it, and by whom
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
  groups = []
  for reader, box in drawn:
    lesion, far = [(reader, box)], []
    for group in groups:
      if any(
        other != reader and _overlap(box, theirs) >= OVERLAP
        for other, theirs in group
      ):
        lesion = group + lesion
      else:
        far.append(group)
    groups = [*far, lesion]
  lesions = []
  for group in groups:
    by_reader = {}
    for reader, box in group:
      by_reader.setdefault(reader, []).append(box)
    if len(by_reader) >= quorum:
      lesions.append(_mean([_mean(boxes) for boxes in by_reader.values()]))
  return lesions


def _overlap(a, b):
  """Intersection over union of two boxes."""
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  if width <= 0 or height <= 0:
    return 0.0
  shared = width * height
  areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b)]
  union = sum(areas) - shared
  return shared / union if union > 0 else 0.0  # too small for a float


def _mean(boxes):
  return tuple(sum(corner) / len(boxes) for corner in zip(*boxes, strict=True))


def _read_part(source, part, box_table, label_table, faults, others=()):
  """{id: _Scan} of a part; `others` are the ids of the other one."""
  images = files.Files(source, [part])
  who = () if part == 'test' else ('rad_id',)
  scans = {}

  def reading(row):
    """What the row's reader saw of its image so far, to be added to."""
    id = row['image_id']
    if id not in scans:
      if id in others:
        raise SourceFault(f'{id} is in the other part as well')
      scans[id] = _Scan(row, images.find(f'{part}/{id}'), {})
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
