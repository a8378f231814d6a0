"""Stage I: contrastive pre-training on unlabelled radiographs.

python -m dpjax.main --config=configs/pretrain.py[:paper|:small|:quick]
"""

import pathlib
import runpy

_BASE = runpy.run_path(str(pathlib.Path(__file__).with_name('base.py')))


def get_config(variant=''):
  """configs/base.py with this file's stage."""
  config = _BASE['get_config'](variant)
  config.stage = 'pretrain'
  return config
