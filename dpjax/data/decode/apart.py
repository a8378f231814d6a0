"""Calls in a process of its own, for what may take its process down.

The process is started by the first call, serves one call after the other, and
is started again where it has died. It is no fork: who calls may run the threads
of JAX, whose locks a forked child would find held by nobody. Nor is it one of
multiprocessing's, which would run the caller's script once more.

    python -m dpjax.data.decode.apart FD      is that process
"""

import atexit
import os
import resource
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

from dpjax import signals
from dpjax.errors import UserError

_LOCK = threading.Lock()  # one call at a time: a death is then its own
_helpers: dict[int, tuple[subprocess.Popen, connection.Connection]] = {}


class Died(Exception):
  """The call took its process down."""


def call(function: Callable[..., Any], *args: Any) -> Any:
  """`function(*args)`, computed in another process.

  What it raises is raised here.

  Args:
    function: picklable, as are its arguments, result and errors.
    *args: its arguments.

  Raises:
    Died: the process ended instead.
  """
  with _LOCK:
    _, pipe = _helpers.get(os.getpid()) or _start()
    try:
      pipe.send((function, args))
      result, error = pipe.recv()
    except (EOFError, OSError) as ended:
      _stop()
      signals.check()  # A scheduler's SIGTERM goes to all processes.
      raise Died from ended
    if error is not None:
      if not isinstance(error, UserError):
        _stop()  # it has ended by it
      raise error
    return result


def _start():
  ours, theirs = connection.Pipe()
  with theirs:
    # It finds what this process finds.
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    with signals.no_interrupt_for_children():
      process = subprocess.Popen(
        [sys.executable, '-P', '-m', __name__, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env={**os.environ, 'PYTHONPATH': path},
      )
  _helpers[os.getpid()] = process, ours
  try:
    ours.recv()  # that it starts at all is no matter of the call
  except EOFError:
    _stop()
    raise RuntimeError(f'{__name__} ended as it was started') from None
  return process, ours


@atexit.register
def _stop():
  if os.getpid() in _helpers:
    process, pipe = _helpers.pop(os.getpid())
    pipe.close()
    process.wait()


def _serve(pipe):
  """Answers calls until nobody is there to ask."""
  while True:
    try:
      function, args = pipe.recv()
    except EOFError:
      return
    answer: tuple[Any, UserError | None]
    try:
      answer = function(*args), None
    except UserError as fault:
      answer = None, fault
    except BaseException as error:
      pipe.send((None, error))
      raise
    pipe.send(answer)


def _main():
  with connection.Connection(int(sys.argv[1])) as pipe:
    pipe.send('ready')
    # Whatever becomes of it, nothing is said and no memory is written down.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter('ignore')
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    _serve(pipe)


if __name__ == '__main__':
  _main()
