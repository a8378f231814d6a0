"""Checkpoints: what comes back, what is kept, and what is refused."""

import json
import pathlib
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpjax.distributed import parallel
from dpjax.errors import UserError
from dpjax.training import checkpoint, optim, steps

ITERATOR = {'next_index': 7, 'nested': [1, {'a': None}]}
RECORD = {'training': 1.25, 'wall': 2.5}


def make_state(seed=0):
  """A state with every kind of node that the real one has."""
  rng = np.random.default_rng(seed)

  def array(*shape):
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))

  params = {
    'backbone': {
      'conv1': {'kernel': array(3, 3, 1, 4)},
      'fc': {'kernel': array(4, 3), 'bias': array(3)},
    },
    'projector': {'Dense_0': {'kernel': array(4, 2)}},
  }
  optimizer, _ = optim.make(steps=10, learning_rate=0.1, clip=1.0)
  # An update, so that the momentum is not zero.
  _, opt_state = optimizer.update(params, optimizer.init(params), params)
  return steps.TrainState(
    step=jnp.int32(7),
    params=params,
    batch_stats={'backbone': {'bn1': {'mean': array(4), 'var': array(4)}}},
    opt_state=opt_state,
  )


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)


def save(workdir, scores, **kwargs):
  """Saves {step: scores}, and returns what the folder then holds."""
  saved = checkpoint.Checkpoints(workdir, **kwargs)
  state = make_state()
  for step, values in scores.items():
    saved.save(step, state, ITERATOR, RECORD, values)
  saved.close()
  return kept(workdir)


def kept(workdir):
  return {p.name for p in (workdir / 'checkpoints').iterdir()}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run with one checkpoint, of step 7. Not to be written to."""
  workdir = tmp_path_factory.mktemp('run')
  save(workdir, {7: None})
  return workdir


def test_what_is_saved_comes_back_the_same(workdir):
  saved = checkpoint.Checkpoints(workdir)
  assert saved.newest() == 7
  # Only the structure of `like` counts, none of its values.
  state, data, run = saved.restore(7, make_state(seed=1))
  saved.close()
  assert_same(state, make_state())
  kinds = [type(node) for node in state.opt_state]
  assert kinds == [type(node) for node in make_state().opt_state]
  assert any(issubclass(kind, tuple) for kind in kinds)
  assert float(optax.tree.norm(state.opt_state)) > 0
  assert (data, run) == (ITERATOR, RECORD)


@pytest.mark.parametrize('mode', ['jit', 'pmap', 'shard_map'])
def test_a_restored_state_goes_into_the_step_of_every_mode(mode, workdir):
  devices = parallel.Devices(mode, 1 if mode == 'jit' else 4)
  like = devices.replicate(make_state(seed=1))
  saved = checkpoint.Checkpoints(workdir)
  state, _, _ = saved.restore(7, like)
  saved.close()

  def step(state, batch, shared, *, axis_name):
    del axis_name, shared
    return jax.tree.map(lambda x: 2 * x, state), batch['x'].ndim

  run = devices.compile(step, donate=True)
  batch = devices.place({'x': np.zeros(4)})
  doubled, _ = run(state, batch, None)
  assert_same(doubled, jax.tree.map(lambda x: 2 * x, make_state()))


def test_a_save_under_way_does_not_see_the_step_that_takes_its_buffers(
  tmp_path,
):
  saved = checkpoint.Checkpoints(tmp_path)
  state = make_state()
  saved.save(1, state, ITERATOR, RECORD)
  jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
  saved.wait()
  restored, _, _ = saved.restore(1, make_state(seed=1))
  saved.close()
  assert_same(restored, make_state())


@pytest.fixture
def interrupted(workdir, tmp_path):
  """A run that was killed while it saved step 9."""
  shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
  folder = tmp_path / 'checkpoints'
  half = folder / '9.orbax-checkpoint-tmp'
  shutil.copytree(folder / '7' / 'run', half / 'run')
  return tmp_path


def test_what_is_saved_is_of_the_moment_when_it_was_given(
  tmp_path, monkeypatch
):
  gone_on, dumps = threading.Event(), json.dumps

  def late(*args, **kwargs):  # The thread that writes is behind.
    if threading.current_thread() is not threading.main_thread():
      gone_on.wait(60)
    return dumps(*args, **kwargs)

  monkeypatch.setattr(json, 'dumps', late)
  saved = checkpoint.Checkpoints(tmp_path)
  data, record = {'next_index': 7}, {'interval': {'sums': {'loss': 1.5}}}
  saved.save(3, make_state(), data, record)
  data['next_index'] += 1
  record['interval']['sums']['loss'] += 1.5
  gone_on.set()
  saved.wait()
  _, data, record = saved.restore(3, make_state())
  saved.close()
  assert data == {'next_index': 7}
  assert record == {'interval': {'sums': {'loss': 1.5}}}


def test_a_kill_while_an_old_step_is_removed_leaves_no_damaged_one(
  tmp_path, monkeypatch, capsys
):
  class Killed(BaseException):
    pass

  def half(folder, *args, **kwargs):
    for file in pathlib.Path(folder).rglob('manifest.ocdbt'):
      file.unlink()
      raise Killed
    return rmtree(folder, *args, **kwargs)

  rmtree = shutil.rmtree
  monkeypatch.setattr(shutil, 'rmtree', half)
  saved = checkpoint.Checkpoints(tmp_path, keep=1)
  with pytest.raises(Killed):
    for step in (1, 2, 3):
      saved.save(step, make_state(), ITERATOR, RECORD)
      saved.wait()
  monkeypatch.undo()
  checkpoint.set_aside_damaged(tmp_path)
  assert not capsys.readouterr().err
  checkpoint.Checkpoints(tmp_path, keep=1).close()
  assert kept(tmp_path) == {'2'}
  saved.close()  # Else its threads disturb other tests.


def test_a_half_written_checkpoint_counts_as_none_and_is_cleared(interrupted):
  assert set(checkpoint.read_state(interrupted)['params']) == {
    'backbone',
    'projector',
  }
  saved = checkpoint.Checkpoints(interrupted)
  assert saved.newest() == 7
  saved.save(9, make_state(), ITERATOR, RECORD)
  saved.close()
  assert kept(interrupted) == {'7', '9'}


def test_opening_has_no_thread_that_outlives_it(interrupted):
  before = set(threading.enumerate())
  checkpoint.Checkpoints(interrupted).close()
  # Left to Orbax, the clearing may be under way still when the process ends.
  assert kept(interrupted) == {'7'}
  # A worker of asyncio's pool that has no more work may be about to end.
  for thread in {t for t in threading.enumerate() if not t.daemon} - before:
    thread.join(10)
    assert not thread.is_alive()


def test_who_looks_on_leaves_a_save_under_way_alone(interrupted):
  saved = checkpoint.Checkpoints(interrupted, write=False)
  assert saved.find('last') == 7
  saved.restore(7, make_state(seed=1))
  saved.close()
  checkpoint.read_state(interrupted)
  assert kept(interrupted) == {'7', '9.orbax-checkpoint-tmp'}


def test_who_looks_on_makes_nothing(tmp_path):
  saved = checkpoint.Checkpoints(tmp_path / 'none', write=False)
  assert saved.newest() is None
  saved.close()
  assert not (tmp_path / 'none').exists()


def test_only_a_whole_checkpoint_is_one(workdir, tmp_path):
  assert checkpoint.has_checkpoint(workdir)
  (tmp_path / 'checkpoints' / '9.orbax-checkpoint-tmp').mkdir(parents=True)
  (tmp_path / 'file').touch()
  for path in (tmp_path, tmp_path / 'file', tmp_path / 'nowhere'):
    assert not checkpoint.has_checkpoint(path)


def test_the_newest_and_the_best_are_kept(tmp_path):
  scores = {1: 0.2, 2: 0.9, 3: 0.9, 4: 0.1, 5: None, 6: 0.3}
  names = save(
    tmp_path,
    # Step 5 was validated and its score is undefined.
    {step: {'f1': value} for step, value in scores.items()},
    keep=1,
    best='f1',
  )
  assert names == {'3', '6'}  # of equals the later
  saved = checkpoint.Checkpoints(tmp_path, best='f1')
  assert saved.find('best') == 3 and saved.find('last') == 6
  saved.close()


def test_checkpoints_without_a_validation_are_never_the_best(tmp_path):
  names = save(tmp_path, {1: {'f1': 0.5}, 2: None, 3: None}, keep=1, best='f1')
  assert names == {'1', '3'}
  saved = checkpoint.Checkpoints(tmp_path, best='f1')
  assert saved.find('best') == 1
  saved.close()


def test_where_every_score_is_undefined_none_is_the_best(tmp_path):
  save(tmp_path, {1: {'f1': None}, 2: {'f1': None}}, best='f1')
  saved = checkpoint.Checkpoints(tmp_path, best='f1', write=False)
  assert saved.find('last') == 2
  with pytest.raises(UserError, match=r'no best checkpoint.* f1 '):
    saved.find('best')
  saved.close()


@pytest.mark.parametrize('which', ['last', 'best'])
def test_a_checkpoint_that_is_not_there_is_refused(which, workdir, tmp_path):
  where = tmp_path if which == 'last' else workdir  # that has no scores
  saved = checkpoint.Checkpoints(where, best='f1', write=False)
  with pytest.raises(UserError, match=rf'no {which} checkpoint') as error:
    saved.find(which)
  saved.close()
  assert str(where) in str(error.value) and '\n' not in str(error.value)


def test_a_backbone_comes_without_projector_and_classifier(workdir):
  backbone = checkpoint.load_backbone(workdir)
  want = make_state()
  assert set(backbone) == {'params', 'batch_stats'}
  assert_same(backbone['params'], {'conv1': want.params['backbone']['conv1']})
  assert_same(backbone['batch_stats'], want.batch_stats['backbone'])


def test_a_backbone_that_is_not_there_is_refused_by_field(tmp_path):
  with pytest.raises(UserError, match=r'config\.init\.backbone') as error:
    checkpoint.load_backbone(tmp_path / 'nowhere')
  assert str(tmp_path / 'nowhere') in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_backbone_that_is_not_finite_is_refused_by_the_array(tmp_path, value):
  state = make_state()
  kernel = state.params['backbone']['conv1']['kernel']
  state.params['backbone']['conv1']['kernel'] = kernel.at[0, 0].set(value)
  saved = checkpoint.Checkpoints(tmp_path)
  saved.save(1, state, ITERATOR, RECORD)
  saved.close()
  with pytest.raises(UserError, match=r'params/conv1/kernel .*NaN'):
    checkpoint.load_backbone(tmp_path)


@pytest.fixture
def two_steps(tmp_path):
  """A run whose newest steps are 7 and 9."""
  save(tmp_path, {7: {'f1': 0.2}, 9: {'f1': 0.3}}, best='f1')
  return tmp_path


def cut_short(workdir, step, name='state/manifest.ocdbt'):
  file = workdir / 'checkpoints' / str(step) / name
  file.write_bytes(file.read_bytes()[:-1])


def test_a_run_goes_on_from_the_newest_whole_step_and_names_both(
  two_steps, capsys
):
  cut_short(two_steps, 9)
  checkpoint.set_aside_damaged(two_steps)
  (line,) = capsys.readouterr().err.splitlines()
  assert 'step 9 is damaged (state/manifest.ocdbt has 1' in line
  assert 'goes on from step 7' in line
  # Nothing is thrown away, and the next save of that step is a whole one.
  aside = two_steps / 'damaged'
  assert str(aside / '9') in line and (aside / '9' / 'state').is_dir()
  assert save(two_steps, {9: None}) == {'7', '9'}
  cut_short(two_steps, 9)
  checkpoint.set_aside_damaged(two_steps)
  assert {path.name for path in aside.iterdir()} == {'9', '9-2'}
  saved = checkpoint.Checkpoints(two_steps)
  assert saved.newest() == 7
  assert_same(saved.restore(7, make_state(seed=1))[0], make_state())
  saved.close()


def test_damaged_scores_of_an_older_step_stop_nobody(two_steps, capsys):
  cut_short(two_steps, 7, 'metrics/metrics')
  saved = checkpoint.Checkpoints(two_steps, best='f1', write=False)
  assert saved.find('last') == 9 and not capsys.readouterr().err
  assert saved.find('best') == 9
  assert 'step 7 is damaged' in capsys.readouterr().err
  saved.close()
  checkpoint.set_aside_damaged(two_steps)
  assert kept(two_steps) == {'9'}


def test_who_looks_on_takes_the_newest_whole_step_and_moves_nothing(
  two_steps, capsys
):
  cut_short(two_steps, 9)
  saved = checkpoint.Checkpoints(two_steps, best='f1', write=False)
  for which in ('last', 'best'):
    assert saved.find(which) == 7
    (line,) = capsys.readouterr().err.splitlines()
    assert 'step 9 is damaged' in line and 'step 7 is taken' in line
  saved.close()
  assert set(checkpoint.load_backbone(two_steps)) == {'params', 'batch_stats'}
  assert 'step 7 is taken' in capsys.readouterr().err
  assert kept(two_steps) == {'7', '9'}


def test_where_no_step_is_whole_all_say_so_and_leave_them_there(two_steps):
  cut_short(two_steps, 7)
  shutil.rmtree(two_steps / 'checkpoints' / '9')
  (two_steps / 'checkpoints' / '9').mkdir()
  saved = checkpoint.Checkpoints(two_steps, write=False)
  for function in (
    lambda: checkpoint.set_aside_damaged(two_steps),
    lambda: saved.find('last'),
    lambda: checkpoint.load_backbone(two_steps),
  ):
    with pytest.raises(UserError, match='no whole checkpoint: step 9 is') as e:
      function()
    assert '\n' not in str(e.value) and str(two_steps) in str(e.value)
  saved.close()
  assert kept(two_steps) == {'7', '9'}


def variables_of(state):
  return {'params': state.params, 'batch_stats': state.batch_stats}


def test_a_backbone_replaces_its_arrays_and_no_others(workdir):
  fresh = variables_of(make_state(seed=1))
  before = jax.tree.map(np.array, fresh)
  merged = checkpoint.merge_backbone(
    fresh, checkpoint.load_backbone(workdir), 'run'
  )
  want, params = make_state(), merged['params']
  assert_same(params['backbone']['conv1'], want.params['backbone']['conv1'])
  assert_same(merged['batch_stats'], want.batch_stats)
  assert_same(params['backbone']['fc'], before['params']['backbone']['fc'])
  assert_same(params['projector'], before['params']['projector'])
  assert_same(fresh, before)


def _reshape(backbone):
  backbone['params']['conv1']['kernel'] = np.zeros((7, 7, 1, 4), np.float32)


def _remove(backbone):
  del backbone['batch_stats']['bn1']['var']


def _add(backbone):
  backbone['params']['conv2'] = {'kernel': np.zeros((1, 1), np.float32)}


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (_reshape, ['params/conv1/kernel', '(7, 7, 1, 4)', '(3, 3, 1, 4)']),
    (_remove, ['batch_stats/bn1/var', 'missing there', '(4,)']),
    (_add, ['params/conv2/kernel', '(1, 1)', 'missing here']),
  ],
)
def test_another_networks_backbone_is_refused_by_the_array(
  change, words, workdir
):
  backbone = checkpoint.load_backbone(workdir)
  change(backbone)
  with pytest.raises(UserError) as error:
    checkpoint.merge_backbone(variables_of(make_state()), backbone, 'a/run')
  message = str(error.value)
  assert '\n' not in message
  for word in ('config.init.backbone', 'a/run', *words):
    assert word in message
