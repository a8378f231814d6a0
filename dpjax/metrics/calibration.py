"""Whether probabilities mean what they say, and numbers chosen on validation.

A temperature and a threshold are chosen on one set of images and used on
another: choosing them on the scored images flatters the scores.
"""

from typing import Any

import numpy as np

from dpjax.metrics import predictions

# A logarithm is taken of no less than this, as scikit-learn's log_loss does: a
# class that was given 0 and is true costs 36 nats, and no temperature of an
# infinite loss is sought.
FLOOR = float(np.finfo(np.float64).eps)  # 2.2e-16
BINS = 15  # of the top probability
TEMPERATURES = (0.05, 20.0)  # the range that a fit searches


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
  """(N,) -ln p of each image's true class, p at least FLOOR."""
  true = probabilities[np.arange(len(labels)), labels]
  return -np.log(np.maximum(true, FLOOR))


def squared_error(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
  """(N,) sum_c (p_c - [c is true])^2 of each image, from 0 to 2.

  Source: Brier (1950); its mean over the images is the Brier score.
  """
  truth = np.eye(probabilities.shape[1])[labels]
  return ((probabilities - truth) ** 2).sum(axis=1)


def confidence_gaps(
  labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray]:
  """(N,) the bin of each image, and whether it is right less its confidence.

  With these, b and g, the expected calibration error over images of
  multiplicity w is

      ECE = sum_m |sum_{i: b_i = m} w_i g_i| / sum_i w_i

  Source: Guo et al. (2017), arXiv 1706.04599, Eq. 3.
  """
  confidence, right, places = _binned(labels, probabilities, bins)
  return places, right - confidence


def reliability(
  labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS
) -> list[dict[str, Any]]:
  """The reliability diagram: accuracy where the model is so and so confident.

  An image's confidence is its top probability; bin m of M holds those in
  ((m - 1) / M, m / M].

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.
    bins: M.

  Returns:
    For each bin {'low', 'high': its bounds, 'count': its images, 'confidence',
    'accuracy': their means, None in an empty bin}.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: Guo et al. (2017), arXiv 1706.04599, section 2.
  """
  labels, probabilities = predictions.check(labels, probabilities)
  if bins < 1:
    raise ValueError(f'bins must be at least 1, not {bins}')
  confidence, right, places = _binned(labels, probabilities, bins)
  edges = np.arange(bins + 1) / bins
  rows = []
  for m in range(bins):
    inside = places == m
    rows.append(
      {
        'low': float(edges[m]),
        'high': float(edges[m + 1]),
        'count': int(inside.sum()),
        'confidence': float(confidence[inside].mean())
        if inside.any()
        else None,
        'accuracy': float(right[inside].mean()) if inside.any() else None,
      }
    )
  return rows


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
  """Temperature scaling: softmax(ln p / T), which is softmax(logits / T).

  Above 1 the temperature takes confidence away, below 1 it adds some; an
  image's prediction stays. A probability below FLOOR is taken as FLOOR: what a
  model rounded to 0 can so be raised again.

  Args:
    probabilities: (N, C), rows summing to 1.
    temperature: T, above 0.

  Returns:
    (N, C) float64, rows summing to 1.

  Raises:
    ValueError: if the temperature is not a positive number.

  Source: Guo et al. (2017), arXiv 1706.04599, section 4.2.
  """
  if not (np.isfinite(temperature) and temperature > 0):
    raise ValueError(f'temperature must be above 0, not {temperature}')
  return np.exp(_log_scaled(np.asarray(probabilities, np.float64), temperature))


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
  """The temperature of least mean log loss on these images.

  The loss is convex in 1 / T, so that it has one valley in ln T, and that is
  searched between ln 0.05 and ln 20. Images that are all predicted rightly ask
  for T = 0, and get the lower bound. If no temperature does better than 1, it
  is 1.

  Args:
    labels: (N,) true classes, 0..C-1.
    probabilities: (N, C), rows summing to 1.

  Returns:
    T in 0.05..20.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: Guo et al. (2017), arXiv 1706.04599, section 4.2.
  """
  from scipy import optimize  # Here, so that training never imports it.

  labels, probabilities = predictions.check(labels, probabilities)
  images = np.arange(len(labels))

  def loss(log_temperature):
    scaled = _log_scaled(probabilities, np.exp(log_temperature))
    return -scaled[images, labels].mean()

  bounds = np.log(TEMPERATURES)
  found = optimize.minimize_scalar(
    loss, bounds=bounds, method='bounded', options={'xatol': 1e-6}
  )
  # The search comes near to a bound, never upon it; and on a plain it stops
  # anywhere. `min` takes the first of equal ones.
  best = min([0.0, *bounds, found.x], key=loss)
  return float(np.clip(np.exp(best), *TEMPERATURES))


def choose_threshold(
  labels: np.ndarray, probabilities: np.ndarray
) -> float | None:
  """The threshold on 1 - p_0, the probability of any lesion, of largest J.

      J = sensitivity + specificity - 1

  where an image is called positive if 1 - p_0 >= threshold. The threshold is
  put in the middle of the gap between the two scores that it parts. Of cuts
  with an equal J the lowest one is taken, which misses the fewest lesions.

  Args:
    labels: (N,) true classes, 0 meaning no lesion.
    probabilities: (N, C), rows summing to 1.

  Returns:
    The threshold, in 0..1. None where all images are on one side.

  Raises:
    ValueError: if an argument has a wrong shape or an impossible value.

  Source: Youden (1950), Index for rating diagnostic tests, Cancer 3, 32-35.
  """
  labels, probabilities = predictions.check(labels, probabilities)
  positive = labels > 0
  if positive.all() or not positive.any():
    return None
  lesion = lesion_score(probabilities)
  cuts, places = np.unique(lesion, return_inverse=True)  # ascending
  positives = np.bincount(places, weights=positive)
  negatives = np.bincount(places, weights=~positive)
  # At cut k the images of cuts k and above are called positive. J times both
  # sides' sizes is a whole number: equal ones are equal.
  found = positives[::-1].cumsum()[::-1]
  spared = negatives.cumsum() - negatives
  youden = found * negatives.sum() + spared * positives.sum()
  k = int(youden.argmax())
  below = cuts[k - 1] if k else 0.0
  middle = (below + cuts[k]) / 2
  # Between two neighbouring numbers there is none: the middle is one of them.
  return float(middle if middle > below else cuts[k])


def lesion_score(probabilities: np.ndarray) -> np.ndarray:
  """(N,) 1 - p_0, what a threshold is compared with."""
  # A row may sum to a little more than 1.
  return np.clip(1 - probabilities[:, 0], 0, 1)


def _binned(labels, probabilities, bins):
  """(N,) the confidence, whether it is right, and the number of its bin."""
  confidence = probabilities.max(axis=1)
  right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
  # The inner edges; one that is met belongs to the bin below it.
  edges = np.arange(1, bins) / bins
  return confidence, right, np.searchsorted(edges, confidence, side='left')


def _log_scaled(probabilities, temperature):
  """(N, C) ln softmax(ln p / T)."""
  logits = np.log(np.maximum(probabilities, FLOOR)) / temperature
  logits -= logits.max(axis=1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
