"""What is in a prepared set, in a table for people."""

from typing import Any

from dpjax import text_table


def format_summary(summary: dict[str, Any]) -> str:
  """The summary as a table for people."""
  counts = {k: v for k, v in summary['counts'].items() if k != 'unlabelled'}
  names = [f'{c} {n}' if n != str(c) else n
           for c, n in enumerate(summary['class_names'])]  # fmt: skip
  lines = [
    f'{summary["path"]}: {summary["name"]}, squares of {summary["size"]} pixels'
    + (' (already prepared, kept as it is)' if summary['reused'] else ''),
  ]
  columns = [*counts.values()]
  table = []
  if counts:
    table.append(['class', *counts, 'all'])
    rows = [*zip(*columns, strict=True), [*map(sum, columns)]]
    table += [
      [name, *(f'{n:,}' for n in (*row, sum(row)))]
      for name, row in zip([*names, 'all'], rows, strict=True)
    ]
  if 'unlabelled' in summary['counts']:
    unlabelled = f'{summary["counts"]["unlabelled"]:,}'
    table.append(['unlabelled', *[''] * len(counts), unlabelled])
  lines += text_table.lines(table, '<>', (10,))
  patients = summary['patients']
  lines.append(
    ('patients not named' if patients is None else f'patients {patients:,}')
    + f', lesion boxes {summary["boxes"]:,}'
    + f' ({summary["boxes_clipped"]:,} clipped to the frame)'
    * bool(summary['boxes_clipped'])
  )
  for field, words in (
    ('copies', 'copies of another image {:,}: see duplicates.csv'),
    ('left_out', 'left out of the set {:,}: see left_out.csv'),
    ('skipped', 'faults {:,}, skipped: see quarantine.csv'),
  ):
    if summary[field]:
      lines.append(words.format(summary[field]))
  # A set from before there were warnings has none.
  lines += [f'warning: {line}' for line in summary.get('warnings', ())]
  for split, row in counts.items():
    lacking = [
      name
      for name, n, total in zip(
        names, row, map(sum, zip(*columns, strict=True)), strict=True
      )
      if total and not n
    ]
    if lacking:
      lines.append(f'warning: {split} has no image of {", ".join(lacking)}')
  return '\n'.join(lines)
