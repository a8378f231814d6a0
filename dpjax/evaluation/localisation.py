"""Does a map point at the lesions? Maps against boxes, image by image.

Everywhere: `maps` (N, h, w) of finite numbers, none negative; `boxes` (N, K, 4)
x0, y0, x1, y1 in 0..1 of the image, padded, of which `num_boxes` (N,) are real,
one at least. A map is scaled up bilinearly to size x size pixels (half-pixel
centres, cv2.resize). The lesion of an image is the set of pixels whose centre
lies in one of its boxes; a box between the centres keeps the nearest pixel.

A map of zeros points nowhere. It counts as 0 in the pointing game, in energy
and in IoU, and has the average precision of any constant, the lesion's area.
"""

import csv
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import cv2
import numpy as np

from dpjax import atomic, csv_cells
from dpjax.errors import UserError
from dpjax.metrics import resampling


class Title(NamedTuple):
  """What a score is called: on a line of its own, and in a narrow column."""

  long: str
  short: str


SCORES = {
  'pointing_game': Title('pointing game', 'pointing'),
  'energy_in_box': Title('energy in box', 'in box'),
  'iou': Title('IoU', 'IoU'),
  'pixel_ap': Title('pixel AP', 'pixel AP'),
}
BASELINES = ('random', 'centre', 'prior')
THRESHOLDS = np.arange(1, 20) / 20  # to choose from, shares of the maximum

Scores = dict[str, np.ndarray]  # score -> (N,), one of each image
# The bootstrap takes the means of so many (resample, image) pairs at a time.
_BLOCK = 2**20


def per_image(
  maps: np.ndarray,
  boxes: np.ndarray,
  num_boxes: np.ndarray,
  size: int,
  threshold: float | None,
) -> Scores:
  """Scores each map against the lesion of its image.

      pointing_game   1 if the map's maximum lies in the lesion, else 0; of
                      several equal maxima the share that does
      energy_in_box   the sum of the map in the lesion over its whole sum
      iou             intersection over union of the lesion and of the pixels
                      where map >= threshold * its maximum
      pixel_ap        average precision of the map as a score of "this pixel is
                      of the lesion": sum_n (R_n - R_{n-1}) P_n over its
                      distinct values

  Args:
    maps: (N, h, w).
    boxes: (N, K, 4).
    num_boxes: (N,).
    size: side in pixels at which they meet.
    threshold: in 0..1, of `choose_threshold`; None leaves the IoU undefined.

  Returns:
    {score: (N,) float64}; the IoU is NaN without a threshold.

  Raises:
    ValueError: a shape that does not fit, a map that is negative or not
      finite, an image without boxes.

  Source: Zhang et al. (2018), "Top-down neural attention by excitation
  backprop" (pointing game; here without its tolerance of 15 pixels); Wang et
  al. (2020), "Score-CAM", section 4.3 (energy).
  """
  found = {name: np.full(len(maps), np.nan) for name in SCORES}
  for i, grid, lesion in _pairs(maps, boxes, num_boxes, size):
    inside = grid[lesion]
    found['pixel_ap'][i] = _average_precision(grid, lesion)
    top = grid.max()
    if top == 0:
      found['pointing_game'][i] = found['energy_in_box'][i] = 0
    else:
      found['pointing_game'][i] = (
        np.count_nonzero(inside == top) / np.count_nonzero(grid == top)
      )  # fmt: skip
      found['energy_in_box'][i] = (
        inside.sum(dtype=np.float64) / grid.sum(dtype=np.float64)
      )  # fmt: skip
    if threshold is not None:
      (found['iou'][i],) = _ious(grid, inside, np.array([threshold]))
  return found


def choose_threshold(
  maps: np.ndarray, boxes: np.ndarray, num_boxes: np.ndarray, size: int
) -> float:
  """The threshold of the best mean IoU among THRESHOLDS, the lowest on a tie.

  To be chosen on other images than those that are scored with it.

  Args:
    maps: (N, h, w).
    boxes: (N, K, 4).
    num_boxes: (N,).
    size: side in pixels at which they meet.

  Raises:
    ValueError: no image, or as `per_image`.
  """
  if not len(maps):
    raise ValueError('a threshold needs 1 image with boxes or more, got none')
  ious = [
    _ious(grid, grid[lesion], THRESHOLDS)
    for _, grid, lesion in _pairs(maps, boxes, num_boxes, size)
  ]
  return float(THRESHOLDS[np.mean(ious, axis=0).argmax()])


def baselines(
  count: int,
  shape: tuple[int, int],
  size: int,
  training_boxes: np.ndarray,
  training_num_boxes: np.ndarray,
  seed: int,
) -> dict[str, np.ndarray]:
  """Maps that have not seen the image: what a score is worth by itself.

  Args:
    count: N, of the images.
    shape: (h, w) of the maps to compare with.
    size: side in pixels at which maps and boxes meet.
    training_boxes: (M, K, 4) of the training split.
    training_num_boxes: (M,), some may be 0.
    seed: of the noise.

  Returns:
    'random': (N, h, w) uniform noise, another for each image;
    'centre': (N, size, size) a Gaussian at the centre, of deviation size / 4;
    'prior': (N, size, size) the share of the training split's lesion images
      with a lesion at that pixel; left out where it has none. The last two
      are one map, repeated without memory.
  """
  noise = np.random.default_rng(seed).random((count, *shape), np.float32)
  away = (np.arange(size) + 0.5) / size - 0.5
  bell = np.exp(-8 * away**2)  # deviation 1/4 of the side
  centre = np.outer(bell, bell).astype(np.float32)
  found: dict[str, np.ndarray] = {'random': noise, 'centre': centre}
  lesions = np.flatnonzero(training_num_boxes)
  if len(lesions):
    total = np.zeros((size, size), np.float32)
    for row in lesions:
      total += lesion_mask(training_boxes[row, : training_num_boxes[row]], size)
    found['prior'] = total / len(lesions)
  return {
    name: value
    if value.ndim == 3
    else np.broadcast_to(value, (count, size, size))
    for name, value in found.items()
  }


def lesion_mask(boxes: np.ndarray, size: int) -> np.ndarray:
  """(size, size) bool: whether a pixel's centre lies in one of boxes (K, 4).

  A box that holds no centre along an axis keeps the nearest one there.
  """
  mask = np.zeros((size, size), bool)
  edges = np.asarray(boxes, np.float64) * size
  # Pixel j has its centre at j + 1/2, and a box holds its lower edge.
  low = np.ceil(edges[:, :2] - 0.5).astype(int)
  high = np.ceil(edges[:, 2:] - 0.5).astype(int)
  nearest = np.floor((edges[:, :2] + edges[:, 2:]) / 2).astype(int)
  nearest = nearest.clip(0, size - 1)
  narrow = high.clip(0, size) <= low.clip(0, size)
  low = np.where(narrow, nearest, low.clip(0, size))
  high = np.where(narrow, nearest + 1, high.clip(0, size))
  for (left, top), (right, bottom) in zip(low, high, strict=True):
    mask[top:bottom, left:right] = True
  return mask


def summarise(
  scores: Scores,
  *,
  resamples: int,
  seed: int,
  level: float = 0.95,
  patients: np.ndarray | None = None,
) -> tuple[dict[str, float | None], dict[str, list[float] | None]]:
  """Means over the images, with percentile bootstrap intervals.

  Images are drawn with replacement, N of N. Equal seeds draw the same ones.

  Args:
    scores: of `per_image`.
    resamples: how many are drawn.
    seed: of the draws.
    level: the share of the resamples that an interval covers.
    patients: (N,) whose each image is; drawn with all of theirs, as in
      `resampling.bootstrap_intervals`. None: unknown.

  Returns:
    {score: mean} and {score: [low, high]}; both None for a score that is
    undefined on an image, or without images.

  Raises:
    ValueError: an impossible number of resamples or level.

  Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, 13.3.
  """
  means = _resampled_means(scores, resamples, seed, level, patients)
  return (
    {
      name: None if means[name] is None else float(np.mean(value))
      for name, value in scores.items()
    },
    {
      name: None
      if value is None
      else resampling.percentile_interval(value, level)
      for name, value in means.items()
    },
  )


def paired(
  a: Scores,
  b: Scores,
  *,
  resamples: int,
  seed: int,
  level: float = 0.95,
  patients: np.ndarray | None = None,
) -> dict[str, dict[str, float | list[float] | None]]:
  """Differences of the means, a - b, of two maps of the same images.

  Args:
    a: of `per_image`.
    b: of `per_image` too, the images in the same order.
    resamples: as in `summarise`.
    seed: as in `summarise`.
    level: as in `summarise`.
    patients: as in `summarise`.

  Returns:
    {score: {'difference', 'interval'}} of the scores that both have; None
    where one of them is undefined.

  Raises:
    ValueError: a and b are of different numbers of images; as `summarise`.
  """
  differences = {}
  for name in a:
    if name not in b:
      continue
    if len(a[name]) != len(b[name]):
      raise ValueError(
        f'{name} of {len(a[name])} images against {len(b[name])}: a pair needs'
        ' the same images'
      )
    differences[name] = np.asarray(a[name]) - np.asarray(b[name])
  values, intervals = summarise(
    differences, resamples=resamples, seed=seed, level=level, patients=patients
  )
  return {
    name: {'difference': values[name], 'interval': intervals[name]}
    for name in values
  }


def write_scores(
  path: str | pathlib.Path, ids: Iterable[str], scores: Mapping[str, Scores]
) -> None:
  """Writes localisation.csv: a row an image, a column MAP/SCORE a score.

  Args:
    path: of the file.
    ids: (N,) of the images.
    scores: {map: what `per_image` returned}; an undefined one becomes empty.
  """
  columns = {
    f'{name}/{score}': values
    for name, by_score in scores.items()
    for score, values in by_score.items()
  }
  with (
    atomic.replacing(path) as temporary,
    open(temporary, 'w', newline='', encoding='utf-8') as file,
  ):
    rows = (
      [id, *('' if np.isnan(v) else f'{v:.6g}' for v in row)]
      for id, *row in zip(ids, *columns.values(), strict=True)
    )
    csv_cells.write(file, itertools.chain([['id', *columns]], rows))


def read_scores(
  path: str | pathlib.Path,
) -> tuple[list[str], dict[str, Scores]]:
  """Reads a file that `write_scores` wrote.

  Returns:
    ids, sorted, and {map: {score: (N,)}} in that order, without the scores that
    are undefined on an image.

  Raises:
    UserError: one line: it cannot be read.
  """
  try:
    with open(path, newline='', encoding='utf-8') as file:
      header, *rows = csv_cells.read(file)
    rows.sort()  # by id
    columns = np.array(
      [[float(cell or 'nan') for cell in row[1:]] for row in rows]
    ).reshape(len(rows), len(header) - 1)
  except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
    raise UserError(f'{path}: no readable scores of maps ({error})') from error
  scores: dict[str, Scores] = {}
  for column, values in zip(header[1:], columns.T, strict=True):
    name, _, score = column.rpartition('/')
    if not np.isnan(values).any():
      scores.setdefault(name, {})[score] = values
  return [row[0] for row in rows], scores


def _pairs(
  maps: np.ndarray, boxes: np.ndarray, num_boxes: np.ndarray, size: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """Yields (i, map at size, lesion): (size, size) float32 and bool."""
  maps, boxes, num_boxes = map(np.asarray, (maps, boxes, num_boxes))
  if maps.ndim != 3 or not len(maps) == len(boxes) == len(num_boxes):
    raise ValueError(
      f'maps of shape {maps.shape}, boxes {boxes.shape}, num_boxes'
      f' {num_boxes.shape}: wanted (N, h, w), (N, K, 4), (N,)'
    )
  if size < 1:
    raise ValueError(f'size is {size}: it must be 1 pixel or more')
  if (num_boxes < 1).any():
    raise ValueError(
      f'image {int(np.argmax(num_boxes < 1))} has no box; localisation is'
      ' scored on images with boxes'
    )
  for i in range(len(maps)):
    grid = maps[i].astype(np.float32)
    # A NaN passes no comparison.
    if not (grid.min() >= 0 and grid.max() < np.inf):
      raise ValueError(
        f'map {i} runs from {grid.min()} to {grid.max()}: it must be finite'
        ' and not negative'
      )
    if grid.shape != (size, size):
      grid = cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR)
    yield i, grid, lesion_mask(boxes[i, : num_boxes[i]], size)


def _ious(grid, inside, thresholds):
  """(T,) of a map (S, S), its part `inside` the lesion, and thresholds."""
  top = float(grid.max())
  if top == 0:
    return np.zeros(len(thresholds))
  ious = np.empty(len(thresholds))
  for t, limit in enumerate((thresholds * top).astype(np.float32)):
    both = np.count_nonzero(inside >= limit)
    either = inside.size + np.count_nonzero(grid >= limit) - both
    ious[t] = both / either
  return ious


def _average_precision(grid, lesion):
  """scikit-learn's average_precision_score of a map's pixels, several times
  as fast: the bits of numbers that are not negative sort as whole numbers do,
  with the lesion as their last bit.
  """
  # + 0 makes -0 a 0.
  keys = (grid.ravel() + np.float32(0)).view(np.uint32).astype(np.uint64)
  keys = (keys << np.uint64(1)) | lesion.ravel()
  keys.sort()
  keys = keys[::-1]
  found = np.cumsum(keys & np.uint64(1), dtype=np.int64)
  values = keys >> np.uint64(1)
  # Equal values are taken together.
  last = np.append(np.flatnonzero(values[1:] != values[:-1]), len(keys) - 1)
  found = found[last]
  gains = np.diff(found, prepend=0)
  return float((gains * (found / (last + 1))).sum() / found[-1])


def _resampled_means(
  scores: Mapping[str, np.ndarray],
  resamples: int,
  seed: int,
  level: float,
  patients: np.ndarray | None,
) -> dict[str, np.ndarray | None]:
  """{score: (R,) means of resamples, or None}: the same ones of each score."""
  resampling.check_resamples(resamples)
  resampling.check_level(level)
  defined = {
    name: np.asarray(value, np.float64)
    for name, value in scores.items()
    if len(value) and not np.isnan(value).any()
  }
  means: dict[str, np.ndarray | None] = dict.fromkeys(scores)
  if not defined:
    return means
  table = np.stack([*defined.values()], axis=1)  # (N, scores)
  count = len(table)
  if resampling.clusters(patients, count) is not None:
    blocks = resampling.draws(
      np.zeros(count, int), resamples, seed, False, patients
    )
    drawn = [
      np.einsum('rn,ns->rs', counts, table) / counts.sum(axis=1)[:, None]
      for counts in blocks
    ]
    return means | dict(zip(defined, np.concatenate(drawn).T, strict=True))
  rng = np.random.default_rng(seed)
  drawn = []
  step = max(1, _BLOCK // count)
  for start in range(0, resamples, step):
    rows = rng.integers(count, size=(min(step, resamples - start), count))
    drawn.append(table[rows].mean(axis=1))
  return means | dict(zip(defined, np.concatenate(drawn).T, strict=True))
