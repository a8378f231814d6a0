"""What a device runs of a compiled program: its kernels, and what each moves.

Every instruction that is run counts as one kernel, as often as it is run. Its
bytes are those of its operands and results in the device's memory. Of an
operand that is only sliced or gathered from, what is taken counts, and of one
that is updated in place, the update; else the set of images, all of which is
an operand, would be charged to each batch.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpjax.benchmark import hlo

SMALL = 4 * 10**6  # bytes: a kernel that moves fewer is one of launching
# Names and moves of what is there already, or the end of what was begun.
_NO_KERNELS = {
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'domain',
  'after-all', 'add-dependency', 'opt-barrier', 'partition-id', 'replica-id',
}  # fmt: skip
_COLLECTIVES = (
  'all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all',
  'collective-permute', 'collective-broadcast', 'ragged-all-to-all',
)  # fmt: skip
# An element of what these return is one of what they take.
_PASSING = {'bitcast', 'reshape', 'convert', 'copy', 'transpose'}
# Of their first operand these read no more than they return.
_TAKING = {'slice', 'dynamic-slice', 'gather'}
# Calls of custom-call that say something to the compiler and run nothing.
_NO_CALLS = ('AllocateBuffer', 'Sharding', 'AssumeGatherIndicesInBound')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One instruction that a device runs.

  Attributes:
    name: of the instruction.
    kind: its opcode; of a call into a library that call, of a collective its
      name without -start. (copy-start moves between a TPU's memories.)
    times: how often a run of the program runs it.
    bytes: that one run of it moves in the device's memory.
    flops: operations of the convolutions and matrix products of one run.
    cycles: of one run, as a TPU's compiler estimates; 0 where it does not.
    scatters: whether it adds single values wherever their indices point.
    sent: bytes that one run of a collective hands in, else 0.
    op_name: what JAX calls where it comes from.
    sources: the files whose calls led there, the innermost first.
  """

  name: str
  kind: str
  times: int
  bytes: int
  flops: int
  cycles: int
  scatters: bool
  sent: int
  op_name: str
  sources: tuple[str, ...]

  @property
  def collective(self) -> bool:
    """Whether devices talk to each other."""
    return self.kind in _COLLECTIVES


def read(text: str) -> list[Kernel]:
  """The kernels of a program, in the order in which they are run.

  Args:
    text: of jax.stages.Compiled.as_text, for a GPU or a TPU.

  Raises:
    hlo.UnknownForm: it is no program, or one of a form not known here.
  """
  module = hlo.parse(text)
  try:
    return [*_run(module, module.entry, 1)]
  except hlo.UnknownForm:
    raise
  except KeyError as error:
    raise hlo.UnknownForm(f'nothing there is {error}') from error
  # It has not what programs have had so far.
  except (IndexError, ValueError) as error:
    raise hlo.UnknownForm(f'an operation of another form: {error}') from error


def _run(module, name, times):
  """The kernels of a computation that is run so often."""
  computation = module.computations[name]
  for one in computation.instructions:
    if one.opcode in _NO_KERNELS or one.opcode.endswith(('-done', '-update')):
      continue
    called = one.called
    if one.opcode == 'while':
      trips = _TRIPS.search(one.attributes)
      if not trips:  # It looks before each turn; how often nobody knows.
        yield from _run(module, called['condition'][0], times)
      count = int(trips[1]) if trips else 1
      yield from _run(module, called['body'][0], times * count)
    elif one.opcode in ('call', 'async-start'):
      for inner in (*called.get('to_apply', ()), *called.get('calls', ()),
                    *called.get('called_computations', ())):  # fmt: skip
        yield from _run(module, inner, times)
    elif one.opcode == 'conditional':
      branches = [
        [*_run(module, branch, times)]
        for key, names in called.items()
        if key != 'to_apply'
        for branch in names
      ]
      # One of them is run; count the dearest.
      yield from max(branches, key=lambda b: sum(k.bytes * k.times for k in b))
    elif not _says_only(one):
      yield _kernel(module, computation, one, times)


def _says_only(one):
  target = one.attribute('custom_call_target')
  return one.opcode == 'custom-call' and target in _NO_CALLS


def _kernel(module, computation, one, times):
  kind, scatters = one.opcode, one.opcode == 'scatter'
  if kind.removesuffix('-start') in _COLLECTIVES:
    kind = kind.removesuffix('-start')
  if kind == 'custom-call':
    kind = one.attribute('custom_call_target') or kind
  inner = _fused(module, one)
  for member in inner.instructions if inner else ():
    scatters = scatters or member.opcode == 'scatter'
    if member.opcode.removesuffix('-start') in _COLLECTIVES:
      kind = member.opcode.removesuffix('-start')
  cycles = _CYCLES.search(one.attributes)
  named = _named(module, one)
  taken = [
    _taken(module, computation, one, index)
    for index in range(len(one.operands))
  ]
  return Kernel(
    name=one.name,
    kind=kind,
    times=times,
    bytes=sum(taken) + _given(module, computation, one),
    flops=_flops(module, computation, one),
    cycles=int(cycles[1]) if cycles else 0,
    scatters=scatters,
    sent=_sent(computation, one) if kind in _COLLECTIVES else 0,
    op_name=named.op_name,
    sources=tuple(module.sources(named)),
  )


def _sent(computation, one):
  """Bytes that a device hands in, wherever they lie."""
  return sum(
    array.bytes
    for name in one.operands
    for array in computation.by_name[name].arrays
  )


def _fused(module, one):
  """The computation inside a fusion, else None."""
  if one.opcode != 'fusion':
    return None
  return module.computations[one.called['calls'][0]]


def _named(module, one):
  """The instruction that says where a kernel comes from."""
  inner = _fused(module, one)
  if one.op_name or not inner:
    return one
  named = [member for member in inner.instructions if member.op_name]
  return max(named, key=lambda m: sum(a.size for a in m.arrays), default=one)


def _results(computation, one):
  """What it makes; that which begins something names its operands too."""
  if one.opcode == 'copy-start':
    return one.arrays[:1]
  if one.opcode.endswith('-start') and one.opcode != 'all-reduce-start':
    taken = sum(len(computation.by_name[x].arrays) for x in one.operands)
    return one.arrays[taken:]
  return one.arrays


def _in_memory(arrays):
  """Bytes; what a TPU has near its cores is in another space."""
  return sum(array.bytes for array in arrays if array.space == 0)


def _taken(module, computation, one, index):
  """Bytes that are read of an operand."""
  operand = computation.by_name[one.operands[index]]
  whole = _in_memory(operand.arrays)
  if not whole or len(operand.arrays) > 1:
    return whole
  size = operand.arrays[0].size
  elements = _elements(module, computation, one, index, size)
  return -(-whole * elements // max(1, size))


def _elements(module, computation, one, index, whole):
  """How many elements of `whole` an instruction reads of an operand."""
  if inner := _fused(module, one):
    return _read_of(module, inner, inner.parameters[index].name, whole)
  slices = one.opcode.removesuffix('-start') in _TAKING
  if index == 0 and slices:
    return _results(computation, one)[0].size
  if one.opcode == 'dynamic-update-slice' and index == 0:
    return 0
  if one.opcode == 'scatter' and index < len(one.arrays):
    return 0
  return whole


def _read_of(module, computation, name, whole):
  """Likewise of all that takes a value inside a fusion."""
  total = 0
  for user, index in computation.users[name]:
    if user.opcode in _PASSING:
      if user.root:
        return whole
      total += _read_of(module, computation, user.name, whole)
    elif user.opcode not in ('tuple', 'get-tuple-element'):
      total += _elements(module, computation, user, index, whole)
    else:
      return whole
    if total >= whole:
      return whole
  return total


def _given(module, computation, one):
  """Bytes that are written, and read again where they are added to."""
  arrays = _results(computation, one)
  if one.opcode == 'custom-call' and len(arrays) > 1:
    # The scratch of a library is no result.
    arrays = [array for array in arrays if array.dtype != 'u8']
  inner = _fused(module, one)
  where, results = computation, [one]
  if inner:
    where, results = inner, [inner.root]
    if inner.root.opcode == 'tuple':
      results = [inner.by_name[name] for name in inner.root.operands]
  if len(results) != len(arrays):
    return _in_memory(arrays)
  return sum(
    _in_memory([array]) and _written(where, result, array.bytes)
    for array, result in zip(arrays, results, strict=True)
  )


def _written(computation, result, whole):
  while result.opcode in ('bitcast', 'convert', 'copy') and result.operands:
    before = computation.by_name[result.operands[0]]
    if before.opcode in ('parameter', 'constant'):
      break
    result = before
  if result.opcode == 'dynamic-update-slice':
    return _in_memory(computation.by_name[result.operands[1]].arrays)
  if result.opcode == 'scatter':
    update = computation.by_name[result.operands[-1]]
    return 2 * _in_memory(update.arrays)
  return whole


def _flops(module, computation, one):
  """2 a product and sum, of convolutions and matrix products."""
  if inner := _fused(module, one):
    return sum(_flops(module, inner, member) for member in inner.instructions)
  shapes = [
    computation.by_name[name].arrays[0].dims
    for name in one.operands
    if computation.by_name[name].arrays
  ]
  if one.opcode == 'dot':
    contracted = _numbers(one.attribute('lhs_contracting_dims'))
    return 2 * one.arrays[0].size * math.prod(shapes[0][i] for i in contracted)
  target = one.attribute('custom_call_target')
  if one.opcode == 'convolution':
    return _convolution_flops(one, shapes[0], shapes[1], one.arrays[0].dims)
  if one.opcode == 'custom-call' and one.attribute('dim_labels'):
    first, second, *_ = shapes
    return _library_flops(one, target, first, second, one.arrays[0].dims)
  if 'gemm' in target or 'matmul' in target:
    found = re.search(
      r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.attributes
    )
    contracted = _numbers(found[1].replace('"', '')) if found else ()
    return 2 * one.arrays[0].size * math.prod(shapes[0][i] for i in contracted)
  return 0


def _library_flops(one, target, first, second, result):
  """Of a call of cuDNN.

  The labels are those of the forward pass: images_kernel->outputs.
  """
  if 'BackwardFilter' in target:
    kernel, outputs = result, second
  elif 'BackwardInput' in target:
    kernel, outputs = second, first
  else:
    kernel, outputs = second, result
  labels = one.attribute('dim_labels').split('->')[0].split('_')[1]
  channels = kernel[labels.index('o')]
  return 2 * math.prod(outputs) * math.prod(kernel) // channels


def _convolution_flops(one, images, kernel, result):
  """Of XLA's own: products with padding or between dilated cells are none."""
  left, out = one.attribute('dim_labels').split('->')
  lhs, rhs = left.split('_')
  window = _window(one.attribute('window'))
  pairs = 1
  spatial = sorted(sign for sign in lhs if sign.isdigit())
  for axis, sign in enumerate(spatial):
    pairs *= _valid_pairs(
      images[lhs.index(sign)],
      kernel[rhs.index(sign)],
      result[out.index(sign)],
      window[axis] if axis < len(window) else {},
    )
  return (
    2
    * pairs
    * result[out.index('b')]
    * result[out.index('f')]
    * kernel[rhs.index('i')]
  )


def _valid_pairs(size, taps, outputs, window):
  """(output, tap) that meet a cell along one axis."""
  tap, output = np.arange(taps), np.arange(outputs)[:, None]
  place = (
    output * window.get('stride', 1)
    + tap * window.get('rhs_dilate', 1)
    - window.get('pad', 0)
  )
  spread = window.get('lhs_dilate', 1)
  inside = (place >= 0) & (place <= (size - 1) * spread)
  return int((inside & (place % spread == 0)).sum())


def _window(text: str) -> Sequence[dict[str, Any]]:
  """'size=3x3 pad=1_1x1_1' -> [{'size': 3, 'pad': 1}, ...]; of pads the low."""
  axes: list[dict[str, Any]] = []
  for word in text.split():
    key, _, values = word.partition('=')
    for axis, value in enumerate(values.split('x')):
      while len(axes) <= axis:
        axes.append({})
      if key != 'rhs_reversal':
        axes[axis][key] = int(value.split('_')[0])
  return axes


def _numbers(text):
  return [int(word) for word in text.split(',') if word.strip()]
