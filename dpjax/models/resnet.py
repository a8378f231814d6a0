"""Residual networks for one-channel radiographs, equal to torch's.

Architecture: He et al., 2016, "Deep Residual Learning for Image Recognition",
with the stride of a bottleneck on its 3x3 convolution as torchvision has it.
Flax names are torch's with `_` for the dot before a number (`layer1_0`,
`downsample_1`), so that weights convert by renaming.
"""

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.typing import DTypeLike

from dpjax.errors import UserError
from dpjax.models import initializers
from dpjax.models.batch_norm import BatchNorm, jointly
from dpjax.models.max_pool import max_pool
from dpjax.models.stem import norm_relu_pool

# What Flax calls an array of a module, and what torch does.
TORCH_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
# Words that wrappers put before torch's names (`without_prefix`).
PREFIXES = ('module', 'model', 'backbone', 'encoder', 'encoder_q')


def batch_norm(
  train: bool, dtype: DTypeLike, axis_name: str | None
) -> Callable[..., BatchNorm]:
  """torch's BatchNorm, to be named; the arguments are those of `ResNet`."""
  # The momentum is the share that stays: torch's 0.1 is 0.9 here.
  return partial(
    BatchNorm,
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
    axis_name=axis_name,
  )


def norm_and_pool(norm: BatchNorm, x: jax.Array, train: bool) -> jax.Array:
  """max_pool(relu(norm(x))), in training as one (`norm_relu_pool`)."""
  if train:
    return jointly([norm], x, norm_relu_pool)
  return max_pool(nn.relu(norm(x)))


class SpaceToDepthStem(nn.Module):
  """The 7x7 stem of stride 2, computed as a 4x4 convolution of stride 1.

  Each 2x2 square of pixels becomes one position of four channels, and the
  kernel, with a row and a column of zeros before it, is cut alike: the same
  products are summed in another order. The parameter is that of the plain
  stem, so weights and checkpoints serve both.

  Source: the space-to-depth stem of Ying et al., 2018, "Image Classification at
  Supercomputer Scale", here with the 7x7 kernel's padding of 3.

  Attributes:
    features: channels of the result.
    dtype: of the convolution.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """(B, H, W, 1) to (B, ceil(H / 2), ceil(W / 2), features)."""
    shape = (7, 7, 1, self.features)
    kernel = self.param('kernel', initializers.kaiming, shape).astype(
      self.dtype
    )
    # Tap k of output i reads pixel 2 i + k - 3. With a zero before the taps it
    # reads 2 (i + k // 2 - 2) + k % 2: square i + k // 2 - 2, its pixel k % 2.
    kernel = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(4, 2, 4, 2, self.features)
    kernel = kernel.swapaxes(1, 2).reshape(4, 4, 4, self.features)
    b, h, w, _ = images.shape
    x = images.astype(self.dtype)
    x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))  # As the padding.
    h, w = -(-h // 2), -(-w // 2)
    x = x.reshape(b, h, 2, w, 2).swapaxes(2, 3).reshape(b, h, w, 4)
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(1, 1),
      padding=((2, 1), (2, 1)),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut (ResNet18, ResNet34)."""

  width: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv3x3 = partial(self.conv, kernel_size=(3, 3), padding=1)
    y = conv3x3(self.width, strides=self.stride, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    y = conv3x3(self.width, name='conv2')(y)
    y = self.norm(name='bn2')(y)
    return nn.relu(y + _shortcut(self, x, self.width))


class Bottleneck(nn.Module):
  """1x1, 3x3 and 1x1 convolutions and a shortcut (ResNet50)."""

  width: int
  stride: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  expansion = 4

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    conv1x1 = partial(self.conv, kernel_size=(1, 1), padding=0)
    conv3x3 = partial(self.conv, kernel_size=(3, 3), padding=1)
    channels = self.width * self.expansion
    y = conv1x1(self.width, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    y = conv3x3(self.width, strides=self.stride, name='conv2')(y)
    y = nn.relu(self.norm(name='bn2')(y))
    y = conv1x1(channels, name='conv3')(y)
    y = self.norm(name='bn3')(y)
    return nn.relu(y + _shortcut(self, x, channels))


def _shortcut(block: nn.Module, x: jax.Array, channels: int) -> jax.Array:
  """The block's input, projected where the block changes its shape."""
  if block.stride == 1 and x.shape[-1] == channels:
    return x
  x = block.conv(
    channels, (1, 1), strides=block.stride, padding=0, name='downsample_0'
  )(x)
  return block.norm(name='downsample_1')(x)


class ResNet(nn.Module):
  """A residual network that returns its logits and what led to them.

  Parameters, batch statistics, pooled features and logits are float32 whatever
  `dtype` the convolutions compute in.

  Attributes:
    stage_sizes: number of residual blocks in each stage; 1 stage or more.
    num_classes: width of the classifier; 0 for none, and then the pooled
      features stand in place of the logits.
    width: channels of the stem and the first stage; each stage doubles them.
    dtype: of the convolutions and of the stages' features.
    block: 'basic', 'bottleneck', or a module class with their fields.
    axis_name: device axis over which batch statistics are averaged, or None.
    stem: 'conv', or 'space_to_depth' (`SpaceToDepthStem`): how the first
      convolution is computed. The result is the same to rounding.
  """

  stage_sizes: Sequence[int] = (2, 2, 2, 2)
  num_classes: int = 5
  width: int = 64
  dtype: DTypeLike = jnp.float32
  block: str | type[nn.Module] = 'basic'
  axis_name: str | None = None
  stem: str = 'conv'

  @nn.compact
  def __call__(
    self,
    images: jax.Array,
    train: bool = False,
    offsets: Mapping[str, jax.Array] | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes logits and intermediate features.

    Args:
      images: normalised radiographs, (B, H, W, 1).
      train: normalise by the batch's statistics and update the running ones
        (collection 'batch_stats', which must then be mutable).
      offsets: {stage: (B, h, w, C)}, added to that stage's features before
        they go on. The gradient at offsets of zero is that of the features,
        which is what Grad-CAM asks for.

    Returns:
      logits (B, num_classes) float32, and a dict of 'stage1', 'stage2', ...:
      each stage's features after their last ReLU, (B, h, w, C) in `dtype`, and
      'pooled': the last stage's mean over its positions, (B, C) float32.

    Raises:
      ValueError: images of another rank or channel count, an unknown block or
        stem, an offset of no stage or of another shape than its features.
    """
    if images.ndim != 4 or images.shape[-1] != 1:
      raise ValueError(
        f'ResNet: images must be (B, H, W, 1), got {tuple(images.shape)}'
      )
    conv = partial(
      nn.Conv,
      use_bias=False,
      dtype=self.dtype,
      kernel_init=initializers.kaiming,
    )
    norm = batch_norm(train, self.dtype, self.axis_name)
    block = _block_class(self.block)

    # Paddings are written out because Flax's SAME differs from torch's
    # wherever the stride is 2.
    stem: nn.Module
    if self.stem == 'space_to_depth':
      stem = SpaceToDepthStem(self.width, self.dtype, name='conv1')
    elif self.stem == 'conv':
      stem = conv(self.width, (7, 7), strides=2, padding=3, name='conv1')
    else:
      raise ValueError(
        f"ResNet: stem must be 'conv' or 'space_to_depth', got {self.stem!r}"
      )
    x = stem(images)
    x = norm_and_pool(norm(name='bn1'), x, train and not self.is_initializing())
    names = [f'stage{i + 1}' for i in range(len(self.stage_sizes))]
    offsets = check_offsets(offsets, names)
    features = {}
    for i, (stage, size) in enumerate(
      zip(names, self.stage_sizes, strict=True)
    ):
      for j in range(size):
        stride = 2 if i > 0 and j == 0 else 1
        name = f'layer{i + 1}_{j}'
        x = block(self.width * 2**i, stride, conv, norm, name=name)(x)
      x = features[stage] = add_offset(x, stage, offsets)
    pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    features['pooled'] = pooled
    if not self.num_classes:
      return pooled, features
    classifier = nn.Dense(
      self.num_classes,
      dtype=jnp.float32,
      kernel_init=initializers.lecun,
      name='fc',
    )
    return classifier(pooled), features


def check_offsets(
  offsets: Mapping[str, jax.Array] | None, stages: Sequence[str]
) -> Mapping[str, jax.Array]:
  """The offsets of a call, {} for None.

  Raises:
    ValueError: one is of no stage.
  """
  for name in offsets or {}:
    if name not in stages:
      raise ValueError(
        f'offsets: {name!r} is not among the stages {", ".join(stages)}'
      )
  return offsets or {}


def add_offset(
  features: jax.Array, stage: str, offsets: Mapping[str, jax.Array]
) -> jax.Array:
  """Features (B, h, w, C) and the stage's offset, in the features' dtype.

  Raises:
    ValueError: the offset has another shape.
  """
  if stage not in offsets:
    return features
  offset = offsets[stage]
  if offset.shape != features.shape:
    raise ValueError(
      f'offsets: that of {stage} has shape {offset.shape}, its features'
      f' {features.shape}'
    )
  return features + offset.astype(features.dtype)


def _block_class(block: str | type[nn.Module]) -> type[nn.Module]:
  if not isinstance(block, str):
    return block
  blocks = {'basic': BasicBlock, 'bottleneck': Bottleneck}
  if block not in blocks:
    raise ValueError(
      f"ResNet: block must be 'basic' or 'bottleneck', got {block!r}"
    )
  return blocks[block]


def from_torch(state_dict: Mapping[str, Any], model: ResNet) -> dict[str, Any]:
  """Converts torchvision's or timm's ResNet weights to Flax variables.

  Kernels go from OIHW to HWIO. A stem of three input channels is summed into
  one, which is exact for a grey image repeated in three equal channels.
  `num_batches_tracked` is ignored. Torch's running variance is the unbiased
  estimate where Flax's is the biased one; it is taken over as it is.

  Args:
    state_dict: torch names to numpy arrays or torch tensors.
    model: the network to fill.

  Returns:
    {'params': ..., 'batch_stats': ...} of float32 numpy arrays. 'fc' is left
    out where `state_dict` has none or one of another number of classes (or
    `model` has no classes): merge the result over freshly initialised
    variables.

  Raises:
    UserError: a tensor is missing, unexpected, has another shape, holds NaN or
      infinities, or is none of numbers.
  """
  tensors = {
    name: _to_numpy(name, tensor)
    for name, tensor in state_dict.items()
    if not name.endswith('num_batches_tracked')
  }
  classifier = tensors.get('fc.weight', tensors.get('fc.bias'))
  classes = 0 if classifier is None else len(np.atleast_1d(classifier))
  if classes == 0 or classes != model.num_classes:
    tensors = {n: t for n, t in tensors.items() if not n.startswith('fc.')}
    model = model.clone(num_classes=0)
  # Shapes only: nothing is computed, and any image size gives the same.
  images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  wanted = jax.eval_shape(model.init, jax.random.key(0), images)
  variables = {}
  for path, leaf in traverse_util.flatten_dict(dict(wanted)).items():
    name = _torch_name(path)
    shape = _torch_shape(leaf.shape)
    if name not in tensors:
      raise UserError(f'torch weights: {name} is missing, wanted {shape}')
    tensor = given = tensors.pop(name)
    if name == 'conv1.weight' and tensor.ndim == 4 and tensor.shape[1] == 3:
      # Not by sum, which begins with 0.0 and so loses the sign of -0.0.
      tensor = tensor[:, :1] + tensor[:, 1:2] + tensor[:, 2:]
    if tensor.shape != shape:
      raise UserError(
        f'torch weights: {name} has shape {given.shape}, wanted {shape}'
      )
    if not np.isfinite(tensor).all():
      raise UserError(
        f'torch weights: {name} holds NaN or infinities, wanted finite numbers'
      )
    variables[path] = np.ascontiguousarray(_to_flax_layout(tensor))
  for name, tensor in tensors.items():
    raise UserError(
      f'torch weights: {name} of shape {tensor.shape} is unexpected, wanted'
      ' only tensors that the model has'
    )
  return traverse_util.unflatten_dict(variables)


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Converts Flax variables to torchvision's and timm's names and layout.

  The inverse of `from_torch`, bit for bit. The stem gets torch's three input
  channels: the first has the kernel, the others -0.0, which added to a number
  leaves every bit of it. So the network answers a grey image that is repeated
  in three equal channels, and reads the first.

  Args:
    variables: {'params', 'batch_stats'} of a `ResNet`, its classifier included.

  Returns:
    torch names to float32 arrays.
  """
  tensors = {}
  flat = traverse_util.flatten_dict(
    {name: dict(variables[name]) for name in ('params', 'batch_stats')}
  )
  for path, leaf in flat.items():
    leaf = np.asarray(leaf, np.float32)
    # HWIO -> OIHW and IO -> OI; vectors stay.
    leaf = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T
    tensors[_torch_name(path)] = np.ascontiguousarray(leaf)
  stem = tensors['conv1.weight']
  tensors['conv1.weight'] = np.concatenate(
    [stem, *[np.full_like(stem, -0.0)] * 2], axis=1
  )
  return tensors


def without_prefix(
  state_dict: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
  """The network of a state dict in which it stands under a prefix.

  Wrappers of torch put one before each name: DataParallel's module., MoCo's
  module.encoder_q., that of the attribute which holds the backbone.

  Args:
    state_dict: torch names to tensors.

  Returns:
    The prefix, of the words PREFIXES ('' for none), and what stands under it,
    without it. The other tensors are left out: projectors, queues, the copy
    that trains along.

  Raises:
    UserError: two networks are there.
  """
  stem = 'conv1.weight'
  found = sorted(
    prefix
    for prefix in (n.removesuffix(stem) for n in state_dict if n.endswith(stem))
    if all(word in PREFIXES for word in prefix.split('.')[:-1])
    and (not prefix or prefix.endswith('.'))
  )
  if len(found) > 1:
    raise UserError(
      f'torch weights: there are several networks, under {found[0]!r} and'
      f' {found[1]!r}; save one of them alone'
    )
  prefix = found[0] if found else ''
  return prefix, {
    name.removeprefix(prefix): tensor
    for name, tensor in state_dict.items()
    if name.startswith(prefix)
  }


def load_torch_weights(path: str | Path) -> dict[str, np.ndarray]:
  """Reads a torch state dict from an .npz or .safetensors file.

  Neither format can run code when it is read, as a pickled .pth can.

  Args:
    path: the file.

  Returns:
    torch names to arrays, as `from_torch` takes them.

  Raises:
    UserError: another kind of file, or one that cannot be read.
  """
  path = Path(path)
  if path.suffix not in ('.npz', '.safetensors'):
    raise UserError(
      f'{path}: weights must be .npz or .safetensors; convert a .pth or .bin'
      ' with safetensors.torch.save_file'
    )
  if not path.is_file():
    raise UserError(f'{path}: no such file of weights')
  return {'.npz': _read_npz, '.safetensors': _read_safetensors}[path.suffix](
    path
  )


def _read_npz(path):
  try:
    found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.ndarray):
      with found:
        return dict(found)
  # Of numpy, zipfile and zlib, by damage: RuntimeError is zipfile's, for a bit
  # that says encrypted, or a method that it does not know.
  except (
    OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error
  ) as error:  # fmt: skip
    raise _unreadable(path, error) from error
  raise _unreadable(path, 'it is a single array (.npy)')


def _read_safetensors(path):
  try:
    import safetensors
    from safetensors.numpy import load_file
  except ImportError as error:
    raise UserError(
      f'{path}: reading it needs the safetensors package: pip install'
      ' "dpjax[safetensors]"'
    ) from error
  try:
    return load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise _unreadable(path, error) from error
  except (TypeError, AttributeError) as error:  # Of a type that numpy lacks.
    raise _unreadable(path, f'{error}; save the tensors as float32') from error


def _unreadable(path, reason):
  reason = ' '.join(str(reason).split())
  return UserError(f'{path}: not a readable {path.suffix} file: {reason}')


def _to_numpy(name: str, tensor: Any) -> np.ndarray:
  if hasattr(tensor, 'detach'):  # A torch tensor; numpy has no bfloat16.
    tensor = tensor.detach().cpu().float().numpy()
  try:
    return np.asarray(tensor, np.float32)
  except (TypeError, ValueError) as error:  # A text, as a file may hold beside.
    raise UserError(
      f'torch weights: {name} is no tensor of numbers; save it without'
    ) from error


def _torch_name(path: tuple[str, ...]) -> str:
  """('params', 'layer1_0', 'bn1', 'scale') -> 'layer1.0.bn1.weight'."""
  modules = [name.replace('_', '.') for name in path[1:-1]]
  return '.'.join([*modules, TORCH_LEAVES[path[-1]]])


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """HWIO -> OIHW and IO -> OI; vectors stay."""
  return tuple(shape[:1:-1] + shape[:2]) if len(shape) == 4 else shape[::-1]


def _to_flax_layout(tensor: np.ndarray) -> np.ndarray:
  """OIHW -> HWIO and OI -> IO; vectors stay."""
  return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
