"""metrics.jsonl, and what its lines are made of: means and seconds."""

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
  """Means of the metrics, and images/s, since the last line of the log."""

  def __init__(self, batch_size: int):
    self._batch_size = batch_size
    self.restart()

  def restart(self) -> None:
    """Starts a new interval now; what was collected counts no more."""
    self._sums: dict[str, float] = {}
    self._count = 0
    self._clock = time.perf_counter()

  def add(self, metrics: dict[str, float]) -> None:
    """Adds one step's metrics."""
    self._count += 1
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + value

  def close(self) -> dict[str, float]:
    """Returns the means with 'images_per_second', and restarts."""
    means = {name: total / self._count for name, total in self._sums.items()}
    seconds = time.perf_counter() - self._clock
    means['images_per_second'] = self._count * self._batch_size / seconds
    self.restart()
    return means


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
    """
    path = workdir / 'metrics.jsonl'
    if not write:
      path, tensorboard = pathlib.Path(os.devnull), False
    elif path.exists():
      kept = [
        line
        for line in path.read_text().splitlines()
        # The last line may be torn.
        if line.endswith('}') and json.loads(line)['step'] <= done
      ]
      atomic.write_text(path, ''.join(line + '\n' for line in kept))
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
    """Appends one entry; numbers that are not finite are written as null."""
    entry = {'step': step, 'split': split}
    for name, value in values.items():
      finite = value is not None and math.isfinite(value)
      entry[name] = float(f'{value:.6g}') if finite else None
      if finite and self._events:
        self._events.add_scalar(f'{split}/{name}', value, step)
    self._file.write(json.dumps(entry) + '\n')
    self._file.flush()

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    if self._events:
      self._events.close()
