"""The coded pixel data of a DICOM file: who decodes it, and what is refused.

pydicom calls the decoders. One of them, GDCM, works in a process of its own.
"""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dpjax.data.decode import apart, formats
from dpjax.errors import SourceFault, UserError

# What pydicom raises of broken files beside its own errors: as it parses them,
# as it is asked for an element, and as a decoder gives up (RuntimeError, for
# whatever the decoder raises).
_ERRORS = (AttributeError, EOFError, IndexError, KeyError, OSError,
           OverflowError, RuntimeError, TypeError, ValueError, struct.error,
           zlib.error)  # fmt: skip

INSTALL = "takes the extra dicom: pip install -e '.[dicom]'"

# One decoder for each transfer syntax. pydicom would try all there are, which
# differ in levels and in what they take for whole. And broken data ends the
# process in GDCM's JPEG-LS and in pylibjpeg's RLE.
_DECODERS = {
  'JPEGBaseline8Bit': 'pillow',
  'JPEGExtended12Bit': 'pillow',  # of 8 bits only
  'JPEGLossless': 'gdcm',
  'JPEGLosslessSV1': 'gdcm',
  'JPEGLSLossless': 'pyjpegls',
  'JPEGLSNearLossless': 'pyjpegls',
  'JPEG2000Lossless': 'pylibjpeg',
  'JPEG2000': 'pylibjpeg',
  'HTJ2KLossless': 'pylibjpeg',
  'HTJ2KLosslessRPCL': 'pylibjpeg',
  'HTJ2K': 'pylibjpeg',
  'RLELossless': 'pydicom',
}
# The begin of a JPEG 2000 code, which may lie in the boxes of a JP2 file.
_SIZ = b'\xff\x4f\xff\x51'
# Markers of a JPEG or JPEG-LS frame header: SOF0..SOF15 without DHT, JPG and
# DAC, and SOF55.
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


@contextlib.contextmanager
def asking_pydicom() -> Iterator[None]:
  """Around calls of pydicom's: its errors are faults of the file."""
  from pydicom import errors

  own = errors.InvalidDicomError, errors.BytesLengthException
  with formats.broken(*own, *_ERRORS):
    yield


def stored(dataset: Any) -> tuple[np.ndarray, str]:
  """The stored values of a dataset's one frame.

  Args:
    dataset: of pydicom; Rows, Columns, BitsAllocated, BitsStored and PixelData
      are there.

  Returns:
    (H, W) or (H, W, 3), and how they are to be understood: the photometric
    interpretation.

  Raises:
    SourceFault: they cannot be decoded: the reason.
    UserError: the decoder is not installed: one line.
  """
  syntax = _syntax(dataset)
  plugin = ''
  if syntax.is_encapsulated:
    plugin = _plugin(syntax)
    if syntax.keyword == 'JPEGExtended12Bit' and dataset.BitsStored > 8:
      raise SourceFault(
        'JPEG Extended of more than 8 bits, which cannot be decoded'
      )
    if syntax.keyword != 'RLELossless':
      _check_coded(dataset)
  options = _options(dataset)
  try:
    if plugin == 'gdcm':
      decoded = apart.call(_decode, dataset.PixelData, syntax, plugin, options)
    else:
      with formats.silent():
        decoded = _decode(dataset, syntax, plugin, options)
  except apart.Died as error:
    raise SourceFault('broken (its decoder gave up)') from error
  return _understood(dataset, syntax, *decoded)


def _understood(dataset, syntax, values, photometric):
  """What the header means, where it and the code are known to disagree."""
  if values.ndim == 3:
    if photometric == 'RGB' and syntax.keyword in _LOSSY and _is_ycbcr(values):
      photometric = 'YBR_FULL'
    return values, photometric
  if 'JPEG2000' in syntax.keyword or 'HTJ2K' in syntax.keyword:
    values = _resigned(dataset, values)
  return _within_bits(dataset, values), photometric


_LOSSY = ('JPEGBaseline8Bit', 'JPEGExtended12Bit')


def _is_ycbcr(values):
  """Whether the two last channels are the chroma of a grey picture.

  Programs that convert to grey JPEG leave "RGB" in the header.
  """
  chroma, luma = values[..., 1:].astype(int), values[..., 0]
  return abs(chroma - 128).max() <= 16 and int(luma.max()) - luma.min() > 64


def _within_bits(dataset, values):
  """Stored values (H, W) in the BitsStored bits below and with HighBit.

  Bits above may hold overlays, bits below them too (PS3.5 8.1.1). pydicom
  drops those above HighBit, not of JPEG 2000 though.
  """
  bits, high = dataset.BitsStored, _high_bit(dataset)
  signed = np.issubdtype(values.dtype, np.signedinteger)
  low, top = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
  if low <= values.min() and values.max() < top:
    return values  # whatever HighBit says
  shifted = values >> (high + 1 - bits)
  masked = shifted & np.array((1 << bits) - 1, values.dtype)
  if signed:
    masked = np.where(masked >= top, masked - 2 * top, masked)
  # Where BitsStored is too low, dropping bits would tear the picture.
  if _roughness(masked) > _roughness(values):
    return values
  return masked.astype(values.dtype)


def _high_bit(dataset):
  """HighBit, if it is above what BitsStored says: left-justified values."""
  with asking_pydicom():
    high = dataset.get('HighBit')
  low = dataset.BitsStored - 1
  is_one = isinstance(high, int) and low < high < dataset.BitsAllocated
  return high if is_one else low


def _resigned(dataset, values):
  """Values of a JPEG 2000 code whose sign the header has otherwise.

  pydicom takes the code's bits for the header's numbers. Of a picture that was
  shifted to be signed, as its writer's library wants it, and of one that is
  not signed at all, the halves then change places: a tear at the middle level.
  """
  code = _coded(dataset)[0]
  depth = code[code.find(_SIZ) + 42]  # the sign, and the bits less 1
  signed, bits = depth >> 7, (depth & 127) + 1
  if signed == dataset.PixelRepresentation or bits > 16:
    return values
  bits_only = values.astype(np.int32) & (1 << bits) - 1
  # Signed code: less the middle level. Unsigned: as it is.
  other = bits_only ^ (1 << bits - 1) if signed else bits_only
  return other if _roughness(other) < _roughness(values) else values


def _roughness(values):
  """Sum of the steps between neighbours."""
  values = values.astype(np.int64)
  return sum(int(abs(np.diff(values, axis=axis)).sum()) for axis in (0, 1))


def _syntax(dataset):
  """The transfer syntax, if it is one of images that we can decode."""
  from pydicom import pixels, uid

  with asking_pydicom():
    syntax = dataset.file_meta.get('TransferSyntaxUID')
  if not isinstance(syntax, uid.UID) or not syntax:
    raise SourceFault('no TransferSyntaxUID')
  try:
    pixels.get_decoder(syntax)
  except NotImplementedError:
    raise SourceFault(
      f'its transfer syntax is {syntax.name}, which cannot be decoded'
    ) from None
  return syntax


def _plugin(syntax):
  """Who decodes the syntax."""
  from pydicom import pixels

  plugin = _DECODERS.get(syntax.keyword)
  if plugin is None:
    raise SourceFault(
      f'its transfer syntax is {syntax.name}, which cannot be decoded'
    )
  if plugin not in pixels.get_decoder(syntax).available_plugins:
    raise UserError(f'a DICOM file in {syntax.name} {INSTALL}')
  return plugin


@asking_pydicom()
def _options(dataset):
  from pydicom import pixels

  options = pixels.utils.as_pixel_options(dataset, number_of_frames=1)
  # All up to HighBit: `_within_bits` takes what is meant.
  return options | {
    'bits_stored': _high_bit(dataset) + 1,
    'allow_excess_frames': False,
  }


@asking_pydicom()
def _decode(source, syntax, plugin, options):
  """Has a dataset, or its PixelData, decoded. A call of pydicom's, no more."""
  from pydicom import pixels

  try:
    stored, properties = pixels.get_decoder(syntax).as_array(
      source,
      index=0,
      raw=True,
      decoding_plugin=plugin,
      **options,
    )
  except RuntimeError as error:  # names the decoder, then what it said
    said = str(error).split(f'{plugin}: ')[-1]
    raise SourceFault(formats.reason(said)) from error
  return stored, properties['photometric_interpretation']


def _check_coded(dataset):
  """Refuses a JPEG or JPEG 2000 code of another size than the header's.

  A decoder goes by the code, whose size nothing else has checked.
  """
  code, *wanted = _coded(dataset)
  coded = _coded_size(code)
  if coded != tuple(wanted):
    raise SourceFault(
      'pixel data not coded as its transfer syntax says, or cut short'
      if coded is None
      else '{} x {} x {} pixels are coded'.format(*coded)
      + ' where the header says {} x {} x {}'.format(*wanted)
    )
  # Their end marker, with padding behind it. Not all decoders miss it.
  if b'\xff\xd9' not in code[-64:]:
    raise SourceFault('cut short: its code has no end')


@asking_pydicom()
def _coded(dataset):
  """The code of the frame, and the columns, rows and samples it should have."""
  from pydicom import encaps

  code = encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
  return code, dataset.Columns, dataset.Rows, dataset.SamplesPerPixel


def _coded_size(code):
  """(width, height, channels) of a JPEG, JPEG-LS or JPEG 2000 code, or None."""
  if code.startswith(b'\0\0\0\x0cjP  '):
    code = code[max(code.find(_SIZ), 0) :]
  if code.startswith(_SIZ) and len(code) >= 42:
    right, bottom, left, top = struct.unpack('>4I', code[8:24])
    return right - left, bottom - top, *struct.unpack('>H', code[40:42])
  at = 2 if code.startswith(b'\xff\xd8') else len(code)
  while at + 10 <= len(code) and code[at] == 0xFF:
    marker = code[at + 1]
    if marker in _FRAME_HEADERS:
      height, width, channels = struct.unpack('>2HB', code[at + 5 : at + 10])
      return width, height, channels
    # Fill bytes may stand before a marker; all others here have a length.
    at += 1 if marker == 0xFF else 2 + code[at + 2] * 256 + code[at + 3]
  return None
