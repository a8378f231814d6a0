"""The printed tables: every number is in them, and they fit the screen."""

import numpy as np
import pytest

from dpjax.evaluation import localisation, text
from dpjax.metrics import resampling, score_table, scores, subgroups
from tests.metrics.predicted import NAMES, PAPER_SIZES, predict, random_set

OPTIONS = {'ordinal': True, 'threshold': 0.6, 'temperature': 1.7}
MAPS = ('cam', 'att_pos/stage1', 'random')


def evaluation(labels, probabilities, names=NAMES, **options):
  """What evaluation.json holds, as far as the table reads it."""
  draws = {'resamples': 10, 'seed': 0, **options}
  age = [f'{20 + i % 60:03d}Y' for i in range(len(labels))]
  return {
    **scores.scores(labels, probabilities, names, **options),
    'intervals': resampling.bootstrap_intervals(
      labels, probabilities, names, **draws
    ),
    'threshold': options.get('threshold'),
    'temperature': options.get('temperature'),
    'chosen_on': 'validation',
    'subgroups': subgroups.subgroups(
      {'age': np.array(age)}, labels, probabilities, names, **draws
    ),
    'localisation': {
      name: {
        'num_images': 40,
        'scores': dict.fromkeys(localisation.SCORES, 0.25),
        'intervals': {key: [0.125, 0.5] for key in localisation.SCORES},
        'threshold': None,
      }
      for name in MAPS
    },
  }


def test_table_says_every_score_and_lines_up():
  labels = np.repeat(np.arange(5), PAPER_SIZES)
  probabilities = predict(np.random.default_rng(14), labels, 5)
  result = evaluation(labels, probabilities, **OPTIONS)
  table = text.format_table(result, level=0.9)
  assert '90 % interval' in table
  for name in score_table.SUMMARY:
    low, high = result['intervals'][name]
    line = f'  {result["scores"][name]:.3f}  {low:.3f} to {high:.3f}'
    assert line in table, name
  assert f'{result["majority_accuracy"]:.3f}' in table
  assert 'lesion 0.600, temperature 1.700: chosen on validation' in table
  lines = table.splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith('class'))
  assert len({len(line) for line in lines[start : start + 6]}) == 1
  for c, line in enumerate(lines[start + 1 : start + 6]):
    cells = [
      f'{result["per_class"][NAMES[c]][k]:.3f}' for k in score_table.PER_CLASS
    ]
    assert line.split() == [str(c), NAMES[c], *cells, str(PAPER_SIZES[c])]
  start = next(i for i, line in enumerate(lines) if 'confusion' in line) + 2
  for c, line in enumerate(lines[start : start + 5]):
    assert line.split() == [
      str(c),
      NAMES[c],
      *map(str, result['confusion_matrix'][c]),
    ]
  assert 'localisation on 40 images with boxes' in table
  for name in MAPS:
    start = next(i for i, line in enumerate(lines) if line.startswith(name))
    assert lines[start].split() == [name, *['0.250'] * 4]
    assert lines[start + 1].split() == ['0.125', 'to', '0.500'] * 4
  for name, group in result['subgroups']['age'].items():
    auroc = f'{group["scores"]["auroc_any_lesion"]:.3f}'
    (line,) = [line for line in lines if line.startswith(f'{name} ')]
    assert auroc in line and str(group['num_images']) in line
  assert 'undefined' not in table


@pytest.mark.parametrize('num_classes', [2, 5, 14, 40])
def test_tables_stay_within_80_columns(num_classes):
  labels = np.arange(3 * num_classes) % num_classes
  probabilities = predict(np.random.default_rng(0), labels, num_classes)
  names = [f'{c}\na finding of a very long name' for c in range(num_classes)]
  result = evaluation(labels, probabilities, names, **OPTIONS)
  # Counts of a large set; the table does not add them up again.
  result['confusion_matrix'] = [
    [123456 * n for n in row] for row in result['confusion_matrix']
  ]
  result['subgroups']['a column of the longest name'] = {
    'a value\nwithout an end, almost': result['subgroups']['age'].popitem()[1]
  }
  table = text.format_table(result)
  assert max(map(len, table.splitlines())) <= 80
  assert '\\n' in table  # escaped
  matrix = table.split('confusion matrix')[1].split('\n\nlocal')[0].splitlines()
  heads = [line.split() for line in matrix[1:] if line.startswith('   ')]
  columns = [int(c) for head in heads for c in head]
  assert columns == list(range(num_classes))  # wrapped, none dropped

  difference = {'difference': -1.0, 'interval': [-1.0, 1.0]}
  compared = text.format_comparison(
    {
      'a': 'one',
      'b': 'other',
      'scores': dict.fromkeys(result['scores'], difference),
      'localisation': {
        name: dict.fromkeys(localisation.SCORES, difference) for name in MAPS
      },
    }
  )
  assert max(map(len, compared.splitlines())) <= 80


def test_table_without_intervals_has_no_column_for_them():
  labels, probabilities = random_set(15, num_classes=2)
  result = scores.scores(labels, probabilities, ['0', '1'])
  table = text.format_table(result)
  assert 'interval' not in table
  assert '-: undefined' not in table  # nothing is
  for absent in ('classes 0 to 2', 'kappa', 'sensitivity', 'scaled', 'local'):
    assert absent not in table  # nothing that does not apply
  assert '\n0 ' in table and '0 0' not in table  # a number is not numbered


def test_a_dash_in_a_name_is_no_score_that_is_undefined():
  labels, probabilities = random_set(15, num_classes=2)
  result = scores.scores(labels, probabilities, ['opacity - mild', '-'])
  assert 'undefined' not in text.format_table(result)


def test_subgroups_without_a_lesion_class_show_another_score():
  labels, probabilities = random_set(15)
  table = text.format_table(evaluation(labels, probabilities, any_lesion=False))
  assert 'macro F1' in table.split('subgroups')[1]


def test_comparison_says_every_difference_and_stars_the_sure_ones():
  labels, a = random_set(16)
  b = predict(np.random.default_rng(17), labels, 5, skill=0.2)
  found = resampling.paired_bootstrap(
    labels,
    a,
    b,
    NAMES,
    resamples=50,
    seed=0,
    ordinal=True,
    threshold=(0.6, 0.5),
  )
  nothing = {'difference': None, 'interval': None}
  given = {
    'a': 'runs/a',
    'b': 'runs/b',
    'scores': found,
    'mcnemar': {'only_a_right': 31, 'only_b_right': 7, 'p_value': 0.000112},
    'localisation': {
      'cam': {
        'pointing_game': {'difference': 0.1, 'interval': [0.05, 0.2]},
        'iou': nothing,
      }
    },
  }
  said = text.format_comparison(given, level=0.9)
  assert said.startswith('a: runs/a\nb: runs/b\n')
  for name in score_table.SUMMARY:
    value = found[name]
    if value['difference'] is None:
      assert name.endswith('_scaled')
      continue
    low, high = value['interval']
    star = '*' if low > 0 or high < 0 else ' '
    line = f'{value["difference"]:+.3f}{star} {low:+.3f} to {high:+.3f}'
    assert line in said, name
  assert found['accuracy']['interval'][0] > 0  # so a star was there
  assert 'scaled' not in said
  (line,) = [t for t in said.splitlines() if t.startswith('3 three')]
  assert [cell.rstrip('*') for cell in line.split()[2:]] == [
    f'{found[f"{key}/three"]["difference"]:+.3f}'
    for key in score_table.PER_CLASS
  ]
  assert 'a alone has right: 31, b alone: 7; McNemar p = 0.000112' in said
  (line,) = [t for t in said.splitlines() if t.startswith('cam')]
  assert line.split() == ['cam', '+0.100*', '-', '-', '-']
  assert '+.050 to +.200' in said
  assert '-: undefined for a or b' in said


def test_the_table_says_that_intervals_are_over_patients():
  labels, probabilities = random_set(5, n=60)
  result = evaluation(labels, probabilities)
  plain = text.format_table({**result, 'num_patients': 60})
  assert plain == text.format_table(result) and 'patient' not in plain
  table = text.format_table({**result, 'num_patients': 41})
  assert table.startswith('60 images of 41 patients, 5 classes\n')
  assert table.endswith(
    'intervals: over the 41 patients, each with all their images'
  )
