"""The one record type that every reader yields, and its pixels."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Radiograph:
  """One exam as its source describes it; the pixels stay on disk.

  Attributes:
    id: unique in its set.
    pixels: picklable; returns the image, (H, W) uint8 grey. It is called in a
      worker process, once.
    label: the class, 0 or more; None where nobody labelled it.
    boxes: one (x0, y0, x1, y1) per lesion, x to the right, y down.
    group: the patient, or the exam where that is all there is: a group is
      never on two sides of a split.
    split: 'train' or 'test' where the source itself says so, else None.
    box_units: 'unit' where the frame's edges are 0 and 1, or 'pixels' of the
      image as `pixels` returns it. Pixels are for sources whose images must be
      decoded before their size is known.
  """

  id: str
  pixels: Callable[[], np.ndarray]
  label: int | None
  boxes: tuple[tuple[float, float, float, float], ...]
  group: str
  split: str | None = None
  box_units: str = 'unit'


def read_grey(path: str) -> np.ndarray:
  """Returns the image file `path` as stored, (H, W) uint8.

  An orientation tag is not obeyed: boxes count pixels of the stored rows.

  Raises:
    ValueError: the file is not a readable image.
  """
  import cv2

  flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
  try:
    pixels = cv2.imread(path, flags)
  except cv2.error:
    pixels = None
  if pixels is None:
    raise ValueError(f'{path}: not readable as an image; it must be JPEG or PNG')
  return pixels


def square(pixels: np.ndarray, size: int) -> np.ndarray:
  """Stretches `pixels` (H, W) uint8 to (size, size), as every model sees them.

  Sides shrink by area averaging and grow bilinearly, so unit coordinates keep
  their place. An image that already has this size is returned as it is.
  """
  if pixels.shape == (size, size):
    return pixels
  import cv2

  # One side may shrink while the other grows, and OpenCV does not average
  # areas unless both shrink: so shrink first.
  height, width = pixels.shape
  shrunk = (min(width, size), min(height, size))
  pixels = cv2.resize(pixels, shrunk, interpolation=cv2.INTER_AREA)
  return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
