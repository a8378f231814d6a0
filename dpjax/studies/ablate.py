"""The ablate command: what each technique adds (the paper's Table I).

Every row of config.ablate.rows changes the config by its overrides; every row
is trained with every seed of config.ablate.seeds. Rows of equal stage I share
it, and so do those of equal stage II with what is fine-tuned after it.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from ml_collections import ConfigDict

from dpjax import prepare
from dpjax.metrics import score_table
from dpjax.studies import jobs as jobs_lib
from dpjax.studies import runs, tables
from dpjax.studies import tasks as tasks_lib

_WIDTH = 100  # columns of the printed table
_CELL = 11

# Okabe and Ito (2008): told apart by colour-blind readers, and in grey by the
# markers.
_COLOURS = ('#000000', '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00',
            '#56b4e9')  # fmt: skip
_MARKERS = 'os^Dv<>'
_DASHES = ('-', '--', ':')  # the next one where the colours begin anew


def run_ablation(
  config: ConfigDict,
  workdir: str | pathlib.Path,
  resolve: Callable[[ConfigDict], ConfigDict],
  *,
  jobs: jobs_lib.Jobs | None = None,
  only: str | None = None,
) -> str:
  """Trains and scores what is missing of the study, and tells the differences.

  Writes into `workdir`, after every finished run: ablation.json and
  ablation_runs.csv; and at the end: ablation.md and fig7.png.

  Args:
    config: as given by configs/ and the flags, before it is resolved.
    workdir: of the study; it holds its runs (studies.tasks).
    resolve: config -> resolved config (dpjax.config.resolve).
    jobs: how runs are done side by side; None: one after the other, here.
    only: the folder of one run, which is done without a table (jobs.run_only).

  Returns:
    The table as text.

  Raises:
    UserError: one line: a row that cannot be, or a workdir of another study;
      before anything is trained.
    Stopped: after a signal, with everything saved.
  """
  workdir = pathlib.Path(workdir)
  base = resolve(config)
  names = [name for name, _ in base.ablate.rows]
  seeds = base.ablate.seeds
  tasks_lib.check_names(names)
  # All rows are checked before anything is trained, and the set is there
  # before anything is recorded of it.
  configs = {
    (name, seed): tasks_lib.resolved(config, name, overrides, seed, resolve)
    for seed in seeds
    for name, overrides in base.ablate.rows
  }
  prepare.open_prepared(base)
  for row in {row.data.path: row for row in configs.values()}.values():
    if row.data.path != base.data.path:
      prepare.open_prepared(row)
      prepare.warn_overruled(row)
  for name, overrides in base.ablate.rows:
    tasks_lib.check_set(configs[name, seeds[0]], name, overrides)
  plan = {
    (name, seed): tasks_lib.network(prepare.as_made(row), workdir, name)
    for (name, seed), row in configs.items()
  }
  plan = dict(
    zip(plan, tasks_lib.share_stage_two([*plan.values()]), strict=True)
  )
  # A seed after the other.
  tasks = [(task, None) for task in plan.values()]
  if only is not None:
    return jobs_lib.run_only(tasks, only)
  images = tables.Images(base.evaluate.resamples, base.evaluate.seed)

  def save():
    by_row = {name: [runs.look(plan[name, s]) for s in seeds] for name in names}
    table = tabulate(by_row, dict(base.ablate.rows), images)
    tables.write(workdir, 'ablation', by_row, table)
    return by_row, table

  by_row, table = jobs_lib.run_all(tasks, save, jobs)
  return tables.finish(
    workdir, 'ablation', format_text(table), format_markdown(table),
    {'fig7.png': draw(by_row)},
  )  # fmt: skip


def tabulate(
  by_row: Mapping[str, Sequence[runs.Run]],
  overrides: dict[str, Sequence[str]],
  images: tables.Images,
) -> dict[str, Any]:
  """The table of a study, as far as its runs are there.

  Args:
    by_row: {row: its runs, one a seed}, in the order of the rows.
    overrides: {row: its overrides}.
    images: the bootstrap over images.

  Returns:
    {'seeds', 'data', 'split', 'device', 'num_images', 'class_names': what was
    run; 'rows': [{'name', 'overrides', 'runs', 'seconds', 'scores',
    'to_above'}], 'last_to_first'}. 'scores' holds {score: {'mean', 'interval',
    'num_runs'}} over the seeds; 'to_above' (None in the first row) and
    'last_to_first' {score: {'mean', 'interval', 'num_runs', 'p_value'}} of the
    difference, paired by seed, with 'image_interval' of the same difference by
    a bootstrap over images where that is defined, and 'both_interval' of seeds
    and images.
  """
  rows = []
  above: Sequence[runs.Run] | None = None
  for name, own in by_row.items():
    rows.append(
      {
        'name': name,
        'overrides': list(overrides[name]),
        'runs': tables.records(own),
        'seconds': tables.mean_seconds(own),
        'scores': tables.over_seeds(own),
        'to_above': None
        if above is None
        else tables.differences(own, above, images),
      }
    )
    above = own
  every = [*by_row.values()]
  return {
    **tables.about(by_row),
    'rows': rows,
    'last_to_first': (
      tables.differences(every[-1], every[0], images)
      if len(every) > 1
      else None
    ),
  }


def format_text(table: dict[str, Any]) -> str:
  """The table as plain text, at most 100 columns wide."""
  columns = tables.shown([row['scores'] for row in table['rows']])
  room = _WIDTH - _CELL * len(columns) - 7
  differences = _compared(table)
  names = ['technique', *(row['name'] for row in table['rows'])]
  width = min(room, max(map(len, names + [name for name, _ in differences])))

  def line(name, cells, seconds=''):
    cells = ''.join(f'{cell:>{_CELL}}' for cell in cells)
    return f'{tables.short(name, width):<{width}}{cells}{seconds:>7}'.rstrip()

  lines = [
    tables.describe(table),
    '',
    line('technique', columns.values(), 'sec.'),
  ]
  for row in table['rows']:
    cells = [tables.with_half(row['scores'].get(c)) for c in columns]
    if not row['scores'] and tables.states(row) == {'diverged'}:
      cells = ['diverged', *cells[1:]]
    seconds = row['seconds'].get('training')
    lines.append(
      line(row['name'], cells, '-' if seconds is None else f'{seconds:.0f}')
    )
  if differences:
    lines += ['', 'difference, paired by seed', *(
      line(name, [tables.with_half(found.get(c), '+') for c in columns])
      for name, found in differences
    )]  # fmt: skip
  lines += [
    '',
    '±: half of the 95 % interval; of a mean over the seeds, of a difference'
    ' over seeds and images.',
    'sec.: seconds of training, stage I included.',
    tables.explained(columns),
    *tables.diverged(table['rows']),
  ]
  return tables.wrapped(lines, _WIDTH)


def _compared(table):
  """[(what is compared, differences)], the whole against the first row last."""
  rows = table['rows']
  found = [(row['name'], row['to_above']) for row in rows if row['to_above']]
  if table['last_to_first'] and len(rows) > 2:
    found.append(('last row - first', table['last_to_first']))
  return found


def format_markdown(table: dict[str, Any]) -> str:
  """ablation.md: the main scores and their differences."""
  columns = tables.shown([row['scores'] for row in table['rows']])
  header = ['technique', 'runs', *columns.values(), 'training, s']
  rows = []
  for row in table['rows']:
    seconds = row['seconds'].get('training')
    count = sum(run['state'] == 'finished' for run in row['runs'])
    failed = sum(run['state'] == 'diverged' for run in row['runs'])
    rows.append(
      [
        row['name'],
        f'{count}, {failed} diverged' if failed else str(count),
        *(tables.with_half(row['scores'].get(c), gap=' ') for c in columns),
        '-' if seconds is None else f'{seconds:.0f}',
      ]
    )
  text = [
    '# Ablation',
    f'{tables.describe(table)}.',
    tables.markdown(header, rows),
    'Mean ± half of the 95 % t interval over the runs, which differ in their'
    f' seed.\nTraining includes stage I.\n{tables.explained(columns)}',
  ]
  if differences := _compared(table):
    text += [
      '## Differences to the row above',
      tables.markdown(
        ['technique', *columns.values()],
        [
          [name, *(_difference(found.get(c)) for c in columns)]
          for name, found in differences
        ],
      ),
      f'Paired by seed. {tables.INTERVAL}',
    ]
  text += tables.diverged(table['rows'])
  return '\n\n'.join(text) + '\n'


def _difference(entry):
  text = tables.with_half(entry, '+', ' ')
  if entry and entry['num_runs'] == 1 and 'image_interval' in entry:
    text += f' ({tables.span(entry["image_interval"], "+")})'
  return text


def draw(
  by_row: Mapping[str, Sequence[runs.Run]],
) -> matplotlib.figure.Figure | None:
  """Validation scores against training time, a line a row (the paper's Fig. 7).

  Stage I's time comes first. A line is the mean over the finished runs, its
  band runs from the lowest to the highest of them.

  Returns:
    The figure; None without a validation line.
  """
  curves = {name: _curves(own) for name, own in by_row.items()}
  panels = {
    score: score_table.SUMMARY[score].long
    for score in ('accuracy', 'balanced_accuracy', 'auroc_any_lesion')
    if any(score in own for own in curves.values())
  }
  if not panels:
    return None
  longest = max(time[-1] for own in curves.values() for time, _ in own.values())
  unit, name = 1, 's'
  for seconds, shown in ((60, 'min'), (3600, 'h')):
    if longest >= 3 * seconds:
      unit, name = seconds, shown
  figure = matplotlib.figure.Figure(
    figsize=(0.4 + 3.4 * len(panels), 3.9), dpi=150
  )
  rows = -(-len(by_row) // 3)
  grid = figure.subplots(1, len(panels), squeeze=False)[0]
  for axes, (score, title) in zip(grid, panels.items(), strict=True):
    for i, (row, own) in enumerate(curves.items()):
      if score in own:
        _draw_row(axes, row, i, unit, *own[score])
    axes.set_title(title, fontsize=10, loc='left')
    axes.set_xlabel(f'training time, stage I included ({name})')
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[['top', 'right']].set_visible(False)
  count = max(
    len(found) for own in curves.values() for _, found in own.values()
  )
  grid[0].set_ylabel(
    'score on validation'
    + (f'\nmean and range of {count} seeds' if count > 1 else '')
  )
  handles = {
    text: handle
    for axes in grid
    for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
  }
  figure.legend(
    handles.values(), handles.keys(), loc='lower center', ncols=3,
    frameon=False, fontsize=9,
  )  # fmt: skip
  figure.tight_layout(rect=(0, 0.02 + 0.055 * rows, 1, 1))
  return figure


def _draw_row(axes, row, i, unit, time, found):
  """A line and its band: of time (points,) and scores (runs, points)."""
  colour = _COLOURS[i % len(_COLOURS)]
  axes.plot(
    time / unit, found.mean(axis=0), label=row, linewidth=1.5, color=colour,
    marker=_MARKERS[i % len(_MARKERS)], markersize=4,
    linestyle=_DASHES[i // len(_COLOURS) % len(_DASHES)],
  )  # fmt: skip
  if len(found) > 1:
    low, high = found.min(axis=0), found.max(axis=0)
    axes.fill_between(
      time / unit, low, high, alpha=0.15, linewidth=0, color=colour
    )


def _curves(own):
  """{score: (seconds (points,), scores (runs, points))} of the finished runs.

  Runs of one row have the same validations; seconds are the mean over them.
  """
  found: dict[str, dict[int, list]] = {}
  for run in tables.finished(own):
    for seconds, entry in runs.validations(run):
      for score, value in entry.items():
        if isinstance(value, float):
          points = found.setdefault(score, {}).setdefault(run.seed, [])
          points.append((seconds, value))
  curves = {}
  for score, by_seed in found.items():
    shortest = min(map(len, by_seed.values()))
    both = np.array([p[:shortest] for p in by_seed.values()])
    curves[score] = both[..., 0].mean(axis=0), both[..., 1]
  return curves
