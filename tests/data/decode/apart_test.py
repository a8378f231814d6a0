"""Calls in another process: what comes back, and what does not end this one."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from dpjax.data.decode import apart
from dpjax.errors import SourceFault

# The other process imports what it calls, from this file.


def fail(error):
  raise error


def end(how):
  if how == 'abort':
    os.abort()
  os.kill(os.getpid(), signal.SIGSEGV) if how == 'fault' else os._exit(0)


def shout():
  os.write(2, b'a decoder says something\n')


def test_it_is_another_process_and_the_same_for_every_call():
  pids = {apart.call(os.getpid) for _ in range(3)}
  assert len(pids) == 1 and os.getpid() not in pids
  assert apart.call(divmod, 17, 5) == (3, 2)


def test_a_fault_is_raised_here_and_ends_nothing():
  before = apart.call(os.getpid)
  with pytest.raises(SourceFault, match=r'^cut short$'):
    apart.call(fail, SourceFault('cut short'))
  assert apart.call(os.getpid) == before


def test_a_bug_is_raised_here_and_the_next_call_is_answered_anew():
  before = apart.call(os.getpid)
  with pytest.raises(NameError, match=r'^ours$'):
    apart.call(fail, NameError('ours'))
  assert apart.call(os.getpid) != before


@pytest.mark.parametrize('how', ['abort', 'fault', 'exit'])
def test_a_call_that_takes_its_process_down_is_told_and_not_the_next(
  how, capfd
):
  with pytest.raises(apart.Died):
    apart.call(end, how)
  assert apart.call(divmod, 17, 5) == (3, 2)
  assert capfd.readouterr() == ('', '')


def test_what_a_library_says_there_is_not_heard(capfd):
  apart.call(shout)
  assert capfd.readouterr() == ('', '')


def test_the_process_ends_with_the_one_that_started_it(tmp_path):
  script = tmp_path / 'script.py'
  # As anybody writes one: nothing keeps it from being imported.
  script.write_text(
    textwrap.dedent("""
      import os, signal, sys
      from dpjax.data.decode import apart
      print(apart.call(os.getpid), flush=True)
      os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    """)
  )
  root = pathlib.Path(apart.__file__).parents[3]
  for how in ('SIGKILL', 'SIGTERM', 'SIGCONT'):  # SIGCONT: to its last line
    found = subprocess.run(
      [sys.executable, str(script), how],
      env={**os.environ, 'PYTHONPATH': str(root)},
      stdout=subprocess.PIPE,
      text=True,
    )
    pid = int(found.stdout)  # a line: the script was run once
    wait = time.monotonic() + 300
    while runs(pid):
      assert time.monotonic() < wait
      time.sleep(0.02)


def runs(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return stat.rpartition(')')[2].split()[0] not in 'ZX'


def test_a_process_that_runs_jax_is_not_forked(monkeypatch):
  """JAX warns of a fork, whose child would hold locks of threads it lacks."""
  jax = pytest.importorskip('jax')
  jax.numpy.zeros(3).block_until_ready()  # its backend, with its threads
  forks = []
  os.register_at_fork(before=lambda: forks.append(1))
  with pytest.raises(apart.Died):
    apart.call(end, 'exit')
  assert apart.call(divmod, 17, 5) == (3, 2)
  assert not forks
