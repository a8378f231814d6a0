"""A disk that is lost or full at a checkpoint, of one process and of a job."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from tests import children

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow

FLAGS = (
  '--config=configs/retrain.py',
  '--config.data.phantom.count=60',
  '--config.data.store_size=48',
  '--config.data.image_size=32',
  '--config.model.stage_sizes=(1,)',
  '--config.model.width=4',
  "--config.mgacr.stages=('stage1',)",
  '--config.mgacr.attention=False',
  '--config.mgacr.features=False',
  '--config.init.backbone=None',
  '--config.retrain.batch_size=8',
  '--config.retrain.epochs=2',
  '--config.eval.every=0',
  '--config.train.save_every=4',
  '--config.train.log_every=1',
  '--config.train.progress=False',
)
STEPS = 10

# The command; before its second save something happens to the disk of a folder.
# `lose`: a mount goes dead, as that of a file server which is gone: it is there
# and answers to nothing. `fill`: not a byte is left.
DRIVER = """
import ctypes, os, sys
how, folder = sys.argv.pop(1), sys.argv.pop(1)

def lose():
  file = os.open('/dev/fuse', os.O_RDWR)
  options = f'fd={file},rootmode=40000,user_id=0,group_id=0'
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.mount(b'dead', folder.encode(), b'fuse', 0, options.encode()):
    sys.exit('no dead mount')
  os.close(file)

def fill():
  try:
    with open(folder + '/ballast', 'wb', buffering=0) as file:
      while True:
        file.write(bytes(4096))
  except OSError:
    pass

if len(sys.argv) == 1:
  lose()
  sys.exit()

from absl import app
from dpjax import main
from dpjax.config import flags
from dpjax.training import checkpoint
count, save = 0, checkpoint.Checkpoints.save

def saved(*arguments):
  global count
  count += 1
  if how and count == 2:
    arguments[0].wait()  # That the first one is whole.
    globals()[how]()
  save(*arguments)

checkpoint.Checkpoints.save = saved
app.run(main.main, flags_parser=flags.parse_flags)
"""


def command(*arguments):
  return subprocess.Popen(
    [sys.executable, '-c', DRIVER, *map(str, arguments)],
    cwd=ROOT,
    env=children.environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def train(workdir, phantom, count, how=''):
  """[(status, stdout, stderr)] of the processes of a job of `count`."""
  flags = [*FLAGS, f'--workdir={workdir}', f'--config.data.path={phantom}']
  if count > 1:
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    flags += [f'--coordinator=localhost:{port}', f'--num_processes={count}']
  own = [[f'--process_id={i}'] if count > 1 else [] for i in range(count)]
  with contextlib.ExitStack() as held:
    processes = [
      held.enter_context(command('' if i else how, workdir, *flags, *own[i]))
      for i in range(count)
    ]
    for process in processes:
      held.callback(process.kill)
    ends = [process.communicate(timeout=500) for process in processes]
  return [
    (process.returncode, *end)
    for process, end in zip(processes, ends, strict=True)
  ]


def call(*words):
  return subprocess.run(words, capture_output=True, check=False).returncode


@pytest.fixture(scope='module')
def phantom(tmp_path_factory):
  """The set, prepared by a run that nothing disturbed."""
  folder = tmp_path_factory.mktemp('data')
  ((status, _, errors),) = train(folder / 'run', folder / 'phantom', 1)
  assert status == 0, errors
  return folder / 'phantom'


@pytest.fixture
def workdir(tmp_path):
  """A folder that may be mounted upon."""
  folder = tmp_path / 'run'
  folder.mkdir()
  if shutil.which('mount') is None or os.geteuid():
    pytest.skip('mounting takes root')
  yield folder
  while call('umount', folder) == 0:
    pass


def assert_ended(ends, workdir, reason):
  """Who meets it says why; who waits for that one ends as where one dies."""
  where = f'error: {workdir}/checkpoints: the checkpoint cannot be written'
  met = 0
  for status, _, errors in ends:
    assert 'Traceback' not in errors
    line = errors.strip().splitlines()[-1]
    if status == 2:
      assert line.startswith(f'{where} ({reason})'), errors
      met += 1
    else:
      assert status in (75, -signal.SIGABRT), errors
      assert line.startswith('error: process '), errors
  assert met


@pytest.mark.parametrize('count', [1, 2])
def test_a_lost_mount_ends_all_with_a_line_and_the_same_command_goes_on(
  count, workdir, phantom
):
  with command('', workdir) as attempt:
    if attempt.wait():
      pytest.skip('FUSE is not to be had')
  subprocess.run(['umount', workdir], check=True)
  ends = train(workdir, phantom, count, how='lose')
  assert_ended(ends, workdir, 'Transport endpoint is not connected')
  subprocess.run(['umount', workdir], check=True)
  assert_goes_on(workdir, phantom, count)


def test_a_full_disk_ends_a_whole_job_and_the_same_command_goes_on(
  workdir, phantom
):
  if call('mount', '-t', 'tmpfs', '-o', 'size=9m', 'tmpfs', workdir):
    pytest.skip('there is no tmpfs to be had')
  ends = train(workdir, phantom, 2, how='fill')
  assert_ended(ends, workdir, 'No space left on device')
  (workdir / 'ballast').unlink()
  assert_goes_on(workdir, phantom, 2)


def assert_goes_on(workdir, phantom, count):
  ends = train(workdir, phantom, count)
  assert [status for status, _, _ in ends] == [0] * count, ends
  assert 'resumed at step 4' in ends[0][1]
  assert (workdir / f'checkpoints/{STEPS}').is_dir()
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  steps = [json.loads(line)['step'] for line in lines]
  assert steps == [*range(1, STEPS + 1)]
