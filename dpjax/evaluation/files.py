"""The files that an evaluation leaves in a workdir, and what a folder holds.

Without JAX, for those who only read them.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

from dpjax import atomic
from dpjax.errors import UserError

EVALUATION = 'evaluation.json'
PREDICTIONS = 'predictions.csv'
VALIDATION = 'predictions_validation.csv'
MAPS = 'maps.npz'
LOCALISATION = 'localisation.csv'
AGAINST = 'against.json'
FEATURES = 'features.npz'
# That of what serving writes which says what its folder is.
EXPORT = 'model.json'
ANSWERS = 'predict.json'

CLASSIFIERS = ('retrain', 'finetune')  # stages of a recipe that classify
_RUN = 'config.json'
_STAGES = ('pretrain', *CLASSIFIERS)  # folders of a recipe
# What a folder holds in which there is such a file.
_HOLDS = {
  **dict.fromkeys((_RUN, *(f'{s}/{_RUN}' for s in _STAGES)), 'a run'),
  EXPORT: 'an export',
  ANSWERS: 'what predict has written',
  EVALUATION: 'an evaluation',
  'summary.json': 'a prepared set',
}


def workdir_of(workdir: str | pathlib.Path) -> pathlib.Path:
  """Where the classifier is: `workdir`, or the last stage in a recipe's."""
  workdir = pathlib.Path(workdir)
  for stage in reversed(CLASSIFIERS):
    if (workdir / stage / _RUN).is_file():
      return workdir / stage
  return workdir


def check_output(output: str | pathlib.Path, own: str) -> None:
  """Refuses a folder that holds another kind of thing than is to be written.

  Args:
    output: of the flag --output; there or not.
    own: the file of _HOLDS that is to be written, and may be replaced.

  Raises:
    UserError: one line.
  """
  output = pathlib.Path(output)
  for name, what in _HOLDS.items():
    if name != own and (output / name).exists():
      raise UserError(
        f'--output={output} holds {what}; name a folder of its own'
      )


_NUMBER = int | float
# What is of which kind in evaluation.json, where it is there.
_KINDS = {
  **dict.fromkeys(('split', 'data', 'device', 'weights'), str),
  **dict.fromkeys(('checkpoint',), str | None),
  **dict.fromkeys(('class_names', 'confusion_matrix'), list),
  **dict.fromkeys(
    ('settings', 'scores', 'intervals', 'per_class', 'localisation', 'seconds'),
    dict,
  ),
  **dict.fromkeys(('num_images', 'num_patients'), int),
  **dict.fromkeys(
    ('threshold', 'temperature', 'images_per_second'), _NUMBER | None
  ),
  'prior_shift': dict | None,
}
# The same of what is in them.
_INNER = {'scores': _NUMBER | None, 'intervals': list | None,
          'per_class': dict, 'localisation': dict, 'seconds': _NUMBER,
          'class_names': str}  # fmt: skip


def read_evaluation(
  workdir: str | pathlib.Path, needed: Sequence[str]
) -> dict[str, Any]:
  """evaluation.json of an evaluated run.

  Args:
    workdir: of the run itself.
    needed: what it must hold.

  Raises:
    OSError: as open.
    UserError: one line: it is damaged, or of a version that lacks something.
  """
  file = pathlib.Path(workdir) / EVALUATION
  try:
    found = atomic.read_json(file)
  except UserError as error:
    raise UserError(f'{error}; remove it and evaluate again') from error
  for name in needed:
    if name not in found:
      raise UserError(
        f'{file}: it has no {name}: it is of another version; evaluate again'
      )
  for name, kind in _KINDS.items():
    if name in found and not (
      isinstance(found[name], kind) and _fit(found[name], _INNER.get(name))
    ):
      raise UserError(
        f'{file} is damaged ({name} is {str(found[name])[:40]!r}); remove it'
        ' and evaluate again'
      )
  for name in ('threshold', 'temperature'):
    value = found.get(name)
    if value is not None and not (
      math.isfinite(value) and (name == 'threshold' or value > 0)
    ):
      raise UserError(
        f'{file} is damaged ({name} is {value}); remove it and evaluate again'
      )
  return found


def _fit(value, kind):
  inner = value.values() if isinstance(value, dict) else value
  return kind is None or all(isinstance(one, kind) for one in inner)
