"""The ablate command: which runs, what table, what figure."""

import json

import numpy as np
import pytest

from dpjax import prepare
from dpjax.data import store
from dpjax.errors import NonFinite, Stopped, UserError
from dpjax.studies import ablate, runs, tables
from dpjax.studies import tasks as tasks_lib
from tests.studies import fake_runs

ROWS = ('+ pre-training', '+ attention')


@pytest.fixture(autouse=True)
def fake(tmp_path, monkeypatch):
  return fake_runs.install(tmp_path, monkeypatch)


def run(workdir, **changes):
  config = fake_runs.make_config(**changes)
  text = ablate.run_ablation(config, workdir, fake_runs.resolve)
  return text, json.loads((workdir / 'ablation.json').read_text())


def trained(fake):
  return [folder for what, folder in fake.calls if what != 'evaluate']


def test_rows_and_seeds_are_trained_once_each_and_stage_i_once_a_seed(
  tmp_path, fake
):
  run(tmp_path)
  assert trained(fake) == [
    f'seed{seed}/{name}'
    for seed in (0, 1)
    for name in ('pretrain', 'pre-training', 'attention')
  ]
  fake.calls.clear()
  run(tmp_path)
  assert not fake.calls


def test_rows_that_end_with_a_stage_ii_lend_it_to_those_fine_tuned_after_it(
  tmp_path, fake
):
  """As the last two rows of the default do, the paper's Table I."""
  rows = (
    ('plain', ('init.backbone=None', 'finetune.epochs=0')),
    ('whole', ('finetune.epochs=0',)),
    ('weighted', ()),
  )
  run(tmp_path, ablate__rows=rows, ablate__seeds=(0,), finetune__epochs=1.0)
  assert [*dict.fromkeys(trained(fake))] == [
    'seed0/plain', 'seed0/pretrain', 'seed0/whole', 'seed0/weighted/finetune',
  ]  # fmt: skip
  fake.calls.clear()
  run(tmp_path, ablate__rows=rows, ablate__seeds=(0,), finetune__epochs=1.0)
  assert not fake.calls


def test_a_study_killed_between_its_runs_goes_on(tmp_path, fake):
  fake.fails['seed1/pre-training'] = Stopped('stopped')
  with pytest.raises(Stopped):
    run(tmp_path)
  # The table so far was written.
  table = json.loads((tmp_path / 'ablation.json').read_text())
  assert [row['scores']['accuracy']['num_runs'] for row in table['rows']] == [
    1, 1,
  ]  # fmt: skip
  fake.fails.clear()
  fake.calls.clear()
  _, table = run(tmp_path)
  assert trained(fake) == ['seed1/pre-training', 'seed1/attention']
  assert table['rows'][1]['to_above']['accuracy']['num_runs'] == 2


def test_the_table_has_the_numbers_of_the_evaluations(tmp_path):
  _, table = run(tmp_path)
  values = np.array([
    [
      json.loads(
        (tasks_lib.place(tmp_path, n, s) / 'evaluation.json').read_text()
      )['scores']['macro_f1']
      for s in (0, 1)
    ]
    for n in ROWS
  ])  # fmt: skip
  for row, own in zip(table['rows'], values, strict=True):
    assert row['scores']['macro_f1']['mean'] == pytest.approx(own.mean())
  difference = values[1] - values[0]
  half = 12.7062 * difference.std(ddof=1) / 2**0.5
  found = table['rows'][1]['to_above']['macro_f1']
  assert found['mean'] == pytest.approx(difference.mean())
  assert found['interval'] == pytest.approx(
    [difference.mean() - half, difference.mean() + half], abs=1e-5
  )
  low, high = found['image_interval']
  assert low < difference.mean() < high
  # Of two rows, the last and the first are neighbours.
  assert table['last_to_first'] == table['rows'][1]['to_above']
  assert table['rows'][0]['to_above'] is None
  assert table['rows'][0]['seconds']['training'] == 40.0
  assert table['rows'][0]['scores']['cam/energy_in_box']['num_runs'] == 2
  assert table['seeds'] == [0, 1] and table['num_images'] == 30


def test_processes_may_train_the_seeds_apart(tmp_path, fake):
  for seed in (1, 0):
    run(tmp_path, ablate__seeds=(seed,))
  fake.calls.clear()
  _, table = run(tmp_path)
  assert not fake.calls
  assert table['rows'][0]['scores']['accuracy']['num_runs'] == 2


def test_a_row_that_diverges_leaves_the_common_seeds(tmp_path, fake):
  fake.fails['seed1/attention'] = NonFinite('step 3: loss is nan')
  text, table = run(tmp_path)
  first, second = table['rows']
  assert first['scores']['accuracy']['num_runs'] == 2
  assert second['scores']['accuracy']['num_runs'] == 1
  assert second['to_above']['accuracy']['num_runs'] == 1
  assert [r['state'] for r in second['runs']] == ['finished', 'diverged']
  line = '+ attention, seed 1, diverged: step 3: loss is nan'
  assert line in text and line in (tmp_path / 'ablation.md').read_text()


def test_a_row_of_which_nothing_is_left_says_diverged(tmp_path, fake):
  for seed in (0, 1):
    fake.fails[f'seed{seed}/attention'] = NonFinite('step 3: nan')
  text, table = run(tmp_path)
  assert table['rows'][1]['scores'] == {} == table['last_to_first']
  assert any(
    line.split() == ['+', 'attention', 'diverged', '-', '-', '-', '-', '-']
    for line in text.splitlines()
  )


def test_a_study_of_which_all_diverges_still_ends(tmp_path, fake):
  fake.fails['seed0/pretrain'] = NonFinite('step 3: loss is nan')
  text, table = run(tmp_path, ablate__seeds=(0,))
  assert '0 of 2 runs, seed 0' in text and table['num_images'] is None
  assert not (tmp_path / 'fig7.png').exists()


@pytest.mark.parametrize(
  ('rows', 'said'),
  [
    ((('a', ()), ('b', ('mgacr.featurs=False',))), "'b': .*mgacr.features"),
    ((('a', ()), ('b', ('mgacr.eps=-1.0',))), "'b': config.mgacr.eps"),
    ((('a b', ()), ('A-B', ())), 'are both kept in a-b'),
  ],
)
def test_a_row_that_cannot_be_is_told_before_anything_is_trained(
  rows, said, tmp_path, fake
):
  with pytest.raises(UserError, match=said):
    run(tmp_path, ablate__rows=rows)
  assert not fake.calls


def test_a_workdir_of_another_study_is_refused_before_training(tmp_path, fake):
  run(tmp_path, ablate__rows=(('b', ()),))
  fake.calls.clear()
  with pytest.raises(UserError, match=r"'b': .*loss.gamma"):
    run(tmp_path, ablate__rows=(('a', ()), ('b', ())), loss__gamma=1.0)
  assert not fake.calls


def test_rows_may_be_added(tmp_path, fake):
  run(tmp_path)
  fake.calls.clear()
  rows = fake_runs.make_config().ablate.rows
  run(tmp_path, ablate__rows=(*rows, ('+ all', ())))
  assert trained(fake) == ['seed0/all', 'seed1/all']


def test_the_text_is_at_most_100_columns_wide(tmp_path, fake):
  fake.fails['seed1/attention'] = NonFinite('step 3: ' + 'nan ' * 40)
  rows = fake_runs.make_config().ablate.rows
  long = 'a technique whose name is longer than any table has room for'
  text, _ = run(tmp_path, ablate__rows=(*rows, (long, ())))
  table = text.partition('written:')[0]  # paths may be longer
  assert max(map(len, table.splitlines())) <= 100
  assert 'last row - first' in text and 'a technique whose name' in text


def test_markdown_has_a_row_each_and_one_interval_of_seeds_and_images(tmp_path):
  run(tmp_path)
  text = (tmp_path / 'ablation.md').read_text()
  lines = [line for line in text.splitlines() if line.startswith('| + ')]
  assert len(lines) == 3  # two rows, and one difference
  assert lines[-1].count('±') == 5 and ' to ' not in lines[-1]
  found = json.loads((tmp_path / 'ablation.json').read_text())
  entry = found['last_to_first']['accuracy']
  assert entry['both_interval'] != entry['interval']
  assert lines[-1].split(' | ')[1] == tables.with_half(entry, '+', ' ')
  assert lines[0].startswith('| + pre-training | 2 | .')


def finished(tmp_path):
  """The runs of two seeds of a row."""
  return [
    runs.run(
      tasks_lib.network(
        tasks_lib.resolved(
          fake_runs.make_config(), 'a', (), seed, fake_runs.resolve
        ),
        tmp_path,
        'a',
      )
    )
    for seed in (0, 1)
  ]


def test_no_two_lines_of_the_figure_look_alike(tmp_path):
  own = finished(tmp_path)
  (axes,) = ablate.draw({f'row {i}': own for i in range(20)}).axes
  looks = {
    (line.get_color(), line.get_marker(), line.get_linestyle())
    for line in axes.lines
  }
  assert len(looks) == len(axes.lines) == 20


def test_a_line_of_the_figure_starts_after_its_stage_i(tmp_path):
  (axes,) = ablate.draw({'a': finished(tmp_path)}).axes
  (line,) = axes.lines
  # The fake's validations: accuracy .1 i + seed after 10 i s of each stage.
  np.testing.assert_allclose(line.get_xdata(), [30, 40])
  np.testing.assert_allclose(line.get_ydata(), [0.6, 0.7])
  (band,) = axes.collections
  height = band.get_paths()[0].vertices[:, 1]
  assert (height.min(), height.max()) == pytest.approx((0.1, 1.2))
  assert axes.get_xlabel().endswith('(s)')


def test_the_files_are_named_and_there(tmp_path):
  text, _ = run(tmp_path)
  for name in ('ablation.json', 'ablation.md', 'fig7.png'):
    assert str(tmp_path / name) in text
    assert (tmp_path / name).stat().st_size


def test_a_row_that_its_set_overrules_is_refused_before_anything_is_trained(
  tmp_path, fake, monkeypatch
):
  """It would be a copy of the others under a name of its own."""
  (tmp_path / 'memory').mkdir()
  (tmp_path / 'memory/summary.json').touch()
  monkeypatch.chdir(tmp_path)
  made = {
    'provenance': {}, 'size': 48, 'fit': 'pad', 'unit': 'patient', 'seed': 0,
    'given': True, 'test': 0.1, 'validation': 0.1, 'near': 16,
  }  # fmt: skip
  monkeypatch.setattr(store, 'read_summary', lambda path: made)
  for row, said in (
    ('split.unit=image', "split.unit is 'image'; it must be 'patient'"),
    ('config.split.near = -1', 'split.near is -1; it must be 16'),
  ):
    with pytest.raises(UserError, match=rf"'b': config.{said}, as .* memory"):
      run(tmp_path, ablate__rows=(('a', ()), ('b', (row,))))
    assert not fake.calls
  row = ('data.fit=pad',)  # as the set is
  own = tasks_lib.resolved(
    fake_runs.make_config(), 'b', row, 0, fake_runs.resolve
  )  # fmt: skip
  tasks_lib.check_set(own, 'b', row)


def test_the_set_of_every_row_is_opened_before_anything_is_trained(
  tmp_path, fake, monkeypatch
):
  def opened(config):
    if config.data.path != 'memory':
      raise ValueError(f'config.data.path: {config.data.path} is not there')

  monkeypatch.setattr(prepare, 'open_prepared', opened)
  rows = (('a', ()), ('b', ('data.path=elsewhere',)))
  with pytest.raises(ValueError, match='elsewhere is not there'):
    run(tmp_path, ablate__rows=rows)
  assert not fake.calls
