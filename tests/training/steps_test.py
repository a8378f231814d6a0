"""An update: what it changes, and what it leaves alone."""

import functools

import jax
import numpy as np
import optax
import pytest

from dpjax.training import batches, programs, steps
from dpjax.training import build as build_lib
from tests import fakes


@functools.cache
def build(stage='retrain', data=fakes.make_store, **changes):
  return build_lib.build(fakes.make_config(**changes), stage, data())


def first_batch(built):
  stream = iter(batches.training_stream(built))
  batch = next(stream)
  stream.close()
  return {k: v for k, v in batch.items() if k not in ('index', 'valid')}


@pytest.mark.parametrize('stage', ['pretrain', 'retrain'])
def test_training_lowers_the_loss_on_a_fixed_batch(stage):
  built = build(stage)
  optimizer = optax.sgd(0.02, momentum=0.9)
  state = build_lib.initial_state(built, optimizer)
  step = jax.jit(
    functools.partial(
      steps.train_step,
      objective=built.objective,
      optimizer=optimizer,
      schedule=optax.constant_schedule(0.02),
    )
  )
  batch = first_batch(built)
  history = []
  for _ in range(26):
    state, metrics = step(state, batch)
    history.append(float(metrics['loss']))
  assert history[-1] < 0.8 * history[0]
  assert int(state.step) == 26
  assert {'loss', 'gradient_norm', 'learning_rate'} <= set(metrics)


SMALL = {**fakes.SMALL, **fakes.PLAIN}


def test_class_weights_begin_at_their_step_inside_a_dispatch():
  built = build(
    data=fakes.make_uneven_store, loss__classification='cb_ce',
    loss__begin=0.5, retrain__epochs=0.67, **SMALL,
  )  # fmt: skip
  assert built.total_steps == 2
  still = optax.sgd(0.0)  # The same logits at every step of the same batch.
  state = build_lib.initial_state(built, still)
  batch = first_batch(built)
  step = programs.compile_step(
    built,
    functools.partial(
      steps.train_step,
      objective=built.objective,
      optimizer=still,
      schedule=optax.constant_schedule(0.0),
    ),
    steps=2,
  )
  network = {k: tree['backbone'] for k, tree in state.network.items()}
  (logits, _), _ = built.objective.backbone.apply(
    network, built.objective.pixels.views(batch)[:, 0], train=True,
    mutable=['batch_stats'],
  )  # fmt: skip
  _, metrics = step(
    state, jax.tree.map(lambda x: np.stack([x, x]), batch), None
  )
  p = np.exp(np.float64(logits))
  nats = -np.log(p / p.sum(axis=1, keepdims=True))
  nats = nats[np.arange(16), batch['label']]
  weights = 1 / (1 - 0.9999 ** np.array([32, 12, 4]))
  weights *= 48 / (weights * [32, 12, 4]).sum()
  want = [nats.mean(), (weights[batch['label']] * nats).mean()]
  assert abs(want[0] - want[1]) > 1e-2
  np.testing.assert_allclose(metrics['loss/classification'], want, rtol=1e-4)


def test_the_average_follows_the_weights_and_is_what_is_looked_at():
  decay = 0.3
  built = build(retrain__average=decay, **SMALL)
  optimizer = optax.sgd(0.05)
  state = build_lib.initial_state(built, optimizer)
  without = steps.TrainState(
    state.step, state.params, state.batch_stats, state.opt_state
  )
  step = jax.jit(
    functools.partial(
      steps.train_step,
      objective=built.objective,
      optimizer=optimizer,
      schedule=optax.constant_schedule(0.05),
      average=built.average,
    )
  )
  batch = first_batch(built)
  want = jax.tree.map(np.float64, state.network)
  for count in range(4):
    state, _ = step(state, batch)
    without, _ = step(without, batch)
    d = min(decay, (1 + count) / (10 + count))
    seen = {'params': state.params, 'batch_stats': state.batch_stats}
    want = jax.tree.map(
      lambda a, x, d=d: d * a + (1 - d) * np.float64(x), want, seen
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    state.average, want,
  )  # fmt: skip
  # Training does not see it, looking does.
  jax.tree.map(np.testing.assert_array_equal, state.params, without.params)
  averaged = steps.TrainState(
    state.step, **state.network, opt_state=state.opt_state
  )
  looks = [
    steps.eval_step(one, batch, objective=built.objective)['logits']
    for one in (state, averaged, without)
  ]
  np.testing.assert_array_equal(looks[0], looks[1])
  assert (np.abs(looks[0] - looks[2]) > 1e-4).any()


def test_a_frozen_backbone_stays_to_the_bit_and_its_classifier_learns():
  built = build(retrain__freeze=True, init__backbone='auto', **fakes.SMALL)
  optimizer, schedule = build_lib.make_optimizer(built, 5)
  state = build_lib.initial_state(built, optimizer)
  before = jax.tree.map(np.asarray, (state.params, state.batch_stats))
  step = jax.jit(
    functools.partial(
      steps.train_step,
      objective=built.objective,
      optimizer=optimizer,
      schedule=schedule,
    )
  )
  for _ in range(2):
    state, metrics = step(state, first_batch(built))
  assert float(metrics['gradient_norm']) > 0
  params, batch_stats = before
  after = dict(state.params['backbone'])
  old = dict(params['backbone'])
  assert (after.pop('fc')['kernel'] != old.pop('fc')['kernel']).any()
  assert (
    state.params['attention']['stage1_pos']['conv']['kernel']
    != params['attention']['stage1_pos']['conv']['kernel']
  ).any()
  jax.tree.map(np.testing.assert_array_equal, after, old)
  momentum = dict(optax.tree.get(state.opt_state, 'trace')['backbone'])
  assert (momentum.pop('fc')['kernel'] != 0).any()
  assert not any(np.any(v) for v in jax.tree.leaves(momentum))
  jax.tree.map(
    np.testing.assert_array_equal,
    state.batch_stats['backbone'],
    batch_stats['backbone'],
  )
