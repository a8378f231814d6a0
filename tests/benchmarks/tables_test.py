"""The pages' tables are those of the csv files beside them."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import study_files, tables
from dpjax.config import record as record_lib
from dpjax.metrics import resampling
from tests import fakes
from tests.studies import fake_runs

COMPUTED = tables.every_table()
ON_PAGE = {
  name: table
  for page in tables.PAGES
  for name, table in tables.on_page(page.read_text(encoding='utf-8')).items()
}


def test_the_pages_have_tables_that_are_computed():
  assert ON_PAGE and ON_PAGE.keys() <= COMPUTED.keys()


@pytest.mark.parametrize('name', ON_PAGE)
def test_a_table_of_a_page_is_computed_again_from_the_runs(name):
  assert ON_PAGE[name] == COMPUTED[name]


def test_a_cell_is_the_mean_and_t_interval_of_the_column():
  with open(study_files.RESULTS / 'phantom.csv', newline='') as file:
    rows = [row for row in csv.DictReader(file) if row['run'] == 'resnet18']
  values = [float(row['accuracy']) for row in rows]
  half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  line = COMPUTED['phantom'].splitlines()[2]
  want = f'| {np.mean(values):.3f} ± {half:.3f} |'.replace('0.', '.')
  assert line.startswith('| ResNet18 | 5 ' + want)


def test_a_figure_that_is_not_that_of_the_runs_is_put_right():
  (name, table), *_ = ON_PAGE.items()
  text = f'Before.\n\n<!-- benchmarks.tables: {name} -->\n{table}\n\nBehind.\n'
  assert tables.rewritten(text, COMPUTED) == text
  wrong = text.replace('| .8', '| .7')
  assert wrong != text == tables.rewritten(wrong, COMPUTED)
  empty = f'Before.\n\n<!-- benchmarks.tables: {name} -->\n\nBehind.\n'
  assert tables.rewritten(empty, COMPUTED) == text
  with pytest.raises(KeyError):
    tables.rewritten('<!-- benchmarks.tables: other -->\n', COMPUTED)


def write_run(folder, seed, strength):
  folder.mkdir(parents=True)
  config = fakes.make_config(init__backbone='None')
  record_lib.save(config, folder / 'config.json')
  split = fakes.make_split(60, 16, seed=3)
  rng = np.random.default_rng(seed)
  fake_runs.write_evaluation(folder, split, rng, strength)


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  """A study of four runs, of which nothing was trained, and its csv files."""
  root = tmp_path_factory.mktemp('study')
  for seed in (0, 1, 2):
    for i, name in enumerate(('plain', 'full-late')):
      write_run(root / f'seed{seed}' / name, [seed, i], 1 + i)
  (root / 'seed2' / 'unfinished').mkdir()
  study_files.collect(root, 'recipe-x', root, resamples=80)
  return study_files.Study('recipe-x', root)


def test_what_is_collected_of_a_study_is_what_its_runs_say(study):
  assert {run: len(own) for run, own in study.runs.items()} == {
    'full-late': 3,
    'plain': 3,
  }
  assert study.first('plain', 'always_0') == pytest.approx(1 / 3, abs=1e-5)
  assert study.first('plain', 'images') == 60
  assert study.seconds('plain') == 0
  found = study.values('plain', 'accuracy')
  assert None not in found and len(set(found)) > 1
  assert study.first('plain', 'cam energy_in_box') is not None
  assert study.first('plain', 'cam iou') is None


def test_shifted_answers_are_collected_as_a_run_of_their_own(tmp_path):
  folder = tmp_path / 'seed0' / 'plain-none'
  write_run(folder, 0, 1)
  result = json.loads((folder / 'evaluation.json').read_text())
  scores = {name: 0.25 for name in result['scores']}
  matrix = [[30, 0, 0], [10, 0, 0], [20, 0, 0]]
  result['prior_shift'] = {'scores': scores, 'confusion_matrix': matrix}
  (folder / 'evaluation.json').write_text(json.dumps(result))
  study_files.collect(tmp_path, 'remedies-x', tmp_path, resamples=20)
  found = study_files.Study('remedies-x', tmp_path)
  assert found.runs.keys() == {'plain-none', 'plain-none-shifted'}
  assert found.first('plain-none-shifted', 'accuracy') == 0.25
  assert found.first('plain-none-shifted', 'always_0') == 0.5
  # Maps are those of the network, whatever its answers are taken for.
  assert found.first('plain-none-shifted', 'cam energy_in_box') is None
  table = tables._remedies(found).splitlines()
  assert [line.split(' | ')[0] for line in table[2:]] == [
    '| plain: none', '| plain: prior shift', '| always 0',
  ]  # fmt: skip


def test_the_difference_that_is_asked_has_an_interval_of_seeds_and_images(
  study,
):
  split = fakes.make_split(60, 16, seed=3)
  right = []  # (seed, plain or full-late) -> (N,)
  for seed in (0, 1, 2):
    for i in (0, 1):
      rng = np.random.default_rng([seed, i])
      logits = rng.normal(size=(60, 3))
      logits[np.arange(60), split.labels] += 1 + i
      right.append(logits.argmax(axis=1) == split.labels)
  gain = np.diff(np.reshape(right, (3, 2, 60)).astype(float), axis=1)[:, 0]
  counts = np.concatenate([*resampling.draws(split.labels, 80, 0, True)])
  over_images = (counts @ gain.T / 60).mean(axis=1)
  per_seed = gain.mean(axis=1)
  seeds, over_images = np.var(per_seed, ddof=1) / 3, np.var(over_images)
  halves = (
    stats.t.ppf(0.975, 2) * np.sqrt(seeds),
    1.959964 * np.sqrt(over_images),
  )
  half = np.hypot(*halves)
  want = f'+{per_seed.mean():.3f} ± {half:.3f}'.replace('0.', '.')
  assert study.difference('full-late', 'plain', 'accuracy') == want
  table = tables._asked(study).splitlines()
  assert table[-1].startswith(f'| full-late - plain | {want} | ')


def test_each_seed_has_a_row_a_run(study):
  rows = tables._each_seed(study, tables.RECIPES, ('accuracy',)).splitlines()
  assert len(rows) == 2 + 6
  for row, seed in zip(rows[2::2], (0, 1, 2), strict=True):
    value = study.runs['plain'][seed]['accuracy']
    want = f'{value:.3f}'.removeprefix('0')
    assert row == f'| {seed} | plain network | {want} |'


def test_a_difference_is_the_same_whichever_run_is_named_first(study):
  there = study.difference('full-late', 'plain', 'accuracy')
  back = study.difference('plain', 'full-late', 'accuracy')
  assert there.startswith('+') and back == there.replace('+', '-', 1)


def test_runs_without_a_seed_in_common_have_no_difference(tmp_path):
  write_run(tmp_path / 'seed0' / 'plain', 0, 1)
  write_run(tmp_path / 'seed1' / 'full-late', 1, 2)
  study_files.collect(tmp_path, 'x', tmp_path, resamples=20)
  images = study_files.Study('x', tmp_path).images
  assert {(run, minus) for run, minus, _ in images} == {
    ('plain', ''), ('full-late', ''),
  }  # fmt: skip


def test_a_study_without_a_finished_run_is_one_line(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(
    'sys.argv', ['tables', f'--collect={tmp_path}', '--name=nothing']
  )
  with pytest.raises(SystemExit, match='2'):
    tables.main()
  line = capsys.readouterr().err
  assert line.count('\n') == 1 and 'holds no finished run' in line
