"""How fast `prepare` is on all cores, with 1024 x 1024 PNG files.

    python benchmarks/prepare_rate.py [--images=8192] [--repeats=3]

Three rates are measured in turn: one core that decodes and does nothing else;
prepare (decode, square, hash, find copies, split, write) by one process; and by
one a core. The start and end of prepare are included. The files are phantoms; a
few of them stand for many images, so that they stay in the page cache and the
disk is not measured.
"""

import argparse
import pathlib
import statistics
import tempfile
import time

from PIL import Image

from dpjax import machine
from dpjax.data.decode import image_file
from dpjax.data.prepare import build
from dpjax.data.sources import files as source_files
from dpjax.data.sources import phantom

FILES = 96


def main():
  """Prints a line for each repeat, and the medians."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=8192)
  parser.add_argument('--repeats', type=int, default=3)
  arguments = parser.parse_args()
  cores = machine.cores()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    files = write_files(folder)
    size = sum(file.stat().st_size for file in files) / len(files)
    print(f'{cores} cores, {arguments.images} images of {size / 1e3:.0f} kB')
    shares = []
    for repeat in range(arguments.repeats):
      alone = decode(files)
      one = prepare(files, arguments.images // cores, folder / f'{repeat}', 1)
      all_cores = prepare(
        files, arguments.images, folder / f'{repeat}all', cores
      )
      shares.append((all_cores / cores / one, all_cores / cores / alone))
      print(
        f'images/s: decoding on one core {alone:.0f}, prepare by one process'
        f' {one:.0f}, by {cores} {all_cores:.0f}: {shares[-1][0]:.1%} of'
        f' {cores} such processes, {shares[-1][1]:.1%} of decoding alone',
        flush=True,
      )
  medians = [statistics.median(column) for column in zip(*shares, strict=True)]
  print('medians: {:.1%}, {:.1%}'.format(*medians))


def write_files(folder):
  """FILES phantoms of 1024 x 1024 pixels."""
  files = []
  for record in phantom.read(FILES, seed=0, size=1024):
    files.append(folder / f'{record.id}.png')
    Image.fromarray(record.pixels()).save(files[-1])
  return files


def decode(files):
  """Images/s of decoding alone, on one core."""
  image_file.read(str(files[0]))
  began = time.perf_counter()
  for file in files * 4:
    image_file.read(str(file))
  return 4 * len(files) / (time.perf_counter() - began)


def prepare(files, count, path, cores):
  """Images/s of a whole prepare."""
  records = [
    source_files.record(
      files[i % len(files)], id=str(i), label=i % 5, group=str(i % len(files))
    )
    for i in range(count)
  ]
  began = time.perf_counter()
  build.build(
    records,
    path,
    name='rate',
    provenance={},
    class_names=[str(c) for c in range(5)],
    settings=build.Settings(),
    workers=cores,
    progress=False,
  )
  return count / (time.perf_counter() - began)


if __name__ == '__main__':
  main()
