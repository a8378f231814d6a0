"""Two at one piece of work: the second is refused, unless the first is dead."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from dpjax import file_lock
from dpjax.errors import UserError

HOLDS = """
import pathlib, sys
from dpjax import file_lock
work = file_lock.Work('there', 'works', 'wait')
with file_lock.locked(pathlib.Path(sys.argv[1]) / 'lock', work):
  print('held', flush=True)
  sys.stdin.read()
"""


def locked(folder):
  return file_lock.locked(
    folder / 'lock',
    file_lock.Work(f'--workdir={folder}', 'trains there', 'wait for it'),
  )


@pytest.fixture
def holder(tmp_path):
  """Another process that is at work in tmp_path."""
  with subprocess.Popen(
    [sys.executable, '-c', HOLDS, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()


def assert_refused(folder, pid):
  with pytest.raises(UserError) as error, locked(folder):
    pass
  line = str(error.value)
  assert f'--workdir={folder}: process {pid} on {socket.gethostname()}' in line
  assert '\n' not in line


def test_the_second_is_refused_by_the_name_of_the_first(holder, tmp_path):
  assert_refused(tmp_path, holder.pid)
  assert_refused(tmp_path, holder.pid)  # which has not harmed the first
  holder.communicate()
  with locked(tmp_path):
    pass
  assert not any(tmp_path.iterdir())


def test_a_killed_holder_stands_in_nobodys_way(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert (tmp_path / 'lock').exists()
  with locked(tmp_path):
    said = json.loads((tmp_path / 'lock').read_text())
    assert (said['pid'], said['host']) == (os.getpid(), socket.gethostname())
  assert not any(tmp_path.iterdir())


def test_a_lock_that_was_removed_while_it_was_opened_is_none(
  tmp_path, monkeypatch
):
  real, taken = file_lock.fcntl.flock, []

  def flock(file, how):
    real(file, how)
    if not taken:  # The holder removes it between our open and its release.
      (tmp_path / 'lock').unlink()
    taken.append(file)

  monkeypatch.setattr(file_lock.fcntl, 'flock', flock)
  with locked(tmp_path):
    assert len(taken) == 2 and (tmp_path / 'lock').exists()
    with pytest.raises(UserError), locked(tmp_path):
      pass


# What an NFS, or another file system that has no locks, may answer.
@pytest.fixture(params=['ENOLCK', 'EOPNOTSUPP', 'EBADF'])
def no_locks(request, monkeypatch):
  def flock(*_):
    number = getattr(errno, request.param)
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(file_lock.fcntl, 'flock', flock)


def test_without_locks_a_living_process_of_this_machine_is_believed(
  no_locks, holder, tmp_path
):
  opened = len(os.listdir('/proc/self/fd'))
  assert_refused(tmp_path, holder.pid)
  assert len(os.listdir('/proc/self/fd')) == opened
  holder.kill()
  holder.wait()
  with locked(tmp_path):
    pass


def test_without_locks_another_process_of_the_same_number_is_another(
  no_locks, tmp_path
):
  mine = file_lock._myself()
  (tmp_path / 'lock').write_text(json.dumps({**mine, 'ticks': 1}))
  with locked(tmp_path):
    pass


def test_without_locks_another_machine_is_warned_of(no_locks, tmp_path, capsys):
  text = json.dumps({'host': 'elsewhere', 'pid': 7, 'since': 'noon'})
  (tmp_path / 'lock').write_text(text)
  with locked(tmp_path):
    assert 'process 7 on elsewhere' in capsys.readouterr().err


def test_a_disk_that_is_gone_at_the_end_hides_no_error(tmp_path, monkeypatch):
  folder = tmp_path / 'mount'
  folder.mkdir()
  with pytest.raises(UserError, match='the checkpoint'), locked(folder):
    folder.rename(tmp_path / 'gone')
    folder.write_text('')  # ENOTDIR, as a dead mount has ENOTCONN
    raise UserError('the checkpoint cannot be written')
