"""BatchNorm, ReLU and max-pool of a residual stem, trained as one.

They are a residual network's largest arrays. On a GPU each step of their
gradient would read and write the whole of them. But only what came out of the
pool has a gradient, a quarter of the pixels at most: so the forward pass keeps
the input at each of those, and the sums over the batch that the gradient of
BatchNorm needs are taken over these alone. What is as large as the input is
read once and written once.
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
  mean, var, inverse = batch_norm.statistics(x, epsilon, axis_name)
  affine = mean, inverse * scale, bias

  def kept(x, mean, factor, bias):
    y = batch_norm.affine(x, mean, factor, bias, dtype)
    found = max_pool.largest(nn.relu(y), x)
    # Else the compiler finds the places again for the gradient, from all of x.
    return jax.lax.optimization_barrier(found)

  def plain(x, mean, factor, bias):
    y = batch_norm.affine(x, mean, factor, bias, dtype)
    y = max_pool.max_pool(nn.relu(y))
    # Not read, so not made.
    return y, jnp.zeros(y.shape, jnp.int8), jnp.zeros(y.shape, x.dtype)

  y, *rest = platforms.choose(x, *affine, gpu=kept, other=plain)
  return (y, mean, var), (x, scale, bias, mean, inverse, *rest)


def _backward(epsilon, dtype, axis_name, kept, cotangents):
  del epsilon
  x, scale, bias, mean, inverse, place, there = kept
  affine = mean, inverse * scale, bias

  def gathered(x, place, there, dy, mean, factor, bias):
    # Where the largest is not above 0, ReLU passes nothing.
    passes = batch_norm.affine(there, mean, factor, bias, dtype) > 0
    dy = jnp.where(passes, dy, 0)
    dy_32 = dy.astype(jnp.float32)
    own = batch_norm.sums(dy_32, dy_32 * batch_norm.deviation(there, mean))
    return max_pool.gather(place, dy, x.shape).astype(jnp.float32), *own

  def plain(x, place, there, dy, mean, factor, bias):
    del place, there
    y = batch_norm.affine(x, mean, factor, bias, dtype)
    _, backward = jax.vjp(lambda y: max_pool.max_pool(nn.relu(y)), y)
    dy = backward(dy)[0].astype(jnp.float32)
    return dy, *batch_norm.sums(dy, dy * batch_norm.deviation(x, mean))

  dy, *own = platforms.choose(
    x, place, there, cotangents[0], *affine, gpu=gathered, other=plain
  )
  dx = batch_norm.input_gradient(
    x, dy, tuple(own), scale, mean, inverse, axis_name
  )
  return dx, own[1] * inverse, own[0]


norm_relu_pool.defvjp(_forward, _backward)
