"""What the sections of a report are made of: runs, and their prepared sets."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from dpjax.data import store
from dpjax.errors import UserError
from dpjax.evaluation import files
from dpjax.report import page, run_files


@dataclasses.dataclass(frozen=True)
class ReportData:
  """What the sections of a report are made of.

  Attributes:
    runs: in the order given.
    scored: the prepared set that the first run was scored on, or None.
    trained: the one that it was trained on, or None.
    no_data: why one of them is None.
    seed: of what is chosen to be shown, and of the paired bootstrap.
    resamples: of the paired bootstrap.
  """

  runs: list[run_files.Run]
  scored: store.Store | None
  trained: store.Store | None
  no_data: str
  seed: int
  resamples: int

  @property
  def evaluated(self) -> list[run_files.Run]:
    """The runs with an evaluation.json.

    Raises:
      page.Missing: there is none.
    """
    found = [run for run in self.runs if run.evaluation]
    if not found:
      raise page.Missing('no workdir has a whole evaluation.json; run evaluate')
    return found

  def prepared(self, which: str) -> store.Store:
    """The prepared set, `which` is 'scored' or 'trained'.

    Raises:
      page.Missing: it cannot be read.
    """
    found = {'scored': self.scored, 'trained': self.trained}[which]
    if found is None:
      raise page.Missing(self.no_data)
    return found


def read_image(split: store.Split, row: int) -> np.ndarray:
  """The stored square (S, S) uint8 of one image.

  Raises:
    page.Missing: it is damaged.
  """
  try:
    return split.images(np.array([row]))[0]
  except (UserError, OSError) as error:
    raise page.Missing(run_files.reason(error)) from error


def load_runs(workdirs: Sequence[str | pathlib.Path]) -> list[run_files.Run]:
  """Reads the workdirs.

  Raises:
    UserError: one line: one is given twice, or holds no run.
  """
  paths = [_stage_two(pathlib.Path(workdir)) for workdir in workdirs]
  if not paths:
    raise UserError('--workdir names no run to report')
  for i, path in enumerate(paths):
    if path.resolve() in [other.resolve() for other in paths[:i]]:
      raise UserError(f'--workdir: {path} is given twice')
  return [
    run_files.read(path, name)
    for path, name in zip(paths, names(paths), strict=True)
  ]


def _stage_two(path):
  path = files.workdir_of(path)
  parts = ('config.json', 'evaluation.json', 'metrics.jsonl')
  if not any((path / part).is_file() for part in parts):
    raise UserError(
      f'--workdir={path} holds no run: none of {", ".join(parts)} is there'
    )
  return path


def names(workdirs: Sequence[pathlib.Path]) -> list[str]:
  """The fewest last parts of the paths of some runs that tell them apart.

  Without the folder of the stage, which every recipe has, unless they are the
  stages of one.
  """
  whole = [path.resolve().parts for path in workdirs]
  parts = [
    p[:-1] if p[-1] in files.CLASSIFIERS and len(p) > 2 else p for p in whole
  ]
  if len(set(parts)) < len(parts):  # R/retrain and R/finetune
    parts = whole
  for count in range(1, max(map(len, parts))):
    found = ['/'.join(p[-count:]) for p in parts]
    if len(set(found)) == len(found):
      break
  return found
