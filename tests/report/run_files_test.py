"""What a report reads of the stages before a run."""

import json

import pytest

from dpjax.config import record as record_lib
from dpjax.report import report_data, run_files
from tests import fakes


def write_stages(root, places):
  """Three stages of a run, each with one line of a log: its number."""
  config = fakes.make_config(finetune__epochs=4.0)
  before = None
  stages = 'pretrain', 'retrain', 'finetune'
  for step, (stage, place) in enumerate(zip(stages, places, strict=True)):
    folder = root / place
    folder.mkdir(parents=True)
    config.stage, config.init.backbone = stage, before
    record_lib.save(config, folder / 'config.json')
    line = {'step': step, 'epoch': 1.0, 'split': 'train', 'loss': 1.0}
    (folder / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
    before = str(folder)


def test_a_fine_tuned_run_has_the_logs_of_all_its_stages(tmp_path):
  write_stages(tmp_path / 'mine', ('pretrain', 'retrain', 'finetune'))
  (run,) = report_data.load_runs([tmp_path / 'mine'])
  assert run.workdir == tmp_path / 'mine/finetune' and run.name == 'mine'
  logs = run.pretraining, run.log, run.finetuning
  assert [log[0]['step'] for log in logs] == [0, 1, 2]
  two = run_files.read(tmp_path / 'mine/retrain', 'two')
  assert [two.pretraining[0]['step'], two.log[0]['step']] == [0, 1]
  assert two.finetuning == []


def test_a_run_of_a_study_that_was_moved_has_the_logs_of_all_its_stages(
  tmp_path,
):
  places = 'pretrain-1f2e3d4c', 'plain/retrain', 'weighted/finetune'
  write_stages(tmp_path / 'seed7/study/seed0', places)
  (tmp_path / 'seed7/study').rename(tmp_path / 'moved')
  run = run_files.read(tmp_path / 'moved/seed0/weighted/finetune', 'weighted')
  logs = run.pretraining, run.log, run.finetuning
  assert [log[0]['step'] for log in logs] == [0, 1, 2]


@pytest.mark.parametrize(
  ('start', 'found'),
  [
    ('runs/pretrain', True),
    ('before/pretrain', True),  # and moved since
    ('imagenet.safetensors', False),
    ('gone.safetensors', False),
    ('other/pretrain', False),  # there, and without a log
    ('runs/older', False),  # a stage II
  ],
)
def test_stage_one_is_the_one_that_the_run_started_from(start, found, tmp_path):
  (tmp_path / 'imagenet.safetensors').touch()
  (tmp_path / 'other/pretrain').mkdir(parents=True)
  config = fakes.make_config()
  for name, stage, backbone in (
    ('pretrain', 'pretrain', None),
    ('older', 'retrain', None),
    ('retrain', 'retrain', str(tmp_path / start)),
  ):
    folder = tmp_path / 'runs' / name
    folder.mkdir(parents=True)
    config.stage, config.init.backbone = stage, backbone
    record_lib.save(config, folder / 'config.json')
    line = {'step': 7, 'epoch': 1.0, 'split': 'train', 'loss': 1.0}
    (folder / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  run = run_files.read(tmp_path / 'runs/retrain', 'mine')
  assert run.log and bool(run.pretraining) == found
