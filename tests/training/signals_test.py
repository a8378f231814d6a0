"""Signals are noted, and their handlers put back."""

import os
import signal

import pytest

from dpjax.training import signals


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_are_put_back(number):
  before = signal.getsignal(number)
  with signals.Signals() as noted:
    assert noted.received is None
    os.kill(os.getpid(), number)
    assert noted.received == signal.Signals(number).name
  assert signal.getsignal(number) is before


def test_a_second_interrupt_interrupts_and_a_second_sigterm_does_not():
  with signals.Signals() as noted:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert noted.received == 'SIGTERM'
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
