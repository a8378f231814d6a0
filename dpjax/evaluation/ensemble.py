"""Several runs as one classifier: the mean of their probabilities."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from dpjax import prepare
from dpjax.config import record as record_lib
from dpjax.errors import UserError, warn
from dpjax.evaluation import against, evaluate, files, prior_shift
from dpjax.metrics import predictions, prevalence
from dpjax.training import build


def evaluate_ensemble(
  config: ConfigDict,
  workdirs: Sequence[str | pathlib.Path],
  output: str | pathlib.Path,
) -> dict[str, Any]:
  """Scores the mean of what evaluated runs say, such as those of several seeds.

  Nothing is computed by a network: the probabilities (predictions.mean) are
  those that `evaluate` left in each workdir. Threshold and temperature are the
  ensemble's own, chosen on the mean over the validation split; runs that have
  not the same one get neither, and a warning.

  Writes evaluation.json, predictions.csv and predictions_validation.csv.

  Args:
    config: as resolved; of it the section `evaluate` counts.
    workdirs: of M runs, each evaluated on what `config.evaluate` names.
    output: a folder for the files; made where it is missing.

  Returns:
    What evaluation.json holds; 'members' are the workdirs. Of maps there are
    none.

  Raises:
    UserError: one line: a run is not evaluated, or on another set or split or
      at another checkpoint, has other classes, is a mean of runs itself or is
      named twice; `output` holds something else; for other shares of the
      classes, the set of a run is not there.
  """
  members = [files.workdir_of(workdir) for workdir in workdirs]
  output = pathlib.Path(output)
  files.check_output(output, files.EVALUATION)
  for i, member in enumerate(members):
    if any(_same(member, other) for other in members[:i]):
      raise UserError(f'--workdir: {member} is named twice')
    _check_is_a_run(member)
  settings = config.evaluate
  images = _images(config, members[0])
  results = [_result(member, settings, images) for member in members]
  names = results[0]['class_names']
  for member, result in zip(members, results, strict=True):
    if result['class_names'] != names:
      raise UserError(
        f'{member}: its classes are {", ".join(result["class_names"])} and'
        f' those of {members[0]} are {", ".join(names)}'
      )
  if settings.prevalence != prevalence.NONE:
    counts = _trained_on(config, members, len(names))
    images = dataclasses.replace(images, counts=counts)

  said = _said(members, files.PREDICTIONS, len(names))
  try:
    on_split = predictions.mean(said, images.split.ids, images.split.labels)
  except UserError as error:
    raise UserError(f'{error}; run evaluate there again') from error
  images, on_validation = _on_validation(members, images, len(names))
  for warning in _too_far(settings, members):
    warn(warning)

  def predict(split):
    seconds = sum(result['seconds']['inference'] for result in results)
    rates = [result['images_per_second'] for result in results]
    return on_split if split is images.split else on_validation, {
      'inference': seconds,
      'images_per_second': (
        None if None in rates else 1 / sum(1 / rate for rate in rates)
      ),
    }

  output.mkdir(parents=True, exist_ok=True)
  result = evaluate.score_classifier(output, settings, names, images, predict)
  result |= {
    'checkpoint': None,
    'step': None,
    'device': ', '.join(dict.fromkeys(r['device'] for r in results)),
    'members': [str(member) for member in members],
    **evaluate.NO_MAPS,
  }
  evaluate.write(output, result)
  return result


def _check_is_a_run(member):
  if (member / 'config.json').is_file():
    return
  more = ''
  if (member / files.EVALUATION).is_file():
    of = files.read_evaluation(member, ()).get('members')
    more = f'; it is a mean of runs: name {", ".join(of)}' if of else ''
  raise UserError(f'--workdir={member} holds no config.json of a run{more}')


def _images(config, member):
  """What the set of the first run has to score."""
  return evaluate.images_to_score(config.evaluate, _set(config, member))


def _trained_on(config, members, num_classes):
  """Training images of each class, of all runs: their sets may be different."""
  sets = [_set(config, member) for member in members]
  return np.sum(
    [build.class_counts(data.split('train'), num_classes) for data in sets],
    axis=0,
  )


def _set(config, member):
  """The prepared set of a run."""
  own = record_lib.load(member / 'config.json', whole=True)
  own.data.path = record_lib.set_path(own, config)
  return prepare.open_prepared(prepare.as_made(own))


def _result(member, settings, images):
  """Its evaluation.json, of the same images."""
  result = against.read_evaluation(
    member, ('split', 'data', 'device', 'seconds', 'images_per_second')
  )
  if result['split'] != settings.split or not _same(
    result['data'], images.path
  ):
    raise UserError(
      f'{member}: evaluated on {result["split"]} of {result["data"]}, and not'
      f' on {settings.split} of {images.path}; run evaluate there with the same'
      ' flags'
    )
  found = result.get('checkpoint')  # None: a method that has no checkpoints.
  if found not in (settings.checkpoint, None):
    raise UserError(
      f'{member}: evaluated at its {found} checkpoint, and not at the'
      f' {settings.checkpoint} one; run evaluate there with the same flags, or'
      f' give --config.evaluate.checkpoint={found} here'
    )
  return result


def _said(members, name, num_classes):
  """{file: what it holds} of the files of that name."""
  return {
    str(member / name): against.read_predictions(member / name, num_classes)
    for member in members
  }


def _on_validation(members, images, num_classes):
  """The images, and the mean of validation; both without one if there is none.

  Folds of one set that are scored on another have each a validation of its own.
  """
  validation = images.validation
  if validation is None:
    return images, None
  without = [m for m in members if not (m / files.VALIDATION).is_file()]
  if without:
    reason = f'{without[0]} has no {files.VALIDATION}'
  else:
    said = _said(members, files.VALIDATION, num_classes)
    try:
      return images, predictions.mean(said, validation.ids, validation.labels)
    except UserError as error:
      reason = str(error)
  warn(
    'the runs have other validation splits, so their mean is not calibrated,'
    f' and there is no threshold ({reason})'
  )
  return dataclasses.replace(images, validation=None), None


def _too_far(settings, members):
  """Lines where members have learnt to shift their answers, each once."""
  if settings.prevalence == prevalence.NONE:
    return ()
  configs = [
    record_lib.load(member / 'config.json', whole=True) for member in members
  ]
  networks = (c for c in configs if c.stage in files.CLASSIFIERS)
  return dict.fromkeys(filter(None, map(prior_shift.too_far, networks)))


def _same(a, b):
  return os.path.realpath(a) == os.path.realpath(b)
