"""COCO annotations: what is read, and what is one line."""

import copy
import functools
import json
import pathlib
import tempfile

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from dpjax.data.sources import coco, tables
from tests.data import source_files as sources

DATA = {
  'info': {'year': 2024},
  'images': [
    {'id': 3, 'file_name': 'p1_a.png', 'width': 512, 'height': 256},
    {'id': 'x', 'file_name': 'images/p1_b.png', 'width': 64.0, 'height': 64},
    {'id': 5, 'file_name': 'p2_c.jpg', 'width': 100, 'height': 200},
  ],
  'annotations': [
    {'id': 17, 'image_id': 3, 'category_id': 2, 'bbox': [1, 2, 3, 4.5]},
    {'id': 18, 'image_id': 5, 'category_id': 9, 'bbox': [0, 0, 9, 9]},
    {'id': 19, 'image_id': 3, 'category_id': 1, 'bbox': [5, 6, 7, 8]},
    {
      'id': 20,
      'image_id': 3,
      'category_id': 2,
      'bbox': [-1, 0, 2, 2],
      'iscrowd': 1,
      'segmentation': {'counts': 'x'},
    },
  ],
  'categories': [
    {'id': 1, 'name': 'nodule'},
    {'id': 2, 'name': ' mass ', 'supercategory': 'any'},
    {'id': 9, 'name': 'No_Finding'},
  ],
}
IDS = ['p1_a.png', 'images/p1_b.png', 'p2_c.jpg']


def write(root, data=DATA, file='set.json'):
  """Makes the json, and files that are images by name only."""
  (root / 'images').mkdir(parents=True)
  for name in ('p1_a.png', 'p1_b.png', 'p2_c.jpg'):
    (root / 'images' / name).write_bytes(b'no image')
  (root / file).parent.mkdir(exist_ok=True)
  text = data if isinstance(data, str | bytes) else json.dumps(data)
  (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
  return root


def changed(kind, i, **changes):
  """DATA with other values in one item; a value of ... removes the key."""
  data = copy.deepcopy(DATA)
  for key, value in changes.items():
    data[kind][i][key] = value
    if value is ...:
      del data[kind][i][key]
  return data


def refused(root, on_error='fail', **options):
  """The one line that reading `root` ends in."""
  message = sources.refused(coco.read, root, on_error, **options)
  assert len(message) < 500
  return message


skipped = functools.partial(sources.skipped, coco.read)


def test_images_boxes_and_findings_are_those_of_the_json(tmp_path):
  write(tmp_path)
  first, second, third = coco.read(
    tmp_path, tables.Faults(), patient_pattern='p[0-9]'
  )
  assert [first.id, second.id, third.id] == IDS
  assert first.file == f'{tmp_path}/images/p1_a.png'
  assert first.boxes == ((1, 2, 4, 6.5), (5, 6, 12, 14), (-1, 0, 1, 2))
  assert first.names == ('mass', 'nodule', 'mass')
  assert first.findings == first.classes == ('mass', 'nodule')
  assert (first.frame, first.group) == ((512, 256), 'p1')
  assert (second.boxes, second.findings) == ((), ())
  assert (second.classes, second.group) == (('normal',), 'p1')
  # A box that says there is nothing is no lesion.
  assert (third.boxes, third.names, third.findings) == ((), (), ())
  assert (third.classes, third.group) == (('normal',), 'p2')
  assert {(r.label, r.split) for r in (first, second, third)} == {(None, None)}
  assert first.where == f'{tmp_path}/set.json, image 3'


def test_boxes_count_in_the_frame_of_the_json_not_of_the_file(tmp_path):
  write(tmp_path)
  record = coco.read(tmp_path, tables.Faults())[0]
  # The file is half as wide and high as the json says.
  boxes, _ = record.unit_boxes(128, 256)
  assert boxes[1] == pytest.approx((5 / 512, 6 / 256, 12 / 512, 14 / 256))


def test_the_frame_of_the_json_is_said_of_the_file_and_a_given_one_is_not(
  tmp_path,
):
  write(tmp_path)
  assert all(r.own_frame for r in coco.read(tmp_path, tables.Faults()))
  given = coco.read(tmp_path, tables.Faults(), frame=(1, 1))
  assert not any(r.own_frame for r in given)


@pytest.mark.parametrize('file', ['a.json', 'annotations/b.json'])
def test_the_only_json_is_found(tmp_path, file):
  write(tmp_path, '\ufeff' + json.dumps(DATA), file)
  assert len(coco.read(tmp_path, tables.Faults())) == 3


def test_of_several_jsons_one_must_be_named(tmp_path):
  write(tmp_path, file='annotations/b.json')
  (tmp_path / 'a.json').write_text('{}')
  message = refused(tmp_path)
  assert message.startswith('config.data.coco_annotations: ')
  assert 'a.json, annotations/b.json' in message
  options = {'annotations': 'annotations/b.json'}
  assert len(coco.read(tmp_path, tables.Faults(), **options)) == 3


def test_a_json_that_is_not_there_is_named(tmp_path):
  write(tmp_path, file='set.txt')
  assert 'config.data.coco_annotations' in refused(tmp_path)
  message = refused(tmp_path, annotations='set.json')
  assert 'config.data.coco_annotations' in message
  assert f'{tmp_path}/set.json' in message
  assert 'cannot be read' in refused(tmp_path, annotations='images')


@pytest.mark.parametrize('on_error', ['fail', 'skip'])
@pytest.mark.parametrize(
  'text, reason',
  [
    ('', 'not a json file'),
    ('image,label\n', 'not a json file'),
    ('[', 'not a json file'),
    ('[' * 200_000, 'nested too deep'),
    ('{"a":' * 200_000, 'nested too deep'),
    ('1' * 5000, 'not a json file'),
    ('NaN', 'no object'),
    ('{"images": "grün"}'.encode('latin-1'), 'not UTF-8'),
    (json.dumps(DATA).encode('utf-16'), 'not UTF-8'),
    ('[]', 'no object'),
    ('null', 'no object'),
    ('{}', "no list 'images'"),
    (json.dumps({**DATA, 'images': {}}), "no list 'images'"),
    (json.dumps({**DATA, 'images': []}), 'no images'),
    (json.dumps({**DATA, 'annotations': None}), "no list 'annotations'"),
    (json.dumps({**DATA, 'categories': 'mass'}), "no list 'categories'"),
  ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, reason, on_error):
  message = refused(write(tmp_path, text), on_error)
  assert message.startswith(f'{tmp_path}/set.json: ') and reason in message


def test_a_json_that_would_not_fit_into_memory_is_refused(tmp_path):
  write(tmp_path)
  with open(tmp_path / 'set.json', 'r+b') as file:
    file.truncate(coco.LIMIT + 1)  # a hole: it takes no room on the disk
  assert 'larger than 1024 MiB' in refused(tmp_path)


WRONG_NUMBERS = ['1', None, True, [1], {}, 10**400, 1e999, 0, -1]


@pytest.mark.parametrize(
  'key, values',
  [
    ('file_name', [..., None, 3, '', '9.png', '../set.json', '/etc/passwd',
                   'images', 'a\\b.png', 'images/../p1_a.png', 'a\nb.png',
                   '\ud800']),
    ('width', [..., *WRONG_NUMBERS]),
    ('height', [..., *WRONG_NUMBERS]),
  ],
)  # fmt: skip
def test_a_bad_image_is_left_out_with_its_boxes(tmp_path, key, values):
  for i, value in enumerate(values):
    data = json.dumps(changed('images', 0, **{key: value}))
    root = write(tmp_path / str(i), data.replace('Infinity', '1e999'))
    place = f'{root}/set.json, image 3'
    assert refused(root).startswith(f'{place}: ')
    ids, faults = skipped(root)
    assert ids == IDS[1:]
    # A file that has no good name is one that no image names.
    rest = [f'{root}/images/p1_a.png'] if key == 'file_name' else []
    assert [f[0] for f in faults] == [place, *rest]


@pytest.mark.parametrize('item', [None, 3, 'x', [], {}, {'id': True}])
@pytest.mark.parametrize('kind', ['images', 'annotations', 'categories'])
def test_an_item_that_is_none_is_named_by_its_place_in_the_list(
  tmp_path, kind, item
):
  data = {**DATA, kind: [*DATA[kind], item]}
  write(tmp_path, data)
  place = f'number {len(data[kind])}: '
  assert place in refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == IDS and len(faults) == 1


@pytest.mark.parametrize(
  'changes, reason',
  [
    ({'category_id': 4}, 'category_id 4'),
    ({'category_id': None}, 'category_id None'),
    ({'category_id': ...}, 'no category_id'),
    ({'category_id': [1]}, 'category_id [1]'),
    ({'category_id': '1'}, "category_id '1'"),
    ({'id': 17}, 'two annotations have this id'),
    ({'id': [17]}, 'id [17]'),
    ({'bbox': ...}, 'no bbox'),
    ({'bbox': []}, 'bbox []'),
    ({'bbox': {'x': 1}}, 'bbox {'),
    ({'bbox': 'abcd'}, "bbox 'abcd'"),
    ({'bbox': [1, 2, 3]}, 'bbox [1, 2, 3]'),
    ({'bbox': [1, 2, 3, '4']}, "'4' is no number"),
    ({'bbox': [1, 2, 3, True]}, 'True is no number'),
    ({'bbox': [1, 2, 3, None]}, 'None is no number'),
    ({'bbox': [1, 2, [3], 4]}, '[3] is no number'),
    ({'bbox': [10**400, 2, 3, 4]}, 'not finite'),
    ({'bbox': [1, 2, 0, 4]}, 'wanted above 0'),
    ({'bbox': [1, 2, 3, -4]}, 'wanted above 0'),
  ],
)
def test_one_bad_box_leaves_out_its_image_and_no_other(
  tmp_path, changes, reason
):
  data = changed('annotations', 2, **changes)
  data['annotations'][3]['bbox'] = 'bad as well'
  write(tmp_path, data)
  place = f'{tmp_path}/set.json, annotation '
  message = refused(tmp_path)
  assert message.startswith(place) and reason in message
  ids, faults = skipped(tmp_path)
  assert ids == IDS[1:]
  assert [f[1] for f in faults] == ['p1_a.png'] and reason in faults[0][2]


def test_a_number_too_large_for_a_float_is_not_finite(tmp_path):
  write(tmp_path, json.dumps(DATA).replace('4.5', '1e999'))
  assert 'annotation 17: of bbox: inf is not finite' in refused(tmp_path)


@pytest.mark.parametrize('image_id', ['3', 99, -3, 3.0, True, None, [3], {}])
def test_a_box_of_no_image_is_a_fault_of_its_own(tmp_path, image_id):
  write(tmp_path, changed('annotations', 1, image_id=image_id))
  assert 'annotation 18: ' in refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == IDS and len(faults) == 1


def test_annotations_need_no_id(tmp_path):
  data = copy.deepcopy(DATA)
  for item in data['annotations']:
    del item['id']
  write(tmp_path, data)
  assert len(coco.read(tmp_path, tables.Faults())[0].boxes) == 3


@pytest.mark.parametrize('name', [..., None, 3, '', '  ', 'a\nb', '\ud800', {}])
def test_a_category_without_a_name_leaves_out_its_images(tmp_path, name):
  write(tmp_path, changed('categories', 0, name=name))
  assert f'{tmp_path}/set.json, category 1: ' in refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == IDS[1:]
  assert [f[1] for f in faults] == ['', 'p1_a.png']


def test_a_category_id_that_two_have_names_neither(tmp_path):
  write(tmp_path, changed('categories', 0, id=9))
  assert 'category 9: two categories have this id' in refused(tmp_path)
  ids, _ = skipped(tmp_path)
  assert ids == ['images/p1_b.png']


def test_images_of_one_id_are_left_out_since_whose_boxes_are_they(tmp_path):
  write(tmp_path, changed('images', 1, id=3))
  assert 'image 3: two images have this id' in refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == ['p2_c.jpg']
  assert {f[1] for f in faults} == {'p1_a.png', 'images/p1_b.png'}


def test_an_image_that_stands_twice_is_left_out_once(tmp_path):
  data = copy.deepcopy(DATA)
  data['images'] += [{**data['images'][0], 'id': id} for id in (30, 31)]
  data['annotations'].append(
    {**data['annotations'][0], 'id': 1, 'image_id': 30}
  )
  write(tmp_path, data)
  assert 'image 30: two images are of p1_a.png' in refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == IDS[1:] and [f[1] for f in faults] == ['p1_a.png']


def test_a_file_that_no_image_names_is_a_fault(tmp_path):
  data = {**DATA, 'images': DATA['images'][:2]}
  data['annotations'] = data['annotations'][:1]
  write(tmp_path, data)
  assert f'{tmp_path}/images/p2_c.jpg: no row' in refused(tmp_path)
  ids, faults = skipped(tmp_path)
  assert ids == IDS[:2] and len(faults) == 1


def test_a_link_that_leads_out_of_the_source_is_not_followed(tmp_path):
  source = write(tmp_path / 'set')
  (tmp_path / 'secret.png').write_bytes(b'secret')
  (source / 'images/p1_a.png').unlink()
  (source / 'images/p1_a.png').symlink_to(tmp_path / 'secret.png')
  assert 'leads out' in refused(source)
  ids, faults = skipped(source)
  assert ids == IDS[1:] and [f[1] for f in faults] == ['p1_a.png']


def test_no_image_is_opened(tmp_path, monkeypatch):
  write(tmp_path)
  opened = sources.suffixes_opened(monkeypatch)
  coco.read(tmp_path, tables.Faults())
  assert '.png' not in opened and '.jpg' not in opened


VALUES = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.floats()
  | st.text(max_size=4)
  | st.sampled_from([3, 5, 'x', 1, 2, *IDS, '../p1_a.png', 10**400]),
  lambda values: (
    st.lists(values, max_size=4)
    | st.dictionaries(st.text(max_size=3), values, max_size=2)
  ),
  max_leaves=6,
)
KEYS = {
  'images': ['id', 'file_name', 'width', 'height'],
  'annotations': ['id', 'image_id', 'category_id', 'bbox'],
  'categories': ['id', 'name'],
}


@st.composite
def _documents(draw):
  """DATA with some values, items or lists put in the place of others."""
  data = copy.deepcopy(DATA)
  for _ in range(draw(st.integers(1, 4))):
    kind = draw(st.sampled_from(list(KEYS)))
    items = data[kind]
    what = draw(st.sampled_from(['value'] * 8 + ['item', 'again', 'list']))
    if what == 'list' or not (isinstance(items, list) and items):
      data[kind] = draw(VALUES)
    elif what == 'item':
      items[0] = draw(VALUES)
    elif what == 'again':
      items.append(copy.deepcopy(draw(st.sampled_from(items))))
    elif isinstance(item := draw(st.sampled_from(items)), dict):
      item[draw(st.sampled_from(KEYS[kind]))] = draw(VALUES)
  return data


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(_documents())
def test_whatever_the_json_holds_nothing_but_lines_comes_out(data):
  with tempfile.TemporaryDirectory() as root:
    root = write(pathlib.Path(root).resolve() / 'set', data)
    try:
      ids, faults = skipped(root)
    except ValueError as error:
      assert str(error).isprintable()
      # Of the whole file: not of an image, nor of an annotation.
      assert str(error).startswith(f'{root}/set.json: ')
      return
    assert len(ids) == len(set(ids))
    assert not {id for _, id, _ in faults} & set(ids)
    if faults:
      place, _, reason = faults[0]
      assert refused(root) == f'{place}: {reason}'


# A json for each side of the split, as annotation tools export.


def write_splits(root, layout):
  """Two images a split, called alike in each; the json where `layout` says."""
  data = {
    'images': [
      {'id': i, 'file_name': f'{i}.png', 'width': 100, 'height': 100}
      for i in (1, 2)
    ],
    'annotations': [
      {'id': 5, 'image_id': 2, 'category_id': 3, 'bbox': [1, 2, 3, 4]}
    ],
    'categories': [{'id': 3, 'name': 'opacity'}],
  }
  for split in ('train', 'valid', 'test'):
    (root / split).mkdir(parents=True)
    for i in (1, 2):
      (root / split / f'{i}.png').write_bytes(b'no image')
    if layout != '{}/_annotations.json':
      for image in data['images']:
        image['file_name'] = f'{split}/{image["id"]}.png'
    file = root / layout.format(split)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(data))
  return root


@pytest.mark.parametrize(
  'layout', ['{}/_annotations.json', 'annotations/instances_{}.json']
)
def test_a_json_a_split_gives_the_splits(tmp_path, layout):
  root = write_splits(tmp_path, layout)
  records = coco.read(root, tables.Faults())
  sides = ('test', 'train', 'validation')
  assert [r.split for r in records] == [s for s in sides for _ in '12']
  assert [len(r.boxes) for r in records] == [0, 1] * 3
  assert len({r.id for r in records}) == len({r.file for r in records}) == 6
  for record in records:
    folder = {'validation': 'valid'}.get(record.split, record.split)
    assert f'/{folder}/' in record.file


def test_an_image_of_one_side_is_left_out_beside_its_namesake_of_another(
  tmp_path,
):
  root = write_splits(tmp_path, '{}/_annotations.json')
  for side in ('train', 'valid'):
    file = root / side / '_annotations.json'
    data = json.loads(file.read_text())
    data['annotations'][0]['bbox'] = [5, 5, 0, 20]
    file.write_text(json.dumps(data))
  # An image that no json names is called as those that are left out.
  (root / 'more').mkdir()
  (root / 'more/2.png').write_bytes(b'no image')
  ids, faults = skipped(root)
  assert ids == ['test/1.png', 'test/2.png', 'train/1.png', 'validation/1.png']
  assert [id for _, id, _ in faults] == ['train/2.png', 'validation/2.png', '']
  assert faults[-1][0] == f'{root}/more/2.png'


@pytest.mark.parametrize(
  'name', ['__MACOSX/._set.json', '.cache/a.json', '.a.json']
)
def test_a_json_that_an_archive_or_a_program_has_left_is_none(name, tmp_path):
  root = write(tmp_path)
  (root / name).parent.mkdir(exist_ok=True)
  (root / name).write_bytes(b'\0\5\x16\7')
  assert [r.id for r in coco.read(root, tables.Faults())] == IDS


def test_a_side_that_two_jsons_claim_is_refused(tmp_path):
  root = write_splits(tmp_path, 'annotations/instances_{}.json')
  (root / 'annotations/captions_train.json').write_text('{}')
  assert 'captions_train.json' in refused(root)
  names = 'annotations/instances_train.json, annotations/instances_test.json'
  faults = tables.Faults('skip')
  assert len(coco.read(root, faults, annotations=names)) == 4
  # The images of the third are of no json that was named.
  assert [id for _, id, _ in faults.found] == ['', '']


def test_a_number_that_is_none_is_a_fault_only_where_it_is_read(tmp_path):
  text = json.dumps(changed('annotations', 0, area=float('nan')))
  assert 'NaN' in text
  records = coco.read(write(tmp_path / 'unread', text), tables.Faults())
  assert [record.id for record in records] == IDS
  text = json.dumps(changed('images', 0, width=float('-inf')))
  message = refused(write(tmp_path / 'read', text))
  assert 'width: -inf is not finite' in message


@pytest.mark.parametrize(
  'name, boxes',
  [('0', 1), ('1', 1), ('No-finding', 0), ('no_FINDING', 0), ('nofinding', 0)],
)
def test_what_is_boxed_is_a_lesion_unless_its_name_says_normal(
  tmp_path, name, boxes
):
  data = changed('categories', 0, name=name)
  own = [a for a in DATA['annotations']
         if a['category_id'] == DATA['categories'][0]['id']]  # fmt: skip
  data['annotations'] = own[:1]
  records = coco.read(write(tmp_path, data), tables.Faults())
  assert sum(len(record.boxes) for record in records) == boxes


def test_boxes_that_are_shares_are_refused_and_read_with_their_frame(tmp_path):
  data = copy.deepcopy(DATA)
  for i, item in enumerate(data['annotations']):
    item['bbox'] = [0.1, 0.2, 0.25 + i / 100, 0.5]
  write(tmp_path, data)
  message = refused(tmp_path)
  assert message.startswith(f'{tmp_path}/set.json: all boxes lie in 0..1')
  assert '--config.data.coco_frame="(1,1)"' in message
  records = coco.read(tmp_path, tables.Faults(), frame=(1.0, 1.0))
  found = [record for record in records if record.boxes]
  assert {record.frame for record in found} == {(1.0, 1.0)}
  boxes, out = found[0].unit_boxes(30, 20)
  np.testing.assert_allclose(boxes[0], [0.1, 0.2, 0.35, 0.7], rtol=1e-6)
  assert out == 0


def test_of_two_images_of_one_name_a_json_means_that_of_its_side(tmp_path):
  for side in ('train2017', 'val2017'):
    (tmp_path / side).mkdir()
    (tmp_path / side / '1.png').write_bytes(b'no image')
    (tmp_path / 'annotations').mkdir(exist_ok=True)
    data = {
      **DATA,
      'images': [{'id': 1, 'file_name': '1.png', 'width': 9, 'height': 9}],
      'annotations': [],
    }
    file = tmp_path / f'annotations/instances_{side}.json'
    file.write_text(json.dumps(data))
  records = coco.read(tmp_path, tables.Faults())
  assert {(r.split, r.file) for r in records} == {
    ('train', str(tmp_path / 'train2017/1.png')),
    ('validation', str(tmp_path / 'val2017/1.png')),
  }
