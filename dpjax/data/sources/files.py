"""The image files of a source folder, found by the names that tables give."""

import collections
import contextlib
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from dpjax.data import radiograph
from dpjax.data.decode import formats, image_file
from dpjax.data.sources import tables
from dpjax.errors import SourceFault, UserError, printable


class Files:
  """The images below a folder: by their suffix, or else by their content.

  Hidden files are none; links to folders are not followed.

  Attributes:
    root: the folder, resolved.
    found: every image, sorted.
  """

  def __init__(self, root: str | pathlib.Path, folders: Sequence[str] = ('.',)):
    """Lists the images in `folders` of `root` and all below them.

    Raises:
      UserError: one of the folders is not there, or one cannot be read.
    """
    self.root = pathlib.Path(root).resolve()
    self.found: list[pathlib.Path] = []
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
      self.found += _walk(start)
    self.found.sort(key=str)  # of a hundred thousand paths: a second faster
    self._by_name = collections.defaultdict(list)
    for file in self.found:
      self._by_name[file.name].append(file)
      if _known(file):  # 1.2.840.99 has no suffix, though it seems to
        self._by_name[file.stem].append(file)
    self._asked_for: set[pathlib.Path] = set()

  def find(self, name: str, beside: pathlib.Path | None = None) -> pathlib.Path:
    """The one image of that name.

    Args:
      name: of the file, with or without its suffix; or a path from the root, or
        the end of one.
      beside: a folder to look in first, if there is such an image in it.

    Raises:
      SourceFault: no name of a file, no such image, two of them, or one that
        leads out of the root.
    """
    parts = name.split('/')
    if (
      any(part in ('', '.', '..') for part in parts)
      or '\\' in name
      or not name.isprintable()
    ):
      raise SourceFault(f'{name!r} cannot name an image of the source folder')
    files = self.named(name, beside)
    if not files:
      raise SourceFault(f'no image {name} in {self.root}')
    self._asked_for.update(files)
    if len(files) > 1:
      first, second = (file.relative_to(self.root) for file in files[:2])
      raise SourceFault(f'two files are {name}: {first} and {second}')
    return self.checked(files[0])

  def named(
    self, name: str, beside: pathlib.Path | None = None
  ) -> list[pathlib.Path]:
    """All images that a name may mean: several where nothing tells them apart.

    Args:
      name, beside: as of `find`.
    """
    *folders, last = name.split('/')
    files = [
      file
      for file in self._by_name.get(last, [])
      if not folders or file.parts[-len(folders) - 1 : -1] == tuple(folders)
    ]
    # Of several, the one of just this path or name.
    for wanted in (
      lambda file: beside and file.parent == beside.joinpath(*folders),
      lambda file: folders and file.parent == self.root.joinpath(*folders),
      lambda file: file.name == last,
    ):
      if len(files) > 1:
        files = [file for file in files if wanted(file)] or files
    return files

  def checked(self, file: pathlib.Path) -> pathlib.Path:
    """`file`, if it lies in the root even where it is a link.

    Raises:
      SourceFault: it leads elsewhere.
    """
    if file.is_symlink() and not file.resolve().is_relative_to(self.root):
      raise SourceFault(f'{file} is a link that leads out of {self.root}')
    return file

  def add_unnamed(self, faults: tables.Faults, table: pathlib.Path) -> None:
    """Notes a fault for every image that `find` was never asked for."""
    # Nor is the file of an image that is left out a second fault.
    for id in faults.left_out:
      with contextlib.suppress(SourceFault):
        self.find(id)
    for file in self.found:
      if file not in self._asked_for:
        faults.add(file, f'no row of {table} names it')


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


def _walk(start):
  def stop(error):
    raise error

  try:
    for folder, folders, names in os.walk(start, onerror=stop):
      folders[:] = sorted(f for f in folders if not f.startswith('.'))
      for name in names:
        file = pathlib.Path(folder, name)
        # Of a pipe or a dangling link nothing can be read, and the DICOMDIR of
        # an exported CD is a table of contents.
        hidden = name.startswith('.') or name == 'DICOMDIR'
        if not hidden and file.is_file() and _is_image(file):
          yield file
  except OSError as error:  # its images would be missing in silence
    raise SourceFault(
      printable(f'{error.filename}: cannot be read: {error.strerror}')
    ) from error
