"""SIGTERM and SIGINT, noted for whoever can stop in good order.

Python's own handler of SIGINT raises wherever the main thread happens to be,
and some callbacks of JAX discard what is raised in them: the signal is then
lost. Here a handler only takes a note, and who does long work looks at it:
`check` where nothing has to be saved, `received` where something has. What is
long and deaf (a compiler, a fit) is called by `interruptible`.
"""

import concurrent.futures
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from dpjax.errors import Stopped

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_GLANCE = 0.2  # seconds between two looks at the note
_WORD = (
  b'\nCtrl-C: stopping as soon as all is in order; once more stops at once\n'
)


class _Note:
  """What has come. Signals are the process's, so there is one."""

  received: str | None = None


def note() -> dict[int, Any]:
  """Notes signals from now on; returns the handlers before. Main thread only.

  A second SIGINT raises KeyboardInterrupt, and a third ends the process.
  """
  return {number: signal.signal(number, _take) for number in _NUMBERS}


@contextlib.contextmanager
def noted() -> Iterator[None]:
  """Within it signals are noted; inside of another one it changes nothing."""
  if signal.getsignal(signal.SIGTERM) is _take:
    yield
    return
  before = note()
  try:
    yield
  finally:
    _restore(before)
    _Note.received = None


@contextlib.contextmanager
def fatal() -> Iterator[None]:
  """Within it a signal ends the process at once, as if there were no handler.

  So does one that has come before. For a call that waits outside of Python,
  where no handler is run, and before there is anything to be put in order.
  """
  before = {n: signal.signal(n, signal.SIG_DFL) for n in _NUMBERS}
  try:
    if _Note.received is not None:
      os.kill(os.getpid(), signal.Signals[_Note.received])
    yield
  finally:
    _restore(before)


@contextlib.contextmanager
def no_interrupt_for_children() -> Iterator[None]:
  """Processes that are started within it never get SIGINT.

  Ctrl-C reaches all processes of a terminal, and the first one answers it. What
  comes meanwhile waits.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def received() -> str | None:
  """The name of the last signal that has come, or None."""
  return _Note.received


def check() -> None:
  """Stops here if a signal has come.

  Raises:
    KeyboardInterrupt: it was SIGINT.
    Stopped: it was SIGTERM.
  """
  if _Note.received == 'SIGINT':
    raise KeyboardInterrupt
  if _Note.received is not None:
    raise Stopped(
      f'stopped by {_Note.received}; the same command goes on from there'
    )


def wait(
  future: concurrent.futures.Future,
  meanwhile: Callable[[], None] | None = None,
) -> Any:
  """The result of a future, unless a signal comes before.

  Args:
    future: that is waited for.
    meanwhile: called again and again until then.

  Raises:
    KeyboardInterrupt, Stopped: as `check`.
  """
  while not future.done():
    check()
    if meanwhile is not None:
      meanwhile()
    concurrent.futures.wait([future], timeout=_GLANCE)
  return future.result()


def interruptible(
  function: Callable[..., Any],
  *arguments: Any,
  meanwhile: Callable[[], None] | None = None,
) -> Any:
  """Calls what does not come back to Python for long; looks at the note.

  It is called in a thread of its own, which goes on after a signal: main ends
  the process without waiting for it.

  Args:
    function: what is called.
    *arguments: of it.
    meanwhile: see `wait`.

  Raises:
    KeyboardInterrupt, Stopped: as `check`.
  """
  pool = concurrent.futures.ThreadPoolExecutor(1)
  try:
    return wait(pool.submit(function, *arguments), meanwhile)
  finally:
    pool.shutdown(wait=False)


def _take(number: int, frame: FrameType | None) -> None:
  del frame
  if number == signal.SIGINT:
    if _Note.received == 'SIGINT':
      signal.signal(signal.SIGINT, signal.SIG_DFL)
      raise KeyboardInterrupt
    with contextlib.suppress(OSError):  # Nobody may be there to read it.
      os.write(2, _WORD)
  _Note.received = signal.Signals(number).name


def _restore(handlers):
  for number, handler in handlers.items():
    # None: it was none of Python's.
    signal.signal(number, signal.SIG_DFL if handler is None else handler)
