"""A finished run goes on with more epochs, by a schedule of its own."""

import json

import numpy as np
import pytest

from dpjax import prepare
from dpjax.errors import Stopped, UserError
from dpjax.training import checkpoint, loop, optim
from tests import fakes


@pytest.fixture(autouse=True)
def data(monkeypatch):
  store = fakes.make_store()  # 48 for training: 3 steps an epoch
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: store)


def make_config(epochs):
  return fakes.make_config(
    init__backbone='None', retrain__epochs=epochs, model__stage_sizes=(1,),
    model__width=4, mgacr__attention=False, mgacr__features=False,
    mgacr__stages=('stage1',), train__log_every=1, eval__every=0.0,
    stage='retrain',
  )  # fmt: skip


def log(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_what_is_left_has_a_schedule_of_its_own_and_a_kill_does_not_move_it(
  tmp_path, monkeypatch, capsys
):
  loop.train(make_config(1.0), 'retrain', tmp_path)
  with pytest.raises(UserError, match=r'another config.*epochs: 1\.0 -> 3\.0'):
    loop.train(make_config(3.0), 'retrain', tmp_path)
  # Stopped in the middle, it goes on by the same command or without the flag.
  with monkeypatch.context() as patch:
    asked = iter([None] * 2 + ['SIGTERM'] * 9)
    patch.setattr(loop.signals, 'received', lambda: next(asked))
    patch.setattr(loop.signals, 'check', lambda: None)
    with pytest.raises(Stopped):
      loop.train(make_config(3.0), 'retrain', tmp_path, extend=True)
  assert checkpoint.newest_step(tmp_path) == 6
  loop.train(make_config(3.0), 'retrain', tmp_path)
  said = capsys.readouterr().out.splitlines()[-2]
  assert 'resumed at step 6, to step 9' in said
  assert said.endswith('the schedule drawn anew from step 3')
  assert checkpoint.newest_step(tmp_path) == 9
  settings = dict(make_config(1.0).retrain.optim)
  wanted = []
  for steps in (3, 6):
    _, rate = optim.make(**(settings | {'steps': steps}))
    wanted += [float(rate(i)) for i in range(steps)]
  rates = [line['learning_rate'] for line in log(tmp_path)]
  np.testing.assert_allclose(rates, wanted, rtol=1e-5)
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['retrain']['epochs'] == 3.0
  assert config['retrain']['optim']['begin'] == 3


def test_what_is_not_finished_or_not_there_cannot_be_extended(
  tmp_path, monkeypatch
):
  with pytest.raises(UserError, match='holds no run to go on with'):
    loop.train(make_config(2.0), 'retrain', tmp_path / 'new', extend=True)
  with monkeypatch.context() as patch:
    patch.setattr(loop.signals, 'received', lambda: 'SIGTERM')
    patch.setattr(loop.signals, 'check', lambda: None)
    with pytest.raises(Stopped):
      loop.train(make_config(1.0), 'retrain', tmp_path)
  with pytest.raises(UserError, match='at step 1 of 3; finish it first'):
    loop.train(make_config(2.0), 'retrain', tmp_path, extend=True)
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['retrain']['epochs'] == 1.0


def test_a_run_whose_last_checkpoint_is_damaged_is_not_finished(
  tmp_path, capsys
):
  config = make_config(1.0)
  config.train.save_every = 1
  loop.train(config, 'retrain', tmp_path)
  (tmp_path / 'checkpoints/3/_CHECKPOINT_METADATA').write_text('')
  more = make_config(3.0)
  with pytest.raises(UserError, match='at step 2 of 3; finish it first'):
    loop.train(more, 'retrain', tmp_path, extend=True)
  # Finished anew by its own command, it can be extended.
  loop.train(config, 'retrain', tmp_path)
  loop.train(more, 'retrain', tmp_path, extend=True)
  assert min(line['learning_rate'] for line in log(tmp_path)) > 0
