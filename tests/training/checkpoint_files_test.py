"""A damaged checkpoint is known before it is trusted."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpjax.training import checkpoint, checkpoint_files


def make_state():
  rng = np.random.default_rng(0)
  return {
    'small': jnp.float32(2),
    'large': jnp.asarray(rng.normal(size=(200, 200)).astype(np.float32)),
  }


@pytest.fixture(scope='module')
def step(tmp_path_factory):
  """A whole step, with scores. Not to be written to."""
  workdir = tmp_path_factory.mktemp('run')
  saved = checkpoint.Checkpoints(workdir, best='f1')
  saved.save(7, make_state(), {'next_index': 3}, {'wall': 1}, {'f1': 0.5})
  saved.close()
  return workdir / 'checkpoints' / '7'


def remove(file):
  file.unlink()


def cut(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file):
  file.write_bytes(b'')


def flip(file):
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def files_of(step):
  return sorted(p.relative_to(step) for p in step.rglob('*') if p.is_file())


def test_a_whole_step_has_no_fault(step, tmp_path):
  assert checkpoint_files.find_fault(step, thorough=True) is None
  copy = shutil.copytree(step, tmp_path / '7')
  (copy / checkpoint_files.LIST).unlink()  # as an earlier version left it
  assert checkpoint_files.find_fault(copy, thorough=True) is None
  # Orbax's own marks hold no part of the state.
  (copy / 'commit_success.txt').unlink()
  assert checkpoint_files.find_fault(copy, thorough=True) is None


def test_a_step_that_was_listed_without_its_arrays_is_damaged(step, tmp_path):
  copy = shutil.copytree(step, tmp_path / '7')
  for file in ('state/manifest.ocdbt', checkpoint_files.LIST):
    (copy / file).unlink()
  checkpoint_files.write_list(copy)
  fault = checkpoint_files.find_fault(copy)
  assert fault == 'state/manifest.ocdbt is missing'


@pytest.mark.parametrize('damage', [remove, cut, empty, flip])
def test_whatever_file_is_damaged_is_named(damage, step, tmp_path):
  named = 0
  for number, file in enumerate(files_of(step)):
    if file.name in ('commit_success.txt', '_CHECKPOINT_METADATA'):
      continue
    copy = shutil.copytree(step, tmp_path / str(number))
    damage(copy / file)
    fault = checkpoint_files.find_fault(copy, thorough=True)
    if file.name == checkpoint_files.LIST and damage in (remove, flip):
      continue  # Nothing of the state is lost.
    assert fault is not None and str(file) in fault
    named += 1
  assert named > 8


@pytest.mark.parametrize('damage', [remove, cut, empty])
def test_a_step_without_a_list_is_whole_only_if_it_can_be_read(
  damage, step, tmp_path
):
  found = set()
  for number, file in enumerate(files_of(step)):
    folder = tmp_path / str(number) / 'checkpoints'
    copy = shutil.copytree(step, folder / '7')
    (copy / checkpoint_files.LIST).unlink()
    if file.name == checkpoint_files.LIST:
      continue
    damage(copy / file)
    if checkpoint_files.find_fault(copy, thorough=True) is not None:
      found.add(file.name)
      continue
    saved = checkpoint.Checkpoints(folder.parent, best='f1', write=False)
    state, data, run = saved.restore(7, make_state())
    saved.close()
    jax.tree.map(np.testing.assert_array_equal, state, make_state())
    assert (data, run) == ({'next_index': 3}, {'wall': 1})
  assert {'_METADATA', 'manifest.ocdbt', '_CHECKPOINT_METADATA'} <= found
  assert len(found) > 4


def test_a_quick_look_finds_what_is_missing_and_short(step, tmp_path):
  largest = max(files_of(step), key=lambda file: (step / file).stat().st_size)
  assert (step / largest).stat().st_size > 1 << 16
  for damage, seen in ((remove, True), (cut, True), (flip, False)):
    copy = shutil.copytree(step, tmp_path / damage.__name__)
    damage(copy / largest)
    assert (checkpoint_files.find_fault(copy) is not None) == seen


def test_an_empty_folder_is_no_step(tmp_path):
  fault = checkpoint_files.find_fault(tmp_path)
  assert fault == '_CHECKPOINT_METADATA is missing'
