"""The one record that every reader yields."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import numpy as np

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Radiograph:
  """One image of a set, as its source has it.

  Attributes:
    id: unique in the set.
    pixels: picklable; called in a worker process, returns (H, W) uint8.
    label: the class, 0 and up; None where unlabelled.
    boxes: lesions, (x0, y0, x1, y1) from the left upper corner.
    group: the patient, or the exam where that is all there is; a group is
      never on two sides of a split.
    split: 'test' if the source brings this image as its labelled test part,
      else None.
    box_units: 'unit' (0..1 of width and height) or 'pixel' of `pixels`.
    stamp: changes when the pixels do; part of a prepared set's fingerprint.
  """

  id: str
  pixels: Callable[[], np.ndarray]
  label: int | None
  boxes: tuple[Box, ...]
  group: str
  split: str | None = None
  box_units: str = 'unit'
  stamp: str = ''

  def unit_boxes(self, height: int, width: int) -> tuple[np.ndarray, int]:
    """The boxes in 0..1, clipped to the frame.

    Args:
      height, width: of `pixels`.

    Returns:
      boxes (K, 4) float32, and how many of them stuck out.

    Raises:
      ValueError: nothing of a box lies in the frame, or it is not finite.
    """
    frame = {'unit': (1, 1), 'pixel': (width, height)}[self.box_units]
    boxes = np.asarray(self.boxes, np.float64).reshape(-1, 4) / (frame * 2)
    clipped = boxes.clip(0, 1).astype(np.float32)
    # A NaN fails every comparison, so ask for what is wanted.
    good = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    if not good.all():
      box = self.boxes[int(np.argmin(good))]
      raise ValueError(
        f'{self.id}: nothing of box {box} lies in the {width} x {height} image'
      )
    # Rounding of the csv's decimals is not sticking out.
    out = (np.abs(clipped - boxes) > 1e-4).any(axis=1).sum()
    return clipped, int(out)


def read_grey(path: str | pathlib.Path) -> np.ndarray:
  """Decodes an image file to (H, W) uint8, as stored.

  An orientation tag is not obeyed: boxes count the stored pixels.

  Raises:
    ValueError: the file is missing or no readable image.
  """
  import cv2

  # Not imread, which prints its own warnings.
  try:
    encoded = np.fromfile(path, np.uint8)
  except OSError as error:
    raise ValueError(f'{path}: cannot be read: {error.strerror}') from error
  flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
  try:
    image = cv2.imdecode(encoded, flags) if encoded.size else None
  except cv2.error:  # More than 2**30 pixels.
    image = None
  if image is None:
    raise ValueError(f'{path}: not a readable image')
  return image


def from_file(
  path: pathlib.Path, id: str, label: int | None, boxes: tuple[Box, ...],
  **fields: str | None,
) -> Radiograph:  # fmt: skip
  """A record of an image file; boxes in its pixels, group its own id."""
  status = os.stat(path)
  return Radiograph(
    id=id,
    pixels=functools.partial(read_grey, str(path)),
    label=label,
    boxes=boxes,
    group=fields.pop('group', None) or id,
    box_units='pixel',
    stamp=f'{status.st_size} {status.st_mtime_ns}',
    **fields,
  )
