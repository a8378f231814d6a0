"""A workdir: whose it is, and what a run goes on with there."""

import json

import pytest

from dpjax.errors import UserError
from dpjax.training import workdir
from tests import fakes


def begin(folder, stage='retrain', **data):
  """A run on record in `folder`; data.NAME=None: before there was the field."""
  record = fakes.make_config(stage=stage).to_dict()
  record['data'] |= {k: v for k, v in data.items() if v is not None}
  for name in (k for k, v in data.items() if v is None):
    del record['data'][name]
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(record))
  return folder


def save_step(folder):
  (folder / 'checkpoints' / '3').mkdir(parents=True)


@pytest.mark.parametrize('began', [None, 'grain', 'numpy'])
def test_a_run_goes_on_in_the_order_in_which_it_began(tmp_path, began):
  folder = begin(tmp_path / 'run', shuffle=began)
  config = fakes.make_config(stage='retrain')
  # Nothing of it is there yet, so it may as well begin in another one.
  assert workdir.as_begun(folder, config).data.shuffle == 'auto'
  save_step(folder)
  found = workdir.as_begun(folder, config).data.shuffle
  assert found == (began or 'grain')
  assert config.data.shuffle == 'auto'
  workdir.claim_workdir(folder, config, 'retrain')


def test_another_order_than_the_one_it_began_in_is_refused(tmp_path):
  folder = begin(tmp_path / 'run', shuffle=None)
  save_step(folder)
  config = fakes.make_config(stage='retrain', data__shuffle='numpy')
  with pytest.raises(UserError, match=r"data\.shuffle: 'grain' -> 'numpy'"):
    workdir.claim_workdir(folder, config, 'retrain')
  same = fakes.make_config(stage='retrain', data__shuffle='grain')
  workdir.claim_workdir(folder, same, 'retrain')


def test_a_new_run_has_no_order_to_go_on_in(tmp_path):
  config = fakes.make_config()
  assert workdir.as_begun(tmp_path, config).data.shuffle == 'auto'


@pytest.mark.parametrize('name', ['set [2026]', 'a*', 'a?', 'a\\b'])
def test_a_path_in_which_checkpoints_would_be_lost_is_refused(tmp_path, name):
  config = fakes.make_config(stage='retrain')
  (tmp_path / name).mkdir()
  # By a name of its own too: what it stands for counts.
  (tmp_path / 'link').symlink_to(tmp_path / name)
  for folder in (tmp_path / name / 'run', tmp_path / 'link' / 'run'):
    with pytest.raises(UserError, match='no checkpoint can be kept') as error:
      workdir.claim_workdir(folder, config, 'retrain')
    assert name in str(error.value) and '\n' not in str(error.value)
    assert not folder.exists()


def test_a_path_of_other_signs_is_not(tmp_path):
  folder = tmp_path / "ü 2026], {a}#b%20c'd" / 'run'
  workdir.claim_workdir(folder, fakes.make_config(stage='retrain'), 'retrain')
  assert folder.is_dir()
