"""The inspect command: what a folder is, and how it would be prepared.

Every layout of the registry is asked; the surest guess counts. Nothing is
written, and every guess stands with its reason.
"""

import collections
import os
import pathlib
import shlex
import textwrap
import time
from typing import Any

from dpjax.data.decode import formats, image_file
from dpjax.data.sources import facts as facts_lib
from dpjax.data.sources import guess as guess_lib
from dpjax.data.sources import registry
from dpjax.errors import UserError, printable, reason_of

WIDTH = 80
_DECODED = 24  # images at most ...
_SECONDS = 5  # ... and so long
_INDENT = 12


def inspect(source: str | pathlib.Path) -> str:
  """What lies in a folder, for people; the command that prepares it last.

  Args:
    source: the folder, as downloaded.

  Raises:
    UserError: one line: it is no folder, or cannot be read.
  """
  given = pathlib.Path(os.path.expanduser(source))
  facts = facts_lib.look(given)
  inner = _set_inside(facts)
  if inner:
    facts = facts_lib.look(given / inner)
  guess = _best(facts)
  lines = _opening(facts, inner)
  odd = [*_odd_files(facts), *_odd_images(facts)]
  if guess is None:
    lines += _nothing(facts)
    lines += _bullets('Look at this:', odd)
    return '\n'.join(map(printable, lines))
  lines += _entry('layout', f'{guess.layout}: {guess.what}')
  for subject, text in guess.said:
    lines += _entry(subject, text)
  lines += _bullets('Look at this:', [*map(_sentence, guess.odd), *odd])
  lines += _bullets('What cannot be told:', guess.unknown)
  ready = 'to copy'
  if guess.unknown:
    ready = 'when the above is filled in'
  elif guess.refused:
    ready = 'when the files are mended'
  lines += ['', f'The command, {ready}:', '']
  # Of the command only what is no text is escaped: else it would not run.
  flags = '\n'.join(command(guess, given / inner))
  flags = flags.encode(errors='backslashreplace').decode()
  return '\n'.join([*map(printable, lines), flags])


def command(guess: guess_lib.Guess, source: pathlib.Path) -> list[str]:
  """The lines of the prepare command that a guess takes, for a shell.

  Args:
    guess: the guess.
    source: the folder.
  """
  flags = [
    f'--config.data.layout={guess.layout}',
    f'--config.data.source={shlex.quote(str(source))}',
    *(
      f'--config.data.{name}={_quoted(value)}'
      for name, value in guess.fields.items()
    ),
    *guess.options,
  ]
  lines = ['python -m dpjax.main prepare --config=configs/retrain.py']
  for flag in flags:
    if len(lines) > 1 and len(lines[-1]) + len(flag) + 3 <= WIDTH:
      lines[-1] += f' {flag}'
    else:
      lines[-1] += ' \\'
      lines.append(f'  {flag}')
  return lines


def _quoted(value: Any) -> str:
  """A value as a shell and the config's parser both read it."""
  if isinstance(value, tuple):
    comma = ',' * (len(value) == 1)
    parts = ','.join(_literal(part) for part in value)
    return shlex.quote(f'({parts}{comma})')
  return shlex.quote(str(value))


def _literal(value):
  """As Python writes it, texts in double quotes: the shell's are single."""
  if not isinstance(value, str):
    return repr(value)
  escaped = value.replace('\\', '\\\\').replace('"', '\\"')
  return f'"{escaped}"'


def _best(facts):
  """The surest guess of all layouts; says which others would do."""
  guesses = [
    guess
    for layout in registry.LAYOUTS.values()
    if (guess := layout.recognise(facts))
  ]
  guesses.sort(key=lambda guess: -guess.certainty)
  if not guesses:
    return None
  best, *others = guesses
  others = [o for o in others if o.certainty >= 1]
  if others and best.certainty - others[0].certainty < 1:
    best.odd.append(
      f'It could be read as {others[0].layout} too ({others[0].what})'
    )
  return best


def _set_inside(facts):
  """The folder that the set lies in, if all of it lies in one; else ''."""
  inner, where = '', facts.root
  paths = [*facts.images, *(t.path for t in facts.tables), *facts.jsons]
  while paths:
    first = {path.partition('/')[0] if '/' in path else '' for path in paths}
    name = min(first)
    if len(first) > 1 or not name or _is_part(paths, name):
      return inner
    where, inner = where / name, f'{inner}{name}/'
    paths = [path.partition('/')[2] for path in paths]
  return ''


def _is_part(paths, name):
  """Whether a folder that is alone is a class, a side or an image folder."""
  below = {path.split('/')[1] for path in paths if path.count('/') > 1}
  tables = any(
    path.lower().endswith(('.csv', '.csv.gz', '.json')) for path in paths
  )
  return not tables and len(below) < 2


def _opening(facts, inner):
  counts = collections.Counter(_format(path) for path in facts.images)
  kinds = ', '.join(f'{name} {n:,}' for name, n in counts.most_common())
  folders = {path.rpartition('/')[0] for path in facts.images}
  lines = []
  if inner:
    lines += _entry('folder', f'the set lies in {inner.rstrip("/")}, so this'
                    ' looks in there')  # fmt: skip
  images = f'{len(facts.images):,}'
  if facts.images:
    one = len(folders) == 1
    images += f' ({kinds}) in {len(folders):,} folder{"" if one else "s"}'
  lines += _entry('images', images)
  if facts.tables:
    shown = [
      f'{t.path} ({len(t.rows) + (not _has_header(t)):,} rows'
      f'{"" if t.whole else " read"}: {_columns(t)})'
      for t in facts.tables[:8]
    ]
    more = len(facts.tables) - len(shown)
    lines += _entry(
      'tables', '; '.join(shown) + f' and {more} more' * (more > 0)
    )
  for limit in facts.limits:
    lines += _entry('looked at', limit)
  return lines


def _has_header(table):
  return not all(cell.isdecimal() for cell in table.columns)


def _columns(table):
  if not _has_header(table):
    return 'no header'
  names = table.columns
  return ', '.join(names[:9]) + f' and {len(names) - 9} more' * (len(names) > 9)


def _format(path):
  suffix = os.path.splitext(path)[1].lower()
  return formats.SUFFIXES.get(suffix, 'without a known suffix')


def _odd_files(facts):
  """Suspicious files that no guess is about."""
  if facts.packed:
    yield _sentence(
      f'{len(facts.packed)} files are still packed, such as {facts.packed[0]}'
    )
  if facts.foreign:
    yield _sentence(
      f'{len(facts.foreign)} files are of a form that is not read, such as'
      f' {facts.foreign[0]}'
      + (': save a table as csv' if '.xls' in facts.foreign[0].lower() else '')
    )
  if facts.linked:
    yield _sentence(
      f'a link to a folder is not followed, such as {facts.linked[0]}: put the'
      ' folder itself there'
    )
  for table in facts.tables:
    if len(table.columns) == 1 and any(c in table.columns[0] for c in ';\t'):
      yield _sentence(f'{table.path} has no commas between its cells: save it'
                      ' with commas')  # fmt: skip
  counts = collections.Counter(map(_format, facts.images))
  if len(counts) > 1 and 'DICOM' in counts:
    yield ('DICOM lies beside other formats: are these the same images twice?')


def _odd_images(facts):
  """What comes of decoding some of the images."""
  images = [p for p in facts.images if not facts_lib.is_masks(p)]
  ends, sizes, failed, count = time.monotonic() + _SECONDS, [], {}, 0
  for path in facts_lib.spread(images, _DECODED):
    if time.monotonic() > ends:
      break
    count += 1
    try:
      pixels = image_file.read(str(facts.root / path))
    except UserError as error:
      failed[path] = reason_of(error, str(facts.root / path))
      continue
    sizes.append(pixels.shape[::-1])
    if pixels.std() < 2:
      failed[path] = 'nearly one grey level'
  if sizes:
    areas = sorted(sizes, key=lambda size: size[0] * size[1])
    small = f'{areas[0][0]} x {areas[0][1]}'
    if min(areas[0]) < 128:
      yield _sentence(f'{small} pixels is very small for a radiograph')
    if max(max(s) / min(s) for s in sizes) > 2.5:
      odd = max(sizes, key=lambda s: max(s) / min(s))
      yield _sentence(f'an image of {odd[0]} x {odd[1]} pixels is no chest'
                      ' radiograph, or a part of one')  # fmt: skip
  if failed:
    yield _sentence(
      f'{len(failed)} of {count} images that were decoded are not fit; prepare'
      ' stops at what it cannot read, or leaves it out with --on_error=skip'
    )
    for path, reason in list(failed.items())[:8]:
      yield _sentence(f'{path}: {reason}')


def _nothing(facts):
  """What to say where no layout fits."""
  if not facts.images:
    return _bullets(
      'No command:',
      ['There is no image here: PNG, JPEG, TIFF, BMP or DICOM.'],
    )
  return _bullets(
    'No command:',
    [
      'The images have no labels that could be found: no folders of classes, no'
      ' json and no table that names the images. A table labels.csv with the'
      ' columns image,label beside them is enough (docs/datasets.md); for stage'
      ' I the column image alone, with --config.data.csv.label= (empty).'
    ],
  )


def _sentence(text):
  """The text with a full stop; a path at its beginning stays as it is."""
  first = text.split()[0]
  if first.isalpha():
    text = text[0].upper() + text[1:]
  return text + '.' * (not text.endswith(('.', '?')))


def _entry(subject, text):
  return textwrap.wrap(
    text,
    WIDTH,
    initial_indent=f'{subject:<{_INDENT}}',
    subsequent_indent=' ' * _INDENT,
    break_long_words=False,
    break_on_hyphens=False,
  )


def _bullets(title, texts):
  lines = [
    line
    for text in texts
    for line in textwrap.wrap(
      text, WIDTH, initial_indent='- ', subsequent_indent='  ',
      break_long_words=False, break_on_hyphens=False,
    )
  ]  # fmt: skip
  return ['', title, *lines] if lines else []
