"""Who is trained on, who is looked at while training, who is tested."""

from collections.abc import Sequence

import numpy as np

NAMES = ('train', 'validation', 'test', 'unlabelled')

# A class with at least MIN_SPLIT images has MIN_EACH or more in every split.
MIN_SPLIT = 6
MIN_EACH = 2


def assign(
  labels: np.ndarray,
  groups: Sequence[str],
  is_test: np.ndarray,
  *,
  seed: int,
  fraction: float = 0.1,
) -> np.ndarray:
  """Returns the split of each of N images, by the paper's rule.

  `fraction` of each class is for test, unless the source brings a labelled
  test part, which is then kept as it is; `fraction` of what remains is for
  validation. Both are drawn by whole groups, so the shares are as near as
  groups allow, and exact (to rounding) where each image is its own group. A
  class with 6 images or more (outside the source's own test part) keeps at
  least 2 in each split, again as far as groups allow, the training split first.
  The answer does not depend on the order of the images.

  Args:
    labels: (N,) int, the classes; -1 is unlabelled, and goes to 'unlabelled'.
    groups: (N,) the patients: none is on two sides of train, validation, test.
    is_test: (N,) bool, the source's own test part.
    seed: of the draw.
    fraction: share of each class held out, in [0, 1).

  Returns:
    (N,) of 'train', 'validation', 'test' or 'unlabelled'.

  Raises:
    ValueError: a group is on both sides of the source's own split.

  Source: Wei et al. (2022), section V.A: 10 % for test, 10 % of the rest for
  validation.
  """
  labels, is_test = np.asarray(labels), np.asarray(is_test, bool)
  # Sorted by np.unique: the draw is over patients, not over rows.
  names, group_of = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
  split = np.full(len(labels), 'unlabelled', dtype='U10')
  is_test = is_test & (labels >= 0)
  pool = ~is_test & (labels >= 0)
  split[is_test] = 'test'
  both = np.intersect1d(group_of[is_test], group_of[pool])
  if both.size:
    raise ValueError(
      f"group {names[both[0]]!r} has images inside and outside the source's test"
      ' part; a group must be on one side'
    )

  counts = np.zeros((len(names), labels.max(initial=0) + 1), int)  # (G, C)
  np.add.at(counts, (group_of[pool], labels[pool]), 1)
  floor = np.where(counts.sum(0) >= MIN_SPLIT, MIN_EACH, 0)  # (C,)
  rng = np.random.default_rng(seed)
  taken = np.zeros(len(names), bool)
  if not is_test.any():
    # What is left must do for validation and training.
    chosen = _draw(rng, counts, fraction, floor, keep=2 * floor)
    split[pool & chosen[group_of]] = 'test'
    taken |= chosen
  counts[taken] = 0
  chosen = _draw(rng, counts, fraction, floor, keep=floor)
  split[pool & chosen[group_of]] = 'validation'
  taken |= chosen
  split[pool & ~taken[group_of]] = 'train'
  return split


def _draw(rng, counts, fraction, floor, keep):
  """Draws groups until `fraction` of each class is out.

  Args:
    rng: generator.
    counts: (G, C) images of each group and class.
    fraction: wanted share of each class.
    floor: (C,) the least number wanted of each class.
    keep: (C,) the number of each class that must stay.

  Returns:
    (G,) bool.
  """
  totals = counts.sum(0)  # (C,)
  wanted = np.maximum(np.rint(fraction * totals).astype(int), floor)
  order = rng.permutation(len(counts))
  chosen = np.zeros(len(counts), bool)
  out = np.zeros_like(totals)
  # The rarest class first: its groups bring along images of commoner ones,
  # which can still make up for that.
  for label in np.argsort(totals, kind='stable'):
    for group in order[counts[order, label] > 0]:
      missing = wanted[label] - out[label]
      if missing <= 0:
        break
      after = out + counts[group]
      overshoots = abs(wanted[label] - after[label]) >= missing
      too_few_stay = np.any((totals - after < keep) & (counts[group] > 0))
      if not (chosen[group] or overshoots or too_few_stay):
        chosen[group] = True
        out = after
  return chosen
