"""Boxes of any source: no shares for pixels, and no lesion twice in silence."""

import pytest

from dpjax.data import radiograph
from dpjax.data.sources import boxes, tables
from dpjax.errors import UserError

A = (10.0, 20.0, 60.0, 90.0)
NEAR = (11.0, 21.0, 60.0, 90.0)  # of A: IoU .966
FAR = (11.0, 30.0, 60.0, 90.0)  # .84


def record(*own, names=(), frame=None, id='a'):
  return radiograph.Radiograph(
    id, pixels=None, boxes=own, names=names, frame=frame, where=f'row of {id}'
  )


def test_the_same_box_twice_is_a_fault_of_its_image():
  twice, once = record(A, FAR, A, id='b'), record(A)
  with pytest.raises(UserError, match=r'^row of b: the same box stands there'):
    boxes.check([once, twice], tables.Faults(), '')
  faults = tables.Faults('skip')
  assert boxes.check([once, twice], faults, '') == [once]
  ((place, id, reason),) = faults.found
  assert (place, id) == ('row of b', 'b') and '10, 20, 60, 90' in reason
  assert not faults.remarks


def test_one_place_may_have_two_findings_and_is_remarked_upon():
  both = record(A, A, names=('mass', 'nodule'))
  faults = tables.Faults()
  assert boxes.check([both], faults, '') == [both]
  (line,) = faults.remarks
  assert line.startswith('1 image has boxes that nearly coincide')
  with pytest.raises(UserError, match=r'\(mass\)'):
    boxes.check([record(A, A, names=('mass', 'mass'))], faults, '')


def test_boxes_that_nearly_coincide_are_counted_with_an_example():
  assert boxes.overlap(A, NEAR) > boxes.NEAR > boxes.overlap(A, FAR) > 0.8
  faults = tables.Faults()
  records = [record(A, FAR, id='x'), record(FAR, A, NEAR, id='y'),
             record(NEAR, A, id='z')]  # fmt: skip
  assert boxes.check(records, faults, '') == records
  (line,) = faults.remarks
  assert line.startswith('2 images have boxes') and 'such as y:' in line


@pytest.mark.parametrize('frame', [None, (1024.0, 1024.0)])
def test_boxes_that_all_lie_in_0_to_1_are_no_pixels(frame):
  share = record((0.1, 0.2, 0.3, 1.0), frame=frame)
  with pytest.raises(UserError, match=r'^row of a and all.*0\.\.1.*say so$'):
    boxes.check([share], tables.Faults(), 'say so')
  said = [record((0.1, 0.2, 0.3, 1.0), frame=radiograph.UNIT)]
  assert boxes.check(said, tables.Faults(), '') == said


@pytest.mark.parametrize('frame', [None, (1024.0, 1024.0)])
def test_a_box_in_0_to_1_among_others_in_pixels_is_a_fault_of_its_image(frame):
  share = record(A, (0.1, 0.2, 0.3, 1.0), frame=frame)
  pixels = record((0.0, 0.5, 1.5, 1.0), frame=frame, id='b')
  said = record((0.1, 0.2, 0.3, 1.0), frame=radiograph.UNIT, id='c')
  faults = tables.Faults('skip')
  assert boxes.check([share, pixels, said], faults, '') == [pixels, said]
  ((place, id, reason),) = faults.found
  assert (place, id) == ('row of a', 'a')
  assert reason.startswith('the box 0.1, 0.2, 0.3, 1 lies in 0..1')


@pytest.mark.parametrize(
  'columns, form, reason',
  [
    (('xmin', 'ymin', 'xmax', 'ymax'), 'sides', "'xmax' is a corner by its"),
    (('x', 'y', 'x2', 'y2'), 'sides', '--config.data.csv.box_form=corners'),
    (('Left', 'Top', 'Right', 'Bottom'), 'sides', "'Right' is a corner"),
    (('x_0', 'y_0', 'w', 'Y_MAX'), 'sides', "'Y_MAX' is a corner"),
    (('x', 'y', 'width', 'height'), 'corners', "'width' is a side by its"),
    (('x', 'y', 'x2', 'h'), 'corners', "'h' is a side by its"),
    (('xmin', 'xmax', 'ymin', 'ymax'), 'corners', "'xmax' stands where y is"),
    (('x', 'y', 'height', 'width'), 'sides', "'height' stands where x is"),
  ],
)
def test_columns_whose_names_say_another_form_are_refused(
  columns, form, reason
):
  with pytest.raises(UserError, match=r'^config\.data\.csv\.box_') as caught:
    boxes.check_form(columns, form)
  assert reason in str(caught.value)


@pytest.mark.parametrize(
  'columns, form',
  [
    (('x', 'y', 'width', 'height'), 'sides'),
    (('x1', 'y1', 'w', 'h'), 'sides'),
    (('Bbox [x', 'y', 'w', 'h]'), 'sides'),
    (('a', 'b', 'c', 'd'), 'sides'),
    (('xmin', 'ymin', 'xmax', 'ymax'), 'corners'),
    (('x1', 'y1', 'x2', 'y2'), 'corners'),
    (('x0', 'y0', 'x1', 'y1'), 'corners'),
    (('left', 'top', 'right', 'bottom'), 'corners'),
    (('a', 'b', 'c', 'd'), 'corners'),
  ],
)
def test_columns_whose_names_say_their_form_or_nothing_are_taken(columns, form):
  boxes.check_form(columns, form)
