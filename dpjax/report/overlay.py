"""Pictures of where a network looks: heat and boxes over the radiograph."""

import pathlib
import re
from collections.abc import Sequence

import cv2
import numpy as np

GAP, TITLE, CAPTION = 4, 22, 44  # pixels between, above and below the panels
BACKGROUND, INK, FAINT = (252, 252, 252), (30, 30, 30), (105, 105, 105)
# Neither a grey nor a colour of the heat, on a dark edge for bright ground.
BOX, EDGE = (60, 230, 255), (0, 40, 60)
OPACITY = 0.5  # of the heat at 1; none at 0
DIMMED = 0.8  # the radiograph under it: yellow would be lost on white
FONT = cv2.FontFace('sans')
# Perceptually uniform, from blue over red to a yellow that is not pale.
_HEAT = cv2.applyColorMap(
  np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_PLASMA
)[:, 0, ::-1].astype(np.float32)  # (256, 3) red, green, blue


def draw(
  image: np.ndarray,
  boxes: np.ndarray,
  num_boxes: int,
  cam: np.ndarray | None,
  att_pos: np.ndarray | None,
  att_neg: np.ndarray | None,
  *,
  label: str,
  prediction: str,
  side: int = 256,
) -> np.ndarray:
  """A row of panels: radiograph, Grad-CAM, map+ and map-, with boxes.

  The colour and the opacity of the heat follow the value, so that the
  radiograph, a little dimmed, stays visible. Grad-CAM is shown as a share of
  its maximum in this image, the attention maps from 0 to 1. Maps are scaled
  up bilinearly, as they are scored (localisation.py).

  Args:
    image: (S, S) uint8.
    boxes: (K, 4) x0, y0, x1, y1 in 0..1.
    num_boxes: how many of the K are real.
    cam: (h, w), none negative; None: no such panel.
    att_pos: map+ (h, w) in 0..1, or None.
    att_neg: map- (h, w) in 0..1, or None.
    label: name of the true class, for the caption.
    prediction: name of the predicted class.
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
  titles, panels = ['radiograph'], [radiograph]
  for title, values, top in (
    ('Grad-CAM', cam, None),
    ('map+', att_pos, 1.0),
    ('map-', att_neg, 1.0),
  ):
    if values is not None:
      titles.append(title)
      panels.append(_heated(radiograph, values, top))

  width = len(panels) * (side + GAP) - GAP
  row = np.full((TITLE + side + CAPTION, width, 3), BACKGROUND, np.uint8)
  for i, (title, panel) in enumerate(zip(titles, panels, strict=True)):
    left = i * (side + GAP)
    _write(row, _shortened(title, side, 12), (left, TITLE - 7), FAINT, 12)
    row[TITLE : TITLE + side, left : left + side] = _boxed(panel, boxes)
  # A line each: a long name must not push the other out.
  for i, text in enumerate((f'label: {label}', f'prediction: {prediction}')):
    below = TITLE + side + 17 + 19 * i
    _write(row, _shortened(text, width, 14), (0, below), INK, 14)
  return row


def write_overlays(
  folder: str | pathlib.Path,
  ids: Sequence[str],
  images: np.ndarray,
  boxes: np.ndarray,
  num_boxes: np.ndarray,
  labels: Sequence[str],
  predictions: Sequence[str],
  *,
  cam: np.ndarray | None = None,
  att_pos: np.ndarray | None = None,
  att_neg: np.ndarray | None = None,
  side: int = 256,
) -> list[pathlib.Path]:
  """Draws each image (`draw`) into a PNG file of its own.

  Args:
    folder: made if it is not there.
    ids: N, of the images; the files are named by number and id.
    images: (N, S, S) uint8.
    boxes: (N, K, 4).
    num_boxes: (N,).
    labels: N names of classes.
    predictions: N names of classes.
    cam: (N, h, w) or None.
    att_pos: (N, h, w) or None.
    att_neg: (N, h, w) or None.
    side: of a panel, pixels.

  Returns:
    The files, in order.

  Raises:
    ValueError: one line: a file cannot be written; as `draw`.
  """
  folder = pathlib.Path(folder)
  files = []
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(ids):
      row = draw(
        images[i],
        boxes[i],
        int(num_boxes[i]),
        *(None if m is None else m[i] for m in (cam, att_pos, att_neg)),
        label=str(labels[i]),
        prediction=str(predictions[i]),
        side=side,
      )
      # An id may be a path, or longer than a file's name can be.
      plain = re.sub(r'[^A-Za-z0-9._-]+', '_', str(name))[-80:]
      file = folder / f'{i:04d}-{plain}.png'
      file.write_bytes(png(row))
      files.append(file)
  except OSError as error:
    raise ValueError(
      f'{folder}: overlays cannot be written: {error.strerror}'
    ) from error
  return files


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
