"""The workdir of a run: whose it is, and the config on record there."""

import contextlib
import pathlib
import tempfile
from typing import Any

from dpjax import file_lock
from dpjax.config import record as record_lib
from dpjax.errors import UserError
from dpjax.training import checkpoint

CONFIG = 'config.json'
LOCK = 'lock'


def claim_workdir(workdir: pathlib.Path, config: Any, stage: str) -> None:
  """Makes sure that `workdir` can be this config's own.

  Args:
    workdir: made if it is missing.
    config: of the run.
    stage: that it trains.

  Raises:
    UserError: it holds a run of another config, or cannot be written.
  """
  path = workdir / CONFIG
  # Without a checkpoint nothing of the other config's is there yet: it was
  # refused, or stopped at once.
  if path.exists() and checkpoint.has_checkpoint(workdir):
    changed = record_lib.differences(
      record_lib.load(path), _of_stage(config, stage)
    )
    if changed:
      raise UserError(
        f'--workdir={workdir} holds a run of another config'
        f' ({"; ".join(changed[:4])}); repeat its flags or name another workdir'
      )
  with _writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=workdir).close()


def as_begun(workdir: pathlib.Path, config: Any) -> Any:
  """A copy of `config` that goes on in the order in which a run began.

  Args:
    workdir: of the run, new or not.
    config: of this start.
  """
  config = config.copy_and_resolve_references()
  path = workdir / CONFIG
  begun = path.exists() and checkpoint.has_checkpoint(workdir)
  if begun and config.data.shuffle == 'auto':
    config.data.shuffle = record_lib.load(path).data.shuffle
  return config


def record_config(workdir: pathlib.Path, config: Any, stage: str) -> None:
  """Writes config.json: every setting as resolved.

  Raises:
    UserError: `workdir` cannot be written.
  """
  with _writing(workdir):
    record_lib.save(_of_stage(config, stage), workdir / CONFIG)


def _of_stage(config, stage):
  config = config.copy_and_resolve_references()
  config.stage = stage
  return config


@contextlib.contextmanager
def _writing(workdir):
  try:
    yield
  except OSError as error:
    raise UserError(
      f'--workdir={workdir} cannot be written ({error.strerror}); name another'
    ) from error


def locked(workdir: pathlib.Path) -> contextlib.AbstractContextManager[None]:
  """Keeps every other training out of `workdir`, which is there.

  Raises:
    UserError: one line that names who is at work there.
  """
  return file_lock.locked(
    workdir / LOCK,
    file_lock.Work(
      where=f'--workdir={workdir}',
      doing='trains there',
      mend='wait for it, end it, or name another workdir',
    ),
  )
