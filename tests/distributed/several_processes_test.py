"""A job of two processes: the same run as one, and what a death does to it.

Each process is the real command with two fake devices, on loopback.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from dpjax.distributed import processes
from dpjax.training import checkpoint
from tests import children

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow

FLAGS = (
  '--config=configs/recipe.py',
  # Under some seeds a flat region of a batch has equal maxima in the max-pool,
  # which the last bits, other on other devices, decide between.
  '--config.seed=1',
  '--config.data.phantom.count=60',
  '--config.data.store_size=48',
  '--config.data.image_size=32',
  '--config.model.stage_sizes=(1,)',
  '--config.model.width=4',
  "--config.mgacr.stages=('stage1',)",
  '--config.pretrain.batch_size=8',
  '--config.pretrain.epochs=1',
  '--config.retrain.batch_size=8',
  '--config.retrain.epochs=2',
  '--config.finetune.epochs=0',
  '--config.train.save_every=3',
  '--config.train.log_every=1',
)

# Sends itself a signal once it has read the metrics of so many steps.
DRIVER = """
import os, signal, sys
from absl import app
from dpjax import main
from dpjax.config import flags
from dpjax.distributed import processes
from dpjax.training import loop
count, number = int(sys.argv.pop(1)), getattr(signal, sys.argv.pop(1))
processes._HEARTBEAT = int(sys.argv.pop(1))
check, done = loop._check_finite, 0

def counted(*args):
  global done
  check(*args)
  done += 1
  if done == count:
    os.kill(os.getpid(), number)

loop._check_finite = counted
app.run(main.main, flags_parser=flags.parse_flags)
"""


@pytest.fixture(scope='module')
def phantom(tmp_path_factory):
  return tmp_path_factory.mktemp('data') / 'phantom'


# Where nobody dies, a process that a busy machine starves is no dead one.
PATIENT = 200  # seconds


def start(
  workdir, phantom, devices, *flags,
  count=0, number='SIGKILL', heartbeat=PATIENT,
):  # fmt: skip
  return subprocess.Popen(
    [
      sys.executable, '-c', DRIVER, str(count), number, str(heartbeat),
      *FLAGS,
      f'--config.data.path={phantom}', f'--workdir={workdir}', *flags,
    ],
    cwd=ROOT, env=children.environment(devices), text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip


def free_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


# The collectives of CPU devices give up after 30 seconds.
SLOW = """
import os, sys, time
from dpjax.distributed import processes
port, process = sys.argv[1:]
processes.start(coordinator=f'localhost:{port}', num_processes=2,
                process_id=int(process))

def prepare():
  time.sleep(33)
  return 'prepared'

print(processes.on_process_0('prepare', prepare), 'waited', flush=True)
if process == '1':
  time.sleep(33)  # It compiles.
processes.meet('compiled')
assert processes.any_process(process == '1')
time.sleep(2)
os._exit(0)  # This is not about how a job ends.
"""


@pytest.fixture(scope='module', autouse=True)
def slow():
  """A job whose first process takes its time, beside the other tests."""
  port = free_port()
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', SLOW, str(port), str(i)],
      cwd=ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    for i in range(2)
  ]  # fmt: skip
  yield processes
  for process in processes:
    with process:  # It may be that no test has asked for its output.
      process.kill()


def start_job(workdir, phantom, *flags, **signals):
  """Two processes of two devices each; `signals` are the second one's."""
  job = [f'--coordinator=localhost:{free_port()}', '--num_processes=2', *flags]
  one_dies = signals.get('count') and 'number' not in signals
  heartbeat = processes._HEARTBEAT if one_dies else PATIENT
  first, second = (['--process_id=0'], {}), (['--process_id=1'], signals)
  return [
    start(workdir, phantom, 2, *job, *id, heartbeat=heartbeat, **own)
    for id, own in (first, second)
  ]


def finish(*processes):
  """[(status, stdout, stderr)] of processes, waiting for their end."""
  try:
    ends = [process.communicate(timeout=900) for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [
    (process.returncode, *end)
    for process, end in zip(processes, ends, strict=True)
  ]


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  entries = [json.loads(line) for line in lines]
  return [e['loss'] for e in entries if e['split'] == 'train']


@pytest.fixture(scope='module')
def alone(phantom, tmp_path_factory):
  """The recipe in one process on one device."""
  workdir = tmp_path_factory.mktemp('alone')
  ((status, _, errors),) = finish(start(workdir, phantom, 1))
  assert status == 0, errors
  return workdir


@pytest.fixture(scope='module')
def together(alone, phantom, tmp_path_factory):
  """The same recipe in a job of two: (workdir, what each process printed)."""
  workdir = tmp_path_factory.mktemp('together')
  ends = finish(*start_job(workdir, phantom))
  assert [status for status, _, _ in ends] == [0, 0], ends
  return workdir, [out for _, out, _ in ends]


def test_a_job_of_two_trains_both_stages_as_one_process_does(alone, together):
  workdir, _ = together
  for stage in ('pretrain', 'retrain'):
    # Other sums of the same numbers; the loss is of order 1.
    np.testing.assert_allclose(
      losses(workdir / stage), losses(alone / stage), rtol=2e-3
    )
    one, two = (checkpoint.read_state(w / stage) for w in (alone, workdir))
    for part in ('params', 'batch_stats'):
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3),
        one[part],
        two[part],
      )


def test_one_process_of_a_job_speaks_and_writes(together):
  workdir, (first, second) = together
  assert 'retrain: ' in first and '2 processes' in first
  assert 'shard_map on 4 x cpu' in first
  # The second says nothing but what the transport prints by itself, torn.
  for word in ('pretrain', 'retrain', 'preparing', 'recipe', 'accuracy'):
    assert word not in second
  steps = [len(losses(workdir / stage)) for stage in ('pretrain', 'retrain')]
  assert steps == [5, 10]  # each step once
  assert (workdir / 'retrain' / 'evaluation.json').is_file()


def test_a_job_in_which_one_dies_ends_by_itself_and_goes_on_when_started_again(
  together, phantom, tmp_path
):
  reference, _ = together
  shutil.copytree(reference / 'pretrain', tmp_path / 'pretrain')
  (status, _, errors), (died, _, _) = finish(
    *start_job(tmp_path, phantom, count=7)  # no save near
  )
  assert died == -signal.SIGKILL
  if status == processes.BROKEN_JOB:
    line = errors.strip().splitlines()[-1]
    assert line.startswith('error: process 0 of 2: another process is gone')
    assert 'start all processes again with the same command' in line
  else:
    # The transport hung where it should have failed; then JAX sees to it.
    assert status == -signal.SIGABRT, errors
    assert 'This most likely indicates that another task died' in errors
    assert 'tasks are unhealthy (stopped sending heartbeats)' in errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith('error: process 0 of 2 was ended by JAX')
    assert 'tart all processes again with the same command' in line
  assert not (tmp_path / 'retrain' / 'evaluation.json').exists()

  ends = finish(*start_job(tmp_path, phantom))
  assert [status for status, _, _ in ends] == [0, 0], ends
  assert 'retrain, resumed at step ' in ends[0][1]
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoint.read_state(tmp_path / 'retrain'),
    checkpoint.read_state(reference / 'retrain'),
  )


def test_a_mistake_that_one_process_meets_ends_all_with_its_line(tmp_path):
  ends = finish(
    *start_job(
      tmp_path, tmp_path / 'nowhere', '--config.data.layout=csv',
      f'--config.data.source={tmp_path}',
    )
  )  # fmt: skip
  for status, _, errors in ends:
    assert status == 2, errors
    assert f'error: {tmp_path / "labels.csv"}: no such file' in errors
    assert 'Traceback' not in errors


def test_what_takes_longer_than_a_transport_is_patient_is_waited_for(slow):
  ends = finish(*slow)
  assert [status for status, _, _ in ends] == [0, 0], ends
  # The transport prints lines of its own.
  assert 'prepared waited' in ends[0][1] and 'None waited' in ends[1][1]


def test_sigterm_to_one_process_makes_all_save_and_one_device_can_go_on(
  together, phantom, tmp_path
):
  reference, _ = together
  shutil.copytree(reference / 'pretrain', tmp_path / 'pretrain')
  ends = finish(*start_job(tmp_path, phantom, count=4, number='SIGTERM'))
  assert [status for status, _, _ in ends] == [143, 143], ends
  assert 'saved at step' in ends[0][1]
  # What four devices in two processes have saved, one device takes up.
  ((status, out, errors),) = finish(start(tmp_path, phantom, 1))
  assert status == 0, errors
  assert 'resumed at step' in out and 'jit on 1 x cpu' in out
  assert len(losses(tmp_path / 'retrain')) == 10
  np.testing.assert_allclose(
    losses(tmp_path / 'retrain'), losses(reference / 'retrain'), rtol=2e-3
  )
