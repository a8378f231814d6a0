"""Words that all sources share: what they call an image without a finding."""

from collections.abc import Sequence

# In lower case.
NORMAL = ('normal', 'no finding', 'no findings', 'healthy', 'negative',
          'none', '0')  # fmt: skip


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
