"""A run's own config, as a file of configs/: what --config is by default.

    --config=.../run_config.py:WORKDIR

For the commands that look at a finished run (config.flags.parse_flags): flags
change it as they change any other. The machine's fields stand open, as in
configs/base.py; a precision of float32 stays, since a network must not answer
less exactly than it was trained.
"""

import pathlib
from typing import Any

from dpjax.config import fields
from dpjax.config import record as record_lib
from dpjax.evaluation import files


def get_config(workdir: str) -> Any:
  """The config in `workdir`, of a run or a recipe; the defaults without one.

  Raises:
    UserError: config.json is damaged.
  """
  declared = fields.table()
  values = {name: field.default for name, field in declared.items()}
  file = files.workdir_of(pathlib.Path(workdir).expanduser()) / 'config.json'
  if file.is_file():  # Else the command says what is missing.
    recorded = fields.flatten(record_lib.load(file))
    kept = declared.keys() - fields.marked('machine')
    if recorded.get('model.dtype') == 'float32':
      kept |= {'model.dtype'}
    # A method of compare that is no network has another stage.
    if recorded.get('stage') not in declared['stage'].words:
      kept -= {'stage'}
    values |= {name: recorded[name] for name in kept & recorded.keys()}
  return fields.typed(values)
