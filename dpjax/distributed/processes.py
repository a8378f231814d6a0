"""The processes of a job: how each joins, what they tell each other, its end.

Nothing here may touch a device before `start` has done its work.
"""

import atexit
import contextlib
import os
import pathlib
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dpjax import signals
from dpjax.distributed import compile_cache
from dpjax.errors import UserError, one_line

# Exit status of a process whose job is broken: start all of it again. It is
# EX_TEMPFAIL of sysexits.h, and none of those that a mistake leads to.
BROKEN_JOB = 75

# Said behind the traceback of a bug of ours.
REPORT = (
  'this is a bug in dpjax; please report it, with the command and all lines'
  ' above'
)

# A process that says nothing for so long is taken for dead, seconds.
_HEARTBEAT = 30
# So long others wait for what process 0 does (prepares), seconds.
_PATIENCE = 24 * 3600
_TOLD = 20  # and so long process 0 for the others to hear of an error
_TO_END = 1  # and to end with its line
_DONE = 'done'
# What JAX's transports say when another process does not answer.
_LOST = re.compile(
  r'gloo|nccl|connection|peer|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|heartbeat'
  r'|coordination',
  re.IGNORECASE,
)

_STATUS = re.compile(r'[A-Z_]{5,}: ')  # that an error of XLA begins with


def start(
  *,
  deterministic: bool = False,
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Starts JAX, alone or as one process of a job.

  Args:
    deterministic: bit-exact on a GPU too, and slower.
    coordinator: HOST:PORT of process 0, or 'auto' where JAX finds out by itself
      (Slurm, TPU pods, Open MPI, Kubernetes); None for a process alone.
    num_processes: of the job, with HOST:PORT.
    process_id: of this one, from 0, with HOST:PORT.

  Raises:
    UserError: one line: arguments that do not fit, or no device.
  """
  if deterministic:
    os.environ['XLA_FLAGS'] = (
      os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_deterministic_ops=true'
    )
  import jax

  if coordinator is not None:
    _join(coordinator, num_processes, process_id)
  elif num_processes is not None or process_id is not None:
    raise UserError('--num_processes and --process_id go with --coordinator')
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # both, by the platform
    wanted = os.environ.get('JAX_PLATFORMS')
    raise UserError(f'JAX finds no device; JAX_PLATFORMS={wanted}') from error
  compile_cache.enable()


def _join(coordinator, num_processes, process_id):
  import jax

  by_hand = (num_processes, process_id)
  if coordinator == 'auto':
    if by_hand != (None, None):
      raise UserError('--coordinator=auto finds --num_processes and'
                       ' --process_id by itself; leave them out')  # fmt: skip
    arguments = {}
  else:
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
      raise UserError(f'--coordinator={coordinator}; it must be auto or the'
                       ' HOST:PORT of process 0')  # fmt: skip
    if None in by_hand or not 0 <= process_id < num_processes:
      raise UserError(
        f'--coordinator={coordinator} needs --num_processes and a --process_id'
        f' from 0 to one less, and has {num_processes} and {process_id}'
      )
    arguments = {
      'coordinator_address': coordinator,
      'num_processes': num_processes,
      'process_id': process_id,
      # Else a Slurm task or a pod is taken apart once more.
      'cluster_detection_method': 'deactivate',
    }
    print(
      f'process {process_id} of {num_processes}: joining at {coordinator}',
      file=sys.stderr,
      flush=True,
    )
  try:
    # It waits for the others, and may set handlers of its own.
    with signals.fatal():
      jax.distributed.initialize(
        heartbeat_timeout_seconds=_HEARTBEAT, **arguments
      )
  except (RuntimeError, ValueError) as error:
    hint = ''
    if coordinator == 'auto':
      hint = '; is this a task of srun, a worker of a TPU, an Open MPI rank or'
      hint += ' a pod? Else name HOST:PORT'
    raise UserError(
      f'--coordinator={coordinator}: the job could not be joined'
      f' ({_first_line(error)}){hint}'
    ) from error
  _leave_last_word(
    f'error: process {jax.process_index()} of {jax.process_count()} was ended'
    ' by JAX or from outside; most likely another process is gone. Start all'
    ' processes again with the same command, and they go on from the newest'
    ' checkpoint'
  )


_witnesses: list[subprocess.Popen] = []  # one, in a process of a job


def _leave_last_word(text: str) -> None:
  """Has `text` written to stderr if this process ends by a signal.

  JAX aborts a process whose peers are gone, and then nothing of ours is run. So
  a shell waits for us to say that all is well, which we do on every way out, or
  to give it another line (_say_last), which it writes once we are gone.
  """
  with signals.no_interrupt_for_children():
    witness = subprocess.Popen(
      ['/bin/sh', '-c',
       'trap "" INT TERM HUP; if read -r said; then cat; else said=$0; fi;'
       '[ "$said" = done ] || printf "%s\\n" "$said" >&2', text],
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
    )  # fmt: skip
  _witnesses.append(witness)


@atexit.register
def _withdraw_last_word():
  while _witnesses:
    with contextlib.suppress(BrokenPipeError):  # Somebody has killed it.
      _witnesses.pop().communicate(b'done\n')


def _say_last(line):
  """Has a line written to stderr after all that JAX's threads still say."""
  for witness in _witnesses:
    assert witness.stdin is not None  # It has a pipe.
    with contextlib.suppress(BrokenPipeError):
      witness.stdin.write(f'{line}\n'.encode())
      witness.stdin.flush()
      return
  print(line, file=sys.stderr, flush=True)


def on_process_0(name: str, function: Callable[[], Any]) -> Any:
  """Lets process 0 do something while all others wait for it.

  They wait at the coordinator, not in a collective of the devices: those give
  up after half a minute, and a set may take an hour to prepare.

  Args:
    name: of what is done; another one at each call.
    function: what process 0 does.

  Returns:
    what `function` returns, and None in the other processes.

  Raises:
    UserError: in all of them, if it raises UserError or OSError.
  """
  import jax

  if jax.process_count() == 1:
    return function()
  client, key = _coordinator(), f'dpjax/{name}'
  if jax.process_index() != 0:
    with signals.fatal():
      said = client.blocking_key_value_get(key, _PATIENCE * 1000)
    if said != _DONE:
      # Process 0 may end before its answer to this comes.
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f'{key}/told/{jax.process_index()}', _DONE)
      raise UserError(said)
    return None
  try:
    result = function()
  except (UserError, OSError) as error:
    client.key_value_set(key, one_line(error))
    # Its end is the coordinator's too, and JAX then aborts whoever is left: so
    # not before the others know, and have had the time to end by themselves.
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # One is gone.
      for other in range(1, jax.process_count()):
        client.blocking_key_value_get(f'{key}/told/{other}', _TOLD * 1000)
    time.sleep(_TO_END)
    raise
  client.key_value_set(key, _DONE)
  return result


def meet(name: str) -> None:
  """Waits until all processes of the job are here.

  One may compile while the programs of another are in its cache; who waits for
  it in a collective of the devices gives up, on CPUs after half a minute.

  Args:
    name: of the place; another one at each call.
  """
  import jax

  if jax.process_count() > 1:
    _coordinator().wait_at_barrier(f'dpjax/{name}', _PATIENCE * 1000)


def _coordinator() -> Any:
  """The client of the job's coordinator, to which JAX has no public way."""
  from jax._src import distributed

  return distributed.global_state.client


def broadcast_from_0(value: bool) -> bool:
  """What process 0 says, in all of them."""
  import jax

  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def any_process(value: bool) -> bool:
  """Whether any process says so, in all of them."""
  import jax

  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return bool(multihost_utils.process_allgather(np.int32(value)).any())


def is_process_0() -> bool:
  """Whether this process is the one that writes logs and speaks."""
  import jax

  return jax.process_index() == 0


@contextlib.contextmanager
def job() -> Iterator[None]:
  """Within it, the loss of another process ends this one: one line, status 75.

  At once, since on the way out Orbax and JAX would wait for who is gone. Where
  one waits all the same (in a save, or a transport that does not notice), JAX
  aborts the process after _HEARTBEAT seconds, with some 50 lines of its own and
  then one of ours (_leave_last_word). Other
  errors of the devices stay what they are; they too end the process at once.
  """
  import jax

  if jax.process_count() == 1:
    yield
    return
  try:
    yield
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    # Some of XLA's errors come as a ValueError, Gloo's UNKNOWN among them.
    if isinstance(error, ValueError) and not _STATUS.match(str(error)):
      raise
    reason = one_line(_first_line(error))
    if too_little_memory(error):
      print(f'error: {too_little_memory(error)}', file=sys.stderr)
      end(2)
    if not _LOST.search(str(error)):
      traceback.print_exc()
      print(REPORT, file=sys.stderr)
      end(1)
    sys.stdout.flush()
    sys.stderr.flush()
    _say_last(
      f'error: process {jax.process_index()} of {jax.process_count()}: another'
      f' process is gone, so this job ends ({reason}); start all processes'
      ' again with the same command, and they go on from the newest checkpoint'
    )
    os._exit(BROKEN_JOB)


def too_little_memory(error: BaseException) -> str | None:
  """What to tell the user of an error of JAX if the device's memory is full."""
  if 'RESOURCE_EXHAUSTED' not in str(error):
    return None
  return (
    f'the memory of the device is too small ({_first_line(error)}); lower'
    ' config.pretrain.batch_size or config.retrain.batch_size, or take'
    ' config.data.placement=stream'
  )


def _first_line(error):
  return str(error).strip().splitlines()[0]


def end(status: int) -> int:
  """Ends a process of a job at once; alone, just returns the status.

  On the usual way out JAX waits for all other processes.
  """
  import jax

  if jax.process_count() > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    _withdraw_last_word()
    os._exit(status)
  return status


def leave_job() -> None:
  """Ends what the processes do together, once all have come here.

  Each then goes on, or ends, by itself.
  """
  import jax

  jax.distributed.shutdown()


def seconds_alive() -> float:
  """Since this process was started: imports and all."""
  fields = (
    pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2].split()
  )
  started = int(fields[19]) / os.sysconf('SC_CLK_TCK')  # since the boot
  return time.clock_gettime(time.CLOCK_BOOTTIME) - started
