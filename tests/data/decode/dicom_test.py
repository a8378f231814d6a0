"""DICOM files: grey levels by the standard's formulas, and one line else."""

import io
import os
import pathlib
import resource
import struct
import subprocess
import sys
import time
import warnings
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from dpjax.data.decode import dicom, image_file
from dpjax.data.prepare import shards
from dpjax.data.sources import files
from dpjax.errors import SourceFault, UserError
from tests.data.decode.pictures import noise
from tests.data.source_files import image_refusal as refusal

pydicom = pytest.importorskip('pydicom')
gdcm = pytest.importorskip('gdcm')
uid = pydicom.uid
# Installed with pydicom. Its own function would fetch what is not there.
SHIPPED = pathlib.Path(pydicom.__file__).parent / 'data'


def made(levels, *, bits=None, photometric='MONOCHROME2', **elements):
  """A dataset of pixels that are known."""
  dataset = pydicom.Dataset()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
  dataset.SOPClassUID = uid.SecondaryCaptureImageStorage
  dataset.SOPInstanceUID = '1.2.3'
  bits = bits or levels.dtype.itemsize * 8
  dataset.set_pixel_data(levels, photometric, bits)
  with warnings.catch_warnings():  # some of these are wrong on purpose
    warnings.simplefilter('ignore')
    for keyword, value in elements.items():
      setattr(dataset, keyword, value)
  return dataset


def saved(file, dataset):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    dataset.save_as(file, enforce_file_format=True)
  return str(file)


@pytest.fixture
def read(tmp_path):
  """Reads what `made` makes, through a file."""

  def read(levels, **elements):
    path = saved(tmp_path / 'a.dcm', made(levels, **elements))
    return image_file.read(path)

  return read


def rounded(levels):
  return np.floor(np.asarray(levels, float) + 0.5).clip(0, 255)


# Grey levels.


@pytest.mark.parametrize('shape', [(1, 1), (3, 500), (33, 21)])
def test_eight_bits_without_a_window_are_read_as_stored(read, shape):
  for top in (256, 100):  # and not stretched where they are not all in use
    levels = noise(*shape, top=top)
    np.testing.assert_array_equal(read(levels), levels)


def test_more_bits_without_a_window_fill_the_range(read):
  levels = noise(30, 20, top=3000, dtype=np.uint16) + np.uint16(500)
  low, high = int(levels.min()), int(levels.max())
  wanted = rounded((levels.astype(float) - low) / (high - low) * 255)
  np.testing.assert_array_equal(read(levels, bits=12), wanted)
  np.testing.assert_array_equal(read(levels), wanted)
  signed = levels.astype(np.int16) - np.int16(2000)
  np.testing.assert_array_equal(read(signed), wanted)
  assert not read(np.full_like(levels, 700)).any()


def test_monochrome1_is_the_negative_of_monochrome2(read):
  deep = noise(30, 20, top=4096, dtype=np.uint16)
  for levels, elements in (
    (noise(30, 20), {}),
    (deep, {'bits': 12}),
    (deep, {'bits': 12, 'WindowCenter': '1800.5', 'WindowWidth': '1000'}),
    (deep.astype(np.int16), {'RescaleSlope': '2', 'RescaleIntercept': '-9'}),
  ):
    light = read(levels, photometric='MONOCHROME2', **elements)
    dark = read(levels, photometric='MONOCHROME1', **elements)
    np.testing.assert_array_equal(dark, 255 - light)


def test_signed_12_bits_through_rescale_and_window_by_hand(read):
  # PS3.3 C.11.2.1.2.1, with c = 40, w = 401, y from 0 to 255:
  # x <= c - 0.5 - (w - 1) / 2 = -160.5: 0; x > c - 0.5 + (w - 1) / 2 = 239.5:
  # 255; else ((x - (c - 0.5)) / (w - 1) + 0.5) * 255. x = 0.5 * stored - 100.
  by_hand = {
    -2048: 0,  # x = -1124
    -122: 0,  # -161
    -120: 0.31875,  # -160
    0: 38.56875,  # -100
    200: 102.31875,  # 0
    278: 127.18125,  # 39
    280: 127.81875,  # 40
    678: 254.68125,  # 239
    680: 255,  # 240
    2047: 255,  # 923.5
  }
  stored = np.int16([list(by_hand)])
  levels = read(
    stored,
    bits=12,
    RescaleSlope='0.5',
    RescaleIntercept='-100',
    WindowCenter=['40', '1000'],  # the first of two counts
    WindowWidth=['401', '2'],
  )
  np.testing.assert_array_equal(levels, rounded([list(by_hand.values())]))


def test_each_kind_of_window_follows_its_formula(read):
  stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)
  x, c, w = stored.astype(float), 1500.0, 700.0
  window = {'WindowCenter': c, 'WindowWidth': w}
  exact = ((x - c) / w + 0.5).clip(0, 1) * 255
  sigmoid = 255 / (1 + np.exp(-4 * (x - c) / w))
  for function, wanted in (('LINEAR_EXACT', exact), ('SIGMOID', sigmoid)):
    levels = read(stored, bits=12, VOILUTFunction=function, **window)
    assert np.abs(levels - wanted).max() < 0.5 + 1e-9
  # The narrowest linear window is a step.
  step = read(stored, bits=12, WindowCenter=c, WindowWidth=1)
  np.testing.assert_array_equal(step, np.where(x > c - 0.5, 255, 0))


@pytest.mark.parametrize(
  'window', [(0, 'LINEAR'), (-5, 'LINEAR'), (0, 'SIGMOID'), (9, 'CUBIC')]
)
def test_a_window_without_sense_is_refused(tmp_path, window):
  width, function = window
  dataset = made(
    noise(4, 4), WindowCenter=9, WindowWidth=width, VOILUTFunction=function
  )
  path = saved(tmp_path / 'a.dcm', dataset)
  assert 'a window of width' in refusal(path) or 'CUBIC' in refusal(path)


def lut(entries, first, bits):
  item = pydicom.Dataset()
  item.LUTDescriptor = [len(entries), first, bits]
  item.LUTData = np.asarray(entries, '<u2').tobytes()
  item['LUTData'].VR = 'OW'
  return [item]


def test_lookup_tables_of_modality_and_window_are_looked_up(read):
  stored = np.arange(16, dtype=np.uint16).reshape(4, 4)
  # Stored 0..15 -> modality; values below the first entry take the first.
  entries = np.arange(10) ** 2 * 10
  levels = read(
    stored,
    bits=12,
    ModalityLUTSequence=lut(entries, 3, 16),
    WindowCenter=400,
    WindowWidth=801,
  )
  modality = entries[np.clip(np.arange(16) - 3, 0, 9)].astype(float)
  wanted = rounded(((modality - 399.5) / 800 + 0.5).clip(0, 1) * 255)
  np.testing.assert_array_equal(levels.ravel(), wanted)
  # A table of the window takes the place of the window.
  entries = 4095 - np.arange(16) * 273
  levels = read(
    stored,
    bits=12,
    VOILUTSequence=lut(entries, 0, 12),
    WindowCenter=1,
    WindowWidth=1,
  )
  np.testing.assert_array_equal(levels.ravel(), rounded(entries / 4095 * 255))


def test_padding_is_black_and_takes_no_part_in_the_range(read):
  levels = noise(30, 20, top=1000, dtype=np.uint16) + np.uint16(1000)
  low, high = int(levels.min()), int(levels.max())
  wanted = rounded((levels.astype(float) - low) / (high - low) * 255)
  padded = levels.copy()
  padded[:5], padded[5] = 4000, 4050
  wanted[:6] = 0
  elements = {'PixelPaddingValue': 4000, 'PixelPaddingRangeLimit': 4095}
  low, high = int(levels[6:].min()), int(levels[6:].max())
  rest = (levels[6:].astype(float) - low) / (high - low)
  for photometric, shown in (('MONOCHROME2', rest), ('MONOCHROME1', 1 - rest)):
    read_levels = read(padded, bits=12, photometric=photometric, **elements)
    assert not read_levels[:6].any()
    assert np.abs(read_levels[6:] - shown * 255).max() <= 0.51


@pytest.mark.parametrize('photometric', ['MONOCHROME1', 'MONOCHROME2'])
def test_padding_that_is_written_unsigned_is_that_of_signed_pixels(
  read, tmp_path, photometric
):
  levels = noise(30, 20, top=1000, dtype=np.uint16).astype(np.int16) - 500
  levels[:5] = -2000
  own = {'bits': 16, 'photometric': photometric}
  wanted = read(levels, **own, PixelPaddingValue=-2000)
  assert not wanted[:5].any() and wanted[5:].any()
  dataset = made(levels, **own)
  dataset.add_new('PixelPaddingValue', 'US', 63536)
  path = saved(tmp_path / 'unsigned.dcm', dataset)
  np.testing.assert_array_equal(image_file.read(path), wanted)
  # A range of it, likewise.
  dataset.add_new('PixelPaddingRangeLimit', 'US', 63530)
  path = saved(tmp_path / 'range.dcm', dataset)
  np.testing.assert_array_equal(image_file.read(path), wanted)


def test_an_intercept_without_a_slope_counts(read):
  levels = noise(30, 20, top=4000, dtype=np.uint16)
  own = {'bits': 12, 'WindowCenter': 500, 'WindowWidth': 2000}
  wanted = read(levels, **own, RescaleSlope=1, RescaleIntercept=-1024)
  assert (wanted != read(levels, **own)).any()
  alone = read(levels, **own, RescaleIntercept=-1024)
  np.testing.assert_array_equal(alone, wanted)


def test_colours_become_their_luma(read):
  channels = noise(20, 30, 3)
  luma = channels @ np.array([0.299, 0.587, 0.114])
  assert np.abs(read(channels, photometric='RGB') - luma).max() <= 0.51
  grey = np.dstack([channels[..., 0]] * 3)
  np.testing.assert_array_equal(read(grey, photometric='RGB'), grey[..., 0])
  # Of luma and two colour differences the luma is there already.
  levels = read(channels, photometric='YBR_FULL')
  np.testing.assert_array_equal(levels, channels[..., 0])


def test_colours_by_plane_are_those_by_pixel(tmp_path):
  channels = noise(20, 30, 3)
  dataset = made(channels, photometric='RGB')
  wanted = image_file.read(saved(tmp_path / 'a.dcm', dataset))
  dataset.PlanarConfiguration = 1
  dataset.PixelData = np.moveaxis(channels, 2, 0).tobytes()
  read = image_file.read(saved(tmp_path / 'a.dcm', dataset))
  np.testing.assert_array_equal(read, wanted)


@pytest.mark.parametrize('depth', [8, 16])
def test_a_palette_is_looked_up(tmp_path, depth):
  index = noise(20, 30, top=4)
  dataset = made(index)
  dataset.PhotometricInterpretation = 'PALETTE COLOR'
  scale = 257 if depth == 16 else 1
  colours = np.array([[0, 0, 0], [9, 9, 9], [255, 0, 0], [255, 255, 255]])
  for name, entries in zip(('Red', 'Green', 'Blue'), colours.T, strict=True):
    keyword = f'{name}PaletteColorLookupTable'
    kind = f'<u{depth // 8}'
    setattr(dataset, f'{keyword}Descriptor', [4, 0, depth])
    data = (entries * scale).astype(kind).tobytes()
    setattr(dataset, f'{keyword}Data', data)
  read = image_file.read(saved(tmp_path / 'a.dcm', dataset))
  np.testing.assert_array_equal(read, np.uint8([0, 9, 76, 255])[index])


# Transfer syntaxes.


def recoded(path, syntax):
  """Rewrites a file in a lossless JPEG kind, by GDCM."""
  reader, writer = gdcm.ImageReader(), gdcm.ImageWriter()
  reader.SetFileName(path)
  assert reader.Read()
  change = gdcm.ImageChangeTransferSyntax()
  change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
  change.SetInput(reader.GetImage())
  assert change.Change()
  writer.SetFileName(path)
  writer.SetFile(reader.GetFile())
  writer.SetImage(change.GetOutput())
  assert writer.Write()


LOSSLESS = {
  'JPEGLossless': gdcm.TransferSyntax.JPEGLosslessProcess14,
  'JPEGLosslessSV1': gdcm.TransferSyntax.JPEGLosslessProcess14_1,
  'JPEGLSLossless': gdcm.TransferSyntax.JPEGLSLossless,
  'JPEG2000Lossless': gdcm.TransferSyntax.JPEG2000Lossless,
  'RLELossless': gdcm.TransferSyntax.RLELossless,
  'DeflatedExplicitVRLittleEndian': None,
  'ImplicitVRLittleEndian': None,
}


@pytest.mark.parametrize('syntax', LOSSLESS)
@pytest.mark.parametrize(
  'levels, bits',
  [
    (noise(64, 48), 8),
    (noise(64, 48, top=4096, dtype=np.uint16), 12),
    (noise(64, 48, top=65536, dtype=np.uint16), 16),
    (noise(64, 48, top=4096, dtype=np.int16) - np.int16(2048), 12),
    (noise(64, 48, 3), 8),
  ],
  ids=['8', '12', '16', 'signed 12', 'colour'],
)
def test_a_lossless_syntax_changes_no_level(tmp_path, syntax, levels, bits):
  photometric = 'RGB' if levels.ndim == 3 else 'MONOCHROME2'
  dataset = made(levels, bits=bits, photometric=photometric)
  path = saved(tmp_path / 'a.dcm', dataset)
  plain = image_file.read(path)
  if LOSSLESS[syntax] is None:
    dataset.file_meta.TransferSyntaxUID = getattr(uid, syntax)
    saved(path, dataset)
  else:
    recoded(path, LOSSLESS[syntax])
  assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.keyword == syntax
  np.testing.assert_array_equal(image_file.read(path), plain)


@pytest.mark.parametrize(
  'name',
  ['RLE', 'bigendian', 'expb', 'implicit', 'jp2klossless', 'jpeg_ls_lossless'],
)
def test_pydicoms_own_image_is_the_same_in_each_syntax(name):
  folder = SHIPPED / 'test_files'
  plain = image_file.read(str(folder / 'MR_small.dcm'))
  read = image_file.read(str(folder / f'MR_small_{name}.dcm'))
  np.testing.assert_array_equal(read, plain)


def encapsulated(dataset, code, syntax):
  dataset.PixelData = pydicom.encaps.encapsulate([code])
  dataset['PixelData'].VR = 'OB'
  dataset.file_meta.TransferSyntaxUID = syntax
  return dataset


def jpeg(levels, **options):
  stream = io.BytesIO()
  Image.fromarray(levels).save(stream, 'JPEG', **options)
  return stream.getvalue()


@pytest.mark.parametrize('syntax', ['JPEGBaseline8Bit', 'JPEGExtended12Bit'])
def test_a_jpeg_is_the_same_as_it_is_outside_of_dicom(tmp_path, syntax):
  levels = noise(40, 30)
  code = jpeg(levels)
  (tmp_path / 'a.jpg').write_bytes(code)
  dataset = encapsulated(made(levels), code, getattr(uid, syntax))
  read = image_file.read(saved(tmp_path / 'a.dcm', dataset))
  np.testing.assert_array_equal(read, image_file.read(str(tmp_path / 'a.jpg')))


@pytest.mark.parametrize(
  'syntax', ['JPEG2000', 'HTJ2KLossless', 'HTJ2KLosslessRPCL', 'HTJ2K']
)
def test_the_syntaxes_of_jpeg_2000_all_reach_its_decoder(tmp_path, syntax):
  # Of HTJ2K nothing here can make a code. Its decoder takes an older one too.
  levels = noise(64, 48, top=4096, dtype=np.uint16)
  dataset = made(levels, bits=12)
  plain = image_file.read(saved(tmp_path / 'a.dcm', dataset))
  recoded(str(tmp_path / 'a.dcm'), gdcm.TransferSyntax.JPEG2000Lossless)
  dataset = pydicom.dcmread(tmp_path / 'a.dcm')
  dataset.file_meta.TransferSyntaxUID = getattr(uid, syntax)
  path = saved(tmp_path / 'b.dcm', dataset)
  np.testing.assert_array_equal(image_file.read(path), plain)


# What is refused.


@pytest.mark.parametrize(
  'changes, reason',
  [
    ({'NumberOfFrames': 2}, '2 frames; wanted one'),
    ({'Rows': None}, 'no Rows'),
    ({'Columns': None}, 'no Columns'),
    ({'Rows': 0}, 'wanted at least one'),
    ({'Rows': 99}, 'cut short'),
    ({'Rows': 65535, 'Columns': 65535}, '65535 x 65535 pixels; wanted at most'),
    ({'BitsStored': None}, 'no BitsStored'),
    ({'BitsAllocated': 32}, '32 bits a pixel'),
    ({'BitsStored': 12}, 'broken'),
    ({'SamplesPerPixel': 7}, 'broken'),
    ({'PhotometricInterpretation': 'X'}, 'broken'),
    ({'PhotometricInterpretation': 'PALETTE COLOR'}, 'broken'),
    ({'PixelData': None}, 'no pixel data'),
    ({'PixelData': b''}, 'no pixel data'),
    ({'FloatPixelData': bytes(8)}, 'floating point'),
    ({'RescaleSlope': 'nan', 'RescaleIntercept': '0'}, 'not finite'),
    ({'ModalityLUTSequence': lut(range(9), 0, 16)}, None),
  ],
)
def test_a_header_that_says_wrong_is_one_line(tmp_path, changes, reason):
  given = {k: v for k, v in changes.items() if v is not None}
  dataset = made(noise(20, 30), **given)
  for keyword in changes.keys() - given.keys():
    delattr(dataset, keyword)
  if reason is None:  # a table shorter than it says
    dataset.ModalityLUTSequence[0].LUTDescriptor = [99, 0, 16]
    reason = 'a lookup table of 9 entries; wanted 99'
  assert reason in refusal(saved(tmp_path / 'a.dcm', dataset))


def test_a_syntax_that_is_no_image_is_named(tmp_path):
  dataset = encapsulated(made(noise(20, 30)), bytes(99), uid.MPEG2MPML)
  line = refusal(saved(tmp_path / 'a.dcm', dataset))
  assert 'MPEG2' in line and 'cannot be decoded' in line
  twelve = str(SHIPPED / 'test_files' / 'JPGExtended.dcm')
  assert 'JPEG Extended of more than 8 bits' in refusal(twelve)


@pytest.mark.parametrize('on_error', ['fail', 'skip'])
def test_what_is_not_installed_ends_prepare_and_is_no_fault_of_the_image(
  tmp_path, monkeypatch, on_error
):
  levels = noise(20, 30)
  dataset = encapsulated(made(levels), jpeg(levels), uid.JPEGBaseline8Bit)
  path = saved(tmp_path / 'a.dcm', dataset)
  record = files.record(pathlib.Path(path), 'a')

  def stopped(*readers):
    for reader in readers:
      with pytest.raises(UserError) as caught:
        reader(path)
      assert not isinstance(caught.value, SourceFault)
      assert "the extra dicom: pip install -e '.[dicom]'" in str(caught.value)
      assert str(caught.value).isprintable() and path not in str(caught.value)
    with pytest.raises(UserError):
      shards.decode_block([record], tmp_path / 'block', 8, 'pad', on_error)
    return str(caught.value)

  with monkeypatch.context() as patch:
    decoder = pydicom.pixels.get_decoder(uid.JPEGBaseline8Bit)
    patch.setattr(decoder, '_available', {})
    assert 'JPEG Baseline' in stopped(image_file.read)
  monkeypatch.setitem(sys.modules, 'pydicom', None)
  stopped(image_file.read, image_file.header)


def data_begins(path):
  # Preamble, prefix and the element that says how long the other meta are.
  return 144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength


def peak(path):
  """Seconds and KiB of memory that a refusal takes, and its line."""
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  start = time.process_time()
  line = refusal(path)
  seconds = time.process_time() - start
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
  return line, seconds, used


def test_a_code_of_another_size_than_the_header_is_not_decoded(tmp_path):
  levels = noise(20, 30)
  code = jpeg(levels)
  at = code.index(b'\xff\xc0') + 5
  code = code[:at] + struct.pack('>HH', 60_000, 60_000) + code[at + 4 :]
  dataset = encapsulated(made(levels), code, uid.JPEGBaseline8Bit)
  path = saved(tmp_path / 'a.dcm', dataset)
  line, seconds, used = peak(path)
  assert '60000 x 60000 x 1 pixels are coded' in line and '30 x 20 x 1' in line
  assert seconds < 0.5 and used < 30_000
  # In JPEG 2000 the size is 32 bits.
  path = saved(tmp_path / 'a.dcm', made(levels))
  recoded(path, gdcm.TransferSyntax.JPEG2000Lossless)
  data = pathlib.Path(path).read_bytes()
  at = data.index(b'\xff\x4f\xff\x51') + 8
  data = data[:at] + struct.pack('>II', 1 << 30, 1 << 30) + data[at + 8 :]
  pathlib.Path(path).write_bytes(data)
  line, seconds, used = peak(path)
  assert '1073741824 x 1073741824' in line and seconds < 0.5 and used < 30_000


def test_a_deflated_file_is_not_inflated_without_end(tmp_path, monkeypatch):
  monkeypatch.setattr(dicom, 'MAX_BYTES', 1 << 22)
  dataset = made(noise(20, 30))
  dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
  file = tmp_path / 'a.dcm'
  path = saved(file, dataset)
  np.testing.assert_array_equal(image_file.read(path), noise(20, 30))
  content = file.read_bytes()
  at = data_begins(path)
  deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
  bomb = deflater.compress(bytes(1 << 27)) + deflater.flush()
  file.write_bytes(content[:at] + bomb)
  line, _, used = peak(path)
  assert 'inflates to more than 4,194,304 bytes' in line and used < 30_000
  with pytest.raises(SourceFault, match='inflates'):
    image_file.header(path)


def test_a_file_of_too_many_bytes_is_not_read(tmp_path):
  file = tmp_path / 'a.dcm'
  path = saved(file, made(noise(20, 30)))
  os.truncate(file, dicom.MAX_BYTES + 1)  # a hole takes no place on the disk
  line, seconds, used = peak(path)
  assert 'wanted at most 268,435,456' in line
  assert seconds < 0.5 and used < 30_000


def test_sequences_nested_without_end_are_one_line_or_no_matter(tmp_path):
  dataset = made(noise(20, 30))
  file = tmp_path / 'a.dcm'
  path = saved(file, dataset)
  content = file.read_bytes()
  # (0008,1140) SQ of undefined length, with an item of undefined length.
  begin = (
    b'\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff'
  )
  at = data_begins(path)
  file.write_bytes(content[:at] + begin * 20_000 + content[at:])
  assert refusal(path)
  with pytest.raises(SourceFault):
    image_file.header(path)


def test_a_length_beyond_the_file_takes_no_memory(tmp_path):
  file = tmp_path / 'a.dcm'
  path = saved(file, made(noise(20, 30)))
  content = file.read_bytes()
  at = content.index(struct.pack('<HH', 0x7FE0, 0x10)) + 8
  file.write_bytes(content[:at] + b'\xf0\xff\xff\xff' + content[at + 4 :])
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  np.testing.assert_array_equal(
    image_file.read(path), noise(20, 30)
  )  # all there
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 30_000


# The header.


def test_of_the_header_only_four_things_are_taken(tmp_path):
  dataset = made(
    noise(4, 4),
    PatientID=' 17 ',
    PatientName='Doe^Jane',
    PatientBirthDate='19500101',
    PatientAge='058Y',
    PatientSex='F',
    ViewPosition='pa',
    InstitutionName='X',
  )
  found = image_file.header(saved(tmp_path / 'a.dcm', dataset))
  assert found == {'patient': '17', 'age': '58', 'sex': 'F', 'view': 'PA'}
  assert image_file.header(saved(tmp_path / 'b.dcm', made(noise(4, 4)))) == {}


@pytest.mark.parametrize(
  'age, years',
  {
    '058Y': '58',
    '51': '51',
    '000Y': '0',
    '011M': '0',
    '030M': '2',
    '010W': '0',
    '104W': '2',
    '020D': '0',
    '089Y': '89',
    '090Y': '90',
    '103Y': '90',
    '155': None,
    '999D': '2',
    '': None,
    'Y': None,
    '-5': None,
    '5 Y': None,
    '\xb2': None,
  }.items(),
)
def test_ages_are_whole_years_and_none_is_above_90(tmp_path, age, years):
  dataset = made(noise(4, 4), PatientAge=age)
  found = image_file.header(saved(tmp_path / 'a.dcm', dataset))
  assert found.get('age') == years


def test_only_the_standards_letters_are_a_sex(tmp_path):
  for sex, wanted in (('M', 'M'), ('o', 'O'), ('', None), ('U', None)):
    dataset = made(noise(4, 4), PatientSex=sex)
    found = image_file.header(saved(tmp_path / 'a.dcm', dataset))
    assert found.get('sex') == wanted


def test_only_the_standards_terms_are_a_view(tmp_path):
  terms = ('AP', 'PA', 'LL', 'RL', 'RLD', 'LLD', 'RLO', 'LLO')
  for view, wanted in (
    *((term, term) for term in terms),
    ('ap', 'AP'),
    ('', None),
    ('LATERAL', None),
    ('AP JANE DOE', None),
  ):
    dataset = made(noise(4, 4), ViewPosition=view)
    found = image_file.header(saved(tmp_path / 'a.dcm', dataset))
    assert found.get('view') == wanted


def test_the_header_is_read_without_the_pixels(tmp_path):
  file = tmp_path / 'a.dcm'
  path = saved(file, made(noise(20, 30), PatientID='7'))
  content = file.read_bytes()
  file.write_bytes(content[: content.index(struct.pack('<HH', 0x7FE0, 0x10))])
  assert image_file.header(path) == {'patient': '7'}
  assert 'no pixel data' in refusal(path)


# Files as they come.


def test_all_files_that_pydicom_ships_are_read_or_one_line(capfd, caplog):
  outcome = {True: 0, False: 0}
  for file in sorted(SHIPPED.rglob('*')):
    if not file.is_file() or 'py' in file.suffix:
      continue
    start = time.process_time()
    try:
      levels = image_file.read(str(file))
    except ValueError as error:
      assert str(error).startswith(f'{file}: ') and str(error).isprintable()
      outcome[False] += 1
    else:
      assert levels.dtype == np.uint8 and levels.ndim == 2
      outcome[True] += 1
    try:
      found = image_file.header(str(file))
    except ValueError as error:
      assert str(error).startswith(f'{file}: ') and str(error).isprintable()
    else:
      assert set(found) <= {'patient', 'age', 'sex', 'view'}
    assert time.process_time() - start < 5
  assert min(outcome.values()) > 50  # of about 200
  assert capfd.readouterr() == ('', '') and not caplog.records


SAMPLES = [
  'CT_small',
  'JPEGLSNearLossless_08',
  'MR_small_RLE',
  'MR_small_bigendian',
  'MR_small_jp2klossless',
  'MR_small_jpeg_ls_lossless',
  'SC_rgb_jpeg_dcmtk',
  'SC_rgb_jpeg_gdcm',
  'SC_rgb_rle_16bit',
  'SC_ybr_full_422_uncompressed',
]


@pytest.mark.parametrize('name', SAMPLES)
def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path, name, capfd):
  content = (SHIPPED / 'test_files' / f'{name}.dcm').read_bytes()
  file = tmp_path / 'a.dcm'
  file.write_bytes(content)
  whole = image_file.read(str(file))
  for cut in range(0, len(content), len(content) // 60):
    file.write_bytes(content[:cut])
    try:
      # Behind the pixels more may stand.
      np.testing.assert_array_equal(image_file.read(str(file)), whole)
    except ValueError as error:
      assert str(error).startswith(f'{file}: ')
  file.write_bytes(content[: len(content) // 2])
  assert refusal(file)
  assert capfd.readouterr() == ('', '')


@hypothesis.settings(
  max_examples=400,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  st.sampled_from(SAMPLES),
  st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
    max_size=8,
  ),
)
def test_broken_files_raise_one_line_and_nothing_else(tmp_path, name, changes):
  content = bytearray((SHIPPED / 'test_files' / f'{name}.dcm').read_bytes())
  for place, value in changes:
    # Most of the changes are in the header, behind the preamble.
    content[132 + int(place**3 * (len(content) - 132))] = value
  file = tmp_path / 'a.dcm'
  file.write_bytes(content)
  for take in (image_file.read, image_file.header):
    try:
      take(str(file))
    except ValueError as error:
      assert str(error).startswith(f'{file}: ') and str(error).isprintable()


@pytest.mark.parametrize(
  'syntax', ['JPEGLosslessSV1', 'JPEGLSLossless', 'JPEG2000Lossless']
)
def test_a_code_cut_short_in_a_whole_file_is_refused(tmp_path, syntax):
  levels = noise(64, 48)
  path = saved(tmp_path / 'a.dcm', made(levels))
  recoded(path, LOSSLESS[syntax])
  dataset = pydicom.dcmread(path)
  code = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
  for end in (len(code) // 2, len(code) - 9):
    encapsulated(dataset, code[:end], getattr(uid, syntax))
    assert 'cut short' in refusal(saved(path, dataset))


def test_data_that_ends_its_decoders_process_is_one_line(tmp_path, capfd):
  path = saved(tmp_path / 'a.dcm', made(noise(64, 48)))
  recoded(path, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
  content = pathlib.Path(path).read_bytes()
  # Without a Huffman table GDCM aborts.
  content = content.replace(b'\xff\xc4', b'\0\xc4')
  pathlib.Path(path).write_bytes(content)
  assert 'its decoder gave up' in refusal(path)
  assert capfd.readouterr() == ('', '')


def test_lossless_jpeg_is_decoded_without_a_fork(tmp_path, monkeypatch):
  """JAX's threads may run here, whose locks a fork would take along."""
  levels = noise(64, 48)
  path = saved(tmp_path / 'a.dcm', made(levels))
  recoded(path, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
  monkeypatch.setattr(os, 'fork', None)
  np.testing.assert_array_equal(image_file.read(path), levels)


def test_reading_leaves_logging_as_it_was(tmp_path):
  code = f"""
import logging
from dpjax.data.decode import image_file
before = logging.getLogger('pydicom').level
for name in ('badVR.dcm', 'SC_rgb_jpeg_gdcm.dcm'):
  try:
    image_file.read({str(SHIPPED / 'test_files')!r} + '/' + name)
  except ValueError:
    pass
import pydicom
level = logging.getLogger('pydicom').getEffectiveLevel()
assert level <= logging.WARNING, level
"""
  subprocess.run([sys.executable, '-W', 'error', '-c', code], check=True)


RSNA = os.environ.get('DPJAX_RSNA')


@pytest.mark.skipif(not RSNA, reason='DPJAX_RSNA is not set')
def test_rsnas_radiographs_are_read_as_their_jpegs():
  files = sorted(pathlib.Path(RSNA, 'stage_2_train_images').glob('*.dcm'))
  for file in files[:16]:
    dataset = pydicom.dcmread(file)
    code = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    levels = np.asarray(Image.open(io.BytesIO(code)))
    np.testing.assert_array_equal(image_file.read(str(file)), levels)
    found = image_file.header(str(file))
    assert found['patient'] == dataset.PatientID
    assert found['sex'] in ('F', 'M') and found['view'] in ('AP', 'PA')
    assert 0 <= int(found['age']) <= 90
