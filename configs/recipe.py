"""The whole recipe: stage I, stage II, then the evaluation.

python -m dpjax.main --config=configs/recipe.py[:paper|:small|:quick]
"""

import pathlib
import runpy

_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name('base.py')))


def get_config(variant=''):
  """configs/base.py with this file's stage."""
  config = _BASE['get_config'](variant)
  config.stage = 'recipe'
  return config
