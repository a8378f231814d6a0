"""Augmentation: its random decisions, and their rendering on the host.

`draw` decides, `render_host` (here, OpenCV) or `render.render` (JAX) carries
out. A batch's decisions are a dict of arrays that lead with (B, V), images by
views:

  affine      (B, V, 2, 3) float32   output frame -> source frame, see below
  gain, bias  (B, V) float32         contrast (factor), brightness (grey levels)
  blur        (B, V) float32         Gaussian sigma in output pixels, 0 for none
  noise       (B, V) float32         standard deviation in grey levels, or 0
  noise_seed  (B, V) uint32

Order, the same in both renders: crop, flip, rotation, intensity, blur, noise,
clip to 0..255.

Geometry. A frame's unit coordinates (x, y) run from 0 to 1 between its EDGES,
x to the right and y downwards; the centre of pixel i of n is at (i + 1/2) / n.
Crop, flip and rotation are one affine map, read once, bilinearly:

  source = c + diag(w, h) F R (output - 1/2),
  F = diag(-1, 1) if flipped, else the identity,
  R = [[cos t, -sin t], [sin t, cos t]],

so the crop has sides w, h and centre c, is mirrored left to right, and what it
shows is then turned by t about the centre of the output, counter-clockwise as
a viewer sees it for t > 0. Outside the source everything is black (0).

Sampling. One bilinear read per output pixel; if the source's side is more than
1.3 times the output's, the mean of 2 x 2 reads, against aliasing. That is
decided by the two sides alone, never by the crop, so compiled shapes hold.

Intensity: gain * (grey - 127.5) + 127.5 + bias. Blur: a truncated Gaussian of
radius BLUR_RADIUS, borders replicated. Noise: see `noise`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# Output pixels: a fixed radius keeps the device's shapes fixed. It holds 2
# sigma of the widest blur that `Augmentation` admits.
BLUR_RADIUS = 4
MID_GREY = 127.5
# Sub-samples a side in each cell of the finest attention mask.
_MASK_SAMPLES = 4

Decisions = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What may be done to an image, and how strongly.

  Raises:
    ValueError: a field is outside of its range.
  """

  # Share of the image's area that the crop takes, uniform.
  scale: tuple[float, float] = (0.5, 1.0)
  # The crop's width : height, log-uniform in [1 / aspect, aspect].
  aspect: float = 4 / 3
  # Probability of a left-right flip.
  flip: float = 0.5
  # Largest rotation in degrees, uniform in both directions.
  rotation: float = 10.0
  # Share of the grey range that is added or taken, uniform: bias in +-b * 255.
  brightness: float = 0.2
  # Contrast about mid-grey, uniform: gain in 1 +- c.
  contrast: float = 0.2
  # Probability of a blur, and the range of its sigma in output pixels, uniform.
  blur: float = 0.5
  blur_sigma: tuple[float, float] = (0.1, 1.5)
  # Probability of noise, and the range of its deviation in grey levels.
  noise: float = 0.3
  noise_std: tuple[float, float] = (0.0, 8.0)
  # Every lesion box stays whole inside the crop (where boxes make the label).
  keep_lesions: bool = False

  def __post_init__(self):
    for name, low, high in (
      ('flip', 0, 1),
      ('blur', 0, 1),
      ('noise', 0, 1),
      ('aspect', 1, math.inf),
      ('rotation', 0, 180),
      ('brightness', 0, 1),
      ('contrast', 0, 1),
    ):
      if not low <= getattr(self, name) <= high:
        raise ValueError(
          f'augment.{name} is {getattr(self, name)}: it must be in '
          f'{low}..{high}'
        )
    for name, floor, high in (
      ('scale', 1e-4, 1),
      ('blur_sigma', 0, BLUR_RADIUS / 2),
      ('noise_std', 0, 255),
    ):
      low, top = getattr(self, name)
      if not floor <= low <= top <= high:
        raise ValueError(
          f'augment.{name} is {(low, top)}: it must be (low, high) with '
          f'{floor} <= low <= high <= {high}'
        )


def draw(
  rng: np.random.Generator,
  boxes: np.ndarray,
  num_boxes: np.ndarray,
  settings: Augmentation,
  views: int,
  lenders: tuple[np.ndarray, np.ndarray] | None = None,
) -> Decisions:
  """Draws every decision of a batch at once.

  The crop is a random resized crop (Szegedy et al. 2015): area and aspect
  ratio, then a centre uniform among those that keep the crop inside the image.
  Where a crop of that area and ratio would not fit, the ratio's range narrows,
  so the area is always the one drawn.

  With `settings.keep_lesions` the crop grows and moves, as little as it needs,
  until every box is whole inside the TURNED frame. That rule shapes the crop's
  law, so a crop could tell whether its image has lesions. It must not, where
  boxes make the label: an image without boxes obeys the same rule with the
  boxes of a random lesion image, the lender.

  The amount of randomness used depends on B and V only, never on the boxes.

  Args:
    rng: the batch's generator.
    boxes: (B, K, 4) x0, y0, x1, y1 in source unit coordinates, zero-padded.
    num_boxes: (B,) how many of the K are real.
    settings: the ranges to draw from.
    views: V, independent draws for each image.
    lenders: (M, K, 4) boxes and (M,) counts of the training split's lesion
      images; needed with `keep_lesions`.

  Returns:
    The decisions (see the module), leading with (B, V).

  Raises:
    ValueError: `keep_lesions` without lenders.
  """
  shape = len(num_boxes), views
  (
    area,
    ratio,
    x,
    y,
    flip,
    angle,
    gain,
    bias,
    blur,
    sigma,
    noisy,
    std,
    lender,
  ) = rng.random((13, *shape))  # each (B, V)
  noise_seed = rng.integers(2**32, size=shape, dtype=np.uint32)

  area = _between(area, *settings.scale)
  # A side is sqrt(area * ratio) <= 1 as long as |log ratio| <= -log area.
  half_range = np.minimum(math.log(settings.aspect), -np.log(area))
  ratio = np.exp((2 * ratio - 1) * half_range)
  width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
  center = np.stack(
    [
      _between(x, width / 2, 1 - width / 2),
      _between(y, height / 2, 1 - height / 2),
    ],
    -1,
  )  # (B, V, 2)
  theta = np.deg2rad(settings.rotation) * (2 * angle - 1)
  mirror = np.where(flip < settings.flip, -1.0, 1.0)
  cos, sin = np.cos(theta), np.sin(theta)
  # diag(w, h) F R
  linear = np.stack(
    [width * mirror * cos, -width * mirror * sin, height * sin, height * cos],
    -1,
  ).reshape(*shape, 2, 2)

  if settings.keep_lesions:
    if lenders is None:
      raise ValueError(
        "augment.keep_lesions needs the training split's lesion images as "
        'lenders, or the crop would tell which images have lesions'
      )
    low, high = _hull(linear, *_lend(boxes, num_boxes, lender, lenders))
    # The boxes' extent in output units, and by how much it is too large.
    grow = np.maximum(1.0, (high - low).max(-1))[..., None]  # (B, V, 1)
    low, high = low / grow, high / grow
    linear = linear * grow[..., None]
    # output = turned - turned_center + 1/2 is to be in 0..1 for every corner.
    turned = np.linalg.solve(linear, center[..., None])[..., 0]
    turned = np.clip(turned, high - 0.5, low + 0.5)
    center = np.einsum('bvij,bvj->bvi', linear, turned)

  offset = center - linear.sum(-1) / 2
  affine = np.concatenate([linear, offset[..., None]], -1)
  blur = np.where(
    blur < settings.blur, _between(sigma, *settings.blur_sigma), 0.0
  )
  std = np.where(
    noisy < settings.noise, _between(std, *settings.noise_std), 0.0
  )
  return {
    'affine': affine.astype(np.float32),
    'gain': (1 + settings.contrast * (2 * gain - 1)).astype(np.float32),
    'bias': (255 * settings.brightness * (2 * bias - 1)).astype(np.float32),
    'blur': blur.astype(np.float32),
    'noise': std.astype(np.float32),
    'noise_seed': noise_seed,
  }


def identity(num: int, views: int = 1) -> Decisions:
  """The decisions for `num` images that only resize the whole image."""
  shape = num, views
  zeros = np.zeros(shape, np.float32)
  return {
    'affine': np.broadcast_to(
      np.eye(2, 3, dtype=np.float32), (*shape, 2, 3)
    ).copy(),
    'gain': np.ones(shape, np.float32),
    'bias': zeros,
    'blur': zeros.copy(),
    'noise': zeros.copy(),
    'noise_seed': np.zeros(shape, np.uint32),
  }


def _between(unit, low, high):
  return low + (high - low) * unit


def _lend(boxes, num_boxes, lender, lenders):
  """Boxes (B, V, K, 4) and counts (B, V): the image's own, or a lender's."""
  lent_boxes, lent_num = lenders
  if not len(lent_num):  # no lesion image anywhere: nothing to keep
    lent_boxes, lent_num = np.zeros_like(boxes[:1]), np.zeros(1, np.int32)
  lender = (lender * len(lent_num)).astype(np.int64)  # (B, V)
  own = (num_boxes > 0)[:, None]  # (B, 1)
  return (
    np.where(own[..., None, None], boxes[:, None], lent_boxes[lender]),
    np.where(own, num_boxes[:, None], lent_num[lender]),
  )


def _hull(linear, boxes, num_boxes):
  """Lowest and highest coordinates (B, V, 2) of linear^-1 (all box corners).

  Without boxes they are +inf and -inf, which bind nothing.
  """
  inverse = np.linalg.inv(linear)  # (B, V, 2, 2)
  boxes = boxes.astype(np.float64)
  middle = np.einsum(
    'bvij,bvkj->bvki', inverse, (boxes[..., 2:] + boxes[..., :2]) / 2
  )
  reach = np.einsum(
    'bvij,bvkj->bvki', np.abs(inverse), (boxes[..., 2:] - boxes[..., :2]) / 2
  )
  real = (np.arange(boxes.shape[2]) < num_boxes[..., None])[..., None]
  low = np.where(real, middle - reach, np.inf).min(2)
  high = np.where(real, middle + reach, -np.inf).max(2)
  return low, high


# What both renders share. `xp` is numpy or jax.numpy.


def subsamples(source: int, size: int) -> int:
  """Reads a side for each output pixel, from the two sides in pixels."""
  return 2 if source > 1.3 * size else 1


def pixel_affine(affine, source: int, target: int):
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


def blur_taps(xp: Any, sigma):
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


def noise(xp: Any, seed, size: int):
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
  dense = finest * _MASK_SAMPLES
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


# The host's render.


def render_host(
  images: np.ndarray, decisions: Decisions, size: int
) -> np.ndarray:
  """Renders the decided views with OpenCV.

  Agrees with `render.render` to a mean of 0.5 and a maximum of 2 grey levels.
  OpenCV before 5 rounds coordinates to 1/32 pixel: there the mean holds, but
  on hard edges the maximum does not (seen: 6 levels on phantoms).

  Args:
    images: (B, S, S) uint8.
    decisions: from `draw` or `identity`, leading with (B, V).
    size: side of the views in pixels.

  Returns:
    (B, V, size, size) uint8.
  """
  import cv2  # not needed where the device renders

  batch, views = decisions['gain'].shape
  source = images.shape[1]
  n = subsamples(source, size)
  matrices = np.concatenate(
    [
      part.reshape(batch, views, 2, -1)
      for part in pixel_affine(
        decisions['affine'].astype(np.float64), source, n * size
      )
    ],
    -1,
  )  # (B, V, 2, 3)
  gain, std = decisions['gain'], decisions['noise']
  shift = MID_GREY - gain * MID_GREY + decisions['bias']
  taps = blur_taps(np, decisions['blur'])
  out = np.empty((batch, views, size, size), np.uint8)
  # Memory that is used again is not cleared by the system again.
  image = np.empty((source, source), np.float32)
  read = np.empty((n * size, n * size), np.float32)
  for b in range(batch):
    # OpenCV rounds 8-bit reads to whole levels, and float reads not.
    np.copyto(image, images[b])
    for v in range(views):
      view = cv2.warpAffine(
        image,
        matrices[b, v],
        (n * size, n * size),
        read,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
      )
      if n > 1:
        view = cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA)
      # The taps sum to 1 and the border is replicated, so the blur may as well
      # come before the intensity, which then goes with noise, rounding and
      # clipping in one pass.
      if decisions['blur'][b, v] > 0:
        view = cv2.sepFilter2D(
          view, -1, taps[b, v], taps[b, v], borderType=cv2.BORDER_REPLICATE
        )
      added = view
      if std[b, v] > 0:
        added = noise(np, decisions['noise_seed'][b, v], size)
      cv2.addWeighted(
        view, gain[b, v], added, std[b, v], shift[b, v], out[b, v], cv2.CV_8U
      )
  return out


def masks_host(
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
