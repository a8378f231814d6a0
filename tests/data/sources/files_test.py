"""The images of a folder, found by name and never outside; records of them."""

import errno
import os
import pathlib
import pickle
import tempfile

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dpjax.data.decode import formats, image_file
from dpjax.data.sources import files, tables
from dpjax.errors import SourceFault, UserError

DICOM = bytes(128) + b'DICM'
NOISE = np.random.default_rng(0).integers(0, 256, (21, 30), np.uint8)


def make(folder, *names, content=b'x'):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return folder


def names(images):
  return [file.relative_to(images.root).as_posix() for file in images.found]


def refused(images, name):
  """The reason why `name` names no image."""
  with pytest.raises(SourceFault) as caught:
    images.find(name)
  assert str(caught.value).isprintable()
  return str(caught.value)


def test_images_are_found_by_their_suffix_at_any_depth_in_order(tmp_path):
  make(tmp_path, 'b.PNG', 'a/c.jpg', 'a/b/d.dicom', 'e.tiff', 'notes.txt')
  assert names(files.Files(tmp_path)) == [
    'a/b/d.dicom',
    'a/c.jpg',
    'b.PNG',
    'e.tiff',
  ]


def test_a_dicom_file_needs_no_suffix(tmp_path):
  make(tmp_path, '1.2.840.99', 'IM0001', content=DICOM)
  make(tmp_path, 'README', 'short')
  images = files.Files(tmp_path)
  assert names(images) == ['1.2.840.99', 'IM0001']
  assert images.find('1.2.840.99').name == '1.2.840.99'
  assert 'no image' in refused(images, '1.2.840')


@pytest.mark.parametrize(
  'content', [b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff\xe0', b'II*\0', b'MM\0*']
)
def test_an_image_is_one_by_its_content_where_its_suffix_says_nothing(
  tmp_path, content
):
  make(tmp_path, 'scan', 'scan.001', 'x.image', content=content)
  make(tmp_path, 'BMW.txt', content=b'BMW is no bitmap')
  make(tmp_path, 'a.csv', 'b.txt', 'c.json', 'd.pdf', 'empty', content=b'')
  images = files.Files(tmp_path)
  assert names(images) == ['scan', 'scan.001', 'x.image']
  assert images.find('scan').name == 'scan'


def test_images_of_formats_that_are_not_read_are_not_lost_in_silence(tmp_path):
  foreign = ['a.gif', 'b.WEBP', 'c.jp2', 'd.JPE', 'e.jfif']
  make(tmp_path, *foreign)
  images = files.Files(tmp_path)
  assert names(images) == foreign
  assert images.find('a') == images.root / 'a.gif'
  with pytest.raises(SourceFault, match='no PNG, JPEG'):
    image_file.read(str(images.find('c')))


def test_only_files_of_unknown_suffix_are_opened(tmp_path, monkeypatch):
  make(tmp_path, 'a.png', 'b.JPE', 'c.dcm', 'd.gif', 'e.txt', 'f')
  opened = []

  def spy(file):
    opened.append(pathlib.Path(file).name)

  monkeypatch.setattr(formats, 'kind', spy)
  files.Files(tmp_path)
  assert sorted(opened) == ['e.txt', 'f']


def test_a_folder_that_cannot_be_read_is_one_line_that_names_it(
  tmp_path, monkeypatch
):
  # Root, who may run this, may read all folders.
  make(tmp_path, 'a/x.png', 'b/lo\ncked/y.png')
  real_scandir, real_is_file = os.scandir, pathlib.Path.is_file

  def denied(path):
    return PermissionError(errno.EACCES, 'Permission denied', str(path))

  def scandir(folder):
    if 'lo' in os.fspath(folder):
      raise denied(folder)
    return real_scandir(folder)

  def is_file(file):
    if file.name == 'y.png':
      raise denied(file)
    return real_is_file(file)

  line = f'{tmp_path}/b/lo\\ncked'
  with monkeypatch.context() as patch:
    patch.setattr(os, 'scandir', scandir)
    with pytest.raises(SourceFault) as caught:
      files.Files(tmp_path)
    assert str(caught.value) == f'{line}: cannot be read: Permission denied'
  monkeypatch.setattr(pathlib.Path, 'is_file', is_file)
  with pytest.raises(SourceFault) as caught:
    files.Files(tmp_path)
  assert str(caught.value) == f'{line}/y.png: cannot be read: Permission denied'


def test_hidden_files_pipes_and_dangling_links_are_no_images(tmp_path):
  make(tmp_path, '.DS_Store', '._a.png', '.git/a.png', '__MACOSX/._a.png')
  os.mkfifo(tmp_path / 'pipe.png')
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'dangling.png').symlink_to(tmp_path / 'gone.png')
  (tmp_path / 'folder.png').mkdir()
  assert names(files.Files(tmp_path)) == []


def test_a_name_may_have_its_suffix_or_its_folders(tmp_path):
  images = files.Files(make(tmp_path, 'a/x.png', 'b/y.v2.jpg', 'grün ß.png'))
  for name in ('x', 'x.png', 'a/x', 'a/x.png'):
    assert images.find(name) == images.root / 'a/x.png'
  assert images.find('y.v2') == images.root / 'b/y.v2.jpg'
  assert images.find('grün ß').name == 'grün ß.png'
  for name in ('b/x', 'c/x', 'a', 'y', 'a/x/x', 'x.v3', 'x.txt'):
    assert f'no image {name} in {images.root}' == refused(images, name)


def test_two_files_of_one_name_are_told_apart_by_their_folder(tmp_path):
  images = files.Files(make(tmp_path, 'a/x.png', 'b/x.png', 'b/x.jpg'))
  line = refused(images, 'x.png')
  assert line.startswith('two files are x.png: a/x.png and b/x.png; ')
  assert 'config.data.ignore passes it over' in line
  assert images.find('a/x') == images.root / 'a/x.png'
  assert 'two files are b/x: b/x.jpg and b/x.png' in refused(images, 'b/x')
  assert images.find('b/x.jpg') == images.root / 'b/x.jpg'


@pytest.mark.parametrize('name', ['', '/', '.', '..', '../x', 'a/../x'])
@pytest.mark.parametrize(
  'end', ['', '/', '//x', '/.', '/..', '\\', '\n', '\x00', '\u2028']
)
def test_what_is_no_name_below_the_folder_is_refused(tmp_path, name, end):
  make(tmp_path, 'x.png', 'set/x.png', 'set/a/x.png')
  images = files.Files(tmp_path / 'set')
  assert 'cannot name an image' in refused(images, name + end)
  if end:
    assert 'cannot name an image' in refused(images, 'x' + end)


def test_only_the_folders_that_are_asked_for_are_listed(tmp_path):
  make(tmp_path, 'train/x.png', 'test/x.png', 'x.png')
  assert names(files.Files(tmp_path, ['train'])) == ['train/x.png']
  both = files.Files(tmp_path, ['train', 'test'])
  assert names(both) == ['test/x.png', 'train/x.png']


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
  make(tmp_path, 'file')
  for root, folder in (('gone', '.'), ('file', '.'), ('.', 'train')):
    with pytest.raises(UserError) as caught:
      files.Files(tmp_path / root, [folder])
    message = str(caught.value)
    assert message.startswith('config.data.source: ') and message.isprintable()
    assert str(tmp_path) in message


def test_links_within_the_folder_are_followed_and_links_out_of_it_not(tmp_path):
  make(tmp_path, 'secret.png', 'set/a/x.png', 'out/y.png')
  (tmp_path / 'set/z.png').symlink_to(tmp_path / 'set/a/x.png')
  (tmp_path / 'set/s.png').symlink_to(tmp_path / 'secret.png')
  (tmp_path / 'set/relative.png').symlink_to('../secret.png')
  (tmp_path / 'set/folder').symlink_to(tmp_path / 'out')
  (tmp_path / 'link').symlink_to(tmp_path / 'set')
  # The source itself may be a link: its user chose where it leads.
  images = files.Files(tmp_path / 'link')
  assert images.find('z') == images.root / 'z.png'
  for name in ('s', 'relative'):
    assert 'leads out of' in refused(images, name)
  assert 'no image y' in refused(images, 'y')
  with pytest.raises(UserError, match='leads out of'):
    files.Files(tmp_path / 'set', ['folder'])


def test_a_loop_of_links_ends(tmp_path):
  make(tmp_path, 'a/x.png')
  (tmp_path / 'a/loop').symlink_to(tmp_path)
  (tmp_path / 'a/self.png').symlink_to(tmp_path / 'a/self.png')
  assert names(files.Files(tmp_path)) == ['a/x.png']


def test_an_image_that_nothing_asked_for_is_a_fault_of_its_own(tmp_path):
  images = files.Files(make(tmp_path, 'a.png', 'b.png', 'c/d.png', 'c/d.jpg'))
  images.find('a')
  refused(images, 'c/d')  # two files, and one fault is enough
  faults = tables.Faults('skip')
  images.add_unnamed(faults, pathlib.Path('labels.csv'))
  [(place, id, reason)] = faults.found
  assert (place, id) == (f'{images.root}/b.png', '')
  assert reason.startswith('no row of labels.csv names it; ')
  assert 'config.data.ignore passes it over' in reason
  with pytest.raises(UserError, match=r'b\.png: no row of labels\.csv'):
    images.add_unnamed(tables.Faults(), pathlib.Path('labels.csv'))


def test_the_file_of_an_image_that_is_left_out_is_no_second_fault(tmp_path):
  images = files.Files(make(tmp_path, 'a.png', 'b.png'))
  faults = tables.Faults('skip')
  faults.add('labels.csv, row 1', 'a bad label', 'a')
  faults.add('labels.csv, row 2', 'no name at all', '../b')
  images.add_unnamed(faults, pathlib.Path('labels.csv'))
  assert [entry[0] for entry in faults.found[2:]] == [f'{images.root}/b.png']


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
  st.text(max_size=12)
  | st.lists(
    st.sampled_from(['..', '.', '', 'set', 'x', 'x.png', 'secret', 'a', '\\']),
    max_size=6,
  ).map('/'.join)
)
def test_any_name_is_an_image_of_the_folder_or_a_fault(name):
  with tempfile.TemporaryDirectory() as folder:
    make(pathlib.Path(folder), 'secret.png', 'set/x.png', 'set/a/x.png')
    images = files.Files(pathlib.Path(folder, 'set'))
    try:
      found = images.find(name)
    except SourceFault as fault:
      assert str(fault).isprintable()
    else:
      assert found in images.found and found.is_relative_to(images.root)


def test_the_end_of_a_path_names_a_file_too(tmp_path):
  make(tmp_path, 'images/train/1.png', 'images/test/1.png', 'images/test/2.png')
  images = files.Files(tmp_path)
  assert images.find('test/1.png') == images.root / 'images/test/1.png'
  assert images.find('images/train/1') == images.root / 'images/train/1.png'
  assert 'two files' in refused(images, '1.png')
  assert 'no image' in refused(images, 'est/1.png')
  assert 'no image' in refused(images, 'train/2.png')


def test_of_several_the_path_from_the_root_or_the_whole_name_wins(tmp_path):
  make(tmp_path, 'a/1.png', 'b/a/1.png', 'c.jpg', 'c.jpg.png', 'd/c.png')
  images = files.Files(tmp_path)
  assert images.find('a/1.png') == images.root / 'a/1.png'
  assert images.find('c.jpg') == images.root / 'c.jpg'
  # 'c' may be c.jpg or d/c.png.
  assert 'two files' in refused(images, 'c')


def test_a_file_beside_the_table_goes_first(tmp_path):
  make(tmp_path, 'train/1.png', 'test/1.png', 'test/x/1.png', '2.png')
  images = files.Files(tmp_path)
  test = images.root / 'test'
  assert images.find('1.png', beside=test) == test / '1.png'
  assert images.find('x/1.png', beside=test) == test / 'x/1.png'
  assert images.find('2.png', beside=test) == images.root / '2.png'


def test_all_that_a_name_may_mean_are_the_files_that_find_cannot_tell_apart(
  tmp_path,
):
  make(tmp_path, 'a/1.png', 'b/1.jpg', 'b/c/1.png', '2.png', 'x/c/1.png')
  images = files.Files(tmp_path)

  def named(name):
    return [f.relative_to(images.root).as_posix() for f in images.named(name)]

  assert named('1') == ['a/1.png', 'b/1.jpg', 'b/c/1.png', 'x/c/1.png']
  assert named('1.png') == ['a/1.png', 'b/c/1.png', 'x/c/1.png']
  assert named('c/1.png') == ['b/c/1.png', 'x/c/1.png']
  assert named('2') == named('2.png') == ['2.png']
  for name in ('', '3', 'c', '..', '../1', 'a/../1', '/1', 'a//1'):
    assert named(name) == []


def test_the_table_of_contents_of_a_cd_is_no_image(tmp_path):
  make(tmp_path, 'DICOMDIR', 'IMAGES/IM1', content=DICOM)
  assert names(files.Files(tmp_path)) == ['IMAGES/IM1']


def test_a_record_of_a_file_travels_and_reads_its_pixels(tmp_path):
  pixels = NOISE[:20]
  file = tmp_path / 'älter 1.png'
  cv2.imwrite(str(file), pixels)
  made = files.record(
    file, 'train/1', boxes=((1, 2, 3, 4),), split='test', group='patient 7'
  )
  assert (made.id, made.group, made.split) == ('train/1', 'patient 7', 'test')
  assert made.frame is None and made.file == str(file)
  read = pickle.loads(pickle.dumps(made))
  np.testing.assert_array_equal(read.pixels(), pixels)
  of_1024 = files.record(file, 'x', frame=(1024, 1024))
  assert of_1024.frame == (1024, 1024)


def test_only_of_a_file_that_may_be_dicom_is_a_header_read(tmp_path):
  def header(name):
    (tmp_path / name).write_bytes(b'')
    made = files.record(tmp_path / name, 'x')
    return pickle.loads(pickle.dumps(made)).header

  assert header('a.PNG') is None and header('a.jpeg') is None
  assert header('a.jfif') is None and header('a.gif') is None
  for name in ('a.dcm', '1.2.840.10008'):
    with pytest.raises(SourceFault, match=f'{name}: empty'):
      header(name)()


def test_the_stamp_changes_with_the_file_and_not_with_its_place(tmp_path):
  def stamp(file):
    return files.record(file, 'x').stamp

  file = tmp_path / 'a.png'
  cv2.imwrite(str(file), NOISE[:20])
  before = stamp(file)
  moved = pathlib.Path(file.rename(tmp_path / 'b.png'))
  assert stamp(moved) == before
  os.utime(moved, ns=(0, 0))
  touched = stamp(moved)
  cv2.imwrite(str(moved), NOISE)
  os.utime(moved, ns=(0, 0))
  assert len({before, touched, stamp(moved)}) == 3


def test_files_that_may_hold_images_and_cannot_be_read_are_told_of(tmp_path):
  for name, content in {
    'a.png': b'',
    'labels.csv': b'\0',  # a table by its name
    'LICENSE': 'Für alle.\n'.encode(),  # a text by its content
    '.DS_Store': b'\0\1',
    'study/IM01.raw': b'\0\1\2\3',
    'study/IM02': b'',
    'study/scans.zip': b'PK\3\4\0\0',
    'study/scan.dcm.GZ': b'\x1f\x8b\x08\0',
    'splits.csv.gz': b'\x1f\x8b\x08\0',
    'notes.TXT.gz': b'\x1f\x8b\x08\0',
  }.items():
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
  (tmp_path / 'study/lost.png').symlink_to(tmp_path / 'nowhere.png')
  found = files.Files(tmp_path)
  assert sorted(file.name for file in found.unread) == [
    'IM01.raw',
    'IM02',
    'lost.png',
    'scan.dcm.GZ',
    'scans.zip',
  ]
  faults = tables.Faults()
  found.remark_unread(faults)
  (line,) = faults.remarks
  assert line.startswith(
    '5 files passed over that may hold images, such as study/IM01.raw (its'
    ' content is no PNG'
  )
  faults = tables.Faults()
  files.Files(tmp_path, ignore=('study',)).remark_unread(faults)
  assert not faults.remarks


@pytest.mark.parametrize(
  'make, why',
  [
    (lambda file: file.write_bytes(b''), 'it is empty'),
    (lambda file: file.symlink_to('nowhere'), 'a link to nothing'),
  ],
)
def test_the_reason_of_the_example_is_told(tmp_path, make, why):
  make(tmp_path / 'IM1')
  faults = tables.Faults()
  files.Files(tmp_path).remark_unread(faults)
  (line,) = faults.remarks
  assert line.startswith(
    f'a file passed over that may hold images, such as IM1 ({why})'
  )
