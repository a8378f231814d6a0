"""BatchNorm, ReLU and max-pool of a residual stem, trained as one.

They are a residual network's largest arrays, and on an accelerator each step of
them and of their gradient would read and write the whole. But only what came
out of the pool has a gradient, a quarter of the pixels at most: so the forward
pass keeps the input at each of those, and the sums over the batch that the
gradient of BatchNorm needs are taken over these alone.

A GPU finds these pixels and keeps where they are, a byte each: what is as large
as the input is read once and written once. A TPU has a fast gradient of
max-pool, and pools first: BatchNorm and ReLU keep the order of values (a
channel whose scale is negative gets a sign, and keeps it too). Of values that
rounding makes equal behind BatchNorm the gradient goes there to the one that
was the largest before, elsewhere to the first.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from dpjax.models import batch_norm, max_pool, platforms


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def norm_relu_pool(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float,
  dtype: DTypeLike,
  axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """max_pool(relu(normalize(x))): arguments and results as of `normalize`.

  Args:
    x: (B, H, W, C).
    scale, bias, epsilon, dtype, axis_name: as of batch_norm.normalize.

  Returns:
    (B, ceil(H / 2), ceil(W / 2), C), and the batch's mean and variance (C,).
  """
  return _forward(x, scale, bias, epsilon, dtype, axis_name)[0]


def _forward(x, scale, bias, epsilon, dtype, axis_name):
  x, sign = platforms.choose(x, scale, tpu=_upwards, other=_as_is)
  mean, var, inverse = batch_norm.statistics(x, epsilon, axis_name)
  affine = mean, inverse * (scale * sign), bias

  def kept(x, mean, factor, bias):
    y = batch_norm.affine(x, mean, factor, bias, dtype)
    found = max_pool.largest(nn.relu(y), x)
    # Else the compiler finds the places again for the gradient, from all of x.
    return jax.lax.optimization_barrier(found)

  def pooled_first(x, mean, factor, bias):
    there = max_pool.max_pool(x)
    y = nn.relu(batch_norm.affine(there, mean, factor, bias, dtype))
    return y, jnp.zeros(y.shape, jnp.int8), there

  def plain(x, mean, factor, bias):
    y = batch_norm.affine(x, mean, factor, bias, dtype)
    y = max_pool.max_pool(nn.relu(y))
    # Not read, so not made.
    return y, jnp.zeros(y.shape, jnp.int8), jnp.zeros(y.shape, x.dtype)

  y, *rest = platforms.choose(
    x, *affine, gpu=kept, tpu=pooled_first, other=plain
  )
  return (
    (y, mean * sign, var),
    (x, scale, sign, bias, mean, inverse, *rest),
  )


def _as_is(x, scale):
  return x, jnp.ones_like(scale)


def _upwards(x, scale):
  """x with a sign for each channel, so that what is larger stays larger.

  The convolution before it writes it so, at no cost, if nobody reads x itself.
  """
  sign = jnp.where(scale < 0, -1, 1).astype(scale.dtype)
  return x * batch_norm.beside(x, sign.astype(x.dtype)), sign


def _backward(epsilon, dtype, axis_name, kept, cotangents):
  del epsilon
  x, scale, sign, bias, mean, inverse, place, there = kept
  affine = mean, inverse * (scale * sign), bias

  def at_pooled(there, dy, mean, factor, bias):
    """The gradient before ReLU, where the pool passes one, and its two sums."""
    # Where the largest is not above 0, ReLU passes nothing.
    passes = batch_norm.affine(there, mean, factor, bias, dtype) > 0
    dy = jnp.where(passes, dy, 0)
    dy_32 = dy.astype(jnp.float32)
    deviation = batch_norm.deviation(there, mean)
    return dy, *batch_norm.sums(dy_32, dy_32 * deviation)

  def gathered(x, place, there, dy, *affine):
    dy, *own = at_pooled(there, dy, *affine)
    return max_pool.gather(place, dy, x.shape).astype(jnp.float32), *own

  def pooled_first(x, place, there, dy, *affine):
    del place
    dy, *own = at_pooled(there, dy, *affine)
    return jax.vjp(max_pool.max_pool, x)[1](dy)[0].astype(jnp.float32), *own

  def plain(x, place, there, dy, mean, factor, bias):
    del place, there
    y = batch_norm.affine(x, mean, factor, bias, dtype)
    _, backward = jax.vjp(lambda y: max_pool.max_pool(nn.relu(y)), y)
    dy = backward(dy)[0].astype(jnp.float32)
    return dy, *batch_norm.sums(dy, dy * batch_norm.deviation(x, mean))

  dy, *own = platforms.choose(
    x, place, there, cotangents[0], *affine,
    gpu=gathered, tpu=pooled_first, other=plain,
  )  # fmt: skip
  # That of the signed x, with its sign: once in `scale`, which has it too.
  dx = batch_norm.input_gradient(
    x, dy, tuple(own), scale, mean, inverse, axis_name
  )
  return dx, own[1] * inverse * sign, own[0]


norm_relu_pool.defvjp(_forward, _backward)
