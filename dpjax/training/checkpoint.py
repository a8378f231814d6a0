"""Checkpoints, by Orbax; no other file knows it.

A checkpoint holds the state, the data iterator's state and a small record of
the run (seconds trained). Orbax writes it beside and renames it when whole, so
a kill at any moment leaves the one before. A step whose files were damaged
later (checkpoint_files.find_fault) counts as none: who trains moves it to
`damaged/` beside checkpoints/, out of the way of the next save of that step and
of what is kept; who looks on takes the next one.

Where a run starts, the first that is there:
  1. the newest checkpoint of its own workdir (it resumes),
  2. what `init.backbone` names: for stage II a backbone, for fine-tuning a
     stage II,
  3. scratch.
"""

import contextlib
import copy
import itertools
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util
from orbax.checkpoint import checkpoint_managers, multihost
from orbax.checkpoint.path import atomicity

from dpjax import leakage
from dpjax.errors import UserError, warn
from dpjax.training import checkpoint_files

DAMAGED = 'damaged'  # beside checkpoints/: the steps that were set aside
# In checkpoints/: old steps on their way out. Orbax would remove them in place,
# and a kill meanwhile would leave a step that looks damaged.
_REMOVED = 'removed'


class _Listed(atomicity.AtomicRenameTemporaryPath):
  """A step that gets its list of files just before it gets its name."""

  async def finalize(self) -> None:
    if self.get_final().name.isdigit():  # The items of a step pass here too.
      checkpoint_files.write_list(pathlib.Path(self.get()))
    await super().finalize()


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
        save has left. False to look on: that may be a save under way. What
        `set_aside_damaged` has not looked at is then checked here.
    """
    self._best = best
    self._write = write
    self._folder = _folder(workdir)
    if write and jax.process_index() == 0:
      _clear(self._folder)
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
      epath.Path(self._folder),
      options=ocp.CheckpointManagerOptions(
        save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        best_fn=self._score if best else None,  # else no score is written
        create=write,
        todelete_subdir=_REMOVED if write else None,
        temporary_path_class=_Listed,
        # Else it would read the scores of damaged steps too.
        lightweight_initialize=not write,
        **(_together() if write else _alone()),
      ),
      item_handlers=_handlers(),
    )

  def _score(self, metrics):
    """What is compared; of a score that was undefined, below all others."""
    value = metrics.get(self._best)
    return -np.inf if value is None else value

  def newest(self) -> int | None:
    """The newest step, or None."""
    return self._manager.latest_step()

  def find(self, which: str) -> int:
    """The step of the 'last' or the 'best' checkpoint.

    Raises:
      UserError: there is none, or none that is whole.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    faults = {} if self._write else _faults(self._folder, steps)
    wanted = [step for step in steps if step not in faults]
    if which == 'best':
      scored = {
        step: self._score(metrics)
        for step in wanted
        if (metrics := self._manager.metrics(step))
        and metrics.get(self._best) is not None
      }
      # Of equals the latest, as the policy keeps it.
      wanted = sorted(scored, key=lambda s: (scored[s], s), reverse=True)
    while wanted and not self._write:
      fault = checkpoint_files.find_fault(
        self._folder / str(wanted[0]), thorough=True
      )
      if fault is None:
        break
      faults[wanted.pop(0)] = fault
    if not wanted and faults:
      raise _none_whole(self._folder, faults)
    if not wanted:
      needs = (
        f' with validations (eval.every) in which {self._best} (eval.best) is'
        ' defined'
        if which == 'best'
        else ''
      )
      raise UserError(
        f'{self._folder} holds no {which} checkpoint; train first' + needs
      )
    for step, fault in faults.items():
      # An older one may have been the best.
      if step > wanted[0] or which == 'best':
        _warn(self._folder, step, fault, f'step {wanted[0]} is taken')
    return wanted[0]

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

    Raises:
      UserError: the disk is full, or gone: at this save or the one before.
    """
    # Orbax writes them later, in a thread; by then the caller has gone on.
    data, run = copy.deepcopy((data, run))
    self.wait()
    with self._writing():
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
      like: pytree of arrays, or jax.ShapeDtypeStruct, with the structure,
        shapes and shardings wanted.
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

  def read_state(self, step: int) -> dict[str, Any]:
    """The state as saved at `step`, as nested dicts of numpy arrays."""
    tree = self._manager.item_metadata(step)['state'].tree
    # As numpy, whatever devices it was saved from.
    as_numpy = jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree
    )
    return self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(item=tree, restore_args=as_numpy)
      ),
    )['state']

  def read_record(self, step: int) -> dict[str, Any]:
    """The record of the run as saved at `step`."""
    only = ocp.args.Composite(run=ocp.args.JsonRestore())
    return self._manager.restore(step, args=only)['run']

  def wait(self) -> None:
    """Blocks until the save under way is complete; raises as `save`."""
    with self._writing():
      self._manager.wait_until_finished()
      self._sweep()

  def close(self) -> None:
    """Waits, and frees what Orbax holds; raises as `save`."""
    with self._writing():
      self._manager.close()
      self._sweep()

  def _sweep(self):
    """Removes the old steps; not while Orbax puts one there."""
    if self._write and jax.process_index() == 0:
      _remove(self._folder / _REMOVED)

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except (OSError, ValueError) as error:
      if isinstance(error.__cause__, jax.errors.JaxRuntimeError):
        raise error.__cause__ from None  # Another process has not come.
      if (reason := _os_reason(error)) is None:
        raise
      raise UserError(
        f'{self._folder}: the checkpoint cannot be written ({reason}); make'
        ' room or bring the disk back, and the same command goes on from the'
        ' newest one'
      ) from error


def _os_reason(error):
  """What the operating system says in a chain of errors; None if nothing.

  An error of tensorstore is a ValueError, and has its number in the text.
  """
  while error is not None:
    if isinstance(error, OSError) and error.errno is not None:
      return os.strerror(error.errno)
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
      return os.strerror(int(found[1]))
    error = error.__cause__ or error.__context__
  return None


def _clear(folder):
  """Removes what a kill in the middle of a save has left.

  Orbax would do so in a thread of its own, and closing does not wait for that:
  it writes a traceback where the process ends before.
  """
  if folder.is_dir():
    for half in ocp.utils.tmp_checkpoints(folder):
      shutil.rmtree(half.get())
  _remove(folder / _REMOVED)


def _remove(folder):
  if folder.is_dir():
    shutil.rmtree(folder)


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


def _together():
  """A process of a job whose own save has failed waits for no other one.

  Orbax would have it wait for 20 minutes before the error is raised, and each
  process perhaps for another thing.
  """
  if jax.process_count() == 1:
    return {}
  wait = multihost.get_barrier_sync_fn()

  def barrier(*, key, timeout_ms):
    if sys.exc_info()[1] is None:  # Else it is called on an error's way out.
      wait(key=key, timeout_ms=timeout_ms)

  return {'async_options': ocp.AsyncOptions(barrier_sync_fn=barrier)}


def _handlers():
  """What a checkpoint is made of."""
  return {
    'state': ocp.PyTreeCheckpointHandler(),
    'data': ocp.JsonCheckpointHandler(),
    'run': ocp.JsonCheckpointHandler(),
  }


def check_path(workdir: str | pathlib.Path) -> None:
  r"""Refuses a workdir below whose path a save would lose the arrays.

  Orbax looks for what it has written of them by a glob of the whole path, and
  only logs that it finds nothing; tensorstore takes a backslash for a slash.

  Raises:
    UserError: the path, links followed, has one of * ? [ \\.
  """
  path = str(_folder(workdir).parent)
  if odd := sorted({*path} & {*'*?[\\'}):
    raise UserError(
      f'--workdir={workdir}: no checkpoint can be kept in {path}, for the'
      f' {" ".join(odd)} in that path; name another'
    )


def has_checkpoint(workdir: str | pathlib.Path) -> bool:
  """Whether `workdir` holds a checkpoint, damaged or not; makes nothing."""
  return newest_step(workdir) is not None


def newest_step(workdir: str | pathlib.Path) -> int | None:
  """The newest step in `workdir`, damaged or not; None without any."""
  return max(_steps(_folder(workdir)), default=None)


def set_aside_damaged(workdir: str | pathlib.Path) -> None:
  """Moves damaged steps from checkpoints/ to damaged/; a line for each.

  Nothing is thrown away. For who will write in `workdir`, before that.

  Raises:
    UserError: none of its steps is whole.
  """
  folder = _folder(workdir)
  steps = sorted(_steps(folder), reverse=True)
  faults = _faults(folder, steps)
  newest = None
  for step in steps:
    if step in faults:
      continue
    fault = checkpoint_files.find_fault(folder / str(step), thorough=True)
    if fault is None:
      newest = step
      break
    faults[step] = fault
  if steps and newest is None:
    raise _none_whole(
      folder, faults, '; put a copy there, or remove the folder to begin anew'
    )
  for step, fault in sorted(faults.items(), reverse=True):
    aside = folder.parent / DAMAGED
    aside.mkdir(exist_ok=True)
    # The same step may have been damaged before.
    again = (f'{step}-{number}' for number in itertools.count(2))
    name = next(
      name
      for name in itertools.chain([f'{step}'], again)
      if not (aside / name).exists()
    )
    (folder / str(step)).rename(aside / name)
    _warn(
      folder, step, fault, f'it is now {aside / name}, and the run goes on from'
      f' step {newest}',
    )  # fmt: skip


def _folder(workdir):
  return pathlib.Path(workdir).resolve() / 'checkpoints'


def _steps(folder):
  """The steps of a run, whole or not."""
  if not folder.is_dir():
    return []
  return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def _faults(folder: pathlib.Path, steps: Iterable[int]) -> dict[int, str]:
  """{step: what is wrong with it}, as far as a quick look tells."""
  looked = {s: checkpoint_files.find_fault(folder / str(s)) for s in steps}
  return {step: fault for step, fault in looked.items() if fault is not None}


def _none_whole(folder, faults, mend=''):
  newest = max(faults)
  more = (
    f', and {len(faults) - 1} before it likewise' if len(faults) > 1 else ''
  )
  return UserError(
    f'{folder} holds no whole checkpoint: step {newest} is damaged'
    f' ({faults[newest]}){more}{mend}'
  )


def _warn(folder, step, fault, then):
  warn(f'{folder}: step {step} is damaged ({fault}); {then}')


def read_state(workdir: str | pathlib.Path) -> dict[str, Any]:
  """The newest whole state of a run as nested dicts of numpy arrays.

  Raises:
    UserError: no checkpoint there, or no whole one.
  """
  if not has_checkpoint(workdir):
    raise UserError(f'{workdir} holds no checkpoint')
  with contextlib.closing(Checkpoints(workdir, write=False)) as saved:
    return saved.read_state(saved.find('last'))


def load_backbone(path: str | pathlib.Path) -> dict[str, Any]:
  """The backbone of a stage I (or II) workdir.

  Args:
    path: the workdir.

  Returns:
    {'params': ..., 'batch_stats': ...} as numpy arrays, without what is not
    the backbone's (projector, attention) and without a classifier.

  Raises:
    UserError: no checkpoint there, its numbers are not finite, or the list of
      what it was trained on was changed.
  """
  if not has_checkpoint(path):
    raise UserError(
      f'config.init.backbone: {path} holds no checkpoint; it must be a workdir'
      ' of stage I, an .npz or .safetensors file, auto, or None'
    )
  state = _read_trained(path)
  backbone = _module(state.get('average', state), 'backbone', path)
  backbone['params'].pop('fc', None)
  return backbone


def load_stage_two(
  path: str | pathlib.Path, *, classifier: bool
) -> tuple[dict[str, Any], dict[str, Any] | None]:
  """What fine-tuning starts from: the network of a stage II.

  Args:
    path: the workdir of the stage II.
    classifier: keep it; else the backbone is without one.

  Returns:
    its backbone and its attention, or None without one, as {'params': ...,
    'batch_stats': ...} of numpy arrays each.

  Raises:
    UserError: as load_backbone, or there is no classifier.
  """
  if not has_checkpoint(path):
    raise UserError(
      f'config.init.backbone: {path} holds no checkpoint; it must be a workdir'
      ' of stage II'
    )
  state = _read_trained(path)
  state = state.get('average', state)  # The weights that were evaluated.
  backbone = _module(state, 'backbone', path)
  if 'fc' not in backbone['params']:
    raise UserError(
      f'config.init.backbone: {path} holds a run without a classifier; it must'
      ' be a workdir of stage II'
    )
  if not classifier:
    backbone['params'].pop('fc')
  attention = None
  if 'attention' in state['params']:
    attention = _module(state, 'attention', path)
  return backbone, attention


def _read_trained(path):
  """The newest whole state of the run that `init.backbone` names."""
  with contextlib.closing(Checkpoints(path, write=False)) as saved:
    try:
      step = saved.find('last')
    except UserError as error:
      raise UserError(f'config.init.backbone: {error}') from error
    state, record = saved.read_state(step), saved.read_record(step)
  leakage.check_manifest(path, record)
  return state


def _module(state, module, path):
  """{'params', 'batch_stats'} of a module of a state, all of it finite."""
  found = {
    part: dict(state[part].get(module) or {})
    for part in ('params', 'batch_stats')
  }
  for name, array in traverse_util.flatten_dict(found, sep='/').items():
    if not np.isfinite(array).all():
      raise UserError(
        f'config.init.backbone: {name} of {path} holds NaN or infinities; name'
        ' another run'
      )
  return found


def merge_backbone(variables: Any, backbone: Any, source: str) -> Any:
  """Fresh `variables` with the backbone's arrays replaced.

  Args:
    variables: {'params': {'backbone': ...}, 'batch_stats': ...}.
    backbone: {'params', 'batch_stats'}; a classifier may be missing.
    source: what to name in an error.

  Raises:
    UserError: an array is missing, unknown, or of another shape.
  """
  return _merge(
    variables, 'backbone', backbone, source,
    'give both stages the same config.model', optional='fc/',
  )  # fmt: skip


def merge_attention(variables: Any, attention: Any, source: str) -> Any:
  """As merge_backbone, of the attention; variables without one stay as is.

  Raises:
    UserError: as merge_backbone.
  """
  if 'attention' not in variables['params']:
    return variables
  return _merge(
    variables, 'attention', attention, source,
    'give both stages the same config.mgacr',
  )  # fmt: skip


def _merge(variables, module, arrays, source, remedy, optional=None):
  merged = {part: dict(tree) for part, tree in variables.items()}
  for part in ('params', 'batch_stats'):
    wanted = traverse_util.flatten_dict(variables[part][module], sep='/')
    given = traverse_util.flatten_dict(arrays[part], sep='/')
    for name in sorted(given.keys() | wanted.keys()):
      if name not in given and optional and name.startswith(optional):
        continue
      have = given[name].shape if name in given else None
      want = wanted[name].shape if name in wanted else None
      if have != want:
        raise UserError(
          f'config.init.backbone: {source} has another network: {part}/{name}'
          f' is {have or "missing"} there and {want or "missing"} here;'
          f' {remedy}'
        )
    merged[part][module] = traverse_util.unflatten_dict(
      {name: given.get(name, wanted[name]) for name in wanted}, sep='/'
    )
  return merged
