"""How long the scores of many images take, and how much memory.

python benchmarks/scores_rate.py [--images=25000] [--classes=15]
  [--resamples=2000] [--images_per_patient=1]

Makes up answers (seeded random numbers, right more often than not) and times
what evaluate computes of them: every score, the same for the groups of three
columns, and the bootstrap intervals of all. No image is read and no network run
(benchmarks/evidence_rate.py times the maps and the report).
"""

import argparse
import os
import resource
import time

import numpy as np

from dpjax.metrics import predictions, resampling, scores, subgroups


def make_answers(images, classes, rng):
  """Labels (N,), of which half are class 0, and probabilities (N, C)."""
  rare = np.full(classes - 1, 0.5 / (classes - 1))
  labels = rng.choice(classes, size=images, p=[0.5, *rare])
  logits = rng.normal(size=(images, classes))
  logits[np.arange(images), labels] += 1.5
  return labels, predictions.softmax(logits)


def make_columns(images, rng):
  """Metadata of 2, 4 and 6 groups."""
  return {
    'sex': rng.choice(['F', 'M'], images),
    'age': rng.integers(20, 90, images).astype(str),  # cut at its quartiles
    'site': rng.choice([*'ABCDEF'], images),
  }


def main():
  """Prints a line for each part, their sum, and the memory."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=25_000)
  parser.add_argument('--classes', type=int, default=15)
  parser.add_argument('--resamples', type=int, default=2000)
  parser.add_argument('--images_per_patient', type=int, default=1)
  given = parser.parse_args()
  rng = np.random.default_rng(0)
  labels, probabilities = make_answers(given.images, given.classes, rng)
  columns = make_columns(given.images, rng)
  answers = labels, probabilities, [f'class {c}' for c in range(given.classes)]
  # Those of another split, as in evaluate.
  options = {'any_lesion': True, 'threshold': 0.5, 'temperature': 1.2}
  patients = np.arange(given.images) // given.images_per_patient
  draws = {'resamples': given.resamples, 'seed': 0, 'patients': patients}
  parts = {
    'scores': lambda: scores.scores(*answers, **options),
    'intervals': lambda: resampling.bootstrap_intervals(
      *answers, **draws, **options
    ),
    'subgroups': lambda: subgroups.subgroups(
      columns, *answers, **draws, **options
    ),
  }
  seconds = {}
  for name, compute in parts.items():
    began = time.perf_counter()
    compute()
    seconds[name] = time.perf_counter() - began
  seconds['together'] = sum(seconds.values())
  print(
    f'{given.images:,} images, {given.classes} classes,'
    f' {given.images_per_patient} images a patient,'
    f' {given.resamples:,} resamples; numpy {np.__version__},'
    f' load {os.getloadavg()[0]:.1f}'
  )
  for name, value in seconds.items():
    print(f'{name:<12} {value:6.1f} s')
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(f'{"memory":<12} {peak:6.0f} MiB')


if __name__ == '__main__':
  main()
