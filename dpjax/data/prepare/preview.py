"""A contact sheet of a prepared set, to see that images and boxes are right."""

import itertools
import pathlib

import cv2
import numpy as np

from dpjax.data import store
from dpjax.errors import UserError

MOST = 400  # tiles: about 5,300 x 6,100 pixels

TILE, GAP, EDGE = 256, 8, 12  # pixels of the picture
TITLE, CAPTION = 34, 38  # heights
BACKGROUND, INK, FAINT = (252, 252, 252), (40, 40, 40), (110, 110, 110)
ORANGE = (20, 130, 255)  # OpenCV orders blue, green, red
FONT = cv2.FontFace('sans')


def write(
  data: store.Store, file: pathlib.Path, count: int, seed: int = 0
) -> None:
  """Draws radiographs of all splits and classes with their boxes, as a PNG.

  Args:
    data: the set.
    file: the PNG.
    count: radiographs to draw, MOST at most; all where there are fewer.
    seed: of the choice.

  Raises:
    UserError: one line: `count` is below 1, or the file cannot be written.
  """
  if count < 1:
    raise UserError(f'a preview of {count} radiographs; wanted 1 or more')
  chosen = pick(data, min(count, MOST), seed)
  columns = int(np.ceil(np.sqrt(len(chosen))))
  rows = -(-len(chosen) // columns)
  title = _title(data, len(chosen))
  width = max(columns * (TILE + GAP) - GAP, _width(title, 15, 600))
  height = TITLE + rows * (TILE + CAPTION + GAP) - GAP
  sheet = np.full(
    (height + 2 * EDGE, width + 2 * EDGE, 3), BACKGROUND, np.uint8
  )
  _write(sheet, title, (EDGE, EDGE + 16), INK, 15, 600)
  for place, (name, row) in enumerate(chosen):
    split = data.splits[name]
    left = EDGE + place % columns * (TILE + GAP)
    top = EDGE + TITLE + place // columns * (TILE + CAPTION + GAP)
    sheet[top : top + TILE, left : left + TILE] = _tile(
      split.images(np.array([row]))[0],
      split.boxes[row, : split.num_boxes[row]],
    )
    below = top + TILE
    id = _shortened(str(split.ids[row]), 13)
    _write(sheet, id, (left, below + 15), INK, 13)
    label = int(split.labels[row])
    kind = f'class {data.class_names[label]}, ' if label >= 0 else ''
    _write(sheet, _shortened(kind + name, 12), (left, below + 31), FAINT, 12)
  try:
    file.write_bytes(cv2.imencode('.png', sheet)[1].tobytes())
  except OSError as error:
    raise UserError(f'{file}: cannot be written: {error.strerror}') from error


def pick(data: store.Store, count: int, seed: int) -> list[tuple[str, int]]:
  """Radiographs to look at: (split, row in it), by class.

  The classes take turns, and in a class those with boxes and those without.
  """
  rng = np.random.default_rng(seed)
  # (label, has boxes) -> [(split, row)]
  queues: dict[tuple[int, bool], list[tuple[str, int]]] = {}
  for name, split in data.splits.items():
    for row, label in enumerate(split.labels):
      key = int(label), bool(split.num_boxes[row])
      queues.setdefault(key, []).append((name, row))
  for key in sorted(queues):
    rng.shuffle(queues[key])
  # Unlabelled ones (-1) come last.
  labels = sorted({label for label, _ in queues}, key=lambda n: (n < 0, n))
  turns = []
  for label in labels:
    boxed, plain = (queues.get((label, k), []) for k in (True, False))
    pairs = itertools.zip_longest(boxed, plain)
    turns.append([one for pair in pairs for one in pair if one is not None])
  order = itertools.chain.from_iterable(itertools.zip_longest(*turns))
  chosen = set(itertools.islice(filter(None, order), count))
  return [one for turn in turns for one in turn if one in chosen]


def _title(data, count):
  sizes = {name: len(split) for name, split in data.splits.items()}
  parts = ', '.join(f'{name} {size:,}' for name, size in sizes.items())
  name = pathlib.Path(data.path).name
  return f'{name}: {count:,} of {sum(sizes.values()):,} radiographs ({parts})'


def _tile(grey, boxes):
  """(S, S) uint8 and (K, 4) in 0..1 -> (TILE, TILE, 3) uint8."""
  method = cv2.INTER_AREA if len(grey) > TILE else cv2.INTER_LINEAR
  tile = cv2.resize(grey, (TILE, TILE), interpolation=method)
  tile = cv2.cvtColor(tile, cv2.COLOR_GRAY2BGR)
  for x0, y0, x1, y1 in np.rint(boxes * (TILE - 1)).astype(int).tolist():
    cv2.rectangle(tile, (x0, y0), (x1, y1), ORANGE, 2)
  return tile


def _shortened(text, size):
  """`text`, without its middle if it is wider than a tile."""
  short, kept = text, len(text)
  while _width(short, size, 400) > TILE:
    kept -= 1
    short = f'{text[: -(-kept // 2)]}...{text[len(text) - kept // 2 :]}'
  return short


def _width(text, size, weight):
  return cv2.getTextSize((0, 0), text, (0, 0), FONT, size, weight)[2]


def _write(sheet, text, origin, colour, size, weight=400):
  cv2.putText(sheet, text, origin, colour, FONT, size, weight)
