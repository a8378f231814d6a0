"""Both stages in PyTorch, for the benchmark to run beside ours.

The same networks, losses and update as dpjax.training.steps, from the same
weights, as one would write them for speed in PyTorch: channels_last, bfloat16
autocast where ours computes in it, one fused SGD, both attention maps of a
stage in one convolution, BatchNorm folded into the convolutions for inference.
What a step does begins with uint8 views and rendered masks on the device.

torch is imported where it is used: this module needs it only to be called.
"""

import contextlib
import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from dpjax.errors import UserError
from dpjax.models import resnet
from dpjax.training import build, objectives, steps
from dpjax.training.run import Run

# Stands for minus infinity, as in dpjax.losses.
_MASKED = -1e30
_TINY = 1e-12
# A sweep compiles a step anew for each batch size, and torch gives up in
# silence, to run eagerly, after 8 of one function.
_COMPILATIONS = 256

Tensors = dict[str, Any]


def variants() -> tuple[tuple[str, ...], dict[str, str]]:
  """The ways to run PyTorch that this machine has, and why not the others.

  'eager'; 'compile' (torch.compile), where a compiler works; and on CUDA
  'cuda_graphs', the compiled step captured whole, optimizer included.

  Returns:
    names, {name: reason} of those that are missing.

  Raises:
    UserError: PyTorch is not installed.
  """
  torch = _torch()
  graphs = 'cuda_graphs'
  try:
    torch.compile(lambda x: x + 1)(torch.ones(8, device=_device()))
  # torch's own are RuntimeErrors, whatever the backend compiler raised.
  except (RuntimeError, ImportError, OSError) as error:
    # Its first paragraph: the line after the first says what is missing.
    reason = ' '.join(str(error).split('\n\n')[0].split())
    reason = reason or type(error).__name__
    return ('eager',), {'compile': reason, graphs: reason}
  if _device().type == 'cuda':
    return ('eager', 'compile', graphs), {}
  return ('eager', 'compile'), {graphs: 'torch sees no CUDA device'}


def check(config: ConfigDict) -> None:
  """Refuses what the peer cannot do, before anything is made.

  Args:
    config: as resolved.

  Raises:
    UserError: PyTorch is not installed, is on another kind of device than JAX,
      or the peer has no such network.
  """
  torch = _torch()
  theirs = 'gpu' if torch.cuda.is_available() else 'cpu'
  ours = jax.default_backend()
  if theirs != ours:
    raise UserError(
      f'benchmark --peer=torch: JAX is on a {ours} and torch on a {theirs};'
      ' install both for the same, or set JAX_PLATFORMS=cpu and'
      ' CUDA_VISIBLE_DEVICES='
    )
  for name, value, needed in (
    ('parallel.devices', config.parallel.devices, 1),
    ('model.network', config.model.network, 'resnet'),
    ('model.block', config.model.block, 'basic'),
    ('retrain.freeze', config.retrain.freeze, False),
    ('retrain.average', config.retrain.average, 0.0),
    ('loss.begin', config.loss.begin, 0.0),
    ('loss.smoothing', config.loss.smoothing, 0.0),
  ):
    if value != needed:
      raise UserError(
        f'config.{name} is {value!r}; for benchmark --peer=torch it must be'
        f' {needed!r}'
      )
  if config.loss.classification == 'logit_adjusted':
    raise UserError(
      "config.loss.classification is 'logit_adjusted'; benchmark --peer=torch"
      ' has the other losses only'
    )


def make_step(
  run: Run, state: steps.TrainState, total: int, variant: str,
  *, exact: bool = False,
) -> 'Step':  # fmt: skip
  """One stage in PyTorch, with the weights of `state`.

  It runs on the first CUDA device, or on the CPU without one, and sets torch's
  global flags for speed (TensorFloat-32, cuDNN's search for algorithms).

  Args:
    run: the stage, of a config that `check` has passed.
    state: the weights and batch statistics; the momentum begins at 0.
    total: steps of the learning rate's schedule.
    variant: of `variants`.
    exact: without TensorFloat-32: to compare what is computed, and not to time.

  Raises:
    UserError: PyTorch is not installed.
    ValueError: a variant that is none of `variants`.
  """
  torch = _torch()
  if variant not in ('eager', 'compile', 'cuda_graphs'):
    raise ValueError(
      f'peer variant {variant!r}: must be eager, compile or cuda_graphs'
    )
  if variant == 'cuda_graphs' and _device().type != 'cuda':
    raise ValueError('peer variant cuda_graphs: it needs a CUDA device')
  torch.backends.cudnn.benchmark = True
  torch.backends.cudnn.allow_tf32 = not exact
  torch.set_float32_matmul_precision('highest' if exact else 'high')
  torch._dynamo.config.recompile_limit = _COMPILATIONS
  torch._dynamo.config.accumulated_recompile_limit = _COMPILATIONS
  return Step(run, state, total, variant)


class Step:
  """One stage's update and inference in PyTorch (see `make_step`).

  Attributes:
    network: the modules; their names follow torchvision's.
  """

  def __init__(
    self, run: Run, state: steps.TrainState, total: int, variant: str
  ):
    torch = _torch()
    self._model = run.objective
    self._bfloat16 = run.config.model.dtype == 'bfloat16'
    self._compile = variant != 'eager'
    self._graphs = variant == 'cuda_graphs'
    self.network = _network(run.objective).to(
      _device(), memory_format=torch.channels_last
    )
    weights = to_torch(state.params, state.batch_stats)
    # load_state_dict would ask for the counters that _batch_norm left out.
    for name, tensor in self.network.state_dict().items():
      tensor.copy_(torch.tensor(weights[name]))
    # Here, for a graph cannot send a constant to the device.
    self._class_weights = _class_weights(run.objective)
    settings = run.settings.optim
    _, schedule = build.make_optimizer(run, total)
    rates = jax.vmap(schedule)(np.arange(total))
    # A tensor, for a captured graph reads the rate where it stood.
    self._rates = torch.tensor(np.asarray(rates), device=_device())
    self._rate = self._rates[0].clone()
    self._optimizer = _optimizer(self.network, settings, self._rate)
    self._clip = settings.clip
    self._steps = 0
    self._losses = self._compiled(lambda batch: _losses(self, batch))
    self._captured: _Graph | None = None  # the update as a CUDA graph
    self._folded: Any = None  # the backbone for inference ...
    self._fresh = False  # ... with today's weights
    self._infer: Any = None

  def _compiled(self, function):
    if not self._compile:
      return function
    # By itself torch makes a second batch size a slower, symbolic one, and
    # runs what it cannot compile eagerly, in silence.
    return _torch().compile(function, dynamic=False, fullgraph=True)

  def place(self, batch: Mapping[str, Any]) -> Tensors:
    """A batch that is rendered, with its 'views', put on the device.

    Raises:
      ValueError: it is to be rendered by the step.
    """
    torch = _torch()
    if 'views' not in batch:
      raise ValueError(
        'the peer takes batches rendered on the host (config.data.render=host)'
      )
    arrays = {'views': batch['views']}
    if isinstance(self._model, objectives.Retraining):
      arrays['label'] = np.asarray(batch['label'], np.int64)
    for stage, mask in batch.get('masks', {}).items():
      arrays |= {stage: mask, 'annotated': batch['annotated']}
    return {
      name: torch.tensor(np.asarray(array), device=_device())
      for name, array in arrays.items()
    }

  def losses(self, batch: Tensors) -> dict[str, float]:
    """'loss' and its terms, as steps.train_step names them; no update."""
    with self._same_statistics():
      _, terms = self._losses(batch)
    return {name: term.detach().item() for name, term in terms.items()}

  def gradient_norm(self, batch: Tensors) -> float:
    """Of the whole gradient, before it is clipped; no update."""
    with self._same_statistics():
      self._losses(batch)[0].backward()
    gradients = [p.grad for p in self.network.parameters()]
    norm = _torch().nn.utils.get_total_norm(
      [g for g in gradients if g is not None]
    )
    self._optimizer.zero_grad(set_to_none=True)
    return norm.item()

  @contextlib.contextmanager
  def _same_statistics(self):
    """Puts BatchNorm's running statistics back as they were before."""
    before = [b.clone() for b in self.network.buffers()]
    yield
    _put_back(self.network.buffers(), before)

  def train(self, batch: Tensors) -> None:
    """One update; returns before the device has made it."""
    if self._graphs and self._captured is None:
      momenta = [
        slot['momentum_buffer'] for slot in self._optimizer.state.values()
      ]
      self._captured = _Graph(
        self._update,
        batch,
        [*self.network.parameters(), *self.network.buffers(), *momenta],
      )
    self._rate.copy_(self._rates[min(self._steps, len(self._rates) - 1)])
    self._steps += 1
    self._fresh = False
    (self._captured or self._update)(batch)

  def _update(self, batch):
    torch = _torch()
    self._optimizer.zero_grad(set_to_none=True)
    self._losses(batch)[0].backward()
    if self._clip:
      torch.nn.utils.clip_grad_norm_(self.network.parameters(), self._clip)
    self._optimizer.step()

  def infer(self, batch: Tensors) -> Any:
    """Logits (B, C) of stage II's batch, with the running statistics.

    They are a tensor on the device, which the next call may overwrite.
    """
    torch = _torch()
    if not self._fresh:
      folded = _fold(self.network['backbone'], self._bfloat16)
      if self._folded is None:
        self._folded = folded
        self._infer = self._compiled(
          lambda batch: _logits(self, self._folded, batch)
        )
      # In place: what is compiled or captured reads these tensors.
      self._folded.load_state_dict(folded.state_dict())
      self._fresh = True
    with torch.no_grad():
      if self._graphs and not isinstance(self._infer, _Graph):
        self._infer = _Graph(self._infer, batch, [])
      return self._infer(batch)

  def wait(self) -> None:
    """Blocks until the device has done what it was asked for."""
    if _device().type == 'cuda':
      _torch().cuda.synchronize()


class _Graph:
  """A function of a batch as one CUDA graph, captured on a first batch."""

  def __init__(self, function: Callable, batch: Tensors, changed: list):
    """`changed` are the tensors that the function changes: put back after."""
    torch = _torch()
    before = [tensor.detach().clone() for tensor in changed]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
      for _ in range(3):  # Compile, choose algorithms, allocate.
        function(batch)
    torch.cuda.current_stream().wait_stream(side)
    self._batch = batch
    self._graph = torch.cuda.CUDAGraph()
    # JAX's threads, in the same process, may allocate while this captures.
    with torch.cuda.graph(self._graph, capture_error_mode='thread_local'):
      self._outputs = function(batch)
    _put_back(changed, before)

  def __call__(self, batch: Tensors) -> Any:
    if batch is not self._batch:
      for name, tensor in self._batch.items():
        tensor.copy_(batch[name])
    self._graph.replay()
    return self._outputs


def _put_back(tensors, values):
  with _torch().no_grad():
    for tensor, value in zip(tensors, values, strict=True):
      tensor.copy_(value)


def to_torch(params: Any, batch_stats: Any) -> dict[str, np.ndarray]:
  """Variables of a dpjax.training.steps.TrainState as a state dict of the peer.

  The backbone's names are torchvision's (models.resnet.from_torch reads them);
  both maps of a stage's attention become the two channels of one module.

  Args:
    params: {'backbone': ..., 'projector' or 'attention': ...}.
    batch_stats: likewise.

  Returns:
    torch names to float32 arrays; kernels OIHW and OI.
  """
  leaves = traverse_util.flatten_dict(dict(params))
  leaves |= traverse_util.flatten_dict(dict(batch_stats))
  arrays = {}
  for (module, first, *rest, kind), leaf in leaves.items():
    array = _to_torch_layout(leaf)
    if module == 'backbone':
      first = first.replace('_', '.')
      rest = [name.replace('_', '.') for name in rest]
    if module == 'attention':
      first, _, sign = first.partition('_')
      if sign == 'neg':
        continue
      other = leaves[(module, f'{first}_neg', *rest, kind)]
      array = np.concatenate([array, _to_torch_layout(other)])
    arrays['.'.join([module, first, *rest, resnet.TORCH_LEAVES[kind]])] = array
  return arrays


def _to_torch_layout(leaf):
  """HWIO -> OIHW and IO -> OI; vectors stay."""
  array = np.asarray(leaf, np.float32)
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _torch():
  """The package torch.

  Raises:
    UserError: it is not installed.
  """
  try:
    import torch
  except ImportError as error:
    raise UserError(
      "benchmark --peer=torch needs PyTorch: pip install -e '.[peer]'"
    ) from error
  return torch


def _device():
  torch = _torch()
  return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


def _network(model):
  """The modules of an objectives.Pretraining or objectives.Retraining."""
  nn = _torch().nn
  network = {'backbone': _resnet(model.backbone)}
  if isinstance(model, objectives.Pretraining):
    width = model.backbone.width * 2 ** (len(model.backbone.stage_sizes) - 1)
    head = model.projector
    network['projector'] = nn.ModuleDict(
      {
        'Dense_0': nn.Linear(width, head.hidden),
        'Dense_1': nn.Linear(head.hidden, head.out),
      }
    )
  elif model.attention is not None:
    network['attention'] = nn.ModuleDict()
    for stage in model.attention.stages:
      head = {'conv': nn.Conv2d(2, 2, 7, padding=3, bias=False)}
      if model.attention.use_batch_norm:
        head['bn'] = _batch_norm(2, momentum=0.01)
      network['attention'][stage] = nn.ModuleDict(head)
  return nn.ModuleDict(network)


def _resnet(backbone):
  """A models.resnet.ResNet of basic blocks."""
  nn = _torch().nn
  width = channels = backbone.width
  modules = {
    'conv1': nn.Conv2d(1, width, 7, 2, padding=3, bias=False),
    'bn1': _batch_norm(width),
  }
  for i, size in enumerate(backbone.stage_sizes):
    blocks = []
    width = backbone.width * 2**i
    for j in range(size):
      stride = 2 if i > 0 and j == 0 else 1
      block = {
        'conv1': nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
        'bn1': _batch_norm(width),
        'conv2': nn.Conv2d(width, width, 3, padding=1, bias=False),
        'bn2': _batch_norm(width),
      }
      if stride > 1 or channels != width:
        block['downsample'] = nn.Sequential(
          nn.Conv2d(channels, width, 1, stride, bias=False),
          _batch_norm(width),
        )
      blocks.append(nn.ModuleDict(block))
      channels = width
    modules[f'layer{i + 1}'] = nn.Sequential(*blocks)
  if backbone.num_classes:
    modules['fc'] = nn.Linear(channels, backbone.num_classes)
  return nn.ModuleDict(modules)


def _batch_norm(channels, momentum=0.1):
  norm = _torch().nn.BatchNorm2d(channels, momentum=momentum)
  norm.num_batches_tracked = None  # Counting is a kernel a layer and step.
  return norm


def _features(backbone, x):
  """(B, 1, H, W) -> {'stage1': (B, C, h, w), ..., 'pooled': (B, C) float32}."""
  torch = _torch()
  functional = torch.nn.functional
  x = functional.relu(backbone['bn1'](backbone['conv1'](x)), inplace=True)
  x = functional.max_pool2d(x, 3, 2, padding=1)
  features = {}
  layers = [name for name in backbone if name.startswith('layer')]
  for i, layer in enumerate(layers):
    for block in backbone[layer]:
      y = block['bn1'](block['conv1'](x))
      y = functional.relu(y, inplace=True)
      y = block['bn2'](block['conv2'](y))
      y += block['downsample'](x) if 'downsample' in block else x
      x = functional.relu(y, inplace=True)
    features[f'stage{i + 1}'] = x
  features['pooled'] = x.mean((2, 3), dtype=torch.float32)
  return features


def _backbone(step, backbone, images):
  """`_features` in the precision of the config."""
  torch = _torch()
  with torch.autocast(
    images.device.type,
    torch.bfloat16,
    enabled=step._bfloat16,
    cache_enabled=False,  # Each weight is used once.
  ):
    return _features(backbone, images)


def _images(step, batch, views=1):
  """The first views (views * B, 1, S, S), normalised, channels_last."""
  torch = _torch()
  pixels = step._model.pixels
  grey = batch['views'][:, :views].transpose(0, 1).to(torch.float32)
  grey = (grey / 255.0 - pixels.mean) / pixels.std
  # Of one channel both layouts look alike: strides that say which one it is.
  return grey.reshape(-1, *grey.shape[2:], 1).permute(0, 3, 1, 2)


def _logits(step, backbone, batch):
  features = _backbone(step, backbone, _images(step, batch))
  return backbone['fc'](features['pooled'])


def _losses(step, batch):
  """The stage's loss, and {'loss': it, 'loss/...': each term}."""
  model, network = step._model, step.network
  if isinstance(model, objectives.Pretraining):
    loss = _contrast(step, batch)
    return loss, {'loss': loss, 'loss/contrast': loss}
  features = _backbone(step, network['backbone'], _images(step, batch))
  logits = network['backbone']['fc'](features['pooled'])
  total = _classification(
    model.classification, logits, batch['label'], step._class_weights
  )
  terms = {'loss/classification': total}
  if model.attention is not None:
    stages = [
      _mgacr(head, features[stage], batch[stage], batch['annotated'],
             **model.mgacr)
      for stage, head in network['attention'].items()
    ]  # fmt: skip
    for name, weight in model.weights.items():
      if weight:
        terms[f'loss/{name}'] = sum(stage[name] for stage in stages)
        total = total + weight * terms[f'loss/{name}']
  return total, {'loss': total, **terms}


def _contrast(step, batch):
  """NT-Xent, the mean over the pairs of views."""
  torch = _torch()
  functional = torch.nn.functional
  count, views = batch['views'].shape[:2]
  network = step.network
  images = _images(step, batch, views)
  x = _backbone(step, network['backbone'], images)['pooled']
  x = functional.relu(network['projector']['Dense_0'](x))
  z = functional.normalize(network['projector']['Dense_1'](x))
  z = z.reshape(views, count, -1)
  itself = torch.eye(2 * count, dtype=torch.bool, device=z.device)
  partner = torch.arange(2 * count, device=z.device).roll(count)
  losses = []
  for a, b in itertools.combinations(z, 2):
    pair = torch.cat([a, b])
    similarity = pair @ pair.T / step._model.temperature
    losses.append(
      functional.cross_entropy(similarity.masked_fill(itself, _MASKED), partner)
    )
  return sum(losses) / len(losses)


def _class_weights(model):
  """(C,) weights of the class-balanced losses on the device, else None."""
  loss = getattr(model, 'classification', None)
  weights = getattr(loss, 'keywords', {}).get('weights')
  if weights is None:
    return None
  return _torch().tensor(np.asarray(weights), device=_device())


def _classification(loss, logits, labels, weights):
  """The mean of a build.classification_loss over the batch."""
  torch = _torch()
  functional = torch.nn.functional
  # Without a gamma it is cross entropy.
  settings = getattr(loss, 'keywords', {})
  gamma = settings.get('gamma', 0.0)
  if settings.get('kind', 'softmax') == 'sigmoid':
    signs = 2.0 * functional.one_hot(labels, logits.shape[1]) - 1
    values = functional.softplus(-signs * logits)
    values = values * torch.exp(gamma * functional.logsigmoid(-signs * logits))
    values = values.sum(1)
  else:
    values = functional.cross_entropy(logits, labels, reduction='none')
    if gamma:
      # 1 - p_t from the other classes, where it would round to 0.
      others = functional.log_softmax(logits, 1).scatter(
        1, labels[:, None], _MASKED
      )
      values = values * torch.exp(gamma * others.logsumexp(1))
  if weights is not None:
    values = values * weights[labels]
  return values.mean()


def _mgacr(
  head, features, mask, known, *, reduction, negative, eps, lesions_only,
  stop_gradient_maps,
):  # fmt: skip
  """losses.mgacr of one stage, from its features (B, C, h, w) and head."""
  torch = _torch()
  # After a ReLU the channel mean is also that of the magnitudes (Eq. 5).
  magnitude = features.mean(1, dtype=torch.float32)  # (B, h, w)
  maximum = features.amax(1).to(torch.float32)
  maps = head['conv'](torch.stack([maximum, magnitude], 1))
  if 'bn' in head:
    maps = head['bn'](maps)
  map_pos, map_neg = torch.sigmoid(maps).unbind(1)  # (B, h, w) each

  def mse(a, b):
    return ((a - b) ** 2).mean((1, 2))  # (B,)

  def suppressed(attention):
    if stop_gradient_maps:
      attention = attention.detach()
    return ((1 - attention) * magnitude).mean((1, 2))  # (B,)

  def ratio(numerator, denominator):
    return numerator / (denominator + eps).clamp(min=_TINY)

  has_lesion = (mask > 0).any(2).any(1).to(mask.dtype)  # (B,)
  pairs = {
    'att_pos': (mse(map_pos, mask), mse(map_pos, 1 - mask)),
    'att_neg': (mse(map_neg, 1 - mask), mse(map_neg, mask)),
    'feat': (suppressed(map_pos), suppressed(map_neg)),
  }
  terms = {}
  for name, pair in pairs.items():
    keep = has_lesion if name in lesions_only else torch.ones_like(has_lesion)
    if name != 'feat':
      keep = keep * known
    share = keep / keep.sum().clamp(min=1)
    if name == 'att_neg' and negative == 'mse':
      terms[name] = (pair[0] * share).sum()
    elif reduction == 'batch':
      terms[name] = ratio(*((values * share).sum() for values in pair))
    else:
      terms[name] = (ratio(*pair) * share).sum()
  return terms


def _optimizer(network, settings, rate):
  """optim.make in one fused kernel a group; `rate` is its learning rate."""
  torch = _torch()
  decayed: list[Any] = []  # torch.nn.Parameter
  plain: list[Any] = []
  for parameter in network.parameters():
    decay = settings.decay_norm_and_bias or parameter.ndim > 1
    (decayed if decay else plain).append(parameter)
  groups = [{'params': decayed, 'weight_decay': settings.weight_decay}]
  if plain:
    groups.append({'params': plain, 'weight_decay': 0.0})
  optimizer = torch.optim.SGD(
    groups,
    lr=rate,
    momentum=settings.momentum,
    nesterov=settings.nesterov and settings.momentum > 0,
    fused=True,
  )
  if settings.momentum:
    # There before a graph is captured: its first step is as any other.
    for parameter in network.parameters():
      optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(
        parameter
      )
  return optimizer


def _fold(backbone, bfloat16):
  """A copy for inference, each BatchNorm folded into its convolution."""
  torch = _torch()
  folded = copy.deepcopy(backbone).eval().requires_grad_(False)

  def fuse(modules, conv, norm):
    modules[conv] = torch.nn.utils.fuse_conv_bn_eval(
      modules[conv], modules[norm]
    )
    modules[norm] = torch.nn.Identity()

  fuse(folded, 'conv1', 'bn1')
  for name in folded:
    if name.startswith('layer'):
      for block in folded[name]:
        fuse(block, 'conv1', 'bn1')
        fuse(block, 'conv2', 'bn2')
        if 'downsample' in block:
          fuse(block['downsample'], 0, 1)
  if bfloat16:  # Or each call casts each kernel.
    for name, module in folded.items():
      if name != 'fc':
        module.to(torch.bfloat16)
  return folded.to(memory_format=torch.channels_last)
