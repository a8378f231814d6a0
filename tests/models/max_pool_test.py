"""The max-pool and its gradient, in the form of each platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dpjax.models.max_pool import max_pool


def plain(x):
  return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


# Sides of one, odd, and even.
@pytest.mark.parametrize('sides', [(1, 1), (7, 9), (2, 5), (8, 8)])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_pool_and_gradient_are_those_of_xla_to_the_bit(form, sides, dtype):
  rng = np.random.default_rng(0)
  # Whole numbers, so that many are equal: the first one gets the gradient.
  x = jnp.asarray(rng.integers(-3, 3, (2, *sides, 3)), dtype)
  want, backward = jax.vjp(plain, x)
  dy = jnp.asarray(rng.normal(size=want.shape), dtype)
  got, ours = jax.vjp(max_pool, x)
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(ours(dy)[0], backward(dy)[0])


def test_nan_is_not_hidden(form):
  x = jnp.zeros((1, 6, 6, 1)).at[0, 3, 3, 0].set(jnp.nan)
  np.testing.assert_array_equal(jnp.isnan(max_pool(x)), jnp.isnan(plain(x)))
