"""BatchNorm against Flax's own, in the form of each platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dpjax.models.batch_norm import BatchNorm, jointly

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(2, 3, (8, 5, 6, 4)), jnp.float32)
DY = jnp.asarray(RNG.normal(size=X.shape), jnp.float32)
VARIABLES = {
  'params': {
    'scale': jnp.array([1.0, -2.0, 0.5, 0.0]),
    'bias': jnp.arange(4.0),
  },
  'batch_stats': {'mean': jnp.arange(4.0), 'var': jnp.arange(4.0) + 1},
}


def results(module, x, dy):
  """Output, running statistics, and gradients of input and parameters."""

  def apply(params, x):
    return module.apply(
      {**VARIABLES, 'params': params}, x, mutable=['batch_stats']
    )

  y, backward, stats = jax.vjp(apply, VARIABLES['params'], x, has_aux=True)
  return y, stats, backward(dy.astype(y.dtype))


def assert_close(got, want, **tolerance):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, **tolerance), got, want
  )


def test_numbers_and_gradients_are_those_of_flax(form):
  options = {'momentum': 0.9, 'epsilon': 1e-5}
  got = results(BatchNorm(use_running_average=False, **options), X, DY)
  want = results(nn.BatchNorm(use_running_average=False, **options), X, DY)
  assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_variables_and_the_running_form_are_those_of_flax():
  ours, flax = BatchNorm(True), nn.BatchNorm(True)
  assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), X)) == (
    jax.tree.map(jnp.shape, flax.init(jax.random.key(0), X))
  )
  assert_close(
    ours.apply(VARIABLES, X), flax.apply(VARIABLES, X), rtol=1e-6, atol=1e-6
  )


def test_bfloat16_is_normalised_in_float32(form):
  module = BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
  x, dy = X.astype(jnp.bfloat16), DY.astype(jnp.bfloat16)
  y, stats, (of_params, of_x) = results(module, x, dy)
  assert y.dtype == of_x.dtype == jnp.bfloat16
  exact = results(
    BatchNorm(use_running_average=False),
    x.astype(jnp.float32),
    dy.astype(jnp.float32),
  )
  # The sums are not rounded to bfloat16 anywhere, the arrays only at the end.
  assert_close((stats, of_params), (exact[1], exact[2][0]), rtol=1e-5)
  assert_close(
    jax.tree.map(lambda a: a.astype(jnp.float32), (y, of_x)),
    (exact[0], exact[2][1]), rtol=2**-8, atol=1e-6,
  )  # fmt: skip


def test_devices_that_share_a_batch_normalise_it_as_one(form):
  module = BatchNorm(use_running_average=False, axis_name='devices')
  split = jax.vmap(
    functools.partial(results, module), axis_name='devices', in_axes=0
  )
  y, stats, (of_params, of_x) = split(
    X.reshape(2, 4, *X.shape[1:]), DY.reshape(2, 4, *X.shape[1:])
  )
  want = results(BatchNorm(use_running_average=False), X, DY)
  assert_close(
    (
      y.reshape(X.shape),
      jax.tree.map(lambda a: a[0], stats),
      (
        # Each device's own part of the gradient: the step adds them.
        jax.tree.map(lambda a: a.sum(0), of_params),
        of_x.reshape(X.shape),
      ),
    ),
    want, rtol=1e-5, atol=1e-5,
  )  # fmt: skip


def test_a_constant_channel_is_finite(form):
  module = BatchNorm(use_running_average=False)
  got = results(module, jnp.full((4, 2, 2, 4), 3.0), DY[:4, :2, :2])
  assert all(np.isfinite(a).all() for a in jax.tree.leaves(got))


def test_two_side_by_side_are_two_by_themselves():
  class Both(nn.Module):
    together: bool

    @nn.compact
    def __call__(self, x):
      norms = [BatchNorm(use_running_average=False, name=n) for n in 'ab']
      if self.together:
        return jointly(norms, x)
      halves = zip(norms, jnp.split(x, 2, axis=-1), strict=True)
      return jnp.concatenate([norm(half) for norm, half in halves], axis=-1)

  variables = Both(True).init(jax.random.key(0), X)
  got, want = (
    Both(together).apply(variables, X, mutable=['batch_stats'])
    for together in (True, False)
  )
  assert_close(got, want, rtol=1e-6, atol=1e-6)
