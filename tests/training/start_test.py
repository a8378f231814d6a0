"""Where a run starts: fine-tuning from a stage II, and what stays of it."""

import contextlib
import csv
import shutil

import jax
import numpy as np
import pytest

from dpjax import leakage, prepare
from dpjax.config import record as record_lib
from dpjax.errors import UserError
from dpjax.evaluation import evaluate, files
from dpjax.training import build, checkpoint, loop
from tests import fakes

STORE = fakes.make_store()


@pytest.fixture(autouse=True)
def data(monkeypatch):
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: STORE)


def make_config(**changes):
  return fakes.make_config(
    **{
      'init__backbone': 'None',
      'model__stage_sizes': (1,),
      'model__width': 4,
      'mgacr__stages': ('stage1',),
      'retrain__epochs': 1.0,
      'retrain__average': 0.5,
      'finetune__epochs': 2.0,
      'evaluate__resamples': 20,
      'loss__classification': 'ce',
      **changes,
    }
  )


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  """A folder with retrain/ and, from there, finetune/ after 6 steps."""
  folder = tmp_path_factory.mktemp('recipe')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare, 'open_prepared', lambda config: STORE)
    loop.train(make_config(), 'retrain', folder / 'retrain')
    finetune(folder)
  return folder


def finetune(folder, name='finetune', **changes):
  config = make_config(init__backbone=str(folder / 'retrain'), **changes)
  loop.train(config, 'finetune', folder / name)


def test_fine_tuning_leaves_all_but_the_classifier_as_it_was_to_the_bit(recipe):
  """The network that stage II was evaluated with: here an average."""
  before = checkpoint.read_state(recipe / 'retrain')['average']
  after = checkpoint.read_state(recipe / 'finetune')
  assert after['step'] == 6 and 'average' not in after
  old = before['params']['backbone'].pop('fc')
  new = after['params']['backbone'].pop('fc')
  assert (old['kernel'] != new['kernel']).any()
  assert new['bias'].any()  # Fresh classifiers have none.
  assert 'attention' in after['params'] and after['batch_stats']['attention']
  for part in 'params', 'batch_stats':
    jax.tree.map(np.testing.assert_array_equal, after[part], before[part])


def test_fine_tuning_of_everything_goes_on_from_the_classifier(recipe):
  config = make_config(finetune__freeze=False)
  backbone, attention = checkpoint.load_stage_two(
    recipe / 'retrain', classifier=not config.finetune.freeze
  )
  state = checkpoint.read_state(recipe / 'retrain')['average']
  for part in 'params', 'batch_stats':
    jax.tree.map(
      np.testing.assert_array_equal, backbone[part], state[part]['backbone']
    )
    jax.tree.map(
      np.testing.assert_array_equal, attention[part], state[part]['attention']
    )


def test_a_fine_tuning_cut_off_ends_as_if_it_had_not_been(recipe, tmp_path):
  shutil.copytree(recipe, tmp_path / 'r')
  half = tmp_path / 'r' / 'finetune'
  shutil.rmtree(half / 'checkpoints' / '6')  # It was saved at 3 and at 6.
  finetune(tmp_path / 'r')
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoint.read_state(half),
    checkpoint.read_state(recipe / 'finetune'),
  )


def test_a_stage_two_with_an_average_goes_on_with_it(tmp_path):
  """To the bit; and the average is none of the weights."""
  config = make_config(retrain__epochs=2.0)
  loop.train(config, 'retrain', tmp_path / 'whole')
  shutil.copytree(tmp_path / 'whole', tmp_path / 'half')
  shutil.rmtree(tmp_path / 'half' / 'checkpoints' / '6')
  loop.train(config, 'retrain', tmp_path / 'half')
  whole, half = (
    checkpoint.read_state(tmp_path / name) for name in ('whole', 'half')
  )
  jax.tree.map(np.testing.assert_array_equal, whole, half)
  kernel, average = (
    of['params']['backbone']['conv1']['kernel']
    for of in (whole, whole['average'])
  )
  assert (average != kernel).all()


def test_the_manifest_of_a_fine_tuning_holds_the_images_of_stage_two(recipe):
  with open(recipe / 'finetune/training_manifest.csv', newline='') as file:
    stages = [row['stage'] for row in csv.DictReader(file)]
  count = len(STORE.split('train'))
  assert stages == ['retrain'] * count + ['finetune'] * count
  record = record_lib.load(recipe / 'finetune/config.json')
  assert record.stage == 'finetune'
  assert record.init.backbone == str(recipe / 'retrain')


def test_the_recipes_folder_is_evaluated_by_its_last_stage(recipe):
  assert files.workdir_of(recipe) == recipe / 'finetune'
  result = evaluate.evaluate(make_config(), recipe)
  assert (recipe / 'finetune/evaluation.json').is_file()
  assert result['step'] == 6
  assert 'att_pos/stage1' in result['localisation']  # by stage II's attention


def begun(folder, stage, **changes):
  """A run that has saved its first state and no more."""
  run = build.build(make_config(**changes), stage, STORE)
  state = build.initial_state(run, build.make_optimizer(run, 1)[0])
  with contextlib.closing(checkpoint.Checkpoints(folder)) as saved:
    saved.save(1, state, {}, {})
  leakage.write(folder, stage, run.records)
  return folder


def test_fine_tuning_from_what_is_no_stage_two_is_refused(recipe, tmp_path):
  plain = {'mgacr__attention': False, 'mgacr__features': False}
  for source, changes, said in (
    (tmp_path / 'nowhere', {}, 'holds no checkpoint'),
    (recipe / 'retrain', {'model__width': 8}, 'give both stages the same'),
    (
      begun(tmp_path / 'plain', 'retrain', **plain),
      {},
      'trained without attention',
    ),
    (begun(tmp_path / 'one', 'pretrain'), {}, 'without a classifier'),
  ):
    config = make_config(init__backbone=str(source), **changes)
    with pytest.raises(UserError, match=said) as error:
      loop.train(config, 'finetune', tmp_path / 'run')
    assert str(error.value).startswith(f'config.init.backbone: {source}')
