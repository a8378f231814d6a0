"""The files of a checkpoint: their list, and whether all are as it has them.

A step is a folder of items (state, data, run, metrics) that Orbax writes beside
its place and renames. Disks fail and copies break off all the same, so a step
is checked before it is trusted: against files.json, which it holds since
version 0.1, and else by its structure.
"""

import json
import pathlib
from typing import Any

import xxhash

from dpjax import atomic

LIST = 'files.json'
# Written after the list, when Orbax gives a step its name.
_METADATA = '_CHECKPOINT_METADATA'
_LATER = (_METADATA, 'commit_success.txt')
_SMALL = 1 << 16  # bytes; so much is always read


def write_list(folder: pathlib.Path) -> None:
  """Writes files.json: size and digest of every file of a step."""
  found = {
    str(file.relative_to(folder)): [file.stat().st_size, _digest(file)]
    for file in sorted(folder.rglob('*'))
    if file.is_file() and file.name not in _LATER
  }
  atomic.write_json(folder / LIST, found)


def find_fault(folder: pathlib.Path, *, thorough: bool = False) -> str | None:
  """What is wrong with a step, in words; None if it is whole.

  Args:
    folder: of the step.
    thorough: compare the digests of large files too, not just their sizes.
      A step without a list, of an earlier version, is read whole.
  """
  fault = _json_fault(folder, _METADATA)
  if fault is not None:
    return fault
  # A list has what there was, and Orbax may have kept no array (check_path).
  if not (folder / 'state/manifest.ocdbt').is_file():
    return 'state/manifest.ocdbt is missing'
  if not (folder / LIST).is_file():
    return _structure_fault(folder, thorough)
  if (fault := _json_fault(folder, LIST)) is not None:
    return fault
  for name, (size, digest) in json.loads(
    (folder / LIST).read_text(encoding='utf-8')
  ).items():
    file = folder / name
    if not file.is_file():
      return f'{name} is missing'
    if (there := file.stat().st_size) != size:
      return f'{name} has {there:,} bytes, and had {size:,}'
    if (thorough or size <= _SMALL) and _digest(file) != digest:
      return f'{name} has other bytes than were written'
  return None


def _digest(file):
  state = xxhash.xxh3_128()
  with open(file, 'rb') as stream:
    while block := stream.read(1 << 20):
      state.update(block)
  return state.hexdigest()


def _json_fault(folder, name):
  try:
    value: Any = json.loads((folder / name).read_text(encoding='utf-8'))
  except FileNotFoundError:
    return f'{name} is missing'
  except ValueError:  # No JSON, or no UTF-8.
    return f'{name} is cut short or garbled'
  return None if isinstance(value, dict) else f'{name} is cut short or garbled'


def _structure_fault(folder, thorough):
  """What is wrong with a step that has no list, as far as one can see."""
  required = ['data/metadata', 'run/metadata', 'state/_METADATA']
  if (folder / 'metrics').exists():
    required.append('metrics/metrics')
  beside = (folder / 'state/array_metadatas').glob('*')
  required += sorted(str(file.relative_to(folder)) for file in beside)
  required += ['state/_sharding'] * (folder / 'state/_sharding').exists()
  for name in required:
    if (fault := _json_fault(folder, name)) is not None:
      return fault
  return _array_fault(folder / 'state') if thorough else None


def _array_fault(folder):
  """Reads every array, as stored; tensorstore checks its own tree meanwhile."""
  import tensorstore

  try:
    arrays = tensorstore.KvStore.open(
      {'driver': 'ocdbt', 'base': f'file://{folder}/'}
    ).result()
    for key in arrays.list().result():
      if not arrays.read(key).result().value:  # Its file is missing.
        return f'state has no {key.decode()}'
  except ValueError as error:  # All that tensorstore finds wrong is one.
    return ' '.join(str(error).split())[:200]
  return None
