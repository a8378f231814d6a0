"""Makes a prepared set: decode, find copies, split, write.

Work goes on in NAME.partial, where finished blocks and shards survive a kill,
and blocks another choice of labels or splits. The folder appears under its own
name only when it is whole (store.py says what it holds).
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dpjax import csv_cells, file_lock, machine, signals
from dpjax.data import radiograph, store, vocabulary
from dpjax.data.prepare import duplicates, guards, runners, shards, splits
from dpjax.data.sources import tables
from dpjax.errors import UserError

BLOCK = 128  # images in a block, at most: what a process does at a time
SHARD = 512  # images in a shard


@dataclasses.dataclass(frozen=True)
class Settings:
  """All that decides what a set of given radiographs holds.

  Attributes:
    size: side of the squares, pixels.
    fit: 'stretch' or 'pad' (shards.square).
    unit: what stays on one side of a split: 'patient' or 'image'.
    seed: of the splits.
    given: keep the source's own test and validation part.
    test: share of each class that is drawn for test.
    validation: share of the rest that is drawn for validation.
    near: bits of 256 in which the hashes of copies may differ.
  """

  size: int = 256
  fit: str = 'stretch'
  unit: str = 'patient'
  seed: int = 0
  given: bool = True
  test: float = 0.1
  validation: float = 0.1
  near: int = 16


def build(
  records: Sequence[radiograph.Radiograph],
  path: str | pathlib.Path,
  *,
  name: str,
  provenance: dict[str, Any],
  class_names: Sequence[str],
  settings: Settings,
  columns: dict[str, Any] | None = None,
  faults: tables.Faults | None = None,
  strict: bool = False,
  workers: int | None = None,
  beam: tuple[str, Sequence[str]] | None = None,
  progress: bool = True,
) -> dict[str, Any]:
  """Writes the set; returns its summary.

  The bytes do not depend on who does the work.

  Args:
    records: labelled; the source's order is kept within a split.
    path: folder to make.
    name: of the TFDS set; a Python identifier.
    provenance: JSON-like; where the radiographs come from.
    class_names: name of each class.
    settings: see Settings.
    columns: JSON-like; what 'auto' was found to be, for the summary. It is no
      part of the fingerprint: what it leads to is, in the records.
    faults: of the reader; takes those of the images too.
    strict: what the summary would warn of is a fault.
    workers: processes; None: one a CPU core.
    beam: see runners.run.
    progress: show progress on stderr.

  Raises:
    UserError: one line: an image that cannot be read, two images of one id, a
      class of a name that is taken, or another set in that folder; with
      `strict`, the first warning.
  """
  path = pathlib.Path(path)
  faults = faults or tables.Faults()
  if not name.isidentifier():  # TFDS finds the files by it.
    raise UserError(f'{name!r} cannot name a set; it must be like my_set')
  _check_ids(records)
  if vocabulary.ANY_LESION in class_names:
    raise UserError(
      f'a class is called {vocabulary.ANY_LESION}, as predictions call 1 - p of'
      ' class 0; give it another name in the source'
    )
  # A set of fewer than two classes, such as an unlabelled one, has two too.
  missing = range(len(class_names), 2)
  class_names = [*class_names, *(f'unused {c}' for c in missing)]
  plan = {
    'format': store.FORMAT,
    'name': name,
    'provenance': provenance,
    'class_names': class_names,
    **dataclasses.asdict(settings),
  }
  decoding, fingerprint = _fingerprints(plan, records)
  if path.exists():
    return _existing(path, plan, fingerprint, faults, strict)
  guards.check(faults.remarks, strict, path)

  partial = path.with_name(path.name + '.partial')
  run = functools.partial(
    runners.run,
    workers=workers or machine.cores(),
    beam=beam,
    progress=progress,
  )
  work = _Work(partial, plan, fingerprint, settings, run)
  with _locked(path):
    if path.exists():  # Another made it meanwhile.
      return _existing(path, plan, fingerprint, faults, strict)
    partial.mkdir(exist_ok=True)
    _keep_blocks(partial, decoding)
    summary = _make(work, records, faults, columns or {})
    try:
      guards.check(summary['warnings'], strict, path)
    except UserError:
      shutil.rmtree(partial)
      raise
    # They hold what the images' headers call the patients.
    for file in (partial / 'blocks').glob('*.npz'):
      file.unlink()
    partial.rename(path)
    _clear(path)
  return {**summary, 'path': str(path), 'reused': False}


@dataclasses.dataclass(frozen=True)
class _Work:
  """A set in the making.

  Attributes:
    folder: of the unfinished work.
    plan: what the summary says before anything is read: the settings, the
      name, the classes, the provenance.
    fingerprint: of plan and records.
    settings: see Settings.
    run: runners.run with the choice of who works.
  """

  folder: pathlib.Path
  plan: dict[str, Any]
  fingerprint: str
  settings: Settings
  run: Callable[..., None]


def _make(work, records, faults, columns):
  """Does all the work in its folder; returns the summary."""
  blocks = _decode(work, records, faults.on_error)
  records, table = _collect(records, blocks, faults)
  if not records:
    raise UserError(
      f'no radiograph is left: all {len(faults.found)} are at fault, the first'
      f' is {": ".join(faults.found[0][::2])}'
    )
  signals.check()
  copies = _split(work, records, table)
  names = work.plan['class_names']
  files = _write_shards(work, table)
  _write_copies(work.folder / 'duplicates.csv', table, copies)
  _write_left_out(work.folder / 'left_out.csv', table)
  made = _in_order_of(files, table)
  odd = guards.odd_images(made)
  if odd:
    _write_csv(work.folder / guards.ODD, [('id', 'what'), *odd])
  summary = {
    **work.plan,
    'fingerprint': work.fingerprint,
    'num_classes': len(names),
    **_numbers(files, table, len(names)),
    'copies': len(copies),
    'left_out': int((table['splits'] == 'left_out').sum()),
    'skipped': len(faults.found),
    'warnings': [
      *faults.remarks,
      *guards.warnings(made, names, odd),
      *guards.copies_that_differ(copies, table['ids'], table['labels'], names),
    ],
    **({'columns': columns} if columns else {}),
  }
  _finish(work, files, made, faults, summary)
  return summary


def _split(work, records, table):
  """Puts every record on a side, 'splits' of the table; returns the copies."""
  settings = work.settings
  copies = duplicates.find(
    table['source_digests'], table['hashes'], settings.near
  )
  table['splits'] = splits.assign(
    table['labels'],
    table['patients'] if settings.unit == 'patient' else table['ids'],
    [r.split if settings.given else None for r in records],
    copies,
    seed=settings.seed,
    test=settings.test,
    validation=settings.validation,
  )
  _keep_shards(work.folder, work.fingerprint, table)
  return copies


def _numbers(files, table, num_classes):
  """What the summary counts of the images that are in a split."""
  # None where the source names nobody: exams alone are no patients.
  named = _named(table)
  table = _in_order_of(files, table)
  return {
    'counts': _counts(table, num_classes),
    'patients': len(np.unique(table['groups'])) if named else None,
    'boxes': int(table['num_boxes'].sum()),
    'boxes_clipped': int(table['clipped'].sum()),
    # Narrowest and widest, width / height: what is unlike them is flagged
    # where a network is used (metrics.unlike).
    'aspects': [float(table['aspects'].min()), float(table['aspects'].max())],
  }


def _finish(work, files, table, faults, summary):
  """Writes what stands beside the shards."""
  folder = work.folder
  shards.write_tfds(
    folder,
    [(split, file, len(chunk)) for split, file, chunk in files],
    work.settings.size,
    table['boxes'].shape[1],
    work.plan['class_names'],
  )
  del table['clipped'], table['tones'], table['aspects']
  np.savez(folder / 'table.npz', **table)
  _write_csv(folder / 'manifest.csv', store.manifest(table))
  # Of an earlier try, which may have met other faults.
  (folder / 'quarantine.csv').unlink(missing_ok=True)
  if faults.found:
    _write_csv(
      folder / 'quarantine.csv', [('place', 'id', 'reason'), *faults.found]
    )
  (folder / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
  for file in folder.glob('*.*'):  # The name must not outlive the content.
    with open(file, 'rb') as stream:
      os.fsync(stream.fileno())


def _check_ids(records):
  if not records:
    raise UserError('the source holds no radiographs')
  seen = set()
  for record in records:
    if record.id in seen:
      raise UserError(f'{record.id}: two radiographs have this id')
    seen.add(record.id)


def _fingerprints(plan, records):
  """Of what the blocks depend on, and of all that the set does."""
  decoding = hashlib.sha256(
    repr([plan[field] for field in ('format', 'size', 'fit')]).encode()
  )
  whole = hashlib.sha256(json.dumps(plan, sort_keys=True).encode())
  for r in records:
    decoding.update(repr((r.id, r.boxes, r.frame, r.stamp)).encode())
    fields = (r.label, r.group, r.split, sorted(r.metadata.items()))
    whole.update(repr(fields).encode())
  whole.update(decoding.digest())
  return decoding.hexdigest(), whole.hexdigest()


def _existing(path, plan, fingerprint, faults, strict):
  try:
    summary = json.loads((path / 'summary.json').read_text())
    same = summary['fingerprint'] == fingerprint
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'config.data.path: {path} is there and is no prepared set; name another'
    ) from error
  if not same:
    before = summary.get('provenance', {})
    asked = json.loads(json.dumps({**plan, **plan['provenance']}))
    # A setting that is as it ever was stands in neither.
    asked |= dict.fromkeys(before.keys() - asked.keys(), 'the default')
    there = dict.fromkeys(asked, 'the default') | summary | before
    changed = [
      f'{name} {there[name]!r} there and {value!r} asked for'
      for name, value in asked.items()
      if name != 'provenance' and there[name] != value
    ]
    raise UserError(
      f'config.data.path: {path} holds another set'
      f' ({"; ".join(changed[:3]) or "its files have changed since"}); name'
      ' another path, or remove it'
    )
  if summary['skipped'] and faults.on_error == 'fail':
    raise UserError(
      f'config.data.path: {path} was made with --on_error=skip:'
      f' {summary["skipped"]} faults are in its quarantine.csv; give that flag'
      ' again, or name another path'
    )
  guards.check(summary.get('warnings'), strict, path)
  _clear(path)  # Killed at the very end, it may not have been.
  return {**summary, 'path': str(path), 'reused': True}


def _clear(path):
  """Removes from a whole set what only making it took."""
  shutil.rmtree(path / 'blocks', ignore_errors=True)
  (path / 'fingerprint').unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path):
  """Keeps every other prepare from making this set.

  The lock is beside the folder of unfinished work, which becomes the set.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  work = file_lock.Work(
    where=f'config.data.path: {path}',
    doing='prepares it',
    mend='wait for it, or end it',
  )
  with file_lock.locked(path.with_name(f'{path.name}.lock'), work):
    yield


def _keep_blocks(partial, decoding):
  """Clears the unfinished work of blocks that were decoded in another way."""
  blocks = partial / 'blocks'
  if not blocks.is_dir() and any(partial.iterdir()):
    raise UserError(
      f'{partial} is in the way and no unfinished set; move or remove it'
    )
  if _read(blocks / 'fingerprint') != decoding:
    shutil.rmtree(blocks, ignore_errors=True)
    blocks.mkdir()
    (blocks / 'fingerprint').write_text(decoding)
  for file in partial.rglob('*.tmp'):
    file.unlink()


def _keep_shards(partial, fingerprint, table):
  """Clears the unfinished work of shards of other settings or other images.

  What was at fault may have been mended, so the settings alone do not tell.
  """
  rows = zip(table['ids'], table['digests'], table['splits'], strict=True)
  holds = hashlib.sha256(fingerprint.encode())
  holds.update(repr([tuple(map(str, row)) for row in rows]).encode())
  mark = partial / 'fingerprint'
  if _read(mark) != holds.hexdigest():
    for file in partial.iterdir():
      if file.name != 'blocks':
        file.unlink()
    mark.write_text(holds.hexdigest())


def _read(file):
  return file.read_text() if file.is_file() else ''


def _decode(work, records, on_error):
  """Makes the blocks that are missing; returns all, as (file, its rows)."""
  count = -(-len(records) // BLOCK)
  blocks = [
    (work.folder / f'blocks/{i:06d}', chunk)
    for i, chunk in enumerate(np.array_split(np.arange(len(records)), count))
  ]
  work.run(
    shards.decode_block,
    [
      (
        [records[row] for row in chunk],
        file,
        work.settings.size,
        work.settings.fit,
        on_error,
      )
      for file, chunk in blocks
      if not _is_finished(file, work.settings.size)
    ],
    description='decode',
  )
  return blocks


def _is_finished(file, size):
  """Whether a block is whole, and without faults that may have been mended."""
  try:
    rows = store.read_table(file.with_name(file.name + '.npz'))
    length = len(rows['row']) * size * size
    # Blocks of an earlier version have none.
    return (
      file.stat().st_size == length
      and str(rows['faults']) == '[]'
      and 'aspects' in rows
    )
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return False


def _collect(records, blocks, faults):
  """The records that were decoded, and the table of them, in the same order.

  Its columns are those of the set's table and of shards.decode_block; 'blocks'
  and 'places' say where the square of a row is, 'patients' names its patient.
  """
  kept, columns, headers = [], [], []
  for file, chunk in blocks:
    rows = store.read_table(file.with_name(file.name + '.npz'))
    for place, id, reason in json.loads(str(rows.pop('faults'))):
      faults.add(place, reason, id)
    kept += [records[chunk[row]] for row in rows.pop('row')]
    headers += [json.loads(header) for header in rows.pop('headers')]
    rows['places'] = np.arange(len(rows['digests']))
    rows['blocks'] = np.full(len(rows['digests']), str(file))
    columns.append(rows)
  width = max(rows['boxes'].shape[1] for rows in columns)
  for rows in columns:
    rows['boxes'] = np.pad(
      rows['boxes'], ((0, 0), (0, width - rows['boxes'].shape[1]), (0, 0))
    )
  ids = [r.id for r in kept]
  named = [
    radiograph.patient(r.group or header.get('patient') or '')
    for r, header in zip(kept, headers, strict=True)
  ]
  faults.remarks += guards.without_patient(kept, named)
  faults.remarks += guards.patients_alike(named, ids)
  patients = [
    name or f'image {id}' for name, id in zip(named, ids, strict=True)
  ]
  table = {
    'ids': np.array(ids, str),
    'labels': np.array(
      [-1 if r.label is None else r.label for r in kept], np.int32
    ),
    'patients': np.array(patients, str),
    'groups': _number(patients),
    **{
      name: np.concatenate([rows[name] for rows in columns])
      for name in columns[0]
    },
  }
  faults.remarks += guards.other_aspects(kept, table['aspects'])
  for header in headers:
    header.pop('patient', None)
  metadata = [
    {**header, **r.metadata} for r, header in zip(kept, headers, strict=True)
  ]
  for name in sorted({name for row in metadata for name in row}):
    if name in store.MANIFEST:
      raise UserError(
        f'config.data.csv.metadata: {name!r} is a column of manifest.csv'
        ' already; call it otherwise in the source'
      )
    table[store.METADATA + name] = np.array(
      [row.get(name, '') for row in metadata], str
    )
  return kept, table


def _named(table):
  """Whether the source says who is who, and not only which exam is which."""
  return any(
    name not in (radiograph.patient(id), f'image {id}')
    for name, id in zip(table['patients'], table['ids'], strict=True)
  )


def _number(patients):
  """Patients as numbers, by first appearance: their names stay outside."""
  numbers: dict[str, int] = {}
  return np.array(
    [numbers.setdefault(name, len(numbers)) for name in patients], np.int32
  )


def _write_copies(path, table, copies):
  sides = table['splits']
  if not copies:
    return
  header = ('first', 'second', 'split_of_first', 'split_of_second',
            'label_of_first', 'label_of_second', 'differing_bits')  # fmt: skip
  _write_csv(
    path,
    [
      header,
      *(
        (
          *table['ids'][[c.first, c.second]],
          *sides[[c.first, c.second]],
          *table['labels'][[c.first, c.second]],
          'equal' if c.exact else c.distance,
        )
        for c in copies
      ),
    ],
  )


def _write_left_out(path, table):
  rows = np.flatnonzero(table['splits'] == 'left_out')
  if not len(rows):
    return
  reasons = (
    'without a label, of a patient who is held out',
    "a copy of an image of the source's held-out part, or its patient has one",
  )
  _write_csv(
    path,
    [
      ('id', 'label', 'reason'),
      *(
        (table['ids'][row], table['labels'][row], reasons[labelled])
        for row in rows
        for labelled in [int(table['labels'][row] >= 0)]
      ),
    ],
  )


def _write_shards(work, table):
  """Writes what is missing; returns [(split, file, its rows of the table)]."""
  files = []
  for split in store.SPLITS:
    rows = np.flatnonzero(table['splits'] == split)
    count = -(-len(rows) // SHARD)
    for i, chunk in enumerate(np.array_split(rows, count) if count else []):
      file = f'{work.plan["name"]}-{split}.array_record-{i:05d}-of-{count:05d}'
      files.append((split, work.folder / file, chunk))
  work.run(
    shards.write_shard,
    [
      (
        [(table['blocks'][row], int(table['places'][row])) for row in chunk],
        file,
        [str(id) for id in table['ids'][chunk]],
        [int(label) for label in table['labels'][chunk]],
        table['boxes'][chunk],
        work.settings.size,
        work.plan['class_names'],
      )
      for _, file, chunk in files
      if not file.is_file()
    ],
    description='write',
  )
  return files


def _in_order_of(files, table):
  """The table in the order of the files, without what is only for making it."""
  order = np.concatenate([chunk for _, _, chunk in files])
  hidden = ('blocks', 'places', 'patients')
  return {k: v[order] for k, v in table.items() if k not in hidden}


def _counts(table, num_classes):
  """{split: images of each class}; of 'unlabelled' their number."""
  counts = {}
  for split in store.SPLITS:
    labels = table['labels'][table['splits'] == split]
    if len(labels):
      counts[split] = (
        len(labels)
        if split == 'unlabelled'
        else np.bincount(labels, minlength=num_classes).tolist()
      )
  return counts


def _write_csv(path, rows):
  with open(path, 'w', newline='', encoding='utf-8') as file:
    csv_cells.write(file, rows, lineterminator='\r\n')
