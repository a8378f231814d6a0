"""Files that appear whole or not at all, and JSON read back from them."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from dpjax.errors import UserError


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """A file to write, which takes the place of `path` when the block ends.

  After an error `path` is as it was. Processes do not disturb each other.

  Args:
    path: of the file; its folder must be there.

  Raises:
    OSError: with `path`, also where the operating system names no file, as of
      a full disk.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  try:
    yield temporary
    with open(temporary, 'rb') as stream:
      os.fsync(stream.fileno())  # Else a crash may leave the name, empty.
    os.replace(temporary, path)
  except OSError as error:
    if error.errno is None or error.filename is not None:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: str | pathlib.Path, text: str) -> None:
  """Writes a text file in UTF-8."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding='utf-8')


def write_bytes(path: str | pathlib.Path, content: bytes) -> None:
  """Writes a file of bytes."""
  with replacing(path) as temporary:
    temporary.write_bytes(content)


def write_json(path: str | pathlib.Path, value: Any) -> None:
  """Writes a JSON file.

  Raises:
    UserError: a number is NaN or infinite, which JSON has not.
    TypeError: a value is nothing that JSON has.
  """
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def read_json(path: str | pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    OSError: as open.
    UserError: one line: the file holds no JSON object.
  """
  try:
    found = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except RecursionError:
    raise UserError(f'{path} is damaged (nested too deep)') from None
  except ValueError as error:  # of JSON or of UTF-8
    raise UserError(f'{path} is damaged ({error})') from error
  if not isinstance(found, dict):
    raise UserError(
      f'{path} is damaged (it holds no object, but {str(found)[:20]!r})'
    )
  return found
