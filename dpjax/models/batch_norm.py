"""BatchNorm whose statistics, and whose gradient, are one pass each.

Parameters, statistics and numbers are those of flax.linen.BatchNorm with its
fast variance, to rounding; the gradient is written out, as

  dx = scale / sigma (dy - mean(dy) - x_hat mean(dy x_hat))

so that it takes two sums over the batch, which a GPU makes in one pass, and
keeps nothing but the input, which the convolution before it keeps anyway.

Source: Ioffe and Szegedy, 2015, "Batch Normalization", Algorithm 1 and the
gradients after it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from dpjax.models import platforms


class BatchNorm(nn.Module):
  """Normalises each channel (the last axis) over all others.

  Attributes:
    use_running_average: normalise by the running statistics, and leave them;
      else by the batch's, and move the running ones (collection
      'batch_stats', which must then be mutable).
    momentum: the share of the running statistics that stays at an update.
    epsilon: added to the variance.
    dtype: of the result; statistics are float32 whatever comes in.
    axis_name: device axis over which the statistics are averaged, or None.
  """

  use_running_average: bool
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  axis_name: str | None = None

  def __call__(self, x: jax.Array) -> jax.Array:
    """(..., C) to (..., C) of `dtype`."""
    return jointly([self], x)

  @nn.compact
  def arrays(self, channels: int) -> tuple[Any, Any, jax.Array, jax.Array]:
    """Running mean and variance (variables), scale and bias, (C,) each."""
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    shape = (channels,)
    return (
      self.variable('batch_stats', 'mean', jnp.zeros, shape, jnp.float32),
      self.variable('batch_stats', 'var', jnp.ones, shape, jnp.float32),
      self.param('scale', ones, shape, jnp.float32),
      self.param('bias', zeros, shape, jnp.float32),
    )


def jointly(
  norms: Sequence[BatchNorm],
  x: jax.Array,
  by_batch: Callable[..., tuple[jax.Array, ...]] | None = None,
) -> jax.Array:
  """Normalises with several modules side by side, as each would by itself.

  Args:
    norms: alike; each has its own variables, and an equal share of the
      channels.
    x: (..., C).
    by_batch: what to do in training, with the arguments of `normalize`, which
      it is by default; its first result is ours.

  Returns:
    (..., C) of their dtype.
  """
  first, channels = norms[0], x.shape[-1] // len(norms)
  means, variances, scales, biases = zip(
    *(norm.arrays(channels) for norm in norms), strict=True
  )
  scale, bias = jnp.concatenate(scales), jnp.concatenate(biases)
  if first.use_running_average or first.is_initializing():
    mean, var = (
      jnp.concatenate([each.value for each in of]) for of in (means, variances)
    )
    factor = jax.lax.rsqrt(var + first.epsilon) * scale
    return affine(x, mean, factor, bias, first.dtype)
  y, *found = (by_batch or normalize)(
    x, scale, bias, first.epsilon, first.dtype, first.axis_name
  )
  for running, batch in zip((means, variances), found, strict=True):
    shares = jnp.split(jax.lax.stop_gradient(batch), len(norms))
    for each, share in zip(running, shares, strict=True):
      each.value = first.momentum * each.value + (1 - first.momentum) * share
  return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float,
  dtype: DTypeLike,
  axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises by the statistics of the batch.

  Args:
    x: (..., C).
    scale, bias: (C,) float32.
    epsilon: added to the variance.
    dtype: of the result.
    axis_name: device axis over which the statistics are averaged, or None.

  Returns:
    (..., C), and the mean and the biased variance (C,) float32, which no
    gradient passes through.
  """
  return _forward(x, scale, bias, epsilon, dtype, axis_name)[0]


def _forward(x, scale, bias, epsilon, dtype, axis_name):
  mean, var, inverse = statistics(x, epsilon, axis_name)
  y = affine(x, mean, inverse * scale, bias, dtype)
  return (y, mean, var), (x, scale, mean, inverse)


def _backward(epsilon, dtype, axis_name, kept, cotangents):
  del epsilon, dtype
  x, scale, mean, inverse = kept
  dy = cotangents[0].astype(jnp.float32)
  own = sums(dy, dy * deviation(x, mean))
  dx = input_gradient(x, dy, own, scale, mean, inverse, axis_name)
  return dx, own[1] * inverse, own[0]


normalize.defvjp(_forward, _backward)


def statistics(
  x: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Mean, biased variance and 1 / sigma, (C,) float32, of (..., C)."""
  count = x.size // x.shape[-1]
  x = x.astype(jnp.float32)
  mean, square = (total / count for total in sums(x, x * x))
  if axis_name is not None:
    mean, square = _over_devices(mean, square, axis_name)
  var = jnp.maximum(square - mean * mean, 0)
  return mean, var, jax.lax.rsqrt(var + epsilon)


def affine(
  x: jax.Array,
  mean: jax.Array,
  factor: jax.Array,
  bias: jax.Array,
  dtype: DTypeLike,
) -> jax.Array:
  """(x - mean) factor + bias, of (..., C) and (C,), in float32, as `dtype`."""
  return (deviation(x, mean) * beside(x, factor) + beside(x, bias)).astype(
    dtype
  )


def deviation(x: jax.Array, mean: jax.Array) -> jax.Array:
  """x - mean, of (..., C) and (C,), in float32."""
  return x.astype(jnp.float32) - beside(x, mean)


def input_gradient(
  x: jax.Array, dy: jax.Array, own: tuple[jax.Array, jax.Array],
  scale: jax.Array, mean: jax.Array, inverse: jax.Array, axis_name: str | None,
) -> jax.Array:  # fmt: skip
  """The gradient at the input.

  Args:
    x: the input (..., C).
    dy: the output's gradient (..., C) float32.
    own: its sum (C,) on this device, and that of dy (x - mean).
    scale: (C,).
    mean, inverse: as of `statistics`.
    axis_name: of the devices, or None.
  """
  count = x.size // x.shape[-1]
  of_dy, of_product = (total / count for total in own)
  if axis_name is not None:
    of_dy, of_product = _over_devices(of_dy, of_product, axis_name)
  slope = beside(x, of_product * inverse * inverse)
  dx = dy - beside(x, of_dy) - deviation(x, mean) * slope
  return (dx * beside(x, scale * inverse)).astype(x.dtype)


def beside(x: jax.Array, values: jax.Array) -> jax.Array:
  """Values (C,) as an array that broadcasts to x (..., C)."""
  return values.reshape((1,) * (x.ndim - 1) + (-1,))


def _over_devices(a, b, axis_name):
  """The means over the devices of two (C,), in one collective."""
  return jnp.split(jax.lax.pmean(jnp.concatenate([a, b]), axis_name), 2)


def sums(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Sums (C,) of two (..., C) over all axes but the last."""
  axes = tuple(range(a.ndim - 1))

  def apart(a, b):
    return jnp.sum(a, axes), jnp.sum(b, axes)

  def together(a, b):
    # One reduction of pairs. XLA's CPU path makes it some four times slower.
    zero = jnp.zeros((), a.dtype)
    return tuple(
      jax.lax.reduce(
        (a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]), axes
      )
    )

  return platforms.choose(a, b, gpu=together, other=apart)
