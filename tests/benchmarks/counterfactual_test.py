"""benchmarks/counterfactual.py on a recorded run."""

import pathlib
import re
import tarfile

import pytest

from benchmarks import counterfactual
from dpjax import prepare
from dpjax.config import record

RECORDED = pathlib.Path(__file__).parents[1] / 'recorded/faa881e.tar.xz'


@pytest.mark.slow
def test_log_odds_and_maps_of_each_stage_are_told(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  with tarfile.open(RECORDED) as recorded:
    recorded.extractall(filter='data')
  workdir = pathlib.Path('runs/rec/retrain')
  config = record.load(workdir / 'config.json')
  prepare.prepare(config)
  capsys.readouterr()
  counterfactual.describe(workdir)
  head, odds, *stages = capsys.readouterr().out.splitlines()
  assert head == str(workdir)
  present, absent, difference = map(
    float, re.findall(r'(?:: |, |difference )([+-]\d+\.\d\d)', odds)[:3]
  )
  assert abs(present - absent - difference) <= 0.015  # three rounded numbers
  assert len(stages) == 2
  for number, line in enumerate(stages, 1):
    assert line.startswith(f'  stage{number}: in box, Grad-CAM ')
    shares = [float(share) for share in re.findall(r'CAM (\d\.\d+)', line)]
    assert len(shares) == 2 and all(0 <= share <= 1 for share in shares)
