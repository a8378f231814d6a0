"""The predict command: files in, DIR/predictions.csv and a page out.

Rows are written as they come, into predictions.csv.part, which gets its name
when it is whole; so do faults.csv, embeddings.npz and index.html. With
`resume` a part is gone on with.
"""

import contextlib
import csv
import dataclasses
import hashlib
import os
import pathlib
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from dpjax import atomic, csv_cells, file_lock, signals
from dpjax.data import vocabulary
from dpjax.errors import SourceFault, UserError, printable
from dpjax.evaluation import files
from dpjax.serving import decode, inputs, overlays, page, table
from dpjax.serving.model import Model, Predictions

FAULTS = 'faults.csv'
EMBEDDINGS = 'embeddings.npz'
RECORD = files.ANSWERS
# What --resume must find as it was, and what a user calls it.
_KEPT = {
  'input': 'input', 'files': 'list of files', 'runs': 'set of runs',
  'class_names': 'list of classes', 'temperature': 'temperature',
  'threshold': 'threshold', 'shares': 'value of evaluate.prevalence',
  'unlike_training': f'{files.FEATURES}, which says what is unlike training',
  'embeddings': 'value of --embeddings',
}  # fmt: skip
# The same of the pictures, where some are drawn already.
_KEPT_DRAWN = {
  'cam_target': 'value of evaluate.cam_target',
  'cam_stage': 'value of evaluate.cam_stage',
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """What predict is to do.

  Attributes:
    on_error: 'fail' at the first file that cannot be read, or 'skip' and list
      it in faults.csv.
    resume: go on with what an earlier call has left.
    embeddings: keep the pooled features.
    overlays: images to draw, those with the highest p_any_lesion (or the least
      sure); -1: all.
    workers: processes that decode.
    progress: a bar on stderr.
  """

  on_error: str = 'fail'
  resume: bool = False
  embeddings: bool = False
  overlays: int = 0
  workers: int = 1
  progress: bool = True


def predict(
  model: Model,
  given: str | pathlib.Path,
  output: str | pathlib.Path,
  settings: Settings,
) -> dict[str, Any]:
  """Scores files; returns what predict.json holds.

  Args:
    model: that answers.
    given: an image, a folder of them, or a csv that names them.
    output: the folder to write into, made if it is missing.
    settings: what to do.

  Raises:
    UserError: one line: nothing to read, a file at fault, something else or
      another call's part in the way, overlays of an export without maps, or a
      class of a column's name.
    OSError: the folder cannot be written.
  """
  output = pathlib.Path(output)
  _check_output(output)
  first = model.networks[0]
  if settings.overlays and not first.has_maps:
    raise UserError(
      f'--overlays: {first.workdir} was exported without --maps; export it with'
      ' them, or leave --overlays out'
    )
  if vocabulary.ANY_LESION in model.class_names:  # prepare refuses it now.
    raise UserError(
      f'{first.workdir}: a class is called {vocabulary.ANY_LESION}, and so is'
      f' a column of {table.PREDICTIONS}; dpjax.load answers in Python'
    )
  found, remarks = inputs.find(given)
  record = _record(model, given, found, settings, remarks)
  output.mkdir(parents=True, exist_ok=True)
  with file_lock.locked(output / '.predict.lock', file_lock.Work(
    f'--output={output}', 'predicts', 'wait for it, or name another folder'
  )):  # fmt: skip
    _begin(output, record, settings)
    if not (output / table.PREDICTIONS).exists():
      _answer_all(model, found, output, settings, given)
    with _naming(output):
      drawn = overlays.draw(model, output, found, settings)
      record = {**record, **_counts(output)}
      page.write(output, record, drawn)
      atomic.write_json(output / RECORD, record)
  return record


def _check_output(output):
  """Refuses what is not predict's own, before anything is computed."""
  files.check_output(output, RECORD)
  rows = output / table.PREDICTIONS
  if rows.exists() and not (output / RECORD).exists():
    raise UserError(
      f'--output={output} holds a {rows.name} that predict has not written;'
      ' name a folder of its own'
    )


def _answer_all(model, found, output, settings, given):
  """Writes predictions.csv and what stands beside it."""
  done = _names_done(output / f'{table.PREDICTIONS}.part')
  left = [one for one in found if one.name not in done]
  faults: list[tuple[str, str]] = []
  with _Rows(output, model, settings.embeddings, len(done)) as rows:
    for names, answers in _answers(model, left, settings, len(done), faults):
      rows.write(names, answers)
  if not rows.count:
    raise UserError(
      f'--input={given}: none of its {len(found)} files can be read; the first,'
      f' {faults[0][0]}: {faults[0][1]}'
    )
  if faults:
    with (
      atomic.replacing(output / FAULTS) as temporary,
      open(temporary, 'w', newline='', encoding='utf-8') as stream,
    ):
      csv_cells.write(stream, [('file', 'reason'), *faults])
  rows.finish()


def _record(model, given, found, settings, remarks):
  """predict.json as it stands before anything is done."""
  target, stage = model.networks[0].cam or (None, None)  # It draws the maps.
  known = model.networks[0].known
  return {
    'input': os.path.abspath(given),
    'files': {
      'count': len(found),
      'sha256': hashlib.sha256(
        '\n'.join(one.name for one in found).encode()
      ).hexdigest(),
    },
    'runs': [
      {
        'workdir': str(network.workdir.resolve()),
        'step': network.step,
        'dtype': network.dtype,
        'sha256': network.sha256,
      }
      for network in model.networks
    ],
    'class_names': [*model.class_names],
    'temperature': model.temperature,
    'threshold': model.threshold,
    'shares': None if model.shares is None else model.shares.tolist(),
    'unlike_training': None
    if known is None
    else {'false_alarms': _number(known.alarms), 'sha256': known.sha256},
    'embeddings': settings.embeddings,
    'cam_target': target,
    'cam_stage': stage,
    'notes': [*model.notes, *remarks],
  }


def _number(value):
  return float(value) if np.isfinite(value) else None


def _begin(output, record, settings):
  """Removes what earlier calls have left, or makes sure that it fits."""
  if settings.resume and (output / RECORD).is_file():
    before = atomic.read_json(output / RECORD)
    kept = _KEPT | (_KEPT_DRAWN if overlays.drawn(output) else {})
    for name, called in kept.items():
      if before.get(name) != record[name]:
        raise UserError(
          f'--resume: {output} was begun with another {called}:'
          f' {str(before.get(name))[:80]}; leave --resume out to begin anew'
        )
    # What it is drawn by from now on, should this call be killed.
    atomic.write_json(output / RECORD, {**before, **record})
    return
  for name in (table.PREDICTIONS, FAULTS, EMBEDDINGS, page.NAME, RECORD):
    (output / name).unlink(missing_ok=True)
    (output / f'{name}.part').unlink(missing_ok=True)
  overlays.clear(output)
  atomic.write_json(output / RECORD, record)


def _names_done(part):
  """The names in a part; cuts off a row that is not whole."""
  if not part.exists():
    return set()
  with open(part, 'rb') as file:  # No name has a line end (inputs.Input).
    whole = sum(len(line) for line in file if line.endswith(b'\n'))
  os.truncate(part, whole)
  try:
    return {row['file'] for row in table.read(part)}
  except (csv.Error, ValueError) as error:  # A crash left zeros.
    raise UserError(
      f'{part} is damaged ({error}); leave --resume out to begin anew'
    ) from error


def _answers(
  model: Model, left: Sequence[inputs.Input], settings: Settings, done: int,
  faults: list[tuple[str, str]],
) -> Iterator[tuple[list[str], Predictions]]:  # fmt: skip
  """(names, answers) of batches of files; what cannot be read goes to faults.

  Raises:
    UserError: settings.on_error is 'fail' and one cannot be read; or as
      Model.answer.
  """
  stream = decode.stream(
    [one.path for one in left], model.size, model.fit, settings.workers
  )
  names: list[str] = []
  batch: list[decode.Decoded] = []
  with (
    contextlib.closing(stream),
    tqdm.tqdm(
      total=done + len(left), initial=done, desc='predict', unit='img',
      disable=not settings.progress, dynamic_ncols=True,
    ) as bar,
  ):  # fmt: skip
    for one, answer in zip(left, stream, strict=True):
      bar.update()
      if isinstance(answer, SourceFault):
        if settings.on_error == 'fail':
          raise UserError(
            f'{printable(one.path)}: {answer}; --on_error=skip leaves it out'
            f' and lists it in {FAULTS}'
          )
        faults.append((one.name, str(answer)))
        continue
      names.append(one.name)
      batch.append(answer)
      if len(batch) == model.batch_size:
        yield names, model.answer(batch, names)
        names, batch = [], []
        signals.check()
    if batch:
      yield names, model.answer(batch, names)


class _Rows:
  """predictions.csv and, beside it, the features, row by row.

  Attributes:
    count: rows so far.
  """

  def __init__(
    self, output: pathlib.Path, model: Model, embeddings: bool, count: int
  ):
    self._output = output
    self._class_names = model.class_names
    self._part = output / f'{table.PREDICTIONS}.part'
    self._raw = output / f'{EMBEDDINGS}.part' if embeddings else None
    self.count = count
    self._width = sum(network.width for network in model.networks)

  def __enter__(self) -> '_Rows':
    self._stack = contextlib.ExitStack()
    with _naming(self._part):
      self._file = self._stack.enter_context(
        open(self._part, 'a', newline='', encoding='utf-8')
      )
      if not self._file.tell():
        csv_cells.write(self._file, [table.header(self._class_names)])
      if self._raw is not None:
        self._features = self._stack.enter_context(open(self._raw, 'ab'))
        size = self.count * self._width * 4
        if self._features.tell() < size:
          raise UserError(
            f'{self._raw} is cut short; leave --resume out to begin anew'
          )
        self._features.truncate(size)
    return self

  def __exit__(self, *_: object) -> None:
    with _naming(self._part):
      self._stack.close()

  def write(self, names: list[str], answers: Predictions) -> None:
    """Adds the rows of a batch; a kill then leaves them there."""
    rows = table.rows(names, answers)
    with _naming(self._part):
      if self._raw is not None:  # First: a resume cuts off what has no row.
        self._features.write(answers.embeddings.astype('<f4').tobytes())
        self._features.flush()
      csv_cells.write(self._file, rows)
      self._file.flush()
    self.count += len(rows)

  def finish(self) -> None:
    """Gives the files their names."""
    if self._raw is not None:
      _pack(self._raw, self._output / EMBEDDINGS, self._part, self._width)
    with _naming(self._part), open(self._part, 'rb') as file:
      os.fsync(file.fileno())
    os.replace(self._part, self._output / table.PREDICTIONS)
    if self._raw is not None:
      self._raw.unlink()


def _pack(raw, file, rows_file, width):
  """An .npz of the features, whatever their number; 'files' names the rows."""
  count = raw.stat().st_size // (4 * width)
  names = np.array([row['file'] for row in table.read(rows_file)])
  with (
    atomic.replacing(file) as temporary,
    zipfile.ZipFile(temporary, 'w') as archive,
  ):
    with archive.open('files.npy', 'w') as out:
      np.lib.format.write_array(out, names, allow_pickle=False)
    with archive.open('features.npy', 'w', force_zip64=True) as out:
      np.lib.format.write_array_header_1_0(
        out,
        {'descr': '<f4', 'fortran_order': False, 'shape': (count, width)},
      )
      with open(raw, 'rb') as features:
        shutil.copyfileobj(features, out, 1 << 20)


def _counts(output):
  """How many rows there are, and how many of them say something."""
  found = {'images': 0, 'positive': 0, 'unlike': 0, 'faults': 0}
  for row in table.read(output / table.PREDICTIONS):
    found['images'] += 1
    found['positive'] += row['positive'] == '1'
    found['unlike'] += bool(row['unlike_training'])
  if (output / FAULTS).exists():
    found['faults'] = sum(1 for _ in table.read(output / FAULTS))
  return found


@contextlib.contextmanager
def _naming(path):
  """Gives the operating system's refusal the name of what was written."""
  try:
    yield
  except OSError as error:
    if error.errno is None or error.filename is not None:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


def text(record: dict[str, Any], output: str | pathlib.Path) -> str:
  """What predict.json says, for people."""
  lines = [f'note: {note}' for note in record['notes']]
  images = table.counted(record['images'], 'radiograph')
  if record['threshold'] is None:
    lines.append(f'{images}; no threshold, so no decisions')
  else:
    lines.append(
      f'{images}, {record["positive"]:,} positive (p_any_lesion at least'
      f' {record["threshold"]:.4g})'
    )
  if record['unlike_training'] is not None:
    alarms = record['unlike_training']['false_alarms']
    said = (
      ''
      if alarms is None
      else f' ({alarms:.1%} of images like those of validation are)'
    )
    lines.append(f'{record["unlike"]:,} unlike what it was trained on{said}')
  if record['faults']:
    faults = table.counted(record['faults'], 'file')
    lines.append(f'{faults} cannot be read: see {FAULTS}')
  lines.append(f'written: {output}/{table.PREDICTIONS}, {page.NAME}')
  return '\n'.join(map(printable, lines))
