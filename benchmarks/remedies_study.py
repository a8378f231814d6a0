"""A config for ablate: the remedies for a long tail, side by side.

python -m dpjax.main ablate --config=benchmarks/remedies_study.py:small \
  --workdir=runs/remedies-phantom --config.data.path=data/search-phantom \
  --config.data.phantom.seed=1 --config.split.validation=0.33

Each on the plain network and on the paper's (pre-training and MGACR), scored on
validation: a default is chosen here, and the test split stays unseen. Of the
rows without a remedy, prior_shift in evaluation.json tells what they would
answer were the classes of equal shares. Variants are those of configs/base.py;
other sets by flags.
"""

import pathlib
import runpy

_STUDY = runpy.run_path(
  str(pathlib.Path(__file__).with_name('recipe_study.py'))
)
_NETWORKS = {'plain': _STUDY['PLAIN'], 'full': ()}
_ALONE = 'finetune.epochs=0'
_REMEDIES = {
  'none': (_ALONE, 'evaluate.prevalence=balanced'),
  # The paper's: class weights from the first step on.
  'focal': (_ALONE, 'loss.classification=cb_focal'),
  'deferred': (
    _ALONE,
    'loss.classification=cb_ce',
    'loss.beta=0.999',
    'loss.begin=0.7',
  ),
  'late': (),
  'late unfrozen': ('finetune.freeze=False',),
  'logit-adjusted': (_ALONE, 'loss.classification=logit_adjusted'),
}


def get_config(variant=''):
  """The config of recipe_study.py with these rows, on validation."""
  config = _STUDY['get_config'](variant)
  config.evaluate.split = 'validation'
  config.ablate.rows = tuple(
    (f'{network} {remedy}', (*of_network, *of_remedy))
    for remedy, of_remedy in _REMEDIES.items()
    for network, of_network in _NETWORKS.items()
  )
  return config
