"""Sections of the report: what was run, how training went, and how fast.

A section is a function of (section, report_data) that writes into the section,
or raises page.Missing with the reason why it is left out.
"""

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dpjax.benchmark import text
from dpjax.config import fields as fields_lib
from dpjax.config import record as record_lib
from dpjax.metrics import score_table
from dpjax.report import figures, page
from dpjax.report.report_data import ReportData
from dpjax.report.run_files import Run

MOST_POINTS = 300  # of a training curve
# What training logs, in the order of its charts: title, and title of the axis.
QUANTITIES = {
  'loss': ('Loss, whole', 'Loss'),
  'loss/contrast': ('Contrastive loss (NT-Xent)', 'Loss'),
  'loss/classification': ('Classification loss', 'Loss'),
  'loss/att_pos': ('Attention, mask+ (Eq. 2)', 'Loss'),
  'loss/att_neg': ('Attention, mask- (Eq. 3)', 'Loss'),
  'loss/feat': ('Features (Eq. 5)', 'Loss'),
  'contrastive_accuracy': ('Contrastive accuracy', 'Share'),
  **{
    f'{probe}/{name}': (f'{title}: {score_table.SUMMARY[name].long}', 'Score')
    for probe, title in (('knn', 'k-NN'), ('linear', 'Linear probe'))
    for name in ('balanced_accuracy', 'auroc_any_lesion')
  },
  **{
    name: (page.capital(score.long), 'Score')
    for name, score in score_table.SUMMARY.items()
  },
  'gradient_norm': ('Norm of the gradient', 'Norm'),
}
# Not for a chart by epoch.
_HIDDEN = ('step', 'split', 'epoch', 'learning_rate', 'images_per_second',
           'seconds_training', 'seconds_wall')  # fmt: skip


def what_was_run(section: page.Section, report_data: ReportData) -> None:
  """Settings and circumstances of each run."""
  runs = report_data.runs
  for run in runs:
    for note in run.notes:
      section.say(f'{run.name}: {note}.', 'note')
  told = [facts(run) for run in runs]
  names = dict.fromkeys(itertools.chain(*told))
  section.table(
    ['', *(run.name for run in runs)],
    [[name, *(one.get(name, '-') for one in told)] for name in names],
    'Settings and circumstances',
    kind='words',
  )
  section.numbers['runs'] = {
    run.name: {**one, 'notes': list(run.notes)}
    for run, one in zip(runs, told, strict=True)
  }
  known = [run for run in runs if run.config]
  if len(known) < 2:
    return
  fields = sorted(
    {
      line.partition(':')[0]
      for run in known[1:]
      for line in record_lib.differences(known[0].config, run.config)
    }
  )
  flat = [fields_lib.flatten(run.config) for run in known]
  section.numbers['differences'] = {
    field: [_plain(one.get(field)) for one in flat] for field in fields
  }
  if not fields:
    section.say('The configs do not differ in what shapes a run.')
    return
  section.table(
    ['Field', *(run.name for run in known)],
    [[field, *(one.get(field, '-') for one in flat)] for field in fields],
    'Fields of the configs that differ',
    kind='words',
  )


def facts(run: Run) -> dict[str, Any]:
  """{what: text} of one run."""
  c, result = run.config, run.evaluation
  found: dict[str, Any] = {}
  if c and c.stage != 'classical':  # A method of compare has no network.
    found = _network_facts(run)
  if c:
    found['Seed'] = c.seed
    found['Data set'] = pathlib.Path(c.data.path).name
  if result:
    classes = ', '.join(run.class_names)
    found['Classes'] = classes
    found['Scored'] = (
      f'{result["num_images"]:,} radiographs,'
      f' {pathlib.Path(str(result["data"])).name}, {result["split"]}'
    )
    if result.get('step') is not None:  # An ensemble has none.
      found['Checkpoint'] = (
        f'{result.get("checkpoint", "-")}, step {result["step"]}'
      )
    found['Evaluated on'] = result.get('device', '-')
  for name, log in (
    ('Stage I', run.pretraining),
    ('Stage II', run.log),
    ('Fine-tuning', run.finetuning),
  ):
    if log:
      last = log[-1]
      found[f'{name}, training'] = (
        f'{_seconds(last.get("seconds_training"))},'
        f' {last["step"]:,} steps'
      )  # fmt: skip
  return found


def _network_facts(run):
  """What its config says of the network, and of how it is trained."""
  c, m = run.config, run.config.model
  found = {}
  sizes = ', '.join(map(str, m.stage_sizes))
  found['Network'] = (
    f'ResNet ({sizes}), {m.block} blocks, width {m.width}'
    if m.network == 'resnet'
    else f'{m.network}, width {m.width}'
  )
  found['Input'] = f'{c.data.image_size} pixels, of {c.data.store_size} stored'
  start = c.init.backbone
  found['Starts from'] = (
    'scratch'
    if c.stage == 'pretrain' or start is None
    else record_lib.seen_from(run.workdir, start)
  )
  if c.stage != 'pretrain':
    found['Classification loss'] = c.loss.classification
    found['MGACR'] = ', '.join(run.mgacr) or 'none'
    if not run.mgacr and (c.mgacr.attention or c.mgacr.features):
      found['MGACR'] += ' (no boxes to teach it, or weights of 0)'
  settings = c['pretrain' if c.stage == 'pretrain' else 'retrain']
  found['Schedule'] = (
    f'{settings.epochs:g} epochs, batches of {settings.batch_size}'
  )
  if c.stage == 'finetune':
    learns = 'the classifier' if c.finetune.freeze else 'everything'
    found['Fine-tuning'] = (
      f'{learns}, {c.finetune.epochs:g} epochs,'
      f' {c.finetune.loss.classification}'
    )
  return found


def training(section: page.Section, report_data: ReportData) -> None:
  """Losses and validation scores by epoch (Fig. 6)."""
  stages = [
    ('Stage I', 'stage1', [(r.name, r.pretraining) for r in report_data.runs]),
    ('Stage II', 'stage2', [(r.name, r.log) for r in report_data.runs]),
  ]
  finetuning = [(r.name, r.finetuning) for r in report_data.runs]
  if any(log for _, log in finetuning):
    stages.append(('Fine-tuning', 'finetuning', finetuning))
  if not any(log for _, _, logs in stages for _, log in logs):
    raise page.Missing('no workdir has a metrics.jsonl')
  for title, key, logs in stages:
    section.heading(title)
    if not any(log for _, log in logs):
      section.say('There is no log.', 'note')
      continue
    panels, numbers = _panels(logs)
    section.charts(
      {
        f'{key}-{number:02}': (
          figures.lines(
            series,
            title=name,
            x='Epoch',
            y=QUANTITIES.get(quantity, ('', 'Value'))[1],
            log=None,
          ),
          _describe_curves(f'{title}: {name}', series),
        )
        for number, (quantity, name, series) in enumerate(panels)
      }
    )
    section.numbers[key] = numbers
    without = [name for name, log in logs if not log]
    if without:
      section.say(f'No log for {", ".join(without)}.', 'note')
  section.say(
    f'Of a log with more than {MOST_POINTS} lines, neighbours are averaged.',
    'note',
  )


def _panels(logs):
  """[(quantity, title, series)] of one stage, and their numbers."""
  there = {
    name
    for _, log in logs
    for entry in log
    for name, value in entry.items()
    if name not in _HIDDEN and value is not None
  }
  order = [*(q for q in QUANTITIES if q in there),
           *sorted(there - QUANTITIES.keys())]  # fmt: skip
  panels: list[tuple[str, str, list[figures.Series]]] = []
  numbers: dict[str, dict[str, dict[str, Any]]] = {}
  several = sum(bool(log) for _, log in logs) > 1
  for quantity in order:
    series = []
    for number, (run, log) in enumerate(logs):
      for split, kind in (('train', 'line'), ('validation', 'marked')):
        points = [
          (entry['epoch'], entry[quantity])
          for entry in log
          if entry['split'] == split and entry.get(quantity) is not None
        ]
        if not points:
          continue
        x, y = _thinned(np.array(points, float))
        numbers.setdefault(quantity, {}).setdefault(run, {})[split] = {
          'epoch': x.tolist(), 'value': y.tolist()
        }  # fmt: skip
        word = {'train': 'training'}.get(split, split)
        name = f'{run}, {word}' if several else word
        colour = number if several else int(split == 'validation')
        series.append(figures.Series(name, x, y, colour, kind))
    panels.append((quantity, QUANTITIES.get(quantity, (quantity,))[0], series))
  return panels, numbers


def _thinned(points):
  """Means of neighbours, at most MOST_POINTS; x (N,), y (N,)."""
  if len(points) > MOST_POINTS:
    parts = np.array_split(points, MOST_POINTS)
    points = np.array([part.mean(axis=0) for part in parts])
  return points.T


def _describe_curves(title, series):
  ends = '; '.join(
    f'{one.name} from {one.y[0]:.3g} to {one.y[-1]:.3g}' for one in series
  )
  return f'{title} by epoch: {ends}'


# What the table of speeds has of a run, by title.
SPEEDS: dict[str, Callable[[Run], float | None]] = {
  'Stage I: training, images/s': lambda r: _rate(r.pretraining),
  'Stage I: training alone': lambda r: _last(r.pretraining, 'seconds_training'),
  'Stage I: with validation': lambda r: _last(r.pretraining, 'seconds_wall'),
  'Stage II: training, images/s': lambda r: _rate(r.log),
  'Stage II: training alone': lambda r: _last(r.log, 'seconds_training'),
  'Stage II: with validation': lambda r: _last(r.log, 'seconds_wall'),
  'Fine-tuning: training alone': lambda r: _last(
    r.finetuning, 'seconds_training'
  ),
  'Inference, images/s': lambda r: r.evaluation.get('images_per_second'),
}


def speed(section: page.Section, report_data: ReportData) -> None:
  """How fast the runs were trained and evaluated."""
  found = {
    name: [value(run) for run in report_data.runs]
    for name, value in SPEEDS.items()
  }
  found = {
    name: values
    for name, values in found.items()
    if any(value is not None for value in values)
  }
  benchmarks = [run for run in report_data.runs if run.benchmark]
  if not found and not benchmarks:
    raise page.Missing('no workdir has a log, an evaluation or a benchmark')
  if found:
    _speeds(section, [run.name for run in report_data.runs], found)
  for run in benchmarks:
    _benchmark(section, run)


def _speeds(section, names, found):
  """The table of `found`, {what: a number a run or None}."""
  section.say(
    'Images/s in training: the median over the lines of the log, so that'
    ' compilation hardly counts.',
    'note',
  )

  def cell(name, value):
    if value is None:
      return '-'
    return f'{value:,.0f}' if 'images/s' in name else _seconds(value)

  section.table(
    ['', *names],
    [
      [name, *(cell(name, value) for value in values)]
      for name, values in found.items()
    ],
    'Speed',
  )
  section.numbers['speed'] = {
    name: dict(zip(names, values, strict=True))
    for name, values in found.items()
  }


def _benchmark(section, run):
  """The tables of benchmark.json; its numbers whole."""
  section.numbers.setdefault('benchmark', {})[run.name] = run.benchmark
  try:
    about = text.about(run.benchmark)
    tables = text.tables(run.benchmark)
  except (KeyError, TypeError, AttributeError):
    section.say(
      f'{run.name}: benchmark.json is of another version; run benchmark again.',
      'note',
    )
    return
  section.heading(f'benchmark: {run.name}')
  for line in about:
    section.say(f'{line}.', 'note')
  for table in tables:
    section.table(table.head, table.rows, table.title)
    for note in table.notes:
      section.say(f'{note}.', 'note')
  for line in text.legend(run.benchmark):
    section.say(line, 'note')


def _rate(log):
  rates = [e['images_per_second'] for e in log if e.get('images_per_second')]
  return float(np.median(rates)) if rates else None


def _last(log, name):
  values = [entry[name] for entry in log if entry.get(name) is not None]
  return values[-1] if values else None


def _seconds(value):
  if value is None:
    return '-'
  if value < 120:
    return f'{value:.1f} s'
  return f'{value / 60:.1f} min' if value < 7200 else f'{value / 3600:.1f} h'


def _plain(value):
  return list(value) if isinstance(value, tuple) else value
