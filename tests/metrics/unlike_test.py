"""What is unlike training, and how often that is said in vain."""

import numpy as np
import pytest

from dpjax.errors import UserError
from dpjax.metrics import unlike


def draw(rng, count, centre=0.0):
  """Features about a direction, and plain grey levels."""
  features = rng.normal(0, 0.1, (count, 16)) + np.eye(16)[0]
  features[:, 1] += centre
  return features, np.tile(np.uint8([10, 200, 1]), (count, 1))


@pytest.fixture(scope='module')
def known():
  rng = np.random.default_rng(0)
  return unlike.fit(*draw(rng, 300), np.array([0.8, 1.2]), draw(rng, 200))


def flags(known, features, tones, aspect=1.0):
  return known.reasons(features, tones, np.full(len(features), aspect))


def test_a_distance_is_that_of_the_kth_nearest_by_cosine():
  rng = np.random.default_rng(1)
  known, (one,) = unlike.unit(rng.normal(size=(20, 4))), rng.normal(size=(1, 4))
  cosines = known @ one / np.linalg.norm(one)
  wanted = 1 - np.sort(cosines)[-unlike.NEIGHBOUR]
  np.testing.assert_allclose(
    unlike.distances(one[None], known), wanted, atol=1e-6
  )


def test_few_images_like_training_are_flagged_and_all_others_are(known):
  rng = np.random.default_rng(2)
  like = flags(known, *draw(rng, 2000))
  assert 0 < np.mean([bool(found) for found in like]) < 2 * unlike.ALARMS
  assert all(flags(known, *draw(rng, 50, centre=2.0)))
  assert known.alarms <= unlike.ALARMS


def test_plain_facts_outside_of_trainings_are_named(known):
  rng = np.random.default_rng(3)
  features, tones = draw(rng, 1)
  assert flags(known, features, tones) == [()]
  assert flags(known, features, tones, 1.9) == [('aspect',)]
  tones = np.uint8([[10, 90, 1]])
  assert flags(known, features, tones) == [('grey levels',)]


def test_without_validation_or_aspects_only_grey_levels_are_looked_at():
  rng = np.random.default_rng(4)
  known = unlike.fit(*draw(rng, 30), None, None)
  far, tones = draw(rng, 3, centre=5.0)
  assert flags(known, far, tones, 9.0) == [()] * 3
  assert np.isnan(known.alarms)


def test_what_is_written_is_read_and_what_is_damaged_is_named(known, tmp_path):
  file = tmp_path / 'features.npz'
  assert unlike.read(file) is None
  unlike.write(file, known)
  found = unlike.read(file)
  np.testing.assert_array_equal(found.features, known.features)
  assert (found.distance, found.alarms) == (known.distance, known.alarms)
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(UserError, match=r'features\.npz is damaged'):
    unlike.read(file)
