"""What an image file is, by its content; and what both decoders share.

A decoder raises whatever it meets in a broken file. Which errors are its own,
each module says (`broken`), around the library's calls only: what our code
raises is our bug, and comes through.
"""

import contextlib
import logging
import os
import re
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from dpjax.errors import SourceFault, UserError, printable

# Checked before anything is decoded. The largest films are about 30 million.
MAX_PIXELS = 100_000_000

_BEGINNINGS = {
  b'\x89PNG\r\n\x1a\n': 'PNG',
  b'\xff\xd8\xff': 'JPEG',
  b'II*\0': 'TIFF',
  b'MM\0*': 'TIFF',
  b'II+\0': 'TIFF',  # of more than 4 GiB
  b'MM\0+': 'TIFF',
  b'BM': 'BMP',
  # Not read, but told from what is no image at all.
  b'GIF8': 'GIF',
  b'\0\0\0\x0cjP  ': 'JPEG 2000',
  b'\xff\x4f\xff\x51': 'JPEG 2000',
}
READ = ('PNG', 'JPEG', 'TIFF', 'BMP', 'DICOM')
# Value representations of DICOM's first elements (PS3.5 6.2).
_VRS = (b'UL', b'UI', b'CS', b'DA', b'TM', b'LO', b'SH', b'OB')
# What names say of the content. The last three formats are not read, but a set
# that has them must not lose them in silence.
SUFFIXES = {
  '.png': 'PNG',
  '.jpg': 'JPEG',
  '.jpeg': 'JPEG',
  '.jpe': 'JPEG',
  '.jfif': 'JPEG',
  '.tif': 'TIFF',
  '.tiff': 'TIFF',
  '.bmp': 'BMP',
  '.dcm': 'DICOM',
  '.dicom': 'DICOM',
  '.dic': 'DICOM',
  '.gif': 'GIF',
  '.webp': 'WebP',
  '.jp2': 'JPEG 2000',
}

_STDERR = threading.Lock()  # held while it leads nowhere


def kind(path: str | os.PathLike) -> str | None:
  """The format that a file begins like, whatever its name is.

  Args:
    path: the file.

  Returns:
    One of `READ`, or of those that are known and not read; None: none of
    them, or no file that can be opened.
  """
  try:
    return _format(_start(path))
  except SourceFault:
    return None


def checked_kind(path: str) -> str:
  """The format of a file by its content, which its suffix must not deny.

  Raises:
    SourceFault: it does, or the file has none of the formats.
  """
  start = _start(path)
  if not start:
    raise SourceFault('empty')
  format = _format(start)
  if format is None:
    raise SourceFault('no PNG, JPEG, TIFF, BMP or DICOM file')
  suffix = os.path.splitext(path)[1]
  if format not in READ:
    named = SUFFIXES.get(suffix.lower(), format) != format
    raise SourceFault(
      f'holds a {format}'
      + f' though it is named {suffix}' * named
      + ', which is not read; convert it to PNG'
    )
  if SUFFIXES.get(suffix.lower(), format) != format:
    raise SourceFault(f'holds a {format} but is named {suffix}; rename it')
  return format


def opened(path: str) -> BinaryIO:
  """The file, to be read.

  Raises:
    SourceFault: the system does not let us.
  """
  with broken(OSError):
    return open(path, 'rb')


def without_strays(levels: np.ndarray, counts: np.ndarray) -> float:
  """The largest level of an image that is not a stray or a marker.

  Levels above it are few, at most one pixel in a thousand, or just one, as of a
  burnt-in letter; and they alone would take three quarters of the range, so
  that all the rest came out nearly black.

  Args:
    levels: (N,) those that the image has, ascending.
    counts: (N,) pixels of each.
  """
  above = counts[::-1].cumsum()[::-1]
  many = int(np.count_nonzero(above * 1000 > above[0]))
  if many < len(levels):  # up to the widest gap
    many += int(np.argmax(np.diff(levels[many - 1 :])))
  for kept in (many, len(levels) - 1):
    # A picture of a few levels is no radiograph: nothing is a stray in it.
    if 16 <= kept < len(levels):
      rest, whole = levels[kept - 1] - levels[0], levels[-1] - levels[0]
      if whole > 4 * rest:
        return levels[kept - 1]
  return levels[-1]


def check_size(width: int, height: int) -> None:
  """Refuses an image that is too large to decode, or empty.

  Raises:
    SourceFault: it is.
  """
  if width < 1 or height < 1:
    raise SourceFault(f'{width} x {height} pixels; wanted at least one')
  if width * height > MAX_PIXELS:
    raise SourceFault(
      f'{width} x {height} pixels; wanted at most {MAX_PIXELS:,} in all'
    )


@contextlib.contextmanager
def one_line(path: str) -> Iterator[None]:
  """Tells a fault that the block finds in one line, with the file's name.

  In the block warnings are errors, and what the libraries log is muted.

  Raises:
    SourceFault: '{path}: {reason}'.
  """
  loggers = [logging.getLogger(n) for n in ('PIL', 'pydicom', 'pylibjpeg')]
  levels = [logger.level for logger in loggers]
  try:
    for logger in loggers:
      logger.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      yield
  except SourceFault as fault:
    # Names of files, and texts in them, may hold anything.
    raise SourceFault(printable(f'{path}: {fault}')) from fault
  except MemoryError as error:
    reason = 'takes more memory than there is'
    raise SourceFault(printable(f'{path}: {reason}')) from error
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)


@contextlib.contextmanager
def broken(*errors: type[Exception]) -> Iterator[None]:
  """Takes what a library raises of a broken file for a fault of the file.

  For a block, or to decorate a function, of the library's calls alone.

  Args:
    *errors: the library's.

  Raises:
    SourceFault: the reason.
  """
  try:
    yield
  except UserError:
    raise
  except errors as error:
    if isinstance(error, OSError) and error.strerror:
      raise SourceFault(f'cannot be read: {error.strerror}') from error
    raise SourceFault(reason(str(error) or type(error).__name__)) from error


def reason(text: str) -> str:
  """What a library says of a broken file, as the reason of a fault."""
  said = ' '.join(text.split())[:200]
  cut = re.search('truncated|less than expected', said, re.IGNORECASE)
  return f'{"cut short" if cut else "broken"} ({said})'


@contextlib.contextmanager
def silent() -> Iterator[None]:
  """Keeps C libraries from the standard error of the process for a block.

  What is more than a warning an exception says again.
  """
  # A second thread would take the first one's nowhere for what is to be kept.
  with _STDERR:
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
      os.dup2(nowhere, 2)
      yield
    finally:
      os.dup2(kept, 2)
      os.close(nowhere)
      os.close(kept)


def _start(path):
  """The bytes that tell the format of a file."""
  with broken(OSError, ValueError):  # a name may hold a NUL
    mode = os.stat(path).st_mode
  if stat.S_ISDIR(mode):
    raise SourceFault('a folder; wanted an image file')
  if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
    raise SourceFault('no regular file')
  with opened(path) as file, broken(OSError):
    return file.read(132)


def _format(start):
  if start[128:] == b'DICM':  # first: what comes before is free, even a TIFF
    return 'DICOM'
  for begin, format in _BEGINNINGS.items():
    if start.startswith(begin):
      return format
  if start[:4] == b'RIFF' and start[8:12] == b'WEBP':
    return 'WebP'
  return 'DICOM' if _is_bare(start) else None


def is_bare(path: str) -> bool:
  """Whether a DICOM file has no preamble, as files from before 1996.

  Raises:
    SourceFault: it cannot be read.
  """
  return _start(path)[128:] != b'DICM'


def _is_bare(start):
  """Whether a file begins with an element that a DICOM data set begins with.

  Group 2 is the file's own header, 8 the first of an image. Their first
  elements are short.
  """
  if len(start) < 16:
    return False
  order = '>' if start[0] == 0 else '<'
  group, element = struct.unpack(f'{order}2H', start[:4])
  if group not in (2, 8) or element > 0x60:
    return False
  (length,) = struct.unpack(f'{order}L', start[4:8])
  return start[4:6] in _VRS or (length % 2 == 0 and length <= 256)
