"""What a file is by its content; whose error it is that something raises."""

import os
import threading
import time

import pytest
from PIL import Image

from dpjax.data.decode import formats
from dpjax.errors import SourceFault, UserError
from tests.data.decode.pictures import encoded, noise


def test_the_content_tells_the_format_whatever_the_name(tmp_path):
  picture = Image.fromarray(noise(4, 4))
  for format in ('PNG', 'JPEG', 'TIFF', 'BMP'):
    (tmp_path / 'a.txt').write_bytes(encoded(picture, format))
    assert formats.kind(tmp_path / 'a.txt') == format
  # The 128 bytes before it are free.
  (tmp_path / 'a.txt').write_bytes(b'II*\0' + bytes(124) + b'DICM')
  assert formats.kind(tmp_path / 'a.txt') == 'DICOM'
  for format in ('GIF', 'WebP'):  # not read, and not lost in silence
    (tmp_path / 'a.txt').write_bytes(encoded(picture, format))
    assert formats.kind(tmp_path / 'a.txt') == format
  for content in (b'', b'text', b'\x08\0 a text of more than sixteen bytes'):
    (tmp_path / 'a.txt').write_bytes(content)
    assert formats.kind(tmp_path / 'a.txt') is None
  os.mkfifo(tmp_path / 'pipe')
  for path in (tmp_path, tmp_path / 'gone', tmp_path / 'pipe', 'a\0'):
    assert formats.kind(path) is None


def test_a_format_that_is_not_read_is_named_with_what_to_do(tmp_path):
  for kind, suffix in (('WebP', '.png'), ('GIF', '.gif'), ('JPEG2000', '.jp2')):
    file = tmp_path / f'a{suffix}'
    file.write_bytes(encoded(Image.fromarray(noise(20, 30)), kind))
    with pytest.raises(SourceFault) as caught:
      formats.checked_kind(str(file))
    line = str(caught.value)
    assert line.startswith(f'holds a {kind[:4]}')
    assert line.endswith('which is not read; convert it to PNG')
    assert ('though it is named .png' in line) == (suffix == '.png')


def test_threads_that_silence_at_once_leave_standard_error_as_it_was():
  before = os.fstat(2)
  start = threading.Barrier(8)

  def silence():
    start.wait()
    for _ in range(50):
      with formats.silent():
        time.sleep(1e-5)

  threads = [threading.Thread(target=silence) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert os.path.samestat(before, os.fstat(2))


def test_what_is_not_installed_is_no_fault_of_the_file():
  with pytest.raises(UserError, match=r'^nothing of that name$') as caught:
    with formats.one_line('a.png'), formats.broken(ValueError):
      raise UserError('nothing of that name')
  assert not isinstance(caught.value, SourceFault)


def test_only_the_errors_that_a_library_is_known_for_are_faults():
  with pytest.raises(SourceFault, match=r'^broken \(no such chunk\)$'):
    with formats.broken(KeyError, SyntaxError):
      raise SyntaxError('no such chunk')
  with pytest.raises(SourceFault, match=r'^cut short'):
    with formats.broken(OSError):
      raise OSError('image file is truncated')
  with pytest.raises(SourceFault, match=r'^cannot be read: Is a directory$'):
    formats.opened(os.curdir)
  for error in (NameError('ours'), ValueError('ours')):
    with pytest.raises(type(error), match='ours') as caught:
      with formats.one_line('a.png'), formats.broken(KeyError, SyntaxError):
        raise error
    assert caught.value is error


def test_a_fault_gets_the_files_name_and_other_errors_none():
  with pytest.raises(SourceFault, match=r'^a\\n\.png: cut short$'):
    with formats.one_line('a\n.png'):
      raise SourceFault('cut short')
  with pytest.raises(SourceFault, match=r'^a\.png: takes more memory than'):
    with formats.one_line('a.png'):
      raise MemoryError
  with pytest.raises(BlockingIOError, match='busy'):
    with formats.one_line('a.png'):
      raise BlockingIOError(11, 'busy')
