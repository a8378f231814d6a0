"""What the workdir of a run holds, read for the report.

A file that is missing or cannot be read gives None or nothing, with a line of
`notes` that says why: the report leaves out what would be made of it.
"""

import dataclasses
import json
import math
import os
import pathlib
import zipfile
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dpjax import atomic
from dpjax.config import fields as fields_lib
from dpjax.config import record as record_lib
from dpjax.data import store
from dpjax.errors import UserError
from dpjax.evaluation import files, localisation
from dpjax.metrics import predictions

# Of config.json, what the sections read; a run of another version may lack it.
_FIELDS = (
  'stage', 'seed', 'init.backbone', 'data.path', 'data.layout',
  'data.image_size', 'data.store_size', 'model.stage_sizes', 'model.block',
  'model.width', 'loss.classification', 'mgacr.attention', 'mgacr.features',
  'mgacr.stages', 'mgacr.mask', 'pretrain.epochs', 'pretrain.batch_size',
  'retrain.epochs', 'retrain.batch_size',
)  # fmt: skip
_NEEDED = ('data', 'split', 'class_names', 'num_images', 'scores', 'intervals',
           'per_class', 'confusion_matrix')  # fmt: skip
# Field of config.mgacr -> what training logs where it is taught.
_MGACR = {'attention': ('loss/att_pos', 'loss/att_neg'),
          'features': ('loss/feat',)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
  """A workdir.

  Attributes:
    name: short, and no other run's.
    workdir: of the last stage, where a recipe's was given.
    config: config.json, or None.
    evaluation: evaluation.json; empty without it.
    log: the lines of stage II's metrics.jsonl.
    pretraining: those of the stage I that it started from.
    finetuning: those of its fine-tuning, if it was fine-tuned.
    ids: (N,) of predictions.csv; empty without it.
    labels: (N,).
    probabilities: (N, C), or None without predictions.csv.
    maps: maps.npz; empty without it.
    pointing: id -> pointing game of Grad-CAM; empty without localisation.csv.
    benchmark: benchmark.json, or None.
    notes: what could not be read, a line each.
  """

  name: str
  workdir: pathlib.Path
  config: ConfigDict
  evaluation: dict[str, Any]
  log: list[dict[str, Any]]
  pretraining: list[dict[str, Any]]
  finetuning: list[dict[str, Any]]
  ids: np.ndarray
  labels: np.ndarray
  probabilities: np.ndarray | None
  maps: dict[str, np.ndarray]
  pointing: dict[str, float]
  benchmark: dict[str, Any] | None
  notes: tuple[str, ...]

  def path_from(self, folder: pathlib.Path) -> str:
    """Where it is; relative to `folder` if it is in there, which may move."""
    place, start = os.path.realpath(self.workdir), os.path.realpath(folder)
    inside = pathlib.Path(place).is_relative_to(start)
    return os.path.relpath(place, start) if inside else str(self.workdir)

  @property
  def mgacr(self) -> list[str]:
    """Of 'attention' and 'features', what a stage II was taught.

    Training leaves out what has no box to teach it, or no weight; its log tells
    that, and the config does not. Without a log the config counts.
    """
    logged = {name for entry in self.log for name in entry}
    untold = 'loss/classification' not in logged
    return [
      name
      for name, terms in _MGACR.items()
      if self.config.mgacr[name] and (untold or not logged.isdisjoint(terms))
    ]

  @property
  def class_names(self) -> list[str]:
    """Of evaluation.json."""
    return [str(name) for name in self.evaluation['class_names']]


def read(path: pathlib.Path, name: str) -> Run:
  """Reads one workdir, of a run that is called `name`."""
  notes: list[str] = []
  config = _config(path, notes)
  evaluation = _evaluation(path, notes)
  logs = _logs(path, config, notes)
  ids, labels, probabilities = _predictions(path, evaluation, notes)
  return Run(
    name=name,
    workdir=path,
    config=config,
    evaluation=evaluation,
    log=logs.get('retrain', []),
    pretraining=logs.get('pretrain', []),
    finetuning=logs.get('finetune', []),
    ids=np.asarray(ids, str),
    labels=np.asarray(labels),
    probabilities=probabilities,
    maps=_maps(path, notes),
    pointing=_pointing(path, notes),
    benchmark=_json(path, 'benchmark.json', notes),
    notes=tuple(notes),
  )


def reason(error: Exception) -> str:
  """The first line of an error; its name if it has none."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def _config(path, notes):
  """config.json with all that the sections read, or None."""
  if not (path / 'config.json').is_file():
    return None
  try:
    config = record_lib.load(path / 'config.json')
    flat = fields_lib.flatten(config)
    lacking = [field for field in _FIELDS if field not in flat]
    if lacking:
      raise UserError(f'it has no {lacking[0]}')
  except (OSError, ValueError, TypeError) as error:
    notes.append(f'config.json cannot be read ({reason(error)})')
    return None
  return config


def _evaluation(path, notes):
  """evaluation.json, if it is as evaluate writes it now, or {}."""
  evaluation = _json(path, files.EVALUATION, notes)
  if evaluation is None:
    return {}
  lacking = [key for key in _NEEDED if key not in evaluation]
  if lacking:
    notes.append(
      f'evaluation.json has no {lacking[0]}: it is of another version;'
      ' evaluate again'
    )
    return {}
  try:
    _check_evaluation(evaluation)
  except (KeyError, TypeError, ValueError) as error:
    notes.append(
      'evaluation.json is not as evaluate writes it'
      f' ({type(error).__name__}: {reason(error)}); evaluate again'
    )
    return {}
  return evaluation


def _check_evaluation(result):
  """Reads each field of evaluation.json that a section will read.

  Whatever is odd in the file is met here, so that an error in a section is the
  section's own.

  Raises:
    KeyError, TypeError, ValueError: a field is missing or of another kind.
  """
  names = result['class_names']
  if not isinstance(names, list) or len(names) < 2:
    raise UserError('class_names is not a list of two or more')
  _check_scores(result)
  if np.shape(result['confusion_matrix']) != (len(names), len(names)):
    raise UserError('confusion_matrix is not (classes, classes)')
  np.array(result['confusion_matrix'], float)
  for name in names:
    _number(_object(result['per_class'])[str(name)]['support'])
  for key in ('threshold', 'temperature', 'majority_accuracy',
              'images_per_second'):  # fmt: skip
    _number(result.get(key), undefined=True)
  for key in ('reliability', 'reliability_scaled'):
    for one in result.get(key) or []:
      for field in ('low', 'high', 'count'):
        _number(one[field])
      for field in ('confidence', 'accuracy'):
        _number(one[field], undefined=not one['count'])
  for groups in _object(result.get('subgroups') or {}).values():
    for group in _object(groups).values():
      _check_scores(group)
  _object(result.get('settings') or {})
  for group in _object(result.get('localisation') or {}).values():
    _check_scores(group)
    _number(group.get('threshold'), undefined=True)


def _check_scores(group):
  """Of all images, or of a group or a map: a count, scores and intervals."""
  _number(_object(group)['num_images'])
  for value in _object(group['scores']).values():
    _number(value, undefined=True)
  for interval in _object(group['intervals']).values():
    if interval is not None:
      low, high = interval
      _number(low)
      _number(high)


def _object(value):
  if not isinstance(value, dict):
    raise TypeError(f'{value!r} is not an object'[:80])
  return value


def _number(value, undefined=False):
  if isinstance(value, (int, float)) or (undefined and value is None):
    return
  raise TypeError(f'{value!r} is not a number'[:80])


def _logs(path, config, notes):
  """{stage: lines of metrics.jsonl} of a run and of those it started from."""
  log = _log(path, notes)
  if config is None:
    return {'retrain': log}
  logs = {config.stage: log}
  start = config.init.backbone
  if config.stage == 'pretrain' or not start or start == 'auto':
    return logs
  before = 'retrain' if config.stage == 'finetune' else 'pretrain'
  folder = pathlib.Path(start)
  if folder.name == before and not folder.exists():  # The recipe was moved.
    folder = path.parent / before
  if not (folder / 'metrics.jsonl').is_file():
    return logs
  faults: list[str] = []
  started = _config(folder, faults)
  notes += [f'{folder.name}/{fault}' for fault in faults]
  if started is None or started.stage != before:
    return logs
  return {**_logs(folder, started, notes), **logs}


def _log(path, notes):
  """The entries of metrics.jsonl that are whole."""
  file = path / 'metrics.jsonl'
  if not file.is_file():
    return []
  try:
    lines = file.read_text(encoding='utf-8', errors='replace').splitlines()
  except OSError as error:
    notes.append(f'{file} cannot be read ({reason(error)})')
    return []
  entries, torn = [], 0
  for line in lines:
    try:
      entry = json.loads(line)
      _number(entry['step'])
      _number(entry['epoch'])
      for name, value in entry.items():
        if name != 'split':
          _number(value, undefined=True)
      str(entry['split'])
    except (ValueError, KeyError, TypeError, RecursionError):
      torn += bool(line.strip())
    else:
      entries.append(_without_nan(entry))
  if torn:
    notes.append(
      f'{torn} of {len(lines)} lines of metrics.jsonl cannot be read; the'
      ' others are shown'
    )
  return entries


def _predictions(path, evaluation, notes):
  """(ids, labels, probabilities) of predictions.csv, or (none, none, None)."""
  nothing = np.array([], str), np.array([], int), None
  file = path / files.PREDICTIONS
  if not file.is_file():
    return nothing
  try:
    found = predictions.read_predictions(file)
  except (ValueError, OSError) as error:
    notes.append(f'{file.name} cannot be read ({reason(error)})')
    return nothing
  if evaluation:
    there = found.probabilities.shape
    wanted = evaluation['num_images'], len(evaluation['class_names'])
    if there != wanted:
      notes.append(
        f'{file.name} has {there[0]} images and {there[1]} classes,'
        f' evaluation.json {wanted[0]} and {wanted[1]}; evaluate again'
      )
      return nothing
  return found.ids, found.labels, found.probabilities


def _maps(path, notes):
  """{name: (images, rows, columns)} and 'ids' of maps.npz, or {}."""
  file = path / files.MAPS
  if not file.is_file():
    return {}
  try:
    maps = store.read_table(file)
    if any(len(one) != len(maps['ids']) for one in maps.values()):
      raise UserError('its arrays are of different lengths')
    if any(one.ndim != 3 for name, one in maps.items() if name != 'ids'):
      raise UserError('a map is not (images, rows, columns)')
  except (
    OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile
  ) as error:  # fmt: skip
    notes.append(f'{file.name} cannot be read ({reason(error)})')
    return {}
  return maps


def _pointing(path, notes):
  """{id: pointing game of Grad-CAM} of localisation.csv, or {}."""
  file = path / files.LOCALISATION
  if not file.is_file():
    return {}
  try:
    boxed, found = localisation.read_scores(file)
    return dict(zip(boxed, found['cam']['pointing_game'], strict=True))
  except (OSError, ValueError, KeyError) as error:
    notes.append(f'{file.name} cannot be read ({reason(error)})')
    return {}


def _json(path, name, notes):
  """The object in a JSON file, or None."""
  if not (path / name).is_file():
    return None
  try:
    found = atomic.read_json(path / name)
  except (OSError, UserError) as error:
    notes.append(f'{name} cannot be read ({reason(error)})')
    return None
  return _without_nan(found)


def _without_nan(value):
  if isinstance(value, dict):
    return {key: _without_nan(one) for key, one in value.items()}
  if isinstance(value, list):
    return [_without_nan(one) for one in value]
  return None if isinstance(value, float) and math.isnan(value) else value
