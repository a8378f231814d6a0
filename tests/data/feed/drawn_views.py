"""Boxes, and the documented map of a view, computed step by step."""

import dataclasses
import math

import numpy as np

from dpjax.data.feed import decisions

USUAL = decisions.Augmentation(
  scale=(0.5, 1.0),
  aspect=4 / 3,
  flip=0.5,
  rotation=10.0,
  brightness=0.2,
  contrast=0.2,
  blur=0.5,
  blur_sigma=(0.1, 1.5),
  noise=0.3,
  noise_std=(0.0, 8.0),
  keep_lesions=False,
)
STILL = dataclasses.replace(
  USUAL,
  scale=(1, 1),
  aspect=1,
  flip=0,
  rotation=0,
  brightness=0,
  contrast=0,
  blur=0,
  noise=0,
)
NO_BOXES = np.zeros((1, 1, 4), np.float32), np.zeros(1, np.int32)


def random_boxes(rng, batch, most=4, share=1.0):
  """(B, K, 4) boxes of a pneumonia set's sizes; `share` of images have any."""
  side = rng.uniform(0.06, 0.4, (batch, most, 2))
  low = rng.uniform(0, 1, (batch, most, 2)) * (1 - side)
  boxes = np.concatenate([low, low + side], -1).astype(np.float32)
  num = rng.integers(1, most + 1, batch) * (rng.random(batch) < share)
  boxes[np.arange(most) >= num[:, None]] = 0
  return boxes, num.astype(np.int32)


def affine_of(
  width=1.0, height=1.0, center=(0.5, 0.5), flip=False, degrees=0.0
):
  """The documented map, step by step: turn, mirror, scale, move (2, 3)."""
  t = math.radians(degrees)
  turn = np.array([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]])
  mirror = np.diag([-1.0 if flip else 1.0, 1.0])
  linear = np.diag([width, height]) @ mirror @ turn
  offset = np.asarray(center) - linear @ [0.5, 0.5]
  return np.concatenate([linear, offset[:, None]], 1)


def decisions_of(affine):
  drawn = decisions.identity(1)
  drawn['affine'] = np.asarray(affine, np.float32)[None, None]
  return drawn


def to_output(affine, points):
  """Source points (..., 2) to output points, in float64."""
  affine = np.asarray(affine, np.float64)
  return (points - affine[:, 2]) @ np.linalg.inv(affine[:, :2]).T


def corners(boxes):
  x0, y0, x1, y1 = np.moveaxis(np.asarray(boxes, np.float64), -1, 0)
  return np.stack([x0, y0, x1, y0, x1, y1, x0, y1], -1).reshape(*x0.shape, 4, 2)


def lesion_views(count, views=1, seed=0, **changes):
  """Boxes (B, 3, 4), their number with some 0, and drawn drawn."""
  rng = np.random.default_rng(seed)
  side = rng.uniform(0.06, 0.5, (count, 3, 2))
  low = rng.uniform(0, 1, (count, 3, 2)) * (1 - side)
  boxes = np.concatenate([low, low + side], -1).astype(np.float32)
  num = (np.arange(count) % 4).astype(np.int32)
  boxes[np.arange(3) >= num[:, None]] = 0
  settings = dataclasses.replace(USUAL, **changes)
  return boxes, num, decisions.draw(rng, boxes, num, settings, views)
