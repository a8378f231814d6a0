"""Files that appear whole or not at all."""

import json
import os

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
