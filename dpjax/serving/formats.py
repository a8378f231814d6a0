"""What a model is exported as: how each file is written, and asked again."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from dpjax import atomic
from dpjax.evaluation import explain
from dpjax.metrics import calibration
from dpjax.models import resnet
from dpjax.serving import exported, onnx_graph
from dpjax.serving.model import Model
from dpjax.training import steps

PLATFORMS = ('cpu', 'cuda', 'tpu')  # of the StableHLO
Answers = Mapping[str, np.ndarray]


class Format(NamedTuple):
  """How a model becomes a file, and how the file is asked.

  Attributes:
    needs: packages of the extra `export`.
    write: (model, maps, folder) -> names of the files.
    ask: (model, folder, names, squares) -> answers, some or all outputs.
  """

  needs: tuple[str, ...]
  write: Callable[[Model, bool, pathlib.Path], list[str]]
  ask: Callable[[Model, pathlib.Path, list[str], np.ndarray], Answers]


def named_maps(found: Mapping[str, Any]) -> dict[str, Any]:
  """Of explain.explain_step's maps those that are exported, by their names."""
  return {
    name.replace('att_pos/', 'map_pos_'): value
    for name, value in found.items()
    if not name.startswith('att_neg/')
  }


def _write_onnx(model, maps, folder):
  graph = onnx_graph.build(
    model.networks, temperature=model.temperature, maps=maps
  )
  atomic.write_bytes(folder / exported.ONNX, graph.SerializeToString())
  return [exported.ONNX]


def _write_stablehlo(model, maps, folder):
  (batch,) = jax.export.symbolic_shape('B')
  images = jax.ShapeDtypeStruct((batch, model.size, model.size), np.uint8)
  # Else accelerators would round what goes into each product.
  with jax.default_matmul_precision('highest'):
    program = jax.export.export(
      jax.jit(lambda images: _answer(model, images, maps)),
      platforms=PLATFORMS,
    )(images)
  atomic.write_bytes(folder / exported.STABLEHLO, bytes(program.serialize()))
  return [exported.STABLEHLO]


def _answer(model, images, maps):
  """The answers of export.checkpoint_answers as one program."""
  found = [
    steps.embed_step(
      network.state, {'images': images}, objective=network.objective
    )
    for network in model.networks
  ]
  logits = found[0]['logits']
  if len(found) > 1:
    mean = sum(jax.nn.softmax(one['logits']) for one in found) / len(found)
    logits = jnp.log(jnp.maximum(mean, calibration.FLOOR))
  answers = {
    'logits': logits,
    'probabilities': jax.nn.softmax(logits / (model.temperature or 1.0)),
    'embeddings': jnp.concatenate([one['pooled'] for one in found], axis=1),
  }
  if maps:
    first = model.networks[0]
    target, stage = first.cam
    looked = explain.explain_step(
      first.state, {'images': images, 'label': None},
      objective=first.objective, target=target, cam_stage=stage,
    )  # fmt: skip
    answers |= named_maps(looked)
  return answers


def _ask_program(model, folder, names, squares):
  del model
  return exported.runner(folder / names[0])(squares)


def _write_torch(model, maps, folder):
  from safetensors import numpy as safetensors

  del maps
  names = []
  for i, network in enumerate(model.networks, 1):
    several = len(model.networks) > 1
    name = f'weights-{i}.safetensors' if several else 'weights.safetensors'
    tensors = resnet.to_torch(_backbone(network))
    content = safetensors.save(tensors, {'format': 'pt'})
    atomic.write_bytes(folder / name, content)
    names.append(name)
  return names


def _ask_torch(model, folder, names, squares):
  """The answers of the first network, as its weights are read back.

  Raises:
    RuntimeError: a bit of them is another.
  """
  for name, network in zip(names, model.networks, strict=True):
    tensors = resnet.load_torch_weights(folder / name)
    back = resnet.from_torch(tensors, network.objective.backbone)
    same = jax.tree.map(
      lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(),
      back,
      _backbone(network),
    )
    if not all(jax.tree.leaves(same)):
      raise RuntimeError(f'{name}: not every bit of the checkpoint is there')
  if len(names) > 1:
    return {}
  network = model.networks[0]
  images = network.objective.pixels.views({'images': squares})[:, 0]
  with jax.default_matmul_precision('highest'):
    logits, _ = network.objective.backbone.apply(back, images)
  return {'logits': jax.device_get(logits)}


def _backbone(network):
  return {
    'params': network.state.params['backbone'],
    'batch_stats': network.state.batch_stats['backbone'],
  }


FORMATS = {
  'onnx': Format(('onnx', 'onnxruntime'), _write_onnx, _ask_program),
  'stablehlo': Format(('flatbuffers',), _write_stablehlo, _ask_program),
  'torch': Format(('safetensors',), _write_torch, _ask_torch),
}
