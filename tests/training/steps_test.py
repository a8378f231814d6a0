"""An update: what it changes, and what it leaves alone."""

import functools

import jax
import numpy as np
import optax
import pytest

from dpjax.training import batches, steps
from dpjax.training import build as build_lib
from tests import fakes


@functools.cache
def build(stage='retrain', **changes):
  return build_lib.build(
    fakes.make_config(**changes), stage, fakes.make_store()
  )


def first_batch(built):
  stream = iter(batches.training_stream(built))
  batch = next(stream)
  stream.close()
  return {k: v for k, v in batch.items() if k not in ('index', 'valid')}


@pytest.mark.parametrize('stage', ['pretrain', 'retrain'])
def test_training_lowers_the_loss_on_a_fixed_batch(stage):
  built = build(stage)
  optimizer = optax.sgd(0.05, momentum=0.9)
  state = build_lib.initial_state(built, optimizer)
  step = jax.jit(
    functools.partial(
      steps.train_step,
      objective=built.objective,
      optimizer=optimizer,
      schedule=optax.constant_schedule(0.05),
    )
  )
  batch = first_batch(built)
  history = []
  for _ in range(15):
    state, metrics = step(state, batch)
    history.append(float(metrics['loss']))
  assert history[-1] < 0.8 * history[0]
  assert int(state.step) == 15
  assert {'loss', 'gradient_norm', 'learning_rate'} <= set(metrics)


def test_a_frozen_backbone_stays_to_the_bit_and_its_classifier_learns():
  built = build(retrain__freeze=True, init__backbone='auto')
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
  jax.tree.map(
    np.testing.assert_array_equal,
    state.batch_stats['backbone'],
    batch_stats['backbone'],
  )
