"""Sections of the report: what came out, and how sure it is.

A section is a function of (section, evidence) that writes into the section, or
raises page.Missing with the reason why it is left out.
"""

import pathlib

import numpy as np
from sklearn import metrics

from dpjax.data import vocabulary
from dpjax.evaluation import against
from dpjax.evaluation import localisation as localisation_lib
from dpjax.metrics import calibration as calibration_lib
from dpjax.metrics import titles
from dpjax.report import figures, overlay, page
from dpjax.report.evidence import Evidence, read_image

_STAR = '\u00a0*'  # lower is better; never on a line of its own
_LOWER = ('ece', 'brier', 'nll')
# What the page calls them, by the names of evaluation.json.
SCORES = {
  name: page.capital(title.long)
  + (_STAR if name.removesuffix('_scaled') in _LOWER else '')
  for name, title in titles.SUMMARY.items()
}
PER_CLASS = {
  name: page.capital(title.long) for name, title in titles.PER_CLASS.items()
}
LOCALISATION = {
  name: page.capital(title.long) for name, title in titles.LOCALISATION.items()
}
MOST_CURVES = 10  # classes with a curve of their own
OVERLAYS = 8  # half hits, half misses
SIDE = 256  # pixels of an overlay's panel
_LEGEND = (
  'In brackets: 95 % bootstrap intervals over images (Clopper-Pearson for the'
  ' recall of a class with fewer than 10). Of a handful of images the others'
  ' are too short. * Lower is better. A dash: not defined by these data, or not'
  ' computed.'
)


def scored_on(evidence: Evidence) -> str:
  """What the first run was scored on, in a line; '' if it was not."""
  run = evidence.runs[0]
  result = run.evaluation
  if not result:
    return ''
  images = result['num_images']
  counted = f'{images:,} radiographs'
  if vocabulary.is_normal(run.class_names[0]):
    normal = result['per_class'][run.class_names[0]]['support']
    counted += f', {images - normal:,} of them with a lesion'
  name = pathlib.Path(str(result['data'])).name
  return f'Scored on {counted}: {name}, {result["split"]} split.'


def headline(evidence: Evidence) -> list[page.Fact]:
  """What the page begins with, of the first run."""
  result = evidence.runs[0].evaluation
  if not result:
    return []
  threshold, chosen_on = result.get('threshold'), result.get('chosen_on')
  at = ''
  if threshold is not None:
    at = f'at threshold {threshold:.3f}' + (
      f', chosen on {chosen_on}' if chosen_on else ''
    )
  facts = [
    _fact(SCORES[name], result, name, note)
    for name, note in (
      ('auroc_any_lesion', ''),
      ('sensitivity_any_lesion', at),
      ('specificity_any_lesion', at),
      ('balanced_accuracy', ''),
      ('macro_f1', ''),
    )
  ]
  maps = result.get('localisation') or {}
  against_ = ''
  if known := _pointing(maps, localisation_lib.BASELINES):
    best = max(known, key=known.get)
    against_ = f'best baseline: {best}, {known[best]:.3f}'
  if 'cam' in maps:
    facts.append(
      _fact('Pointing game, Grad-CAM', maps['cam'], 'pointing_game', against_)
    )
  stages = [name for name in maps if name.startswith('att_pos/')]
  if known := _pointing(maps, stages):
    best = max(known, key=known.get)
    title = f'Pointing game, {_map_name(best)}'
    if len(known) > 1:
      title += f' (best of {len(known)} stages)'
    facts.append(_fact(title, maps[best], 'pointing_game', against_))
  return [fact for fact in facts if fact]


def _pointing(maps, names):
  """{name: pointing game} of the maps that have one."""
  found = {
    name: maps[name]['scores'].get('pointing_game')
    for name in names
    if name in maps
  }
  return {name: value for name, value in found.items() if value is not None}


def _fact(what, group, name, note):
  """A page.Fact of a group or a map, or None where undefined."""
  value = group['scores'].get(name)
  if value is None:
    return None
  interval = group['intervals'].get(name)
  shown = '[{:.3f}, {:.3f}]'.format(*interval) if interval else ''
  return page.Fact(what, f'{value:.3f}', shown, note)


def decisions(section: page.Section, evidence: Evidence) -> None:
  """Confusion matrix, ROC and precision-recall curves."""
  runs = evidence.evaluated
  section.say(
    'Confusion: images, and the share of their true class. A curve stands for'
    ' one class against all others; "any lesion" is 1 minus the probability of'
    ' the class without one. The confusion counts the most probable class:'
    ' sensitivity and specificity of any lesion, under Scores, have a threshold'
    ' of their own, the dot on the ROC.'
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
    elif len(names) > MOST_CURVES:
      section.say(f'Curves of the {MOST_CURVES} commonest classes.', 'note')
    section.numbers[run.name] = numbers


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
  shown, numbers = {'roc': [], 'pr': []}, {'roc': {}, 'pr': {}}
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


def calibration(section: page.Section, evidence: Evidence) -> None:
  """Reliability diagrams before and after temperature scaling."""
  runs = [
    run for run in evidence.evaluated if run.evaluation.get('reliability')
  ]
  if not runs:
    raise page.Missing('evaluation.json has no reliability; evaluate again')
  section.say(
    'Of the images whose predicted class got a certain probability, how many'
    ' were right? On the dashed line the answer is that probability. The'
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


def scores(section: page.Section, evidence: Evidence) -> None:
  """All scores with their intervals."""
  runs = evidence.evaluated
  sets = {
    (str(run.evaluation['data']), run.evaluation['split']) for run in runs
  }
  if len(sets) > 1:
    section.say('These runs were scored on different images: their scores do'
                ' not compare.')  # fmt: skip
  section.say(_LEGEND, 'note')
  rows = []
  for name, title in SCORES.items():
    if any(run.evaluation['scores'].get(name) is not None for run in runs):
      rows.append([title, *(_cell(run.evaluation, name) for run in runs)])
    if name == 'accuracy':  # Beside what it is to be held against.
      rows += _plain_row(
        'Accuracy of always the commonest class', 'majority_accuracy', runs
      )
  rows += _plain_row('Threshold of any lesion', 'threshold', runs)
  rows += _plain_row('Temperature', 'temperature', runs)
  rows.append(['Images', *(f'{r.evaluation["num_images"]:,}' for r in runs)])
  section.table(['Score', *(run.name for run in runs)], rows, 'Summary')
  chosen = {run.evaluation.get('chosen_on') for run in runs} - {None}
  if chosen:
    section.say(
      f'Threshold and temperature were chosen on {", ".join(sorted(chosen))}.',
      'note',
    )
  for run in runs:
    result = run.evaluation
    section.table(
      ['Class', 'Images', *PER_CLASS.values()],
      [
        [
          name,
          f'{result["per_class"].get(name, {}).get("support", 0):,}',
          *(_cell(result, f'{score}/{name}') for score in PER_CLASS),
        ]
        for name in run.class_names
      ],
      f'Each class against the others: {run.name}',
    )
    section.numbers[run.name] = {
      key: result.get(key)
      for key in ('num_images', 'scores', 'intervals', 'per_class', 'threshold',
                  'temperature', 'majority_accuracy', 'chosen_on')
    }  # fmt: skip


def _plain_row(title, key, runs):
  """The row of a number of evaluation.json that has no interval, if any."""
  values = [run.evaluation.get(key) for run in runs]
  if all(value is None for value in values):
    return []
  return [[title, *map(page.score, values)]]


def subgroups(section: page.Section, evidence: Evidence) -> None:
  """The scores of each group of the metadata."""
  runs = [run for run in evidence.evaluated if run.evaluation.get('subgroups')]
  if not runs:
    raise page.Missing('the scored images have no metadata to group them by')
  section.say(
    'The same scores within groups of images. Small groups have wide intervals,'
    ' and the groups were not tested against each other.'
  )
  section.say(_LEGEND, 'note')
  columns: dict[str, dict[str, None]] = {}  # column -> its values, in order
  for run in runs:
    found = run.evaluation['subgroups']
    for column, groups in found.items():
      columns.setdefault(column, {}).update(dict.fromkeys(groups))
      names = [
        name
        for name in SCORES
        if any(g['scores'].get(name) is not None for g in groups.values())
      ]
      section.table(
        [column, 'Images', *(SCORES[name] for name in names)],
        [
          [value, f'{group["num_images"]:,}',
           *(_cell(group, name) for name in names)]
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
          _span(run.evaluation['subgroups'].get(column, {}).get(value), name)
          for value in values
        ]
        for run in runs
      }
      if any(any(found) for found in spans.values()):
        title = f'{SCORES[name]}, by {column}'
        charts[f'{number}-{name.replace("_", "-")}'] = (
          figures.intervals(
            list(values), spans, title=title, x=SCORES[name], y=column
          ),
          f'{title}: {_describe(list(values), spans)}',
        )
  section.charts(charts)


def localisation(section: page.Section, evidence: Evidence) -> None:
  """How the maps meet the boxes; overlays of hits and misses."""
  runs = [
    run for run in evidence.evaluated if run.evaluation.get('localisation')
  ]
  if not runs:
    raise page.Missing(
      'no scored image has a box, or the evaluation looked at no map'
    )
  section.say(
    'Do the maps lie in the boxes of the lesions? Pointing game: whether the'
    " map's maximum lies in a box. Energy: the share of the map that does. IoU:"
    ' of the boxes and the map, cut at a threshold that was chosen on'
    ' validation. Pixel AP: the average precision of the pixels. Means over the'
    ' images with boxes. The baselines random, centre and prior have not seen'
    ' the image.'
  )
  section.say(_LEGEND, 'note')
  names: dict[str, None] = {}  # of all maps, in order
  for run in runs:
    maps = run.evaluation['localisation']
    names |= dict.fromkeys(maps)
    section.table(
      ['Map', 'Images', *LOCALISATION.values(), 'Threshold'],
      [
        [
          _map_name(name),
          f'{one["num_images"]:,}',
          *(_cell(one, score) for score in LOCALISATION),
          page.score(one.get('threshold')),
        ]
        for name, one in maps.items()
      ],
      f'Localisation: {run.name}',
    )
    section.numbers[run.name] = maps
  charts = {}
  for score, title in LOCALISATION.items():
    spans = {
      run.name: [
        _span(run.evaluation['localisation'].get(name), score) for name in names
      ]
      for run in runs
    }
    if any(any(found) for found in spans.values()):
      rows = [_map_name(name) for name in names]
      charts[score.replace('_', '-')] = (
        figures.intervals(rows, spans, title=title, x='Mean over images',
                          y='Map'),
        f'{title}: {_describe(rows, spans)}',
      )  # fmt: skip
  section.charts(charts)
  section.heading(f'Overlays: {runs[0].name}')
  try:
    _gallery(section, evidence, runs[0])
  except page.Missing as missing:
    section.say(f'None: {missing}.', 'note')


def _gallery(section, evidence, run):
  """Overlays of seeded hits and misses of one run."""
  if 'cam' not in run.maps:
    raise page.Missing('maps.npz is missing or has no Grad-CAM')
  data = evidence.data('scored')
  if run.evaluation['split'] not in data.splits:
    raise page.Missing(f'{data.path} has no split {run.evaluation["split"]}')
  split = data.split(run.evaluation['split'])
  places = {str(name): row for row, name in enumerate(split.ids)}
  if not run.pointing:
    raise page.Missing('localisation.csv is missing or has no Grad-CAM')
  known = [
    (i, places[name], run.pointing[name] >= 0.5)
    for i, name in enumerate(run.maps['ids'].tolist())
    if name in places and name in run.pointing
  ]
  if not known:
    raise page.Missing('no image with boxes has a map')
  of_map, rows, hit = map(np.array, zip(*known, strict=True))
  cams = run.maps['cam'][of_map].astype(np.float32)
  rng = np.random.default_rng(evidence.seed)
  order = rng.permutation(len(rows))
  hits, misses = order[hit[order]], order[~hit[order]]
  half = OVERLAYS // 2  # of each, if there are so many
  share = max(half, OVERLAYS - len(misses)), max(half, OVERLAYS - len(hits))
  hits, misses = hits[: share[0]], misses[: share[1]]
  section.say(
    f'{len(hits)} of {hit.sum():,} hits and {len(misses)} of'
    f' {(~hit).sum():,} misses of the pointing game of Grad-CAM, drawn at'
    f' random (seed {evidence.seed}); none was chosen by hand. Hit and miss are'
    " about the place of Grad-CAM's maximum, not about the predicted class."
    ' From blue over red to yellow the colours stand for low to high: Grad-CAM'
    " as a share of its maximum in the image, the network's attention to"
    ' lesions (map+) and to all else (map-) from 0 to 1.'
  )
  stages = sorted(
    name.removeprefix('att_pos/')
    for name in run.maps
    if name.startswith('att_pos/') and f'att_neg/{name[8:]}' in run.maps
  )
  predicted = dict(zip(run.ids.tolist(), _predicted(run), strict=True))
  chosen = []
  for kind, picked in (('hit', hits), ('miss', misses)):
    for number, i in enumerate(picked):
      row, place = rows[i], of_map[i]
      id = str(split.ids[row])
      label = str(data.class_names[split.labels[row]])
      prediction = predicted.get(id, 'unknown')
      maps = {'Grad-CAM': (cams[i], None)}
      if stages:
        maps |= {
          _map_name(name): (run.maps[name][place].astype(np.float32), 1.0)
          for name in (f'att_pos/{stages[0]}', f'att_neg/{stages[0]}')
        }
      rest = {
        'image': read_image(split, row),
        'boxes': split.boxes[row],
        'num_boxes': int(split.num_boxes[row]),
        'label': label,
        'prediction': prediction,
        'side': SIDE,
      }
      about = f'{id}, class {label}, predicted {prediction}'
      section.row(
        f'{kind}-{number}',
        overlay.draw(maps=maps, **rest),
        SIDE,
        ['Radiograph', *maps],
        f'Grad-CAM {kind}: {about}',
      )
      if len(stages) > 1 and not chosen:
        maps = {
          _map_name(name): (run.maps[name][place].astype(np.float32), 1.0)
          for name in (f'att_pos/{stage}' for stage in stages)
        }
        section.row(
          'stages',
          overlay.draw(maps=maps, **rest),
          SIDE,
          [*maps],  # The radiograph stands in the row above.
          f'map+ at every stage: {about}',
        )
      chosen.append({'id': id, 'hit': kind == 'hit'})
  section.numbers['overlays'] = chosen


def _predicted(run):
  if run.probabilities is None:
    return []
  return [run.class_names[c] for c in run.probabilities.argmax(axis=1)]


def comparison(section: page.Section, evidence: Evidence) -> None:
  """Paired differences: the first run minus each other one."""
  first, *others = evidence.runs
  found, said = [], []  # (title, other, against.compare's); why none
  for other in others:
    result = _compare(first, other, evidence)
    if isinstance(result, str):
      said.append(f'{first.name} and {other.name}: {result}')
    else:
      found.append((f'{first.name} minus {other.name}', other.name, result))
  if not found:
    reason = '; '.join(said) or 'it takes two workdirs (--workdir=A,B)'
    raise page.Missing(reason)
  section.say(
    'Two runs were scored on the same images, so that each resample of the'
    ' bootstrap is the same for both. An interval without 0 is a difference'
    ' that these images show; the noise of training, which another seed would'
    ' show, is not in it.'
  )
  section.say(_LEGEND, 'note')
  for line in said:
    section.say(f'{line}.', 'note')
  for number, (title, name_b, one) in enumerate(found):
    differences = one['scores']
    names = [
      name for name in SCORES if differences[name]['difference'] is not None
    ]
    spans = [_difference(differences[name]) for name in names]
    rows = [SCORES[name] for name in names]
    section.charts(
      {
        str(number): (
          figures.intervals(rows, {title: spans}, title=title, x='Difference',
                            y='Score', zero=True),
          f'Differences: {_describe(rows, {title: spans}, "+")}',
        )
      }
    )  # fmt: skip
    section.table(
      ['Score', 'Difference'],
      [
        *(
          [SCORES[name], _difference_cell(differences[name])]
          for name in names
        ),
        *(
          [f'{_map_name(name)}: {LOCALISATION[score]}',
           _difference_cell(difference)]
          for name, by_score in one['localisation'].items()
          for score, difference in by_score.items()
        ),
      ],
      title,
    )  # fmt: skip
    test = one['mcnemar']
    section.say(
      f'Right in {first.name} only: {test["only_a_right"]:,} images; in'
      f' {name_b} only: {test["only_b_right"]:,}. McNemar, exact: p ='
      f' {_p_value(test["p_value"])}.'
    )
    section.numbers[title] = one


def _compare(run, other, evidence):
  """against.compare of run minus other; or why not, a line."""
  for one in (run, other):
    if one.probabilities is None or one.evaluation is None:
      return f'{one.name} has no whole evaluation'
  try:
    return against.compare(
      run.workdir,
      other.workdir,
      resamples=evidence.resamples,
      seed=evidence.seed,
    )
  except ValueError as error:
    return str(error)


def _cell(group, name):
  """A score and its interval, of a group or a map."""
  return page.score(group['scores'].get(name), group['intervals'].get(name))


def _span(group, name):
  """(value, low, high), or None where undefined."""
  value = group['scores'].get(name) if group else None
  if value is None:
    return None
  return value, *(group['intervals'].get(name) or (value, value))


def _difference(one):
  value = one['difference']
  return value, *(one['interval'] or (value, value))


def _difference_cell(one):
  return page.score(one['difference'], one['interval'], '+')


def _describe(rows, spans, sign=''):
  """The values of a chart in words."""
  return '; '.join(
    f'{name}: '
    + ', '.join(
      f'{row} {span[0]:{sign}.3f}'
      for row, span in zip(rows, found, strict=True)
      if span
    )
    for name, found in spans.items()
  )


def _map_name(name):
  """In words: of evaluation.json's localisation."""
  kind, _, stage = name.partition('/')
  words = {
    'cam': 'Grad-CAM',
    'att_pos': 'map+',
    'att_neg': 'map-',
    'random': 'random: uniform noise',
    'centre': 'centre: Gaussian in the middle',
    'prior': 'prior: mean lesion mask of training',
  }
  return words.get(kind, kind) + (f', {stage}' if stage else '')


def _p_value(value):
  return f'{value:.3f}' if value >= 0.001 else f'{value:.1e}'
