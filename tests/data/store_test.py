"""The prepared set: the same bytes every time, whole or not there."""

import csv
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest

from dpjax.data import radiograph, store

SIZE = 32
# One shard of the default length would hold every set of these tests.
SHARD = 8


@pytest.fixture(autouse=True)
def short_shards(monkeypatch):
  monkeypatch.setattr(store, 'SHARD', SHARD)


def make_records(folder, count=60):
  """Image files of differing sizes; 0 to 2 boxes; two tests, two patients."""
  folder.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  records = []
  for i in range(count):
    height, width = (SIZE, SIZE) if i % 5 == 0 else rng.integers(20, 90, 2)
    image = rng.integers(0, 256, (height, width)).astype(np.uint8)
    # PNG keeps every grey level; JPEG is what sources mostly hold.
    file = folder / f'{i}.{"png" if i % 3 else "jpg"}'
    cv2.imwrite(str(file), image)
    boxes = ((1.0, 2.0, 11.0, 17.0), (12.0, 3.0, 19.0, 20.0))[: i % 3]
    records.append(
      radiograph.from_file(file, f'exam {i}', i % 3, boxes, group=f'p{i // 2}')
    )
  return records


def prepare(records, path, **changes):
  arguments = {
    'name': 'tiny',
    'provenance': {'layout': 'test'},
    'size': SIZE,
    'workers': 1,
    'progress': False,
  }
  return store.prepare(records, path, **{**arguments, **changes})


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(records, path, summary) of a set that no test may change."""
  folder = tmp_path_factory.mktemp('store')
  records = make_records(folder / 'raw')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(store, 'SHARD', SHARD)
    summary = prepare(records, folder / 'set')
  return records, folder / 'set', summary


@pytest.fixture
def copy(made, tmp_path):
  """A copy of the set, to be broken."""
  return pathlib.Path(shutil.copytree(made[1], tmp_path / 'copy'))


def contents(path):
  """File name -> bytes."""
  return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def one_line(caught):
  message = str(caught.value)
  assert message and '\n' not in message
  return message


def digest(image):
  return hashlib.sha256(image.tobytes()).hexdigest()


def stored(tmp_path, *images, size=SIZE, boxes=()):
  """`images` as one prepared set gives them back, in order."""
  records = [
    radiograph.Radiograph(
      str(i), functools.partial(np.copy, image), None, boxes, str(i)
    )
    for i, image in enumerate(images)
  ]
  prepare(records, tmp_path / 'stored', size=size)
  split = store.load(tmp_path / 'stored').split('unlabelled')
  return split.images(np.arange(len(images)))


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
      assert (split.labels[i], split.groups[i]) == (record.label, record.group)
      assert split.num_boxes[i] == len(boxes)
      np.testing.assert_array_equal(split.boxes[i, : len(boxes)], boxes)
      assert not split.boxes[i, len(boxes) :].any()
  assert sorted(seen) == sorted(by_id)
  assert loaded.size == SIZE and loaded.num_classes == 3


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
  assert len(set.union(*sides)) == sum(map(len, sides))


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
  assert {r.id: str(r.label) for r in records} == {
    id: row['label'] for id, row in rows.items()
  }


def test_the_printed_summary_has_the_counts_of_each_split(made):
  lines = store.format_summary(made[2]).splitlines()
  assert str(made[1]) in lines[0] and f'{SIZE} pixels' in lines[0]
  rows = {line.split()[0]: line.split()[1:] for line in lines[1:-1]}
  assert rows.pop('class') == ['0', '1', '2', 'all']
  assert rows == {
    name: [str(n) for n in [*counts, sum(counts)]]
    for name, counts in made[2]['counts'].items()
  }
  assert f'lesion boxes {made[2]["boxes"]}' in lines[-1]
  assert max(map(len, lines[1:])) <= 80


def test_images_without_a_label_are_a_split_of_their_own(tmp_path):
  records = make_records(tmp_path / 'raw', 24)
  bare = [
    dataclasses.replace(r, id=f'bare {r.id}', group=f'b{r.id}', label=None)
    for r in records[:5]
  ]
  summary = prepare(records + bare, tmp_path / 'set')
  loaded = store.load(tmp_path / 'set')
  split = loaded.split('unlabelled')
  assert len(split) == summary['counts']['unlabelled'] == 5
  assert (split.labels == -1).all() and loaded.num_classes == 3
  assert [digest(i) for i in split.images(range(5))] == list(split.digests)
  assert 'unlabelled         5' in store.format_summary(summary)


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
  with pytest.raises(ValueError) as caught:
    prepare(records, tmp_path / 'set')
  assert 'exam 4' in one_line(caught)
  assert not (tmp_path / 'set').exists()


# Squares.


def test_shrinking_averages_areas(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (SIZE * 4, SIZE * 2))
  (square,) = stored(tmp_path, image.astype(np.uint8))
  means = image.reshape(SIZE, 4, SIZE, 2).mean(axis=(1, 3), dtype=np.float64)
  # One rounding for each step in OpenCV's fixed point.
  assert np.abs(square - means).max() <= 1


@pytest.mark.parametrize('shape', [(SIZE * 8, SIZE // 2), (SIZE * 8, SIZE)])
def test_a_side_that_shrinks_is_averaged_though_the_other_does_not(
  tmp_path, shape
):
  # Bilinear resampling would see two of these eight rows, both black.
  image = np.zeros(shape, np.uint8)
  image[::8] = 240
  tall, wide = stored(tmp_path, image, image.T.copy())
  assert (tall == 30).all() and (wide == 30).all()


def test_growing_keeps_the_place_of_an_edge(tmp_path):
  image = np.zeros((8, 8), np.uint8)
  image[:, 4:] = 200
  (square,) = stored(tmp_path, image)
  assert (square[:, :14] == 0).all() and (square[:, 18:] == 200).all()
  # The edge is in the middle, as much on one side as on the other.
  np.testing.assert_array_equal(square + square[:, ::-1], 200)


def test_one_pixel_and_one_row_are_images_too(tmp_path):
  one, row = np.full((1, 1), 77, np.uint8), np.full((1, 500), 9, np.uint8)
  squares = stored(tmp_path, one, row)
  assert (squares[0] == 77).all() and (squares[1] == 9).all()


# The same bytes every time.


def test_the_bytes_do_not_depend_on_the_number_of_workers(made, tmp_path):
  records, path, _ = made
  prepare(records, tmp_path / 'set', workers=2)
  assert contents(tmp_path / 'set') == contents(path)
  assert len([n for n in contents(path) if 'train' in n]) > 2  # several shards


_KILLED = """
import dataclasses, functools, os, pickle, signal, sys
from dpjax.data import store

def die(pid):
  os.kill(pid, signal.SIGKILL)

store.SHARD = int(sys.argv[3])
records = pickle.loads(open(sys.argv[1], 'rb').read())
records[-2] = dataclasses.replace(
  records[-2], pixels=functools.partial(die, os.getpid())
)
store.prepare(
  records, sys.argv[2], name='tiny', provenance={'layout': 'test'}, size=32,
  workers=1, progress=False,
)
"""


def test_after_a_kill_finished_shards_stay_and_the_set_is_the_same(tmp_path):
  # With a given test part the last records are in the last shard.
  records = make_records(tmp_path / 'raw')
  records = [
    dataclasses.replace(r, split='test' if i >= 40 else None)
    for i, r in enumerate(records)
  ]
  (tmp_path / 'records').write_bytes(pickle.dumps(records))
  path, partial = tmp_path / 'set', tmp_path / 'set.partial'
  killed = subprocess.run(
    [sys.executable, '-c', _KILLED, tmp_path / 'records', path, str(SHARD)],
    check=False,
  )
  assert killed.returncode == -9
  assert not path.exists()
  finished = {
    file: (file.stat().st_ino, file.stat().st_mtime_ns)
    for file in partial.glob('tiny-*.npz')
  }
  shards = {file.with_suffix('') for file in finished}
  assert len(shards) >= 6
  assert (partial / 'tiny-test.array_record-00002-of-00003') not in shards
  shards = {file.name: file.stat().st_mtime_ns for file in shards}
  prepare(records, path)
  assert not partial.exists()
  assert shards == {n: (path / n).stat().st_mtime_ns for n in shards}
  prepare(records, tmp_path / 'undisturbed')
  assert contents(path) == contents(tmp_path / 'undisturbed')


def test_unfinished_work_of_other_settings_is_not_gone_on_with(tmp_path):
  records = make_records(tmp_path / 'raw', 12)
  partial = tmp_path / 'set.partial'
  partial.mkdir()
  (partial / 'fingerprint').write_text('of another set')
  (partial / 'tiny-train.array_record-00000-of-00001').write_bytes(b'x')
  (partial / 'tiny-train.array_record-00000-of-00001.npz').write_bytes(b'x')
  prepare(records, tmp_path / 'set')
  prepare(records, tmp_path / 'other')
  assert contents(tmp_path / 'set') == contents(tmp_path / 'other')


def test_a_folder_of_somebody_else_is_never_deleted(tmp_path):
  records = make_records(tmp_path / 'raw', 12)
  (tmp_path / 'set.partial').mkdir()
  (tmp_path / 'set.partial/thesis.txt').write_text('ten years')
  with pytest.raises(ValueError) as caught:
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
  with pytest.raises(ValueError) as caught:
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
  assert 'already prepared' in store.format_summary(again)


@pytest.mark.parametrize(
  'change', ['size', 'seed', 'provenance', 'label', 'pixels', 'fewer']
)
def test_another_set_in_the_same_folder_is_refused(made, change):
  records, path, _ = made
  records, settings = list(records), {}
  if change == 'size':
    settings = {'size': 16}
  elif change == 'seed':
    settings = {'split_seed': 1}
  elif change == 'provenance':
    settings = {'provenance': {'layout': 'other'}}
  elif change == 'label':
    records[7] = dataclasses.replace(records[7], label=0)
  elif change == 'pixels':
    records[7] = dataclasses.replace(records[7], stamp='later')
  else:
    records.pop()
  before = contents(path)
  with pytest.raises(ValueError) as caught:
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
  with pytest.raises(ValueError) as caught:
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
    with pytest.raises(ValueError) as caught:
      prepare(bad, tmp_path / 'set', name=name)
    assert reason in one_line(caught)
  assert not (tmp_path / 'set.partial').exists()


# Reading.


def test_images_are_exact_in_any_order_and_number(made):
  rng = np.random.default_rng(0)
  for split in store.load(made[1]).splits.values():
    index = rng.permutation(np.repeat(np.arange(len(split)), 2))
    images = split.images(index)
    assert images.shape == (len(index), SIZE, SIZE) and images.dtype == np.uint8
    assert [digest(i) for i in images] == split.digests[index].tolist()
    assert split.images(index[:0]).shape == (0, SIZE, SIZE)
    one = split.images([int(index[0])])
    np.testing.assert_array_equal(one, images[:1])


def test_the_caller_owns_the_images(made):
  split = store.load(made[1]).split('train')
  split.images([0])[...] = 0
  assert split.images([0]).any()


def test_a_split_travels_before_and_after_its_first_read(made):
  split = store.load(made[1]).split('train')
  fresh = pickle.loads(pickle.dumps(split))
  images = split.images(range(len(split)))
  for other in (fresh, pickle.loads(pickle.dumps(split))):
    np.testing.assert_array_equal(other.images(range(len(split))), images)
    np.testing.assert_array_equal(other.boxes, split.boxes)


def test_eight_threads_read_one_split_at_once(made):
  split = store.load(made[1]).split('train')
  start = threading.Barrier(8)
  wrong = []

  def read(seed):
    rng = np.random.default_rng(seed)
    start.wait()
    for _ in range(20):
      index = rng.integers(0, len(split), 16)
      found = [digest(i) for i in split.images(index)]
      if found != split.digests[index].tolist():
        wrong.append(seed)

  threads = [threading.Thread(target=read, args=(i,)) for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(timeout=60)
  assert not any(thread.is_alive() for thread in threads)
  assert not wrong


_READ = """
import sys
from dpjax.data import store
split = store.load(sys.argv[1]).split('train')
assert split.images([3, 0]).any()
print(*{m.partition('.')[0] for m in sys.modules})
"""


def test_reading_imports_no_heavy_library(made):
  done = subprocess.run(
    [sys.executable, '-c', _READ, made[1]],
    check=True, capture_output=True, text=True,
  )  # fmt: skip
  loaded = set(done.stdout.split())
  assert 'array_record' in loaded
  heavy = {'tensorflow', 'tensorflow_datasets', 'cv2', 'jax', 'scipy'}
  assert not loaded & heavy


def test_tfds_reads_the_same_set_without_tensorflow(made):
  tfds = pytest.importorskip('tensorflow_datasets')
  path = made[1]
  builder = tfds.builder_from_directory(path)
  loaded = store.load(path)
  assert set(builder.info.splits) == set(loaded.splits)
  for name, split in loaded.splits.items():
    source = builder.as_data_source(name)
    assert len(source) == builder.info.splits[name].num_examples == len(split)
    images = split.images(range(len(split)))
    for i in range(len(split)):
      example = source[i]
      np.testing.assert_array_equal(example['image'], images[i])
      np.testing.assert_array_equal(example['boxes'], split.boxes[i])
      assert example['label'] == split.labels[i]
      assert example['id'].decode() == split.ids[i]
  assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize(
  'name, change, reason',
  [
    ('summary.json', None, 'is not a prepared set'),
    ('summary.json', lambda b: b[:50], 'is not a prepared set'),
    ('summary.json', lambda b: b'[]', 'is not a prepared set'),
    ('summary.json', lambda b: b'{"name": "x"}', 'is not a prepared set'),
    ('table.npz', None, 'is not whole'),
    ('table.npz', lambda b: b[: len(b) // 2], 'is not whole'),
    ('table.npz', lambda b: b'', 'is not whole'),
    ('table.npz', lambda b: b'text', 'is not whole'),
    ('dataset_info.json', None, 'is not whole'),
    ('tiny-test.array_record-00000-of-00001', None, 'bytes of test'),
    ('tiny-train.array_record-00001-of-00006', None, 'bytes of train'),
    (
      'tiny-train.array_record-00005-of-00006',
      lambda b: b[: len(b) // 2],
      'bytes of train',
    ),
  ],
)
def test_a_broken_set_is_named_in_one_line(copy, name, change, reason):
  file = copy / name
  content = file.read_bytes()
  file.unlink()
  if change:
    file.write_bytes(change(content))
  with pytest.raises(ValueError) as caught:
    store.load(copy)
  message = one_line(caught)
  assert message.startswith(f'config.data.path: {copy} ') and reason in message


def test_a_set_of_another_format_is_refused(copy):
  info = json.loads((copy / 'summary.json').read_text())
  (copy / 'summary.json').write_text(json.dumps({**info, 'format': 99}))
  with pytest.raises(ValueError) as caught:
    store.load(copy)
  assert 'format 99' in one_line(caught) and '1' in str(caught.value)


def test_a_set_that_is_not_there_is_told_how_to_be_made(tmp_path):
  with pytest.raises(ValueError) as caught:
    store.load(tmp_path / 'gone')
  assert 'python -m dpjax.main prepare' in one_line(caught)


def test_a_set_reads_from_wherever_it_lies(copy, made):
  # Backup files beside the shards are no shards; a moved set is whole.
  for name in os.listdir(copy):
    if 'array_record' in name:
      (copy / f'{name}~').write_bytes(b'')
      (copy / f'{name}.bak').write_bytes(b'')
  moved = store.load(copy.rename(copy.parent / 'moved')).split('train')
  split = store.load(made[1]).split('train')
  np.testing.assert_array_equal(
    moved.images(range(len(split))), split.images(range(len(split)))
  )


def test_a_split_that_the_set_lacks_is_named(made):
  with pytest.raises(ValueError) as caught:
    store.load(made[1]).split('unlabelled')
  message = one_line(caught)
  assert 'unlabelled' in message and 'train, validation, test' in message
