"""The units of work: squares, blocks, shards."""

import json

import numpy as np
import pytest

from dpjax.data import radiograph, store
from dpjax.data.prepare import shards
from dpjax.errors import SourceFault, UserError

SIZE = 32


def square(image, size=SIZE, fit='stretch'):
  return shards.square(image, np.empty((0, 4), np.float32), size, fit)[0]


def test_shrinking_averages_areas():
  image = np.random.default_rng(0).integers(0, 256, (SIZE * 4, SIZE * 2))
  found = square(image.astype(np.uint8))
  means = image.reshape(SIZE, 4, SIZE, 2).mean(axis=(1, 3), dtype=np.float64)
  # One rounding for each step in OpenCV's fixed point.
  assert np.abs(found - means).max() <= 1


@pytest.mark.parametrize('shape', [(96, 160), (250, 130), (128, 64), (32, 512)])
def test_large_images_shrink_to_the_mean_of_the_area(shape):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, shape).astype(np.float64)
  image = np.kron(image, np.ones((8, 8)))  # of 8 pixels in each direction
  size = 16

  def shares(length):
    """(size, length): how much of each pixel lies in each cell."""
    edges = np.arange(size + 1) * length / size
    pixels = np.arange(length)
    low = np.maximum(edges[:-1, None], pixels)
    high = np.minimum(edges[1:, None], pixels + 1)
    return (high - low).clip(0) / (length / size)

  means = shares(image.shape[0]) @ image @ shares(image.shape[1]).T
  error = square(image.astype(np.uint8), size) - means
  # Half a grey level at most for the rounding of each step, where there are
  # several, and an eighth on average.
  assert np.abs(error).max() <= 2 and abs(error.mean()) < 0.75


@pytest.mark.parametrize('shape', [(SIZE * 8, SIZE // 2), (SIZE * 8, SIZE)])
def test_a_side_that_shrinks_is_averaged_though_the_other_does_not(shape):
  # Bilinear resampling would see two of these eight rows, both black.
  image = np.zeros(shape, np.uint8)
  image[::8] = 240
  assert (square(image) == 30).all() and (square(image.T.copy()) == 30).all()


def test_growing_keeps_the_place_of_an_edge():
  image = np.zeros((8, 8), np.uint8)
  image[:, 4:] = 200
  found = square(image)
  assert (found[:, :14] == 0).all() and (found[:, 18:] == 200).all()
  # The edge is in the middle, as much on one side as on the other.
  np.testing.assert_array_equal(found + found[:, ::-1], 200)


@pytest.mark.parametrize('fit', ['stretch', 'pad'])
def test_one_pixel_and_one_row_are_images_too(fit):
  one, row = np.full((1, 1), 77, np.uint8), np.full((1, 500), 9, np.uint8)
  assert (square(one, fit=fit) == 77).all()
  found = square(row, fit=fit)
  assert found.max() == 9
  assert (found == 9).any(axis=1).sum() == (SIZE if fit == 'stretch' else 1)


def test_a_square_of_the_right_size_is_kept_bit_by_bit():
  image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE))
  image = image.astype(np.uint8)
  for fit in ('stretch', 'pad'):
    np.testing.assert_array_equal(square(image, fit=fit), image)


@pytest.mark.parametrize('shape', [(64, 32), (32, 64), (90, 41)])
@pytest.mark.parametrize('fit', ['stretch', 'pad'])
def test_boxes_follow_their_pixels(shape, fit):
  # A white lesion on grey: after squaring it lies where its box says.
  height, width = shape
  image = np.full(shape, 100, np.uint8)
  image[height // 4 : height // 2, width // 3 : width // 2] = 255
  box = np.float32(
    [[(width // 3) / width, (height // 4) / height,
      (width // 2) / width, (height // 2) / height]]
  )  # fmt: skip
  size = 240
  found, boxes = shards.square(image, box, size, fit)
  rows, columns = np.nonzero(found > 200)
  edges = np.float64(
    [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
  )
  # Resampling blurs an edge over a source pixel.
  assert np.abs(boxes[0] * size - edges).max() <= size / min(shape)


def test_padding_keeps_the_aspect_and_centres_on_black():
  image = np.full((64, 32), 200, np.uint8)
  found, boxes = shards.square(image, np.float32([[0, 0, 1, 1]]), SIZE, 'pad')
  wanted = np.zeros((SIZE, SIZE), np.uint8)
  wanted[:, 8:24] = 200
  np.testing.assert_array_equal(found, wanted)
  np.testing.assert_array_equal(boxes, [[0.25, 0, 0.75, 1]])


def test_the_digest_of_an_image_knows_its_shape():
  flat = np.arange(12, dtype=np.uint8)
  wide, tall = flat.reshape(3, 4), flat.reshape(4, 3)
  assert shards.digest(wide) != shards.digest(tall)
  # A view into a larger array is the same image.
  view = np.pad(wide, 3)[3:-3, 3:-3]
  assert shards.digest(view) == shards.digest(wide)


def test_a_block_holds_what_could_be_read_and_names_the_rest(tmp_path):
  def broken():
    raise SourceFault('b.png: cut short')

  good = np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)
  rows = [
    radiograph.Radiograph('a', broken, where='labels.csv, row 2'),
    radiograph.Radiograph(
      'b', good.copy, boxes=((0.1, 0.2, 0.3, 0.4),), header=lambda: {'age': '5'}
    ),
    radiograph.Radiograph('c', good.copy, boxes=((2, 2, 3, 3),), file='c.png'),
    radiograph.Radiograph('d', lambda: np.full((9, 7), 255, np.uint8)),
  ]
  file = tmp_path / 'block'
  shards.decode_block(rows, file, SIZE, 'stretch', 'skip')
  table = store.read_table(tmp_path / 'block.npz')
  assert table['row'].tolist() == [1]
  assert file.read_bytes() == good.tobytes()
  np.testing.assert_array_equal(
    table['boxes'], np.float32([[[0.1, 0.2, 0.3, 0.4]]])
  )
  assert json.loads(str(table['headers'][0])) == {'age': '5'}
  (first, second, third) = json.loads(str(table['faults']))
  assert first == ['labels.csv, row 2', 'a', 'b.png: cut short']
  assert second[:2] == ['c.png', 'c'] and 'nothing of box' in second[2]
  assert third[:2] == ['d', 'd']
  assert third[2].startswith('all of it is one grey level, 255 of 0 to 255')
  line = '^labels.csv, row 2: b.png: cut short$'
  with pytest.raises(UserError, match=line):
    shards.decode_block(rows, tmp_path / 'x', SIZE, 'stretch', 'fail')
  assert not (tmp_path / 'x').exists() and not (tmp_path / 'x.npz').exists()
