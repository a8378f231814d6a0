"""How fast `predict` is beside decoding alone, and the memory that it takes.

    python benchmarks/serving_rate.py RUN [--side=2000] [--images=256]
        [--repeats=3] [--files=500,5000]

In turns: the files decoded into squares by a process a core, and nothing else;
the network on squares that are there; and predict, which does both. The start
of the processes is in both rates, the compiler's time in none. CPU time is that
of all processes, and hardly depends on what else the machine does. Then, for
each number of --files, the command by itself: the most memory that it and its
workers held at once, looked at ten times a second, what they share counted
once.

The files are PNG phantoms; a few of them stand for many, so that they stay in
the page cache and the disk is not measured.
"""

import argparse
import collections
import contextlib
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from PIL import Image

from dpjax import machine
from dpjax.data.sources import phantom
from dpjax.serving import decode, inputs, model, predict

FILES = 8
MEMORY_SIDE = 512  # of the files of --files, pixels: their number counts


def main():
  """Prints a line for each repeat, the medians, and a line for each number."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('run')
  parser.add_argument('--side', type=int, default=2000)
  parser.add_argument('--images', type=int, default=256)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--files', default='500,5000')
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    files = write_files(folder / 'files', arguments.side)
    print(
      f'{machine.cores()} cores; {arguments.images} files of {arguments.side} x'
      f' {arguments.side} pixels, {files[0].stat().st_size / 1e6:.1f} MB',
      flush=True,
    )
    images = link(files, arguments.images, folder / 'images')
    print_rates(model.load(arguments.run), images, arguments.repeats)
    files = write_files(folder / 'small', MEMORY_SIDE)
    for count in filter(None, arguments.files.split(',')):
      images = link(files, int(count), folder / count)
      megabytes, seconds = peak(
        [sys.executable, '-m', 'dpjax.main', 'predict',
         f'--workdir={arguments.run}', f'--input={images}',
         f'--output={folder / "out"}', '--config.train.progress=False']
      )  # fmt: skip
      print(
        f'{count} files: {megabytes:.0f} MB at most, {seconds:.0f} s',
        flush=True,
      )


def write_files(folder, side):
  """FILES phantoms of side x side pixels."""
  folder.mkdir()
  files = []
  for record in phantom.read(50, seed=0, size=side)[:FILES]:
    files.append(folder / f'{record.id}.png')
    Image.fromarray(record.pixels()).save(files[-1])
  return files


def link(files, count, folder):
  """A folder of so many names for them."""
  folder.mkdir()
  for i in range(count):
    os.link(files[i % len(files)], folder / f'{i:06d}.png')
  return folder


def print_rates(loaded, images, repeats):
  """Measures in turns; prints each, and the medians of the shares."""
  workers = machine.cores()
  found, _ = inputs.find(images)
  settings = predict.Settings(workers=workers, progress=False)

  def decoding():
    paths = [one.path for one in found]
    for _ in decode.stream(paths, loaded.size, loaded.fit, workers):
      pass

  def answering():
    for start in range(0, len(found), len(batch)):
      rest = batch[: len(found) - start]
      loaded.answer(rest, names[: len(rest)])

  def predicting():
    with tempfile.TemporaryDirectory() as output:
      predict.predict(loaded, images, output, settings)

  one = decode.decode(found[0].path, loaded.size, loaded.fit)
  batch, names = [one] * loaded.batch_size, ['a phantom'] * loaded.batch_size
  answering()  # Compiles it, for the last, smaller batch too.
  shares = []
  for _ in range(repeats):
    decoded, answered, predicted = map(timed, (decoding, answering, predicting))
    shares.append((decoded[0] / predicted[0], decoded[1] / predicted[1]))
    rates = ', '.join(
      f'{name} {len(found) / seconds:.1f} images/s and'
      f' {1e3 * cpu / len(found):.1f} ms of CPU an image'
      for name, (seconds, cpu) in (
        ('decoding alone', decoded),
        ('the network alone', answered),
        ('predict', predicted),
      )
    )
    print(f'load {os.getloadavg()[0]:.1f}: {rates}', flush=True)
  rate, cpu = (
    statistics.median(column) for column in zip(*shares, strict=True)
  )
  print(
    f'medians: predict is {rate:.1%} as fast as decoding alone, whose CPU time'
    f' is {cpu:.1%} of its',
    flush=True,
  )


def timed(function):
  """(seconds, CPU seconds of this process and those that have ended)."""
  began, cpu = time.perf_counter(), cpu_seconds()
  function()
  return time.perf_counter() - began, cpu_seconds() - cpu


def cpu_seconds():
  """Of this process and its children that have ended."""
  return sum(
    used.ru_utime + used.ru_stime
    for used in map(
      resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
  )


def peak(command):
  """(megabytes, seconds) of a command and all processes that it starts.

  Raises:
    CalledProcessError: it fails.
  """
  began, most = time.perf_counter(), 0
  with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
    while process.poll() is None:
      most = max(most, sum(map(held, family(process.pid))))
      time.sleep(0.1)
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
  return most / 1e6, time.perf_counter() - began


def family(pid):
  """A process and all below it."""
  below = collections.defaultdict(list)
  for file in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):  # It has just ended.
      parent = file.read_text().rpartition(')')[2].split()[1]
      below[int(parent)].append(int(file.parent.name))
  found = [pid]
  for one in found:
    found += below[one]
  return found


def held(pid):
  """Bytes of memory of a process; its part of what several share."""
  with contextlib.suppress(OSError):
    told = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text()
    for line in told.splitlines():
      if line.startswith('Pss:'):
        return 1024 * int(line.split()[1])
  return 0


if __name__ == '__main__':
  main()
