"""The order of the stages, and where stage II starts."""

import pathlib
import shutil

import cv2
import numpy as np
import pytest

from dpjax import recipe
from dpjax.config import record as record_lib
from dpjax.data import store
from dpjax.errors import Stopped, UserError
from dpjax.evaluation import evaluate, text
from dpjax.training import loop
from tests import fakes


@pytest.fixture(autouse=True)
def calls(monkeypatch, tmp_path):
  """What was called, in order, in a working directory of its own."""
  calls = []

  def fake_train(config, stage, workdir, extend=False):
    calls.append((stage, str(workdir), config.init.backbone))

  def fake_evaluate(config, workdir):
    del config
    calls.append(('evaluate', str(workdir)))
    return {'intervals': {}}

  monkeypatch.setattr(loop, 'train', fake_train)
  monkeypatch.setattr(evaluate, 'evaluate', fake_evaluate)
  monkeypatch.setattr(text, 'format_table', lambda *_: 'the table')
  monkeypatch.chdir(tmp_path)
  return calls


def make_config(stage, backbone='auto'):
  return fakes.make_config(stage=stage, init__backbone=backbone)


def checkpointed(workdir, backbone=None):
  """Makes a folder that passes for a run that has begun, and has saved."""
  folder = pathlib.Path(workdir)
  (folder / 'checkpoints' / '3').mkdir(parents=True)
  record_lib.save(make_config('retrain', backbone), folder / 'config.json')


def test_a_set_that_is_not_there_is_prepared_before_anything_is_recorded(
  monkeypatch, tmp_path
):
  rng = np.random.default_rng(0)
  (tmp_path / 'raw').mkdir()
  rows = ['image,label,patient_id']
  for i in range(12):
    image = rng.integers(0, 256, (64, 64)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / f'raw/{i}.png'), image)
    rows.append(f'{i}.png,{i % 2},{i}')
  (tmp_path / 'raw/labels.csv').write_text('\n'.join(rows))
  config = fakes.make_config(
    stage='retrain',
    data__layout='csv',
    data__source=str(tmp_path / 'raw'),
    data__path=str(tmp_path / 'set'),
    data__store_size=64,
    data__workers=1,
  )
  trained = []
  monkeypatch.setattr(loop, 'train', lambda config, *_: trained.append(config))
  for _ in range(2):  # The run that goes on has the same config as the first.
    recipe.run(config, 'here')
  assert len(store.load(tmp_path / 'set').split('test')) >= 2
  assert [c.data.csv.patient for c in trained] == ['patient_id'] * 2


def test_pretraining_is_one_stage(calls):
  recipe.run(make_config('pretrain'), 'here')
  assert calls == [('pretrain', 'here', None)]


def test_the_recipe_pretrains_retrains_from_that_and_evaluates(calls, capsys):
  recipe.run(make_config('recipe'), 'here')
  assert calls == [
    ('pretrain', 'here/pretrain', None),
    ('retrain', 'here/retrain', 'here/pretrain'),
    ('evaluate', 'here/retrain'),
  ]
  assert 'the table' in capsys.readouterr().out


@pytest.mark.parametrize('backbone', ['auto', 'None'])
def test_the_recipe_fine_tunes_its_stage_two_and_evaluates_that(
  backbone, calls
):
  config = make_config('recipe', backbone)
  config.finetune.epochs = 4.0
  recipe.run(config, 'here')
  assert calls[-3:] == [
    (
      'retrain',
      'here/retrain',
      'here/pretrain' if backbone == 'auto' else None,
    ),
    ('finetune', 'here/finetune', 'here/retrain'),
    ('evaluate', 'here/finetune'),
  ]
  assert len(calls) == (4 if backbone == 'auto' else 3)


def test_a_recipe_that_was_fine_tuned_is_not_one_that_is_not(calls):
  """Who looks into its folder would go on taking the fine-tuned run."""
  checkpointed('here/finetune')
  with pytest.raises(UserError, match=r'here/finetune holds a run.*--workdir'):
    recipe.run(make_config('recipe'), 'here')
  assert not calls
  shutil.rmtree('here/finetune')
  recipe.run(make_config('recipe'), 'here')
  assert calls[-1] == ('evaluate', 'here/retrain')


def test_a_backbone_that_stage_i_would_not_start_from_is_refused(calls):
  with pytest.raises(UserError, match=r'init.backbone.*stage=pretrain'):
    recipe.run(make_config('pretrain', 'weights.npz'), 'here')
  assert not calls


@pytest.mark.parametrize('backbone', ['None', 'weights.npz', 'runs/other'])
def test_the_recipe_skips_a_stage_whose_backbone_nobody_would_use(
  backbone, calls
):
  recipe.run(make_config('recipe', backbone), 'here')
  want = None if backbone == 'None' else backbone
  assert calls == [
    ('retrain', 'here/retrain', want),
    ('evaluate', 'here/retrain'),
  ]


def test_a_recipe_stopped_in_a_stage_starts_no_other(calls, monkeypatch):
  def stopped(*_):
    raise Stopped('stopped')

  monkeypatch.setattr(loop, 'train', stopped)
  with pytest.raises(Stopped):
    recipe.run(make_config('recipe'), 'here')
  assert not calls


def test_auto_is_scratch_without_a_pretrained_run_and_says_so(calls, capsys):
  recipe.run(make_config('retrain'), 'here')
  assert calls == [('retrain', 'here', None)]
  assert 'runs/pretrain' in capsys.readouterr().out


def test_auto_is_the_pretrained_run_where_there_is_one(calls):
  checkpointed('runs/pretrain')
  recipe.run(make_config('retrain'), 'here')
  assert calls == [('retrain', 'here', 'runs/pretrain')]


def test_auto_stays_what_it_was_when_the_run_began(calls):
  checkpointed('here', backbone=None)
  checkpointed('runs/pretrain')  # came later
  recipe.run(make_config('retrain'), 'here')
  assert calls == [('retrain', 'here', None)]


def test_a_run_that_has_saved_nothing_has_not_begun(calls):
  checkpointed('here', backbone=None)
  (pathlib.Path('here') / 'checkpoints' / '3').rmdir()
  checkpointed('runs/pretrain')
  recipe.run(make_config('retrain'), 'here')
  assert calls == [('retrain', 'here', 'runs/pretrain')]


@pytest.mark.parametrize('backbone', ['None', 'elsewhere'])
def test_a_named_backbone_is_taken_whatever_is_there(backbone, calls):
  checkpointed('runs/pretrain')
  recipe.run(make_config('retrain', backbone), 'here')
  want = None if backbone == 'None' else backbone
  assert calls == [('retrain', 'here', want)]


@pytest.mark.parametrize('stage', ['pretrain', 'retrain', 'recipe'])
def test_the_callers_config_stays_as_it_is(stage):
  config = make_config(stage)
  before = config.to_json()
  recipe.run(config, 'here')
  assert config.to_json() == before
