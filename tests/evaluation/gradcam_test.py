"""Claims about dpjax.evaluation.gradcam."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpjax.evaluation import gradcam
from dpjax.models import resnet, vgg
from tests import fakes

RESNET = resnet.ResNet(stage_sizes=(1, 1), width=8, num_classes=4)
BOTTLENECK = RESNET.clone(block='bottleneck')
VGG = vgg.VGG16(width=2, num_classes=4)


def pixels(count, size, seed=1):
  rng = np.random.default_rng(seed)
  return rng.uniform(-2, 2, (count, size, size, 1)).astype(np.float32)


def score(logits, labels, target):
  """(B,) the score that is explained, in float64."""
  z = np.asarray(logits, np.float64)
  if target == 'lesion':
    return np.log(np.exp(z[:, 1:]).sum(1)) - z[:, 0]
  chosen = labels if target == 'label' else z.argmax(1)
  return z[np.arange(len(z)), chosen]


def cam(model, variables, images, labels, target, stage, **kwargs):
  function = functools.partial(
    gradcam.grad_cam, model, target=target, stage=stage, **kwargs
  )
  return np.asarray(jax.jit(function)(variables, images, labels))


@pytest.mark.parametrize('target', gradcam.TARGETS)
def test_target_weights_are_the_gradient_of_the_score(target):
  logits = np.random.default_rng(0).normal(0, 2, (6, 4))
  labels = np.array([0, 1, 2, 3, 3, 0])
  weights = gradcam.target_weights(jnp.asarray(logits, 'f4'), labels, target)
  step = 1e-5
  for c in range(4):
    up, down = logits.copy(), logits.copy()
    up[:, c] += step
    down[:, c] -= step
    slope = score(up, labels, target) - score(down, labels, target)
    np.testing.assert_allclose(weights[:, c], slope / (2 * step), atol=1e-6)


def test_target_weights_are_finite_at_logits_of_ten_thousand():
  logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
  weights = gradcam.target_weights(logits, None, 'lesion')
  np.testing.assert_allclose(weights, [[-1, 0, 1], [-1, 0.5, 0.5]], atol=1e-6)


def test_a_case_of_two_by_two_positions_and_two_channels_by_hand():
  features = jnp.array([[[[1.0, 0.0], [2.0, 1.0]], [[0.0, 3.0], [4.0, 4.0]]]])
  kernel = jnp.array([[0.0, 4.0], [4.0, -4.0]])  # channel -> class
  of_class_1 = jnp.array([[0.0, 1.0]])
  # alpha = (4, -4) / 4: A_0 - A_1, where positive.
  cam = gradcam.closed_form(features, kernel, of_class_1)
  np.testing.assert_array_equal(cam, [[[1, 1], [0, 0]]])
  # Any lesion of two classes: z_1 - z_0, alpha = (4, -8) / 4.
  lesion = gradcam.target_weights(jnp.array([[0.3, 2.0]]), None, 'lesion')
  cam = gradcam.closed_form(features, kernel, lesion)
  np.testing.assert_allclose(cam, [[[1, 0], [0, 0]]], atol=1e-6)


@pytest.mark.parametrize('model', [RESNET, BOTTLENECK], ids=['basic', 'bottle'])
@pytest.mark.parametrize('target', gradcam.TARGETS)
def test_both_ways_agree_on_the_last_stage_of_a_resnet(model, target):
  variables, images = fakes.filled(model, 48), pixels(3, 48)
  labels = np.array([2, 0, 1])
  given = variables, images, labels, target, 'stage2'
  closed, general = (cam(model, *given, backward=b) for b in (False, True))
  assert general.shape == closed.shape == (3, 6, 6)
  assert general.max() > 0
  np.testing.assert_allclose(
    general, closed, rtol=0, atol=2e-6 * np.max(closed)
  )


def test_only_the_last_stage_of_a_resnet_goes_without_a_backward_pass():
  def convolutions(function, *args):
    return str(jax.make_jaxpr(function)(*args)).count('conv_general_dilated')

  for model, size, stage, without in (
    (RESNET, 48, 'stage2', True),
    (RESNET, 48, 'stage1', False),
    (VGG, 64, 'stage4', False),
  ):
    given = fakes.filled(model, size), pixels(1, size)
    forward = convolutions(model.apply, *given)
    found = convolutions(
      functools.partial(
        gradcam.grad_cam, model, labels=None, target='lesion', stage=stage
      ),
      *given,
    )
    assert (found == forward) == without, (stage, found, forward)


@pytest.mark.parametrize(
  'model, size, stage',
  [(RESNET, 48, 'stage1'), (VGG, 64, 'stage4')],
  ids=['resnet', 'vgg'],
)
def test_any_stage_agrees_with_finite_differences(model, size, stage):
  variables, images = fakes.filled(model, size), pixels(2, size)
  labels = np.array([1, 3])
  # Of which sign the sum is, and thus what is cut off, is up to the weights;
  # between the two targets enough is left to compare.
  apply = jax.jit(
    lambda offset: model.apply(variables, images, offsets={stage: offset})
  )
  features = np.asarray(jax.jit(model.apply)(variables, images)[1][stage])
  positions = features.shape[1] * features.shape[2]
  left = 0.0
  for target in ('lesion', 'label'):
    alpha = np.zeros((2, features.shape[-1]))
    step = 2e-3
    for k in range(features.shape[-1]):
      # A whole channel moved: the sum of the gradient over its positions.
      offset = np.zeros_like(features)
      offset[..., k] = step
      up, down = (score(apply(o)[0], labels, target) for o in (offset, -offset))
      alpha[:, k] = (up - down) / (2 * step) / positions
    expected = np.maximum(np.einsum('bhwk,bk->bhw', features, alpha), 0)
    got = cam(model, variables, images, labels, target, stage)
    scale = np.abs(alpha).max() * features.max()
    # A step moves some features over the kink of their ReLU.
    np.testing.assert_allclose(got, expected, rtol=0, atol=0.05 * scale)
    left = max(left, expected.max() / scale)
  assert left > 0.1


def test_an_images_map_does_not_depend_on_its_batch():
  variables, images = fakes.filled(RESNET, 48), pixels(3, 48)
  labels = np.array([0, 1, 2])
  whole = cam(RESNET, variables, images, labels, 'lesion', 'stage1')
  one = cam(RESNET, variables, images[1:2], labels[1:2], 'lesion', 'stage1')
  np.testing.assert_allclose(whole[1:2], one, rtol=0, atol=1e-6 * one.max())


def test_bfloat16_features_give_nearly_the_same_map_in_float32():
  variables, images = fakes.filled(RESNET, 48), pixels(2, 48)
  half = RESNET.clone(dtype=jnp.bfloat16)
  expected = cam(RESNET, variables, images, None, 'lesion', 'stage1')
  got = cam(half, variables, images, None, 'lesion', 'stage1')
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, expected, atol=0.1 * expected.max())


@pytest.mark.parametrize(
  'target, stage, line',
  [
    ('any', 'stage1', "one of lesion, label, prediction, got 'any'"),
    ('label', 'stage1', "target 'label' needs labels"),
    ('lesion', 'stage9', "one of stage1, stage2, got 'stage9'"),
    ('lesion', 'pooled', "one of stage1, stage2, got 'pooled'"),
  ],
)
def test_a_wrong_target_or_stage_is_refused_in_one_line(target, stage, line):
  variables, images = fakes.filled(RESNET, 48), pixels(1, 48)
  with pytest.raises(ValueError, match=line) as error:
    jax.eval_shape(
      functools.partial(gradcam.grad_cam, RESNET, target=target, stage=stage),
      variables,
      images,
      None,
    )
  assert '\n' not in str(error.value)
