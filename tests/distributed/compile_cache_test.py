"""Where compiled programs are kept."""

import os
import pathlib
import pwd

import jax
import pytest

from dpjax.distributed import compile_cache


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
  compile_cache.enable()
  folder = pathlib.Path(kept_in())
  assert folder.parent == cache
  assert folder.stat().st_mode & 0o777 == 0o700
  assert folder.stat().st_uid == os.getuid()


@pytest.mark.parametrize('mode', [0o770, 0o702, 0o777])
def test_a_folder_in_which_others_may_write_is_not_used(cache, mode, capsys):
  compile_cache.enable()
  folder = pathlib.Path(kept_in())
  jax.config.update('jax_compilation_cache_dir', None)
  folder.chmod(mode)
  compile_cache.enable()
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
    compile_cache.enable()
    folder.chmod(before)
    assert kept_in() is None
    assert f'warning: {folder} is not yours alone' in capsys.readouterr().err


def test_a_sticky_folder_as_tmp_may_hold_the_users_own(cache, capsys):
  cache.parent.chmod(0o1777)
  compile_cache.enable()
  assert kept_in() is not None
  assert capsys.readouterr().err == ''


def test_a_link_in_place_of_the_folder_is_not_followed(cache, tmp_path):
  (tmp_path / 'elsewhere').mkdir(mode=0o700)
  cache.symlink_to(tmp_path / 'elsewhere')
  compile_cache.enable()
  assert kept_in() is None


def test_a_folder_of_another_user_is_not_used(cache, monkeypatch, capsys):
  cache.mkdir(mode=0o700)
  found = os.lstat(cache)
  monkeypatch.setattr(
    pathlib.Path,
    'lstat',
    lambda path: os.stat_result([*found[:4], 12345678, *found[5:]]),
  )
  compile_cache.enable()
  assert kept_in() is None
  assert 'not yours alone' in capsys.readouterr().err


def test_the_users_own_choice_of_a_folder_stands(cache, tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'mine'))
  compile_cache.enable()
  assert kept_in() == str(tmp_path / 'mine')
  assert not cache.exists()


def test_without_a_home_nothing_is_kept_and_nothing_breaks(
  cache, tmp_path, monkeypatch
):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  compile_cache.enable()
  assert kept_in() is None


def test_a_user_whom_the_system_does_not_know_has_no_home(cache, monkeypatch):
  def unknown(uid):
    raise KeyError(uid)

  for name in ('XDG_CACHE_HOME', 'HOME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(pwd, 'getpwuid', unknown)
  compile_cache.enable()
  assert kept_in() is None and not cache.exists()
