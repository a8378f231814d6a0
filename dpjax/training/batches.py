"""From a prepared set to the batches that a run's steps take."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dpjax import leakage
from dpjax.data import store, vocabulary
from dpjax.data.feed import decisions, pipeline
from dpjax.errors import UserError
from dpjax.training.run import Run

_READ = 1024  # images read at once where all are read


def training_records(
  config: ConfigDict, stage: str, data: store.Store
) -> pipeline.Records:
  """The training split; in stage I all that needs no label, too.

  Raises:
    UserError: data.pretrain_extra does not fit the set, or holds an image that
      is held out.
  """
  if stage != 'pretrain':
    return pipeline.Records((data.split('train'),))
  splits = _without_labels(data)
  if extra := config.data.pretrain_extra:
    other = store.load(extra)
    if other.size != data.size:
      raise UserError(
        f'config.data.pretrain_extra: {extra} holds squares of {other.size}'
        f' pixels and data.path of {data.size}; prepare both alike'
      )
    if other.info['fit'] != data.info['fit']:
      # Else their hashes would not find what is held out.
      raise UserError(
        f'config.data.pretrain_extra: {extra} was made with'
        f' data.fit={other.info["fit"]} and data.path with'
        f' {data.info["fit"]}; prepare both alike'
      )
    added = _without_labels(other)
    leakage.check_none_held_out(added, extra, data, config.split.near)
    splits += added
  return pipeline.Records(tuple(splits))


def _without_labels(data):
  """The splits that stage I may see."""
  names = [name for name in ('train', 'unlabelled') if name in data.splits]
  return [data.split(name) for name in names]


def training_stream(run: Run) -> Any:
  """The endless stream of augmented batches (pipeline.training).

  Raises:
    UserError: a batch is larger than the training set.
  """
  batch_size = run.settings.batch_size
  if batch_size > len(run.records):
    section = 'pretrain' if run.stage == 'pretrain' else 'retrain'
    raise UserError(
      f'config.{section}.batch_size is {batch_size}; it must be at most'
      f' the {len(run.records)} training radiographs'
    )
  resident = run.config.data.placement == 'resident'
  return pipeline.training(
    run.records,
    _spec(run, augmented=True, masks=True, images=not resident),
    batch_size=batch_size,
    shuffle=run.config.data.shuffle,
    **_reading(run),
  )


def sequential_stream(
  run: Run, split: store.Rows, batch_size: int, *, images: bool = True
) -> Any:
  """Every record of `split` once, in order (pipeline.sequential).

  Stage I sees pairs, the same ones at every call; stage II plain images.

  Args:
    run: whose way of reading counts.
    split: of the prepared set.
    batch_size: over all processes.
    images: read them; False where they are on the device.
  """
  augmented = run.stage == 'pretrain'
  return pipeline.sequential(
    pipeline.Records((split,)),
    _spec(run, augmented=augmented, masks=False, images=images),
    batch_size=batch_size,
    **_reading(run),
  )


def _reading(run):
  return {
    'seed': run.config.seed,
    'process': run.devices.process_shard,
    'threads': run.config.data.threads,
    'prefetch': run.config.data.prefetch,
  }


def _spec(run, *, augmented, masks, images):
  pair = run.stage == 'pretrain'
  kind = run.config.pretrain.views
  sides = run.objective.pixels.mask_sides
  augmentation = None
  if augmented:
    augmentation = decisions.Augmentation(**run.settings.augment)
  return pipeline.BatchSpec(
    image_size=run.config.data.image_size,
    augmentation=augmentation,
    views=(3 if kind == 'three' else 2) if pair else 1,
    plain_anchor=pair and kind != 'augmented',
    mask_sides=tuple(sides.items()) if masks else (),
    mask_kind=run.config.mgacr.mask,
    normal=vocabulary.is_normal(run.data.class_names[0]),
    host=run.config.data.render == 'host',
    images=images,
  )


def resident_images(
  run: Run, records: store.Rows | pipeline.Records
) -> jax.Array | None:
  """The stored squares (N, S, S) on every device, or None if not resident.

  Args:
    run: as data.placement says.
    records: a split or pipeline.Records.

  Raises:
    UserError: the set was overwritten since its table was read. Later that does
      not matter: nothing is read a second time.
  """
  if run.config.data.placement != 'resident':
    return None
  side = run.data.size
  shape = (len(records), side, side)
  if run.devices.topology:
    return run.devices.replicate(jax.ShapeDtypeStruct(shape, np.uint8))
  images = np.empty(shape, np.uint8)
  for start in range(0, len(images), _READ):
    rows = np.arange(start, min(start + _READ, len(images)))
    images[rows] = records.images(rows)
  records.check_unchanged()
  return run.devices.replicate(images)


def place(run: Run, batch: Any) -> Any:
  """Starts the transfer of what an evaluation step needs of a host batch."""
  return run.devices.place(_needed(batch))


def place_dispatch(run: Run, batches: Sequence[Any]) -> Any:
  """Likewise of the training batches of one dispatch, one a step."""
  # Every row of a training batch is valid.
  batches = [_needed(batch, unused='valid') for batch in batches]
  if len(batches) == 1:
    return run.devices.place(batches[0])
  stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
  return run.devices.place(stacked, stacked=True)


def _needed(batch, unused=''):
  # Which record it is matters where its image is on the device.
  indexed = not ('images' in batch or 'views' in batch)
  return {
    name: value
    for name, value in batch.items()
    if name != unused and (name != 'index' or indexed)
  }
