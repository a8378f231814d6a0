"""What `auto` and 0 stand for, once the set and the devices are known.

dpjax.config resolves what needs no more than the command line. What is left is
filled in here, once, before the run's config.json is written.
"""

import jax
from ml_collections import ConfigDict

from dpjax.data import store
from dpjax.data.feed import pipeline
from dpjax.distributed import parallel, processes
from dpjax.training.run import stage_settings


def resolve(
  config: ConfigDict,
  stage: str,
  data: store.Store,
  records: pipeline.Records,
  topology: parallel.Topology | None = None,
) -> ConfigDict:
  """A copy of `config` in which nothing stays open.

  That is its placement, who shuffles, its steps a dispatch, and the columns of
  a table where no table was read: none.

  All processes of a job get the same: they run the same program.

  Args:
    config: as resolved by dpjax.config.
    stage: 'pretrain', 'retrain' or 'finetune'.
    data: the prepared set.
    records: what the stage trains on.
    topology: what to compile for, if not for the devices that are here.
  """
  config = config.copy_and_resolve_references()
  if config.data.placement == 'auto':
    images = len(records) + len(data.splits.get('validation', ()))
    free = topology.free_bytes if topology else parallel.free_bytes()
    needed = images * data.size**2
    fits = config.data.render == 'device' and _fits(needed, free)
    if config.parallel.mode != 'jit':  # With jit a process works by itself.
      fits = processes.broadcast_from_0(fits)
    config.data.placement = 'resident' if fits else 'stream'
  if config.data.shuffle == 'auto':  # A run that goes on has it on record.
    config.data.shuffle = 'numpy'
  if not config.train.steps_per_dispatch:
    batch_size = stage_settings(config, stage).batch_size
    config.train.steps_per_dispatch = steps_per_dispatch(
      platform=topology.platform if topology else jax.default_backend(),
      batch_size=batch_size,
      devices=config.parallel.devices,
      apart=config.eval.every * len(records) / batch_size,
    )
  if config.data.layout != 'csv':
    columns = config.data.csv
    columns.update({n: '' for n, column in columns.items() if column == 'auto'})
  return config


def steps_per_dispatch(
  *, platform: str, batch_size: int, devices: int, apart: float
) -> int:
  """How many steps one call of the devices makes by default.

  1 on a CPU, else by the batch size: a dispatch costs the host about half a
  millisecond, which only steps of few images are too short to hide.
  Validations, which fall on the ends of dispatches, are not moved by more than
  half of what is between two.

  Args:
    platform: 'cpu', 'gpu' or 'tpu'.
    batch_size: radiographs, over all devices.
    devices: over all processes.
    apart: steps between two validations; 0 where there is only the last.
  """
  if platform == 'cpu':
    return 1
  wanted = min(16, 1024 * devices // batch_size)
  if apart:
    wanted = min(wanted, int(apart))
  return max(1, wanted)


def _fits(needed, free):
  """Whether so many bytes are less than a quarter of a device's free memory."""
  return free is not None and needed < free / 4
