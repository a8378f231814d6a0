"""One training at a time in a workdir.

Who trains holds an flock on WORKDIR/lock, which says who that is, and removes
it at the end. The kernel lets go of it when the process ends, however it ends:
the file that a killed run leaves stands in nobody's way.

On NFS an flock counts for all machines if the mount has locks (NFS 4, or 3 with
lockd; not under nolock or local_lock). Where a file system has none at all, the
file itself is believed: a process of this machine is looked for, and one of
another machine is only warned of, since nobody can tell whether it lives.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shlex
import socket
import sys
import time
from collections.abc import Iterator

from dpjax.errors import UserError

NAME = 'lock'
# What a file system says that has no flock.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS,
             errno.EINVAL}  # fmt: skip


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps every other training out of `workdir`.

  Args:
    workdir: is there.

  Raises:
    UserError: one line that names who is at work there.
  """
  path = workdir / NAME
  file = _take(path)
  try:
    with contextlib.suppress(OSError):  # On a full disk it holds all the same.
      os.truncate(file, 0)
      os.write(file, (json.dumps(_myself(), indent=2) + '\n').encode())
    yield
  finally:
    # Before it is let go of: else it may be another's already.
    path.unlink(missing_ok=True)
    os.close(file)


def _take(path):
  """A descriptor of the lock file, locked where there are locks."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      os.close(file)
      raise _refusal(path, _read(path)) from error
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        os.close(file)
        raise
      _ask_the_file(path)
      return file
    if _is_there(path, file):
      return file
    os.close(file)  # Its holder has removed it meanwhile.


def _is_there(path, file):
  try:
    return os.path.samestat(os.stat(path), os.fstat(file))
  except FileNotFoundError:
    return False


def _ask_the_file(path):
  """Without locks: refuses what is at work here, warns of what may be."""
  holder = _read(path)
  if holder.get('host') == socket.gethostname():
    started = _started(holder.get('pid'))
    if started is not None and started == holder.get('ticks'):
      raise _refusal(path, holder)
  elif holder:
    print(
      f'warning: {path.parent}: its file system has no locks, and {path.name}'
      f' says that {_words(holder)} trains there; make sure that it has ended',
      file=sys.stderr,
      flush=True,
    )


def _refusal(path, holder):
  return UserError(
    f'--workdir={path.parent}: {_words(holder)} trains there; wait for it, end'
    ' it, or name another workdir'
  )


def _words(holder):
  if not holder:  # It has just begun.
    return 'another process'
  return (
    f'process {holder.get("pid")} on {holder.get("host")}, since'
    f' {holder.get("since")},'
  )


def _myself():
  return {
    'host': socket.gethostname(),
    'pid': os.getpid(),
    'ticks': _started(os.getpid()),
    'since': time.strftime('%Y-%m-%d %H:%M:%S %z'),
    'command': shlex.join(sys.argv),
  }


def _started(pid):
  """When a process of this machine began, in ticks since the boot, or None.

  A number is given again to another process, but not at the same tick.
  """
  try:
    stat = pathlib.Path(f'/proc/{int(pid)}/stat').read_text()
  except (OSError, TypeError, ValueError):
    return None
  return int(stat.rpartition(')')[2].split()[19])


def _read(path):
  """What the file says; {} where it says nothing."""
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}
