"""DICOM files whose header and pixels disagree, as real ones do."""

import io

import numpy as np
import pytest
from PIL import Image

from dpjax.data.decode import formats, image_file
from tests.data.decode import dicom_test
from tests.data.decode.dicom_test import encapsulated, gdcm, jpeg, made, saved
from tests.data.source_files import image_refusal as refusal

pydicom = pytest.importorskip('pydicom')
uid = pydicom.uid
JPEG_2000 = gdcm.TransferSyntax.JPEG2000Lossless


def picture(top=4000, dtype=np.uint16):
  """(64, 48) of smooth levels from 500 to about `top`."""
  slope = np.add.outer(np.arange(64) * 2, np.arange(48) * 3) / 267
  return (500 + slope * (top - 500)).astype(dtype)


def reread(path, **elements):
  """The grey levels with other elements in the header."""
  dataset = pydicom.dcmread(path)
  for keyword, value in elements.items():
    setattr(dataset, keyword, value)
  return image_file.read(saved(path, dataset))


@pytest.fixture
def file(tmp_path):
  return str(tmp_path / 'a.dcm')


@pytest.fixture
def plain(tmp_path):
  """What `picture` is read as."""
  return image_file.read(
    saved(tmp_path / 'plain.dcm', made(picture(), bits=12))
  )


@pytest.mark.parametrize('coded', [False, True])
def test_an_overlay_above_the_stored_bits_is_no_grey_level(file, plain, coded):
  levels = picture()
  levels[20:40, 10:30] |= 1 << 13
  saved(file, made(levels))
  if coded:
    dicom_test.recoded(file, JPEG_2000)
  read = reread(file, BitsStored=12, HighBit=11)
  np.testing.assert_array_equal(read, plain)


@pytest.mark.parametrize('coded', [False, True])
def test_left_justified_values_are_shifted_down(file, plain, coded):
  levels = picture() << 4
  levels[::2] |= 0b11  # an overlay below them
  saved(file, made(levels))
  if coded:
    dicom_test.recoded(file, JPEG_2000)
  read = reread(file, BitsStored=12, HighBit=15)
  np.testing.assert_array_equal(read, plain)


def test_left_justified_values_may_be_signed(file):
  levels = picture(dtype=np.int16) - np.int16(2000)
  plain = image_file.read(saved(file, made(levels, bits=12)))
  saved(file, made(levels << 4))
  read = reread(file, BitsStored=12, HighBit=15)
  np.testing.assert_array_equal(read, plain)


def test_a_high_bit_that_the_values_deny_is_no_matter(file, plain):
  saved(file, made(picture()))
  np.testing.assert_array_equal(reread(file, BitsStored=12, HighBit=15), plain)


def test_too_few_stored_bits_do_not_tear_the_picture(file):
  saved(file, made(picture(16000)))
  plain = image_file.read(file)
  dicom_test.recoded(file, JPEG_2000)
  read = reread(file, BitsStored=12, HighBit=11)
  np.testing.assert_array_equal(read, plain)


def test_a_signed_code_under_an_unsigned_header_is_shifted(file, plain):
  saved(file, made(picture(dtype=np.int16) - np.int16(2048), bits=12))
  dicom_test.recoded(file, JPEG_2000)
  read = reread(file, PixelRepresentation=0)
  np.testing.assert_array_equal(read, plain)


def test_an_unsigned_code_under_a_signed_header_is_not_torn(file, plain):
  saved(file, made(picture(), bits=12))
  dicom_test.recoded(file, JPEG_2000)
  read = reread(file, PixelRepresentation=1)
  np.testing.assert_array_equal(read, plain)


@pytest.mark.parametrize('share', [1, 200])
@pytest.mark.parametrize('light', ['MONOCHROME1', 'MONOCHROME2'])
def test_a_marker_far_above_the_rest_does_not_darken_it(file, share, light):
  levels = picture()
  plain = image_file.read(saved(file, made(levels, photometric=light)))
  levels.flat[1500 : 1500 + share] = 65535
  read = image_file.read(saved(file, made(levels, photometric=light)))
  rest = levels < 65535
  np.testing.assert_array_equal(read[rest], plain[rest])
  assert set(read[~rest]) == {0 if light == 'MONOCHROME1' else 255}


def test_a_marker_far_below_the_rest_does_not_lighten_it(file):
  levels = picture() + np.uint16(60000)
  plain = image_file.read(saved(file, made(levels)))
  levels[30:32] = 0
  read = image_file.read(saved(file, made(levels)))
  rest = levels > 0
  np.testing.assert_array_equal(read[rest], plain[rest])
  assert not read[~rest].any()


@pytest.mark.parametrize('bright', [3, 500])
def test_bright_levels_within_reach_of_the_rest_keep_their_place(file, bright):
  levels = picture()  # its range is 500 to 4000
  levels.flat[1500 : 1500 + bright] = 12000
  read = image_file.read(saved(file, made(levels)))
  wanted = (levels.astype(float) - levels.min()) / (12000 - levels.min()) * 255
  np.testing.assert_array_equal(read, np.rint(wanted))


def test_a_grey_jpeg_under_a_header_of_rgb_is_its_luma(file):
  grey = (picture() // 16).astype(np.uint8)
  image = Image.fromarray(np.stack([grey, *np.full((2, *grey.shape), 128)], 2)
                          .astype(np.uint8), 'YCbCr')  # fmt: skip
  stream = io.BytesIO()
  image.save(stream, 'JPEG', quality=100)
  dataset = made(np.stack([grey] * 3, 2), photometric='RGB')
  encapsulated(dataset, stream.getvalue(), uid.JPEGBaseline8Bit)
  read = image_file.read(saved(file, dataset))
  assert abs(read.astype(int) - grey).max() <= 2


def test_true_colours_of_a_jpeg_stay_colours(file):
  colours = np.stack(
    [picture() // 16, picture()[::-1] // 16, picture() // 32], 2
  )
  code = jpeg(colours.astype(np.uint8), quality=100, subsampling=0)
  dataset = made(colours.astype(np.uint8), photometric='YBR_FULL')
  read = image_file.read(
    saved(file, encapsulated(dataset, code, uid.JPEGBaseline8Bit))
  )
  wanted = colours @ [0.299, 0.587, 0.114]
  assert abs(read - wanted).max() <= 3


# What a header leaves out, or writes in its own way.


WINDOW = {'WindowCenter': '2000.5', 'WindowWidth': '3000'}


def test_a_lookup_table_that_was_emptied_is_none(file, plain):
  windowed = image_file.read(saved(file, made(picture(), bits=12, **WINDOW)))
  for keyword in ('ModalityLUTSequence', 'VOILUTSequence'):
    for item in (pydicom.Dataset(), pydicom.Dataset()):
      item.LUTExplanation = 'emptied'
      empty = {keyword: [item]}
      read = image_file.read(saved(file, made(picture(), bits=12, **empty)))
      np.testing.assert_array_equal(read, plain)
      both = made(picture(), bits=12, **WINDOW, **empty)
      np.testing.assert_array_equal(
        image_file.read(saved(file, both)), windowed
      )


@pytest.mark.parametrize(
  'before, after',
  [(b'2000.5', b'2000,5'), (b'LINEAR', b'linear'), (b'3000', b'3e+3')],
)
def test_numbers_and_words_may_be_written_loosely(file, before, after):
  dataset = made(picture(), bits=12, VOILUTFunction='LINEAR', **WINDOW)
  windowed = image_file.read(saved(file, dataset))
  with open(file, 'rb') as stream:
    content = stream.read()
  assert content.count(before) == 1
  with open(file, 'wb') as stream:
    stream.write(content.replace(before, after))
  np.testing.assert_array_equal(image_file.read(file), windowed)


def test_a_jpeg_2000_may_lie_in_the_boxes_of_a_jp2_file(file):
  grey = (picture() // 16).astype(np.uint8)
  stream = io.BytesIO()
  Image.fromarray(grey).save(stream, 'JPEG2000')
  assert stream.getvalue()[4:8] == b'jP  '
  dataset = encapsulated(made(grey), stream.getvalue(), uid.JPEG2000Lossless)
  np.testing.assert_array_equal(image_file.read(saved(file, dataset)), grey)


@pytest.mark.parametrize('syntax', ['Implicit', 'Explicit'])
@pytest.mark.parametrize('header', [False, True])
def test_a_file_without_preamble_is_read_as_what_it_is(
  tmp_path, plain, syntax, header
):
  dataset = made(picture(), bits=12, PatientID='7')
  name = getattr(uid, f'{syntax}VRLittleEndian')
  dataset.file_meta.TransferSyntaxUID = name
  saved(tmp_path / 'whole', dataset)
  content = (tmp_path / 'whole').read_bytes()
  start = 132
  if not header:  # its length stands in its first element
    start = 144 + int.from_bytes(content[140:144], 'little')
  file = tmp_path / 'IM0001'
  file.write_bytes(content[start:])
  assert formats.kind(file) == 'DICOM'
  np.testing.assert_array_equal(image_file.read(str(file)), plain)
  assert image_file.header(str(file))['patient'] == '7'


# What comes out as one grey level.


@pytest.mark.parametrize(
  'elements, reason',
  [
    (
      {'WindowCenter': '40', 'WindowWidth': '80'},
      'its window, 80 wide at 40, lies beside them',
    ),
    ({'RescaleSlope': '0', 'RescaleIntercept': '3'}, 'its RescaleSlope is 0'),
    (
      {'VOILUTSequence': dicom_test.lut(range(9), 0, 16)},
      'its VOI LUT lies beside them',
    ),
  ],
)
def test_a_header_that_makes_one_grey_level_is_the_reason(
  file, elements, reason
):
  line = refusal(saved(file, made(picture(), bits=12, **elements)))
  assert line == (
    f'its stored values, 500 to {picture().max()}, all come out as one grey'
    f' level: {reason}'
  )
