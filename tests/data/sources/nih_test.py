"""ChestX-ray14's tables: irregular headers, patients, lists, boxes."""

import csv
import functools
import pathlib
import sys
import tempfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dpjax.data.prepare import labels as labels_lib
from dpjax.data.sources import nih, tables
from dpjax.errors import UserError
from tests.data import source_files as sources

ENTRIES = 'Data_Entry_2017.csv'
BOXES = 'BBox_List_2017.csv'
TRAIN, TEST = 'train_val_list.txt', 'test_list.txt'
# As the set has it: the commas in brackets split the names of two columns.
HEADER = (
  'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,'
  'Patient Gender,View Position,OriginalImage[Width,Height],'
  'OriginalImagePixelSpacing[x,y],\n'
)
ROWS = (
  '1_000.png,Cardiomegaly|Effusion,0,1,058Y,M,PA,2682,2749,0.143,0.143,\n'
  '1_001.png,No Finding,1,1,059Y,M,PA,2682,2749,0.143,0.143,\n'
  '2_000.png,Infiltration,0,2,094Y,F,AP,2500,2048,0.168,0.168,\n'
  '3_000.png,No Finding,0,3,011M,F,AP,2500,2048,0.168,0.168,\n'
)
BOX_ROWS = (
  'Image Index,Finding Label,Bbox [x,y,w,h],,,\n'
  '2_000.png,Infiltrate,100.5,200,64,128,,,\n'
  '2_000.png,Mass,10,20,30,40,,,\n'
)
FOLDERS = ('images_001/images', 'images_012/images')


def write(folder, entries=HEADER + ROWS, boxes=BOX_ROWS, lists=True):
  for name in FOLDERS:
    (folder / name).mkdir(parents=True)
  for i, name in enumerate(('1_000', '1_001', '2_000', '3_000')):
    (folder / FOLDERS[i % 2] / f'{name}.png').write_bytes(b'no image')
  (folder / ENTRIES).write_text(entries, encoding='utf-8')
  if boxes is not None:
    (folder / BOXES).write_text(boxes, encoding='utf-8')
  if lists:
    (folder / TRAIN).write_text('1_000.png\n1_001.png\n')
    (folder / TEST).write_text('2_000.png\n3_000.png')
  return folder


def read(folder):
  return nih.read(folder, tables.Faults())


refused = functools.partial(sources.refused, nih.read)


def skipped(folder):
  """sources.skipped, the ids in short."""
  ids, faults = sources.skipped(nih.read, folder)
  return ' '.join(id.removesuffix('.png') for id in ids), faults


def test_findings_boxes_and_patients_are_those_of_the_tables(tmp_path):
  records = read(write(tmp_path))
  assert [r.id for r in records] == [
    '1_000.png',
    '1_001.png',
    '2_000.png',
    '3_000.png',
  ]
  assert [r.findings for r in records] == [
    ('Cardiomegaly', 'Effusion'),
    (),
    ('Infiltration',),
    (),
  ]
  assert records[0].classes == ('Cardiomegaly', 'Effusion')
  assert records[1].classes == ('No Finding',)
  assert [r.group for r in records] == ['1', '1', '2', '3']
  assert [r.split for r in records] == ['train', 'train', 'test', 'test']
  # The label of an image may lack a box's finding. Infiltrate has another name
  # in the other table.
  assert records[2].boxes == ((100.5, 200, 164.5, 328), (10, 20, 40, 60))
  assert records[2].names == ('Infiltration', 'Mass')
  assert records[2].where == f'{tmp_path}/{ENTRIES}, row 4'
  assert {r.label for r in records} == {None}


def test_the_labels_of_any_finding_and_of_single_classes(tmp_path):
  records = read(write(tmp_path))
  any_finding, _ = labels_lib.assign(records, 'any')
  assert [r.label for r in any_finding] == [1, 0, 1, 0]
  named, names = labels_lib.assign(
    records, 'class', classes=('No Finding', 'Infiltration')
  )
  assert [r.label for r in named] == [None, 0, 1, 0]
  assert names == ('No Finding', 'Infiltration')


@pytest.mark.parametrize('name', ['Patient Gender', 'Patient Sex', 'Who'])
def test_metadata_is_found_by_the_names_of_all_releases_or_said_to_lack(
  tmp_path, name
):
  entries = HEADER.replace('Patient Gender', name) + ROWS
  faults = tables.Faults()
  records = nih.read(write(tmp_path, entries), faults)
  sexes = [r.metadata.get('sex') for r in records]
  if name == 'Who':
    [remark] = faults.remarks
    assert sexes == [None] * 4 and remark.startswith(
      f'{tmp_path}/{ENTRIES} has'
    )
    assert "no column 'Patient Gender' or 'Patient Sex'" in remark
  else:
    assert sexes == ['M', 'M', 'F', 'F'] and not faults.remarks


def test_ages_are_years_and_no_age_above_89_tells_who_it_is(tmp_path):
  records = read(write(tmp_path))
  assert [r.metadata for r in records] == [
    {'age': '58', 'sex': 'M', 'view': 'PA'},
    {'age': '59', 'sex': 'M', 'view': 'PA'},
    {'age': '90', 'sex': 'F', 'view': 'AP'},
    {'age': '0', 'sex': 'F', 'view': 'AP'},
  ]


@pytest.mark.parametrize(
  'text, years',
  [
    ('58', '58'),
    ('089Y', '89'),
    ('090Y', '90'),
    ('120', '90'),
    ('148', None),  # as the set has it
    ('414', None),
    ('003D', '0'),
    ('026M', '2'),
    ('060W', '1'),
    *[(text, None) for text in ('', 'x', '1e2', '-5', '٥')],
  ],
)
def test_an_age_that_is_none_is_left_out(tmp_path, text, years):
  write(tmp_path, entries=HEADER + ROWS.replace('058Y', text))
  assert read(tmp_path)[0].metadata.get('age') == years


def test_boxes_count_in_1024_pixels_whatever_the_size_of_the_image(tmp_path):
  record = read(write(tmp_path))[2]
  wanted = np.float32([[100.5, 200, 164.5, 328], [10, 20, 40, 60]]) / 1024
  for shape in ((1024, 1024), (224, 300)):
    np.testing.assert_array_equal(record.unit_boxes(*shape)[0], wanted)


@pytest.mark.parametrize(
  'header, ends',
  [
    (HEADER, ',\n'),
    (HEADER.replace(',\n', '\n'), ',\n'),
    (HEADER, '\n'),
    (HEADER.replace(',\n', '\n'), '\n'),
    (HEADER.replace(',\n', ',Unnamed: 11\n'), ',\n'),
    ('\ufeff' + HEADER.replace(',\n', '\r\n'), '\r\n'),
  ],
)
def test_headers_and_rows_may_differ_by_empty_cells_at_the_end(
  tmp_path, header, ends
):
  plain = read(write(tmp_path / 'plain'))
  rows = ROWS.replace(',\n', ends)
  other = read(write(tmp_path / 'other', entries=header + rows))
  for a, b in zip(other, plain, strict=True):
    assert (a.id, a.findings, a.group, a.metadata) == (
      b.id,
      b.findings,
      b.group,
      b.metadata,
    )


def test_either_name_of_the_table_will_do_but_not_both(tmp_path):
  write(tmp_path)
  (tmp_path / ENTRIES).rename(tmp_path / 'Data_Entry_2017_v2020.csv')
  assert len(read(tmp_path)) == 4
  (tmp_path / ENTRIES).write_text(HEADER + ROWS)
  assert 'has 2 files Data_Entry_2017*.csv' in refused(tmp_path)


@pytest.mark.parametrize('kind', ['nothing', 'a file', 'an empty folder'])
def test_a_source_in_another_layout_is_told_what_is_wanted(tmp_path, kind):
  source = tmp_path / 'source'
  if kind == 'a file':
    source.write_text('7,0\n')
  elif kind == 'an empty folder':
    source.mkdir()
  message = refused(source)
  assert str(source) in message and 'Data_Entry_2017' in message


def test_boxes_and_lists_may_be_left_out(tmp_path):
  records = read(write(tmp_path, boxes=None, lists=False))
  assert [r.boxes for r in records] == [()] * 4
  assert [r.split for r in records] == [None] * 4


def test_images_may_be_converted_and_lie_anywhere(tmp_path):
  write(tmp_path)
  (tmp_path / FOLDERS[0] / '1_000.png').rename(tmp_path / '1_000.jpg')
  records = read(tmp_path)
  assert records[0].file == f'{tmp_path.resolve()}/1_000.jpg'


@pytest.mark.parametrize('gone', [TRAIN, TEST])
def test_one_list_without_the_other_is_refused(tmp_path, gone):
  write(tmp_path)
  (tmp_path / gone).unlink()
  assert f'{tmp_path / gone}: no such file' in refused(tmp_path)


def test_an_image_in_both_lists_or_neither_is_left_out(tmp_path):
  write(tmp_path)
  (tmp_path / TRAIN).write_text('1_000.png\n3_000.png\n')
  message = refused(tmp_path)
  assert message == (
    f'{tmp_path}/{ENTRIES}, row 3: 1_001.png is in neither of {TRAIN} and'
    f' {TEST}'
  )
  ids, found = skipped(tmp_path)
  assert ids == '1_000 2_000'
  assert [entry[1] for entry in found] == ['1_001.png', '3_000.png']
  assert '3_000.png is in both of' in found[1][2]


@pytest.mark.parametrize(
  'old, new, row, reason, left',
  [
    ('1_001.png,', '1_000.png,', 3, 'twice', '2_000 3_000'),
    ('1_001.png,', '9_000.png,', 3, 'no image 9_000', '1_000 2_000 3_000'),
    ('1_001.png,', ',', 3, "''", '1_000 2_000 3_000'),
    ('1_001.png,', '../1_001.png,', 3, "'../1_001'", '1_000 2_000 3_000'),
    ('1_001.png,', '/etc/x.png,', 3, "'/etc/x'", '1_000 2_000 3_000'),
    ('1,1,059Y', '1,,059Y', 3, 'no Patient ID', '1_000 2_000 3_000'),
    ('1,1,059Y', '1,nan,059Y', 3, 'no Patient ID', '1_000 2_000 3_000'),
    ('|Effusion', '|Efusion', 2, "'Efusion'", '1_001 2_000 3_000'),
    ('|Effusion', '|', 2, "''", '1_001 2_000 3_000'),
    ('|Effusion', '|No Finding', 2, "'No Finding'", '1_001 2_000 3_000'),
    ('Cardiomegaly|Effusion', '', 2, "''", '1_001 2_000 3_000'),
    (
      'AP,2500,2048,0.168,0.168,\n3',
      'AP\n3',
      4,
      '7 cells',
      '1_000 1_001 3_000',
    ),
    ('PA,', 'PA,PA,', 2, '13 cells', '2_000 3_000'),
  ],
)
def test_a_bad_row_is_named_and_leaves_its_image_out(
  tmp_path, old, new, row, reason, left
):
  write(tmp_path, entries=HEADER + ROWS.replace(old, new))
  message = refused(tmp_path)
  place = f'{tmp_path}/{ENTRIES}, row {row}'
  assert message.startswith(f'{place}: ') and reason in message
  ids, found = skipped(tmp_path)
  assert ids == left
  assert found[0][0] == place and reason in found[0][2]
  # What the row should have named: the file of 1_001, or the second row of PA.
  assert len(found) == (2 if old in ('1_001.png,', 'PA,') else 1)


@pytest.mark.parametrize(
  'row, reason, left',
  [
    ('2_000.png,Mass,1,2,3', '5 cells', '1_000 1_001 3_000'),
    ('2_000.png,Mass,1,2,3,4,5', '7 cells', '1_000 1_001 3_000'),
    ('2_000.png,Mass,1,2,0,4,,,', 'above 0', '1_000 1_001 3_000'),
    ('2_000.png,Mass,1,2,-3,4,,,', 'above 0', '1_000 1_001 3_000'),
    ('2_000.png,Mass,1,nan,3,4,,,', "'nan'", '1_000 1_001 3_000'),
    ('2_000.png,Mass,1,,3,4,,,', "''", '1_000 1_001 3_000'),
    ('2_000.png,mass,1,2,3,4,,,', "'mass'", '1_000 1_001 3_000'),
    ('2_000.png,No Finding,1,2,3,4', "'No Finding'", '1_000 1_001 3_000'),
    ('4_000.png,Mass,1,2,3,4', 'is not in', '1_000 1_001 2_000 3_000'),
    ('../2_000.png,Mass,1,2,3,4', 'is not in', '1_000 1_001 2_000 3_000'),
  ],
)
def test_a_bad_box_is_named_and_leaves_its_image_out(
  tmp_path, row, reason, left
):
  write(tmp_path, boxes=BOX_ROWS + row + '\n' + row + '\n')
  message = refused(tmp_path)
  place = f'{tmp_path}/{BOXES}, row 4'
  assert message.startswith(f'{place}: ') and reason in message
  ids, found = skipped(tmp_path)
  assert ids == left
  assert len(found) == 1 and found[0][0] == place and reason in found[0][2]


def test_boxes_of_an_image_that_is_left_out_are_no_second_fault(tmp_path):
  entries = HEADER + ROWS.replace('Infiltration', 'Infiltrate')
  write(tmp_path, entries=entries, boxes=BOX_ROWS + '2_000.png,x,,,,\n')
  ids, found = skipped(tmp_path)
  assert ids == '1_000 1_001 3_000'
  assert [entry[:2] for entry in found] == [
    (f'{tmp_path}/{ENTRIES}, row 4', '2_000.png')
  ]


def test_an_image_without_a_row_and_two_of_one_name_are_faults(tmp_path):
  write(tmp_path)
  (tmp_path / 'other.png').write_bytes(b'x')
  (tmp_path / FOLDERS[1] / '1_000.png').write_bytes(b'x')
  ids, found = skipped(tmp_path)
  assert ids == '1_001 2_000 3_000'
  assert [entry[:2] for entry in found] == [
    (f'{tmp_path}/{ENTRIES}, row 2', '1_000.png'),
    (f'{tmp_path}/other.png', ''),
  ]
  assert all(name in found[0][2] for name in FOLDERS)


@pytest.mark.parametrize(
  'name, old, new, reason',
  [
    (ENTRIES, 'Patient ID', 'Patient', "no column 'Patient ID'"),
    (ENTRIES, HEADER, '', "no column 'Image Index'"),
    (BOXES, 'Finding Label', 'Finding', "no column 'Finding Label'"),
    (BOXES, 'Bbox [x,y,w,h]', 'x,y,w,h', "no column 'Bbox [x'"),
  ],
)
def test_a_header_without_a_column_is_refused(tmp_path, name, old, new, reason):
  write(tmp_path)
  path = tmp_path / name
  path.write_text(path.read_text().replace(old, new))
  message = refused(tmp_path)
  assert message.startswith(f'{path}, row 1: ') and reason in message
  with pytest.raises(UserError) as caught:
    skipped(tmp_path)
  assert str(caught.value) == message


@pytest.mark.parametrize('name', [ENTRIES, BOXES, TRAIN, TEST])
def test_tables_in_another_encoding_are_named(tmp_path, name):
  write(tmp_path)
  with open(tmp_path / name, 'ab') as file:
    file.write('\ngrün'.encode('latin-1'))
  message = refused(tmp_path)
  assert message.startswith(f'{tmp_path / name}: ') and 'UTF-8' in message


def test_links_out_of_the_source_are_not_followed(tmp_path):
  source, outside = write(tmp_path / 'set'), tmp_path / 'outside'
  (source / FOLDERS[0]).rename(outside)
  (source / FOLDERS[0]).symlink_to(outside)
  assert skipped(source)[0] == '1_001 3_000'
  (source / '1_000.png').symlink_to(outside / '1_000.png')
  assert 'leads out' in refused(source)
  assert skipped(source)[0] == '1_001 3_000'


def test_four_times_the_images_are_four_times_the_work(tmp_path):
  def lines_run(count):
    folder = tmp_path / str(count)
    images = folder / 'images'
    images.mkdir(parents=True)
    entries = [HEADER]
    for i in range(count):
      entries.append(f'{i}.png,Mass|Nodule,0,{i // 4},58,M,PA,1,1,1,1,\n')
      (images / f'{i}.png').touch()
    (folder / ENTRIES).write_text(''.join(entries))
    lines = 0

    def trace(frame, event, argument):
      nonlocal lines
      lines += event == 'line'
      return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
      records = read(folder)
    finally:
      sys.settrace(before)
    assert len(records) == count
    return lines

  assert lines_run(1000) < 4.2 * lines_run(250)


CELLS = st.one_of(
  st.sampled_from(
    ['', '0', '1', '2.5', '-3', 'nan', 'inf', '1e308', '9' * 5000]
  ),
  st.sampled_from(['../../x', '/etc/passwd', '..', '.', '\\', 'a/b']),
  st.sampled_from(['a\nb', '\x00', '\ufeff', '"']),
  st.sampled_from(
    ['1_000.png', '2_000.png', 'Mass', 'No Finding', '|', '058Y']
  ),
  st.text(max_size=6),
)
TABLE = st.lists(st.lists(CELLS, min_size=1, max_size=12), max_size=6)


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(entries=TABLE, boxes=TABLE, test=TABLE)
def test_whatever_stands_in_the_cells_is_one_line_or_left_out(
  entries, boxes, test
):
  with tempfile.TemporaryDirectory() as folder:
    source = write(pathlib.Path(folder, 'source'))
    for name, rows in ((ENTRIES, entries), (BOXES, boxes), (TEST, test)):
      with open(source / name, 'a', newline='', encoding='utf-8') as f:
        f.write('\n')
        csv.writer(f).writerows(rows)
    faults = tables.Faults('skip')
    records = nih.read(source, faults)
    assert {r.id for r in records}.isdisjoint(faults.left_out)
    for record in records:
      assert pathlib.Path(record.file).is_relative_to(source.resolve())
      assert np.isfinite(record.boxes).all()
      assert record.group and record.split
    assert all(text.isprintable() for fault in faults.found for text in fault)
    if faults.found:
      refused(source)
    else:
      assert len(read(source)) == len(records)
