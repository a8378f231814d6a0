"""From a config and a set to the pieces of a run."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from dpjax.data import store as store_lib
from dpjax.data.feed import pipeline
from dpjax.distributed import parallel
from dpjax.errors import UserError
from dpjax.training import build as build_lib
from tests import fakes


def build(stage='retrain', data=None, **changes):
  config = fakes.make_config(
    model__stage_sizes=(1,), model__width=4, mgacr__stages=('stage1',),
    **changes,
  )  # fmt: skip
  return build_lib.build(config, stage, data or fakes.make_store())


def unlabelled(split):
  """The same images as nobody has read them."""
  return dataclasses.replace(
    split,
    labels=np.full_like(split.labels, -1),
    boxes=np.zeros_like(split.boxes),
    num_boxes=np.zeros_like(split.num_boxes),
  )


@pytest.fixture
def extra(monkeypatch):
  """A second set, 'extra', which store.load finds."""
  other = fakes.make_store(train=10, seed=50)
  other.splits['unlabelled'] = unlabelled(fakes.make_split(7, 48, seed=60))
  found = {'extra': other}
  monkeypatch.setattr(store_lib, 'load', lambda path: found[path])
  return other


def test_stage_one_reads_train_and_the_extra_sets_train_and_unlabelled(extra):
  run = build('pretrain', data__pretrain_extra='extra')
  records = run.training_records
  want = [
    run.data.split('train'),
    extra.split('train'),
    extra.split('unlabelled'),
  ]
  assert len(records) == 48 + 10 + 7
  np.testing.assert_array_equal(
    records.column('ids'), np.concatenate([split.ids for split in want])
  )
  every = np.arange(len(records))
  np.testing.assert_array_equal(
    records.images(every), np.concatenate([split.pixels for split in want])
  )


def test_stage_one_reads_the_unlabelled_images_of_the_set_too():
  data = fakes.make_store()
  data.splits['unlabelled'] = unlabelled(fakes.make_split(7, 48, seed=60))
  run = build('pretrain', data=data)
  assert run.training_records.splits == (
    data.split('train'),
    data.split('unlabelled'),
  )
  del data.splits['train']  # A set without any label.
  run = build('pretrain', data=data)
  assert run.training_records.splits == (data.split('unlabelled'),)


def test_stage_two_reads_train_and_nothing_else(extra):
  run = build('retrain', data__pretrain_extra='extra')
  run.data.splits['unlabelled'] = extra.split('unlabelled')
  assert run.training_records.splits == (run.data.split('train'),)


def test_an_extra_set_of_other_squares_is_refused_by_field(extra, monkeypatch):
  smaller = dataclasses.replace(extra, size=32)
  monkeypatch.setattr(store_lib, 'load', lambda path: smaller)
  run = build('pretrain', data__pretrain_extra='extra')
  with pytest.raises(
    ValueError, match=r'data\.pretrain_extra.*32.*48'
  ) as error:
    _ = run.training_records
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('held_out', ['validation', 'test'])
def test_an_extra_set_that_holds_a_held_out_image_is_refused_by_name(
  held_out, extra
):
  run = build('pretrain', data__pretrain_extra='extra')
  unseen = extra.splits['unlabelled']
  # Under another name, in another place, without its label.
  unseen.pixels[4] = run.data.split(held_out).pixels[2]
  with pytest.raises(ValueError, match=rf'60-4 .*{held_out} split') as error:
    _ = run.training_records
  assert 'data.pretrain_extra' in str(error.value)


def test_the_fingerprint_is_the_training_sets_and_not_its_places():
  run = build()
  moved = dataclasses.replace(run.data, path='elsewhere')
  assert build(data=moved).fingerprint == run.fingerprint
  run.check_trained_on({'trained_on': run.fingerprint})
  run.check_trained_on({})  # a checkpoint from before it was recorded
  other = fakes.make_store()
  other.splits['train'].pixels[0, 0, 0] += 1
  assert build(data=other).fingerprint != run.fingerprint
  with pytest.raises(ValueError, match=r'config\.data\.path: memory'):
    build(data=other).check_trained_on({'trained_on': run.fingerprint})


def test_class_counts_are_of_every_class_and_of_this_split_alone():
  split = fakes.make_split(10, 8, seed=0)  # labels 0, 1, 2, 0, 1, ...
  counts = build_lib.class_counts(split, num_classes=5)
  np.testing.assert_array_equal(counts, [4, 3, 3, 0, 0])


def test_a_set_of_one_class_is_refused_in_stage_two():
  split = dataclasses.replace(
    fakes.make_split(10, 8, seed=0), labels=np.zeros(10, np.int32)
  )
  with pytest.raises(UserError, match=r'data\.path: the set has 1 class;'):
    build_lib.class_counts(split, num_classes=1)


def test_an_unlabelled_training_image_is_refused_by_name_in_stage_two():
  data = fakes.make_store()
  data.split('train').labels[5] = -1
  with pytest.raises(ValueError, match=r'data\.path: 0-5 .*no label'):
    build('retrain', data)
  build('pretrain', data)  # needs none


COUNTS = np.array([700, 200, 90, 9, 1])


def weights(**loss):
  """Weight of each class: the loss of logits that prefer none, over log C."""
  config = fakes.make_config(
    loss__classification='cb_ce',
    **{f'loss__{name}': value for name, value in loss.items()},
  ).loss
  loss = build_lib.classification_loss(config, COUNTS)
  values = loss(np.zeros((5, 5), np.float32), np.arange(5))
  return np.asarray(values, np.float64) / np.log(5)


@pytest.mark.parametrize('beta', [0.0, 0.9, 0.9999, 1.0])
def test_normalised_by_images_a_training_image_weighs_one_on_average(beta):
  found = weights(normalize='images', beta=beta)
  np.testing.assert_allclose(
    (found * COUNTS).sum() / COUNTS.sum(), 1.0, rtol=1e-5
  )


@pytest.mark.parametrize('beta', [0.0, 0.9, 0.9999, 1.0])
def test_normalised_by_classes_the_weights_sum_to_their_number(beta):
  found = weights(normalize='classes', beta=beta)
  np.testing.assert_allclose(found.sum(), 5.0, rtol=1e-5)


def test_the_normalisation_scales_the_weights_and_nothing_else():
  ratio = weights(normalize='images') / weights(normalize='classes')
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
  # Eq. 8, written out.
  want = (1 - 0.9999) / (1 - 0.9999**COUNTS)
  np.testing.assert_allclose(
    weights(normalize='classes', beta=0.9999), 5 * want / want.sum(), rtol=1e-4
  )


@pytest.mark.parametrize('devices', [1, 4])
def test_inference_covers_a_whole_split_in_order_tail_included(devices):
  mode = 'jit' if devices == 1 else 'shard_map'
  run = build(parallel__devices=devices, parallel__mode=mode)
  split = run.data.split('test')
  assert len(split) == 13  # no multiple of a batch
  sizes = []

  def eval_step(state, batch, images):
    assert images is None
    assert state == 'state' and set(batch) == {'views', 'label'}
    sizes.append(len(batch['label']))
    return {
      'label': batch['label'],
      'mean': np.asarray(batch['views']).mean(axis=(1, 2, 3)),
    }

  found = list(run.infer(eval_step, 'state', split, batch_size=5))
  want = 5 if devices == 1 else 8  # a multiple of the devices
  assert set(sizes) == {want}
  assert [rows for rows, _ in found] == [want] * (13 // want) + [13 % want]
  labels = np.concatenate([outputs['label'] for _, outputs in found])
  means = np.concatenate([outputs['mean'] for _, outputs in found])
  np.testing.assert_array_equal(labels, split.labels)
  np.testing.assert_array_equal(means, split.pixels.mean(axis=(1, 2)))


@pytest.fixture
def torch_file(tmp_path):
  """An .npz in torch's layout and names, as of ImageNet: (path, arrays)."""
  rng = np.random.default_rng(0)
  shapes = {'conv1.weight': (4, 3, 7, 7)}
  for block in ('conv1', 'conv2'):
    shapes[f'layer1.0.{block}.weight'] = (4, 4, 3, 3)
  for norm in ('bn1', 'layer1.0.bn1', 'layer1.0.bn2'):
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      shapes[f'{norm}.{leaf}'] = (4,)
  shapes |= {'fc.weight': (1000, 4), 'fc.bias': (1000,)}
  arrays = {k: rng.random(s).astype(np.float32) for k, s in shapes.items()}
  arrays['bn1.num_batches_tracked'] = np.int64(100)
  np.savez(tmp_path / 'imagenet.npz', **arrays)
  return str(tmp_path / 'imagenet.npz'), arrays


@pytest.mark.parametrize('mode', ['jit', 'shard_map'])
def test_torch_weights_reach_the_backbone_and_the_classifier_stays_fresh(
  mode, torch_file
):
  path, arrays = torch_file
  devices = 1 if mode == 'jit' else 4
  run = build(
    init__backbone=path, parallel__mode=mode, parallel__devices=devices
  )
  backbone = build_lib.read_backbone(path, run)
  state = build_lib.initial_state(run, optax.sgd(0.1), backbone, path)
  params = state.params['backbone']
  stem = arrays['conv1.weight'].sum(axis=1, keepdims=True)
  for kernel, want in (
    (params['conv1']['kernel'], stem),
    (
      params['layer1_0']['conv2']['kernel'],
      arrays['layer1.0.conv2.weight'],
    ),
  ):
    np.testing.assert_array_equal(kernel, want.transpose(2, 3, 1, 0))
  np.testing.assert_array_equal(params['bn1']['scale'], arrays['bn1.weight'])
  np.testing.assert_array_equal(
    state.batch_stats['backbone']['layer1_0']['bn2']['var'],
    arrays['layer1.0.bn2.running_var'],
  )
  assert params['fc']['kernel'].shape == (4, 3)
  assert 'attention' in state.params
  # Where the compiled step takes it.
  for leaf in jax.tree.leaves(state):
    assert len(leaf.sharding.device_set) == devices


def test_torch_weights_of_another_network_are_refused_by_array(torch_file):
  path, _ = torch_file
  config = fakes.make_config(model__stage_sizes=(2,), mgacr__stages=('stage1',),
                             model__width=4)  # fmt: skip
  run = build_lib.build(config, 'retrain', fakes.make_store())
  with pytest.raises(ValueError, match=r'layer1\.1\.\S+ is missing') as error:
    build_lib.read_backbone(path, run)
  assert str(error.value).startswith(f'config.init.backbone: {path}: ')


def test_images_lie_on_the_device_by_default_where_they_take_a_quarter(
  monkeypatch,
):
  needed = (48 + 12) * 48 * 48  # training and validation images of the fake set

  def resident(free, **changes):
    monkeypatch.setattr(parallel, 'free_bytes', lambda: free)
    return build(**{'data__render': 'device', **changes}).resident

  assert resident(4 * needed + 1)
  assert not resident(4 * needed)
  assert not resident(None)  # a CPU does not tell
  assert not resident(99 * needed, data__render='host')
  assert not resident(99 * needed, data__placement='stream')
  assert resident(0, data__placement='resident')


def test_images_on_the_device_are_those_of_every_record_in_order():
  data = fakes.make_store()
  data.splits['unlabelled'] = unlabelled(fakes.make_split(7, 48, seed=60))
  run = build(
    'pretrain',
    data=data,
    data__render='device',
    data__placement='resident',
  )
  records = run.training_records
  assert len(records.splits) == 2
  np.testing.assert_array_equal(
    run.images(records), records.images(np.arange(len(records)))
  )
  batch = next(iter(run.training_stream()))
  assert 'images' not in batch and batch['index'].max() < len(records)
  assert 'index' in run.place(batch)


def test_a_dispatch_holds_more_steps_where_batches_are_small(monkeypatch):
  def steps_per_dispatch(batch_size, **changes):
    return build(
      retrain__batch_size=batch_size, **changes
    ).steps_per_dispatch  # fmt: skip

  assert steps_per_dispatch(16) == 1  # on a CPU
  assert steps_per_dispatch(16, train__steps_per_dispatch=3) == 3
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(pipeline.Records, '__len__', lambda _: 32000)
  assert [steps_per_dispatch(n) for n in (16, 64, 256, 1024, 4096)] == [
    16, 16, 4, 1, 1,
  ]  # fmt: skip
  assert steps_per_dispatch(1024, parallel__devices=8) == 8  # 128 a device
  # No more than there are steps between two validations.
  assert steps_per_dispatch(16, eval__every=0.005) == 10
  assert steps_per_dispatch(16, eval__every=0.0) == 16
