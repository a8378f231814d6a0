"""All tasks are done, or the first that fails ends them all, in time."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import cv2
import pytest

from dpjax.data.prepare import runners
from dpjax.errors import UserError

POOLS = pytest.mark.parametrize('workers', [1, 2])


def run(work, tasks, workers):
  runners.run(work, tasks, description='test', workers=workers, progress=False)


def tasks_of(folder, count, *args):
  """Tasks of two items each, in the manner of prepare's."""
  return [([i, i], folder / f'{i:03d}', *args) for i in range(count)]


# Workers are fresh processes, which import what they call from this file.


def write(items, file, text='done'):
  file.write_text(f'{text} {items[0]}')


def write_process(items, file):
  file.write_text(f'{os.getpid()} {cv2.getNumThreads()}')


def meet(items, file, count):
  """Is done when so many are at it at once."""
  write_process(items, file)
  wait_for(lambda: len(list(file.parent.iterdir())) == count)


def fail_first(items, file, error):
  if items[0] == 0:
    raise error
  time.sleep(0.02)
  write(items, file)


def die_first(items, file):
  mark = pathlib.Path(f'{file}.at')
  mark.write_text(f'image {items[0]}.png')
  if items[0] == 0:
    os.kill(os.getpid(), signal.SIGKILL)
  time.sleep(0.02)
  mark.unlink()


@POOLS
@pytest.mark.parametrize('count', [0, 1, 7])
def test_every_task_is_done_with_its_own_arguments(tmp_path, workers, count):
  run(write, tasks_of(tmp_path, count, 'made'), workers)
  made = {file.name: file.read_text() for file in tmp_path.iterdir()}
  assert made == {f'{i:03d}': f'made {i}' for i in range(count)}


def test_one_worker_is_this_process(tmp_path):
  run(write_process, tasks_of(tmp_path, 2), 1)
  assert processes(tmp_path) == {os.getpid()}


def test_two_workers_are_other_processes_that_work_at_once(tmp_path):
  run(meet, tasks_of(tmp_path, 2, 2), 2)
  pids = processes(tmp_path)
  assert len(pids) == 2 and os.getpid() not in pids


def processes(folder):
  return {int(file.read_text().split()[0]) for file in folder.iterdir()}


def test_opencv_has_one_thread_in_a_worker_and_keeps_its_own_here(tmp_path):
  before = cv2.getNumThreads()
  run(write_process, tasks_of(tmp_path, 2), 2)
  for file in tmp_path.iterdir():
    assert file.read_text().split()[1] == '1'
  assert cv2.getNumThreads() == before


@POOLS
@pytest.mark.parametrize(
  'error',
  [
    ValueError('b.png, row 3: no image'),
    OSError(errno.ENOSPC, 'No space left on device'),
    FileNotFoundError(errno.ENOENT, 'No such file', 'a.png'),
  ],
  ids=lambda error: type(error).__name__,
)
def test_the_first_error_stops_the_others_and_is_raised(
  tmp_path, workers, error
):
  with pytest.raises(type(error)) as caught:
    run(fail_first, tasks_of(tmp_path, 1000, error), workers)
  assert type(caught.value) is type(error)
  assert str(caught.value) == str(error)
  # All of them would take 10 s for two workers, on top of their start.
  assert len(list(tmp_path.iterdir())) < 500


def test_a_worker_that_is_killed_is_one_line_that_says_at_what(tmp_path):
  # Left behind by an earlier run that was killed: not what this one was at.
  (tmp_path / '005.at').write_text('image of yesterday.png')
  with pytest.raises(UserError, match='a worker process died') as caught:
    run(die_first, tasks_of(tmp_path, 300), 2)
  message = str(caught.value)
  assert 'image 0.png' in message and 'yesterday' not in message
  assert '\n' not in message


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux tells workers')
def test_workers_end_with_the_process_that_started_them(tmp_path):
  script = tmp_path / 'parent.py'
  script.write_text(
    textwrap.dedent("""
      import os, pathlib, sys, time
      from dpjax.data.prepare import runners

      def work(items, file):
        file.with_suffix('.part').write_text(str(os.getpid()))
        file.with_suffix('.part').rename(file)
        time.sleep(120)

      if __name__ == '__main__':
        folder = pathlib.Path(sys.argv[1])
        tasks = [([i], folder / f'{i}.pid') for i in range(2)]
        runners.run(
          work, tasks, description='', workers=2, progress=False
        )
    """)
  )
  root = pathlib.Path(runners.__file__).parents[3]
  parent = subprocess.Popen(
    [sys.executable, str(script), str(tmp_path)],
    env={**os.environ, 'PYTHONPATH': str(root)},
    stderr=subprocess.DEVNULL,  # of what tidies up after it
  )
  try:
    wait_for(lambda: len(list(tmp_path.glob('*.pid'))) == 2)
    workers = [int(file.read_text()) for file in tmp_path.glob('*.pid')]
    assert all(map(runs, workers))
  finally:
    parent.kill()
    parent.wait()
  wait_for(lambda: not any(map(runs, workers)))


def wait_for(condition):
  end = time.monotonic() + 300
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.02)


def runs(pid):
  """Whether a process is there, and not only its entry in the table."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return stat.rpartition(')')[2].split()[0] not in 'ZX'
