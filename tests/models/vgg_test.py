"""Claims about dpjax.models.vgg."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpjax.models import vgg
from tests import fakes


def shapes(model, size=32):
  """Of an initialisation; nothing is computed."""
  images = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def pixels(shape, seed):
  return np.random.default_rng(seed).uniform(-2, 2, shape).astype(np.float32)


def run(model, variables, images, **kwargs):
  return jax.jit(functools.partial(model.apply, **kwargs))(variables, images)


def test_without_batch_norm_it_has_the_published_number_of_parameters():
  params = shapes(vgg.VGG16(num_classes=1000, batch_norm=False))['params']
  # torchvision's vgg16, less two of the three input channels.
  assert count(params) == 138_357_544 - 2 * 64 * 9


def test_batch_norm_takes_the_place_of_each_bias_with_one_number_more():
  plain = shapes(vgg.VGG16(batch_norm=False))
  normalised = shapes(vgg.VGG16(batch_norm=True))
  channels = 2 * 64 + 2 * 128 + 3 * 256 + 3 * 512 + 3 * 512
  assert count(normalised['params']) - count(plain['params']) == channels
  assert count(normalised['batch_stats']) == 2 * channels
  assert 'batch_stats' not in plain


def test_stages_are_as_wide_as_published_and_the_answer_is_of_all_classes():
  images = jax.ShapeDtypeStruct((1, 96, 96, 1), jnp.float32)
  (logits, features), _ = jax.eval_shape(
    vgg.VGG16(width=2).init_with_output, jax.random.key(0), images
  )
  assert logits.shape == (1, 5)
  assert features.pop('pooled').shape == (1, 128)
  assert [f.shape[3] for f in features.values()] == [2, 4, 8, 16, 16]


def numpy_forward(params, images):
  """The network without BatchNorm, in float64 loops over taps."""
  x = np.asarray(images, np.float64)
  blocks = {}
  for block, depth in enumerate((2, 2, 3, 3, 3), 1):
    for j in range(1, depth + 1):
      p = params[f'conv{block}_{j}']
      padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
      _, h, w, _ = x.shape
      x = np.asarray(p['bias'], np.float64) + sum(
        padded[:, a : a + h, b : b + w]
        @ np.asarray(p['kernel'][a, b], np.float64)
        for a in range(3)
        for b in range(3)
      )
      x = np.maximum(x, 0)
    h, w = x.shape[1] // 2, x.shape[2] // 2
    x = x[:, : 2 * h, : 2 * w].reshape(len(x), h, 2, w, 2, -1).max((2, 4))
    blocks[f'stage{block}'] = x
  x = loop_pool(x, 7).reshape(len(x), -1)
  for name in ('fc1', 'fc2'):
    x = np.maximum(x @ params[name]['kernel'] + params[name]['bias'], 0)
  blocks['pooled'] = x
  return x @ params['fc']['kernel'] + params['fc']['bias'], blocks


def loop_pool(x, side):
  out = np.zeros((len(x), side, side, x.shape[-1]))
  for i in range(side):
    for j in range(side):
      top, bottom = (math.floor(i * x.shape[1] / side),
                     math.ceil((i + 1) * x.shape[1] / side))  # fmt: skip
      left, right = (math.floor(j * x.shape[2] / side),
                     math.ceil((j + 1) * x.shape[2] / side))  # fmt: skip
      out[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
  return out


def test_the_forward_pass_is_that_of_loops_in_float64():
  model = vgg.VGG16(num_classes=3, width=2, batch_norm=False)
  variables, images = fakes.filled(model, 32), pixels((2, 68, 66, 1), seed=1)
  logits, features = run(model, variables, images)
  expected, blocks = numpy_forward(variables['params'], images)
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  assert features.keys() == blocks.keys()
  for name, block in blocks.items():
    np.testing.assert_allclose(
      features[name], block, rtol=0, atol=1e-5 * block.max()
    )


@pytest.mark.parametrize('shape', [(7, 7), (14, 7), (3, 10), (1, 2), (12, 9)])
def test_adaptive_pooling_is_that_of_a_loop_over_bins(shape):
  x = np.random.default_rng(1).normal(size=(2, *shape, 3)).astype(np.float32)
  np.testing.assert_allclose(
    vgg.adaptive_mean(jnp.asarray(x), 7), loop_pool(x, 7), rtol=0, atol=1e-6
  )


def test_without_classes_the_last_hidden_layer_stands_in_place_of_the_logits():
  model = vgg.VGG16(width=2, num_classes=0)
  variables = fakes.filled(model, 32)
  logits, features = run(model, variables, pixels((2, 32, 32, 1), seed=2))
  assert 'fc' not in variables['params']
  np.testing.assert_array_equal(logits, features['pooled'])


def test_bfloat16_keeps_parameters_pooled_features_and_logits_in_float32():
  model = vgg.VGG16(width=2, dtype=jnp.bfloat16)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes(model))}
  assert dtypes == {jnp.dtype('f4')}
  logits, features = run(
    model, fakes.filled(model, 32), pixels((2, 32, 32, 1), seed=3)
  )
  for tree in (logits, features['pooled']):
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {jnp.dtype('f4')}
  assert features['stage5'].dtype == jnp.bfloat16


def test_training_updates_the_statistics_of_every_batch_norm():
  model = vgg.VGG16(width=2)
  variables, images = fakes.filled(model, 32), pixels((4, 32, 32, 1), seed=4)
  _, updated = run(
    model, variables, images, train=True, mutable=['batch_stats']
  )
  old, new = variables['batch_stats'], updated['batch_stats']
  assert len(new) == 13
  for name in new:
    assert not np.allclose(new[name]['mean'], old[name]['mean'], atol=1e-6)


def test_first_weights_have_torchvisions_deviations_at_its_width():
  model = vgg.VGG16(width=4, num_classes=0)

  @jax.jit
  def kernels(key):  # Alone, so that no other draw is compiled.
    params = model.init(key, jnp.zeros((1, 32, 32, 1)))['params']
    return params['conv5_3']['kernel'], params['fc1']['kernel']

  conv, hidden = kernels(jax.random.key(0))
  # 9,216 and 401,408 draws: standard errors of .7 % and .1 %.
  np.testing.assert_allclose(np.std(conv), np.sqrt(2 / (9 * 32)), rtol=0.04)
  # .01 with 49 * 512 inputs is .04 with 49 * 32.
  np.testing.assert_allclose(np.std(hidden), 0.04, rtol=0.04)


def test_an_offset_is_added_before_the_features_go_on():
  model = vgg.VGG16(width=2)
  variables, images = fakes.filled(model, 32), pixels((2, 48, 48, 1), seed=5)
  plain, features = run(model, variables, images)
  zero = {'stage3': jnp.zeros_like(features['stage3'])}
  same, _ = run(model, variables, images, offsets=zero)
  np.testing.assert_allclose(same, plain, rtol=1e-5, atol=1e-7)
  one = {'stage3': jnp.ones_like(features['stage3'])}
  other, moved = run(model, variables, images, offsets=one)
  np.testing.assert_allclose(
    moved['stage3'], features['stage3'] + 1, rtol=1e-5, atol=1e-5
  )
  assert not np.allclose(moved['stage4'], features['stage4'])
  assert not np.array_equal(other, plain)


@pytest.mark.parametrize('shape', [(32, 32), (2, 32, 32), (2, 32, 32, 3)])
def test_images_of_another_shape_are_refused(shape):
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  with pytest.raises(ValueError, match=r'images must be \(B, H, W, 1\)'):
    jax.eval_shape(vgg.VGG16().init, jax.random.key(0), images)


def test_images_that_five_halvings_would_end_are_refused():
  with pytest.raises(ValueError, match=r'32 x 32 pixels or more, got 31 x 31'):
    shapes(vgg.VGG16(), size=31)
