"""The losses against float64 numpy, and at their extremes."""

import doctest
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpjax import losses

# Both sides of these comparisons are float64.
EXACT = {'rtol': 1e-12, 'atol': 1e-12}
# A float32 of a few dozen operations.
FLOAT32 = {'rtol': 2e-5, 'atol': 1e-6}

# Compiled whole: eager calls compile each operation on its own, far slower.
nt_xent = jax.jit(losses.nt_xent, static_argnames=('temperature', 'axis_name'))
focal = jax.jit(losses.focal, static_argnames=('gamma', 'kind'))
cb_focal = jax.jit(losses.cb_focal, static_argnames=('gamma', 'kind'))
cross_entropy = jax.jit(losses.cross_entropy)
contrastive_accuracy = jax.jit(losses.contrastive_accuracy)
mgacr = jax.jit(
  losses.mgacr,
  static_argnames=(
    'reduction',
    'eps',
    'lesions_only',
    'stop_gradient_maps',
    'negative',
    'axis_name',
  ),
)


def test_the_examples_of_the_docstrings_hold():
  found = doctest.testmod(losses, optionflags=doctest.ELLIPSIS)
  assert found.failed == 0 and found.attempted >= 7


def in_float64(test):
  @functools.wraps(test)
  def run(*args, **kwargs):
    with jax.enable_x64(True):
      return test(*args, **kwargs)

  return run


def check_gradient(f, *args, step=1e-6):
  """Central differences along one random direction, in float64."""
  rng = np.random.default_rng(0)
  f = jax.jit(jax.value_and_grad(f, argnums=tuple(range(len(args)))))
  direction = [rng.normal(size=np.shape(a)) for a in args]
  _, grads = f(*args)
  slope = sum(np.sum(g * d) for g, d in zip(grads, direction, strict=True))
  ahead, behind = (
    f(*(a + s * d for a, d in zip(args, direction, strict=True)))[0]
    for s in (step, -step)
  )
  # The truncation is step**2, the rounding 1e-16 / step.
  np.testing.assert_allclose(
    slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8
  )


def all_finite(tree):
  return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def on_devices(f, count, how):
  """f over shares of its arguments, on an axis 'd', however it is run.

  The arguments and the result have a leading axis of `count` shares.
  """
  if how == 'pmap':
    return jax.pmap(f, axis_name='d', devices=jax.devices()[:count])
  mesh = jax.make_mesh(
    (count,),
    ('d',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:count],
  )
  spec = jax.sharding.PartitionSpec('d')

  def one_share(*args):
    out = f(*jax.tree.map(lambda x: x[0], args))
    return jax.tree.map(lambda x: x[None], out)

  return jax.jit(
    jax.shard_map(
      one_share, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
  )


def split(count, *arrays):
  return [a.reshape(count, -1, *a.shape[1:]) for a in arrays]


# NT-Xent


def views(n=6, d=5, seed=0):
  rng = np.random.default_rng(seed)
  z_a = rng.normal(size=(n, d))
  return z_a, z_a + 0.5 * rng.normal(size=(n, d))


def nt_xent_by_loops(z_a, z_b, temperature):
  """Chen et al., Eq. 1, one pair and one direction at a time."""
  n = len(z_a)
  z = [v / np.linalg.norm(v) for v in (*z_a, *z_b)]
  loss = np.zeros(n)
  for i in range(2 * n):
    partner = (i + n) % (2 * n)
    others = sum(
      np.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i
    )
    loss[i % n] -= (z[i] @ z[partner] / temperature - np.log(others)) / 2
  return loss


@in_float64
@pytest.mark.parametrize('temperature', [0.2, 1.0])
def test_nt_xent_is_the_written_out_sum_over_pairs(temperature):
  z_a, z_b = views()
  np.testing.assert_allclose(
    nt_xent(z_a, z_b, temperature=temperature),
    nt_xent_by_loops(z_a, z_b, temperature),
    **EXACT,
  )


@in_float64
def test_nt_xent_has_the_mean_of_optax():
  z_a, z_b = views()
  pair = jnp.tile(jnp.arange(len(z_a)), 2)
  with jax.numpy_rank_promotion('allow'):  # optax broadcasts in silence
    oracle = jax.jit(optax.losses.ntxent)(np.concatenate([z_a, z_b]), pair, 0.2)
  np.testing.assert_allclose(nt_xent(z_a, z_b).mean(), oracle, **EXACT)


@in_float64
def test_nt_xent_has_the_gradient_of_finite_differences():
  check_gradient(lambda a, b: nt_xent(a, b).mean(), *views())


def test_nt_xent_knows_directions_only():
  z_a, z_b = (z.astype(np.float32) for z in views())
  np.testing.assert_allclose(
    nt_xent(1e6 * z_a, 1e-6 * z_b), nt_xent(z_a, z_b), **FLOAT32
  )


def test_nt_xent_of_bfloat16_is_computed_in_float32():
  z_a, z_b = (jnp.asarray(z, jnp.bfloat16) for z in views())
  loss = nt_xent(z_a, z_b)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(
    loss,
    nt_xent_by_loops(np.float64(z_a), np.float64(z_b), 0.2),
    **FLOAT32,
  )


def test_nt_xent_gives_a_zero_vector_no_gradient_and_no_nan():
  z_a, z_b = (jnp.asarray(z, jnp.float32) for z in views())
  z_a = z_a.at[0].set(0)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1))
  def mean_loss(a, b):
    return nt_xent(a, b).mean()

  loss, (grad_a, grad_b) = mean_loss(z_a, z_b)
  assert all_finite((loss, grad_a, grad_b))
  assert not grad_a[0].any()
  assert grad_a[1:].any(axis=1).all()


def test_nt_xent_of_a_collapsed_network_is_the_log_of_the_candidates():
  z = jnp.ones((6, 5))
  np.testing.assert_allclose(nt_xent(z, z), np.log(11), **FLOAT32)
  # One of six partners is found: the first.
  assert contrastive_accuracy(z, z).tolist() == [1, 0, 0, 0, 0, 0]


def test_what_fills_a_batch_is_nobodys_negative_and_nobodys_candidate():
  rng = np.random.default_rng(0)
  z_a, z_b = rng.normal(size=(2, 16, 8)).astype(np.float32)
  z_b[5:] = z_a[0]  # A candidate that would win.
  valid = (np.arange(16) < 5).astype(np.float32)
  found = nt_xent(z_a, z_b, valid=valid)
  assert np.isfinite(found).all()
  np.testing.assert_allclose(
    found[:5], nt_xent_by_loops(z_a[:5], z_b[:5], 0.2), **FLOAT32
  )
  np.testing.assert_array_equal(
    contrastive_accuracy(z_a, z_b, valid=valid)[:5],
    contrastive_accuracy(z_a[:5], z_b[:5]),
  )
  assert contrastive_accuracy(z_a, z_b)[0] == 0
  np.testing.assert_array_equal(
    nt_xent(z_a, z_b, valid=np.ones(16)), nt_xent(z_a, z_b)
  )


def test_contrastive_accuracy_ranks_the_second_views_only():
  # The first is nearest to the second's partner. The second is nearer to the
  # first's first view than to its own partner, which does not count.
  angles_a = np.array([0.0, 0.1, 2.0])
  angles_b = np.array([0.3, 0.22, 3.0])
  z_a, z_b = (np.stack([np.cos(t), np.sin(t)], 1) for t in (angles_a, angles_b))
  assert contrastive_accuracy(z_a, z_b).tolist() == [0, 1, 1]


@pytest.mark.parametrize('how', ['pmap', 'shard_map'])
def test_nt_xent_on_devices_is_that_of_the_global_batch(how):
  z_a, z_b = (z.astype(np.float32) for z in views(n=8))
  kernel = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)

  def mean_loss(kernel, a, b, axis_name=None):
    return nt_xent(a @ kernel, b @ kernel, axis_name=axis_name).mean()

  def share(a, b):
    loss, grad = jax.value_and_grad(mean_loss)(kernel, a, b, 'd')
    found = losses.contrastive_accuracy(a @ kernel, b @ kernel, axis_name='d')
    return *jax.lax.pmean((loss, grad), 'd'), found

  loss, grad, found = on_devices(share, 4, how)(*split(4, z_a, z_b))
  alone = jax.jit(jax.value_and_grad(mean_loss))
  expected_loss, expected_grad = alone(kernel, z_a, z_b)
  # Every device holds the result.
  np.testing.assert_allclose(loss, np.tile(expected_loss, 4), **FLOAT32)
  np.testing.assert_allclose(grad, np.stack([expected_grad] * 4), **FLOAT32)
  np.testing.assert_array_equal(
    found.reshape(-1), contrastive_accuracy(z_a @ kernel, z_b @ kernel)
  )


# Class weights

COUNTS = [5, 100, 20_000]


@pytest.mark.parametrize('beta', [0.5, 0.99, 0.9999, 0.9999999])
def test_class_weights_are_the_effective_number_in_float64(beta):
  expected = [1 / sum(beta**k for k in range(n)) for n in COUNTS]
  raw = losses.effective_number_weights(COUNTS, beta, normalize=False)
  scaled = losses.effective_number_weights(COUNTS, beta)
  # A naive 1 - beta**n in float32 is 1.7e-4 off at .9999.
  np.testing.assert_allclose(raw, expected, rtol=1e-6)
  np.testing.assert_allclose(
    scaled, 3 * np.array(expected) / np.sum(expected), rtol=1e-6
  )


def test_class_weights_run_from_ones_to_inverse_counts():
  np.testing.assert_array_equal(
    losses.effective_number_weights(COUNTS, 0.0), [1, 1, 1]
  )
  np.testing.assert_allclose(
    losses.effective_number_weights(COUNTS, 1.0, normalize=False),
    1 / np.array(COUNTS),
    rtol=1e-6,
  )


@pytest.mark.parametrize('beta', [0.0, 0.9999, 1.0])
def test_an_absent_class_weighs_nothing_and_is_named(beta):
  with pytest.warns(UserWarning, match=r'class \[1\]'):
    weights = losses.effective_number_weights(np.array([5, 0, 100]), beta)
  others = losses.effective_number_weights(jnp.array([5, 100]), beta)
  np.testing.assert_allclose(weights, [others[0], 0, others[1]], rtol=1e-6)
  np.testing.assert_allclose(weights.sum(), 2, rtol=1e-6)


def test_class_weights_under_a_trace_do_not_warn():
  f = jax.jit(functools.partial(losses.effective_number_weights, beta=0.9))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    weights = f(jnp.array([5, 0]))
  np.testing.assert_array_equal(weights, [1, 0])


def test_no_examples_at_all_give_zeros():
  with pytest.warns(UserWarning, match='weight 0'):
    weights = losses.effective_number_weights([0, 0], 0.9)
  assert weights.tolist() == [0, 0]


@pytest.mark.parametrize(
  ('counts', 'beta', 'what'),
  [
    ([1, 2], 1.1, 'loss.beta'),
    ([1, 2], -0.1, 'loss.beta'),
    ([1, 2], float('nan'), 'loss.beta'),
    ([1, -2], 0.9, 'class counts'),
    ([[1, 2]], 0.9, 'class counts'),
  ],
)
def test_impossible_counts_and_betas_are_refused(counts, beta, what):
  with pytest.raises(ValueError, match=what):
    losses.effective_number_weights(counts, beta)


# Focal loss


def examples(b=7, c=5, seed=0):
  rng = np.random.default_rng(seed)
  return 3 * rng.normal(size=(b, c)), rng.integers(c, size=b)


def softmax_focal_by_numpy(logits, labels, gamma):
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  p_t = p[np.arange(len(labels)), labels]
  return -((1 - p_t) ** gamma) * np.log(p_t)


def sigmoid_focal_by_numpy(logits, labels, gamma):
  p = 1 / (1 + np.exp(-logits))
  p_t = np.where(np.eye(logits.shape[1], dtype=bool)[labels], p, 1 - p)
  return (-((1 - p_t) ** gamma) * np.log(p_t)).sum(1)


KINDS = {'softmax': softmax_focal_by_numpy, 'sigmoid': sigmoid_focal_by_numpy}


@in_float64
@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('kind', KINDS)
def test_focal_is_its_equation(kind, gamma):
  logits, labels = examples()
  np.testing.assert_allclose(
    focal(logits, labels, gamma=gamma, kind=kind),
    KINDS[kind](logits, labels, gamma),
    rtol=1e-10,  # the reference's 1 - p_t cancels
  )


@in_float64
@pytest.mark.parametrize('gamma', [0.5, 2.0])
@pytest.mark.parametrize('kind', KINDS)
def test_focal_has_the_gradient_of_finite_differences(kind, gamma):
  logits, labels = examples()
  check_gradient(
    lambda x: focal(x, labels, gamma=gamma, kind=kind).mean(), logits
  )


def test_focal_with_gamma_zero_is_cross_entropy():
  logits, labels = examples()
  np.testing.assert_array_equal(
    focal(logits, labels, gamma=0.0),
    cross_entropy(logits, labels),
  )


@in_float64
def test_cross_entropy_is_the_negative_log_probability():
  logits, labels = examples()
  np.testing.assert_allclose(
    cross_entropy(logits, labels),
    softmax_focal_by_numpy(logits, labels, 0),
    **EXACT,
  )


@pytest.mark.parametrize('smoothing', [0.1, 0.5])
def test_smoothed_cross_entropy_is_that_of_smoothed_labels(smoothing):
  logits, labels = examples()
  targets = optax.smooth_labels(jax.nn.one_hot(labels, 5), smoothing)
  np.testing.assert_allclose(
    losses.cross_entropy(logits, labels, smoothing=smoothing),
    optax.softmax_cross_entropy(np.float32(logits), targets),
    rtol=1e-5,
  )
  weights = np.arange(1.0, 6.0)
  np.testing.assert_allclose(
    losses.cb_cross_entropy(logits, labels, weights, smoothing=smoothing),
    weights[labels] * losses.cross_entropy(logits, labels, smoothing=smoothing),
    rtol=1e-6,
  )


SHARES = np.array([0.9, 0.06, 0.02, 0.015, 0.005])


@pytest.mark.parametrize('tau', [0.0, 1.0, 1.5])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_logit_adjustment_is_its_equation(tau, smoothing):
  logits, labels = examples()
  scores = np.exp(np.float64(logits)) * SHARES**tau
  p = scores / scores.sum(axis=1, keepdims=True)
  want = -(1 - smoothing) * np.log(p[np.arange(len(labels)), labels])
  want -= smoothing * np.log(p).mean(axis=1)
  got = losses.logit_adjusted(
    logits, labels, np.log(SHARES), tau=tau, smoothing=smoothing
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_what_logit_adjustment_teaches_is_balanced():
  """Its gradient is 0 where softmax(f) is p / prior, and so only there."""
  p = np.array([[0.7, 0.2, 0.05, 0.03, 0.02]])  # of the classes, at one image
  balanced = np.log(p / SHARES)

  def risk(logits):
    each = losses.logit_adjusted(
      jnp.repeat(logits, 5, axis=0), np.arange(5), np.log(SHARES)
    )
    return jnp.sum(p[0] * each)

  np.testing.assert_allclose(jax.grad(risk)(balanced), 0, atol=1e-6)
  assert np.abs(jax.grad(risk)(np.log(p))).max() > 0.01


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_logit_adjustment_is_finite_on_any_logits(smoothing):
  logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])

  def total(logits):
    return losses.logit_adjusted(
      logits, np.array([0, 0]), np.log([0.98, 0.01, 0.01]), smoothing=smoothing
    ).sum()

  assert all_finite(jax.value_and_grad(total)(logits))


@pytest.mark.torch
def test_cross_entropy_is_that_of_torch():
  import torch

  logits, labels = examples()
  theirs = torch.nn.functional.cross_entropy(
    torch.tensor(logits), torch.tensor(labels), reduction='none'
  )
  np.testing.assert_allclose(
    cross_entropy(logits, labels), theirs.numpy(), **FLOAT32
  )


@in_float64
def test_the_focal_factor_is_the_power_of_the_missed_probability():
  logits, labels = examples()
  ratio = focal(logits, labels, gamma=3.0) / cross_entropy(logits, labels)
  p_t = np.exp(-cross_entropy(logits, labels))
  np.testing.assert_allclose(ratio, (1 - p_t) ** 3, rtol=1e-10)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize('kind', KINDS)
def test_focal_and_its_gradient_are_finite_on_any_logits(kind, gamma, dtype):
  big = 1e4
  logits = jnp.array(
    [
      [big, -big, 0],  # right and sure
      [-big, big, 0],  # wrong and sure
      [big, big, big],
      [-big, -big, -big],
      [0, 0, 0],
      [30, -30, -30],  # 1 - p_t is below float32's resolution
    ],
    dtype,
  )
  labels = jnp.zeros(len(logits), jnp.int32)

  @functools.partial(jax.grad, has_aux=True)
  def gradient(x):
    loss = focal(x, labels, gamma=gamma, kind=kind)
    return loss.sum(), loss

  grad, loss = jax.jit(gradient)(logits)
  assert loss.dtype == jnp.float32
  assert all_finite((loss, grad))
  # The wrong one still learns, at full strength: 1 - p_t is 1.
  assert loss[1] > 9e3
  assert grad[1, 0] == -1


@pytest.mark.parametrize('kind', KINDS)
def test_cb_focal_weighs_each_example_by_its_true_class(kind):
  logits, labels = examples()
  weights = np.array([0.1, 0.2, 1.0, 1.7, 2.0])
  np.testing.assert_allclose(
    cb_focal(logits, labels, weights, gamma=2.0, kind=kind),
    weights[labels] * KINDS[kind](logits, labels, 2.0),
    **FLOAT32,
  )


def test_an_unknown_kind_of_focal_loss_is_refused():
  logits, labels = examples()
  with pytest.raises(ValueError, match=r"loss\.kind.*'softmax' or 'sigmoid'"):
    focal(logits, labels, gamma=2.0, kind='hinge')


# MGACR

B, H, W, C = 8, 4, 3, 6


def stage(lesions, *, b=B, seed=0, dtype=np.float64):
  """Features, two maps, and a mask with lesions on the named images only."""
  rng = np.random.default_rng(seed)
  features = np.maximum(rng.normal(size=(b, H, W, C)), 0)
  map_pos, map_neg = rng.uniform(0.05, 0.95, size=(2, b, H, W))
  mask = np.zeros((b, H, W))
  for i in lesions:
    mask[i, 1:3, 1] = rng.uniform(0.2, 1, size=2)  # shares of covered cells
  return tuple(x.astype(dtype) for x in (features, map_pos, map_neg, mask))


def mgacr_by_numpy(f, pos, neg, mask, reduction, eps, lesions_only, negative):
  """Eq. 2, 3 and 5 with the features multiplied out, image by image."""

  def mse(a, b):
    return np.mean((a - b) ** 2)

  def l1(m):
    return lambda i: np.mean(np.abs(f[i] - f[i] * m[i][..., None]))

  fractions = {
    'att_pos': (
      lambda i: mse(pos[i], mask[i]),
      lambda i: mse(pos[i], 1 - mask[i]),
    ),
    'att_neg': (
      lambda i: mse(neg[i], 1 - mask[i]),
      lambda i: mse(neg[i], mask[i]),
    ),
    'feat': (l1(pos), l1(neg)),
  }
  out = {}
  for name, (top, bottom) in fractions.items():
    images = [
      i for i in range(len(f)) if name not in lesions_only or mask[i].any()
    ]
    tops = np.array([top(i) for i in images])
    bottoms = np.array([bottom(i) for i in images])
    if name == 'att_neg' and negative == 'mse':
      out[name] = tops.mean()
    elif reduction == 'batch':
      out[name] = tops.mean() / (bottoms.mean() + eps)
    else:
      out[name] = (tops / (bottoms + eps)).mean()
  return out


@in_float64
@pytest.mark.parametrize('lesions_only', [(), ('feat',), losses.MGACR_TERMS])
@pytest.mark.parametrize('negative', ['mse', 'ratio'])
@pytest.mark.parametrize('eps', [0.0, 0.01])
@pytest.mark.parametrize('reduction', ['batch', 'sample'])
def test_mgacr_is_its_equations(reduction, eps, negative, lesions_only):
  options = {
    'reduction': reduction,
    'eps': eps,
    'negative': negative,
    'lesions_only': lesions_only,
  }
  arrays = stage(lesions=(0, 3, 4))
  terms = mgacr(*arrays, **options)
  expected = mgacr_by_numpy(*arrays, **options)
  assert set(terms) == set(expected)
  for name in expected:
    assert terms[name].shape == ()
    np.testing.assert_allclose(terms[name], expected[name], **EXACT)


@in_float64
@pytest.mark.parametrize('reduction', ['batch', 'sample'])
def test_lesions_that_nobody_drew_are_left_out_of_eq_2_and_3_only(reduction):
  f, pos, neg, mask = stage([0, 1, 2])
  known = np.array([1, 1, 1, 1, 0, 0, 1, 1.0])
  got = mgacr(f, pos, neg, mask, known=known, reduction=reduction, eps=0.1)
  rows = known > 0
  rest = (x[rows] for x in (f, pos, neg, mask))
  want = mgacr_by_numpy(*rest, reduction, 0.1, (), 'mse')
  every = mgacr_by_numpy(f, pos, neg, mask, reduction, 0.1, (), 'mse')
  for name in ('att_pos', 'att_neg'):
    np.testing.assert_allclose(got[name], want[name], rtol=1e-12)
    assert abs(want[name] - every[name]) > 1e-3
  np.testing.assert_allclose(got['feat'], every['feat'], rtol=1e-12)


@in_float64
@pytest.mark.parametrize('negative', ['mse', 'ratio'])
@pytest.mark.parametrize('reduction', ['batch', 'sample'])
def test_mgacr_has_the_gradient_of_finite_differences(reduction, negative):
  features, map_pos, map_neg, mask = stage(lesions=(0, 3))

  def total(f, pos, neg):
    terms = mgacr(
      f,
      pos,
      neg,
      mask,
      reduction=reduction,
      negative=negative,
      lesions_only=('att_pos', 'feat'),
    )
    return sum(terms.values())

  # Off 0, where |f| has its kink, and of both signs.
  features = np.where(features > 0, features + 0.1, -0.3)
  check_gradient(total, features, map_pos, map_neg)


def test_mgacr_of_maps_at_one_half_is_one_a_quarter_and_one():
  features, _, _, mask = stage(lesions=(0, 3))
  half = np.full((B, H, W), 0.5)
  for reduction in ('batch', 'sample'):
    terms = mgacr(
      features, half, half, mask > 0, reduction=reduction, negative='mse'
    )
    np.testing.assert_allclose(
      [terms[name] for name in losses.MGACR_TERMS], [1, 0.25, 1], rtol=1e-6
    )
    ratio = mgacr(features, half, half, mask > 0, negative='ratio')
    np.testing.assert_allclose(ratio['att_neg'], 1, rtol=1e-6)


@pytest.mark.parametrize(
  ('contrast', 'value'), [(0.9, 9), (0.99, 99), (0.999, 999)]
)
def test_mgacr_degenerates_without_lesions_as_the_docstring_says(
  contrast, value
):
  features, _, _, mask = stage(lesions=())
  map_neg = np.full((B, H, W), contrast)
  literal = mgacr(features, 1 - map_neg, map_neg, mask)
  np.testing.assert_allclose(literal['feat'], value, rtol=1e-4)
  remedied = mgacr(features, 1 - map_neg, map_neg, mask, lesions_only=('feat',))
  assert remedied['feat'] == 0


@pytest.mark.parametrize('reduction', ['batch', 'sample'])
@pytest.mark.parametrize('eps', [0.0, 0.01])
def test_mgacr_without_a_lesion_left_is_zero_with_zero_gradient(reduction, eps):
  *inputs, mask = stage(lesions=(), dtype=np.float32)

  def terms(f, pos, neg):
    found = mgacr(
      f,
      pos,
      neg,
      mask,
      reduction=reduction,
      eps=eps,
      lesions_only=losses.MGACR_TERMS,
    )
    return found, found

  grads, found = jax.jit(jax.jacrev(terms, argnums=(0, 1, 2), has_aux=True))(
    *inputs
  )
  assert set(map(float, found.values())) == {0}
  for leaf in jax.tree.leaves(grads):
    np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize('reduction', ['batch', 'sample'])
def test_features_of_zero_give_zero_with_zero_gradient(reduction):
  _, map_pos, map_neg, mask = stage(lesions=(0,), dtype=np.float32)
  zeros = np.zeros((B, H, W, C), np.float32)

  def feat(f, pos, neg):
    return mgacr(f, pos, neg, mask, reduction=reduction)['feat']

  value, grads = jax.jit(jax.value_and_grad(feat, (0, 1, 2)))(
    zeros, map_pos, map_neg
  )
  assert value == 0
  for grad in grads:
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize('negative', ['mse', 'ratio'])
@pytest.mark.parametrize('reduction', ['batch', 'sample'])
def test_mgacr_is_finite_at_maps_of_zero_and_one(reduction, negative):
  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
  def value_and_grad(f, pos, neg, mask):
    terms = mgacr(f, pos, neg, mask, reduction=reduction, negative=negative)
    return sum(terms.values())

  for lesions in ((), (0, 3), range(B)):
    features, _, _, mask = stage(lesions, dtype=np.float32)
    mask = (mask > 0).astype(np.float32)
    for pos in (0 * mask, 0 * mask + 1, mask, 1 - mask):
      for neg in (0 * mask, 0 * mask + 1, mask, 1 - mask):
        assert all_finite(value_and_grad(features, pos, neg, mask))


def test_stopped_maps_teach_the_features_alone():
  features, map_pos, map_neg, mask = stage(lesions=(0, 3))
  stopped = functools.partial(losses.mgacr, stop_gradient_maps=True)
  jacobian = jax.jit(jax.jacrev(stopped, argnums=(0, 1, 2)))(
    features, map_pos, map_neg, mask
  )
  nonzero = {
    name: [bool(np.any(grad)) for grad in grads]
    for name, grads in jacobian.items()
  }
  assert nonzero == {
    'att_pos': [False, True, False],
    'att_neg': [False, False, True],
    'feat': [True, False, False],
  }


def test_bfloat16_features_are_reduced_in_float32():
  # bfloat16 has 8 bits: summed in it, 512 channels of 1 stop at 256.
  features = jnp.ones((1, 2, 2, 512), jnp.bfloat16)
  map_pos, map_neg = jnp.full((1, 2, 2), 0.25), jnp.full((1, 2, 2), 0.5)
  terms = mgacr(features, map_pos, map_neg, jnp.zeros((1, 2, 2)), eps=1)
  assert {t.dtype for t in terms.values()} == {jnp.dtype(jnp.float32)}
  np.testing.assert_allclose(terms['feat'], 0.75 / 1.5, **FLOAT32)


@pytest.mark.parametrize('how', ['pmap', 'shard_map'])
@pytest.mark.parametrize('reduction', ['batch', 'sample'])
def test_mgacr_on_devices_is_that_of_the_global_batch(how, reduction):
  scale = np.float32(1.3)  # a parameter that all images share

  def total(scale, f, pos, neg, mask, axis_name=None):
    terms = mgacr(
      f * scale + 0.1,
      pos**scale,
      neg * scale,
      mask,
      reduction=reduction,
      eps=0.01,
      lesions_only=('att_pos', 'feat'),
      axis_name=axis_name,
    )
    return sum(terms.values()), terms

  grad = jax.value_and_grad(total, has_aux=True)

  def share(*arrays):
    (_, terms), gradient = grad(scale, *arrays, 'd')
    return terms, jax.lax.pmean(gradient, 'd')

  alone, shared = jax.jit(grad), on_devices(share, 4, how)
  # Four shares of two images: two have one lesion each, or none has.
  for lesions in ((0, 5), ()):
    arrays = stage(lesions, dtype=np.float32)
    (_, expected), expected_gradient = alone(scale, *arrays)
    terms, gradient = shared(*split(4, *arrays))
    for name in losses.MGACR_TERMS:
      np.testing.assert_allclose(
        terms[name], np.tile(expected[name], 4), **FLOAT32
      )
    np.testing.assert_allclose(
      gradient, np.tile(expected_gradient, 4), **FLOAT32
    )


@pytest.mark.parametrize(
  ('field', 'value'),
  [('reduction', 'sum'), ('negative', 'l1'), ('lesions_only', ('feats',))],
)
def test_unknown_mgacr_options_are_refused_by_name(field, value):
  with pytest.raises(ValueError, match=rf'mgacr\.{field}: must be .*got'):
    mgacr(*stage(lesions=(0,)), **{field: value})
