"""Several runs as one classifier: the mean of their probabilities."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpjax import prepare
from dpjax.config import record as record_lib
from dpjax.errors import UserError
from dpjax.evaluation import against, evaluate, files
from dpjax.metrics import predictions


def evaluate_ensemble(
  config: Any,
  workdirs: Sequence[str | pathlib.Path],
  output: str | pathlib.Path,
) -> dict[str, Any]:
  """Scores the mean of what evaluated runs say, such as those of several seeds.

      p(c | image) = 1/M sum_m p_m(c | image)

  Nothing is computed by a network: the probabilities are those that `evaluate`
  left in each workdir. Threshold and temperature are the ensemble's own, chosen
  on the mean over the validation split.

  Writes evaluation.json, predictions.csv and predictions_validation.csv.

  Args:
    config: as resolved; of it the section `evaluate` counts.
    workdirs: of M runs, each evaluated on what `config.evaluate` names.
    output: a folder for the files; made where it is missing.

  Returns:
    What evaluation.json holds; 'members' are the workdirs. Of maps there are
    none.

  Raises:
    UserError: one line: a run is not evaluated, or on another set or split, has
      other classes, or is named twice; `output` holds something else.

  Source: Lakshminarayanan et al. (2017), arXiv 1612.01474, section 2.4.
  """
  members = [files.workdir_of(workdir) for workdir in workdirs]
  output = pathlib.Path(output)
  files.check_output(output, files.EVALUATION)
  for i, member in enumerate(members):
    if any(_same(member, other) for other in members[:i]):
      raise UserError(f'--workdir: {member} is named twice')
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

  def predict(split):
    file = files.VALIDATION
    if split is images.split:
      file = files.PREDICTIONS
    rows = [
      _probabilities(member / file, split, len(names)) for member in members
    ]
    seconds = sum(result['seconds']['inference'] for result in results)
    rates = [result['images_per_second'] for result in results]
    return np.mean(rows, axis=0), {
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


def _images(config, member):
  """What the set of the first run has to score."""
  if not (member / 'config.json').is_file():
    raise UserError(f'--workdir={member} holds no config.json of a run')
  own = record_lib.load(member / 'config.json', whole=True)
  here = pathlib.Path(config.data.path)
  if here.exists() and not pathlib.Path(own.data.path).exists():
    own.data.path = str(here)  # It was moved.
  data = prepare.open_prepared(prepare.as_made(own))
  return evaluate.images_to_score(config.evaluate, data)


def _result(member, settings, images):
  """Its evaluation.json, of the same images."""
  against.read_evaluation(member)  # Says what to do where there is none.
  result = files.read_evaluation(
    member,
    ('class_names', 'split', 'data', 'device', 'seconds', 'images_per_second'),
  )
  if result['split'] != settings.split or not _same(
    result['data'], images.path
  ):
    raise UserError(
      f'{member}: evaluated on {result["split"]} of {result["data"]}, and not'
      f' on {settings.split} of {images.path}; run evaluate there with the same'
      ' flags'
    )
  return result


def _probabilities(file, split, num_classes):
  """(N, C) of a member's file, in the order of the split."""
  found = predictions.read_predictions(file)
  place = {image: i for i, image in enumerate(found.ids)}
  ids = [str(image) for image in split.ids]
  if place.keys() != set(ids) or found.probabilities.shape[1] != num_classes:
    raise UserError(
      f'{file}: not of the images and classes of this set; run evaluate there'
      ' again'
    )
  rows = [place[image] for image in ids]
  if (found.labels[rows] != split.labels).any():
    first = ids[int(np.argmax(found.labels[rows] != split.labels))]
    raise UserError(f'{file}: {first} has another label in the set')
  return found.probabilities[rows]


def _same(a, b):
  return os.path.realpath(a) == os.path.realpath(b)
