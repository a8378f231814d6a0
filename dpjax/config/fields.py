"""What a field of the config is: its default, what it may be, and its marks.

configs/base.py declares every field by the functions here, and nothing repeats
it:

    c.loss.beta = number(0.9999, 0, 1)  # not stated in the paper

Marks (see `Field`) say more of a field or, given to a Section, of all in it:

    c.parallel = Section(machine=True, resume=True)

`table` is what that file declares, for whoever checks, resolves or records.
"""

import dataclasses
import difflib
import functools
import math
import os
import pathlib
import runpy
import types
from collections.abc import (
  Callable,
  Collection,
  Iterable,
  Iterator,
  Mapping,
)
from typing import Any

import ml_collections
from ml_collections.config_dict import FieldReference

from dpjax.errors import UserError

# The files that are named to --config: inside the package where a wheel was
# installed (setup.py), beside it in a checkout.
_PACKAGE = pathlib.Path(__file__).parents[1]
CONFIGS = _PACKAGE / 'configs'
if not CONFIGS.is_dir():
  CONFIGS = _PACKAGE.parent / 'configs'
BASE = CONFIGS / 'base.py'  # declares the fields

# In Field.before: every record of a run has the field.
ALWAYS = object()
# Likewise: its default, whatever that is by now. For what nobody reads while
# another field is as it was before.
DEFAULT = object()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """One field.

  Attributes:
    default: its value where nobody gives one.
    kind: the type of its value.
    wanted: what it must be, in words.
    fits: whether a value of that type is one.
    words: those that it is one of, if it is.
    optional: it may be None, too.
    resume: it may change between two starts of one run.
    machine: it is the machine's and not the run's: a run that is opened
      elsewhere has it from there.
    source: it says how a source is read, so the prepared set has it on record.
    before: what a run did, or a prepared set was, that was recorded before
      there was the field.
  """

  default: Any
  kind: type
  wanted: str
  fits: Callable[[Any], bool] = lambda _: True
  words: tuple[str, ...] = ()
  optional: bool = False
  resume: bool = False
  machine: bool = False
  source: bool = False
  before: Any = ALWAYS

  def checked(self, name: str, value: Any) -> Any:
    """A value for the field `name`, in the field's type.

    Raises:
      UserError: one line: it is none, and what would be one.
    """
    if self.optional and value in (None, '', 'None'):
      return None  # The flag parser's None is a word.
    if self.optional and type(value) is str:  # No shell expands --field=~/set.
      value = os.path.expanduser(value)
    if self.kind is float and type(value) is int:
      value = float(value)
    if self.kind is tuple:
      value = as_tuples(value)
    if type(value) is not self.kind or not self.fits(value):
      near = difflib.get_close_matches(str(value), self.words, n=1)
      hint = f' (did you mean {near[0]}?)' if near else ''
      refuse(name, value, self.wanted + hint)
    return value


def refuse(name: str, value: object, wanted: str) -> None:
  """Raises the UserError for a field that must be something else."""
  raise UserError(f'config.{name} is {value!r}; it must be {wanted}')


class Section(types.SimpleNamespace):
  """Fields and sections by their names, as configs/base.py declares them."""

  def __init__(self, *, before: Any = ALWAYS, **marks: bool):
    """An empty one; `marks` are those of all fields that will be in it.

    `before` is that of the fields which say none themselves.
    """
    super().__init__()
    self._marks: dict[str, Any] = {**marks}
    self._before = before

  def but(self, **defaults: Any) -> 'Section':
    """The section itself, with other defaults of some of its fields."""
    for name, default in defaults.items():
      field = dataclasses.replace(getattr(self, name), default=default)
      setattr(self, name, field)
    return self

  def flatten(self, prefix: str = '') -> Iterator[tuple[str, Field]]:
    """('section.field', field) for all fields in it."""
    for name, value in vars(self).items():
      if name in ('_marks', '_before'):
        continue
      inner: Iterable[tuple[str, Field]] = [(prefix + name, value)]
      if isinstance(value, Section):
        inner = value.flatten(f'{prefix}{name}.')
      for full, field in inner:
        field = dataclasses.replace(field, **self._marks)
        if self._before is not ALWAYS and field.before is ALWAYS:
          before = field.default if self._before is DEFAULT else self._before
          field = dataclasses.replace(field, before=before)
        yield full, field


# The kinds of fields. All take marks.


def flag(default: bool, **marks: Any) -> Field:
  """True or False."""
  return Field(default=default, kind=bool, wanted='True or False', **marks)


def number(
  default: float, low: float, high: float | None = None, **marks: Any
) -> Field:
  """A finite number, at least `low` and at most `high`."""
  low, high = float(low), None if high is None else float(high)
  return Field(
    default=float(default),
    kind=float,
    wanted=f'a number, {_range(low, high)}',
    fits=lambda value: _within(value, low, high),
    **marks,
  )


def count(
  default: int, low: int, high: int | None = None, **marks: Any
) -> Field:
  """A whole number, at least `low` and at most `high`."""
  return Field(
    default=default,
    kind=int,
    wanted=f'a whole number, {_range(low, high)}',
    fits=lambda value: _within(value, low, high),
    **marks,
  )


def word(default: str, *others: str, **marks: Any) -> Field:
  """One of a few words."""
  words = (default, *others)
  return Field(
    default=default,
    kind=str,
    wanted=f'one of {", ".join(words)}',
    fits=words.__contains__,
    words=words,
    **marks,
  )


def text(default: str, wanted: str = 'a text', **marks: Any) -> Field:
  """Any text, unless a mark `fits` says which."""
  return Field(default=default, kind=str, wanted=wanted, **marks)


def path(default: str | None = None, **marks: Any) -> Field:
  """A file or folder, or None."""
  return Field(
    default=default, kind=str, wanted='a path or None', optional=True, **marks
  )


def interval(
  default: tuple[float, float], low: float, high: float, **marks: Any
) -> Field:
  """(lowest, highest), both from `low` to `high`."""
  return Field(
    default=default,
    kind=tuple,
    wanted=f'(lowest, highest) within {float(low)} to {float(high)}',
    fits=lambda value: (
      len(value) == 2
      and all(map(_is_number, value))
      and low <= value[0] <= value[1] <= high
    ),
    **marks,
  )


def numbers(
  *default: float, above: float, below: float = math.inf, wanted: str,
  lengths: Collection[int] | None = None, **marks: Any,
) -> Field:  # fmt: skip
  """A tuple of numbers between `above` and `below`."""
  return Field(
    default=default,
    kind=tuple,
    wanted=wanted,
    fits=lambda value: (
      (lengths is None or len(value) in lengths)
      and all(_is_number(x) and above < x < below for x in value)
    ),
    **marks,
  )


def counts(
  *default: int, low: int = 1, wanted: str, most: int | None = None,
  empty: bool = False, different: bool = False, **marks: Any,
) -> Field:  # fmt: skip
  """A tuple of whole numbers, each at least `low`; of `most` at the most."""
  return Field(
    default=default,
    kind=tuple,
    wanted=wanted,
    fits=lambda value: (
      all(type(n) is int and low <= n < 2**31 for n in value)
      and (empty or len(value) > 0)
      and (most is None or len(value) <= most)
      and not (different and len(set(value)) < len(value))
    ),
    **marks,
  )


def texts(*default: str, length: int | None = None, **marks: Any) -> Field:
  """A tuple of texts, of which there are `length`."""
  example = ','.join(repr(x) for x in default or ('0', '1'))
  return Field(
    default=default,
    kind=tuple,
    wanted=f'a tuple of {length or ""} texts, e.g. ({example})'.replace(
      '  ', ' '
    ),
    fits=lambda value: (
      all(type(x) is str for x in value) and length in (None, len(value))
    ),
    **marks,
  )


def some(*words: str, empty: bool = False, **marks: Any) -> Field:
  """A tuple of some of the words; all of them where nobody says which."""
  least = '' if empty else 'one or more of '
  return Field(
    default=words,
    kind=tuple,
    wanted=f'a tuple of {least}{", ".join(words)}, each once',
    fits=lambda value: (
      (empty or len(value) > 0)
      and all(x in words for x in value)
      and len(set(value)) == len(value)
    ),
    **marks,
  )


def rows(*default: tuple[str, tuple[str, ...]], **marks: Any) -> Field:
  """A tuple of ('name', ('section.field=value', ...)), each of another name."""

  def is_row(row):
    return (
      type(row) is tuple
      and [type(part) for part in row] == [str, tuple]
      and all(type(override) is str for override in row[1])
    )

  return Field(
    default=default,
    kind=tuple,
    wanted="rows of different names, each ('name', ('section.field=value',"
    ' ...))',
    fits=lambda value: (
      len(value) > 0
      and all(map(is_row, value))
      and len({name for name, _ in value}) == len(value)
    ),
    **marks,
  )


def _range(low, high):
  return f'at least {low}' if high is None else f'from {low} to {high}'


def _within(value, low, high):
  """Without a `high`, any finite one; a NaN fails every comparison."""
  return low <= value < math.inf if high is None else low <= value <= high


def _is_number(value):
  return type(value) in (int, float)


# The declaration, and configs of its fields.


@functools.cache
def table() -> Mapping[str, Field]:
  """{'section.field': field} as configs/base.py declares them.

  Raises:
    UserError: there is no such file.
  """
  if not BASE.is_file():
    raise UserError(
      f'{BASE}, which declares the fields of a config, is not there; install'
      ' dpjax anew'
    )
  return types.MappingProxyType(dict(runpy.run_path(str(BASE))['c'].flatten()))


@functools.cache
def marked(mark: str) -> frozenset[str]:
  """The fields with a mark: 'resume', 'machine' or 'source'."""
  return frozenset(
    name for name, field in table().items() if getattr(field, mark)
  )


def plain(section: Section) -> ml_collections.ConfigDict:
  """The config of a declaration's defaults."""
  declared = dict(section.flatten())
  return typed({n: f.default for n, f in declared.items()}, declared)


def typed(
  values: Mapping[str, Any], declared: Mapping[str, Field] | None = None
) -> ml_collections.ConfigDict:
  """A config of these values by 'section.field', in the types of the fields.

  What may be None keeps its type while it is: a text can be put there, and
  nothing else. Names that are no fields have the type of their value.
  """
  declared = table() if declared is None else declared
  config: dict[str, Any] = {}
  for name, value in values.items():
    *sections, leaf = name.split('.')
    inner = config
    for section in sections:
      inner = inner.setdefault(section, {})
    field = declared.get(name)
    if field is not None and field.optional:
      value = FieldReference(value, field_type=field.kind)
    inner[leaf] = value
  return ml_collections.ConfigDict(config)


def check_field(known: Collection[str], name: str) -> None:
  """Raises UserError if `name`, e.g. 'mgacr.eps', is none of the `known`."""
  if name in known:
    return
  if any(field.startswith(name + '.') for field in known):
    raise UserError(f'config.{name} is a section, not a field')
  names = sorted(known)
  near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
  same_leaf = [f for f in names if f.split('.')[-1] == name.split('.')[-1]]
  hint = (same_leaf or near or ['see configs/base.py'])[0]
  raise UserError(f'config.{name} does not exist; did you mean {hint}?')


def flatten(
  config: ml_collections.ConfigDict, prefix: str = ''
) -> dict[str, Any]:
  """{'section.field': value} of a (nested) config."""
  flat: dict[str, Any] = {}
  for key in config:
    value = config[key]
    if isinstance(value, (ml_collections.ConfigDict, dict)):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def as_tuples(value: Any) -> Any:
  """A value whose lists, and those in them, are tuples."""
  if isinstance(value, list | tuple):
    return tuple(map(as_tuples, value))
  return value
