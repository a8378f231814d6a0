"""A run is opened by its own config, whatever machine it was trained on."""

import json

import pytest

from dpjax.config import fields
from dpjax.config import record as record_lib
from dpjax.config import resolve as resolve_lib
from dpjax.evaluation import run_config
from tests import fakes


@pytest.fixture
def workdir(tmp_path):
  """A run of eight GPUs, as a recipe has it."""
  config = fakes.make_config(loss__beta=0.5)
  config.data.render, config.model.dtype = 'device', 'bfloat16'
  config.parallel.devices = 64
  (tmp_path / 'retrain').mkdir()
  record_lib.save(config, tmp_path / 'retrain' / 'config.json')
  return tmp_path


def test_the_runs_fields_are_its_own_and_the_machines_stand_open(workdir):
  found = run_config.get_config(str(workdir))
  recorded = record_lib.load(workdir / 'retrain' / 'config.json')
  declared = fields.table()
  flat, recorded = fields.flatten(found), fields.flatten(recorded)
  for name, field in declared.items():
    assert flat[name] == (field.default if field.machine else recorded[name])
  here = resolve_lib.resolve(found, num_devices=2, platform='cpu')
  assert (here.parallel.devices, here.model.dtype) == (2, 'float32')


def test_a_run_of_float32_is_never_opened_in_less(workdir):
  file = workdir / 'retrain' / 'config.json'
  record = json.loads(file.read_text())
  record['model']['dtype'] = 'float32'
  file.write_text(json.dumps(record))
  assert run_config.get_config(str(workdir)).model.dtype == 'float32'


def test_without_a_run_there_are_the_defaults_and_a_method_has_no_stage(
  workdir,
):
  declared = {name: f.default for name, f in fields.table().items()}
  assert fields.flatten(run_config.get_config('/nowhere')) == declared
  file = workdir / 'retrain' / 'config.json'
  record = json.loads(file.read_text())
  file.write_text(json.dumps(record | {'stage': 'classical'}))
  found = run_config.get_config(str(workdir))
  assert (found.stage, found.loss.beta) == (declared['stage'], 0.5)
