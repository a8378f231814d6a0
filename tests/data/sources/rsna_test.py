"""RSNA's tables: one row a box, or one row for an exam without any."""

import collections
import csv
import functools
import os
import pathlib
import tempfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dpjax.data.prepare import labels as labels_lib
from dpjax.data.sources import rsna, tables
from dpjax.errors import SourceFault, UserError
from tests.data import source_files as sources

HEADER = 'patientId,x,y,width,height,Target\n'
LABELS = HEADER + (
  'n,,,,,0\ns,10,20,30,40,1\ns,500.5,20,30,1000,1\nz,,,,,0\nt,1,1,8,8,1\n'
)
CLASSES = (
  'patientId,class\nn,Normal\ns,Lung Opacity\ns,Lung Opacity\n'
  'z,No Lung Opacity / Not Normal\nt,Lung Opacity\n'
)
LABEL_FILE = 'stage_2_train_labels.csv'
CLASS_FILE = 'stage_2_detailed_class_info.csv'
IMAGES = 'stage_2_train_images'


def write(folder, labels=LABELS, classes=CLASSES):
  (folder / IMAGES).mkdir(parents=True)
  (folder / LABEL_FILE).write_text(labels, encoding='utf-8')
  if classes is not None:
    (folder / CLASS_FILE).write_text(classes, encoding='utf-8')
  for name in ('n.dcm', 's.dcm', 'z.png', 't.JPG'):
    (folder / IMAGES / name).write_bytes(b'no image')
  return folder


def read(folder):
  return rsna.read(folder, tables.Faults())


refused = functools.partial(sources.refused, rsna.read)


def skipped(folder):
  """sources.skipped, the ids in short."""
  ids, faults = sources.skipped(rsna.read, folder)
  return ''.join(ids), faults


def test_rows_of_one_exam_are_one_record_with_their_boxes(tmp_path):
  records = read(write(tmp_path))
  assert [r.id for r in records] == ['n', 's', 'z', 't']
  assert [r.boxes for r in records] == [
    (),
    ((10, 20, 40, 60), (500.5, 20, 530.5, 1020)),
    (),
    ((1, 1, 9, 9),),
  ]
  opacity = ('Lung Opacity',)
  assert [r.findings for r in records] == [(), opacity, (), opacity]
  assert [r.names for r in records] == [(), opacity * 2, (), opacity]
  assert [r.classes for r in records] == [
    ('Normal',),
    opacity,
    ('No Lung Opacity / Not Normal',),
    opacity,
  ]
  assert records[1].where == f'{tmp_path}/{LABEL_FILE}, row 3'
  assert {(r.label, r.group, r.split) for r in records} == {(None, None, None)}


def test_boxes_count_in_1024_pixels_whatever_the_size_of_the_image(tmp_path):
  record = read(write(tmp_path))[3]
  wanted = np.float32([[1 / 1024, 1 / 1024, 9 / 1024, 9 / 1024]])
  for shape in ((1024, 1024), (256, 300)):
    np.testing.assert_array_equal(record.unit_boxes(*shape)[0], wanted)


def test_the_labels_are_those_of_the_paper_or_the_three_classes(tmp_path):
  records = read(write(tmp_path))
  counted, _ = labels_lib.assign(records, 'count')
  assert [r.label for r in counted] == [0, 2, 0, 1]
  named, names = labels_lib.assign(records, 'class', classes=rsna.CLASSES)
  assert [r.label for r in named] == [0, 2, 1, 2] and names == rsna.CLASSES


def test_without_the_class_file_there_are_no_class_names(tmp_path):
  records = read(write(tmp_path, classes=None))
  assert [r.classes for r in records] == [()] * 4
  assert [len(r.boxes) for r in records] == [0, 2, 0, 1]


def test_the_test_images_are_left_alone(tmp_path):
  write(tmp_path)
  (tmp_path / 'stage_2_test_images').mkdir()
  (tmp_path / 'stage_2_test_images/u.dcm').write_bytes(b'x')
  (tmp_path / 'stage_2_test_images/n.dcm').write_bytes(b'x')
  assert len(read(tmp_path)) == 4


def test_spreadsheet_files_read_alike(tmp_path):
  plain = read(write(tmp_path / 'plain'))
  other = write(tmp_path / 'windows')
  for name in (LABEL_FILE, CLASS_FILE):
    text = '\ufeff' + (other / name).read_text().replace(',', ' ,')
    (other / name).write_bytes(text.replace('\n', ',\r\n').encode())
  for a, b in zip(read(other), plain, strict=True):
    assert (a.id, a.boxes, a.classes) == (b.id, b.boxes, b.classes)


@pytest.mark.parametrize(
  'old, new, row, reason, left',
  [
    ('n,,,,,0', 'n,,,,,2', 2, "Target '2'", 'szt'),
    ('n,,,,,0', 'n,,,,,', 2, "Target ''", 'szt'),
    ('n,,,,,0', 'n,,,,,1', 2, 'Target 1 without a box', 'szt'),
    ('n,,,,,0', 'n,1,2,3,4,0', 2, 'Target 0 with the box 1,2,3,4', 'szt'),
    ('n,,,,,0', 'n,,,,,0\nn,,,,,0', 3, 'n stands in the file twice', 'szt'),
    ('n,,,,,0', 'n,,,,0', 2, '5 cells', 'szt'),
    ('n,,,,,0', 'n,,,,,0,0', 2, '7 cells', 'szt'),
    ('30,1000', '30,-1', 4, 'above 0', 'nzt'),
    ('30,1000', '30,', 4, "height ''", 'nzt'),
    ('30,1000', '30,nan', 4, "'nan'", 'nzt'),
    ('30,1000', '30,1e999', 4, "'1e999'", 'nzt'),
    ('500.5,20,30,1000', '10,20,30,40', 4, 'twice', 'nzt'),
    ('500.5,20,30,1000,1', ',,,,0', 4, 'Target 0, but 1 in row 3', 'nzt'),
    ('z,,', 'y,,', 5, 'no image y in ', 'nst'),
    ('z,,', ',,', 5, "''", 'nst'),
    ('z,,', '../z,,', 5, "'../z' cannot name", 'nst'),
    ('z,,', '/etc/z,,', 5, "'/etc/z' cannot name", 'nst'),
  ],
)
def test_a_bad_label_row_is_named_and_leaves_its_exam_out(
  tmp_path, old, new, row, reason, left
):
  write(tmp_path, labels=LABELS.replace(old, new))
  message = refused(tmp_path)
  place = f'{tmp_path}/{LABEL_FILE}, row {row}'
  assert message.startswith(f'{place}: ') and reason in message
  ids, found = skipped(tmp_path)
  assert ids == left
  assert found[0][0] == place and reason in found[0][2]
  # An id that changed is also missed under its old name, by the class file.
  assert len(found) == (2 if old == 'z,,' else 1)


@pytest.mark.parametrize(
  'old, new, file, row, reason, left',
  [
    ('n,Normal', 'n,normal', CLASS_FILE, 2, "class 'normal'", 'szt'),
    ('n,Normal', 'n,', CLASS_FILE, 2, "class ''", 'szt'),
    ('n,Normal', 'n', CLASS_FILE, 2, '1 cells', 'szt'),
    ('n,Normal\n', '', LABEL_FILE, 2, f'{CLASS_FILE} has no row of n', 'szt'),
    ('s,Lung Opacity\nz', 's,Normal\nz', CLASS_FILE, 4, 'before', 'nzt'),
    ('z,', 'n,Normal\nq,Normal\nz,', CLASS_FILE, 6, "'q' is not in", 'nszt'),
  ],
)
def test_a_bad_class_row_is_named_and_leaves_its_exam_out(
  tmp_path, old, new, file, row, reason, left
):
  write(tmp_path, classes=CLASSES.replace(old, new))
  message = refused(tmp_path)
  place = f'{tmp_path}/{file}, row {row}'
  assert message.startswith(f'{place}: ') and reason in message
  ids, found = skipped(tmp_path)
  assert ids == left
  assert len(found) == 1 and found[0][0] == place and reason in found[0][2]


def test_an_exam_that_is_left_out_is_one_fault_and_no_other(tmp_path):
  labels = LABELS + 's,1,1,nan,1,1\ns,,,,,0\n'
  classes = CLASSES.replace('s,Lung Opacity\nz', 's,\nz')
  write(tmp_path, labels=labels, classes=classes)
  ids, found = skipped(tmp_path)
  assert ids == 'nzt'
  assert [entry[:2] for entry in found] == [
    (f'{tmp_path}/{LABEL_FILE}, row 7', 's')
  ]


def test_a_box_outside_the_frame_is_found_when_the_image_is_made(tmp_path):
  labels = LABELS.replace('t,1,1,8,8', 't,1024,1,8,8')
  record = read(write(tmp_path, labels=labels))[3]
  with pytest.raises(SourceFault, match='1024 x 1024'):
    record.unit_boxes(1024, 1024)


@pytest.mark.parametrize(
  'file, old, new, reason',
  [
    (LABEL_FILE, 'Target', 'target', "no column 'Target'"),
    (LABEL_FILE, HEADER, '', "no column 'patientId'"),
    (CLASS_FILE, 'class', 'label', "no column 'class'"),
  ],
)
def test_a_header_without_a_column_is_refused(tmp_path, file, old, new, reason):
  write(tmp_path)
  path = tmp_path / file
  path.write_text(path.read_text().replace(old, new))
  message = refused(tmp_path)
  assert message.startswith(f'{path}, row 1: ') and reason in message
  with pytest.raises(UserError, match=reason):
    skipped(tmp_path)


@pytest.mark.parametrize('name', [LABEL_FILE, CLASS_FILE])
def test_a_table_in_another_encoding_or_of_another_kind_is_refused(
  tmp_path, name
):
  write(tmp_path)
  for content in (HEADER.encode('utf-16'), HEADER.encode() + b'gr\xfcn,,,,,0'):
    (tmp_path / name).write_bytes(content)
    assert f'{tmp_path / name}: not UTF-8' in refused(tmp_path)
  (tmp_path / name).unlink()
  (tmp_path / name).mkdir()
  assert f'{tmp_path / name}: cannot be read' in refused(tmp_path)


def test_a_folder_that_is_no_such_set_is_told_what_is_wanted(tmp_path):
  assert IMAGES in refused(tmp_path)
  write(tmp_path / 'set')
  (tmp_path / 'set' / LABEL_FILE).unlink()
  assert f'{LABEL_FILE}: no such file' in refused(tmp_path / 'set')


def test_a_file_without_a_row_and_a_second_file_are_faults(tmp_path):
  write(tmp_path)
  (tmp_path / IMAGES / 'n.png').write_bytes(b'x')
  (tmp_path / IMAGES / 'other.png').write_bytes(b'x')
  assert 'n.dcm' in refused(tmp_path) and 'n.png' in refused(tmp_path)
  ids, found = skipped(tmp_path)
  assert ids == 'szt'
  assert [entry[:2] for entry in found] == [
    (f'{tmp_path}/{LABEL_FILE}, row 2', 'n'),
    (f'{tmp_path}/{IMAGES}/other.png', ''),
  ]


def test_links_out_of_the_source_are_not_followed(tmp_path):
  source, outside = write(tmp_path / 'set'), tmp_path / 'outside'
  (source / IMAGES / 'n.dcm').rename(tmp_path / 'n.dcm')
  (source / IMAGES / 'n.dcm').symlink_to(tmp_path / 'n.dcm')
  assert 'leads out' in refused(source)
  assert skipped(source)[0] == 'szt'
  (source / IMAGES).rename(outside)
  (source / IMAGES).symlink_to(outside)
  assert 'leads out' in refused(source)


CELLS = st.one_of(
  st.sampled_from(
    ['', '0', '1', '2.5', '-3', 'nan', 'inf', '1e308', '9' * 5000]
  ),
  st.sampled_from(['../../x', '/etc/passwd', '..', '.', '\\', 'a/b']),
  st.sampled_from(['a\nb', '\x00', '\ufeff', '"']),
  st.sampled_from([*'nszt', 'Normal', 'Lung Opacity']),
  st.text(max_size=6),
)
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=7), max_size=6)


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(labels=ROWS, classes=ROWS)
def test_whatever_stands_in_the_cells_is_one_line_or_left_out(labels, classes):
  with tempfile.TemporaryDirectory() as folder:
    source = write(pathlib.Path(folder, 'source'))
    for name, rows in ((LABEL_FILE, labels), (CLASS_FILE, classes)):
      with open(source / name, 'a', newline='', encoding='utf-8') as f:
        csv.writer(f).writerows(rows)
    faults = tables.Faults('skip')
    records = rsna.read(source, faults)
    assert {r.id for r in records}.isdisjoint(faults.left_out)
    for record in records:
      assert pathlib.Path(record.file).parent == source.resolve() / IMAGES
      assert np.isfinite(record.boxes).all()
      assert bool(record.boxes) == bool(record.findings)
    assert all(text.isprintable() for fault in faults.found for text in fault)
    if faults.found:
      refused(source)
    else:
      assert len(read(source)) == len(records)


@pytest.mark.skipif(
  'DPJAX_RSNA' not in os.environ,
  reason='DPJAX_RSNA names no folder of the real set',
)
def test_the_real_tables_have_their_known_counts(tmp_path):
  real = pathlib.Path(os.environ['DPJAX_RSNA'])
  with open(real / LABEL_FILE, newline='') as file:
    exams = collections.Counter(
      row['patientId'] for row in csv.DictReader(file)
    )
  here = {file.stem for file in (real / IMAGES).iterdir()}
  faults = tables.Faults('skip')
  records = rsna.read(real, faults)
  assert {r.id for r in records} == here & set(exams)
  # Every other exam is one fault: it has no file.
  assert {id for _, id, _ in faults.found} == set(exams) - here
  assert len(faults.found) == len(exams) - len(records)

  # With a file for each exam, empty as it is, the tables hold no fault.
  (tmp_path / IMAGES).mkdir()
  for id in exams:
    (tmp_path / IMAGES / f'{id}.dcm').touch()
  for name in (LABEL_FILE, CLASS_FILE):
    (tmp_path / name).write_bytes((real / name).read_bytes())
  counts = collections.Counter(len(r.boxes) for r in read(tmp_path))
  assert [counts[n] for n in range(5)] == [20672, 2614, 3266, 119, 13]
