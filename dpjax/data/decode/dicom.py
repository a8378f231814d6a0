"""A DICOM file: its grey levels, and the little of its header that is kept.

PS3.3 and PS3.5 are parts of the DICOM standard, 2024 edition. pydicom finds the
elements and dicom_code has them decoded; the grey scale is computed here.
"""

import dataclasses
import os
import warnings
import zlib

import numpy as np

from dpjax.data import radiograph
from dpjax.data.decode import dicom_code, formats
from dpjax.data.decode.dicom_code import asking_pydicom
from dpjax.errors import SourceFault, UserError

# Of a file, and of a deflated file's content. 16 bits a pixel of the largest
# image fit.
MAX_BYTES = 1 << 28

# Defined terms of ViewPosition (PS3.3 C.8.1.1). Any other text may hold a name.
_VIEWS = ('AP', 'PA', 'LL', 'RL', 'RLD', 'LLD', 'RLO', 'LLO')


def read(path: str) -> np.ndarray:
  """The grey levels of a DICOM file, as a viewer would first show them.

  Stored values go through the modality LUT or rescale, then through the VOI LUT
  or the first window (PS3.3 C.11.1, C.11.2); what comes out fills 0..255, and
  MONOCHROME1 is turned over. Without VOI LUT and window, up to 8 bits stored
  fill 0..255 by the range of those bits, so that 8 bits stay as they are; more
  bits, which are seldom all in use, by the smallest and the largest level.
  Strays far beside the others (formats.without_strays) and padding take no part
  in it; padding is 0. Colours become their luma.

  Args:
    path: the file.

  Returns:
    (H, W) uint8, 0 black.

  Raises:
    SourceFault: it is no whole image of one frame with at most 16 bits and
      `formats.MAX_PIXELS`, or its header makes one grey level of it: the
      reason.
    UserError: pydicom or the decoder is not installed: one line.
  """
  _allow_offences()
  dataset = _dataset(path)
  _check(dataset)
  stored, photometric = dicom_code.stored(dataset)
  if stored.ndim == 3:
    is_luma = photometric.startswith('YBR')
    stored = stored[..., 0] if is_luma else _luma(*np.moveaxis(stored, 2, 0))
  signed = np.issubdtype(stored.dtype, np.signedinteger)
  bits = _element(dataset, 'BitsStored')
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
  grey = np.take(table, index)
  if grey.min() == grey.max() and stored.min() < stored.max():
    raise SourceFault(_why_one_level(dataset, stored))
  return grey


def header(path: str) -> dict[str, str]:
  """The patient and what scores are split by, of a DICOM file.

  Args:
    path: the file.

  Returns:
    Those that the file states of: 'patient' (PatientID), to group by and not to
    be stored; 'age' (`radiograph.age`); 'sex', F, M or O; 'view'
    (ViewPosition), one of the standard's terms.

  Raises:
    SourceFault: the header is broken: the reason.
    UserError: pydicom is not installed: one line.
  """
  _allow_offences()
  dataset = _dataset(
    path,
    stop_before_pixels=True,
    specific_tags=['PatientID', 'PatientAge', 'PatientSex', 'ViewPosition'],
  )
  found = {
    'patient': _text(dataset, 'PatientID'),
    'age': radiograph.age(_text(dataset, 'PatientAge')),
    'sex': _text(dataset, 'PatientSex').upper(),
    'view': _text(dataset, 'ViewPosition').upper(),
  }
  if found['sex'] not in ('F', 'M', 'O'):
    found['sex'] = ''
  if found['view'] not in _VIEWS:
    found['view'] = ''
  return {name: value for name, value in found.items() if value}


def _allow_offences():
  """No warning is a fault: public sets are full of harmless offences."""
  warnings.simplefilter('ignore')  # in the block of formats.one_line


def _dataset(path, **reading):
  try:
    import pydicom
  except ImportError:
    raise UserError(f'a DICOM file {dicom_code.INSTALL}') from None
  with formats.opened(path) as file:
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
      raise SourceFault(f'{size:,} bytes; wanted at most {MAX_BYTES:,}')
    bare = formats.is_bare(path)
    deflated = None if bare else _deflated_part(path)
    if deflated is not None:
      _check_deflated(file, deflated)
      file.seek(0)
    with asking_pydicom():
      dataset = pydicom.dcmread(file, force=bare, **reading)
      if bare:
        _name_syntax(dataset)
      return dataset


def _name_syntax(dataset):
  """Without a file's own header, the syntax is what the elements look like.

  What is compressed cannot be told: its decoder is named nowhere.
  """
  from pydicom import uid

  if dataset.file_meta:
    return
  pixels = dataset.get_item('PixelData')
  if pixels is not None and pixels.length == 0xFFFFFFFF:
    return
  is_implicit, is_little = dataset.original_encoding
  dataset.file_meta.TransferSyntaxUID = {
    (True, True): uid.ImplicitVRLittleEndian,
    (False, True): uid.ExplicitVRLittleEndian,
  }.get((is_implicit, is_little), uid.ExplicitVRBigEndian)


@asking_pydicom()
def _deflated_part(path):
  """Where the deflated part of a file begins; None: it has none."""
  import pydicom

  meta = pydicom.filereader.read_file_meta_info(path)
  syntax = meta.get('TransferSyntaxUID')
  if syntax != pydicom.uid.DeflatedExplicitVRLittleEndian:
    return None
  return 144 + int(meta.FileMetaInformationGroupLength)


@formats.broken(OSError, OverflowError, zlib.error)
def _check_deflated(file, start):
  """Refuses what inflates without end: pydicom inflates it whole."""
  file.seek(start)
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
  if not _element(dataset, 'PixelData'):
    raise SourceFault('no pixel data, or cut short before it')
  for keyword in ('Rows', 'Columns', 'BitsAllocated', 'BitsStored'):
    if not isinstance(_element(dataset, keyword), int):
      raise SourceFault(f'no {keyword}')
  formats.check_size(dataset.Columns, dataset.Rows)
  frames = _frames(dataset)
  if frames != 1:
    raise SourceFault(f'{frames} frames; wanted one')
  if dataset.BitsAllocated > 16:
    raise SourceFault(
      f'{dataset.BitsAllocated} bits a pixel; wanted at most 16'
    )


@asking_pydicom()
def _element(dataset, keyword):
  """The value of an element, None where there is none."""
  return dataset.get(keyword)


@asking_pydicom()
def _frames(dataset):
  return int(dataset.get('NumberOfFrames') or 1)


@asking_pydicom()
def _number(dataset, keyword):
  """The one number of an element; None where there is none."""
  value = dataset.get(keyword)
  return None if value is None else float(value)


@asking_pydicom()
def _text(dataset, keyword):
  value = dataset.get(keyword)
  return '' if value is None else ' '.join(str(value).split())


@dataclasses.dataclass(frozen=True)
class _Table:
  """A lookup table (PS3.3 C.11.1.1).

  Attributes:
    first: the value of the first entry; smaller ones have it too.
    entries: (N,) whole numbers below 65,536; larger values have the last.
  """

  first: int
  entries: np.ndarray

  def look_up(self, values: np.ndarray) -> np.ndarray:
    """The entries for values, of any shape."""
    index = np.rint(values - self.first).clip(0, len(self.entries) - 1)
    return self.entries[index.astype(np.intp)]


def _table(count, first, bits, data, order):
  """The table that elements describe.

  Args:
    count, first, bits: its descriptor; a count of 0 means 65,536.
    data: the entries, as numbers or bytes.
    order: of bytes, '<' or '>'.
  """
  count = count or 1 << 16
  if isinstance(data, bytes):
    # Entries of 8 bits are bytes or, all the same, words.
    is_bytes = bits <= 8 and len(data) < 2 * count
    data = data if is_bytes else data[: len(data) // 2 * 2]
    data = np.frombuffer(data, 'u1' if is_bytes else f'{order}u2')
  entries = np.atleast_1d(data)[: max(count, 0)]
  if len(entries) != count:
    raise SourceFault(
      f'a lookup table of {len(entries)} entries; wanted {count}'
    )
  if entries.dtype.kind not in 'iu' or entries.max() >= 1 << 16:
    raise SourceFault('a lookup table whose entries are no 16 bits')
  return _Table(first, entries)


def _sequence_table(dataset, keyword):
  """The table of the first item of a sequence; None where there is none."""
  elements = _sequence_elements(dataset, keyword)
  return _table(*elements) if elements else None


@asking_pydicom()
def _sequence_elements(dataset, keyword):
  """The arguments of `_table`, or None."""
  if not dataset.get(keyword):
    return None
  item = dataset.get(keyword)[0]
  # De-identified files have items that were emptied.
  if not item.get('LUTDescriptor') or not item.get('LUTData'):
    return None
  count, first, bits = map(int, item.LUTDescriptor)
  order = '<' if dataset.original_encoding[1] else '>'
  return count, first, bits, item.LUTData, order


@asking_pydicom()
def _palette_elements(dataset, colour):
  """The arguments of `_table` of a colour."""
  name = f'{colour}PaletteColorLookupTable'
  count, first, bits = map(int, dataset[f'{name}Descriptor'].value)
  order = '<' if dataset.original_encoding[1] else '>'
  return count, first, bits, dataset[f'{name}Data'].value, order


def _grey_scale(dataset, values, index):
  """uint8 level of each stored value of a monochrome image.

  pydicom's apply_modality_lut and apply_voi_lut pass over a slope without an
  intercept (and one without a slope), take no table of 9 to 15 bits for the
  modality, cut fractions off in front of a table, and scale a window to a range
  that is then to be undone.
  """
  levels = values.astype(np.float64)
  modality = _sequence_table(dataset, 'ModalityLUTSequence')
  if modality:
    levels = modality.look_up(levels)
  else:
    slope = _number(dataset, 'RescaleSlope')
    levels *= 1 if slope is None else slope
    levels += _number(dataset, 'RescaleIntercept') or 0
  if not np.isfinite(levels).all():
    raise SourceFault('a rescale that is not finite')
  padding = _padding(dataset, values)
  voi = _sequence_table(dataset, 'VOILUTSequence')
  if voi:
    levels = voi.look_up(levels)
    table = _spread(levels, 0, _full(levels))
  elif None not in (window := _window(dataset)):
    table = _spread(_windowed(dataset, levels, *window), 0, 1)
  else:
    table = _spread(levels, *_range(dataset, levels, padding, index))
  if dataset.PhotometricInterpretation == 'MONOCHROME1':
    table = 255 - table
  table[padding] = 0
  return table


def _range(dataset, levels, padding, index):
  """The levels that become black and white where the header names none."""
  shown = ~padding
  if dataset.BitsStored <= 8:
    shown = levels[shown] if shown.any() else levels
    return shown.min(), shown.max()
  counts = np.bincount(index.ravel(), minlength=len(levels))
  if (shown & (counts > 0)).any():
    counts[padding] = 0
  present = np.flatnonzero(counts)
  order = present[np.argsort(levels[present], kind='stable')]
  levels, counts = levels[order], counts[order]
  high = formats.without_strays(levels, counts)
  low = -formats.without_strays(-levels[::-1], counts[::-1])
  return low, high


def _why_one_level(dataset, stored):
  """The reason where different stored values come out as one grey level."""
  line = f'its stored values, {stored.min()} to {stored.max()}, all come out as'
  line += ' one grey level: '
  if _sequence_elements(dataset, 'VOILUTSequence'):
    return line + 'its VOI LUT lies beside them'
  if _number(dataset, 'RescaleSlope') == 0:
    return line + 'its RescaleSlope is 0'
  center, width = _window(dataset)
  if None not in (center, width):
    return line + f'its window, {width:g} wide at {center:g}, lies beside them'
  return line + 'its header maps them so'


@asking_pydicom()
def _window(dataset):
  """Center and width of the first window; each None where there is none."""
  return tuple(
    _first_decimal(dataset.get_item(keyword))
    for keyword in ('WindowCenter', 'WindowWidth')
  )


def _first_decimal(element):
  """The first of the numbers of an element, or None.

  Of the bytes, as some programs write a decimal comma, at which pydicom fails.
  """
  value = None if element is None else element.value
  if isinstance(value, bytes) and element.VR in (None, 'DS'):
    value = value.decode('ascii', 'replace').strip('\0 ')
    value = value.split('\\')[0].strip().replace(',', '.') or None
  elif value is not None:
    # Several windows are a list, one is a number.
    values = np.ravel(value)
    value = values[0] if len(values) else None
  return None if value is None else float(value)


def _windowed(dataset, levels, center, width):
  """Levels through a window, 0 to 1 (PS3.3 C.11.2.1.2, C.11.2.1.3)."""
  function = (_text(dataset, 'VOILUTFunction') or 'LINEAR').upper()
  least = 1 if function == 'LINEAR' else 0
  if not (np.isfinite(center) and least <= width < np.inf and width > 0):
    raise SourceFault(
      f'a window of width {width:g} at {center:g}; wanted a width of 1 or more'
    )
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
  first = _element(dataset, 'PixelPaddingValue')
  if not isinstance(first, int):
    return np.zeros(len(values), bool)
  last = _element(dataset, 'PixelPaddingRangeLimit')
  if not isinstance(last, int):
    last = first
  if values[0] < 0:  # Some write it unsigned where the pixels are signed.
    first, last = (v - (1 << 16) if v >= 1 << 15 else v for v in (first, last))
  return (values >= min(first, last)) & (values <= max(first, last))


def _palette(dataset, values):
  """uint8 luma of each stored value of a palette image (PS3.3 C.7.6.3.1.5)."""
  channels = [
    _table(*_palette_elements(dataset, colour)).look_up(values)
    for colour in ('Red', 'Green', 'Blue')
  ]
  return _spread(_luma(*channels), 0, _full(np.array(channels)))


def _full(levels):
  """The largest level of the bits that hold them, as raster takes it."""
  bits = next(b for b in (8, 10, 12, 14, 16) if levels.max() < 1 << b)
  return (1 << bits) - 1


def _spread(levels, low, high):
  """Levels of low..high as uint8 of 0..255."""
  scale = 255 / (high - low) if high > low else 0.0
  return np.rint((levels - low) * scale).clip(0, 255).astype(np.uint8)


def _luma(red, green, blue):
  """ITU-R BT.601, rounded; three equal channels give exactly that grey."""
  weights = np.array([19595, 38470, 7471], np.uint32)  # of 65,536
  channels = (np.asarray(c).astype(np.uint32) for c in (red, green, blue))
  total = sum(w * c for w, c in zip(weights, channels, strict=True))
  return (total + np.uint32(1 << 15)) >> 16
