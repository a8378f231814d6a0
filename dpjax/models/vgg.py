"""VGG16 for one-channel radiographs, a network to compare with.

Architecture: Simonyan and Zisserman, 2015, "Very Deep Convolutional Networks
for Large-Scale Image Recognition", configuration D, with torchvision's adaptive
pooling before the head, so that any image size fits. The head has no dropout:
a training step here draws no random numbers, every decision is drawn with the
data. Instead of it, regularise by weight decay.
"""

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from dpjax.models import initializers, resnet

# Convolutions of each block and their channels in units of `width`.
BLOCKS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
STAGES = tuple(f'stage{i + 1}' for i in range(len(BLOCKS)))
GRID = 7  # side that the head sees
SMALLEST = 2 ** len(BLOCKS)  # side of an image, pixels


class VGG16(nn.Module):
  """VGG16 that returns its logits and what led to them.

  Parameters, batch statistics, pooled features and logits are float32 whatever
  `dtype` the rest computes in.

  Attributes:
    num_classes: width of the classifier; 0 for none, and then the pooled
      features stand in place of the logits.
    width: channels of the first block; the last has 8 times as many, the two
      hidden layers 64 times. 64 is VGG16.
    dtype: of the convolutions, the hidden layers and the stages' features.
    axis_name: device axis over which batch statistics are averaged, or None.
    batch_norm: normalise after each convolution, which then has no bias. The
      original has none; from scratch by plain SGD it hardly trains without
      (its authors started it from the weights of a shallower network).
  """

  num_classes: int = 5
  width: int = 64
  dtype: DTypeLike = jnp.float32
  axis_name: str | None = None
  batch_norm: bool = True

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    train: bool = False,
    offsets: Mapping[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes logits and intermediate features.

    Args:
      images: normalised radiographs, (B, H, W, 1), sides of 32 or more.
      train: as in `resnet.ResNet`; of no effect without `batch_norm`.
      offsets: as in `resnet.ResNet`.

    Returns:
      logits (B, num_classes) float32, and a dict of 'stage1' to 'stage5': each
      block's features after its max-pool, (B, h, w, C) in `dtype`, and
      'pooled': the last hidden layer, (B, 64 * width) float32.

    Raises:
      ValueError: images of another rank or channel count, or too small; an
        offset of no stage or of another shape than its features.
    """
    if images.ndim != 4 or images.shape[-1] != 1:
      raise ValueError(
        f'VGG16: images must be (B, H, W, 1), got {tuple(images.shape)}'
      )
    if min(images.shape[1:3]) < SMALLEST:
      raise ValueError(
        f'VGG16: images must have {SMALLEST} x {SMALLEST} pixels or more, got'
        f' {images.shape[1]} x {images.shape[2]}'
      )
    offsets = resnet.check_offsets(offsets, STAGES)
    conv = partial(
      nn.Conv,
      kernel_size=(3, 3),
      padding=1,
      use_bias=not self.batch_norm,
      dtype=self.dtype,
      kernel_init=initializers.kaiming,
    )
    norm = resnet.batch_norm(train, self.dtype, self.axis_name)
    # torchvision's deviation of .01, widened in narrower networks: the
    # variance times the number of inputs stays the same.
    deviation = 0.01 * math.sqrt(64 / self.width)
    dense = partial(nn.Dense, kernel_init=initializers.normal(deviation))

    x = images
    features = {}
    blocks = enumerate(zip(STAGES, BLOCKS, strict=True), 1)
    for i, (stage, (depth, channels)) in blocks:
      for j in range(1, depth + 1):
        x = conv(channels * self.width, name=f'conv{i}_{j}')(x)
        if self.batch_norm:
          x = norm(name=f'bn{i}_{j}')(x)
        x = nn.relu(x)
      x = nn.max_pool(x, (2, 2), strides=(2, 2))
      x = features[stage] = resnet.add_offset(x, stage, offsets)
    x = adaptive_mean(x, GRID).reshape(x.shape[0], -1)
    for name in ('fc1', 'fc2'):
      x = nn.relu(dense(64 * self.width, dtype=self.dtype, name=name)(x))
    pooled = features['pooled'] = x.astype(jnp.float32)
    if not self.num_classes:
      return pooled, features
    classifier = dense(self.num_classes, dtype=jnp.float32, name='fc')
    return classifier(pooled), features


def adaptive_mean(x: jax.Array, side: int) -> jax.Array:
  """Means over a grid of side x side bins, as torch's adaptive_avg_pool2d.

  Bin i of n cells runs from floor(i n / side) to ceil((i + 1) n / side), so
  that bins overlap where `side` does not divide n, and repeat where n is less.

  Args:
    x: (B, H, W, C).
    side: of the grid.

  Returns:
    (B, side, side, C) of the dtype of x; sums are in float32.
  """
  if x.shape[1:3] == (side, side):
    return x
  rows, columns = (bin_weights(n, side) for n in x.shape[1:3])
  # In full precision: an accelerator would otherwise round both factors.
  pooled = jnp.einsum(
    'ih,jw,bhwc->bijc',
    rows,
    columns,
    x.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  return pooled.astype(x.dtype)


def bin_weights(n: int, side: int) -> np.ndarray:
  """(side, n) float32: row i is the mean over the cells of bin i."""
  cells, i = np.arange(n), np.arange(side)[:, None]
  inside = (cells >= i * n // side) & (cells < -(-(i + 1) * n // side))
  return (inside / inside.sum(1, keepdims=True)).astype(np.float32)
