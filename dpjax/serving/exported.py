"""An exported model, opened again: what answers in place of a run."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dpjax import atomic
from dpjax.errors import UserError
from dpjax.evaluation import files

MODEL = files.EXPORT
ONNX, STABLEHLO = 'model.onnx', 'model.stablehlo'
VERSION = 1  # of model.json

Program = Callable[[np.ndarray], dict[str, np.ndarray]]


def is_export(run: str | os.PathLike[str]) -> bool:
  """Whether a folder is an export, and not a run."""
  return (pathlib.Path(os.path.expanduser(run)) / MODEL).is_file()


def digest(file: pathlib.Path) -> str:
  """sha256 of a file."""
  with open(file, 'rb') as stream:
    return hashlib.file_digest(stream, 'sha256').hexdigest()


def runner(file: pathlib.Path) -> Program:
  """What answers squares (B, S, S) uint8 by a file of an export.

  Raises:
    UserError: what it takes to run it is not installed.
  """
  return {ONNX: _onnx, STABLEHLO: _stablehlo}[file.name](file)


def _onnx(file):
  try:
    import onnxruntime
  except ImportError as error:
    raise UserError(
      f'{file} needs onnxruntime: pip install "dpjax[export]"'
    ) from error
  # On the CPU: a GPU's convolutions would round to TF32.
  session = onnxruntime.InferenceSession(
    file, providers=['CPUExecutionProvider']
  )
  names = [output.name for output in session.get_outputs()]

  def run(squares):
    found = session.run(names, {'images': squares})
    return dict(zip(names, found, strict=True))

  return run


def _stablehlo(file):
  import jax
  import jax.export

  try:
    program = jax.export.deserialize(bytearray(file.read_bytes()))
  except ImportError as error:
    raise UserError(
      f'{file} needs flatbuffers: pip install "dpjax[export]"'
    ) from error
  call = jax.jit(program.call)
  return lambda squares: jax.device_get(call(squares))


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
  """What serving.model.Model asks of a run, answered by an export.

  Attributes:
    workdir: the export's folder.
    record: what model.json holds.
    program: squares -> outputs.
  """

  workdir: pathlib.Path
  record: Mapping[str, Any]
  program: Program
  validation = None
  known = None
  dtype = 'float32'

  @property
  def class_names(self) -> tuple[str, ...]:
    return tuple(self.record['class_names'])

  @property
  def size(self) -> int:
    return self.record['input']['side']

  @property
  def fit(self) -> str:
    return self.record['input']['fit']

  @property
  def step(self) -> int | None:
    """Of the checkpoint; None of several runs at different steps."""
    steps = {run['step'] for run in self.record['runs']}
    return steps.pop() if len(steps) == 1 else None

  @property
  def sha256(self) -> str:
    """Of what model.json holds, the hashes of the other files among it."""
    text = json.dumps(self.record, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  @property
  def width(self) -> int:
    """K of the pooled features, of all its runs."""
    return self.record['outputs']['embeddings'][1]

  @property
  def cam(self) -> tuple[str, str] | None:
    """Target and stage of Grad-CAM; None without maps."""
    maps = self.record['maps']
    return None if maps is None else (maps['target'], maps['stage'])

  @property
  def has_maps(self) -> bool:
    """Whether `explain` answers."""
    return self.cam is not None

  @property
  def threshold(self) -> float | None:
    return self.record['threshold']

  @property
  def temperature(self) -> float | None:
    return self.record['temperature']

  @property
  def notes(self) -> tuple[str, ...]:
    return (
      *self.record['notes'],
      f'{self.workdir}: an export does not know what training looked like, so'
      ' nothing is flagged as unlike it',
    )

  def answer(self, squares: np.ndarray) -> dict[str, np.ndarray]:
    """As network.Network.answer."""
    found = self.program(squares)
    return {'logits': found['logits'], 'pooled': found['embeddings']}

  def explain(self, squares: np.ndarray) -> dict[str, np.ndarray]:
    """As network.Network.explain, without the maps of no lesion.

    Raises:
      UserError: it was exported without maps.
    """
    if not self.has_maps:
      raise UserError(f'{self.workdir} was exported without --maps')
    return {
      name.replace('map_pos_', 'att_pos/'): value
      for name, value in self.program(squares).items()
      if name == 'cam' or name.startswith('map_pos_')
    }


def _is_whole(record):
  """Whether a model.json says all that answering reads, and of one network."""
  try:
    names, given, maps = record['class_names'], record['input'], record['maps']
    numbers = record['threshold'], record['temperature']
    return (
      all(isinstance(name, str) for name in names)
      and record['outputs']['probabilities'][1:] == [len(names)]
      and given['shape'][1:] == [given['side'], given['side']]
      and given['fit'] in ('stretch', 'pad')  # shards.square
      and all(x is None or (0 <= x < math.inf) for x in numbers)
      and record['temperature'] != 0
      and (maps is None or {'target', 'stage'} <= maps.keys())
      and all(isinstance(note, str) for note in record['notes'])
      and all('step' in run for run in record['runs'])
      and all('sha256' in file for file in record['files'].values())
    )
  except (KeyError, TypeError, AttributeError):
    return False


def restore(folder: str | pathlib.Path) -> Exported:
  """Opens an export: its StableHLO, else its ONNX file.

  Args:
    folder: with a model.json.

  Raises:
    UserError: one line: a file is damaged or missing, or what runs it.
  """
  folder = pathlib.Path(folder)
  record = atomic.read_json(folder / MODEL)
  if record.get('format') != VERSION:
    raise UserError(
      f'{folder / MODEL} is of format {record.get("format")!r}, wanted'
      f' {VERSION}; export again'
    )
  if not _is_whole(record):
    raise UserError(f'{folder / MODEL} is damaged; export again')
  for name in (STABLEHLO, ONNX):
    if name not in record['files']:
      continue
    file = folder / name
    if not file.is_file() or digest(file) != record['files'][name]['sha256']:
      raise UserError(f'{file} is not as {MODEL} has it; export again')
    return Exported(folder, record, runner(file))
  raise UserError(
    f'{folder} holds neither {STABLEHLO} nor {ONNX}; export with'
    ' --format=onnx or stablehlo'
  )
