"""The export command: a trained model in files that answer without dpjax.

Preprocessing is inside: what goes in are squares of grey levels, of any number,
and model.json says how an image becomes one. Every file is read again after it
is written, and must answer as the checkpoint does; only then does the folder
appear.
"""

import contextlib
import importlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dpjax import atomic, file_lock, leakage, signals
from dpjax.config import record as record_lib
from dpjax.data.sources import phantom
from dpjax.errors import UserError
from dpjax.evaluation import files as files_lib
from dpjax.metrics import calibration, predictions
from dpjax.models import resnet
from dpjax.report import card, report, report_data
from dpjax.serving import decode, exported
from dpjax.serving import formats as formats_lib
from dpjax.serving.model import Model
from dpjax.serving.network import Network

VECTORS = 'test_vectors.npz'
# As much as two orders of the same sums differ in float32, and far less than
# any mistake in the preprocessing makes; of the largest answer if above 1.
TOLERANCE = 1e-4
_SEED = 0  # of the test vectors
_FITS = {
  'stretch': 'both sides are resized to the square, whatever the aspect',
  'pad': 'the longer side is resized to the square, the aspect is kept, and'
         ' the image lies in the middle of black',
}  # fmt: skip


def export(
  model: Model, output: str | os.PathLike[str],
  formats: Sequence[str] | None = None, *, maps: bool = False,
) -> dict[str, Any]:  # fmt: skip
  """Writes a model as files for other programs, and checks each of them.

  Into `output`, which is replaced as a whole: model.onnx, model.stablehlo,
  weights.safetensors as asked for, test_vectors.npz with squares and the
  checkpoint's answers, MODEL_CARD.md and model.json.

  Args:
    model: of runs, in float32.
    output: folder, made if it is missing.
    formats: of formats.FORMATS; None: all that the networks have.
    maps: also put in where the (first) run looks.

  Returns:
    What model.json holds.

  Raises:
    UserError: one line: something is not possible for these networks, or not
      installed.
    RuntimeError: a file answers otherwise than the checkpoint does.
    OSError: the folder cannot be written.
  """
  networks = _networks(model)
  formats = _possible(networks, formats, maps)
  output = pathlib.Path(output).absolute()
  files_lib.check_output(output, exported.MODEL)
  squares = vector_squares(model)
  expected = checkpoint_answers(model, squares, maps)
  if not all(np.isfinite(value).all() for value in expected.values()):
    raise UserError(
      f'{model.networks[0].workdir}: the answers of its checkpoint are not'
      ' finite; has the run diverged?'
    )
  with _appearing(output) as folder:
    with (
      atomic.replacing(folder / VECTORS) as temporary,
      open(temporary, 'wb') as file,
    ):
      # Any: numpy's types would take one of them for its allow_pickle.
      arrays: dict[str, Any] = {'images': squares, **expected}
      np.savez_compressed(file, **arrays)
    files: dict[str, Any] = {}
    for name in formats:
      signals.check()
      files |= _written(
        formats_lib.FORMATS[name], model, maps, folder, squares, expected
      )
    record = _record(model, maps, files, expected)
    known = report.gather(
      [network.workdir for network in networks], networks[0].config
    )
    atomic.write_text(folder / card.FILE, card.render(known, record))
    atomic.write_json(folder / exported.MODEL, record)
  return record


def _networks(model: Model) -> list[Network]:
  """The runs, of which none is an export."""
  found = []
  for network in model.networks:
    if isinstance(network, exported.Exported):
      raise UserError(f'{network.workdir} is an export already')
    found.append(network)
  return found


def _possible(networks, formats, maps):
  """The formats to write, all of them possible.

  Raises:
    UserError: one is not, or the maps.
  """
  torch = all(
    isinstance(network.objective.backbone, resnet.ResNet)
    for network in networks
  )
  if formats is None:
    formats = [name for name in formats_lib.FORMATS if name != 'torch' or torch]
  for name in formats:
    if name not in formats_lib.FORMATS:
      raise UserError(
        f'--format={name}: wanted some of {",".join(formats_lib.FORMATS)}'
      )
    if name == 'torch' and not torch:
      raise UserError(
        '--format=torch: torchvision and timm have the weights of a ResNet'
        ' only; leave it out'
      )
    for package in formats_lib.FORMATS[name].needs:
      try:
        importlib.import_module(package)
      except ImportError as error:
        raise UserError(
          f'--format={name} needs {package}: pip install "dpjax[export]"'
        ) from error
  if maps:
    first = networks[0]
    if not isinstance(first.objective.backbone, resnet.ResNet):
      raise UserError(
        '--maps: Grad-CAM has a closed form in a ResNet only; leave it out'
      )
    wanted = 'lesion', f'stage{len(first.objective.backbone.stage_sizes)}'
    if first.cam != wanted:
      raise UserError(
        f'--maps: Grad-CAM of {first.cam[0]} at {first.cam[1]} has no closed'
        f' form, that of {wanted[0]} at {wanted[1]} has;'
        ' --config.evaluate.cam_target=lesion --config.evaluate.cam_stage=last,'
        ' of classes of which the first says that there is no lesion'
      )
  return formats


@contextlib.contextmanager
def _appearing(output: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to fill, whose files are in `output` once the block has ended.

  model.json comes last and an earlier one goes first: where it is, the rest is.
  """
  made = not output.exists()
  output.mkdir(parents=True, exist_ok=True)
  try:
    with file_lock.locked(output / '.export.lock', file_lock.Work(
      f'--output={output}', 'exports', 'wait for it, or name another folder'
    )):  # fmt: skip
      # Inside of it: a folder beside it may be on another file system.
      folder = output / '.export.tmp'
      shutil.rmtree(folder, ignore_errors=True)  # One that was killed left it.
      folder.mkdir()
      try:
        yield folder
        _put(folder, output)
      finally:
        shutil.rmtree(folder, ignore_errors=True)
  finally:
    if made:
      with contextlib.suppress(OSError):  # It is filled.
        output.rmdir()


def _put(folder, output):
  """Moves the files into `output`, in place of an earlier export's."""
  last = exported.MODEL
  if (output / last).is_file():
    earlier = {}
    with contextlib.suppress(UserError):  # A damaged one names nothing.
      earlier = atomic.read_json(output / last).get('files', {})
    (output / last).unlink()
    for name in earlier:
      (output / pathlib.Path(name).name).unlink(missing_ok=True)
  for file in sorted(folder.iterdir(), key=lambda file: file.name == last):
    os.replace(file, output / file.name)


def vector_squares(model: Model) -> np.ndarray:
  """Squares to ask a model: (8, S, S) uint8, no patient's.

  Phantoms, noise, black and white.
  """
  rng = np.random.default_rng(_SEED)
  side = model.size
  found = [
    decode.from_pixels(one.pixels(), side, model.fit).square
    for one in phantom.read(50, _SEED)[:5]
  ]
  found.append(rng.integers(0, 256, (side, side)))
  found += [np.zeros((side, side)), np.full((side, side), 255)]
  return np.stack(found).astype(np.uint8)


def checkpoint_answers(
  model: Model, squares: np.ndarray, maps: bool
) -> dict[str, np.ndarray]:
  """What the checkpoints say, by the way of `predict`.

  Args:
    model: of runs.
    squares: (B, S, S) uint8.
    maps: whether to look where the first run looks.

  Returns:
    {output: float32 array}, as onnx_graph.build has them.
  """
  with jax.default_matmul_precision('highest'):
    found = [jax.device_get(n.answer(squares)) for n in model.networks]
    looked = jax.device_get(model.networks[0].explain(squares)) if maps else {}
  each = [predictions.softmax(one['logits']) for one in found]
  mean = np.mean(each, axis=0)
  logits = found[0]['logits']
  if len(found) > 1:
    logits = np.log(np.maximum(mean, calibration.FLOOR))
  if model.temperature is not None:
    mean = calibration.scale(mean, model.temperature)
  answers = {
    'logits': logits,
    'probabilities': mean,
    'embeddings': np.concatenate([one['pooled'] for one in found], axis=1),
    **formats_lib.named_maps(looked),
  }
  return {n: np.asarray(value, np.float32) for n, value in answers.items()}


def _written(form, model, maps, folder, squares, expected):
  """{file: what model.json says of it}, once it answers as it should."""
  names = form.write(model, maps, folder)
  found = form.ask(model, folder, names, squares)
  furthest = {}
  for name, value in found.items():
    wanted = expected[name]
    if np.shape(value) != wanted.shape:
      raise RuntimeError(
        f'{", ".join(names)}: {name} is {np.shape(value)}, of the checkpoint'
        f' {wanted.shape}'
      )
    furthest[name] = float(np.abs(value - wanted).max())
    # A NaN is no answer either.
    if not furthest[name] <= TOLERANCE * max(1, np.abs(wanted).max()):
      raise RuntimeError(
        f'{", ".join(names)}: {name} differs from the checkpoint by up to'
        f' {furthest[name]:.2g}; nothing was exported'
      )
  return {
    name: {
      'sha256': exported.digest(folder / name),
      'differs_by': furthest,
    }
    for name in names
  }


def _record(model, maps, files, expected):
  """model.json."""
  first = model.networks[0]
  pixels = first.objective.pixels
  names = report_data.names([network.workdir for network in model.networks])
  return {
    'format': exported.VERSION,
    'class_names': [*model.class_names],
    'input': {
      'name': 'images',
      'dtype': 'uint8',
      'shape': ['B', model.size, model.size],
      'side': model.size,
      'fit': model.fit,
      'rule': (
        'grey levels of 8 bits, 0 black, in one square an image:'
        f' {_FITS[model.fit]}; sides shrink by the mean over areas and grow'
        ' bilinearly'
      ),
    },
    'inside': {
      'image_size': pixels.image_size,
      'mean': pixels.mean,
      'std': pixels.std,
      'dtype': 'float32',
    },
    'outputs': {
      name: ['B', *value.shape[1:]] for name, value in expected.items()
    },
    'logits': (
      'of the network'
      if len(model.networks) == 1
      else 'ln of the mean probabilities of the runs'
    ),
    'any_lesion': model.any_lesion,
    'threshold': model.threshold,
    'threshold_of': (
      None if model.threshold is None else '1 - probabilities[:, 0]'
    ),
    'temperature': model.temperature,
    'maps': {'target': first.cam[0], 'stage': first.cam[1]} if maps else None,
    'runs': [
      _describe(network, name)
      for network, name in zip(model.networks, names, strict=True)
    ],
    'notes': _notes(model, names),
    'files': files,
    'test_vectors': {'file': VECTORS, 'tolerance': TOLERANCE},
    'versions': _versions(),
  }


def _notes(model, names):
  """Without the paths of this machine."""
  notes = [*model.notes]
  for network, name in zip(model.networks, names, strict=True):
    notes = [note.replace(str(network.workdir), name) for note in notes]
  return notes


def _describe(network, name):
  """What model.json says of a run; no path, which is the machine's."""
  config = network.config
  file = network.workdir / 'config.json'
  return {
    'name': name,
    'step': network.step,
    'network': config.model.network,
    'stage_sizes': [*config.model.stage_sizes],
    'block': config.model.block,
    'width': config.model.width,
    'seed': config.seed,
    'trained_in': record_lib.load(file).model.dtype,
    'data': pathlib.Path(str(config.data.path)).name,
    'hashes': {
      'config': exported.digest(file),
      'weights': network.sha256,
      'training_manifest': leakage.digest(network.workdir),
    },
  }


def _versions():
  found = {'python': platform.python_version()}
  for name in ('dpjax', 'jax', 'flax', 'numpy', 'onnx', 'onnxruntime'):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def lines(
  record: Mapping[str, Any], output: str | os.PathLike[str]
) -> list[str]:
  """What the command says at its end."""
  said = []
  for name, file in record['files'].items():
    found = file['differs_by']
    worst = max(found, key=found.get, default=None)
    said.append(
      f'{name}: answers as the checkpoint'
      + (f', to {found[worst]:.1e} ({worst})' if worst else ', every bit')
    )
  said += [f'note: {note}' for note in record['notes']]
  return [*said, f'written: {pathlib.Path(output) / exported.MODEL}']
