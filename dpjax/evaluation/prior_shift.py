"""Scores of the answers under other shares of the classes, beside the plain."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from dpjax.data import vocabulary
from dpjax.metrics import prevalence, resampling, scores

if TYPE_CHECKING:
  from dpjax.evaluation.evaluate import Images

# Those that a shift is judged by, of those of score_table.SUMMARY.
SHOWN = ('accuracy', 'balanced_accuracy', 'balanced_accuracy_0_2', 'macro_f1',
         'auroc_any_lesion', 'quadratic_kappa')  # fmt: skip


def too_far(config: ConfigDict) -> str | None:
  """A line where a run has learnt to shift its answers; they are not again to.

  Args:
    config: of the run, with its stage.
  """
  loss = (config.finetune if config.stage == 'finetune' else config).loss
  if loss.classification in ('ce', 'focal'):
    return None
  return (
    'config.evaluate.prevalence: the run was trained under'
    f' {loss.classification}, which moves its answers already; shifted again'
    ' they go too far. It is for runs under ce'
  )


def scored(
  settings: ConfigDict, images: 'Images', class_names: Sequence[str],
  probabilities: np.ndarray, validation: np.ndarray | None,
) -> dict[str, Any] | None:  # fmt: skip
  """What evaluate.prevalence asks for; None for 'none'.

  Args:
    settings: the section `evaluate` of a config.
    images: evaluate.Images.
    class_names: of the C classes.
    probabilities: (N, C) of images.split, as the run answers.
    validation: those of images.validation, or None without one.

  Returns:
    {'prevalence': as asked for, 'shares': (C,) asked for, 'trained': (C,) of
    the training set, 'scores', 'intervals', 'per_class', 'confusion_matrix':
    of the shifted answers, 'validation': {'plain', 'shifted'}: {score: value}
    there, to choose by, or None}.

  Raises:
    UserError: one line: shares of another number of classes.
  """
  shares = prevalence.target(settings.prevalence, images.counts)
  if shares is None:
    return None
  meaning = vocabulary.meaning(class_names)

  def score(split, answers):
    return scores.scores(split.labels, answers, class_names, **meaning)

  shifted = prevalence.shift(probabilities, images.counts, shares)
  found = score(images.split, shifted)
  on_validation = None
  if validation is not None:
    both = {
      'plain': validation,
      'shifted': prevalence.shift(validation, images.counts, shares),
    }
    on_validation = {
      name: _shown(score(images.validation, answers))
      for name, answers in both.items()
    }
  return {
    'prevalence': settings.prevalence,
    'shares': shares.tolist(),
    'trained': (images.counts / images.counts.sum()).tolist(),
    **{k: found[k] for k in ('scores', 'per_class', 'confusion_matrix')},
    'intervals': resampling.bootstrap_intervals(
      images.split.labels, shifted, class_names, seed=settings.seed,
      resamples=settings.resamples, patients=images.split.groups, **meaning,
    ),
    'validation': on_validation,
  }  # fmt: skip


def _shown(found):
  return {name: found['scores'][name] for name in SHOWN}
