"""The evaluate command: a trained run against a labelled split, whole."""

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from dpjax import atomic, leakage, prepare, signals
from dpjax.config import record as record_lib
from dpjax.data import store, vocabulary
from dpjax.errors import UserError, warn
from dpjax.evaluation import (
  explain,
  features,
  files,
  localisation,
  prior_shift,
)
from dpjax.metrics import (
  calibration,
  predictions,
  prevalence,
  resampling,
  scores,
  subgroups,
)
from dpjax.training import build as build_lib
from dpjax.training import checkpoint, inference, programs, steps
from dpjax.training.run import Run

# What evaluation.json says of maps where there are none.
NO_MAPS: dict[str, Any] = {
  'cam_target': None,
  'cam_stage': None,
  'localisation': {},
}


@dataclasses.dataclass(frozen=True)
class Images:
  """What a classifier is scored on.

  Attributes:
    path: of the prepared set.
    split: of it.
    validation: split to choose thresholds and a temperature on: that of the set
      that was trained on, where it is labelled and none of it is scored; or
      None.
    counts: training images of each class (C,).
  """

  path: str
  split: store.Split
  validation: store.Split | None
  counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class RestoredRun:
  """A trained run, and what it is to be scored on.

  Attributes:
    run: its networks and data.
    state: of the checkpoint.
    step: of the checkpoint.
    images: what is scored.
  """

  run: Run
  state: steps.TrainState
  step: int
  images: Images


def evaluate(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Scores the run in `workdir` and looks where it looks.

  The network and the data are those of the run's own config.json; of `config`
  count the section `evaluate` and the machine's fields, such as `parallel.mode`
  and `model.dtype` (config.record.on_this_machine). What is
  chosen (the threshold of any lesion, the temperature, the thresholds of maps)
  is chosen on the validation split, if the set has one and another is scored.

  Writes evaluation.json, predictions.csv, predictions_validation.csv,
  features.npz and, where the split has boxes, maps.npz and localisation.csv.

  Args:
    config: as resolved (dpjax.config.resolve).
    workdir: of a finished or unfinished stage II or fine-tuning, or of a
      recipe.

  Returns:
    What evaluation.json holds: what was scored, by which 'settings' (the
    section evaluate of the config), 'scores' and their 'intervals', those under
    other shares of the classes ('prior_shift', or None),
    'per_class', 'confusion_matrix', 'reliability', 'subgroups', 'localisation',
    'cam_target' and 'cam_stage' (those used), 'seconds'.

  Raises:
    UserError: one line: no run there, a split without labels, other classes,
      another set, one with an image that the run was trained on, or a network
      whose answers are not finite.
  """
  workdir = files.workdir_of(workdir)
  restored = open_run(config, workdir)
  run = restored.run
  eval_step = programs.compile_evaluation(run)
  result = score_classifier(
    workdir,
    run.config.evaluate,
    run.data.class_names,
    restored.images,
    functools.partial(_predict, restored, eval_step, config.train.progress),
  )
  result = {
    **result,
    'step': restored.step,
    'weights': steps.weights_digest(restored.state),
    'device': jax.devices()[0].device_kind,
    'dtype': run.config.model.dtype,
    **_localise(restored, workdir),
  }
  features.write(restored, workdir)
  write(workdir, result)
  return result


def score_classifier(
  workdir: pathlib.Path,
  settings: ConfigDict,
  class_names: Sequence[str],
  images: Images,
  predict: Callable[[store.Split], tuple[np.ndarray, dict[str, float]]],
) -> dict[str, Any]:
  """Scores any classifier; writes its predictions of the split and validation.

  Args:
    workdir: of the classifier, to write into.
    settings: the section `evaluate` of its config.
    class_names: that it tells apart.
    images: to score it on (images_to_score).
    predict: split -> probabilities (N, C), and {'inference': seconds,
      'images_per_second': float or None}.

  Returns:
    evaluation.json without 'step', 'device' and what is found of maps.
  """
  split, validation = images.split, images.validation
  probabilities, seconds = predict(split)
  signals.check()
  # After a kill in between, the scores must not be those of other predictions.
  (workdir / files.EVALUATION).unlink(missing_ok=True)
  predictions.write_predictions(
    workdir / files.PREDICTIONS,
    split.ids,
    split.labels,
    probabilities,
    class_names,
    split.groups,
  )
  options: scores.Options = {
    **vocabulary.meaning(class_names),
    'threshold': None,
    'temperature': None,
  }
  chosen = None
  (workdir / files.VALIDATION).unlink(missing_ok=True)
  if validation is not None:
    chosen, _ = predict(validation)
    predictions.write_predictions(
      workdir / files.VALIDATION,
      validation.ids,
      validation.labels,
      chosen,
      class_names,
      validation.groups,
    )
    options['temperature'] = calibration.fit_temperature(
      validation.labels, chosen
    )
    if options['any_lesion']:
      options['threshold'] = calibration.choose_threshold(
        validation.labels, chosen
      )
  signals.check()
  draws: resampling.Draws = {
    'resamples': settings.resamples,
    'seed': settings.seed,
    'patients': split.groups,
  }
  return {
    'checkpoint': settings.checkpoint,
    'data': str(images.path),
    'split': settings.split,
    'class_names': list(class_names),
    'settings': settings.to_dict(),
    'chosen_on': None if validation is None else 'validation',
    'threshold': options['threshold'],
    'temperature': options['temperature'],
    'num_patients': len(np.unique(split.groups)),
    **scores.scores(split.labels, probabilities, class_names, **options),
    'prior_shift': prior_shift.scored(
      settings, images, class_names, probabilities, chosen
    ),
    'intervals': resampling.bootstrap_intervals(
      split.labels, probabilities, class_names, **draws, **options
    ),
    'subgroups': subgroups.subgroups(
      split.metadata,
      split.labels,
      probabilities,
      class_names,
      **draws,
      **options,
    ),
    'seconds': {'inference': seconds['inference']},
    'images_per_second': seconds['images_per_second'],
  }


def write(workdir: pathlib.Path, result: dict[str, Any]) -> None:
  """Writes evaluation.json, whole or not at all."""
  atomic.write_json(workdir / files.EVALUATION, result)


def images_to_score(settings: ConfigDict, data: store.Store) -> Images:
  """What the settings ask for.

  Args:
    settings: the section `evaluate` of a config.
    data: the set that was trained on.

  Raises:
    UserError: one line: a split without labels, of other classes, or of squares
      made in another way, or shares of another number of classes.
  """
  scored = store.load(settings.path) if settings.path else data
  split = scored.split(settings.split)
  if not len(split) or (split.labels < 0).any():
    raise UserError(
      f'config.evaluate.split: {settings.split} of {scored.path} has'
      f' {len(split)} radiographs, {int((split.labels < 0).sum())} without a'
      ' label; it must be a labelled split'
    )
  if data.class_names[: scored.num_classes] != scored.class_names:
    raise UserError(
      f'config.evaluate.path: the classes of {scored.path} are'
      f' {", ".join(scored.class_names)} and those of {data.path}, trained on,'
      f' {", ".join(data.class_names)}'
    )
  _check_squares(scored, data)
  validation = data.splits.get('validation')
  if validation is not None and (
    not len(validation) or (validation.labels < 0).any()
  ):
    validation = None
  if validation is not None:
    # By the images: another set may hold them too, in another size.
    shared = np.isin(validation.source_digests, split.source_digests)
    if shared.any():
      if settings.path:
        warn(
          f'config.evaluate.path: {settings.split} of {scored.path} holds'
          f' {int(shared.sum())} of the {len(shared)} validation images of'
          f' {data.path}, so no threshold and no temperature is chosen on them'
        )
      validation = None
  counts = build_lib.class_counts(data.split('train'), data.num_classes)
  prevalence.target(settings.prevalence, counts)  # Refused before it is used.
  return Images(scored.path, split, validation, counts)


def _check_squares(scored, data):
  """Refuses squares made in another way; warns of another size."""
  fit, trained = scored.info['fit'], data.info['fit']
  if fit != trained:
    raise UserError(
      f'config.evaluate.path: {scored.path} was made with data.fit={fit}, and'
      f' {data.path}, trained on, with {trained}; prepare it again with'
      f' --config.data.fit={trained}'
    )
  if scored.size != data.size:
    warn(
      f'config.evaluate.path: the squares of {scored.path} are of'
      f' {scored.size} pixels and those of {data.path}, trained on, of'
      f' {data.size}, so answers may differ; with'
      f' --config.data.store_size={data.size} prepare makes them alike'
    )


def open_run(config: ConfigDict, workdir: pathlib.Path) -> RestoredRun:
  """Restores a run that classifies, and finds what it is to be scored on.

  Args:
    config: as resolved; the same of it counts as in `evaluate`.
    workdir: of the run itself.

  Raises:
    UserError: one line, as in `evaluate`.
  """
  if not (workdir / 'config.json').is_file():
    raise UserError(
      f'--workdir={workdir} holds no config.json; it must be the workdir of a'
      ' stage II run or of a recipe'
    )
  own = record_lib.load(workdir / 'config.json', whole=True)
  if own.stage not in files.CLASSIFIERS:
    raise UserError(
      f'--workdir={workdir} holds a run of {own.stage}; only retrain and'
      ' finetune classify'
    )
  own = record_lib.on_this_machine(own, config)
  own.evaluate = config.evaluate
  own.data.path = record_lib.set_path(own, config)
  explain.cam_stage(own)  # Checked before anything is computed.
  own = prepare.as_made(own)
  data = prepare.open_prepared(own)
  run = build_lib.build(own, own.stage, data)
  images = images_to_score(own.evaluate, data)
  asked = own.evaluate.prevalence != prevalence.NONE
  if asked and (warning := prior_shift.too_far(own)):
    warn(warning)
  leakage.check_unseen(
    workdir,
    images.split,
    f'{own.evaluate.split} of {images.path}',
    own.split.near,
  )
  optimizer, _ = build_lib.make_optimizer(run, 1)
  with contextlib.closing(
    checkpoint.Checkpoints(workdir, best=own.eval.best, write=False)
  ) as saved:
    step = saved.find(own.evaluate.checkpoint)
    state, _, record = saved.restore(
      step, build_lib.state_shapes(run, optimizer)
    )
  leakage.check_trained_on(record, run.records, run.data.path)
  leakage.check_manifest(workdir, record)
  return RestoredRun(run, state, step, images)


def _predict(restored, eval_step, progress, split):
  """What score_classifier calls: probabilities (N, C), and how fast they came.

  Raises:
    UserError: one line: they are not finite.
  """
  run = restored.run
  parts, clock = [], [time.perf_counter()]
  with tqdm.tqdm(
    total=len(split),
    desc='evaluate',
    unit='img',
    disable=not progress,
    dynamic_ncols=True,
  ) as bar:
    for rows, outputs in inference.infer(
      run, eval_step, restored.state, split, run.config.evaluate.batch_size
    ):
      signals.check()
      parts.append(outputs['logits'])
      clock.append(time.perf_counter())
      bar.update(rows)
  # The first batch waits for the compiler, so it is left out of the rate.
  later = sum(map(len, parts[1:]))
  logits = np.concatenate(parts)
  if not np.isfinite(logits).all():
    raise UserError(
      f'config.evaluate.checkpoint: the answers of step {restored.step} are not'
      ' finite; has the run diverged?'
    )
  return predictions.softmax(logits), {
    'inference': clock[-1] - clock[0],
    'images_per_second': later / (clock[-1] - clock[1]) if later else None,
  }


def _localise(restored, workdir):
  """What evaluation.json says of maps; writes maps.npz and localisation.csv.

  'cam_target' and 'cam_stage' are those used, which the settings may leave to
  the classes and to the network.
  """
  for name in (files.MAPS, files.LOCALISATION):
    (workdir / name).unlink(missing_ok=True)
  split, validation = restored.images.split, restored.images.validation
  if not split.num_boxes.any():
    return NO_MAPS
  settings = restored.run.config.evaluate
  target = explain.cam_target(
    restored.run.config, restored.run.data.class_names
  )
  stage = explain.cam_stage(restored.run.config)
  step = explain.compile_maps(restored.run, target, stage)

  def find_maps(rows):
    signals.check()
    maps = inference.collect(
      restored.run, step, restored.state, rows, settings.batch_size
    )
    if not all(np.isfinite(value).all() for value in maps.values()):
      raise UserError(f'{workdir}: its maps are not finite; has it diverged?')
    return maps

  shown = explain.to_explain(split, settings.seed)
  maps = find_maps(shown)
  with (
    atomic.replacing(workdir / files.MAPS) as temporary,
    open(temporary, 'wb') as file,
  ):
    np.savez_compressed(
      file,
      ids=shown.ids,
      **{name: value.astype(np.float16) for name, value in maps.items()},
    )
  chosen_on = None
  if validation is not None and validation.num_boxes.any():
    rows = explain.Rows(validation, np.flatnonzero(validation.num_boxes))
    chosen_on = rows, find_maps(rows)
  ids, per_image, result = explain.localise(
    shown, maps, chosen_on, restored.run.data.split('train'),
    size=restored.run.config.data.image_size, resamples=settings.resamples,
    seed=settings.seed,
  )  # fmt: skip
  localisation.write_scores(workdir / files.LOCALISATION, ids, per_image)
  return {'cam_target': target, 'cam_stage': stage, 'localisation': result}
