"""One update, and one look, on one device's share of a batch.

`train_step` turns any objective's loss into an update. `axis_name` names the
device axis, or is None on one device.

Gradients are averaged over devices after differentiation. That is right for
terms that are means over the local share, and for terms that are the same
global number on every device (losses.mgacr with its psums): the transpose of
psum adds the devices' cotangents, and the mean takes the factor off again.
"""

import dataclasses
import hashlib
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dpjax.training import packed
from dpjax.training.objectives import Batch, Metrics, Objective


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes."""

  step: jax.Array  # updates done, () int32
  params: Any  # {'backbone': ..., 'projector' or 'attention': ...}
  batch_stats: Any  # likewise
  opt_state: Any

  @property
  def network(self) -> dict[str, Any]:
    """{'params', 'batch_stats'} that validation and evaluation see."""
    return {'params': self.params, 'batch_stats': self.batch_stats}


@flax.struct.dataclass
class AveragedState(TrainState):
  """A state of its own kind, so that others are saved as they always were."""

  average: Any  # of what the state's params and batch_stats were

  @property
  def network(self) -> dict[str, Any]:
    """The average."""
    return self.average


def weights_digest(state: TrainState) -> str:
  """sha256 of all parameters and statistics that evaluation sees, by name."""
  total = hashlib.sha256()
  seen = state.network
  named = {'params': seen['params'], 'stats': seen['batch_stats']}
  for path, leaf in jax.tree.leaves_with_path(named):
    total.update(jax.tree_util.keystr(path).encode())
    total.update(np.ascontiguousarray(leaf, np.float32).tobytes())
  return total.hexdigest()


def with_average(state: TrainState) -> AveragedState:
  """A state whose average begins with its own weights."""
  # Copies: both are donated to the step.
  average = jax.tree.map(jnp.copy, state.network)
  parts = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  return AveragedState(**parts, average=average)


def _follow(average, network, step, decay):
  """The exponential moving average one update on.

  The decay rises to its value as (1 + step) / (10 + step), so that the first
  weights are forgotten in runs that are short beside 1 / (1 - decay).
  TensorFlow's ExponentialMovingAverage does so with num_updates.
  """
  count = jnp.asarray(step, jnp.float32)
  decay = jnp.minimum(decay, (1 + count) / (10 + count))
  return jax.tree.map(lambda a, x: a + (1 - decay) * (x - a), average, network)


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  average: float = 0.0,
  own_statistics: bool = False,
  axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
  """One update from one device's share of the batch.

  Args:
    state: an AveragedState where there is an average; as the modules know it,
      or packed (`packed.pack`). So is the next.
    batch: the share.
    objective: what is learnt.
    optimizer: what makes an update of a gradient.
    schedule: its learning rate, for the log.
    average: decay of the exponential moving average of the weights.
    own_statistics: each device normalises its own rows (model.batch_norm), so
      that the running statistics must be averaged.
    axis_name: the device axis that shares the batch, or None.

  Returns:
    the next state, and scalar metrics: every loss term apart ('loss/...'),
    their weighted sum 'loss', the learning rate and the gradient's norm.
  """
  (loss, (metrics, batch_stats)), grads = jax.value_and_grad(
    objective.loss, has_aux=True
  )(
    packed.unpack(state.params),
    packed.unpack(state.batch_stats),
    batch,
    axis_name,
    state.step,
  )
  grads = packed.like(state.params, grads)
  batch_stats = packed.like(state.batch_stats, batch_stats)
  metrics = {'loss': loss, **metrics}
  if 'stop' in batch:  # That one process was asked to stop, all must know.
    metrics['stop'] = batch['stop'].mean()
  if axis_name is not None:
    grads = jax.lax.pmean(grads, axis_name)
    metrics = _means(metrics, axis_name)
    if own_statistics:
      batch_stats = jax.lax.pmean(batch_stats, axis_name)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  metrics['gradient_norm'] = optax.tree.norm(grads)
  metrics['learning_rate'] = jnp.asarray(schedule(state.step), jnp.float32)
  new = dataclasses.replace(
    state,
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
  )
  if isinstance(new, AveragedState):
    seen = {'params': new.params, 'batch_stats': new.batch_stats}
    new = dataclasses.replace(
      new, average=_follow(new.average, seen, state.step, average)
    )
  return new, metrics


def _means(metrics, axis_name):
  """Means of scalars over the devices, in one collective."""
  together = jax.lax.pmean(jnp.stack([*metrics.values()]), axis_name)
  return dict(zip(metrics, together, strict=True))


def embed_step(
  state: TrainState,
  batch: Batch,
  *,
  objective: Objective,
  axis_name: str | None = None,
) -> dict[str, jax.Array]:
  """What the backbone makes of one device's share of plain images.

  Args:
    state: as the modules know it.
    batch: as `eval_step` takes that of stage II; labels are not needed.
    objective: the networks, of either stage.
    axis_name: unused; rows do not depend on each other.

  Returns:
    {'logits': (b, C), 'pooled': (b, K)} float32; without a classifier no
    logits, which would be the pooled features once more.
  """
  del axis_name
  images = objective.pixels.views(batch)[:, 0]
  network = {part: tree['backbone'] for part, tree in state.network.items()}
  logits, features = objective.backbone.apply(network, images, train=False)
  found = {'pooled': features['pooled']}
  if objective.backbone.num_classes:
    found['logits'] = logits
  return {name: value.astype(jnp.float32) for name, value in found.items()}


def eval_step(
  state: TrainState,
  batch: Batch,
  *,
  objective: Objective,
  axis_name: str | None = None,
) -> dict[str, jax.Array]:
  """What the objective says of each row of one device's share; no update."""
  seen = state.network
  return objective.outputs(
    seen['params'], seen['batch_stats'], batch, axis_name
  )
