"""Answers for people among whom the classes have other shares.

A network that was trained by cross-entropy answers for the shares of its
training set. Where others hold, or where each class is to count the same,
Bayes' rule moves its answers, without another look at an image.
"""

import numpy as np
from numpy.typing import ArrayLike

from dpjax.errors import UserError
from dpjax.metrics import calibration

NONE, BALANCED = 'none', 'balanced'


def parse(text: str) -> list[float] | None:
  """'0.7,0.2,0.1' as shares that sum to 1; None where it says none such."""
  try:
    shares = [float(part) for part in text.strip('()[] ').split(',')]
  except ValueError:
    return None
  good = all(0 <= share <= 1 for share in shares) and len(shares) > 1
  return shares if good and abs(sum(shares) - 1) < 1e-3 else None


def is_prevalence(text: str) -> bool:
  """Whether `text` is what evaluate.prevalence may be."""
  return text in (NONE, BALANCED) or parse(text) is not None


def target(text: str, counts: ArrayLike) -> np.ndarray | None:
  """The shares that `evaluate.prevalence` asks for.

  Args:
    text: its value.
    counts: training images of each class (C,).

  Returns:
    (C,) that sum to 1; None for 'none'. Balanced: alike over the classes that
    were trained on.

  Raises:
    UserError: one line: no such value, shares of another number of classes, or
      none of those that were trained on.
  """
  if text == NONE:
    return None
  present = np.asarray(counts) > 0
  if text == BALANCED:
    return present / present.sum()
  given = parse(text)
  if given is None:
    raise UserError(
      f'config.evaluate.prevalence is {text!r}; wanted none, balanced, or the'
      ' share of each class, which sum to 1, e.g. 0.7,0.2,0.1'
    )
  shares = np.array(given)
  if len(shares) != len(present):
    raise UserError(
      f'config.evaluate.prevalence has {len(shares)} shares; the run tells'
      f' {len(present)} classes apart'
    )
  if not shares[present].any():
    raise UserError(
      'config.evaluate.prevalence gives nothing to the classes that the run was'
      ' trained on'
    )
  return shares / shares.sum()


def shift(
  probabilities: np.ndarray, counts: ArrayLike, shares: np.ndarray
) -> np.ndarray:
  r"""Probabilities under other shares of the classes.

  .. math:: p'_c \propto p_c \, \pi'_c / \pi_c

  With pi' alike for all it is Menon et al.'s post-hoc logit adjustment at
  tau 1. A probability below calibration.FLOOR is taken as that.

  Args:
    probabilities: (N, C), rows summing to 1, of a network that was trained
      without class weights.
    counts: training images of each class (C,); their shares are pi. A class
      without any gets 0.
    shares: (C,) pi', summing to 1; not 0 for all classes that have images.

  Returns:
    (N, C) float64, rows summing to 1.

  References:
    Saerens, Latinne and Decaestecker, 2002, Eq. 2.4; Menon et al., Long-tail
    Learning via Logit Adjustment, 2021, Eq. 9.
  """
  counts = np.asarray(counts, np.float64)
  ratio = np.where(counts > 0, shares / np.where(counts > 0, counts, 1), 0)
  p = np.maximum(np.asarray(probabilities, np.float64), calibration.FLOOR)
  moved = p * ratio
  return moved / moved.sum(axis=1, keepdims=True)
