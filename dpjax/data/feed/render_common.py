"""What the renders of host and device compute alike.

Pure arithmetic on arrays; `xp` is numpy or jax.numpy.

Sampling. One bilinear read per output pixel; if the source's side is more than
1.3 times the output's, the mean of 2 x 2 reads, against aliasing. That is
decided by the two sides alone, never by the crop, so compiled shapes hold.

Intensity: gain * (grey - 127.5) + 127.5 + bias. Blur: a truncated Gaussian of
radius BLUR_RADIUS, borders replicated. Noise: see `noise`.
"""

import math
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
  import jax

Array = TypeVar('Array', np.ndarray, 'jax.Array')

# Output pixels: a fixed radius keeps the device's shapes fixed. It holds 2
# sigma of the widest blur that `decisions.Augmentation` admits.
BLUR_RADIUS = 4
MID_GREY = 127.5


def subsamples(source: int, size: int) -> int:
  """Reads a side for each output pixel, from the two sides in pixels."""
  return 2 if source > 1.3 * size else 1


def plain_weights(source: int, size: int) -> np.ndarray:
  """What a plain view takes of each stored pixel, along either axis.

  The whole image, neither cropped nor turned, by the reads described above:
  with W these weights, the view of a square S is W S W^T. A view of the
  square's own side is the square itself, and W the identity.

  Args:
    source: the square's side in pixels.
    size: the view's side in pixels.

  Returns:
    (size, source) float32. Rows sum to 1 but at the border of a view that is
    larger than its source: outside everything is black.
  """
  n = subsamples(source, size)
  at = (np.arange(n * size) + 0.5) * source / (n * size) - 0.5
  left = np.floor(at)
  weights = np.zeros((n * size, source + 2))  # a black rim on either side
  rows = np.arange(n * size)
  weights[rows, left.astype(int) + 1] = 1 - (at - left)
  weights[rows, left.astype(int) + 2] = at - left
  weights = weights[:, 1:-1].reshape(size, n, source).mean(1)
  return weights.astype(np.float32)


def pixel_affine(
  affine: Array, source: int, target: int
) -> tuple[Array, Array]:
  """An affine map between unit coordinates as one between pixel indices.

  Args:
    affine: (..., 2, 3), target unit coordinates -> source unit coordinates.
    source: the source's side in pixels.
    target: the target's side in pixels.

  Returns:
    linear (..., 2, 2) and offset (..., 2): the target's pixel (x, y) lies at
    linear (x, y) + offset among the source's pixels. Exact for the identity
    and for flips of an image of the target's own side. (The device does the
    same in fixed point.)
  """
  linear = affine[..., :2] * (source / target)
  offset = affine[..., 2] * source + linear.sum(-1) / 2 - 0.5
  return linear, offset


def map_points(
  linear: Array, offset: Array, x: Array, y: Array
) -> tuple[Array, Array]:
  """Points (x, y) under an affine map: linear (x, y) + offset.

  Args:
    linear: (..., 2, 2).
    offset: (..., 2).
    x, y: (..., h, w), or what broadcasts to it.

  Returns:
    x and y (..., h, w) of the mapped points.
  """
  linear, offset = linear[..., None, None], offset[..., None, None]
  mapped_x, mapped_y = (
    linear[..., i, 0, :, :] * x
    + linear[..., i, 1, :, :] * y
    + offset[..., i, :, :]
    for i in (0, 1)
  )
  return mapped_x, mapped_y


def blur_taps(xp: ModuleType, sigma: Array) -> Array:
  """Weights of a Gaussian blur, exp(-i^2 / (2 sigma^2)) scaled to sum to 1.

  Args:
    xp: numpy or jax.numpy.
    sigma: (...,) in pixels; 0 gives (0, .., 1, .., 0).

  Returns:
    (..., 2 * BLUR_RADIUS + 1) float32.
  """
  squares = np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, dtype=np.float32) ** 2
  # Below 0.05 the neighbours' weight underflows to exactly 0.
  sigma = xp.maximum(sigma, np.float32(0.05))[..., None]
  squares = squares.reshape((1,) * (sigma.ndim - 1) + squares.shape)
  taps = xp.exp(-squares / (2 * sigma * sigma))
  return taps / taps.sum(-1, keepdims=True)


def noise(xp: ModuleType, seed: Array, size: int) -> Array:
  """White, nearly normal noise: a hash of (seed, pixel), the same anywhere.

  Each pixel's index is hashed, mixed with the seed and hashed again (the
  finaliser of MurmurHash3, Appleby 2011); the four bytes of the result are
  summed and standardised: mean 510 and variance 4 (256^2 - 1) / 12, exactly.
  The sum of four uniforms is normal to within 2 % in distribution and ends
  at 3.45 deviations.

  Args:
    xp: numpy or jax.numpy.
    seed: (...,) uint32.
    size: side of the image in pixels.

  Returns:
    (..., size, size) float32 of mean 0 and variance 1.
  """
  # Hashed here in numpy, thus a constant of a compiled render.
  pixel = _mix(np.arange(size * size, dtype=np.uint32)).reshape(size, size)
  pixel = xp.asarray(pixel.reshape((1,) * np.ndim(seed) + (size, size)))
  bits = _mix(pixel ^ seed[..., None, None])
  pairs = (bits & np.uint32(0x00FF00FF)) + (
    (bits >> np.uint32(8)) & np.uint32(0x00FF00FF)
  )
  total = (pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16))  # 0..1020
  return (total.astype(np.float32) - np.float32(510)) * np.float32(
    1 / math.sqrt(4 * (256**2 - 1) / 12)
  )


def _mix(bits):
  """MurmurHash3's 32-bit finaliser; uint32 arithmetic wraps."""
  bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return bits ^ (bits >> np.uint32(16))
