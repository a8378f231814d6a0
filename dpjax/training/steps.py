"""One update, and one look, on one device's share of a batch.

`train_step` turns any objective's loss into an update. `axis_name` names the
device axis, or is None on one device.

Gradients are averaged over devices after differentiation. That is right for
terms that are means over the local share, and for terms that are the same
global number on every device (losses.mgacr with its psums): the transpose of
psum adds the devices' cotangents, and the mean takes the factor off again.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from dpjax.training.objectives import Batch, Metrics, Objective


@flax.struct.dataclass
class TrainState:
  """Everything that a step changes."""

  step: jax.Array  # updates done, () int32
  params: Any  # {'backbone': ..., 'projector' or 'attention': ...}
  batch_stats: Any  # likewise
  opt_state: Any


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  axis_name: str | None = None,
) -> tuple[TrainState, Metrics]:
  """One update from one device's share of the batch.

  Returns:
    the next state, and scalar metrics: every loss term apart ('loss/...'),
    their weighted sum 'loss', the learning rate and the gradient's norm.
  """
  (loss, (metrics, batch_stats)), grads = jax.value_and_grad(
    objective.loss, has_aux=True
  )(state.params, state.batch_stats, batch, axis_name)
  metrics = {'loss': loss, **metrics}
  if 'stop' in batch:  # That one process was asked to stop, all must know.
    metrics['stop'] = batch['stop'].mean()
  if axis_name is not None:
    grads = jax.lax.pmean(grads, axis_name)
    metrics = jax.lax.pmean(metrics, axis_name)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  metrics['gradient_norm'] = optax.tree.norm(grads)
  metrics['learning_rate'] = jnp.asarray(schedule(state.step), jnp.float32)
  return (
    TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    ),
    metrics,
  )


def eval_step(
  state: TrainState,
  batch: Batch,
  *,
  objective: Objective,
  axis_name: str | None = None,
) -> dict[str, jax.Array]:
  """What the objective says of each row of one device's share; no update."""
  return objective.outputs(state.params, state.batch_stats, batch, axis_name)
