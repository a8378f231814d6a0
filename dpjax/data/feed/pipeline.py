"""The stream of batches, by Grain.

The stream is GLOBAL: a batch's number leads to its record numbers, and one map
draws every random decision of the whole batch at once; only then each process
takes its own rows and reads their records. So batches, decisions and the
iterator's state (the number of the next batch) are the same for any number of
processes, devices and threads.

    number of the batch -> its records -> draw -> own rows -> read

A batch is a dict of arrays with b = B / processes rows:

    index      (b,)        record number, int32
    label      (b,)        int32; -1: unlabelled
    valid      (b,)        float32; 0 in the rows that fill a last short batch
  rendered on the host:
    views      (b, V, size, size)   uint8
    masks      {stage: (b, h, w)}   float32 in 0..1, stage II
    annotated  (b,)        float32; 0 where there are lesions and no box, stage
               II (with either render)
  rendered by the step:
    images     (b, S, S)   uint8, as stored; not if the step has them already
    decisions  {name: (b, V, ...)}  of decisions.draw; none where nothing is
               augmented: such images are always rendered by the step
    boxes, num_boxes       (b, K, 4), (b,)   stage II
"""

import contextlib
import dataclasses
import functools
import itertools
import sys
from typing import Any

import grain
import numpy as np

from dpjax.data import store
from dpjax.data.feed import decisions, lesion_masks, render_host


@dataclasses.dataclass(frozen=True)
class Records:
  """What the stream reads from: one split, or several in a row.

  Attributes:
    splits: of data.store, in this order.
  """

  splits: tuple[store.Rows, ...]

  def __len__(self) -> int:
    return sum(len(split) for split in self.splits)

  def column(self, name: str) -> np.ndarray:
    """A column of the tables, e.g. 'labels', over all splits."""
    columns = [getattr(split, name) for split in self.splits]
    if name == 'boxes':  # Padded to the widest.
      width = max(column.shape[1] for column in columns)
      columns = [
        np.pad(c, ((0, 0), (0, width - c.shape[1]), (0, 0))) for c in columns
      ]
    return np.concatenate(columns)

  def check_unchanged(self) -> None:
    """Raises UserError where a set has changed since it was opened."""
    for split in self.splits:
      split.check_unchanged()

  def images(self, indices: np.ndarray) -> np.ndarray:
    """The stored squares (B, S, S) uint8 of the records `indices` (B,)."""
    if len(self.splits) == 1:
      return self.splits[0].images(indices)
    starts = np.cumsum([0] + [len(split) for split in self.splits])
    which = np.searchsorted(starts, indices, side='right') - 1
    parts = [
      iter(split.images(indices[which == i] - starts[i]))
      for i, split in enumerate(self.splits)
    ]
    return np.stack([next(parts[i]) for i in which])


@dataclasses.dataclass(frozen=True)
class BatchSpec:
  """How records become batches.

  Attributes:
    image_size: side of the rendered squares, pixels.
    augmentation: what draws may do; None leaves every image whole and plain,
      and there are no masks then.
    views: views of each radiograph.
    plain_anchor: the first view is the plain image.
    mask_sides: {stage: side} of the lesion masks; empty for none.
    mask_kind: 'area' or 'binary' (lesion_masks.stage_masks).
    normal: whether label 0 says that there is no lesion.
    host: render on the host; else send what the step needs for it.
    images: read the images; without them `index` says which they are.
  """

  image_size: int
  augmentation: decisions.Augmentation | None = None
  views: int = 1
  plain_anchor: bool = False
  mask_sides: tuple[tuple[str, int], ...] = ()
  mask_kind: str = 'area'
  normal: bool = True
  host: bool = True
  images: bool = True


def training(
  records: Records,
  spec: BatchSpec,
  *,
  batch_size: int,
  seed: int,
  shuffle: str = 'numpy',
  process: tuple[int, int] = (0, 1),
  threads: int = 16,
  prefetch: int = 8,
) -> grain.IterDataset:
  """The endless shuffled stream; its iterators save and restore.

  Epochs follow each other without a gap: a batch may begin in one and end in
  the next, and each epoch has every record once.

  Args:
    records: what to read.
    spec: how they become batches.
    batch_size: B, over all processes.
    seed: of the order and the decisions.
    shuffle: 'numpy', an epoch at once (`_Shuffled`), or 'grain', record by
      record, as the first runs did.
    process: (this process, number of processes).
    threads: that read and render.
    prefetch: batches made ahead.
  """
  if shuffle == 'grain':
    numbers = grain.MapDataset.range(len(records)).seed(seed)
    order = numbers.shuffle().repeat().batch(batch_size)
  else:
    order = grain.MapDataset.range(sys.maxsize // batch_size).seed(seed)
    order = order.map(_Shuffled(len(records), batch_size, seed))
  drawn = order.random_map(_Draw(records, spec))
  return _read(drawn, records, spec, process, threads, prefetch)


def sequential(
  records: Records,
  spec: BatchSpec,
  *,
  batch_size: int,
  seed: int = 0,
  process: tuple[int, int] = (0, 1),
  threads: int = 16,
  prefetch: int = 8,
) -> grain.IterDataset:
  """Every record once, in order; the last batch is filled (`valid` 0).

  The same arguments as `training`; the decisions are the same at every call.
  """
  batches = -(-len(records) // batch_size)
  order = grain.MapDataset.range(batches).map(
    _InOrder(len(records), batch_size)
  )
  drawn = order.seed(seed).random_map(_Draw(records, spec))
  return _read(drawn, records, spec, process, threads, prefetch)


def first(dataset: grain.IterDataset, count: int) -> list[dict[str, Any]]:
  """The first `count` batches of a stream, or all if there are fewer."""
  with contextlib.closing(iter(dataset)) as stream:
    return [*itertools.islice(stream, count)]


def _read(drawn, records, spec, process, threads, prefetch):
  options = grain.ReadOptions(
    num_threads=threads,
    # Counts batches here, and each batch is many records already.
    prefetch_buffer_size=prefetch,
  )
  return drawn.map(_Read(records, spec, process)).to_iter_dataset(options)


class _Shuffled(grain.transforms.Map):
  """Batch number -> record numbers, out of one permutation an epoch.

  Grain's own shuffle ciphers each number in Python: 13 microseconds a record,
  and 600 in a set of 40, where numpy takes some nanoseconds.
  """

  def __init__(self, num_records: int, batch_size: int, seed: int):
    self._num_records = num_records
    self._batch_size = batch_size
    self._seed = seed
    # Batches are made ahead, and one may lie in two epochs.
    self._epoch = functools.lru_cache(maxsize=2)(self._permutation)

  def _permutation(self, epoch):
    rng = np.random.default_rng((self._seed, epoch))
    return rng.permutation(self._num_records)

  def map(self, batch):
    epoch, start = divmod(batch * self._batch_size, self._num_records)
    stop = start + self._batch_size
    more = (stop - 1) // self._num_records
    if not more:
      return self._epoch(epoch)[start:stop]
    epochs = [self._epoch(epoch + i) for i in range(more + 1)]
    return np.concatenate(epochs)[start:stop]


@dataclasses.dataclass(frozen=True)
class _InOrder(grain.transforms.Map):
  """Batch number -> record numbers, and -1 past the end."""

  num_records: int
  batch_size: int

  def map(self, batch):
    index = batch * self.batch_size + np.arange(self.batch_size)
    return np.where(index < self.num_records, index, -1)


class _Draw(grain.transforms.RandomMap):
  """Draws every decision of a global batch at once."""

  def __init__(self, records: Records, spec: BatchSpec):
    self._spec = spec
    self._boxes = records.column('boxes')
    self._num_boxes = records.column('num_boxes')
    lesions = self._num_boxes > 0
    self._donors = self._boxes[lesions], self._num_boxes[lesions]

  def random_map(self, index, rng):
    spec = self._spec
    if spec.augmentation is None:
      return {'index': index, 'decisions': {}}
    drawn = decisions.draw(
      rng,
      self._boxes[index],
      self._num_boxes[index],
      spec.augmentation,
      views=spec.views - spec.plain_anchor,
      donors=self._donors,
    )
    if spec.plain_anchor:
      plain = decisions.identity(len(index), 1)
      drawn = {
        name: np.concatenate([plain[name], values], axis=1)
        for name, values in drawn.items()
      }
    return {'index': index, 'decisions': drawn}


class _Read(grain.transforms.Map):
  """Takes this process's rows and reads, and on the host renders, them."""

  def __init__(
    self, records: Records, spec: BatchSpec, process: tuple[int, int]
  ):
    self._records = records
    self._spec = spec
    self._process = process
    self._labels = records.column('labels').astype(np.int32)
    self._boxes = records.column('boxes')
    self._num_boxes = records.column('num_boxes')

  def map(self, element):
    number, count = self._process
    rows = len(element['index']) // count
    own = slice(number * rows, (number + 1) * rows)
    index = element['index'][own]
    drawn = {k: v[own] for k, v in element['decisions'].items()}
    filled = index >= 0
    index = np.where(filled, index, 0)
    batch = {
      'index': index.astype(np.int32),
      'label': self._labels[index],
      'valid': filled.astype(np.float32),
    }
    spec = self._spec
    boxes, num_boxes = self._boxes[index], self._num_boxes[index]
    if spec.mask_sides:
      annotated = (num_boxes > 0) | ((batch['label'] == 0) & spec.normal)
      batch['annotated'] = annotated.astype(np.float32)
    images = {'images': self._records.images(index)} if spec.images else {}
    if spec.augmentation is None:
      return batch | images
    if not spec.host:
      batch |= {'decisions': drawn, **images}
      if spec.mask_sides:
        batch |= {'boxes': boxes, 'num_boxes': num_boxes}
      return batch
    batch['views'] = render_host.render(
      images['images'], drawn, spec.image_size
    )
    if spec.mask_sides:
      batch['masks'] = lesion_masks.on_host(
        boxes,
        num_boxes,
        drawn['affine'][:, 0],
        dict(spec.mask_sides),
        spec.mask_kind,
      )
    return batch
