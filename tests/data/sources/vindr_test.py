"""VinDr-CXR: two layouts, several readers, and what they agree on."""

import contextlib
import csv
import pathlib
import tempfile

import hypothesis
import numpy as np
import pytest
import scipy.sparse.csgraph
import shapely
from hypothesis import strategies as st

from dpjax.data.prepare import labels as labels_lib
from dpjax.data.sources import tables, vindr
from dpjax.errors import UserError
from tests.data import source_files as sources

# c: R1 and R2 drew nearly the same box, R3 a small one elsewhere. d: R1 alone
# saw something. e: nobody did.
KAGGLE = """image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max
c,Nodule/Mass,8,R1,100,100,200,200
c,Nodule/Mass,8,R2,110,100,210,210
c,Nodule/Mass,8,R3,400,400,420,420
c,Cardiomegaly,3,R2,100,100,200,200
d,Cardiomegaly,3,R1,10.5,20,300,400
d,No finding,14,R2,,,,
d,No finding,14,R9,,,,
e,No finding,14,R1,,,,
e,No finding,14,R3,,,,
e,No finding,14,R9,,,,
"""
TRAIN_BOXES = 'annotations/annotations_train.csv'
TRAIN_LABELS = 'annotations/image_labels_train.csv'
TEST_BOXES = 'annotations/annotations_test.csv'
TEST_LABELS = 'annotations/image_labels_test.csv'
PHYSIONET = {
  TRAIN_BOXES: 'image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n'
  + ''.join(
    f'{i},{r},{name},{box}\n'
    for i, name, _, r, box in (
      line.split(',', 4) for line in KAGGLE.splitlines()[1:]
    )
  ),
  TRAIN_LABELS: """image_id,rad_id,Cardiomegaly,Nodule/Mass,Pneumonia,No finding
c,R1,0,1,1,0
c,R2,1,1,1,0
c,R3,0,1,0,0
d,R1,1,0,0,0
d,R2,0,0,0,1
d,R9,0,0,0,1
e,R1,0,0,0,1
e,R3,0,0,0,1
e,R9,0,0,0,1
""",
  TEST_BOXES: """image_id,class_name,x_min,y_min,x_max,y_max
t,Nodule/Mass,1,2,3,4
t,Nodule/Mass,1,2,3,4.5
u,No finding,,,,
""",
  TEST_LABELS: """image_id,Cardiomegaly,Nodule/Mass,Other disease,No finding
t,0,1,1,0
u,0,0,0,1
""",
}


def write(folder, layout='kaggle'):
  """Writes a set; the images are only files of that name."""
  for name in ('train', 'test', 'annotations'):
    if layout == 'physionet' or name != 'annotations':
      (folder / name).mkdir(parents=True)
  for name in ('train/c', 'train/d', 'train/e', 'test/t', 'test/u'):
    (folder / f'{name}.dicom').write_bytes(b'no image')
  contents = PHYSIONET if layout == 'physionet' else {'train.csv': KAGGLE}
  for name, text in contents.items():
    (folder / name).write_text(text, encoding='utf-8')
  return folder


def edit(folder, name, old, new):
  text = (folder / name).read_text(encoding='utf-8')
  assert old in text
  (folder / name).write_text(text.replace(old, new), encoding='utf-8')


def read(folder, readers='union'):
  return vindr.read(folder, tables.Faults(), readers)


def refused(folder, readers='union'):
  """The one line that reading `folder` ends in."""
  return sources.refusal(read, folder, readers)


def skipped(folder):
  """sources.skipped, the ids in short."""
  ids, faults = sources.skipped(vindr.read, folder)
  return ''.join(ids), faults


def test_the_union_of_readers_has_each_lesion_once(tmp_path):
  c, d, e = read(write(tmp_path))
  # The mean of the corners of R1's and R2's box; R3's; R2's other finding.
  assert c.boxes == (
    (105, 100, 205, 205),
    (400, 400, 420, 420),
    (100, 100, 200, 200),
  )
  assert c.names == ('Nodule/Mass', 'Nodule/Mass', 'Cardiomegaly')
  assert c.findings == c.classes == ('Nodule/Mass', 'Cardiomegaly')
  assert d.boxes == ((10.5, 20, 300, 400),) and d.findings == ('Cardiomegaly',)
  assert (e.boxes, e.findings, e.classes) == ((), (), ('No finding',))
  assert {(r.frame, r.split, r.group) for r in (c, d, e)} == {(None,) * 3}
  assert d.where == f'{tmp_path}/train.csv, row 6'


def test_the_majority_needs_more_than_half_of_the_readers_of_an_image(tmp_path):
  c, d, e = read(write(tmp_path), 'majority')
  assert c.boxes == ((105, 100, 205, 205),) and c.findings == ('Nodule/Mass',)
  for record in (d, e):
    assert (record.boxes, record.findings) == ((), ())
    assert record.classes == ('No finding',)
  # Half of two readers are not enough, the one reader of an image is.
  edit(tmp_path, 'train.csv', 'd,No finding,14,R9,,,,\n', '')
  assert read(tmp_path, 'majority')[1].findings == ()
  edit(tmp_path, 'train.csv', 'd,No finding,14,R2,,,,\n', '')
  assert read(tmp_path, 'majority')[1].findings == ('Cardiomegaly',)


def test_one_reader_has_his_boxes_as_they_are_and_no_other_images(tmp_path):
  write(tmp_path)
  c, d, e = read(tmp_path, 'R2')
  assert c.boxes == ((110, 100, 210, 210), (100, 100, 200, 200))
  assert d.findings == () and d.classes == ('No finding',)
  assert (e.boxes, e.findings, e.classes) == ((), None, ())
  labelled, _ = labels_lib.assign([c, d, e], 'count')
  assert [r.label for r in labelled] == [2, 0, None]


def test_an_unknown_reader_is_told_the_known_ones(tmp_path):
  message = refused(write(tmp_path), 'R4')
  assert message == (
    "config.data.vindr_readers: no reader 'R4'; wanted union, majority, R1, R2,"
    ' R3, R9'
  )


def test_labels_of_the_whole_image_are_findings_without_a_box(tmp_path):
  write(tmp_path, 'physionet')
  wanted = {
    'union': ('Nodule/Mass', 'Cardiomegaly', 'Pneumonia'),
    'majority': ('Nodule/Mass', 'Pneumonia'),
    'R3': ('Nodule/Mass',),
  }
  for readers, findings in wanted.items():
    c = read(tmp_path, readers)[0]
    assert c.findings == c.classes == findings
    assert 'Pneumonia' not in c.names and len(c.names) == len(c.boxes)


def test_both_layouts_hold_the_same_boxes(tmp_path):
  kaggle = read(write(tmp_path / 'kaggle'))
  physionet = read(write(tmp_path / 'physionet', 'physionet'))
  for a, b in zip(kaggle, physionet[:3], strict=True):
    assert (a.id, a.boxes, a.names) == (b.id, b.boxes, b.names)
  assert [r.split for r in physionet] == ['train'] * 3 + ['test'] * 2


@pytest.mark.parametrize('readers', ['union', 'majority', 'R1'])
def test_the_test_part_is_one_reading_by_all_that_always_counts(
  tmp_path, readers
):
  t, u = read(write(tmp_path, 'physionet'), readers)[3:]
  # Boxes of one reading are never merged, however alike.
  assert t.boxes == ((1, 2, 3, 4), (1, 2, 3, 4.5))
  # The test tables spell it in the singular.
  assert t.findings == ('Nodule/Mass', 'Other diseases')
  assert (u.findings, u.classes) == ((), ('No finding',))


def test_test_tables_with_readers_are_read_as_well(tmp_path):
  write(tmp_path, 'physionet')
  for name in (TEST_BOXES, TEST_LABELS):
    path = tmp_path / name
    lines = path.read_text().splitlines()
    rows = [lines[0] + ',rad_id'] + [line + ',R1' for line in lines[1:]]
    path.write_text('\n'.join(rows))
  assert [len(r.boxes) for r in read(tmp_path, 'R1')[3:]] == [2, 0]
  assert [r.findings for r in read(tmp_path, 'R2')[3:]] == [None, None]


def test_a_label_of_the_whole_image_may_stand_among_the_boxes(tmp_path):
  write(tmp_path)
  edit(tmp_path, 'train.csv', 'd,No finding,14,R2', 'd,Lung tumor,15,R2')
  d = read(tmp_path)[1]
  assert d.findings == ('Cardiomegaly', 'Lung tumor') and len(d.boxes) == 1


def test_spreadsheet_files_read_alike(tmp_path):
  plain = read(write(tmp_path / 'plain', 'physionet'))
  other = write(tmp_path / 'windows', 'physionet')
  for name in PHYSIONET:
    text = '\ufeff' + (other / name).read_text().replace(',', ' , ')
    (other / name).write_bytes(text.replace('\n', '\r\n').encode())
  for a, b in zip(read(other), plain, strict=True):
    assert (a.id, a.boxes, a.findings) == (b.id, b.boxes, b.findings)


def test_images_may_be_converted_and_tables_lie_beside_them(tmp_path):
  write(tmp_path, 'physionet')
  (tmp_path / 'train/c.dicom').rename(tmp_path / 'train/c.png')
  for name in PHYSIONET:
    (tmp_path / name).rename(tmp_path / pathlib.Path(name).name)
  (tmp_path / 'annotations').rmdir()
  records = read(tmp_path)
  assert len(records) == 5 and records[0].file.endswith('/train/c.png')


BOX = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2).map(
  lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
  st.lists(st.tuples(st.sampled_from('ABC'), BOX), max_size=8),
  st.integers(1, 3),
)
def test_lesions_are_the_components_of_overlap_by_another_way(drawn, quorum):
  shapes = [shapely.box(*box) for _, box in drawn]
  linked = np.array(
    [
      [
        a[0] != b[0]
        and p.intersection(q).area >= vindr.OVERLAP * p.union(q).area
        for b, q in zip(drawn, shapes, strict=True)
      ]
      for a, p in zip(drawn, shapes, strict=True)
    ],
    bool,
  ).reshape(len(drawn), len(drawn))
  wanted = []
  number, member = (
    scipy.sparse.csgraph.connected_components(linked) if drawn else (0, [])
  )
  for component in range(number):
    inside = [d for d, m in zip(drawn, member, strict=True) if m == component]
    readers = sorted({reader for reader, _ in inside})
    means = [np.mean([b for r, b in inside if r == x], axis=0) for x in readers]
    if len(readers) >= quorum:
      wanted.append(np.mean(means, axis=0).tolist())
  found = vindr._lesions(drawn, quorum)
  assert len(found) == len(wanted)
  np.testing.assert_allclose(
    np.array(sorted(map(list, found))).reshape(-1, 4),
    np.array(sorted(wanted)).reshape(-1, 4),
    rtol=1e-12,
  )


def test_boxes_of_one_reader_are_lesions_of_their_own():
  box = (0.0, 0.0, 10.0, 10.0)
  assert vindr._lesions([('A', box), ('A', box)], 1) == [box, box]
  # Between them another reader sees but one, and A counts once in its corners.
  low = (0.0, 2.0, 10.0, 12.0)
  three = [('A', box), ('A', low), ('B', (0.0, 1.0, 10.0, 15.0))]
  assert vindr._lesions(three, 2) == [(0, 1, 10, 13)]


def test_boxes_of_two_classes_are_never_one_lesion(tmp_path):
  write(tmp_path)
  edit(tmp_path, 'train.csv', 'c,Nodule/Mass,8,R2', 'c,ILD,5,R2')
  assert len(read(tmp_path)[0].boxes) == 4


@pytest.mark.parametrize(
  'old, new, row, reason, left',
  [
    ('c,Nodule/Mass,8,R1', 'x,Nodule/Mass,8,R1', 2, 'no image train/x', 'cde'),
    ('c,Nodule/Mass,8,R1', ',Nodule/Mass,8,R1', 2, "'train/'", 'cde'),
    ('c,Nodule/Mass,8,R1', '../test/t,ILD,8,R1', 2, "'train/../t", 'cde'),
    ('c,Nodule/Mass,8,R1', 'c,,8,R1', 2, 'no class_name', 'de'),
    ('c,Nodule/Mass,8,R1', 'c,ILD,8,', 2, 'no rad_id', 'de'),
    ('R1,100,100,200', 'R1,100,100,', 2, "x_max ''", 'de'),
    ('R1,100,100,200', 'R1,100,nan,200', 2, "'nan'", 'de'),
    ('R1,100,100,200', 'R1,300,100,200', 2, 'below x_max', 'de'),
    ('R1,100,100,200', 'R1,100,200,200', 2, 'below y_max', 'de'),
    ('R1,100,100,200', 'R1,100,200', 2, '7 cells', 'de'),
    ('d,Cardiomegaly,3,R1,10.5,20,300,400', 'd,ILD,3,R1,,,,', 6, "''", 'ce'),
    ('d,No finding,14,R2,,', 'd,No finding,14,R2,0,0', 7, 'box 0,0,', 'ce'),
  ],
)
def test_a_bad_box_row_is_named_and_leaves_its_image_out(
  tmp_path, old, new, row, reason, left
):
  write(tmp_path)
  edit(tmp_path, 'train.csv', old, new)
  message = refused(tmp_path)
  place = f'{tmp_path}/train.csv, row {row}'
  assert message.startswith(f'{place}: ') and reason in message
  ids, found = skipped(tmp_path)
  assert ids == left
  assert len(found) == 1 and found[0][0] == place and reason in found[0][2]


@pytest.mark.parametrize(
  'name, old, new, row, reason, left',
  [
    (TRAIN_LABELS, 'c,R1,0,1,1', 'c,R1,0,1,2', 2, "Pneumonia '2'", 'detu'),
    (TRAIN_LABELS, 'c,R1,0,1,1', 'c,R1,0,1,', 2, "Pneumonia ''", 'detu'),
    (TRAIN_LABELS, 'c,R1,0,1,1', 'c,R1,0,1,0.5', 2, "'0.5'", 'detu'),
    (TRAIN_LABELS, 'c,R1,0,1,1', 'c,R1,0,1', 2, '5 cells', 'detu'),
    (TRAIN_LABELS, 'c,R1,0', 'c,,0', 2, 'no rad_id', 'detu'),
    (TRAIN_LABELS, 'c,R2,1', 'c,R1,1', 3, 'twice', 'detu'),
    (TRAIN_BOXES, 'c,R1,', 'x,R1,', 2, "'x' is not in image_labels", 'cdetu'),
    (TEST_LABELS, 't,0,1', 't,0,nan', 2, "'nan'", 'cdeu'),
    (TEST_LABELS, 'u,0', 't,0', 3, 't stands in the file twice', 'cde'),
    (TEST_BOXES, 't,Nodule/Mass,1,2,3,4\n', 't,ILD,,,,\n', 2, "''", 'cdeu'),
  ],
)
def test_a_bad_row_of_physionet_is_named_and_leaves_its_image_out(
  tmp_path, name, old, new, row, reason, left
):
  write(tmp_path, 'physionet')
  edit(tmp_path, name, old, new)
  message = refused(tmp_path)
  place = f'{tmp_path}/{name}, row {row}'
  assert message.startswith(f'{place}: ') and reason in message
  ids, found = skipped(tmp_path)
  assert ids == left
  assert found[0][0] == place and reason in found[0][2]
  # Under its own name u is missed once more, by the table of boxes.
  assert len(found) == (2 if old == 'u,0' else 1)


def test_an_image_in_both_parts_is_left_out_of_both(tmp_path):
  write(tmp_path, 'physionet')
  (tmp_path / 'test/c.dicom').write_bytes(b'x')
  edit(tmp_path, TEST_LABELS, 't,0,1,1,0\n', 't,0,1,1,0\nc,0,1,1,0\n')
  message = refused(tmp_path)
  place = f'{tmp_path}/{TEST_LABELS}, row 3'
  assert message == f'{place}: c is in the other part as well'
  ids, found = skipped(tmp_path)
  assert ids == 'detu' and [entry[:2] for entry in found] == [(place, 'c')]


def test_an_image_that_no_row_names_is_a_fault(tmp_path):
  write(tmp_path)
  (tmp_path / 'train/x.dicom').write_bytes(b'x')
  ids, found = skipped(tmp_path)
  assert ids == 'cde'
  assert [entry[0] for entry in found] == [f'{tmp_path}/train/x.dicom']
  assert 'no row of' in refused(tmp_path)


@pytest.mark.parametrize('gone', [TRAIN_LABELS, TEST_BOXES, TEST_LABELS])
def test_a_table_that_is_missing_is_missed(tmp_path, gone):
  write(tmp_path, 'physionet')
  (tmp_path / gone).unlink()
  assert f'{tmp_path / gone}: no such file' in refused(tmp_path)


def test_test_tables_without_test_images_miss_them(tmp_path):
  write(tmp_path, 'physionet')
  (tmp_path / 'test').rename(tmp_path / 'other')
  assert 'has no folder test' in refused(tmp_path)


def test_a_source_in_another_layout_is_told_what_is_wanted(tmp_path):
  message = refused(tmp_path)
  assert 'PhysioNet' in message and 'Kaggle' in message


@pytest.mark.parametrize(
  'name, old',
  [
    (TRAIN_BOXES, 'rad_id'),
    (TRAIN_BOXES, 'x_max'),
    (TRAIN_LABELS, 'rad_id'),
    (TEST_BOXES, 'class_name'),
    (TEST_LABELS, 'image_id'),
  ],
)
def test_a_header_without_a_column_is_refused(tmp_path, name, old):
  write(tmp_path, 'physionet')
  edit(tmp_path, name, old, 'column')
  message = refused(tmp_path)
  assert message.startswith(f'{tmp_path / name}, row 1: ') and old in message
  with pytest.raises(UserError, match='no column'):
    skipped(tmp_path)


@pytest.mark.parametrize('name', list(PHYSIONET))
def test_tables_in_another_encoding_are_named(tmp_path, name):
  write(tmp_path, 'physionet')
  with open(tmp_path / name, 'ab') as file:
    file.write('grün'.encode('latin-1'))
  message = refused(tmp_path)
  assert message.startswith(f'{tmp_path / name}: ') and 'UTF-8' in message


def test_links_out_of_the_source_are_not_followed(tmp_path):
  source = write(tmp_path / 'set')
  (source / 'train/c.dicom').rename(tmp_path / 'c.dicom')
  (source / 'train/c.dicom').symlink_to(tmp_path / 'c.dicom')
  assert 'leads out' in refused(source)
  assert skipped(source)[0] == 'de'


CELLS = st.one_of(
  st.sampled_from(
    ['', '0', '1', '2.5', '-3', 'nan', 'inf', '1e308', '9' * 5000]
  ),
  st.sampled_from(['../../x', '/etc/passwd', '..', '.', '\\', 'a/b']),
  st.sampled_from(['a\nb', '\x00', '\ufeff', '"']),
  st.sampled_from(['c', 't', 'R1', 'R2', 'Nodule/Mass', 'No finding', 'COPD']),
  st.text(max_size=6),
)
ROWS = st.lists(st.lists(CELLS, min_size=1, max_size=9), max_size=6)
# Rows that hold together, so that the arithmetic of boxes is reached.
EXTREME = st.sampled_from(
  ['0', '1', '-1e308', '1e308', '1e-200', '1e16', '1e17']
)
SOUND = st.lists(
  st.tuples(
    st.just('c'),
    st.just('ILD'),
    st.just('5'),
    st.sampled_from(['R1', 'R2']),
    *[EXTREME] * 4,
  ),
  max_size=6,
)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
  st.one_of(ROWS, SOUND), st.sampled_from(['union', 'majority'])
)
def test_whatever_stands_in_the_cells_is_one_line_or_left_out(rows, readers):
  with tempfile.TemporaryDirectory() as folder:
    source = write(pathlib.Path(folder, 'source'))
    with open(source / 'train.csv', 'a', newline='', encoding='utf-8') as f:
      csv.writer(f).writerows(rows)
    check(source, readers)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(ROWS, ROWS, ROWS)
def test_so_it_is_in_the_tables_of_physionet(boxes, labels, test):
  with tempfile.TemporaryDirectory() as folder:
    source = write(pathlib.Path(folder, 'source'), 'physionet')
    for name, rows in (
      (TRAIN_BOXES, boxes),
      (TRAIN_LABELS, labels),
      (TEST_LABELS, test),
    ):
      with open(source / name, 'a', newline='', encoding='utf-8') as f:
        csv.writer(f).writerows(rows)
    check(source, 'union')


def check(source, readers):
  """Reads with on_error=skip, and finds on_error=fail in agreement."""
  faults = tables.Faults('skip')
  records = vindr.read(source, faults, readers)
  assert {r.id for r in records}.isdisjoint(faults.left_out)
  for record in records:
    assert pathlib.Path(record.file).is_relative_to(source.resolve())
    assert len(record.boxes) == len(record.names)
    with contextlib.suppress(ValueError):  # too small or too far away
      record.unit_boxes(9, 9)
  assert all(text.isprintable() for fault in faults.found for text in fault)
  if faults.found:
    refused(source, readers)
  else:
    assert len(read(source, readers)) == len(records)
