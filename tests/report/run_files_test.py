"""What a report reads of the stages before a run."""

import json

from dpjax.config import record as record_lib
from dpjax.report import report_data, run_files
from tests import fakes


def test_a_fine_tuned_run_has_the_logs_of_all_its_stages(tmp_path):
  config = fakes.make_config(finetune__epochs=4.0)
  before = None
  for step, stage in enumerate(('pretrain', 'retrain', 'finetune')):
    folder = tmp_path / 'mine' / stage
    folder.mkdir(parents=True)
    config.stage, config.init.backbone = stage, before
    record_lib.save(config, folder / 'config.json')
    line = {'step': step, 'epoch': 1.0, 'split': 'train', 'loss': 1.0}
    (folder / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
    before = str(folder)
  (run,) = report_data.load_runs([tmp_path / 'mine'])
  assert run.workdir == tmp_path / 'mine/finetune' and run.name == 'mine'
  logs = run.pretraining, run.log, run.finetuning
  assert [log[0]['step'] for log in logs] == [0, 1, 2]
  two = run_files.read(tmp_path / 'mine/retrain', 'two')
  assert [two.pretraining[0]['step'], two.log[0]['step']] == [0, 1]
  assert two.finetuning == []
