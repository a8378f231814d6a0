"""Words that all sources share: for no finding, for the sides of a split."""

from collections.abc import Sequence

# In lower case.
NORMAL = ('normal', 'no finding', 'no findings', 'healthy', 'negative',
          'none', '0')  # fmt: skip

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
  """Whether a class name says that there is no finding."""
  return name.lower().replace('_', ' ') in NORMAL


def meaning(class_names: Sequence[str]) -> dict[str, bool]:
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
