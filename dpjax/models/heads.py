"""Heads that learn beside a backbone: projection and spatial attention."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from dpjax.models import batch_norm, initializers


class Projector(nn.Module):
  """Pooled features to contrastive embeddings: Dense, ReLU, Dense, in float32.

  Source: Chen et al., 2020 (SimCLR), the non-linear projection head g.

  Attributes:
    hidden: width of the hidden layer.
    out: width of the embedding.
  """

  hidden: int = 512
  out: int = 128

  @nn.compact
  def __call__(self, pooled: jax.Array) -> jax.Array:
    """Projects (B, C) to (B, out) float32, not normalised."""
    dense = partial(nn.Dense, dtype=jnp.float32, kernel_init=initializers.lecun)
    x = nn.relu(dense(self.hidden)(pooled))
    return dense(self.out)(x)


def channel_statistics(features: jax.Array) -> jax.Array:
  """Maximum and mean over channels: (B, H, W, C) -> (B, H, W, 2) float32."""
  maximum = jnp.max(features, axis=-1).astype(jnp.float32)
  mean = jnp.mean(features, axis=-1, dtype=jnp.float32)
  return jnp.stack([maximum, mean], axis=-1)


class SpatialAttention(nn.Module):
  """A map of where the features matter: M = sigmoid(conv7x7([max; mean])).

  Source: Woo et al., 2018 (CBAM), Eq. 3, with the channels in the order of its
  authors' code. The convolution has no bias.

  Attributes:
    use_batch_norm: normalise the convolution's output, as the code of CBAM's
      authors does and their paper does not.
    axis_name: device axis over which its statistics are averaged, or None.
  """

  use_batch_norm: bool = False
  axis_name: str | None = None

  def __call__(self, features: jax.Array, train: bool = False) -> jax.Array:
    """Maps features (B, H, W, C) to (B, H, W) float32 in (0, 1)."""
    return attend([self], channel_statistics(features), train)[..., 0]

  @nn.compact
  def parts(self, train: bool) -> tuple[jax.Array, nn.Module | None]:
    """The convolution's kernel (7, 7, 2, 1), and its BatchNorm if any."""
    kernel = _Kernel((7, 7, 2, 1), name='conv')()
    if not self.use_batch_norm:
      return kernel, None
    # CBAM's own momentum: torch's 0.01 is 0.99 here.
    return kernel, batch_norm.BatchNorm(
      use_running_average=not train,
      momentum=0.99,
      epsilon=1e-5,
      dtype=jnp.float32,
      axis_name=self.axis_name,
      name='bn',
    )


class _Kernel(nn.Module):
  """The kernel of a convolution that is computed together with others."""

  shape: Sequence[int]

  @nn.compact
  def __call__(self) -> jax.Array:
    return self.param('kernel', initializers.lecun, self.shape)


def attend(
  maps: Sequence[SpatialAttention], statistics: jax.Array, train: bool
) -> jax.Array:
  """Several maps of the same features, in one convolution.

  Args:
    maps: n of them, alike.
    statistics: (B, H, W, 2) of `channel_statistics`.
    train: use and update the batch's statistics, with `use_batch_norm`.

  Returns:
    (B, H, W, n) float32 in (0, 1).
  """
  kernels, norms = zip(*(each.parts(train) for each in maps), strict=True)
  x = jax.lax.conv_general_dilated(
    statistics,
    jnp.concatenate(kernels, axis=-1),
    window_strides=(1, 1),
    padding=((3, 3), (3, 3)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  if norms[0] is not None:
    x = batch_norm.jointly(norms, x)
  return nn.sigmoid(x)


class AttentionHeads(nn.Module):
  """Two independent attention maps at each stage, for MGACR.

  map+ is taught where lesions are, map- where none is (Wei et al., 2022,
  Eq. 2-3). The heads read features and give none back, so the classifier's
  forward path does not see them; gradients of losses on the maps do reach the
  features, which is how the backbone is taught.

  Attributes:
    stages: names of the features to attend to.
    use_batch_norm: see `SpatialAttention`.
    axis_name: see `SpatialAttention`.
  """

  stages: Sequence[str] = ('stage1', 'stage2', 'stage3', 'stage4')
  use_batch_norm: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, features: Mapping[str, jax.Array], train: bool = False
  ) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Computes both maps of every stage.

    Args:
      features: stage names to (B, h, w, C); others than `stages` are ignored.
      train: use and update the batch's statistics, with `use_batch_norm`.

    Returns:
      {stage: (map_pos, map_neg)}, each (B, h, w) float32 in (0, 1).

    Raises:
      ValueError: `features` lacks a stage.
    """
    maps = {}
    for stage in self.stages:
      if stage not in features:
        raise ValueError(
          f'AttentionHeads: stage {stage!r} is not among the features'
          f' {sorted(features)}'
        )
      pair = [
        SpatialAttention(
          self.use_batch_norm, self.axis_name, name=f'{stage}_{sign}'
        )
        for sign in ('pos', 'neg')
      ]
      # The features are read once for both.
      both = attend(pair, channel_statistics(features[stage]), train)
      maps[stage] = both[..., 0], both[..., 1]
    return maps
