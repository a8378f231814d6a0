"""The tables of `benchmark --target`, as Markdown."""

from collections.abc import Iterator
from typing import Any

from dpjax.benchmark import text
from dpjax.benchmark.text import Table, number, percent, scaled

_PARTS_SHOWN, _SLOWEST_SHOWN = 12, 5


def format_text(found: dict[str, Any]) -> str:
  """All of it, as Markdown.

  Args:
    found: benchmark.json.
  """
  shown = (
    table
    for part in text.TITLES
    if part in found
    for table in _tables(part, found)
  )
  return text.page(
    'dpjax benchmark: predicted', _about(found), shown, [_LEGEND]
  )


_LEGEND = (
  'PREDICTED, NOT MEASURED: the programs are those that the compiler makes for'
  ' the target, the rates lie between two models: '
  f'{text.MODEL}, and 79 % of their rate. limit: of all products at the peak or'
  ' all bytes at the bandwidth. MiB: arguments, temporaries and code of one'
  ' device. small: kernels that move fewer than 4 MB. GB: moved in device'
  ' memory; GFLOP: of convolutions and matrix products; both in a step, of one'
  ' device. s: that the compiler took.'
)


def _about(found):
  """What for, with what, and what the figures of the device are."""
  c, t = found['config'], found['target']
  return [
    f'Target: {t["name"]}: {t["devices"]} x {t["kind"]},'
    f' {c["parallel"]["mode"]} on {c["parallel"]["devices"]}; none of it is'
    ' here',
    f'One device ({t["source"]}): {scaled(t["flops"])}FLOP/s in bfloat16,'
    f' {scaled(t["bandwidth"])}B/s,'
    f' {t["memory"] / 2**30:.1f} GiB, of which JAX has'
    f' {t["usable"] / 2**30:.1f}',
    *text.with_what(found),
    *text.unfinished(found),
  ]


def _tables(part: str, found: dict[str, Any]) -> Iterator[Table]:
  own = found[part]
  yield _programs(part, own, found['target'])
  shown = [one for one in own['programs'] if 'error' not in one]
  if shown:
    # The largest one step a dispatch: there the network's own work shows best.
    one = max(shown, key=lambda o: (-o['steps_per_dispatch'], o['batch_size']))
    yield _where(part, one)


def _programs(part, own, target):
  unit = own['unit']
  head = ['batch', 'K', 'MiB', 'kernels', 'small', 'GB', 'GFLOP',
          f'{unit}/s', 'limit', 's']  # fmt: skip
  rows, notes = [], []
  for one in own['programs']:
    row = [str(one['batch_size']), str(one['steps_per_dispatch'])]
    if 'error' in one:
      rows.append([*row, *['-'] * (len(head) - len(row))])
      why = '' if 'memory' in one else 'does not compile: '
      notes.append(f'batch {row[0]}, K {row[1]}: {why}{one["error"]}')
      continue
    rates = one['per_second']
    row += [
      text.mebibytes(one['memory']['all']),
      number(one['kernels']),
      number(one['small_kernels']),
      number(one['bytes'] / 1e9),
      number(one['flops'] / 1e9),
      f'{number(rates["worst"])}-{number(rates["best"])}',
      number(one['limit_per_second']),
      f'{one["compile_seconds"]:.0f}',
    ]
    rows.append(row)
    if not one['fits']:
      notes.append(f'batch {row[0]}, K {row[1]}: does not fit into the memory')
    for kind, sent in one['collectives'].items():
      notes.append(
        f'batch {row[0]}, K {row[1]}: {number(sent["count"])} {kind} a step, to'
        f' which a device hands in {number(sent["bytes"] / 1e6)} MB'
      )
    if one['collectives']:
      notes.append(
        f'batch {row[0]}, K {row[1]}: collectives take'
        f' {number(one["collective_seconds"] * 1e3)} ms of'
        f' {number(one["seconds"]["best"] * 1e3)} by the faster model'
      )
    if one['scatters']:
      notes.append(
        f'batch {row[0]}, K {row[1]}: {number(one["scatters"])} scatter of'
        ' single values'
      )
  notes += [
    f'batch {one["batch_size"]} left out: {one["why"]}'
    for one in own['left_out']
  ]
  if 'fit' in own:
    notes.append(_fit(own['fit'], target))
  return Table(f'{text.TITLES[part]}: predicted', head, rows, notes)


def _fit(fit, target):
  if not fit['batch_size']:
    return 'no batch fits' + (f': {fit["error"]}' if 'error' in fit else '')
  line = f'largest batch by a line through two programs: {fit["batch_size"]:,}'
  if 'error' in fit:
    return f'{line}, which does not compile: {fit["error"]}'
  return (
    f'{line}; compiled, it takes {fit["bytes"] / 2**30:.1f} of the'
    f' {target["usable"] / 2**30:.1f} GiB'
    + ('' if fit['fits'] else ', so it does NOT fit')
  )


def _where(part, one):
  """Where the time of a program goes, by the model."""
  seconds = sum(own['seconds'] for own in one['parts'])
  rows = [
    [
      own['part'],
      number(own['kernels']),
      number(own['bytes'] / 1e6),
      number(own['flops'] / 1e9),
      percent(own['seconds'] / seconds),
    ]
    for own in one['parts'][:_PARTS_SHOWN]
  ]
  notes = [
    f'{own["name"]} ({own["kind"]}), {own["part"]}:'
    f' {number(own["seconds"] * 1e6)} us, {number(own["bytes"] / 1e6)} MB,'
    f' {number(own["flops"] / 1e9)} GFLOP'
    for own in one['slowest'][:_SLOWEST_SHOWN]
  ]
  return Table(
    f'{text.TITLES[part]}: where the time goes at batch'
    f' {one["batch_size"]}, K {one["steps_per_dispatch"]}',
    ['way', 'kernels', 'MB', 'GFLOP', 'time'],
    rows,
    notes,
  )
