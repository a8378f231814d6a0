"""Scores of a classifier on labelled images.

A score that these images leave undefined is None: no score is made up by a
convention for 0/0. The scores come from scikit-learn where it has them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from dpjax.metrics import calibration, predictions, titles


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
    UserError: if an argument has a wrong shape or an impossible value.

  Source: macro F1 as the mean of the classes' F1, Opitz and Burst (2019),
  arXiv 1911.03347, Eq. 1; balanced accuracy, Brodersen et al. (2010); kappa,
  Cohen (1968); calibration error, Guo et al. (2017), Eq. 3; Brier (1950).
  """
  labels, probabilities = predictions.check(labels, probabilities)
  num_classes = probabilities.shape[1]
  class_names = predictions.check_names(class_names, num_classes)
  predicted = probabilities.argmax(axis=1)
  support = np.bincount(labels, minlength=num_classes)  # (C,)
  present = np.flatnonzero(support)

  def mean_recall(classes: np.ndarray) -> float | None:
    # Not balanced_accuracy_score: it warns of predictions outside `labels`.
    if not classes.size:
      return None
    return float(
      metrics.recall_score(labels, predicted, labels=classes, average='macro')
    )

  def ranked(positive: np.ndarray, score: np.ndarray) -> list[float | None]:
    if positive.all() or not positive.any():
      return [None, None]
    auroc = metrics.roc_auc_score(positive, score)
    return [
      float(auroc),
      float(metrics.average_precision_score(positive, score)),
    ]

  flat = dict.fromkeys(titles.SUMMARY)
  flat['accuracy'] = float(metrics.accuracy_score(labels, predicted))
  flat['balanced_accuracy'] = mean_recall(present)
  if num_classes > 3:
    flat['balanced_accuracy_0_2'] = mean_recall(present[present <= 2])
  flat['macro_f1'] = float(
    metrics.f1_score(labels, predicted, labels=present, average='macro')
  )
  if any_lesion:
    # -p_0 ranks as 1 - p_0 does, without the ties that rounding 1 - p_0 makes.
    lesion = labels > 0
    flat['auroc_any_lesion'], flat['average_precision_any_lesion'] = ranked(
      lesion, -probabilities[:, 0]
    )
    if threshold is not None:
      called = calibration.lesion_score(probabilities) >= threshold
      flat['sensitivity_any_lesion'] = _share(called[lesion])
      flat['specificity_any_lesion'] = _share(~called[~lesion])
  constant = labels.max() == labels.min() == predicted.max() == predicted.min()
  if ordinal and not constant:
    flat['quadratic_kappa'] = float(
      metrics.cohen_kappa_score(
        labels, predicted, labels=np.arange(num_classes), weights='quadratic'
      )
    )
  reliability = {'reliability': None, 'reliability_scaled': None}
  for suffix, given in _variants(probabilities, temperature).items():
    diagram = calibration.reliability(labels, given)
    reliability[f'reliability{suffix}'] = diagram
    flat[f'ece{suffix}'] = calibration.expected_error(diagram)
    flat[f'brier{suffix}'] = float(
      calibration.squared_error(labels, given).mean()
    )
    flat[f'nll{suffix}'] = float(calibration.log_loss(labels, given).mean())

  precision, recall, f1, _ = metrics.precision_recall_fscore_support(
    labels,
    predicted,
    labels=np.arange(num_classes),
    zero_division=np.nan,
  )
  per_class = {}
  for c, name in enumerate(class_names):
    auroc, average_precision = ranked(labels == c, probabilities[:, c])
    row = {
      'precision': _number(precision[c]),
      'recall': _number(recall[c]),
      'specificity': _share(predicted[labels != c] != c),
      'f1': _number(f1[c]),
      'auroc': auroc,
      'average_precision': average_precision,
    }
    flat |= {f'{key}/{name}': value for key, value in row.items()}
    per_class[name] = {**row, 'support': int(support[c])}
  return {
    'num_images': len(labels),
    'scores': flat,
    'per_class': per_class,
    'confusion_matrix': metrics.confusion_matrix(
      labels, predicted, labels=np.arange(num_classes)
    ).tolist(),
    'majority_accuracy': float(support.max() / len(labels)),
    **reliability,
  }


def _variants(probabilities, temperature):
  """Suffix of the score -> the probabilities that it is of."""
  if temperature is None:
    return {'': probabilities}
  scaled = calibration.scale(probabilities, temperature)
  return {'': probabilities, '_scaled': scaled}


def _share(flags: np.ndarray) -> float | None:
  """The share of flags that are set, None of none."""
  return float(flags.mean()) if flags.size else None


def _number(value: float) -> float | None:
  return None if np.isnan(value) else float(value)
