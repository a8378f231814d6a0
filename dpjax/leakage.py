"""What a run was trained on, and what it may therefore not be scored on.

WORKDIR/training_manifest.csv has a row for each image of the training set, and
for those of the run that the backbone came from. Evaluation refuses to score
any of them, or a copy, from whatever file or set; and what is held out is
never added to a training set.
"""

import csv
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpjax import atomic, csv_cells
from dpjax.data import store
from dpjax.data.prepare import duplicates
from dpjax.errors import UserError

if TYPE_CHECKING:  # Grain imports JAX.
  from dpjax.data.feed import pipeline

FILE = 'training_manifest.csv'
COLUMNS = ('stage', 'id', 'source_xxh3', 'perceptual_hash')


def write(
  workdir: str | pathlib.Path,
  stage: str,
  records: 'pipeline.Records',
  backbone: str | pathlib.Path | None = None,
) -> None:
  """Writes the manifest of a run, whole or not at all.

  Args:
    workdir: of the run.
    stage: 'pretrain', 'retrain' or 'finetune'.
    records: that it trains on.
    backbone: workdir of the run that it starts from, if there is one.

  Raises:
    UserError: the backbone's run has no manifest.
  """
  listed = [] if backbone is None else _rows(backbone)
  columns = [records.column(name) for name in ('ids', 'source_digests')]
  hashes = [row.tobytes().hex() for row in records.column('hashes')]
  listed += [(stage, *row) for row in zip(*columns, hashes, strict=True)]
  with (
    atomic.replacing(pathlib.Path(workdir) / FILE) as temporary,
    open(temporary, 'w', newline='', encoding='utf-8') as stream,
  ):
    csv_cells.write(stream, [COLUMNS, *listed], lineterminator='\r\n')


def check_unseen(
  workdir: str | pathlib.Path, split: store.Split, what: str, near: int
) -> None:
  """Refuses to score images that a run was trained on, or copies of them.

  Args:
    workdir: of the run; one without a manifest is refused.
    split: of a prepared set, to be scored.
    what: names the split in the error.
    near: bits in which the hashes of copies may differ (duplicates.find).

  Raises:
    UserError: one line: an image of `split` is in the manifest.
  """
  listed = _rows(workdir)
  seen = duplicates.between(
    split.source_digests.tolist(),
    split.hashes,
    [digest for _, _, digest, _ in listed],
    np.array([[*bytes.fromhex(row[-1])] for row in listed], np.uint8),
    near,
  )
  if seen:
    stage, id, *_ = listed[seen[0].second]
    raise UserError(
      f'{len(seen)} of the {len(split)} images of {what} were trained on by'
      f' {workdir}: {split.ids[seen[0].first]} is'
      f' {"" if seen[0].exact else "a copy of "}{id} of its {stage}'
      f' ({pathlib.Path(workdir) / FILE}); score images that it has not seen'
    )


def check_none_held_out(
  added: Sequence[store.Split], path: str, data: store.Store, near: int
) -> None:
  """Refuses to add images to a training set that hold some of its held-out.

  Args:
    added: splits of another set.
    path: of that set.
    data: the set whose validation and test splits are held out.
    near: bits in which the hashes of copies may differ (duplicates.find).

  Raises:
    UserError: one line: an image of `added` is held out, or a copy of one.
  """
  for name in ('validation', 'test'):
    if name not in data.splits:
      continue
    held_out = data.split(name)
    for split in added:
      found = duplicates.between(
        split.source_digests.tolist(),
        split.hashes,
        held_out.source_digests.tolist(),
        held_out.hashes,
        near,
      )
      if found:
        raise UserError(
          f'config.data.pretrain_extra: {split.ids[found[0].first]} of {path}'
          f' is an image of the {name} split of data.path, or a copy of one'
          f' ({len(found)} are); training must not see it'
        )


def fingerprint(records: 'pipeline.Records') -> str:
  """Of training records: the same set, wherever it stands."""
  columns = (records.column(c).tolist() for c in ('ids', 'labels', 'digests'))
  return hashlib.sha256(json.dumps([*columns]).encode()).hexdigest()


def digest(workdir: str | pathlib.Path) -> str | None:
  """Of the manifest of a run, None without one; a checkpoint records it."""
  file = pathlib.Path(workdir) / FILE
  if not file.is_file():
    return None
  return hashlib.sha256(file.read_bytes()).hexdigest()


def check_manifest(workdir: str | pathlib.Path, record: dict[str, Any]) -> None:
  """Refuses a manifest that is not as the training wrote it.

  An image that is missing there could be scored as if it were unseen.

  Args:
    workdir: of the run.
    record: of its checkpoint; one of an earlier version has no digest.

  Raises:
    UserError: one line: it was changed, or is missing.
  """
  recorded = record.get('manifest')
  if recorded is not None and digest(workdir) != recorded:
    raise UserError(
      f'{pathlib.Path(workdir) / FILE} is not as the training wrote it: its'
      ' checkpoint has another digest; put the original there, or train again'
    )


def check_trained_on(
  record: dict[str, Any], records: 'pipeline.Records', path: str
) -> None:
  """Refuses to go on with a checkpoint that was trained on other data.

  `data.path` may change in a run, the set may not: the iterator's state would
  mean other images, and what is held out might have been trained on.

  Args:
    record: of the checkpoint.
    records: training records of the run as it is now.
    path: of their set.

  Raises:
    UserError: one line: the record names other training data.
  """
  now = fingerprint(records)
  if record.get('trained_on', now) != now:
    raise UserError(
      f'config.data.path: {path} is not the set that the run was trained on;'
      ' name that one, or another workdir'
    )


def _rows(workdir):
  return rows(pathlib.Path(workdir) / FILE)


def rows(file: pathlib.Path) -> list[tuple[str, str, str, str]]:
  """COLUMNS of every image in a training manifest.

  Raises:
    UserError: one line: it cannot be read, or is none.
  """
  try:
    with open(file, newline='', encoding='utf-8') as stream:
      header, *found = csv_cells.read(stream)
    good = tuple(header) == COLUMNS and all(
      len(row) == 4 and len(bytes.fromhex(row[3])) == duplicates.BITS // 8
      for row in found
    )
  except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
    raise UserError(
      f'{file}: no readable list of what the run was trained on ({error});'
      ' train it again'
    ) from error
  if not good or not found:
    raise UserError(f'{file}: wanted rows of {",".join(COLUMNS)}')
  return [(stage, id, own, near) for stage, id, own, near in found]
