"""docs/tutorial.ipynb does what it says."""

import json
import os
import pathlib
import sys

import matplotlib
import matplotlib.pyplot as plt
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = json.loads(
  (ROOT / 'docs' / 'tutorial.ipynb').read_text(encoding='utf-8')
)
CODE = [c for c in NOTEBOOK['cells'] if c['cell_type'] == 'code']
# Behind those of the cell "parameters", so that a test does not take minutes.
SMALLER = [
  '--config.data.phantom.count=100',
  '--config.model.stage_sizes=(1,1,1)',
  '--config.model.width=4',
  "--config.mgacr.stages=('stage1','stage2','stage3')",
  '--config.pretrain.epochs=1',
  '--config.retrain.epochs=1',
  '--config.finetune.epochs=1',
  '--config.evaluate.resamples=20',
]


@pytest.mark.slow
def test_it_goes_from_the_phantom_to_a_prediction(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
  monkeypatch.setenv('PYTHONPATH', path)
  before = matplotlib.get_backend()
  plt.switch_backend('agg')
  names = {}
  for cell in CODE:
    exec(compile(''.join(cell['source']), 'tutorial.ipynb', 'exec'), names)
    if 'parameters' in cell['metadata'].get('tags', ()):
      names['SETTINGS'] += SMALLER
  assert len(names['found']) == len(names['files']) == 5
  drawn = [axis.get_title() for axis in names['axes']]
  assert drawn == ['2-lesions.png', *names['names']]
  assert all(len(axis.patches) == 2 for axis in names['axes'])
  answers = tmp_path / 'tutorial' / 'answers'
  assert (answers / 'index.html').is_file()
  assert len(list((answers / 'overlays').iterdir())) == 5
  plt.close('all')
  plt.switch_backend(before)


def test_its_outputs_are_those_of_one_run_from_top_to_bottom():
  counts = [cell['execution_count'] for cell in CODE]
  assert counts == list(range(1, len(CODE) + 1))
  assert not [
    out
    for cell in CODE
    for out in cell['outputs']
    if out['output_type'] == 'error' or out.get('name') == 'stderr'
  ]
