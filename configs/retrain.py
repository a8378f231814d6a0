"""Stage II: re-training as a classifier with taught attention (MGACR).

python -m dpjax.main --config=configs/retrain.py[:paper|:small|:quick]
"""

import pathlib
import runpy

_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name('base.py')))


def get_config(variant=''):
  """configs/base.py with this file's stage."""
  config = _BASE['get_config'](variant)
  config.stage = 'retrain'
  return config
