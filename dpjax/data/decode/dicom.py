"""A DICOM file: its grey levels, and the little of its header that is kept.

PS3.3 and PS3.5 are parts of the DICOM standard, 2024 edition. pydicom finds the
elements and calls the decoders; the grey scale is computed here.
"""

import contextlib
import faulthandler
import io
import os
import resource
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np

from dpjax.data import radiograph
from dpjax.data.decode import raster
from dpjax.errors import SourceFault, UserError

# Of a file, and of a deflated file's content. 16 bits a pixel of the largest
# image fit.
MAX_BYTES = 1 << 28

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
# Markers of a JPEG or JPEG-LS frame header: SOF0..SOF15 without DHT, JPG and
# DAC, and SOF55.
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}

# Defined terms of ViewPosition (PS3.3 C.8.1.1). Any other text may hold a name.
_VIEWS = ('AP', 'PA', 'LL', 'RL', 'RLD', 'LLD', 'RLO', 'LLO')

_INSTALL = "takes the extra dicom: pip install -e '.[dicom]'"


def read(path: str) -> np.ndarray:
  """The grey levels of a DICOM file, as a viewer would first show them.

  Stored values go through the modality LUT or rescale, then through the VOI LUT
  or the first window (PS3.3 C.11.1, C.11.2); what comes out fills 0..255, and
  MONOCHROME1 is turned over. Without VOI LUT and window, up to 8 bits stored
  fill 0..255 by the range of those bits, so that 8 bits stay as they are; more
  bits, which are seldom all in use, by the smallest and the largest level.
  Padding takes no part in it and is 0. Colours become their luma.

  Args:
    path: the file.

  Returns:
    (H, W) uint8, 0 black.

  Raises:
    SourceFault: it is no whole image of one frame with at most 16 bits and
      `image.MAX_PIXELS`: one line.
    ImportError: pydicom or the decoder is not installed: one line.
  """
  with _quiet(path):
    dataset = _dataset(path)
    _check(dataset)
    stored, photometric = _stored(dataset)
    if stored.ndim == 3:
      is_luma = photometric.startswith('YBR')
      stored = stored[..., 0] if is_luma else _luma(*np.moveaxis(stored, 2, 0))
    signed = np.issubdtype(stored.dtype, np.signedinteger)
    bits = int(dataset.BitsStored)
    first = -(1 << bits - 1) if signed else 0
    # A table of all levels: there are 65,536 at most, and more pixels.
    first = min(first, int(stored.min()))
    last = max(first + (1 << bits) - 1, int(stored.max()))
    values, index = np.arange(first, last + 1), stored - np.int32(first)
    if photometric == 'PALETTE COLOR':
      table = _palette(dataset, values)
    elif photometric.startswith('MONOCHROME'):
      table = _grey_scale(dataset, values, index)
    else:
      table = _spread(values, 0, (1 << bits) - 1)
    return np.take(table, index)


def header(path: str) -> dict[str, str]:
  """The patient and what scores are split by, of a DICOM file.

  Args:
    path: the file.

  Returns:
    Those that the file states of: 'patient' (PatientID), to group by and not to
    be stored; 'age' (`radiograph.age`); 'sex', F, M or O; 'view'
    (ViewPosition), one of the standard's terms.

  Raises:
    SourceFault: the header is broken: one line.
    ImportError: pydicom is not installed: one line.
  """
  with _quiet(path):
    dataset = _dataset(
      path,
      stop_before_pixels=True,
      specific_tags=['PatientID', 'PatientAge', 'PatientSex', 'ViewPosition'],
    )

    def text(keyword):
      value = dataset.get(keyword)
      return '' if value is None else ' '.join(str(value).split())

    found = {
      'patient': text('PatientID'),
      'age': radiograph.age(text('PatientAge')),
      'sex': text('PatientSex').upper(),
      'view': text('ViewPosition').upper(),
    }
  if found['sex'] not in ('F', 'M', 'O'):
    found['sex'] = ''
  if found['view'] not in _VIEWS:
    found['view'] = ''
  return {name: value for name, value in found.items() if value}


@contextlib.contextmanager
def _quiet(path: str) -> Iterator[None]:
  """`image.one_line`, with no warning a fault.

  Public sets are full of harmless offences against the standard.
  """
  with raster.one_line(path):
    warnings.simplefilter('ignore')
    yield


def _dataset(path, **reading):
  try:
    import pydicom
  except ImportError:
    raise ImportError(f'a DICOM file {_INSTALL}') from None
  with open(path, 'rb') as file:
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
      raise SourceFault(f'{size:,} bytes; wanted at most {MAX_BYTES:,}')
    meta = pydicom.filereader.read_file_meta_info(path)
    syntax = meta.get('TransferSyntaxUID')
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
      # pydicom inflates it whole, to any size.
      file.seek(144 + int(meta.FileMetaInformationGroupLength))
      _check_deflated(file)
      file.seek(0)
    return pydicom.dcmread(file, **reading)


def _check_deflated(file):
  inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
  data = file.read(1 << 16)
  while data and not inflater.eof:
    size += len(inflater.decompress(data, 1 << 20))
    if size > MAX_BYTES:
      raise SourceFault(f'inflates to more than {MAX_BYTES:,} bytes')
    data = inflater.unconsumed_tail or file.read(1 << 16)


def _check(dataset):
  """Refuses what is no image of one frame, or too large."""
  if 'FloatPixelData' in dataset or 'DoubleFloatPixelData' in dataset:
    raise SourceFault('floating point pixels; wanted whole numbers')
  if not dataset.get('PixelData'):
    raise SourceFault('no pixel data, or cut short before it')
  for keyword in ('Rows', 'Columns', 'BitsAllocated', 'BitsStored'):
    if not isinstance(dataset.get(keyword), int):
      raise SourceFault(f'no {keyword}')
  raster.check_size(dataset.Columns, dataset.Rows)
  frames = int(dataset.get('NumberOfFrames') or 1)
  if frames != 1:
    raise SourceFault(f'{frames} frames; wanted one')
  if dataset.BitsAllocated > 16:
    raise SourceFault(
      f'{dataset.BitsAllocated} bits a pixel; wanted at most 16'
    )


def _stored(dataset):
  """Stored values (H, W) or (H, W, 3), and how they are to be understood."""
  import pydicom
  from pydicom import pixels

  syntax = dataset.file_meta.get('TransferSyntaxUID')
  if not syntax:
    raise SourceFault('no TransferSyntaxUID')
  try:
    decoder = pixels.get_decoder(syntax)
  except NotImplementedError:
    raise SourceFault(
      f'its transfer syntax is {syntax.name}, which cannot be decoded'
    ) from None
  plugin = ''
  if syntax.is_encapsulated:
    plugin = _DECODERS[syntax.keyword]
    if plugin not in decoder.available_plugins:
      raise ImportError(f'a DICOM file in {syntax.name} {_INSTALL}')
    if syntax == pydicom.uid.JPEGExtended12Bit and dataset.BitsStored > 8:
      raise SourceFault(
        'JPEG Extended of more than 8 bits, which cannot be decoded'
      )
    if syntax != pydicom.uid.RLELossless:
      _check_coded(dataset)
  options = pixels.utils.as_pixel_options(dataset, number_of_frames=1)

  def decode():
    stored, properties = decoder.as_array(
      dataset,
      index=0,
      raw=True,
      decoding_plugin=plugin,
      allow_excess_frames=False,
      **options,
    )
    return stored, properties['photometric_interpretation']

  try:
    with raster.silent():
      return _apart(decode) if plugin == 'gdcm' else decode()
  except RuntimeError as error:  # names the decoder, then what it said
    raise UserError(str(error).split(f'{plugin}: ')[-1]) from error


def _apart(decode):
  """`decode()` in a process of its own.

  GDCM ends its process where some kinds of broken data come along.
  """
  receive, send = os.pipe()
  child = os.fork()
  if not child:
    # Nothing of the parent may run on here, nor be said of its end.
    try:
      faulthandler.disable()
      resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
      try:
        stored, word = decode()
      except Exception as error:
        stored, word = np.empty(0), f'error {error!r}'
      array = io.BytesIO()  # numpy cannot write an array to a pipe
      np.save(array, stored, allow_pickle=False)
      with open(send, 'wb') as pipe:
        pipe.write(f'{word}\n'.encode() + array.getbuffer())
    finally:
      os._exit(0)
  os.close(send)
  with open(receive, 'rb') as pipe:
    sent = pipe.read()
  if os.waitpid(child, 0)[1] or not sent:
    raise SourceFault('broken (its decoder gave up)')
  word, _, array = sent.partition(b'\n')
  if word.startswith(b'error '):
    raise RuntimeError(word.removeprefix(b'error ').decode())
  return np.load(io.BytesIO(array), allow_pickle=False), word.decode()


def _check_coded(dataset):
  """Refuses a JPEG or JPEG 2000 code of another size than the header's.

  A decoder goes by the code, whose size nothing else has checked.
  """
  from pydicom import encaps

  code = encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
  coded = _coded_size(code)
  wanted = dataset.Columns, dataset.Rows, dataset.SamplesPerPixel
  if coded != wanted:
    raise SourceFault(
      'pixel data not coded as its transfer syntax says, or cut short'
      if coded is None
      else '{} x {} x {} pixels are coded'.format(*coded)
      + ' where the header says {} x {} x {}'.format(*wanted)
    )
  # Their end marker, with padding behind it. Not all decoders miss it.
  if b'\xff\xd9' not in code[-64:]:
    raise SourceFault('cut short: its code has no end')


def _coded_size(code):
  """(width, height, channels) of a JPEG, JPEG-LS or JPEG 2000 code, or None."""
  if code.startswith(b'\xff\x4f\xff\x51') and len(code) >= 42:
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


def _grey_scale(dataset, values, index):
  """uint8 level of each stored value of a monochrome image."""
  levels = values.astype(np.float64)
  if dataset.get('ModalityLUTSequence'):
    item = dataset.ModalityLUTSequence[0]
    levels = _look_up(dataset, item.LUTDescriptor, item.LUTData, levels)
  elif dataset.get('RescaleSlope') is not None:
    levels *= float(dataset.RescaleSlope)
    levels += float(dataset.get('RescaleIntercept') or 0)
  if not np.isfinite(levels).all():
    raise SourceFault('a rescale that is not finite')
  padding = _padding(dataset, values)
  if dataset.get('VOILUTSequence'):
    item = dataset.VOILUTSequence[0]
    levels = _look_up(dataset, item.LUTDescriptor, item.LUTData, levels)
    table = _spread(levels, 0, _full(levels))
  elif None not in (window := tuple(_window(dataset))):
    table = _spread(_windowed(dataset, levels, *window), 0, 1)
  else:
    shown = ~padding
    if dataset.BitsStored > 8:
      present = np.zeros(len(values), bool)
      present[index] = True
      shown &= present
    shown = levels[shown] if shown.any() else levels
    table = _spread(levels, shown.min(), shown.max())
  if dataset.PhotometricInterpretation == 'MONOCHROME1':
    table = 255 - table
  table[padding] = 0
  return table


def _window(dataset):
  """Center and width of the first window; None where there is none."""
  for keyword in ('WindowCenter', 'WindowWidth'):
    value = dataset.get(keyword)
    # Several windows are a list, one is a number.
    values = [] if value is None else np.ravel(value)
    yield float(values[0]) if len(values) else None


def _windowed(dataset, levels, center, width):
  """Levels through a window, 0 to 1 (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
  function = dataset.get('VOILUTFunction') or 'LINEAR'
  least = 1 if function == 'LINEAR' else 0
  if not (np.isfinite(center) and least <= width < np.inf and width > 0):
    raise SourceFault(f'a window of width {width:g} at {center:g}')
  if function == 'LINEAR':
    center, width = center - 0.5, width - 1
  if width == 0:
    return (levels > center).astype(np.float64)
  if function in ('LINEAR', 'LINEAR_EXACT'):
    return ((levels - center) / width + 0.5).clip(0, 1)
  if function == 'SIGMOID':
    # exp(700) is about the largest number that there is.
    return 1 / (1 + np.exp((-4 * (levels - center) / width).clip(-700, 700)))
  raise SourceFault(f'VOILUTFunction {function!r} is unknown')


def _padding(dataset, values):
  """Which stored values are padding (PS3.3 C.7.5.1.1.2)."""
  first = dataset.get('PixelPaddingValue')
  if not isinstance(first, int):
    return np.zeros(len(values), bool)
  last = dataset.get('PixelPaddingRangeLimit')
  if not isinstance(last, int):
    last = first
  return (values >= min(first, last)) & (values <= max(first, last))


def _palette(dataset, values):
  """uint8 luma of each stored value of a palette image (PS3.3 C.7.6.3.1.5)."""
  channels = [
    _look_up(
      dataset,
      dataset[f'{colour}PaletteColorLookupTableDescriptor'].value,
      dataset[f'{colour}PaletteColorLookupTableData'].value,
      values,
    )
    for colour in ('Red', 'Green', 'Blue')
  ]
  return _spread(_luma(*channels), 0, _full(np.array(channels)))


def _look_up(dataset, descriptor, data, values):
  """Entries of a lookup table for values (PS3.3 C.11.1.1)."""
  entries, first = descriptor[0] or 1 << 16, descriptor[1]
  if isinstance(data, bytes):
    # Entries of 8 bits are bytes or, all the same, words.
    order = '<' if dataset.original_encoding[1] else '>'
    is_bytes = descriptor[2] <= 8 and len(data) < 2 * entries
    kind = 'u1' if is_bytes else f'{order}u2'
    data = np.frombuffer(data, kind)
  table = np.atleast_1d(data)[:entries]
  if len(table) < entries:
    raise SourceFault(
      f'a lookup table of {len(table)} entries; wanted {entries}'
    )
  return table[np.rint(values - first).clip(0, entries - 1).astype(np.intp)]


def _full(levels):
  """The largest level of the bits that hold them, as `image.read` takes it."""
  bits = next(b for b in (8, 10, 12, 14, 16) if levels.max() < 1 << b)
  return (1 << bits) - 1


def _spread(levels, low, high):
  """Levels of low..high as uint8 of 0..255."""
  scale = 255 / (high - low) if high > low else 0.0
  return np.rint((levels - low) * scale).clip(0, 255).astype(np.uint8)


def _luma(red, green, blue):
  """ITU-R BT.601, rounded; three equal channels give exactly that grey."""
  weights = np.uint32([19595, 38470, 7471])  # of 65,536
  channels = (np.asarray(c).astype(np.uint32) for c in (red, green, blue))
  total = sum(w * c for w, c in zip(weights, channels, strict=True))
  return (total + np.uint32(1 << 15)) >> 16
