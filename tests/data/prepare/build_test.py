"""Making a prepared set: the same bytes every time, whole or not there."""

import csv
import dataclasses
import errno
import fcntl
import functools
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import traceback

import cv2
import numpy as np
import pytest

from dpjax import file_lock
from dpjax.data import radiograph, store
from dpjax.data.decode import image_file
from dpjax.data.prepare import build, shards
from dpjax.data.prepare import summary as summary_lib
from dpjax.data.sources import phantom, tables
from dpjax.errors import SourceFault, UserError
from tests import children
from tests.data.source_files import (
  SHARD,
  SIZE,
  digest,
  make_records,
  one_line,
  prepare,
)


@pytest.fixture(autouse=True)
def short_shards(monkeypatch):
  monkeypatch.setattr(build, 'BLOCK', SHARD)
  monkeypatch.setattr(build, 'SHARD', SHARD)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(records, path, summary) of a set that no test may change."""
  folder = tmp_path_factory.mktemp('store')
  records = make_records(folder / 'raw')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, 'BLOCK', SHARD)
    patch.setattr(build, 'SHARD', SHARD)
    summary = prepare(records, folder / 'set')
  return records, folder / 'set', summary


def contents(path):
  """File name -> bytes."""
  return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def of_arrays(*images, **fields):
  """Records of images in memory, each with a patient of its own."""
  return [
    radiograph.Radiograph(
      id=str(i), pixels=functools.partial(np.copy, image), **fields
    )
    for i, image in enumerate(images)
  ]


def everything(path):
  """id -> (split, row, image) of a set."""
  return {
    str(id): (split, row, image)
    for split in store.load(path).splits.values()
    for row, (id, image) in enumerate(
      zip(split.ids, split.images(range(len(split))), strict=True)
    )
  }


# What is in a set.


def test_every_record_comes_back_with_its_own_fields(made):
  records, path, _ = made
  loaded = store.load(path)
  by_id = {r.id: r for r in records}
  seen = []
  for split in loaded.splits.values():
    images = split.images(np.arange(len(split)))
    for i, id in enumerate(split.ids):
      record = by_id[str(id)]
      seen.append(record.id)
      pixels = record.pixels()
      if pixels.shape == (SIZE, SIZE):  # kept bit by bit
        np.testing.assert_array_equal(images[i], pixels)
      boxes, _ = record.unit_boxes(*pixels.shape)
      assert split.labels[i] == record.label
      assert split.source_digests[i] == shards.digest(pixels)
      assert split.num_boxes[i] == len(boxes)
      np.testing.assert_array_equal(split.boxes[i, : len(boxes)], boxes)
      assert not split.boxes[i, len(boxes) :].any()
  assert sorted(seen) == sorted(by_id)
  assert loaded.size == SIZE and loaded.class_names == ('0', '1', '2')


def test_the_order_of_the_source_is_kept_within_a_split(made):
  records, path, _ = made
  place = {r.id: i for i, r in enumerate(records)}
  for split in store.load(path).splits.values():
    places = [place[str(id)] for id in split.ids]
    assert places == sorted(places)


def test_boxes_are_padded_to_the_sets_maximum_in_every_split(made):
  for split in store.load(made[1]).splits.values():
    assert split.boxes.shape == (len(split), 2, 4)
    assert split.boxes.dtype == np.float32
    assert split.labels.dtype == split.num_boxes.dtype == np.int32


def test_no_patient_is_in_two_splits(made):
  sides = [set(s.groups.tolist()) for s in store.load(made[1]).splits.values()]
  assert len(sides) == 3
  assert len(set.union(*sides)) == sum(map(len, sides)) == 30


def test_the_summary_counts_what_is_there(made):
  records, path, summary = made
  loaded = store.load(path)
  for name, split in loaded.splits.items():
    wanted = [int((split.labels == c).sum()) for c in range(3)]
    assert summary['counts'][name] == wanted and min(wanted) >= 2
  assert summary['boxes'] == sum(len(r.boxes) for r in records)
  assert summary['boxes_clipped'] == 0
  assert summary['num_classes'] == 3
  assert summary['provenance'] == {'layout': 'test'}
  returned = {k: v for k, v in summary.items() if k not in ('path', 'reused')}
  assert loaded.info == returned


def test_the_manifest_lists_every_image_for_people(made):
  records, path, _ = made
  with open(path / 'manifest.csv', newline='', encoding='utf-8') as file:
    rows = {row['id']: row for row in csv.DictReader(file)}
  assert len(rows) == len(records)
  for name, split in store.load(path).splits.items():
    for id, sha in zip(split.ids, split.digests, strict=True):
      row = rows[str(id)]
      assert (row['split'], row['sha256']) == (name, sha)
  for record in records:
    wanted = shards.digest(record.pixels())
    assert rows[record.id]['source_xxh3'] == wanted
  assert {r.id: str(r.label) for r in records} == {
    id: row['label'] for id, row in rows.items()
  }


def test_the_printed_summary_has_the_counts_of_each_split(made):
  lines = summary_lib.format_summary(made[2]).splitlines()
  assert str(made[1]) in lines[0] and f'{SIZE} pixels' in lines[0]
  rows = {line.split()[0]: line.split()[1:] for line in lines[1:-1]}
  counts = made[2]['counts']
  assert rows.pop('class') == [*counts, 'all'] == [*store.SPLITS[:3], 'all']
  totals = rows.pop('all')
  assert rows == {
    str(c): [str(n) for n in (*column, sum(column))]
    for c, column in enumerate(zip(*counts.values(), strict=True))
  }
  assert totals == [str(sum(n)) for n in counts.values()] + ['60']
  assert f'lesion boxes {made[2]["boxes"]}' in lines[-1]
  assert max(map(len, lines[1:])) <= 80


def test_images_without_a_label_are_a_split_of_their_own(tmp_path):
  records = make_records(tmp_path / 'raw', 29)
  for i in range(24, 29):
    records[i] = dataclasses.replace(records[i], label=None)
  summary = prepare(records, tmp_path / 'set')
  loaded = store.load(tmp_path / 'set')
  split = loaded.split('unlabelled')
  assert len(split) == summary['counts']['unlabelled'] == 5
  assert (split.labels == -1).all() and loaded.num_classes == 3
  assert [digest(i) for i in split.images(range(5))] == list(split.digests)
  assert 'unlabelled' in summary_lib.format_summary(summary)


def test_boxes_that_stick_out_are_clipped_and_counted(tmp_path):
  records = make_records(tmp_path / 'raw', 12)
  records[1] = dataclasses.replace(records[1], boxes=((-9, 2, 11, 1e4),))
  assert prepare(records, tmp_path / 'set')['boxes_clipped'] == 1
  loaded = store.load(tmp_path / 'set')
  boxes = np.concatenate([s.boxes for s in loaded.splits.values()])
  assert boxes.min() == 0 and boxes.max() == 1


def test_a_box_outside_of_its_image_is_named_and_nothing_is_made(tmp_path):
  records = make_records(tmp_path / 'raw', 12)
  records[4] = dataclasses.replace(records[4], boxes=((900, 2, 911, 12),))
  with pytest.raises(UserError) as caught:
    prepare(records, tmp_path / 'set')
  assert records[4].file in one_line(caught)
  assert not (tmp_path / 'set').exists()


# The same bytes every time.


def test_the_bytes_do_not_depend_on_the_number_of_workers(made, tmp_path):
  records, path, _ = made
  prepare(records, tmp_path / 'set', workers=2)
  assert contents(tmp_path / 'set') == contents(path)
  assert len([n for n in contents(path) if 'train' in n]) > 2  # several shards


_KILLED = """
import dataclasses, functools, os, pickle, signal, sys
from dpjax.data.prepare import build
from tests.data import source_files as sources

def die(pid):
  os.kill(pid, signal.SIGKILL)

build.BLOCK = build.SHARD = sources.SHARD
records = pickle.loads(open(sys.argv[1], 'rb').read())
if sys.argv[3] == 'decode':
  records[-2] = dataclasses.replace(
    records[-2], pixels=functools.partial(die, os.getpid())
  )
else:
  write_shard = build.shards.write_shard
  def write(images, file, *rest):
    if 'test' in file.name:
      die(os.getpid())
    write_shard(images, file, *rest)
  build.shards.write_shard = write
sources.prepare(records, sys.argv[2])
"""


@pytest.mark.parametrize('moment', ['decode', 'write'])
def test_after_a_kill_what_is_finished_stays_and_the_set_is_the_same(
  tmp_path, moment
):
  records = make_records(tmp_path / 'raw')
  (tmp_path / 'records').write_bytes(pickle.dumps(records))
  path, partial = tmp_path / 'set', tmp_path / 'set.partial'
  killed = subprocess.run(
    [sys.executable, '-c', _KILLED, tmp_path / 'records', path, moment],
    check=False, env=children.environment(),
  )  # fmt: skip
  assert killed.returncode == -signal.SIGKILL
  assert not path.exists()
  blocks = sorted(partial.glob('blocks/*.npz'))
  # 60 records are 8 blocks of 7 and 8; the last is the one that was killed.
  assert len(blocks) == (7 if moment == 'decode' else 8)
  done = [*blocks, *partial.glob('tiny-*')]
  assert len(done) > 8 or moment == 'decode'
  inodes = {file: file.stat().st_ino for file in done}
  written = []
  decode_block, write_shard = shards.decode_block, shards.write_shard

  def decode(rows, file, *rest):
    written.append(file.with_name(file.name + '.npz'))
    decode_block(rows, file, *rest)

  def write(images, file, *rest):
    written.append(file)
    write_shard(images, file, *rest)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, 'decode_block', decode)
    patch.setattr(shards, 'write_shard', write)
    prepare(records, path)
  assert written and not set(written) & set(inodes)
  assert not partial.exists()
  prepare(records, tmp_path / 'undisturbed')
  assert contents(path) == contents(tmp_path / 'undisturbed')


def test_a_set_is_whole_though_the_end_was_cut_off(tmp_path, monkeypatch):
  records = make_records(tmp_path / 'raw', 12)

  def stop(*_, **__):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(build, '_clear', stop)
    with pytest.raises(KeyboardInterrupt):
      prepare(records, tmp_path / 'set')
  assert store.verify(tmp_path / 'set') == 12
  assert prepare(records, tmp_path / 'set')['reused']
  prepare(records, tmp_path / 'other')
  assert contents(tmp_path / 'set') == contents(tmp_path / 'other')


@pytest.mark.parametrize(
  'change', ['label', 'split', 'seed', 'patient', 'size', 'box']
)
def test_another_label_or_split_takes_the_unfinished_blocks_as_they_are(
  tmp_path, change, monkeypatch
):
  records = make_records(tmp_path / 'raw', 30)
  with monkeypatch.context() as patch:
    patch.setattr(shards, 'write_shard', None)  # Ends it after decoding.
    with pytest.raises(TypeError):
      prepare(records, tmp_path / 'set')
  settings = {}
  if change in ('label', 'split', 'patient', 'box'):
    fields = {
      'label': {'label': 2},
      'split': {'split': 'test', 'group': 'own'},
      'patient': {'group': 'own'},
      'box': {'boxes': ((1.0, 2.0, 3.0, 4.0),)},
    }
    records[0] = dataclasses.replace(records[0], **fields[change])
  else:
    settings = {'seed': 1} if change == 'seed' else {'size': 16}
  decoded = []
  decode_block = shards.decode_block

  def decode(rows, *rest):
    decoded.append(rows)
    decode_block(rows, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(shards, 'decode_block', decode)
    prepare(records, tmp_path / 'set', settings=settings)
  assert bool(decoded) == (change in ('size', 'box'))
  prepare(records, tmp_path / 'other', settings=settings)
  assert contents(tmp_path / 'set') == contents(tmp_path / 'other')


def test_unfinished_work_of_other_settings_is_not_gone_on_with(tmp_path):
  records = make_records(tmp_path / 'raw', 12)
  partial = tmp_path / 'set.partial'
  partial.mkdir()
  (partial / 'fingerprint').write_text('of another set')
  (partial / 'blocks').mkdir()
  (partial / 'blocks/000000').write_bytes(b'x')
  (partial / 'blocks/000000.npz').write_bytes(b'x')
  prepare(records, tmp_path / 'set')
  prepare(records, tmp_path / 'other')
  assert contents(tmp_path / 'set') == contents(tmp_path / 'other')


def test_a_folder_of_somebody_else_is_never_deleted(tmp_path):
  records = make_records(tmp_path / 'raw', 12)
  (tmp_path / 'set.partial').mkdir()
  (tmp_path / 'set.partial/thesis.txt').write_text('ten years')
  with pytest.raises(UserError) as caught:
    prepare(records, tmp_path / 'set')
  assert 'set.partial' in one_line(caught)
  assert (tmp_path / 'set.partial/thesis.txt').read_text() == 'ten years'


@pytest.mark.parametrize('workers', [1, 2])
def test_an_image_that_cannot_be_read_is_named_and_nothing_is_made(
  tmp_path, workers
):
  records = make_records(tmp_path / 'raw', 20)
  file = tmp_path / 'raw/13.png'
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError) as caught:
    prepare(records, tmp_path / 'set', workers=workers)
  assert str(file) in one_line(caught)
  assert not (tmp_path / 'set').exists()
  if workers == 1:  # Mended, it goes through.
    file.write_bytes(whole)
    prepare(make_records(tmp_path / 'raw', 20), tmp_path / 'set')
    assert store.load(tmp_path / 'set').info['boxes'] == 19
    assert not list((tmp_path / 'set').glob('*.tmp'))


def test_the_same_set_again_is_kept_and_not_written(made):
  records, path, summary = made
  before = {f: f.stat().st_mtime_ns for f in path.iterdir()}
  again = prepare(records, path)
  assert again == {**summary, 'reused': True} and not summary['reused']
  assert {f: f.stat().st_mtime_ns for f in path.iterdir()} == before
  assert 'already prepared' in summary_lib.format_summary(again)


@pytest.mark.parametrize(
  'change', ['size', 'seed', 'provenance', 'label', 'pixels', 'fewer']
)
def test_another_set_in_the_same_folder_is_refused(made, change):
  records, path, _ = made
  records, settings = list(records), {}
  if change == 'size':
    settings = {'settings': {'size': 16}}
  elif change == 'seed':
    settings = {'settings': {'seed': 1}}
  elif change == 'provenance':
    settings = {'provenance': {'layout': 'other'}}
  elif change == 'label':
    records[7] = dataclasses.replace(records[7], label=0)
  elif change == 'pixels':
    records[7] = dataclasses.replace(records[7], stamp='later')
  else:
    records.pop()
  before = contents(path)
  with pytest.raises(UserError) as caught:
    prepare(records, path, **settings)
  assert str(path) in one_line(caught) and 'another set' in str(caught.value)
  assert contents(path) == before


@pytest.mark.parametrize('there', [None, '{}', '[]', 'x'])
def test_a_folder_that_is_no_set_is_refused_and_left_as_it_is(tmp_path, there):
  records = make_records(tmp_path / 'raw', 12)
  path = tmp_path / 'set'
  path.mkdir()
  if there is not None:
    (path / 'summary.json').write_text(there)
  before = contents(path)
  with pytest.raises(UserError) as caught:
    prepare(records, path)
  assert f'{path} is there and is no prepared set' in one_line(caught)
  assert contents(path) == before


def test_records_that_cannot_be_a_set_are_refused_in_one_line(tmp_path):
  records = make_records(tmp_path / 'raw', 4)
  for bad, name, reason in (
    ([], 'tiny', 'no radiographs'),
    ([*records, records[2]], 'tiny', 'exam 2: two radiographs'),
    (records, 'my-set', "'my-set'"),
  ):
    with pytest.raises(UserError) as caught:
      prepare(bad, tmp_path / 'set', name=name)
    assert reason in one_line(caught)
  assert not (tmp_path / 'set.partial').exists()


# Patients, copies and what a file's header says.


@functools.cache
def pictures(count):
  """Computed chests, each of a patient of its own."""
  own = {r.group: r for r in phantom.read(200, seed=0, size=96)}
  return [record.pixels() for record in list(own.values())[:count]]


def labelled(images, header=None, **fields):
  return [
    dataclasses.replace(
      record, label=i % 2, header=None if header is None else header(i)
    )
    for i, record in enumerate(of_arrays(*images, **fields))
  ]


def test_copies_of_an_image_are_on_one_side_and_listed(tmp_path):
  images = pictures(40)
  # Each of ten images comes again: the same, or brighter and re-encoded.
  again = [image.copy() for image in images[:5]]
  for image in images[5:10]:
    brighter = np.uint8(np.minimum(image + 6, 255))
    encoded = cv2.imencode('.jpg', brighter, [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
    again.append(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE))
  records = labelled(images + again)
  for seed in range(4):
    path = tmp_path / f'set{seed}'
    summary = prepare(records, path, settings={'seed': seed})
    found = everything(path)
    assert summary['copies'] == 10 and len(found) == 50
    for i in range(10):
      assert found[str(i)][0].files == found[str(40 + i)][0].files  # one split
    with open(path / 'duplicates.csv', newline='') as file:
      rows = list(csv.DictReader(file))
    pairs = {(r['first'], r['second']): r['differing_bits'] for r in rows}
    assert set(pairs) == {(str(i), str(40 + i)) for i in range(10)}
    assert all(pairs[str(i), str(40 + i)] == 'equal' for i in range(5))
    assert all(int(pairs[str(i), str(40 + i)]) <= 16 for i in range(5, 10))
  assert (
    'copies of another image 10: see duplicates.csv'
    in summary_lib.format_summary(summary)
  )


def test_equal_images_of_two_labels_are_warned_of(tmp_path):
  images = pictures(20)
  summary = prepare(labelled(images + images[:1] + images[:1]), tmp_path / 'a')
  (line,) = (w for w in summary['warnings'] if 'labelled otherwise' in w)
  assert line.startswith('1 of 2 copies') and 'such as 0 (0) and 21 (1)' in line


def test_a_split_by_image_parts_patients_but_no_copies(tmp_path):
  images = [image for image in pictures(30) for _ in range(2)]
  records = labelled(images, group='everybody')
  summary = prepare(records, tmp_path / 'set', settings={'unit': 'image'})
  assert summary['patients'] == 1
  assert sum(summary['counts']['test']) == 6
  found = everything(tmp_path / 'set')
  split = {id: side.files for id, (side, _, _) in found.items()}
  assert all(split[str(2 * i)] == split[str(2 * i + 1)] for i in range(30))


def test_what_is_in_no_split_is_listed(tmp_path):
  records = labelled(pictures(40))
  # An unlabelled exam of everybody: of those held out it must not be seen.
  bare = labelled([np.flipud(image) for image in pictures(40)])
  bare = [
    dataclasses.replace(r, id=f'bare {r.id}', label=None, group=r.id)
    for r in bare
  ]
  records = [dataclasses.replace(r, group=r.id) for r in records]
  summary = prepare(records + bare, tmp_path / 'set')
  held_out = [
    str(id)
    for name in ('validation', 'test')
    for id in store.load(tmp_path / 'set').split(name).ids
  ]
  with open(tmp_path / 'set/left_out.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert {row['id'] for row in rows} == {f'bare {id}' for id in held_out}
  assert summary['left_out'] == len(rows) > 0
  assert all('without a label' in row['reason'] for row in rows)
  assert 'see left_out.csv' in summary_lib.format_summary(summary)


def test_the_patient_of_a_header_decides_and_is_not_written(tmp_path):
  images = pictures(40)
  header = lambda i: functools.partial(  # noqa: E731
    dict, patient=f'Doe^Jane {i // 4}', age='61', sex='F'
  )
  summary = prepare(labelled(images, header), tmp_path / 'set')
  assert summary['patients'] == 10
  for split in store.load(tmp_path / 'set').splits.values():
    assert split.metadata['age'].tolist() == ['61'] * len(split)
    assert set(split.metadata) == {'age', 'sex'}
    assert (np.unique(split.groups, return_counts=True)[1] == 4).all()
  for name, content in contents(tmp_path / 'set').items():
    assert b'Jane' not in content and b'J\0\0\0a\0\0\0' not in content, name
  manifest = (tmp_path / 'set/manifest.csv').read_text().splitlines()
  assert manifest[0].endswith(',age,sex') and manifest[1].endswith(',61,F')


def test_images_that_no_header_names_a_patient_of_are_told(tmp_path):
  header = lambda i: functools.partial(  # noqa: E731
    dict, {'patient': f'p{i // 4}'} if i < 16 else {}
  )
  summary = prepare(labelled(pictures(32), header), tmp_path / 'set')
  assert summary['patients'] == 20
  (line,) = (w for w in summary['warnings'] if 'no patient' in w)
  assert line.startswith('16 of 32 images have no patient, such as 16,')


def test_what_the_source_says_of_an_image_goes_before_its_header(tmp_path):
  header = lambda i: functools.partial(  # noqa: E731
    dict, age='1', sex='F', patient='p'
  )
  records = labelled(pictures(4), header, metadata={'age': '2'}, group='q')
  prepare(
    [dataclasses.replace(r, group=f'q{i}') for i, r in enumerate(records)],
    tmp_path / 'set',
  )
  split = store.load(tmp_path / 'set').split('train')
  assert set(split.metadata['age']) == {'2'}
  assert set(split.metadata['sex']) == {'F'}
  assert len(np.unique(split.groups)) == len(split)


@pytest.mark.parametrize(
  'one, two',
  [('100.0', '100'), ('M\u00fcller', 'Mu\u0308ller'), ('MRN  7', 'MRN 7 ')],
)
@pytest.mark.parametrize('of_header', [False, True])
def test_a_patient_who_is_written_in_two_ways_is_one(
  tmp_path, one, two, of_header
):
  groups = [one, two, *(f'q{i}' for i in range(28))]
  header = lambda i: functools.partial(dict, patient=groups[i])  # noqa: E731
  records = labelled(pictures(30), header if of_header else None)
  if not of_header:
    records = [
      dataclasses.replace(r, group=name)
      for r, name in zip(records, groups, strict=True)
    ]
  summary = prepare(records, tmp_path / 'set')
  assert summary['patients'] == 29
  found = everything(tmp_path / 'set')
  assert found['0'][0].files == found['1'][0].files


def test_patients_who_may_be_one_stay_two_and_are_warned_of(tmp_path):
  groups = ['Doe 7', 'doe 007', *(f'q{i}' for i in range(8))]
  records = [
    dataclasses.replace(r, group=name)
    for r, name in zip(labelled(pictures(10)), groups, strict=True)
  ]
  summary = prepare(records, tmp_path / 'set', class_names=('a', 'b'))
  assert summary['patients'] == 10
  (line,) = summary['warnings']
  assert 'such as those of 0 and 1:' in line and 'oe' not in line


# Faults and accidents.


def broken(records, *which):
  for i in which:
    file = pathlib.Path(records[i].file)
    file.write_bytes(file.read_bytes()[:60])


@pytest.mark.parametrize('workers', [1, 2])
def test_skip_leaves_out_what_cannot_be_read_and_lists_it(tmp_path, workers):
  records = make_records(tmp_path / 'raw', 30)
  broken(records, 3, 17)
  faults = tables.Faults('skip')
  faults.add('labels.csv, row 9', 'a fault of the reader', 'exam 99')
  path = tmp_path / 'set'
  summary = prepare(records, path, faults=faults, workers=workers)
  assert summary['skipped'] == 3
  assert set(everything(path)) == {
    r.id for i, r in enumerate(records) if i not in (3, 17)
  }
  with open(path / 'quarantine.csv', newline='', encoding='utf-8') as file:
    rows = list(csv.reader(file))
  assert rows[0] == ['place', 'id', 'reason']
  assert rows[1] == ['labels.csv, row 9', 'exam 99', 'a fault of the reader']
  assert [row[1] for row in rows[2:]] == ['exam 3', 'exam 17']
  assert all(records[i].file == rows[n][0] for n, i in ((2, 3), (3, 17)))
  assert 'quarantine.csv' in summary_lib.format_summary(summary)
  # The same set again: kept with the flag, refused without it.
  faults = tables.Faults('skip')
  assert prepare(records, path, faults=faults)['reused']
  with pytest.raises(UserError) as caught:
    prepare(records, path)
  assert '--on_error=skip' in one_line(caught)


def test_after_a_failure_skip_goes_on_with_what_is_finished(tmp_path):
  records = make_records(tmp_path / 'raw', 30)
  broken(records, 25)
  with pytest.raises(UserError):
    prepare(records, tmp_path / 'set')
  before = {
    file: file.stat().st_ino for file in (tmp_path / 'set.partial').rglob('*0?')
  }
  assert len(before) == 3
  decoded = []

  def decode(rows, *rest):
    decoded.extend(row.id for row in rows)
    decode_block(rows, *rest)

  decode_block = shards.decode_block
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, 'decode_block', decode)
    prepare(records, tmp_path / 'set', faults=tables.Faults('skip'))
  assert 'exam 25' in decoded and len(decoded) == 7
  assert len(everything(tmp_path / 'set')) == 29


def test_what_was_mended_is_read_again(tmp_path):
  records = make_records(tmp_path / 'raw', 30)
  prepare(records, tmp_path / 'undisturbed')
  wanted = contents(tmp_path / 'undisturbed')

  def missing(file):
    raise SourceFault(f'{file}: no decoder')

  # A fault of the environment: the file itself does not change.
  faulty = list(records)
  faulty[5] = dataclasses.replace(
    records[5], pixels=functools.partial(missing, records[5].file)
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, 'write_shard', None)  # Ends it after decoding.
    with pytest.raises(TypeError):
      prepare(faulty, tmp_path / 'set', faults=tables.Faults('skip'))
  prepare(records, tmp_path / 'set', faults=tables.Faults('skip'))
  assert contents(tmp_path / 'set') == wanted


def test_shards_without_an_image_that_was_mended_are_written_again(tmp_path):
  records = make_records(tmp_path / 'raw', 30)

  def missing():
    raise SourceFault('no decoder')

  def stop(*_):
    raise KeyboardInterrupt

  faulty = [dataclasses.replace(r, pixels=missing) if i == 5 else r
            for i, r in enumerate(records)]  # fmt: skip
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(store, 'manifest', stop)  # When all shards are written.
    with pytest.raises(KeyboardInterrupt):
      prepare(faulty, tmp_path / 'set', faults=tables.Faults('skip'))
  assert len([*(tmp_path / 'set.partial').glob('tiny-*')]) >= 3
  prepare(records, tmp_path / 'set', faults=tables.Faults('skip'))
  prepare(records, tmp_path / 'undisturbed')
  assert contents(tmp_path / 'set') == contents(tmp_path / 'undisturbed')
  assert store.verify(tmp_path / 'set') == 30


@pytest.mark.parametrize('change', [lambda b: b[:-3], lambda b: b''])
def test_a_block_that_is_cut_short_is_made_again(tmp_path, change):
  records = make_records(tmp_path / 'raw', 30)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, 'write_shard', None)
    with pytest.raises(TypeError):
      prepare(records, tmp_path / 'set')
  for name in ('000001', '000002.npz'):
    file = tmp_path / 'set.partial/blocks' / name
    file.write_bytes(change(file.read_bytes()))
  prepare(records, tmp_path / 'set')
  prepare(records, tmp_path / 'undisturbed')
  assert contents(tmp_path / 'set') == contents(tmp_path / 'undisturbed')


def test_two_at_once_are_one_too_many(tmp_path):
  records = make_records(tmp_path / 'raw', 12)
  decode_block, second = shards.decode_block, []

  def decode(*task):
    with pytest.raises(UserError) as caught:
      prepare(records, tmp_path / 'set')
    second.append(one_line(caught))
    decode_block(*task)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, 'decode_block', decode)
    prepare(records, tmp_path / 'set')
  assert f'config.data.path: {tmp_path / "set"}: process ' in second[0]
  assert 'prepares it; wait for it, or end it' in second[0]
  assert not (tmp_path / 'set.lock').exists()
  assert store.verify(tmp_path / 'set') == 12


@pytest.mark.parametrize('has', ['locks of files alone', 'none'])
def test_a_set_is_prepared_where_a_folder_cannot_be_locked(
  has, tmp_path, monkeypatch
):
  flock = file_lock.fcntl.flock

  def as_nfs(file, how):
    if has == 'none':
      raise OSError(errno.ENOLCK, 'No locks available')
    # It makes a write lock of it, which takes a file open for writing.
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
      raise OSError(errno.EBADF, 'Bad file descriptor')
    flock(file, how)

  monkeypatch.setattr(file_lock.fcntl, 'flock', as_nfs)
  prepare(make_records(tmp_path / 'raw', 12), tmp_path / 'set')
  assert store.verify(tmp_path / 'set') == 12
  assert sorted(os.listdir(tmp_path)) == ['raw', 'set']


def test_another_prepare_is_only_told_of_where_the_folder_is_locked(tmp_path):
  records = make_records(tmp_path / 'raw', 12)

  def busy(*_):
    raise BlockingIOError(errno.EAGAIN, 'Resource temporarily unavailable')

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shards, 'decode_block', busy)  # as a process that cannot fork
    with pytest.raises(BlockingIOError, match='temporarily unavailable'):
      prepare(records, tmp_path / 'set')


def misread(name, error, path):
  """Reads a file by a decoder with a bug in it."""
  module, function = name.split('.')

  def bug(*_):
    raise error

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(f'dpjax.data.decode.{module}.{function}', bug)
    return image_file.read(path)


@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize(
  'suffix, name',
  [('png', 'raster._grey'), ('png', 'formats._format'),
   ('dcm', 'dicom._grey_scale'), ('dcm', 'dicom_code._syntax')],
)  # fmt: skip
@pytest.mark.parametrize(
  'error', [NameError('ours'), AttributeError('ours'), ValueError('ours')],
  ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_bug_of_a_decoder_is_no_fault_of_an_image(
  tmp_path, workers, suffix, name, error
):
  records = make_records(tmp_path / 'raw', 12)
  file = tmp_path / f'odd.{suffix}'
  if suffix == 'dcm':
    pydicom = pytest.importorskip('pydicom')
    file.write_bytes(
      pathlib.Path(
        pydicom.__file__, '../data/test_files/MR_small.dcm'
      ).resolve().read_bytes()
    )  # fmt: skip
  else:
    cv2.imwrite(str(file), np.zeros((SIZE, SIZE), np.uint8))
  records[5] = dataclasses.replace(
    records[5],
    file=str(file),
    pixels=functools.partial(misread, name, error, str(file)),
  )
  with pytest.raises(type(error), match=r'^ours$') as caught:
    prepare(
      records,
      tmp_path / 'set',
      workers=workers,
      faults=tables.Faults('skip'),
    )
  assert type(caught.value) is type(error)
  where = ''.join(traceback.format_exception(caught.value))
  assert f'in {"read" if "_format" not in name else "checked_kind"}' in where
  assert not (tmp_path / 'set').exists()


def test_metadata_may_not_hide_a_column_of_the_manifest(tmp_path):
  records = make_records(tmp_path / 'raw', 4)
  records[0] = dataclasses.replace(records[0], metadata={'patient': 'x'})
  with pytest.raises(UserError) as caught:
    prepare(records, tmp_path / 'set')
  assert "config.data.csv.metadata: 'patient'" in one_line(caught)


def test_a_set_of_one_class_can_have_any_name(tmp_path):
  records = [
    dataclasses.replace(r, label=0) for r in make_records(tmp_path / 'raw', 12)
  ]
  summary = prepare(records, tmp_path / 'set', class_names=('1',))
  assert summary['class_names'] == ['1', 'unused 1']


def test_no_class_has_the_name_of_a_column_of_the_predictions(tmp_path):
  records = make_records(tmp_path / 'raw', 3)
  with pytest.raises(UserError) as caught:
    prepare(records, tmp_path / 'set', class_names=('a', 'any_lesion', 'b'))
  assert 'give it another name' in one_line(caught)
  assert not (tmp_path / 'set').exists()


def test_a_source_of_nothing_but_faults_is_refused(tmp_path):
  records = make_records(tmp_path / 'raw', 10)
  broken(records, *range(10))
  with pytest.raises(UserError) as caught:
    prepare(records, tmp_path / 'set', faults=tables.Faults('skip'))
  message = one_line(caught)
  assert 'all 10 are at fault' in message and records[0].file in message
  assert not (tmp_path / 'set').exists()


_FULL = """
import pickle, resource, signal, sys
from dpjax.data.prepare import build
from tests.data import source_files as sources

build.BLOCK = build.SHARD = sources.SHARD
records = pickle.loads(open(sys.argv[1], 'rb').read())
# A file may grow to so many bytes and no further, as on a disk that is full.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
  sources.prepare(records, sys.argv[2], workers=int(sys.argv[4]))
except OSError as error:
  print(f'error: {error}')
"""


@pytest.mark.parametrize(
  'limit, workers', [(2_000, 1), (2_000, 2), (8_300, 1), (12_000, 1)]
)
def test_a_full_disk_leaves_no_half_file_and_no_set(tmp_path, limit, workers):
  # 2,000 bytes hold no block, 8,300 no shard, 12,000 no table.
  records = make_records(tmp_path / 'raw', 30)
  (tmp_path / 'records').write_bytes(pickle.dumps(records))
  path = tmp_path / 'set'
  old = tmp_path / 'old'
  prepare(records[:12], old)
  before = contents(old)
  (tmp_path / 'script.py').write_text(
    'if __name__ == "__main__":\n'
    + ''.join(f'  {line}\n' for line in _FULL.splitlines())
  )
  done = subprocess.run(
    [sys.executable, tmp_path / 'script.py', tmp_path / 'records', path,
     str(limit), str(workers)],
    check=False, capture_output=True, text=True,
    env=children.environment(),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('error: ') and done.stdout.count('\n') == 1
  assert not path.exists()
  assert contents(old) == before
  # With room again the same command ends in the same set.
  prepare(records, path)
  prepare(records, tmp_path / 'undisturbed')
  assert contents(path) == contents(tmp_path / 'undisturbed')


def die(pid):
  if os.getpid() != pid:
    os.kill(os.getpid(), signal.SIGKILL)
  return np.zeros((SIZE, SIZE), np.uint8)


def test_a_worker_that_is_killed_is_told_in_a_line_that_names_the_image(
  tmp_path,
):
  records = make_records(tmp_path / 'raw', 20)
  records[13] = dataclasses.replace(
    records[13], pixels=functools.partial(die, os.getpid())
  )
  with pytest.raises(UserError) as caught:
    prepare(records, tmp_path / 'set', workers=2)
  message = one_line(caught)
  assert 'a worker process died' in message and records[13].file in message
  assert not (tmp_path / 'set').exists()


@pytest.mark.slow
def test_beam_makes_the_same_bytes_as_the_pool(tmp_path):
  pytest.importorskip('apache_beam')
  records = make_records(tmp_path / 'raw', 40)
  prepare(records, tmp_path / 'pool', workers=2)
  prepare(records, tmp_path / 'beam', beam=('DirectRunner', []))
  assert contents(tmp_path / 'beam') == contents(tmp_path / 'pool')
  assert not (tmp_path / 'beam.partial').exists()
  # The environment with Beam in it still opens the set by TFDS.
  tfds = pytest.importorskip('tensorflow_datasets')
  assert len(tfds.builder_from_directory(tmp_path / 'beam').info.splits) == 3


@pytest.mark.slow
def test_a_fault_or_a_runner_that_is_none_is_one_line_with_beam_too(tmp_path):
  pytest.importorskip('apache_beam')
  records = make_records(tmp_path / 'raw', 20)
  with pytest.raises(UserError) as caught:
    prepare(records, tmp_path / 'set', beam=('NoRunner', []))
  assert '--beam_runner=NoRunner' in one_line(caught)
  broken(records, 7)
  with pytest.raises(UserError) as caught:
    prepare(records, tmp_path / 'set', beam=('DirectRunner', []))
  assert records[7].file in one_line(caught)
  assert not (tmp_path / 'set').exists()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')  # Beam's own
def test_a_bug_of_ours_is_none_of_beams_errors(tmp_path):
  pytest.importorskip('apache_beam')
  records = make_records(tmp_path / 'raw', 4)
  records[2] = dataclasses.replace(
    records[2],
    pixels=functools.partial(
      misread, 'raster._grey', AttributeError('ours'), records[2].file
    ),
  )
  with pytest.raises(AttributeError, match='ours'):
    prepare(records, tmp_path / 'set', beam=('DirectRunner', []))
