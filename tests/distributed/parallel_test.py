"""Eight devices compute what one does on the same global batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpjax.distributed import parallel
from dpjax.training import batches as batches_lib
from dpjax.training import build as build_lib
from dpjax.training import programs, steps
from tests import fakes
from tests.fakes import PLAIN, SMALL

# Float32 sums of another order; gradients here are of the order of 0.1 to 1.
ROUNDING = {'rtol': 2e-4, 'atol': 2e-5}


def build(stage, mode, devices, **changes):
  """(run, state, its first batches) of plain SGD at rate 1."""
  config = fakes.make_config(
    parallel__mode=mode,
    parallel__devices=devices,
    **{'retrain__average': 0.9, **changes},
  )
  built = build_lib.build(config, stage, fakes.make_store())
  state = build_lib.initial_state(built, optax.sgd(1.0))
  stream = iter(batches_lib.training_stream(built))
  batches = [next(stream) for _ in range(2)]
  stream.close()
  return built, state, batches


def compile_step(built, rate=1.0, **options):
  step = functools.partial(
    steps.train_step,
    objective=built.objective,
    optimizer=optax.sgd(rate),
    schedule=optax.constant_schedule(rate),
    average=built.average,
  )
  return programs.compile_step(built, step, **options)


def run(stage, mode, devices, **changes):
  """(state after a step, metrics) of plain SGD at rate 1: state - gradient."""
  built, state, batches = build(stage, mode, devices, **changes)
  images = batches_lib.resident_images(built, built.records)
  batch = batches_lib.place_dispatch(built, batches[:1])
  return jax.device_get(compile_step(built)(state, batch, images))


# Stage II, which has every term, with two stages of the network.
NETWORK = {'retrain': {}, 'pretrain': SMALL, 'finetune': SMALL}


@functools.cache
def alone(stage):
  return run(stage, 'jit', 1, data__render='host', **NETWORK[stage])


@pytest.mark.parametrize('mode', ['pmap', 'shard_map'])
@pytest.mark.parametrize('stage', ['pretrain', 'retrain', 'finetune'])
def test_a_step_on_eight_devices_is_the_step_on_one(stage, mode):
  want_state, want_metrics = alone(stage)
  state, metrics = run(stage, mode, 8, data__render='host', **NETWORK[stage])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **ROUNDING),
    (state.params, state.batch_stats, state.network, metrics),
    (
      want_state.params,
      want_state.batch_stats,
      want_state.network,
      want_metrics,
    ),
  )


@pytest.mark.parametrize(
  ('stage', 'mode', 'devices'),
  [
    ('pretrain', 'jit', 1),  # the loop's own test has stage II so
    ('retrain', 'pmap', 4),
    ('retrain', 'shard_map', 4),
  ],
)
def test_two_steps_in_one_dispatch_are_two_steps(stage, mode, devices):
  built, state, batches = build(stage, mode, devices, **SMALL, **PLAIN)
  once = compile_step(built, rate=0.1)
  want, each = state, []
  for batch in batches:
    want, metrics = once(want, batches_lib.place_dispatch(built, [batch]), None)
    each.append(metrics)
  got, metrics = compile_step(built, rate=0.1, steps=2)(
    state, batches_lib.place_dispatch(built, batches), None
  )
  assert int(got.step) == 2
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    (got.params, got.batch_stats, metrics),
    (
      want.params,
      want.batch_stats,
      jax.tree.map(lambda *x: np.stack(x), *each),
    ),
  )


@pytest.mark.parametrize('mode', ['jit', 'pmap', 'shard_map'])
def test_images_that_lie_on_the_devices_give_the_same_step_to_the_bit(mode):
  devices = 1 if mode == 'jit' else 4
  streamed, resident = (
    run(
      'retrain', mode, devices,
      data__render='device', data__placement=placement,
      **SMALL, **({} if mode == 'jit' else PLAIN),
    )
    for placement in ('stream', 'resident')
  )  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, streamed, resident)


@pytest.mark.parametrize('mode', ['pmap', 'shard_map'])
def test_what_an_image_shows_does_not_depend_on_the_number_of_devices(mode):
  def views(mode, devices):
    built, state, batches = build(
      'pretrain', mode, devices, data__render='device', **SMALL
    )

    def step(state, batch, *, axis_name):
      del state, axis_name
      return built.objective.pixels.views(batch)

    return programs.compile_step(built, step, gather=True)(
      state, batches_lib.place_dispatch(built, batches[:1]), None
    )

  np.testing.assert_array_equal(views(mode, 8), views('jit', 1))


def test_rendering_on_the_devices_gives_the_hosts_step():
  want_state, want = alone('retrain')
  state, metrics = run('retrain', 'pmap', 8, data__render='device')
  # The renders differ by up to two grey levels (data.render), no more.
  np.testing.assert_allclose(metrics['loss'], want['loss'], rtol=2e-2)
  np.testing.assert_allclose(
    metrics['loss/att_pos'], want['loss/att_pos'], rtol=2e-2
  )
  assert jax.tree.structure(state) == jax.tree.structure(want_state)


@pytest.mark.parametrize('mode', ['jit', 'pmap', 'shard_map'])
def test_evaluation_returns_the_rows_in_order(mode):
  devices = parallel.Devices(mode, 1 if mode == 'jit' else 4)

  def step(state, batch, shared, *, axis_name):
    del axis_name, shared
    return {'sum': batch['x'] * state}

  f = devices.compile(step, gather=True)
  x = np.arange(8, dtype=np.float32)
  batch = devices.place({'x': x})
  np.testing.assert_array_equal(f(jnp.float32(2), batch, None)['sum'], 2 * x)


def test_jit_refuses_several_devices():
  with pytest.raises(ValueError, match='one device'):
    parallel.Devices('jit', 2)


BY_DEVICE = {**SMALL, **PLAIN, 'model__batch_norm': 'device'}


@functools.cache
def mean_of_shares():
  """The mean of the states after a step on each quarter of a batch alone."""
  built, state, batches = build('retrain', 'jit', 1, **BY_DEVICE)
  step = compile_training(built)
  shares = [
    step(
      state,
      batches_lib.place_dispatch(
        built,
        [jax.tree.map(lambda x, i=i: x[4 * i : 4 * i + 4], batches[0])],
      ),
      None,
    )[0]
    for i in range(4)
  ]
  return jax.tree.map(lambda *x: sum(x) / 4, *shares)


@pytest.mark.parametrize('mode', ['pmap', 'shard_map'])
def test_batch_norm_by_device_normalises_each_share_by_itself(mode):
  built, state, batches = build('retrain', mode, 4, **BY_DEVICE)
  step = compile_training(built)
  got, _ = step(state, batches_lib.place_dispatch(built, batches[:1]), None)
  # At rate 1 the mean of the states is that of the gradients.
  want = mean_of_shares()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **ROUNDING),
    (got.params, got.batch_stats),
    (want.params, want.batch_stats),
  )


def compile_training(built):
  return programs.compile_training(
    built, optax.sgd(1.0), optax.constant_schedule(1.0), donate=False
  )
