"""A small source of image files, and the set that is made of it."""

import builtins
import hashlib
import pathlib

import cv2
import numpy as np
import pytest

from dpjax.data.decode import image_file
from dpjax.data.prepare import build
from dpjax.data.sources import files, tables
from dpjax.errors import SourceFault, UserError

SIZE = 32
# One shard of the default length would hold every set of these tests.
SHARD = 8


def make_records(folder, count=60):
  """Image files of differing sizes; 0 to 2 boxes; two exams a patient."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  records = []
  for i in range(count):
    height, width = (SIZE, SIZE) if i % 5 == 0 else rng.integers(20, 90, 2)
    pixels = rng.integers(0, 256, (height, width)).astype(np.uint8)
    # PNG keeps every grey level; JPEG is what sources mostly hold.
    file = folder / f'{i}.{"png" if i % 3 else "jpg"}'
    cv2.imwrite(str(file), pixels)
    boxes = ((1.0, 2.0, 11.0, 17.0), (12.0, 3.0, 19.0, 20.0))[: i % 3]
    records.append(
      files.record(
        file, f'exam {i}', boxes=boxes, group=f'p{i // 2}', label=i % 3
      )
    )
  return records


def prepare(records, path, *, settings=None, **changes):
  """build.build of `records`, at SIZE; `settings` are those of it."""
  arguments = {
    'name': 'tiny',
    'provenance': {'layout': 'test'},
    'class_names': ('0', '1', '2'),
    'workers': 1,
    'progress': False,
  }
  return build.build(
    records,
    path,
    settings=build.Settings(**{'size': SIZE, **(settings or {})}),
    **{**arguments, **changes},
  )


def refusal(read, *arguments, **options):
  """The one line that a call of a reader ends in."""
  with pytest.raises(UserError) as caught:
    read(*arguments, **options)
  message = str(caught.value)
  assert message and message.isprintable()
  return message


def image_refusal(path):
  """The one line of a fault that reading an image file ends in."""
  with pytest.raises(SourceFault) as caught:
    image_file.read(str(path))
  line = str(caught.value)
  assert isinstance(caught.value, SourceFault)
  assert line.startswith(f'{path}: ') and '\n' not in line and len(line) < 400
  return line.removeprefix(f'{path}: ')


def one_line(caught):
  """The message of a caught error, which is one line."""
  message = str(caught.value)
  assert message and '\n' not in message
  return message


def digest(pixels):
  """As a set records it of a stored image."""
  return hashlib.sha256(pixels.tobytes()).hexdigest()


def refused(read, source, on_error='fail', **options):
  """The one line that reading `source` ends in, by one of the readers."""
  return refusal(read, source, tables.Faults(on_error), **options)


def skipped(read, source):
  """Ids that a reader reads with on_error=skip, and the faults."""
  faults = tables.Faults('skip')
  return [record.id for record in read(source, faults)], faults.found


def suffixes_opened(monkeypatch):
  """A list to which every file that is opened adds its suffix."""
  opened = []
  real = builtins.open

  def spy(file, *args, **options):
    opened.append(pathlib.Path(file).suffix)
    return real(file, *args, **options)

  monkeypatch.setattr(builtins, 'open', spy)
  return opened
