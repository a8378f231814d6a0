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
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

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
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(..., C) to (..., C) of `dtype`."""
    c = x.shape[-1]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, c, jnp.float32)
    var = self.variable('batch_stats', 'var', jnp.ones, c, jnp.float32)
    scale = self.param('scale', nn.initializers.ones, (c,), jnp.float32)
    bias = self.param('bias', nn.initializers.zeros, (c,), jnp.float32)
    if self.use_running_average or self.is_initializing():
      factor = jax.lax.rsqrt(var.value + self.epsilon) * scale
      return _affine(x, mean.value, factor, bias, self.dtype)
    y, *found = normalize(
      x, scale, bias, self.epsilon, self.dtype, self.axis_name
    )
    for running, batch in zip((mean, var), found, strict=True):
      running.value = self.momentum * running.value + (
        1 - self.momentum
      ) * jax.lax.stop_gradient(batch)
    return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float,
  dtype: Any,
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
  x_32 = x.astype(jnp.float32)
  mean, square = _means(x_32, x_32 * x_32, axis_name)
  var = jnp.maximum(square - mean * mean, 0)
  inverse = jax.lax.rsqrt(var + epsilon)
  y = _affine(x, mean, inverse * scale, bias, dtype)
  return (y, mean, var), (x, scale, mean, inverse)


def _backward(epsilon, dtype, axis_name, kept, cotangents):
  del epsilon, dtype
  x, scale, mean, inverse = kept
  dy = cotangents[0].astype(jnp.float32)
  deviation = x.astype(jnp.float32) - _beside(x, mean)
  count = x.size // x.shape[-1]
  own = _sums(dy, dy * deviation)
  of_dy, of_product = (total / count for total in own)
  if axis_name is not None:
    of_dy, of_product = _over_devices(of_dy, of_product, axis_name)
  slope = of_product * inverse * inverse
  dx = dy - _beside(x, of_dy) - deviation * _beside(x, slope)
  dx = dx * _beside(x, scale * inverse)
  return dx.astype(x.dtype), own[1] * inverse, own[0]


normalize.defvjp(_forward, _backward)


def _affine(x, mean, factor, bias, dtype):
  y = (x - _beside(x, mean)) * _beside(x, factor) + _beside(x, bias)
  return y.astype(dtype)


def _beside(x, values):
  """Values (C,) as an array that broadcasts to x (..., C)."""
  return values.reshape((1,) * (x.ndim - 1) + (-1,))


def _means(a, b, axis_name):
  """Means (C,) of two (..., C) float32, over the devices too."""
  count = a.size // a.shape[-1]
  means = tuple(total / count for total in _sums(a, b))
  if axis_name is None:
    return means
  return _over_devices(*means, axis_name)


def _over_devices(a, b, axis_name):
  """The means over the devices of two (C,), in one collective."""
  return jnp.split(jax.lax.pmean(jnp.concatenate([a, b]), axis_name), 2)


def _sums(a, b):
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
