"""The report command: what runs are worth, on one page that opens from disk."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from dpjax import atomic, signals
from dpjax.config import record as record_lib
from dpjax.data import store
from dpjax.errors import UserError, one_line, warn
from dpjax.evaluation import files
from dpjax.report import (
  card,
  headline,
  page,
  report_data,
  sections_data,
  sections_maps,
  sections_run,
  sections_score,
)

# The page in its order: key -> (title, function that writes the section). A new
# section is a function (section, report_data) in a sections_*.py, and a line.
SECTIONS = {
  'run': ('What was run', sections_run.what_was_run),
  'classes': ('One radiograph of each class', sections_data.classes),
  'counts': ('The data', sections_data.counts),
  'masks': ('The masks that attention is taught', sections_data.masks),
  'training': ('Training', sections_run.training),
  'decisions': ('Confusion, ROC, precision', sections_score.decisions),
  'calibration': ('Calibration', sections_score.calibration),
  'scores': ('Scores', sections_score.scores),
  'subgroups': ('Subgroups', sections_score.subgroups),
  'localisation': ('Does it look at the lesion?', sections_maps.localisation),
  'comparison': ('Paired comparison', sections_score.comparison),
  'speed': ('Speed', sections_run.speed),
}


def write(
  workdirs: Sequence[str | pathlib.Path], config: ConfigDict
) -> pathlib.Path:
  """Writes report.html, report.json, report/ and, of a classifier, its card.

  All into the first workdir. The page is one file that needs nothing else;
  report/ holds its figures as PNG files and report.json all of its numbers. A
  section whose data are missing is left out, and says so.

  Args:
    workdirs: of stage II runs or recipes; the others are compared with the
      first.
    config: as resolved (dpjax.config.resolve); the sections `evaluate` (seed,
      resamples) and `data.path`, where a run's own set was moved, count.

  Returns:
    The path of report.html.

  Raises:
    UserError: one line: a workdir holds no run.
    OSError: the report cannot be written.
  """
  folder = pathlib.Path(workdirs[0]) if workdirs else pathlib.Path()
  found = gather(workdirs, config)
  runs = found.runs
  for run in runs:
    for note in run.notes:
      warn(one_line(f'{run.workdir}: {note}'))
  written = []
  for key, (title, make) in SECTIONS.items():
    section = page.Section(key, title)
    try:
      signals.check()
      make(section, found)
    except page.Missing as missing:
      section.leave_out(str(missing))
    written.append(section)
  html = page.render(
    f'Report: {", ".join(run.name for run in runs)}',
    _lead(folder, found),
    headline.warnings(found),
    headline.scored_on(found),
    headline.facts(found),
    runs[0].name if len(runs) > 1 else '',
    written,
  )
  _write(folder, html, written, runs)
  return folder / 'report.html'


def gather(
  workdirs: Sequence[str | pathlib.Path], config: ConfigDict
) -> report_data.ReportData:
  """What `write` makes a report of; the arguments are those.

  Raises:
    UserError: one line: a workdir holds no run.
  """
  runs = report_data.load_runs(workdirs)
  trained, scored, no_data = _sets(runs[0], config)
  return report_data.ReportData(
    runs=runs,
    scored=scored,
    trained=trained,
    no_data=no_data,
    seed=config.evaluate.seed,
    resamples=config.evaluate.resamples,
  )


def _lead(folder, found):
  """The line below the title; writes the card that it links, of a classifier.

  The other runs are compared with the first, and have cards of their own.
  """
  lead = (
    'Research code, not a medical device. Do not use it to diagnose anyone.'
  )
  first = found.runs[0]
  if not first.config or first.config.stage not in files.CLASSIFIERS:
    return lead
  alone = dataclasses.replace(found, runs=[first])
  atomic.write_text(folder / card.FILE, card.render(alone))
  return page.Html(f'{lead} <a href="{card.FILE}">Model card</a>')


def _open(path: str) -> store.Store:
  """The prepared set there."""
  return store.load(path)


def _sets(run, config):
  """(set trained on, set scored on, why one is None) of a run."""
  own = str(run.config.data.path) if run.config else None
  named = str(run.evaluation['data']) if run.evaluation else None
  found: dict[str | None, store.Store] = {}
  reason = 'neither config.json nor evaluation.json names a set'
  if named:
    reason = 'no config.json names the set that was trained on'
  for path in dict.fromkeys(filter(None, (own, named))):
    place = record_lib.set_path(run.config, config) if path == own else path
    try:
      found[path] = _open(place)
    except (UserError, OSError) as error:
      reason = str(error).splitlines()[0]
  trained, scored = found.get(own), found.get(named)
  if (run.evaluation.get('settings') or {}).get('path'):
    return trained, scored, reason
  # Two paths of one set, unless the evaluation was told of another one.
  return trained or scored, scored or trained, reason


def _write(folder, html, written, runs):
  """Each file whole or not at all; the page comes last."""
  pictures = folder / 'report'
  pictures.mkdir(exist_ok=True)
  for name in _earlier(folder):
    (pictures / name).unlink(missing_ok=True)
  for section in written:
    for name, data in section.files.items():
      atomic.write_bytes(pictures / name, data)
  record = {
    'workdirs': {run.name: run.path_from(folder) for run in runs},
    'sections': {
      section.key: {
        'title': section.title,
        'left_out': section.missing,
        'figures': list(section.files),
        **section.numbers,
      }
      for section in written
    },
  }
  text = json.dumps(_finite(record), indent=1, allow_nan=False) + '\n'
  for name, content in (('report.json', text), ('report.html', html)):
    atomic.write_text(folder / name, content)


def _earlier(folder):
  """The PNG files of the report that is there already."""
  try:
    record = atomic.read_json(folder / 'report.json')
    names = [n for s in record['sections'].values() for n in s['figures']]
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return []
  return [name for name in names if name == pathlib.Path(str(name)).name]


def _finite(value):
  """`value` for JSON: None for what is not finite, plain numbers else."""
  if isinstance(value, dict):
    return {str(key): _finite(one) for key, one in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(one) for one in value]
  if hasattr(value, 'item'):  # of numpy
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
