"""Words that all sources share: for no finding, for the sides of a split."""

import re
from collections.abc import Sequence
from typing import TypedDict

# As `folded`.
NORMAL = ('normal', 'no finding', 'no findings', 'nofinding', 'nofindings',
          'healthy', 'negative', 'none')  # fmt: skip
# What scores and answers call 1 - p of class 0: no class may be called so.
ANY_LESION = 'any_lesion'


def folded(name: str) -> str:
  """A name without what spellings of it differ in: case, hyphens, blanks."""
  return ' '.join(re.split(r'[\s_-]+', name.casefold())).strip()


# What folders, files and cells call the sides of a split, in lower case.
SPLITS = {
  'train': ('train', 'training', 'trn', 'trainset'),
  'validation': ('validation', 'val', 'valid', 'validate', 'validating', 'dev',
                 'development', 'valset'),
  'test': ('test', 'testing', 'tst', 'testset'),
}  # fmt: skip
_SIDES = {word: side for side, words in SPLITS.items() for word in words}
# Of folders whose images are no radiographs, in lower case.
_MASKS = ('mask', 'masks', 'segmentation', 'segmentations', 'manualmask')


def split(word: str) -> str | None:
  """The side of a split that a word names: 'train', ...; None if it is none."""
  return _SIDES.get(word.strip().lower().replace('-', '').replace('_', ''))


def split_words() -> str:
  """The words that `split` knows, for people."""
  return ', '.join(map('/'.join, SPLITS.values()))


def is_masks(folder: str) -> bool:
  """Whether a folder's name says that masks lie in it."""
  return folder.lower() in _MASKS


def is_normal(name: str) -> bool:
  """Whether the class of an image says that there is no finding."""
  return is_normal_box(name) or name == '0'


def is_normal_box(name: str) -> bool:
  """Whether the name of a box says that there is nothing in it.

  Some programs must draw a box in each image. A number is a lesion: what is
  boxed is one, whatever its name, and where images are counted a class "0" is
  not.
  """
  return folded(name) in NORMAL


class Meaning(TypedDict):
  """See `meaning`."""

  any_lesion: bool
  ordinal: bool


def meaning(class_names: Sequence[str]) -> Meaning:
  """What scores may take the names of the classes for.

  Returns:
    {'any_lesion': whether class 0 says that there is no lesion, 'ordinal':
    whether the classes are the numbers 0, 1, 2, ..., and so in an order}.
  """
  numbers = [*map(str, range(len(class_names)))]
  return {
    'any_lesion': is_normal(class_names[0]),
    'ordinal': list(class_names) == numbers,
  }
