"""A table of images and one of boxes: what is read, and what is one line."""

import collections
import functools
import os
import pathlib
import tempfile

import hypothesis
import pytest
from hypothesis import strategies as st

from dpjax.data.sources import plain_csv, tables
from tests.data import source_files as sources

LABELS = """image,label,patient_id,split
1.png,normal,p1,train
2,pneumonia,p2,Test
images/3.png,,,
4.jpg,effusion | mass,p2,VAL
"""
BOXES = """image,x,y,width,height,finding
2.png,1,2,3,4,opacity
4,5,6,7,8,mass
2.png,0,0,1.5,1,nodule
"""
IDS = ['1.png', '2', 'images/3.png', '4.jpg']


def write(root, labels=LABELS, boxes=BOXES):
  """Makes the tables, and files that are images by name only."""
  for name in ('1.png', '2.png', '3.png', 'more/4.jpg'):
    file = root / 'images' / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b'no image')
  for name, text in (('labels', labels), ('boxes', boxes)):
    if text is not None:
      data = text if isinstance(text, bytes) else text.encode()
      (root / f'{name}.csv').write_bytes(data)
  return root


def read(root, **options):
  return plain_csv.read(root, tables.Faults(), **options)


refused = functools.partial(sources.refused, plain_csv.read)
skipped = functools.partial(sources.skipped, plain_csv.read)


def test_each_row_is_an_image(tmp_path):
  records = read(write(tmp_path))
  assert [r.id for r in records] == IDS
  assert [r.file for r in records] == [
    f'{tmp_path}/images/{name}'
    for name in ('1.png', '2.png', '3.png', 'more/4.jpg')
  ]
  assert [r.classes for r in records] == [
    ('normal',),
    ('pneumonia',),
    (),
    ('effusion', 'mass'),
  ]
  assert [r.findings for r in records] == [
    (),
    ('pneumonia',),
    None,
    ('effusion', 'mass'),
  ]
  assert [r.group for r in records] == ['p1', 'p2', None, 'p2']
  assert [r.split for r in records] == ['train', 'test', None, 'validation']
  assert [r.boxes for r in records] == [
    (),
    ((1, 2, 4, 6), (0, 0, 1.5, 1)),
    (),
    ((5, 6, 12, 14),),
  ]
  assert [r.names for r in records] == [
    (),
    ('opacity', 'nodule'),
    (),
    ('mass',),
  ]
  assert {(r.label, r.frame) for r in records} == {(None, None)}
  assert records[1].where == f'{tmp_path}/labels.csv, row 3'


def test_spreadsheet_files_read_alike(tmp_path):
  plain = read(write(tmp_path / 'plain'))

  def foreign(text):
    return ('\ufeff' + text.replace(',', ' , ') + ',,\n\n').replace(
      '\n', '\r\n'
    )

  other = read(write(tmp_path / 'other', foreign(LABELS), foreign(BOXES)))
  for a, b in zip(plain, other, strict=True):
    assert (a.id, a.classes, a.group, a.split) == (
      b.id,
      b.classes,
      b.group,
      b.split,
    )
    assert (a.boxes, a.names) == (b.boxes, b.names)


def test_only_the_image_column_is_needed_where_the_others_are_turned_off(
  tmp_path,
):
  write(tmp_path, 'image\n1\n2\n3\n4\n')
  records = read(tmp_path, label='', boxes='')
  assert {
    (r.classes, r.findings, r.group, r.split, r.boxes) for r in records
  } == {((), None, None, None, ())}


def test_tables_and_columns_may_have_other_names(tmp_path):
  write(tmp_path, None, None)
  (tmp_path / 'a.csv').write_text(
    'file,class,subject,fold,age,sex\n'
    '1,0,s1,train,63,F\n2,1,s2,test,,M\n3,10,s3,,5,\n4,2,,,7,x\n'
  )
  (tmp_path / 'b.csv').write_text('f,l,t,w,h,what\n2,0.1,0.2,0.3,0.4,mass\n')
  records = read(
    tmp_path,
    labels='a.csv',
    image='file',
    label='class',
    patient='subject',
    split='fold',
    metadata=('age', 'sex'),
    boxes='b.csv',
    box_image='f',
    box_columns=('l', 't', 'w', 'h'),
    box_name='what',
    frame=(1, 1),
  )
  assert [r.classes for r in records] == [('0',), ('1',), ('10',), ('2',)]
  assert [r.group for r in records] == ['s1', 's2', 's3', None]
  assert records[1].metadata == {'age': '', 'sex': 'M'}
  assert records[1].boxes[0] == pytest.approx((0.1, 0.2, 0.4, 0.6))
  assert records[1].names == ('mass',) and records[1].frame == (1, 1)


STUDIES = 'image,study\n1,100\n2,101\n3,102\n4,103\n'


def write_joined(root, *tables_):
  write(root, STUDIES, None)
  names = [f'{i}.csv' for i in range(len(tables_))]
  for name, text in zip(names, tables_, strict=True):
    (root / name).write_text(text)
  return root, {'join': names, 'label': '("mass",)', 'blank': 'negative'}


def test_what_a_joined_table_has_no_row_for_is_unknown_and_said(tmp_path):
  root, options = write_joined(tmp_path, 'study,mass\n100,1\n101,\n103,0\n')
  faults = tables.Faults()
  records = plain_csv.read(root, faults, **options)
  assert [r.classes for r in records] == [
    ('mass',), ('negative',), (), ('negative',)
  ]  # fmt: skip
  assert [r.findings for r in records] == [('mass',), (), None, ()]
  (remark,) = faults.remarks
  assert remark.startswith('1 rows') and f'{tmp_path}/0.csv' in remark
  records = read(root, **{**options, 'label': 'mass'})
  assert [r.classes for r in records] == [('1',), ('0',), (), ('0',)]
  # Of a row that is not read, nothing is missing.
  faults = tables.Faults()
  plain_csv.read(root, faults, **options, where='study=100|101|103')
  assert not faults.remarks


def test_rows_passed_over_for_their_case_alone_are_said(tmp_path):
  labels = 'image,label,view\n1,a,PA\n2,b,pa\n3,a,Pa\n4,b,L\n'
  root = write(tmp_path, labels, boxes=None)
  for where, ids, said in (
    ('view=PA', '1', "view is 'Pa', 'pa' are passed over"),
    ('view=PA|pa', '12', "view is 'Pa' are passed over"),
    ('view=PA|L', '14', "view is 'Pa', 'pa' are passed over"),
    ('view=PA|pa|Pa', '123', ''),
    ('label=a;view=PA|pa|Pa', '13', ''),
  ):
    faults = tables.Faults()
    records = plain_csv.read(root, faults, where=where)
    assert [r.id for r in records] == [*ids]
    assert len(faults.remarks) == bool(said)
    assert said in ''.join(faults.remarks)


def test_a_joined_table_whose_keys_are_written_otherwise_is_refused(tmp_path):
  root, options = write_joined(tmp_path, 'study,mass\n100.0,1\n101.0,0\n')
  message = refused(root, **options)
  assert f"{tmp_path}/0.csv has no row for any image, by study: it has '100.0'"\
    " where the table of images has '100'" in message  # fmt: skip


def test_a_column_that_two_joined_tables_have_is_refused(tmp_path):
  one = 'study,mass\n100,1\n101,0\n102,0\n103,0\n'
  root, options = write_joined(tmp_path, one, 'study,mass,more\n100,0,1\n')
  message = refused(root, **options)
  assert f"both {tmp_path}/0.csv and {tmp_path}/1.csv have the column 'mass'" \
    in message  # fmt: skip


def test_a_patient_in_the_table_goes_before_one_in_the_name(tmp_path):
  write(tmp_path)
  records = read(tmp_path, patient_pattern=r'[34]')
  assert [r.group for r in records] == ['p1', 'p2', '3', 'p2']
  assert 'config.data.patient_pattern' in refused(tmp_path, patient_pattern='(')


@pytest.mark.parametrize('patient', ['Patient_ID', 'PatientID', 'patient id'])
@pytest.mark.parametrize('split', ['Split', 'SPLIT'])
def test_auto_finds_its_columns_in_other_case_and_with_other_signs(
  tmp_path, patient, split
):
  labels = LABELS.replace('patient_id', patient).replace('split', split)
  write(tmp_path, labels, BOXES.replace('finding', 'Finding'))
  assert plain_csv.find(tmp_path) == {
    'patient': patient,
    'split': split,
    'boxes': 'boxes.csv',
    'box_name': 'Finding',
  }
  records = read(tmp_path)
  assert [r.group for r in records] == ['p1', 'p2', None, 'p2']
  assert [r.split for r in records] == ['train', 'test', None, 'validation']


def test_auto_takes_its_own_spelling_first_and_asks_between_two_others(
  tmp_path,
):
  write(tmp_path, LABELS.replace('label', 'Patient ID'), None)
  assert plain_csv.find(tmp_path)['patient'] == 'patient_id'
  two = LABELS.replace('label', 'Patient ID').replace('patient_id', 'PatientId')
  (tmp_path / 'labels.csv').write_text(two)
  assert refused(tmp_path, label='') == (
    "config.data.csv.patient: auto may mean 'Patient ID' or 'PatientId'; name"
    ' one of them'
  )
  # What names the image names no patient.
  (tmp_path / 'labels.csv').write_text('patientId,label\n1,0\n')
  assert plain_csv.find(tmp_path, image='patientId')['patient'] == ''


def test_what_pandas_writes_for_no_patient_is_no_patient(tmp_path):
  write(tmp_path, LABELS.replace('p1', 'nan').replace('p2', 'N/A'))
  assert [r.group for r in read(tmp_path)] == [None] * 4
  records = read(tmp_path, patient_pattern=r'[34]')
  assert [r.group for r in records] == [None, None, '3', '4']


@pytest.mark.parametrize('on_error', ['fail', 'skip'])
@pytest.mark.parametrize(
  'options, reason',
  [
    ({'label': 'lable'}, "no column 'lable'"),
    ({'image': 'img'}, "no column 'img'"),
    ({'patient': 'patient'}, "no column 'patient'"),
    ({'split': 'fold'}, "no column 'fold'"),
    ({'metadata': ('age',)}, "no column 'age'"),
    ({'labels': 'other.csv'}, 'other.csv: no such file'),
    ({'labels': ''}, 'cannot be read'),
    ({'boxes': 'other.csv'}, 'other.csv: no such file'),
    ({'box_image': 'img'}, "no column 'img'"),
    ({'box_name': 'what'}, "no column 'what'"),
    ({'box_columns': ('x', 'y', 'w', 'h')}, "no column 'w'"),
  ],
)
def test_a_setting_that_does_not_fit_the_tables_is_refused(
  tmp_path, options, reason, on_error
):
  assert reason in refused(write(tmp_path), on_error, **options)


@pytest.mark.parametrize('on_error', ['fail', 'skip'])
@pytest.mark.parametrize(
  'labels, reason',
  [
    (None, 'labels.csv: no such file'),
    ('', "no column 'image'"),
    ('image,label\n', 'labels.csv: no rows'),
    ('1.png,normal\n', "no column 'image'"),
    ('image,label,label\n1,normal,mass\n', "two columns are 'label'"),
    ('image,label,split,split\n1,normal,test,\n', "two columns are 'split'"),
    ('image,label\n1,gr\xfcn\n'.encode('latin-1'), 'not UTF-8 text (row 2)'),
    ('image,label\n1,"' + 'x' * 200_000 + '"\n', 'not a csv file'),
  ],
)
def test_a_broken_table_of_labels_is_refused(
  tmp_path, labels, reason, on_error
):
  message = refused(write(tmp_path, labels), on_error)
  assert message.startswith(f'{tmp_path}/labels.csv') and reason in message


@pytest.mark.parametrize(
  'row, reason',
  [
    ('2,pneumonia', '2 cells'),
    ('2,pneumonia,p2,train,more', '5 cells'),
    ('2,pneumonia,p2,holdout', "split 'holdout'"),
    ('2,a||b,p2,train', "label 'a||b'"),
    ('2,|,p2,train', "label '|'"),
    ('2,"two\nlines",p2,train', r"label 'two\nlines'"),
    ('2,mass\x00,p2,train', r"label 'mass\x00'"),
  ],
)
def test_a_bad_row_leaves_out_its_image_and_no_other(tmp_path, row, reason):
  # The image's box is fine, and its second row is not looked at.
  labels = LABELS.replace('2,pneumonia,p2,Test', row) + '2.png,normal,,\n'
  write(tmp_path, labels)
  place = f'{tmp_path}/labels.csv, row 3'
  message = refused(tmp_path)
  assert message.startswith(f'{place}: ') and reason in message
  ids, faults = skipped(tmp_path)
  assert ids == [IDS[0], *IDS[2:]]
  assert [f[:2] for f in faults] == [(place, '2')] and reason in faults[0][2]


@pytest.mark.parametrize(
  'label, reason',
  [
    *(
      (number, 'wanted a whole number of 0 or more, or a name')
      for number in ('1.5', '-2', '+1', 'inf', '-Infinity', '1e3', '1_000')
    ),
    *(
      (nothing, 'an empty cell leaves it unlabelled')
      for nothing in ('NaN', 'nan', 'NA', 'n/a', 'null')
    ),
  ],
)
def test_a_label_that_only_looks_like_a_number_is_a_fault_of_its_row(
  tmp_path, label, reason
):
  place = f'{tmp_path}/labels.csv, row 3'
  for cell in (label, f'mass | {label}'):
    write(tmp_path, LABELS.replace('2,pneumonia', f'2,{cell}'))
    assert refused(tmp_path) == f'{place}: label {label!r}; {reason}'
    ids, faults = skipped(tmp_path)
    assert ids == [IDS[0], *IDS[2:]] and [f[1] for f in faults] == ['2']


@pytest.mark.parametrize('label', ['0', '12', 'none', 'T1', '1st', 'nano'])
def test_whole_numbers_and_names_are_labels(tmp_path, label):
  records = read(write(tmp_path, LABELS.replace('pneumonia', label)))
  assert records[1].classes == (label,)


def test_an_image_with_two_rows_is_left_out_since_either_may_be_wrong(tmp_path):
  write(tmp_path, LABELS + '2.png,normal,,\nimages/2.png,normal,,\n')
  place = f'{tmp_path}/labels.csv, row 6'
  assert refused(tmp_path) == f'{place}: 2 stands in the table twice'
  ids, faults = skipped(tmp_path)
  assert ids == [IDS[0], *IDS[2:]]
  assert [f[:2] for f in faults] == [(place, '2')]


@pytest.mark.parametrize(
  'cell',
  [
    '9.png',
    '../labels.csv',
    '../secret.png',
    '/etc/passwd',
    'images/../images/1.png',
    '..',
    'images',
    'images\\9.png',
    'labels.csv',
    '9.jpg',
    '',
  ],
)
def test_a_row_without_a_file_is_a_fault(tmp_path, cell):
  source = write(tmp_path / 'set', LABELS + f'{cell},normal,p9,\n')
  (tmp_path / 'secret.png').write_bytes(b'secret')
  assert f'{source}/labels.csv, row 6: ' in refused(source)
  ids, faults = skipped(source)
  assert ids == IDS and [f[1] for f in faults] == [cell]


def test_a_file_without_a_row_is_a_fault(tmp_path):
  write(tmp_path, LABELS.replace('1.png,normal,p1,train\n', ''))
  assert f'{tmp_path}/images/1.png: no row' in refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == IDS[1:]
  assert [f[0] for f in faults] == [f'{tmp_path}/images/1.png']


def test_two_files_of_one_name_are_told_apart_by_path_only(tmp_path):
  write(tmp_path)
  (tmp_path / 'images/more/1.png').write_bytes(b'no image')
  assert 'two files are 1.png' in refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == IDS[1:] and [f[1] for f in faults] == ['1.png']
  write(
    tmp_path,
    LABELS.replace('1.png', 'images/1.png') + 'images/more/1.png,normal,,\n',
  )
  assert len(read(tmp_path)) == 5


def test_a_link_that_leads_out_of_the_source_is_not_followed(tmp_path):
  source = write(tmp_path / 'set')
  (tmp_path / 'secret.png').write_bytes(b'secret')
  (source / 'images/1.png').unlink()
  (source / 'images/1.png').symlink_to(tmp_path / 'secret.png')
  assert 'leads out' in refused(source)
  ids, faults = skipped(source)
  assert ids == IDS[1:] and [f[1] for f in faults] == ['1.png']


@pytest.mark.parametrize(
  'row, reason',
  [
    ('2,1,2,3', '4 cells'),
    ('2,1,2,3,4,mass,more', '7 cells'),
    ('2,,2,3,4,mass', "x ''"),
    ('2,1,NaN,3,4,mass', "y 'NaN'"),
    ('2,1,2,-3,4,mass', 'width -3'),
    ('2,1,2,3,-inf,mass', "height '-inf'"),
  ],
)
def test_one_bad_box_leaves_out_its_image_and_no_other(tmp_path, row, reason):
  write(tmp_path, boxes=f'{BOXES}{row}\n2,x,x,x,x,mass\n')
  place = f'{tmp_path}/boxes.csv, row 5'
  message = refused(tmp_path)
  assert message.startswith(f'{place}: ') and reason in message
  ids, faults = skipped(tmp_path)
  assert ids == [IDS[0], *IDS[2:]]
  assert [f[:2] for f in faults] == [(place, '2')] and reason in faults[0][2]


def test_no_image_is_opened(tmp_path, monkeypatch):
  write(tmp_path)
  opened = sources.suffixes_opened(monkeypatch)
  read(tmp_path)
  assert set(opened) == {'.csv'}


CELLS = st.text(st.characters(exclude_categories=['Cs']), max_size=6) | (
  st.sampled_from(
    '1 1.png 2 images/3.png 4 ../1.png normal a|b test nan -1 1e999 5'.split()
  )
)


@st.composite
def _rows(draw, length):
  cells = st.lists(CELLS, min_size=length, max_size=length)
  rows = draw(st.lists(cells | st.lists(CELLS, max_size=8), max_size=6))
  return '\n'.join(','.join(map(_quoted, row)) for row in rows) + '\n'


def _quoted(cell):
  return '"' + cell.replace('"', '""') + '"'


@hypothesis.settings(max_examples=120, deadline=None)
@hypothesis.given(_rows(4), _rows(6))
def test_whatever_the_cells_hold_nothing_but_lines_comes_out(labels, boxes):
  with tempfile.TemporaryDirectory() as root:
    root = pathlib.Path(root).resolve()
    write(root, LABELS + labels, BOXES.splitlines()[0] + '\n' + boxes)
    ids, faults = skipped(root)
    left_out = {id for _, id, _ in faults}
    assert set(IDS) - left_out == set(ids) & set(IDS)
    assert not left_out & set(ids)
    assert len(ids) == len(set(ids))
    if faults:
      place, _, reason = faults[0]
      assert refused(root) == f'{place}: {reason}'


@pytest.mark.skipif(
  'DPJAX_NIH' not in os.environ,
  reason='DPJAX_NIH names no folder of the real set',
)
def test_the_real_set_has_its_known_counts_and_no_patient_on_two_sides():
  records = read(os.environ['DPJAX_NIH'])
  assert collections.Counter(r.classes for r in records) == {
    ('normal',): 503,
    ('pneumonia',): 505,
    ('abnormal_no_opacity',): 7,
  }
  assert sum(len(r.boxes) for r in records) == 190
  assert sum(bool(r.boxes) for r in records) == 119
  sides = collections.defaultdict(set)
  for record in records:
    sides[record.group].add(record.split)
  assert None not in sides and len(sides) == 698
  assert all(len(side) == 1 for side in sides.values())
