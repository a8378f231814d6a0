"""Claims about dpjax.models.heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpjax.models import heads, resnet

STAGES = ('stage1', 'stage2')


def random_features(seed=0, shapes=((2, 9, 9, 6), (2, 5, 5, 8))):
  rng = np.random.default_rng(seed)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in zip(STAGES, shapes, strict=True)
  }


def numpy_scores(features, kernel):
  """conv7x7([max; mean]) by its definition, in float64: (B, H, W)."""
  features = np.asarray(features, np.float64)
  kernel = np.asarray(kernel, np.float64)[..., 0]  # (7, 7, 2)
  statistics = np.stack([features.max(-1), features.mean(-1)], axis=-1)
  padded = np.pad(statistics, ((0, 0), (3, 3), (3, 3), (0, 0)))
  height, width = features.shape[1:3]
  scores = np.zeros(features.shape[:3])
  for i in range(7):
    for j in range(7):
      window = padded[:, i : i + height, j : j + width]
      scores += (window * kernel[i, j]).sum(-1)
  return scores


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_projector_is_dense_relu_dense():
  pooled = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
  projector = heads.Projector(hidden=5, out=3)
  variables = projector.init(jax.random.key(0), pooled)
  params = jax.tree.map(np.asarray, variables['params'])
  first, second = params['Dense_0'], params['Dense_1']
  hidden = np.maximum(pooled @ first['kernel'] + first['bias'], 0)
  expected = hidden @ second['kernel'] + second['bias']
  got = projector.apply(variables, pooled)
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_projector_is_512_to_128_and_float32_from_bfloat16():
  pooled = jnp.ones((2, 6), jnp.bfloat16)
  projector = heads.Projector()
  z, variables = projector.init_with_output(jax.random.key(0), pooled)
  assert z.shape == (2, 128) and z.dtype == jnp.float32
  assert variables['params']['Dense_0']['kernel'].shape == (6, 512)


def test_map_is_the_sigmoid_of_a_convolution_of_maximum_and_mean():
  features = random_features()['stage1']
  attention = heads.SpatialAttention()
  variables = attention.init(jax.random.key(0), features)
  kernel = variables['params']['conv']['kernel']
  assert set(variables['params']['conv']) == {'kernel'}  # No bias.
  got = attention.apply(variables, features)
  # Float32 rounding of a sum of 98 products, of the order of 1.
  expected = sigmoid(numpy_scores(features, kernel))
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
  assert np.ptp(got) > 0.1  # A map that is flat would prove little.


@pytest.mark.torch
def test_map_equals_torch():
  import torch

  features = random_features()['stage1']
  attention = heads.SpatialAttention()
  variables = attention.init(jax.random.key(0), features)
  got = attention.apply(variables, features)
  conv = torch.nn.Conv2d(2, 1, 7, padding=3, bias=False)
  kernel = np.array(variables['params']['conv']['kernel'])  # (7, 7, 2, 1)
  x = torch.from_numpy(features).movedim(-1, 1)
  x = torch.stack([x.amax(1), x.mean(1)], dim=1)
  with torch.no_grad():
    conv.weight.copy_(torch.from_numpy(kernel).permute(3, 2, 0, 1))
    expected = torch.sigmoid(conv(x))[:, 0].numpy()
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_batch_norm_normalises_the_scores_before_the_sigmoid():
  features = random_features()['stage1']
  attention = heads.SpatialAttention(use_batch_norm=True)
  variables = attention.init(jax.random.key(0), features)
  scores = numpy_scores(features, variables['params']['conv']['kernel'])
  mean, var = scores.mean(), scores.var()

  got, updated = attention.apply(
    variables, features, train=True, mutable='batch_stats'
  )
  expected = sigmoid((scores - mean) / np.sqrt(var + 1e-5))
  np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6)
  stats = updated['batch_stats']['bn']
  np.testing.assert_allclose(stats['mean'], [0.01 * mean], atol=1e-7)
  np.testing.assert_allclose(stats['var'], [0.99 + 0.01 * var], atol=1e-6)

  # In evaluation the running statistics (0 and 1 at first) are used.
  got = attention.apply(variables, features)
  expected = sigmoid(scores / np.sqrt(1 + 1e-5))
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_maps_of_bfloat16_features_are_float32_and_computed_in_it():
  features = random_features()['stage1'].astype(jnp.bfloat16)
  attention = heads.SpatialAttention()
  variables = attention.init(jax.random.key(0), features)
  got = attention.apply(variables, features)
  assert got.dtype == jnp.float32
  kernel = variables['params']['conv']['kernel']
  # bfloat16 anywhere after the features would be off by 1e-3.
  expected = sigmoid(numpy_scores(features, kernel))
  np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_both_maps_of_a_stage_have_the_shape_of_its_features():
  features = random_features()
  maps, _ = heads.AttentionHeads(STAGES).init_with_output(
    jax.random.key(0), features
  )
  assert set(maps) == set(STAGES)
  for stage in STAGES:
    for attention_map in maps[stage]:
      assert attention_map.shape == features[stage].shape[:3]
      assert 0 < attention_map.min() and attention_map.max() < 1


def test_the_two_maps_are_of_spatial_attentions_with_their_own_parameters():
  features = random_features()
  module = heads.AttentionHeads(STAGES)
  maps, variables = module.init_with_output(jax.random.key(0), features)
  params = variables['params']
  names = [f'{stage}_{sign}' for stage in STAGES for sign in ('pos', 'neg')]
  assert sorted(params) == sorted(names)
  kernels = [np.asarray(params[name]['conv']['kernel']) for name in names]
  for i, kernel in enumerate(kernels):
    assert kernel.shape == (7, 7, 2, 1)
    assert not any(np.array_equal(kernel, other) for other in kernels[:i])
  # Each map is what SpatialAttention makes of its own parameters alone, but for
  # the rounding of a convolution that computes both.
  for stage in STAGES:
    for sign, got in zip(('pos', 'neg'), maps[stage], strict=True):
      own = {'params': params[f'{stage}_{sign}']}
      expected = heads.SpatialAttention().apply(own, features[stage])
      np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('sign', [0, 1], ids=['pos', 'neg'])
def test_the_gradient_of_each_map_reaches_the_features_of_its_stage_only(sign):
  features = random_features()
  module = heads.AttentionHeads(STAGES)
  variables = module.init(jax.random.key(0), features)

  def total(features, stage):
    return module.apply(variables, features)[stage][sign].sum()

  for stage in STAGES:
    gradient = jax.grad(total)(features, stage)
    for name in STAGES:
      # Through the mean, every feature of every channel is reached.
      assert np.all(np.asarray(gradient[name]) != 0) == (name == stage)
      assert np.any(np.asarray(gradient[name]) != 0) == (name == stage)


def test_heads_leave_the_logits_bit_identical_in_evaluation():
  model = resnet.ResNet(stage_sizes=(1, 1), width=8)
  module = heads.AttentionHeads(STAGES)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 48, 48, 1)).astype(np.float32)

  def fill(shapes):  # Variances of 1, or init's draws would be compiled.
    return jax.tree.map_with_path(
      lambda path, leaf: (
        np.ones(leaf.shape, np.float32)
        if path[-1].key == 'var'
        else rng.normal(scale=0.2, size=leaf.shape).astype(np.float32)
      ),
      shapes,
    )

  key = jax.random.key(0)
  variables = fill(jax.eval_shape(model.init, key, images))
  _, features = jax.eval_shape(model.apply, variables, images)
  head_variables = fill(jax.eval_shape(module.init, key, features))

  @jax.jit
  def without_heads(variables, images):
    return model.apply(variables, images)[0]

  @jax.jit
  def with_heads(variables, head_variables, images):
    logits, features = model.apply(variables, images)
    return logits, module.apply(head_variables, features)

  logits, maps = with_heads(variables, head_variables, images)
  # The maps are outputs, so the compiler cannot have left the heads out.
  assert all(np.ptp(m) > 0 for pair in maps.values() for m in pair)
  np.testing.assert_array_equal(logits, without_heads(variables, images))


def test_a_stage_that_is_not_there_is_named():
  module = heads.AttentionHeads(('stage1', 'stage3'))
  with pytest.raises(ValueError, match="stage 'stage3' is not among"):
    module.init(jax.random.key(0), random_features())
