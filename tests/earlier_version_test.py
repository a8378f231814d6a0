"""A run that an earlier version began goes on, and ends as it would have there.

recorded/faa881e.tar.xz holds what version faa881e made of

  python -m dpjax.main --config=configs/recipe.py:quick --workdir=runs/rec FLAGS

with the flags below: runs/rec with stage I whole and stage II at step 10 of 20,
and expected/ with the files that it ended with.
"""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pytest

from dpjax.metrics import predictions, resampling

ROOT = pathlib.Path(__file__).parents[1]
FLAGS = (
  '--config.data.phantom.count=60',
  '--config.data.store_size=32',
  '--config.data.image_size=32',
  '--config.model.stage_sizes=(1,1)',
  '--config.model.width=4',
  "--config.mgacr.stages=('stage1','stage2')",
  '--config.pretrain.epochs=2',
  '--config.retrain.epochs=4',
  '--config.pretrain.batch_size=8',
  '--config.retrain.batch_size=8',
  '--config.pretrain.hidden=8',
  '--config.pretrain.projection=8',
  '--config.train.keep=50',
  '--config.train.log_every=4',
  '--config.evaluate.resamples=100',
  # Its defaults, which are others now.
  '--config.loss.classification=cb_focal',
  '--config.finetune.epochs=0',
)
RECORDED_BY = '0.10.2'  # JAX, on a CPU
# Other machines and versions of JAX round otherwise.
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where the recorded run stands, after it has gone on to its end."""
  folder = tmp_path_factory.mktemp('earlier')
  with tarfile.open(ROOT / 'tests/recorded/faa881e.tar.xz') as recorded:
    recorded.extractall(folder, filter='data')
  said = run(folder, [])
  assert 'resumed at step 10, to step 20' in said
  return folder


def run(folder, words, workdir='runs/rec'):
  done = subprocess.run(
    [
      sys.executable, '-m', 'dpjax.main', *words,
      f'--config={ROOT / "configs/recipe.py"}:quick', f'--workdir={workdir}',
      *FLAGS,
    ],
    cwd=folder,
    # One device, as there: conftest.py makes several.
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
         'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout


def numbers(value, name=''):
  """{'path/to/field': number} of nested JSON, but for times."""
  if isinstance(value, list):
    value = {str(i): part for i, part in enumerate(value)}
  if isinstance(value, dict):
    found = {}
    for key, part in value.items():
      if 'seconds' not in key and 'per_second' not in key:
        found |= numbers(part, f'{name}/{key}')
    return found
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return {name: value} if is_number else {}


def lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_its_log_goes_on_with_the_same_numbers(folder):
  found = lines(folder / 'runs/rec/retrain/metrics.jsonl')
  wanted = lines(folder / 'expected/metrics.jsonl')
  assert [(e['step'], e['split']) for e in found] == [
    (e['step'], e['split']) for e in wanted
  ]
  for entry, other in zip(found, wanted, strict=True):
    if (entry['step'], entry['split']) == (16, 'train'):
      # There the validation after step 15 began the means anew: that version's
      # line is of step 16 alone, and ours of steps 13 to 16.
      continue
    other = numbers(other)
    assert {name: numbers(entry)[name] for name in other} == pytest.approx(
      other, rel=1e-5, abs=1e-5
    )


def test_it_scores_as_it_would_have(folder):
  found = numbers(
    json.loads((folder / 'runs/rec/retrain/evaluation.json').read_text())
  )
  wanted = numbers(
    json.loads((folder / 'expected/evaluation.json').read_text())
  )
  if jax.__version__ != RECORDED_BY:
    # It ranks the cells of each map: rounding swaps two that are equal.
    wanted = {k: v for k, v in wanted.items() if 'pixel_ap' not in k}
  # Two patients have two images each, for which that version had no eye.
  assert found['/num_patients'] == found['/num_images'] - 2
  plain = {k: v for k, v in wanted.items() if '/intervals/' not in k}
  assert 100 < len(plain)
  assert {name: found[name] for name in plain} == pytest.approx(
    plain, rel=1e-5, abs=1e-5
  )


def test_its_intervals_are_those_of_images_that_are_each_of_another_patient(
  folder,
):
  evaluation = json.loads((folder / 'expected/evaluation.json').read_text())
  ids, labels, probabilities, patients = predictions.read_predictions(
    folder / 'runs/rec/retrain/predictions.csv'
  )
  assert len(set(patients)) == len(ids) - 2
  found = resampling.bootstrap_intervals(
    labels, probabilities, evaluation['class_names'], resamples=100,
    seed=evaluation['settings']['seed'], ordinal=True,
    threshold=evaluation['threshold'], temperature=evaluation['temperature'],
  )  # fmt: skip
  wanted = numbers(evaluation['intervals'])
  assert 20 < len(wanted)
  found = numbers(found)
  assert {name: found[name] for name in wanted} == pytest.approx(
    wanted, rel=1e-5, abs=1e-5
  )


def test_its_predictions_are_the_same(folder):
  tables = []
  for file in ('runs/rec/retrain/predictions.csv', 'expected/predictions.csv'):
    with open(folder / file, newline='') as stream:
      tables.append([*csv.reader(stream)])
  found, wanted = tables
  assert found[0] == [*wanted[0], 'patient']
  found = [row[:-1] for row in found]
  assert [row[:3] for row in found] == [row[:3] for row in wanted]
  np.testing.assert_allclose(
    np.array([row[3:] for row in found[1:]], float),
    np.array([row[3:] for row in wanted[1:]], float),
    **CLOSE,
  )


def test_it_goes_on_under_another_name_and_place(folder, tmp_path):
  moved = tmp_path / 'moved/again'
  shutil.copytree(folder / 'runs/rec', moved)
  (tmp_path / 'data').symlink_to(folder / 'data')
  config = moved / 'retrain/config.json'
  with tarfile.open(ROOT / 'tests/recorded/faa881e.tar.xz') as recorded:
    member = recorded.extractfile('runs/rec/retrain/config.json')
    config.write_bytes(member.read())
  backbones = [json.loads(config.read_text())['init']['backbone']]
  for spelled in 'moved/../moved/again', moved:
    said = run(tmp_path, [], spelled)
    assert 'resumed at step 20, to step 20' in said, spelled
    backbones.append(json.loads(config.read_text())['init']['backbone'])
  assert backbones == ['runs/rec/pretrain', '../pretrain', '../pretrain']


def test_it_is_evaluated_anew_and_reported(folder):
  said = run(folder, ['evaluate'], 'runs/rec/retrain')
  assert 'evaluation.json' in said
  said = run(folder, ['report'], 'runs/rec/retrain')
  assert (folder / said.removeprefix('written: ').strip()).is_file()
