"""One image of a set: its pixels as stored, its boxes in the unit frame."""

import os
import pathlib
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest

from dpjax.data import radiograph


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def record(boxes, units='unit'):
  return radiograph.Radiograph('x', None, 1, boxes, 'x', box_units=units)


def one_line(caught):
  message = str(caught.value)
  assert message and '\n' not in message
  return message


def test_pixel_boxes_are_divided_by_the_width_and_height():
  boxes = ((10.0, 30.0, 150.0, 90.0), (0.0, 0.0, 200.0, 300.0))
  unit, clipped = record(boxes, 'pixel').unit_boxes(300, 200)
  wanted = np.float32([[0.05, 0.1, 0.75, 0.3], [0, 0, 1, 1]])
  np.testing.assert_array_equal(unit, wanted)
  assert unit.dtype == np.float32 and clipped == 0


def test_unit_boxes_do_not_depend_on_the_image():
  boxes = ((0.25, 0.5, 0.75, 1.0),)
  for shape in ((7, 9), (1000, 2)):
    np.testing.assert_array_equal(record(boxes).unit_boxes(*shape)[0], boxes)


def test_no_boxes_are_an_array_of_none():
  unit, clipped = record(()).unit_boxes(10, 10)
  assert unit.shape == (0, 4) and clipped == 0


def test_boxes_that_stick_out_are_clipped_and_counted():
  boxes = ((-5.0, 2.0, 50.0, 50.0), (1.0, 1.0, 9.0, 9.0), (90, 90, 120, 101))
  unit, clipped = record(boxes, 'pixel').unit_boxes(100, 100)
  assert clipped == 2
  np.testing.assert_array_equal(unit[0], np.float32([0, 0.02, 0.5, 0.5]))
  np.testing.assert_array_equal(unit[2], np.float32([0.9, 0.9, 1, 1]))


def test_rounded_decimals_of_a_csv_do_not_stick_out():
  boxes = ((10.0, 10.0, 100.004, 100.0),)
  unit, clipped = record(boxes, 'pixel').unit_boxes(100, 100)
  assert clipped == 0 and unit.max() == 1


@pytest.mark.parametrize(
  'box',
  [
    (1.5, 0.1, 1.9, 0.5),  # right of the frame
    (0.1, -0.5, 0.5, -0.1),  # above it
    (1.0, 0.1, 1.5, 0.5),  # touches its edge
    (0.5, 0.1, 0.5, 0.5),  # no width
    (0.5, 0.1, 0.2, 0.5),  # turned round
    (float('nan'), 0.1, 0.5, 0.5),
  ],
)
def test_a_box_without_area_in_the_image_is_named(box):
  with pytest.raises(ValueError) as caught:
    record(((0.1, 0.1, 0.2, 0.2), box)).unit_boxes(300, 200)
  message = one_line(caught)
  assert message.startswith('x: ') and str(box) in message
  assert '200 x 300' in message


@pytest.mark.parametrize('shape', [(1, 1), (3, 2000), (2000, 3), (333, 211)])
def test_grey_images_of_any_size_are_read_as_stored(tmp_path, shape):
  image = noise(*shape)
  cv2.imwrite(str(tmp_path / 'a.png'), image)
  read = radiograph.read_grey(tmp_path / 'a.png')
  np.testing.assert_array_equal(read, image)
  assert read.dtype == np.uint8


def test_jpeg_colour_and_sixteen_bits_are_read_as_grey(tmp_path):
  image = noise(40, 30)
  smooth = cv2.GaussianBlur(image, (0, 0), 4)
  # Grey in three equal channels stays what it is.
  cv2.imwrite(str(tmp_path / 'colour.png'), np.dstack([image] * 3))
  cv2.imwrite(str(tmp_path / 'deep.png'), image.astype(np.uint16) * 257)
  cv2.imwrite(str(tmp_path / 'a.jpg'), smooth, [cv2.IMWRITE_JPEG_QUALITY, 100])
  for name in ('colour.png', 'deep.png'):
    read = radiograph.read_grey(tmp_path / name)
    np.testing.assert_array_equal(read, image)
  read = radiograph.read_grey(tmp_path / 'a.jpg').astype(int)
  # Quality 100 rounds cosine coefficients and pixels: two grey levels at most.
  assert np.abs(read - smooth).max() <= 2


def test_an_orientation_tag_is_not_obeyed(tmp_path):
  # Boxes count pixels of the stored rows; a viewer would turn this image.
  encoded = cv2.imencode('.jpg', noise(30, 20))[1].tobytes()
  entry = struct.pack('<HHHII', 1, 0x112, 3, 1, 6) + bytes(4)
  exif = b'Exif\0\0II*\0\x08\0\0\0' + entry
  tag = b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif
  file = tmp_path / 'turned.jpg'
  file.write_bytes(encoded[:2] + tag + encoded[2:])
  assert cv2.imread(str(file)).shape[:2] == (20, 30)  # The tag is valid.
  assert radiograph.read_grey(file).shape == (30, 20)


def png_header(width, height):
  """A PNG that claims to be huge."""

  def chunk(kind, data):
    check = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + check

  header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(bytes(9)))
    + chunk(b'IEND', b'')
  )


@pytest.mark.parametrize(
  'content',
  {
    'empty': b'',
    'text': b'id,label\n1,0\n',
    'half a JPEG': cv2.imencode('.jpg', noise(64, 64))[1].tobytes()[:1500],
    'half a PNG': cv2.imencode('.png', noise(64, 64))[1].tobytes()[:1500],
    'too large': png_header(60_000, 60_000),
  }.items(),
  ids=lambda item: item[0],
)
def test_a_file_that_is_no_whole_image_is_named_in_one_line(tmp_path, content):
  file = tmp_path / 'a.png'
  file.write_bytes(content[1])
  with pytest.raises(ValueError) as caught:
    radiograph.read_grey(file)
  assert str(file) in one_line(caught)


def test_a_missing_file_is_named_in_one_line(tmp_path):
  with pytest.raises(ValueError) as caught:
    radiograph.read_grey(tmp_path / 'gone.png')
  assert 'gone.png' in one_line(caught)


def test_a_record_of_a_file_travels_and_reads_its_pixels(tmp_path):
  image = noise(20, 30)
  file = tmp_path / 'älter 1.png'
  cv2.imwrite(str(file), image)
  made = radiograph.from_file(file, 'train/1', 1, ((1, 2, 3, 4),), split='test')
  assert (made.group, made.split, made.box_units) == (
    'train/1',
    'test',
    'pixel',
  )
  np.testing.assert_array_equal(
    pickle.loads(pickle.dumps(made)).pixels(), image
  )
  named = radiograph.from_file(file, 'train/1', 1, (), group='patient 7')
  assert named.group == 'patient 7'


def test_the_stamp_changes_with_the_file_and_not_with_its_place(tmp_path):
  def stamp(file):
    return radiograph.from_file(file, 'x', 0, ()).stamp

  file = tmp_path / 'a.png'
  cv2.imwrite(str(file), noise(20, 30))
  before = stamp(file)
  moved = pathlib.Path(file.rename(tmp_path / 'b.png'))
  assert stamp(moved) == before
  os.utime(moved, ns=(0, 0))
  touched = stamp(moved)
  cv2.imwrite(str(moved), noise(21, 30))
  os.utime(moved, ns=(0, 0))
  assert len({before, touched, stamp(moved)}) == 3
