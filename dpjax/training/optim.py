"""SGD as torch has it, learning-rate schedules, and what is decayed."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

# Where onecycle begins and ends, as shares of its peak: those of fastai.
_ONECYCLE_START = 1 / 25
_ONECYCLE_END = 1 / 250_000


@dataclasses.dataclass(frozen=True)
class _Course:
  """What the shapes of a learning rate are made of, as shares of its peak.

  optax composes the same from pieces of its own, equal to rounding (a test)
  and not to the bit; with ours a run that an earlier version began ends with
  the bits that it would have had there.

  Attributes:
    steps: updates in the whole run.
    warm_steps: of them, those in which the rate rises.
    boundaries: (n,) int32 counts at which 'step' drops.
    step_factor: of each drop.
  """

  steps: int
  warm_steps: int
  boundaries: jax.Array
  step_factor: float

  def warmed(self, count):
    """A line up to 1; no update is spent at 0."""
    return jnp.minimum(1.0, (count + 1) / (self.warm_steps + 1))

  def fallen(self, count):
    """From 1 at the end of the rise along half a cosine to 0."""
    progress = (count - self.warm_steps) / (self.steps - self.warm_steps)
    return (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2

  def constant(self, count):
    return self.warmed(count)

  def cosine(self, count):
    return self.warmed(count) * self.fallen(count)

  def step(self, count):
    drops = jnp.sum(count >= self.boundaries)
    return self.warmed(count) * jnp.float32(self.step_factor) ** drops

  def onecycle(self, count):
    risen = jnp.clip(count / max(self.warm_steps, 1), 0, 1)
    return jnp.where(
      count < self.warm_steps,
      _ONECYCLE_START + (1 - _ONECYCLE_START) * risen,
      _ONECYCLE_END + (1 - _ONECYCLE_END) * self.fallen(count),
    )


# By the words of optim.schedule.
SCHEDULES = {
  'constant': _Course.constant,
  'cosine': _Course.cosine,
  'onecycle': _Course.onecycle,
  'step': _Course.step,
}


def make_schedule(
  kind: str,
  *,
  steps: int,
  learning_rate: float,
  warmup: float = 0.0,
  step_fractions: Sequence[float] = (),
  step_factor: float = 0.1,
) -> optax.Schedule:
  """The learning rate as a function of the number of updates made.

  Args:
    kind: 'constant'; 'cosine' falls from the peak to 0 at `steps` (Loshchilov
      and Hutter, 2017, without restarts); 'onecycle' rises in a line from 1/25
      of the peak and falls along a cosine to 1/250,000 of it (Smith and Topin,
      2018; fastai's ends, but fastai rises along a cosine too); 'step'
      multiplies the rate by `step_factor` at each of `step_fractions`.
    steps: updates in the whole run.
    learning_rate: the peak.
    warmup: the share of `steps` in which the rate rises in a line to the peak.
      No update is spent at rate 0: the first has peak / (warm-up steps + 1).
    step_fractions: shares of `steps`, for 'step'.
    step_factor: for 'step'.

  Returns:
    A function of an integer scalar, traced or not, to a float32 scalar.

  Raises:
    ValueError: the kind is unknown, or a field does not fit it.
  """
  if kind not in SCHEDULES:
    raise ValueError(
      f'optim.schedule: must be one of {", ".join(SCHEDULES)}, got {kind!r}'
    )
  if steps < 1:
    raise ValueError(f'steps: must be at least 1, got {steps}')
  if not 0 <= warmup < 1:
    raise ValueError(
      f'optim.warmup: must be a share of the steps in [0, 1), got {warmup}'
    )
  if kind == 'onecycle' and warmup == 0:
    raise ValueError(
      "optim.warmup: schedule 'onecycle' needs a rise above 0, usually 0.3"
    )
  if kind == 'step' and not step_fractions:
    raise ValueError(
      "optim.step_fractions: schedule 'step' needs at least one, as (0.5, 0.75)"
    )
  course = _Course(
    steps,
    round(warmup * steps),
    jnp.array([round(f * steps) for f in step_fractions], jnp.int32),
    step_factor,
  )

  def rate(count):
    scale = SCHEDULES[kind](course, jnp.asarray(count))
    return jnp.float32(learning_rate) * scale

  return rate


def decay_mask(params: optax.Params) -> optax.Params:
  """True for kernels; False for biases and BatchNorm's scale and bias.

  Kernels are what has more than one axis (He et al., 2019, Bag of Tricks, 3.1).
  """
  return jax.tree.map(lambda p: p.ndim > 1, params)


def make(
  *,
  steps: int,
  learning_rate: float,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  decay_norm_and_bias: bool = False,
  schedule: str = 'cosine',
  warmup: float = 0.0,
  step_fractions: Sequence[float] = (),
  step_factor: float = 0.1,
  begin: int = 0,
  clip: float = 0.0,
  frozen: Callable[[optax.Params], optax.Params] | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  r"""SGD with momentum, in torch's order of operations.

  .. math::
    g &\leftarrow \mathrm{clip}(g) + \lambda p \\
    v &\leftarrow \mu v + g \\
    p &\leftarrow p - \eta v \quad\text{(Nesterov: } g + \mu v\text{)}

  Decay is added to the gradient, so it passes through the momentum.

  Args:
    steps: updates in the whole run, for the schedule.
    learning_rate: the schedule's peak, eta.
    momentum: mu; 0 keeps no momentum.
    nesterov: look ahead by one momentum step.
    weight_decay: lambda.
    decay_norm_and_bias: decay everything, as torch does by default, and not
      only the kernels (`decay_mask`).
    schedule: see `make_schedule`, as for the next three.
    warmup: share of the steps.
    step_fractions: shares of the steps.
    step_factor: of the rate at each of them.
    begin: updates before the schedule begins: it is drawn over those that are
      left then, as of a run of its own. The rate of those before is that of a
      run of `begin` steps, which this one extends: a damaged checkpoint may
      lead back there.
    clip: the greatest global norm of the gradient before decay; 0 is no limit.
    frozen: parameters to True where they, and their momentum, stay as they are;
      None: none does.

  Returns:
    The optimizer, and its learning rate as a function of the updates made.

  Raises:
    ValueError: the schedule is unknown, or a field does not fit it.
  """
  course = functools.partial(
    make_schedule,
    schedule,
    learning_rate=learning_rate,
    warmup=warmup,
    step_fractions=step_fractions,
    step_factor=step_factor,
  )
  rate = course(steps=max(min(steps, 1), steps - begin))
  if begin:
    rate = optax.join_schedules([course(steps=begin), rate], [begin])
  mask = None if decay_norm_and_bias else decay_mask
  optimizer = optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    optax.add_decayed_weights(weight_decay, mask),
    optax.sgd(rate, momentum=momentum or None, nesterov=nesterov),
  )
  if frozen is not None:
    optimizer = optax.chain(
      _with_still_momentum(optimizer, frozen),
      optax.masked(optax.set_to_zero(), frozen),
    )
  return optimizer, rate


def _with_still_momentum(
  optimizer: optax.GradientTransformation,
  frozen: Callable[[optax.Params], optax.Params],
) -> optax.GradientTransformation:
  """The optimizer, but what is frozen keeps the momentum that it has.

  Nobody reads it. To move it was half of the kernels of a GPU's step that
  trains a classifier alone. The state keeps its shape, for old checkpoints.
  """

  def update(gradient, state, params=None):
    updates, new = optimizer.update(gradient, state, params)
    stays = optax.tree.map_params(
      optimizer,
      lambda _, stays: stays,
      state,
      frozen(updates),
      transform_non_params=lambda _: False,
    )
    return updates, jax.tree.map(
      lambda stays, before, now: before if stays else now, stays, state, new
    )

  return optax.GradientTransformation(optimizer.init, update)
