"""A lock file: one process at a time at some work, and who that is.

Who works holds an flock on the file, which says who it is, and removes it at
the end. The kernel lets go of it when the process ends, however it ends: the
file that a killed process leaves stands in nobody's way.

It is a file that is open for writing and not a folder, since NFS makes an flock
one of its own locks, which a folder cannot have (EBADF). There it counts for
all machines if the mount has locks (NFS 4, or 3 with lockd; not under nolock or
local_lock). Where a file system has none at all, the file itself is believed: a
process of this machine is looked for, and one of another machine is only warned
of, since nobody can tell whether it lives.
"""

import contextlib
import dataclasses
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

from dpjax.errors import UserError, warn

# What a file system says that has no flock.
_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP,
             errno.ENOSYS, errno.EINVAL}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Work:
  """What a lock is for, as the one who is refused hears of it.

  Attributes:
    where: what all lines begin with: the flag and what it names.
    doing: what the holder does; a verb.
    mend: what would be right.
  """

  where: str
  doing: str
  mend: str


@contextlib.contextmanager
def locked(path: pathlib.Path, work: Work) -> Iterator[None]:
  """Keeps all other processes out of a piece of work.

  Args:
    path: of the lock file; its folder is there.
    work: see Work.

  Raises:
    UserError: one line that names who is at work.
  """
  file = _take(path, work)
  try:
    with contextlib.suppress(OSError):  # On a full disk it holds all the same.
      os.truncate(file, 0)
      os.write(file, (json.dumps(_myself(), indent=2) + '\n').encode())
    yield
  finally:
    # Before it is let go of: else it may be another's already. What ends the
    # work may be that the disk is gone; a file that is left does no harm.
    with contextlib.suppress(OSError):
      path.unlink()
    os.close(file)


def _take(path, work):
  """A descriptor of the lock file, locked where there are locks."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with contextlib.ExitStack() as unless_taken:
      unless_taken.callback(os.close, file)
      if _lock(file, path, work):
        unless_taken.pop_all()
        return file


def _lock(file, path, work):
  """Whether the open file is ours; False: its holder has removed it."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise _refusal(_read(path), work) from error
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    _ask_the_file(path, work)
    return True
  return _is_there(path, file)


def _is_there(path, file):
  try:
    return os.path.samestat(os.stat(path), os.fstat(file))
  except FileNotFoundError:
    return False


def _ask_the_file(path, work):
  """Without locks: refuses what is at work here, warns of what may be."""
  holder = _read(path)
  if holder.get('host') == socket.gethostname():
    started = _started(holder.get('pid'))
    if started is not None and started == holder.get('ticks'):
      raise _refusal(holder, work)
  elif holder:
    warn(
      f'{work.where}: its file system has no locks, and {path.name}'
      f' says that {_words(holder)} {work.doing}; make sure that it has ended'
    )


def _refusal(holder, work):
  return UserError(f'{work.where}: {_words(holder)} {work.doing}; {work.mend}')


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
