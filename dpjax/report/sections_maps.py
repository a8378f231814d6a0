"""Section of the report: where the network looks.

A section is a function of (section, report_data) that writes into the section,
or raises page.Missing with the reason why it is left out.
"""

import numpy as np

from dpjax.report import figures, overlay, page, words
from dpjax.report.report_data import ReportData, read_image

OVERLAYS = 8  # half hits, half misses
SIDE = 256  # pixels of an overlay's panel


def localisation(section: page.Section, report_data: ReportData) -> None:
  """How the maps meet the boxes; overlays of hits and misses."""
  runs = [
    run for run in report_data.evaluated if run.evaluation.get('localisation')
  ]
  if not runs:
    raise page.Missing(
      'no scored image has a box, or the evaluation made no maps'
    )
  section.say(
    'Do the maps lie in the boxes of the lesions? Pointing game: whether the'
    " map's maximum lies in a box. Energy: the share of the map inside the"
    ' boxes. IoU: of the boxes and the map, cut at a threshold chosen on'
    ' validation. Pixel AP: the average precision of the pixels. Means over the'
    ' images with boxes. The baselines random, centre and prior have not seen'
    ' the image.'
  )
  section.say(words.legend(run.evaluation for run in runs), 'note')
  for run in runs:
    _map_table(section, run)
    section.numbers[run.name] = run.evaluation['localisation']
  section.charts(_map_charts(runs))
  section.heading(f'Overlays: {runs[0].name}')
  try:
    _gallery(section, report_data, runs[0])
  except page.Missing as missing:
    section.say(f'None: {missing}.', 'note')


def _map_table(section, run):
  """The scores of each map of one run."""
  section.table(
    ['Map', 'Images', *words.LOCALISATION.values(), 'Threshold'],
    [
      [
        words.map_name(name),
        f'{one["num_images"]:,}',
        *(words.cell(one, score) for score in words.LOCALISATION),
        page.score(one.get('threshold')),
      ]
      for name, one in run.evaluation['localisation'].items()
    ],
    f'Localisation: {run.name}',
  )
  target = words.CAM_TARGETS.get(run.evaluation.get('cam_target'))
  if target is not None:  # An earlier version did not record it.
    section.say(
      f'Grad-CAM of {target}, at {run.evaluation["cam_stage"]}.', 'note'
    )


def _map_charts(runs):
  """A chart of each score, over the maps that any run has."""
  found = {run.name: run.evaluation['localisation'] for run in runs}
  names = list(dict.fromkeys(name for maps in found.values() for name in maps))
  rows = [words.map_name(name) for name in names]
  charts = {}
  for score, title in words.LOCALISATION.items():
    spans = {
      run: [words.span(maps.get(name), score) for name in names]
      for run, maps in found.items()
    }
    if any(any(values) for values in spans.values()):
      charts[score.replace('_', '-')] = (
        figures.intervals(rows, spans, title=title, x='Mean over images',
                          y='Map'),
        f'{title}: {words.describe(rows, spans)}',
      )  # fmt: skip
  return charts


def _gallery(section, report_data, run):
  """Overlays of seeded hits and misses of one run."""
  split, known = _known(report_data, run)
  hit = np.array([run.pointing[id] >= 0.5 for id, _, _ in known])
  hits, misses = _drawn(hit, report_data.seed)
  section.say(
    f'{len(hits)} of {hit.sum():,} hits and {len(misses)} of'
    f' {(~hit).sum():,} misses of the pointing game of Grad-CAM, drawn at'
    f' random (seed {report_data.seed}); none was chosen by hand. Hit and miss'
    " are about the place of Grad-CAM's maximum, not about the predicted class."
    ' From blue over red to yellow the colours stand for low to high: Grad-CAM'
    " as a share of its maximum in the image, the network's attention to"
    ' lesions (map+) and to all else (map-) from 0 to 1.'
  )
  stages = _stages(run)
  names = report_data.prepared('scored').class_names
  predicted = _predicted(run)
  chosen: list[dict] = []
  for kind, picked in (('hit', hits), ('miss', misses)):
    for number, i in enumerate(picked):
      id, place, row = known[i]
      caption = {
        'label': str(names[split.labels[row]]),
        'prediction': predicted.get(id, 'unknown'),
      }
      about = (
        f'{id}, class {caption["label"]}, predicted {caption["prediction"]}'
      )
      maps = {'Grad-CAM': (run.maps['cam'][place].astype(np.float32), None)}
      maps |= _attention(run, place, stages[:1], ('att_pos', 'att_neg'))
      section.row(
        f'{kind}-{number}',
        _overlay(split, row, maps, caption),
        SIDE,
        ['Radiograph', *maps],
        f'Grad-CAM {kind}: {about}',
      )
      if len(stages) > 1 and not chosen:
        maps = _attention(run, place, stages, ('att_pos',))
        section.row(
          'stages',
          _overlay(split, row, maps, caption),
          SIDE,
          [*maps],  # The radiograph stands in the row above.
          f'map+ at every stage: {about}',
        )
      chosen.append({'id': id, 'hit': kind == 'hit'})
  section.numbers['overlays'] = chosen


def _known(report_data, run):
  """What can be shown: the scored split, [(id, place in maps, row in split)].

  Raises:
    page.Missing: nothing can.
  """
  if 'cam' not in run.maps:
    raise page.Missing('maps.npz is missing or has no Grad-CAM')
  data = report_data.prepared('scored')
  if run.evaluation['split'] not in data.splits:
    raise page.Missing(f'{data.path} has no split {run.evaluation["split"]}')
  split = data.split(run.evaluation['split'])
  if not run.pointing:
    raise page.Missing('localisation.csv is missing or has no Grad-CAM')
  rows = {str(id): row for row, id in enumerate(split.ids)}
  known = [
    (id, place, rows[id])
    for place, id in enumerate(run.maps['ids'].tolist())
    if id in rows and id in run.pointing
  ]
  if not known:
    raise page.Missing('no image with boxes has a map')
  return split, known


def _drawn(hit, seed):
  """Indices of hits and of misses, OVERLAYS together, half of each if it can.

  Args:
    hit: (N,) bool.
    seed: of their order.
  """
  order = np.random.default_rng(seed).permutation(len(hit))
  hits, misses = order[hit[order]], order[~hit[order]]
  half = OVERLAYS // 2
  share = max(half, OVERLAYS - len(misses)), max(half, OVERLAYS - len(hits))
  return hits[: share[0]], misses[: share[1]]


def _stages(run):
  """The stages that have both maps of attention, in order."""
  return sorted(
    name.removeprefix('att_pos/')
    for name in run.maps
    if name.startswith('att_pos/') and f'att_neg/{name[8:]}' in run.maps
  )


def _attention(run, place, stages, signs):
  """Maps of attention for overlay.draw, on a scale from 0 to 1."""
  return {
    words.map_name(name): (run.maps[name][place].astype(np.float32), 1.0)
    for name in (f'{sign}/{stage}' for stage in stages for sign in signs)
  }


def _overlay(split, row, maps, caption):
  """A row of panels; `caption` has label and prediction."""
  return overlay.draw(
    read_image(split, row),
    split.boxes[row],
    int(split.num_boxes[row]),
    maps,
    side=SIDE,
    caption=[f'{name}: {value}' for name, value in caption.items()],
  )


def _predicted(run):
  """{id: name of the most probable class}; {} without predictions.csv."""
  if run.probabilities is None:
    return {}
  names = (run.class_names[c] for c in run.probabilities.argmax(axis=1))
  return dict(zip(run.ids.tolist(), names, strict=True))
