"""A compiled step over a whole split."""

import os
import signal
import threading

import numpy as np
import pytest

from dpjax import signals
from dpjax.training import build as build_lib
from dpjax.training import inference
from tests import fakes


def build(stage='retrain', data=None, **changes):
  config = fakes.make_config(
    model__stage_sizes=(1,), model__width=4, mgacr__stages=('stage1',),
    **changes,
  )  # fmt: skip
  return build_lib.build(config, stage, data or fakes.make_store())


@pytest.mark.parametrize('devices', [1, 4])
def test_inference_covers_a_whole_split_in_order_tail_included(devices):
  mode = 'jit' if devices == 1 else 'shard_map'
  run = build(parallel__devices=devices, parallel__mode=mode)
  split = run.data.split('test')
  assert len(split) == 13  # no multiple of a batch
  sizes = []

  def eval_step(state, batch, images):
    assert images is None
    assert state == 'state' and set(batch) == {'images', 'label', 'valid'}
    sizes.append(len(batch['label']))
    return {
      'label': batch['label'],
      'mean': np.asarray(batch['images']).mean(axis=(1, 2)),
    }

  found = list(inference.infer(run, eval_step, 'state', split, batch_size=5))
  want = 5 if devices == 1 else 8  # a multiple of the devices
  assert set(sizes) == {want}
  assert [rows for rows, _ in found] == [want] * (13 // want) + [13 % want]
  labels = np.concatenate([outputs['label'] for _, outputs in found])
  means = np.concatenate([outputs['mean'] for _, outputs in found])
  np.testing.assert_array_equal(labels, split.labels)
  np.testing.assert_array_equal(means, split.pixels.mean(axis=(1, 2)))


def test_a_signal_is_looked_at_while_the_step_is_compiled():
  run = build()
  compiled = threading.Event()

  def eval_step(*_):
    os.kill(os.getpid(), signal.SIGINT)
    compiled.wait()

  with signals.noted(), pytest.raises(KeyboardInterrupt):
    next(inference.infer(run, eval_step, 'state', run.data.split('test'), 5))
  compiled.set()
