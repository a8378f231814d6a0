"""How fast one CPU core orders records and draws their decisions, no pixels.

    python benchmarks/decisions_rate.py [--seconds=2] [--repeats=5]
      [--records 40 1616 18011] [--batch_size 16 64 1024] [--pixels]

It is what the host sends where the images are in device memory: one process
must draw for all of its devices, 24,000 a second for each. Both orders of
data.shuffle, in turns, with the augmentation of configs/base.py. The tables of
records are made up: a third have one to four boxes. No image is read; with
--pixels, squares of 256 pixels of noise, that are in memory already, are
rendered at 224 by OpenCV, with masks in stage II, on all cores.

A rate is given by the clock, and by the CPU time of all threads: on a machine
that is shared only the latter can be trusted.
"""

import argparse
import dataclasses
import os
import pathlib
import runpy
import statistics
import time

import grain
import numpy as np

from dpjax.data.feed import decisions, pipeline
from dpjax.models import sides

SIZE, STORED = 224, 256
FILL = 12  # batches before the clock starts: more than Grain's queue holds


@dataclasses.dataclass(frozen=True)
class Table:
  """What the stream takes of a data.store.Split, over arrays."""

  labels: np.ndarray
  boxes: np.ndarray
  num_boxes: np.ndarray
  pixels: np.ndarray

  def __len__(self):
    return len(self.labels)

  def images(self, indices):
    """Squares of noise, again and again the same few."""
    return self.pixels[indices % len(self.pixels)]


def make_table(count, rng):
  """`count` records; a third have boxes."""
  num_boxes = rng.integers(1, 5, count) * (rng.random(count) < 1 / 3)
  corner = rng.uniform(0, 0.6, (count, 4, 2))
  side = rng.uniform(0.05, 0.4, (count, 4, 2))
  boxes = np.concatenate([corner, corner + side], -1).astype(np.float32)
  boxes[np.arange(4) >= num_boxes[:, None]] = 0
  pixels = rng.integers(0, 256, (64, STORED, STORED), np.uint8)
  return Table(num_boxes, boxes, num_boxes.astype(np.int32), pixels)


def make_spec(config, stage, pixels):
  """The stage's batches, by the defaults of the config."""
  masked = config.mgacr.stages if stage == 'retrain' else ()
  every = sides.stage_sides('resnet', SIZE, config.model.stage_sizes)
  return pipeline.BatchSpec(
    image_size=SIZE,
    augmentation=decisions.Augmentation(**config[stage].augment),
    views=2 if stage == 'pretrain' else 1,
    mask_sides=tuple((name, every[name]) for name in masked),
    host=pixels,
    images=pixels,
  )


def rates(stream, batch_size, seconds):
  """Radiographs a second of the clock, and of CPU time."""
  for _ in range(FILL):
    next(stream)
  count, wall, cpu = 0, time.perf_counter(), time.process_time()
  while (took := time.perf_counter() - wall) < seconds:
    next(stream)
    count += batch_size
  return count / took, count / (time.process_time() - cpu)


def compare(records, spec, batch_size, arguments, threads):
  """{shuffle: [rates of each repeat]}."""
  found = {'grain': [], 'numpy': []}
  for _ in range(arguments.repeats):
    for shuffle, values in found.items():
      stream = iter(
        pipeline.training(
          records, spec, batch_size=batch_size, seed=0, shuffle=shuffle,
          threads=threads,
        )
      )  # fmt: skip
      values.append(rates(stream, batch_size, arguments.seconds))
      stream.close()
  return found


def parse():
  """The flags of the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--seconds', type=float, default=2.0)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--records', type=int, nargs='+',
                      default=(40, 1616, 18011))  # fmt: skip
  parser.add_argument('--batch_size', type=int, nargs='+',
                      default=(16, 64, 1024))  # fmt: skip
  parser.add_argument('--pixels', action='store_true')
  return parser.parse_args()


def main():
  """Prints a table, and where it was made."""
  arguments = parse()
  cores = sorted(os.sched_getaffinity(0))
  if not arguments.pixels:
    cores = cores[-1:]
    os.sched_setaffinity(0, cores)
  print(
    f'{len(cores)} core(s), load {os.getloadavg()[0]:.1f}; numpy'
    f' {np.__version__}, grain {grain.__version__}\n'
  )
  base = pathlib.Path(__file__).parents[1] / 'configs/base.py'
  config = runpy.run_path(str(base))['get_config']()
  print(
    '| stage | records | batch | shuffle | a second | least to most | a CPU'
    ' second |\n| --- | ---: | ---: | --- | ---: | ---: | ---: |'
  )
  for count in arguments.records:
    records = pipeline.Records((make_table(count, np.random.default_rng(0)),))
    for size in arguments.batch_size:
      for stage in ('pretrain', 'retrain') if size <= count else ():
        spec = make_spec(config, stage, arguments.pixels)
        found = compare(records, spec, size, arguments, len(cores))
        for shuffle, values in found.items():
          wall, cpu = zip(*values, strict=True)
          print(
            f'| {stage} | {count:,} | {size:,} | {shuffle} |'
            f' {statistics.median(wall):,.0f} | {min(wall):,.0f} to'
            f' {max(wall):,.0f} | {statistics.median(cpu):,.0f} |',
            flush=True,
          )


if __name__ == '__main__':
  main()
