"""metrics.jsonl, and what its lines are made of: means and seconds."""

import contextlib
import json
import math
import os
import pathlib
import time
from typing import Any

from dpjax import atomic
from dpjax.errors import UserError


class Clock:
  """Seconds that a run has trained, and since it began, over all its starts.

  Attributes:
    training: without validations and saves: what is between `start` and `stop`.
  """

  def __init__(self, began: float, training: float = 0.0, wall: float = 0.0):
    """Stands still until `start`.

    Args:
      began: time.perf_counter() when this start of the run began.
      training: seconds of training before this start.
      wall: seconds of earlier starts.
    """
    self._began = began - wall
    self._trained = training
    self._since: float | None = None

  def start(self) -> None:
    """Counts as training from now on."""
    self._since = time.perf_counter()

  def stop(self) -> None:
    """Counts as training until now."""
    self._trained, self._since = self.training, None

  @property
  def training(self) -> float:
    if self._since is None:
      return self._trained
    return self._trained + time.perf_counter() - self._since

  @property
  def wall(self) -> float:
    """Seconds since the run began, without those between its starts."""
    return time.perf_counter() - self._began


class Interval:
  """Means of the metrics, and images/s, since the last line of the log.

  Its state is a part of a checkpoint: a line covers its steps, whatever was
  saved, validated or killed between them.
  """

  def __init__(
    self, batch_size: int, clock: Clock, state: dict[str, Any] | None = None
  ):
    """Goes on with an interval, or begins one.

    Args:
      batch_size: of a step.
      clock: of the run; what it counts as training counts for images/s.
      state: of the interval so far, as from `state`; None for a new one.
    """
    self._batch_size = batch_size
    self._clock = clock
    state = state or {'sums': {}, 'count': 0, 'seconds': 0.0}
    self._sums: dict[str, float] = dict(state['sums'])
    self._count: int = state['count']
    self._began = clock.training - state['seconds']

  @property
  def state(self) -> dict[str, Any]:
    """JSON-like; what `__init__` takes."""
    seconds = self._clock.training - self._began
    return {'sums': self._sums, 'count': self._count, 'seconds': seconds}

  def add(self, metrics: dict[str, float]) -> None:
    """Adds one step's metrics."""
    self._count += 1
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + value

  def close(self) -> dict[str, float]:
    """Returns the means with 'images_per_second', and begins a new one."""
    means = {name: total / self._count for name, total in self._sums.items()}
    now = self._clock.training
    images = self._count * self._batch_size
    means['images_per_second'] = images / (now - self._began)
    self._sums, self._count, self._began = {}, 0, now
    return means


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The entries of a metrics.jsonl, without a last line that is torn.

  Raises:
    OSError: as open.
    UserError: one line: another line is no entry, and which.
  """
  lines = path.read_bytes().split(b'\n')
  entries = []
  for number, line in enumerate(lines, start=1):
    try:
      entry = json.loads(line)
      good = isinstance(entry, dict) and isinstance(entry['step'], int)
    except (ValueError, KeyError, RecursionError):
      good = False
    if good:
      entries.append(entry)
    # A kill leaves half a line, at most. What is between was damaged later:
    # which steps are lost nobody knows.
    elif number < len(lines):
      raise UserError(
        f'{path}, line {number}: no entry of a log, but'
        f' {line[:40].decode(errors="replace")!r}; put a copy of the file'
        ' there, or remove the line'
      )
  return entries


class MetricsLog:
  """metrics.jsonl, a line an entry, and TensorBoard events if wanted."""

  def __init__(
    self,
    workdir: pathlib.Path,
    done: int,
    tensorboard: bool,
    write: bool = True,
  ):
    """Opens the log of a run that has `done` steps behind it.

    Lines of later steps stem from before a kill and are dropped: these steps
    are made again. Without `write` nothing is written.

    Raises:
      UserError: one line: the log is damaged, or an extra is missing.
    """
    path = workdir / 'metrics.jsonl'
    if not write:
      path, tensorboard = pathlib.Path(os.devnull), False
    elif path.exists():
      kept = [entry for entry in read(path) if entry['step'] <= done]
      lines = (json.dumps(entry) + '\n' for entry in kept)
      atomic.write_text(path, ''.join(lines))
    self._path = path
    self._file = path.open('a')
    self._events = None
    if tensorboard:
      try:
        import tensorboardX
      except ImportError as error:
        raise UserError(
          'config.train.tensorboard needs the extra: pip install -e'
          " '.[tensorboard]'"
        ) from error
      self._events = tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=done + 1
      )

  def write(self, step: int, *, split: str, **values: Any) -> None:
    """Appends one entry; numbers that are not finite are written as null.

    Raises:
      UserError: the disk is full, or gone.
    """
    entry = {'step': step, 'split': split}
    for name, value in values.items():
      finite = value is not None and math.isfinite(value)
      entry[name] = float(f'{value:.6g}') if finite else None
      if finite and self._events:
        self._events.add_scalar(f'{split}/{name}', value, step)
    try:
      self._file.write(json.dumps(entry) + '\n')
      self._file.flush()
    except OSError as error:
      # Closing tries again to write what is left.
      with contextlib.suppress(OSError):
        self._file.close()
      raise UserError(
        f'{self._path} cannot be written ({error.strerror}); make room for it,'
        ' and the same command goes on from the newest checkpoint'
      ) from error

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    if self._events:
      self._events.close()
