"""Who does the work of a set: a pool of processes, or Apache Beam."""

import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import os
import pathlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tqdm

from dpjax import signals
from dpjax.errors import UserError

_GLANCE = 0.2  # seconds between two looks at the signals


def run(
  work: Callable[..., None],
  tasks: Sequence[tuple[Any, ...]],
  *,
  description: str,
  workers: int,
  beam: tuple[str, Sequence[str]] | None = None,
  progress: bool = True,
) -> None:
  """Calls `work(*task)` for every task, in any order.

  A task is (items, file, ...): `work` makes `file` of `items`. The first task
  that ends in a ValueError or an OSError stops the others.

  Args:
    work: picklable.
    tasks: picklable.
    description: for the progress bar.
    workers: processes of the pool; 1 works in this one.
    beam: name of a Beam runner and its options; None: the pool.
    progress: show a bar on stderr (of the pool).

  Raises:
    ValueError, OSError: of the task that failed.
  """
  if not tasks:
    return
  for task in tasks:  # of an earlier run that was killed
    _mark(task).unlink(missing_ok=True)
  if beam:
    _run_beam(work, tasks, *beam)
    return
  with tqdm.tqdm(
    total=sum(len(task[0]) for task in tasks),
    desc=description,
    unit='img',
    disable=not progress,
    dynamic_ncols=True,
  ) as bar:
    if workers == 1:
      for task in tasks:
        signals.check()
        work(*task)
        bar.update(len(task[0]))
    else:
      _run_pool(work, tasks, workers, bar)


def _run_pool(work, tasks, workers, bar):
  with pool(min(workers, len(tasks)), lambda: _who_works(tasks)) as submit:
    futures = {submit(work, *task): len(task[0]) for task in tasks}
    left = {*futures}
    while left:
      signals.check()
      done, left = concurrent.futures.wait(
        left, _GLANCE, return_when=concurrent.futures.FIRST_COMPLETED
      )
      for future in done:
        future.result()
        bar.update(futures[future])


@contextlib.contextmanager
def pool(
  workers: int, at: Callable[[], str]
) -> Iterator[Callable[..., concurrent.futures.Future]]:
  """Processes that decode; what ends the block drops what they have not begun.

  Args:
    workers: how many.
    at: what they are at, for the error.

  Yields:
    What hands them work, as Executor.submit.

  Raises:
    UserError: one line: one of them died.
  """
  # Forked children would inherit JAX's threads without their locks' owners.
  executor = concurrent.futures.ProcessPoolExecutor(
    workers,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_start_worker,
    initargs=(os.getpid(),),
  )

  def submit(*work):
    with signals.no_interrupt_for_children():  # The first starts a process.
      return executor.submit(*work)

  try:
    yield submit
  except concurrent.futures.process.BrokenProcessPool as error:
    signals.check()  # A scheduler's SIGTERM goes to all processes.
    raise UserError(
      'a worker process died: out of memory, killed, or an image that its'
      f' decoder does not survive; it was at {at()}'
    ) from error
  finally:
    executor.shutdown(cancel_futures=True)


def _start_worker(parent: int) -> None:
  """Begins a process of a pool that decodes; it ends with the one above it.

  Args:
    parent: the number of that process.
  """
  import cv2

  with contextlib.suppress(OSError, AttributeError):
    # Linux: end with the parent, also where it is killed. 1 is
    # PR_SET_PDEATHSIG.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
  if os.getppid() != parent:  # It ended before that.
    os._exit(1)
  # A process a core is enough: OpenCV must not start a thread for each too.
  cv2.setNumThreads(1)
  # glibc gives the memory of every image back, and has it faulted in again for
  # the next: 7 % of the time of decoding. -1 and -3 are M_TRIM_THRESHOLD and
  # M_MMAP_THRESHOLD of malloc.h.
  with contextlib.suppress(OSError, AttributeError):
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-1, 1 << 28)
    mallopt(-3, 1 << 25)


def _who_works(tasks):
  """What the workers are at."""
  at = [_mark(task).read_text(errors='replace') for task in tasks
        if _mark(task).is_file()]  # fmt: skip
  return ' or '.join(at) or 'its start'


def _mark(task):
  """Where a worker says what it is at (shards.decode_block)."""
  return pathlib.Path(f'{task[1]}.at')


def _run_beam(work, tasks, runner, options):
  try:
    import apache_beam as beam
    import grpc
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise UserError(
      f"--beam_runner={runner} takes the extra beam: pip install -e '.[beam]'"
    ) from error
  try:
    # Without these Beam would take our own command line for its options.
    settings = pipeline_options.PipelineOptions(flags=list(options))
    pipeline = beam.Pipeline(runner=runner, options=settings)
    _ = (
      pipeline
      | beam.Create(tasks)
      | beam.Reshuffle()
      | beam.Map(_attempt, work)
    )
    signals.interruptible(lambda: pipeline.run().wait_until_finish())
  except (
    # Of Beam: no such runner or option, or the runner gives up.
    AttributeError, ImportError, OSError, RuntimeError, SystemExit, ValueError,
    beam.error.BeamError, grpc.RpcError,
  ) as error:  # fmt: skip
    if any(_bug_file(task).is_file() for task in tasks):
      raise
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise UserError(
      f'--beam_runner={runner} --beam_options={",".join(options)}: {line}'
    ) from error
  for task in tasks:
    fault = _fault_file(task)
    if fault.is_file():
      raise UserError(fault.read_text())


def _attempt(task, work):
  """Does one task; what is wrong with it goes into a file.

  Beam would try again, and hand the error on with its own around it. So it does
  with a bug of ours, whose mark says that it is none of Beam's errors.
  """
  fault, bug = _fault_file(task), _bug_file(task)
  for file in (fault, bug):
    file.unlink(missing_ok=True)
  try:
    work(*task)
  except (UserError, OSError) as error:
    fault.write_text(str(error))
  except BaseException:
    bug.touch()
    raise


def _fault_file(task):
  return pathlib.Path(f'{task[1]}.fault')


def _bug_file(task):
  return pathlib.Path(f'{task[1]}.bug')
