"""A study with --jobs, by real processes, is the study in a row.

And what its runs say together.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import children

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = str(ROOT / 'configs' / 'recipe.py')
CONFIG = f"""
import runpy

def get_config():
  config = runpy.run_path({RECIPE!r})['get_config']()
  config.update_from_flattened_dict({{
    'data.phantom.count': 60, 'data.store_size': 48, 'data.image_size': 32,
    'model.stage_sizes': (1,), 'model.width': 4, 'mgacr.stages': ('stage1',),
    'retrain.batch_size': 8, 'retrain.epochs': 1.0, 'init.backbone': 'None',
    'finetune.epochs': 0.0,
    'evaluate.resamples': 50, 'ablate.seeds': (0,),
    'ablate.rows': (
      ('plain', ('mgacr.attention=False', 'mgacr.features=False')),
      ('full', ()),
    ),
  }})
  return config
"""


def run(folder, cores, command, *flags):
  """One command on these cores."""
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)  # of this thread, and of what it starts
  try:
    return subprocess.run(
      [sys.executable, '-m', 'dpjax.main', command, '--config=study.py',
       '--config.train.progress=False', *flags],
      cwd=folder,
      env=children.environment(),
      capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
  finally:
    os.sched_setaffinity(0, before)


def without_times(value):
  if isinstance(value, dict):
    return {k: without_times(v) for k, v in value.items() if k != 'seconds'}
  return [*map(without_times, value)] if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.skipif(
  not hasattr(os, 'sched_getaffinity') or len(os.sched_getaffinity(0)) < 2,
  reason='two jobs, two cores',
)
def test_the_table_of_two_jobs_is_that_of_runs_in_a_row_to_the_bit(tmp_path):
  (tmp_path / 'study.py').write_text(CONFIG)
  cores = sorted(os.sched_getaffinity(0))[:2]
  # XLA's last digits on a CPU hang on how many cores it has: one core a run.
  row = run(tmp_path, cores[:1], 'ablate', '--workdir=row')
  assert row.returncode == 0, row.stderr
  jobs = run(tmp_path, cores, 'ablate', '--workdir=jobs', '--jobs=2')
  assert jobs.returncode == 0, jobs.stderr
  said = jobs.stdout.splitlines()
  for core in cores:
    assert sum(f': begun on core {core};' in line for line in said) == 1
  assert sum(': finished in ' in line for line in said) == 2
  for name in ('plain', 'full'):
    a, b = (
      (tmp_path / way / 'seed0' / name / 'predictions.csv').read_bytes()
      for way in ('row', 'jobs')
    )
    assert a == b, name
  tables = [
    without_times(json.loads((tmp_path / way / 'ablation.json').read_text()))
    for way in ('row', 'jobs')
  ]
  assert tables[0] == tables[1]
  # Both as one.
  names = [f'jobs/seed0/{name}' for name in ('plain', 'full')]
  both = run(
    tmp_path, cores, 'evaluate', f'--workdir={",".join(names)}',
    '--output=both', f'--against={names[0]}',
  )  # fmt: skip
  assert both.returncode == 0, both.stderr
  assert both.stdout.startswith('mean of 2 runs\n')
  assert 'written: both/evaluation.json' in both.stdout.splitlines()[-1]
  assert (tmp_path / 'both' / 'against.json').is_file()
