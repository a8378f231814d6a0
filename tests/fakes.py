"""A prepared set in memory, for tests that are not about the store."""

import dataclasses
import hashlib
import pathlib
import runpy
import types

import jax
import jax.numpy as jnp
import numpy as np

from dpjax.config import resolve as resolve_lib
from dpjax.data.prepare import duplicates

# Changes of make_config. One stage compiles in half the time of its two ...
SMALL = {
  'model__stage_sizes': (1,),
  'model__width': 4,
  'mgacr__stages': ('stage1',),
}
# ... and stage II without attention in half of that.
PLAIN = {'mgacr__attention': False, 'mgacr__features': False}


@dataclasses.dataclass(frozen=True)
class Split:
  """The interface of data.store.Split, over arrays."""

  ids: np.ndarray
  labels: np.ndarray
  boxes: np.ndarray
  num_boxes: np.ndarray
  pixels: np.ndarray
  owners: np.ndarray | None = None  # None: each image is of another patient

  @property
  def groups(self):
    return np.arange(len(self)) if self.owners is None else self.owners

  @property
  def digests(self):
    return np.array([hashlib.sha256(p).hexdigest() for p in self.pixels], str)

  metadata = types.MappingProxyType({})

  # The decoded images are stored as they are.
  source_digests = digests

  @property
  def hashes(self):
    prints = [duplicates.fingerprint(p) for p in self.pixels]
    return np.array(prints, np.uint8).reshape(-1, 32)

  def __len__(self):
    return len(self.ids)

  def check_unchanged(self):
    pass

  def images(self, indices):
    return self.pixels[indices]


@dataclasses.dataclass(frozen=True)
class Store:
  """The interface of data.store.Store."""

  splits: dict
  size: int
  num_classes: int = 3
  path: str = 'memory'
  info: dict = dataclasses.field(default_factory=lambda: {'fit': 'stretch'})

  @property
  def class_names(self):
    return tuple(map(str, range(self.num_classes)))

  def split(self, name):
    return self.splits[name]


def make_split(n, size, seed, num_classes=3):
  """Bright squares on noise; the label counts them."""
  rng = np.random.default_rng(seed)
  labels = (np.arange(n) % num_classes).astype(np.int32)
  boxes = np.zeros((n, num_classes - 1, 4), np.float32)
  pixels = rng.integers(0, 100, (n, size, size)).astype(np.uint8)
  for i, label in enumerate(labels):
    for k in range(label):
      x0, y0 = (rng.random(2) * 0.25 + [0.05 + 0.5 * k, 0.05]).tolist()
      boxes[i, k] = x0, y0, x0 + 0.2, y0 + 0.3
      left, top, right, bottom = (boxes[i, k] * size).astype(int)
      pixels[i, top:bottom, left:right] += 120
  return Split(
    ids=np.array([f'{seed}-{i}' for i in range(n)]),
    labels=labels,
    boxes=boxes,
    num_boxes=labels.copy(),
    pixels=pixels,
  )


def make_store(train=48, validation=12, test=13, size=48, seed=0):
  """Three splits of `make_split`."""
  return Store(
    splits={
      'train': make_split(train, size, seed),
      'validation': make_split(validation, size, seed + 1),
      'test': make_split(test, size, seed + 2),
    },
    size=size,
  )


def make_uneven_store():
  """A `make_store` whose classes have 32, 12 and 4 training images."""
  store = make_store()
  store.split('train').labels[:] = np.random.default_rng(0).permutation(
    np.repeat(np.arange(3), [32, 12, 4])
  )
  return store


def make_config(**changes):
  """A resolved config of a network and images small enough for a test.

  Double underscores stand for dots: make_config(mgacr__eps=0.1).
  """
  root = pathlib.Path(__file__).parents[1]
  get_config = runpy.run_path(str(root / 'configs/base.py'))['get_config']
  config = get_config()
  config.update_from_flattened_dict(
    {
      'data.image_size': 48,
      'data.store_size': 48,
      'data.path': 'memory',
      'data.threads': 2,
      'model.stage_sizes': (1, 1),
      'model.width': 8,
      'mgacr.stages': ('stage1', 'stage2'),
      'pretrain.batch_size': 16,
      'pretrain.hidden': 16,
      'pretrain.projection': 8,
      'retrain.batch_size': 16,
      # Class weights in stage II itself, so that it has every term.
      'loss.classification': 'cb_focal',
      'finetune.epochs': 0.0,
      'train.progress': False,
      'parallel.devices': 1,
      **{name.replace('__', '.'): value for name, value in changes.items()},
    }
  )
  return resolve_lib.resolve(config, num_devices=8, platform='cpu')


def filled(model, size, seed=0):
  """Variables of a network, in which nothing is trivial, without compiling."""
  images = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  return filled_like(dict(shapes), seed)


def filled_like(shapes, seed=0):
  """The same, of a tree of their shapes."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    if name == 'kernel':  # Variance 2 / fan_in keeps features of order 1.
      deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      values = rng.normal(0, deviation, leaf.shape)
    elif name in ('scale', 'var'):
      values = rng.uniform(0.5, 1.5, leaf.shape)
    else:
      values = rng.normal(0, 0.1, leaf.shape)
    return values.astype(np.float32)

  return jax.tree.map_with_path(draw, shapes)


def read_npz(file):
  """{name: array} of an .npz, which is closed again."""
  with np.load(file) as arrays:
    return dict(arrays)


def write_dicom(file, pixels, **header):
  """Writes an (H, W) uint8 image as an uncompressed DICOM file."""
  import pydicom

  dataset = pydicom.Dataset()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  dataset.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
  dataset.SOPInstanceUID = pydicom.uid.generate_uid()
  dataset.Rows, dataset.Columns = pixels.shape
  dataset.SamplesPerPixel = 1
  dataset.PhotometricInterpretation = 'MONOCHROME2'
  dataset.BitsAllocated = dataset.BitsStored = 8
  dataset.HighBit, dataset.PixelRepresentation = 7, 0
  dataset.PixelData = pixels.tobytes()
  for keyword, value in header.items():
    setattr(dataset, keyword, value)
  dataset.save_as(file, enforce_file_format=True)
