"""Validation: when it falls due, and what counts in its loss."""

import functools

import jax
import numpy as np
import optax
import pytest

from dpjax.training import batches, loop, programs, validation
from dpjax.training import build as build_lib
from tests import fakes

BATCH = 16


@pytest.mark.parametrize('size', [1, 2, 4, 16])
def test_validations_fall_on_the_ends_of_dispatches(size):
  total = 67
  ends, step = set(), 0
  for made in loop.dispatches(0, total, size):
    step += made
    ends.add(step)
  found = validation.validation_steps(total, 1.0, 6.5, size)
  assert found <= ends and total in found
  if size == 1:
    assert sorted(found)[:4] == [6, 13, 20, 26]  # 6.5, 13, 19.5, 26
  assert validation.validation_steps(total, 0.0, 6.5, size) == {total}


def build(count, mode='jit', devices=1, **changes):
  """A stage I with so many validation radiographs, and a state of it."""
  config = fakes.make_config(
    model__stage_sizes=(1,), model__width=4, mgacr__stages=('stage1',),
    pretrain__batch_size=BATCH, parallel__mode=mode, parallel__devices=devices,
    **changes,
  )  # fmt: skip
  data = fakes.make_store(validation=count)
  run = build_lib.build(config, 'pretrain', data)
  state = build_lib.initial_state(run, optax.sgd(0.1))
  # Else all embeddings of an untrained network are nearly the same.
  rng = np.random.default_rng(0)
  params = {
    **state.params,
    'projector': jax.tree.map(
      lambda p: rng.normal(size=p.shape).astype(np.float32),
      state.params['projector'],
    ),
  }
  return run, state.replace(params=run.devices.replicate(params))


@functools.cache
def embeddings(count):
  """[(first views, second views)], (n, D) float64, of each batch."""
  run, state = build(count)
  objective, params = run.objective, state.params

  @jax.jit
  def embed(grey):
    pixels = (grey / 255.0 - objective.pixels.mean) / objective.pixels.std
    pooled, _ = objective.backbone.apply(
      {
        'params': params['backbone'],
        'batch_stats': state.batch_stats['backbone'],
      },
      pixels[..., None],
    )
    return objective.projector.apply({'params': params['projector']}, pooled)

  parts = []
  split = run.data.split('validation')
  for batch in batches.sequential_stream(run, split, BATCH):
    views = batch['views'][batch['valid'] == 1].astype(np.float32)
    parts.append([np.asarray(embed(views[:, i]), np.float64) for i in (0, 1)])
  return parts


def nt_xent(z_a, z_b, temperature):
  """Eq. 1 of SimCLR for each pair, and whether it finds its partner."""
  z = np.concatenate([z_a, z_b])
  z = z / np.linalg.norm(z, axis=1, keepdims=True)
  similarity = z @ z.T
  n = len(z_a)
  losses = np.zeros(2 * n)
  for i in range(2 * n):
    others = [k for k in range(2 * n) if k != i]
    partner = (i + n) % (2 * n)
    losses[i] = np.log(np.exp(similarity[i, others] / temperature).sum()) - (
      similarity[i, partner] / temperature
    )
  found = similarity[:n, n:].argmax(axis=1) == np.arange(n)
  return (losses[:n] + losses[n:]) / 2, found


@pytest.mark.parametrize(
  ('mode', 'devices'), [('jit', 1), ('pmap', 4), ('shard_map', 8)]
)
@pytest.mark.parametrize('count', [5, 21])
def test_stage_one_is_validated_among_its_own_radiographs_and_no_filler(
  count, mode, devices
):
  run, state = build(count, mode, devices)
  scores = validation.validate(run, programs.compile_evaluation(run), state)
  # 5 in a batch of 16, or 16 and 5: one more batch, which is not whole.
  wanted = [
    nt_xent(*views, run.config.pretrain.temperature)
    for views in embeddings(count)
  ]
  losses, found = (np.concatenate(part) for part in zip(*wanted, strict=True))
  assert len(losses) == count
  np.testing.assert_allclose(scores['loss'], losses.mean(), rtol=1e-4)
  np.testing.assert_allclose(
    scores['contrastive_accuracy'], found.mean(), rtol=1e-6
  )
