"""Sections of the report: what was run, on which data, and how training went.

A section is a function of (section, evidence) that writes into the section, or
raises page.Missing with the reason why it is left out.
"""

import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dpjax.benchmark import text
from dpjax.config import fields as fields_lib
from dpjax.config import record as record_lib
from dpjax.data.feed import decisions, lesion_masks
from dpjax.metrics import titles
from dpjax.models import sides as sides_lib
from dpjax.report import figures, overlay, page
from dpjax.report.evidence import Evidence, read_image

SIDE = 320  # pixels of a radiograph's tile
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
    name: (page.capital(title.long), 'Score')
    for name, title in titles.SUMMARY.items()
  },
  'gradient_norm': ('Norm of the gradient', 'Norm'),
}
# Not for a chart by epoch.
_HIDDEN = ('step', 'split', 'epoch', 'learning_rate', 'images_per_second',
           'seconds_training', 'seconds_wall')  # fmt: skip


def warnings(evidence: Evidence) -> list[str]:
  """What nobody may overlook, for the top of the page."""
  layouts = {run.config.data.layout for run in evidence.runs if run.config}
  sets = (evidence.scored, evidence.trained)
  # A set is named after its layout.
  layouts |= {data.info.get('name') for data in sets if data}
  if 'phantom' not in layouts:
    return []
  return [
    'The radiographs are computed phantoms: scores on them say nothing about'
    ' patients.'
  ]


def what_was_run(section: page.Section, evidence: Evidence) -> None:
  """Settings and circumstances of each run."""
  runs = evidence.runs
  for run in runs:
    for note in run.notes:
      section.say(f'{run.name}: {note}.', 'note')
  facts = [_facts(run) for run in runs]
  names = dict.fromkeys(itertools.chain(*facts))
  section.table(
    ['', *(run.name for run in runs)],
    [[name, *(one.get(name, '-') for one in facts)] for name in names],
    'Settings and circumstances',
    kind='words',
  )
  section.numbers['runs'] = {
    run.name: {'workdir': str(run.workdir), **one, 'notes': list(run.notes)}
    for run, one in zip(runs, facts, strict=True)
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


def _facts(run):
  """{what: text} of one run."""
  facts = {}
  c, result = run.config, run.evaluation
  if c:
    m, loss = c.model, c.loss
    sizes = ', '.join(map(str, m.stage_sizes))
    facts['Network'] = (
      f'ResNet ({sizes}), {m.block} blocks, width {m.width}'
      if m.network == 'resnet'
      else f'{m.network}, width {m.width}'
    )
    facts['Input'] = (
      f'{c.data.image_size} pixels, of {c.data.store_size} stored'
    )
    start = c.init.backbone
    facts['Starts from'] = (
      'scratch' if c.stage == 'pretrain' or start is None else str(start)
    )
    if c.stage != 'pretrain':
      facts['Classification loss'] = loss.classification
      facts['MGACR'] = (
        ', '.join(
          name for name in ('attention', 'features') if c.mgacr[name]
        )
        or 'none'
      )  # fmt: skip
    settings = c['pretrain' if c.stage == 'pretrain' else 'retrain']
    facts['Schedule'] = (
      f'{settings.epochs:g} epochs, batches of {settings.batch_size}'
    )
    facts['Seed'] = c.seed
    facts['Data set'] = pathlib.Path(c.data.path).name
  if result:
    classes = ', '.join(run.class_names)
    facts['Classes'] = classes
    facts['Scored'] = (
      f'{result["num_images"]:,} radiographs,'
      f' {pathlib.Path(str(result["data"])).name}, {result["split"]}'
    )
    facts['Checkpoint'] = (
      f'{result.get("checkpoint", "-")}, step {result.get("step", "-")}'
    )
    facts['Evaluated on'] = result.get('device', '-')
  for name, log in (('Stage I', run.pretraining), ('Stage II', run.log)):
    if log:
      last = log[-1]
      facts[f'{name}, training'] = (
        f'{_seconds(last.get("seconds_training"))},'
        f' {last["step"]:,} steps'
      )  # fmt: skip
  return facts


def classes(section: page.Section, evidence: Evidence) -> None:
  """One image of each class under its boxes (the paper's Fig. 1)."""
  data = evidence.data('scored')
  first = next((run for run in evidence.runs if run.evaluation), None)
  preferred = first.evaluation['split'] if first else 'test'
  order = sorted(data.splits, key=lambda name: name != preferred)
  rng = np.random.default_rng(evidence.seed)
  tiles, chosen, none = {}, {}, []
  for label, name in enumerate(data.class_names):
    for split_name in order:
      split = data.splits[split_name]
      rows = np.flatnonzero(split.labels == label)
      if len(rows):
        break
    else:
      none.append(str(name))
      continue
    row = int(rng.choice(rows))
    count = int(split.num_boxes[row])
    boxes = f'{count} box' + ('' if count == 1 else 'es')
    tiles[str(label)] = (
      _radiograph(split, row),
      f'Class {name}: {split.ids[row]}, {split_name}, {boxes}',
      f'Radiograph of class {name} under {boxes}',
    )
    chosen[str(name)] = {'id': str(split.ids[row]), 'split': split_name}
  if not tiles:
    raise page.Missing('the prepared set has no labelled image')
  section.say(
    'A radiograph of each class, drawn at random'
    f' (seed {evidence.seed}), with the boxes of its lesions.'
  )
  section.tiles(tiles)
  if none:
    section.say(f'No image of class {", ".join(none)} is there.', 'note')
  section.numbers['chosen'] = chosen


def counts(section: page.Section, evidence: Evidence) -> None:
  """How many radiographs each class has in each split (Fig. 2)."""
  data = evidence.data('trained')
  names = [str(name) for name in data.class_names]
  table = {
    split_name: np.bincount(
      split.labels[split.labels >= 0], minlength=len(names)
    ).tolist()
    for split_name, split in data.splits.items()
    if (split.labels >= 0).any()
  }
  if not table:
    raise page.Missing('the prepared set has no labelled image')
  total = np.sum(list(table.values()), axis=0)
  shown = ', '.join(
    f'{name} {n:,}' for name, n in zip(names, total.tolist(), strict=True)
  )
  section.charts(
    {
      'counts': (
        figures.bars(
          table, names, title='Radiographs of each class', x='Radiographs',
          y='Class',
        ),
        f'Bars of the radiographs of each class by split; in all: {shown}',
      )
    }
  )  # fmt: skip
  section.table(
    ['Class', *table, 'All'],
    [
      [name, *(f'{row[i]:,}' for row in table.values()), f'{total[i]:,}']
      for i, name in enumerate(names)
    ]
    + [
      [
        'All',
        *(f'{sum(row):,}' for row in table.values()),
        f'{total.sum():,}',
      ]
    ],
    'Radiographs',
  )
  unlabelled = {
    split_name: int((split.labels < 0).sum())
    for split_name, split in data.splits.items()
    if (split.labels < 0).any()
  }
  for split_name, count in unlabelled.items():
    section.say(f'{split_name}: {count:,} without a label.', 'note')
  section.numbers |= {
    'class_names': names, 'counts': table, 'unlabelled': unlabelled
  }  # fmt: skip


def masks(section: page.Section, evidence: Evidence) -> None:
  """mask+ and mask- of one image at each stage (Fig. 5)."""
  run = next(
    (
      run
      for run in evidence.runs
      if run.config
      and run.config.stage != 'pretrain'
      and (run.config.mgacr.attention or run.config.mgacr.features)
    ),
    None,
  )
  if run is None:
    raise page.Missing('no run was trained with masks (MGACR)')
  data = evidence.data('trained')
  split_name = next(
    (n for n, split in data.splits.items() if (split.num_boxes > 0).any()), None
  )
  if split_name is None:
    raise page.Missing('the prepared set has no box')
  split = data.splits[split_name]
  rng = np.random.default_rng(evidence.seed)
  row = int(rng.choice(np.flatnonzero(split.num_boxes)))
  c = run.config
  sides = sides_lib.stage_sides(
    c.model.network, c.data.image_size, c.model.stage_sizes
  )
  sides = {s: side for s, side in sides.items() if s in c.mgacr.stages}
  found = lesion_masks.on_host(
    split.boxes[[row]],
    split.num_boxes[[row]],
    decisions.identity(1)['affine'][:, 0],
    sides,
    run.config.mgacr.mask,
  )
  image = read_image(split, row)
  section.say(
    f'{split.ids[row]} ({split_name}), drawn at random among the images with'
    f' boxes (seed {evidence.seed}), without augmentation. mask+ is the share'
    ' of a cell that lesions cover, and mask- is 1 - mask+; they are what the'
    ' attention maps are taught.'
  )
  tiles = {'image': (_radiograph(split, row), 'The radiograph and its boxes',
                     'Radiograph under its boxes')}  # fmt: skip
  for sign, kind in (('+', 'positive'), ('-', 'negative')):
    for stage, side in sides.items():
      mask = found[stage][0] if sign == '+' else 1 - found[stage][0]
      tiles[f'{stage}-{kind}'] = (
        overlay.masked(image, mask, sign == '+', SIDE),
        f'mask{sign}, {stage}, {side} x {side} cells',
        f'Radiograph under mask{sign} of {stage}',
      )
    section.tiles(tiles)
    tiles = {}
  section.numbers |= {
    'id': str(split.ids[row]),
    'sides': sides,
    'covered': {name: float(mask.mean()) for name, mask in found.items()},
  }


def training(section: page.Section, evidence: Evidence) -> None:
  """Losses and validation scores by epoch (Fig. 6)."""
  stages = (
    ('Stage I', 'stage1', [(r.name, r.pretraining) for r in evidence.runs]),
    ('Stage II', 'stage2', [(r.name, r.log) for r in evidence.runs]),
  )
  if not any(log for _, _, logs in stages for _, log in logs):
    raise page.Missing('no workdir has a metrics.jsonl')
  for title, key, logs in stages:
    section.heading(title)
    if not any(log for _, log in logs):
      section.say('No log of it is there.', 'note')
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
      section.say(f'No log of it for {", ".join(without)}.', 'note')
  section.say(
    f'Of a log of more than {MOST_POINTS} lines, neighbours are averaged.',
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
  panels, numbers = [], {}
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


def speed(section: page.Section, evidence: Evidence) -> None:
  """How fast the runs were trained and evaluated."""
  rows: list[tuple[str, Callable[[Any], Any]]] = [
    ('Stage I: training, images/s', lambda r: _rate(r.pretraining)),
    (
      'Stage I: training alone',
      lambda r: _last(r.pretraining, 'seconds_training'),
    ),
    (
      'Stage I: with validation',
      lambda r: _last(r.pretraining, 'seconds_wall'),
    ),
    ('Stage II: training, images/s', lambda r: _rate(r.log)),
    ('Stage II: training alone', lambda r: _last(r.log, 'seconds_training')),
    ('Stage II: with validation', lambda r: _last(r.log, 'seconds_wall')),
    ('Inference, images/s',
     lambda r: (r.evaluation or {}).get('images_per_second')),
  ]  # fmt: skip
  found = {name: [value(run) for run in evidence.runs] for name, value in rows}
  found = {
    name: values
    for name, values in found.items()
    if any(value is not None for value in values)
  }
  benchmarks = [run for run in evidence.runs if run.benchmark]
  if not found and not benchmarks:
    raise page.Missing('no workdir has a log, an evaluation or a benchmark')
  if found:
    section.say(
      'Images/s in training: the median over the lines of the log, so that'
      ' compilation hardly counts.',
      'note',
    )
    section.table(
      ['', *(run.name for run in evidence.runs)],
      [
        [
          name,
          *(
            '-' if value is None
            else f'{value:,.0f}' if 'images/s' in name
            else _seconds(value)
            for value in values
          ),
        ]
        for name, values in found.items()
      ],
      'Speed',
    )  # fmt: skip
    section.numbers['speed'] = {
      name: dict(zip((run.name for run in evidence.runs), values, strict=True))
      for name, values in found.items()
    }
  for run in benchmarks:
    _benchmark(section, run)


def _benchmark(section, run):
  """The tables of benchmark.json; its numbers whole."""
  section.numbers.setdefault('benchmark', {})[run.name] = run.benchmark
  try:
    about = text.about(run.benchmark)
    tables = text.tables(run.benchmark)
  except (KeyError, TypeError, AttributeError):
    section.say(
      f'{run.name}: benchmark.json is none of this version; run benchmark'
      ' again.',
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


def _radiograph(split, row):
  """The tile of one image under its boxes, (SIDE, SIDE, 3) uint8."""
  drawn = overlay.draw(
    read_image(split, row), split.boxes[row],
    int(split.num_boxes[row]), {}, label='', prediction='', side=SIDE,
  )  # fmt: skip
  return page.cut(drawn, SIDE)[0]
