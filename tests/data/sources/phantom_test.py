"""The phantom: exact labels and boxes, and no cue but the opacities."""

import collections
import dataclasses
import hashlib
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from dpjax.data.sources import phantom
from dpjax.errors import UserError


@pytest.fixture(scope='module')
def records():
  return phantom.read(300, seed=7, size=96)


def plan_of(label, index=0, patient=0, seed=3):
  return phantom.Plan(seed=seed, index=index, patient=patient, label=label)


def covered(boxes, size):
  """Pixels whose centre lies in one of the boxes: (S, S) bool."""
  c = (np.arange(size) + 0.5) / size
  mask = np.zeros((size, size), bool)
  for x0, y0, x1, y1 in boxes:
    mask |= ((c > y0) & (c < y1))[:, None] & ((c > x0) & (c < x1))[None, :]
  return mask


def test_the_full_count_has_the_counts_of_rsna():
  assert phantom.class_counts(26684) == (20672, 2614, 3266, 119, 13)


@pytest.mark.parametrize('count', [50, 51, 64, 100, 999, 20012, 100_000])
def test_counts_are_exact_long_tailed_and_leave_no_class_bare(count):
  counts = phantom.class_counts(count)
  assert sum(counts) == count
  assert min(counts) >= 10
  assert max(counts[3:]) <= min(counts[:3])


def test_the_rarest_classes_may_have_more_than_is_theirs():
  assert phantom.class_counts(7800) == (6036, 764, 955, 35, 10)
  assert phantom.class_counts(7800, least=40) == (6001, 764, 955, 40, 40)


@pytest.mark.parametrize(('count', 'least'), [(49, 10), (199, 40)])
def test_too_small_a_count_is_one_line_that_names_the_field(count, least):
  with pytest.raises(
    UserError, match=rf'^data\.phantom\.count is {count}: .+$'
  ) as e:
    phantom.read(count, seed=0, least=least)
  assert '\n' not in str(e.value)


def test_the_set_has_the_promised_classes(records):
  counts = collections.Counter(len(r.boxes) for r in records)
  assert tuple(counts[c] for c in range(5)) == phantom.class_counts(300)
  assert len({r.id for r in records}) == 300
  labels = [len(r.boxes) for r in records]
  assert labels != sorted(labels)


def test_the_number_of_opacities_is_that_of_the_boxes(records):
  for r in records:
    assert r.names == r.findings == ('opacity',) * len(r.boxes)
    assert r.label is None  # labels.assign counts the boxes


def test_boxes_lie_in_the_image_and_apart_from_each_other(records):
  for r in records:
    for i, (x0, y0, x1, y1) in enumerate(r.boxes):
      assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
      assert min(x1 - x0, y1 - y0) >= phantom.MIN_BOX
      for u0, v0, u1, v1 in r.boxes[:i]:
        assert x0 > u1 or u0 > x1 or y0 > v1 or v0 > y1


def test_four_opacities_find_room_in_every_chest():
  for index in range(60):
    assert len(phantom.opacities(plan_of(4, index, index))) == 4


def test_a_box_bounds_where_the_opacity_reaches_its_share_of_the_peak():
  n = 400
  for index in range(12):
    for opacity in phantom.opacities(plan_of(2, index, index)):
      # The bilinear surface, densely: np.interp along one axis at a time.
      nodes, dense = np.linspace(0, 1, 32), np.linspace(0, 1, n)
      rows = [np.interp(dense, nodes, row) for row in opacity.field]
      surface = np.stack(
        [np.interp(dense, nodes, c) for c in np.transpose(rows)]
      )
      above = surface.T >= phantom.BOX_SHARE * opacity.field.max()
      px0, py0, px1, py1 = opacity.patch
      ys = py0 + (py1 - py0) * dense[above.any(axis=1)]
      xs = px0 + (px1 - px0) * dense[above.any(axis=0)]
      wide = np.array(opacity.box) - [xs[0], ys[0], xs[-1], ys[-1]]
      wide *= [-1, -1, 1, 1]
      # Nothing is left out (up to rounding), and at most a node is too much.
      assert (wide > -1e-6).all()
      assert (wide < np.tile([px1 - px0, py1 - py0], 2) / 31).all()


def test_boxes_cover_what_the_opacities_change():
  for index in range(12):
    plan = plan_of(1 + index % 4, index, index)
    boxes = [o.box for o in phantom.opacities(plan)]
    healthy = phantom.render(dataclasses.replace(plan, label=0)).astype(int)
    change = np.abs(phantom.render(plan) - healthy)
    inside = covered(boxes, 256)
    # At the box's edge an opacity is at 0.3 of its peak and falling.
    assert change[inside].sum() > 0.85 * change.sum()
    for box in boxes:
      assert change[covered([box], 256)].mean() > 10 * change[~inside].mean()


def test_beyond_the_opacities_the_label_changes_no_bit():
  """So anatomy, exposure, noise and distractors have one law at all labels."""
  for index in range(12):
    plan = plan_of(1 + index % 4, index, index)
    patches = [o.patch for o in phantom.opacities(plan)]
    sick = phantom.render(plan, 128)
    healthy = phantom.render(dataclasses.replace(plan, label=0), 128)
    outside = ~covered(patches, 128)
    assert outside.mean() > 0.3
    np.testing.assert_array_equal(sick[outside], healthy[outside])
    assert (sick != healthy).any()


def test_mean_brightness_does_not_give_the_label_away():
  healthy, sick = [], []
  for r in phantom.read(900, seed=1, size=48):
    (sick if r.boxes else healthy).append(r)
  means = [
    np.array([r.pixels().mean() for r in group[:180]])
    for group in (healthy, sick)
  ]
  auroc = (means[1][:, None] > means[0][None, :]).mean()
  # The standard error of an AUROC of two groups of 180 is 0.03.
  assert abs(auroc - 0.5) < 0.12


def test_one_patient_in_five_has_two_exams_with_labels_of_their_own(records):
  groups = collections.defaultdict(list)
  for r in records:
    groups[r.group].append(r)
  sizes = collections.Counter(len(g) for g in groups.values())
  assert sizes == {1: 200, 2: 50}
  pairs = [g for g in groups.values() if len(g) == 2]
  assert any(len(a.boxes) != len(b.boxes) for a, b in pairs)


def test_exams_of_one_patient_share_the_anatomy_only():
  shape = ('apex', 'dome', 'width', 'mediastinum', 'knob', 'ventricle')

  def anatomy(index, patient):
    chest = phantom._chest(plan_of(0, index, patient))
    return [getattr(chest, name) for name in shape]

  assert anatomy(1, patient=5) == anatomy(2, patient=5)
  assert anatomy(1, patient=5) != anatomy(1, patient=6)
  one = phantom.render(plan_of(0, 1, 5), 64)
  assert (one != phantom.render(plan_of(0, 2, 5), 64)).mean() > 0.5
  assert (one != phantom.render(plan_of(0, 1, 6), 64)).mean() > 0.5


def test_pixels_survive_pickling_and_do_not_depend_on_the_order(records):
  some = records[:6]
  forwards = [r.pixels() for r in some]
  backwards = [pickle.loads(pickle.dumps(r)).pixels() for r in some[::-1]]
  for a, b in zip(forwards, backwards[::-1], strict=True):
    assert a.dtype == np.uint8 and a.shape == (96, 96)
    np.testing.assert_array_equal(a, b)


def test_another_process_gives_the_same_set_and_loads_numpy_only(records):
  code = """
import hashlib, sys
from dpjax.data.sources import phantom
records = phantom.read(300, seed=7, size=96)
digest = hashlib.sha256()
for r in records[40:43]:
  digest.update(r.pixels().tobytes())
  digest.update(repr((r.id, r.boxes, r.group)).encode())
print(digest.hexdigest())
print([m for m in ('cv2', 'jax', 'scipy', 'sklearn') if m in sys.modules])
"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    capture_output=True,
    text=True,
    check=True,
  )
  digest = hashlib.sha256()
  for r in records[40:43]:
    digest.update(r.pixels().tobytes())
    digest.update(repr((r.id, r.boxes, r.group)).encode())
  assert done.stdout.split('\n')[:2] == [digest.hexdigest(), '[]']


def test_another_seed_is_another_set(records):
  other = phantom.read(300, seed=8, size=96)
  assert [r.boxes for r in other] != [r.boxes for r in records]
  assert [r.group for r in other] != [r.group for r in records]
  assert (other[0].pixels() != records[0].pixels()).mean() > 0.5


def test_the_stamp_changes_with_whatever_changes_the_pixels(records):
  stamps = {r.stamp for r in records}
  stamps.add(phantom.read(50, seed=8, size=96)[0].stamp)
  stamps.add(phantom.read(50, seed=7, size=64)[0].stamp)
  assert len(stamps) == 3


def test_a_smaller_image_shows_the_same_chest():
  for index in range(5):
    plan = plan_of(2, index, index)
    large = phantom.render(plan, 256).reshape(128, 2, 128, 2).mean((1, 3))
    small = phantom.render(plan, 128)
    assert small.shape == (128, 128)
    # Noise differs, by some 3 grey levels; another chest differs by 30.
    assert np.abs(large - small).mean() < 5


def test_images_use_the_grey_scale_as_a_radiograph_does(records):
  """Dark air outside, dark lungs, bright mediastinum; nothing is blank."""
  for r in records[:20]:
    image = r.pixels()
    low, high = np.percentile(image, [2, 98])
    assert low < 60 and high > 150
