"""benchmarks/step_variants.py, in short."""

import pytest

from benchmarks import step_variants


@pytest.fixture
def small(monkeypatch):
  make_config = step_variants.make_config

  def one_stage(size, rows):
    config = make_config(size, rows)
    config.data.phantom.count = 60
    config.data.store_size = size
    config.model.stage_sizes, config.model.width = (1,), 4
    config.mgacr.stages = ('stage1',)
    config.mgacr.attention = config.mgacr.features = False
    return config

  monkeypatch.setattr(step_variants, 'make_config', one_stage)


@pytest.mark.usefixtures('small')
def test_variants_of_the_step_are_timed_beside_the_base():
  names = 'base,BatchNorm in two passes'
  args = step_variants.arguments('cpu').parse_args(
    ['--image_size=32', '--batch_size=8', '--repeats=2', '--steps=2',
     '--stages=retrain', f'--variants={names}']
  )  # fmt: skip
  found = step_variants.measure(args)['retrain']
  assert list(found) == names.split(',')
  for result in found.values():
    assert len(result['seconds']) == 2 and min(result['seconds']) > 0
  # Two passes read the features once more.
  assert found[names.split(',')[1]]['bytes'] > found['base']['bytes']
  head, _, *rows = step_variants.table(found, rows=8)
  assert [row.split(' | ')[0].strip('| ') for row in rows] == list(found)
  assert [row.count('|') for row in rows] == [head.count('|')] * 2
