"""The compare command: which methods, what table, what figure."""

import json

import numpy as np
import pytest

from dpjax.config import fields
from dpjax.errors import NonFinite, UserError
from dpjax.studies import classical, compare, tables
from tests import fakes
from tests.studies import fake_runs

METHODS = ('knn', 'tree', 'vgg16', 'resnet18', 'resnet50', 'recipe')
TITLES = ['KNN, 8 px', 'KNN, features', 'decision tree, 8 px',
          'decision tree, features', 'VGG16, width 4', 'ResNet (1), width 4',
          'ResNet50, width 4', 'recipe']  # fmt: skip


class Features:
  """Made-up features; they know what they were made with."""

  made = ()

  def __init__(self, config, data, source):
    del config, data
    Features.made = (*Features.made, source)

  def __call__(self, split):
    rng = np.random.default_rng(len(split))
    return rng.normal(size=(len(split), 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def fake(tmp_path, monkeypatch):
  fake = fake_runs.install(tmp_path, monkeypatch)
  monkeypatch.setattr(classical, 'Features', Features)
  Features.made = ()
  return fake


def run(workdir, **changes):
  config = fake_runs.make_config(
    **{'compare__methods': METHODS, 'data__image_size': 48, **changes}
  )
  text = compare.run_comparison(config, workdir, fake_runs.resolve)
  return text, json.loads((workdir / 'comparison.json').read_text())


def test_every_method_that_the_config_takes_is_one_that_can_be_run():
  wanted = fields.table()['compare.methods'].default  # all of them
  assert {*wanted} == {*classical.METHODS, *compare._NETWORKS}


def test_every_method_is_run_once_and_all_share_one_stage_i(tmp_path, fake):
  text, table = run(tmp_path)
  assert [row['name'] for row in table['rows']] == TITLES
  trained = [folder for what, folder in fake.calls if what != 'evaluate']
  assert trained == [
    'seed0/pretrain', 'seed0/vgg16-width-4', 'seed0/resnet-1-width-4',
    'seed0/resnet50-width-4', 'seed0/recipe',
  ]  # fmt: skip
  (pretraining,) = tmp_path.glob('seed0/pretrain-*')
  assert Features.made == (str(pretraining),)
  for name in ('comparison.json', 'comparison.md', 'fig8.png'):
    assert str(tmp_path / name) in text
    assert (tmp_path / name).stat().st_size


def test_a_second_call_runs_nothing(tmp_path, fake, monkeypatch):
  _, first = run(tmp_path)
  fake.calls.clear()
  monkeypatch.setattr(
    classical, 'fit', lambda *_: pytest.fail('fitted once more')
  )
  assert run(tmp_path)[1] == first
  assert not fake.calls


def test_the_networks_from_scratch_have_nothing_of_the_recipe(tmp_path):
  run(tmp_path)

  def config_of(name):
    return json.loads((tmp_path / 'seed0' / name / 'config.json').read_text())

  for name in ('vgg16-width-4', 'resnet-1-width-4', 'resnet50-width-4'):
    config = config_of(name)
    assert config['init']['backbone'] is None
    assert config['loss']['classification'] == 'ce'
    assert not config['mgacr']['attention'] and not config['mgacr']['features']
  assert config_of('vgg16-width-4')['model']['network'] == 'vgg16'
  assert config_of('resnet50-width-4')['model']['stage_sizes'] == [3, 4, 6, 3]
  assert config_of('resnet50-width-4')['model']['block'] == 'bottleneck'
  assert config_of('recipe')['loss']['classification'] == 'cb_focal'
  assert config_of('recipe')['init']['backbone']


@pytest.mark.parametrize(
  ('changes', 'title'),
  [
    ({'stage_sizes': (2, 2, 2, 2), 'width': 64}, 'ResNet18'),
    ({'stage_sizes': (2, 2, 2, 2), 'width': 32}, 'ResNet18, width 32'),
    ({'stage_sizes': (3, 4, 6, 3), 'width': 64}, 'ResNet34'),
    (
      {'stage_sizes': (3, 4, 6, 3), 'width': 64, 'block': 'bottleneck'},
      'ResNet50',
    ),
    ({'stage_sizes': (1, 1, 1), 'width': 32}, 'ResNet (1,1,1), width 32'),
    ({'network': 'vgg16', 'width': 64}, 'VGG16'),
  ],
)
def test_a_network_is_called_what_it_is(changes, title):
  model = fakes.make_config().model
  model.update(changes)
  assert compare.network_title(model) == title


def test_pixels_of_another_size_are_another_run(tmp_path):
  methods = {'compare__methods': ('knn',), 'compare__features': False}
  run(tmp_path, **methods)
  _, table = run(tmp_path, compare__pixels=4, **methods)
  assert [row['name'] for row in table['rows']] == ['KNN, 4 px']
  assert {f.name for f in (tmp_path / 'seed0').iterdir()} == {
    'knn-4-px', 'knn-8-px',
  }  # fmt: skip


def test_features_without_a_stage_i_are_refused(tmp_path, fake):
  with pytest.raises(UserError, match=r'^config.compare.features is True'):
    run(tmp_path, init__backbone='None')
  assert not fake.calls
  run(tmp_path, init__backbone='None', compare__features=False)


def test_methods_of_a_stage_i_that_diverges_are_told_so(tmp_path, fake):
  fake.fails['seed0/pretrain'] = NonFinite('step 1: loss is nan')
  text, table = run(tmp_path, compare__methods=('knn', 'recipe'))
  states = {row['name']: row['runs'][0]['state'] for row in table['rows']}
  assert states == {
    'KNN, 8 px': 'finished', 'KNN, features': 'diverged', 'recipe': 'diverged',
  }  # fmt: skip
  assert 'recipe, seed 0, diverged: stage I' in text


def test_another_config_is_refused_for_every_kind_of_method(tmp_path, fake):
  run(tmp_path)
  fake.calls.clear()
  with pytest.raises(UserError, match=r"'KNN, 8 px': .*data.mean"):
    run(tmp_path, data__mean=0.4)
  with pytest.raises(UserError, match=r"'VGG16, width 4': .*loss.gamma"):
    run(tmp_path, loss__gamma=1.0, compare__methods=('vgg16',))
  assert not fake.calls


def test_rows_hold_means_intervals_and_the_gain_of_the_recipe(tmp_path):
  _, table = run(tmp_path)
  rows = {row['name']: row for row in table['rows']}
  for folder, name in (('knn-8-px', 'KNN, 8 px'), ('recipe', 'recipe')):
    file = tmp_path / 'seed0' / folder / 'evaluation.json'
    result = json.loads(file.read_text())
    entry = rows[name]['scores']['macro_f1']
    assert entry['mean'] == result['scores']['macro_f1']
    assert entry['interval'] is None and entry['num_runs'] == 1
    low, high = entry['image_interval']
    assert low <= entry['mean'] <= high
  gain = rows['KNN, 8 px']['recipe_minus']['macro_f1']
  own, other = (
    rows[n]['scores']['macro_f1']['mean'] for n in ('recipe', 'KNN, 8 px')
  )
  assert gain['mean'] == pytest.approx(own - other)
  assert rows['recipe']['recipe_minus'] is None


def test_the_text_is_at_most_100_columns_wide(tmp_path):
  text, _ = run(tmp_path)
  table = text.partition('written:')[0]
  assert max(map(len, table.splitlines())) <= 100
  for title in TITLES:
    assert any(line.startswith(title) for line in table.splitlines())
  markdown = (tmp_path / 'comparison.md').read_text()
  table, gains = markdown.split('## Recipe minus each method')
  rows = [
    sum(line.startswith('| ') for line in part.splitlines())
    for part in (table, gains)
  ]
  assert rows == [2 + len(TITLES), 2 + len(TITLES) - 1]


@pytest.mark.parametrize('seeds', [(0,), (0, 1)])
def test_both_tables_say_what_the_recipe_gains(tmp_path, seeds):
  text, table = run(
    tmp_path,
    compare__seeds=seeds,
    compare__methods=('knn', 'recipe'),
    compare__features=False,
  )
  row = table['rows'][0]
  assert row['name'] == 'KNN, 8 px'
  cells = []
  for score in ('balanced_accuracy', 'auroc_any_lesion'):
    entry = row['recipe_minus'][score]
    # Over seeds and images; of one seed, over the images.
    kind = 'image_interval' if len(seeds) == 1 else 'both_interval'
    numbers = [f'{v:+.3f}'.replace('0.', '.') for v in entry[kind]]
    mean = f'{entry["mean"]:+.3f}'.replace('0.', '.')
    cells.append(f'{mean} ({" to ".join(numbers)})')
  assert (
    f'| KNN, 8 px | {cells[0]} | {cells[1]} |'
    in (tmp_path / 'comparison.md').read_text()
  )
  (line,) = [t for t in text.splitlines() if t.endswith(cells[1])]
  assert line.startswith('KNN, 8 px ') and cells[0] in line


def test_without_the_recipe_nothing_is_said_of_its_gains(tmp_path):
  text, _ = run(tmp_path, compare__methods=('knn',), compare__features=False)
  assert 'recipe minus' not in text
  assert 'Recipe minus' not in (tmp_path / 'comparison.md').read_text()


def test_several_seeds_have_intervals_over_them(tmp_path):
  _, table = run(
    tmp_path, compare__seeds=(0, 1), compare__methods=('tree', 'recipe')
  )
  for row in table['rows']:
    entry = row['scores']['accuracy']
    assert entry['num_runs'] == 2 and entry['interval'] is not None
    assert tables.whole_interval(entry) == entry['interval']
  assert len(set(Features.made)) == 2  # a stage I a seed


def test_the_figure_has_a_dot_and_a_bar_for_each_score(tmp_path):
  _, table = run(tmp_path, compare__methods=('knn', 'recipe'))
  figure = compare.draw(table)
  accuracy = figure.axes[0]
  rows = [row['scores']['accuracy'] for row in table['rows']]
  bars, dots = accuracy.lines[::2], accuracy.lines[1::2]
  for place, (bar, dot, entry) in enumerate(zip(bars, dots, rows, strict=True)):
    np.testing.assert_allclose(bar.get_xdata(), entry['image_interval'])
    assert (*dot.get_xdata(), *dot.get_ydata()) == (entry['mean'], place)
  titles = [axes.get_title(loc='left') for axes in figure.axes]
  assert titles == [
    'accuracy', 'balanced accuracy', 'macro F1', 'AUROC, any lesion',
  ]  # fmt: skip
