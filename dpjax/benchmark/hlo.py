"""The text of a compiled program (XLA's HLO), read as instructions.

Only what the benchmark asks of a program is read: its computations, and of each
instruction its results, operands, attributes and the name that JAX gave it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

_BITS = {'pred': 8, 'bf16': 16, 'c64': 64, 'c128': 128, 'token': 0}
_COMMENT = re.compile(r'/\*index=\d+\*/')
_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_ASSIGNED = re.compile(r'(ROOT )?%?([\w.\-]+) = (.* .*)$')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?')
_SPACE = re.compile(r'S\((\d+)\)')
_OPCODE = re.compile(r'\s*([\w\-]+)\(')
_CALLED = re.compile(
  r'\b(calls|to_apply|body|condition|true_computation|false_computation'
  r'|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)'
)
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_FRAME = re.compile(r'stack_frame_id=(\d+)')
# Tables of where in the source an operation was traced.
_TABLES = ('FileNames', 'FunctionNames', 'FileLocations', 'StackFrames')
_ROW = re.compile(r'(\d+) (.*)$')
_ID = re.compile(r'(\w+)=(\d+)')


class UnknownForm(ValueError):
  """A text that is no compiled program, or one of a form not known here."""


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a result.

  Attributes:
    dtype: e.g. 'bf16'.
    dims: its sides.
    space: the memory that it lies in; 0 is the device's own.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    """How many elements it has."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """What it takes, without padding."""
    return -(-self.size * _bits(self.dtype) // 8)


def _bits(dtype):
  if dtype in _BITS:
    return _BITS[dtype]
  if not (found := re.match(r'[a-z]+(\d+)', dtype)):
    raise UnknownForm(f'a type of unknown size: {dtype}')
  return int(found[1])


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in the program.
    opcode: e.g. 'fusion'.
    arrays: of its result, those of a tuple one after the other.
    operands: names.
    literal: what stands between the parentheses.
    attributes: what stands behind them, as text.
    root: whether it is the computation's result.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  literal: str
  attributes: str
  root: bool

  @property
  def op_name(self) -> str:
    """What JAX calls the operation that it comes from; '' if it does not."""
    found = _OP_NAME.search(self.attributes)
    return found[1] if found else ''

  @functools.cached_property
  def called(self) -> Mapping[str, tuple[str, ...]]:
    """{attribute: names of the computations that it calls}."""
    return {
      key: tuple(re.findall(r'[\w.\-]+', names))
      for key, names in _CALLED.findall(self.attributes)
    }

  def attribute(self, name: str) -> str:
    """The value of e.g. 'dim_labels'; '' if it has none."""
    found = re.search(rf'\b{name}=(\{{[^}}]*\}}|"[^"]*"|[^,\s]+)',
                      self.attributes)  # fmt: skip
    return found[1].strip('"{}') if found else ''


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in the order of the schedule."""

  name: str
  instructions: tuple[Instruction, ...]

  @functools.cached_property
  def by_name(self) -> Mapping[str, Instruction]:
    """{name: instruction}."""
    return {one.name: one for one in self.instructions}

  @functools.cached_property
  def users(self) -> Mapping[str, Sequence[tuple[Instruction, int]]]:
    """{name: [(instruction that takes it, as which operand)]}."""
    found: dict[str, list] = {one.name: [] for one in self.instructions}
    for one in self.instructions:
      for index, operand in enumerate(one.operands):
        found[operand].append((one, index))
    return found

  @functools.cached_property
  def parameters(self) -> Mapping[int, Instruction]:
    """{number: parameter}."""
    return {
      int(one.literal): one
      for one in self.instructions
      if one.opcode == 'parameter'
    }

  @property
  def root(self) -> Instruction:
    """The instruction that is the result."""
    return next(one for one in self.instructions if one.root)


@dataclasses.dataclass(frozen=True)
class Module:
  """A whole program.

  Attributes:
    computations: by name.
    entry: the name of the one that is run.
    frames: {number of a stack frame: (source file, number of its caller)}.
  """

  computations: Mapping[str, Computation]
  entry: str
  frames: Mapping[int, tuple[str, int]]

  def sources(self, instruction: Instruction) -> list[str]:
    """The files whose calls led to an operation, the innermost first."""
    found = _FRAME.search(instruction.attributes)
    frame, files = int(found[1]) if found else 0, []
    while frame in self.frames:
      file, frame = self.frames[frame]
      files.append(file)
    return files


def parse(text: str) -> Module:
  """Reads the text of `jax.stages.Compiled.as_text`.

  Raises:
    UnknownForm: it is none, or a line of it is of another form.
  """
  computations, entry = {}, None
  tables: dict[str, dict[int, str]] = {title: {} for title in _TABLES}
  table: dict[int, str] = {}
  name: str | None = None
  lines: list[Instruction] = []
  for line in text.splitlines():
    line = line.strip()
    if name is None:
      if header := _HEADER.match(line):
        name, lines = header[2], []
        entry = name if header[1] else entry
      elif line in tables:
        table = tables[line]
      elif row := _ROW.match(line):
        table[int(row[1])] = row[2]
    elif line.startswith('}'):
      computations[name] = Computation(name, tuple(lines))
      name = None
    elif line:
      lines.append(_instruction(line))
  if entry is None:
    raise UnknownForm('this is not the text of a compiled program')
  return Module(computations, entry, _frames(tables))


def _frames(tables):
  """{frame: (file, frame of the caller)} of the tables before a program."""
  ids = {
    title: {
      number: {key: int(value) for key, value in _ID.findall(row)}
      for number, row in tables[title].items()
    }
    for title in ('FileLocations', 'StackFrames')
  }
  found = {}
  for number, frame in ids['StackFrames'].items():
    place = ids['FileLocations'].get(frame.get('file_location_id'), {})
    file = tables['FileNames'].get(place.get('file_name_id'), '').strip('"')
    # One is added to a caller's number, so that 1 is nobody's.
    found[number] = (file, frame.get('parent_frame_id', 1) - 1)
  return found


def _instruction(line):
  found = _ASSIGNED.match(_COMMENT.sub('', line))
  if not found:
    raise UnknownForm(f'not an instruction: {line[:200]}')
  root, name, rest = found.groups()
  end = _balanced(rest, 0) if rest.startswith('(') else rest.index(' ')
  arrays = tuple(_array(*one) for one in _ARRAY.findall(rest[:end]))
  if not (opcode := _OPCODE.match(rest, end)):
    raise UnknownForm(f'no operation: {line[:200]}')
  close = _balanced(rest, opcode.end() - 1)
  literal = rest[opcode.end() : close - 1]
  constant = opcode[1] in ('constant', 'parameter', 'iota')
  operands = () if constant else tuple(_operands(literal))
  return Instruction(
    name, opcode[1], arrays, operands, literal, rest[close:], bool(root)
  )


def _array(dtype, dims, layout):
  sides = tuple(int(side.strip('<=')) for side in dims.split(',') if side)
  space = _SPACE.search(layout)
  return Array(dtype, sides, int(space[1]) if space else 0)


def _balanced(text, start):
  """The index behind the parenthesis that closes the one at `start`."""
  depth = 0
  for index in range(start, len(text)):
    depth += {'(': 1, ')': -1}.get(text[index], 0)
    if not depth:
      return index + 1
  raise UnknownForm(f'a parenthesis stays open: {text[:200]}')


def _operands(text):
  """Names; their types may stand before them."""
  depth, start = 0, 0
  for index, sign in enumerate(f'{text},'):
    depth += {'(': 1, '[': 1, '{': 1, ')': -1, ']': -1, '}': -1}.get(sign, 0)
    if sign == ',' and not depth:
      if word := text[start:index].strip():
        yield word.rpartition(' ')[2].lstrip('%')
      start = index + 1
