"""The losses of both stages: NT-Xent, class-balanced focal loss, MGACR.

Pure functions of arrays, computed in float32 (float64 if that is what comes in)
whatever the precision of the network. They return one value per example, MGACR
apart: its ratios are of batch means, so it reduces, over the devices too.

With `axis_name` a function runs on one device's share of the batch, under pmap,
shard_map or vmap, and sees the whole: average the gradients over that axis
(pmean) and they are those of one device with the global batch.
"""

import math
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

# Stands for minus infinity: exp() of it is 0, and its gradient is not NaN.
_MASKED = -1e30
# The least denominator of a ratio, far below any that a network produces: the
# square of its inverse, which the gradient holds, is still a float32.
_TINY = 1e-12
# A shorter embedding has no direction (torch's normalize has the same bound).
_SHORTEST = 1e-12

MGACR_TERMS = ('att_pos', 'att_neg', 'feat')


def nt_xent(
  z_a: jax.Array,
  z_b: jax.Array,
  *,
  temperature: float = 0.2,
  valid: jax.Array | None = None,
  axis_name: str | None = None,
) -> jax.Array:
  r"""Normalised temperature-scaled cross entropy between two views.

  .. math::
    \ell(i, j) = -\log \frac{\exp(s_{ij} / \tau)}
                            {\sum_{k \neq i} \exp(s_{ik} / \tau)}

  with s the cosine similarity, (i, j) the two views of an image, and k running
  over all 2N embeddings but i itself. The mean over the pairs is the paper's
  1/(2N) sum; SimCLR's own code returns twice that.

  Args:
    z_a: (N, D) embeddings of the first views. They need no normalisation; a
      zero vector is similar to nothing and gets no gradient.
    z_b: (N, D) embeddings of the second views, in the same order.
    temperature: tau, above 0.
    valid: (N,) 0 for pairs that only fill the batch: they are nobody's
      negatives, and their own loss means nothing. None: all count.
    axis_name: the device axis over which negatives are gathered, or None.

  Returns:
    (N,) the mean of l(a, b) and l(b, a) of each pair.

  References:
    Chen et al., A Simple Framework for Contrastive Learning of Visual
    Representations, 2020, Eq. 1; Wei et al., 2022, Eq. 1.

  Example:
    >>> z = jnp.eye(3)  # Each pair alike, and unlike all others.
    >>> print(nt_xent(z, z, temperature=1.0))  # log(e + 4) - 1
    [0.904... 0.904... 0.904...]
  """
  z_a, z_b = _unit(z_a), _unit(z_b)  # (N, D)
  n = z_a.shape[0]
  # The gather is differentiated through: an embedding learns from its part as
  # a negative on the other devices.
  all_a, rows = _gather(z_a, axis_name)  # (M, D), (N,)
  all_b, _ = _gather(z_b, axis_name)
  m = all_a.shape[0]

  anchors = jnp.concatenate([z_a, z_b])  # (2N, D)
  others = jnp.concatenate([all_a, all_b])  # (2M, D)
  similarity = _dot(anchors, others) / temperature  # (2N, 2M)
  hidden = jnp.concatenate([rows, m + rows])[:, None] == jnp.arange(2 * m)[None]
  if valid is not None:
    filler, _ = _gather(jnp.asarray(valid) <= 0, axis_name)  # (M,)
    hidden |= jnp.concatenate([filler, filler])[None]
  partition = jax.nn.logsumexp(
    jnp.where(hidden, _MASKED, similarity), axis=1
  )  # (2N,)
  positive = jnp.sum(z_a * z_b, axis=1) / temperature  # (N,)
  return (partition[:n] + partition[n:]) / 2 - positive


def contrastive_accuracy(
  z_a: jax.Array,
  z_b: jax.Array,
  *,
  valid: jax.Array | None = None,
  axis_name: str | None = None,
) -> jax.Array:
  """Whether each first view finds its own second view among all second views.

  Args:
    z_a: (N, D) embeddings of the first views.
    z_b: (N, D) embeddings of the second views, in the same order.
    valid: (N,) 0 for pairs that only fill the batch: nobody is compared with
      them, and their own result means nothing. None: all count.
    axis_name: the device axis over which second views are gathered, or None.

  Returns:
    (N,) 1 where the partner has the highest cosine similarity, else 0. Of
    equals the first counts, so a collapsed network scores 1 in the batch size.

  Example:
    >>> z = jnp.eye(3)
    >>> print(contrastive_accuracy(z, z[jnp.array([0, 2, 1])]))
    [1. 0. 0.]
  """
  z_a, z_b = jax.lax.stop_gradient((_unit(z_a), _unit(z_b)))
  all_b, rows = _gather(z_b, axis_name)
  similarity = _dot(z_a, all_b)  # (N, M)
  if valid is not None:
    filler, _ = _gather(jnp.asarray(valid) <= 0, axis_name)  # (M,)
    similarity = jnp.where(filler[None], _MASKED, similarity)
  found = jnp.argmax(similarity, axis=1) == rows
  return found.astype(z_a.dtype)


def effective_number_weights(
  counts: Sequence[int] | jax.Array, beta: float, *, normalize: bool = True
) -> jax.Array:
  r"""Class weights from the effective number of examples.

  .. math:: w_c = (1 - \beta) / (1 - \beta^{n_c})

  Args:
    counts: (C,) examples per class over the whole training split, at least 0.
      A class without examples weighs 0, with a warning unless under a trace.
    beta: from 0 (all weights 1) to 1 (the limit, 1 / n_c).
    normalize: scale the weights to sum to the number of classes present.

  Returns:
    (C,) float weights.

  Raises:
    ValueError: counts are not a vector or negative, or beta is not in 0..1.

  References:
    Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019,
    Eq. 3; Wei et al., 2022, Eq. 7.

  Example:
    >>> print(effective_number_weights([900, 90, 10], beta=0.99))
    [0.228... 0.383... 2.388...]
  """
  if not 0 <= beta <= 1:
    raise ValueError(f'loss.beta: must be in 0..1, got {beta}')
  n = _as_float(counts)
  if n.ndim != 1:
    raise ValueError(f'class counts: must be a vector, got {n.shape}')
  if not isinstance(n, jax.core.Tracer):
    if not (n >= 0).all():
      raise ValueError(f'class counts: must be at least 0, got {n}')
    if not n.all():
      absent = [c for c, count in enumerate(n.tolist()) if not count]
      warnings.warn(
        f'no training example of class {absent}: weight 0', stacklevel=2
      )
  present = n > 0
  n = jnp.where(present, n, 1)
  if beta == 0:
    weights = jnp.ones_like(n)
  elif beta == 1:
    weights = 1 / n
  else:
    # 1 - beta ** n loses four digits in float32 at beta .9999.
    weights = (1 - beta) / -jnp.expm1(n * math.log(beta))
  weights = jnp.where(present, weights, 0)
  if normalize:
    total = jnp.sum(weights)
    weights *= jnp.sum(present) / jnp.where(total > 0, total, 1)
  return weights


def cross_entropy(
  logits: jax.Array, labels: jax.Array, *, smoothing: float = 0.0
) -> jax.Array:
  r"""Softmax cross entropy, against smoothed labels if asked for.

  .. math::
    -(1 - \epsilon) \log p_t - \frac{\epsilon}{C} \sum_c \log p_c

  Args:
    logits: (B, C).
    labels: (B,) integer classes.
    smoothing: epsilon, the share of a label that all classes share alike.

  Returns:
    (B,) nats.

  References:
    Szegedy et al., Rethinking the Inception Architecture, 2016, Section 7.

  Example:
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    >>> print(cross_entropy(logits, jnp.array([1])))  # log 4
    [1.386...]
  """
  # optax's takes a logit from a logsumexp, and so loses the digits of logits
  # that are large together.
  log_p, is_true = _log_softmax(logits, labels)
  losses = -jnp.sum(jnp.where(is_true, log_p, 0), axis=1)
  if not smoothing:
    return losses
  return (1 - smoothing) * losses - smoothing * jnp.mean(log_p, axis=1)


def cb_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  smoothing: float = 0.0,
) -> jax.Array:
  """`cross_entropy` times the weight of the true class.

  Args:
    logits: (B, C).
    labels: (B,) integer classes.
    weights: (C,) from `effective_number_weights`.
    smoothing: see `cross_entropy`.

  Returns:
    (B,).
  """
  losses = cross_entropy(logits, labels, smoothing=smoothing)
  return jnp.asarray(weights, losses.dtype)[labels] * losses


def logit_adjusted(
  logits: jax.Array,
  labels: jax.Array,
  log_prior: jax.Array,
  *,
  tau: float = 1.0,
  smoothing: float = 0.0,
) -> jax.Array:
  r"""Cross entropy of logits to which the classes' log priors are added.

  .. math:: -\log \mathrm{softmax}(f + \tau \log \pi)_t

  What a network learns under it is the part of the log-odds that the classes'
  frequencies do not explain: its own logits, as they are, are balanced.

  Args:
    logits: (B, C).
    labels: (B,) integer classes.
    log_prior: (C,) log of each class's share of the training set.
    tau: 0 is cross entropy, 1 minimises the balanced error.
    smoothing: see `cross_entropy`.

  Returns:
    (B,) nats.

  References:
    Menon et al., Long-tail Learning via Logit Adjustment, 2021, Eq. 10.
  """
  logits = _as_float(logits)
  shift = tau * jnp.asarray(log_prior, logits.dtype)
  return cross_entropy(logits + shift[None], labels, smoothing=smoothing)


def focal(
  logits: jax.Array, labels: jax.Array, *, gamma: float, kind: str = 'softmax'
) -> jax.Array:
  r"""Focal loss, finite with finite gradients for any finite logits.

  .. math:: \mathrm{FL}(p_t) = -(1 - p_t)^\gamma \log p_t

  Args:
    logits: (B, C).
    labels: (B,) integer classes.
    gamma: at least 0; 0 is cross entropy.
    kind: 'softmax' takes p_t from a softmax, as Wei et al., 2022, Eq. 9 reads;
      'sigmoid' sums the binary focal losses of the C outputs against the
      one-hot label, as the code of Cui et al. does.

  Returns:
    (B,).

  Raises:
    ValueError: the kind is neither.

  References:
    Lin et al., Focal Loss for Dense Object Detection, 2017, Eq. 4; Cui et al.,
    2019, Eq. 13; Wei et al., 2022, Eq. 9.

  Example:
    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    >>> print(focal(logits, jnp.array([1]), gamma=2.0))  # 9/16 log 4
    [0.779...]
  """
  if kind == 'sigmoid':
    logits = _as_float(logits)
    targets = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return jnp.sum(
      optax.losses.sigmoid_focal_loss(logits, targets, gamma=gamma), axis=1
    )
  if kind != 'softmax':
    raise ValueError(f"loss.kind: must be 'softmax' or 'sigmoid', got {kind!r}")
  log_p, is_true = _log_softmax(logits, labels)  # (B, C)
  # log(1 - p_t) from the other classes' own probabilities: 1 - p_t rounds to 0
  # on a confident example, where a power below 1 has an infinite slope.
  log_rest = jax.nn.logsumexp(jnp.where(is_true, _MASKED, log_p), axis=1)
  log_p_t = jnp.sum(jnp.where(is_true, log_p, 0), axis=1)
  return -jnp.exp(gamma * log_rest) * log_p_t


def cb_focal(
  logits: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  *,
  gamma: float,
  kind: str = 'softmax',
) -> jax.Array:
  """Class-balanced focal loss: `focal` times the weight of the true class.

  Args:
    logits: (B, C).
    labels: (B,) integer classes.
    weights: (C,) from `effective_number_weights`.
    gamma: see `focal`.
    kind: see `focal`. With 'sigmoid' the true class's weight stands on each of
      the C outputs.

  Returns:
    (B,). Its plain mean over the batch is the loss of Cui et al.'s code.

  Raises:
    ValueError: the kind is neither.

  References:
    Cui et al., 2019, Eq. 13; Wei et al., 2022, Eq. 7-9.

  Example:
    >>> logits, labels = jnp.zeros((2, 2)), jnp.array([0, 1])
    >>> print(cb_focal(logits, labels, jnp.array([0.5, 1.5]), gamma=1.0))
    [0.173... 0.519...]
  """
  losses = focal(logits, labels, gamma=gamma, kind=kind)
  return jnp.asarray(weights, losses.dtype)[labels] * losses


def mgacr(
  features: jax.Array,
  map_pos: jax.Array,
  map_neg: jax.Array,
  mask: jax.Array,
  *,
  reduction: str = 'batch',
  eps: float = 0.0,
  lesions_only: Sequence[str] = (),
  stop_gradient_maps: bool = False,
  negative: str = 'mse',
  known: jax.Array | None = None,
  axis_name: str | None = None,
) -> dict[str, jax.Array]:
  r"""Mask-guided attention and feature losses of one stage of the backbone.

  .. math::
    \mathrm{att}_+ &= \mathrm{MSE}(A_+, M_+) / \mathrm{MSE}(A_+, M_-) \\
    \mathrm{att}_- &= \mathrm{MSE}(A_-, M_-) \\
    \mathrm{feat} &= L_1(F, F \cdot A_+) / L_1(F, F \cdot A_-)

  with A the attention maps, M+ the lesion mask, M- = 1 - M+, F the features.
  As the maps lie in 0..1, L1(F, F A) is the mean of (1 - A) times the channel
  mean of |F|: the features are read once.

  Read literally the equations degenerate on images without a lesion: M- is 1
  everywhere, A- is driven to 1 and the denominator of `feat` to 0. Batch ratios
  soften that; `eps`, `lesions_only` and `stop_gradient_maps` are the remedies.
  A denominator is at least 1e-12, so values and gradients are always finite.

  Args:
    features: (B, H, W, C), of any sign.
    map_pos: (B, H, W) lesion attention in 0..1.
    map_neg: (B, H, W) attention to the rest in 0..1.
    mask: (B, H, W) M+, the share of each cell that lesions cover, in 0..1.
    reduction: 'batch' divides means over the whole batch; 'sample' is the mean
      of the images' own ratios.
    eps: added to the denominators, which are means.
    lesions_only: the terms ('att_pos', 'att_neg', 'feat') that leave out images
      with an empty mask. With no image left a term is 0, with zero gradient.
    stop_gradient_maps: let `feat` teach the features only, not the maps.
    negative: 'mse' is the att_neg above; 'ratio' divides it by MSE(A-, M+), as
      the symmetry with att_pos would have it.
    known: (B,) 1 where the mask is known, 0 where an image has lesions that
      nobody has drawn: att_pos and att_neg leave these out. None: all are.
    axis_name: the device axis that shares the batch, or None. Sums and counts
      are added over it before any division.

  Returns:
    {'att_pos': (), 'att_neg': (), 'feat': ()}, the same on every device.

  Raises:
    ValueError: reduction, negative or a name in lesions_only is unknown.

  References:
    Wei et al., 2022, Eq. 2, 3 and 5.

  Example:
    >>> mask = jnp.array([[[1.0, 0.0], [0.0, 0.0]]])
    >>> features = jnp.ones((1, 2, 2, 8))
    >>> terms = mgacr(features, mask, 1 - mask, mask)  # Perfect maps.
    >>> {name: float(term) for name, term in terms.items()}  # feat: 3/4 to 1/4
    {'att_pos': 0.0, 'att_neg': 0.0, 'feat': 3.0}
  """
  return mgacr_of_stages(
    [(features, map_pos, map_neg, mask)],
    reduction=reduction,
    eps=eps,
    lesions_only=lesions_only,
    stop_gradient_maps=stop_gradient_maps,
    negative=negative,
    known=known,
    axis_name=axis_name,
  )


def mgacr_of_stages(
  stages: Sequence[tuple[jax.Array, jax.Array, jax.Array, jax.Array]],
  *,
  reduction: str = 'batch',
  eps: float = 0.0,
  lesions_only: Sequence[str] = (),
  stop_gradient_maps: bool = False,
  negative: str = 'mse',
  known: jax.Array | None = None,
  axis_name: str | None = None,
) -> dict[str, jax.Array]:
  """Each term of `mgacr` summed over stages, of one reduction over the batch.

  Args:
    stages: (features, map_pos, map_neg, mask) of each.
    reduction, eps, lesions_only, stop_gradient_maps, negative, known,
      axis_name: as of `mgacr`.

  Returns:
    {'att_pos': (), 'att_neg': (), 'feat': ()}, the same on every device.

  Raises:
    ValueError: as `mgacr`.
  """
  _check_mgacr(reduction, negative, lesions_only)

  def ratio(numerator, denominator):
    return numerator / jnp.maximum(denominator + eps, _TINY)

  rows: list[jax.Array] = []  # What is summed (B,)
  terms: list[tuple[str, int, int]] = []  # (name, first row, values)
  for features, *maps_and_mask in stages:
    map_pos, map_neg, mask = map(_as_float, maps_and_mask)
    pairs = _mgacr_pairs(
      jnp.asarray(features), map_pos, map_neg, mask, stop_gradient_maps
    )
    has_lesion = jnp.any(mask > 0, axis=(1, 2)).astype(mask.dtype)  # (B,)
    for name, pair in pairs.items():
      keep = has_lesion if name in lesions_only else jnp.ones_like(has_lesion)
      if known is not None and name != 'feat':  # Eq. 5 needs no mask.
        keep = keep * known
      if name == 'att_neg' and negative == 'mse':
        pair = pair[:1]
      elif reduction == 'sample':
        pair = (ratio(*pair),)
      terms.append((name, len(rows), len(pair)))
      rows += [*(values * keep for values in pair), keep]
  sums = jnp.sum(jnp.stack(rows), axis=1)
  if axis_name is not None:
    sums = jax.lax.psum(sums, axis_name)
  total = {name: jnp.zeros((), sums.dtype) for name in MGACR_TERMS}
  for name, first, size in terms:
    count = jnp.maximum(sums[first + size], 1)
    means = [sums[first + i] / count for i in range(size)]
    total[name] += means[0] if size == 1 else ratio(*means)
  return total


def _check_mgacr(reduction, negative, lesions_only):
  """Raises ValueError for a word that mgacr does not know."""
  if reduction not in ('batch', 'sample'):
    raise ValueError(
      f"mgacr.reduction: must be 'batch' or 'sample', got {reduction!r}"
    )
  if negative not in ('mse', 'ratio'):
    raise ValueError(
      f"mgacr.negative: must be 'mse' or 'ratio', got {negative!r}"
    )
  for name in lesions_only:
    if name not in MGACR_TERMS:
      raise ValueError(
        f'mgacr.lesions_only: must be of {MGACR_TERMS}, got {name!r}'
      )


def _mgacr_pairs(features, map_pos, map_neg, mask, stop_gradient_maps):
  """Each image's numerator and denominator (B,) of Eq. 2, 3 and 5."""
  # Not jnp.abs: its slope at 0 is 1, and dead features would be pulled. The
  # sums are float32, the features stay in memory as they are.
  magnitude = jnp.mean(
    features * jnp.sign(features),
    axis=-1,
    dtype=jnp.promote_types(features.dtype, jnp.float32),
  )  # (B, H, W)

  def mse(a, b):
    return jnp.mean((a - b) ** 2, axis=(1, 2))  # (B,)

  def suppressed(attention):
    if stop_gradient_maps:
      attention = jax.lax.stop_gradient(attention)
    return jnp.mean((1 - attention) * magnitude, axis=(1, 2))  # (B,)

  return {
    'att_pos': (mse(map_pos, mask), mse(map_pos, 1 - mask)),
    'att_neg': (mse(map_neg, 1 - mask), mse(map_neg, mask)),
    'feat': (suppressed(map_pos), suppressed(map_neg)),
  }


def _as_float(x: ArrayLike | Sequence[int]) -> jax.Array:
  """As an array of float32, or of float64 if it is that already."""
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _unit(z):
  """(N, D) scaled to length 1; zero, with zero gradient, where it is zero."""
  z = _as_float(z)
  squared = jnp.sum(z**2, axis=1, keepdims=True)
  usable = squared > _SHORTEST**2
  # Two wheres: the slope of rsqrt at 0 is infinite, and 0 * inf is NaN.
  return z * jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, squared, 1)), 0)


def _gather(z, axis_name):
  """All devices' rows of z, and where this device's rows stand among them."""
  rows = jnp.arange(z.shape[0])
  if axis_name is None:
    return z, rows
  every = jax.lax.all_gather(z, axis_name, axis=0, tiled=True)
  return every, jax.lax.axis_index(axis_name) * z.shape[0] + rows


def _dot(a, b):
  """(N, D), (M, D) -> (N, M) in full precision, which accelerators do not."""
  return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _log_softmax(logits, labels):
  """Log-probabilities (B, C), and the mask (B, C) of the true class."""
  log_p = jax.nn.log_softmax(_as_float(logits), axis=1)
  is_true = labels[:, None] == jnp.arange(log_p.shape[1])[None]
  return log_p, is_true
