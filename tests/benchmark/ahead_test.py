"""Programs for devices that are not there: the command, and the compilers.

The compilers are extras, which CI does not install (each is over a gigabyte):
there these tests are skipped. With them:

    pip install -e '.[cuda,tpu]'
    python -m pytest tests/benchmark/ahead_test.py
"""

import dataclasses
import json
import math
import pathlib
import runpy
import threading
import types

import jax
import pytest

from dpjax import prepare
from dpjax.benchmark import ahead, kernels, programs, targets
from dpjax.distributed import parallel
from dpjax.errors import UserError
from tests import fakes

STORE = fakes.make_store()
RECORDED = pathlib.Path(__file__).parents[1] / 'recorded'


def make_config(target, **changes):
  return fakes.make_config(
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


def resolved(name, **changes):
  """The default config on a target; the tests' own devices are eight CPUs."""
  path = pathlib.Path(__file__).parents[2] / 'configs' / 'base.py'
  config = runpy.run_path(str(path))['get_config']()
  config.update_from_flattened_dict(changes)
  return ahead.resolve(config, targets.find(name))


@pytest.mark.parametrize(
  ('name', 'mode', 'devices'),
  [
    ('h100', 'jit', 1),
    ('h100x8', 'shard_map', 8),
    ('h100x64', 'shard_map', 64),
    ('v5e', 'jit', 1),
    ('v5e:4x4', 'shard_map', 16),
    ('tpu7x:2x2x1', 'shard_map', 8),
  ],
)
def test_what_follows_the_platform_follows_the_target(name, mode, devices):
  config = resolved(name)
  assert (config.parallel.mode, config.parallel.devices) == (mode, devices)
  assert config.model.dtype == 'bfloat16'
  assert config.data.render == 'device' and config.data.placement == 'auto'


def test_a_field_that_does_not_fit_the_target_is_refused_in_a_line():
  for changes, said in (
    ({'parallel.mode': 'pmap'}, 'config.parallel.mode pmap'),
    ({'parallel.mode': 'jit'}, 'pmap or shard_map on several devices'),
    ({'parallel.devices': 9}, 'config.parallel.devices is 9'),
    ({'retrain.batch_size': 12}, 'config.retrain.batch_size is 12'),
  ):
    with pytest.raises(UserError, match=said):
      resolved('h100x8', **changes)
  few = resolved('h100x8', **{'parallel.devices': 2, 'retrain.batch_size': 12})
  assert (few.parallel.mode, few.parallel.devices) == ('shard_map', 2)


def run(monkeypatch, workdir, compile_part, name='h100', **options):
  """The command, with a compiler of the test's own."""
  target = targets.find(name)
  here = parallel.Topology(tuple(jax.devices()[: target.count]), 10**9)
  monkeypatch.setattr(targets, 'open_topology', lambda target: here)
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: STORE)
  monkeypatch.setattr(ahead, 'compile_part', compile_part)
  changes = options.pop('changes', {})
  page = ahead.run_ahead(
    make_config(target, **changes), workdir, target, **options
  )
  return json.loads((workdir / 'benchmark.json').read_text()), page


def compiled(taken, name='h100'):
  memory = {'arguments': taken, 'results': 0, 'temporaries': 0, 'code': 0}
  text = (RECORDED / f'program-{name}.txt').read_text()
  return ahead.Compiled(text, memory | {'all': taken}, 1.0)


def test_each_part_batch_and_k_is_compiled_and_what_fails_is_told(
  monkeypatch, tmp_path
):
  asked = []

  def compile_part(bench, part, size, count):
    asked.append((part, size, count))
    if size == 64:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: no room\nmore')
    return compiled(10**6)

  found, page = run(
    monkeypatch, tmp_path, compile_part, dump=True,
    changes={'benchmark__batch_sizes': (16, 64),
             'benchmark__steps_per_dispatch': (1, 3)},
  )  # fmt: skip
  assert asked == [
    *[(part, size, count) for part in ('pretrain', 'retrain')
      for size, count in ((16, 1), (16, 3), (64, 1))],
    ('inference', 16, 1), ('inference', 64, 1),
  ]  # fmt: skip
  assert found['finished'] and found['target']['kind'] == H100
  one, three, failed = found['retrain']['programs']
  assert three['kernels'] == one['kernels'] / 3
  assert one['fits'] and one['memory']['all'] == 10**6
  assert failed['error'] == 'RESOURCE_EXHAUSTED: no room'
  assert {path.name for path in (tmp_path / 'programs').iterdir()} == {
    'pretrain-b16-k1-h100.txt', 'pretrain-b16-k3-h100.txt',
    'retrain-b16-k1-h100.txt', 'retrain-b16-k3-h100.txt',
    'inference-b16-k1-h100.txt',
  }  # fmt: skip
  assert (tmp_path / one['text']).read_text() == compiled(0).text
  for words in ('PREDICTED, NOT MEASURED', 'does not compile: RESOURCE',
                '1 scatter of single values', 'limit'):  # fmt: skip
    assert words in ' '.join(page.split())
  assert page + '\n' == (tmp_path / 'benchmark.md').read_text()


H100 = 'NVIDIA H100 80GB HBM3'


@pytest.mark.parametrize('bytes_a_row', [10**7, 10**8])
def test_the_largest_batch_lies_on_a_line_through_two_programs(
  bytes_a_row, monkeypatch, tmp_path
):
  asked = []

  def compile_part(bench, part, size, count):
    asked.append(size)
    return compiled(10**9 + bytes_a_row * size)

  found, page = run(
    monkeypatch, tmp_path, compile_part, fit=True,
    changes={'benchmark__parts': ('retrain',),
             'benchmark__batch_sizes': (16,),
             'benchmark__steps_per_dispatch': (1,)},
  )  # fmt: skip
  usable = int(0.75 * targets.DEVICES['h100'].memory)
  most = (usable - 10**9) // bytes_a_row // 16 * 16
  assert found['retrain']['fit'] == {
    'batch_size': most, 'bytes': 10**9 + bytes_a_row * most, 'fits': True,
  }  # fmt: skip
  assert asked == [16, 64, most]
  assert f'two programs: {most:,}' in ' '.join(page.split())


@pytest.mark.parametrize('refused', [False, True])
def test_where_memory_is_no_line_a_smaller_batch_is_tried(
  refused, monkeypatch, tmp_path
):
  asked = []
  usable = targets.DEVICES['h100'].usable

  def compile_part(bench, part, size, count):
    asked.append(size)
    taken = int(10**9 + 10**7 * size * (1 + size / 10**5))
    if refused and taken > usable:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: no room')
    return compiled(taken)

  found, _ = run(
    monkeypatch, tmp_path, compile_part, fit=True,
    changes={'benchmark__parts': ('inference',),
             'benchmark__batch_sizes': (16, 32)},
  )  # fmt: skip
  fit = found['inference']['fit']
  assert len(asked) == 4 and asked[2] > asked[3] == fit['batch_size']
  assert fit['fits'] and 0.85 * usable < fit['bytes'] <= usable


def test_where_nothing_fits_it_says_so(monkeypatch, tmp_path):
  found, page = run(
    monkeypatch, tmp_path, lambda *_: compiled(10**12), fit=True,
    changes={'benchmark__parts': ('inference',),
             'benchmark__batch_sizes': (16, 32)},
  )  # fmt: skip
  assert not found['inference']['programs'][0]['fits']
  assert 'does not fit into the memory' in page


def test_what_is_compiled_already_is_not_compiled_again_to_fit(
  monkeypatch, tmp_path
):
  asked = []

  def compile_part(bench, part, size, count):
    asked.append(size)
    return compiled(10**9 + 10**8 * size)

  run(
    monkeypatch, tmp_path, compile_part, fit=True,
    changes={'benchmark__parts': ('inference',),
             'benchmark__batch_sizes': (64,)},
  )  # fmt: skip
  assert asked[:2] == [64, 256] and len({*asked}) == len(asked)


def test_a_program_that_cannot_be_read_is_said_and_the_rest_goes_on(
  monkeypatch, tmp_path
):
  asked = []

  def compile_part(bench, part, size, count):
    asked.append(size)
    found = compiled(10**9 + 10**8 * size)
    if size == 16:
      line = 'ENTRY %main () -> f32[] {\n  %a = opaque[] parameter(0)\n}\n'
      return dataclasses.replace(found, text=line.replace('parameter', '#'))
    return found

  found, page = run(
    monkeypatch, tmp_path, compile_part, fit=True,
    changes={'benchmark__parts': ('inference',),
             'benchmark__batch_sizes': (16, 32)},
  )  # fmt: skip
  unread, read = found['inference']['programs']
  assert unread['error'].startswith('its program cannot be read: no operation')
  assert read['kernels'] > 0 and 'cannot be read' in ' '.join(page.split())
  # It was compiled, and what it takes is a point of the line.
  assert unread['fits'] and 'does not compile' not in page
  assert asked == [16, 32, found['inference']['fit']['batch_size']]


def test_a_compiler_that_takes_long_is_said_to_be_at_work(monkeypatch):
  said, told = [], threading.Event()

  def say(line):
    said.append(line)
    told.set()

  def compile_part(*_):
    told.wait()
    return compiled(10**6)

  monkeypatch.setattr(ahead, '_PATIENCE', 1e-9)
  monkeypatch.setattr(ahead, 'compile_part', compile_part)
  bench = types.SimpleNamespace(say=say)
  assert ahead._patiently(bench, 'retrain', 16, 1) == compiled(10**6)
  assert said[0].startswith('still compiling, for ')


def bench(name, **changes):
  target = targets.find(name)
  try:
    topology = targets.open_topology(target)
  except UserError as error:
    pytest.skip(str(error))
  return programs.Bench(make_config(target, **changes), STORE, topology)


@pytest.mark.compilers
def test_a_gpu_that_is_not_there_decides_what_a_gpu_decides():
  made = bench('h100')
  run = made.run('retrain')
  assert run.config.data.placement == 'resident'
  assert run.config.train.steps_per_dispatch == 3  # an epoch is of 3
  assert run.devices.platform == 'gpu'
  # Of 48 images, for what is only compiled draws none of them.
  assert made.sizes('retrain') == ([16, 64, 256, 1024], [])


@pytest.mark.compilers
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
  assert found.memory['arguments'] > 48 * 48**2
  assert found.memory['all'] > found.memory['arguments']


@pytest.mark.compilers
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


@pytest.mark.compilers
def test_several_gpus_talk_to_each_other():
  found = ahead.compile_part(bench('h100x8'), 'retrain', 16)
  collectives = [k for k in kernels.read(found.text) if k.collective]
  assert {k.kind for k in collectives} == {'all-reduce'}
  # At least each weight's gradient, in float32.
  weights = 7 * 7 * 8 + 2 * 9 * 8 * 8
  assert sum(k.sent for k in collectives) >= 4 * weights


@pytest.mark.compilers
@pytest.mark.slow  # the compiler of TPUs takes half a minute for the smallest
def test_a_tpu_counts_cycles():
  found = ahead.compile_part(bench('v5e'), 'retrain', 16)
  assert sum(k.times * k.cycles for k in kernels.read(found.text)) > 1e4


@pytest.mark.compilers
@pytest.mark.parametrize(
  'name',
  ['a100', 'b200x8', 'h100x16', 'rtx5090', 'v4:2x2x1', 'v5e', 'v5e:4x4',
   'v5p:2x2x1', 'v6e:16x16', 'tpu7x:2x2x1'],
)  # fmt: skip
def test_the_compiler_has_the_devices_that_the_table_says(name):
  target = targets.find(name)
  try:
    found = targets.open_topology(target)
  except UserError as error:
    pytest.skip(str(error))
  assert len(found.devices) == target.count
  assert {d.device_kind for d in found.devices} == {target.device.kind}
  assert len({d.process_index for d in found.devices}) == target.processes
  assert found.platform == target.device.platform
  shape = targets.slice_shape(found.devices)
  if target.shape:
    assert math.prod(shape) * target.device.cores_a_chip == target.count
  else:
    assert shape == ()
