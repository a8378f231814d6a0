"""Copies of an image within a set, exact or near.

Public sets hold the same radiograph under several names, re-encoded, resized
or with another window. A copy on the other side of a split leaks what is to be
predicted, so copies are found here, and `splits.assign` keeps them together.
"""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np

from dpjax.errors import UserError

BITS = 256  # of a fingerprint
MAX_NEAR = 64  # of 256 bits; from here on, most patients look like some other


@dataclasses.dataclass(frozen=True)
class Copy:
  """Two images that are copies of each other.

  Attributes:
    first, second: their places in the set, first < second.
    distance: of their fingerprints, 0..256 bits.
    exact: their pixels are equal.
  """

  first: int
  second: int
  distance: int
  exact: bool


def fingerprint(pixels: np.ndarray) -> np.ndarray:
  """The perceptual hash of an image: close where images look the same.

  The image is shrunk to 64 x 64; a bit is whether one of the 16 x 16 lowest
  frequencies of its cosine transform is above their median (Zauner 2010,
  "Implementation and Benchmarking of Perceptual Image Hash Functions", pHash).
  Re-encoding, another size and a little more or less brightness, contrast or
  gamma move a few bits. Crops, mirroring, rotation and equalised histograms
  move many.

  Args:
    pixels: (H, W) uint8.

  Returns:
    (32,) uint8, the bits. All zeros where the small image is of one grey level:
    nothing is there to compare.
  """
  import cv2  # Training compares hashes, and makes none.

  small = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA)
  if small.min() == small.max():
    return np.zeros(BITS // 8, np.uint8)
  low = cv2.dct(small.astype(np.float32))[:16, :16]
  return np.packbits(low > np.median(low))


def find(
  digests: Sequence[Hashable], hashes: np.ndarray, near: int
) -> list[Copy]:
  """Pairs that link all copies among the images of a set.

  Every image is compared with every other. A pair is returned if no chain of
  earlier ones links its images, so there are fewer than N, and memory grows
  with N only, even where all images look the same.

  Args:
    digests: of each image's pixels and shape; equal where the images are.
    hashes: (N, 32) uint8, the images' fingerprints.
    near: images whose fingerprints differ in at most so many of 256 bits are
      copies; -1: only equal images are. An image of one grey level is only a
      copy of its equals.

  Returns:
    Pairs sorted by place; two images are linked by them just where a chain of
    copies leads from one to the other. Of images that are equal, each is paired
    with the first, and only the first is compared with others.

  Raises:
    UserError: `near` is not in -1..64.
  """
  if not -1 <= near <= MAX_NEAR:
    raise UserError(
      f'config.split.near: {near}; wanted -1 to {MAX_NEAR}: beyond, different'
      ' patients count as copies'
    )
  copies = []
  first: dict[Hashable, int] = {}
  for i, digest in enumerate(digests):
    if first.setdefault(digest, i) != i:
      copies.append(Copy(first[digest], i, 0, exact=True))
  if near >= 0:
    places = np.array([i for i in first.values() if hashes[i].any()], np.intp)
    for i, j, distance in _near(hashes[places], near):
      copies.append(Copy(int(places[i]), int(places[j]), distance, exact=False))
  return sorted(copies, key=lambda copy: (copy.first, copy.second))


def _near(hashes, near):
  """Yields (i, j, distance), i < j, that link hashes at most `near` apart."""
  words = _words(hashes)
  chain = np.arange(len(hashes))  # the same for images that are linked
  for i in range(len(hashes)):
    distances = _distances(words[:, i + 1 :], words[:, i])
    found = np.flatnonzero(distances <= near)
    found = found[chain[i + 1 + found] != chain[i]]
    # The closest image of another chain stands for it.
    for k in found[np.argsort(distances[found], kind='stable')]:
      j = i + 1 + int(k)
      if chain[j] != chain[i]:
        yield i, j, int(distances[k])
        chain[chain == chain[j]] = chain[i]


def _words(hashes):
  """(N, 32) uint8 as (4, N) uint64: a long row adds up faster."""
  words = np.ascontiguousarray(hashes).view(np.uint64)
  return np.ascontiguousarray(words.T)


def _distances(words, one):
  """Bits in which (4, N) words differ from those of one hash (4,)."""
  differing = np.bitwise_count(words ^ one[:, None])
  # uint8 would make 0 of a distance of 256.
  return differing.sum(axis=0, dtype=np.uint16)


def between(
  digests: Sequence[Hashable],
  hashes: np.ndarray,
  others: Sequence[Hashable],
  other_hashes: np.ndarray,
  near: int,
) -> list[Copy]:
  """The images of one set that have a copy in another.

  Args:
    digests, hashes: of the one, as of `find`, N images.
    others, other_hashes: of the other.
    near: as of `find`.

  Returns:
    One pair for each such image, its closest: `first` is its place in the one
    set and `second` that of the copy in the other.
  """
  place = {digest: j for j, digest in reversed([*enumerate(others)])}
  words = _words(other_hashes)
  comparable = other_hashes.any(axis=1)
  copies = []
  for i, digest in enumerate(digests):
    if digest in place:
      copies.append(Copy(i, place[digest], 0, exact=True))
    elif near >= 0 and comparable.any() and hashes[i].any():
      distances = _distances(words, _words(hashes[i : i + 1])[:, 0])
      j = int(np.argmin(np.where(comparable, distances, BITS + 1)))
      if distances[j] <= near:
        copies.append(Copy(i, j, int(distances[j]), exact=False))
  return copies


def join(
  groups: Sequence[Hashable] | np.ndarray, copies: Sequence[Copy]
) -> np.ndarray:
  """Merges groups that copies link, also by way of other groups.

  Args:
    groups: of each image, all str or all int.
    copies: pairs of images.

  Returns:
    (N,) int, each image's merged group, numbered by first appearance.
  """
  from scipy import sparse
  from scipy.sparse import csgraph

  names, group = np.unique(np.asarray(groups), return_inverse=True)
  links = np.array([(c.first, c.second) for c in copies], np.intp)
  one, other = group[links.reshape(-1, 2)].T
  graph = sparse.coo_array(
    (np.ones(len(one), np.int8), (one, other)), shape=(len(names),) * 2
  )
  _, merged = csgraph.connected_components(graph, directed=False)
  _, start, inverse = np.unique(
    merged[group], return_index=True, return_inverse=True
  )
  return np.argsort(np.argsort(start))[inverse]
