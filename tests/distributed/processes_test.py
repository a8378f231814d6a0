"""The processes of a job: who joins, what they tell each other, how it ends."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dpjax.distributed import processes
from dpjax.errors import UserError

SPEAK = "print('JAX: more', file=sys.stderr, flush=True)"
XLA = jax.errors.JaxRuntimeError
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ({'num_processes': 2}, ['--coordinator']),
    ({'process_id': 0}, ['--coordinator']),
    ({'coordinator': 'auto', 'process_id': 0}, ['auto', 'leave them out']),
    ({'coordinator': ''}, ['HOST:PORT']),  # an unset variable of a script
    ({'coordinator': 'host'}, ['HOST:PORT']),
    ({'coordinator': 'host:0'}, ['HOST:PORT']),
    ({'coordinator': ':99'}, ['HOST:PORT']),
    ({'coordinator': 'host:99999'}, ['HOST:PORT']),
    ({'coordinator': 'host:99'}, ['--num_processes', '--process_id']),
    (
      {'coordinator': 'host:99', 'num_processes': 2, 'process_id': 2},
      ['--process_id', '0 to one less'],
    ),
  ],
)
def test_a_job_that_is_not_fully_named_is_refused_in_one_line(arguments, words):
  with pytest.raises(UserError) as error:
    processes.start(**arguments)
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_the_age_of_a_process_counts_from_before_its_imports():
  code = """if True:
    import time
    before = time.perf_counter()
    from dpjax.distributed import processes
    time.sleep(0.3)
    age = processes.seconds_alive()
    inside = time.perf_counter() - before
    print(age - inside)
  """
  began = time.perf_counter()
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
    check=True,
  )  # fmt: skip
  whole = time.perf_counter() - began
  # Python's own start, and a clock that ticks every 10 ms.
  assert -0.02 < float(done.stdout) < whole


def test_an_error_of_jax_in_a_process_alone_stays_what_it_is():
  with pytest.raises(jax.errors.JaxRuntimeError, match='mine'), processes.job():
    raise jax.errors.JaxRuntimeError('mine')


@pytest.mark.parametrize(
  ('message', 'status', 'kind'),
  [
    ('FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed', 75, XLA),
    ('UNKNOWN: Gloo AllGather failed: Connection closed', 75, ValueError),
    ('UNAVAILABLE: failed to connect', 75, XLA),
    ('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes', 2, XLA),
    ('INTERNAL: autotuning failed', 1, XLA),
  ],
)
def test_in_a_job_only_a_lost_process_asks_for_another_start(
  message, status, kind, monkeypatch, capsys
):
  class Ended(Exception):
    pass

  def end(status):
    raise Ended(status)

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(os, '_exit', end)
  with pytest.raises(Ended, match=f'^{status}$'), processes.job():
    raise kind(message)
  said = capsys.readouterr().err
  assert message in said
  assert ('another process is gone' in said) == (status == 75)


def test_in_a_job_an_error_of_our_own_stays_what_it_is(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match='peer'), processes.job():
    raise ValueError('a peer: of our own')


class Coordinator:
  """JAX's, as far as process 0 sees it."""

  def __init__(self):
    self.told = {}
    self.waited = []

  def key_value_set(self, key, value):
    self.told[key] = value

  def blocking_key_value_get(self, key, timeout):
    del timeout
    self.waited.append(key)


@pytest.fixture
def coordinator(monkeypatch):
  from jax._src import distributed

  client = Coordinator()
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  monkeypatch.setattr(jax, 'process_index', lambda: 0)
  monkeypatch.setattr(distributed.global_state, 'client', client)
  monkeypatch.setattr(processes, '_TO_END', 0)
  return client


def test_what_process_0_has_done_the_others_hear_of(coordinator):
  assert processes.on_process_0('it', lambda: 7) == 7
  assert coordinator.told == {'dpjax/it': 'done'}


@pytest.mark.parametrize('kind', [UserError, OSError])
def test_what_a_user_can_mend_ends_all_processes_with_its_line(
  kind, coordinator
):
  def fail():
    raise kind('no such file')

  with pytest.raises(kind):
    processes.on_process_0('it', fail)
  assert coordinator.told == {'dpjax/it': 'no such file'}
  # That the others have read it.
  assert coordinator.waited == ['dpjax/it/told/1', 'dpjax/it/told/2']


def test_a_bug_in_process_0_is_told_to_nobody_as_the_users_mistake(coordinator):
  with pytest.raises(ValueError, match='broadcast'):
    processes.on_process_0('it', lambda: np.ones(2) + np.ones(3))
  assert coordinator.told == {}


@pytest.mark.parametrize(
  ('end', 'status', 'more'),
  [
    ('os.abort()', -signal.SIGABRT, ['error: gone']),
    ('os.kill(os.getpid(), 9)', -signal.SIGKILL, ['error: gone']),
    ('sys.exit(3)', 3, []),
    ('processes._withdraw_last_word(); os._exit(75)', 75, []),
    # JAX speaks, or aborts, between our line and our end.
    (
      f'processes._say_last("error: mine"); {SPEAK}; os._exit(75)',
      75,
      ['JAX: more', 'error: mine'],
    ),
    (
      f'processes._say_last("error: mine"); {SPEAK}; os.abort()',
      -signal.SIGABRT,
      ['JAX: more', 'error: mine'],
    ),
  ],
)
def test_a_process_that_is_aborted_has_the_last_word(end, status, more):
  code = f"""if True:
    import os, sys
    from dpjax.distributed import processes
    processes._leave_last_word('error: gone')
    print('JAX: 50 lines', file=sys.stderr, flush=True)
    {end}
  """
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
    check=False,
  )  # fmt: skip
  assert done.returncode == status
  assert done.stderr.splitlines() == ['JAX: 50 lines', *more]
