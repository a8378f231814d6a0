"""Pictures of where a network looks: heat and boxes over the radiograph."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

GAP, TITLE, CAPTION = 4, 22, 44  # pixels between, above and below the panels
BACKGROUND, INK, FAINT = (252, 252, 252), (30, 30, 30), (105, 105, 105)
# Neither a grey nor a colour of the heat, on a dark edge for bright ground.
BOX, EDGE = (60, 230, 255), (0, 40, 60)
OPACITY = 0.5  # of the heat at 1; none at 0
DIMMED = 0.8  # the radiograph under it: yellow would be lost on white
_ORANGE, _BLUE = (230, 159, 0), (86, 180, 233)  # of mask+ and mask-
FONT = cv2.FontFace('sans')
# Perceptually uniform, from blue over red to a yellow that is not pale.
_HEAT = cv2.applyColorMap(
  np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_PLASMA
)[:, 0, ::-1].astype(np.float32)  # (256, 3) red, green, blue


def draw(
  image: np.ndarray,
  boxes: np.ndarray,
  num_boxes: int,
  maps: Mapping[str, tuple[np.ndarray, float | None]],
  *,
  caption: Sequence[str],
  side: int = 256,
) -> np.ndarray:
  """A row of panels: the radiograph, and each map over it, with boxes.

  The colour and the opacity of the heat follow the value, so that the
  radiograph, a little dimmed, stays visible. Maps are scaled up bilinearly, as
  they are scored (localisation.py).

  Args:
    image: (S, S) uint8.
    boxes: (K, 4) x0, y0, x1, y1 in 0..1.
    num_boxes: how many of the K are real.
    maps: title -> (values (h, w), none negative; the value of the hottest
      colour, or None for the maximum of this map).
    caption: lines below, two at the most.
    side: of a panel, pixels.

  Returns:
    (H, W, 3) uint8, red, green, blue.

  Raises:
    ValueError: an image or a map of another shape.
  """
  if image.ndim != 2 or image.dtype != np.uint8:
    raise ValueError(
      f'overlay: the image must be (S, S) uint8, got {image.shape}'
      f' {image.dtype}'
    )
  boxes = np.asarray(boxes).reshape(-1, 4)[:num_boxes]
  grey = _resized(image, side)
  radiograph = np.repeat(grey[..., None], 3, axis=-1)
  panels = {'Radiograph': radiograph}
  for title, (values, top) in maps.items():
    panels[title] = _heated(radiograph, values, top)

  width = len(panels) * (side + GAP) - GAP
  row = np.full((TITLE + side + CAPTION, width, 3), BACKGROUND, np.uint8)
  for i, (title, panel) in enumerate(panels.items()):
    left = i * (side + GAP)
    _write(row, _shortened(title, side, 12), (left, TITLE - 7), FAINT, 12)
    row[TITLE : TITLE + side, left : left + side] = _boxed(panel, boxes)
  # A line each: a long name must not push the other out.
  for i, text in enumerate(caption):
    below = TITLE + side + 17 + 19 * i
    _write(row, _shortened(text, width, 14), (0, below), INK, 14)
  return row


def masked(
  image: np.ndarray, mask: np.ndarray, positive: bool, side: int
) -> np.ndarray:
  """A radiograph under the cells of a mask, as dense as their value.

  Args:
    image: (S, S) uint8.
    mask: (h, h) in 0..1.
    positive: mask+ (orange) or mask- (blue).
    side: of the tile, pixels.

  Returns:
    (side, side, 3) uint8, red, green, blue.
  """
  cells = cv2.resize(
    np.asarray(mask, np.float32), (side, side), interpolation=cv2.INTER_NEAREST
  )
  share = 0.6 * cells[..., None]  # (side, side, 1)
  colour = np.array(_ORANGE if positive else _BLUE)
  mixed = (1 - share) * _resized(image, side)[..., None] + share * colour
  return np.rint(mixed).astype(np.uint8)


def png(picture: np.ndarray) -> bytes:
  """A picture (H, W, 3) uint8 of red, green, blue as a PNG file."""
  return cv2.imencode('.png', picture[..., ::-1])[1].tobytes()


def _resized(image, side):
  method = cv2.INTER_AREA if len(image) > side else cv2.INTER_LINEAR
  return cv2.resize(image, (side, side), interpolation=method)


def _heated(radiograph, values, top):
  """A panel (S, S, 3) under the heat of values (h, w), 0 to `top`.

  `top` None: their maximum.
  """
  if values.ndim != 2:
    raise ValueError(f'overlay: a map must be (h, w), got {values.shape}')
  values = cv2.resize(
    np.asarray(values, np.float32),
    radiograph.shape[:2],
    interpolation=cv2.INTER_LINEAR,
  )
  top = top or float(values.max()) or 1.0
  share = np.clip(values / top, 0, 1)
  colour = _HEAT[np.rint(255 * share).astype(np.uint8)]  # (S, S, 3)
  alpha = OPACITY * share[..., None]
  mixed = (1 - alpha) * DIMMED * radiograph + alpha * colour
  return np.rint(mixed).astype(np.uint8)


def _boxed(panel, boxes):
  panel = panel.copy()
  last = len(panel) - 1
  corners = np.rint(np.clip(boxes, 0, 1) * last).astype(int).tolist()
  for colour, thickness in ((EDGE, 4), (BOX, 2)):
    for x0, y0, x1, y1 in corners:
      cv2.rectangle(panel, (x0, y0), (x1, y1), colour, thickness)
  return panel


def _shortened(text, width, size):
  """`text`, without its end if it is wider."""
  text = ' '.join(text.split())
  short, kept = text, len(text)
  while kept and _width(short, size) > width:
    kept -= 1
    short = f'{text[:kept]}...'
  return short


def _width(text, size):
  return cv2.getTextSize((0, 0), text, (0, 0), FONT, size, 400)[2]


def _write(picture, text, origin, colour, size):
  cv2.putText(picture, text, origin, colour, FONT, size, 400)
