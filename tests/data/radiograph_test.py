"""One image of a set: its boxes in the unit frame, and a record of a file."""

import os
import pathlib
import pickle

import cv2
import numpy as np
import pytest

from dpjax.data import radiograph
from dpjax.data.sources import files


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def record(boxes, frame=radiograph.UNIT):
  return radiograph.Radiograph('x', None, boxes, frame=frame)


def test_pixel_boxes_are_divided_by_the_width_and_height():
  boxes = ((10.0, 30.0, 150.0, 90.0), (0.0, 0.0, 200.0, 300.0))
  unit, clipped = record(boxes, None).unit_boxes(300, 200)
  wanted = np.float32([[0.05, 0.1, 0.75, 0.3], [0, 0, 1, 1]])
  np.testing.assert_array_equal(unit, wanted)
  assert unit.dtype == np.float32 and clipped == 0


def test_unit_boxes_do_not_depend_on_the_image():
  boxes = ((0.25, 0.5, 0.75, 1.0),)
  for shape in ((7, 9), (1000, 2)):
    np.testing.assert_array_equal(record(boxes).unit_boxes(*shape)[0], boxes)


def test_boxes_of_another_frame_are_divided_by_it_and_not_by_the_image():
  # Boxes of the 1024 pixels that an image had before it was made smaller.
  boxes = ((256.0, 512.0, 768.0, 1024.0),)
  unit, clipped = record(boxes, (1024, 2048)).unit_boxes(224, 112)
  np.testing.assert_array_equal(unit, [[0.25, 0.25, 0.75, 0.5]])
  assert clipped == 0


def test_no_boxes_are_an_array_of_none():
  unit, clipped = record(()).unit_boxes(10, 10)
  assert unit.shape == (0, 4) and clipped == 0


def test_boxes_that_stick_out_are_clipped_and_counted():
  boxes = ((-5.0, 2.0, 50.0, 50.0), (1.0, 1.0, 9.0, 9.0), (90, 90, 120, 101))
  unit, clipped = record(boxes, None).unit_boxes(100, 100)
  assert clipped == 2
  np.testing.assert_array_equal(unit[0], np.float32([0, 0.02, 0.5, 0.5]))
  np.testing.assert_array_equal(unit[2], np.float32([0.9, 0.9, 1, 1]))


def test_rounded_decimals_of_a_csv_do_not_stick_out():
  boxes = ((10.0, 10.0, 100.004, 100.0),)
  unit, clipped = record(boxes, None).unit_boxes(100, 100)
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
@pytest.mark.parametrize('frame', [radiograph.UNIT, (200, 300), None])
def test_a_box_without_area_in_the_frame_is_named(box, frame):
  width, height = frame or (200, 300)
  scale = np.array([width, height, width, height])
  boxes = tuple(
    tuple(map(float, unit * scale)) for unit in ((0.1, 0.1, 0.2, 0.2), box)
  )
  with pytest.raises(ValueError) as caught:
    record(boxes, frame).unit_boxes(300, 200)
  message = str(caught.value)
  assert str(boxes[1]) in message and '\n' not in message
  assert f'{width:g} x {height:g}' in message


def test_a_record_of_a_file_travels_and_reads_its_pixels(tmp_path):
  pixels = noise(20, 30)
  file = tmp_path / 'älter 1.png'
  cv2.imwrite(str(file), pixels)
  made = files.record(
    file, 'train/1', boxes=((1, 2, 3, 4),), split='test', group='patient 7'
  )
  assert (made.id, made.group, made.split) == ('train/1', 'patient 7', 'test')
  assert made.frame is None and made.file == str(file)
  read = pickle.loads(pickle.dumps(made))
  np.testing.assert_array_equal(read.pixels(), pixels)
  of_1024 = files.record(file, 'x', frame=(1024, 1024))
  assert of_1024.frame == (1024, 1024)


def test_only_of_a_file_that_may_be_dicom_is_a_header_read(tmp_path):
  def header(name):
    (tmp_path / name).write_bytes(b'')
    made = files.record(tmp_path / name, 'x')
    return pickle.loads(pickle.dumps(made)).header

  assert header('a.PNG') is None and header('a.jpeg') is None
  assert header('a.jfif') is None and header('a.gif') is None
  for name in ('a.dcm', '1.2.840.10008'):
    with pytest.raises(ValueError, match=f'{name}: empty'):
      header(name)()


def test_the_stamp_changes_with_the_file_and_not_with_its_place(tmp_path):
  def stamp(file):
    return files.record(file, 'x').stamp

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


@pytest.mark.parametrize(
  'text, years',
  {
    '0': '0',
    '58': '58',
    '058Y': '58',
    '011M': '0',
    '030M': '2',
    '104W': '2',
    '364D': '0',
    '999D': '2',
    '089Y': '89',
    '090Y': '90',
    '103Y': '90',
    '120': '90',
  }.items(),
)
def test_an_age_is_whole_years_and_none_is_above_90(text, years):
  assert radiograph.age(text) == years


@pytest.mark.parametrize(
  'text',
  [
    *(
      '',
      'Y',
      'x',
      '-5',
      '5 Y',
      '5y',
      '1e2',
      '5.5',
      '1234D',
      '\xb2',
      '٥',
      '5\n',
    ),
    *('121', '148', '414', '999Y'),  # slips of the pen
  ],
)
def test_what_is_no_age_of_anybody_is_left_out(text):
  assert radiograph.age(text) == ''
