"""The prepare command and the set that a run opens."""

import csv
import json
import os
import pathlib
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest

from dpjax import prepare
from dpjax.config import fields
from dpjax.data import store
from dpjax.data.sources import phantom
from dpjax.errors import UserError
from tests import fakes


def make_config(path, **changes):
  return fakes.make_config(
    data__path=str(path),
    data__store_size=64,
    data__workers=1,
    data__phantom__count=50,
    **changes,
  )


def write_competition(source):
  """Twelve noise images; the labels go 0, 1, 0, 1, ..."""
  (source / 'train').mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(12):
    image = rng.integers(0, 256, (80, 100)).astype(np.uint8)
    cv2.imwrite(str(source / f'train/{i}.jpg'), image)
  labels = ''.join(f'{i},{i % 2}\n' for i in range(12))
  boxes = ''.join(f'{i},10,20,30,40\n' for i in range(1, 12, 2))
  (source / 'train.csv').write_text(labels)
  (source / 'train_bboxes.csv').write_text(
    'filename,x,y,width,height\n' + boxes
  )
  return source


def one_line(caught):
  message = str(caught.value)
  assert message and '\n' not in message
  return message


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """(config, Store) of a phantom that was prepared on first use."""
  config = make_config(tmp_path_factory.mktemp('prepare') / 'new' / 'set')
  return config, prepare.open_prepared(config)


def test_the_phantom_is_prepared_on_first_use(opened):
  config, made = opened
  counts = np.sum(list(made.info['counts'].values()), axis=0)
  assert tuple(counts) == phantom.class_counts(50)
  assert made.path == config.data.path and made.size == 64
  assert made.num_classes == 5
  for name in ('train', 'validation', 'test'):
    split = made.split(name)
    # In the phantom the label is the number of boxes.
    np.testing.assert_array_equal(split.num_boxes, split.labels)
    assert split.images(range(len(split))).std(axis=(1, 2)).min() > 5


def test_the_second_use_opens_what_is_there(opened, capsys):
  config, made = opened
  folder = pathlib.Path(made.path)
  before = {f: f.stat().st_mtime_ns for f in folder.iterdir()}
  again = prepare.open_prepared(config)
  assert again.info == made.info
  assert {f: f.stat().st_mtime_ns for f in folder.iterdir()} == before
  assert capsys.readouterr().out == ''  # Nothing to say.


def test_first_use_says_what_it_does(tmp_path, capsys):
  prepare.open_prepared(make_config(tmp_path / 'set'))
  out = capsys.readouterr().out
  assert f'{tmp_path}/set is not there: preparing 50 phantom' in out
  assert 'validation' in out  # the table of counts


def test_a_prepared_set_is_kept_and_another_is_refused(opened):
  config, made = opened
  assert prepare.prepare(config)['reused']
  other = make_config(made.path, data__phantom__seed=1)
  with pytest.raises(UserError) as caught:
    prepare.prepare(other)
  assert 'another set' in one_line(caught)


def test_a_missing_competition_set_is_told_the_command_that_makes_it(tmp_path):
  config = make_config(
    tmp_path / 'set',
    data__layout='competition',
    data__source=str(tmp_path / 'raw'),
  )
  with pytest.raises(UserError) as caught:
    prepare.open_prepared(config)
  message = one_line(caught)
  assert message.startswith(f'config.data.path: {tmp_path}/set is not there')
  assert f'--config.data.source={tmp_path}/raw' in message
  assert not (tmp_path / 'set').exists()


def test_a_set_that_is_not_there_is_prepared_from_its_source(tmp_path, capsys):
  config = make_config(
    tmp_path / 'set',
    data__layout='competition',
    data__source=str(write_competition(tmp_path / 'raw')),
  )
  made = prepare.open_prepared(config)
  assert np.sum(list(made.info['counts'].values())) == 12
  out = capsys.readouterr().out
  assert out.startswith(
    f'{tmp_path}/set is not there: preparing the competition set in'
    f' {tmp_path}/raw\n'
  )
  assert 'validation' in out  # the table of counts
  prepare.open_prepared(config)
  assert capsys.readouterr().out == ''


def test_the_competition_set_is_prepared_from_its_source(tmp_path):
  config = make_config(
    tmp_path / 'set',
    data__layout='competition',
    data__source=str(write_competition(tmp_path / 'raw')),
  )
  summary = prepare.prepare(config)
  assert summary['counts'] == {
    'train': [2, 2],
    'validation': [2, 2],
    'test': [2, 2],
  }
  split = prepare.open_prepared(config).split('train')
  np.testing.assert_array_equal(
    split.boxes[split.labels == 1, 0],
    np.float32([[0.1, 0.25, 0.4, 0.75]] * 2),
  )


def test_a_source_that_is_not_the_competition_set_is_named(tmp_path):
  config = make_config(
    tmp_path / 'set',
    data__layout='competition',
    data__source=str(tmp_path / 'raw'),
  )
  with pytest.raises(UserError) as caught:
    prepare.prepare(config)
  message = one_line(caught)
  assert 'config.data.source' in message and f'{tmp_path}/raw' in message


# Every layout, from files to a set.


def write_image(file, seed, shape=(40, 50)):
  file.parent.mkdir(parents=True, exist_ok=True)
  image = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
  if file.suffix in ('.dcm', '.dicom'):
    fakes.write_dicom(file, image, PatientSex='F', PatientAge='060Y')
  else:
    cv2.imwrite(str(file), image)


def write_csv(file, *rows):
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(''.join(f'{row}\n' for row in rows))


# Each writes twelve images: those of odd number have a box, over the left half
# of the frame that boxes count in.


def write_rsna(source):
  labels, classes = ['patientId,x,y,width,height,Target'], ['patientId,class']
  for i in range(12):
    write_image(source / f'stage_2_train_images/e{i}.dcm', i)
    labels.append(f'e{i},0,0,512,1024,1' if i % 2 else f'e{i},,,,,0')
    classes.append(f'e{i},{"Lung Opacity" if i % 2 else "Normal"}')
  write_csv(source / 'stage_2_train_labels.csv', *labels)
  write_csv(source / 'stage_2_detailed_class_info.csv', *classes)


def write_vindr(source):
  rows = ['image_id,rad_id,class_name,x_min,y_min,x_max,y_max']
  labels = ['image_id,rad_id,Pneumonia,No finding']
  for i in range(12):
    write_image(source / f'train/v{i}.dicom', i)
    for reader in ('R1', 'R2', 'R3'):
      rows.append(
        f'v{i},{reader},Consolidation,0,0,25,40'
        if i % 2
        else f'v{i},{reader},No finding,,,,'
      )
      labels.append(f'v{i},{reader},{i % 2},{1 - i % 2}')
  write_csv(source / 'annotations/annotations_train.csv', *rows)
  write_csv(source / 'annotations/image_labels_train.csv', *labels)


def write_nih(source):
  entries = ['Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,'
             'Patient Gender,View Position,OriginalImage[Width,Height],'
             'OriginalImagePixelSpacing[x,y],']  # fmt: skip
  boxes = ['Image Index,Finding Label,Bbox [x,y,w,h],,,']
  for i in range(12):
    write_image(source / f'images_00{1 + i % 2}/images/{i:08d}_000.png', i)
    name = 'Infiltration' if i % 2 else 'No Finding'
    entries.append(
      f'{i:08d}_000.png,{name},0,{i},060Y,F,PA,2500,2048,0.168,0.168,'
    )
    if i % 2:
      boxes.append(f'{i:08d}_000.png,Infiltrate,0,0,512,1024,,,')
  write_csv(source / 'Data_Entry_2017.csv', *entries)
  write_csv(source / 'BBox_List_2017.csv', *boxes)


def write_coco(source):
  for i in range(12):
    write_image(source / f'images/{i}.png', i)
  data = {
    'images': [
      {'id': i, 'file_name': f'{i}.png', 'width': 100, 'height': 80}
      for i in range(12)
    ],
    'annotations': [
      {'id': i, 'image_id': i, 'category_id': 1, 'bbox': [0, 0, 50, 80]}
      for i in range(1, 12, 2)
    ],
    'categories': [{'id': 1, 'name': 'opacity'}],
  }
  (source / 'coco.json').write_text(json.dumps(data))


def write_folder(source):
  boxes = ['image,x,y,width,height']
  for i in range(12):
    write_image(source / ('ill' if i % 2 else 'normal') / f'{i}.tif', i)
    if i % 2:
      boxes.append(f'ill/{i}.tif,0,0,25,40')
  write_csv(source / 'boxes.csv', *boxes)


def write_plain(source):
  labels, boxes = ['image,label,patient_id'], ['image,x,y,width,height']
  for i in range(12):
    write_image(source / f'{i}.jpg', i)
    labels.append(f'{i}.jpg,{"ill" if i % 2 else "normal"},{i}')
    if i % 2:
      boxes.append(f'{i}.jpg,0,0,25,40')
  write_csv(source / 'labels.csv', *labels)
  write_csv(source / 'boxes.csv', *boxes)


WRITERS = {
  'rsna': write_rsna,
  'vindr': write_vindr,
  'nih': write_nih,
  'coco': write_coco,
  'folder': write_folder,
  'csv': write_plain,
}


@pytest.mark.parametrize('fit', ['stretch', 'pad'])
@pytest.mark.parametrize('layout', WRITERS)
def test_every_layout_becomes_a_set_with_its_labels_and_boxes(
  layout, fit, tmp_path
):
  (tmp_path / 'raw').mkdir()
  WRITERS[layout](tmp_path / 'raw')
  config = make_config(
    tmp_path / 'set',
    data__layout=layout,
    data__source=str(tmp_path / 'raw'),
    data__fit=fit,
  )
  summary = prepare.prepare(config)
  assert summary['counts'] == {
    name: [2, 2] for name in ('train', 'validation', 'test')
  }
  assert summary['skipped'] == 0
  # The exams of the others stand for themselves.
  named = layout in ('nih', 'csv')
  assert summary['patients'] == (12 if named else None)
  wanted = np.float32([0, 0, 0.5, 1])
  if fit == 'pad':  # 40 x 50 pixels are 51 x 64 of 64 x 64
    wanted = np.float32([0, 6 / 64, 0.5, 57 / 64])
  for name in ('train', 'validation', 'test'):
    split = prepare.open_prepared(config).split(name)
    np.testing.assert_array_equal(split.num_boxes, split.labels)
    for boxes in split.boxes[split.labels == 1]:
      np.testing.assert_allclose(boxes[0], wanted, atol=1e-6)
    if layout in ('rsna', 'vindr', 'nih'):
      assert set(split.metadata['age']) == {'60'}
      assert set(split.metadata['sex']) == {'F'}


def test_the_labels_policy_is_a_flag(tmp_path):
  (tmp_path / 'raw').mkdir()
  write_nih(tmp_path / 'raw')

  def prepared(name, **changes):
    config = make_config(
      tmp_path / name,
      data__layout='nih',
      data__source=str(tmp_path / 'raw'),
      **changes,
    )
    return prepare.prepare(config)

  assert prepared('any')['class_names'] == ['none', 'any']
  named = prepared(
    'class', data__label='class', data__classes=('Infiltration', 'No Finding')
  )
  assert named['class_names'] == ['Infiltration', 'No Finding']
  picked = prepared('one', data__label='class', data__classes=('No Finding',))
  assert picked['counts']['unlabelled'] == 6
  with pytest.raises(UserError) as caught:
    prepared('no', data__findings=('Infiltrate',))
  message = one_line(caught)
  assert 'config.data.findings' in message and 'Infiltration' in message


def test_a_split_by_image_is_warned_of(tmp_path, capsys):
  (tmp_path / 'raw').mkdir()
  write_plain(tmp_path / 'raw')
  config = make_config(
    tmp_path / 'set',
    data__layout='csv',
    data__source=str(tmp_path / 'raw'),
    split__unit='image',
  )
  prepare.prepare(config)
  error = capsys.readouterr().err
  assert error.startswith('warning: config.split.unit=image')
  assert error.count('\n') == 1


@pytest.mark.parametrize('workers', [1, 2])
def test_skip_leaves_out_what_rows_and_files_get_wrong(tmp_path, workers):
  source = tmp_path / 'raw'
  source.mkdir()
  write_plain(source)
  with open(source / 'labels.csv', 'a') as file:
    file.write('gone.jpg,ill,90\n')
  (source / '3.jpg').write_bytes(b'')
  with open(source / 'boxes.csv', 'a') as file:
    file.write('5.jpg,1,1,nan,4\n')
  config = make_config(
    tmp_path / 'set', data__layout='csv', data__source=str(source)
  )
  config.data.workers = workers
  with pytest.raises(UserError) as caught:
    prepare.prepare(config)
  assert f'{source}/labels.csv, row 14: ' in one_line(caught)
  summary = prepare.prepare(config, on_error='skip')
  assert summary['skipped'] == 3
  with open(tmp_path / 'set/quarantine.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert {row['id'] for row in rows} == {'gone.jpg', '3.jpg', '5.jpg'}
  made = prepare.open_prepared(config)
  ids = {str(id) for split in made.splits.values() for id in split.ids}
  assert ids == {f'{i}.jpg' for i in range(12)} - {'3.jpg', '5.jpg'}


_NO_BACKEND = """
import sys
from tests import fakes
from dpjax import prepare

if __name__ == '__main__':
  config = fakes.make_config(
    data__path=sys.argv[1], data__store_size=64, data__phantom__count=50,
    data__workers=2,
  )
  prepare.prepare(config)
  import jax
  try:
    jax.devices()
  except RuntimeError:
    print('the trap works')
"""


def test_no_process_that_prepares_starts_a_jax_backend(opened, tmp_path):
  # A platform that does not exist: starting any backend is an error.
  (tmp_path / 'script.py').write_text(_NO_BACKEND)
  root = pathlib.Path(prepare.__file__).parents[1]
  done = subprocess.run(
    [sys.executable, tmp_path / 'script.py', tmp_path / 'set'],
    env={'PATH': '', 'JAX_PLATFORMS': 'nonsense', 'PYTHONPATH': str(root)},
    check=False, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'the trap works' in done.stdout
  made = store.load(tmp_path / 'set')
  for name, split in opened[1].splits.items():
    np.testing.assert_array_equal(made.split(name).digests, split.digests)


def test_a_set_that_is_there_needs_no_source(tmp_path):
  (tmp_path / 'raw').mkdir()
  write_plain(tmp_path / 'raw')
  changes = {'data__layout': 'csv', 'data__source': str(tmp_path / 'raw')}
  made = prepare.prepare(make_config(tmp_path / 'set', **changes))
  again = prepare.prepare(make_config(tmp_path / 'set', data__layout='csv'))
  assert again == {**made, 'reused': True}


def test_a_run_records_what_its_set_was_made_with(tmp_path):
  (tmp_path / 'raw').mkdir()
  write_plain(tmp_path / 'raw')
  changes = {
    'data__layout': 'csv',
    'data__source': str(tmp_path / 'raw'),
    'data__fit': 'pad',
    'data__classes': ('ill', 'normal'),
    'split__seed': 3,
    'split__near': 4,
  }
  made = make_config(tmp_path / 'set', **changes)
  prepare.prepare(made)
  # The path alone is enough to train on it.
  asked = make_config(tmp_path / 'set', data__label='count')
  found = prepare.as_made(asked)
  for field in ('layout', 'label', 'classes', 'fit', 'store_size'):
    assert found.data[field] == made.data[field], field
  assert found.split == made.split
  assert asked.data.label == 'count'
  assert found.retrain == asked.retrain
  elsewhere = make_config(tmp_path / 'not there')
  assert prepare.as_made(elsewhere) == elsewhere


def test_what_is_asked_of_a_set_that_was_made_otherwise_is_refused(
  tmp_path, capsys
):
  path = tmp_path / 'set'
  own = {'data__fit': 'pad', 'split__near': 4}
  made = make_config(path, **own)
  prepare.prepare(made)
  for field, value, words in (
    ('data.fit', 'stretch', "is 'stretch'; it must be 'pad', as"),  # default
    ('data.label', 'any', "is 'any'; it must be 'count', as"),
    ('data.phantom.count', 99, 'is 99; it must be 50, as'),
    ('split.near', -1, 'is -1; it must be 4, as'),
    ('split.test', 0.3, 'is 0.3; it must be 0.1, as'),
  ):
    config = make_config(path, **own)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as caught:
      prepare.check_asked(config, {field: value})
    line = one_line(caught)
    assert f'config.{field} {words}' in line and f'{path}' in line
    prepare.check_asked(config, {'seed': 0, 'data.path': str(path)})
    # What no flag gave, as a config file may have it, is said.
    capsys.readouterr()
    prepare.warn_overruled(config)
    said = capsys.readouterr().err
    default = fields.table()[field].default
    assert said.count('\n') == (value != default)
    assert value == default or f'{path} was prepared with {field}=' in said
  # What it was made with agrees, 'auto' does too, and so does a set to come.
  prepare.check_asked(made, {'data.fit': 'pad', 'split.near': 4})
  prepare.check_asked(make_config(path, data__layout='csv'),
                      {'data.label': 'auto'})  # fmt: skip
  new = make_config(tmp_path / 'new', data__fit='stretch')
  prepare.check_asked(new, {'data.fit': 'stretch'})
  # By its path alone: nothing was asked for.
  prepare.warn_overruled(make_config(path))
  assert not capsys.readouterr().err


def write_dated(source):
  """As write_plain, of the same sizes and times wherever it is made."""
  rng = np.random.default_rng(0)
  palette = bytes(b for level in range(256) for b in (level,) * 3 + (0,))
  header = struct.pack('<IIIIiiHHIIiiII', 1078 + 256, 0, 1078, 40, 16, 16, 1,
                       8, 0, 256, 0, 0, 256, 0)  # fmt: skip
  for i in range(12):
    file = source / f'{i}.bmp'
    file.write_bytes(b'BM' + header + palette + rng.bytes(256))
    os.utime(file, ns=(0, 1_700_000_000_000_000_000 + i))
  write_csv(
    source / 'labels.csv',
    'image,label,patient_id,split,age',
    *(
      f'{i}.bmp,{"ill" if i % 2 else "normal"},{i},,6{i % 3}' for i in range(12)
    ),
  )
  write_csv(
    source / 'boxes.csv',
    'image,x,y,width,height,finding',
    *(f'{i}.bmp,0,0,5,8,opacity' for i in range(1, 12, 2)),
  )


def test_what_auto_columns_were_found_to_be_is_on_record(tmp_path):
  (tmp_path / 'raw').mkdir()
  write_dated(tmp_path / 'raw')
  changes = {'data__layout': 'csv', 'data__source': str(tmp_path / 'raw')}
  config = make_config(tmp_path / 'set', **changes)
  found = {
    'data.csv.patient': 'patient_id',
    'data.csv.split': 'split',
    'data.csv.boxes': 'boxes.csv',
    'data.csv.box_name': 'finding',
  }
  assert prepare.prepare(config)['columns'] == found
  assert store.read_summary(tmp_path / 'set')['columns'] == found
  made = prepare.as_made(make_config(tmp_path / 'set')).data.csv
  assert {f'data.csv.{name}': made[name] for name in
          ('patient', 'split', 'boxes', 'box_name')} == found  # fmt: skip
  none = make_config(tmp_path / 'none', **changes, data__csv__boxes='')
  assert prepare.prepare(none)['columns'] == {
    **found,
    'data.csv.boxes': '',
    'data.csv.box_name': '',
  }


def test_a_csv_set_of_the_version_before_is_kept_as_it_is(tmp_path):
  """That version did not say what its columns were."""
  (tmp_path / 'raw').mkdir()
  write_dated(tmp_path / 'raw')
  config = make_config(
    tmp_path / 'set',
    data__layout='csv',
    data__source=str(tmp_path / 'raw'),
    data__csv__metadata=('age',),
  )
  summary = prepare.prepare(config)
  # As that version (faa881e) recorded it of the same files.
  assert summary['fingerprint'] == (
    'bc5d1d940e10834f2a7587cb3661d2c9d6f70ad6689c93cd3ff86a3011473f19'
  )
  file = tmp_path / 'set' / 'summary.json'
  before = json.loads(file.read_text())
  del before['columns']
  file.write_text(json.dumps(before))
  again = prepare.prepare(config)
  assert again['reused'] and json.loads(file.read_text()) == before
  assert prepare.as_made(config).data.csv.patient == 'auto'


def test_a_field_is_on_record_where_it_is_not_as_before_there_was_it(tmp_path):
  (tmp_path / 'raw').mkdir()
  write_dated(tmp_path / 'raw')
  changes = {'data__layout': 'csv', 'data__source': str(tmp_path / 'raw')}
  one = make_config(tmp_path / 'one', **changes)
  assert 'data.ignore' not in prepare.prepare(one)['provenance']
  (tmp_path / 'raw/masks').mkdir()
  other = make_config(tmp_path / 'two', **changes, data__ignore=('masks',))
  made = prepare.prepare(other)
  assert made['provenance']['data.ignore'] == ['masks']
  # A run takes either as it was made.
  assert prepare.as_made(other).data.ignore == ('masks',)
  assert prepare.as_made(make_config(tmp_path / 'two')).data.ignore == (
    'masks',
  )
  asked = make_config(tmp_path / 'one', data__ignore=('masks',))
  assert prepare.as_made(asked).data.ignore == ()
  for path, ignore, words in (
    ('one', ('masks',), "'the default' there and ['masks'] asked for"),
    ('two', (), "['masks'] there and 'the default' asked for"),
  ):
    config = make_config(tmp_path / path, **changes, data__ignore=ignore)
    with pytest.raises(ValueError) as caught:
      prepare.prepare(config)
    assert f'data.ignore {words}' in one_line(caught)


def test_another_set_in_the_way_is_told_by_what_differs(tmp_path):
  (tmp_path / 'raw').mkdir()
  write_plain(tmp_path / 'raw')
  changes = {'data__layout': 'csv', 'data__source': str(tmp_path / 'raw')}
  prepare.prepare(make_config(tmp_path / 'set', **changes))
  for change, words in (
    ({'data__label': 'any'}, "data.label 'class' there and 'any' asked for"),
    ({'data__fit': 'pad'}, "fit 'stretch' there and 'pad' asked for"),
    ({'split__seed': 1}, 'seed 0 there and 1 asked for'),
  ):
    with pytest.raises(UserError) as caught:
      prepare.prepare(make_config(tmp_path / 'set', **changes, **change))
    assert words in one_line(caught)
  write_image(tmp_path / 'raw/3.jpg', seed=99)
  with pytest.raises(UserError) as caught:
    prepare.prepare(make_config(tmp_path / 'set', **changes))
  assert 'its files have changed since' in one_line(caught)


def test_a_json_that_states_another_aspect_is_warned_of(tmp_path):
  (tmp_path / 'raw').mkdir()
  write_coco(tmp_path / 'raw')
  file = tmp_path / 'raw/coco.json'
  changes = {'data__layout': 'coco', 'data__source': str(tmp_path / 'raw')}
  right = prepare.prepare(make_config(tmp_path / 'right', **changes))
  assert right['warnings'] == []
  data = json.loads(file.read_text())
  for item in data['images']:
    item['height'] = 200
  file.write_text(json.dumps(data))
  wrong = prepare.prepare(make_config(tmp_path / 'wrong', **changes))
  assert [line[:51] for line in wrong['warnings'] if 'aspect' in line] == [
    '6 images with boxes have another aspect than the so'
  ]


def test_boxes_on_an_image_without_a_finding_are_warned_of(tmp_path, capsys):
  (tmp_path / 'raw').mkdir()
  write_plain(tmp_path / 'raw')
  with open(tmp_path / 'raw/boxes.csv', 'a') as file:
    file.write('4.jpg,0,0,25,40\n')
  prepare.prepare(
    make_config(
      tmp_path / 'set',
      data__layout='csv',
      data__source=str(tmp_path / 'raw'),
    )
  )
  assert 'row 6 (4.jpg) has boxes' in capsys.readouterr().err
