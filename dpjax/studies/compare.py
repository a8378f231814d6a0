"""The compare command: methods on the same split (the paper's Table II).

scikit-learn's classifiers on pixels and on the features of the recipe's
stage I, networks from scratch under plain cross-entropy, and the recipe.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.figure
from ml_collections import ConfigDict

from dpjax import prepare
from dpjax.errors import UserError
from dpjax.metrics import score_table
from dpjax.studies import classical, runs, tables
from dpjax.studies import jobs as jobs_lib
from dpjax.studies import tasks as tasks_lib

_WIDTH = 100  # columns of the printed table
_CELL = 12
_GAIN = 26  # columns of a difference with its interval
_GAINS = ('balanced_accuracy', 'auroc_any_lesion')  # the differences shown

# Without what the recipe adds.
_PLAIN = ('init.backbone=None', 'loss.classification=ce', 'loss.begin=0.0',
          'loss.smoothing=0.0', 'retrain.average=0.0', 'retrain.freeze=False',
          'mgacr.attention=False', 'mgacr.features=False',
          'finetune.epochs=0.0')  # fmt: skip
# The networks: overrides of the config. resnet18 keeps the config's own sizes,
# which for ResNet18 are the default.
_NETWORKS = {
  'vgg16': ('model.network=vgg16', *_PLAIN),
  'resnet18': ('model.network=resnet', *_PLAIN),
  'resnet50': (
    'model.network=resnet',
    'model.stage_sizes=(3,4,6,3)',
    'model.block=bottleneck',
    *_PLAIN,
  ),
  'recipe': (),
}

# Okabe and Ito (2008), and in grey the markers: what a method sees.
_KINDS = {
  'pixels': ('#d55e00', 's'),
  'features of stage I': ('#009e73', 'D'),
  'network from scratch': ('#0072b2', 'o'),
  'recipe': ('#000000', '*'),
}


def run_comparison(
  config: ConfigDict,
  workdir: str | pathlib.Path,
  resolve: Callable[[ConfigDict], ConfigDict],
  *,
  jobs: jobs_lib.Jobs | None = None,
  only: str | None = None,
) -> str:
  """Trains and scores the methods of config.compare that are missing.

  Writes into `workdir`, after every finished run: comparison.json and
  comparison_runs.csv; and at the end: comparison.md and fig8.png.

  Args:
    config: as given by configs/ and the flags, before it is resolved.
    workdir: of the study; it holds its runs (studies.tasks).
    resolve: config -> resolved config (dpjax.config.resolve).
    jobs: how runs are done side by side; None: one after the other, here.
    only: the folder of one run, which is done without a table (jobs.run_only).

  Returns:
    The table as text.

  Raises:
    UserError: one line: a method that cannot be, or a workdir of another
      study; before anything is trained.
    Stopped: after a signal, with everything saved.
  """
  workdir = pathlib.Path(workdir)
  base = resolve(config)
  shallow = [m for m in base.compare.methods if m in classical.METHODS]
  if shallow and base.compare.features and base.init.backbone is None:
    raise UserError(
      'config.compare.features is True; it must be False where init.backbone'
      ' is None: there is no stage I to take features from'
    )
  configs = {
    (method, seed): tasks_lib.resolved(
      config, method, _NETWORKS.get(method, ()), seed, resolve
    )
    for seed in base.compare.seeds
    for method in base.compare.methods
  }
  data = prepare.open_prepared(base)
  plan = {}  # (title, seed) -> (kind, task, what trains it, or None)
  kept: dict[tuple[str, str | None], classical.Inputs] = {}
  for (method, seed), own in configs.items():
    own = prepare.as_made(own)
    for title, kind, task, work in _tasks(method, own, workdir, data, kept):
      plan[title, seed] = kind, task, work
  kinds = {title: kind for (title, _), (kind, *_) in plan.items()}
  tasks_lib.check_names([*kinds])
  tasks = [(task, work) for _, task, work in plan.values()]
  if only is not None:
    return jobs_lib.run_only(tasks, only)
  images = tables.Images(base.evaluate.resamples, base.evaluate.seed)

  def save():
    by_row = {
      title: [runs.look(plan[title, seed][1]) for seed in base.compare.seeds]
      for title in kinds
    }
    table = tabulate(by_row, kinds, images)
    tables.write(workdir, 'comparison', by_row, table)
    return table

  table = jobs_lib.run_all(tasks, save, jobs)
  return tables.finish(
    workdir, 'comparison', format_text(table), format_markdown(table),
    {'fig8.png': draw(table)},
  )  # fmt: skip


def _tasks(method, config, workdir, data, kept):
  """Yields (title, kind, task, work) of what a method is run on.

  `kept` holds the inputs that methods share.
  """
  tasks_of = {
    **dict.fromkeys(classical.METHODS, _classical_tasks),
    **dict.fromkeys(_NETWORKS, _network_tasks),
  }
  return tasks_of[method](method, config, workdir, data, kept)


def _network_tasks(method, config, workdir, data, kept):
  del data, kept  # A network reads the set by itself.
  title = kind = 'recipe'
  if method != 'recipe':
    title, kind = network_title(config.model), 'network from scratch'
  yield title, kind, tasks_lib.network(config, workdir, title), None


def _classical_tasks(method, config, workdir, data, kept):
  name, _ = classical.METHODS[method]
  side = config.compare.pixels
  # The size is in the name, and so in the folder: another size, another run.
  inputs = {f'{side} px': ('pixels', None)}
  if config.compare.features:
    inputs['features'] = 'features of stage I', config.init.backbone
  for what, (kind, backbone) in inputs.items():
    title = f'{name}, {what}'
    task = tasks_lib.make_task(config, workdir, title, 'classical', backbone)
    key = what, task.config.init.backbone
    work = functools.partial(
      _train_classical, method=method, data=data, kept=kept, key=key
    )
    yield title, kind, task, work


def _train_classical(task, *, method, data, kept, key):
  if key not in kept:
    source = task.config.init.backbone
    kept[key] = classical.Inputs(
      functools.partial(classical.pixels, side=task.config.compare.pixels)
      if source is None
      else classical.Features(task.config, data, source)
    )
  classical.train(task, method, data, kept[key])


def network_title(model: Any) -> str:
  """What a network is called: 'ResNet18', 'ResNet (1,1,1), width 32'.

  Args:
    model: config.model.
  """
  title = 'VGG16'
  if model.network == 'resnet':
    sizes = ','.join(map(str, model.stage_sizes))
    deep = ', bottleneck' if model.block == 'bottleneck' else ''
    title = {
      ('2,2,2,2', 'basic'): 'ResNet18',
      ('3,4,6,3', 'basic'): 'ResNet34',
      ('3,4,6,3', 'bottleneck'): 'ResNet50',
    }.get((sizes, model.block), f'ResNet ({sizes}{deep})')
  return title if model.width == 64 else f'{title}, width {model.width}'


def tabulate(
  by_row: Mapping[str, Sequence[runs.Run]],
  kinds: dict[str, str],
  images: tables.Images,
) -> dict[str, Any]:
  """The table of a comparison, as far as its runs are there.

  Args:
    by_row: {method: its runs, one a seed}, in the order of the table.
    kinds: {method: what it sees}.
    images: the bootstrap over images.

  Returns:
    {'seeds', 'data', 'split', 'device', 'num_images', 'class_names': what was
    run; 'rows': [{'name', 'kind', 'runs', 'seconds', 'scores',
    'recipe_minus'}]}. 'scores' holds {score: {'mean', 'interval', 'num_runs'}}
    over the seeds, with 'image_interval' by a bootstrap over images for the
    summary scores. 'recipe_minus' holds the recipe's differences to the
    method (tables.differences), None in its own row.
  """
  rows = []
  for name, own in by_row.items():
    scores = tables.over_seeds(own)
    if done := tables.finished(own):
      for score, interval in images.interval(done).items():
        if interval is not None and scores[score]['mean'] is not None:
          scores[score]['image_interval'] = interval
    recipe = by_row.get('recipe')
    rows.append(
      {
        'name': name,
        'kind': kinds[name],
        'runs': tables.records(own),
        'seconds': tables.mean_seconds(own),
        'scores': scores,
        'recipe_minus': (
          tables.differences(recipe, own, images)
          if recipe and name != 'recipe'
          else None
        ),
      }
    )
  return {**tables.about(by_row), 'rows': rows}


def _columns(table):
  """As ablation's, but for Grad-CAM: few of the methods have one."""
  shown = tables.shown([row['scores'] for row in table['rows']])
  return {k: title for k, title in shown.items() if not k.startswith('cam/')}


def _gains(table):
  """Columns, and [(method, [recipe minus method, as text, a column])]."""
  shown = _columns(table)
  columns = {
    score: score_table.SUMMARY[score].long for score in _GAINS if score in shown
  }
  rows = []
  for row in table['rows']:
    entries = [(row['recipe_minus'] or {}).get(score) for score in columns]
    if any(entry and entry['mean'] is not None for entry in entries):
      rows.append((row['name'], [_gain(entry) for entry in entries]))
  return [*columns.values()], rows


def _gain(entry):
  text = tables.number(entry and entry['mean'], '+')
  if entry and (interval := tables.whole_interval(entry)):
    text += f' ({tables.span(interval, "+")})'
  return text


def _note(table):
  what = (
    'bootstrap over the images'
    if len(table['seeds']) == 1
    else 't interval over the seeds (one run: bootstrap over the images), of a'
    ' difference over seeds and images'
  )
  return (
    f'Intervals: 95 %, {what}.\nPx: pixels of the image, shrunk to that side.'
    " Features: of the recipe's stage I.\ntrain s: all training, stage I and"
    ' the making of inputs in it. ms: inference per image.'
  )


def format_text(table: dict[str, Any]) -> str:
  """The tables as plain text, at most 100 columns wide: two lines a method."""
  columns = _columns(table)
  room = _WIDTH - _CELL * len(columns) - 15
  names = ['recipe minus', *(row['name'] for row in table['rows'])]
  width = min(room, max(map(len, names)))

  def line(name, seconds, rate, cells):
    cells = ''.join(f'{cell:>{_CELL}}' for cell in cells)
    name = tables.short(name, width)
    return f'{name:<{width}}{seconds:>8}{rate:>7}{cells}'.rstrip()

  lines = [
    tables.describe(table),
    '',
    line('method', 'train s', 'ms', columns.values()),
  ]
  for row in table['rows']:
    seconds = row['seconds']
    if not row['scores']:
      lines.append(line(row['name'], '-', '-', [*tables.states(row)][:1]))
      continue
    entries = [row['scores'].get(c) for c in columns]
    lines.append(
      line(
        row['name'],
        f'{seconds["training"]:.1f}',
        f'{seconds["ms_per_image"]:.2f}',
        [tables.number(e and e['mean']) for e in entries],
      )
    )
    spans = [e and tables.whole_interval(e) for e in entries]
    cells = [
      '-'.join(tables.number(v) for v in span) if span else '' for span in spans
    ]
    lines.append(line('', '', '', cells))
  heads, gains = _gains(table)
  if gains:
    lines += ['', *(
      f'{tables.short(name, width):<{width}}'
      + ''.join(f'{cell:>{_GAIN}}' for cell in cells)
      for name, cells in [('recipe minus', heads), *gains]
    )]  # fmt: skip
  lines += ['', _note(table), tables.explained(columns)]
  return tables.wrapped([*lines, *tables.diverged(table['rows'])], _WIDTH)


def format_markdown(table: dict[str, Any]) -> str:
  """comparison.md: times, the main scores, and what the recipe gains."""
  columns = _columns(table)
  rows = []
  for row in table['rows']:
    seconds = row['seconds']
    cells = ['-', '-', *('-' for _ in columns)]
    if row['scores']:
      cells = [f'{seconds["training"]:.1f}', f'{seconds["ms_per_image"]:.2f}']
      for column in columns:
        entry = row['scores'].get(column)
        shown = tables.number(entry and entry['mean'])
        if entry and (interval := tables.whole_interval(entry)):
          shown += f' ({tables.span(interval)})'
        cells.append(shown)
    rows.append([row['name'], *cells])
  header = ['method', 'train s', 'ms', *columns.values()]
  text = [
    '# Comparison',
    f'{tables.describe(table)}.',
    tables.markdown(header, rows),
    f'{_note(table)}\n{tables.explained(columns)}',
  ]
  heads, gains = _gains(table)
  if gains:
    text += [
      '## Recipe minus each method',
      tables.markdown(['method', *heads], [[name, *c] for name, c in gains]),
      f'Paired by seed. {tables.INTERVAL}',
    ]
  text += tables.diverged(table['rows'])
  return '\n\n'.join(text) + '\n'


def draw(table: dict[str, Any]) -> matplotlib.figure.Figure | None:
  """The main scores of every method with intervals (the paper's Fig. 8).

  Args:
    table: of `tabulate`.

  Returns:
    The figure, a dot a method; None without a finished run.
  """
  rows = [row for row in table['rows'] if row['scores']]
  panels = {
    score: score_table.SUMMARY[score].long
    for score in (
      'accuracy', 'balanced_accuracy', 'macro_f1', 'auroc_any_lesion',
    )
    if score in _columns(table)
  }  # fmt: skip
  if not panels:
    return None
  figure = matplotlib.figure.Figure(
    figsize=(2.2 + 2.1 * len(panels), 1.3 + 0.24 * len(rows)), dpi=150
  )
  grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  handles = {}
  for axes, (score, title) in zip(grid, panels.items(), strict=True):
    for place, row in enumerate(rows):
      entry = row['scores'].get(score)
      if not entry or entry['mean'] is None:
        continue
      colour, marker = _KINDS[row['kind']]
      if interval := tables.whole_interval(entry):
        axes.plot(interval, [place, place], color=colour, linewidth=1.3)
      (handles[row['kind']],) = axes.plot(
        entry['mean'], place, marker, color=colour, linestyle='none',
        markersize=9 if marker == '*' else 5,
      )  # fmt: skip
    axes.set_title(title, fontsize=10, loc='left')
    axes.set_xlabel(f'score on {table["split"]}, 95 % interval', fontsize=9)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(axis='y', length=0)
  # Shared by all: the first method on top.
  grid[0].set_yticks(range(len(rows)), [row['name'] for row in rows])
  grid[0].set_ylim(len(rows) - 0.5, -0.5)
  height = figure.get_figheight()
  figure.tight_layout(rect=(0, 0.35 / height, 1, 1))
  figure.legend(
    handles.values(), handles.keys(), loc='lower center', ncols=len(handles),
    frameon=False, fontsize=9,
  )  # fmt: skip
  return figure
