"""The loop: what it logs, keeps, refuses and survives."""

import csv
import functools
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpjax import leakage, prepare, recipe
from dpjax.data import store as store_lib
from dpjax.distributed import parallel
from dpjax.errors import NonFinite, Stopped, UserError
from dpjax.evaluation import evaluate
from dpjax.training import (
  batches,
  checkpoint,
  loop,
  programs,
  validation,
)
from dpjax.training import build as build_lib
from dpjax.training import workdir as workdir_lib
from tests import children, fakes
from tests.fakes import PLAIN, SMALL

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def data(monkeypatch):
  """Every run in this process reads a small set in memory."""
  store = fakes.make_store()
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: store)
  return store


def make_config(**changes):
  return fakes.make_config(
    **{
      'init__backbone': 'None',
      'retrain__epochs': 2.0,
      'pretrain__epochs': 1.0,
      'train__log_every': 1,
      **changes,
    }
  )


def read_log(workdir, split=None):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  entries = [json.loads(line) for line in lines]
  return [e for e in entries if split in (None, e['split'])]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A whole small recipe: (pretrain workdir, retrain workdir, config)."""
  workdir = tmp_path_factory.mktemp('recipe')
  store = fakes.make_store()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare, 'open_prepared', lambda config: store)
    config = make_config(stage='recipe', init__backbone='auto')
    recipe.run(config, workdir)
  return workdir / 'pretrain', workdir / 'retrain', config


def test_the_log_holds_every_term_apart(finished):
  for workdir, names in (
    (finished[0], {'loss/contrast', 'contrastive_accuracy'}),
    (
      finished[1],
      {'loss/classification', 'loss/att_pos', 'loss/att_neg', 'loss/feat'},
    ),
  ):
    for entry in read_log(workdir, 'train'):
      common = {'loss', 'learning_rate', 'gradient_norm', 'images_per_second'}
      assert (names | common) <= set(entry)
      assert entry['seconds_training'] <= entry['seconds_wall'] + 1e-6


def test_validation_stands_in_the_log_once_an_epoch(finished):
  entries = read_log(finished[1], 'validation')
  assert [e['step'] for e in entries] == [3, 6]  # 48 radiographs by 16
  for entry in entries:
    assert {'loss', 'accuracy', 'balanced_accuracy', 'macro_f1'} <= set(entry)
  assert 'contrastive_accuracy' in read_log(finished[0], 'validation')[0]


def test_stage_two_takes_backbone_and_statistics_and_drops_the_projector(
  finished,
):
  pretrained, retrained, config = finished
  backbone = checkpoint.load_backbone(pretrained)
  source = checkpoint.read_state(pretrained)
  for part in ('params', 'batch_stats'):
    want = dict(source[part]['backbone'])
    jax.tree.map(np.testing.assert_array_equal, backbone[part], want)
  assert 'projector' in source['params']
  assert 'projector' not in checkpoint.read_state(retrained)['params']
  run = build_lib.build(config, 'retrain', fakes.make_store())
  start = build_lib.initial_state(
    run, optax.sgd(0.1), backbone, str(pretrained)
  )
  kernel = start.params['backbone']['layer2_0']['conv1']['kernel']
  np.testing.assert_array_equal(
    kernel, source['params']['backbone']['layer2_0']['conv1']['kernel']
  )


def test_the_manifest_holds_the_images_of_both_stages(finished):
  splits = fakes.make_store().splits
  for workdir, stages in (
    (finished[0], ['pretrain']),
    (finished[1], ['pretrain', 'retrain']),
  ):
    with open(workdir / 'training_manifest.csv', newline='') as file:
      rows = list(csv.DictReader(file))
    wanted = [(s, str(id)) for s in stages for id in splits['train'].ids]
    assert [(row['stage'], row['id']) for row in rows] == wanted


@pytest.mark.usefixtures('uncompiled')
def test_a_backbone_that_saw_the_test_split_is_warned_of_at_the_start(
  finished, tmp_path, data, capsys
):
  # As where stage I had another draw of the splits.
  data.splits['test'].pixels[3] = data.splits['train'].pixels[5]
  for row in (0, 1):
    data.splits['train'].pixels[row] = data.splits['validation'].pixels[row]
  loop.train(make_config(init__backbone=str(finished[0])), 'retrain', tmp_path)
  warnings = capsys.readouterr().err
  assert 'warning: 1 of the 13 images of test of memory' in warnings
  assert 'warning: 2 of the 12 images of validation of memory' in warnings


def test_a_backbone_of_another_shape_is_refused_by_name(finished, tmp_path):
  config = make_config(init__backbone=str(finished[0]), model__width=16)
  with pytest.raises(UserError, match=r'init\.backbone.*another network'):
    loop.train(config, 'retrain', tmp_path)
  assert not checkpoint.has_checkpoint(tmp_path)


@pytest.mark.parametrize('source', ['nowhere', 'weights.npz', 'weights.pth'])
def test_a_missing_backbone_is_refused_by_name(source, tmp_path):
  config = make_config(init__backbone=str(tmp_path / source))
  with pytest.raises(UserError, match=r'init\.backbone.*' + source) as error:
    loop.train(config, 'retrain', tmp_path / 'run')
  assert '\n' not in str(error.value)


def test_evaluation_scores_the_whole_test_split_tail_included(finished):
  result = json.loads((finished[1] / 'evaluation.json').read_text())
  assert result['num_images'] == 13  # no multiple of any batch size
  assert result['split'] == 'test' and result['checkpoint'] == 'last'
  assert len((finished[1] / 'predictions.csv').read_text().splitlines()) == 14
  low, high = result['intervals']['accuracy']
  assert low <= result['scores']['accuracy'] <= high


def test_evaluation_does_not_depend_on_its_batch_size(finished):
  results = []
  for size in (4, 64):
    config = make_config(evaluate__batch_size=size)
    evaluate.evaluate(config, finished[1])
    results.append(np.loadtxt(
      finished[1] / 'predictions.csv', delimiter=',', skiprows=1,
      usecols=(3, 4, 5),
    ))  # fmt: skip
  np.testing.assert_allclose(*results, atol=1e-6)


@pytest.mark.usefixtures('uncompiled')
def test_the_best_checkpoint_is_the_best_by_validation(tmp_path, monkeypatch):
  values = iter([0.2, 0.9, 0.4, 0.3])
  monkeypatch.setattr(
    validation, 'validate', lambda *_: {'balanced_accuracy': next(values)}
  )
  config = make_config(retrain__epochs=4.0, train__keep=1)
  loop.train(config, 'retrain', tmp_path)
  saved = checkpoint.Checkpoints(tmp_path, best='balanced_accuracy')
  assert saved.find('best') == 6 and saved.find('last') == 12
  kept = {int(p.name) for p in (tmp_path / 'checkpoints').iterdir()}
  assert kept == {6, 12}
  saved.close()


def test_a_finished_run_started_again_changes_nothing(finished, capsys):
  before = (finished[0] / 'metrics.jsonl').read_text()
  loop.train(finished[2], 'pretrain', finished[0])
  assert (finished[0] / 'metrics.jsonl').read_text() == before
  assert 'resumed at step 3, to step 3' in capsys.readouterr().out


@pytest.mark.usefixtures('uncompiled')
@pytest.mark.parametrize(
  ('free', 'placement'), [(10**9, 'resident'), (10**3, 'stream')]
)
def test_the_config_on_record_says_what_auto_and_0_stood_for(
  free, placement, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(parallel, 'free_bytes', lambda: free)
  config = make_config(data__render='device')
  assert config.data.placement == 'auto'
  assert config.train.steps_per_dispatch == 0
  loop.train(config, 'retrain', tmp_path)
  file = tmp_path / 'config.json'
  record = json.loads(file.read_text())
  assert record['data']['placement'] == placement
  assert record['train']['steps_per_dispatch'] == 1
  # Earlier versions recorded the words: such a run goes on.
  earlier = {
    **record,
    'data': {**record['data'], 'placement': 'auto'},
    'train': {**record['train'], 'steps_per_dispatch': 0},
  }
  file.write_text(json.dumps(earlier))
  loop.train(config, 'retrain', tmp_path)
  assert 'resumed at step 6' in capsys.readouterr().out
  assert json.loads(file.read_text()) == record


@pytest.mark.usefixtures('uncompiled')
def test_a_trace_of_as_many_steps_as_asked_for_lies_in_the_workdir(tmp_path):
  loop.train(make_config(train__trace=2, **PLAIN), 'retrain', tmp_path)
  (file,) = (tmp_path / 'trace').rglob('*.trace.json.gz')
  events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
  steps = [e['args']['step_num'] for e in events if e.get('name') == 'train']
  assert sorted(map(int, steps)) == [2, 3]


def test_a_workdir_of_another_config_is_refused_by_field(finished):
  config = make_config(mgacr__eps=0.5)
  with pytest.raises(UserError, match=r'mgacr\.eps: 0\.1 -> 0\.5'):
    loop.train(config, 'retrain', finished[1])


@pytest.mark.usefixtures('uncompiled')
@pytest.mark.parametrize('stage', ['pretrain', 'retrain'])
def test_a_diverging_loss_stops_the_run_and_keeps_the_last_good_checkpoint(
  stage, tmp_path, monkeypatch
):
  config = make_config(
    **{f'{stage}__optim__schedule': 'constant'},
    **{f'{stage}__epochs': 4.0},
    train__save_every=1,
    eval__every=0.0,
  )
  real = loop._check_finite

  def poisoned(step, metrics, saved):
    if step == 4:
      term = 'loss/contrast' if stage == 'pretrain' else 'loss/feat'
      metrics = {**metrics, 'loss': np.nan, term: np.inf}
    real(step, metrics, saved)

  monkeypatch.setattr(loop, '_check_finite', poisoned)
  term = 'contrast' if stage == 'pretrain' else 'feat'
  with pytest.raises(
    NonFinite, match=rf'step 4: loss/{term} is inf.*step 3 is kept'
  ):
    loop.train(config, stage, tmp_path)
  newest = max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert newest == 3
  leaves = jax.tree.leaves(checkpoint.read_state(tmp_path)['params'])
  assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_a_learning_rate_out_of_hand_is_caught_in_the_real_loss(tmp_path):
  config = make_config(
    retrain__optim__learning_rate=1e30, retrain__epochs=4.0, **SMALL
  )
  with pytest.raises(NonFinite, match=r'step \d+: (loss|gradient_norm)'):
    loop.train(config, 'retrain', tmp_path)
  if checkpoint.has_checkpoint(tmp_path):
    leaves = jax.tree.leaves(checkpoint.read_state(tmp_path)['params'])
    assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_a_batch_larger_than_the_set_is_refused_by_field(tmp_path):
  with pytest.raises(UserError, match=r'retrain\.batch_size.*at most the 48'):
    loop.train(make_config(retrain__batch_size=64), 'retrain', tmp_path)


@pytest.fixture
def uncompiled(monkeypatch):
  """Steps that only count and validate well, for tests of the loop alone."""

  def train_steps(count):
    @jax.jit
    def step(state, batch, images):
      del batch, images
      # The loss of a step is its number.
      loss = state.step + 1.0 + jnp.arange(count)
      loss = loss[0] if count == 1 else loss
      state = state.replace(step=state.step + count)
      return state, {'loss': loss, 'gradient_norm': jnp.ones_like(loss)}

    return step

  @jax.jit
  def eval_step(state, batch, images):
    del state, images
    rows = len(batch['label'])
    return {'logits': jnp.zeros((rows, 3)), 'loss': jnp.ones(rows)}

  monkeypatch.setattr(
    programs,
    'compile_step',
    lambda run, step, gather=False, steps=1, **_: (
      eval_step if gather else train_steps(steps)
    ),
  )


def steps_kept(workdir):
  return {int(path.name) for path in (workdir / 'checkpoints').iterdir()}


@pytest.mark.usefixtures('uncompiled')
def test_a_signal_during_the_last_validation_stops_a_recipe_too(
  tmp_path, monkeypatch
):
  def validate(*_):
    # Twice: some schedulers repeat themselves.
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    return {}

  monkeypatch.setattr(validation, 'validate', validate)
  config = make_config(stage='recipe', init__backbone='auto')
  with pytest.raises(Stopped, match='SIGTERM and saved at step 3 of 3'):
    recipe.run(config, tmp_path)
  assert steps_kept(tmp_path / 'pretrain') == {3}
  assert not (tmp_path / 'retrain').exists()


@pytest.mark.usefixtures('uncompiled')
@pytest.mark.parametrize('stop', [2, 4, 5])
def test_a_line_covers_its_steps_whatever_was_saved_or_stopped_between(
  stop, tmp_path, monkeypatch
):
  config = make_config(
    retrain__epochs=3.0, train__log_every=4, train__save_every=1
  )
  real = loop._check_finite

  def interrupted(step, *args):
    real(step, *args)
    if step == stop:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop, '_check_finite', interrupted)
    with pytest.raises(Stopped):
      loop.train(config, 'retrain', tmp_path)
  loop.train(config, 'retrain', tmp_path)
  # There is a validation after steps 3, 6 and 9.
  found = [(e['step'], e['loss']) for e in read_log(tmp_path, 'train')]
  assert found == [(4, 2.5), (8, 6.5), (9, 9.0)]


@pytest.mark.usefixtures('uncompiled')
def test_a_set_without_a_validation_split_is_trained_on_all_the_same(
  tmp_path, data, capsys
):
  del data.splits['validation']
  loop.train(make_config(), 'retrain', tmp_path)
  assert steps_kept(tmp_path) == {3, 6}
  assert 'validation: no radiographs' in capsys.readouterr().out


@pytest.mark.usefixtures('uncompiled')
def test_a_state_that_validates_to_nan_is_not_saved(tmp_path, monkeypatch):
  values = iter([0.5, np.nan])
  monkeypatch.setattr(validation, 'validate', lambda *_: {'loss': next(values)})
  with pytest.raises(
    NonFinite, match=r'step 6: validation loss is nan.*step 3 is kept'
  ):
    loop.train(make_config(), 'retrain', tmp_path)
  assert steps_kept(tmp_path) == {3}


@pytest.mark.usefixtures('uncompiled')
def test_a_workdir_in_which_nothing_was_saved_takes_the_corrected_flags(
  tmp_path,
):
  wrong = make_config(init__backbone=str(tmp_path / 'nowhere'))
  with pytest.raises(UserError, match=r'init\.backbone'):
    loop.train(wrong, 'retrain', tmp_path / 'run')
  loop.train(make_config(), 'retrain', tmp_path / 'run')
  assert steps_kept(tmp_path / 'run') == {3, 6}


@pytest.mark.usefixtures('uncompiled')
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(
  tmp_path, capsys
):
  loop.train(make_config(), 'retrain', tmp_path)
  shutil.rmtree(tmp_path / 'checkpoints' / '6' / 'run')  # half copied
  loop.train(make_config(), 'retrain', tmp_path)
  said = capsys.readouterr()
  assert 'step 6 is damaged' in said.err and 'from step 3' in said.err
  assert 'resumed at step 3' in said.out
  assert steps_kept(tmp_path) == {3, 6}
  assert [e['step'] for e in read_log(tmp_path, 'train')] == [*range(1, 7)]


@pytest.mark.usefixtures('uncompiled')
def test_a_workdir_in_which_another_trains_is_left_as_it_is(tmp_path):
  loop.train(make_config(), 'retrain', tmp_path)
  files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  assert tmp_path / 'lock' not in files
  with workdir_lib.locked(tmp_path):
    with pytest.raises(UserError, match=f'process {os.getpid()} on .* trains'):
      loop.train(make_config(), 'retrain', tmp_path)
    changed = {p: p.stat().st_mtime_ns for p in files if p != tmp_path}
  assert changed.items() <= files.items()


@pytest.mark.usefixtures('uncompiled')
def test_a_run_does_not_go_on_with_another_set(tmp_path, monkeypatch):
  loop.train(make_config(), 'retrain', tmp_path)
  other = fakes.make_store(seed=10)
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: other)
  with pytest.raises(UserError, match=r'config\.data\.path.*not the set'):
    loop.train(make_config(), 'retrain', tmp_path)


@pytest.mark.usefixtures('uncompiled')
def test_a_run_does_not_go_on_with_a_shortened_manifest(tmp_path):
  loop.train(make_config(), 'retrain', tmp_path)
  file = tmp_path / leakage.FILE
  whole = file.read_bytes()
  file.write_bytes(whole[: whole.rindex(b'\n', 0, -2) + 1])
  with pytest.raises(UserError, match=r'training_manifest\.csv is not as'):
    loop.train(make_config(), 'retrain', tmp_path)
  with pytest.raises(UserError, match=r'training_manifest\.csv is not as'):
    checkpoint.load_backbone(tmp_path)
  file.write_bytes(whole)
  loop.train(make_config(), 'retrain', tmp_path)


def test_a_workdir_that_cannot_be_written_is_refused_in_one_line(tmp_path):
  (tmp_path / 'file').touch()
  for workdir in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(UserError, match=f'--workdir={workdir} ') as error:
      loop.train(make_config(), 'retrain', workdir)
    assert '\n' not in str(error.value)


def test_dispatches_begin_at_multiples_of_their_size():
  assert [*loop.dispatches(0, 11, 4)] == [4, 4, 1, 1, 1]
  assert [*loop.dispatches(3, 12, 4)] == [1, 4, 4]  # resumed with another K
  assert [*loop.dispatches(0, 3, 1)] == [1, 1, 1]
  assert [*loop.dispatches(7, 7, 4)] == []


@pytest.mark.usefixtures('uncompiled')
def test_a_run_saves_and_logs_at_the_ends_of_dispatches(tmp_path):
  # Counted by the loop alone: 12 steps of 3 an epoch, 5 a dispatch.
  config = make_config(
    retrain__epochs=4.0, train__steps_per_dispatch=5, train__log_every=4,
    train__save_every=4, train__keep=9, eval__every=0.0,
  )  # fmt: skip
  loop.train(config, 'retrain', tmp_path)
  assert steps_kept(tmp_path) == {5, 10, 12}
  assert [e['step'] for e in read_log(tmp_path)] == [5, 10, 12]


def test_k_steps_a_dispatch_train_as_single_steps_do(tmp_path, capsys):
  make = functools.partial(
    make_config, eval__every=0.0, retrain__epochs=4 / 3, train__save_every=2,
    **SMALL,
  )  # fmt: skip
  loop.train(make(), 'retrain', tmp_path / 'one')
  loop.train(make(train__steps_per_dispatch=2), 'retrain', tmp_path / 'two')
  one, two = (checkpoint.read_state(tmp_path / name) for name in ('one', 'two'))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    one['params'],
    two['params'],
  )
  logged = [
    np.mean([e['loss'] for e in read_log(tmp_path / 'one')][i : i + 2])
    for i in (0, 2)
  ]
  np.testing.assert_allclose(
    [e['loss'] for e in read_log(tmp_path / 'two')], logged, rtol=1e-4
  )
  assert 'steps a dispatch' in capsys.readouterr().out


def test_a_run_goes_on_in_another_mode_on_other_devices(tmp_path):
  def train_to(epochs, workdir, mode, devices):
    config = make_config(
      retrain__epochs=epochs, retrain__optim__schedule='constant',
      parallel__mode=mode, parallel__devices=devices, eval__every=0.0,
      **SMALL, **PLAIN,
    )  # fmt: skip
    config_file = workdir / 'config.json'
    if config_file.exists():  # Only epochs differ, which a user may not change.
      record = json.loads(config_file.read_text())
      record['retrain']['epochs'] = epochs
      config_file.write_text(json.dumps(record))
    loop.train(config, 'retrain', workdir)

  for epochs, mode, devices in (
    (1 / 3, 'pmap', 2), (2 / 3, 'shard_map', 4), (1.0, 'jit', 1),
  ):  # fmt: skip
    train_to(epochs, tmp_path / 'moved', mode, devices)
  train_to(1.0, tmp_path / 'stayed', 'jit', 1)
  moved, stayed = (
    checkpoint.read_state(tmp_path / name) for name in ('moved', 'stayed')
  )
  assert moved['step'] == stayed['step'] == 3
  for part in ('params', 'batch_stats', 'opt_state'):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
      moved[part],
      stayed[part],
    )


@pytest.mark.usefixtures('uncompiled')
def test_a_resume_with_other_dispatches_is_warned_about(tmp_path, capsys):
  loop.train(make_config(), 'retrain', tmp_path)
  assert 'steps_per_dispatch' not in capsys.readouterr().err
  loop.train(make_config(train__steps_per_dispatch=3), 'retrain', tmp_path)
  assert (
    'warning: config.train.steps_per_dispatch is 3 and was 1'
    in capsys.readouterr().err
  )


@pytest.mark.parametrize(
  ('mode', 'placement'),
  [('jit', 'resident'), ('pmap', 'stream'), ('shard_map', 'resident')],
)
def test_nothing_reaches_the_devices_but_what_the_loop_sends(
  mode, placement, tmp_path, monkeypatch
):
  # The guard lets device_put through and no other transfer. (What comes back
  # from a CPU device is no transfer to JAX; the next test is about that.)
  real = loop._loop

  def guarded(*args, **kwargs):
    with jax.transfer_guard('disallow'):
      real(*args, **kwargs)

  monkeypatch.setattr(loop, '_loop', guarded)
  config = make_config(
    data__render='device', data__placement=placement, parallel__mode=mode,
    parallel__devices=1 if mode == 'jit' else 4,
    retrain__epochs=1.0, train__steps_per_dispatch=2,
    **SMALL, **({} if mode == 'jit' else PLAIN),
  )  # fmt: skip
  loop.train(config, 'retrain', tmp_path)
  # Two steps in one dispatch, one alone, and a validation.
  assert read_log(tmp_path, 'validation')[0]['step'] == 3


def test_a_dispatch_is_read_after_the_next_one_is_sent(tmp_path, monkeypatch):
  events = []

  class Program:
    def lower(self, *_):
      return self

    def compile(self):
      return self

    def __call__(self, state, batch, images):
      events.append(f'send {len([e for e in events if "send" in e]) + 1}')
      return state, {'loss': np.float32(1), 'gradient_norm': np.float32(1)}

  class Get:
    count = 0

    def __call__(self, value):
      Get.count += 1
      events.append(f'read {Get.count}')
      return value

  monkeypatch.setattr(programs, 'compile_step', lambda *_, **__: Program())
  monkeypatch.setattr(loop.jax, 'device_get', Get())
  real = batches.place_dispatch

  def place_dispatch(run, host):
    events.append('batch')
    return real(run, host)

  monkeypatch.setattr(batches, 'place_dispatch', place_dispatch)
  config = make_config(eval__every=0.0)
  loop.train(config, 'retrain', tmp_path)
  assert events == [
    'batch', 'send 1', 'batch', 'send 2', 'batch', 'read 1', 'send 3',
    'batch', 'read 2', 'send 4', 'batch', 'read 3', 'send 5', 'batch',
    'read 4', 'send 6', 'read 5', 'read 6',
  ]  # fmt: skip


# What follows runs the real command in processes of its own.

FLAGS = (
  '--config=configs/retrain.py',
  '--config.data.phantom.count=60',
  '--config.data.store_size=64',
  '--config.data.image_size=48',
  '--config.model.stage_sizes=(1,)',
  '--config.model.width=4',
  "--config.mgacr.stages=('stage1',)",
  '--config.init.backbone=None',
  '--config.retrain.batch_size=8',
  '--config.retrain.epochs=3',
  '--config.train.save_every=4',
  '--config.train.log_every=1',
)

# Sends a signal from inside, so that the moment is exact.
DRIVER = """
import os, signal, sys
from absl import app
from dpjax import main
from dpjax.config import flags
from dpjax.training import checkpoint, loop
where, number = sys.argv.pop(1), getattr(signal, sys.argv.pop(1))
done = 0

def after(function, nth):
  def wrapped(*args, **kwargs):
    global done
    result = function(*args, **kwargs)
    done += 1
    if done == nth:
      os.kill(os.getpid(), number)
    return result
  return wrapped

if where == 'step':
  loop._check_finite = after(loop._check_finite, 10)
elif where == 'save':
  checkpoint.Checkpoints.save = after(checkpoint.Checkpoints.save, 3)
app.run(main.main, flags_parser=flags.parse_flags)
"""


@pytest.fixture(scope='module')
def phantom(tmp_path_factory):
  return tmp_path_factory.mktemp('data') / 'phantom'


def run_main(workdir, phantom, where='never', number='SIGKILL'):
  return subprocess.run(
    [
      sys.executable,
      '-c',
      DRIVER,
      where,
      number,
      *FLAGS,
      f'--config.data.path={phantom}',
      f'--workdir={workdir}',
    ],
    cwd=ROOT,
    env=children.environment(),
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )


@pytest.fixture(scope='module')
def untouched(phantom, tmp_path_factory):
  """The final state of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('untouched')
  result = run_main(workdir, phantom)
  assert result.returncode == 0, result.stderr
  assert 'preparing 60 phantom' in result.stdout
  return max(map(int, os.listdir(workdir / 'checkpoints'))), workdir


@pytest.mark.slow
@pytest.mark.parametrize(
  ('where', 'number', 'status'),
  [
    ('step', 'SIGKILL', -signal.SIGKILL),
    ('save', 'SIGKILL', -signal.SIGKILL),
    ('step', 'SIGTERM', 143),
  ],
)
def test_a_run_killed_at_any_moment_ends_bit_identical(
  where, number, status, phantom, untouched, tmp_path
):
  last, reference = untouched
  killed = run_main(tmp_path, phantom, where, number)
  assert killed.returncode == status, killed.stderr
  saved = [int(p.name) for p in (tmp_path / 'checkpoints').iterdir()
           if p.name.isdigit()]  # fmt: skip
  assert max(saved, default=0) < last
  if number == 'SIGTERM':
    assert 'saved at step' in killed.stdout and not killed.stderr.count('Trace')
    assert max(saved) == 11  # the step after the one that was read
  again = run_main(tmp_path, phantom)
  assert again.returncode == 0, again.stderr
  assert 'resumed at step' in again.stdout
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoint.read_state(tmp_path),
    checkpoint.read_state(reference),
  )
  # Nothing is logged twice, nothing is missing.
  steps = [e['step'] for e in read_log(tmp_path, 'train')]
  assert steps == list(range(1, last + 1))


@pytest.mark.slow
@pytest.mark.usefixtures('untouched', 'uncompiled')
@pytest.mark.parametrize('how', ['overwritten', 'replaced'])
def test_a_set_that_changes_under_a_run_ends_it_in_a_line_and_is_not_saved(
  how, phantom, tmp_path, monkeypatch
):
  path = pathlib.Path(shutil.copytree(phantom, tmp_path / 'set'))
  monkeypatch.setattr(prepare, 'open_prepared', lambda _: store_lib.load(path))
  real = loop._check_finite

  def changed(step, *args):
    real(step, *args)
    if step == 2 and how == 'overwritten':
      for file in path.glob('*.array_record*'):
        file.write_bytes(bytes(file.stat().st_size))
    elif step == 2:
      shutil.rmtree(path)
      shutil.copytree(phantom, path, copy_function=shutil.copyfile)

  monkeypatch.setattr(loop, '_check_finite', changed)
  config = make_config(
    retrain__epochs=8.0, data__store_size=64, eval__every=0.0,
    train__save_every=3,
  )  # fmt: skip
  with pytest.raises(UserError, match='prepare it again') as error:
    loop.train(config, 'retrain', tmp_path / 'run')
  assert '\n' not in str(error.value) and str(path) in str(error.value)
  assert not checkpoint.has_checkpoint(tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.usefixtures('untouched', 'uncompiled')
def test_a_set_in_device_memory_is_not_needed_after_the_start(
  phantom, tmp_path, monkeypatch
):
  path = pathlib.Path(shutil.copytree(phantom, tmp_path / 'set'))
  monkeypatch.setattr(prepare, 'open_prepared', lambda _: store_lib.load(path))
  real = loop._check_finite

  def removed(step, *args):
    real(step, *args)
    shutil.rmtree(path, ignore_errors=True)

  monkeypatch.setattr(loop, '_check_finite', removed)
  config = make_config(
    retrain__epochs=2.0, data__store_size=64, data__placement='resident',
    data__render='device', eval__every=0.0, train__save_every=3,
  )  # fmt: skip
  loop.train(config, 'retrain', tmp_path / 'run')
  assert not path.exists() and checkpoint.has_checkpoint(tmp_path / 'run')


@pytest.fixture
def small_disk(tmp_path):
  """A file system on which one checkpoint has room, and how to enlarge it."""
  folder = tmp_path / 'disk'
  folder.mkdir()

  def mount(options):
    return subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder],
      capture_output=True, check=False,
    )  # fmt: skip

  if shutil.which('mount') is None or mount('size=250k').returncode:
    pytest.skip('mounting a tmpfs takes root')
  yield folder, lambda: mount('remount,size=50m')
  subprocess.run(['umount', folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
  small_disk, phantom, untouched
):
  folder, enlarge = small_disk
  full = run_main(folder, phantom)
  assert full.returncode == 2, full.stderr
  (line,) = (x for x in full.stderr.splitlines() if x.startswith('error: '))
  assert full.stderr.strip().endswith(line)  # and nothing behind it
  assert f'{folder}/checkpoints: the checkpoint cannot be written' in line
  assert 'No space left on device' in line
  assert 'Traceback' not in full.stderr
  assert enlarge().returncode == 0
  again = run_main(folder, phantom)
  assert again.returncode == 0, again.stderr
  assert 'resumed at step' in again.stdout
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoint.read_state(folder),
    checkpoint.read_state(untouched[1]),
  )
