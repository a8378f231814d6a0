"""The PyTorch peer does what dpjax does, from the same weights and batch."""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpjax.benchmark import torch_baseline
from dpjax.errors import UserError
from dpjax.models import resnet
from dpjax.training import batches, steps
from dpjax.training import build as build_lib
from tests import fakes

TOTAL = 4  # steps of the schedule


@pytest.fixture
def torch():
  import torch

  return torch


@functools.cache
def build(stage='retrain', **changes):
  """A stage, a state in which nothing is trivial, and a batch."""
  run = build_lib.build(fakes.make_config(**changes), stage, fakes.make_store())
  optimizer, _ = build_lib.make_optimizer(run, TOTAL)
  shapes = jax.eval_shape(run.objective.init, jax.random.key(0))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == 'kernel':
      deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      return rng.normal(0, deviation, leaf.shape).astype(np.float32)
    if path[-1].key in ('scale', 'var'):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return rng.normal(0, 0.1, leaf.shape).astype(np.float32)

  variables = jax.tree.map_with_path(draw, shapes)
  state = steps.TrainState(
    step=jnp.zeros((), jnp.int32),
    **variables,
    opt_state=optimizer.init(variables['params']),
  )
  stream = iter(batches.training_stream(run))
  batch = next(stream)
  stream.close()
  return run, state, {k: batch[k] for k in batch if k not in ('index', 'valid')}


def losses(run, state, batch):
  """dpjax's loss and its terms, as train_step names them."""
  total, (metrics, _) = jax.jit(run.objective.loss, static_argnums=3)(
    state.params, state.batch_stats, batch, None
  )
  terms = {k: float(v) for k, v in metrics.items() if k.startswith('loss/')}
  return {'loss': float(total), **terms}


def weights(step):
  """Copies of the peer's weights and statistics."""
  return {
    k: v.cpu().numpy().copy() for k, v in step.network.state_dict().items()
  }


def train(run, state, batch, count):
  """The state after `count` updates of dpjax."""
  optimizer, schedule = build_lib.make_optimizer(run, TOTAL)
  step = jax.jit(
    functools.partial(
      steps.train_step,
      objective=run.objective,
      optimizer=optimizer,
      schedule=schedule,
    )
  )
  for _ in range(count):
    state, _ = step(state, batch)
  return state


def assert_same_weights(got, state):
  """Up to rounding; torch's running variance is the unbiased one."""
  want = torch_baseline.to_torch(state.params, state.batch_stats)
  assert got.keys() == want.keys()
  for name, array in want.items():
    # 16 images of 6 x 6 cells are the fewest that a variance is of.
    rtol = 1 / (16 * 6 * 6 - 1) if name.endswith('running_var') else 1e-3
    np.testing.assert_allclose(
      got[name], array, rtol=rtol, atol=2e-5, err_msg=name
    )


LOSSES = {
  'stage I': ('pretrain', {}),
  'stage I, three views': ('pretrain', {'pretrain__views': 'three'}),
  'stage II': ('retrain', {}),
  'literal MGACR': (
    'retrain',
    {
      'mgacr__eps': 0.0,
      'mgacr__lesions_only': (),
      'mgacr__stop_gradient_maps': False,
      'mgacr__batch_norm': False,
      'loss__gamma': 2.0,
    },
  ),
  'ratios of each image': (
    'retrain',
    {'mgacr__reduction': 'sample', 'mgacr__negative': 'ratio'},
  ),
  'one attended stage': ('retrain', {'mgacr__stages': ('stage2',)}),
  'no feature term': ('retrain', {'mgacr__features': False}),
  'no MGACR, cross entropy': (
    'retrain',
    {
      'mgacr__features': False,
      'mgacr__attention': False,
      'loss__classification': 'ce',
    },
  ),
  'focal': ('retrain', {'loss__classification': 'focal'}),
  'sigmoid': ('retrain', {'loss__kind': 'sigmoid'}),
  'weighted cross entropy': ('retrain', {'loss__classification': 'cb_ce'}),
}


@pytest.mark.torch
@pytest.mark.parametrize('case', LOSSES)
def test_every_loss_and_each_of_its_terms_is_the_same(torch, case):
  stage, changes = LOSSES[case]
  run, state, batch = build(stage, **changes)
  step = torch_baseline.make_step(run, state, TOTAL, 'eager')
  got = step.losses(step.place(batch))
  want = losses(run, state, batch)
  assert got == pytest.approx(want, rel=2e-5)


UPDATES = {
  'stage I': ('pretrain', {}),
  'stage II, clipped': ('retrain', {'retrain__optim__clip': 0.5}),
  'literal MGACR': LOSSES['literal MGACR'],
  'Nesterov, decay of all': (
    'retrain',
    {
      'retrain__optim__nesterov': True,
      'retrain__optim__weight_decay': 0.05,
      'retrain__optim__decay_norm_and_bias': True,
    },
  ),
  'no momentum, decay of kernels': (
    'retrain',
    {
      'retrain__optim__momentum': 0.0,
      'retrain__optim__weight_decay': 0.05,
      'retrain__optim__schedule': 'step',
    },
  ),
}


@pytest.mark.torch
@pytest.mark.parametrize('case', UPDATES)
def test_updates_lead_to_the_same_weights_and_statistics(torch, case):
  stage, changes = UPDATES[case]
  run, state, batch = build(stage, **changes)
  after = train(run, state, batch, 3)
  step = torch_baseline.make_step(run, state, TOTAL, 'eager')
  placed = step.place(batch)
  for _ in range(3):
    step.train(placed)
  step.wait()
  assert_same_weights(weights(step), after)
  before = torch_baseline.to_torch(state.params, state.batch_stats)
  kernel = 'backbone.conv1.weight'
  assert np.abs(weights(step)[kernel] - before[kernel]).max() > 1e-3


@pytest.mark.torch
def test_inference_gives_the_same_logits_before_and_after_an_update(torch):
  run, state, batch = build()
  step = torch_baseline.make_step(run, state, TOTAL, 'eager')
  placed = step.place(batch)
  evaluate = jax.jit(
    functools.partial(steps.eval_step, objective=run.objective)
  )
  for count in (0, 1):
    now = train(run, state, batch, count)
    want = evaluate(now, batch)['logits']
    np.testing.assert_allclose(
      step.infer(placed).cpu(), want, rtol=2e-3, atol=2e-3 * np.abs(want).max()
    )
    step.train(placed)


@pytest.mark.torch
def test_asking_for_the_losses_changes_nothing(torch):
  run, state, batch = build()
  step = torch_baseline.make_step(run, state, TOTAL, 'eager')
  step.losses(step.place(batch))
  for name, array in torch_baseline.to_torch(
    state.params, state.batch_stats
  ).items():
    np.testing.assert_array_equal(weights(step)[name], array)


@pytest.mark.torch
def test_bfloat16_keeps_parameters_and_losses_in_float32(torch):
  run, state, batch = build(model__dtype='bfloat16')
  step = torch_baseline.make_step(run, state, TOTAL, 'eager')
  placed = step.place(batch)
  assert step.losses(placed) == pytest.approx(
    losses(run, state, batch), rel=0.02
  )
  step.train(placed)
  dtypes = {tensor.dtype for tensor in step.network.state_dict().values()}
  assert dtypes == {torch.float32}
  assert step.infer(placed).dtype == torch.float32


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize('stage', ['pretrain', 'retrain'])
def test_every_variant_that_the_machine_has_trains_alike(torch, stage):
  run, state, batch = build(stage)
  after, want = train(run, state, batch, 2), losses(run, state, batch)
  names, missing = torch_baseline.variants()
  assert names[0] == 'eager' and not set(names) & set(missing)
  for variant in names:
    step = torch_baseline.make_step(run, state, TOTAL, variant)
    placed = step.place(batch)
    assert step.losses(placed) == pytest.approx(want, rel=1e-3)
    step.train(placed)
    step.train(step.place(batch))  # Another batch than a graph's own.
    step.wait()
    assert_same_weights(weights(step), after)
    if stage == 'retrain':
      assert step.infer(placed).shape == (16, 3)


def test_weights_convert_to_torch_and_back_unchanged():
  model = resnet.ResNet(stage_sizes=(1, 2), width=8, num_classes=3)
  want = fakes.filled(model, 48)
  converted = torch_baseline.to_torch(
    {'backbone': want['params']}, {'backbone': want['batch_stats']}
  )
  names = {name.removeprefix('backbone.') for name in converted}
  assert {'layer2.1.conv2.weight', 'layer2.0.downsample.1.running_var'} <= names
  back = resnet.from_torch(
    {name.removeprefix('backbone.'): a for name, a in converted.items()}, model
  )
  jax.tree.map(np.testing.assert_array_equal, back, want)


def test_both_maps_of_a_stage_are_the_channels_of_one_convolution():
  _, state, _ = build()
  converted = torch_baseline.to_torch(state.params, state.batch_stats)
  kernel = converted['attention.stage1.conv.weight']  # OIHW
  for channel, sign in enumerate(('pos', 'neg')):
    own = state.params['attention'][f'stage1_{sign}']['conv']['kernel']
    for statistic in (0, 1):
      np.testing.assert_array_equal(
        kernel[channel, statistic], own[:, :, statistic, 0]
      )


def test_without_torch_one_line_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(UserError, match=r'needs PyTorch: pip install -e'):
    torch_baseline.variants()


@pytest.mark.torch
@pytest.mark.parametrize(
  ('changes', 'line'),
  [
    ({'model__network': 'vgg16'}, "config.model.network is 'vgg16'"),
    ({'model__block': 'bottleneck'}, "config.model.block is 'bottleneck'"),
    ({'retrain__freeze': True}, 'config.retrain.freeze is True'),
    ({'parallel__devices': 2}, 'config.parallel.devices is 2'),
  ],
)
def test_what_the_peer_lacks_is_refused_by_its_name(
  torch, changes, line, monkeypatch
):
  monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
  with pytest.raises(ValueError, match=line):
    torch_baseline.check(fakes.make_config(**changes))


@pytest.mark.torch
def test_torch_on_another_device_than_jax_is_refused(torch, monkeypatch):
  monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
  with pytest.raises(ValueError, match='JAX is on a cpu and torch on a gpu'):
    torch_baseline.check(fakes.make_config())


@pytest.mark.torch
def test_a_way_that_this_machine_lacks_is_told_with_the_reason(
  torch, monkeypatch
):
  def broken(function):
    raise RuntimeError('inductor raised:\n  NoCompiler: g++\n\nSet THIS=1')

  monkeypatch.setattr(torch, 'compile', broken)
  names, missing = torch_baseline.variants()
  assert names == ('eager',)
  assert missing['compile'] == 'inductor raised: NoCompiler: g++'
  assert missing.keys() == {'compile', 'cuda_graphs'}


@pytest.mark.torch
def test_exact_steps_round_no_factor_and_others_do(torch):
  run, state, _ = build()
  for exact, precision in ((True, 'highest'), (False, 'high')):
    torch_baseline.make_step(run, state, TOTAL, 'eager', exact=exact)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 is not exact


@pytest.mark.torch
def test_unknown_variants_and_unrendered_batches_are_refused(torch):
  run, state, batch = build()
  with pytest.raises(ValueError, match="peer variant 'quick'"):
    torch_baseline.make_step(run, state, TOTAL, 'quick')
  step = torch_baseline.make_step(run, state, TOTAL, 'eager')
  with pytest.raises(ValueError, match=r'config\.data\.render=host'):
    step.place({'images': batch['views'][:, 0], 'decisions': {}})


@pytest.mark.parametrize(
  'error, told', [(RuntimeError('no g++'), True), (NameError('ours'), False)]
)
def test_only_what_torch_raises_is_told_as_a_missing_compiler(
  monkeypatch, error, told
):
  def compile_(function):
    raise error

  fake = types.SimpleNamespace(
    compile=compile_,
    ones=lambda *shape, device: None,
    device=lambda name: types.SimpleNamespace(type=name),
    cuda=types.SimpleNamespace(is_available=lambda: False),
  )
  monkeypatch.setitem(sys.modules, 'torch', fake)
  if told:
    names, missing = torch_baseline.variants()
    assert names == ('eager',) and missing['compile'] == 'no g++'
  else:
    with pytest.raises(NameError, match='ours'):
      torch_baseline.variants()
