"""Draws docs/overview.png: what both stages see of three phantoms.

    python benchmarks/overview.py

Drawn by the functions that training uses, with the settings of configs/base.py.
"""

import pathlib
import runpy

import cv2
import numpy as np

from dpjax.data.feed import decisions, lesion_masks, render_host
from dpjax.data.prepare import labels
from dpjax.data.sources import phantom
from dpjax.models import sides as sides_lib

ROOT = pathlib.Path(__file__).parents[1]
PICTURE = ROOT / 'docs/overview.png'
SEED = 6  # of the decisions
LABELS = (1, 2, 3)

TILE, GAP, GROUP_GAP = 128, 4, 14  # pixels of the picture
TOP, LEFT, EDGE = 46, 38, 8
BACKGROUND, INK, FAINT = (252, 252, 252), (40, 40, 40), (110, 110, 110)
ORANGE = (20, 130, 255)  # OpenCV orders blue, green, red
FONT = cv2.FontFace('sans')


def main():
  """Writes the picture."""
  config = runpy.run_path(str(ROOT / 'configs/base.py'))['get_config']()
  records = phantom.read(200, seed=0, size=config.data.store_size)
  records, _ = labels.assign(records, 'count')
  boxes, num_boxes = _pad(records)
  lesions = num_boxes > 0
  donors = boxes[lesions], num_boxes[lesions]
  rows = [int(np.argmax(num_boxes == label)) for label in LABELS]
  chosen = [records[row] for row in rows]
  images = np.stack([r.pixels() for r in chosen])  # (B, S, S)
  boxes, num_boxes = boxes[rows], num_boxes[rows]

  rng = np.random.default_rng(SEED)
  size = config.data.image_size
  pair = decisions.draw(
    rng,
    boxes,
    num_boxes,
    decisions.Augmentation(**config.pretrain.augment),
    views=2,
  )
  crop = decisions.draw(
    rng,
    boxes,
    num_boxes,
    decisions.Augmentation(**config.retrain.augment),
    views=1,
    donors=donors,
  )
  views = render_host.render(images, pair, size)  # (B, 2, size, size)
  inputs = render_host.render(images, crop, size)[:, 0]  # (B, size, size)
  sides = sides_lib.resnet(size, config.model.stage_sizes)
  masks = lesion_masks.on_host(
    boxes, num_boxes, crop['affine'][:, 0], sides, config.mgacr.mask
  )

  columns = [
    f'{config.data.store_size} x {config.data.store_size}',
    f'view a, {size} x {size}',
    f'view b, {size} x {size}',
    *(f'{name}, {side} x {side}' for name, side in sides.items()),
  ]
  groups = (
    (0, 'Phantom, boxes'),
    (1, 'Stage I: the augmented pair'),
    (3, 'Stage II: one crop, under the lesion mask of each backbone stage'),
  )
  lefts = [
    LEFT + i * (TILE + GAP) + GROUP_GAP * ((i >= 1) + (i >= 3))
    for i in range(len(columns))
  ]
  height = TOP + len(chosen) * (TILE + GAP) + EDGE
  canvas = np.full((height, lefts[-1] + TILE + EDGE, 3), BACKGROUND, np.uint8)
  for column, text in groups:
    _write(canvas, text, (lefts[column], 16), INK, 13, weight=600)
  _write(canvas, 'label', (6, 36), FAINT, 11)
  for left, text in zip(lefts, columns, strict=True):
    _write(canvas, text, (left, 36), FAINT, 11)
  for row, record in enumerate(chosen):
    tiles = [
      _outlined(images[row], record.boxes),
      *(_tile(view) for view in views[row]),
      *(_overlaid(inputs[row], masks[stage][row]) for stage in sides),
    ]
    top = TOP + row * (TILE + GAP)
    _write(canvas, str(record.label), (14, top + TILE // 2 + 6), INK, 16, 600)
    for left, tile in zip(lefts, tiles, strict=True):
      canvas[top : top + TILE, left : left + TILE] = tile
  cv2.imwrite(str(PICTURE), canvas, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _pad(records):
  """Boxes (B, K, 4) float32, zero-padded, and their numbers (B,)."""
  num_boxes = np.array([len(r.boxes) for r in records], np.int32)
  boxes = np.zeros((len(records), max(num_boxes), 4), np.float32)
  for padded, record in zip(boxes, records, strict=True):
    padded[: len(record.boxes)] = np.reshape(record.boxes, (-1, 4))
  return boxes, num_boxes


def _tile(grey):
  """(S, S) uint8 -> (TILE, TILE, 3) uint8."""
  small = cv2.resize(grey, (TILE, TILE), interpolation=cv2.INTER_AREA)
  return cv2.cvtColor(small, cv2.COLOR_GRAY2BGR)


def _outlined(grey, boxes):
  tile = _tile(grey)
  for box in boxes:
    x0, y0, x1, y1 = (round(c * TILE) for c in box)
    cv2.rectangle(tile, (x0, y0), (x1, y1), ORANGE, 1)
  return tile


def _overlaid(grey, mask):
  """The mask's cells over the image, as dense as they are covered."""
  cells = cv2.resize(mask, (TILE, TILE), interpolation=cv2.INTER_NEAREST)
  share = 0.55 * cells[..., None]  # (TILE, TILE, 1)
  return np.rint((1 - share) * _tile(grey) + share * np.array(ORANGE))


def _write(canvas, text, origin, colour, size, weight=400):
  cv2.putText(canvas, text, origin, colour, FONT, size, weight)


if __name__ == '__main__':
  main()
