"""Copies are found however they were stored, and nothing else is."""

import hashlib
import os
import pathlib
import time

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import configs.base
from dpjax.data.prepare import duplicates
from dpjax.data.sources import phantom
from dpjax.errors import UserError

NEAR = configs.base.get_config().split.near


def jpeg(pixels, quality):
  code = cv2.imencode('.jpg', pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
  return cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)


def scaled(pixels, factor):
  kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
  return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=kind)


def grey(pixels, curve):
  """The image with grey levels, of 0..1, sent through a curve."""
  table = np.rint(255 * np.clip(curve(np.arange(256) / 255), 0, 1))
  return table.astype(np.uint8)[pixels]


def noisy(pixels):
  noise = np.random.default_rng(0).normal(0, 2.55, pixels.shape)
  return np.rint(np.clip(pixels + noise, 0, 255)).astype(np.uint8)


STORED_ANEW = {
  'JPEG 95': lambda p: jpeg(p, 95),
  'JPEG 75': lambda p: jpeg(p, 75),
  'JPEG 30': lambda p: jpeg(p, 30),
  'half the size': lambda p: scaled(p, 0.5),
  'a quarter of the size': lambda p: scaled(p, 0.25),
  'twice the size': lambda p: scaled(p, 2.0),
  'other sides': lambda p: cv2.resize(p, (224, 200)),
  'noise': noisy,
  'less contrast': lambda p: grey(p, lambda g: 0.05 + 0.9 * g),
  'a narrower window': lambda p: grey(p, lambda g: (g - 0.02) / 0.94),
  'brighter by gamma': lambda p: grey(p, lambda g: g**0.9),
  'darker by gamma': lambda p: grey(p, lambda g: g**1.1),
}


@pytest.fixture(scope='module')
def radiographs():
  return [record.pixels() for record in phantom.read(60, 0, 256)]


def distance(one, other):
  bits = (np.unpackbits(duplicates.fingerprint(p)) for p in (one, other))
  return int(np.not_equal(*bits).sum())


def found(images, near=NEAR):
  digests = [hashlib.sha256(p.tobytes()).digest() for p in images]
  hashes = np.stack([duplicates.fingerprint(p) for p in images])
  return duplicates.find(digests, hashes, near)


def places(copies):
  return [(copy.first, copy.second) for copy in copies]


@pytest.mark.parametrize('how', STORED_ANEW)
def test_an_image_stored_anew_is_a_copy(how, radiographs):
  for pixels in radiographs[:20]:
    assert distance(pixels, STORED_ANEW[how](pixels)) <= NEAR


def test_different_radiographs_are_no_copies(radiographs):
  assert found(radiographs) == []


def test_each_copy_is_found_among_different_radiographs(radiographs):
  images = [*radiographs, *(scaled(jpeg(p, 50), 0.5) for p in radiographs)]
  count = len(radiographs)
  copies = found(images)
  assert places(copies) == [(i, i + count) for i in range(count)]
  assert not any(copy.exact for copy in copies)


def test_without_nearness_only_equal_images_are_copies(radiographs):
  images = [radiographs[0], jpeg(radiographs[0], 95), radiographs[0].copy()]
  assert found(images, near=-1) == [duplicates.Copy(0, 2, 0, exact=True)]


def test_images_of_one_grey_level_are_copies_of_their_equals_only():
  levels = (0, 0, 1, 127, 255, 255)
  images = [np.full((80, 100), level, np.uint8) for level in levels]
  assert places(found(images)) == [(0, 1), (4, 5)]


@pytest.mark.parametrize('shape', ((1, 1), (1, 500), (3, 2), (2000, 64)))
def test_an_image_of_any_shape_has_a_fingerprint(shape):
  pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
  code = duplicates.fingerprint(pixels)
  assert code.shape == (32,) and code.dtype == np.uint8
  np.testing.assert_array_equal(duplicates.fingerprint(pixels.copy()), code)


def test_bits_are_signs_of_a_cosine_transform_against_its_median():
  pixels = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
  # The transform by its definition; its scale does not change a bit, except
  # that the rows of frequency 0 are lower by the root of 2.
  nodes = np.arange(64) + 0.5
  basis = np.cos(np.pi * np.arange(16)[:, None] * nodes / 64)
  basis[0] /= np.sqrt(2)
  low = basis @ pixels @ basis.T
  bits = np.unpackbits(duplicates.fingerprint(pixels)).reshape(16, 16)
  np.testing.assert_array_equal(bits, low > np.median(low))


def reached(linked):
  """(N, N) bool: whether a path of links leads from one to the other."""
  linked = linked | np.eye(len(linked), dtype=bool)
  # By repeated squaring of the relation.
  for _ in range(len(linked).bit_length()):
    linked = linked @ linked
  return linked


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  seeds=hnp.arrays(np.uint8, st.tuples(st.integers(0, 40), st.just(2))),
  near=st.integers(-1, 64),
)
def test_pairs_are_near_and_link_all_that_chains_of_near_ones_do(seeds, near):
  # A few centres and flips of 0 to 60 bits give distances around `near`.
  rows = []
  for centre, flips in seeds % (3, 61):
    bits = np.random.default_rng(int(centre)).integers(0, 2, 256)
    at = np.random.default_rng(int(flips) + 9).permutation(256)[:flips]
    bits[at] ^= 1
    rows.append(bits)
  bits = np.array(rows, np.uint8).reshape(-1, 256)
  copies = duplicates.find(range(len(bits)), np.packbits(bits, axis=1), near)
  distances = (bits[:, None] != bits).sum(axis=2)
  linked = np.zeros(distances.shape, bool)
  for c in copies:
    assert c.first < c.second and not c.exact
    assert c.distance == distances[c.first, c.second] <= near
    linked[c.first, c.second] = linked[c.second, c.first] = True
  assert places(copies) == sorted(places(copies))
  wanted = reached(distances <= near)
  np.testing.assert_array_equal(reached(linked), wanted)
  # No pair could be spared.
  assert len(copies) == len(bits) - len(np.unique(wanted, axis=0))


def test_the_closest_image_of_a_chain_stands_for_it():
  # 2 and 3 are linked by way of 0; 1 is near to both, and nearer to 3.
  bits = np.arange(256) < np.array([100, 106, 103, 104])[:, None]
  assert duplicates.find('abcd', np.packbits(bits, axis=1), 4) == [
    duplicates.Copy(0, 2, 3, exact=False),
    duplicates.Copy(0, 3, 4, exact=False),
    duplicates.Copy(1, 3, 2, exact=False),
  ]


def test_a_negative_is_as_far_as_can_be():
  bits = np.random.default_rng(0).integers(0, 256, (1, 32)).astype(np.uint8)
  assert duplicates.find('ab', np.concatenate([bits, ~bits]), 64) == []


def test_equal_images_are_paired_with_the_first_of_them():
  hashes = np.random.default_rng(0).integers(0, 256, (6, 32)).astype(np.uint8)
  hashes[[0, 2, 5]] = hashes[0]
  hashes[3] = hashes[0] ^ np.eye(32, dtype=np.uint8)[0]
  copies = duplicates.find(list('abacda'), hashes, 8)
  assert copies == [
    duplicates.Copy(0, 2, 0, exact=True),
    duplicates.Copy(0, 3, 1, exact=False),
    duplicates.Copy(0, 5, 0, exact=True),
  ]


@pytest.mark.parametrize('near', (-2, 65, 256))
def test_a_nearness_that_none_can_mean_is_one_line(near):
  with pytest.raises(UserError, match=r'config\.split\.near') as caught:
    duplicates.find('ab', np.zeros((2, 32), np.uint8), near)
  assert '\n' not in str(caught.value)


def test_an_empty_set_has_no_copies():
  assert duplicates.find([], np.zeros((0, 32), np.uint8), 8) == []
  assert duplicates.join([], []).shape == (0,)


def test_a_set_of_twenty_thousand_takes_seconds():
  hashes = np.random.default_rng(0).integers(0, 256, (20_000, 32))
  hashes = hashes.astype(np.uint8)
  hashes[-1] = hashes[0]
  start = time.process_time()
  copies = duplicates.find(range(20_000), hashes, 16)
  assert places(copies) == [(0, 19_999)]
  assert time.process_time() - start < 30  # about 1 on an idle core


def test_a_set_of_images_that_all_look_the_same_takes_no_more():
  rng = np.random.default_rng(0)
  bits = np.zeros((3000, 256), np.uint8)
  for row in bits:  # any two differ in at most 16
    row[rng.permutation(256)[:8]] = 1
  start = time.process_time()
  copies = duplicates.find(range(3000), np.packbits(bits, axis=1), 16)
  assert len(copies) == 2999
  assert time.process_time() - start < 5  # below 0.1 on an idle core


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
  groups=st.lists(st.sampled_from('abcdefgh'), min_size=2, max_size=20),
  data=st.data(),
)
def test_joined_groups_are_those_that_a_path_of_copies_links(groups, data):
  place = st.integers(0, len(groups) - 1)
  pairs = data.draw(st.lists(st.tuples(place, place), max_size=8))
  joined = duplicates.join(
    groups, [duplicates.Copy(*sorted(pair), 0, True) for pair in pairs]
  )
  linked = np.equal.outer(np.array(groups), np.array(groups))
  for i, j in pairs:
    linked[i, j] = linked[j, i] = True
  np.testing.assert_array_equal(np.equal.outer(joined, joined), reached(linked))
  # Numbered by first appearance.
  assert list(dict.fromkeys(joined)) == list(range(joined.max() + 1))


@pytest.mark.parametrize('name', ('COMPETITION', 'NIH', 'FOLDER'))
def test_real_radiographs_and_their_copies_are_told_apart(name):
  folder = os.environ.get(f'DPJAX_{name}')
  if not folder:
    pytest.skip(f'DPJAX_{name} is not set')
  files = sorted(pathlib.Path(folder).rglob('*.jpg'))[:1000]
  images = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]
  assert found(images) == []
  near = [distance(p, scaled(jpeg(p, 50), 0.5)) for p in images]
  assert np.mean(np.array(near) <= NEAR) > 0.99


def test_between_two_sets_each_image_finds_its_closest_copy():
  rng = np.random.default_rng(0)
  hashes = rng.integers(0, 256, (40, 32)).astype(np.uint8)
  others = rng.integers(0, 256, (30, 32)).astype(np.uint8)
  others[7] = hashes[3]
  others[7, 0] ^= 0b111  # three bits
  others[9] = hashes[3]
  others[9, 5] ^= 1  # one bit: closer
  others[11] = 0  # of one grey level: like nothing
  hashes[20] = 0
  digests = [f'a{i}' for i in range(40)]
  other_digests = [f'b{i}' for i in range(30)]
  other_digests[25] = other_digests[26] = 'a30'
  found = duplicates.between(digests, hashes, other_digests, others, near=4)
  assert found == [
    duplicates.Copy(3, 9, 1, exact=False),
    duplicates.Copy(30, 25, 0, exact=True),
  ]
  exact = duplicates.between(digests, hashes, other_digests, others, near=-1)
  assert exact == found[1:]
  none = np.zeros((0, 32), np.uint8)
  assert duplicates.between(digests, hashes, [], none, near=4) == []
  assert duplicates.between([], none, other_digests, others, near=4) == []
