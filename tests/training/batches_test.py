"""Which records a stage trains on, and the batches that its steps take."""

import dataclasses

import numpy as np
import pytest

from dpjax.data import store as store_lib
from dpjax.errors import UserError
from dpjax.training import batches
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
  records = run.records
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
  assert run.records.splits == (
    data.split('train'),
    data.split('unlabelled'),
  )
  del data.splits['train']  # A set without any label.
  run = build('pretrain', data=data)
  assert run.records.splits == (data.split('unlabelled'),)


def test_stage_two_reads_train_and_nothing_else(extra):
  run = build('retrain', data__pretrain_extra='extra')
  run.data.splits['unlabelled'] = extra.split('unlabelled')
  assert run.records.splits == (run.data.split('train'),)


def test_an_extra_set_of_other_squares_is_refused_by_field(extra, monkeypatch):
  smaller = dataclasses.replace(extra, size=32)
  monkeypatch.setattr(store_lib, 'load', lambda path: smaller)
  with pytest.raises(UserError, match=r'data\.pretrain_extra.*32.*48') as error:
    build('pretrain', data__pretrain_extra='extra')
  assert '\n' not in str(error.value)


def test_an_extra_set_of_another_fit_is_refused_by_field(extra, monkeypatch):
  padded = dataclasses.replace(extra, info={'fit': 'pad'})
  monkeypatch.setattr(store_lib, 'load', lambda path: padded)
  with pytest.raises(
    UserError, match=r'data\.pretrain_extra: extra .*fit=pad .* stretch'
  ):
    build('pretrain', data__pretrain_extra='extra')


@pytest.mark.parametrize('held_out', ['validation', 'test'])
def test_an_extra_set_that_holds_a_held_out_image_is_refused_by_name(
  held_out, extra
):
  data = fakes.make_store()
  unseen = extra.splits['unlabelled']
  # Under another name, in another place, without its label.
  unseen.pixels[4] = data.split(held_out).pixels[2]
  with pytest.raises(UserError, match=rf'60-4 .*{held_out} split') as error:
    build('pretrain', data, data__pretrain_extra='extra')
  assert 'data.pretrain_extra' in str(error.value)


def test_images_on_the_device_are_those_of_every_record_in_order():
  data = fakes.make_store()
  data.splits['unlabelled'] = unlabelled(fakes.make_split(7, 48, seed=60))
  run = build(
    'pretrain',
    data=data,
    data__render='device',
    data__placement='resident',
  )
  records = run.records
  assert len(records.splits) == 2
  np.testing.assert_array_equal(
    batches.resident_images(run, records),
    records.images(np.arange(len(records))),
  )
  batch = next(iter(batches.training_stream(run)))
  assert 'images' not in batch and batch['index'].max() < len(records)
  assert 'index' in batches.place(run, batch)


def test_a_set_that_changed_before_its_images_were_read_is_refused(monkeypatch):
  run = build('pretrain', data__render='device', data__placement='resident')

  def changed(self):
    raise UserError('the set was changed')

  monkeypatch.setattr(fakes.Split, 'check_unchanged', changed)
  with pytest.raises(UserError, match='was changed'):
    batches.resident_images(run, run.records)


def test_a_training_batch_says_of_no_row_that_it_only_fills():
  run = build('pretrain')
  batch = next(iter(batches.training_stream(run)))
  assert (batch['valid'] == 1).all()
  assert set(batches.place_dispatch(run, [batch])) == {'views', 'label'}
  assert set(batches.place(run, batch)) == {'views', 'label', 'valid'}
