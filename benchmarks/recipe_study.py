"""A config for ablate: what of the recipe's gain is had without it?

python -m dpjax.main ablate --config=benchmarks/recipe_study.py:small \
  --workdir=runs/recipe-phantom --config.ablate.seeds='(0,1,2,3,4)' \
  --config.data.path=data/phantom-fresh --config.data.phantom.count=7800 \
  --config.data.phantom.seed=2 --config.data.phantom.least=40 \
  --config.split.test=0.77

The plain network and the paper's, each with class weights that come late, as
the default has them, and with none or from the first step on. The phantom is a
fresh one: 1,612 training, 182 validation and 6,006 test images, of these 31 or
more of each class. Variants are those of configs/base.py; other sets by flags.
"""

import pathlib
import runpy

_BASE = runpy.run_path(
  str(pathlib.Path(__file__).parents[1] / 'configs/base.py')
)
PLAIN = ('init.backbone=None', 'mgacr.attention=False', 'mgacr.features=False')
_ROWS = (
  ('plain', (*PLAIN, 'finetune.epochs=0')),
  ('plain-late', PLAIN),
  ('full', ('loss.classification=cb_focal', 'finetune.epochs=0')),
  ('full-late', ()),
)


def get_config(variant=''):
  """configs/base.py with these rows."""
  config = _BASE['get_config'](variant)
  config.stage = 'recipe'
  config.ablate.rows = _ROWS
  return config
