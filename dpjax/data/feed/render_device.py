"""Augmentation on the device: `augment`'s decisions carried out in JAX.

The same maps, order, border and noise as `augment.render_host` (documented
there), inside the jitted step: the host then sends one byte a pixel of the
STORED image, whatever the number of views.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dpjax.data.feed import augment


def render(
  images: jax.Array, decisions: Mapping[str, jax.Array], size: int
) -> jax.Array:
  """Renders the decided views.

  Args:
    images: (B, S, S) uint8.
    decisions: from `augment.draw` or `augment.identity`, leading with (B, V).
    size: side of the views in pixels.

  Returns:
    (B, V, size, size) float32 in 0..255, not rounded; without gradients.
  """
  views = _resample(images, decisions['affine'], size)
  gain, bias, std = (
    decisions[name][..., None, None] for name in ('gain', 'bias', 'noise')
  )
  views = views * gain + (augment.MID_GREY - gain * augment.MID_GREY + bias)
  taps = augment.blur_taps(jnp, decisions['blur'])
  views = _blur(_blur(views, taps, axis=2), taps, axis=3)
  views = views + std * augment.noise(jnp, decisions['noise_seed'], size)
  return jax.lax.stop_gradient(jnp.clip(views, 0, 255))


def masks(
  boxes: jax.Array,
  num_boxes: jax.Array,
  affine: jax.Array,
  stage_sizes: Mapping[str, int],
  kind: str = 'area',
) -> dict[str, jax.Array]:
  """Lesion masks of one view; see `augment.masks_host`, whose twin this is.

  Args:
    boxes: (B, K, 4) x0, y0, x1, y1 in source unit coordinates, zero-padded.
    num_boxes: (B,) how many of the K are real.
    affine: (B, 2, 3), one view's `decisions['affine']`.
    stage_sizes: stage name -> side of its feature map.
    kind: 'area' or 'binary', see `augment.stage_masks`.

  Returns:
    stage name -> (B, side, side) float32 in 0..1.

  Raises:
    UserError: an unknown kind.
  """

  def cover(side):
    centers = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / side
    x, y = _apply(
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

  return jax.lax.stop_gradient(augment.stage_masks(cover, stage_sizes, kind))


def _apply(linear, offset, x, y):
  """linear (x, y) + offset: (..., 2, 2), (..., 2), points of equal rank."""
  linear, offset = linear[..., None, None], offset[..., None, None]
  return tuple(
    linear[..., i, 0, :, :] * x
    + linear[..., i, 1, :, :] * y
    + offset[..., i, :, :]
    for i in (0, 1)
  )


def _resample(images, affine, size):
  """Bilinear reads of (B, S, S) uint8 under (B, V, 2, 3)."""
  batch, source, _ = images.shape
  n = augment.subsamples(source, size)
  # `augment.pixel_affine` in fixed point. A compiler may compute one float
  # twice, with and without fused multiply-add; where a pixel's floor and its
  # fraction come from the two, a wrong neighbour is read (seen on the CPU).
  # Integers are the same however often they are computed, and each product
  # below is rounded once. Room for coordinates of up to 8 sides.
  bits = 28 - (source - 1).bit_length()
  one = 1 << bits

  def fixed(values):
    return jnp.round(values).astype(jnp.int32)

  linear = fixed(affine[..., :2] * (one * source / (n * size)))
  offset = fixed(affine[..., 2] * (one * source))
  offset = offset + (linear.sum(-1) >> 1) - one // 2

  # The four neighbours of a read packed into one word: one gather, not four.
  # A black rim stands for everything outside.
  rim = jnp.pad(images, ((0, 0), (1, 1), (1, 1))).astype(jnp.uint32)
  words = (
    rim[:, :-1, :-1]
    | (rim[:, :-1, 1:] << 8)
    | (rim[:, 1:, :-1] << 16)
    | (rim[:, 1:, 1:] << 24)
  ).reshape(batch, -1)  # (B, (S + 1)^2)

  def split(x):
    """The pixel at or before x, from -1 to S - 1, and the fraction beyond."""
    x = jnp.clip(x, -one, source * one)
    whole = jnp.minimum(x >> bits, source - 1)
    return whole, (x - whole * one).astype(jnp.float32) * (1 / one)

  def read(x, y):
    """Bilinear values at x, y in source pixels / one, (B, V, size, size)."""
    left, x = split(x)
    top, y = split(y)
    index = (top + 1) * (source + 1) + left + 1
    word = jnp.take_along_axis(
      words, index.reshape(batch, -1), axis=1, mode='promise_in_bounds'
    ).reshape(index.shape)
    tap = [
      ((word >> shift) & 0xFF).astype(jnp.float32) for shift in (0, 8, 16, 24)
    ]
    upper = tap[0] + (tap[1] - tap[0]) * x
    lower = tap[2] + (tap[3] - tap[2]) * x
    return upper + (lower - upper) * y

  fine = n * np.arange(size, dtype=np.int32)
  column, row = fine[None, None, None, :], fine[None, None, :, None]
  reads = [
    read(*_apply(linear, offset, column + j, row + i))
    for i in range(n)
    for j in range(n)
  ]
  return sum(reads) / (n * n)


def _blur(views, taps, axis):
  """Convolves (B, V, h, w) along an axis with its own taps (B, V, taps)."""
  size, radius = views.shape[axis], augment.BLUR_RADIUS
  widths = [(0, 0)] * 4
  widths[axis] = (radius, radius)
  padded = jnp.pad(views, widths, mode='edge')
  return sum(
    jax.lax.slice_in_dim(padded, k, k + size, axis=axis)
    * taps[..., k, None, None]
    for k in range(2 * radius + 1)
  )
