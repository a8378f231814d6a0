"""The one record that every reader yields."""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Mapping

import numpy as np

from dpjax.errors import SourceFault

Box = tuple[float, float, float, float]

UNIT = (1.0, 1.0)  # the frame of boxes in 0..1


@dataclasses.dataclass(frozen=True)
class Radiograph:
  """One image of a set, as its source has it.

  Attributes:
    id: unique in the set.
    pixels: picklable; called in a worker process, returns (H, W) uint8.
    boxes: lesions, (x0, y0, x1, y1) from the left upper corner.
    group: the patient, or the exam where that is all there is; a group is
      never on two sides of a split. None: the patient of `header`, else alone.
    label: the class, 0 and up; None where unlabelled. Set by labels.assign.
    classes: what the source calls the image, for labels by class name.
    findings: what the source says is to be seen, boxed or not; None where it
      says nothing, as in an unlabelled image.
    names: what each box is, or () where the source does not say.
    split: the side on which the source puts the image, one of 'train',
      'validation', 'test'; None where it does not say.
    frame: (width, height) that the boxes count in, `UNIT` for 0..1; None: the
      frame of `pixels`.
    own_frame: the source states `frame` as the size of this very file.
    metadata: column -> value, for scores of subgroups.
    header: picklable; called in a worker process, returns more metadata, with
      'patient' among it where the file names one.
    stamp: changes when the pixels do; part of a prepared set's fingerprint.
    file: of the pixels, if they have one.
    where: what names the image in an error: 'labels.csv, row 7'.
  """

  id: str
  pixels: Callable[[], np.ndarray]
  boxes: tuple[Box, ...] = ()
  group: str | None = None
  label: int | None = None
  classes: tuple[str, ...] = ()
  findings: tuple[str, ...] | None = None
  names: tuple[str, ...] = ()
  split: str | None = None
  frame: tuple[float, float] | None = UNIT
  own_frame: bool = False
  metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
  header: Callable[[], Mapping[str, str]] | None = None
  stamp: str = ''
  file: str = ''
  where: str = ''

  def unit_boxes(self, height: int, width: int) -> tuple[np.ndarray, int]:
    """The boxes in 0..1, clipped to the frame.

    Args:
      height, width: of `pixels`.

    Returns:
      boxes (K, 4) float32, and how many of them stuck out.

    Raises:
      SourceFault: nothing of a box lies in the frame, or it is not finite; or
        the frame is that of an image on its side.
    """
    if not self.boxes:
      return np.zeros((0, 4), np.float32), 0
    frame = self.frame or (width, height)
    if height != width and tuple(frame) == (height, width):
      # Whether its boxes lie on their side too, nothing tells.
      raise SourceFault(
        f'its boxes count in {frame[0]:g} x {frame[1]:g} pixels, and the image'
        f' is upright, {width} x {height} (an EXIF orientation is obeyed);'
        ' write its upright size and boxes'
      )
    boxes = np.array(self.boxes, np.float64) / (*frame, *frame)
    clipped = boxes.clip(0, 1).astype(np.float32)
    # A NaN fails every comparison, so ask for what is wanted.
    good = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    if not good.all():
      box = self.boxes[int(np.argmin(good))]
      raise SourceFault(
        f'nothing of box {box} lies in the frame of {frame[0]:g} x {frame[1]:g}'
      )
    # Rounding of the csv's decimals is not sticking out.
    out = (np.abs(clipped - boxes) > 1e-4).any(axis=1).sum()
    return clipped, int(out)


def patient(name: str) -> str:
  """A patient's name, one for all the ways in which programs write it.

  Args:
    name: as a table, a path or a header has it.

  Returns:
    It with accents composed (NFC), one blank for several, and no '.0' behind a
    whole number, where pandas puts it in a column with empty cells.
  """
  name = ' '.join(unicodedata.normalize('NFC', name).split())
  return re.sub(r'^([0-9]+)\.0+$', r'\1', name)


def age(text: str) -> str:
  """Whole years of an age as public sets and DICOM write it.

  Args:
    text: a number of years, or one with its unit: '58', '058Y', '011M', '006W',
      '003D'.

  Returns:
    The years; '90' for 90 to 120, as an age above 89 tells who it is; '' where
    it is no age, or above 120, which is a slip.
  """
  found = re.fullmatch(r'([0-9]{1,3})([YMWD]?)', text)
  if not found:
    return ''
  per_year = {'': 1, 'Y': 1, 'M': 12, 'W': 52, 'D': 365}[found[2]]
  years = int(found[1]) // per_year
  return str(min(years, 90)) if years <= 120 else ''
