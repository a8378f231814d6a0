"""The contact sheet: what is chosen, and drawn where it should be."""

import collections

import cv2
import numpy as np
import pytest

from dpjax.data.prepare import preview
from dpjax.errors import UserError
from tests import fakes

TILE = 256  # pixels of a tile
BOXES = np.float32([[0.25, 0.5, 0.5, 0.75], [0.6, 0.1, 0.9, 0.4]])


def make_store(size=TILE, **splits):
  """Grey images; each split is a list of (label, number of boxes)."""
  grey = iter(range(30, 250))
  made = {}
  for name, rows in splits.items():
    boxes = np.zeros((len(rows), 2, 4), np.float32)
    for row, (_, count) in enumerate(rows):
      boxes[row, :count] = BOXES[:count]
    made[name] = fakes.Split(
      ids=np.array([f'{name}-{row}' for row in range(len(rows))]),
      labels=np.array([label for label, _ in rows], np.int32),
      boxes=boxes,
      num_boxes=np.array([count for _, count in rows], np.int32),
      pixels=np.stack(
        [np.full((size, size), next(grey), np.uint8) for _ in rows]
      ),
    )
  return fakes.Store(splits=made, size=size)


def drawn(store, path, count, **options):
  """The sheet, (H, W, 3)."""
  file = path / 'sheet.png'
  preview.write(store, file, count, **options)
  return cv2.imread(str(file))


def greys(sheet):
  """Grey level -> pixels of the tiles that have it: no text, no border."""
  grey = sheet[(sheet == sheet[..., :1]).all(-1)][:, 0]
  counts = collections.Counter(grey.tolist())
  return {level: n for level, n in counts.items() if n > TILE * TILE * 0.8}


MIXED = {
  'train': [(0, 0)] * 20 + [(1, 2)] * 3 + [(2, 0)] * 5 + [(2, 1)] * 5,
  'validation': [(0, 0)] * 2,
  'unlabelled': [(-1, 0)] * 30,
}


@pytest.mark.parametrize('count, chosen', [(1, 1), (2, 2), (12, 12), (99, 65)])
def test_so_many_tiles_are_drawn_each_once_on_about_a_square(
  tmp_path, count, chosen
):
  store = make_store(**MIXED)
  sheet = drawn(store, tmp_path, count)
  # 252 is the paper's white; every image has a level of its own.
  assert len(set(greys(sheet)) - {252}) == chosen
  if chosen > 2:  # else the title is wider
    assert 0.6 < sheet.shape[1] / sheet.shape[0] < 1.2


def test_classes_take_turns_and_in_each_those_with_boxes():
  store = make_store(**MIXED)
  chosen = preview.pick(store, 16, seed=0)
  kinds = collections.Counter(
    (int(store.splits[s].labels[r]), int(store.splits[s].num_boxes[r]))
    for s, r in chosen
  )
  # Class 1 has 3, so that the others have 13 between them.
  assert kinds[1, 2] == 3
  assert {kinds[0, 0], kinds[2, 0] + kinds[2, 1], kinds[-1, 0]} == {4, 5}
  assert abs(kinds[2, 0] - kinds[2, 1]) <= 1
  labels = [int(store.splits[s].labels[r]) for s, r in chosen]
  assert labels == sorted(labels, key=lambda n: (n < 0, n))


def test_every_split_can_be_chosen_from():
  store = make_store(**{s: [(0, 0)] * 5 for s in ('train', 'test')})
  assert {s for s, _ in preview.pick(store, 10, seed=0)} == {'train', 'test'}
  assert len(set(preview.pick(store, 10, seed=0))) == 10


def test_the_seed_makes_the_choice():
  store = make_store(**MIXED)
  assert preview.pick(store, 9, seed=0) == preview.pick(store, 9, seed=0)
  assert preview.pick(store, 9, seed=0) != preview.pick(store, 9, seed=1)


@pytest.mark.parametrize('size', [64, 256, 512])
def test_boxes_are_drawn_where_they_are(tmp_path, size):
  store = make_store(size, train=[(1, 2)])
  sheet = drawn(store, tmp_path, 1)
  grey = int(store.splits['train'].pixels[0, 0, 0])
  rows, columns = np.nonzero((sheet == grey).all(-1))
  top, left = rows.min(), columns.min()
  tile = sheet[top : top + TILE, left : left + TILE]
  assert rows.max() == top + TILE - 1 and columns.max() == left + TILE - 1
  coloured = (tile != tile[..., :1]).any(-1)
  y, x = np.indices(coloured.shape)
  near = np.zeros_like(coloured)
  for x0, y0, x1, y1 in TILE * store.splits['train'].boxes[0]:
    inside = (x > x0 - 3) & (x < x1 + 2) & (y > y0 - 3) & (y < y1 + 2)
    deep = (x > x0 + 3) & (x < x1 - 4) & (y > y0 + 3) & (y < y1 - 4)
    near |= inside & ~deep
    for line in (coloured[round(y0), round(x0) : round(x1)],
                 coloured[round(y0) : round(y1), round(x1) - 1]):  # fmt: skip
      assert line.all()
  assert not (coloured & ~near).any()


def test_an_image_is_drawn_as_it_is_stored(tmp_path):
  store = fakes.make_store(train=1, validation=0, test=0, size=TILE)
  sheet = drawn(fakes.Store({'train': store.split('train')}, TILE), tmp_path, 1)
  image = store.split('train').pixels[0]
  grey = np.repeat(image[..., None], 3, -1)
  score = cv2.matchTemplate(sheet, grey, cv2.TM_SQDIFF)
  assert score.min() == pytest.approx(0, abs=1e3)
  _, _, (left, top), _ = cv2.minMaxLoc(score)
  tile = sheet[top : top + TILE, left : left + TILE]
  np.testing.assert_array_equal(tile, grey)


@pytest.mark.parametrize('text', ['short', 'x' * 300, 'folder/' * 9 + '12.png'])
def test_a_long_id_loses_its_middle_and_fits_under_its_tile(text):
  short = preview._shortened(text, 13)
  assert preview._width(short, 13, 400) <= TILE
  begin, *end = short.split('...')
  assert text.startswith(begin) and (not end or text.endswith(end[0]))
  assert (short == text) == (text == 'short')
  # No more is lost than has to be.
  assert short == text or preview._width(short + 'xx', 13, 400) > TILE


def test_a_sheet_has_an_end(tmp_path, monkeypatch):
  monkeypatch.setattr(preview, 'MOST', 7)
  assert len(set(greys(drawn(make_store(**MIXED), tmp_path, 50))) - {252}) == 7


@pytest.mark.parametrize('count', [0, -3])
def test_a_sheet_of_nothing_is_refused(tmp_path, count):
  with pytest.raises(UserError, match=f'a preview of {count} radiographs'):
    drawn(make_store(**MIXED), tmp_path, count)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
  with pytest.raises(UserError, match='cannot be written: No such file'):
    drawn(make_store(**MIXED), tmp_path / 'nothing', 1)
