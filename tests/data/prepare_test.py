"""The prepare command and the set that a run opens."""

import pathlib
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest

from dpjax.data import prepare, store
from dpjax.data.readers import phantom
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
  with pytest.raises(ValueError) as caught:
    prepare.prepare(other)
  assert 'another set' in one_line(caught)


def test_a_missing_competition_set_is_told_the_command_that_makes_it(tmp_path):
  config = make_config(
    tmp_path / 'set',
    data__layout='competition',
    data__source=str(tmp_path / 'raw'),
  )
  with pytest.raises(ValueError) as caught:
    prepare.open_prepared(config)
  words = shlex.split(one_line(caught).partition(' make it by ')[2])
  assert words[:4] == ['python', '-m', 'dpjax.main', 'prepare']
  flags = dict(word.lstrip('-').split('=', 1) for word in words[4:])
  root = pathlib.Path(prepare.__file__).parents[2]
  assert (root / flags.pop('config')).is_file()
  assert flags == {
    'config.data.layout': 'competition',
    'config.data.source': str(tmp_path / 'raw'),
    'config.data.store_size': '64',
    'config.data.path': str(tmp_path / 'set'),
  }
  assert not (tmp_path / 'set').exists()


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
  with pytest.raises(ValueError) as caught:
    prepare.prepare(config)
  message = one_line(caught)
  assert 'config.data.source' in message and f'{tmp_path}/raw' in message


_NO_BACKEND = """
import sys
from tests import fakes
from dpjax.data import prepare

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
  root = pathlib.Path(prepare.__file__).parents[2]
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
