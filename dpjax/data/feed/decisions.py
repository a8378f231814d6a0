"""The random decisions of augmentation, for a whole batch at once.

`draw` decides; render_host (OpenCV) and its twin render_device (JAX) carry out.
A batch's decisions are a dict of arrays that lead with (B, V), images by views:

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

Sampling, intensity, blur and noise: see render_common.
"""

import dataclasses
import math

import numpy as np

from dpjax.data.feed import render_common

Decisions = dict[str, np.ndarray]

# What one uniform number of each image and view decides. Their order is that
# of the generator: it is part of what a checkpoint resumes.
_UNIFORM = ('area', 'ratio', 'x', 'y', 'flip', 'angle', 'gain', 'bias', 'blur',
            'sigma', 'noisy', 'std', 'donor')  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What may be done to an image, and how strongly.

  Raises:
    ValueError: the blur is wider than the renders hold.
  """

  # Share of the image's area that the crop takes, uniform.
  scale: tuple[float, float]
  # The crop's width : height, log-uniform in [1 / aspect, aspect].
  aspect: float
  # Probability of a left-right flip.
  flip: float
  # Largest rotation in degrees, uniform in both directions.
  rotation: float
  # Share of the grey range that is added or taken, uniform: bias in +-b * 255.
  brightness: float
  # Contrast about mid-grey, uniform: gain in 1 +- c.
  contrast: float
  # Probability of a blur, and the range of its sigma in output pixels, uniform.
  blur: float
  blur_sigma: tuple[float, float]
  # Probability of noise, and the range of its deviation in grey levels.
  noise: float
  noise_std: tuple[float, float]
  # Every lesion box stays whole inside the crop (where boxes make the label).
  keep_lesions: bool

  def __post_init__(self) -> None:
    if self.blur_sigma[1] > render_common.BLUR_RADIUS / 2:
      raise ValueError(
        f'augment.blur_sigma is {self.blur_sigma}: a render holds 2 sigma in'
        f' {render_common.BLUR_RADIUS} pixels'
      )


def draw(
  rng: np.random.Generator,
  boxes: np.ndarray,
  num_boxes: np.ndarray,
  settings: Augmentation,
  views: int,
  donors: tuple[np.ndarray, np.ndarray] | None = None,
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
  boxes of a random lesion image, the donor.

  The amount of randomness used depends on B and V only, never on the boxes.

  Args:
    rng: the batch's generator.
    boxes: (B, K, 4) x0, y0, x1, y1 in source unit coordinates, zero-padded.
    num_boxes: (B,) how many of the K are real.
    settings: the ranges to draw from.
    views: V, independent draws for each image.
    donors: (M, K, 4) boxes and (M,) counts of the training split's lesion
      images; needed with `keep_lesions`.

  Returns:
    The decisions (see the module), leading with (B, V).

  Raises:
    ValueError: `keep_lesions` without donors.
  """
  shape = len(num_boxes), views
  unit = dict(zip(_UNIFORM, rng.random((len(_UNIFORM), *shape)), strict=True))
  noise_seed = rng.integers(2**32, size=shape, dtype=np.uint32)

  linear, center = _crop(unit, settings)
  if settings.keep_lesions:
    if donors is None:
      raise ValueError(
        "augment.keep_lesions needs the training split's lesion images as "
        'donors, or the crop would tell which images have lesions'
      )
    linear, center = _holding(
      linear, center, *_lend(boxes, num_boxes, unit['donor'], donors)
    )
  offset = center - linear.sum(-1) / 2
  affine = np.concatenate([linear, offset[..., None]], -1)

  blur = _between(unit['sigma'], *settings.blur_sigma)
  blur = np.where(unit['blur'] < settings.blur, blur, 0.0)
  std = _between(unit['std'], *settings.noise_std)
  std = np.where(unit['noisy'] < settings.noise, std, 0.0)
  gain = 1 + settings.contrast * (2 * unit['gain'] - 1)
  bias = 255 * settings.brightness * (2 * unit['bias'] - 1)
  return {
    'affine': affine.astype(np.float32),
    'gain': gain.astype(np.float32),
    'bias': bias.astype(np.float32),
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


def _crop(unit, settings):
  """diag(w, h) F R (B, V, 2, 2) and the centre (B, V, 2) of plain crops."""
  area = _between(unit['area'], *settings.scale)
  # A side is sqrt(area * ratio) <= 1 as long as |log ratio| <= -log area.
  half_range = np.minimum(math.log(settings.aspect), -np.log(area))
  ratio = np.exp((2 * unit['ratio'] - 1) * half_range)
  width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
  center = np.stack(
    [
      _between(unit['x'], width / 2, 1 - width / 2),
      _between(unit['y'], height / 2, 1 - height / 2),
    ],
    -1,
  )
  theta = np.deg2rad(settings.rotation) * (2 * unit['angle'] - 1)
  mirror = np.where(unit['flip'] < settings.flip, -1.0, 1.0)
  cos, sin = np.cos(theta), np.sin(theta)
  linear = np.stack(
    [width * mirror * cos, -width * mirror * sin, height * sin, height * cos],
    -1,
  )
  return linear.reshape(*area.shape, 2, 2), center


def _holding(linear, center, boxes, num_boxes):
  """The crops grown and moved, no more than needed, to hold the boxes whole.

  Args:
    linear, center: of `_crop`.
    boxes: (B, V, K, 4).
    num_boxes: (B, V) how many of the K are real.
  """
  low, high = _hull(linear, boxes, num_boxes)
  # The boxes' extent in output units, and by how much it is too large.
  grow = np.maximum(1.0, (high - low).max(-1))[..., None]  # (B, V, 1)
  low, high = low / grow, high / grow
  linear = linear * grow[..., None]
  # output = turned - turned_center + 1/2 is to be in 0..1 for every corner.
  turned = np.linalg.solve(linear, center[..., None])[..., 0]
  turned = np.clip(turned, high - 0.5, low + 0.5)
  return linear, np.einsum('bvij,bvj->bvi', linear, turned)


def _lend(boxes, num_boxes, donor, donors):
  """Boxes (B, V, K, 4) and counts (B, V): the image's own, or a donor's."""
  lent_boxes, lent_num = donors
  if not len(lent_num):  # no lesion image anywhere: nothing to keep
    lent_boxes, lent_num = np.zeros_like(boxes[:1]), np.zeros(1, np.int32)
  donor = (donor * len(lent_num)).astype(np.int64)  # (B, V)
  own = (num_boxes > 0)[:, None]  # (B, 1)
  return (
    np.where(own[..., None, None], boxes[:, None], lent_boxes[donor]),
    np.where(own, num_boxes[:, None], lent_num[donor]),
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
