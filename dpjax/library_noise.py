"""What libraries write on stderr about an error that is raised anyway.

When a save fails, Orbax raises it where it is waited for, and there it becomes
one line of ours. Its log, its threads and the callbacks of tensorstore tell of
it a second time, in tracebacks around that line. Each is recognised exactly;
whatever else a hook gets goes the way it went before.
"""

import pathlib
import sys
import threading
import traceback
import warnings

from absl import logging

_OWN = str(pathlib.Path(__file__).parent)


def silence() -> None:
  """Keeps it from stderr, from now on.

  Orbax's warnings too: they are about its own options.
  """
  logging.set_verbosity(logging.FATAL)
  # What a save that failed has not come to.
  warnings.filterwarnings(
    'ignore', "coroutine '.*' was never awaited", RuntimeWarning
  )
  of_thread, of_main = threading.excepthook, sys.excepthook
  unraisable = sys.unraisablehook

  def hook_of_threads(arguments):
    if not type(arguments.thread).__module__.startswith('orbax.'):
      of_thread(arguments)

  def hook_of_main(kind, error, trace):
    # An error of main has frames of ours. Without any it is one of a callback
    # that tensorstore has called, of a save that has failed already.
    frames = traceback.extract_tb(trace)
    if not frames or any(x.filename.startswith(_OWN) for x in frames):
      of_main(kind, error, trace)

  def hook_of_unraisables(arguments):
    if not _is_of_closed_loop(arguments):
      unraisable(arguments)

  threading.excepthook, sys.excepthook = hook_of_threads, hook_of_main
  sys.unraisablehook = hook_of_unraisables


def _is_of_closed_loop(arguments):
  """Whether tensorstore tells of a write to a loop that Orbax has closed.

  The first write that fails ends the save and its event loop; the others end
  later, and each would wake its waiter there. Tensorstore's callback is no
  object of Python's, and the only frames are asyncio's.
  """
  frames = traceback.extract_tb(arguments.exc_traceback)
  return (
    isinstance(arguments.exc_value, RuntimeError)
    and arguments.object is None
    and [x.name for x in frames] == ['call_soon_threadsafe', '_check_closed']
    and all(pathlib.Path(x.filename).parent.name == 'asyncio' for x in frames)
  )
