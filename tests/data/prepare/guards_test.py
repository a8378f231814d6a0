"""What looks wrong with a whole set is warned of, and what is right is not."""

import json

import cv2
import numpy as np
import pytest

from dpjax.data import radiograph
from dpjax.data.prepare import duplicates, guards
from dpjax.data.sources import files
from dpjax.errors import UserError
from tests.data import source_files as sources

BROAD = (5, 250, 3)  # tones of a radiograph


def made(count=60, **changes):
  """A table of `count` images, two a patient, half of them with a box."""
  table = {
    'ids': np.array([f'image {i}' for i in range(count)]),
    'labels': np.arange(count, dtype=np.int32) % 2,
    'groups': np.arange(count, dtype=np.int32) // 2,
    'num_boxes': np.arange(count, dtype=np.int32) % 2,
    'boxes': np.tile(np.float32([0.1, 0.2, 0.4, 0.6]), (count, 1, 1)),
    'clipped': np.zeros(count, np.int32),
    'tones': np.tile(np.uint8(BROAD), (count, 1)),
  }
  return {**table, **changes}


def warned(names=('0', '1'), **changes):
  table = made(**changes)
  lines = guards.warnings(table, names, guards.odd_images(table))
  assert all(line.isprintable() and len(line) < 300 for line in lines)
  return lines


def test_nothing_is_said_of_a_set_that_looks_right():
  assert warned() == []


def test_a_class_without_an_image_and_one_of_all_are_warned_of():
  (line,) = warned(names=('normal', 'pneumonia', 'other'))
  assert line.startswith('no image is of class 2 (other); image 0, for one,')
  first, second = warned(labels=np.ones(60, np.int32))
  assert first.startswith('no image is of class 0; image 0,')
  assert second.startswith('every image with a label is of class 1, such as')
  # What has no label is of no class, and a name that stands in is none.
  unlabelled = np.full(60, -1, np.int32)
  assert warned(labels=unlabelled, names=('unused 0', 'unused 1')) == []


@pytest.mark.parametrize(
  'tones, word, kind',
  [
    ((100, 110, 0), 'nearly flat', 'flat'),
    ((0, 14, 0), 'nearly flat', 'flat'),
    ((0, 50, 0), 'nearly black', 'dark'),
    ((0, 255, 70), 'white for the most part', 'saturated'),
  ],
)
def test_images_that_show_little_are_counted_and_listed(tones, word, kind):
  table = made()
  table['tones'][[7, 9]] = tones
  odd = guards.odd_images(table)
  assert odd == [('image 7', kind), ('image 9', kind)]
  (line,) = guards.warnings(table, ('0', '1'), odd)
  assert line.startswith(f'2 of 60 images (3.3 %) come out {word}')
  assert 'such as image 7:' in line and guards.ODD in line


@pytest.mark.parametrize('size', [50, 100, 256])
def test_tones_are_hundredths_of_the_pixels(size):
  image = np.tile(np.linspace(50, 200, size).astype(np.uint8), (size, 1))
  ((low, high, white),) = guards.tones([guards.histogram(image)]).tolist()
  assert 50 <= low <= 53 and 197 <= high <= 200 and white == 0
  image[:, : size // 2] = 255
  other = guards.tones([guards.histogram(image)] * 2)[1].tolist()
  assert other == [pytest.approx(126, abs=3), 255, 50]
  assert guards.tones([]).shape == (0, 3)


def test_bars_of_a_padded_image_are_not_of_it(tmp_path):
  rng = np.random.default_rng(0)
  pixels = rng.integers(100, 110, (60, 20)).astype(np.uint8)
  cv2.imwrite(str(tmp_path / 'flat.png'), pixels)
  flat = files.record(tmp_path / 'flat.png', 'flat', label=0)
  records = [*sources.make_records(tmp_path, 8), flat]
  made = sources.prepare(records, tmp_path / 'set', settings={'fit': 'pad'})
  assert 'nearly flat' in ' '.join(made['warnings'])
  assert ['flat,flat'] == [
    line
    for line in (tmp_path / 'set' / guards.ODD).read_text().splitlines()
    if line.startswith('flat,')
  ]


def test_a_patient_of_a_tenth_of_a_set_is_warned_of():
  groups = np.arange(60) // 2
  groups[:7] = 0  # 7 of 60
  (line,) = warned(groups=groups)
  assert line.startswith('one patient has 7 of 60 images, such as image 0:')
  few = np.minimum(np.arange(60) // 2, 18)  # of 19 patients
  assert warned(groups=few) == []
  small = np.arange(40)
  small[:9] = 0
  assert warned(count=40, groups=small) == []


def test_images_whose_headers_name_no_patient_as_others_do_are_counted():
  def record(id, group=None, header=dict):
    return radiograph.Radiograph(id, pixels=None, group=group, header=header)

  dicom = [record('a'), record('b'), record('c.png', header=None)]
  (line,) = guards.without_patient(dicom, ['p', '', ''])
  assert line.startswith('2 of 3 images have no patient, such as b,')
  # Nobody is named, or everybody.
  assert not [*guards.without_patient(dicom, ['', '', ''])]
  assert not [*guards.without_patient(dicom, ['p', 'q', 'r'])]
  # A column of patients was told of already, but for what may have a header.
  table = [record('a', 'p'), record('b'), record('c.png', header=None)]
  (line,) = guards.without_patient(table, ['p', '', ''])
  assert line.startswith('1 of 3 images have no patient, such as b,')


@pytest.mark.parametrize('two', ['p007', 'P7', 'P07'])
def test_patients_who_differ_in_case_or_zeros_are_warned_of_by_images(two):
  names = ['p7', two, 'p70', '', '', 'p7', 'p700']
  ids = [*'abcdefg']
  (line,) = guards.patients_alike(names, ids)
  assert line.startswith('some patients have names that differ in case')
  assert '(such names: 1)' in line
  assert 'those of a and b:' in line and 'p7' not in line.lower()


def test_patients_of_other_numbers_and_images_without_one_are_not_alike():
  names = ['p1', 'p10', 'p100', '0', '10', '', '', 'person7_virus']
  assert not [*guards.patients_alike(names, [*'abcdefgh'])]


def test_copies_that_are_labelled_otherwise_are_warned_of():
  pairs = [(0, 1), (0, 2), (3, 4), (5, 6)]
  copies = [duplicates.Copy(a, b, 0, exact=True) for a, b in pairs]
  ids, names = [*'abcdefg'], ('normal', 'ill')
  labels = np.array([0, 0, 1, 1, -1, 1, 1])  # One without a label denies none.
  (line,) = guards.copies_that_differ(copies, ids, labels, names)
  assert line.startswith('1 of 4 copies are labelled otherwise than')
  assert 'such as a (normal) and c (ill):' in line
  labels[2] = 0
  assert not [*guards.copies_that_differ(copies, ids, labels, names)]


def framed(frame, id, own=True, boxes=((1, 2, 3, 4),)):
  return radiograph.Radiograph(
    id, pixels=None, frame=frame, own_frame=own, boxes=boxes
  )


def test_boxes_in_a_frame_of_another_aspect_than_the_file_are_warned_of():
  records = [framed((3000, 2500), 'a'), framed((3000, 1000), 'b')]
  (line,) = guards.other_aspects(records, np.array([64 / 53, 1.0]))
  assert line.startswith('1 image with boxes has another aspect than the')
  assert 'such as b, 3000 x 1000 there:' in line
  (line,) = guards.other_aspects(records, np.array([1.0, 1.0]))
  assert line.startswith('2 images with boxes have') and 'such as a,' in line


def test_an_aspect_is_only_asked_for_where_the_source_states_it_of_a_file():
  for record in (
    framed((3000, 1000), 'of the original', own=False),
    framed((3000, 1000), 'without boxes', boxes=()),
    framed(None, 'in its own pixels'),
  ):
    assert not [*guards.other_aspects([record], np.ones(1))]


def test_boxes_that_are_all_tiny_are_warned_of():
  tiny = np.tile(np.float32([0.5, 0.5, 0.501, 0.51]), (60, 1, 1))
  (line,) = warned(boxes=tiny)
  assert line.startswith('all 30 boxes are tiny') and 'image 1:' in line
  tiny[3] = [0.1, 0.1, 0.3, 0.11]
  assert warned(boxes=tiny) == []


@pytest.mark.parametrize('some', [10, 17, 30])
def test_boxes_of_which_a_third_stick_out_are_warned_of(some):
  clipped = np.zeros(60, np.int32)
  clipped[[*range(1, 60, 2)][-some:]] = 1  # One box each of 30 images.
  (line,) = warned(clipped=clipped)
  assert line.startswith(f'{some} of 30 boxes stick out of their image')
  assert f'image {61 - 2 * some}:' in line
  clipped[-2 * (some - 9) :] = 0
  assert clipped.sum() == 9 and warned(clipped=clipped) == []


def test_boxes_that_all_lie_in_the_left_upper_quarter_are_warned_of():
  quarter = np.tile(np.float32([0.1, 0.2, 0.4, 0.5]), (60, 1, 1))
  (line,) = warned(boxes=quarter)
  assert line.startswith('all 30 boxes lie in the left upper quarter')
  assert 'image 1:' in line and 'per cent' in line
  for beyond in ([0.1, 0.2, 0.6, 0.5], [0.1, 0.2, 0.4, 0.6]):
    boxes = quarter.copy()
    boxes[33] = beyond
    assert warned(boxes=boxes) == []
  # Nine may well lie there.
  few = np.zeros(60, np.int32)
  few[:9] = 1
  assert warned(boxes=quarter, num_boxes=few) == []


def dark_source(folder):
  """Records of which one is nearly black."""
  records = sources.make_records(folder, 20)
  rng = np.random.default_rng(1)
  pixels = rng.integers(0, 40, (30, 30)).astype(np.uint8)
  cv2.imwrite(str(folder / 'dark.png'), pixels)
  dark = files.record(folder / 'dark.png', 'dark', group='q', label=0)
  return [*records, dark]


def test_warnings_stand_in_the_summary_and_its_text(tmp_path):
  from dpjax.data.prepare import summary

  records = dark_source(tmp_path / 'files')
  made = sources.prepare(records, tmp_path / 'set')
  (line,) = made['warnings']
  assert line.startswith('1 of 21 images (4.8 %) come out nearly black')
  written = json.loads((tmp_path / 'set/summary.json').read_text())
  assert written['warnings'] == [line]
  assert f'warning: {line}' in summary.format_summary(made).splitlines()
  listed = (tmp_path / 'set' / guards.ODD).read_text().splitlines()
  assert listed == ['id,what', 'dark,dark']


def test_strict_makes_nothing_of_a_set_with_a_warning(tmp_path):
  records = dark_source(tmp_path / 'files')
  line = sources.refusal(
    sources.prepare, records, tmp_path / 'set', strict=True
  )
  assert line.startswith(f'--strict: {tmp_path}/set: 1 of 21 images')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['files']
  # One that is there is refused too, and stays.
  sources.prepare(records, tmp_path / 'set')
  assert line == sources.refusal(
    sources.prepare, records, tmp_path / 'set', strict=True
  )
  assert (tmp_path / 'set/summary.json').is_file()
  good = sources.prepare(records[:-1], tmp_path / 'good', strict=True)
  assert good['warnings'] == []
  again = sources.prepare(records[:-1], tmp_path / 'good', strict=True)
  assert again['reused']


def test_strict_counts_the_warnings_and_asks_older_sets_to_be_made_anew():
  guards.check([], True, 'set')
  guards.check(['one', 'two'], False, 'set')
  guards.check(None, False, 'set')
  with pytest.raises(UserError, match=r'^--strict: set: one \(and 1 more\)$'):
    guards.check(['one', 'two'], True, 'set')
  with pytest.raises(UserError, match=r'^--strict: set was prepared before'):
    guards.check(None, True, 'set')
