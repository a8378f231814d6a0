"""The files that an evaluation leaves in a workdir, and where that is.

Without JAX, for those who only read them.
"""

import pathlib

EVALUATION = 'evaluation.json'
PREDICTIONS = 'predictions.csv'
VALIDATION = 'predictions_validation.csv'
MAPS = 'maps.npz'
LOCALISATION = 'localisation.csv'
AGAINST = 'against.json'


def workdir_of(workdir: str | pathlib.Path) -> pathlib.Path:
  """The stage II workdir: `workdir`, or retrain/ in a recipe's."""
  workdir = pathlib.Path(workdir)
  if (workdir / 'retrain' / 'config.json').is_file():
    return workdir / 'retrain'
  return workdir
