"""What stands above the sections of the report: warnings and large figures."""

import pathlib

from dpjax.data import vocabulary
from dpjax.evaluation import localisation
from dpjax.report import page, words
from dpjax.report.report_data import ReportData


def warnings(report_data: ReportData) -> list[str]:
  """What nobody may overlook, for the top of the page."""
  layouts = {run.config.data.layout for run in report_data.runs if run.config}
  sets = (report_data.scored, report_data.trained)
  # A set is named after its layout.
  layouts |= {data.info.get('name') for data in sets if data}
  if 'phantom' not in layouts:
    return []
  return [
    'The radiographs are computed phantoms: scores on them say nothing about'
    ' patients.'
  ]


def scored_on(report_data: ReportData) -> str:
  """What the first run was scored on, in a line; '' if it was not."""
  run = report_data.runs[0]
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


def facts(report_data: ReportData) -> list[page.Fact]:
  """What the page begins with, of the first run."""
  result = report_data.runs[0].evaluation
  if not result:
    return []
  threshold, chosen_on = result.get('threshold'), result.get('chosen_on')
  at = ''
  if threshold is not None:
    at = f'at threshold {threshold:.3f}' + (
      f', chosen on {chosen_on}' if chosen_on else ''
    )
  found = [
    _fact(words.SCORES[name], result, name, note)
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
  if known := _pointing(maps, localisation.BASELINES):
    best = max(known, key=known.get)
    against_ = f'best baseline: {best}, {known[best]:.3f}'
  if 'cam' in maps:
    found.append(
      _fact('Pointing game, Grad-CAM', maps['cam'], 'pointing_game', against_)
    )
  stages = [name for name in maps if name.startswith('att_pos/')]
  if known := _pointing(maps, stages):
    best = max(known, key=known.get)
    title = f'Pointing game, {words.map_name(best)}'
    if len(known) > 1:
      title += f' (best of {len(known)} stages)'
    found.append(_fact(title, maps[best], 'pointing_game', against_))
  return [fact for fact in found if fact]


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
