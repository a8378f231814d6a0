"""How often an interval of a difference holds the truth: a simulation.

python -m benchmarks.coverage [--repeats=2000]

Two methods are trained with 3 or 5 seeds each and scored on one test split. The
truth is the difference of their balanced accuracies over all seeds and all
images, which no study sees. Four intervals that say 95 %:

  seeds         t interval over the seeds: as if the images were all there are
  images        bootstrap over the images: as if these networks were all
  hierarchical  bootstrap that draws seeds and images alike
  both          what `ablate` and `compare` show: the halves of the first and of
                a normal interval over the images, their squares added
                (significance.over_seeds_and_images)

A network is right about an image where a normal number is above 0: what its
class is worth, how hard the image is, how hard for this method and for this
network, and how well this training went in this class. The first two are the
same in both methods, the third in all seeds of one.
"""

import argparse
import dataclasses

import numpy as np
from scipy import stats

from dpjax.metrics import resampling, significance

INTERVALS = ('seeds', 'images', 'hierarchical', 'both')
_RESAMPLES = 200
_WORTH = (0.3, -0.1)  # of the two methods
_HARD, _HARD_FOR_METHOD, _HARD_FOR_RUN = 1.4, 0.5, 0.5


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is simulated.

  Attributes:
    images: of each class in the test split.
    noise: the deviation of how well a training goes, of each class.
  """

  images: tuple[int, ...]
  noise: float


SETTINGS = {
  'few images, quiet training': Setting((154, 20, 24), 0.05),
  'few images': Setting((154, 20, 24), 0.2),
  'few images, noisy training': Setting((154, 20, 24), 0.4),
  'many images': Setting((1500, 250, 250, 30, 30), 0.2),
  'many images, noisy training': Setting((1500, 250, 250, 30, 30), 0.4),
}


def _ease(classes):
  """What a class is worth to every method: the commonest is the easiest."""
  return np.linspace(1.0, -0.3, classes)


def true_difference(setting: Setting) -> float:
  """Of the balanced accuracies, over all seeds and images."""
  parts = (_HARD, _HARD_FOR_METHOD, _HARD_FOR_RUN, setting.noise)
  deviation = np.sqrt(np.square(parts).sum())
  a, b = (
    stats.norm.cdf((_ease(len(setting.images)) + worth) / deviation).mean()
    for worth in _WORTH
  )
  return float(a - b)


def study(
  setting: Setting, seeds: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """One study.

  Returns:
    labels (N,), and whether the runs are right, (2, seeds, N) float64.
  """
  classes = len(setting.images)
  labels = np.repeat(np.arange(classes), setting.images)
  n = len(labels)
  worth = np.array(_WORTH)[:, None, None] + _ease(classes)[labels]
  went = rng.normal(0, setting.noise, (2, seeds, classes))[:, :, labels]
  hard = rng.normal(0, _HARD, n)
  for_method = rng.normal(0, _HARD_FOR_METHOD, (2, 1, n))
  for_run = rng.normal(0, _HARD_FOR_RUN, (2, seeds, n))
  right = worth + went + hard + for_method + for_run > 0
  return labels, right.astype(np.float64)


def intervals(
  labels: np.ndarray, right: np.ndarray, rng: np.random.Generator
) -> dict[str, list[float] | None]:
  """INTERVALS of the difference of the balanced accuracies, 95 %.

  Args:
    labels: (N,).
    right: (2, seeds, N).
    rng: of the resamples.
  """
  # Balanced accuracy is a mean of images of these weights, also in a resample
  # within classes.
  weights = 1 / np.bincount(labels)[labels] / len(np.unique(labels))
  weighted = (right[0] - right[1]) * weights  # (seeds, N)
  seeds = len(weighted)
  drawn = np.concatenate(
    [
      np.einsum('rn,sn->rs', counts, weighted)
      for counts in resampling.draws(
        labels, _RESAMPLES, int(rng.integers(2**31)), stratified=True
      )
    ]
  )  # (resamples, seeds)
  again = rng.integers(seeds, size=drawn.shape)
  over_images = drawn.mean(axis=1)
  values = weighted.sum(axis=1).tolist()
  return {
    'seeds': significance.over_seeds(values)['interval'],
    'images': resampling.percentile_interval(over_images, 0.95),
    'hierarchical': resampling.percentile_interval(
      np.take_along_axis(drawn, again, axis=1).mean(axis=1), 0.95
    ),
    'both': significance.over_seeds_and_images(values, over_images.var()),
  }


def coverage(
  setting: Setting, seeds: int, repeats: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
  """{interval: (the share of studies whose truth it holds, its mean width)}."""
  rng = np.random.default_rng([seed, seeds])
  truth = true_difference(setting)
  held = dict.fromkeys(INTERVALS, 0)
  width = dict.fromkeys(INTERVALS, 0.0)
  for _ in range(repeats):
    for name, (low, high) in intervals(
      *study(setting, seeds, rng), rng
    ).items():
      held[name] += low <= truth <= high
      width[name] += high - low
  return {
    name: (held[name] / repeats, width[name] / repeats) for name in INTERVALS
  }


def main() -> None:
  """Prints a line for each setting and number of seeds."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=2000)
  repeats = parser.parse_args().repeats
  print(f'{repeats} studies each: share that holds the truth (mean width)')
  print(f'{"":<30}{"seeds":>6}', *(f'{name:>14}' for name in INTERVALS))
  for name, setting in SETTINGS.items():
    for seeds in (3, 5):
      found = coverage(setting, seeds, repeats)
      cells = (f'{share:.3f} ({wide:.3f})' for share, wide in found.values())
      print(f'{name:<30}{seeds:>6}', *(f'{cell:>14}' for cell in cells))


if __name__ == '__main__':
  main()
