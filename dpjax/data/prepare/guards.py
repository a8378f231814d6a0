"""What looks wrong with a whole set, though nothing in it is at fault.

Each warning is a line that names an example and what to look at. They stand in
the summary; prepare's --strict takes them for faults.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dpjax.data import radiograph
from dpjax.data.prepare import duplicates
from dpjax.errors import UserError

FLAT = 16  # levels between the darkest and the brightest hundredth
DARK = 64  # the brightest hundredth is darker
WHITE = 250  # from here on a pixel is white
SATURATED = 50  # per cent of the pixels that are white
TINY = 0.02  # of the image's side
ASPECT = 0.05  # of it: rounding a small image's sides changes it by less
BOXES = 10  # from which their place says something
CROWD = 50, 20  # images and patients, from which one patient can be too many
ODD = 'odd_images.csv'


def histogram(image: np.ndarray) -> np.ndarray:
  """How many pixels have each level (256,), of about 16 rows of an image.

  All rows would take a tenth of the time that a small image takes.

  Args:
    image: (H, W) uint8.
  """
  import cv2

  rows = image[:: max(1, len(image) // 16)]
  return cv2.calcHist([rows], [0], None, [256], [0, 256]).ravel()


def tones(histograms: Sequence[np.ndarray]) -> np.ndarray:
  """What tells whether images are flat, dark or saturated.

  Args:
    histograms: of N images, without black bars.

  Returns:
    (N, 3) uint8: the levels that 1 % and 99 % of the pixels do not exceed, and
    how many of a hundred pixels are white.
  """
  below = np.reshape(histograms, (-1, 256)).cumsum(axis=1)
  below = below / below[:, -1:]
  low, high = ((below < share).sum(axis=1) for share in (0.01, 0.99))
  white = 100 * (1 - below[:, WHITE - 1])
  return np.stack([low, high, np.rint(white)], axis=1).astype(np.uint8)


def odd_images(table: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
  """(id, 'flat', 'dark' or 'saturated') of each image that is.

  Args:
    table: columns 'ids' and 'tones' (N, 3).
  """
  found = []
  for id, (low, high, white) in zip(
    table['ids'], table['tones'].astype(int), strict=True
  ):
    if high - low < FLAT:
      found.append((str(id), 'flat'))
    elif high < DARK:
      found.append((str(id), 'dark'))
    elif white >= SATURATED:
      found.append((str(id), 'saturated'))
  return found


def warnings(
  table: Mapping[str, np.ndarray],
  class_names: Sequence[str],
  odd: Sequence[tuple[str, str]],
) -> list[str]:
  """What looks wrong with a set.

  Args:
    table: of all images that are in it, as build has it.
    class_names: of each class.
    odd: of `odd_images`.
  """
  return [
    *_classes(table, class_names),
    *_looks(len(table['ids']), odd),
    *_patients(table),
    *_boxes(table),
  ]


def _classes(table, class_names):
  labels = table['labels'][table['labels'] >= 0]
  if not len(labels):
    return
  counts = np.bincount(labels, minlength=len(class_names))
  example = table['ids'][np.argmax(table['labels'] == counts.argmax())]
  for label, name in enumerate(class_names):
    named = name if name == str(label) else f'{label} ({name})'
    if counts[label] == len(labels):
      yield (
        f'every image with a label is of class {named}, such as {example}: look'
        ' how the source says that an image is another, and at data.label'
      )
    elif not counts[label] and not name.startswith('unused '):
      yield (
        f'no image is of class {named}; {example}, for one, is of class'
        f' {class_names[counts.argmax()]}: look whether the source says so'
      )


def _looks(count, odd):
  words = {
    'flat': 'nearly flat, of one grey level',
    'dark': 'nearly black',
    'saturated': 'white for the most part',
  }
  for kind, word in words.items():
    ids = [id for id, what in odd if what == kind]
    if ids:
      share = 100 * len(ids) / count
      yield (
        f'{len(ids):,} of {count:,} images ({share:.2g} %) come out {word},'
        f' such as {ids[0]}: look at them ({ODD} lists them) and at their files'
      )


def _patients(table):
  # An image without a patient is one of its own here.
  counts = np.bincount(table['groups'])
  images, patients = CROWD
  most = counts.argmax()
  if (
    len(table['groups']) >= images
    and np.count_nonzero(counts) >= patients
    and counts[most] * 10 > len(table['groups'])
  ):
    example = table['ids'][np.argmax(table['groups'] == most)]
    yield (
      f'one patient has {counts[most]:,} of {len(table["groups"]):,} images,'
      f' such as {example}: look whether that is a patient, or a name for none'
    )


def _boxes(table):
  owners = np.flatnonzero(table['num_boxes'])
  if not len(owners):
    return
  example, count = table['ids'][owners[0]], int(table['num_boxes'].sum())
  sides = table['boxes'][owners, :, 2:] - table['boxes'][owners, :, :2]
  if sides.max() < TINY:
    yield (
      f'all {count:,} boxes are tiny, under {TINY:.0%} of the image a side,'
      f' such as those of {example}: look whether they count in its pixels'
    )
  elif count >= BOXES and table['boxes'][owners, :, 2:].max() <= 0.5:
    yield (
      f'all {count:,} boxes lie in the left upper quarter of their image, such'
      f' as those of {example}: look whether they count in its pixels, and not'
      ' in per cent or in those of a smaller one'
    )
  clipped = table['clipped']
  if 3 * clipped.sum() >= count:
    yield (
      f'{clipped.sum():,} of {count:,} boxes stick out of their image, such as'
      f' in {table["ids"][clipped.argmax()]}: look whether they count in its'
      ' pixels, and upright'
    )


def without_patient(
  records: Sequence[radiograph.Radiograph], patients: Sequence[str]
) -> Iterator[str]:
  """Warns of images without a patient among others whose headers name one.

  Args:
    records: of the images.
    patients: of each image, '' where neither source nor header names one.
  """
  # Where the source names some, its reader told of what can have no header.
  told = any(record.group for record in records)
  alone = [
    record
    for record, name in zip(records, patients, strict=True)
    if not name and (record.header or not told)
  ]
  if alone and any(patients):
    yield (
      f'{len(alone):,} of {len(records):,} images have no patient, such as'
      f' {alone[0].id}, as their headers name none, and each counts as a'
      ' patient of its own'
    )


def patients_alike(
  patients: Sequence[str], ids: Sequence[str]
) -> Iterator[str]:
  """Warns of patients whose names differ in case or leading zeros alone.

  It names images, as a set holds no patient's name.

  Args:
    patients: of each image, '' where none is named.
    ids: of the images.
  """
  first: dict[str, str] = {}
  for name, id in zip(patients, ids, strict=True):
    if name:
      first.setdefault(name, id)
  alike: dict[str, list[str]] = {}
  for name, id in first.items():
    key = re.sub(r'(?<![0-9])0+(?=[0-9])', '', name.casefold())
    alike.setdefault(key, []).append(id)
  several = [images for images in alike.values() if len(images) > 1]
  if several:
    one, two = several[0][:2]
    yield (
      'some patients have names that differ in case or leading zeros alone'
      f' (such names: {len(several):,}), such as those of {one} and {two}: each'
      ' spelling counts as a patient of its own; write the same one alike'
    )


def copies_that_differ(
  copies: Sequence[duplicates.Copy],
  ids: Sequence[str],
  labels: np.ndarray,
  class_names: Sequence[str],
) -> Iterator[str]:
  """Warns of copies of an image that is labelled otherwise.

  Args:
    copies: of duplicates.find.
    ids: of the images.
    labels: (N,) of the images, -1 where unlabelled.
    class_names: of each class.
  """
  found = [
    copy
    for copy in copies
    if labels[copy.first] != labels[copy.second]
    and min(labels[copy.first], labels[copy.second]) >= 0
  ]
  if found:
    one, two = (
      f'{ids[i]} ({class_names[labels[i]]})'
      for i in (found[0].first, found[0].second)
    )
    yield (
      f'{len(found):,} of {len(copies):,} copies are labelled otherwise than'
      f' the image that they copy, such as {one} and {two}: one label is wrong'
      ' (duplicates.csv lists them)'
    )


def other_aspects(
  records: Sequence[radiograph.Radiograph], aspects: np.ndarray
) -> Iterator[str]:
  """Warns of boxes in a frame of another aspect than the file that has it.

  Args:
    records: of N images.
    aspects: (N,) width / height of their files.
  """
  found = [
    (record, record.frame)
    for record, aspect in zip(records, aspects.tolist(), strict=True)
    if record.boxes
    and record.own_frame
    and record.frame
    and abs(record.frame[0] / record.frame[1] / aspect - 1) > ASPECT
  ]
  if found:
    record, (width, height) = found[0]
    some = len(found) > 1
    yield (
      f'{len(found):,} image{"s" * some} with boxes'
      f' {"have" if some else "has"} another aspect than the source says, such'
      f' as {record.id}, {width:g} x {height:g} there: the boxes are stretched'
      ' with it, which is wrong if it was cropped or padded'
    )


def check(warned: Sequence[str] | None, strict: bool, where: object) -> None:
  """Refuses what is warned of, where --strict asks for it.

  Args:
    warned: None: of a set from before there were warnings.
    strict: whether it does.
    where: the set or the source.

  Raises:
    UserError: one line, the first warning.
  """
  if not strict or warned == []:
    return
  if warned is None:
    raise UserError(
      f'--strict: {where} was prepared before there were warnings; prepare it'
      ' again under another config.data.path'
    )
  more = f' (and {len(warned) - 1} more)' if len(warned) > 1 else ''
  raise UserError(f'--strict: {where}: {warned[0]}{more}')
