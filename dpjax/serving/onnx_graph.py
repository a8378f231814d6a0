"""Trained networks as one ONNX graph, made layer by layer from our own.

Converters trace a program of JAX, with all that its compiler put into it. The
networks here are a handful of layers, so the graph is written down instead:
batch normalisation is folded into the convolution before it, and what is left
are the operators that every runtime is fast at. Axes are (B, C, H, W), as
ONNX has them.

Operators: https://onnx.ai/onnx/operators, opset 17.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dpjax.data.feed import render_common
from dpjax.errors import UserError
from dpjax.metrics import calibration
from dpjax.models import resnet, sides, vgg

if TYPE_CHECKING:  # An extra.
  import onnx

  from dpjax.serving import network as network_lib

OPSET = 17
IR = 8  # What came with opset 17; a newer one shuts out older runtimes.
_EPSILON = 1e-5  # of every batch normalisation here


def build(
  networks: Sequence[network_lib.Network],
  *,
  temperature: float | None,
  maps: bool = False,
) -> onnx.ModelProto:
  """One graph of one run, or of several and their mean.

  Args:
    networks: of one or several runs that take the same squares.
    temperature: that calibrates their answer; None where there is none.
    maps: also say where the first run looks.

  Returns:
    A checked model from `images` (B, S, S) uint8 to
      logits         (B, C), of several runs ln of their mean probabilities
      probabilities  (B, C), the softmax of logits / temperature
      embeddings     (B, K), pooled features, those of several runs in a row
      cam, map_pos_STAGE   (B, h, w), with `maps`
    all float32.
  """
  import onnx

  graph = _Graph()
  runs = [
    _Layers(graph, f'run{i}' if len(networks) > 1 else '', network)
    for i, network in enumerate(networks, 1)
  ]
  answers = [run.answer('images') for run in runs]
  outputs = _together(graph, answers, temperature)
  if maps:
    outputs |= runs[0].cam(answers[0]) | runs[0].attention(answers[0])
  side = networks[0].config.data.store_size
  return graph.model(
    onnx.helper.make_tensor_value_info(
      'images', onnx.TensorProto.UINT8, ['B', side, side]
    ),
    outputs,
  )


def _together(graph, answers, temperature):
  """{output: name} of one run's answers, or of several and their mean."""
  logits, embeddings = (
    [one[name] for one in answers] for name in ('logits', 'embeddings')
  )
  if len(answers) == 1:
    (logits,), (embeddings,) = logits, embeddings
  else:
    each = [graph.add('Softmax', one, axis=1) for one in logits]
    floor = graph.constant('floor', np.float32(calibration.FLOOR))
    mean = graph.add('Max', graph.add('Mean', *each), floor)
    logits = graph.add('Log', mean)
    embeddings = graph.add('Concat', *embeddings, axis=1)
  scaled = logits
  if temperature is not None:
    value = graph.constant('temperature', np.float32(temperature))
    scaled = graph.add('Div', logits, value)
  probabilities = graph.add('Softmax', scaled, axis=1)
  return {
    'logits': logits,
    'probabilities': probabilities,
    'embeddings': embeddings,
  }


class _Graph:
  """Nodes and constants, in the order in which they are computed."""

  def __init__(self) -> None:
    self._nodes: list[onnx.NodeProto] = []
    self._constants: dict[str, onnx.TensorProto] = {}

  def constant(self, name: str, value: np.ndarray) -> str:
    """Puts an array into the file; one of the same name is put once."""
    import onnx

    self._constants.setdefault(
      name, onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
    )
    return name

  def add(
    self, operator: str, *inputs: str, name: str = '', **attributes: Any
  ) -> str:
    """Appends a node; returns the name of its output."""
    import onnx

    name = f'{name or operator.lower()}#{len(self._nodes)}'
    self._nodes.append(
      onnx.helper.make_node(operator, inputs, [name], name=name, **attributes)
    )
    return name

  def model(
    self, images: onnx.ValueInfoProto, outputs: Mapping[str, str]
  ) -> onnx.ModelProto:
    """The whole, checked; `outputs` are {name outside: name inside}."""
    import onnx

    helper = onnx.helper
    for name, inside in outputs.items():
      self._nodes.append(
        helper.make_node('Identity', [inside], [name], name=name)
      )
    told = [
      helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
      for name in outputs
    ]
    graph = helper.make_graph(
      self._nodes, 'dpjax', [images], told, [*self._constants.values()]
    )
    model = helper.make_model(
      graph,
      producer_name='dpjax',
      ir_version=IR,
      opset_imports=[helper.make_opsetid('', OPSET)],
    )
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    del model.graph.value_info[:]  # Runtimes infer those inside themselves.
    onnx.checker.check_model(model, full_check=True)
    return model


class _Layers:
  """The layers of one run, as they are added to a graph."""

  def __init__(self, graph: _Graph, prefix: str, network: network_lib.Network):
    self._graph, self._prefix, self._network = graph, prefix, network
    self._objective = network.objective
    self._params = network.state.params
    self._stats = network.state.batch_stats

  def answer(self, images: str) -> dict[str, Any]:
    """Names of logits, embeddings, and of every stage."""
    backbone = self._objective.backbone
    walks = {resnet.ResNet: _resnet, vgg.VGG16: _vgg16}
    if type(backbone) not in walks:
      raise UserError(
        f'--format: a {type(backbone).__name__} has no ONNX graph; wanted one'
        f' of {", ".join(kind.__name__ for kind in walks)}'
      )
    stages, pooled = walks[type(backbone)](self, backbone, self._pixels(images))
    logits = self.dense(pooled, 'fc')
    return {'logits': logits, 'embeddings': pooled, **stages}

  def _pixels(self, images):
    """Squares (B, S, S) uint8 -> what the network sees, (B, 1, s, s)."""
    pixels = self._objective.pixels
    source, size = self._network.config.data.store_size, pixels.image_size
    x = self.add('Cast', images, to=1)  # float32
    if source != size:  # render_device.plain
      weights = render_common.plain_weights(source, size)
      x = self.add('MatMul', self._put('resize_rows', weights), x)
      x = self.add('MatMul', x, self._put('resize_columns', weights.T))
    for operator, value in (
      ('Div', 255.0), ('Sub', pixels.mean), ('Div', pixels.std)
    ):  # fmt: skip
      name = f'{operator.lower()}_{value:g}'
      x = self.add(operator, x, self._put(name, np.float32(value)))
    return self.add('Unsqueeze', x, self._put('axis', np.array([1], np.int64)))

  def add(
    self, operator: str, *inputs: str, name: str = '', **attributes: Any
  ) -> str:
    """A node of this run."""
    name = '/'.join(filter(None, (self._prefix, name or operator.lower())))
    return self._graph.add(operator, *inputs, name=name, **attributes)

  def _put(self, name, value):
    name = '/'.join(filter(None, (self._prefix, name)))
    return self._graph.constant(name, value)

  def _array(self, tree, *path):
    """A parameter or statistic, float64; None where there is none."""
    for part in path:
      if part not in tree:
        return None
      tree = tree[part]
    return np.asarray(tree, np.float64)

  def conv(
    self, x: str, module: str, layer: str, norm: str | None, *,
    stride: int = 1, padding: int,
  ) -> str:  # fmt: skip
    """A convolution and the batch normalisation after it, in one.

    y = s (w * x - m) + b with s = scale / sqrt(var + eps) is a convolution by
    s w, plus b - s m.

    Args:
      x: name of its input.
      module: 'backbone' or 'attention'.
      layer: path of the convolution in it, with slashes.
      norm: that of the normalisation; None for none.
      stride, padding: of both sides.
    """
    params, stats = self._params[module], self._stats.get(module, {})
    of = functools.partial(self._array, params)
    kernel, bias = (
      of(*layer.split('/'), 'kernel'),
      of(*layer.split('/'), 'bias'),
    )
    bias = np.zeros(kernel.shape[-1]) if bias is None else bias
    if norm is not None:
      mean, var = (
        self._array(stats, *norm.split('/'), name) for name in ('mean', 'var')
      )
      factor = of(*norm.split('/'), 'scale') / np.sqrt(var + _EPSILON)
      bias = of(*norm.split('/'), 'bias') + factor * (bias - mean)
      kernel = kernel * factor
    return self.add(
      'Conv',
      x,
      self._put(f'{layer}/w', kernel.transpose(3, 2, 0, 1).astype(np.float32)),
      self._put(f'{layer}/b', bias.astype(np.float32)),
      name=layer,
      kernel_shape=kernel.shape[:2],
      strides=[stride, stride],
      pads=[padding] * 4,
    )

  def dense(
    self,
    x: str,
    layer: str,
    order: Callable[[np.ndarray], np.ndarray] = lambda kernel: kernel,
  ) -> str:
    """A dense layer of the backbone; `order` rearranges its kernel's rows."""
    kernel, bias = (
      self._array(self._params['backbone'], layer, name).astype(np.float32)
      for name in ('kernel', 'bias')
    )
    return self.add(
      'Gemm', x, self._put(f'{layer}/w', order(kernel)),
      self._put(f'{layer}/b', bias), name=layer,
    )  # fmt: skip

  def reshaped(self, x: str, *shape: int) -> str:
    """x in another shape; 0 keeps an axis, as that of the batch."""
    name = 'shape_' + '_'.join(map(str, shape))
    return self.add('Reshape', x, self._put(name, np.array(shape, np.int64)))

  def matmul(
    self, name: str, left: np.ndarray, x: str, right: np.ndarray
  ) -> str:
    """left x right, over the last two axes."""
    x = self.add('MatMul', self._put(f'{name}/left', left), x)
    return self.add('MatMul', x, self._put(f'{name}/right', right))

  def cam(self, answer: Mapping[str, Any]) -> dict[str, str]:
    """Grad-CAM of any lesion at the last stage (gradcam.closed_form)."""
    stages = self._objective.backbone.stage_sizes
    side = self.side(f'stage{len(stages)}')
    kernel = self._array(self._params['backbone'], 'fc', 'kernel')  # (K, C)
    kernel = kernel.astype(np.float32)
    lesions = self.add(
      'Slice', answer['logits'],
      *(self._put(f'cam_{name}', np.array([value], np.int64))
        for name, value in (('from', 1), ('to', kernel.shape[1]), ('axis', 1))),
    )  # fmt: skip
    # W g, with g minus 1 for class 0 and their softmax for the others.
    alpha = self.add(
      'Gemm', self.add('Softmax', lesions, axis=1),
      self._put('cam_lesions', kernel[:, 1:].T),
      self._put('cam_normal', -kernel[:, 0]),
    )  # fmt: skip
    alpha = self.add(
      'Div', alpha, self._put('cam_cells', np.float32(side * side))
    )
    alpha = self.reshaped(alpha, 0, 1, len(kernel))
    features = answer[f'stage{len(stages)}']
    total = self.add(
      'MatMul', alpha, self.reshaped(features, 0, len(kernel), side * side)
    )
    return {'cam': self.add('Relu', self.reshaped(total, 0, side, side))}

  def attention(self, answer: Mapping[str, Any]) -> dict[str, str]:
    """{'map_pos_STAGE': name} (models.heads.SpatialAttention)."""
    attention, found = self._objective.attention, {}
    for stage in attention.stages if attention is not None else ():
      x = answer[stage]
      maximum = self.add('ReduceMax', x, axes=[1], keepdims=1)
      mean = self.add('ReduceMean', x, axes=[1], keepdims=1)
      x = self.add('Concat', maximum, mean, axis=1)
      norm = f'{stage}_pos/bn' if attention.use_batch_norm else None
      x = self.conv(x, 'attention', f'{stage}_pos/conv', norm, padding=3)
      side = self.side(stage)
      x = self.reshaped(self.add('Sigmoid', x), 0, side, side)
      found[f'map_pos_{stage}'] = x
    return found

  def side(self, stage: str) -> int:
    """Cells of a stage's features, along a side."""
    config = self._network.config
    return sides.stage_sides(
      config.model.network, config.data.image_size, config.model.stage_sizes
    )[stage]


def _resnet(layers, model, x):
  """({stage: name}, name of the pooled features) of a models.resnet.ResNet."""

  def conv(x, layer, norm, stride=1, padding=1):
    return layers.conv(
      x, 'backbone', layer, norm, stride=stride, padding=padding
    )

  def relu(x):
    return layers.add('Relu', x)

  # The space-to-depth stem computes the same from the same kernel.
  x = relu(conv(x, 'conv1', 'bn1', stride=2, padding=3))
  x = layers.add(
    'MaxPool', x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
  )
  bottleneck = model.block == 'bottleneck'
  expansion = 4 if bottleneck else 1
  kernels = (1, 3, 1) if bottleneck else (3, 3)
  strided = kernels.index(3)  # torchvision's: on the 3x3 convolution
  channels, stages = model.width, {}
  for i, size in enumerate(model.stage_sizes):
    outer = model.width * 2**i * expansion
    for j in range(size):
      name = f'layer{i + 1}_{j}'
      stride = 2 if i > 0 and j == 0 else 1
      y = x
      for k, kernel in enumerate(kernels):
        y = conv(
          y, f'{name}/conv{k + 1}', f'{name}/bn{k + 1}',
          stride if k == strided else 1, kernel // 2,
        )  # fmt: skip
        y = relu(y) if k < len(kernels) - 1 else y
      if stride > 1 or channels != outer:
        down = f'{name}/downsample_0', f'{name}/downsample_1'
        x = conv(x, *down, stride, 0)
      x, channels = relu(layers.add('Add', y, x)), outer
    stages[f'stage{i + 1}'] = x
  return stages, layers.add('ReduceMean', x, axes=[2, 3], keepdims=0)


def _vgg16(layers, model, x):
  """The same of a models.vgg.VGG16."""
  stages = {}
  for i, (stage, (depth, _)) in enumerate(
    zip(vgg.STAGES, vgg.BLOCKS, strict=True), 1
  ):
    for j in range(1, depth + 1):
      norm = f'bn{i}_{j}' if model.batch_norm else None
      x = layers.conv(x, 'backbone', f'conv{i}_{j}', norm, padding=1)
      x = layers.add('Relu', x)
    x = layers.add('MaxPool', x, kernel_shape=[2, 2], strides=[2, 2])
    stages[stage] = x
  side = layers.side(vgg.STAGES[-1])
  if side != vgg.GRID:
    weights = vgg.bin_weights(side, vgg.GRID)
    x = layers.matmul('adaptive_mean', weights, x, weights.T)
  x = layers.add('Flatten', x, axis=1)

  def from_channels_last(kernel):
    """Rows in the order (C, h, w), not (h, w, C)."""
    shaped = kernel.reshape(vgg.GRID, vgg.GRID, -1, kernel.shape[1])
    return shaped.transpose(2, 0, 1, 3).reshape(kernel.shape)

  for name, order in (('fc1', from_channels_last), ('fc2', lambda k: k)):
    x = layers.add('Relu', layers.dense(x, name, order))
  return stages, x
