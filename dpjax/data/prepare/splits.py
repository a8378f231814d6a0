"""Who is in training, validation and test."""

from collections.abc import Sequence

import numpy as np

from dpjax.data.prepare import duplicates
from dpjax.errors import UserError

# With fewer labelled images a split may stay empty, and none complains.
_ENOUGH = 20


def assign(
  labels: Sequence[int | None],
  patients: Sequence[str],
  given: Sequence[str | None],
  copies: Sequence[duplicates.Copy] = (),
  *,
  seed: int,
  test: float = 0.1,
  validation: float = 0.1,
) -> np.ndarray:
  """The paper's split: 10 % of a class for test, 10 % of the rest to validate.

  A labelled test or validation part that the source brings is kept as it is,
  and then none is drawn; the other labelled images are drawn from.

  Nobody is on two sides. Patients are joined to groups where copies link them,
  also by way of other patients. All other images of a group that is held out in
  part are left out: those without a label, and where the source made the parts,
  those that it has elsewhere. The given test part comes first, and stays whole;
  if nothing is left of the given validation part, one is drawn.

  Sides are drawn for whole groups. A class of 6 images or more has at least 2
  of them in each split. A group's class is the rarest among its images, and the
  shares count images, so they are met to within a group. Training comes first:
  a group with more than half of what is left of a class stays there.

  The order of the images does not matter.

  Args:
    labels: class of each image, None where unlabelled.
    patients: patient of each image; the image's own name keeps it alone.
    given: 'train', 'validation' or 'test' where the source says so, else None.
      All that is not in a given test or validation part counts as training.
    copies: pairs of images, as of duplicates.find.
    seed: of the draws.
    test: share of each class to draw; 0: none.
    validation: share of what is left of each class; 0: none.

  Returns:
    (N,) of 'train', 'validation', 'test', where there is no label 'unlabelled',
    and 'left_out': in no split, nor in pre-training.

  Raises:
    UserError: a share is not in [0, 1); a patient is on two sides of the
      source's split; of 20 images or more none can be drawn, as one group holds
      most of them.
  """
  shares = {'test': test, 'validation': validation}
  for side, share in shares.items():
    if not 0 <= share < 1:
      raise UserError(f'config.split.{side}: {share}; wanted 0 to below 1')
  classes = np.array([-1 if c is None else c for c in labels], int)
  names = np.asarray(patients)
  splits = np.full(len(classes), 'train', '<U10')
  splits[classes < 0] = 'unlabelled'
  for side in ('test', 'validation'):
    kept = [name == side for name in given]
    splits[np.array(kept, bool) & (classes >= 0)] = side
  _check_sides(names, splits)
  groups = _name(duplicates.join(names, copies), names)
  _leave_out_rest(splits, groups)
  rng = np.random.default_rng(seed)
  # Before any draw: what the test split takes must not lower what is due to
  # validation.
  floor = np.where(np.bincount(classes[splits == 'train']) >= 6, 2, 0)  # (C,)
  for side, share in shares.items():
    if share and not (splits == side).any():
      _draw(side, share, splits, classes, groups, floor, rng)
  # Pre-training, on images without a label, must not see who was drawn.
  _leave_out_rest(splits, groups)
  return splits


def _check_sides(patients, splits):
  """Raises a ValueError if a patient is on two sides."""
  parts = (('test', 'validation'), ('test', 'train'), ('validation', 'train'))
  for one, other in parts:
    both = np.intersect1d(patients[splits == one], patients[splits == other])
    if both.size:
      raise UserError(
        f'patient {str(both[0])!r} is in the {one} part of the source and in'
        f' its {other} part; a patient must be on one side:'
        ' config.split.given=False draws new sides'
      )


def _name(groups, patients):
  """Each image's group by its first patient: no matter of the images' order."""
  order = np.argsort(patients, kind='stable')
  _, first = np.unique(groups[order], return_index=True)
  return patients[order][first][groups]


def _leave_out_rest(splits, groups):
  """Leaves out, in place, what else a group has that is held out."""
  for side in ('test', 'validation'):
    # After the first round no group has both sides.
    held_out = np.isin(groups, groups[splits == side])
    splits[held_out & (splits != side)] = 'left_out'


def _draw(name, share, splits, classes, groups, floor, rng):
  """Moves groups from 'train' to split `name`, in place."""
  rows = np.flatnonzero(splits == 'train')
  counts = np.bincount(classes[rows], minlength=len(floor))  # (C,)
  wanted = np.maximum(np.rint(share * counts), floor)
  rarest_first = np.argsort(counts, kind='stable')
  rarity = np.argsort(rarest_first)  # 0: the rarest class
  members: dict[str, list[int]] = {}
  for row in rows.tolist():
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
      images = by_class[c][i]
      held = np.bincount(classes[images], minlength=len(floor))
      if (2 * held <= counts - taken).all():
        splits[images] = name
        taken += held
  if wanted.any() and not taken.any() and len(rows) >= _ENOUGH:
    largest = max(sorted(members), key=lambda group: len(members[group]))
    raise UserError(
      f'no image can be drawn for {name}: patient {str(largest)!r} (with'
      f' copies) has {len(members[largest])} of {len(rows)} labelled images,'
      ' and a patient is never split; name the patients another way, or set'
      ' config.split.unit=image'
    )
