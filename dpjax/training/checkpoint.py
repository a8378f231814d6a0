"""Checkpoints, by Orbax; no other file knows it.

A checkpoint holds the state, the data iterator's state and a small record of
the run (seconds trained). Orbax writes it beside and renames it when whole, so
a kill at any moment leaves the one before.

Where a run starts, the first that is there:
  1. the newest checkpoint of its own workdir (it resumes),
  2. for stage II, the backbone named by `init.backbone`,
  3. scratch.
"""

import contextlib
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers

from dpjax.errors import UserError


class Checkpoints:
  """The checkpoints of one run: the newest few, and the best."""

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    keep: int = 2,
    best: str = '',
    write: bool = True,
  ):
    """Opens `workdir`/checkpoints.

    Args:
      workdir: of the run.
      keep: how many of the newest to keep.
      best: the score whose highest checkpoint is kept too; '' for none.
      write: make the folder, and clear it of what a kill in the middle of a
        save has left. False to look on: that may be a save under way.
    """
    self._best = best
    if write and jax.process_index() == 0:
      _clear(pathlib.Path(workdir) / 'checkpoints')
    policies = [checkpoint_managers.LatestN(keep)]
    if best:
      policies.append(
        checkpoint_managers.BestN(
          get_metric_fn=self._score,
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = ocp.CheckpointManager(
      epath.Path(pathlib.Path(workdir).resolve() / 'checkpoints'),
      options=ocp.CheckpointManagerOptions(
        save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=self._score if best else None,  # else no score is written
        create=write,
        **({} if write else _alone()),
      ),
      item_handlers=_handlers(),
    )

  def _score(self, metrics):
    value = metrics.get(self._best)
    return -np.inf if value is None else value

  def newest(self) -> int | None:
    """The newest step, or None."""
    return self._manager.latest_step()

  def find(self, which: str) -> int:
    """The step of the 'last' or the 'best' checkpoint.

    Raises:
      UserError: there is none.
    """
    step = self.newest()
    if which == 'best':
      scored = {
        step: self._score(metrics)
        for step in self._manager.all_steps()
        if (metrics := self._manager.metrics(step))
      }
      # Of equals the latest, as the policy keeps it.
      step = max(scored, key=lambda s: (scored[s], s), default=None)
    if step is None:
      needs = ' with validations (eval.every)' if which == 'best' else ''
      raise UserError(
        f'{self._manager.directory} holds no {which} checkpoint; train first'
        + needs
      )
    return step

  def save(
    self, step: int, state: Any, data: Any, run: Any, scores: Any = None
  ) -> None:
    """Starts an asynchronous save, after the one before is complete.

    Args:
      step: updates done.
      state: a pytree of arrays.
      data: the iterator's state after the last consumed batch; JSON-like.
      run: JSON-like record of the run.
      scores: of the validation at this step, if there was one.
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        data=ocp.args.JsonSave(data),
        run=ocp.args.JsonSave(run),
      ),
      metrics=scores,
    )

  def restore(self, step: int, like: Any) -> tuple[Any, Any, Any]:
    """Returns (state, data, run) as saved at `step`.

    Args:
      step: a saved one.
      like: pytree of arrays with the structure, shapes and shardings wanted.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          item=abstract,
          restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
        ),
        data=ocp.args.JsonRestore(),
        run=ocp.args.JsonRestore(),
      ),
    )
    return restored['state'], restored['data'], restored['run']

  def wait(self) -> None:
    """Blocks until the save under way is complete."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and frees what Orbax holds."""
    self._manager.close()


def _clear(folder):
  """Removes what a kill in the middle of a save has left.

  Orbax would do so in a thread of its own, and closing does not wait for that:
  it writes a traceback where the process ends before.
  """
  if folder.is_dir():
    for half in ocp.utils.tmp_checkpoints(folder):
      shutil.rmtree(half.get())


def _alone():
  """Who looks on does not wait for the other processes of a job."""
  this = jax.process_index()
  return {
    'multiprocessing_options': ocp.options.MultiprocessingOptions(
      primary_host=this,
      active_processes={this},
      barrier_sync_key_prefix=f'process{this}',
    )
  }


def _handlers():
  """What a checkpoint is made of."""
  return {
    'state': ocp.PyTreeCheckpointHandler(),
    'data': ocp.JsonCheckpointHandler(),
    'run': ocp.JsonCheckpointHandler(),
  }


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
  """Whether `workdir` holds a whole checkpoint; makes nothing."""
  folder = pathlib.Path(workdir) / 'checkpoints'
  return folder.is_dir() and any(p.name.isdigit() for p in folder.iterdir())


def read_state(workdir: str | pathlib.Path) -> dict[str, Any]:
  """The newest state of a run as nested dicts of numpy arrays.

  Raises:
    UserError: no checkpoint there.
  """
  if not has_checkpoint(workdir):
    raise UserError(f'{workdir} holds no checkpoint')
  manager = ocp.CheckpointManager(
    epath.Path(pathlib.Path(workdir).resolve() / 'checkpoints'),
    options=ocp.CheckpointManagerOptions(read_only=True, **_alone()),
    item_handlers=_handlers(),
  )
  with contextlib.closing(manager):
    step = manager.latest_step()
    tree = manager.item_metadata(step)['state'].tree
    # As numpy, whatever devices it was saved from.
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
    )
    return manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(item=tree, restore_args=as_numpy)
      ),
    )['state']


def load_backbone(path: str | pathlib.Path) -> dict[str, Any]:
  """The backbone of a stage I (or II) workdir.

  Args:
    path: the workdir.

  Returns:
    {'params': ..., 'batch_stats': ...} as numpy arrays, without what is not
    the backbone's (projector, attention) and without a classifier.

  Raises:
    UserError: no checkpoint there, or its numbers are not finite.
  """
  try:
    state = read_state(path)
  except ValueError as error:
    raise UserError(
      f'config.init.backbone: {error}; it must be a workdir of stage I, an .npz'
      ' or .safetensors file, auto, or None'
    ) from error
  backbone = {
    part: dict(state[part]['backbone']) for part in ('params', 'batch_stats')
  }
  backbone['params'].pop('fc', None)
  for name, array in traverse_util.flatten_dict(backbone, sep='/').items():
    if not np.isfinite(array).all():
      raise UserError(
        f'config.init.backbone: {name} of {path} holds NaN or infinities; name'
        ' another run'
      )
  return backbone


def merge_backbone(variables: Any, backbone: Any, source: str) -> Any:
  """Fresh `variables` with the backbone's arrays replaced.

  Args:
    variables: {'params': {'backbone': ...}, 'batch_stats': ...}.
    backbone: {'params', 'batch_stats'}; a classifier may be missing.
    source: what to name in an error.

  Raises:
    UserError: an array is missing, unknown, or of another shape.
  """
  merged = {part: dict(tree) for part, tree in variables.items()}
  for part in ('params', 'batch_stats'):
    wanted = traverse_util.flatten_dict(variables[part]['backbone'], sep='/')
    given = traverse_util.flatten_dict(backbone[part], sep='/')
    for name in sorted(given.keys() | wanted.keys()):
      if name not in given and name.startswith('fc/'):
        continue
      have = given[name].shape if name in given else None
      want = wanted[name].shape if name in wanted else None
      if have != want:
        raise UserError(
          f'config.init.backbone: {source} has another network: {part}/{name}'
          f' is {have or "missing"} there and {want or "missing"} here; give'
          ' both stages the same config.model'
        )
    merged[part]['backbone'] = traverse_util.unflatten_dict(
      {name: given.get(name, wanted[name]) for name in wanted}, sep='/'
    )
  return merged
