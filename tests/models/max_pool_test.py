"""The max-pool and its gradient without a scatter, against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpjax.models import max_pool


# Sides of one, odd, and even.
@pytest.mark.parametrize('sides', [(1, 1), (7, 9), (2, 5), (8, 8)])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_largest_and_the_gradient_are_those_of_xla_to_the_bit(sides, dtype):
  rng = np.random.default_rng(0)
  # Whole numbers, so that many are equal: the first one gets the gradient.
  x = jnp.asarray(rng.integers(-3, 3, (2, *sides, 3)), dtype)
  want, backward = jax.vjp(max_pool.max_pool, x)
  dy = jnp.asarray(rng.normal(size=want.shape), dtype)
  got, place = max_pool.largest(x)
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(
    max_pool.gather(place, dy, x.shape), backward(dy)[0]
  )


def test_nan_is_not_hidden():
  x = jnp.zeros((1, 6, 6, 1)).at[0, 3, 3, 0].set(jnp.nan)
  got, want = max_pool.largest(x)[0], max_pool.max_pool(x)
  np.testing.assert_array_equal(jnp.isnan(got), jnp.isnan(want))
  assert jnp.isnan(want).any()
