"""A tiny network, compiled for devices that are not there.

The compilers are extras, which CI does not install (each is over a gigabyte):
there these tests are skipped. With them:

    pip install -e '.[cuda,tpu]'
    python -m pytest tests/benchmark/ahead_test.py
"""

import pytest

from dpjax.benchmark import ahead, kernels, programs, targets
from dpjax.errors import UserError
from tests import fakes

STORE = fakes.make_store()


def bench(name, **changes):
  target = targets.find(name)
  try:
    topology = targets.open_topology(target)
  except UserError as error:
    pytest.skip(str(error))
  config = fakes.make_config(
    **{
      'model__stage_sizes': (1,),
      'model__width': 8,
      'model__dtype': 'bfloat16',
      'mgacr__stages': ('stage1',),
      'data__render': 'device',
      'parallel__devices': target.count,
      'parallel__mode': 'jit' if target.count == 1 else 'shard_map',
      **changes,
    }
  )
  return programs.Bench(config, STORE, topology)


def test_a_gpu_that_is_not_there_decides_what_a_gpu_decides():
  made = bench('h100')
  run = made.run('retrain')
  assert run.config.data.placement == 'resident'
  assert run.config.train.steps_per_dispatch == 3  # an epoch is of 3
  assert run.devices.platform == 'gpu'
  assert made.sizes('retrain')[0] == [16]  # and 64 to 1024, of 48 images
  assert len(made.sizes('retrain')[1]) == 3


@pytest.mark.parametrize('part', ['pretrain', 'retrain', 'inference'])
def test_each_part_is_compiled_for_a_gpu(part):
  found = ahead.compile_part(bench('h100'), part, 16)
  read = kernels.read(found.text)
  convolutions = [k for k in read if k.kind.startswith('__cudnn$conv')]
  # The stem on 24 x 24 cells and two convolutions on 12 x 12.
  forward = 2 * 8 * (7 * 7 * 24**2 + 2 * 9 * 8 * 12**2)
  if part == 'inference':
    assert len(convolutions) == 3
    assert sum(k.flops for k in convolutions) == 16 * forward
  else:
    assert sum(k.flops for k in convolutions) > 2 * 16 * forward
  # The set lies on the device, and no batch moves all of it.
  assert found.memory['arguments'] > 60 * 48 * 48
  assert found.memory['all'] > found.memory['arguments']


def test_a_loop_of_steps_stays_a_loop_on_a_gpu():
  made = bench('h100')
  one, three = (
    kernels.read(ahead.compile_part(made, 'retrain', 16, count).text)
    for count in (1, 3)
  )
  assert {k.times for k in three} >= {3}
  assert sum(k.times for k in three) == pytest.approx(
    3 * sum(k.times for k in one), rel=0.1
  )


def test_several_gpus_talk_to_each_other():
  found = ahead.compile_part(bench('h100x8'), 'retrain', 16)
  collectives = [k for k in kernels.read(found.text) if k.collective]
  assert {k.kind for k in collectives} == {'all-reduce'}
  # At least each weight's gradient, in float32.
  weights = 7 * 7 * 8 + 2 * 9 * 8 * 8
  assert sum(k.sent for k in collectives) >= 4 * weights


@pytest.mark.slow  # the compiler of TPUs takes half a minute for the smallest
def test_a_tpu_counts_cycles():
  found = ahead.compile_part(bench('v5e'), 'retrain', 16)
  assert sum(k.times * k.cycles for k in kernels.read(found.text)) > 1e4
