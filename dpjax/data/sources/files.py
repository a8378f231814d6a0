"""The image files of a source folder, found by the names that tables give."""

import collections
import fnmatch
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dpjax.data import radiograph
from dpjax.data.decode import formats, image_file
from dpjax.data.sources import tables
from dpjax.errors import SourceFault, UserError, printable

# Files that stand beside images and are none.
_TEXTS = ('.csv', '.tsv', '.txt', '.json', '.xml', '.md', '.html', '.htm',
          '.pdf', '.xls', '.xlsx', '.ods', '.doc', '.docx', '.odt', '.rtf',
          '.yaml', '.yml', '.log', '.py', '.ipynb')  # fmt: skip
_PACKED_TEXTS = ('.csv.gz', '.tsv.gz', '.txt.gz', '.json.gz')
_CONTROL = {*map(chr, range(32))} - {*'\t\n\r\f'}


class Files:
  """The images below a folder: by their suffix, or else by their content.

  Hidden files are none; links to folders are not followed. A name finds its
  image however a table writes it: with Windows' separators, with ./ before it,
  as an absolute path in the root, with accents composed or not, and, where no
  image has it as it stands, with another suffix or in another case.

  Attributes:
    given: the folder, as it was given.
    root: the folder, resolved.
    found: every image, sorted.
    unread: files that may be images and cannot be told to be, sorted.
    linked: links to folders, which are not followed.
  """

  def __init__(
    self,
    root: str | pathlib.Path,
    folders: Sequence[str] = ('.',),
    ignore: Sequence[str] = (),
  ):
    """Lists the images in `folders` of `root` and all below them.

    Args:
      root: the folder.
      folders: of it, that are looked at.
      ignore: files and folders that are passed over, by their name or their
        path from the root, with wildcards (fnmatch); in any case.

    Raises:
      UserError: one of the folders is not there, or one cannot be read; nothing
        is there that would be passed over.
    """
    self.given = root
    self.root = pathlib.Path(root).resolve()
    self._roots = {f'{self.root}/', f'{pathlib.Path(root).absolute()}/'}
    self.found: list[pathlib.Path] = []
    self.unread: list[pathlib.Path] = []
    self.linked: list[pathlib.Path] = []
    passed_over = _PassedOver(self.root, ignore)
    for folder in folders:
      start = self.root / folder
      if not os.path.isdir(start):
        raise UserError(
          f'config.data.source: {root} has no folder {folder}'
          if folder != '.'
          else f'config.data.source: {root} is not a folder'
        )
      if not start.resolve().is_relative_to(self.root):
        raise UserError(
          f'config.data.source: {start} is a link that leads out of {root}'
        )
      self.found += _walk(start, passed_over, self.unread, self.linked)
    if folders == ('.',):  # Of some only, it may well be in the others.
      passed_over.check()
    self.found.sort(key=str)  # of a hundred thousand paths: a second faster
    self._by_name = collections.defaultdict(list)
    for file in self.found:
      name = _composed(file.name)
      self._by_name[name].append(file)
      if _known(file):  # 1.2.840.99 has no suffix, though it seems to
        self._by_name[name[: -len(file.suffix)]].append(file)
    self._asked_for: set[pathlib.Path] = set()

  @functools.cached_property
  def _by_stem(self):
    """{name in lower case, without its suffix: images}."""
    found = collections.defaultdict(list)
    for file in self.found:
      found[_bare(_composed(file.name))].append(file)
    return found

  def find(
    self,
    name: str,
    beside: pathlib.Path | None = None,
    prefer: Callable[[pathlib.Path], bool] | None = None,
  ) -> pathlib.Path:
    """The one image of that name.

    Args:
      name: of the file, with or without its suffix; or a path from the root, or
        the end of one.
      beside: a folder to look in first, if there is such an image in it.
      prefer: of several, which to look at first.

    Raises:
      SourceFault: no name of a file, no such image, two of them, or one that
        leads out of the root.
    """
    if not self._parts(name):
      raise SourceFault(f'{name!r} cannot name an image of the source folder')
    files = self.named(name, beside, prefer)
    if not files:
      raise SourceFault(f'no image {name} in {self.root}')
    self._asked_for.update(files)
    if len(files) > 1:
      first, second = (file.relative_to(self.root) for file in files[:2])
      raise SourceFault(
        f'two files are {name}: {first} and {second}; if one of them is no'
        ' radiograph of the set, config.data.ignore passes it over'
      )
    return self.checked(files[0])

  def named(
    self,
    name: str,
    beside: pathlib.Path | None = None,
    prefer: Callable[[pathlib.Path], bool] | None = None,
  ) -> list[pathlib.Path]:
    """All images that a name may mean: several where nothing tells them apart.

    Args:
      name, beside, prefer: as of `find`.
    """
    *folders, last = self._parts(name) or ('',)
    files = [
      file for file in self._by_name.get(last, ()) if _ends(file, folders)
    ]
    if not files and last:
      files = self._nearly(folders, last)
    # Of several, the one of just this path or name.
    tests: tuple[Callable[[pathlib.Path], object], ...] = (
      lambda file: beside and file.parent == beside.joinpath(*folders),
      prefer or (lambda file: False),
      lambda file: folders and file.parent == self.root.joinpath(*folders),
      lambda file: file.name == last,
    )
    for wanted in tests:
      if len(files) > 1:
        files = [file for file in files if wanted(file)] or files
    return files

  def pass_over(self, name: str) -> None:
    """Takes it that a table names an image, though it is not wanted."""
    self._asked_for.update(self.named(name))

  def _nearly(self, folders, last):
    """Images of no other name but for suffix, case or the set's own folder."""
    folded = [folder.casefold() for folder in folders]
    files = [
      file
      for file in self._by_stem.get(_bare(last), ())
      if _ends(file, folded, str.casefold)
    ]
    # Of a set whose folder has been renamed, in which the paths begin.
    moved = len(folders) > 1 and not (self.root / folders[0]).exists()
    if not files and moved:
      parent = self.root.joinpath(*folders[1:])
      files = [f for f in self._by_name.get(last, ()) if f.parent == parent]
    return files

  def _parts(self, name):
    """The parts of a path from the root; () where it cannot be one."""
    if not name.isprintable():
      return ()
    name = _composed(name.replace('\\', '/'))
    if name.startswith('/'):
      name = next(
        (name[len(root) :] for root in self._roots if name.startswith(root)),
        name,
      )
    while name.startswith('./') and name != './':
      name = name[2:]
    parts = tuple(name.split('/'))
    if any(part in ('', '.', '..') for part in parts):
      return ()
    return parts

  def checked(self, file: pathlib.Path) -> pathlib.Path:
    """`file`, if it lies in the root even where it is a link.

    Raises:
      SourceFault: it leads elsewhere.
    """
    if file.is_symlink() and not file.resolve().is_relative_to(self.root):
      raise SourceFault(f'{file} is a link that leads out of {self.root}')
    return file

  def remark_unread(self, faults: tables.Faults) -> None:
    """Says how many files are passed over that may be images, and why."""
    if not self.unread:
      return
    first, count = min(self.unread), len(self.unread)
    why = 'its content is no PNG, JPEG, TIFF, BMP or DICOM'
    if first.is_symlink() and not first.exists():
      why = 'a link to nothing'
    elif not first.stat().st_size:
      why = 'it is empty'
    files = 'a file' if count == 1 else f'{count:,} files'
    faults.remarks.append(
      printable(
        f'{files} passed over that may hold images, such as'
        f' {first.relative_to(self.root)}'
        f' ({why}): look whether radiographs are missing;'
        ' config.data.ignore takes note of what is none'
      )
    )

  def add_linked(self, faults: tables.Faults) -> None:
    """Notes a fault for every link to a folder: its images are not read.

    Args:
      faults: takes them.
    """
    for link in self.linked:
      faults.add(
        link,
        'a link to a folder is not followed; put the folder itself there, or'
        ' pass the link over by config.data.ignore, as'
        f' ({link.relative_to(self.root).as_posix()!r},)',
      )

  def add_unnamed(self, faults: tables.Faults, *named_in: pathlib.Path) -> None:
    """Notes a fault for every image that `find` was never asked for.

    Args:
      faults: takes them.
      *named_in: the table that should name it, or one of these.
    """
    self.remark_unread(faults)
    # Nor is the file of an image that is left out a second fault, where its row
    # was at fault before anyone asked for the file.
    for id in faults.left_out:
      files = self.named(id)
      if self._asked_for.isdisjoint(files):
        self._asked_for.update(files)
    tables_ = ' or '.join(map(str, named_in))
    for file in self.found:
      if file not in self._asked_for:
        faults.add(
          file,
          f'no row of {tables_} names it; if it is no radiograph of the set,'
          ' config.data.ignore passes it over',
        )


def record(file: pathlib.Path, id: str, **fields: Any) -> radiograph.Radiograph:
  """A record of an image file; boxes in its pixels unless `frame` is given.

  Args:
    file: the image.
    id: of the record.
    **fields: the record's other fields.
  """
  status = os.stat(file)
  fields.setdefault('frame', None)
  # Only a DICOM file says more than its pixels.
  may_be_dicom = formats.SUFFIXES.get(file.suffix.lower(), 'DICOM') == 'DICOM'
  return radiograph.Radiograph(
    id=id,
    pixels=functools.partial(image_file.read, str(file)),
    header=functools.partial(image_file.header, str(file))
    if may_be_dicom
    else None,
    stamp=f'{status.st_size} {status.st_mtime_ns}',
    file=str(file),
    **fields,
  )


def _known(file):
  return file.suffix.lower() in formats.SUFFIXES


def _is_image(file):
  # A text may well begin with the two letters of a BMP.
  return _known(file) or formats.kind(file) not in (None, 'BMP')


def _may_be_image(file):
  """Whether a file that no decoder reads is no table and no text either."""
  name = file.name.lower()
  if file.suffix.lower() in _TEXTS or name.endswith(_PACKED_TEXTS):
    return False
  if file.name == 'Thumbs.db':
    return False
  try:
    with open(file, 'rb') as stream:
      start = stream.read(512)
  except OSError:
    return True
  # A text, cut off within a letter perhaps.
  text = start.decode('utf-8', 'ignore')
  is_text = len(text.encode()) > len(start) - 4 and not set(text) & _CONTROL
  return not (start and is_text)


def _composed(name):
  """A name with its accents composed: macOS takes them apart."""
  return name if name.isascii() else unicodedata.normalize('NFC', name)


def _bare(name):
  """A name in lower case, without the suffix of an image's format."""
  stem, suffix = os.path.splitext(name)
  return (stem if suffix.lower() in formats.SUFFIXES else name).casefold()


def _ends(file, folders, spelt=str):
  """Whether a file lies in such folders."""
  if not folders:
    return True
  there = file.parts[-len(folders) - 1 : -1]
  return [spelt(_composed(part)) for part in there] == [*folders]


class _PassedOver:
  """Which files and folders are passed over."""

  def __init__(self, root: pathlib.Path, patterns: Iterable[str]):
    """Passes over what one of the `patterns` fits."""
    self.root = root
    self._left = {  # of the patterns that nothing has fitted yet
      pattern: re.compile(fnmatch.translate(pattern.strip('/')), re.IGNORECASE)
      for pattern in patterns
    }
    self._all = tuple(self._left.items())

  def __call__(self, folder: str, name: str) -> bool:
    """Whether `name`, of a file or folder in `folder`, is passed over."""
    for pattern, expression in self._all:
      path = name
      if '/' in pattern:
        path = pathlib.Path(folder, name).relative_to(self.root).as_posix()
      if expression.match(path):
        self._left.pop(pattern, None)
        return True
    return False

  def check(self):
    """Raises UserError for a pattern that fitted nothing: a slip of the pen."""
    for pattern in self._left:
      raise UserError(
        f'config.data.ignore: nothing in {self.root} is called {pattern!r}'
      )


def is_hidden(name: str) -> bool:
  """Whether a file or folder of this name is of the system, not of a set."""
  return name.startswith('.') or name == '__MACOSX'


def _walk(start, passed_over, unread, linked):
  def stop(error):
    raise error

  try:
    for folder, folders, names in os.walk(start, onerror=stop):
      folders[:] = sorted(
        f for f in folders if not (is_hidden(f) or passed_over(folder, f))
      )
      inner = (pathlib.Path(folder, name) for name in folders)
      linked += filter(pathlib.Path.is_symlink, inner)
      for name in names:
        file = pathlib.Path(folder, name)
        # Of a pipe or a dangling link nothing can be read, and the DICOMDIR of
        # an exported CD is a table of contents.
        if is_hidden(name) or name == 'DICOMDIR' or passed_over(folder, name):
          continue
        is_file = file.is_file()
        if is_file and _is_image(file):
          yield file
        elif _may_be_image(file) if is_file else not file.exists():
          unread.append(file)  # a pipe is none
  except OSError as error:  # its images would be missing in silence
    raise SourceFault(
      printable(f'{error.filename}: cannot be read: {error.strerror}')
    ) from error
