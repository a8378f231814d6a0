"""PNG, JPEG, TIFF and BMP files, decoded by Pillow."""

import contextlib
import dataclasses
import os
import struct
import warnings
import zlib
from typing import Any, BinaryIO

import numpy as np

from dpjax.data.decode import formats
from dpjax.errors import SourceFault

# What Pillow raises of broken files: its plugins check little of what they
# read, so a field that lies becomes an index, a key or a unit that is none.
_ERRORS = (EOFError, IndexError, KeyError, OSError, OverflowError, SyntaxError,
           TypeError, ValueError, Warning, ZeroDivisionError, struct.error,
           zlib.error)  # fmt: skip
_pillow = formats.broken(*_ERRORS)

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


@dataclasses.dataclass(frozen=True)
class _Decoded:
  """What Pillow makes of a file.

  Attributes:
    levels: (H, W), of any type.
    alpha: (H, W) uint8, or None: opaque.
    turn: the EXIF orientation that is still to be obeyed, or None.
    white_is_0: the smallest level is white.
  """

  levels: np.ndarray
  alpha: np.ndarray | None
  turn: int | None
  white_is_0: bool


def size(path: str) -> tuple[int, int] | None:
  """Width and height as the file stores them; decodes nothing.

  Args:
    path: the file.

  Returns:
    None where it is DICOM by its name, or cannot be read.
  """
  suffix = os.path.splitext(path)[1].lower()
  if formats.SUFFIXES.get(suffix, 'DICOM') == 'DICOM':
    return None
  try:
    with formats.opened(path) as file:
      return _opened(file, formats.checked_kind(path)).size
  except SourceFault:
    return None


def read(path: str, format: str) -> np.ndarray:
  """The grey levels of a file, turned upright.

  8 bits stay as they are. Of 16 bits those are kept that matter: all levels are
  shifted right by what brings the largest from 10, 12, 14 or 16 bits to 8, as
  many files hold 12 bits in 16. Stray and marker levels far above the others
  do not count as the largest, and come out white. Floating point is scaled by
  its own range. Colours become their luma (ITU-R BT.601) and transparent parts
  black, as air is. An EXIF orientation is obeyed, unless its block is broken.

  Args:
    path: the file.
    format: its content's: 'PNG', 'JPEG', 'TIFF' or 'BMP'.

  Returns:
    (H, W) uint8, 0 black.

  Raises:
    SourceFault: it is no whole image of one frame of at most
      `formats.MAX_PIXELS`: the reason.
  """
  with formats.opened(path) as file:
    image = _opened(file, format)
    formats.check_size(*image.size)
    frames = _frames(image)
    if frames != 1:
      raise SourceFault(f'{frames} frames; wanted one')
    if _is_deep_colour(image):
      raise SourceFault(
        '16 bits a channel in colour or with alpha, of which half would be'
        ' lost; save it as 16 bits of grey, or with 8 bits a channel'
      )
    decoded = _decoded(image, format)
  grey = _grey(decoded)
  if decoded.turn in _UPRIGHT:
    grey = np.ascontiguousarray(_UPRIGHT[decoded.turn](grey))
  return grey


@_pillow
def _opened(file: BinaryIO, format: str) -> Any:
  """The Pillow image of a file; its pixels are not decoded yet."""
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

  # The checker knows no base that is chosen as it runs.
  class Decoder(decoder):  # type: ignore[valid-type,misc]
    # Pillow reads all of EXIF as it opens a JPEG and as it loads a TIFF, and a
    # broken block would take a whole image with it.
    def getexif(self):
      exif = Image.Exif()
      with contextlib.suppress(*_ERRORS), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        exif[_ORIENTATION] = super().getexif().get(_ORIENTATION)
      return exif

  # Of a path Pillow would map the file: a TIFF on its side comes out garbled.
  return Decoder(file)


@_pillow
def _frames(image):
  return image.n_frames if getattr(image, 'is_animated', False) else 1


@_pillow
def _is_deep_colour(image):
  """Whether Pillow drops the lower 8 bits, which may be all there is."""
  return ';16' in str(image.tile) and image.mode[0] != 'I'


@_pillow
def _decoded(image, format):
  white_is_0 = format == 'TIFF' and image.tag_v2.get(_PHOTOMETRIC) == 0
  with formats.silent() if format == 'TIFF' else contextlib.nullcontext():
    image.load()
  # Pillow turns a TIFF by itself, and the others not.
  turn = None if format == 'TIFF' else image.getexif().get(_ORIENTATION)
  alpha = None
  if image.mode in ('I', 'I;16', 'I;16B', 'F'):
    levels = np.asarray(image)
    if 'transparency' in image.info and image.mode != 'F':
      levels = np.where(levels == image.info['transparency'], 0, levels)
  else:
    if image.has_transparency_data:
      image = image.convert('RGBA')
      alpha = np.asarray(image.getchannel('A'))
    levels = np.asarray(image if image.mode == 'L' else image.convert('L'))
    white_is_0 = False  # Pillow sees to it in 1 and 8 bits.
  return _Decoded(levels, alpha, turn, white_is_0)


def _grey(decoded):
  """(H, W) uint8 of levels of any type."""
  levels = decoded.levels
  if np.issubdtype(levels.dtype, np.floating):
    grey = _stretched(levels)
  else:
    grey = levels if levels.dtype == np.uint8 else _eight_bits(levels)
  if decoded.alpha is not None:
    if not decoded.alpha.any():
      raise SourceFault(
        'transparent throughout (its alpha is 0 everywhere); save it without'
        ' alpha'
      )
    grey = (grey.astype(np.uint16) * decoded.alpha + 127) // 255
  return 255 - grey if decoded.white_is_0 else grey.astype(np.uint8, copy=False)


def _eight_bits(deep):
  low, high = int(deep.min()), int(deep.max())
  if low < 0 or high >= 1 << 16:
    raise SourceFault(f'grey levels {low} to {high}; wanted 0 to 65535')
  bits = _bits(high)
  if bits > 8 and (top := _without_strays(deep, high, 1 << (bits - 2))) < high:
    bits, deep = _bits(top), np.minimum(deep, (1 << _bits(top)) - 1)
  return (deep >> (bits - 8)).astype(np.uint8)


def _bits(high):
  return next(bits for bits in (8, 10, 12, 14, 16) if high < 1 << bits)


def _without_strays(deep, high, lower):
  """The largest level below `lower` if those above are strays, else `high`.

  As formats.without_strays has it, without a count of each level: of a
  million pixels that takes as long as decoding them.
  """
  above = np.count_nonzero(deep >= lower)
  if above * 1000 > deep.size and above != np.count_nonzero(deep == high):
    return high
  rest = deep[deep < lower]
  # A picture of a few levels is no radiograph: nothing is a stray in it.
  return int(rest.max()) if len(np.unique(rest)) >= 16 else high


def _stretched(levels):
  low, high = np.float64(levels.min()), np.float64(levels.max())
  if not (np.isfinite(low) and np.isfinite(high)):
    raise SourceFault('grey levels that are not finite')
  scale = 255 / (high - low) if high > low else 0.0
  return np.rint((levels - low) * scale).astype(np.uint8)
