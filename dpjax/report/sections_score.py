"""Sections of the report: what came out, and how sure it is.

A section is a function of (section, report_data) that writes into the section,
or raises page.Missing with the reason why it is left out.
"""

from typing import Any

import numpy as np
from sklearn import metrics

from dpjax.data import vocabulary
from dpjax.errors import UserError
from dpjax.evaluation import against
from dpjax.metrics import calibration as calibration_lib
from dpjax.report import figures, page, words
from dpjax.report.report_data import ReportData

MOST_CURVES = 10  # classes with a curve of their own


def decisions(section: page.Section, report_data: ReportData) -> None:
  """Confusion matrix, ROC and precision-recall curves."""
  runs = report_data.evaluated
  section.say(
    'Confusion matrix: numbers of images, and their share of the true class. A'
    ' curve sets one class against all others; "any lesion" is scored by 1'
    ' minus the probability of the class without one. The matrix counts the'
    ' most probable class; the sensitivity and specificity for any lesion,'
    ' under Scores, use a threshold of their own, the dot on the ROC curve.'
  )
  for number, run in enumerate(runs):
    if len(runs) > 1:
      section.heading(run.name)
    names, matrix = run.class_names, run.evaluation['confusion_matrix']
    recalls = ', '.join(
      f'{name} {row[i] / sum(row):.0%}'
      for i, (name, row) in enumerate(zip(names, matrix, strict=True))
      if sum(row)
    )
    charts = {
      f'confusion-{number}': (
        figures.confusion(np.array(matrix), names, title='Confusion'),
        f'Confusion matrix of {run.name}; right of each class: {recalls}',
      )
    }
    numbers = {'confusion_matrix': matrix}
    if run.probabilities is not None:
      shown, curves = _curves(run)
      dot = _at_threshold(run)
      if dot:
        shown['roc'].append(dot)
        curves['roc']['any lesion']['at_threshold'] = [dot.x[0], dot.y[0]]
      for kind, title, x, y, score in (
        ('roc', 'ROC', '1 - specificity', 'Sensitivity', 'AUROC'),
        ('pr', 'Precision and recall', 'Recall', 'Precision', 'AP'),
      ):
        if not shown[kind]:
          continue  # all images are of one class
        chance = [figures.Series('', [0, 1], [0, 1], 0, 'faint')]
        charts[f'{kind}-{number}'] = (
          figures.lines(
            (chance if kind == 'roc' else []) + shown[kind],
            title=title, x=x, y=y, unit_square=True, legend=score,
          ),
          f'{title} of {run.name}; {score}: '
          + ', '.join(one.name for one in shown[kind]),
        )  # fmt: skip
      numbers |= curves
    section.charts(charts)
    if run.probabilities is None:
      section.say('No curves: predictions.csv is missing.', 'note')
    else:
      _say_missing_curves(section, run)
    section.numbers[run.name] = numbers


def _say_missing_curves(section, run):
  names = run.class_names
  there = [names[label] for label in np.unique(run.labels)]
  if len(there) == 1:
    section.say(
      f'No curves: all images scored are of the class {there[0]}, and a curve'
      ' sets one class against others.',
      'note',
    )
    return
  if len(names) > MOST_CURVES:
    section.say(f'Curves of the {MOST_CURVES} commonest classes.', 'note')
  missing = [name for name in names if name not in there]
  if missing:
    section.say(f'No curve, as no image is of it: {", ".join(missing)}.',
                'note')  # fmt: skip


def _curves(run):
  """({'roc': series, 'pr': series}, the same as numbers)."""
  names = run.class_names
  frequent = np.argsort(
    -np.bincount(run.labels, minlength=len(names)), kind='stable'
  )[:MOST_CURVES]
  one_vs_rest = {
    names[c]: (run.labels == c, run.probabilities[:, c], int(i))
    for i, c in enumerate(np.sort(frequent))
  }
  if vocabulary.is_normal(names[0]):
    any_lesion = (run.labels > 0, 1 - run.probabilities[:, 0], -1)
    one_vs_rest['any lesion'] = any_lesion
  shown: dict[str, list[figures.Series]] = {'roc': [], 'pr': []}
  numbers: dict[str, dict[str, Any]] = {'roc': {}, 'pr': {}}
  for name, (positive, score, number) in one_vs_rest.items():
    if positive.all() or not positive.any():
      continue  # no curve is defined
    false, true, _ = metrics.roc_curve(positive, score)
    area = float(metrics.roc_auc_score(positive, score))
    precision, recall, _ = metrics.precision_recall_curve(positive, score)
    average = float(metrics.average_precision_score(positive, score))
    for kind, x, y, value in (
      ('roc', false, true, area),
      # Recall falls along the list: each precision holds down to the next.
      ('pr', recall, precision, average),
    ):
      x, y = _without_repeats(x, y)
      shown[kind].append(
        figures.Series(
          f'{name}: {value:.3f}', x, y, number,
          'line' if kind == 'roc' else 'steps',
        )
      )  # fmt: skip
      numbers[kind][name] = {
        'x': np.round(x, 6).tolist(), 'y': np.round(y, 6).tolist(),
        'area': value,
      }  # fmt: skip
  return shown, numbers


def _at_threshold(run):
  """Where the threshold of any lesion lies on its ROC, or None."""
  threshold = run.evaluation.get('threshold')
  positive = run.labels > 0
  if (
    threshold is None
    or not vocabulary.is_normal(run.class_names[0])
    or positive.all()
    or not positive.any()
  ):
    return None
  called = calibration_lib.lesion_score(run.probabilities) >= threshold
  return figures.Series(
    f'any lesion at {threshold:.3f}', [float(called[~positive].mean())],
    [float(called[positive].mean())], -1, 'dots',
  )  # fmt: skip


def _without_repeats(x, y):
  """The points without those that repeat the one before."""
  kept = np.ones(len(x), bool)
  kept[1:] = (np.diff(x) != 0) | (np.diff(y) != 0)
  return x[kept], y[kept]


def calibration(section: page.Section, report_data: ReportData) -> None:
  """Reliability diagrams before and after temperature scaling."""
  runs = [
    run for run in report_data.evaluated if run.evaluation.get('reliability')
  ]
  if not runs:
    raise page.Missing('evaluation.json has no reliability; evaluate again')
  section.say(
    'Of the images that were predicted with a given probability, what share was'
    ' predicted correctly? On the dashed line it is that probability. The'
    ' temperature was fitted to the validation split.'
  )
  for number, run in enumerate(runs):
    if len(runs) > 1:
      section.heading(run.name)
    result, charts = run.evaluation, {}
    values = result['scores']
    for key, title, score in (
      ('reliability', 'As trained', 'ece'),
      ('reliability_scaled', 'After temperature scaling', 'ece_scaled'),
    ):
      bins = result.get(key)
      if bins:
        ece = values.get(score)
        error = '' if ece is None else f': ECE {ece:.3f}'
        charts[f'{key.replace("_", "-")}-{number}'] = (
          figures.reliability(bins, title=f'{title}{error}'),
          f'Reliability of {run.name}, {title.lower()}{error}',
        )
        section.numbers.setdefault(run.name, {})[key] = bins
    section.charts(charts)
    temperature = result.get('temperature')
    section.numbers[run.name]['temperature'] = temperature
    if temperature is None:
      section.say('No temperature: there was no validation split to fit it to.',
                  'note')  # fmt: skip
    else:
      section.say(f'Temperature {temperature:.3f}.', 'note')


def scores(section: page.Section, report_data: ReportData) -> None:
  """All scores with their intervals."""
  runs = report_data.evaluated
  sets = {
    (str(run.evaluation['data']), run.evaluation['split']) for run in runs
  }
  if len(sets) > 1:
    section.say('These runs were scored on different images: their scores'
                ' cannot be compared.')  # fmt: skip
  section.say(words.legend(run.evaluation for run in runs), 'note')
  rows = []
  for name, title in words.SCORES.items():
    if any(run.evaluation['scores'].get(name) is not None for run in runs):
      rows.append([title, *(words.cell(run.evaluation, name) for run in runs)])
    if name == 'accuracy':  # Beside what it is to be held against.
      rows += _plain_row(
        'Accuracy of always the commonest class', 'majority_accuracy', runs
      )
  rows += _plain_row('Threshold of any lesion', 'threshold', runs)
  rows += _plain_row('Temperature', 'temperature', runs)
  rows.append(['Images', *(f'{r.evaluation["num_images"]:,}' for r in runs)])
  patients = [run.evaluation.get('num_patients') for run in runs]
  if any(patients):
    rows.append(
      ['Patients', *('-' if n is None else f'{n:,}' for n in patients)]
    )
  section.table(['Score', *(run.name for run in runs)], rows, 'Summary')
  chosen = {run.evaluation.get('chosen_on') or '' for run in runs} - {''}
  if chosen:
    section.say(
      f'Threshold and temperature were chosen on {", ".join(sorted(chosen))}.',
      'note',
    )
  for run in runs:
    result = run.evaluation
    section.table(
      ['Class', 'Images', *words.PER_CLASS.values()],
      [
        [
          name,
          f'{result["per_class"].get(name, {}).get("support", 0):,}',
          *(words.cell(result, f'{score}/{name}') for score in words.PER_CLASS),
        ]
        for name in run.class_names
      ],
      f'Each class against the others: {run.name}',
    )
    section.numbers[run.name] = {
      key: result.get(key)
      for key in ('num_images', 'num_patients', 'scores', 'intervals',
                  'per_class', 'threshold', 'temperature', 'majority_accuracy',
                  'chosen_on')
    }  # fmt: skip


def _plain_row(title, key, runs):
  """The row of a number of evaluation.json that has no interval, if any."""
  values = [run.evaluation.get(key) for run in runs]
  if all(value is None for value in values):
    return []
  return [[title, *map(page.score, values)]]


def subgroups(section: page.Section, report_data: ReportData) -> None:
  """The scores of each group of the metadata."""
  runs = [
    run for run in report_data.evaluated if run.evaluation.get('subgroups')
  ]
  if not runs:
    raise page.Missing('the scored images have no metadata to group them by')
  section.say(
    'The same scores within groups of images. Small groups have wide intervals,'
    ' and the groups were not tested against each other.'
  )
  section.say(words.legend(run.evaluation for run in runs), 'note')
  columns: dict[str, dict[str, None]] = {}  # column -> its values, in order
  for run in runs:
    found = run.evaluation['subgroups']
    for column, groups in found.items():
      columns.setdefault(column, {}).update(dict.fromkeys(groups))
      names = [
        name
        for name in words.SCORES
        if any(g['scores'].get(name) is not None for g in groups.values())
      ]
      section.table(
        [column, 'Images', *(words.SCORES[name] for name in names)],
        [
          [value, f'{group["num_images"]:,}',
           *(words.cell(group, name) for name in names)]
          for value, group in groups.items()
        ],
        f'{run.name}, by {column}',
      )  # fmt: skip
    section.numbers[run.name] = found
  charts = {}
  for number, (column, values) in enumerate(columns.items()):
    for name in ('auroc_any_lesion', 'balanced_accuracy'):
      spans = {
        run.name: [
          words.span(
            run.evaluation['subgroups'].get(column, {}).get(value), name
          )
          for value in values
        ]
        for run in runs
      }
      if any(any(found) for found in spans.values()):
        title = f'{words.SCORES[name]}, by {column}'
        charts[f'{number}-{name.replace("_", "-")}'] = (
          figures.intervals(
            list(values), spans, title=title, x=words.SCORES[name], y=column
          ),
          f'{title}: {words.describe(list(values), spans)}',
        )
  section.charts(charts)


def comparison(section: page.Section, report_data: ReportData) -> None:
  """Paired differences: the first run minus each other one."""
  first, *others = report_data.runs
  found, said = [], []  # (title, other, against.compare_runs's); why none
  for other in others:
    result = _compare(first, other, report_data)
    if isinstance(result, str):
      said.append(f'{first.name} and {other.name}: {result}')
    else:
      found.append((f'{first.name} minus {other.name}', other.name, result))
  if not found:
    reason = '; '.join(said) or 'it takes two workdirs (--workdir=A,B)'
    raise page.Missing(reason)
  section.say(
    'Both runs were scored on the same images, and each resample of the'
    ' bootstrap is the same for both. An interval without 0 is a difference'
    ' that these images show; the noise of training, which another seed would'
    ' show, is not part of it.'
  )
  section.say(words.legend(result for *_, result in found), 'note')
  for line in said:
    section.say(f'{line}.', 'note')
  for number, (title, name, result) in enumerate(found):
    section.charts({str(number): _difference_chart(title, result)})
    section.table(['Score', 'Difference'], _difference_rows(result), title)
    test = result['mcnemar']
    test_name = 'McNemar'
    if result['num_patients'] < result['num_images']:
      test_name = 'McNemar, with the answers to all images of a patient at once'
    section.say(
      f'Right in {first.name} only: {test["only_a_right"]:,} images; in'
      f' {name} only: {test["only_b_right"]:,}. {test_name}, exact: p ='
      f' {_p_value(test["p_value"])}.'
    )
    section.numbers[title] = result


def _difference_chart(title, result):
  """(figure, what it shows in words) of the scores' differences."""
  names = _compared(result)
  spans = [_difference(result['scores'][name]) for name in names]
  rows = [words.SCORES[name] for name in names]
  figure = figures.intervals(
    rows, {title: spans}, title=title, x='Difference', y='Score', zero=True
  )
  return figure, f'Differences: {words.describe(rows, {title: spans}, "+")}'


def _difference_rows(result):
  """The rows of a table: of the scores, then of the maps."""
  rows = [
    [words.SCORES[name], _difference_cell(result['scores'][name])]
    for name in _compared(result)
  ]
  for name, by_score in result['localisation'].items():
    for score, difference in by_score.items():
      title = f'{words.map_name(name)}: {words.LOCALISATION[score]}'
      rows.append([title, _difference_cell(difference)])
  return rows


def _compared(result):
  """The scores that both runs have."""
  differences = result['scores']
  return [
    name for name in words.SCORES if differences[name]['difference'] is not None
  ]


def _compare(run, other, report_data):
  """against.compare_runs of run minus other; or why not, a line."""
  for one in (run, other):
    if one.probabilities is None or not one.evaluation:
      return f'{one.name} has no whole evaluation'
  try:
    return against.compare_runs(
      run.workdir,
      other.workdir,
      resamples=report_data.resamples,
      seed=report_data.seed,
    )
  except UserError as error:
    return str(error)


def _difference(one):
  value = one['difference']
  return value, *(one['interval'] or (value, value))


def _difference_cell(one):
  return page.score(one['difference'], one['interval'], '+')


def _p_value(value):
  return f'{value:.3f}' if value >= 0.001 else f'{value:.1e}'
