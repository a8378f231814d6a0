"""The door to the decoders: any file is an image, or one line."""

import os
import subprocess
import sys
import threading

import pytest

from dpjax.data.decode import image_file
from dpjax.errors import SourceFault
from tests.data.decode.pictures import png
from tests.data.source_files import image_refusal as refusal


@pytest.mark.parametrize('name', ['a.jpeg', 'a.TIF', 'a.bmp', 'a.dcm'])
def test_a_png_under_another_formats_name_is_refused(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(png(3, 3, data=bytes(12)))
  assert 'holds a PNG but is named' in refusal(path)
  with pytest.raises(SourceFault, match='rename it'):
    image_file.header(str(path))


def test_what_is_no_readable_file_is_refused(tmp_path):
  assert 'No such file' in refusal(tmp_path / 'gone.png')
  assert 'a folder' in refusal(tmp_path)
  (tmp_path / 'loop.png').symlink_to('loop.png')
  assert 'cannot be read' in refusal(tmp_path / 'loop.png')
  locked = tmp_path / 'locked.png'
  locked.write_bytes(png(3, 3, data=bytes(12)))
  locked.chmod(0)
  if os.geteuid():  # root may read everything
    assert 'Permission denied' in refusal(locked)


def test_a_pipe_that_nobody_writes_into_does_not_hang(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  lines = []
  reader = threading.Thread(
    target=lambda: lines.append(refusal(tmp_path / 'pipe.png')), daemon=True
  )
  reader.start()
  reader.join(5)
  assert lines == ['no regular file']


def test_a_line_stays_one_whatever_the_name(tmp_path):
  for name in ('a\nb.png', 'a\x1b[31m.png', os.fsdecode(b'\xff.png')):
    (tmp_path / name).write_bytes(b'text')
    with pytest.raises(SourceFault) as caught:
      image_file.read(str(tmp_path / name))
    assert str(caught.value).isprintable()


def test_reading_takes_no_jax_and_importing_takes_no_decoder():
  code = """
import sys
from dpjax.data.decode import image_file
heavy = {'PIL', 'pydicom', 'gdcm', 'jax', 'cv2'}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
  subprocess.run([sys.executable, '-c', code], check=True)
