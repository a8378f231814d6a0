"""The workdir of a run: whose it is, and the config on record there."""

import contextlib
import pathlib
import tempfile

from ml_collections import ConfigDict

from dpjax import file_lock
from dpjax.config import record as record_lib
from dpjax.errors import UserError
from dpjax.training import checkpoint

CONFIG = 'config.json'
LOCK = 'lock'


def claim_workdir(
  workdir: pathlib.Path,
  config: ConfigDict,
  stage: str,
  epochs: float | None = None,
) -> None:
  """Makes sure that `workdir` can be this config's own.

  Args:
    workdir: made if it is missing.
    config: of the run.
    stage: that it trains.
    epochs: on record, of a run that is extended (see `extended`).

  Raises:
    UserError: it holds a run of another config, or cannot be written, or no
      checkpoint can be kept there.
  """
  checkpoint.check_path(workdir)
  path = workdir / CONFIG
  # Without a checkpoint nothing of the other config's is there yet: it was
  # refused, or stopped at once.
  if path.exists() and checkpoint.has_checkpoint(workdir):
    recorded, asked = record_lib.load(path), _of_stage(config, stage)
    if epochs is not None:
      asked[stage].epochs = epochs
      asked[stage].optim.begin = recorded[stage].optim.begin
    changed = record_lib.differences(recorded, asked)
    if changed:
      raise UserError(
        f'--workdir={workdir} holds a run of another config'
        f' ({"; ".join(changed[:4])}); repeat its flags or name another workdir'
      )
  with _writing(workdir):
    workdir.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=workdir).close()


def as_begun(workdir: pathlib.Path, config: ConfigDict) -> ConfigDict:
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


def extended(
  workdir: pathlib.Path, config: ConfigDict, stage: str, extend: bool
) -> tuple[ConfigDict, float | None]:
  """The config of a run that may have been, or is to be, extended.

  An extended run has a larger `epochs`, and its schedule begins where the run
  had ended (optim.begin, which a later start takes over from the record).

  Args:
    workdir: of the run.
    config: as asked for; stays as it is.
    stage: that it trains.
    extend: whether a larger `epochs` may go on from a finished run.

  Returns:
    The config, and the epochs that were on record where it is extended now,
    else None.

  Raises:
    UserError: there is nothing to extend.
  """
  path = workdir / CONFIG
  newest = checkpoint.newest_step(workdir)
  if newest is None or not path.exists():
    if extend:
      raise UserError(f'--extend: {workdir} holds no run to go on with')
    return config, None
  config = config.copy_and_resolve_references()
  recorded = record_lib.load(path)
  if stage not in recorded:
    return config, None
  asked, before = config[stage], recorded[stage]
  asked.optim.begin = before.optim.begin
  if not extend or asked.epochs <= before.epochs:
    return config, None
  asked.optim.begin = newest
  return config, before.epochs


def record_config(
  workdir: pathlib.Path, config: ConfigDict, stage: str
) -> None:
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
