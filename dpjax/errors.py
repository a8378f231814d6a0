"""What a user can mend, apart from what is our own bug.

The command line tells a `UserError` in one line and ends with status 2. How a
training ends before its time is no error of anyone's: `Stopped`, `NonFinite`.
Any other exception keeps its traceback and ends with status 1.
"""

import sys

_LONGEST = 500  # signs of a line that is told


class UserError(ValueError):
  """Something that the user can mend: what, where, what would be right."""


class SourceFault(UserError):
  """Something wrong with one image or one row of a set: the reason."""


class Stopped(Exception):
  """A signal asked the run to stop; it has been saved."""


class NonFinite(Exception):
  """A loss or gradient norm is not finite; the message says which and where."""


def warn(line: str) -> None:
  """Says on stderr what is no error."""
  print(f'warning: {line}', file=sys.stderr, flush=True)


def printable(text: str) -> str:
  """A text with its unprintable signs escaped, so that it is one line.

  The name of a file may hold a line end, or bytes that are no text.
  """
  return ''.join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def reason_of(error: UserError, name: str) -> str:
  """What an error says, without the file's name that it begins with."""
  return str(error).removeprefix(printable(f'{name}: '))


def one_line(text: object) -> str:
  """A text as a line that can be read: printable, of 500 signs at the most.

  Of a longer one the middle is left out: what is wrong stands at its beginning,
  what would be right at its end, and what a user gave in between.
  """
  line = printable(str(text))
  if len(line) <= _LONGEST:
    return line
  gap = ' [...] '
  end = 2 * _LONGEST // 5
  return f'{line[: _LONGEST - end - len(gap)]}{gap}{line[-end:]}'
