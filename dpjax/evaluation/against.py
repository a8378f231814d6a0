"""Two evaluated runs on the same images: what differs, and how surely."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpjax import atomic
from dpjax.data import vocabulary
from dpjax.errors import UserError
from dpjax.evaluation import files, localisation
from dpjax.metrics import predictions, resampling, significance


def compare_runs(
  workdir_a: str | pathlib.Path,
  workdir_b: str | pathlib.Path,
  *,
  resamples: int,
  seed: int,
  results: Sequence[dict[str, Any]] | None = None,
) -> dict[str, Any]:
  """Compares two runs by what `evaluate` wrote.

  Args:
    workdir_a: of an evaluated run.
    workdir_b: of another, on the same images.
    resamples: of the bootstrap.
    seed: of the bootstrap.
    results: evaluation.json of both, where they have been read.

  Returns:
    {'a', 'b': workdirs, 'num_images', 'num_patients' (as many where they are
    unknown), 'scores': resampling.paired_bootstrap, 'mcnemar':
    significance.mcnemar, 'localisation': {map: {score: {'difference',
    'interval'}}} of the maps that both have}.

  Raises:
    UserError: one line: a run is not evaluated, or on other images or classes.
  """
  a, b = map(files.workdir_of, (workdir_a, workdir_b))
  result_a, result_b = results or map(read_evaluation, (a, b))
  names = result_a['class_names']
  if names != result_b['class_names']:
    raise UserError(
      f'{b}: its classes are'
      f' {", ".join(result_b["class_names"])} and those of {a} are'
      f' {", ".join(names)}'
    )
  ids_a, labels, p_a, patients_a = _sorted(a, len(names))
  ids_b, labels_b, p_b, patients_b = _sorted(b, len(names))
  if ids_a != ids_b:
    apart = len(set(ids_a) ^ set(ids_b))
    raise UserError(
      f'{b}: {apart} images were scored either there or in {a}, not in both;'
      ' evaluate both on the same split'
    )
  if (labels_b != labels).any():
    first = ids_a[int(np.argmax(labels_b != labels))]
    raise UserError(f'{b}: {first} has another label there than in {a}')
  # A run that was evaluated before there was the column does not know them.
  patients = patients_b if patients_a is None else patients_a
  (boxed_a, maps_a), (boxed_b, maps_b) = _localisation(a), _localisation(b)
  if boxed_a != boxed_b and boxed_a and boxed_b:
    raise UserError(
      f'{b}: {len(set(boxed_a) ^ set(boxed_b))} images have boxes either there'
      f' or in {a}, not in both; evaluate both on the same set'
    )
  return {
    'a': str(a),
    'b': str(b),
    'num_images': len(ids_a),
    'num_patients': len(ids_a if patients is None else np.unique(patients)),
    'scores': resampling.paired_bootstrap(
      labels, p_a, p_b, names, resamples=resamples, seed=seed,
      patients=patients, **vocabulary.meaning(names),
      threshold=(result_a['threshold'], result_b['threshold']),
      temperature=(result_a['temperature'], result_b['temperature']),
    ),
    'mcnemar': significance.mcnemar(labels, p_a, p_b, patients),
    'localisation': {
      name: localisation.paired(
        maps_a[name], maps_b[name], resamples=resamples, seed=seed,
        patients=_of(boxed_a, ids_a, patients),
      )
      for name in maps_a
      # A baseline is the same for both.
      if name in maps_b and name not in localisation.BASELINES
    },
  }  # fmt: skip


def write(found: dict[str, Any]) -> pathlib.Path:
  """Writes what `compare_runs` found as against.json into a's workdir."""
  file = pathlib.Path(found['a']) / files.AGAINST
  atomic.write_json(file, {**found, 'a': '.'})  # The folder may move.
  return file


def _sorted(workdir, num_classes):
  """predictions.csv in the order of the ids: equal draws for equal images."""
  found = read_predictions(workdir / files.PREDICTIONS, num_classes)
  order = np.argsort(found.ids)
  return predictions.Predictions(
    [found.ids[i] for i in order],
    found.labels[order],
    found.probabilities[order],
    None if found.patients is None else found.patients[order],
  )


def _of(boxed, ids, patients):
  """The patients of the images with boxes; None where they are unknown."""
  if patients is None:
    return None
  place = {image: i for i, image in enumerate(ids)}
  if not set(boxed) <= set(place):
    return None  # Of another evaluation than the predictions.
  return patients[[place[image] for image in boxed]]


def read_predictions(
  file: pathlib.Path, num_classes: int
) -> predictions.Predictions:
  """What an evaluated run said of each image.

  Args:
    file: of its workdir.
    num_classes: of its evaluation.json.

  Raises:
    UserError: one line: the file cannot be read, or has other classes.
  """
  found = predictions.read_predictions(file)
  if found.probabilities.shape[1] != num_classes:
    raise UserError(
      f'{file}: {found.probabilities.shape[1]} classes, where'
      f' {files.EVALUATION} beside it names {num_classes}; run evaluate there'
      ' again'
    )
  return found


def read_evaluation(
  workdir: str | pathlib.Path, needed: Sequence[str] = ()
) -> dict[str, Any]:
  """evaluation.json of an evaluated run, or of a recipe's second stage.

  Args:
    workdir: of either.
    needed: what it must hold, besides what `compare_runs` needs.

  Raises:
    UserError: one line: there is none, or not a whole one.
  """
  workdir = files.workdir_of(workdir)
  try:
    return files.read_evaluation(
      workdir, ('class_names', 'threshold', 'temperature', *needed)
    )
  except OSError as error:
    raise UserError(
      f'{workdir / files.EVALUATION}: no evaluation to compare'
      f' ({error.strerror}); run evaluate there first'
    ) from error


def _localisation(workdir):
  """localisation.read_scores, empty where no image has a box."""
  file = workdir / files.LOCALISATION
  return localisation.read_scores(file) if file.is_file() else ([], {})
