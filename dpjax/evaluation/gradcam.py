"""Grad-CAM: which positions of a stage's features raise a score.

The score s of an image is, by `target`,

    'lesion'                  log sum_{c>0} exp(z_c) - z_0
    'label', 'prediction'     z_c of that class

with z the logits; the first is the log-odds of any lesion under the softmax,
for classes where 0 means "no lesion". With A (h, w, K) an image's features,

    alpha_k = 1 / (h w) sum_ij ds / dA_ijk           (Eq. 1)
    map_ij  = max(0, sum_k alpha_k A_ijk)            (Eq. 2)

Pure functions of one batch; under jit, `model`, `target` and `stage` are
static.

Source: Selvaraju et al. (2017), "Grad-CAM: Visual Explanations from Deep
Networks via Gradient-based Localization", Eq. 1 and 2.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dpjax.models import resnet


def _lesion(logits, labels):
  """Minus 1 for class 0, the softmax over the classes c > 0 for these."""
  del labels
  if logits.shape[1] < 2:
    raise ValueError(
      f'Grad-CAM of a lesion needs 2 classes, got {logits.shape[1]}'
    )
  lesion = jax.nn.softmax(logits[:, 1:], axis=-1)
  return jnp.concatenate([-jnp.ones_like(logits[:, :1]), lesion], axis=-1)


def _label(logits, labels):
  """One for the true class; zeros where it is negative (unlabelled)."""
  if labels is None:
    raise ValueError("Grad-CAM of target 'label' needs labels")
  return jax.nn.one_hot(labels, logits.shape[1], dtype=jnp.float32)


def _prediction(logits, labels):
  """One for the most probable class."""
  del labels
  return jax.nn.one_hot(logits.argmax(-1), logits.shape[1], dtype=jnp.float32)


# Target -> (logits (B, C) float32, labels (B,)) -> the gradient of the score
# with respect to the logits, (B, C).
TARGETS = {'lesion': _lesion, 'label': _label, 'prediction': _prediction}


def target_weights(
  logits: jax.Array, labels: jax.Array | None, target: str
) -> jax.Array:
  """The gradient of the score with respect to the logits.

  Args:
    logits: (B, C).
    labels: (B,) int, for target 'label' only.
    target: one of TARGETS.

  Returns:
    (B, C) float32.

  Raises:
    ValueError: an unknown target, 'label' without labels, or 'lesion' of one
      class.
  """
  if target not in TARGETS:
    raise ValueError(
      f'Grad-CAM: target must be one of {", ".join(TARGETS)}, got {target!r}'
    )
  return TARGETS[target](logits.astype(jnp.float32), labels)


def closed_form(
  features: jax.Array, kernel: jax.Array, logit_weights: jax.Array
) -> jax.Array:
  """Grad-CAM of the last stage of a ResNet, without a backward pass.

  Where the logits are a dense layer on the features' mean over positions,
  every position has the same gradient, and alpha = W g / (h w), with W the
  layer's kernel and g the gradient with respect to the logits.

  Args:
    features: (B, h, w, K), of the last stage.
    kernel: (K, C), of the classifier.
    logit_weights: (B, C), of `target_weights`.

  Returns:
    (B, h, w) float32, not negative.
  """
  _, h, w, _ = features.shape
  alpha = jnp.einsum(
    'kc,bc->bk',
    kernel.astype(jnp.float32),
    logit_weights,
    precision=jax.lax.Precision.HIGHEST,
  )
  return _weighted_sum(features, alpha / (h * w))


def grad_cam(
  model: Any,
  variables: Any,
  images: jax.Array,
  labels: jax.Array | None,
  *,
  target: str,
  stage: str,
  backward: bool = False,
) -> jax.Array:
  """Grad-CAM of any stage of any of our networks.

  The last stage of a ResNet takes `closed_form`. All others take one forward
  and one backward pass for the whole batch: in evaluation mode no image depends
  on another, so the gradient of the scores' sum is that of each.

  Args:
    model: of dpjax.models, with a classifier; takes `offsets`.
    variables: its parameters and batch statistics.
    images: normalised radiographs, (B, H, W, 1).
    labels: as in `target_weights`.
    target: one of TARGETS.
    stage: name of the features.
    backward: take the backward pass also where the closed form would do.

  Returns:
    (B, h, w) float32, not negative.

  Raises:
    ValueError: no such stage; as `target_weights`.
  """

  def forward(offset):
    offsets = None if offset is None else {stage: offset}
    return model.apply(variables, images, train=False, offsets=offsets)

  _, shapes = jax.eval_shape(lambda: forward(None))
  if stage not in shapes or len(shapes[stage].shape) != 4:
    stages = [name for name, leaf in shapes.items() if len(leaf.shape) == 4]
    raise ValueError(
      f'Grad-CAM: stage must be one of {", ".join(stages)}, got {stage!r}'
    )

  if not backward and _is_pooled(model, stage):
    logits, features = forward(None)
    weights = target_weights(logits, labels, target)
    kernel = variables['params']['fc']['kernel']
    return closed_form(features[stage], kernel, weights)

  def of_offset(offset):
    logits, features = forward(offset)
    return logits, features[stage]

  zeros = jnp.zeros(shapes[stage].shape, jnp.float32)
  logits, pull_back, features = jax.vjp(of_offset, zeros, has_aux=True)
  weights = target_weights(logits, labels, target)
  (gradient,) = pull_back(weights.astype(logits.dtype))
  return _weighted_sum(features, gradient.mean((1, 2)))


def _is_pooled(model, stage):
  """Whether the logits are a dense layer on the stage's mean over positions."""
  return isinstance(model, resnet.ResNet) and (
    stage == f'stage{len(model.stage_sizes)}'
  )


def _weighted_sum(features, alpha):
  """max(0, sum_k alpha_k A_k): (B, h, w, K), (B, K) -> (B, h, w) float32."""
  total = jnp.einsum(
    'bhwk,bk->bhw',
    features.astype(jnp.float32),
    alpha,
    precision=jax.lax.Precision.HIGHEST,
  )
  return jax.nn.relu(total)
