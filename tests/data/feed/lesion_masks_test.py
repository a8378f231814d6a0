"""Lesion masks: both twins against exact areas, and each other."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
import shapely

from dpjax.data.feed import decisions, lesion_masks, render_host
from tests.data.feed import drawn_views

STAGES_112 = {'stage1': 28, 'stage2': 14, 'stage3': 7, 'stage4': 4}
STAGES_224 = {'stage1': 56, 'stage2': 28, 'stage3': 14, 'stage4': 7}
ODD = {'stage1': 24, 'stage2': 9}


def hard_views(count, seed=0):
  """Turned crops of overlapping and border boxes: boxes, num, affine."""
  rng = np.random.default_rng(seed)
  boxes, num = drawn_views.random_boxes(rng, count, most=3)
  boxes[0], num[0] = [[0.3, 0.3, 0.6, 0.6], [0.4, 0.2, 0.7, 0.5], [0] * 4], 2
  boxes[1, 0], num[1] = (0, 0, 0.3, 1), 1  # along the image's border
  num[2] = 0
  settings = dataclasses.replace(
    drawn_views.USUAL, scale=(0.3, 0.8), rotation=25
  )
  affine = decisions.draw(rng, boxes, num, settings, 1)['affine'][:, 0]
  return boxes, num, affine


def union_in_output(boxes, affine):
  return shapely.union_all(
    [
      shapely.Polygon(drawn_views.to_output(affine, drawn_views.corners(box)))
      for box in boxes
    ]
  )


def cells_of(side):
  low = np.arange(side) / side
  x, y = np.meshgrid(low, low)
  return shapely.box(x, y, x + 1 / side, y + 1 / side)  # (side, side)


def edges_of(polygons):
  rings = shapely.get_rings(shapely.get_parts(polygons))
  points = [shapely.get_coordinates(ring) for ring in rings]
  return shapely.linestrings(
    np.concatenate([np.stack([p[:-1], p[1:]], 1) for p in points])
  )


def device_masks(stages, kind):
  return jax.jit(
    functools.partial(lesion_masks.on_device, stage_sizes=stages, kind=kind)
  )


@pytest.mark.parametrize('stages', [STAGES_112, STAGES_224, ODD])
def test_area_masks_are_the_exact_covered_shares(stages):
  """Up to 4 x 4 sampling: a straight edge crosses at most 7 of a cell's 16
  sub-cells, and where it misjudges one, it is by half of it at most.
  """
  boxes, num, affine = hard_views(8)
  masks = lesion_masks.on_host(boxes, num, affine, stages)
  frame = shapely.box(0, 0, 1, 1)
  step = 1 / (4 * max(stages.values()))
  gaps = []
  for b in range(len(num)):
    if not num[b]:
      continue
    union = union_in_output(boxes[b, : num[b]], affine[b])
    shapely.prepare(union)
    inside = union.intersection(frame)
    edges = edges_of(union)
    for name, side in stages.items():
      cells = cells_of(side)
      exact = shapely.area(shapely.intersection(union, cells)) * side**2
      crossing = shapely.intersects(edges[:, None, None], cells).sum(0)
      gap = np.abs(masks[name][b] - exact)
      assert (gap <= crossing * 7 / 32 + 1e-5).all()
      # The same argument along the whole outline.
      total = abs(masks[name][b].mean() - inside.area)
      assert total <= inside.length * step / math.sqrt(2) + 20 * step**2
      gaps.append(total)
  assert np.mean(gaps) < 1e-3 and max(gaps) < 4e-3  # shares of the frame


@pytest.mark.parametrize('stages', [STAGES_112, STAGES_224])
def test_binary_masks_tell_whether_a_cell_centre_is_covered(stages):
  boxes, num, affine = hard_views(8)
  masks = lesion_masks.on_host(boxes, num, affine, stages, kind='binary')
  for b in range(len(num)):
    union = union_in_output(boxes[b, : num[b]], affine[b])
    for name, side in stages.items():
      x, y = np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2)
      covered = shapely.contains_xy(union, x, y)
      # float32 may decide otherwise only on the outline itself.
      sure = shapely.distance(union.boundary, shapely.points(x, y)) > 1e-6
      sure |= num[b] == 0
      assert sure.mean() > 0.99
      np.testing.assert_array_equal(masks[name][b][sure], covered[sure])


def test_overlapping_boxes_count_once():
  box = [0.25, 0.25, 0.75, 0.5]
  affine = decisions.identity(2)['affine'][:, 0]
  boxes = np.array([[box, box], [box, [0] * 4]], np.float32)
  masks = lesion_masks.on_host(boxes, np.array([2, 1]), affine, STAGES_112)
  for mask in masks.values():
    np.testing.assert_array_equal(mask[0], mask[1])
    assert mask.max() == 1
  assert masks['stage1'][0].mean() == pytest.approx(0.125)


def test_padding_is_no_box():
  affine = decisions.identity(1)['affine'][:, 0]
  boxes = np.array([[[0, 0, 1, 1]]], np.float32)
  for kind in ('area', 'binary'):
    masks = lesion_masks.on_host(boxes, np.array([0]), affine, STAGES_112, kind)
    assert {name: mask.shape for name, mask in masks.items()} == {
      name: (1, side, side) for name, side in STAGES_112.items()
    }
    assert all((mask == 0).all() for mask in masks.values())


def test_the_mask_lies_on_the_pixels_it_belongs_to():
  """A white box on black, rendered, is its own mask at full resolution."""
  boxes = np.array([[[0.25, 0.375, 0.5, 0.75]]], np.float32)
  image = np.zeros((1, 256, 256), np.uint8)
  image[0, 96:192, 64:128] = 255
  affine = drawn_views.affine_of(0.8, 0.7, (0.4, 0.55), flip=True, degrees=12)
  view = render_host.render(image, drawn_views.decisions_of(affine), 256)[0, 0]
  mask = lesion_masks.on_host(
    boxes, np.array([1]), affine[None].astype(np.float32), {'pixels': 256}
  )['pixels'][0]
  # They differ on the outline alone: a bilinear edge is a pixel wide.
  assert np.abs(view / 255 - mask).max() < 0.6
  assert np.abs(view / 255 - mask).mean() < 0.005
  assert abs(view.mean() / 255 - mask.mean()) < 1e-3


def test_an_unknown_kind_of_mask_is_refused_by_name():
  boxes, num, affine = hard_views(4)
  with pytest.raises(ValueError, match=r'mgacr\.mask is .soft.'):
    lesion_masks.on_host(boxes, num, affine, STAGES_112, kind='soft')


@pytest.mark.parametrize('stages', [STAGES_112, STAGES_224, ODD])
@pytest.mark.parametrize('kind', ['area', 'binary'])
def test_both_masks_agree(stages, kind):
  boxes, num, drawn = drawn_views.lesion_views(16, rotation=25, scale=(0.3, 1))
  affine = drawn['affine'][:, 0]
  on_host = lesion_masks.on_host(boxes, num, affine, stages, kind)
  on_device = device_masks(stages, kind)(boxes, num, affine)
  assert on_host.keys() == on_device.keys() == stages.keys()
  for name, side in stages.items():
    assert on_host[name].shape == on_device[name].shape == (16, side, side)
    assert on_host[name].dtype == on_device[name].dtype == np.float32
    # A point on an outline, up to float32, may count on one side only.
    differs = np.abs(on_host[name] - on_device[name]) > 1e-6
    assert differs.mean() < 1e-3
    assert 0 < on_host[name].mean() < 1


def test_padding_is_no_box_on_the_device():
  boxes = np.array([[[0, 0, 1, 1]]], np.float32)
  affine = decisions.identity(1)['affine'][:, 0]
  for num, value in ((0, 0), (1, 1)):
    found = device_masks(STAGES_112, 'area')(boxes, np.array([num]), affine)
    for mask in found.values():
      np.testing.assert_array_equal(mask, value)


def test_an_unknown_kind_is_refused_on_the_device_too():
  boxes, num, drawn = drawn_views.lesion_views(4)
  with pytest.raises(ValueError, match=r'mgacr\.mask is .soft.'):
    lesion_masks.on_device(
      boxes, num, drawn['affine'][:, 0], STAGES_112, 'soft'
    )
