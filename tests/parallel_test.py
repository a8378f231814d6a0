"""Eight devices compute what one does on the same global batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpjax import experiment, parallel, steps
from tests import fakes

# Float32 sums of another order; gradients here are of the order of 0.1 to 1.
ROUNDING = {'rtol': 2e-4, 'atol': 2e-5}


def run(stage, mode, devices, **changes):
  """(state after a step, metrics) of plain SGD at rate 1: state - gradient."""
  config = fakes.make_config(
    parallel__mode=mode, parallel__devices=devices, **changes
  )
  built = experiment.build(config, stage, fakes.make_store())
  optimizer = optax.sgd(1.0)
  state = experiment.initial_state(built, optimizer)
  stream = iter(built.training_stream())
  batch = next(stream)
  stream.close()
  batch = {k: v for k, v in batch.items() if k not in ('index', 'valid')}
  step = built.compile(
    functools.partial(
      steps.train_step,
      stage=built.model,
      optimizer=optimizer,
      schedule=optax.constant_schedule(1.0),
    )
  )
  return jax.device_get(step(state, built.place(batch)))


@functools.cache
def alone(stage, render):
  return run(stage, 'jit', 1, data__render=render)


@pytest.mark.parametrize('mode', ['pmap', 'shard_map'])
@pytest.mark.parametrize('stage', ['pretrain', 'retrain'])
def test_a_step_on_eight_devices_is_the_step_on_one(stage, mode):
  want_state, want_metrics = alone(stage, 'host')
  state, metrics = run(stage, mode, 8, data__render='host')
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **ROUNDING),
    (state.params, state.batch_stats, metrics),
    (want_state.params, want_state.batch_stats, want_metrics),
  )


def test_rendering_on_the_devices_gives_the_hosts_step():
  want_state, want = alone('retrain', 'host')
  state, metrics = run('retrain', 'pmap', 8, data__render='device')
  # The renders differ by up to two grey levels (data.render), no more.
  np.testing.assert_allclose(metrics['loss'], want['loss'], rtol=2e-2)
  np.testing.assert_allclose(
    metrics['loss/att_pos'], want['loss/att_pos'], rtol=2e-2
  )
  assert jax.tree.structure(state) == jax.tree.structure(want_state)


@pytest.mark.parametrize('mode', ['jit', 'pmap', 'shard_map'])
def test_evaluation_returns_the_rows_in_order(mode):
  devices = 1 if mode == 'jit' else 4

  def step(state, batch, *, axis_name):
    del axis_name
    return {'sum': batch['x'] * state}

  f = parallel.compile_step(
    step, mode=mode, devices=devices, donate=False, gather=True
  )
  x = np.arange(8, dtype=np.float32)
  batch = parallel.place({'x': x}, mode=mode, devices=devices)
  np.testing.assert_array_equal(f(jnp.float32(2), batch)['sum'], 2 * x)


def test_jit_refuses_several_devices():
  with pytest.raises(ValueError, match='one device'):
    parallel.compile_step(lambda s, b: s, mode='jit', devices=2, donate=False)
