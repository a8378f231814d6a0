"""The tables of a benchmark: Markdown, and no wider than a terminal."""

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from dpjax import text_table

WIDTH = 100  # columns
_QUIET = 0.1  # of the cores may work for others
# What is measured of the input, in this order.
INPUTS = {
  'store': 'store read, one thread',
  'decisions': 'decisions only, no pixels',
  'host': 'Grain, rendered on the host',
  'device': 'Grain, rendered on the device',
  'resident': 'resident, rendered on the device',
}
# Between which rates a program is predicted.
MODEL = (
  'each kernel at its roofline and launched from a CUDA graph, or at 79 % of it'
  ' and launched one by one; on a TPU by the cycles of its compiler'
)
TITLES = {
  'pretrain': 'Stage I, contrastive pre-training',
  'retrain': 'Stage II, re-training',
  'inference': 'Inference of stage II',
}


@dataclasses.dataclass(frozen=True)
class Table:
  """One table.

  Attributes:
    title: what it shows.
    head: names of the columns.
    rows: cells of each row.
    notes: sentences to stand below it.
  """

  title: str
  head: Sequence[str]
  rows: Sequence[Sequence[str]]
  notes: Sequence[str] = ()


def format_text(found: dict[str, Any]) -> str:
  """All of it, as Markdown.

  Args:
    found: benchmark.json.
  """
  return page('dpjax benchmark', about(found), tables(found), legend(found))


def page(
  title: str,
  lines: Sequence[str],
  shown: Iterable[Table],
  explained: Sequence[str],
) -> str:
  """A page: where and with what, the tables, and what their columns mean."""
  blocks = [f'# {title}', listed(lines)]
  for table in shown:
    blocks += [f'## {table.title}', markdown(table)]
    if table.notes:
      blocks.append(listed(table.notes))
  return '\n\n'.join([*blocks, *map(wrapped, explained)])


def about(found: dict[str, Any]) -> list[str]:
  """Where, with what and how it was measured, in a few lines."""
  c, device, host = found['config'], found['device'], found['host']
  load = host['load_at_start']
  environment = ' '.join(f'{k}={v}' for k, v in found['environment'].items())
  lines = [
    f'Device: {device["used"]} of {device["present"]} x {device["kind"]}'
    f' ({device["platform"]}), {device["mode"]}; {host["cpus"]} CPU cores'
    + ('' if load is None else f', load {load:.1f} at the start'),
    *with_what(found),
    f'Environment: {environment or "no XLA_FLAGS"}',
    f'Repeats: {c["benchmark"]["repeats"]} of at least'
    f' {c["benchmark"]["seconds"]:g} s each',
  ]
  if peaks := found.get('peaks'):
    lines.append(
      'Best of one device, measured:'
      f' {scaled(peaks["flops_per_second"]["median"])}FLOP/s'
      f' ({peaks["dtype"]} product of side {peaks["side"]}),'
      f' {scaled(peaks["bytes_per_second"]["median"])}B/s'
      f' (add in place, {peaks["copied_bytes"] >> 20} MiB)'
    )
  others = host['cores_busy_with_others']
  if others is not None and others > _QUIET * host['cpus']:
    lines.append(
      f'NOT QUIET: other processes kept {others:.1f} of the {host["cpus"]} CPU'
      ' cores busy meanwhile; rates are too low, and ratios may be far off'
    )
  return lines + unfinished(found)


def with_what(found: dict[str, Any]) -> list[str]:
  """The config and the versions, a line each."""
  model, data = found['config']['model'], found['config']['data']
  sizes = ','.join(map(str, model['stage_sizes']))
  versions = (f'{name} {of}' for name, of in found['versions'].items())
  return [
    f'Config: {model["network"]} ({sizes}), width {model["width"]},'
    f' {model["dtype"]}, stem {model["stem"]},'
    f' {data["image_size"]} of {data["store_size"]} pixels, render'
    f' {data["render"]}, placement {data["placement"]}',
    f'Versions: {", ".join(versions)}',
  ]


def unfinished(found: dict[str, Any]) -> list[str]:
  """That it is only a part, if it is."""
  if found['finished']:
    return []
  return ['It was stopped before its end: this is only a part of it']


def tables(found: dict[str, Any]) -> list[Table]:
  """A table for each part that was measured.

  Args:
    found: benchmark.json.
  """
  made = []
  for part in TITLES:
    if part in found:
      made.append(_step(part, found[part]))
      if 'end_to_end' in found[part]:
        made.append(_end_to_end(part, found[part]))
  for stage, rates in found.get('input', {}).items():
    made.append(_input(stage, rates))
  peer = found.get('peer', {})
  return made + [_peer(part, peer) for part in TITLES if part in peer]


def _step(part, found):
  unit = found['unit']
  head = ['batch', 'K', 'ms/step', f'{unit}/s', 'min-max', 'FLOP/s', 'bytes/s',
          'compile s', 'MiB']  # fmt: skip
  known = any(one.get('peak_bytes') for one in found['step'])
  if known:
    head.append('peak')
  by_model = any(one.get('predicted') for one in found['step'])
  if by_model:
    head += ['kernels', 'predicted']
  rows, notes = [], []
  for one in found['step']:
    row = [str(one['batch_size']), str(one['steps_per_dispatch'])]
    if 'error' in one:
      rows.append([*row, *['-'] * (len(head) - len(row))])
      notes.append(f'batch {row[0]}, K {row[1]}: {one["error"]}')
      continue
    row += [
      number(one['ms_per_step']['median']),
      number(one['per_second']['median']),
      _span(one['per_second']),
      percent(one['flops_share']),
      percent(one['bytes_share']),
      f'{one["compile_seconds"]:.1f}',
      mebibytes(one['program_bytes']),
    ]
    row += [mebibytes(one['peak_bytes'])] if known else []
    rows.append(row + (_predicted(one['predicted']) if by_model else []))
  notes += [
    f'batch {one["batch_size"]} left out: {one["why"]}'
    for one in found['left_out']
  ]
  return Table(f'{TITLES[part]}: step only', head, rows, notes)


def _predicted(found):
  """Kernels of a step, and the rates between which the model has it."""
  if not found:
    return ['-', '-']
  rates = found['per_second']
  return [
    number(found['kernels']),
    f'{number(rates["worst"])}-{number(rates["best"])}',
  ]


def _end_to_end(part, whole):
  unit, found = whole['unit'], whole['end_to_end']
  head = ['batch', 'K', f'{unit}/s', 'min-max', f'step only, {unit}/s',
          'input stall']  # fmt: skip
  title = f'{TITLES[part]}: end to end'
  if 'error' in found:
    return Table(title, head, [], [found['error']])
  row = [
    str(found['batch_size']),
    str(found['steps_per_dispatch']),
    number(found['per_second']['median']),
    _span(found['per_second']),
    number(found['step_only_per_second']),
    percent(max(0.0, found['stall_share'])),
  ]
  return Table(title, head, [row])


def _input(stage, found):
  rows = [
    [INPUTS[kind], '-', one['error']]
    if 'error' in one
    else [
      INPUTS[kind],
      number(one['per_second']['median']),
      _span(one['per_second']),
    ]
    for kind, one in found['rates'].items()
  ]
  return Table(
    f'{TITLES[stage]}: input only, batch {found["batch_size"]}',
    ['way', f'{found["unit"]}/s', 'min-max'],
    rows,
  )


def _peer(part, peer):
  found = peer[part]
  notes = [f'{k}: not available ({why})' for k, why in peer['missing'].items()]
  rows = []
  for one in (found['check'], *found['sizes']):
    if 'error' in one:
      notes.append(f'batch {one["batch_size"]}: {one["error"]}')
    if 'per_second' not in one:
      continue
    size = one['batch_size']
    for name, rates in one['per_second'].items():
      row = [name, str(size), number(rates['median']), _span(rates)]
      ratios = one['ratios'].get(name)  # Ours have none.
      rows.append(
        [*row, f'{ratios["dpjax"]:.2f}', f'{ratios["fastest"]:.2f}']
        if ratios
        else [*row, '-', '-']
      )
    notes.append(
      f'batch {size}: {one["ours"]} is {one["ratio"]:.2f} times as fast as'
      f' {one["theirs"]}, the fastest of PyTorch'
    )
  return Table(
    f'{TITLES[part]}: against PyTorch {peer["version"]} on {peer["device"]}',
    ['way', 'batch', f'{found["unit"]}/s', 'min-max', 'x, K=1', 'x, best K'],
    rows,
    notes,
  )


def legend(found: dict[str, Any]) -> list[str]:
  """What the columns mean."""
  lines = [
    'Medians of the repeats. K: steps a dispatch. FLOP/s, bytes/s: shares of'
    ' what the device was measured to do at best; the numerators are estimates'
    ' by XLA, not hardware counters. MiB: what the compiler plans for a device;'
    ' peak: the most in use there, MiB, where this measurement raised it. Input'
    ' stall: 1 - end to end / step only; what noise makes negative is shown as'
    ' 0.'
  ]
  if any(
    one.get('predicted')
    for part in TITLES
    for one in found.get(part, {}).get('step', ())
  ):
    lines.append(
      'kernels: that a step runs. predicted: what benchmark --target says of'
      f' the same program, a second; {MODEL}.'
    )
  if 'pretrain' in found or 'pretrain' in found.get('input', {}):
    lines.append('A pair is one radiograph with all its views.')
  if 'peer' in found:
    lines.append(
      'Against PyTorch both take the same batch, rendered on the host. dpjax'
      ' makes one step a dispatch, and as many (K) as its training does; x: how'
      f' many times as fast as PyTorch it is. {found["peer"]["work"]}.'
    )
  return lines


def markdown(table: Table) -> str:
  """Columns by their widths; words to the left, numbers to the right."""
  words = table.head[0] == 'way'
  head, *rows = text_table.pad(
    [table.head, *table.rows], '<>' if words else '>', (3,)
  )
  rule = ['-' * (len(cell) - 1) + ':' for cell in head]
  if words:
    rule[0] = '-' * len(head[0])
  return '\n'.join(f'| {" | ".join(row)} |' for row in [head, rule, *rows])


def listed(lines: Sequence[str]) -> str:
  """Lines as a Markdown list, each wrapped."""
  return '\n'.join(wrapped(f'- {line}', '  ') for line in lines)


def wrapped(line: str, indent: str = '') -> str:
  """A line broken at WIDTH; what follows the first is indented."""
  return textwrap.fill(
    line, WIDTH, subsequent_indent=indent, break_on_hyphens=False
  )


def number(value: float) -> str:
  """Three digits that count, or all of a whole number."""
  if value >= 100:
    return f'{value:,.0f}'
  return f'{value:.1f}' if value >= 10 else f'{value:.3g}'


def _span(of):
  return f'{number(of["min"])}-{number(of["max"])}'


def mebibytes(size: int | None) -> str:
  """Bytes in MiB; - for None."""
  return '-' if size is None else f'{size / 2**20:,.0f}'


def percent(share: float | None) -> str:
  """A share in per cent; - for None."""
  return '-' if share is None else f'{100 * share:.1f} %'


def scaled(value: float) -> str:
  """With a prefix of units and a blank behind it."""
  for size, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M')):
    if value >= size:
      return f'{number(value / size)} {prefix}'
  return f'{value:.3g} '
