"""A run on a prepared phantom, evaluated, and the phantom's own files."""

import dataclasses
import pathlib
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from dpjax import leakage, prepare
from dpjax.config import record as record_lib
from dpjax.data import store as store_lib
from dpjax.data.sources import phantom
from dpjax.evaluation import evaluate
from dpjax.training import build as build_lib
from dpjax.training import checkpoint
from tests import fakes

COUNT, STORED, SEEN = 60, 64, 48


@dataclasses.dataclass(frozen=True)
class Served:
  """What the tests of this folder look at.

  Attributes:
    workdir: of the evaluated run.
    files: folder of the test and validation splits' source files, ID.png.
    data: the prepared set.
    result: evaluation.json.
    config: that it was evaluated by.
  """

  workdir: pathlib.Path
  files: pathlib.Path
  data: store_lib.Store
  result: dict[str, Any]
  config: Any


def make_config(root, **changes):
  return fakes.make_config(
    stage='retrain', init__backbone='None', data__store_size=STORED,
    data__image_size=SEEN, data__phantom__count=COUNT, data__workers=1,
    data__path=str(root / 'set'), model__stage_sizes=(1, 1), model__width=8,
    mgacr__stages=('stage1', 'stage2'), evaluate__resamples=20,
    retrain__batch_size=8, split__test=0.2, split__validation=0.2, **changes,
  )  # fmt: skip


def make_run(root, name, config, seed=0):
  """The workdir of a run that has seen nothing, but answers decidedly."""
  data = store_lib.load(config.data.path)
  config.seed = seed
  run = build_lib.build(prepare.as_made(config), 'retrain', data)
  optimizer, _ = build_lib.make_optimizer(run, 1)
  state = build_lib.initial_state(run, optimizer)
  rng = np.random.default_rng(seed)
  params = {**state.params, 'backbone': {**state.params['backbone']}}
  kernel = params['backbone']['fc']['kernel']
  params['backbone']['fc'] = {
    'kernel': jax.numpy.asarray(rng.normal(0, 1, kernel.shape), 'float32'),
    'bias': params['backbone']['fc']['bias'],
  }
  workdir = root / name
  workdir.mkdir()
  record_lib.save(run.config, workdir / 'config.json')
  leakage.write(workdir, 'retrain', run.records)
  saved = checkpoint.Checkpoints(workdir)
  record = {
    'training': 1.0,
    'wall': 2.0,
    'trained_on': leakage.fingerprint(run.records),
    'manifest': leakage.digest(workdir),
    'class_names': [*data.class_names],
    'class_counts': build_lib.class_counts(
      data.split('train'), data.num_classes
    ).tolist(),
  }
  saved.save(3, state.replace(params=params), {}, record)
  saved.close()
  return workdir


@pytest.fixture(scope='session')
def served(tmp_path_factory):
  root = tmp_path_factory.mktemp('served')
  config = make_config(root)
  prepare.prepare(config)
  workdir = make_run(root, 'one', config)
  result = evaluate.evaluate(config, workdir)
  data = store_lib.load(config.data.path)
  files = root / 'files'
  files.mkdir()
  wanted = {*data.split('test').ids, *data.split('validation').ids}
  for one in phantom.read(COUNT, 0):
    if one.id in wanted:
      cv2.imwrite(str(files / f'{one.id}.png'), one.pixels())
  return Served(workdir, files, data, result, config)


@pytest.fixture(scope='session')
def second(served):
  """Another run on the same set, evaluated."""
  config = make_config(served.workdir.parent)
  workdir = make_run(served.workdir.parent, 'two', config, seed=1)
  evaluate.evaluate(config, workdir)
  return workdir
