"""First weights are those of JAX's own initializers, to the bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpjax.models import initializers

JAXS = jax.nn.initializers
SHAPES = [(3, 3, 4, 8), (1, 1, 3, 5), (7, 7, 2, 1), (12, 7)]


def draw(init, shape, dtype):
  compiled = jax.jit(functools.partial(init, shape=shape, dtype=dtype))
  return np.asarray(compiled(jax.random.key(3)))


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    (
      initializers.kaiming,
      JAXS.variance_scaling(2.0, 'fan_out', 'normal'),
    ),
    (initializers.lecun, JAXS.lecun_normal()),
    (initializers.normal(0.03), JAXS.normal(0.03)),
  ],
)
def test_each_draws_what_the_initializer_of_its_name_does(ours, theirs, shape):
  want = draw(theirs, shape, jnp.float32)
  np.testing.assert_array_equal(draw(ours, shape, jnp.float32), want)
  assert want.shape == shape and want.std() > 0


def test_the_variances_are_those_of_their_equations():
  key, shape = jax.random.key(0), (3, 3, 40, 60)
  kaiming = initializers.kaiming(key, shape)
  assert kaiming.var() == pytest.approx(2 / (9 * 60), rel=0.03)
  lecun = initializers.lecun(key, shape)
  assert lecun.var() == pytest.approx(1 / (9 * 40), rel=0.03)
  assert abs(lecun).max() < 2.3 / (9 * 40) ** 0.5
