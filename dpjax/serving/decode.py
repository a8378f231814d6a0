"""Image files as the squares that a network takes, in parallel and in order.

The decoders and the square are those of `prepare`. Of any number of files a few
squares for each worker are in memory at a time.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from dpjax import signals
from dpjax.data.decode import image_file
from dpjax.data.prepare import guards, runners, shards
from dpjax.errors import SourceFault, printable, reason_of

CHUNK = 8  # files that go to a worker at once
_FEW = 32  # files that are not worth a worker's start
_AHEAD = 4  # chunks a worker that wait for their turn


class Decoded(NamedTuple):
  """An image that a network can take.

  Attributes:
    square: (S, S) uint8.
    tones: (3,) uint8, guards.tones of it.
    aspect: width / height of the image.
  """

  square: np.ndarray
  tones: np.ndarray
  aspect: float


def decode(path: str, size: int, fit: str) -> Decoded:
  """One file.

  Args:
    path: of the file.
    size: side of the square, pixels.
    fit: 'stretch' or 'pad' (shards.square).

  Raises:
    SourceFault: it is no radiograph that can be read: the reason.
    UserError: what it takes to read it is not installed.
  """
  with unnamed(path):
    return from_pixels(image_file.read(path), size, fit)


@contextlib.contextmanager
def unnamed(path: str) -> Iterator[None]:
  """Takes the file's name off a fault: who asked for it has named it.

  Raises:
    SourceFault: of the block, without the name.
  """
  try:
    yield
  except SourceFault as fault:
    raise SourceFault(reason_of(fault, path)) from fault


def from_pixels(pixels: np.ndarray, size: int, fit: str) -> Decoded:
  """As `decode`, of grey levels (H, W) uint8.

  Raises:
    SourceFault: all of it is one grey level.
  """
  shards.check_levels(pixels)
  none = np.zeros((0, 4), np.float32)
  square, _ = shards.square(pixels, none, size, fit)
  tones = guards.tones([guards.histogram(square)])[0]
  return Decoded(square, tones, pixels.shape[1] / pixels.shape[0])


def stream(
  paths: Iterable[str], size: int, fit: str, workers: int
) -> Generator[Decoded | SourceFault, None, None]:
  """What `decode` says of each file, in order, ahead of who reads it.

  Args:
    paths: of the files.
    size, fit: of `decode`.
    workers: processes.

  Raises:
    UserError: as `ordered`.
  """
  return ordered(functools.partial(decode, size=size, fit=fit), paths, workers)


def ordered(
  function: Callable[[str], Any], paths: Iterable[str], workers: int
) -> Generator[Any, None, None]:
  """What a function says of each file, or its fault; in order, ahead of time.

  Args:
    function: picklable; a SourceFault that it raises is yielded.
    paths: of the files.
    workers: processes; with 1, or for few files, this one does it.

  Raises:
    UserError: of `function`; or a worker process died.
  """
  paths = list(paths)
  if workers == 1 or len(paths) <= _FEW:
    for path in paths:
      signals.check()
      yield from _attempt(function, [path])
    return
  chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
  # (its first file, what a worker will say)
  pending: collections.deque[tuple[str, Future]] = collections.deque()

  def at():
    first = printable(pending[0][0])
    return f'{first} or one of the {len(pending) * CHUNK} files from there on'

  with runners.pool(min(workers, len(chunks)), at) as submit:
    for chunk in chunks:
      pending.append((chunk[0], submit(_attempt, function, chunk)))
      if len(pending) > _AHEAD * workers:
        yield from _first(pending)
    while pending:
      yield from _first(pending)


def _attempt(function, paths):
  found = []
  for path in paths:
    try:
      found.append(function(path))
    except SourceFault as fault:
      found.append(fault)
  return found


def _first(pending):
  """What is said of the chunk whose turn it is; it goes."""
  found = signals.wait(pending[0][1])
  pending.popleft()  # Not before: it is named if its worker dies.
  return found
