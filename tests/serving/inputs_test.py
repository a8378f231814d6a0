"""What predict reads: which files, and what the answers call them."""

import os

import pytest

from dpjax.errors import UserError
from dpjax.serving import inputs

PNG = b'\x89PNG\r\n\x1a\n'


def names(folder):
  return [one.name for one in inputs.find(folder)[0]]


@pytest.mark.parametrize(
  ('name', 'shown'),
  [
    ('plain ü.png', 'plain ü.png'),
    ('a\nb.png', r'a\nb.png'),
    (r'a\nb.png', r'a\\nb.png'),
    ('c\x85d\u2028.png', r'c\x85d\u2028.png'),
    (os.fsdecode(b'e\xff.png'), r'e\udcff.png'),
  ],
)
def test_a_name_is_one_line_from_which_the_file_is_found(name, shown, tmp_path):
  (tmp_path / name).write_bytes(PNG)
  assert names(tmp_path) == [shown] == names(tmp_path / name)
  # As docs/serving.md says.
  back = shown.encode('latin-1', 'backslashreplace').decode('unicode_escape')
  assert back == name


def test_pictures_that_predict_has_drawn_are_no_input(tmp_path):
  for folder in ('.', 'out', 'out/overlays', 'theirs/overlays'):
    (tmp_path / folder).mkdir(exist_ok=True, parents=True)
    (tmp_path / folder / '000001.png').write_bytes(PNG)
  everything = ['000001.png', 'out/000001.png', 'out/overlays/000001.png',
                'theirs/overlays/000001.png']  # fmt: skip
  assert names(tmp_path) == everything
  (tmp_path / 'out' / 'predict.json').write_text('{}')
  everything.remove('out/overlays/000001.png')
  assert names(tmp_path) == everything


def test_a_table_without_a_header_does_not_lose_its_first_file(tmp_path):
  table = tmp_path / 'list.csv'
  for name in ('a.png', 'b.png'):
    (tmp_path / name).write_bytes(PNG)
  table.write_text('7,a.png\n8,b.png\n')
  with pytest.raises(UserError, match=r'list\.csv: .* a\.png; wanted a header'):
    inputs.find(table)
  table.write_text('file,file\na.png,b.png\n')
  with pytest.raises(UserError, match="two columns are 'file'"):
    inputs.find(table)
  table.write_text('age,file\n7,a.png\n8,\n')
  with pytest.raises(UserError, match=r"list\.csv, row 3: its 'file' is empty"):
    inputs.find(table)
  table.write_text('age,file\n7,a.png\n8,b.png\n')
  assert names(table) == ['a.png', 'b.png']
