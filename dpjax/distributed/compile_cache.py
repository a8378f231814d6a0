"""Where compiled programs are kept between runs: a folder of the user alone."""

import hashlib
import os
import pathlib
import platform
import stat

from dpjax.errors import warn


def enable() -> None:
  """Keeps compiled programs in a folder that is the user's alone.

  What is read from there is run, so a folder in which others may write is left
  alone. JAX_COMPILATION_CACHE_DIR names another one, and
  JAX_ENABLE_COMPILATION_CACHE=false turns it off.
  """
  import jax

  options = jax.config.values
  if options['jax_compilation_cache_dir']:
    return  # The user's own choice.
  if not options['jax_enable_compilation_cache']:
    return
  try:
    base = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(base).resolve() / 'dpjax'
    # A program for one CPU may not run on another, and homes are shared.
    leaf = folder / f'xla-{_machine()}'
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    leaf.mkdir(mode=0o700, exist_ok=True)
    # Who may write in a folder may put another one in its place.
    unsafe = [path for path in (folder.parent, folder, leaf) if _is_open(path)]
  except (OSError, RuntimeError):  # The latter: pathlib knows of no home.
    return  # No home, or a full one: then it compiles each time.
  if unsafe:
    warn(
      f'{unsafe[0]} is not yours alone, so compiled programs are not'
      ' kept there; chmod 700 it, or set JAX_COMPILATION_CACHE_DIR'
    )
    return
  jax.config.update('jax_compilation_cache_dir', str(leaf))


def _is_open(path):
  """Whether another user may change what is in a folder."""
  found = path.lstat()
  if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.getuid(), 0):
    return True
  writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
  # In a sticky one, as /tmp, others may add and not replace.
  return bool(writable) and not found.st_mode & stat.S_ISVTX


def _machine():
  """A name for what compiled programs of this machine's CPU run on."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = [platform.processor()]
  kind = next((x for x in lines if x.startswith(('flags', 'Features'))), '')
  return f'{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}'
