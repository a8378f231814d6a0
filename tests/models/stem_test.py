"""The stem's BatchNorm, ReLU and max-pool as one, against the three apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dpjax.models import batch_norm, max_pool
from dpjax.models.stem import norm_relu_pool

RNG = np.random.default_rng(0)
SCALE = jnp.array([1.0, -2.0, 0.5])
BIAS = jnp.array([0.5, 0.0, -1.0])


def apart(x, scale, bias, *options):
  y, mean, var = batch_norm.normalize(x, scale, bias, *options)
  return max_pool.max_pool(nn.relu(y)), mean, var


def results(function, x, dy, dtype=jnp.float32, axis_name=None):
  """Output, statistics, and the gradients of input, scale and bias."""
  (y, *found), backward = jax.vjp(
    lambda *args: function(*args, 1e-5, dtype, axis_name), x, SCALE, BIAS
  )
  return y, found, backward((dy.astype(y.dtype), *map(jnp.zeros_like, found)))


def assert_close(got, want, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a, np.float32), np.asarray(b, np.float32), **tolerance
    ),
    got, want,
  )  # fmt: skip


@pytest.mark.parametrize('sides', [(8, 8), (7, 10)])
def test_numbers_and_gradients_are_those_of_the_three(form, sides):
  x = jnp.asarray(RNG.normal(1, 2, (4, *sides, 3)), jnp.float32)
  y = jax.eval_shape(max_pool.max_pool, x)
  dy = jnp.asarray(RNG.normal(size=y.shape), jnp.float32)
  assert_close(
    results(norm_relu_pool, x, dy), results(apart, x, dy), rtol=1e-5, atol=1e-5
  )


def test_bfloat16_loses_no_more_than_its_own_rounding(form):
  # Levels that stay apart behind BatchNorm: of equal ones a TPU takes another.
  rng = np.random.default_rng(0)
  levels = rng.permuted(np.tile(np.linspace(-8, 7.75, 64), (12, 1)), axis=1)
  x = jnp.asarray(levels.T.reshape(8, 8, 4, 3).swapaxes(0, 2), jnp.bfloat16)
  dy = jnp.asarray(rng.normal(size=(4, 4, 4, 3)), jnp.bfloat16)
  got = results(norm_relu_pool, x, dy, jnp.bfloat16)
  assert got[0].dtype == got[2][0].dtype == jnp.bfloat16
  # The gradient of a pixel is a sum of up to four in bfloat16.
  assert_close(got, results(apart, x, dy, jnp.bfloat16), rtol=2**-6, atol=2**-6)


def test_devices_that_share_a_batch_are_as_one(form):
  x = jnp.asarray(RNG.normal(1, 2, (4, 8, 8, 3)), jnp.float32)
  dy = jnp.asarray(RNG.normal(size=(4, 4, 4, 3)), jnp.float32)
  split = jax.vmap(
    functools.partial(results, norm_relu_pool, axis_name='devices'),
    axis_name='devices',
  )
  y, found, (of_x, *of_params) = split(
    x.reshape(2, 2, 8, 8, 3), dy.reshape(2, 2, 4, 4, 3)
  )
  got = (
    y.reshape(dy.shape),
    [each[0] for each in found],
    # Each device's own part of the gradient: the step adds them.
    (of_x.reshape(x.shape), *(each.sum(0) for each in of_params)),
  )
  assert_close(got, results(norm_relu_pool, x, dy), rtol=1e-5, atol=1e-5)
