"""What is settled before JAX starts: the job, and where programs are kept."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest

from dpjax.distributed import processes

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A home of one's own; JAX's own setting is as at its start."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  yield tmp_path / 'dpjax'
  jax.config.update('jax_compilation_cache_dir', before)


def kept_in():
  return jax.config.jax_compilation_cache_dir


def test_programs_are_kept_in_a_folder_of_the_user_alone(cache):
  processes.start()
  folder = pathlib.Path(kept_in())
  assert folder.parent == cache
  assert folder.stat().st_mode & 0o777 == 0o700
  assert folder.stat().st_uid == os.getuid()


@pytest.mark.parametrize('mode', [0o770, 0o702, 0o777])
def test_a_folder_in_which_others_may_write_is_not_used(cache, mode, capsys):
  processes.start()
  folder = pathlib.Path(kept_in())
  jax.config.update('jax_compilation_cache_dir', None)
  folder.chmod(mode)
  processes.start()
  assert kept_in() is None
  warning = capsys.readouterr().err
  assert f'warning: {folder} is not yours alone' in warning
  assert 'chmod 700' in warning and warning.count('\n') == 1


@pytest.mark.parametrize('mode', [0o770, 0o777])
def test_a_folder_that_others_may_replace_is_not_used(cache, mode, capsys):
  for folder in (cache, cache.parent):
    cache.mkdir(mode=0o700, exist_ok=True)
    before = folder.stat().st_mode & 0o777
    folder.chmod(mode)
    processes.start()
    folder.chmod(before)
    assert kept_in() is None
    assert f'warning: {folder} is not yours alone' in capsys.readouterr().err


def test_a_sticky_folder_as_tmp_may_hold_the_users_own(cache, capsys):
  cache.parent.chmod(0o1777)
  processes.start()
  assert kept_in() is not None
  assert capsys.readouterr().err == ''


def test_a_link_in_place_of_the_folder_is_not_followed(cache, tmp_path):
  (tmp_path / 'elsewhere').mkdir(mode=0o700)
  cache.symlink_to(tmp_path / 'elsewhere')
  processes.start()
  assert kept_in() is None


def test_a_folder_of_another_user_is_not_used(cache, monkeypatch, capsys):
  cache.mkdir(mode=0o700)
  found = os.lstat(cache)
  monkeypatch.setattr(
    pathlib.Path,
    'lstat',
    lambda path: os.stat_result([*found[:4], 12345678, *found[5:]]),
  )
  processes.start()
  assert kept_in() is None
  assert 'not yours alone' in capsys.readouterr().err


def test_the_users_own_choice_of_a_folder_stands(cache, tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'mine'))
  processes.start()
  assert kept_in() == str(tmp_path / 'mine')
  assert not cache.exists()


def test_without_a_home_nothing_is_kept_and_nothing_breaks(
  cache, tmp_path, monkeypatch
):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  processes.start()
  assert kept_in() is None


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
  with pytest.raises(ValueError) as error:
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
  ('message', 'status'),
  [
    ('FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed', 75),
    ('UNAVAILABLE: failed to connect', 75),
    ('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes', 2),
    ('INTERNAL: autotuning failed', 1),
  ],
)
def test_in_a_job_only_a_lost_process_asks_for_another_start(
  message, status, monkeypatch, capsys
):
  class Ended(Exception):
    pass

  def end(status):
    raise Ended(status)

  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(os, '_exit', end)
  with pytest.raises(Ended, match=f'^{status}$'), processes.job():
    raise jax.errors.JaxRuntimeError(message)
  said = capsys.readouterr().err
  assert message in said
  assert ('another process is gone' in said) == (status == 75)
