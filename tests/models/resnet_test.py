"""Claims about dpjax.models.resnet.

GOLDEN below was made with torch 2.13 in float64 by

    PYTHONPATH=. python tests/models/resnet_test.py

so that equality with torch is also checked where torch is not installed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from dpjax.errors import UserError
from dpjax.models import resnet
from tests import fakes

RESNET50 = {'stage_sizes': (3, 4, 6, 3), 'block': 'bottleneck'}
BASIC = {'stage_sizes': (1, 2), 'width': 4, 'num_classes': 3}
BOTTLENECK = {**BASIC, 'block': 'bottleneck'}

# float64 logits of torch_network on weights(torch_shapes(...), seed=1) and
# pixels((2, 32, 32, 1), seed=2).
GOLDEN = {
  'basic': [
    [-0.97535351, -2.215846669, 4.146896234],
    [-1.04408971, -2.369649298, 4.423744632],
  ],
  'bottleneck': [
    [-1.596264337, -1.052682138, -0.228659638],
    [-1.634719688, -1.20700201, -0.139328054],
  ],
}


def uniform(shape, seed, low=0.0, high=1.0):
  """Uniform float32 numbers, the same under every version of numpy.

  Generator's streams may change between versions; PCG64's raw bits may not.
  """
  bits = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
  unit = (bits >> np.uint64(11)) * 2.0**-53
  return (low + (high - low) * unit).reshape(shape).astype(np.float32)


def pixels(shape, seed):
  return uniform(shape, seed, -2, 2)


def torch_shapes(stage_sizes, width, num_classes, block='basic', channels_in=3):
  """Names and shapes of torchvision's ResNet state dict."""
  shapes = {}

  def conv_bn(conv, bn, out, channels, size):
    shapes[f'{conv}.weight'] = (out, channels, size, size)
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{bn}.{leaf}'] = (out,)

  conv_bn('conv1', 'bn1', width, channels_in, 7)
  channels = width
  for i, size in enumerate(stage_sizes):
    for j in range(size):
      name, inner = f'layer{i + 1}.{j}', width * 2**i
      outer = inner * (4 if block == 'bottleneck' else 1)
      kernels = (1, 3, 1) if block == 'bottleneck' else (3, 3)
      ins = (channels, inner, inner)
      outs = (*[inner] * (len(kernels) - 1), outer)
      for k, kernel in enumerate(kernels):
        conv = f'{name}.conv{k + 1}', f'{name}.bn{k + 1}'
        conv_bn(*conv, outs[k], ins[k], kernel)
      if channels != outer or (i > 0 and j == 0):
        down = f'{name}.downsample.0', f'{name}.downsample.1'
        conv_bn(*down, outer, channels, 1)
      channels = outer
  shapes['fc.weight'] = (num_classes, channels)
  shapes['fc.bias'] = (num_classes,)
  return shapes


def weights(shapes, seed):
  """A state dict far from its initialisation, in which nothing is trivial."""
  state_dict = {}
  for i, (name, shape) in enumerate(shapes.items()):
    if len(shape) > 1:  # Variance 1 / fan_in keeps features of the order of 1.
      bound = np.sqrt(3 / np.prod(shape[1:]))
      low, high = -bound, bound
    elif name.endswith(('weight', 'running_var')):
      low, high = 0.5, 1.5
    else:
      low, high = -0.3, 0.3
    state_dict[name] = uniform(shape, [seed, i], low, high)
  return state_dict


def torch_network(stage_sizes, width, num_classes, block='basic'):
  """The published architecture in torch, independent of ours (float64)."""
  import torch

  nn = torch.nn

  class Block(nn.Module):
    def __init__(self, channels, inner, stride):
      super().__init__()
      if block == 'basic':
        specs = [(channels, inner, 3, stride), (inner, inner, 3, 1)]
      else:
        specs = [(channels, inner, 1, 1), (inner, inner, 3, stride)]
        specs += [(inner, 4 * inner, 1, 1)]
      self.depth, outer = len(specs), specs[-1][1]
      for i, (a, b, size, step) in enumerate(specs, 1):
        conv = nn.Conv2d(a, b, size, step, padding=size // 2, bias=False)
        self.add_module(f'conv{i}', conv)
        self.add_module(f'bn{i}', nn.BatchNorm2d(b))
      self.downsample = None
      if stride != 1 or channels != outer:
        conv = nn.Conv2d(channels, outer, 1, stride, bias=False)
        self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outer))

    def forward(self, x):
      y = x
      for i in range(1, self.depth + 1):
        y = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(y))
        y = torch.relu(y) if i < self.depth else y
      return torch.relu(y + (self.downsample(x) if self.downsample else x))

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
      self.bn1 = nn.BatchNorm2d(width)
      self.maxpool = nn.MaxPool2d(3, 2, padding=1)
      channels, expansion = width, 4 if block == 'bottleneck' else 1
      for i, size in enumerate(stage_sizes):
        layer = nn.Sequential()
        for j in range(size):
          stride = 2 if i > 0 and j == 0 else 1
          layer.append(Block(channels, width * 2**i, stride))
          channels = width * 2**i * expansion
        self.add_module(f'layer{i + 1}', layer)
      self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
      x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
      features = {}
      for i in range(1, len(stage_sizes) + 1):
        x = features[f'stage{i}'] = getattr(self, f'layer{i}')(x)
      features['pooled'] = x.mean((2, 3))
      return self.fc(features['pooled']), features

  return Network().double().eval()


def torch_outputs(network, state_dict, images):
  """Logits and features of a grey image given as three equal channels."""
  import torch

  # num_batches_tracked alone is in the network and not in ours.
  tensors = {k: torch.from_numpy(v).double() for k, v in state_dict.items()}
  missing, unexpected = network.load_state_dict(tensors, strict=False)
  assert not unexpected
  assert all(name.endswith('num_batches_tracked') for name in missing)
  rgb = torch.from_numpy(images).double().movedim(-1, 1).repeat(1, 3, 1, 1)
  with torch.no_grad():
    logits, features = network(rgb)
  channels_last = {
    k: v.movedim(1, -1).numpy() if v.ndim == 4 else v.numpy()
    for k, v in features.items()
  }
  return logits.numpy(), channels_last


def evaluate(model, variables, images):
  return jax.jit(functools.partial(model.apply, train=False))(variables, images)


def assert_close(actual, expected, rtol):
  """Within rtol of the largest magnitude: the scale of rounding in a sum."""
  atol = rtol * np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def numpy_conv(x, kernel, stride, padding):
  """Float64 cross-correlation of (B, H, W, C) with (h, w, C, D)."""
  p = (padding, padding)
  x = np.pad(np.asarray(x, np.float64), ((0, 0), p, p, (0, 0)))
  size = kernel.shape[:2]
  windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(1, 2))
  windows = windows[:, ::stride, ::stride]  # (B, H', W', C, h, w)
  return np.einsum('byxchw,hwcd->byxd', windows, np.asarray(kernel, np.float64))


def filled(model, seed=0):
  """Variables of a model of basic blocks; compiling its init takes longer."""
  shapes = torch_shapes(model.stage_sizes, model.width, model.num_classes)
  return resnet.from_torch(weights(shapes, seed), model)


@pytest.mark.torch
@pytest.mark.parametrize(
  'model, block, stage_sizes',
  [
    (resnet.ResNet(), 'basic', (2, 2, 2, 2)),
    (resnet.ResNet(**RESNET50), 'bottleneck', (3, 4, 6, 3)),
  ],
  ids=['18', '50'],
)
def test_logits_and_features_equal_torch(model, block, stage_sizes):
  network = torch_network(stage_sizes, 64, 5, block)
  state_dict = weights(torch_shapes(stage_sizes, 64, 5, block), seed=0)
  images = pixels((2, 96, 96, 1), seed=3)
  expected_logits, expected = torch_outputs(network, state_dict, images)
  variables = resnet.from_torch(state_dict, model)
  logits, features = evaluate(model, variables, images)
  # Float32 rounding over 50 layers; a padding of the other kind gives 0.2,
  # an epsilon of 1e-3 in place of 1e-5 gives 1e-3.
  assert_close(logits, expected_logits, rtol=2e-5)
  assert features.keys() == expected.keys()
  for name in expected:
    assert_close(features[name], expected[name], rtol=2e-5)


@pytest.mark.parametrize('block', ['basic', 'bottleneck'])
def test_logits_equal_those_recorded_from_torch(block):
  spec = {**BASIC, 'block': block}
  model = resnet.ResNet(**spec)
  variables = resnet.from_torch(weights(torch_shapes(**spec), seed=1), model)
  images = pixels((2, 32, 32, 1), seed=2)
  logits, _ = evaluate(model, variables, images)
  assert_close(logits, np.array(GOLDEN[block]), rtol=5e-6)


@pytest.mark.parametrize(
  'network, torchvision_count, width_of_features',
  [
    ({}, 11_689_512, 512),
    ({'stage_sizes': (3, 4, 6, 3)}, 21_797_672, 512),
    (RESNET50, 25_557_032, 2048),
  ],
  ids=['18', '34', '50'],
)
def test_parameter_count_is_torchvisions_less_two_channels_and_995_classes(
  network, torchvision_count, width_of_features
):
  images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  params = jax.eval_shape(
    resnet.ResNet(**network).init, jax.random.key(0), images
  )['params']
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  stem, classes = 2 * 7 * 7 * 64, 995 * (width_of_features + 1)
  assert count == torchvision_count - stem - classes


@pytest.mark.parametrize(
  'shape', [(224, 224), (96, 96), (97, 97), (97, 96), (7, 8)], ids=str
)
def test_the_space_to_depth_stem_equals_the_plain_one_and_so_do_gradients(
  shape,
):
  model = resnet.ResNet(stage_sizes=(1,), width=3)
  variables = filled(model)
  images = pixels((2, *shape, 1), seed=12)

  @functools.partial(jax.jit, static_argnums=0)
  def features_and_gradients(model, variables, images):
    def loss(params, images):
      _, features = model.apply({**variables, 'params': params}, images)
      x = features['stage1']
      weights = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
      return (weights * x).sum(), x

    value_and_grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, x), grads = value_and_grad(variables['params'], images)
    return x, grads[0]['conv1']['kernel'], grads[1]

  with jax.enable_x64(True):
    variables = jax.tree.map(np.float64, variables)
    images = np.float64(images)
    plain = model.clone(dtype=jnp.float64)
    other = plain.clone(stem='space_to_depth')
    expected = features_and_gradients(plain, variables, images)
    got = features_and_gradients(other, variables, images)
    for a, b in zip(got, expected, strict=True):
      assert a.dtype == jnp.float64 and a.shape == b.shape
      assert np.abs(b).max() > 0.01
      assert_close(a, b, rtol=1e-12)


def test_both_stems_start_alike_and_compute_in_the_networks_dtype():
  plain = resnet.ResNet(stage_sizes=(1,), width=3, dtype=jnp.bfloat16)
  other = plain.clone(stem='space_to_depth')
  images = pixels((2, 16, 16, 1), seed=13)
  kernels = []
  for model in (plain, other):
    apply = functools.partial(
      model.apply,
      mutable='intermediates',
      capture_intermediates=lambda module, _: module.name == 'conv1',
    )
    _, state = jax.eval_shape(apply, filled(plain), images)
    stem = state['intermediates']['conv1']['__call__'][0]
    assert (stem.shape, stem.dtype) == ((2, 8, 8, 3), jnp.bfloat16)
    init = jax.jit(
      lambda key, model=model: model.init(key, images)['params']['conv1']
    )
    kernels.append(init(jax.random.key(0))['kernel'])
  assert kernels[0].dtype == kernels[1].dtype == jnp.float32
  np.testing.assert_array_equal(*kernels)


def test_an_unknown_stem_is_refused():
  images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  with pytest.raises(ValueError, match=r"stem must be .* got 'patches'"):
    jax.eval_shape(
      resnet.ResNet(stem='patches').init, jax.random.key(0), images
    )


def test_training_normalises_by_and_records_the_batch_statistics():
  model = resnet.ResNet(stage_sizes=(1,), width=3)
  images = pixels((4, 16, 16, 1), seed=4)
  variables = filled(model, seed=5)
  _, updated = jax.jit(
    functools.partial(model.apply, train=True, mutable='batch_stats')
  )(variables, images)
  params, old = variables['params'], variables['batch_stats']
  new = updated['batch_stats']

  def check(x, old, new):
    # Biased variance: Flax's, not torch's.
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    for name, batch in (('mean', mean), ('var', var)):
      expected = 0.9 * old[name] + 0.1 * batch
      np.testing.assert_allclose(new[name], expected, rtol=0, atol=1e-5)
    return (x - mean) / np.sqrt(var + 1e-5)

  x = numpy_conv(images, params['conv1']['kernel'], stride=2, padding=3)
  x = check(x, old['bn1'], new['bn1'])
  x = np.maximum(x * params['bn1']['scale'] + params['bn1']['bias'], 0)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  x = np.max(
    [
      padded[:, i : i + 8 : 2, j : j + 8 : 2]
      for i in range(3)
      for j in range(3)
    ],
    axis=0,
  )
  kernel = params['layer1_0']['conv1']['kernel']
  x = numpy_conv(x, kernel, stride=1, padding=1)
  check(x, old['layer1_0']['bn1'], new['layer1_0']['bn1'])


def test_synchronised_statistics_of_shares_are_those_of_the_whole_batch():
  images = pixels((8, 16, 16, 1), seed=6)
  # Shares of unlike brightness, or local statistics would nearly pass.
  images[:4] *= 3

  def stats(model, images):
    _, updated = model.apply(
      variables, images, train=True, mutable='batch_stats'
    )
    return updated['batch_stats']

  whole = resnet.ResNet(stage_sizes=(1,), width=3)
  variables = filled(whole)
  expected = jax.jit(functools.partial(stats, whole))(images)
  synced = functools.partial(stats, whole.clone(axis_name='data'))
  shares = jax.jit(jax.vmap(synced, axis_name='data'))(
    images.reshape(2, 4, 16, 16, 1)
  )
  for share in range(2):
    jax.tree.map(
      lambda a, b, share=share: np.testing.assert_allclose(
        a[share], b, rtol=0, atol=1e-5
      ),
      shares,
      expected,
    )


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
  model = resnet.ResNet(stage_sizes=(1,), width=3, dtype=jnp.bfloat16)
  images = pixels((2, 16, 16, 1), seed=7)
  variables = filled(model)
  # Not jitted: XLA would fuse the statistics with the convolution and skip
  # the rounding of what stands between them.
  (logits, features), updated = model.apply(
    variables,
    images,
    train=True,
    mutable=['batch_stats', 'intermediates'],
    capture_intermediates=lambda module, _: module.name == 'conv1',
  )
  for tree in (variables, updated['batch_stats'], logits, features['pooled']):
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype('f4')}
  assert features['stage1'].dtype == jnp.bfloat16
  # Statistics of a bfloat16 tensor, but not computed in bfloat16, whose
  # rounding is 4e-3.
  stem = updated['intermediates']['conv1']['__call__'][0]
  assert stem.dtype == jnp.bfloat16
  var = np.asarray(stem, np.float64).var((0, 1, 2))
  old = 0.9 * variables['batch_stats']['bn1']['var']
  batch_var = (updated['batch_stats']['bn1']['var'] - old) / 0.1
  np.testing.assert_allclose(batch_var, var, rtol=1e-5)


def test_without_classes_the_pooled_features_stand_in_place_of_the_logits():
  model = resnet.ResNet(stage_sizes=(1,), width=2, num_classes=0)
  images = pixels((2, 16, 16, 1), seed=8)
  variables = filled(model)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  assert shapes['params'].keys() == variables['params'].keys()
  assert 'fc' not in variables['params']
  logits, features = evaluate(model, variables, images)
  np.testing.assert_array_equal(logits, features['pooled'])
  np.testing.assert_allclose(
    logits, np.mean(features['stage1'], axis=(1, 2)), rtol=1e-6
  )


def test_kernels_start_with_variance_two_over_fan_out():
  model = resnet.ResNet(stage_sizes=(1,), width=16)
  images = pixels((1, 16, 16, 1), seed=9)

  @jax.jit
  def stem(key):  # Alone, so that no other draw is compiled.
    return model.init(key, images)['params']['conv1']['kernel']

  kernel = stem(jax.random.key(0))
  assert kernel.shape == (7, 7, 1, 16)
  # 784 draws: the standard error of the variance is 5 %. Fan-in would give
  # 16 times as much.
  np.testing.assert_allclose(np.var(kernel), 2 / (49 * 16), rtol=0.2)


@pytest.mark.parametrize(
  'shape', [(32, 32), (2, 32, 32), (2, 32, 32, 3), (1, 2, 32, 32, 1)], ids=str
)
def test_images_of_another_shape_are_refused(shape):
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  with pytest.raises(ValueError, match=r'images must be \(B, H, W, 1\)'):
    jax.eval_shape(resnet.ResNet().init, jax.random.key(0), images)


def test_offsets_of_zero_change_nothing_and_are_added_before_the_next_stage():
  model = resnet.ResNet(**BASIC)
  variables, images = filled(model), pixels((2, 32, 32, 1), seed=10)
  plain, features = evaluate(model, variables, images)
  for value in (0.0, 0.5):
    offset = np.full_like(features['stage1'], value)
    apply = functools.partial(model.apply, offsets={'stage1': offset})
    logits, moved = jax.jit(apply)(variables, images)
    assert_close(moved['stage1'], features['stage1'] + value, rtol=1e-6)
    if value == 0:
      assert_close(logits, plain, rtol=1e-5)
      assert_close(moved['stage2'], features['stage2'], rtol=1e-5)
    else:
      assert np.abs(moved['stage2'] - features['stage2']).max() > 0.01


def test_the_gradient_at_offsets_of_zero_is_that_of_the_features():
  model = resnet.ResNet(**BASIC)
  variables, images = filled(model), pixels((2, 32, 32, 1), seed=11)
  _, features = evaluate(model, variables, images)
  zeros = {'stage2': jnp.zeros_like(features['stage2'])}

  @jax.jit
  def gradient(offsets):
    apply = functools.partial(model.apply, variables, images)
    return jax.grad(lambda o: apply(offsets=o)[0][:, 1].sum())(offsets)

  # The classifier is linear in the mean over 4 x 4 positions.
  column = variables['params']['fc']['kernel'][:, 1] / 16
  expected = np.broadcast_to(column, zeros['stage2'].shape)
  assert_close(gradient(zeros)['stage2'], expected, rtol=1e-6)


def test_an_offset_keeps_the_features_dtype():
  model = resnet.ResNet(stage_sizes=(1,), width=3, dtype=jnp.bfloat16)
  images = jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32)
  offset = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
  _, features = jax.eval_shape(
    lambda images, offset: model.apply(
      filled(model), images, offsets={'stage1': offset}
    ),
    images,
    offset,
  )
  assert features['stage1'].dtype == jnp.bfloat16


@pytest.mark.parametrize(
  'offsets, line',
  [
    ({'stage3': (2, 4, 4, 8)}, "'stage3' is not among the stages stage1, sta"),
    ({'pooled': (2, 8)}, "'pooled' is not among the stages"),
    ({'stage2': (1, 4, 4, 8)}, r'that of stage2 has shape \(1, 4, 4, 8\), its'),
  ],
)
def test_an_offset_that_fits_no_stage_is_refused(offsets, line):
  model = resnet.ResNet(**BASIC)
  images = jax.ShapeDtypeStruct((2, 32, 32, 1), jnp.float32)
  offsets = {
    k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in offsets.items()
  }
  with pytest.raises(ValueError, match=line):
    jax.eval_shape(
      lambda images, offsets: model.apply(
        filled(model), images, offsets=offsets
      ),
      images,
      offsets,
    )


def test_an_unknown_block_is_refused():
  images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  with pytest.raises(ValueError, match=r"block must be .* got 'dense'"):
    model = resnet.ResNet(block='dense')
    jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.parametrize('spec', [BASIC, BOTTLENECK], ids=['basic', 'bottle'])
def test_converted_weights_have_the_names_and_shapes_of_initialised_ones(spec):
  model = resnet.ResNet(**spec)
  images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  wanted = jax.eval_shape(model.init, jax.random.key(0), images)
  got = resnet.from_torch(weights(torch_shapes(**spec), seed=0), model)
  describe = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  assert describe(got) == describe(dict(wanted))


def test_a_stem_of_one_channel_is_the_sum_of_three():
  model = resnet.ResNet(**BASIC)
  three = weights(torch_shapes(**BASIC), seed=0)
  one = {**three, 'conv1.weight': three['conv1.weight'].sum(1, keepdims=True)}
  jax.tree.map(
    np.testing.assert_array_equal,
    resnet.from_torch(one, model),
    resnet.from_torch(three, model),
  )


@pytest.mark.parametrize('spec', [BASIC, BOTTLENECK], ids=['basic', 'bottle'])
def test_the_way_to_torch_and_back_leaves_every_bit(spec):
  model = resnet.ResNet(**spec)
  three = weights(torch_shapes(**spec), seed=0)
  variables = resnet.from_torch(three, model)
  # A sign of zero is a bit too.
  variables['params']['conv1']['kernel'][0, 0, 0, :2] = -0.0, 0.0
  there = resnet.to_torch(variables)
  shapes = {name: tensor.shape for name, tensor in there.items()}
  assert shapes == torch_shapes(**spec)
  # Transposed as torch has it, not only back and forth alike.
  for name in set(there) - {'conv1.weight'}:
    np.testing.assert_array_equal(there[name], three[name])
  back = resnet.from_torch(there, model)
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(
      a.view(np.uint32), b.view(np.uint32)
    ),
    back,
    variables,
  )


@pytest.mark.torch
def test_torch_computes_the_same_from_what_is_handed_to_it():
  import torch

  model = resnet.ResNet(**BASIC)
  variables = fakes.filled(model, 32)
  network = torch_network(**BASIC).float()
  network.load_state_dict(
    {n: torch.from_numpy(t) for n, t in resnet.to_torch(variables).items()}
  )
  images = pixels((2, 32, 32, 1), seed=2)
  with torch.no_grad():
    three = torch.from_numpy(np.repeat(images, 3, -1).transpose(0, 3, 1, 2))
    wanted = network.eval()(three)[0].numpy()
  got, _ = model.apply(variables, images)
  np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.torch
def test_torch_tensors_convert_as_arrays_do():
  import torch

  model = resnet.ResNet(**BASIC)
  arrays = weights(torch_shapes(**BASIC), seed=0)
  tensors = {k: torch.nn.Parameter(torch.from_numpy(arrays[k])) for k in arrays}
  tensors['bn1.num_batches_tracked'] = torch.tensor(7)
  jax.tree.map(
    np.testing.assert_array_equal,
    resnet.from_torch(tensors, model),
    resnet.from_torch(arrays, model),
  )


@pytest.mark.parametrize('classes', [0, 7])
def test_a_classifier_of_other_classes_is_left_out(classes):
  state_dict = weights(torch_shapes(**BASIC), seed=0)
  model = resnet.ResNet(**{**BASIC, 'num_classes': classes})
  params = resnet.from_torch(state_dict, model)['params']
  assert 'fc' not in params and 'layer2_1' in params


def test_an_absent_classifier_is_left_out_and_the_rest_is_the_same():
  model = resnet.ResNet(**BASIC)
  state_dict = weights(torch_shapes(**BASIC), seed=0)
  whole = traverse_util.flatten_dict(resnet.from_torch(state_dict, model))
  for name in ('fc.weight', 'fc.bias'):
    del state_dict[name]
  rest = traverse_util.flatten_dict(resnet.from_torch(state_dict, model))
  left_out = {('params', 'fc', 'kernel'), ('params', 'fc', 'bias')}
  assert whole.keys() - rest.keys() == left_out
  for path in rest:
    np.testing.assert_array_equal(rest[path], whole[path])


@pytest.mark.parametrize(
  'change, line',
  [
    (
      {'layer2.0.downsample.0.weight': None},
      'layer2.0.downsample.0.weight is missing, wanted (8, 4, 1, 1)',
    ),
    (
      {'layer1.0.conv2.weight': np.zeros((4, 5, 3, 3))},
      'layer1.0.conv2.weight has shape (4, 5, 3, 3), wanted (4, 4, 3, 3)',
    ),
    (
      {'conv1.weight': np.zeros((8, 3, 7, 7))},
      'conv1.weight has shape (8, 3, 7, 7), wanted (4, 1, 7, 7)',
    ),
    (
      {'fc.weight': np.zeros((3, 9))},
      'fc.weight has shape (3, 9), wanted (3, 8)',
    ),
    ({'fc.bias': None}, 'fc.bias is missing, wanted (3,)'),
    ({'arch': np.array('resnet18')}, 'arch is no tensor of numbers'),
    (
      {'layer3.0.bn1.bias': np.zeros(16)},
      'layer3.0.bn1.bias of shape (16,) is unexpected',
    ),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_a_wrong_tensor_is_named_with_both_shapes_in_one_line(change, line):
  state_dict = {**weights(torch_shapes(**BASIC), seed=0), **change}
  state_dict = {k: v for k, v in state_dict.items() if v is not None}
  with pytest.raises(UserError) as error:
    resnet.from_torch(state_dict, resnet.ResNet(**BASIC))
  assert line in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value):
  state_dict = weights(torch_shapes(**BASIC), seed=0)
  state_dict['layer2.1.bn2.running_var'][1] = value
  with pytest.raises(UserError, match=r'layer2\.1\.bn2\.running_var holds NaN'):
    resnet.from_torch(state_dict, resnet.ResNet(**BASIC))


@pytest.mark.parametrize(
  'prefix', ['', 'module.', 'backbone.', 'encoder.', 'model.',
             'module.encoder_q.', 'model.backbone.'],
)  # fmt: skip
def test_the_network_is_found_under_a_wrappers_prefix(prefix):
  own = weights(torch_shapes(**BASIC), seed=0)
  wrapped = {f'{prefix}{name}': tensor for name, tensor in own.items()}
  assert resnet.without_prefix(wrapped) == (prefix, own)


def test_what_stands_beside_the_network_is_left_out():
  own = weights(torch_shapes(**BASIC), seed=0)
  # As MoCo saves it: a copy that trains along, a queue, a head of two layers.
  moco = {f'module.encoder_q.{name}': tensor for name, tensor in own.items()}
  moco |= {f'module.encoder_k.{name}': own[name] + 1 for name in own}
  moco |= {'module.queue': np.zeros((128, 9)), 'module.queue_ptr': np.zeros(1)}
  assert resnet.without_prefix(moco) == ('module.encoder_q.', own)


def test_of_two_networks_none_is_guessed():
  own = weights(torch_shapes(**BASIC), seed=0)
  two = {
    f'{at}.{name}': own[name] for at in ('model', 'encoder') for name in own
  }
  with pytest.raises(UserError, match=r"under 'encoder\.' and 'model\.'"):
    resnet.without_prefix(two)


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_weights_survive_the_way_through_a_file(tmp_path, suffix):
  path = tmp_path / f'weights{suffix}'
  expected = weights(torch_shapes(**BASIC), seed=0)
  if suffix == '.npz':
    np.savez(path, **expected)
  else:
    pytest.importorskip('safetensors.numpy').save_file(expected, path)
  got = resnet.load_torch_weights(path)
  assert got.keys() == expected.keys()
  for name in expected:
    np.testing.assert_array_equal(got[name], expected[name])


def pickled(path):
  np.savez(path, weight=np.array([{'any': 'code'}], dtype=object))


def damaged(path):
  path.write_bytes(b'\n\nno archive\n')


def single_array(path):
  with open(path, 'wb') as file:
    np.save(file, np.zeros(3))


def torn(path):
  """A whole archive with a broken stream of zlib in it."""
  np.savez_compressed(path, weight=np.arange(1000.0))
  whole = bytearray(path.read_bytes())
  whole[100:110] = bytes(10)
  path.write_bytes(whole)


def eight_bits(path):
  """Numbers of a type that numpy has not."""
  header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
  path.write_bytes(len(header).to_bytes(8, 'little') + header + bytes(2))


@pytest.mark.parametrize(
  'name, write, reason',
  [
    ('none.npz', None, 'no such file'),
    ('pickled.npz', pickled, 'not a readable .npz file'),
    ('damaged.npz', damaged, 'not a readable .npz file'),
    ('torn.npz', torn, 'not a readable .npz file'),
    ('array.npz', single_array, 'a single array'),
    ('damaged.safetensors', damaged, 'not a readable .safetensors file'),
    ('eight.safetensors', eight_bits, 'as float32'),
    ('weights.pth', damaged, 'convert'),
  ],
)
def test_files_that_are_no_plain_weights_are_refused_in_one_line(
  tmp_path, name, write, reason
):
  path = tmp_path / name
  if name.endswith('.safetensors'):
    pytest.importorskip('safetensors')
  if write:
    write(path)
  with pytest.raises(UserError) as error:
    resnet.load_torch_weights(path)
  line = str(error.value)
  assert name in line and reason in line and '\n' not in line


def make_golden():
  for block in GOLDEN:
    spec = {**BASIC, 'block': block}
    state_dict = weights(torch_shapes(**spec), seed=1)
    images = pixels((2, 32, 32, 1), seed=2)
    logits, _ = torch_outputs(torch_network(**spec), state_dict, images)
    print(f"'{block}': {np.round(logits, 9).tolist()},")


if __name__ == '__main__':
  make_golden()
