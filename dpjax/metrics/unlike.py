"""Whether a radiograph is unlike those that a network was trained on.

Two looks. The distance of its pooled features z from the training set's,

    d(z) = 1 - cos(z, the k-th nearest z_i of training),

above a threshold that few images of the validation split reach; and plain
facts, such as its grey levels, outside of what training has seen.

Source: Sun, Ming, Zhu and Li (2022), "Out-of-Distribution Detection with Deep
Nearest Neighbors", Eq. 1 and section 3.
"""

import dataclasses
import hashlib
import pathlib
import zipfile

import numpy as np

from dpjax import atomic
from dpjax.errors import UserError

NEIGHBOUR = 5  # k
ALARMS = 0.02  # share of validation that may be flagged by its features
# How far outside of training's range a fact may be: grey levels, and a factor.
LEVELS, ASPECT = 10, 1.1


@dataclasses.dataclass(frozen=True)
class Known:
  """What training has seen, and where the thresholds are.

  Attributes:
    features: (N, K) float32, of training images, of length 1.
    distance: threshold of d; infinite without a validation split.
    tones: (2, 3) lowest and highest of training's grey levels
      (guards.tones of the squares).
    aspects: (2,) narrowest and widest width / height; NaN where the prepared
      set does not say.
    alarms: share of images like those of validation that are flagged, by
      whatever it is: (flagged + 1) / (n + 1) of its n; NaN without one.
  """

  features: np.ndarray
  distance: float
  tones: np.ndarray
  aspects: np.ndarray
  alarms: float

  @property
  def sha256(self) -> str:
    """Of all of it."""
    found = hashlib.sha256()
    for field in dataclasses.fields(self):
      found.update(np.ascontiguousarray(getattr(self, field.name)).tobytes())
    return found.hexdigest()

  def reasons(
    self, features: np.ndarray, tones: np.ndarray, aspects: np.ndarray
  ) -> list[tuple[str, ...]]:
    """Why each image is unlike training; () where nothing says so.

    Args:
      features: (B, K), pooled.
      tones: (B, 3), of the squares.
      aspects: (B,) width / height of the images.

    Returns:
      For each image some of 'features', 'grey levels', 'aspect'.
    """
    far = distances(features, self.features) > self.distance
    tones = np.asarray(tones, np.int64)
    low, high = self.tones.astype(np.int64)
    grey = ((tones < low - LEVELS) | (tones > high + LEVELS)).any(axis=1)
    narrow, wide = self.aspects
    aspects = np.asarray(aspects)
    # A NaN fails both.
    odd = (aspects < narrow / ASPECT) | (aspects > wide * ASPECT)
    named = (('features', far), ('grey levels', grey), ('aspect', odd))
    return [
      tuple(name for name, found in named if found[i]) for i in range(len(far))
    ]


def distances(features: np.ndarray, known: np.ndarray) -> np.ndarray:
  """(B,) d of pooled features.

  Args:
    features: (B, K).
    known: (N, K), of length 1.
  """
  similar = unit(features) @ known.T  # (B, N)
  k = min(NEIGHBOUR, len(known))
  return 1 - np.partition(similar, len(known) - k, axis=1)[:, len(known) - k]


def unit(features: np.ndarray) -> np.ndarray:
  """(B, K) float32 of length 1; zeros stay."""
  features = np.asarray(features, np.float32)
  length = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(length, np.finfo(np.float32).tiny)


def fit(
  features: np.ndarray,
  tones: np.ndarray,
  aspects: np.ndarray | None,
  validation: tuple[np.ndarray, np.ndarray] | None,
) -> Known:
  """Chooses the thresholds.

  Of n images of validation the distance of the m-th is the threshold, m the
  least with m / (n + 1) of at least 1 - ALARMS: an image that is drawn as they
  were is above it with that probability at the most. Of less than 49 images
  the furthest is.

  Args:
    features: (N, K), pooled, of training images.
    tones: (N, 3), of them.
    aspects: (2,) of the prepared set; None where it does not say.
    validation: features and tones of images that were not trained on.
  """
  known = Known(
    features=unit(features),
    distance=np.inf,
    tones=np.stack([tones.min(axis=0), tones.max(axis=0)]),
    aspects=np.full(2, np.nan) if aspects is None else np.asarray(aspects),
    alarms=np.nan,
  )
  if validation is None:
    return known
  found = np.sort(distances(validation[0], known.features))
  rank = min(len(found), int(np.ceil((1 - ALARMS) * (len(found) + 1))))
  known = dataclasses.replace(known, distance=float(found[rank - 1]))
  # Aspects of validation are not known; one of training flags nothing.
  flagged = known.reasons(*validation, np.full(len(found), known.aspects[0]))
  return dataclasses.replace(
    known, alarms=(sum(map(bool, flagged)) + 1) / (len(flagged) + 1)
  )


def write(path: pathlib.Path, known: Known) -> None:
  """Writes an .npz, whole or not at all."""
  with atomic.replacing(path) as temporary, open(temporary, 'wb') as file:
    np.savez(file, **dataclasses.asdict(known))


def read(path: pathlib.Path) -> Known | None:
  """What `write` wrote; None where there is nothing.

  Raises:
    UserError: the file is damaged.
  """
  if not path.is_file():
    return None
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as rows:
      found = dict(rows)
    known = Known(
      found['features'],
      float(found['distance']),
      found['tones'],
      found['aspects'],
      float(found['alarms']),
    )
    if known.features.ndim != 2 or known.tones.shape != (2, 3):
      raise ValueError('of another form')
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(
      f'{path} is damaged ({error}); remove it and evaluate again'
    ) from error
  return known
