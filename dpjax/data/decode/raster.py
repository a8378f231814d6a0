"""An image file as 8-bit grey levels: PNG, JPEG, TIFF, BMP or DICOM.

Pillow and pydicom are imported when the first file is read: training reads
prepared sets and needs neither.
"""

import contextlib
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator

import numpy as np

from dpjax.errors import SourceFault, printable

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
}
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

_ORIENTATION, _PHOTOMETRIC = 0x112, 0x106  # tags of EXIF and TIFF
_UPRIGHT = {
  2: lambda stored: stored[:, ::-1],
  3: lambda stored: stored[::-1, ::-1],
  4: lambda stored: stored[::-1],
  5: lambda stored: stored.T,
  6: lambda stored: stored[::-1].T,
  7: lambda stored: stored[::-1, ::-1].T,
  8: lambda stored: stored[:, ::-1].T,
}

_STDERR = threading.Lock()  # held while it leads nowhere


def read(path: str) -> np.ndarray:
  """The grey levels of an image file, turned upright.

  What a file is, its content says. 8 bits stay as they are. Of 16 bits those
  are kept that matter: all levels are shifted right by what brings the largest
  from 10, 12, 14 or 16 bits to 8, as many files hold 12 bits in 16. Floating
  point is scaled by its own range. Colours become their luma (ITU-R BT.601)
  and transparent parts black, as air is. An EXIF orientation is obeyed, unless
  its block is broken.

  Args:
    path: the file.

  Returns:
    (H, W) uint8, 0 black.

  Raises:
    SourceFault: it is no whole image of these formats, has another format's
      suffix, several frames or more than `MAX_PIXELS`: one line.
    ImportError: it is a DICOM file, and what that takes is not installed.
  """
  with one_line(path):
    format = _checked_kind(path)
    if format != 'DICOM':
      return _decoded(path, format)
  from dpjax.data.decode import dicom

  return dicom.read(path)


def header(path: str) -> dict[str, str]:
  """What a file says of its patient: `dicom.header`; {} if it is no DICOM.

  Raises:
    SourceFault, ImportError: as in `read`.
  """
  with one_line(path):
    if _checked_kind(path) != 'DICOM':
      return {}
  from dpjax.data.decode import dicom

  return dicom.header(path)


def kind(path: str | os.PathLike) -> str | None:
  """The format that a file begins like, whatever its name is.

  Args:
    path: the file.

  Returns:
    'PNG', 'JPEG', 'TIFF', 'BMP', 'DICOM', or None: none of them, or no file
    that can be read.
  """
  try:
    return _format(_start(path))
  except (OSError, ValueError):
    return None


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
  """Turns what the block raises or warns of into one line; mutes its logging.

  Raises:
    SourceFault: '{path}: {reason}'.
    ImportError: as the block raises it: no fault of the file.
  """
  loggers = [logging.getLogger(n) for n in ('PIL', 'pydicom', 'pylibjpeg')]
  levels = [logger.level for logger in loggers]
  try:
    for logger in loggers:
      logger.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      yield
  except ImportError:
    raise
  except Exception as error:
    # Names of files, texts in them and libraries may say anything.
    line = printable(f'{path}: {_reason(error)}')
    raise SourceFault(line) from error
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)


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


def _reason(error):
  if isinstance(error, MemoryError):
    return 'takes more memory than there is'
  if isinstance(error, OSError) and error.strerror:
    return f'cannot be read: {error.strerror}'
  said = ' '.join(str(error).split())[:200] or type(error).__name__
  if isinstance(error, SourceFault):
    return said
  cut = re.search('truncated|less than expected', said, re.IGNORECASE)
  return f'{"cut short" if cut else "broken"} ({said})'


def _start(path):
  """The bytes that tell the format of a file."""
  mode = os.stat(path).st_mode
  if stat.S_ISDIR(mode):
    raise SourceFault('a folder; wanted an image file')
  if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
    raise SourceFault('no regular file')
  with open(path, 'rb') as file:
    return file.read(132)


def _format(start):
  if start[128:] == b'DICM':  # first: what comes before is free, even a TIFF
    return 'DICOM'
  formats = (f for begin, f in _BEGINNINGS.items() if start.startswith(begin))
  return next(formats, None)


def _checked_kind(path):
  """The format of a file by its content, which its suffix must not deny."""
  start = _start(path)
  if not start:
    raise SourceFault('empty')
  format = _format(start)
  if format is None:
    raise SourceFault('no PNG, JPEG, TIFF, BMP or DICOM file')
  suffix = os.path.splitext(path)[1]
  if SUFFIXES.get(suffix.lower(), format) != format:
    raise SourceFault(f'holds a {format} but is named {suffix}; rename it')
  return format


def _decoded(path, format):
  from PIL import Image
  from PIL.BmpImagePlugin import BmpImageFile
  from PIL.JpegImagePlugin import JpegImageFile
  from PIL.PngImagePlugin import PngImageFile
  from PIL.TiffImagePlugin import TiffImageFile

  # Image.open would try other formats too, and has a limit of its own, of which
  # TIFF warns all the same.
  warnings.simplefilter('ignore', Image.DecompressionBombWarning)
  decoder = {
    'PNG': PngImageFile,
    'JPEG': JpegImageFile,
    'TIFF': TiffImageFile,
    'BMP': BmpImageFile,
  }[format]

  class Decoder(decoder):
    # Pillow reads all of EXIF as it opens a JPEG and as it loads a TIFF, and a
    # broken block would take a whole image with it.
    def getexif(self):
      exif = Image.Exif()
      with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        exif[_ORIENTATION] = super().getexif().get(_ORIENTATION)
      return exif

  # Of a path Pillow would map the file: a TIFF on its side comes out garbled.
  with open(path, 'rb') as file, Decoder(file) as opened:
    check_size(*opened.size)
    if getattr(opened, 'is_animated', False):
      raise SourceFault(f'{opened.n_frames} frames; wanted one')
    deep_colour = ';16' in str(opened.tile) and opened.mode[0] != 'I'
    if deep_colour:  # Pillow drops the lower 8 bits, which may be all there is
      raise SourceFault('16 bits a channel in colour or with alpha; wanted 8')
    white_is_0 = format == 'TIFF' and opened.tag_v2.get(_PHOTOMETRIC) == 0
    with silent() if format == 'TIFF' else contextlib.nullcontext():
      opened.load()
    # Pillow turns a TIFF by itself, and the others not.
    turn = 1 if format == 'TIFF' else opened.getexif().get(_ORIENTATION)
    grey = _grey(opened, white_is_0)
  if turn in _UPRIGHT:
    grey = np.ascontiguousarray(_UPRIGHT[turn](grey))
  return grey


def _grey(opened, white_is_0):
  """(H, W) uint8 of a Pillow image of any mode."""
  if opened.mode in ('I', 'I;16', 'I;16B'):
    deep = np.asarray(opened)
    if 'transparency' in opened.info:
      deep = np.where(deep == opened.info['transparency'], 0, deep)
    grey = _eight_bits(deep)
    # Pillow sees to it in 1 and 8 bits only.
    return 255 - grey if white_is_0 else grey
  if opened.mode == 'F':
    return _stretched(np.asarray(opened))
  if opened.has_transparency_data:
    opened = opened.convert('RGBA')
    grey = np.asarray(opened.convert('L')).astype(np.uint16)
    alpha = np.asarray(opened.getchannel('A'))
    return ((grey * alpha + 127) // 255).astype(np.uint8)
  return np.asarray(opened if opened.mode == 'L' else opened.convert('L'))


def _eight_bits(deep):
  low, high = int(deep.min()), int(deep.max())
  if low < 0 or high >= 1 << 16:
    raise SourceFault(f'grey levels {low} to {high}; wanted 0 to 65535')
  bits = next(bits for bits in (8, 10, 12, 14, 16) if high < 1 << bits)
  return (deep >> (bits - 8)).astype(np.uint8)


def _stretched(levels):
  low, high = np.float64(levels.min()), np.float64(levels.max())
  if not (np.isfinite(low) and np.isfinite(high)):
    raise SourceFault('grey levels that are not finite')
  scale = 255 / (high - low) if high > low else 0.0
  return np.rint((levels - low) * scale).astype(np.uint8)
