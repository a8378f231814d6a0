"""Lesion masks of the attention, from the boxes under the map of the pixels.

Two twins, `on_host` (numpy) and `on_device` (JAX): each only says which points
of a grid lie in a box; `stage_masks` makes every stage's mask of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dpjax.data.feed import render_common

if TYPE_CHECKING:  # else the host's part would load JAX
  import jax

# Sub-samples a side in each cell of the finest attention mask.
_SAMPLES = 4


def on_host(
  boxes: np.ndarray,
  num_boxes: np.ndarray,
  affine: np.ndarray,
  stage_sizes: Mapping[str, int],
  kind: str = 'area',
) -> dict[str, np.ndarray]:
  """Lesion masks of one view, under the map that renders its pixels.

  The mask is that of the UNION of the turned boxes clipped to the frame. The
  map leads from the output to the source, so whether a point of the output is
  covered is asked exactly: is its source point in a box?

  Args:
    boxes: (B, K, 4) x0, y0, x1, y1 in source unit coordinates, zero-padded.
    num_boxes: (B,) how many of the K are real.
    affine: (B, 2, 3), one view's `decisions['affine']`.
    stage_sizes: stage name -> side of its feature map.
    kind: 'area' or 'binary', see `stage_masks`.

  Returns:
    stage name -> (B, side, side) float32 in 0..1.

  Raises:
    ValueError: an unknown kind.
  """
  lesions = np.flatnonzero(num_boxes)
  masks = {
    name: np.zeros((len(num_boxes), side, side), np.float32)
    for name, side in stage_sizes.items()
  }
  if len(lesions):
    boxes, num_boxes, affine = (
      boxes[lesions],
      num_boxes[lesions],
      affine[lesions],
    )
    found = stage_masks(
      lambda side: _cover(boxes, num_boxes, affine, side), stage_sizes, kind
    )
    for name, mask in found.items():
      masks[name][lesions] = mask
  return masks


def on_device(
  boxes: jax.Array,
  num_boxes: jax.Array,
  affine: jax.Array,
  stage_sizes: Mapping[str, int],
  kind: str = 'area',
) -> dict[str, jax.Array]:
  """Lesion masks of one view; the twin of `on_host`.

  Args:
    boxes: (B, K, 4) x0, y0, x1, y1 in source unit coordinates, zero-padded.
    num_boxes: (B,) how many of the K are real.
    affine: (B, 2, 3), one view's `decisions['affine']`.
    stage_sizes: stage name -> side of its feature map.
    kind: 'area' or 'binary', see `stage_masks`.

  Returns:
    stage name -> (B, side, side) float32 in 0..1.

  Raises:
    ValueError: an unknown kind.
  """
  import jax
  import jax.numpy as jnp

  def cover(side):
    centers = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / side
    x, y = render_common.map_points(
      affine[:, :, :2],
      affine[:, :, 2],
      centers[None, None, :],
      centers[None, :, None],
    )  # (B, side, side) each
    covered = jnp.zeros(x.shape, bool)
    # Box by box, which the compiler fuses: a (B, K, side, side) never exists.
    for k in range(boxes.shape[1]):
      x0, y0, x1, y1 = jnp.moveaxis(boxes[:, k, :, None, None], 1, 0)
      real = (k < num_boxes)[:, None, None]
      covered |= real & (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    return covered.astype(jnp.float32)

  return jax.lax.stop_gradient(stage_masks(cover, stage_sizes, kind))


def stage_masks(
  cover: Callable[[int], Any], stage_sizes: Mapping[str, int], kind: str
) -> dict[str, Any]:
  """Lesion masks of every stage from a test of points.

  Args:
    cover: side -> (B, side, side) float32, 1 where the centre of a cell of a
      side x side grid over the frame lies in a lesion box.
    stage_sizes: stage name -> side of its feature map.
    kind: 'area', the covered share of each cell, from 4 x 4 points a cell of
      the finest stage (and at least as dense a grid where a stage's side does
      not divide the finest's); or 'binary', whether the cell's centre is
      covered.

  Returns:
    stage name -> (B, side, side) float32 in 0..1.

  Raises:
    ValueError: an unknown kind.
  """
  if kind == 'binary':
    return {name: cover(side) for name, side in stage_sizes.items()}
  if kind != 'area':
    raise ValueError(f"mgacr.mask is {kind!r}: it must be 'area' or 'binary'")
  finest = max(stage_sizes.values())
  dense = finest * _SAMPLES
  fine = _cell_means(cover(dense), finest)

  def mask(side):
    if finest % side == 0:
      return _cell_means(fine, side)
    return _cell_means(cover(side * math.ceil(dense / side)), side)

  return {name: mask(side) for name, side in stage_sizes.items()}


def _cell_means(grid, side):
  """Means (B, side, side) of the square cells of a (B, n * side, n * side)."""
  batch, n = grid.shape[0], grid.shape[1] // side
  rows = grid.reshape(batch, side, n, side * n).sum(2)
  # Not a sum over a short last axis, at which numpy is slow.
  return sum(rows[..., k::n] for k in range(n)) / (n * n)


def _cover(boxes, num_boxes, affine, side):
  """(L, side, side) float32: 1 where a cell's centre lies in a box."""
  centers = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / side
  covered = np.zeros((len(boxes), side, side), bool)
  # Only cells around a turned box are asked, a cell more on each side.
  x0, y0, x1, y1 = np.moveaxis(boxes, -1, 0)
  corners = np.stack(
    [np.stack([x0, x0, x1, x1], -1), np.stack([y0, y1, y0, y1], -1)], -1
  )  # (L, K, 4, 2)
  inverse = np.linalg.inv(affine[:, :, :2])
  turned = np.einsum(
    'lij,lkcj->lkci', inverse, corners - affine[:, None, None, :, 2]
  ) * side  # in cells  # fmt: skip
  low = np.clip(turned.min(2) - 1, 0, side).astype(int).tolist()  # (L, K, 2)
  high = np.clip(turned.max(2) + 2, 0, side).astype(int).tolist()
  for i, count in enumerate(num_boxes):
    (a, b, c), (d, e, f) = affine[i]
    for k in range(count):
      (left, top), (right, bottom) = low[i][k], high[i][k]
      column, row = centers[None, left:right], centers[top:bottom, None]
      x = a * column + b * row + c
      y = d * column + e * row + f
      x0, y0, x1, y1 = boxes[i, k]
      covered[i, top:bottom, left:right] |= (
        (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
      )
  return covered.astype(np.float32)
