"""Scores of a classifier on labelled images.

A score that these images leave undefined is None: no score is made up by a
convention for 0/0. Those that scikit-learn has are its own (a test).
"""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np

from dpjax.metrics import calibration, predictions, score_table

# What is scored during training.
VALIDATED = ('accuracy', 'balanced_accuracy', 'balanced_accuracy_0_2',
             'macro_f1', 'auroc_any_lesion')  # fmt: skip


class Options(TypedDict):
  """What `scores` has to be told beside the answers; the arguments there."""

  any_lesion: bool
  ordinal: bool
  threshold: float | None
  temperature: float | None


def scores(
  labels: np.ndarray,
  probabilities: np.ndarray,
  class_names: Sequence[str],
  *,
  any_lesion: bool = True,
  ordinal: bool = False,
  threshold: float | None = None,
  temperature: float | None = None,
) -> dict[str, Any]:
  """Scores the predictions of one model.

  With TP_c, FP_c, FN_c and TN_c counted one class against the rest,

      recall_c = TP_c / (TP_c + FN_c)    precision_c = TP_c / (TP_c + FP_c)
      F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c)
      specificity_c = TN_c / (TN_c + FP_c)

  and balanced accuracy and macro F1 are the unweighted means of recall_c and
  F1_c over the classes that occur in `labels`, where neither can be 0/0. A
  class that is never predicted enters both with 0; a class that is predicted
  but never true enters neither, though its images lower the others.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    class_names: C distinct names.
    any_lesion: whether class 0 means "no lesion", which the scores of any
      lesion need.
    ordinal: whether the classes are counts, which quadratic kappa needs.
    threshold: an image is called a lesion if 1 - p_0 is at least this. Chosen
      on other images, by `calibration.choose_threshold`.
    temperature: to scale the probabilities by. Chosen on other images, by
      `calibration.fit_temperature`.

  Returns:
    A dict that `json.dump` takes as it is:
      num_images: N.
      scores: flat name -> float or None:
        accuracy, balanced_accuracy, macro_f1.
        balanced_accuracy_0_2: mean recall of classes 0 to 2, steadier where
          the rare classes hold a handful of images. None unless C > 3.
        auroc_any_lesion, average_precision_any_lesion: of 1 - p_0 for
          label > 0. None without `any_lesion`, or if all images are on one
          side.
        sensitivity_any_lesion, specificity_any_lesion: at `threshold`. None
          also without one, or without images of that side.
        quadratic_kappa: agreement beyond chance, a miss weighing the square
          of its distance. None without `ordinal`, or if truth and predictions
          are one and the same class.
        ece: expected calibration error, 15 bins (`calibration`).
        brier: mean of sum_c (p_c - [c is true])^2, 0 to 2.
        nll: mean of -ln p of the true class, p at least `calibration.FLOOR`.
        ece_scaled, brier_scaled, nll_scaled: of the scaled probabilities, None
          without `temperature`.
        precision/NAME (None if never predicted), recall/NAME (None without
          such images), specificity/NAME (None without others), f1/NAME (None
          if neither true nor predicted), auroc/NAME and average_precision/NAME
          against the rest (None without both sides) of every class.
      per_class: name -> the last six, and support (the number of its images).
      confusion_matrix: C lists of C counts, rows the true class.
      majority_accuracy: the accuracy of always answering the commonest class.
      reliability: `calibration.reliability`.
      reliability_scaled: of the scaled probabilities, None without
        `temperature`.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: macro F1 as the mean of the classes' F1, Opitz and Burst (2019),
  arXiv 1911.03347, Eq. 1; balanced accuracy, Brodersen et al. (2010); kappa,
  Cohen (1968); calibration error, Guo et al. (2017), Eq. 3; Brier (1950).
  """
  labels, probabilities = predictions.check(labels, probabilities)
  num_classes = probabilities.shape[1]
  class_names = predictions.check_names(class_names, num_classes)
  score = scorer(
    labels,
    probabilities,
    class_names,
    any_lesion=any_lesion,
    ordinal=ordinal,
    threshold=threshold,
    temperature=temperature,
  )
  flat = of_all(score, len(labels))
  support = np.bincount(labels, minlength=num_classes)  # (C,)
  confusion = np.zeros((num_classes, num_classes), int)
  np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
  return {
    'num_images': len(labels),
    'scores': flat,
    'per_class': {
      name: {
        **{key: flat[f'{key}/{name}'] for key in score_table.PER_CLASS},
        'support': int(support[c]),
      }
      for c, name in enumerate(class_names)
    },
    'confusion_matrix': confusion.tolist(),
    'majority_accuracy': float(support.max() / len(labels)),
    'reliability': calibration.reliability(labels, probabilities),
    'reliability_scaled': None
    if temperature is None
    else calibration.reliability(
      labels, calibration.scale(probabilities, temperature)
    ),
  }


def summary(
  labels: np.ndarray, probabilities: np.ndarray, *, any_lesion: bool = True
) -> dict[str, float | None]:
  """Those of `scores` that validation during training takes.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    any_lesion: whether class 0 means "no lesion".

  Returns:
    {name: float, or None where undefined} of VALIDATED.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.
  """
  labels, probabilities = predictions.check(labels, probabilities)
  score = scorer(labels, probabilities, None, any_lesion=any_lesion)
  found = of_all(score, len(labels))
  return {name: found[name] for name in VALIDATED}


def scorer(
  labels: np.ndarray,  # (N,)
  probabilities: np.ndarray,  # (N, C)
  class_names: Sequence[str] | None,
  *,
  any_lesion: bool,
  ordinal: bool = False,
  threshold: float | None = None,
  temperature: float | None = None,
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
  """A function that scores many resamples of the images at once.

  It takes counts (R, N), float64, how often each of R resamples holds an image,
  and returns flat name -> (R,), NaN where undefined. The arguments here are
  those of `scores`, checked; without names no class is scored.
  """
  if class_names is not None:
    predictions.check_names(class_names, probabilities.shape[1])
  images = score_table.Images(
    labels, probabilities, threshold=threshold, temperature=temperature
  )
  facts = {
    'any_lesion': any_lesion,
    'ordinal': ordinal,
    'four_classes': images.num_classes > 3,
    'threshold': threshold is not None,
    'temperature': temperature is not None,
  }
  given = {name for name, holds in facts.items() if holds}

  def score(counts: np.ndarray) -> dict[str, np.ndarray]:
    drawn = score_table.Drawn(images, counts)
    undefined = np.full(len(counts), np.nan)
    values = {
      name: row.of(drawn) if row.needs <= given else undefined
      for name, row in score_table.SUMMARY.items()
    }
    if class_names is not None:
      columns = {k: row.of(drawn) for k, row in score_table.PER_CLASS.items()}
      for c, name in enumerate(class_names):
        values |= {f'{key}/{name}': of[:, c] for key, of in columns.items()}
    return values

  return score


def of_all(
  score: Callable[[np.ndarray], dict[str, np.ndarray]], num_images: int
) -> dict[str, float | None]:
  """What a `scorer` gives all images, each once; None where undefined."""
  values = score(np.ones((1, num_images)))
  return {
    name: None if np.isnan(value[0]) else float(value[0])
    for name, value in values.items()
  }
