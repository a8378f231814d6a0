"""One image of a set: its boxes in the unit frame, and ages."""

import numpy as np
import pytest

from dpjax.data import radiograph
from dpjax.errors import SourceFault


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
  with pytest.raises(SourceFault) as caught:
    record(boxes, frame).unit_boxes(300, 200)
  message = str(caught.value)
  assert str(boxes[1]) in message and '\n' not in message
  assert f'{width:g} x {height:g}' in message


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


def test_a_frame_that_lies_on_its_side_is_refused():
  one = record(((30, 200, 90, 250),), (320, 256))
  with pytest.raises(SourceFault, match=r'320 x 256.*upright, 256 x 320'):
    one.unit_boxes(320, 256)
  # Nothing is known of what has no box, nor of another aspect.
  record((), (320, 256)).unit_boxes(320, 256)
  _, out = record(((30, 200, 90, 250),), (320, 256)).unit_boxes(640, 500)
  assert out == 0
