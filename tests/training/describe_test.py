"""The lines that a run says of itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from dpjax.training import build as build_lib
from dpjax.training import describe
from dpjax.training.start import Start
from dpjax.training.steps import TrainState
from tests import fakes


@pytest.fixture(scope='module')
def run():
  config = fakes.make_config(
    model__stage_sizes=(1,), model__width=4, mgacr__stages=('stage1',)
  )
  return build_lib.build(config, 'retrain', fakes.make_store())


def test_the_start_has_the_parameters_of_each_part(run):
  params = {
    'backbone': {'conv': {'kernel': np.zeros((7, 7, 1, 1000))}},
    'attention': {'scale': np.zeros(500), 'bias': np.zeros(500)},
  }
  state = TrainState(jnp.zeros((), jnp.int32), params, {}, ())
  said, parameters = describe.start(run, 'runs/a', Start(state)).splitlines()
  assert said.startswith(
    'retrain: runs/a, from scratch, to step 24 (8 epochs of 48 radiographs by'
    ' 16), jit on 1 x '
  )
  assert parameters == (
    'retrain: 0.05 M parameters (attention 0.001 M, backbone 0.049 M)'
  )


def test_a_score_that_there_is_not_is_left_out(run):
  said = describe.scores(run, 6, {'accuracy': 0.51239, 'auroc': None})
  assert said == 'retrain epoch 2.00, validation: accuracy 0.5124'
  said = describe.scores(run, 6, {'auroc': None})
  assert said == 'retrain epoch 2.00, validation: no radiographs'
