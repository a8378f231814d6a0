"""What benchmark measures is there, and is what it says."""

import contextlib
import json
import math
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dpjax import prepare
from dpjax.benchmark import (
  against_torch,
  benchmark,
  hlo,
  programs,
  targets,
  text,
  timing,
  torch_baseline,
)
from dpjax.errors import NonFinite, UserError
from dpjax.training import loop
from tests import fakes

STORE = fakes.make_store()
UNCACHED = timing.uncached  # Before it is patched.
BATCH = 16


def make_config(**changes):
  return fakes.make_config(
    **{
      'model__stage_sizes': (1,),
      'model__width': 4,
      'mgacr__stages': ('stage1',),
      'benchmark__seconds': 0.01,
      'benchmark__repeats': 2,
      'benchmark__batch_sizes': (BATCH,),
      **changes,
    }
  )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """A set in memory, peaks of small arrays, and programs that are kept."""
  patch(monkeypatch)


def patch(monkeypatch):
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: STORE)
  monkeypatch.setattr(timing, 'uncached', contextlib.nullcontext)
  monkeypatch.setattr(timing, '_SMALLEST_COPY', 2**20)
  monkeypatch.setattr(timing, '_LONG', 0.0)


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  """All parts of a small config: (benchmark.json, table, stages trained)."""
  trained = []
  real = loop.train

  def counted(config, stage, workdir):
    trained.append((stage, config.eval.every, config.init.backbone))
    real(config, stage, workdir)

  workdir = tmp_path_factory.mktemp('benchmark')
  with pytest.MonkeyPatch.context() as monkeypatch:
    patch(monkeypatch)
    monkeypatch.setattr(loop, 'train', counted)
    page = benchmark.run_benchmark(
      make_config(
        pretrain__batch_size=8,
        benchmark__batch_sizes=(BATCH, 64),
        benchmark__steps_per_dispatch=(1, 2),
      ),
      workdir,
    )
  found = json.loads((workdir / 'benchmark.json').read_text())
  assert (workdir / 'benchmark.md').read_text() == page + '\n'
  return found, page, trained


def check_rates(of):
  values = [of[name] for name in ('min', 'median', 'max')]
  assert values == sorted(values) and values[0] > 0
  assert all(map(math.isfinite, values))


def test_every_batch_size_is_timed_and_the_own_one_with_every_k(measured):
  for stage, unit, wanted in (
    ('pretrain', 'pairs', [(8, 1), (8, 2), (BATCH, 1)]),
    ('retrain', 'images', [(BATCH, 1), (BATCH, 2)]),
    ('inference', 'images', [(BATCH, 1)]),
  ):
    part = measured[0][stage]
    assert part['unit'] == unit
    assert wanted == [
      (o['batch_size'], o['steps_per_dispatch']) for o in part['step']
    ]


def test_each_measurement_has_all_its_numbers(measured):
  found = measured[0]
  for part in ('pretrain', 'retrain', 'inference'):
    for one in found[part]['step']:
      check_rates(one['ms_per_step'])
      check_rates(one['per_second'])
      # The fastest repeat is one and the same.
      assert one['per_second']['max'] == pytest.approx(
        1e3 * one['batch_size'] / one['ms_per_step']['min']
      )
      for name in ('compile_seconds', 'program_bytes',
                   'flops_per_second', 'flops_share',
                   'bytes_per_second', 'bytes_share'):  # fmt: skip
        assert 0 < one[name] < math.inf
      assert one['peak_bytes'] is None  # A CPU does not tell.
  for name in ('flops_per_second', 'bytes_per_second'):
    check_rates(found['peaks'][name])
  assert found['finished'] and found['seconds'] > 0


def test_rate_and_share_follow_from_work_time_and_peak(measured):
  found = measured[0]
  for one in found['retrain']['step']:
    rate = one['work']['flops'] / (one['ms_per_step']['median'] / 1e3)
    peak = found['peaks']['flops_per_second']['median']
    assert one['flops_per_second'] == pytest.approx(rate)
    assert one['flops_share'] == pytest.approx(rate / peak)


def test_the_work_of_a_step_is_that_of_its_convolutions(measured):
  one = measured[0]['retrain']['step'][0]
  # Of 48 pixels: the stem on 24 x 24 cells and one block of two convolutions on
  # 12 x 12, 4 channels wide; then two attention maps from two channels.
  stem = 7 * 7 * 4 * 24**2
  block = 2 * (9 * 4 * 4) * 12**2
  attention = 2 * (7 * 7 * 2) * 12**2
  # Two operations a product; forward, and backward to the inputs and to the
  # weights, but not to the radiographs.
  an_image = 2 * (3 * (stem + block + attention) - stem)
  # What is left out (BatchNorm, losses, SGD, ...) is a few per cent even of
  # this network, and the edges, where kernels reach into nothing, are too.
  wanted = one['batch_size'] * an_image
  assert one['work']['flops'] == pytest.approx(wanted, rel=0.05)


def test_the_work_of_k_steps_is_told_by_the_program_of_one(measured):
  for stage in ('pretrain', 'retrain'):
    one, two = measured[0][stage]['step'][:2]
    assert one['batch_size'] == two['batch_size']
    assert (one['steps_per_dispatch'], two['steps_per_dispatch']) == (1, 2)
    assert one['work'] == two['work'] and two['work']['flops'] > 0


def test_sizes_that_do_not_fit_are_left_out_and_said(measured):
  found, page, _ = measured
  for part in ('pretrain', 'retrain', 'inference'):
    (one,) = found[part]['left_out']
    assert one['batch_size'] == 64 and '48 training' in one['why']
  assert 'batch 64 left out: there are 48 training radiographs' in page


def test_end_to_end_is_the_training_loop(measured):
  found, _, trained = measured
  assert trained == [('pretrain', 0.0, None), ('retrain', 0.0, None)]
  for stage in ('pretrain', 'retrain'):
    one = found[stage]['end_to_end']
    check_rates(one['per_second'])
    alone = found[stage]['step'][0]
    assert one['steps_per_dispatch'] == alone['steps_per_dispatch'] == 1
    assert one['batch_size'] == alone['batch_size']
    assert one['step_only_per_second'] == alone['per_second']['median']
    assert one['stall_share'] == pytest.approx(
      1 - one['per_second']['median'] / alone['per_second']['median']
    )


def test_the_input_is_measured_in_each_way(measured):
  for stage in ('pretrain', 'retrain'):
    rates = measured[0]['input'][stage]['rates']
    assert [*rates] == ['store', 'decisions', 'host', 'device', 'resident']
    for one in rates.values():
      check_rates(one['per_second'])


def test_where_and_with_what_is_on_record(measured):
  found = measured[0]
  assert found['device']['platform'] == 'cpu' and found['device']['used'] == 1
  assert found['versions']['jax'] == jax.__version__
  assert 'XLA_FLAGS' in found['environment']
  assert found['config']['model']['width'] == 4
  assert found['host']['cpus'] > 0 and found['command']


def test_the_table_fits_a_terminal_and_says_what_it_shows(measured):
  found, page, _ = measured
  assert max(map(len, page.splitlines())) <= text.WIDTH
  for words in (
    'Stage I, contrastive pre-training: step only', 'pairs/s',
    'Stage II, re-training: end to end', 'input stall', 'images/s',
    'Inference of stage II: step only', 'input only, batch 16',
    'decisions only, no pixels', 'not hardware counters', 'compile s',
    found['device']['kind'], f'jax {jax.__version__}', 'float32',
  ):  # fmt: skip
    assert words in page
  stall = {**found['retrain']['end_to_end'], 'stall_share': -0.25}
  noisy = {**found, 'retrain': {**found['retrain'], 'end_to_end': stall}}
  table = text.format_text(noisy)
  assert ' 0.0 % |' in table and '-25.0 %' not in table


def test_where_the_device_is_known_the_model_stands_beside(
  tmp_path, monkeypatch
):
  known = targets.DEVICES['h100']
  monkeypatch.setattr(targets, 'of_kind', lambda kind: known)
  page = benchmark.run_benchmark(
    make_config(benchmark__parts=('inference',)), tmp_path
  )
  (one,) = json.loads((tmp_path / 'benchmark.json').read_text())['inference'][
    'step'
  ]
  # The same products as XLA's estimate, which has all other work too.
  assert one['predicted']['flops'] == pytest.approx(
    one['work']['flops'], rel=0.1
  )
  assert one['predicted']['kernels'] > 5
  rates = one['predicted']['per_second']
  assert 0 < rates['worst'] < rates['best']
  assert '| kernels |' in page and 'predicted |' in page
  assert 'what benchmark --target says' in page


def test_a_program_of_another_form_is_measured_all_the_same(
  tmp_path, monkeypatch
):
  def parse(text):
    raise hlo.UnknownForm('not an instruction: new')

  monkeypatch.setattr(hlo, 'parse', parse)
  monkeypatch.setattr(targets, 'of_kind', lambda kind: targets.DEVICES['h100'])
  config = make_config(benchmark__parts=('inference',))
  benchmark.run_benchmark(config, tmp_path)
  found = json.loads((tmp_path / 'benchmark.json').read_text())
  (one,) = found['inference']['step']
  check_rates(one['per_second'])
  assert one['predicted'] is None


def test_between_programs_no_state_lies_on_the_devices():
  bench = programs.Bench(make_config(), STORE)
  for part in ('retrain', 'inference'):
    state = bench.state(part)
    jax.tree.map(lambda x: x.delete(), state)  # as a step does that is given it
  kept = jax.tree.leaves(bench.weights('retrain'))
  assert {type(x) for x in kept} == {np.ndarray}


def test_several_devices_are_measured_too(tmp_path):
  config = make_config(
    benchmark__parts=('retrain', 'inference'), parallel__devices=2,
    benchmark__batch_sizes=(7, BATCH),
  )  # fmt: skip
  benchmark.run_benchmark(config, tmp_path)
  found = json.loads((tmp_path / 'benchmark.json').read_text())
  assert found['device']['mode'] == 'pmap' and found['device']['used'] == 2
  for part in ('retrain', 'inference'):
    check_rates(found[part]['step'][0]['per_second'])
    assert found[part]['left_out'] == [
      {'batch_size': 7, 'why': 'not a multiple of the 2 devices'}
    ]
  assert 'input' not in found and 'pretrain' not in found


def test_a_size_without_enough_memory_is_said_and_the_sweep_goes_on(
  tmp_path, monkeypatch
):
  real = timing.compile_ahead

  def compile_ahead(step, state, batch, images):
    if len(batch['label']) == 8:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
    return real(step, state, batch, images)

  monkeypatch.setattr(timing, 'compile_ahead', compile_ahead)
  config = make_config(
    benchmark__parts=('inference',), benchmark__batch_sizes=(8, BATCH)
  )
  page = benchmark.run_benchmark(config, tmp_path)
  found = json.loads((tmp_path / 'benchmark.json').read_text())
  small, large = found['inference']['step']
  assert small['error'] == 'out of device memory'
  check_rates(large['per_second'])
  assert 'batch 8, K 1: out of device memory' in page


def test_another_error_is_no_lack_of_memory(tmp_path, monkeypatch):
  def compile_ahead(*_):
    raise jax.errors.JaxRuntimeError('INTERNAL: broken')

  monkeypatch.setattr(timing, 'compile_ahead', compile_ahead)
  config = make_config(benchmark__parts=('inference',))
  with pytest.raises(jax.errors.JaxRuntimeError, match='broken'):
    benchmark.run_benchmark(config, tmp_path)


def test_a_training_that_diverges_end_to_end_is_said_and_the_rest_goes_on(
  tmp_path, monkeypatch
):
  def diverge(*_):
    raise NonFinite('step 3: loss is nan')

  monkeypatch.setattr(loop, 'train', diverge)
  config = make_config(benchmark__parts=('retrain', 'inference'))
  page = benchmark.run_benchmark(config, tmp_path)
  found = json.loads((tmp_path / 'benchmark.json').read_text())
  check_rates(found['retrain']['step'][0]['per_second'])
  check_rates(found['inference']['step'][0]['per_second'])
  assert 'the training diverged (step 3: loss is nan)' in page


def test_a_batch_above_the_set_is_refused_before_anything_is_measured(
  tmp_path,
):
  config = make_config(retrain__batch_size=64)
  with pytest.raises(
    UserError, match=r'config\.retrain\.batch_size is 64: there are 48'
  ):
    benchmark.run_benchmark(config, tmp_path / 'none')
  assert not (tmp_path / 'none').exists()


def test_a_missing_peer_is_one_line_before_anything_is_prepared(
  tmp_path, monkeypatch
):
  def missing():
    raise ValueError('benchmark --peer=torch needs PyTorch')

  def prepared(_):
    raise AssertionError('a set was prepared')

  monkeypatch.setattr(torch_baseline, '_torch', missing)
  monkeypatch.setattr(prepare, 'open_prepared', prepared)
  with pytest.raises(ValueError, match=r'^benchmark --peer=torch needs'):
    benchmark.run_benchmark(make_config(), tmp_path / 'none', 'torch')
  assert not (tmp_path / 'none').exists()


def test_what_is_timed_is_compiled_and_not_read_from_the_cache():
  folder = pathlib.Path(jax.config.jax_compilation_cache_dir)

  def uncached_probe(x):
    return x * 1.2345 - 6.789

  def cached_probe(x):
    return x * 2.3456 - 7.891

  # By name: other tests may fill the same folder at the same time.
  with UNCACHED():
    jax.jit(uncached_probe).lower(1.0).compile()
  assert not [*folder.glob('jit_uncached_probe-*')]
  jax.jit(cached_probe).lower(1.0).compile()
  assert [*folder.glob('jit_cached_probe-*')]  # And on again.


def test_the_work_of_other_processes_is_seen():
  if not pathlib.Path('/proc/stat').exists():
    pytest.skip('only Linux tells')
  spin = 'import time; t = time.process_time\nwhile t() < 0.5: pass'
  seen = timing.Others()
  subprocess.run([sys.executable, '-S', '-c', spin], check=True)
  assert seen.cores() > 0.4


def test_repeats_take_their_time_and_go_in_turns():
  made = []

  def call(name):
    def run(number):
      made.append((name, number))
      jax.block_until_ready(np.ones(number).sum())

    return run

  times = timing.measure({'a': call('a'), 'b': call('b')}, 3, 0.005)
  assert [len(t) for t in times.values()] == [3, 3]
  names = [name for name, number in made if number > 1]
  # Once the warm-up is over, each block of one comes before that of the other.
  tail = [n for i, n in enumerate(names) if i == 0 or names[i - 1] != n][-6:]
  assert tail == ['a', 'b'] * 3
  assert timing.summary([3, 1, 2]) == {'median': 2, 'min': 1, 'max': 3}


@pytest.fixture
def eager(monkeypatch):
  """PyTorch in one way: the others compile for long."""
  import torch

  monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
  missing = {'compile': 'no compiler'}
  monkeypatch.setattr(torch_baseline, 'variants', lambda: (('eager',), missing))


def exchange_a_filter(monkeypatch):
  real = torch_baseline.to_torch

  def wrong(*args):
    arrays = real(*args)
    name = 'backbone.layer1.0.conv1.weight'
    kernel = arrays[name].copy()
    kernel[0] = kernel[1]
    return arrays | {name: kernel}

  monkeypatch.setattr(torch_baseline, 'to_torch', wrong)


def leave_out_a_layer(monkeypatch):
  import torch

  real = torch_baseline.Step.__init__

  def lacking(self, *args):
    real(self, *args)
    self.network['backbone']['layer1'][0]['conv2'] = torch.nn.Identity()

  monkeypatch.setattr(torch_baseline.Step, '__init__', lacking)


@pytest.mark.torch
@pytest.mark.parametrize(
  ('fault', 'parts'),
  [
    (exchange_a_filter, ('pretrain', 'retrain', 'inference')),
    (leave_out_a_layer, ('pretrain', 'retrain')),
  ],
)
def test_a_peer_that_computes_something_else_is_not_timed(
  eager, monkeypatch, fault, parts
):
  fault(monkeypatch)
  # In bfloat16 the losses of some of these would pass for the same.
  bench = programs.Bench(make_config(model__dtype='bfloat16'), STORE)
  for part in parts:
    found = against_torch.measure_both(bench, part, ('eager',))
    assert 'in float32 the ' in found['check']['error'], part
    assert found['sizes'] == []


@pytest.mark.torch
def test_a_peer_that_fails_in_the_type_of_the_config_is_not_timed(
  eager, monkeypatch
):
  real = torch_baseline.Step.infer

  def infer(self, batch):
    return (1.1 if self._bfloat16 else 1.0) * real(self, batch)

  monkeypatch.setattr(torch_baseline.Step, 'infer', infer)
  bench = programs.Bench(make_config(model__dtype='bfloat16'), STORE)
  found = against_torch.measure_both(bench, 'inference', ('eager',))
  (one,) = found['sizes']
  assert 'error' not in found['check']
  assert 'the logits of eager differs by' in one['error']
  assert 'per_second' not in one


@pytest.mark.torch
def test_pytorch_computes_the_same_and_is_compared(
  eager, tmp_path, monkeypatch
):
  monkeypatch.setenv(programs.MEMORY_SHARE, '.5')
  config = make_config(
    benchmark__parts=('pretrain', 'retrain', 'inference'), data__render='device'
  )
  page = benchmark.run_benchmark(config, tmp_path, 'torch')
  found = json.loads((tmp_path / 'benchmark.json').read_text())['peer']
  for part in ('pretrain', 'retrain', 'inference'):
    assert found[part]['check']['differences']['eager'] < 1e-4
    (one,) = found[part]['sizes']
    assert one['differences']['eager'] < 1e-4
    rates = one['per_second']
    assert (
      one['ratios']['eager']['dpjax']
      == one['ratio']
      == pytest.approx(rates['dpjax']['median'] / rates['eager']['median'])
    )
  assert found['memory_share_of_jax'] == '.5'
  assert max(map(len, page.splitlines())) <= text.WIDTH
  for words in (
    'against PyTorch', f'{found["version"]} on cpu',
    'compile: not available (no compiler)', 'also computes accuracy',
  ):  # fmt: skip
    assert words in ' '.join(page.split())


@pytest.mark.torch
def test_inference_begins_with_views_for_both_and_ends_with_logits(eager):
  bench = programs.Bench(
    make_config(data__image_size=32, data__render='device'), STORE
  )
  run = against_torch._run(bench, 'inference', BATCH)
  program, batch, host = against_torch._program(bench, run, 'inference')
  assert 'images' not in host and host['views'].shape == (BATCH, 1, 32, 32)
  np.testing.assert_array_equal(batch['views'], host['views'])
  assert program(bench.state('inference'), batch, None).keys() == {'logits'}


@pytest.mark.torch
def test_several_steps_a_dispatch_are_compared_too_and_count_as_so_many(
  eager, tmp_path, monkeypatch
):
  real = timing.measure

  def measure(calls, *args):
    if 'dpjax' not in calls:
      return real(calls, *args)
    for call in calls.values():
      call(2)
    return {'dpjax': [0.5], 'dpjax, K=2': [0.8], 'eager': [0.75]}

  monkeypatch.setattr(timing, 'measure', measure)
  config = make_config(
    benchmark__parts=('retrain',), train__steps_per_dispatch=2
  )
  page = benchmark.run_benchmark(config, tmp_path, 'torch')
  found = json.loads((tmp_path / 'benchmark.json').read_text())['peer']
  (one,) = found['retrain']['sizes']
  medians = {name: of['median'] for name, of in one['per_second'].items()}
  assert medians == pytest.approx(
    {'dpjax': 32, 'dpjax, K=2': 40, 'eager': 16 / 0.75}
  )
  assert one['ratios']['eager'] == pytest.approx(
    {'dpjax': 1.5, 'fastest': 1.875}
  )
  assert one['ratio'] == pytest.approx(1.875)
  assert (one['ours'], one['theirs']) == ('dpjax, K=2', 'eager')
  assert 'batch 16: dpjax, K=2 is 1.88 times as fast as eager' in page


def test_the_share_of_memory_is_said_where_it_was_too_small(monkeypatch):
  def full():
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')

  monkeypatch.setenv(programs.MEMORY_SHARE, '.5')
  found = programs.attempt(full, {'batch_size': 8})
  assert found['batch_size'] == 8
  assert found['error'] == (
    'out of device memory (XLA_PYTHON_CLIENT_MEM_FRACTION gives JAX .5 of it)'
  )


def test_what_is_stopped_leaves_a_table_of_its_own(tmp_path, monkeypatch):
  def stop(*_):
    raise KeyboardInterrupt

  (tmp_path / 'benchmark.md').write_text('of before')
  monkeypatch.setattr(benchmark, '_input', stop)
  config = make_config(benchmark__parts=('inference', 'input'))
  with pytest.raises(KeyboardInterrupt):
    benchmark.run_benchmark(config, tmp_path)
  found = json.loads((tmp_path / 'benchmark.json').read_text())
  page = (tmp_path / 'benchmark.md').read_text()
  assert page == text.format_text(found) + '\n'
  assert 'stopped before its end' in page and 'Inference' in page
