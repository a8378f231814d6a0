"""Both studies with real training, on networks as small as can be."""

import json

import numpy as np
import pytest

from dpjax import prepare
from dpjax.studies import ablate, compare
from dpjax.training import loop
from tests.studies import fake_runs


@pytest.fixture(autouse=True)
def stages(monkeypatch):
  """The stages that are trained, in order."""
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: fake_runs.STORE)
  stages = []
  real = loop.train

  def counted(config, stage, workdir):
    stages.append(stage)
    real(config, stage, workdir)

  monkeypatch.setattr(loop, 'train', counted)
  return stages


def make_config():
  return fake_runs.make_config(
    ablate__seeds=(0,), compare__methods=('knn', 'recipe'),
    pretrain__batch_size=12, retrain__batch_size=12,
  )  # fmt: skip


@pytest.mark.slow
def test_both_studies_train_share_and_resume_for_real(tmp_path, stages):
  config = make_config()
  ablate.run_ablation(config, tmp_path, fake_runs.resolve)
  assert stages == ['pretrain', 'retrain', 'retrain']
  table = json.loads((tmp_path / 'ablation.json').read_text())
  for row in table['rows']:
    assert row['scores']['accuracy']['num_runs'] == 1
    assert row['scores']['cam/energy_in_box']['mean'] is not None
    assert np.isfinite(row['seconds']['training'])
  difference = table['rows'][1]['to_above']['accuracy']
  assert difference['num_runs'] == 1 and len(difference['image_interval']) == 2
  assert (tmp_path / 'fig7.png').stat().st_size

  # A comparison in the same workdir takes the stage I that is there.
  compare.run_comparison(config, tmp_path, fake_runs.resolve)
  assert stages == ['pretrain', 'retrain', 'retrain', 'retrain']
  ablate.run_ablation(config, tmp_path, fake_runs.resolve)
  compare.run_comparison(config, tmp_path, fake_runs.resolve)
  assert len(stages) == 4
