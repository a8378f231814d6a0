"""Who is in training, validation and test."""

from collections.abc import Sequence

import numpy as np

SHARE = 0.1  # the paper: 10 % of each class for test


def assign(
  labels: Sequence[int | None],
  groups: Sequence[str],
  given: Sequence[str | None],
  seed: int,
) -> np.ndarray:
  """The paper's split: 10 % of a class for test, 10 % of the rest to validate.

  A labelled test part that the source brings is kept as it is, and then none
  is drawn. A class of 6 images or more has at least 2 of them in each split. A
  group is never on two sides: its class is the rarest among its images, and
  the shares count images, so they are met to within a group. Training comes
  first: a group with more than half of what is left of a class stays there.

  Args:
    labels: class of each image, None where unlabelled.
    groups: patient of each image.
    given: 'test' where the source says so, else None.
    seed: of the draw.

  Returns:
    (N,) of 'train', 'validation', 'test' and, where there is no label,
    'unlabelled'.

  Raises:
    ValueError: a group is in the source's test part and outside of it.
  """
  classes = np.array([-1 if c is None else c for c in labels])
  groups = np.asarray(groups)
  splits = np.full(len(classes), 'train', '<U10')
  splits[classes < 0] = 'unlabelled'
  kept = np.array([split == 'test' for split in given]) & (classes >= 0)
  splits[kept] = 'test'
  both = np.intersect1d(groups[kept], groups[splits == 'train'])
  if both.size:
    raise ValueError(
      f'group {both[0]} is in the test part of the source and in its training'
      ' part; a patient must be on one side'
    )
  rng = np.random.default_rng(seed)
  # Before any draw: what the test split takes must not lower what is due to
  # validation.
  floor = np.where(np.bincount(classes[splits == 'train']) >= 6, 2, 0)  # (C,)
  if not kept.any():
    _draw('test', splits, classes, groups, floor, rng)
  _draw('validation', splits, classes, groups, floor, rng)
  return splits


def _draw(name, splits, classes, groups, floor, rng):
  """Moves groups from 'train' to split `name`, in place."""
  rows = np.flatnonzero(splits == 'train')
  counts = np.bincount(classes[rows], minlength=len(floor))  # (C,)
  wanted = np.maximum(np.rint(SHARE * counts), floor)
  rarest_first = np.argsort(counts, kind='stable')
  rarity = np.argsort(rarest_first)  # 0: the rarest class
  members: dict[str, list[int]] = {}
  for row in rows:
    members.setdefault(groups[row], []).append(row)
  by_class: dict[int, list[list[int]]] = {}
  for group in sorted(members):
    rarest = min(
      (classes[row] for row in members[group]), key=rarity.__getitem__
    )
    by_class.setdefault(int(rarest), []).append(members[group])
  orders = {c: rng.permutation(len(by_class[c])) for c in sorted(by_class)}
  taken = np.zeros_like(counts)
  # A group brings images of commoner classes along: they count there, so the
  # rarest class goes first.
  for c in sorted(by_class, key=rarity.__getitem__):
    for i in orders[c]:
      if taken[c] >= wanted[c]:
        break
      group = by_class[c][i]
      held = np.bincount(classes[group], minlength=len(floor))
      if (2 * held <= counts - taken).all():
        splits[group] = name
        taken += held
