"""A folder for each class: what is read, and what is one line."""

import collections
import functools
import os
import pathlib
import tempfile

import hypothesis
import pytest
from hypothesis import strategies as st

from dpjax.data.sources import folder, tables
from dpjax.errors import UserError
from tests.data import source_files as sources

HEADER = 'image,x,y,width,height,finding\n'
# What a patient is in the real set's file names.
PATIENT = r'person\d+_[a-z]+|(?:NORMAL2-)?IM-\d+'


def write(root, *names, boxes=None):
  """Makes files that are images by name only, and boxes.csv."""
  for name in names:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b'no image')
  if boxes is not None:
    (root / 'boxes.csv').write_text(boxes, encoding='utf-8')
  return root


refused = functools.partial(sources.refused, folder.read)
skipped = functools.partial(sources.skipped, folder.read)


def test_the_folder_is_the_class_and_a_normal_one_has_no_finding(tmp_path):
  write(tmp_path, 'NORMAL/1.png', 'viral/1.png', 'viral/2.jpg')
  records = folder.read(tmp_path, tables.Faults())
  assert [r.id for r in records] == [
    'NORMAL/1.png',
    'viral/1.png',
    'viral/2.jpg',
  ]
  assert [r.classes for r in records] == [('NORMAL',), ('viral',), ('viral',)]
  assert [r.findings for r in records] == [(), ('viral',), ('viral',)]
  assert {(r.split, r.group, r.label, r.boxes) for r in records} == {
    (None, None, None, ())
  }
  assert [r.file for r in records] == [str(tmp_path / r.id) for r in records]


def test_folders_of_a_split_say_the_split(tmp_path):
  sides = {
    'train': 'train',
    'Val': 'validation',
    'valid': 'validation',
    'validation': 'validation',
    'TEST': 'test',
  }
  write(tmp_path, *(f'{name}/viral/1.png' for name in sides))
  records = folder.read(tmp_path, tables.Faults())
  assert {r.id.split('/')[0]: r.split for r in records} == sides
  assert {r.classes for r in records} == {('viral',)}


@pytest.mark.parametrize(
  'good, bad',
  [
    (['a/1.png'], '2.png'),
    (['a/1.png'], 'a/deep/2.png'),
    (['train/a/1.png'], 'train/2.png'),
    (['train/a/1.png'], '2.png'),
    (['train/a/1.png'], 'a/2.png'),
    (['train/a/1.png'], 'other/a/2.png'),
    (['train/a/1.png'], 'train/a/deep/2.png'),
    (['a/1.png'], 'a/two\nlines.png'),
    (['a/1.png'], os.fsdecode(b'a/\xff.png')),
  ],
)
def test_an_image_out_of_place_is_one_fault(tmp_path, good, bad):
  write(tmp_path, *good, bad)
  refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == good
  [(place, id, reason)] = faults
  assert place.startswith(str(tmp_path)) and id and reason
  assert (place + id + reason).isprintable()


@pytest.mark.parametrize(
  'names', [[], ['1.png'], ['a/notes.txt'], ['test/1.png']]
)
@pytest.mark.parametrize('on_error', ['fail', 'skip'])
def test_a_source_without_folders_of_classes_is_told_what_is_wanted(
  tmp_path, names, on_error
):
  write(tmp_path, *names)
  with pytest.raises(UserError, match='CLASS/IMAGE') as caught:
    folder.read(tmp_path, tables.Faults(on_error))
  assert str(tmp_path) in str(caught.value)
  assert 'data.layout=csv, which takes images without' in str(caught.value)


def test_a_source_that_is_no_folder_is_refused(tmp_path):
  assert 'not a folder' in refused(tmp_path / 'nothing')


def test_boxes_belong_to_a_path_or_to_a_name_that_one_file_has(tmp_path):
  # A byte order mark, Windows line ends, blanks, and columns of no interest.
  boxes = (
    '\ufeffwho,finding,image,height,width,y,x\r\n'
    'R1,nodule, a/1.png ,4,3,2,1\r\n\r\n'
    'R2,mass,3,40,30,20,10.5\r\n'
    'R2,nodule,3.png,4,3,2,1\r\n'
    'R2,No Finding,b/1.png,,,,\r\n'
  )
  write(tmp_path, 'a/1.png', 'b/1.png', 'b/3.png', boxes=boxes)
  first, second, third = folder.read(tmp_path, tables.Faults())
  assert first.boxes == ((1, 2, 4, 6),) and first.names == ('nodule',)
  assert second.boxes == second.names == ()
  assert third.boxes == ((10.5, 20, 40.5, 60), (1, 2, 4, 6))
  assert third.names == ('mass', 'nodule')
  assert {r.frame for r in (first, second, third)} == {None}


def test_boxes_need_no_finding(tmp_path):
  write(tmp_path, 'a/1.png', boxes='image,x,y,width,height\n1,1,2,3,4\n')
  [record] = folder.read(tmp_path, tables.Faults())
  assert record.boxes == ((1, 2, 4, 6),) and record.names == ()


@pytest.mark.parametrize(
  'row, reason',
  [
    ('a/1.png,1,2,3', '4 cells'),
    ('a/1.png,1,2,3,4,mass,5', '7 cells'),
    ('a/1.png,x,2,3,4,mass', "x 'x'"),
    ('a/1.png,1,,3,4,mass', "y ''"),
    ('a/1.png,nan,2,3,4,mass', "'nan'"),
    ('a/1.png,1,2,inf,4,mass', "'inf'"),
    ('a/1.png,1,2,-3,4,mass', 'width -3'),
    ('a/1.png,1,2,3,0,mass', 'height 0'),
    ('a/1.png,1,2,3,4,"ma\nss"', r"'ma\nss'"),
  ],
)
def test_one_bad_box_leaves_out_its_image_and_no_other(tmp_path, row, reason):
  boxes = f'{HEADER}2.png,1,2,3,4,mass\n1,1,2,3,4,mass\n{row}\n1,9,x,9,9,mass\n'
  write(tmp_path, 'a/1.png', 'a/2.png', boxes=boxes)
  place = f'{tmp_path}/boxes.csv, row 4'
  message = refused(tmp_path)
  assert message.startswith(f'{place}: ') and reason in message
  ids, faults = skipped(tmp_path)
  assert ids == ['a/2.png']
  assert [f[:2] for f in faults] == [(place, 'a/1.png')]
  assert reason in faults[0][2]


@pytest.mark.parametrize(
  'name', ['9.png', '../a/1.png', '/a/1.png', '', 'a', '.', 'a\\2.png', 'a//']
)
def test_a_box_of_no_image_is_a_fault_of_its_own(tmp_path, name):
  boxes = f'{HEADER}{name},1,2,3,4,mass\n'
  write(tmp_path / 'set', 'a/1.png', boxes=boxes)
  write(tmp_path, '9.png')
  assert 'boxes.csv, row 2: ' in refused(tmp_path / 'set')
  ids, faults = skipped(tmp_path / 'set')
  assert ids == ['a/1.png'] and len(faults) == 1


def test_a_box_that_may_be_of_two_images_leaves_out_both(tmp_path):
  boxes = f'{HEADER}1.png,1,2,3,4,mass\n'
  write(tmp_path, 'a/1.png', 'b/1.png', 'b/2.png', boxes=boxes)
  assert 'two files are 1.png' in refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == ['b/2.png']
  assert [f[1] for f in faults] == ['a/1.png', 'b/1.png']


def test_the_end_of_a_path_that_two_images_have_leaves_out_both(tmp_path):
  boxes = f'{HEADER}a/1.png,1,2,3,4,mass\n'
  images = ('train/a/1.png', 'test/a/1.png', 'test/b/1.png')
  write(tmp_path, *images, boxes=boxes)
  assert 'two files are a/1.png' in refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == ['test/b/1.png']
  assert {f[1] for f in faults} == {'train/a/1.png', 'test/a/1.png'}


def test_a_box_of_an_image_that_is_left_out_is_no_second_fault(tmp_path):
  write(tmp_path, 'a/1.png', '2.png', boxes=f'{HEADER}2.png,1,2,3,x,mass\n')
  ids, faults = skipped(tmp_path)
  assert ids == ['a/1.png'] and [f[1] for f in faults] == ['2.png']


@pytest.mark.parametrize('on_error', ['fail', 'skip'])
@pytest.mark.parametrize(
  'content, reason',
  [
    (b'', 'no column'),
    (b'image,x,y,w,height\n1,1,2,3,4\n', "no column 'width'"),
    (b'1.png,1,2,3,4\n', "no column 'image'"),
    (b'image,x,y,width,height,x\n1,1,2,3,4,5\n', "two columns are 'x'"),
    (HEADER.encode() + b'1,1,2,3,4,gr\xfcn\n', 'not UTF-8 text (row 2)'),
  ],
)
def test_a_broken_table_of_boxes_is_refused(
  tmp_path, content, reason, on_error
):
  write(tmp_path, 'a/1.png')
  (tmp_path / 'boxes.csv').write_bytes(content)
  with pytest.raises(UserError) as caught:
    folder.read(tmp_path, tables.Faults(on_error))
  assert str(caught.value).startswith(f'{tmp_path}/boxes.csv')
  assert reason in str(caught.value)


def test_a_link_that_leads_out_of_the_source_is_not_followed(tmp_path):
  source = write(tmp_path / 'set', 'a/1.png')
  write(tmp_path, 'secret.png', 'b/2.png')
  (source / 'a/2.png').symlink_to(tmp_path / 'secret.png')
  assert 'leads out' in refused(source)
  ids, faults = skipped(source)
  assert ids == ['a/1.png'] and [f[1] for f in faults] == ['a/2.png']


@pytest.mark.parametrize('link', ['b', 'test', 'a/more'])
def test_a_link_to_a_folder_is_a_fault_and_its_images_are_not_lost_in_silence(
  tmp_path, link
):
  source = write(tmp_path / 'set', 'a/1.png', 'c/2.png')
  write(tmp_path, 'elsewhere/3.png')
  (source / link).symlink_to(tmp_path / 'elsewhere')
  line = refused(source)
  assert line.startswith(f'{source / link}: a link to a folder is not followed')
  assert f"config.data.ignore, as ('{link}',)" in line
  ids, faults = skipped(source)
  assert ids == ['a/1.png', 'c/2.png']
  assert [fault[0] for fault in faults] == [str(source / link)]
  read = folder.read(source, tables.Faults(), ignore=(link,))
  assert [record.id for record in read] == ids


def test_hidden_files_are_no_images(tmp_path):
  write(tmp_path, 'a/1.png', 'a/._1.png', '__MACOSX/a/._1.png', '.trash/2.png')
  assert len(folder.read(tmp_path, tables.Faults())) == 1


def test_no_image_is_opened(tmp_path, monkeypatch):
  write(tmp_path, 'a/1.png', 'b/1.dcm', boxes=f'{HEADER}a/1,1,2,3,4,mass\n')
  opened = sources.suffixes_opened(monkeypatch)
  assert len(folder.read(tmp_path, tables.Faults())) == 2
  assert set(opened) == {'.csv'}


@pytest.mark.parametrize(
  'pattern, groups',
  [
    ('', [None, None, None]),
    (r'person\d+', ['person1', 'person22', None]),
    (r'person(\d+)', ['1', '22', None]),
    (r'person(\d+)|(IM-\d+)', ['1', '22', 'IM-7']),
    (r'(?:person(\d))?_bac', ['1', None, None]),
    (r'\d*', [None, None, None]),
  ],
)
def test_the_patient_is_what_the_pattern_finds_in_the_name(
  tmp_path, pattern, groups
):
  names = ['person1_bacteria_3.png', 'person22_virus.png', 'x_IM-7.png']
  # Not in the name of a folder.
  write(tmp_path, *(f'person9/{name}' for name in names))
  if pattern == r'\d*':  # matches, but nothing
    assert 'finds a patient in no file name or path' in refused(
      tmp_path, patient_pattern=pattern
    )
    return
  read = folder.read(tmp_path, tables.Faults(), patient_pattern=pattern)
  assert [r.group for r in read] == groups


@pytest.mark.parametrize(
  'pattern', ['(', '[a', '*', 'a{9' + '9' * 30 + '}', 'IM']
)
def test_a_pattern_that_cannot_find_a_patient_is_refused(tmp_path, pattern):
  write(tmp_path, 'a/person1.png')
  message = refused(tmp_path, patient_pattern=pattern)
  assert message.startswith('config.data.patient_pattern: ')
  assert pattern in message


CELLS = st.text(st.characters(exclude_categories=['Cs']), max_size=6) | (
  st.sampled_from('1 a/1.png 2.png 3 ../1.png nan -1 1e999 5 0 normal'.split())
)


@hypothesis.settings(max_examples=120, deadline=None)
@hypothesis.given(
  st.lists(
    st.lists(CELLS, min_size=6, max_size=6) | st.lists(CELLS, max_size=8),
    max_size=6,
  )
)
def test_whatever_the_cells_hold_nothing_but_lines_comes_out(rows):
  with tempfile.TemporaryDirectory() as root:
    root = pathlib.Path(root)
    lines = [HEADER.strip(), *(','.join(map(_quoted, row)) for row in rows)]
    write(root, 'a/1.png', 'b/2.png', boxes='\n'.join(lines) + '\n')
    ids, faults = skipped(root)
    left_out = {id for _, id, _ in faults} - {''}
    assert sorted(ids) == sorted({'a/1.png', 'b/2.png'} - left_out)
    if faults:
      place, _, reason = faults[0]
      assert refused(root) == f'{place}: {reason}'


def _quoted(cell):
  return '"' + cell.replace('"', '""') + '"'


@pytest.mark.skipif(
  'DPJAX_FOLDER' not in os.environ,
  reason='DPJAX_FOLDER names no folder of the real set',
)
def test_the_real_set_has_its_known_counts_and_no_patient_on_two_sides():
  records = folder.read(
    os.environ['DPJAX_FOLDER'], tables.Faults(), patient_pattern=PATIENT
  )
  counts = collections.Counter((r.split, *r.classes) for r in records)
  assert counts == {
    ('train', 'normal'): 300,
    ('train', 'bacterial'): 600,
    ('train', 'viral'): 300,
    ('test', 'normal'): 75,
    ('test', 'bacterial'): 150,
    ('test', 'viral'): 75,
  }
  sides = collections.defaultdict(set)
  for record in records:
    sides[record.group].add(record.split)
  assert None not in sides and len(sides) == 1299
  assert all(len(side) == 1 for side in sides.values())
