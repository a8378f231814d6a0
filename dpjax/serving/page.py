"""index.html of the predict command: a page that opens from disk.

One file, which asks for nothing but the pictures beside it. The rows stand in
it as JSON and are sorted, filtered and shown a hundred at a time.
"""

import html
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dpjax import atomic
from dpjax.data import vocabulary
from dpjax.errors import printable
from dpjax.serving import table

NAME = 'index.html'
_HERE = pathlib.Path(__file__).parent
_STYLES = _HERE.parent / 'report' / 'report.css'
_POLICY = (
  "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline';"
  " script-src 'unsafe-inline'"
)


def write(
  output: pathlib.Path, record: Mapping[str, Any], drawn: Mapping[str, str]
) -> None:
  """Writes the page of the predictions.csv there, whole or not at all.

  Args:
    output: the folder.
    record: of predict.json.
    drawn: {file: its picture, from the folder}.
  """
  about = {
    'classes': record['class_names'],
    'threshold': record['threshold'],
    'lesion': vocabulary.is_normal(record['class_names'][0]),
    'spread': len(record['runs']) > 1,
    'unlike': record['unlike_training'] is not None,
  }
  with (
    atomic.replacing(output / NAME) as temporary,
    open(temporary, 'w', encoding='utf-8') as file,
  ):
    template = (_HERE / 'predict.html').read_text(encoding='utf-8')
    parts = {
      'policy': _POLICY,
      'style': _STYLES.read_text(encoding='utf-8')
      + (_HERE / 'predict.css').read_text(encoding='utf-8'),
      'said': _said(record),
      'about': _json(about),
      'script': (_HERE / 'predict.js').read_text(encoding='utf-8'),
    }
    before, after = template.split('{{rows}}')
    file.write(_filled(before, parts))
    for i, row in enumerate(table.read(output / table.PREDICTIONS)):
      file.write(',\n'[not i :] + _json(_row(row, drawn)))
    file.write(_filled(after, parts))


def _row(row, drawn):
  """As predict.js reads it; null stands for what is empty."""
  numbers = [float(p) for p in table.probabilities(row).values()]
  lesion, positive, spread = (
    float(row[name]) if row[name] else None
    for name in ('p_any_lesion', 'positive', 'spread')
  )
  return [
    row['file'], row['prediction'], numbers, lesion, positive, spread,
    row['unlike_training'], drawn.get(row['file']),
  ]  # fmt: skip


def _said(record):
  """What stands above the table, as HTML."""
  runs = ', '.join(map(_run, record['runs']))
  images = table.counted(record['images'], 'radiograph')
  lines = [f'{images} of {record["input"]}, by {runs}.']
  if record['threshold'] is not None:
    lines.append(
      f'{_are(record["positive"])} positive: p of any lesion is at least'
      f' {record["threshold"]:.3f}, the threshold chosen on validation.'
    )
  if record['unlike_training'] is not None:
    alarms = record['unlike_training']['false_alarms']
    rate = (
      f" (so are {alarms:.1%} of images like validation's)"
      if alarms is not None
      else ''
    )
    lines.append(
      f'{_are(record["unlike"])} unlike what it was trained on{rate}.'
    )
  if record['faults']:
    faults = table.counted(record['faults'], 'file')
    lines.append(f'{faults} cannot be read: faults.csv.')
  lines += record['notes']
  return ''.join(
    f'<p class="data">{html.escape(line)}</p>' for line in map(printable, lines)
  )


def _are(count):
  return f'{count:,} {"is" if count == 1 else "are"}'


def _run(run):
  name = '/'.join(pathlib.Path(run['workdir']).parts[-2:])
  return name if run['step'] is None else f'{name} (step {run["step"]})'


def _filled(template: str, parts: Mapping[str, str]) -> str:
  for name, text in parts.items():
    template = template.replace('{{' + name + '}}', text)
  return template


def _json(value: Any) -> str:
  """JSON that may stand in a script element, whatever texts are in it."""
  text = json.dumps(value, ensure_ascii=True, allow_nan=False)
  return text.replace('<', '\\u003c')
