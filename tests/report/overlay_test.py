"""Claims about dpjax.report.overlay."""

import cv2
import numpy as np
import pytest

from dpjax.report import overlay

SIDE = 64
BOXES = np.array([[0.25, 0.25, 0.75, 0.5], [0, 0, 0, 0]], np.float32)
NO_BOX = 0


def image(size=32):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (size, size)).astype(np.uint8)


def draw(cam=None, att_pos=None, att_neg=None, num_boxes=1, **changes):
  options = {'caption': ('label: 2', 'prediction: 0'), 'side': SIDE} | changes
  pixels = options.pop('image', image())
  maps = {'Grad-CAM': (cam, None), 'map+': (att_pos, 1), 'map-': (att_neg, 1)}
  maps = {title: one for title, one in maps.items() if one[0] is not None}
  return overlay.draw(pixels, BOXES, num_boxes, maps, **options)


def panel(row, i):
  left = i * (SIDE + overlay.GAP)
  return row[overlay.TITLE : overlay.TITLE + SIDE, left : left + SIDE]


@pytest.mark.parametrize('size', [32, 64, 100])
def test_without_boxes_the_first_panel_is_the_radiograph(size):
  pixels = image(size)
  row = draw(num_boxes=NO_BOX, image=pixels)
  method = cv2.INTER_AREA if size > SIDE else cv2.INTER_LINEAR
  expected = cv2.resize(pixels, (SIDE, SIDE), interpolation=method)
  for channel in range(3):
    np.testing.assert_array_equal(panel(row, 0)[..., channel], expected)


def test_only_the_maps_that_are_given_have_a_panel():
  flat = np.full((4, 4), 0.5)
  for maps in ((), (flat,), (None, flat, flat), (flat, flat, flat)):
    count = 1 + sum(m is not None for m in maps)
    row = draw(*maps)
    assert row.shape[1] == count * (SIDE + overlay.GAP) - overlay.GAP
    assert row.dtype == np.uint8
  same = draw(None, flat), draw(None, None, flat)
  np.testing.assert_array_equal(*(panel(row, 1) for row in same))


def test_a_map_of_zeros_leaves_the_radiograph_and_only_dims_it():
  row = draw(np.zeros((4, 4)), num_boxes=NO_BOX)
  dimmed = np.rint(overlay.DIMMED * panel(row, 0)).astype(np.uint8)
  np.testing.assert_array_equal(panel(row, 1), dimmed)


def test_grad_cam_is_a_share_of_its_maximum_and_attention_is_not():
  half = np.full((4, 4), 0.5)
  half[0, 0] = 0.25
  row = draw(half, half, num_boxes=NO_BOX)
  whole = draw(2 * half, 2 * half, num_boxes=NO_BOX)
  np.testing.assert_array_equal(panel(row, 1), panel(whole, 1))
  np.testing.assert_array_equal(panel(whole, 1), panel(whole, 2))
  assert not np.array_equal(panel(row, 2), panel(whole, 2))


def test_heat_lies_where_the_map_is_and_grows_with_it():
  grid = np.zeros((4, 4))
  grid[0, 3], grid[3, 0] = 1, 0.5
  grey = np.full((32, 32), 128, np.uint8)
  heat = panel(draw(grid, num_boxes=NO_BOX, image=grey), 1).astype(int)
  colour = heat.max(-1) - heat.min(-1)  # 0 for a grey
  assert colour[0, -1] > colour[-1, 0] > 20
  assert (colour[20:40, 20:40] == 0).all()


def test_the_radiograph_stays_visible_under_the_hottest_heat():
  step = np.repeat(np.array([[60, 180]], np.uint8), 32, axis=0)
  step = np.repeat(step, 16, axis=1)
  heat = panel(draw(np.ones((2, 2)), num_boxes=NO_BOX, image=step), 1)
  left, right = heat[:, :16].mean(), heat[:, -16:].mean()
  assert right - left > 0.3 * (180 - 60)


def test_boxes_are_drawn_on_every_panel_and_padding_is_not():
  flat = np.full((4, 4), 0.5)
  row = draw(flat, flat, flat)
  for i in range(4):
    box = (panel(row, i) == overlay.BOX).all(-1)
    ys, xs = np.nonzero(box)
    for low, high, values in ((0.25, 0.5, ys), (0.25, 0.75, xs)):
      assert abs(values.min() - low * (SIDE - 1)) <= 1.5
      assert abs(values.max() - high * (SIDE - 1)) <= 1.5
  assert not (draw(flat, num_boxes=0) == overlay.BOX).all(-1).any()


def test_boxes_stand_out_on_every_grey_and_on_every_heat():
  ramp = np.linspace(0, 1, SIDE)
  cams = np.tile(ramp, (SIDE, 1))
  greys = np.tile(np.rint(255 * ramp).astype(np.uint8)[:, None], (1, SIDE))
  row = draw(cams, num_boxes=NO_BOX, image=greys)
  for i in range(2):
    distance = [
      np.abs(panel(row, i).astype(int) - colour).max(-1)
      for colour in (overlay.BOX, overlay.EDGE)
    ]
    # Far from the line, or from its edge, in one channel at least.
    assert np.max(distance, axis=0).min() > 80


def test_each_line_of_the_caption_has_its_place():
  rows = [
    draw(caption=(f'label: {label}', f'prediction: {prediction}'), side=128)
    for label, prediction in (
      ('2', '0'), ('3', '0'), ('2', '1'), (50 * 'long ', '0')
    )
  ]  # fmt: skip
  captions = [row[overlay.TITLE + 128 :] for row in rows]
  two, three, one, long = captions
  differ = [(two != other).any((1, 2)) for other in (three, one, long)]
  half = overlay.CAPTION // 2
  # Each has a line of its own, whatever the other's length.
  assert differ[0][:half].any() and not differ[0][half:].any()
  assert differ[1][half:].any() and not differ[1][:half].any()
  assert differ[2][:half].any() and not differ[2][half:].any()


def test_a_long_name_is_cut_and_its_line_end_does_not_break_the_row():
  row = draw(caption=('consolidation\n' * 20,))
  assert row.shape == draw().shape
  assert (row[:, -1] == overlay.BACKGROUND[0])[: overlay.TITLE].all()


def test_arguments_are_not_changed():
  pixels, cam, boxes = image(), np.ones((4, 4)), BOXES.copy()
  draw(cam, cam, image=pixels)
  np.testing.assert_array_equal(pixels, image())
  np.testing.assert_array_equal(cam, 1)
  np.testing.assert_array_equal(BOXES, boxes)


def test_a_mask_tints_what_it_covers_and_nothing_else():
  image = np.full((32, 32), 100, np.uint8)
  mask = np.zeros((4, 4))
  mask[1, 2], mask[3, 3] = 1, 0.5
  tile = overlay.masked(image, mask, True, 32)
  assert tile.shape == (32, 32, 3)
  tinted = (tile != 100).any(axis=-1)
  np.testing.assert_array_equal(
    tinted, np.kron(mask > 0, np.ones((8, 8))).astype(bool)
  )
  # Denser where the mask is higher.
  assert tile[8, 16, 2] < tile[31, 31, 2] < 100


def test_images_and_maps_of_another_shape_are_refused():
  with pytest.raises(
    ValueError, match=r'must be \(S, S\) uint8, got \(2, 2, 3'
  ):
    draw(image=np.zeros((2, 2, 3), np.uint8))
  with pytest.raises(ValueError, match='float64'):
    draw(image=np.zeros((2, 2)))
  with pytest.raises(ValueError, match=r'must be \(h, w\), got \(1, 4, 4\)'):
    draw(np.zeros((1, 4, 4)))
