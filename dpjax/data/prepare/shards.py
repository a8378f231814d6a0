"""The two units of work that make a prepared set, for any runner.

    decode_block   images of the source -> a block: squares, and a table of rows
    write_shard    squares of the blocks -> one array_record file of the set

Blocks follow the order of the source and shards the splits, which are known
only when all images have been seen: a copy in two files must be on one side.
Each is pure but for its files, which appear when they are whole, so that what
is finished survives a kill and every runner writes the same bytes.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from dpjax.data import radiograph
from dpjax.data.prepare import duplicates, guards
from dpjax.data.sources import tables
from dpjax.errors import SourceFault, reason_of


def decode_block(
  rows: Sequence[radiograph.Radiograph],
  file: pathlib.Path,
  size: int,
  fit: str,
  on_error: str,
) -> None:
  """Decodes radiographs into FILE, squares (N, size, size) uint8, raw.

  FILE.npz, the table of their rows, appears after it:

      row             (N,)       place in `rows`
      boxes           (N, K, 4)  0..1 of the square
      num_boxes       (N,)
      clipped         (N,)       boxes that stuck out
      digests         (N,)       sha256 of the square
      source_digests  (N,)       digest of the decoded image
      hashes          (N, 32)    duplicates.fingerprint of the square
      tones           (N, 3)     guards.tones of the square
      aspects         (N,)       width / height of the decoded image
      headers         (N,)       JSON: what the image files say
      faults          ()         JSON: (place, id, reason) of what is left out

  Args:
    rows: what to decode.
    file: of the block.
    size: side of the squares, pixels.
    fit: 'stretch' or 'pad' (see square).
    on_error: 'fail' or 'skip' what cannot be used.

  Raises:
    UserError: 'fail', and an image cannot be read or a box lies outside of it.
    OSError: the block cannot be written.
  """
  faults = tables.Faults(on_error)
  width = max(1, *(len(record.boxes) for record in rows), 0)
  boxes = np.zeros((len(rows), width, 4), np.float32)
  kept, clipped, headers = [], [], []
  digests, source_digests, hashes, histograms = [], [], [], []
  aspects = []
  mark = file.with_name(file.name + '.at')
  temporary = _temporary(file)
  with open(temporary, 'wb') as stream, open(mark, 'wb', 0) as at:
    for i, record in enumerate(rows):
      # Read where a decoder takes the whole process down (runners.run).
      at.truncate(0)
      os.pwrite(at.fileno(), os.fsencode(record.file or record.id), 0)
      place = record.where or record.file or record.id
      with faults.at(place, record.id):
        try:
          pixels = record.pixels()
          header = dict(record.header() if record.header else {})
          height, width = pixels.shape
          found, out = record.unit_boxes(height, width)
          check_levels(pixels)
        except SourceFault as fault:
          raise SourceFault(reason_of(fault, place)) from fault
        squared, found = square(pixels, found, size, fit)
        stream.write(squared.tobytes())
        kept.append(i)
        boxes[len(kept) - 1, : len(found)] = found
        clipped.append(out)
        aspects.append(pixels.shape[1] / pixels.shape[0])
        headers.append(json.dumps(header, sort_keys=True))
        digests.append(hashlib.sha256(squared.data).hexdigest())
        source_digests.append(digest(pixels))
        hashes.append(duplicates.fingerprint(squared))
        if fit == 'pad':
          squared = squared[_inner(height, width, size)]
        histograms.append(guards.histogram(squared))
    _sync(stream)
  temporary.replace(file)
  with open(temporary, 'wb') as stream:
    np.savez(
      stream,
      row=np.array(kept, np.int64),
      boxes=boxes[: len(kept)],
      num_boxes=np.array([len(rows[i].boxes) for i in kept], np.int32),
      clipped=np.array(clipped, np.int32),
      digests=np.array(digests, '<U64'),
      source_digests=np.array(source_digests, '<U32'),
      hashes=np.array(hashes, np.uint8).reshape(-1, 32),
      tones=guards.tones(histograms),
      aspects=np.array(aspects),
      headers=np.array(headers, str),
      faults=np.array(json.dumps(faults.found)),
    )
    _sync(stream)
  mark.unlink(missing_ok=True)
  temporary.replace(file.with_name(file.name + '.npz'))


def check_levels(pixels: np.ndarray) -> None:
  """Refuses an image of one grey level: it shows nothing.

  Args:
    pixels: (H, W) uint8.

  Raises:
    SourceFault: it is one.
  """
  # Most have corners that differ, which takes no time.
  if pixels[0, 0] == pixels[-1, -1] and pixels.min() == pixels.max():
    raise SourceFault(
      f'all of it is one grey level, {pixels.flat[0]} of 0 to 255; wanted a'
      ' radiograph'
    )


def digest(pixels: np.ndarray) -> str:
  """XXH3 of an image, in whatever file it is.

  A megabyte takes 0.05 ms, where SHA-256 takes 0.5, a tenth of the decoding.

  Args:
    pixels: (H, W) uint8.

  Returns:
    32 hexadecimal digits, of the grey levels and the shape.
  """
  state = xxhash.xxh3_128(b'%d %d ' % pixels.shape)
  state.update(np.ascontiguousarray(pixels).data)
  return state.hexdigest()


def square(
  pixels: np.ndarray, boxes: np.ndarray, size: int, fit: str
) -> tuple[np.ndarray, np.ndarray]:
  """An image and its boxes in a square.

  Args:
    pixels: (H, W) uint8.
    boxes: (K, 4) in 0..1 of the image.
    size: side of the square, pixels.
    fit: 'stretch' both sides to it, as the paper does; or 'pad': keep the
      aspect, the image in the middle of black.

  Returns:
    (size, size) uint8, and the boxes (K, 4) float32 in 0..1 of it.
  """
  height, width = pixels.shape
  if fit == 'stretch' or height == width:
    return _resize(pixels, size, size), boxes
  inner = _inner(height, width, size)
  padded = np.zeros((size, size), np.uint8)
  inner_height, inner_width = padded[inner].shape
  top, left = (part.start for part in inner)
  padded[inner] = _resize(pixels, inner_height, inner_width)
  scales = np.array([inner_width, inner_height] * 2) / size
  offsets = np.array([left, top] * 2) / size
  return padded, (boxes * scales + offsets).astype(np.float32)


def _inner(height, width, size):
  """Where an image lies in a square of side `size` that keeps its aspect."""
  scale = size / max(height, width)
  sides = (max(1, round(side * scale)) for side in (height, width))
  starts = ((side, (size - side) // 2) for side in sides)
  return tuple(slice(start, start + side) for side, start in starts)


def _resize(pixels, height, width):
  if pixels.shape == (height, width):
    return pixels
  import cv2

  # From 1024 to 256 two halves take a sixth of the time of a quarter. But for
  # rounding, an eighth of a grey level up on average, they are the same.
  while not (pixels.shape[0] % (2 * height) or pixels.shape[1] % (2 * width)):
    half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
    pixels = cv2.resize(pixels, half, interpolation=cv2.INTER_AREA)
  # OpenCV averages areas only where no side grows: so shrink first.
  smaller = (min(pixels.shape[1], width), min(pixels.shape[0], height))
  pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
  if smaller == (width, height):
    return pixels
  return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)


def write_shard(
  images: Sequence[tuple[pathlib.Path, int]],
  file: pathlib.Path,
  ids: Sequence[str],
  labels: Sequence[int],
  boxes: np.ndarray,
  size: int,
  class_names: Sequence[str],
) -> None:
  """Writes one array_record file of the set.

  Args:
    images: (block, place in it) of each record.
    file: to write.
    ids: of the records.
    labels: -1: unlabelled.
    boxes: (N, K, 4) float32, padded to the set's maximum.
    size: side of the squares, pixels.
    class_names: name of each class.

  Raises:
    OSError: the file cannot be written.
  """
  from array_record.python import array_record_module

  serialize = _serializer(size, boxes.shape[1], tuple(class_names))
  blocks = {
    block: np.memmap(block, np.uint8, 'r').reshape(-1, size, size)
    for block in {block for block, _ in images}
  }
  temporary = _temporary(file)
  # Records are read one by one, in any order: one to a group. Radiographs
  # hardly compress without loss of time.
  writer = array_record_module.ArrayRecordWriter(
    str(temporary), 'group_size:1,uncompressed'
  )
  try:
    for (block, place), id, label, own in zip(
      images, ids, labels, boxes, strict=True
    ):
      image = blocks[block][place]
      writer.write(
        serialize({'image': image, 'label': label, 'id': id, 'boxes': own})
      )
    writer.close()
  except RuntimeError as error:  # What it makes of a full disk.
    raise OSError(str(error).splitlines()[0]) from error
  with open(temporary, 'rb') as stream:
    os.fsync(stream.fileno())
  temporary.replace(file)


def _temporary(file):
  """This process's own: a runner may try again while the first try goes on."""
  return file.with_name(f'{file.name}.{os.getpid()}.tmp')


def _sync(stream):
  """So that the name never outlives a power cut without the content."""
  stream.flush()
  os.fsync(stream.fileno())


def features(size: int, width: int, class_names: Sequence[str]) -> Any:
  """The TFDS features of a record.

  Args:
    size: side of the squares, pixels.
    width: boxes that a record is padded to.
    class_names: name of each class.
  """
  import tensorflow_datasets as tfds

  # Tensors as bytes are read without TensorFlow, and ten times faster.
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Tensor(
        shape=(size, size), dtype=np.uint8, encoding='bytes'
      ),
      'label': tfds.features.ClassLabel(names=list(class_names)),
      'id': tfds.features.Text(),
      'boxes': tfds.features.Tensor(
        shape=(width, 4), dtype=np.float32, encoding='bytes'
      ),
    }
  )


def write_tfds(
  folder: pathlib.Path,
  files: Sequence[tuple[str, pathlib.Path, int]],
  size: int,
  width: int,
  class_names: Sequence[str],
) -> None:
  """Makes a TFDS set of a folder with array_record files.

  Args:
    folder: where they are.
    files: (split, file, its records) in order, named as TFDS names them.
    size, width, class_names: of `features`.
  """
  import tensorflow_datasets as tfds

  template = tfds.core.ShardedFileTemplate(
    data_dir=folder,
    dataset_name=files[0][1].name.split('-')[0],
    filetype_suffix='array_record',
  )
  infos = []
  for split in dict.fromkeys(split for split, _, _ in files):
    own = [(file, count) for s, file, count in files if s == split]
    infos.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[count for _, count in own],
        num_bytes=sum(file.stat().st_size for file, _ in own),
        filename_template=template.replace(split=split),
      )
    )
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features(size, width, class_names),
    split_infos=infos,
    filename_template=template,
    check_data=False,  # Its check needs TensorFlow; ours is a test.
  )


@functools.lru_cache(maxsize=1)
def _serializer(size, width, class_names):
  import tensorflow_datasets as tfds

  own = features(size, width, class_names)
  serializer = tfds.core.example_serializer.ExampleSerializer(
    own.get_serialized_info()
  )
  # Else each process has its own order of the features.
  return lambda example: serializer.get_tf_example(
    own.encode_example(example)
  ).SerializeToString(deterministic=True)
