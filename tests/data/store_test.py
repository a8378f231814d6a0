"""A prepared set is read exactly, and refused where it is not whole."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from dpjax.data import store
from dpjax.data.prepare import build
from dpjax.errors import UserError
from tests.data import source_files as sources
from tests.data.source_files import digest, one_line

SIZE = sources.SIZE


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(records, path, summary) of a set that no test may change."""
  folder = tmp_path_factory.mktemp('store')
  records = sources.make_records(folder / 'raw')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, 'BLOCK', sources.SHARD)
    patch.setattr(build, 'SHARD', sources.SHARD)
    summary = sources.prepare(records, folder / 'set')
  return records, folder / 'set', summary


@pytest.fixture
def copy(made, tmp_path):
  """A copy of the set, to be broken."""
  return pathlib.Path(shutil.copytree(made[1], tmp_path / 'copy'))


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
  with pytest.raises(UserError) as caught:
    store.load(copy)
  message = one_line(caught)
  assert message.startswith(f'config.data.path: {copy} ') and reason in message


def test_a_set_of_another_format_is_refused(copy):
  info = json.loads((copy / 'summary.json').read_text())
  (copy / 'summary.json').write_text(json.dumps({**info, 'format': 99}))
  with pytest.raises(UserError) as caught:
    store.load(copy)
  assert f'format 99 and this is {store.FORMAT}' in one_line(caught)


def test_a_set_that_is_not_there_is_told_how_to_be_made(tmp_path):
  with pytest.raises(UserError) as caught:
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
  with pytest.raises(UserError) as caught:
    store.load(made[1]).split('unlabelled')
  message = one_line(caught)
  assert 'unlabelled' in message and 'train, validation, test' in message


# Checking a set against its manifest.


def test_a_set_as_it_was_made_passes_and_is_counted(made):
  assert store.verify(made[1]) == len(made[0])


def flip_a_bit(copy):
  file = sorted(copy.glob('tiny-train.array_record*'))[1]
  content = bytearray(file.read_bytes())
  # Somewhere in an image: they are most of the file, behind other fields.
  place = content.rindex(b'image') + 400
  content[place] ^= 1
  file.write_bytes(content)


def swap_two_files(copy):
  first, second = sorted(copy.glob('tiny-train.array_record*'))[:2]
  assert first.stat().st_size == second.stat().st_size
  content = first.read_bytes()
  first.write_bytes(second.read_bytes())
  second.write_bytes(content)


def edit_manifest(old, new):
  def edit(copy):
    file = copy / 'manifest.csv'
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))

  return edit


def edit_table(column, value):
  def edit(copy):
    table = store.read_table(copy / 'table.npz')
    table[column][:] = value
    np.savez(copy / 'table.npz', **table)

  return edit


def add_a_row(copy):
  with open(copy / 'manifest.csv', 'a') as file:
    file.write('ghost,train,0,,,\n')


@pytest.mark.parametrize(
  'change, reason',
  [
    (edit_manifest(',train,', ',test,'), "split 'train', there 'test'"),
    (edit_manifest(',train,0,', ',train,1,'), "label '0', there '1'"),
    (edit_manifest('exam 5,', 'exam 500,'), "id 'exam 5', there 'exam 500'"),
    (edit_manifest('id,', 'name,'), "id 'id', there 'name'"),
    (lambda copy: (copy / 'manifest.csv').unlink(), 'not a readable manifest'),
    (add_a_row, "id None, there 'ghost'"),
    (edit_table('boxes', -1), 'boxes'),
    (edit_table('groups', 7), 'patient'),
    (edit_table('hashes', 255), 'perceptual_hash'),
    (edit_table('source_digests', 'x'), 'source_xxh3'),
    (lambda copy: (copy / 'features.json').unlink(), 'features.json'),
    (swap_two_files, 'sha256'),
  ],
)
def test_a_set_that_is_not_as_its_manifest_is_named(copy, change, reason):
  change(copy)
  with pytest.raises(UserError) as caught:
    store.verify(copy)
  message = one_line(caught)
  assert str(copy) in message and reason in message


def test_a_changed_bit_of_an_image_is_found(copy):
  flip_a_bit(copy)
  with pytest.raises(UserError) as caught:
    store.verify(copy)
  assert str(copy) in one_line(caught)


def overwrite(file, content):
  with open(file, 'r+b') as stream:
    stream.truncate(0)
    stream.write(content)


@pytest.mark.parametrize('opened', [False, True])
@pytest.mark.parametrize(
  'change',
  [
    lambda content: content[::-1],
    lambda content: bytes(len(content)),
    lambda content: content[: len(content) // 2],
    lambda content: b'',
  ],
  ids=['garbage', 'zeros', 'half', 'nothing'],
)
def test_a_set_overwritten_in_place_is_one_line_for_each_image(
  change, opened, copy
):
  split = store.load(copy).split('train')
  if opened:
    split.images([0])
  split.check_unchanged()
  for file in split.files:
    overwrite(file, change(pathlib.Path(file).read_bytes()))
  refused = 0
  for row in range(len(split)):
    try:
      image = split.images([row])[0]
    except UserError as error:
      line = str(error)
      assert (
        '\n' not in line
        and str(copy) in line
        and line.endswith('prepare it again')
      )
      refused += 1
    else:  # It lies before the damage.
      assert digest(image) == split.digests[row]
  assert refused
  with pytest.raises(UserError, match='was changed while it was in use'):
    split.check_unchanged()


def test_another_set_of_the_same_shape_in_its_place_is_noticed(copy, made):
  data = store.load(copy)
  shutil.rmtree(copy)
  for split in data.splits.values():
    with pytest.raises(UserError, match='was changed'):
      split.check_unchanged()
  shutil.copytree(made[1], copy)  # put back as it was, times and all
  for split in data.splits.values():
    split.check_unchanged()
    for file in split.files:
      os.utime(file)  # as one that was prepared anew
    with pytest.raises(UserError, match='prepare it again'):
      split.check_unchanged()
