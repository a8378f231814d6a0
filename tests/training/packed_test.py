"""A packed state: nothing is lost in it, and a step on it is the same step."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpjax import prepare
from dpjax.distributed import parallel
from dpjax.training import (
  batches,
  checkpoint,
  loop,
  packed,
  programs,
  steps,
)
from dpjax.training import build as build_lib
from tests import fakes


@functools.cache
def build(mode='jit', devices=1):
  """(run, optimizer, schedule, fresh state, its first batch)."""
  config = fakes.make_config(
    parallel__mode=mode,
    parallel__devices=devices,
    retrain__optim__clip=0.1,
    retrain__optim__weight_decay=0.01,
    retrain__average=0.5,
    **fakes.SMALL,
  )
  run = build_lib.build(config, 'retrain', fakes.make_store())
  optimizer, schedule = build_lib.make_optimizer(run, 10)
  stream = iter(batches.training_stream(run))
  batch = batches.place_dispatch(run, [next(stream)])
  stream.close()
  return (
    run, optimizer, schedule, build_lib.initial_state(run, optimizer), batch,
  )  # fmt: skip


def assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def numbered(tree):
  """The tree with each value another, so that none can stand for another."""
  sizes = iter(range(10**9))
  return jax.tree.map(
    lambda x: jnp.asarray(
      np.fromiter(sizes, np.float32, x.size).reshape(x.shape)
    ),
    tree,
  )


def test_unpacking_gives_back_every_value_where_it_was():
  state = build()[3]
  state = state.replace(
    params=numbered(state.params),
    batch_stats=numbered(state.batch_stats),
    opt_state=numbered(state.opt_state),
    average=numbered(state.average),
  )
  together = packed.pack(state)
  # Step and schedule's count; two vectors each of parameters, momentum and
  # statistics, which have no kernel and so an empty one; four of the average.
  assert len(jax.tree.leaves(together)) == 2 + 3 * 2 + 2 * 2
  assert_same(packed.unpack(together), state)
  assert_same(packed.as_modules_know(together), state)


def test_kernels_lie_as_cudnn_reads_them():
  kernel = jnp.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)  # HWIO
  vector = packed.pack_tree({'kernel': kernel}).kernels
  want = np.asarray(kernel).transpose(3, 0, 1, 2)  # OHWI
  np.testing.assert_array_equal(vector.reshape(want.shape), want)


def test_a_plain_state_stays_itself_where_there_is_no_gpu():
  run, _, _, state, _ = build()
  assert packed.at_rest(run, state) is state
  assert packed.as_modules_know(state) is state


@pytest.mark.parametrize(
  ('mode', 'devices'), [('jit', 1), ('pmap', 4), ('shard_map', 4)]
)
def test_a_step_on_it_is_the_same_step(mode, devices, monkeypatch):
  run, optimizer, schedule, state, batch = build(mode, devices)
  step = programs.compile_training(run, optimizer, schedule, donate=False)
  want, metrics = step(state, batch, None)
  monkeypatch.setattr(parallel.Devices, 'platform', 'gpu')
  together = packed.at_rest(run, state)
  assert isinstance(together.params, packed.Packed)
  got, own_metrics = step(together, batch, None)
  assert isinstance(got.opt_state[2][0].trace, packed.Packed)
  # The clip's norm is summed in another order, all else one by one.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, packed.as_modules_know(got), want)
  jax.tree.map(close, own_metrics, metrics)
  assert isinstance(want, steps.TrainState)


def test_a_run_that_freezes_its_backbone_is_not_packed(monkeypatch):
  monkeypatch.setattr(parallel.Devices, 'platform', 'gpu')
  config = fakes.make_config(retrain__freeze=True, init__backbone='auto')
  assert not packed.suits(
    build_lib.build(config, 'retrain', fakes.make_store())
  )


def test_in_training_no_state_lies_on_the_devices_unpacked(
  tmp_path, monkeypatch
):
  """Not the first one, and after a validation or a save not that one."""
  plain = []  # weak references to the arrays of unpacked states

  def watched(function):
    def call(*args):
      state = function(*args)
      plain.extend(map(weakref.ref, jax.tree.leaves(state.params)))
      return state

    return call

  def place(run, host):
    gc.collect()
    alive.append(sum(ref() is not None for ref in plain))
    return real(run, host)

  real, alive = batches.place_dispatch, []
  store = fakes.make_store()
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: store)
  monkeypatch.setattr(
    build_lib, 'initial_state', watched(build_lib.initial_state)
  )
  monkeypatch.setattr(
    packed, 'as_modules_know', watched(packed.as_modules_know)
  )
  monkeypatch.setattr(packed, 'suits', lambda run: True)
  monkeypatch.setattr(batches, 'place_dispatch', place)
  config = fakes.make_config(
    init__backbone='None', retrain__epochs=2.0, eval__every=1.0,
    **fakes.SMALL, **fakes.PLAIN,
  )  # fmt: skip
  # What is saved is copied to the host beside the steps.
  monkeypatch.setattr(checkpoint.Checkpoints, 'save', lambda *args: None)
  loop.train(config, 'retrain', tmp_path)
  assert len(alive) == 6 and len(plain) > 4 and not any(alive)
