"""What each stage learns: batch -> loss, and what it says of an image. Pure.

An objective bundles a stage's networks and losses. `loss` is what one update
lowers, `outputs` what validation and inference read, both from one device's
share of a batch; `axis_name` names the device axis, or is None on one device.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dpjax import losses
from dpjax.data.feed import lesion_masks, render_device

Batch = Mapping[str, Any]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Batch -> normalised pixels, rendered here unless the host did it.

  Images that come without decisions are not augmented: they are shown whole.

  Attributes:
    image_size: side of the rendered squares, pixels.
    mean, std: of the grey levels in 0..1.
    mask_sides: {stage: side} of the lesion masks.
    mask_kind: 'area' or 'binary'.
  """

  image_size: int
  mean: float
  std: float
  mask_sides: Mapping[str, int] = dataclasses.field(default_factory=dict)
  mask_kind: str = 'area'

  def views(self, batch: Batch) -> jax.Array:
    """(b, V, size, size, 1) float32."""
    if 'views' in batch:
      grey = batch['views'].astype(jnp.float32)
    elif 'decisions' not in batch:
      grey = render_device.plain(batch['images'], self.image_size)[:, None]
    else:
      grey = render_device.render(
        batch['images'], batch['decisions'], self.image_size
      )
    return ((grey / 255.0 - self.mean) / self.std)[..., None]

  def masks(self, batch: Batch) -> dict[str, jax.Array]:
    """{stage: (b, h, w)} float32, of the first view."""
    if 'masks' in batch:
      return batch['masks']
    return lesion_masks.on_device(
      batch['boxes'],
      batch['num_boxes'],
      batch['decisions']['affine'][:, 0],
      dict(self.mask_sides),
      self.mask_kind,
    )


def _apply(module, variables, *args, train, **kwargs):
  """module.apply -> (output, new batch statistics)."""
  if not train:
    return module.apply(variables, *args, train=False, **kwargs), {}
  output, updates = module.apply(
    variables, *args, train=True, mutable=['batch_stats'], **kwargs
  )
  return output, updates.get('batch_stats', {})


def _variables(params, batch_stats, name):
  return {'params': params[name], 'batch_stats': batch_stats.get(name, {})}


@dataclasses.dataclass(frozen=True)
class Pretraining:
  """Stage I: NT-Xent between the views of each radiograph.

  Of three views, the mean over the three pairs.

  Attributes:
    backbone: models.resnet.ResNet without a classifier.
    projector: models.heads.Projector.
    pixels: Batch -> pixels.
    temperature: of the loss.
  """

  backbone: Any  # nn.Module: of what its apply returns Flax says too little
  projector: Any
  pixels: Pixels
  temperature: float

  def init(self, key: jax.Array) -> dict[str, Any]:
    """{'params': ..., 'batch_stats': ...} of both modules."""
    size = self.pixels.image_size
    keys = jax.random.split(key)
    images = jnp.zeros((1, size, size, 1))
    backbone = self.backbone.init(keys[0], images)
    pooled = jax.eval_shape(
      lambda v: self.backbone.apply(v, images)[0], backbone
    )
    projector = self.projector.init(keys[1], jnp.zeros(pooled.shape))
    return {
      'params': {
        'backbone': backbone['params'],
        'projector': projector['params'],
      },
      'batch_stats': {'backbone': backbone['batch_stats']},
    }

  def _embed(self, params, batch_stats, batch, train):
    views = self.pixels.views(batch)  # (b, V, s, s, 1)
    b, v = views.shape[:2]
    # All views in one forward pass: one set of batch statistics.
    stacked = views.swapaxes(0, 1).reshape(v * b, *views.shape[2:])
    (pooled, _), stats = _apply(
      self.backbone,
      _variables(params, batch_stats, 'backbone'),
      stacked,
      train=train,
    )
    z = self.projector.apply({'params': params['projector']}, pooled)
    return z.reshape(v, b, -1), {'backbone': stats}

  def _contrast(self, z, axis_name, valid=None):
    """Embeddings (V, b, D) -> each radiograph's loss and accuracy (b,)."""
    pairs = [*itertools.combinations(z, 2)]
    among = {'axis_name': axis_name, 'valid': valid}
    losses_ = [
      losses.nt_xent(a, b, temperature=self.temperature, **among)
      for a, b in pairs
    ]
    accuracies = [losses.contrastive_accuracy(a, b, **among) for a, b in pairs]
    return sum(losses_) / len(pairs), sum(accuracies) / len(pairs)

  def loss(
    self,
    params: Any,
    batch_stats: Any,
    batch: Batch,
    axis_name: str | None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[Metrics, Any]]:
    """Scalar loss at a step, (metrics, new batch statistics)."""
    del step
    z, stats = self._embed(params, batch_stats, batch, train=True)
    contrast, accuracy = self._contrast(z, axis_name)
    contrast = contrast.mean()
    return contrast, (
      {'loss/contrast': contrast, 'contrastive_accuracy': accuracy.mean()},
      stats,
    )

  def outputs(
    self, params: Any, batch_stats: Any, batch: Batch, axis_name: str | None
  ) -> dict[str, jax.Array]:
    """Each one's loss and accuracy (b,), with the running statistics.

    Rows that only fill the batch (`valid` 0) are nobody's negatives; what is
    said of them means nothing.
    """
    z, _ = self._embed(params, batch_stats, batch, train=False)
    loss, accuracy = self._contrast(z, axis_name, batch.get('valid'))
    return {'loss': loss, 'contrastive_accuracy': accuracy}


@dataclasses.dataclass(frozen=True)
class Retraining:
  """Stage II: classification, and attention taught by the lesion masks.

  total = classification
        + sum over stages of w_pos Eq. 2 + w_neg Eq. 3 + w_feat Eq. 5

  Attributes:
    backbone: models.resnet.ResNet with its classifier.
    attention: models.heads.AttentionHeads, or None without MGACR.
    pixels: Batch -> pixels and masks.
    classification: (logits (b, C), labels (b,)) -> (b,).
    early: the same, in its place at the steps before `begin`; None: never.
    begin: that step.
    weights: {'att_pos', 'att_neg', 'feat'}: weight; 0 leaves a term out, and
      with no term left the attention is there and learns nothing.
    mgacr: keyword arguments of losses.mgacr.
    frozen: the backbone stays as it is, its batch statistics included; only its
      classifier and the attention, where it is taught, learn.
  """

  backbone: Any
  attention: Any
  pixels: Pixels
  classification: Callable[[jax.Array, jax.Array], jax.Array]
  weights: Mapping[str, float]
  mgacr: Mapping[str, Any]
  early: Callable[[jax.Array, jax.Array], jax.Array] | None = None
  begin: int = 0
  frozen: bool = False

  def init(self, key: jax.Array) -> dict[str, Any]:
    """{'params': ..., 'batch_stats': ...} of all modules."""
    size = self.pixels.image_size
    keys = jax.random.split(key)
    images = jnp.zeros((1, size, size, 1))
    backbone = self.backbone.init(keys[0], images)
    params = {'backbone': backbone['params']}
    batch_stats = {'backbone': backbone['batch_stats']}
    if self.attention is not None:
      features = jax.eval_shape(
        lambda v: self.backbone.apply(v, images)[1], backbone
      )
      zeros = {k: jnp.zeros(f.shape, f.dtype) for k, f in features.items()}
      attention = self.attention.init(keys[1], zeros)
      params['attention'] = attention['params']
      batch_stats['attention'] = attention.get('batch_stats', {})
    return {'params': params, 'batch_stats': batch_stats}

  def loss(
    self,
    params: Any,
    batch_stats: Any,
    batch: Batch,
    axis_name: str | None,
    step: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[Metrics, Any]]:
    """Scalar loss at a step, (metrics, new batch statistics)."""
    if self.frozen:  # No gradient of theirs is computed, clipped or logged.
      params = jax.tree.map(
        lambda p, frozen: jax.lax.stop_gradient(p) if frozen else p,
        params,
        self.frozen_parameters(params),
      )
    images = self.pixels.views(batch)[:, 0]
    (logits, features), stats = _apply(
      self.backbone,
      _variables(params, batch_stats, 'backbone'),
      images,
      train=not self.frozen,
    )
    if self.frozen:
      stats = batch_stats['backbone']
    stats = {**batch_stats, 'backbone': stats}
    total = self._classify(logits, batch['label'], step).mean()
    correct = jnp.argmax(logits, axis=-1) == batch['label']
    metrics = {
      'loss/classification': total,
      'accuracy': correct.astype(jnp.float32).mean(),
    }
    if self._teaches_attention:
      maps, stats['attention'] = _apply(
        self.attention,
        _variables(params, batch_stats, 'attention'),
        features,
        train=True,
      )
      masks = self.pixels.masks(batch)
      terms = losses.mgacr_of_stages(
        [
          (features[stage], *pair, masks[stage]) for stage, pair in maps.items()
        ],
        known=batch['annotated'],
        axis_name=axis_name,
        **self.mgacr,
      )
      for name, weight in self.weights.items():
        if weight:
          metrics[f'loss/{name}'] = terms[name]
          total = total + weight * terms[name]
    return total, (metrics, stats)

  def _classify(self, logits, labels, step):
    """Each one's loss (b,); without a step, that of the end."""
    late = self.classification(logits, labels)
    if self.early is None or step is None:
      return late
    return jnp.where(step < self.begin, self.early(logits, labels), late)

  def outputs(
    self, params: Any, batch_stats: Any, batch: Batch, axis_name: str | None
  ) -> dict[str, jax.Array]:
    """Each image's logits (b, C) and loss (b,); no head is computed."""
    del axis_name
    images = self.pixels.views(batch)[:, 0]
    logits, _ = self.backbone.apply(
      _variables(params, batch_stats, 'backbone'), images, train=False
    )
    loss = self.classification(logits, jnp.maximum(batch['label'], 0))
    return {'logits': logits, 'loss': loss}

  @property
  def _teaches_attention(self):
    return self.attention is not None and any(self.weights.values())

  def frozen_parameters(self, params: Any) -> Any:
    """True at what `frozen` keeps.

    That is the backbone without its classifier, and attention that is not
    taught.
    """

    def keeps(module, path):
      if module == 'backbone':
        return path[0].key != 'fc'
      return not self._teaches_attention

    return {
      name: jax.tree.map_with_path(
        lambda path, _, name=name: keeps(name, path), tree
      )
      for name, tree in params.items()
    }


Objective = Pretraining | Retraining
