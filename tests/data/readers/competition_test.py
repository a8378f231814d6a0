"""The competition's layout: what is read, and what is refused in one line."""

import os
import pathlib
import pickle

import cv2
import numpy as np
import pytest

from dpjax.data.readers import competition

HEADER = 'filename,x,y,width,height\n'
LABELS = '7,0\n8,1\na b,2\n'
BOXES = HEADER + '8,10,20,30,40\na b,0,0,5.5,6\na b,12.25,3,20,30\n'


def write(folder, part='train', labels=LABELS, boxes=BOXES, skip=()):
  """Writes one part; images of several sizes, one of them a PNG."""
  (folder / part).mkdir(parents=True)
  (folder / f'{part}.csv').write_text(labels, encoding='utf-8')
  (folder / f'{part}_bboxes.csv').write_text(boxes, encoding='utf-8')
  rng = np.random.default_rng(0)
  for i, name in enumerate(['7.jpg', '8.png', 'a b.jpg']):
    if name not in skip:
      image = rng.integers(0, 256, (90 + 7 * i, 60 + 20 * i)).astype(np.uint8)
      cv2.imwrite(str(folder / part / name), image)
  return folder


def refused(folder):
  """The one line that reading `folder` ends in."""
  with pytest.raises(ValueError) as caught:
    competition.read(folder)
  message = str(caught.value)
  assert message and '\n' not in message
  return message


def test_labels_boxes_and_order_are_those_of_the_files(tmp_path):
  records = competition.read(write(tmp_path))
  assert [r.id for r in records] == ['train/7', 'train/8', 'train/a b']
  assert [r.label for r in records] == [0, 1, 2]
  assert [r.boxes for r in records] == [
    (),
    ((10, 20, 40, 60),),
    ((0, 0, 5.5, 6), (12.25, 3, 32.25, 33)),
  ]
  assert [r.split for r in records] == [None] * 3
  # No patients are named, so each image is one.
  assert [r.group for r in records] == [r.id for r in records]


def test_pixels_are_those_of_the_stored_file_and_travel(tmp_path):
  records = competition.read(write(tmp_path))
  for record, name in zip(records, ['7.jpg', '8.png', 'a b.jpg'], strict=True):
    stored = cv2.imread(str(tmp_path / 'train' / name), cv2.IMREAD_GRAYSCALE)
    travelled = pickle.loads(pickle.dumps(record))
    np.testing.assert_array_equal(travelled.pixels(), stored)


def test_boxes_scale_to_exactly_the_pixels_they_were_drawn_in(tmp_path):
  boxes = HEADER + '8,10,20,30,40\na b,0,0,5,6\na b,12,3,20,30\n'
  write(tmp_path, boxes=boxes)
  image = np.zeros((300, 200), np.uint8)
  image[20:60, 10:40] = 255  # rows are y
  cv2.imwrite(str(tmp_path / 'train/8.png'), image)
  record = competition.read(tmp_path)[1]
  pixels = record.pixels()
  unit, clipped = record.unit_boxes(*pixels.shape)
  wanted = np.float32([[10 / 200, 20 / 300, 40 / 200, 60 / 300]])
  np.testing.assert_array_equal(unit, wanted)
  assert clipped == 0
  x, y = (np.arange(200) + 0.5) / 200, (np.arange(300) + 0.5) / 300
  x0, y0, x1, y1 = unit[0]
  inside = ((y > y0) & (y < y1))[:, None] & ((x > x0) & (x < x1))
  np.testing.assert_array_equal(inside, pixels == 255)


def test_spreadsheet_files_read_alike(tmp_path):
  # A byte order mark, Windows line ends, blanks, empty rows, quotes.
  plain = competition.read(write(tmp_path / 'plain'))
  labels = '\ufeff' + LABELS.replace(',', ' , ').replace('8 ', '"8"') + ',\n\n'
  boxes = '\ufeff' + BOXES.replace(',', ', ') + ' \n,,,,\n'
  other = tmp_path / 'windows'
  write(other, labels=labels, boxes=boxes)
  for name in ('train.csv', 'train_bboxes.csv'):
    text = (other / name).read_bytes()
    (other / name).write_bytes(text.replace(b'\n', b'\r\n'))
  read = competition.read(other)
  for a, b in zip(read, plain, strict=True):
    assert (a.id, a.label, a.boxes) == (b.id, b.label, b.boxes)


def test_a_labelled_test_part_is_kept_as_test_though_ids_repeat(tmp_path):
  write(tmp_path)
  write(tmp_path, 'test')
  records = competition.read(tmp_path)
  assert [r.split for r in records] == [None] * 3 + ['test'] * 3
  assert len({r.id for r in records}) == len({r.group for r in records}) == 6


def test_a_test_folder_without_tables_is_left_alone(tmp_path):
  write(tmp_path)
  write(tmp_path, 'test')
  (tmp_path / 'test.csv').unlink()
  (tmp_path / 'test_bboxes.csv').unlink()
  assert len(competition.read(tmp_path)) == 3


@pytest.mark.parametrize('gone', ['test.csv', 'test_bboxes.csv'])
def test_a_test_part_with_one_of_its_tables_lacks_the_other(tmp_path, gone):
  write(tmp_path)
  write(tmp_path, 'test')
  (tmp_path / gone).unlink()
  assert f'{tmp_path / gone}: no such file' in refused(tmp_path)


def test_files_that_no_table_names_are_not_looked_at(tmp_path):
  write(tmp_path)
  (tmp_path / 'train/.DS_Store').write_bytes(b'x')
  (tmp_path / 'train/99.jpg').write_bytes(b'x')
  assert len(competition.read(tmp_path)) == 3


def test_no_image_is_opened_while_reading(tmp_path):
  write(tmp_path)
  for file in (tmp_path / 'train').iterdir():
    file.write_bytes(b'no image')
  assert len(competition.read(tmp_path)) == 3


def test_a_set_without_lesions_needs_the_header_of_the_box_file(tmp_path):
  write(tmp_path, labels='7,0\n8,0\n', boxes=HEADER)
  assert [r.boxes for r in competition.read(tmp_path)] == [(), ()]
  for boxes in ('', '\n', '8,10,20,30,40\n'):
    (tmp_path / 'train_bboxes.csv').write_text(boxes)
    message = refused(tmp_path)
    assert 'train_bboxes.csv, row 1' in message and HEADER.strip() in message


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


def test_an_image_that_is_not_there_is_named_with_its_row(tmp_path):
  write(tmp_path, skip=['a b.jpg'])
  message = refused(tmp_path)
  assert 'train.csv, row 3' in message and 'train/a b.jpg' in message


def test_rows_count_blank_lines_too(tmp_path):
  write(tmp_path, labels='7,0\n\n\n8,1\na b,1\n')
  assert 'train.csv, row 5' in refused(tmp_path)


@pytest.mark.parametrize(
  'labels, row, reason',
  [
    ('', None, 'no rows'),
    ('id,label\n' + LABELS, 1, 'no header'),
    (LABELS.replace('7,0', '7,0,0'), 1, '3 cells'),
    (LABELS.replace('8,1', '8'), 2, '1 cells'),
    (LABELS.replace('8,1', '8,-1'), 2, "'-1'"),
    (LABELS.replace('8,1', '8,1.0'), 2, "'1.0'"),
    (LABELS.replace('8,1', '8,'), 2, "''"),
    (LABELS.replace('8,1', '8,2'), 2, 'label 2 of 8, but 1 boxes'),
    (LABELS.replace('a b,2', 'a b,0'), 3, 'label 0 of a b, but 2 boxes'),
    (LABELS + '8,1\n', 4, '8 stands in the file twice'),
    (LABELS + ',0\n', 4, "''"),
    (LABELS + '../8,0\n', 4, "'../8'"),
    (LABELS + '/etc/passwd,0\n', 4, "'/etc/passwd'"),
    (LABELS + 'train/8,0\n', 4, "'train/8'"),
    (LABELS + '..,0\n', 4, "'..'"),
    (LABELS + '8/,0\n', 4, "'8/'"),
    (LABELS + '"8\n9",0\n', 4, r"'8\n9'"),
    (LABELS + '8\x00,0\n', 4, r"'8\x00'"),
    (LABELS + '"' + 'x' * 200_000 + '",0\n', None, 'not a csv file'),
  ],
)
def test_a_bad_label_row_is_named(tmp_path, labels, row, reason):
  write(tmp_path, labels=labels)
  message = refused(tmp_path)
  where = 'train.csv: ' if row is None else f'train.csv, row {row}: '
  assert message.startswith(f'{tmp_path}/{where}') and reason in message


@pytest.mark.parametrize(
  'row, reason',
  [
    ('8,1,2,3', '4 cells'),
    ('8,1,2,3,4,5', '6 cells'),
    ('8,1,2,x,4', "'x'"),
    ('8,1,2,,4', "''"),
    ('8,1,nan,3,4', "'nan'"),
    ('8,inf,2,3,4', "'inf'"),
    ('8,1,2,0,4', 'above 0'),
    ('8,1,2,3,-4', 'above 0'),
    ('9,1,2,3,4', "'9' is not in the label file"),
    ('../8,1,2,3,4', "'../8' is not in the label file"),
    ('"8\n",x,2,3,4', "'x'"),
    ('"7\n9",1,2,3,4', r"'7\n9' is not in the label file"),
  ],
)
def test_a_bad_box_row_is_named(tmp_path, row, reason):
  write(tmp_path, boxes=BOXES + row + '\n')
  message = refused(tmp_path)
  assert message.startswith(f'{tmp_path}/train_bboxes.csv, row 5: ')
  assert reason in message


@pytest.mark.parametrize('name', ['train.csv', 'train_bboxes.csv'])
def test_tables_in_another_encoding_are_named(tmp_path, name):
  write(tmp_path)
  with open(tmp_path / name, 'ab') as file:
    file.write('grün,0\n'.encode('latin-1'))
  message = refused(tmp_path)
  assert message.startswith(f'{tmp_path / name}: ') and 'UTF-8' in message


@pytest.mark.skipif(
  'DPJAX_COMPETITION' not in os.environ,
  reason='DPJAX_COMPETITION names no folder of the real set',
)
def test_the_real_set_has_its_known_counts():
  records = competition.read(pathlib.Path(os.environ['DPJAX_COMPETITION']))

  def counts(split):
    return np.bincount([r.label for r in records if r.split == split]).tolist()

  assert counts(None) == [6399, 852, 1731, 82, 10]
  assert counts('test') == [1600, 213, 433, 21, 3]
