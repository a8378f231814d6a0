"""The optimizer against torch's, and the schedules at their landmarks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpjax.training import optim

STEPS = 100


def parameters(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'conv': {'kernel': rng.normal(size=(3, 3, 2, 4))},
    'norm': {'scale': rng.normal(size=4), 'bias': rng.normal(size=4)},
    'dense': {'kernel': rng.normal(size=(4, 5)), 'bias': rng.normal(size=5)},
  }


def train(optimizer, params, gradients):
  @jax.jit
  def update(state, params, grads):
    updates, state = optimizer.update(grads, state, params)
    return state, optax.apply_updates(params, updates)

  params = jax.tree.map(jnp.asarray, params)
  state = optimizer.init(params)
  for grads in gradients:
    state, params = update(state, params, grads)
  return params


def sgd_by_hand(start, gradients, rates, momentum, nesterov, decays, clip):
  """The equations of `optim.make`, a list of arrays at a time."""
  params, velocities = start, None
  for grads, rate in zip(gradients, rates, strict=True):
    if clip:
      norm = np.sqrt(sum((g**2).sum() for g in grads))
      grads = [g * min(1, clip / norm) for g in grads]
    grads = [g + d * p for g, d, p in zip(grads, decays, params, strict=True)]
    if velocities is None:
      velocities = grads
    else:
      velocities = [
        momentum * v + g for v, g in zip(velocities, grads, strict=True)
      ]
    updates = velocities
    if nesterov:
      updates = [
        g + momentum * v for v, g in zip(velocities, grads, strict=True)
      ]
    params = [p - rate * u for p, u in zip(params, updates, strict=True)]
  return params


def sgd_by_torch(start, gradients, rates, momentum, nesterov, decays, clip):
  import torch

  params = [torch.tensor(p, requires_grad=True) for p in start]
  sgd = torch.optim.SGD(
    [
      {'params': [p], 'weight_decay': d}
      for p, d in zip(params, decays, strict=True)
    ],
    momentum=momentum,
    nesterov=nesterov,
  )
  for grads, rate in zip(gradients, rates, strict=True):
    for p, grad in zip(params, grads, strict=True):
      p.grad = torch.tensor(grad)
    if clip:
      torch.nn.utils.clip_grad_norm_(params, clip)
    for group in sgd.param_groups:
      group['lr'] = rate
    sgd.step()
  return [p.detach().numpy() for p in params]


@pytest.mark.parametrize(
  'reference',
  [sgd_by_hand, pytest.param(sgd_by_torch, marks=pytest.mark.torch)],
)
@pytest.mark.parametrize('everything', [False, True])
@pytest.mark.parametrize(
  ('momentum', 'nesterov', 'clip'),
  [(0.0, False, 0.0), (0.9, False, 0.0), (0.9, True, 0.0), (0.9, False, 1.0)],
)
def test_updates_are_those_of_the_equations_and_of_torch(
  momentum, nesterov, clip, everything, reference
):
  start = parameters()
  gradients = [parameters(seed) for seed in range(1, 7)]
  with jax.enable_x64(True):
    optimizer, _ = optim.make(
      steps=6,
      learning_rate=0.125,
      momentum=momentum,
      nesterov=nesterov,
      weight_decay=0.05,
      decay_norm_and_bias=everything,
      schedule='step',
      step_fractions=(0.5,),
      step_factor=0.5,
      clip=clip,
    )
    ours = train(optimizer, start, gradients)
  theirs = reference(
    jax.tree.leaves(start),
    [jax.tree.leaves(grads) for grads in gradients],
    rates=[0.125] * 3 + [0.0625] * 3,  # exact in the float32 of a rate
    momentum=momentum,
    nesterov=nesterov,
    decays=[
      0.05 if everything or p.ndim > 1 else 0.0 for p in jax.tree.leaves(start)
    ],
    clip=clip,
  )
  # torch adds 1e-6 to the norm that it clips by.
  rtol = 1e-6 if clip and reference is sgd_by_torch else 1e-12
  for a, b in zip(jax.tree.leaves(ours), theirs, strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def test_kernels_are_decayed_and_biases_and_batch_norm_are_not():
  assert optim.decay_mask(parameters()) == {
    'conv': {'kernel': True},
    'norm': {'scale': False, 'bias': False},
    'dense': {'kernel': True, 'bias': False},
  }


def test_without_gradient_only_decay_moves_the_parameters():
  start = parameters()
  zeros = jax.tree.map(np.zeros_like, start)
  optimizer, _ = optim.make(
    steps=1, learning_rate=0.5, weight_decay=0.1, schedule='constant', clip=1.0
  )
  end = train(optimizer, start, [zeros])
  np.testing.assert_allclose(
    end['conv']['kernel'], 0.95 * start['conv']['kernel'], rtol=1e-6
  )
  np.testing.assert_allclose(
    end['norm']['scale'], start['norm']['scale'], rtol=1e-6
  )


def rates(kind, **options):
  rate = optim.make_schedule(kind, steps=STEPS, learning_rate=0.4, **options)
  return np.array(jax.vmap(rate)(jnp.arange(STEPS + 2)))


def test_what_is_frozen_moves_neither_itself_nor_its_momentum():
  def frozen(params):
    return {
      name: jax.tree.map(lambda _, name=name: name != 'dense', tree)
      for name, tree in params.items()
    }

  options = {'steps': STEPS, 'learning_rate': 0.1, 'weight_decay': 0.1}
  params = jax.tree.map(jnp.asarray, parameters())
  gradients = jax.tree.map(jnp.asarray, parameters(seed=1))
  moved = {}
  for kept, name in ((None, 'all'), (frozen, 'some')):
    optimizer, _ = optim.make(**options, frozen=kept)
    # As of a run that an earlier version began, which moved all momentum.
    state = optax.tree.map_params(
      optimizer, jnp.ones_like, optimizer.init(params)
    )
    updates, after = jax.jit(optimizer.update)(gradients, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    moved[name] = updates, optax.tree.get(after, 'trace')
    assert optax.tree.get(after, 'count') == 1
  for before, after in zip(moved['all'], moved['some'], strict=True):
    jax.tree.map(np.testing.assert_array_equal, after['dense'], before['dense'])
  updates, momentum = moved['some']
  for name in ('conv', 'norm'):
    for update in jax.tree.leaves(updates[name]):
      np.testing.assert_array_equal(update, 0)
    for value in jax.tree.leaves(momentum[name]):
      np.testing.assert_array_equal(value, 1)


def test_constant_is_constant():
  np.testing.assert_allclose(rates('constant'), 0.4, rtol=1e-6)


def test_cosine_falls_from_the_peak_over_the_half_to_zero_and_stays():
  rate = rates('cosine')
  np.testing.assert_allclose(
    rate[[0, 50, 100, 101]], [0.4, 0.2, 0, 0], atol=1e-7
  )
  assert (np.diff(rate[:101]) < 0).all()


@pytest.mark.parametrize(
  ('kind', 'theirs'),
  [
    ('cosine', optax.cosine_decay_schedule(0.4, STEPS)),
    (
      'onecycle',
      optax.join_schedules(
        [
          optax.linear_schedule(0.4 / 25, 0.4, 30),
          optax.cosine_decay_schedule(0.4, STEPS - 30, alpha=1 / 250_000),
        ],
        [30],
      ),
    ),
    ('step', optax.piecewise_constant_schedule(0.4, {50: 0.2, 75: 0.2})),
  ],
)
def test_schedules_are_those_that_optax_composes(kind, theirs):
  options = {
    'onecycle': {'warmup': 0.3},
    'step': {'step_fractions': (0.5, 0.75), 'step_factor': 0.2},
  }
  np.testing.assert_allclose(
    rates(kind, **options.get(kind, {})),
    [theirs(step) for step in range(STEPS + 2)],
    atol=1e-7,
  )


def closed_form(kind, count, steps, peak, warm):
  """The learning rates of version faa881e, in float64."""
  risen = np.minimum(1, (count + 1) / (warm + 1))
  fall = (
    1 + np.cos(np.pi * np.clip((count - warm) / (steps - warm), 0, 1))
  ) / 2
  return (
    peak
    * {
      'constant': risen,
      'cosine': risen * fall,
      'step': risen
      * 0.1 ** ((count >= steps // 2) + 1.0 * (count >= steps // 4)),
      'onecycle': np.where(
        count < warm,
        1 / 25 + 24 / 25 * count / warm,
        1 / 250_000 + (1 - 1 / 250_000) * fall,
      ),
    }[kind]
  )


@pytest.mark.parametrize('kind', optim.SCHEDULES)
def test_the_rates_are_those_of_the_version_that_began_a_run(kind):
  steps, peak, warm = 1000, 0.05, 100
  rate = optim.make_schedule(
    kind, steps=steps, learning_rate=peak, warmup=0.1,
    step_fractions=(0.25, 0.5),
  )  # fmt: skip
  count = np.arange(steps)
  np.testing.assert_allclose(
    jax.vmap(rate)(count),
    closed_form(kind, count, steps, peak, warm),
    rtol=1e-6,
    atol=1e-8,
  )


@pytest.mark.parametrize('kind', ['constant', 'cosine', 'step'])
def test_warm_up_is_a_line_to_the_peak_that_starts_above_zero(kind):
  rate = rates(kind, warmup=0.1, step_fractions=(0.5,))
  np.testing.assert_allclose(rate[:11], 0.4 * np.arange(1, 12) / 11, rtol=1e-6)
  assert rate.max() == rate[10]


def test_onecycle_rises_in_a_line_and_falls_along_a_cosine_to_nearly_zero():
  rate = rates('onecycle', warmup=0.3)
  np.testing.assert_allclose(
    rate[[0, 15, 30, 65, 100]],
    [0.4 / 25, 0.4 * (1 + 1 / 25) / 2, 0.4, 0.2, 0.4 / 250_000],
    rtol=1e-5,
  )
  # The line has one slope.
  np.testing.assert_allclose(np.diff(rate[:31]), 0.4 * 24 / 25 / 30, rtol=1e-4)


def test_step_multiplies_the_rate_at_each_fraction():
  rate = rates('step', step_fractions=(0.5, 0.75), step_factor=0.2)
  np.testing.assert_allclose(
    rate[[0, 49, 50, 74, 75, 101]],
    [0.4, 0.4, 0.08, 0.08, 0.016, 0.016],
    rtol=1e-6,
  )


@pytest.mark.parametrize('kind', optim.SCHEDULES)
def test_every_schedule_is_finite_in_a_run_of_one_step(kind):
  rate = optim.make_schedule(
    kind, steps=1, learning_rate=0.4, warmup=0.3, step_fractions=(0.5,)
  )
  assert np.isfinite([rate(0), rate(1)]).all()
  # round(0.5) is 0: 'step' has dropped before the only update.
  np.testing.assert_allclose(rate(0), 0.04 if kind == 'step' else 0.4)


@pytest.mark.parametrize(
  ('field', 'options'),
  [
    (
      'optim.schedule: must be one of constant, cosine, onecycle, step',
      {'schedule': 'linear'},
    ),
    ('optim.warmup', {'warmup': 1.0}),
    ('optim.warmup', {'schedule': 'onecycle'}),
    ('optim.step_fractions', {'schedule': 'step'}),
    ('steps', {'steps': 0}),
  ],
)
def test_schedules_that_cannot_be_are_refused_in_one_line(field, options):
  with pytest.raises(ValueError, match=field) as error:
    optim.make(**{'steps': STEPS, 'learning_rate': 0.1, **options})
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('schedule', optim.SCHEDULES)
def test_an_extended_run_has_the_rates_of_both_its_parts(schedule):
  settings = {
    'schedule': schedule,
    'learning_rate': 0.1,
    'warmup': 0.25,
    'step_fractions': (0.5,),
  }
  _, rate = optim.make(steps=20, begin=8, **settings)
  _, before = optim.make(steps=8, **settings)
  _, after = optim.make(steps=12, **settings)
  np.testing.assert_array_equal(
    [rate(i) for i in range(20)],
    [*(before(i) for i in range(8)), *(after(i) for i in range(12))],
  )
