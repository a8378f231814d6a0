"""The model of a program's time, against sums by hand."""

import dataclasses
import pathlib

import pytest

from dpjax.benchmark import kernels, predicted, targets

RECORDED = pathlib.Path(__file__).parents[1] / 'recorded'
H100 = targets.DEVICES['h100']


def program(name):
  return (RECORDED / f'program-{name}.txt').read_text()


def test_a_step_is_the_sum_of_its_kernels_at_the_roofline():
  text = program('h100')
  read = kernels.read(text)
  slowest = sum(
    k.times * max(k.bytes / 3.352e12, k.flops / 989.4e12) for k in read
  )
  found = predicted.describe(text, H100, rows=4, count=3)
  assert found['kernels'] == found['small_kernels'] == 36 / 3
  assert found['copies'] == 4 / 3 and found['scatters'] == 1
  assert found['cycles'] is None and found['collectives'] == {}
  best, worst = slowest + 36 * 0.5e-6, slowest / 0.79 + 36 * 2.5e-6
  assert found['seconds']['best'] == pytest.approx(best / 3)
  assert found['seconds']['worst'] == pytest.approx(worst / 3)
  assert found['per_second']['best'] == pytest.approx(4 / (best / 3))
  # No order of kernels is faster than all bytes at the bandwidth.
  assert found['limit_per_second'] > found['per_second']['best']
  assert found['limit_per_second'] == pytest.approx(
    4 / (sum(k.times * k.bytes for k in read) / 3 / 3.352e12)
  )


def test_a_tpu_takes_its_cycles_and_else_its_bytes():
  v5e = targets.DEVICES['v5e']
  found = predicted.describe(program('v5e'), v5e, rows=256)
  cycles = 68674 + 12324
  assert found['cycles'] == cycles
  # The gradient of max-pool has none; copies go on beside other work.
  pool = 2 * 256 * 64 * (2 * 112**2 + 56**2)
  assert found['seconds']['best'] == pytest.approx(
    cycles / 1.5e9 + pool / 0.819e12
  )
  assert found['seconds']['worst'] == pytest.approx(
    found['seconds']['best'] / 0.79
  )


def test_the_parts_are_the_whole():
  found = predicted.describe(program('h100'), H100, rows=4, count=3)
  for name in ('kernels', 'bytes', 'flops'):
    assert sum(part[name] for part in found['parts']) == pytest.approx(
      found[name]
    )
  seconds = [part['seconds'] for part in found['parts']]
  assert seconds == sorted(seconds, reverse=True)
  times = [k['times'] * k['seconds'] for k in found['slowest']]
  assert times == sorted(times, reverse=True)


def test_float32_has_half_the_peak():
  # With bytes for nothing only products take time.
  device = dataclasses.replace(H100, bandwidth=1e30, flops=1e9)
  times = [
    predicted.describe(program('h100'), device, rows=4, dtype=dtype)
    for dtype in ('bfloat16', 'float32')
  ]
  launches = 36 * 0.5e-6
  half, whole = (t['seconds']['best'] - launches for t in times)
  assert whole == pytest.approx(2 * half) and half > 0


def test_collectives_are_beside_the_kernels():
  found = predicted.describe(
    program('h100x8'), H100, rows=32, devices=8, count=1
  )
  assert found['collectives'] == {'all-reduce': {'count': 1, 'bytes': 288}}
  # A ring of eight: 14 steps of 0.47 us after 3.6.
  assert found['collective_seconds'] == pytest.approx(
    3.6e-6 + 14 * 0.47e-6 + 2 * 7 / 8 * 288 / 450e9
  )
  assert found['parts'][0]['part'] == 'collectives'


@pytest.mark.parametrize('devices', [2, 8, 64])
def test_a_large_reduction_is_of_its_bytes_and_a_small_one_of_its_steps(
  devices,
):
  def seconds(sent, device=H100, shape=(), kind='all-reduce'):
    return predicted.collective_seconds(kind, sent, device, shape, devices)

  link = 450e9 if devices <= 8 else 50e9  # the network among machines
  share = 2 * (devices - 1) / devices
  assert seconds(10**11) == pytest.approx(share * 1e11 / link, rel=1e-3)
  assert 3.6e-6 < seconds(4) < 60e-6
  assert seconds(10**11, kind='all-gather') == pytest.approx(
    (devices - 1) * 1e11 / link, rel=1e-3
  )
  v5e = targets.DEVICES['v5e']
  assert seconds(4, v5e, (devices // 2, 2)) == pytest.approx(
    2 * 1e-6 * ((devices / 4 if devices >= 32 else devices // 2 - 1) + 1),
    rel=1e-3,
  )
  assert predicted.collective_seconds('all-reduce', 4, H100, (), 1) == 0


def kernel(op_name='', sources=(), kind='fusion'):
  return kernels.Kernel(
    'k', kind, 1, 0, 0, 0, False, 0, op_name, tuple(sources)
  )  # fmt: skip


@pytest.mark.parametrize(
  ('op_name', 'part'),
  [
    ('jit(f)/jvp(ResNet)/layer2_0/bn1/mul', 'stage 2'),
    ('jit(f)/transpose(jvp(ResNet))/layer2_0/add', 'stage 2, backward'),
    ('jit(f)/transpose(jvp(ResNet))/select_and_scatter', 'stem, backward'),
    ('jit(f)/jvp(ResNet)/conv1/conv_general_dilated', 'stem'),
    ('jit(f)/jvp(ResNet)/fc/dot_general', 'classifier'),
    ('jit(f)/jvp(AttentionHeads)/stage1_pos/conv', 'attention'),
    ('jit(f)/jvp(Projector)/Dense_0/dot_general', 'projector'),
    ("state.params['backbone']['layer4_1']['kernel']", 'copies'),
    ('jit(f)/add', 'other'),
  ],
)
def test_kernels_are_put_to_the_part_that_jax_names(op_name, part):
  assert predicted.part_of(kernel(op_name)) == part


def test_where_no_module_is_named_the_source_file_tells():
  def part(*sources, op_name='jit(f)/jvp()/add'):
    return predicted.part_of(kernel(op_name, sources))

  assert part('/x/dpjax/losses.py', '/x/dpjax/training/steps.py') == 'losses'
  assert part('/x/dpjax/data/feed/render_device.py') == 'render'
  assert part('/x/optax/_src/clipping.py', '/x/steps.py') == 'update'
  assert part('/x/lesion_masks.py', op_name='transpose(jvp())/mul') == (
    'masks, backward'
  )
  assert predicted.part_of(kernel('', ['/x/losses.py'], 'copy')) == 'copies'
  assert predicted.part_of(kernel('psum', (), 'all-reduce')) == 'collectives'
