"""A program's kernels, their bytes, products and turns, counted by hand."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpjax.benchmark import kernels

RECORDED = pathlib.Path(__file__).parents[1] / 'recorded'


def recorded(name):
  return kernels.read((RECORDED / f'program-{name}.txt').read_text())


@pytest.fixture(scope='module')
def scanned():
  """Three steps for an H100, of 4 of the 500 images of 32 x 32.

  A convolution 3 x 3 of stride 2 to 8 channels, ReLU, max-pool of stride 2,
  their gradients, and the update of the 72 weights, which are donated.
  """
  return {kernel.name: kernel for kernel in recorded('h100')}


def test_a_kernel_counts_as_often_as_its_loop_turns(scanned):
  outside = {'wrapped_transpose', 'copy.12', 'loop_transpose_fusion'}
  assert {name for name, k in scanned.items() if k.times == 1} == outside
  assert {k.times for name, k in scanned.items() if name not in outside} == {3}
  # The count of turns is a kernel too.
  assert sum(k.times for k in scanned.values()) == 3 + 3 * 11


def test_a_set_of_images_is_charged_what_a_batch_takes_of_it(scanned):
  taken = 4 * 32 * 32  # bytes of uint8
  numbers, turn = 4 * 4, 4  # this step's of all indices, and which step it is
  rendered = 4 * 33 * 33 * 2  # padded, bfloat16
  assert scanned['loop_pad_fusion'].bytes == taken + numbers + turn + rendered


def test_what_only_passes_its_operand_on_reads_all_of_it(scanned):
  weights = 4 * 72  # float32, between their own layout and that of a library
  assert scanned['wrapped_transpose'].bytes == 2 * weights
  assert scanned['loop_transpose_fusion'].bytes == 2 * weights


def test_a_scatter_moves_what_it_adds_and_not_the_whole(scanned):
  cells, values = 4 * 16 * 16 * 8, 4 * 8 * 8 * 8
  # The features, four numbers for each value, and each place read and written.
  assert scanned['input_scatter_fusion'].bytes == (
    2 * cells + 4 * 4 * values + 2 * 2 * values
  )


def test_convolutions_have_the_products_of_their_equation(scanned):
  products = 4 * 16 * 16 * 8 * 3 * 3  # one channel in
  for name in ('cudnn-conv.2', 'cudnn-conv-bw-filter.2'):
    assert scanned[name].flops == 2 * products
    assert scanned[name].kind.startswith('__cudnn$conv')
  assert sum(k.flops for k in scanned.values()) == 4 * products
  images, features, weights = 4 * 33 * 33, 4 * 16 * 16 * 8, 72
  assert scanned['cudnn-conv.2'].bytes == 2 * (images + features + weights)


def test_collectives_are_found_with_what_each_device_hands_in():
  found = recorded('h100x8')
  (reduction,) = [kernel for kernel in found if kernel.collective]
  assert reduction.kind == 'all-reduce' and reduction.sent == 72 * 4
  assert reduction.bytes == 2 * reduction.sent
  assert all(kernel.sent == 0 for kernel in found if kernel is not reduction)
  assert {kernel.times for kernel in found} == {1}


def test_a_collective_hands_in_what_lies_beside_the_cores_too():
  (reduction,) = kernels.read(
    """HloModule m, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (p: f32[72], q: f32[8]) -> (f32[72], f32[8]) {
  %p = f32[72]{0:T(128)S(1)} parameter(0)
  %q = f32[8]{0:T(128)} parameter(1)
  ROOT %all-reduce = (f32[72]{0:T(128)S(1)}, f32[8]{0:T(128)}) all-reduce(%p, \
%q), channel_id=1, to_apply=%add
}
"""
  )
  assert reduction.sent == 4 * (72 + 8)
  assert reduction.bytes == 2 * 4 * 8


def test_a_tpu_has_cycles_and_what_lies_beside_its_cores_moves_nothing():
  """Some kernels of stage II, 256 images, for a v5e; the rest is cut off."""
  found = {kernel.name: kernel for kernel in recorded('v5e')}
  assert len(found) == 5  # of what begins and is done, one
  # A convolution 1 x 1 of stride 2 with BatchNorm's sums, all of it on chip.
  convolution = found['convert_reduce_fusion.40']
  assert convolution.cycles == 68674 and convolution.bytes == 0
  assert convolution.flops == 2 * 256 * 7 * 7 * 256 * 512
  # Of 7 x 7 taps on 7 x 7 cells with a padding of 3 those that meet a cell.
  pairs = sum(min(x + 3, 6) - max(x - 3, 0) + 1 for x in range(7)) ** 2
  assert found['fusion.752'].flops == 2 * 256 * pairs * 1 * 2
  # A quarter of the features on its way to the cores; numbers on theirs back.
  assert found['slice-start.12'].bytes == 2 * 256 * 7 * 28 * 128
  assert found['copy-start.180'].bytes == 4 * 256
  pool = found['select_and_scatter.9']
  assert pool.bytes == 2 * 256 * 64 * (2 * 112**2 + 56**2) + 2
  assert pool.kind == 'select-and-scatter' and not pool.scatters


CALLS = """HloModule calls

%small (a.1: f32[8]) -> f32[8] {
  %a.1 = f32[8]{0} parameter(0)
  ROOT %n.1 = f32[8]{0} negate(%a.1)
}

%large (a.2: f32[8]) -> f32[8] {
  %a.2 = f32[8]{0} parameter(0)
  %n.2 = f32[8]{0} negate(%a.2)
  ROOT %n.3 = f32[8]{0} negate(%n.2)
}

%updated (t: f32[100,8], u: f32[1,8], i: s32[]) -> f32[100,8] {
  %t = f32[100,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %d = f32[100,8]{1,0} dynamic-update-slice(%t, %u, %i, %z)
}

%condition (a.4: f32[8]) -> pred[] {
  %a.4 = f32[8]{0} parameter(0)
  ROOT %c = pred[] custom-call(%a.4), custom_call_target="more"
}

ENTRY %main (p: pred[], x: f32[8], y: f32[100,8], j: s32[]) -> f32[8] {
  %p = pred[] parameter(0)
  %x = f32[8]{0} parameter(1)
  %y = f32[100,8]{1,0} parameter(2)
  %j = s32[] parameter(3)
  %b = f32[1,8]{1,0} bitcast(%x)
  %f = f32[100,8]{1,0} fusion(%y, %b, %j), kind=kLoop, calls=%updated
  %e = f32[8]{0} call(%x), to_apply=%large
  %s = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%e)
  %k = f32[8]{0} copy-done(%s)
  %g = (f32[8]{0}, u8[999]{0}) custom-call(%k), custom_call_target="library"
  %h = f32[8]{0} get-tuple-element(%g), index=0
  %m = f32[8]{0} conditional(%p, %h, %h), true_computation=%small, \
false_computation=%large
  ROOT %w = f32[8]{0} while(%m), condition=%condition, body=%small
}
"""


def test_what_is_called_counts_where_it_is_called():
  found = kernels.read(CALLS)
  # Of the two branches the dearer one; of a loop without end one turn.
  assert [kernel.name for kernel in found] == [
    'f', 'n.2', 'n.3', 's', 'g', 'n.2', 'n.3', 'c', 'n.1',
  ]  # fmt: skip
  moved = {kernel.name: kernel.bytes for kernel in found}
  assert moved['f'] == 32 + 4 + 32  # the update in, the number, the update out
  assert moved['g'] == 32 + 32  # a library's scratch is no result
  assert moved['n.1'] == 64


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
def test_products_of_a_plain_convolution_are_those_that_meet_a_cell(
  stride, padding
):
  """Against a convolution of ones, whose sum is the number of products."""
  x, w = jnp.ones((2, 9, 8, 3)), jnp.ones((3, 2, 3, 5))

  def convolved(x, w):
    return jax.lax.conv_general_dilated(
      x,
      w,
      (stride, stride),
      padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  products = int(convolved(x, w).sum())
  gradients = jax.grad(lambda *xw: convolved(*xw).sum(), (0, 1))
  for function, times in ((convolved, 1), (gradients, 2)):
    text = jax.jit(function).lower(x, w).compiler_ir('hlo').as_hlo_text()
    found = [k for k in kernels.read(_with_signs(text)) if k.flops]
    assert len(found) == times
    assert sum(k.flops for k in found) == 2 * times * products


def _with_signs(text):
  """Before it is compiled a program has headers without types."""
  lines = []
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith('HloModule'):
      line = line.removesuffix('{') + '() -> x {'
    lines.append(line)
  return '\n'.join(lines)


def test_a_matrix_product_has_its_products_too():
  text = (
    jax.jit(jnp.dot)
    .lower(np.ones((3, 4), np.float32), np.ones((4, 5), np.float32))
    .compiler_ir('hlo')
    .as_hlo_text()
  )
  (found,) = [k for k in kernels.read(_with_signs(text)) if k.flops]
  assert found.flops == 2 * math.prod((3, 4, 5))
