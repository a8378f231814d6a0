"""The competition's layout: what is read, and what is refused in one line."""

import csv
import functools
import os
import pathlib
import pickle
import tempfile

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dpjax.data.prepare import labels as labels_lib
from dpjax.data.sources import competition, tables
from dpjax.errors import UserError
from tests.data import source_files as sources

HEADER = 'filename,x,y,width,height\n'
LABELS = '7,0\n8,1\na b,2\n'
BOXES = HEADER + '8,10,20,30,40\na b,0,0,5.5,6\na b,12.25,3,20,30\n'
NAMES = ('7.jpg', '8.png', 'a b.dcm')


def write(folder, part='train', labels=LABELS, boxes=BOXES, skip=()):
  """Writes one part; the images are only files of that name."""
  (folder / part).mkdir(parents=True)
  (folder / f'{part}.csv').write_text(labels, encoding='utf-8')
  (folder / f'{part}_bboxes.csv').write_text(boxes, encoding='utf-8')
  for name in NAMES:
    if name not in skip:
      (folder / part / name).write_bytes(b'no image')
  return folder


def read(folder):
  return competition.read(folder, tables.Faults())


refused = functools.partial(sources.refused, competition.read)
skipped = functools.partial(sources.skipped, competition.read)


def test_boxes_and_order_are_those_of_the_files(tmp_path):
  records = read(write(tmp_path))
  assert [r.id for r in records] == ['train/7', 'train/8', 'train/a b']
  assert [r.boxes for r in records] == [
    (),
    ((10, 20, 40, 60),),
    ((0, 0, 5.5, 6), (12.25, 3, 32.25, 33)),
  ]
  for r in records:
    assert r.findings == r.names == ('lesion',) * len(r.boxes)
    # Boxes count the image's own pixels; nobody is named; nobody has split.
    assert (r.frame, r.group, r.split) == (None, None, None)
  assert records[2].where == f'{tmp_path}/train.csv, row 3'


def test_the_label_is_the_number_of_boxes(tmp_path):
  records = read(write(tmp_path))
  assert [r.label for r in records] == [None] * 3
  records, names = labels_lib.assign(records, 'count')
  assert [r.label for r in records] == [0, 1, 2]
  assert names == ('0', '1', '2')


def test_pixels_are_those_of_the_stored_file_and_travel(tmp_path):
  write(tmp_path)
  stored = np.random.default_rng(0).integers(0, 256, (90, 67)).astype(np.uint8)
  cv2.imwrite(str(tmp_path / 'train/8.png'), stored)
  record = pickle.loads(pickle.dumps(read(tmp_path)[1]))
  np.testing.assert_array_equal(record.pixels(), stored)


def test_boxes_scale_to_exactly_the_pixels_they_were_drawn_in(tmp_path):
  write(tmp_path)
  image = np.zeros((300, 200), np.uint8)
  image[20:60, 10:40] = 255  # rows are y
  unit, clipped = read(tmp_path)[1].unit_boxes(*image.shape)
  wanted = np.float32([[10 / 200, 20 / 300, 40 / 200, 60 / 300]])
  np.testing.assert_array_equal(unit, wanted)
  assert clipped == 0
  x, y = (np.arange(200) + 0.5) / 200, (np.arange(300) + 0.5) / 300
  x0, y0, x1, y1 = unit[0]
  inside = ((y > y0) & (y < y1))[:, None] & ((x > x0) & (x < x1))
  np.testing.assert_array_equal(inside, image == 255)


def test_spreadsheet_files_read_alike(tmp_path):
  # A byte order mark, Windows line ends, blanks, empty rows, quotes.
  plain = read(write(tmp_path / 'plain'))
  labels = '\ufeff' + LABELS.replace(',', ' , ').replace('8 ', '"8"') + ',\n\n'
  boxes = '\ufeff' + BOXES.replace(',', ', ') + ' \n,,,,\n'
  other = tmp_path / 'windows'
  write(other, labels=labels, boxes=boxes)
  for name in ('train.csv', 'train_bboxes.csv'):
    text = (other / name).read_bytes()
    (other / name).write_bytes(text.replace(b'\n', b'\r\n'))
  for a, b in zip(read(other), plain, strict=True):
    assert (a.id, a.boxes) == (b.id, b.boxes)


def test_a_labelled_test_part_is_kept_as_test_though_ids_repeat(tmp_path):
  write(tmp_path)
  write(tmp_path, 'test')
  records = read(tmp_path)
  assert [r.split for r in records] == [None] * 3 + ['test'] * 3
  assert len({r.id for r in records}) == 6


def test_a_test_folder_without_tables_is_left_alone(tmp_path):
  write(tmp_path)
  write(tmp_path, 'test')
  (tmp_path / 'test.csv').unlink()
  (tmp_path / 'test_bboxes.csv').unlink()
  assert len(read(tmp_path)) == 3


@pytest.mark.parametrize('gone', ['test.csv', 'test_bboxes.csv'])
def test_a_test_part_with_one_of_its_tables_lacks_the_other(tmp_path, gone):
  write(tmp_path)
  write(tmp_path, 'test')
  (tmp_path / gone).unlink()
  assert f'{tmp_path / gone}: no such file' in refused(tmp_path)


def test_an_image_that_no_row_names_is_a_fault_unless_it_is_hidden(tmp_path):
  write(tmp_path)
  (tmp_path / 'train/.DS_Store').write_bytes(b'x')
  (tmp_path / 'train/._7.jpg').write_bytes(b'x')
  (tmp_path / 'train/notes.txt').write_bytes(b'x')
  assert len(read(tmp_path)) == 3
  (tmp_path / 'train/99.jpg').write_bytes(b'x')
  reason = (
    f'no row of {tmp_path}/train.csv names it; if it is no radiograph of the'
    ' set, config.data.ignore passes it over'
  )
  assert refused(tmp_path) == f'{tmp_path}/train/99.jpg: {reason}'
  ids, found = skipped(tmp_path)
  assert len(ids) == 3
  assert found == [(f'{tmp_path}/train/99.jpg', '', reason)]


def test_an_image_of_which_there_are_two_files_is_a_fault(tmp_path):
  write(tmp_path)
  (tmp_path / 'train/7.png').write_bytes(b'x')
  message = refused(tmp_path)
  assert 'train.csv, row 1' in message
  assert 'train/7.jpg' in message and 'train/7.png' in message
  ids, found = skipped(tmp_path)
  assert ids == ['train/8', 'train/a b'] and len(found) == 1


def test_a_set_without_lesions_needs_the_header_of_the_box_file(tmp_path):
  write(tmp_path, labels='7,0\n8,0\n', boxes=HEADER, skip=['a b.dcm'])
  assert [r.boxes for r in read(tmp_path)] == [(), ()]
  for boxes in ('', '\n', '8,10,20,30,40\n'):
    (tmp_path / 'train_bboxes.csv').write_text(boxes)
    message = refused(tmp_path)
    assert 'train_bboxes.csv, row 1' in message and "'filename'" in message


def test_a_missing_box_file_is_missed_even_where_every_label_is_zero(tmp_path):
  write(tmp_path, labels='7,0\n8,0\n')
  (tmp_path / 'train_bboxes.csv').unlink()
  message = refused(tmp_path)
  assert f'{tmp_path}/train_bboxes.csv: no such file' in message
  assert HEADER.strip() in message


@pytest.mark.parametrize('kind', ['nothing', 'a file', 'an empty folder'])
def test_a_source_in_another_layout_is_told_what_is_wanted(tmp_path, kind):
  source = tmp_path / 'source'
  if kind == 'a file':
    source.write_text('7,0\n')
  elif kind == 'an empty folder':
    source.mkdir()
  message = refused(source)
  assert str(source) in message and 'train.csv' in message


def test_tables_without_the_folder_of_the_images_miss_it(tmp_path):
  write(tmp_path)
  (tmp_path / 'train').rename(tmp_path / 'images')
  message = refused(tmp_path)
  assert message == f'config.data.source: {tmp_path} has no folder train'


def test_an_image_that_is_not_there_is_named_with_its_row(tmp_path):
  write(tmp_path, skip=['a b.dcm'])
  message = refused(tmp_path)
  assert 'train.csv, row 3' in message and 'train/a b' in message
  ids, found = skipped(tmp_path)
  # Its two boxes are no faults of their own.
  assert ids == ['train/7', 'train/8']
  assert [entry[:2] for entry in found] == [
    (f'{tmp_path}/train.csv, row 3', 'train/a b')
  ]


def test_rows_count_blank_lines_too(tmp_path):
  write(tmp_path, labels='7,0\n\n\n8,1\na b,1\n')
  assert 'train.csv, row 5' in refused(tmp_path)


BAD_LABELS = [
  # (labels, row, reason, ids that are left)
  ('id,label\n' + LABELS, 1, 'no header', '7 8 a_b'),
  (LABELS.replace('7,0', '7,0,0'), 1, '3 cells', '8 a_b'),
  (LABELS.replace('8,1', '8'), 2, '1 cells', '7 a_b'),
  (LABELS.replace('8,1', '8,-1'), 2, "'-1'", '7 a_b'),
  (LABELS.replace('8,1', '8,1.0'), 2, "'1.0'", '7 a_b'),
  (LABELS.replace('8,1', '8,nan'), 2, "'nan'", '7 a_b'),
  (LABELS.replace('8,1', '8,' + '1' * 5000), 2, 'no whole number', '7 a_b'),
  (LABELS.replace('8,1', '8,'), 2, "''", '7 a_b'),
  (LABELS.replace('8,1', '8,2'), 2, 'label 2 of train/8, but 1', '7 a_b'),
  (LABELS.replace('a b,2', 'a b,0'), 3, 'label 0 of train/a b, but 2', '7 8'),
  (LABELS + '8,1\n', 4, '8 stands in the file twice', '7 a_b'),
  (LABELS + ',0\n', 4, "'train/'", '7 8 a_b'),
  (LABELS + '../8,0\n', 4, "'train/../8'", '7 8 a_b'),
  (LABELS + '../train/8,0\n', 4, "'train/../train/8'", '7 8 a_b'),
  (LABELS + '/etc/passwd,0\n', 4, "'train//etc/passwd'", '7 8 a_b'),
  (LABELS + 'train/8,0\n', 4, 'no image train/train/8', '7 8 a_b'),
  (LABELS + '..,0\n', 4, "'train/..'", '7 8 a_b'),
  (LABELS + '8/,0\n', 4, "'train/8/'", '7 8 a_b'),
  (LABELS + '..\\train\\8,0\n', 4, 'cannot name', '7 8 a_b'),
  (LABELS + '"8\n9",0\n', 4, r"'train/8\n9'", '7 8 a_b'),
  (LABELS + '8\x00,0\n', 4, r"'train/8\x00'", '7 8 a_b'),
]


@pytest.mark.parametrize('labels, row, reason, left', BAD_LABELS)
def test_a_bad_label_row_is_named_and_leaves_its_image_out(
  tmp_path, labels, row, reason, left
):
  write(tmp_path, labels=labels)
  message = refused(tmp_path)
  place = f'{tmp_path}/train.csv, row {row}'
  assert message.startswith(f'{place}: ') and reason in message
  ids, found = skipped(tmp_path)
  assert ids == [f'train/{id.replace("_", " ")}' for id in left.split()]
  assert len(found) == 1 and found[0][0] == place and reason in found[0][2]


@pytest.mark.parametrize(
  'labels, reason',
  [
    ('', 'no rows'),
    (LABELS + '"' + 'x' * 200_000 + '",0\n', 'not a csv file'),
  ],
)
def test_a_label_file_that_is_no_table_is_refused_whole(
  tmp_path, labels, reason
):
  write(tmp_path, labels=labels)
  message = refused(tmp_path)
  assert message.startswith(f'{tmp_path}/train.csv: ') and reason in message
  with pytest.raises(UserError, match=reason):
    skipped(tmp_path)


@pytest.mark.parametrize(
  'row, reason, left',
  [
    ('8,1,2,3', '4 cells', '7 a_b'),
    ('8,1,2,3,4,5', '6 cells', '7 a_b'),
    ('8,1,2,x,4', "'x'", '7 a_b'),
    ('8,1,2,,4', "''", '7 a_b'),
    ('8,1,nan,3,4', "'nan'", '7 a_b'),
    ('8,inf,2,3,4', "'inf'", '7 a_b'),
    ('8,1,2,0,4', 'above 0', '7 a_b'),
    ('8,1,2,3,-4', 'above 0', '7 a_b'),
    ('9,1,2,3,4', "'9' is not in train.csv", '7 8 a_b'),
    ('../8,1,2,3,4', "'../8' is not in train.csv", '7 8 a_b'),
    ('"8\n",x,2,3,4', "'x'", '7 a_b'),
    ('"7\n9",1,2,3,4', r"'7\n9' is not in train.csv", '7 8 a_b'),
  ],
)
def test_a_bad_box_row_is_named_and_leaves_its_image_out(
  tmp_path, row, reason, left
):
  # Twice: the second is no fault of its own, nor is the wrong count.
  write(tmp_path, boxes=BOXES + row + '\n' + row + '\n')
  message = refused(tmp_path)
  place = f'{tmp_path}/train_bboxes.csv, row 5'
  assert message.startswith(f'{place}: ') and reason in message
  ids, found = skipped(tmp_path)
  assert ids == [f'train/{id.replace("_", " ")}' for id in left.split()]
  assert len(found) == 1 and found[0][0] == place and reason in found[0][2]


@pytest.mark.parametrize('name', ['train.csv', 'train_bboxes.csv'])
def test_tables_in_another_encoding_are_named(tmp_path, name):
  write(tmp_path)
  with open(tmp_path / name, 'ab') as file:
    file.write('grün,0\n'.encode('latin-1'))
  message = refused(tmp_path)
  assert message.startswith(f'{tmp_path / name}: ') and 'UTF-8' in message
  with pytest.raises(UserError, match='UTF-8'):
    skipped(tmp_path)


def test_a_link_out_of_the_source_is_not_followed(tmp_path):
  outside = tmp_path / 'secret.jpg'
  outside.write_bytes(b'x')
  source = write(tmp_path / 'source', skip=['7.jpg'])
  (source / 'train/7.jpg').symlink_to(outside)
  message = refused(source)
  assert 'train.csv, row 1' in message and 'leads out' in message
  ids, found = skipped(source)
  assert ids == ['train/8', 'train/a b'] and len(found) == 1


CELLS = st.one_of(
  st.sampled_from(
    ['', '0', '1', '2.5', '-3', 'nan', 'inf', '1e308', '9' * 5000]
  ),
  st.sampled_from(['../../x', '/etc/passwd', '..', '.', '\\', 'a/b']),
  st.sampled_from(['a\nb', '\x00', '\ufeff', '"']),
  st.sampled_from(['7', '8', 'a b']),
  st.text(max_size=6),
)
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=6), max_size=6)


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(labels=ROWS, boxes=ROWS)
def test_whatever_stands_in_the_cells_is_one_line_or_left_out(labels, boxes):
  with tempfile.TemporaryDirectory() as folder:
    source = write(pathlib.Path(folder, 'source'))
    for name, rows in (('train', labels), ('train_bboxes', boxes)):
      with open(source / f'{name}.csv', 'a', newline='', encoding='utf-8') as f:
        csv.writer(f).writerows(rows)
    faults = tables.Faults('skip')
    records = competition.read(source, faults)
    assert {r.id for r in records}.isdisjoint(faults.left_out)
    for record in records:
      assert pathlib.Path(record.file).parent == source.resolve() / 'train'
      assert np.isfinite(record.boxes).all()
    assert all(text.isprintable() for fault in faults.found for text in fault)
    if faults.found:
      refused(source)
    else:
      assert len(read(source)) == len(records)


@pytest.mark.skipif(
  'DPJAX_COMPETITION' not in os.environ,
  reason='DPJAX_COMPETITION names no folder of the real set',
)
def test_the_real_set_has_its_known_counts():
  records = read(pathlib.Path(os.environ['DPJAX_COMPETITION']))

  def counts(split):
    return np.bincount([len(r.boxes) for r in records if r.split == split])

  assert counts(None).tolist() == [6399, 852, 1731, 82, 10]
  assert counts('test').tolist() == [1600, 213, 433, 21, 3]
