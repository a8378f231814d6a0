"""The evaluate command: a trained run against a labelled split, whole."""

import contextlib
import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import tqdm

from dpjax import checkpoint, manifest, optim, steps, train
from dpjax import config as config_lib
from dpjax import experiment as experiment_lib
from dpjax.data import prepare, store
from dpjax.evaluation import scores as scores_lib


def evaluate(config: Any, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Scores the run in `workdir`; writes evaluation.json and predictions.csv.

  The network and the data are those of the run's own config.json; of `config`
  count the sections `evaluate` and `parallel` and how data are read.

  Args:
    config: as resolved (dpjax.config.resolve).
    workdir: of a finished or unfinished stage II, or of a recipe.

  Returns:
    What evaluation.json holds: evaluation.scores.scores, 'intervals' of
    evaluation.scores.bootstrap, and what was scored.

  Raises:
    ValueError: one line: no run there, a split without labels, other classes,
      another set, or one with an image that the run was trained on.
  """
  workdir = pathlib.Path(workdir)
  if (workdir / 'retrain' / 'config.json').is_file():  # of a recipe
    workdir = workdir / 'retrain'
  if not (workdir / 'config.json').is_file():
    raise ValueError(
      f'--workdir={workdir} holds no config.json; it must be the workdir of a'
      ' stage II run or of a recipe'
    )
  own = config_lib.load(workdir / 'config.json')
  if own.stage != 'retrain':
    raise ValueError(
      f'--workdir={workdir} holds a run of {own.stage}; only retrain classifies'
    )
  own.evaluate, own.parallel = config.evaluate, config.parallel
  for field in ('render', 'threads', 'prefetch'):
    own.data[field] = config.data[field]
  here = pathlib.Path(config.data.path)
  if here.exists() and not pathlib.Path(own.data.path).exists():
    own.data.path = str(here)  # It was moved.
  own = prepare.as_made(own)
  data = prepare.open_prepared(own)
  run = experiment_lib.build(own, 'retrain', data)
  scored = store.load(own.evaluate.path) if own.evaluate.path else data
  split = scored.split(own.evaluate.split)
  if not len(split) or (split.labels < 0).any():
    raise ValueError(
      f'config.evaluate.split: {own.evaluate.split} of {scored.path} has'
      f' {len(split)} radiographs, {int((split.labels < 0).sum())} without a'
      ' label; it must be a labelled split'
    )
  if data.class_names[: scored.num_classes] != scored.class_names:
    raise ValueError(
      f'config.evaluate.path: the classes of {scored.path} are'
      f' {", ".join(scored.class_names)} and {workdir} was trained on'
      f' {", ".join(data.class_names)}'
    )
  manifest.check_unseen(
    workdir,
    split,
    f'{own.evaluate.split} of {scored.path}',
    own.split.near,
  )
  optimizer, _ = optim.make(steps=1, **run.settings.optim)
  with contextlib.closing(
    checkpoint.Checkpoints(workdir, best=own.eval.best, write=False)
  ) as saved:
    step = saved.find(own.evaluate.checkpoint)
    state, _, record = saved.restore(
      step, experiment_lib.initial_state(run, optimizer)
    )
  run.check_trained_on(record)

  eval_step = run.compile(
    functools.partial(steps.eval_step, stage=run.model), gather=True
  )
  logits = []
  with tqdm.tqdm(
    total=len(split),
    desc='evaluate',
    unit='img',
    disable=not config.train.progress,
    dynamic_ncols=True,
  ) as bar:
    for rows, outputs in run.infer(
      eval_step, state, split, own.evaluate.batch_size
    ):
      logits.append(outputs['logits'])
      bar.update(rows)
  probabilities = train.probabilities(np.concatenate(logits))
  names = data.class_names
  result = {
    'workdir': str(workdir),
    'checkpoint': own.evaluate.checkpoint,
    'step': step,
    'data': str(scored.path),
    'split': own.evaluate.split,
    'device': jax.devices()[0].device_kind,
    **scores_lib.scores(split.labels, probabilities, names),
    'intervals': scores_lib.bootstrap(
      split.labels,
      probabilities,
      resamples=own.evaluate.resamples,
      seed=own.evaluate.seed,
    ),
  }
  scores_lib.write_predictions(
    workdir / 'predictions.csv', split.ids, split.labels, probabilities, names
  )
  temporary = workdir / 'evaluation.tmp'
  temporary.write_text(json.dumps(result, indent=2) + '\n')
  temporary.replace(workdir / 'evaluation.json')
  return result
