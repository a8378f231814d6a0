"""The one record that every reader yields."""

from collections.abc import Callable
import dataclasses
import functools
import os
import pathlib

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
      ValueError: nothing of a box lies in the frame.
    """
    boxes = np.asarray(self.boxes, np.float64).reshape(-1, 4)
    if self.box_units == 'pixel':
      boxes = boxes / [width, height, width, height]
    clipped = boxes.clip(0, 1)
    empty = (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    if empty.any():
      box = self.boxes[int(np.argmax(empty))]
      raise ValueError(
        f'{self.id}: box {box} lies outside of the {width} x {height} image'
      )
    # Rounding of the csv's decimals is not sticking out.
    out = (np.abs(clipped - boxes) > 1e-4).any(axis=1).sum()
    return clipped.astype(np.float32), int(out)


def read_grey(path: str | pathlib.Path) -> np.ndarray:
  """Decodes an image file to (H, W) uint8.

  Raises:
    ValueError: the file is missing or no readable image.
  """
  import cv2

  # Not imread, which prints its own warnings.
  try:
    encoded = np.fromfile(path, np.uint8)
  except OSError as error:
    raise ValueError(f'{path}: cannot be read: {error.strerror}') from error
  image = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) if encoded.size else None
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
