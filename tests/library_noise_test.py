"""Libraries are silent about a save that failed, and about nothing else."""

import asyncio
import gc
import sys
import threading
import warnings

import pytest
import tensorstore
from absl import logging

from dpjax import library_noise


@pytest.fixture
def shown(monkeypatch):
  """What the hooks before got to see."""
  seen = []
  verbosity = logging.get_verbosity()
  monkeypatch.setattr(sys, 'unraisablehook', lambda u: seen.append(u.exc_value))
  monkeypatch.setattr(sys, 'excepthook', lambda *what: seen.append(what[1]))
  monkeypatch.setattr(
    threading, 'excepthook', lambda what: seen.append(what.exc_value)
  )
  library_noise.silence()
  yield seen
  logging.set_verbosity(verbosity)


async def wait_for(future):
  await future


def call_into_closed_loop():
  """A write ends after its save has failed, as Orbax leaves it behind."""
  promise, future = tensorstore.Promise.new()
  loop = asyncio.new_event_loop()
  waiter = loop.create_task(wait_for(future))
  loop.run_until_complete(asyncio.sleep(0))
  loop.close()
  thread = threading.Thread(target=promise.set_result, args=(1,))
  thread.start()
  thread.join()
  waiter._log_destroy_pending = False  # Here that is no fault.


def test_tensorstore_is_silent_about_a_loop_that_is_closed(shown):
  call_into_closed_loop()
  assert shown == []


@pytest.mark.usefixtures('shown')
def test_a_coroutine_that_a_failed_save_never_came_to_is_no_warning():
  with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    library_noise.silence()
    wait_for(None)
    gc.collect()
    warnings.warn('another', RuntimeWarning, stacklevel=1)
  assert [str(warning.message) for warning in told] == ['another']


def test_without_that_it_is_not(monkeypatch):
  seen = []
  monkeypatch.setattr(sys, 'unraisablehook', lambda u: seen.append(u.exc_value))
  call_into_closed_loop()
  assert [str(error) for error in seen] == ['Event loop is closed']


class Broken:
  def __init__(self, act):
    self.act = act

  def __del__(self):
    self.act()


def test_what_of_ours_cannot_be_raised_is_shown(shown):
  closed = asyncio.new_event_loop()
  closed.close()
  Broken(lambda: closed.call_soon_threadsafe(print))
  Broken(lambda: 1 / 0)
  assert [type(error) for error in shown] == [RuntimeError, ZeroDivisionError]


def test_a_thread_of_ours_is_heard_and_one_of_orbax_is_not(shown):
  class Theirs(threading.Thread):
    __module__ = 'orbax.checkpoint.somewhere'

  for kind in (threading.Thread, Theirs):
    thread = kind(target=lambda: 1 / 0)
    thread.start()
    thread.join()
  assert [type(error) for error in shown] == [ZeroDivisionError]
