"""How fast dpjax makes augmented batches on the CPU, beside torch's DataLoader.

    python benchmarks/input_peers.py [--images=2000] [--seconds=4] [--repeats=5]

needs torch and torchvision. Phantoms of 256 pixels are prepared in a temporary
folder; the training radiographs among them are also written as JPEG files of
quality 95 and as one uint8 memory map. Then, for both stages, with the
augmentation of configs/base.py and batches of 64 at 224 pixels, in turn and
one at a time:

    dpjax, host render     Grain, read from the prepared set, drawn and rendered
    dpjax, device render   the same, rendered by XLA, here on the CPU too
    dpjax, decisions only  what Grain sends where the images are on the device:
                           NOT finished pixels, and no peer of the others
    torch, JPEG files      DataLoader: read, decode, torchvision's transforms
    torch, memory map      the same from the map
    ... and OpenCV         stage I: the same with the blur, torchvision's
                           slowest transform, by OpenCV

An image is a radiograph: in stage I two views of it are made. In stage II
dpjax makes the lesion masks too, and the DataLoader does not. The DataLoader
has the faster of torchvision's two kinds of transforms (on tensors, on PIL
images) and the best of 0, 1, ... workers, up to one a core; both are tried
first. Starting and filling queues are not counted.
"""

import argparse
import contextlib
import functools
import io
import os
import pathlib
import runpy
import statistics
import tempfile
import time

import numpy as np

STORED = 256
SIZE = 224
BATCH = 64
# Batches taken before the clock starts: more than the queues of either hold.
FILL = 12


class Radiographs:
  """A torch data set: views (V, 1, SIZE, SIZE) uint8 and a label.

  Args:
    read: index -> (1, STORED, STORED) uint8 tensor.
    labels: (N,).
    settings: the fields of dpjax.data.feed.decisions.Augmentation.
    views: of each radiograph.
    kind: 'tensor' or 'pil', what the geometry and the intensities run on;
      'opencv': as 'pil', but the blur.
  """

  def __init__(self, read, labels, settings, views, kind):
    self._read, self._labels = read, labels
    self._settings, self._views, self._kind = settings, views, kind
    self._transform = None

  def __len__(self):
    return len(self._labels)

  def __getitem__(self, index):
    import torch

    if self._transform is None:  # Made where it is used: in the worker.
      self._transform = transforms(self._settings, self._kind)
    image = self._read(index)
    if self._kind != 'tensor':
      from PIL import Image

      image = Image.fromarray(image[0].numpy())
    views = [self._transform(image) for _ in range(self._views)]
    return torch.stack(views), self._labels[index]


def transforms(settings, kind):
  """torchvision's transforms for the kinds and odds of `settings`."""
  import cv2
  import torch
  from torchvision.transforms import v2

  def noise(image):
    deviation = torch.empty(()).uniform_(*settings['noise_std'])
    image = image + deviation * torch.randn(image.shape)
    return image.round_().clamp_(0, 255).to(torch.uint8)

  def fast_blur(image):
    sigma = torch.empty(()).uniform_(*settings['blur_sigma']).item()
    blurred = cv2.GaussianBlur(image[0].numpy(), (9, 9), sigma)
    return torch.from_numpy(blurred)[None]

  bilinear = v2.InterpolationMode.BILINEAR
  aspect = settings['aspect']
  steps = [
    v2.RandomResizedCrop(
      SIZE, settings['scale'], (1 / aspect, aspect), bilinear
    ),
    v2.RandomHorizontalFlip(settings['flip']),
    v2.RandomRotation(settings['rotation'], bilinear),
    v2.ColorJitter(settings['brightness'], settings['contrast']),
  ]
  if kind != 'tensor':
    steps.append(v2.PILToTensor())
  if settings['blur']:
    blur = v2.GaussianBlur(9, settings['blur_sigma'])  # dpjax's 9 taps.
    if kind == 'opencv':
      blur = v2.Lambda(fast_blur)
    steps.append(v2.RandomApply([blur], settings['blur']))
  if settings['noise']:
    steps.append(v2.RandomApply([v2.Lambda(noise)], settings['noise']))
  return v2.Compose(steps)


class JpegFiles:
  """Reads image `index` of a folder of JPEG files."""

  def __init__(self, folder):
    self._folder = folder

  def __call__(self, index):
    from torchvision import io as images

    data = images.read_file(f'{self._folder}/{index}.jpg')
    return images.decode_jpeg(data, images.ImageReadMode.GRAY)


class MemoryMap:
  """Reads image `index` of an (N, STORED, STORED) uint8 file."""

  def __init__(self, file):
    self._file, self._map = str(file), None

  def __call__(self, index):
    import torch

    if self._map is None:
      self._map = np.load(self._file, mmap_mode='r')
    return torch.from_numpy(self._map[index][None].copy())


def one_thread(worker):
  """Begins a worker: they are what is parallel (torch sees to itself)."""
  import cv2

  del worker
  cv2.setNumThreads(0)


def loader(dataset, workers):
  """An endless iterator over shuffled batches."""
  import torch

  sampler = torch.utils.data.RandomSampler(
    dataset, replacement=True, num_samples=10**9
  )
  # Not forked: this process holds JAX's threads, and may hang in a copy.
  options = {'multiprocessing_context': 'forkserver'} if workers else {}
  return torch.utils.data.DataLoader(
    dataset, BATCH, sampler=sampler, num_workers=workers,
    persistent_workers=workers > 0, worker_init_fn=one_thread, **options,
  )  # fmt: skip


def rate(batches, seconds, finish=lambda batch: batch):
  """Images/s of an iterable, once its queues are full."""
  stream = iter(batches)
  for _ in range(FILL):
    finish(next(stream))
  count, start = 0, time.perf_counter()
  while (elapsed := time.perf_counter() - start) < seconds:
    finish(next(stream))
    count += BATCH
  if hasattr(stream, 'close'):
    stream.close()
  return count / elapsed


def best_loader(read, labels, settings, views, cores, kinds):
  """(a function of seconds to images/s, what was chosen)."""
  import torch

  def dataset(kind):
    return Radiographs(read, labels, settings, views, kind)

  def seconds_for(kind):
    samples = dataset(kind)
    samples[0]
    taken = []
    for _ in range(5):
      start = time.perf_counter()
      for index in range(32):
        samples[index]
      taken.append(time.perf_counter() - start)
    return min(taken)

  threads = torch.get_num_threads()
  torch.set_num_threads(1)  # As in a worker.
  kind = min(kinds, key=seconds_for)
  torch.set_num_threads(threads)

  def measure(seconds, workers):
    return rate(loader(dataset(kind), workers), seconds)

  rates = {n: measure(2.0, n) for n in range(cores + 1)}
  workers = max(rates, key=rates.get)
  return (
    functools.partial(measure, workers=workers),
    f'{kind} transforms, {workers} workers',
  )


def dpjax_streams(config, stage, data):
  """{name: function of seconds to images/s} of dpjax's three."""
  import jax

  from dpjax.data.feed import render_device
  from dpjax.training import batches, build

  def stream(where, placement):
    own = config.copy_and_resolve_references()
    own.data.render, own.data.placement = where, placement
    run = build.build(own, stage, data)
    return run, batches.training_stream(run)

  host = stream('host', 'stream')[1]
  run, device = stream('device', 'stream')
  decisions = stream('device', 'resident')[1]
  pixels = run.objective.pixels

  @jax.jit
  def finished(batch):
    views = render_device.render(batch['images'], batch['decisions'], SIZE)
    return views, pixels.masks(batch) if pixels.mask_sides else None

  def finish(batch):
    jax.block_until_ready(finished(batch))

  return {
    'dpjax, host render': lambda seconds: rate(host, seconds),
    'dpjax, device render': lambda seconds: rate(device, seconds, finish),
    'dpjax, decisions only': lambda seconds: rate(decisions, seconds),
  }


def make_config(count, path):
  """configs/base.py with `count` phantoms in `path`."""
  from dpjax.config import resolve as resolve_lib

  root = pathlib.Path(__file__).parents[1]
  config = runpy.run_path(str(root / 'configs/base.py'))['get_config']()
  config.data.phantom.count = count
  config.data.path = str(path)
  config.data.store_size, config.data.image_size = STORED, SIZE
  config.pretrain.batch_size = config.retrain.batch_size = BATCH
  config.train.progress = False
  return resolve_lib.resolve(config, num_devices=1, platform='cpu')


def write_copies(records, folder):
  """The records as folder/N.jpg and as folder/all.npy."""
  from PIL import Image

  squares = records.images(np.arange(len(records)))
  np.save(folder / 'all.npy', squares)
  for index, square in enumerate(squares):
    Image.fromarray(square).save(folder / f'{index}.jpg', quality=95)


def compare(config, stage, data, folder, arguments):
  """Prints the table of one stage, and the two ratios."""
  from dpjax.training import build

  records = build.build(config, stage, data).records
  labels = records.column('labels').tolist()
  settings = config[stage].augment.to_dict()
  views = 2 if stage == 'pretrain' else 1
  cores = len(os.sched_getaffinity(0))
  chosen = {}
  contenders = dpjax_streams(config, stage, data)
  for name, read in (
    ('torch, JPEG files', JpegFiles(str(folder))),
    ('torch, memory map', MemoryMap(folder / 'all.npy')),
  ):
    ways = {name: ('tensor', 'pil')}
    if settings['blur']:
      ways[f'{name}, and OpenCV'] = ('opencv',)
    for title, kinds in ways.items():
      contenders[title], chosen[title] = best_loader(
        read, labels, settings, views, cores, kinds
      )
  rates = {name: [] for name in contenders}
  for _ in range(arguments.repeats):
    for name, measure in contenders.items():
      rates[name].append(measure(arguments.seconds))
  middle = {name: statistics.median(values) for name, values in rates.items()}
  ours = max(middle['dpjax, host render'], middle['dpjax, device render'])
  print(f'\n{stage}: {views} view(s) of each of {len(labels)} radiographs\n')
  print('| input | images/s | least to most | dpjax, faster / this |')
  print('| --- | --- | --- | --- |')
  for name, values in rates.items():
    title = f'{name} ({chosen[name]})' if name in chosen else name
    ratio = f'{ours / middle[name]:.2f}' if name in chosen else ''
    print(
      f'| {title} | {middle[name]:,.0f} | {min(values):,.0f} to'
      f' {max(values):,.0f} | {ratio} |',
      flush=True,
    )


def main():
  """Prints where it ran, and a table for each stage."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=2000)
  parser.add_argument('--seconds', type=float, default=4.0)
  parser.add_argument('--repeats', type=int, default=5)
  arguments = parser.parse_args()
  # Before JAX: the batches of the device render are made on the CPU as well.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import multiprocessing

  import cv2
  import grain
  import jax
  import torch
  import torchvision

  from dpjax import prepare
  from dpjax.data.feed import pipeline

  multiprocessing.set_forkserver_preload(['torch', 'torchvision'])
  print(
    f'{len(os.sched_getaffinity(0))} cores; jax {jax.__version__}, grain'
    f' {grain.__version__}, OpenCV {cv2.__version__}, torch'
    f' {torch.__version__}, torchvision {torchvision.__version__}'
  )
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    config = make_config(arguments.images, folder / 'set')
    with contextlib.redirect_stderr(io.StringIO()):
      prepare.prepare(config)
    data = prepare.open_prepared(config)
    write_copies(pipeline.Records((data.split('train'),)), folder)
    for stage in ('pretrain', 'retrain'):
      compare(config, stage, data, folder, arguments)


if __name__ == '__main__':
  main()
