"""The prepared set: a TFDS set of uint8 squares, and a table beside it.

A folder with, for a set named NAME,

    NAME-SPLIT.array_record-0000I-of-0000N   the images
    features.json, dataset_info.json         what makes it a TFDS set
    table.npz        ids, labels, boxes, groups, digests; read whole
    manifest.csv     the same for people
    summary.json     counts, what was clipped, where it came from

It is written without TensorFlow. A shard is one process's work; work goes on in
NAME.partial, where finished shards survive a kill, and the folder appears under
its own name only when it is whole.
"""

import concurrent.futures
import csv
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import threading
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from dpjax.data import radiograph
from dpjax.data import splits as splits_lib

FORMAT = 1  # of the folder; a change voids older ones
SHARD = 512  # images in a shard
SPLITS = ('train', 'validation', 'test', 'unlabelled')


def prepare(
  radiographs: Sequence[radiograph.Radiograph],
  path: str | pathlib.Path,
  *,
  name: str,
  provenance: dict[str, Any],
  size: int = 256,
  split_seed: int = 0,
  workers: int | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Writes the set; returns its summary.

  The images become squares by stretching, as in the paper. The bytes do not
  depend on the number of workers.

  Args:
    radiographs: of the set; the source's order is kept within a split.
    path: folder to make.
    name: of the TFDS set; a Python identifier.
    provenance: JSON-like; where the radiographs come from.
    size: side of the squares, pixels.
    split_seed: see splits.assign.
    workers: processes; None: one a CPU core.
    progress: show a progress bar on stderr.

  Raises:
    ValueError: one line: an image that cannot be read, two images of one id,
      or another set in that folder.
  """
  path = pathlib.Path(path)
  if not name.isidentifier():  # TFDS finds the files by it.
    raise ValueError(f'{name!r} cannot name a set; it must be like my_set')
  _check_ids(radiographs)
  split_of = splits_lib.assign(
    [r.label for r in radiographs],
    [r.group for r in radiographs],
    [r.split for r in radiographs],
    split_seed,
  )
  plan = {
    'format': FORMAT,
    'name': name,
    'provenance': provenance,
    'size': size,
    'split_seed': split_seed,
  }
  fingerprint = _fingerprint(plan, radiographs)
  if path.exists():
    return _existing(path, fingerprint)

  partial = path.with_name(path.name + '.partial')
  mark = partial / 'fingerprint'
  if not (mark.is_file() and mark.read_text() == fingerprint):
    if partial.exists() and not mark.is_file() and any(partial.iterdir()):
      raise ValueError(
        f'{partial} is in the way and no unfinished set; move or remove it'
      )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    mark.write_text(fingerprint)

  width = max(1, max((len(r.boxes) for r in radiographs), default=1))
  shards, tasks = [], []
  for split in SPLITS:
    rows = np.flatnonzero(split_of == split)
    count = -(-len(rows) // SHARD)
    for i, chunk in enumerate(np.array_split(rows, count) if count else []):
      file = f'{name}-{split}.array_record-{i:05d}-of-{count:05d}'
      shards.append((split, file, chunk))
      if not (partial / f'{file}.npz').is_file():
        tasks.append(([radiographs[r] for r in chunk], partial / file))
  _write_all(tasks, size, width, workers or os.cpu_count(), progress)

  written = [_read_rows(partial / f'{file}.npz') for _, file, _ in shards]
  order = np.concatenate([chunk for _, _, chunk in shards])
  table = {
    'ids': np.array([radiographs[r].id for r in order]),
    'groups': np.array([radiographs[r].group for r in order]),
    'labels': np.array([_label(radiographs[r]) for r in order], np.int32),
    'splits': split_of[order],
    **{
      key: np.concatenate([rows[key] for rows in written])
      for key in ('boxes', 'num_boxes', 'digests')
    },
  }
  summary = {
    **plan,
    'fingerprint': fingerprint,
    'num_classes': int(max(2, table['labels'].max() + 1)),
    'counts': _counts(table),
    'boxes': int(table['num_boxes'].sum()),
    'boxes_clipped': int(sum(rows['clipped'].sum() for rows in written)),
    'skipped': [],
  }
  _write_tfds(partial, shards, size, width)
  np.savez(partial / 'table.npz', **table)
  _write_manifest(partial / 'manifest.csv', table)
  (partial / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
  for _, file, _ in shards:
    (partial / f'{file}.npz').unlink()
  partial.rename(path)
  (path / mark.name).unlink()
  return {**summary, 'path': str(path), 'reused': False}


def _check_ids(radiographs):
  if not radiographs:
    raise ValueError('the source holds no radiographs')
  seen = set()
  for record in radiographs:
    if record.id in seen:
      raise ValueError(f'{record.id}: two radiographs have this id')
    seen.add(record.id)


def _label(record):
  return -1 if record.label is None else record.label


def _fingerprint(plan, radiographs):
  digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode())
  for r in radiographs:
    fields = (r.id, r.label, r.boxes, r.group, r.split, r.box_units, r.stamp)
    digest.update(repr(fields).encode())
  return digest.hexdigest()


def _existing(path, fingerprint):
  try:
    summary = json.loads((path / 'summary.json').read_text())
    same = summary['fingerprint'] == fingerprint
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'config.data.path: {path} is there and is no prepared set; name another'
    ) from error
  if not same:
    raise ValueError(
      f'config.data.path: {path} holds another set (or one of other settings);'
      ' name another path, or remove it'
    )
  return {**summary, 'path': str(path), 'reused': True}


def _write_all(tasks, size, width, workers, progress):
  """Writes every shard, each in one process of a pool."""
  with tqdm.tqdm(
    total=sum(len(rows) for rows, _ in tasks),
    desc='prepare',
    unit='img',
    disable=not progress,
    dynamic_ncols=True,
  ) as bar:
    if workers == 1:
      for rows, file in tasks:
        write_shard(rows, file, size, width)
        bar.update(len(rows))
      return
    # Forked children would inherit JAX's threads without their locks' owners.
    with concurrent.futures.ProcessPoolExecutor(
      min(workers, max(1, len(tasks))),
      mp_context=multiprocessing.get_context('spawn'),
    ) as pool:
      futures = {
        pool.submit(write_shard, rows, file, size, width): len(rows)
        for rows, file in tasks
      }
      try:
        for future in concurrent.futures.as_completed(futures):
          future.result()
          bar.update(futures[future])
      except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def write_shard(
  rows: Sequence[radiograph.Radiograph],
  file: pathlib.Path,
  size: int,
  width: int,
) -> None:
  """Decodes, squares and writes one shard; pure but for its two files.

  FILE appears when whole, and FILE.npz, the rows of the table, after it.

  Args:
    rows: the shard's radiographs.
    file: the array_record file to write.
    size: side of the squares, pixels.
    width: boxes are padded to so many.

  Raises:
    ValueError: one line: an image that cannot be read, a box outside of it.
  """
  from array_record.python import array_record_module

  serialize = _serializer(size, width)
  boxes = np.zeros((len(rows), width, 4), np.float32)
  clipped = np.zeros(len(rows), np.int32)
  digests = []
  temporary = file.with_name(file.name + '.tmp')
  # Records are read one by one, in any order: one to a group. Radiographs
  # hardly compress without loss of time.
  writer = array_record_module.ArrayRecordWriter(
    str(temporary), 'group_size:1,uncompressed'
  )
  for i, record in enumerate(rows):
    pixels = record.pixels()
    found, clipped[i] = record.unit_boxes(*pixels.shape)
    boxes[i, : len(found)] = found
    image = _square(pixels, size)
    digests.append(hashlib.sha256(image.tobytes()).hexdigest())
    writer.write(
      serialize(
        {
          'image': image,
          'label': _label(record),
          'id': record.id,
          'boxes': boxes[i],
        }
      )
    )
  writer.close()
  temporary.replace(file)
  table = file.with_name(file.name + '.npz')
  with open(temporary, 'wb') as stream:
    np.savez(
      stream,
      boxes=boxes,
      num_boxes=np.array([len(r.boxes) for r in rows], np.int32),
      clipped=clipped,
      digests=np.array(digests),
    )
  temporary.replace(table)


def _square(pixels, size):
  if pixels.shape == (size, size):
    return pixels
  import cv2

  # OpenCV averages areas only where no side grows: so shrink first.
  height, width = pixels.shape
  smaller = (min(width, size), min(height, size))
  pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
  return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)


def _read_rows(file):
  # numpy leaves a file open that it cannot read, unless it was opened for it.
  with open(file, 'rb') as stream, np.load(stream, allow_pickle=False) as rows:
    return dict(rows)


def _features(size, width):
  import tensorflow_datasets as tfds

  # Tensors as bytes are read without TensorFlow, and ten times faster.
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Tensor(
        shape=(size, size), dtype=np.uint8, encoding='bytes'
      ),
      'label': np.int64,
      'id': tfds.features.Text(),
      'boxes': tfds.features.Tensor(
        shape=(width, 4), dtype=np.float32, encoding='bytes'
      ),
    }
  )


@functools.lru_cache(maxsize=1)
def _serializer(size, width):
  import tensorflow_datasets as tfds

  features = _features(size, width)
  serializer = tfds.core.example_serializer.ExampleSerializer(
    features.get_serialized_info()
  )
  # Else each process has its own order of the features.
  return lambda example: serializer.get_tf_example(
    features.encode_example(example)
  ).SerializeToString(deterministic=True)


def _write_tfds(folder, shards, size, width):
  import tensorflow_datasets as tfds

  template = tfds.core.ShardedFileTemplate(
    data_dir=folder,
    dataset_name=shards[0][1].split('-')[0],
    filetype_suffix='array_record',
  )
  infos = []
  for split in dict.fromkeys(split for split, _, _ in shards):
    rows = [(file, len(chunk)) for s, file, chunk in shards if s == split]
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[count for _, count in rows],
        num_bytes=sum((folder / file).stat().st_size for file, _ in rows),
        filename_template=template.replace(split=split),
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=_features(size, width),
    split_infos=infos,
    filename_template=template,
    check_data=False,  # Its check needs TensorFlow; ours is a test.
  )


def _counts(table):
  num_classes = max(2, table['labels'].max() + 1)
  return {
    split: np.bincount(
      table['labels'][(table['splits'] == split) & (table['labels'] >= 0)],
      minlength=num_classes,
    ).tolist()
    if split != 'unlabelled'
    else int((table['splits'] == split).sum())
    for split in SPLITS
    if (table['splits'] == split).any()
  }


def _write_manifest(path, table):
  with open(path, 'w', newline='', encoding='utf-8') as file:
    writer = csv.writer(file)
    writer.writerow(['id', 'split', 'label', 'group', 'num_boxes', 'sha256'])
    columns = ('ids', 'splits', 'labels', 'groups', 'num_boxes', 'digests')
    writer.writerows(zip(*(table[c] for c in columns), strict=True))


def format_summary(summary: dict[str, Any]) -> str:
  """The summary as a table for people."""
  counts = {k: v for k, v in summary['counts'].items() if k != 'unlabelled'}
  classes = range(summary['num_classes'])
  lines = [
    f'{summary["path"]}: {summary["name"]}, squares of {summary["size"]} pixels'
    + (' (already prepared, kept as it is)' if summary['reused'] else ''),
    f'{"class":<12}' + ''.join(f'{c:>8}' for c in classes) + f'{"all":>8}',
  ]
  lines += [
    f'{split:<12}' + ''.join(f'{n:>8}' for n in row) + f'{sum(row):>8}'
    for split, row in counts.items()
  ]
  if 'unlabelled' in summary['counts']:
    lines.append(f'{"unlabelled":<12}{summary["counts"]["unlabelled"]:>8}')
  lines.append(
    f'lesion boxes {summary["boxes"]}, clipped to the frame'
    f' {summary["boxes_clipped"]}, skipped {len(summary["skipped"])}'
  )
  return '\n'.join(lines)


@dataclasses.dataclass
class Split:
  """One split: its table in memory, its images on demand.

  Attributes:
    ids: (N,) str.
    labels: (N,) int32; -1: unlabelled.
    boxes: (N, K, 4) float32 in 0..1, padded with zeros to the set's maximum.
    num_boxes: (N,) int32.
    groups: (N,) str.
    digests: (N,) str, sha256 of the stored pixels.
    size: side of the images, pixels.
    files: the array_record files, in order.
  """

  ids: np.ndarray
  labels: np.ndarray
  boxes: np.ndarray
  num_boxes: np.ndarray
  groups: np.ndarray
  digests: np.ndarray
  size: int
  files: tuple[str, ...]

  def __post_init__(self):
    self._source = None
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self.ids)

  def __getstate__(self):
    # A reader does not travel to another process; it opens there anew.
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  def __setstate__(self, state):
    self.__dict__.update(state)
    self.__post_init__()

  def images(self, indices: np.ndarray) -> np.ndarray:
    """The stored squares (B, S, S) uint8 of records `indices` (B,)."""
    if len(indices) == 0:
      return np.empty((0, self.size, self.size), np.uint8)
    with self._lock:
      if self._source is None:
        from array_record.python import array_record_data_source

        self._source = array_record_data_source.ArrayRecordDataSource(
          list(self.files)
        )
    records = self._source.__getitems__([int(i) for i in indices])
    images = np.empty((len(records), self.size, self.size), np.uint8)
    for image, record in zip(images, records, strict=True):
      start, stop = _payload(record, b'image')
      flat = np.frombuffer(record, np.uint8, stop - start, start)
      image[...] = flat.reshape(image.shape)
    return images


def _payload(record, name):
  """Where the bytes of feature `name` stand in a serialised tf.Example.

  Example {1: Features {1: repeated entry {1: name, 2: Feature {1: BytesList
  {1: bytes}}}}}, in protobuf's wire format. Read here since the library that
  reads it, tfds, imports OpenCV, and a copy less.
  """
  _, start, stop = next(_fields(record, 0, len(record)))  # Features
  for _, entry, end in _fields(record, start, stop):
    parts = {field: (a, b) for field, a, b in _fields(record, entry, end)}
    if record[slice(*parts[1])] == name:
      _, a, b = next(_fields(record, *parts[2]))  # BytesList
      _, a, b = next(_fields(record, a, b))  # its first value
      return a, b
  raise ValueError(f'a record has no feature {name!r}')


def _fields(record, position, stop):
  """Yields (field, start, stop) of length-delimited protobuf fields."""
  while position < stop:
    field = record[position] >> 3
    length, shift = 0, 0
    while True:
      position += 1
      byte = record[position]
      length |= (byte & 0x7F) << shift
      shift += 7
      if byte < 0x80:
        break
    position += 1
    yield field, position, position + length
    position += length


@dataclasses.dataclass(frozen=True)
class Store:
  """A prepared set.

  Attributes:
    path: its folder.
    size: side of the images, pixels.
    num_classes: classes 0..num_classes - 1.
    splits: name -> Split, those that are there.
    info: summary.json.
  """

  path: str
  size: int
  num_classes: int
  splits: dict[str, Split]
  info: dict[str, Any]

  def split(self, name: str) -> Split:
    """The split `name`.

    Raises:
      ValueError: the set has none of that name.
    """
    if name not in self.splits:
      raise ValueError(
        f'{self.path} has no split {name}; it has {", ".join(self.splits)}'
      )
    return self.splits[name]


def load(path: str | pathlib.Path) -> Store:
  """Opens a prepared set; reads its table and no image.

  Raises:
    ValueError: one line: no set there, or not a whole one.
  """
  path = pathlib.Path(path)
  try:
    info = json.loads((path / 'summary.json').read_text())
    found = info['format']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'config.data.path: {path} is not a prepared set; make one with python -m'
      ' dpjax.main prepare'
    ) from error
  if found != FORMAT:
    raise ValueError(
      f'config.data.path: {path} has format {found} and this is {FORMAT};'
      ' prepare it again'
    )
  try:
    table = _read_rows(path / 'table.npz')
    tfds_info = json.loads((path / 'dataset_info.json').read_text())
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'config.data.path: {path} is not whole ({error}); prepare it again'
    ) from error
  num_bytes = {s['name']: int(s['numBytes']) for s in tfds_info['splits']}
  splits = {}
  for name in SPLITS:
    rows = table['splits'] == name
    if not rows.any():
      continue
    pattern = f'{info["name"]}-{name}.array_record-?????-of-?????'
    files = sorted(path.glob(pattern))
    there = sum(file.stat().st_size for file in files)
    if there != num_bytes[name]:
      raise ValueError(
        f'config.data.path: {path} has {there} of {num_bytes[name]} bytes of'
        f' {name}: a file is missing or cut short; prepare it again'
      )
    columns = ('ids', 'labels', 'boxes', 'num_boxes', 'groups', 'digests')
    splits[name] = Split(
      **{column: table[column][rows] for column in columns},
      size=info['size'],
      files=tuple(map(str, files)),
    )
  return Store(
    path=str(path),
    size=info['size'],
    num_classes=info['num_classes'],
    splits=splits,
    info=info,
  )
