"""Files that appear whole or not at all."""

import json
import os
import subprocess
import sys

import pytest

from dpjax import atomic


def names(folder):
  return [file.name for file in folder.iterdir()]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
  file = tmp_path / 'x.json'
  atomic.write_json(file, {'x': 1})
  for bad, error in ((object(), TypeError), (float('nan'), ValueError)):
    with pytest.raises(error):
      atomic.write_json(file, {'x': bad})
  assert json.loads(file.read_text()) == {'x': 1}
  assert names(tmp_path) == ['x.json']


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
  file = tmp_path / 'x.csv'
  atomic.write_text(file, 'old\n')
  with pytest.raises(KeyError), atomic.replacing(file) as temporary:
    temporary.write_text('ne')
    assert file.read_text() == 'old\n'
    raise KeyError
  assert file.read_text() == 'old\n'
  assert names(tmp_path) == ['x.csv']


def test_processes_write_beside_each_other(tmp_path, monkeypatch):
  file = tmp_path / 'x.csv'
  with atomic.replacing(file) as mine:
    mine.write_text('mine')
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    atomic.write_text(file, 'theirs')
    assert file.read_text() == 'theirs'
  assert file.read_text() == 'mine'


def test_a_full_disk_is_told_with_the_path_and_harms_nothing(tmp_path):
  file = tmp_path / 'file.txt'
  file.write_text('before')
  code = """if True:
    import resource, sys
    from dpjax import atomic
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    atomic.write_text(sys.argv[1], 'after' * 100)
  """
  done = subprocess.run(
    [sys.executable, '-c', code, str(file)],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert last == f"OSError: [Errno 27] File too large: '{file}'"
  assert file.read_text() == 'before'
  assert [*tmp_path.iterdir()] == [file]
