"""Signals are noted, and their handlers put back."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from dpjax import signals
from dpjax.errors import Stopped

BOTH = (signal.SIGTERM, signal.SIGINT)


def send(number):
  os.kill(os.getpid(), number)


@pytest.mark.parametrize('number', BOTH)
def test_a_signal_is_noted_and_the_handlers_are_put_back(number):
  before = signal.getsignal(number)
  with signals.noted():
    with signals.noted():  # as the loop's, inside of main's
      assert signals.received() is None
      signals.check()
      send(number)
    assert signals.received() == signal.Signals(number).name
  assert signals.received() is None
  assert signal.getsignal(number) is before


@pytest.mark.parametrize(
  ('number', 'kind'),
  [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)],
)
def test_whoever_looks_stops(number, kind):
  with signals.noted():
    send(number)
    with pytest.raises(kind):
      signals.check()


def test_a_note_is_kept_where_an_exception_would_be_discarded():
  class Discards:
    def __del__(self):
      send(signal.SIGINT)

  with signals.noted():
    Discards()
    assert signals.received() == 'SIGINT'


def test_a_second_interrupt_interrupts_and_a_second_sigterm_does_not():
  with signals.noted():
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    send(signal.SIGINT)
    assert signals.received() == 'SIGINT'
    with pytest.raises(KeyboardInterrupt):
      send(signal.SIGINT)


@pytest.mark.parametrize('number', BOTH)
def test_where_no_handler_would_be_run_a_signal_ends_the_process(number):
  code = """if True:
    import os, signal, sys
    from dpjax import signals
    number = int(sys.argv[1])
    with signals.noted():
      with signals.fatal():
        pass
      os.kill(os.getpid(), signal.SIGTERM)
      print(signals.received(), flush=True)
      signals._Note.received = None
      with signals.fatal():
        os.kill(os.getpid(), number)
  """
  done = subprocess.run(
    [sys.executable, '-c', code, str(int(number))],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.stdout, done.returncode) == ('SIGTERM\n', -number)


def test_a_child_does_not_hear_of_an_interrupt_and_its_parent_does():
  code = """if True:
    import os, signal, subprocess, sys
    from dpjax import signals
    with signals.noted():
      with signals.no_interrupt_for_children():
        child = subprocess.Popen([sys.executable, '-c', 'input()'],
                                 stdin=subprocess.PIPE)
        os.killpg(0, signal.SIGINT)
        assert signals.received() is None
      assert signals.received() == 'SIGINT'
      child.communicate(b'go on')
      sys.exit(child.returncode)
  """
  done = subprocess.run(
    [sys.executable, '-c', code], start_new_session=True, check=False
  )
  assert done.returncode == 0


def test_noting_signals_imports_nothing_that_takes_time():
  code = 'import sys; from dpjax import signals; print(*sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert not {'jax', 'numpy', 'absl'} & set(done.stdout.split())


@pytest.mark.parametrize(
  ('number', 'kind'),
  [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_is_looked_at_while_something_deaf_is_at_work(number, kind):
  begun, ended = threading.Event(), threading.Event()

  def deaf():
    begun.set()
    ended.wait()

  def press():
    begun.wait()
    send(number)

  with signals.noted():
    threading.Thread(target=press).start()
    with pytest.raises(kind):
      signals.interruptible(deaf)
    assert not ended.is_set()  # Nobody waits for it.
  ended.set()


def test_what_is_undisturbed_returns_or_raises():
  assert signals.interruptible(divmod, 7, 2) == (3, 1)
  with pytest.raises(ZeroDivisionError):
    signals.interruptible(divmod, 7, 0)
