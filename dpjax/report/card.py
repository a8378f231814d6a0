"""The model card: what a run knows of itself, in Markdown.

A section is a function of a _Subject that returns its lines; without lines it
is left out, and what guidelines ask of it is open.

Source: Mitchell et al. (2019), "Model Cards for Model Reporting".
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dpjax.data import vocabulary
from dpjax.evaluation import localisation
from dpjax.metrics import score_table, subgroups
from dpjax.report import card_items, headline, sections_run, words
from dpjax.report.report_data import ReportData

FILE = 'MODEL_CARD.md'
# From here on a number counts as a weakness.
_LOW_RECALL, _HIGH_ECE, _FEW, _WIDE = 0.5, 0.1, 100, 0.1
_OPEN = '**Open: for a person to fill in.**'
# Facts of a run that other sections tell.
_ELSEWHERE = ('Network', 'Input', 'Classes', 'Scored')
# Metadata columns that say who the patients are, and where from.
_ABOUT = ('sex', 'gender', 'age', 'view', 'source', 'site', 'hospital',
          'manufacturer', 'country')  # fmt: skip


class _Subject(NamedTuple):
  """What a section is written from.

  Attributes:
    data: of a run, or of several that are one model.
    model: what model.json says of it; None if it is not exported.
  """

  data: ReportData
  model: Mapping[str, Any] | None


def render(
  report_data: ReportData, model: Mapping[str, Any] | None = None
) -> str:
  """The card of a run, or of several that answer together.

  Args:
    report_data: of these runs.
    model: what model.json says, for the card of an export; several runs are
      one by that only.

  Returns:
    Markdown.
  """
  report_data, warnings = _of_its_checkpoints(report_data, model)
  name = ', '.join(run.name for run in report_data.runs)
  parts = [
    f'# Model card: {name}\n\n'
    'Research code, not a medical device. Written by a program from what the'
    ' run has on record; what is open needs a person.\n'
  ]
  warnings += headline.warnings(report_data)
  parts += [f'> Warning: {line}\n' for line in warnings]
  answered = set()
  for title, make in _SECTIONS.items():
    lines = make(_Subject(report_data, model))
    if lines:
      answered.add(title)
      parts.append(f'## {title}\n\n' + '\n'.join(lines) + '\n')
  parts.append('## Reporting guidelines\n\n' + _guidelines(answered))
  return '\n'.join(parts)


def _of_its_checkpoints(report_data, model):
  """The data without what was found of other checkpoints, and lines on it."""
  if model is None:
    return report_data, []
  runs, lines = [], []
  for run, told in zip(report_data.runs, model['runs'], strict=True):
    why = run.evaluation and _of_another(run.evaluation, told)
    if why:
      lines.append(
        f'{run.name} was evaluated {why}: nothing of that evaluation stands'
        ' here.'
      )
      run = dataclasses.replace(run, evaluation={})
    runs.append(run)
  return dataclasses.replace(report_data, runs=runs), lines


def _of_another(result, told):
  """How the checkpoint that was scored differs from the one exported, or ''."""
  if result.get('step') != told['step']:
    return f'at step {result.get("step")}, and this is step {told["step"]}'
  # A run that was trained anew comes to the same step; earlier versions did not
  # record the weights.
  if result.get('weights') not in (None, told['hashes']['weights']):
    return f'with other weights than step {told["step"]} has now'
  return ''


def _use(subject):
  names = subject.data.runs[0].config and _classes(subject.data.runs[0])
  told = f' as {", ".join(names)}' if names else ''
  return [
    f'Meant for research: sorting chest radiographs{told}, of the kind that it'
    ' was trained on (see Data), and comparing methods on them.',
    '',
    'Not meant for:',
    '',
    '- diagnosis, triage or any decision about a patient;',
    '- other images than frontal chest radiographs, or radiographs of patients,'
    ' machines or sites unlike those under Data;',
    '- a claim that a radiograph without a finding is normal: what was not'
    ' labelled was not learned.',
    '',
    f'Users, setting, place in the workflow: {_OPEN}',
  ]


def _model(subject):
  lines, model = [], subject.model
  for run in subject.data.runs:
    if run.config is None:
      continue
    c, facts = run.config, sections_run.facts(run)
    lines += [
      f'- {run.name}: {facts["Network"]}; {c.data.image_size} pixels, resized'
      f' inside the network from squares of {c.data.store_size}'
      f' ({_fit(c)}); grey levels less {c.data.mean:g}, by {c.data.std:g}.'
    ]
  if not lines:
    return []
  if len(subject.data.runs) > 1:
    lines.append(
      '- An ensemble: the mean of the softmax of their logits, then as a whole'
      f' {_scaled(model)}; the most probable class.'
    )
  else:
    lines.append(
      '- Prediction: the softmax of the logits, by the temperature under'
      ' Calibration where there is one; the most probable class.'
    )
  if model:
    versions = ', '.join(f'{n} {v}' for n, v in model['versions'].items())
    files = ', '.join(f'`{name}`' for name in model['files'])
    lines += [
      f'- Files: {files}; each answered as its checkpoint on'
      f' `{model["test_vectors"]["file"]}`.',
      f'- Software: {versions}.',
    ]
    if model['threshold'] is not None:
      lines.append(
        '- Any lesion: where 1 - p of the first class is at least'
        f' {model["threshold"]:.3f}, of calibrated probabilities.'
      )
    for run in model['runs']:
      lines.append(
        f'- {run["name"]}: step {run["step"]}, sha256 of its weights'
        f' `{run["hashes"]["weights"]}`.'
      )
  return lines


def _scaled(model):
  """How the mean of an ensemble is calibrated."""
  temperature = model['temperature']
  if temperature is None:
    return 'not calibrated'
  return f'calibrated by temperature {temperature:.3f}'


def _fit(config):
  return {
    'stretch': 'both sides stretched',
    'pad': 'the aspect kept, on black',
  }[config.data.fit]


def _classes(run):
  return run.class_names if run.evaluation else ()


def _data(subject):
  data = subject.data.trained
  if data is None:
    return []
  info = getattr(data, 'info', {})
  lines = [f'Set: {info.get("name", "unknown")}, classes {_listed(data)}.', '']
  names = [*data.class_names]
  rows = []
  for split_name, split in data.splits.items():
    labels = np.asarray(split.labels)
    groups = getattr(split, 'groups', None)
    patients = '-' if groups is None else f'{len(np.unique(groups)):,}'
    rows.append(
      [
        split_name, f'{len(split):,}', patients,
        *(f'{int((labels == c).sum()):,}' for c in range(len(names))),
        f'{int((np.asarray(split.num_boxes) > 0).sum()):,}',
      ]
    )  # fmt: skip
  lines += _table(
    ['Split', 'Radiographs', 'Patients', *map(str, names), 'With boxes'], rows
  )
  if info.get('patients', 0) is None:
    lines += ['', 'Patients are not named: each image counts as one.']
  run = subject.data.runs[0]
  if run.config is not None and 'split' in run.config:
    split = run.config.split
    by_patient = (
      'All images of a patient, and copies of an image, are on one side of the'
      f' split (seed {split.seed}).'
    )
    by_image = (
      'Images of one patient may be on both sides of the split (seed'
      f' {split.seed}), and scores then look better than they are; copies of'
      ' an image are on one side.'
    )
    lines += ['', by_image if split.get('unit') == 'image' else by_patient]
  if info.get('warnings'):
    lines += ['', *(f'- Warning: {line}' for line in info['warnings'])]
  return lines


def _listed(data):
  return ', '.join(map(str, data.class_names))


def _demography(subject):
  """Who is in each split, by the set's metadata."""
  data = subject.data.trained
  if data is None:
    return []
  lines = []
  for column in _columns(data):
    splits = {
      name: split.metadata[column]
      for name, split in data.splits.items()
      if column in split.metadata and len(split)
    }
    every = np.concatenate([*splits.values()]) if splits else np.array([])
    groups = subgroups.groups(every) if len(every) else {}
    if len(groups) < 2:
      continue
    start = 0
    counts: dict[str, dict[str, int]] = collections.defaultdict(dict)
    for name, values in splits.items():
      rows = np.arange(start, start + len(values))
      start += len(values)
      for group, members in groups.items():
        counts[group][name] = int(np.isin(members, rows).sum())
    lines += [
      f'By {column}:',
      '',
      *_table(
        [column, *splits],
        [[g, *(f'{n:,}' for n in c.values())] for g, c in counts.items()],
      ),
      '',
    ]
  return lines[:-1]


def _columns(data):
  known = dict.fromkeys(
    column for split in data.splits.values() for column in split.metadata
  )
  return [c for c in known if not _words(c).isdisjoint(_ABOUT)]


def _words(column):
  """'PatientSex_DICOM' -> {'patient', 'sex', 'dicom'}."""
  words_ = re.findall(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+', column)
  return {word.lower() for word in words_}


def _training(subject):
  lines = []
  for run in subject.data.runs:
    if run.config is None:
      continue
    facts, c = sections_run.facts(run), run.config
    lines += [f'{run.name}:', ''] if len(subject.data.runs) > 1 else []
    lines += [
      f'- {name}: {value}'
      for name, value in facts.items()
      if name not in _ELSEWHERE
    ]
    if begin := c.get('retrain', {}).get('optim', {}).get('begin', 0):
      lines.append(
        f'- Trained further from step {begin}; the schedule was drawn anew over'
        ' the steps that were left.'
      )
    checkpoint = run.evaluation.get('checkpoint')
    if checkpoint:
      how = {'last': 'the last one', 'best': f'the best by {c.eval.best} on'
             ' validation'}[checkpoint]  # fmt: skip
      lines.append(f'- Why this checkpoint: it is {how}')
    lines.append('')
  return lines[:-1]


def _scores(subject):
  lines = []
  for run in subject.data.runs:
    result = run.evaluation
    if not result:
      continue
    lines += [
      f'{run.name}: {result["num_images"]:,} radiographs:'
      f' {pathlib.Path(str(result["data"])).name}, {result["split"]} split;'
      f' 95 % bootstrap intervals over {words.drawn(result)}.',
      '',
      *_table(
        ['Score', 'Value'],
        [
          [score.long, _cell(result, name)]
          for name, score in score_table.SUMMARY.items()
          if result['scores'].get(name) is not None
        ],
      ),
      '',
      *_table(
        ['Class', 'Images', *(s.long for s in score_table.PER_CLASS.values())],
        [
          [
            name,
            f'{result["per_class"][name]["support"]:,}',
            *(_cell(result, f'{s}/{name}') for s in score_table.PER_CLASS),
          ]
          for name in run.class_names
        ],
      ),
      '',
    ]
  if lines and len(subject.data.runs) > 1:
    lines += [
      'These are of each run alone; of the ensemble this card knows no score.',
      '',
    ]
  return lines[:-1]


def _subgroups(subject):
  lines = []
  for run in subject.data.runs:
    for column, groups in (run.evaluation.get('subgroups') or {}).items():
      names = [
        name
        for name in ('auroc_any_lesion', 'balanced_accuracy')
        if any(g['scores'].get(name) is not None for g in groups.values())
      ]
      lines += [
        f'{run.name}, by {column}:',
        '',
        *_table(
          [column, 'Images', *(score_table.SUMMARY[n].long for n in names)],
          [
            [
              name,
              f'{group["num_images"]:,}',
              *(_cell(group, n) for n in names),
            ]
            for name, group in groups.items()
          ],
        ),
        '',
      ]
  return lines[:-1]


def _calibration(subject):
  lines = []
  if len(subject.data.runs) > 1:
    lines.append(
      f'- The ensemble: {_scaled(subject.model)}. What each run alone has'
      ' chosen is not used.'
    )
  for run in subject.data.runs:
    result = run.evaluation
    if result.get('temperature') is None:
      continue
    errors = ' and '.join(
      f'{_cell(result, name)} {when}'
      for name, when in (('ece', 'before'), ('ece_scaled', 'after'))
      if result['scores'].get(name) is not None
    )
    lines.append(
      f'- {run.name}: temperature {result["temperature"]:.3f}, chosen on'
      f' {result.get("chosen_on")}; expected calibration error {errors}.'
    )
    if result.get('threshold') is not None:
      lines.append(
        f'- {run.name}: any lesion is said from {result["threshold"]:.3f} on,'
        " of probabilities before calibration (Youden's)."
      )
  return lines


def _localisation(subject):
  lines = []
  for run in subject.data.runs:
    found = run.evaluation.get('localisation') or {}
    if not found:
      continue
    names = [*localisation.SCORES]
    lines += [
      f'{run.name}: maps against the boxes; {", ".join(localisation.BASELINES)}'
      ' have not seen the image.',
      '',
      *_table(
        ['Map', 'Images', *(localisation.SCORES[n].long for n in names)],
        [
          [name, f'{one["num_images"]:,}', *(_cell(one, n) for n in names)]
          for name, one in found.items()
        ],
      ),
      '',
    ]
  return lines[:-1]


def _weaknesses(subject):
  """What the numbers themselves say against the model."""
  lines = [
    *headline.warnings(subject.data),
    *(line for run in subject.data.runs for line in _weaknesses_of(run)),
  ]
  lines.append(
    'Scored on one source only: nothing here says how it does elsewhere.'
  )
  return [f'- {line}' for line in dict.fromkeys(lines)]


def _weaknesses_of(run):
  result, name = run.evaluation, run.name
  if not result:
    yield (
      f'{name}: this checkpoint was not evaluated, so nothing is known of its'
      ' scores.'
    )
    return
  yield from _weak_scores(name, result)
  for column, groups in (result.get('subgroups') or {}).items():
    for group, one in groups.items():
      for score in ('auroc_any_lesion', 'balanced_accuracy'):
        interval = one['intervals'].get(score)
        whole = result['scores'].get(score)
        if interval and whole is not None and interval[1] < whole:
          yield (
            f'{name}: {score_table.SUMMARY[score].long} of {column} {group} is'
            f' {_cell(one, score)}, below {whole:.3f} of all.'
          )
  maps = result.get('localisation') or {}
  known = {n: maps[n]['scores'].get('pointing_game') for n in maps}
  known = {n: value for n, value in known.items() if value is not None}
  blind = {n: v for n, v in known.items() if n in localisation.BASELINES}
  if 'cam' in known and blind and known['cam'] <= max(blind.values()):
    yield (
      f'{name}: Grad-CAM finds lesions no better than the baseline'
      f' {max(blind, key=blind.__getitem__)}, which has not seen the image.'
    )


def _weak_scores(name, result):
  """Of the whole split."""
  for class_name in map(str, result['class_names']):
    one = result['per_class'][class_name]
    recall = one.get('recall')
    if recall is not None and recall < _LOW_RECALL:
      yield (
        f'{name}: of the {one["support"]:,} images of class {class_name},'
        f' {recall:.0%} are recognised.'
      )
  majority = result.get('majority_accuracy')
  accuracy = result['scores'].get('accuracy')
  if None not in (majority, accuracy) and accuracy <= majority:
    yield (
      f'{name}: its accuracy, {accuracy:.3f}, is no better than always saying'
      f' the commonest class, {majority:.3f}.'
    )
  for score in ('auroc_any_lesion', 'balanced_accuracy'):
    interval = result['intervals'].get(score)
    if interval and interval[1] - interval[0] > 2 * _WIDE:
      yield (
        f'{name}: the interval of {score_table.SUMMARY[score].long} is wide,'
        f' {_cell(result, score)}.'
      )
  if result['num_images'] < _FEW:
    yield f'{name}: scored on {result["num_images"]:,} radiographs only.'
  scaled = result['scores'].get('ece_scaled')
  if scaled is not None and scaled > _HIGH_ECE:
    yield (
      f'{name}: probabilities are off by {scaled:.3f} on average, after'
      ' calibration too.'
    )
  if result.get('temperature') is None:
    yield (
      f'{name}: not calibrated, for want of a validation split: probabilities'
      ' are as the network gives them.'
    )
  if result.get('threshold') is None and vocabulary.is_normal(
    str(result['class_names'][0])
  ):
    yield f'{name}: no threshold was chosen.'


def _guidelines(answered):
  """Which items the card answers, and which it leaves to a person, by name."""
  parts = []
  for guideline, items in (
    ('CLAIM (2024 update)', card_items.CLAIM),
    ('TRIPOD+AI (2024)', card_items.TRIPOD_AI),
  ):
    here = [item for item in items if item[2] in answered]
    left = [item for item in items if item[2] not in answered]
    parts += [
      f'### {guideline}\n',
      f'Answered here, {len(here)} of {len(items)}, as far as a program can:\n',
      *(f'- {number} {what}: {where}' for number, what, where in here),
      f'\nOpen, for a person, {len(left)}:\n',
      *(f'- [ ] {number} {what}' for number, what, _ in left),
      '',
    ]
  return '\n'.join(parts)


def _cell(group, name):
  """A score and its interval, of a group or a map."""
  value = group['scores'].get(name)
  if value is None and '/' in name:  # Of a class.
    score, _, class_name = name.partition('/')
    value = group['per_class'][class_name].get(score)
  if value is None:
    return '-'
  interval = group['intervals'].get(name)
  shown = ' [{:.3f}, {:.3f}]'.format(*interval) if interval else ''
  return f'{value:.3f}{shown}'


def _table(header, rows):
  """The lines of a Markdown table; the first column names the rows."""
  lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
  return [
    '| ' + ' | '.join(_escaped(cell) for cell in line) + ' |' for line in lines
  ]


def _escaped(cell):
  return str(cell).replace('|', '\\|').replace('\n', ' ')


# In the order of the card: title -> function that writes it.
_SECTIONS = {
  'Intended use': _use,
  'Model': _model,
  'Data': _data,
  'Demography': _demography,
  'Training': _training,
  'Scores': _scores,
  'Subgroups': _subgroups,
  'Calibration': _calibration,
  'Localisation': _localisation,
  'Known weaknesses': _weaknesses,
}
