"""COCO annotations: a json, or one a split, and images anywhere in the source.

    {"images": [{"id": 3, "file_name": "3.png", "width": 512, "height": 512}],
     "annotations": [{"id": 17, "image_id": 3, "category_id": 1,
                      "bbox": [X, Y, WIDTH, HEIGHT]}],
     "categories": [{"id": 1, "name": "opacity"}]}

A bbox is in pixels of the json's width and height, even where the file has
others. A box of a category that is called normal is no lesion; one of a number
is, also of 0. Everything else in the json is ignored. Several files are one for
each side of the split, which their path names: valid/_annotations.json,
annotations/instances_train2017.json. Of images of one name a file means those
of its side.
"""

import collections
import dataclasses
import functools
import json
import math
import pathlib
import re
import reprlib
from collections.abc import Sequence

from dpjax.data import radiograph, vocabulary
from dpjax.data.sources import boxes as boxes_lib
from dpjax.data.sources import facts as facts_lib
from dpjax.data.sources import files as files_lib
from dpjax.data.sources import folder, tables
from dpjax.data.sources import guess as guess_lib
from dpjax.errors import SourceFault, UserError

UNIT_HINT = 'give --config.data.coco_frame="(1,1)"'
_LISTS = ('images', 'annotations', 'categories')
LIMIT = 1 << 30  # bytes of a json: they take several times as many in memory


def read(
  source: str | pathlib.Path,
  faults: tables.Faults,
  *,
  annotations: str = '',
  frame: Sequence[float] = (),
  patient_pattern: str = '',
  ignore: Sequence[str] = (),
) -> list[radiograph.Radiograph]:
  """Reads the json of the set in the folder `source`; decodes no image.

  Args:
    source: the folder.
    faults: takes what is wrong with an image or an annotation.
    annotations: the json in the source, or several with commas between them;
      '': those there, in its folder annotations and in others.
    frame: width and height that boxes count in, if not the json's; (1, 1) for
      boxes in 0..1.
    patient_pattern: see folder.patients.
    ignore: see files.Files.

  Raises:
    UserError: one line: no such json, or it is not of COCO's form.
  """
  files = files_lib.Files(source, ignore=ignore)
  jsons = _find_jsons(files.root, annotations)
  patient = folder.patients(files, patient_pattern)
  records = []
  for file, split in jsons.items():
    found = _read_json(file, split, faults, files, patient)
    if frame:
      found = [
        dataclasses.replace(r, frame=tuple(frame), own_frame=False)
        for r in found
      ]
    else:
      boxes_lib.check_unit((b for r in found for b in r.boxes), file, UNIT_HINT)
    records += found
  files.add_unnamed(faults, *jsons)
  return records


def recognise(facts: facts_lib.Facts) -> guess_lib.Guess | None:
  """Whether a folder is of this layout; None: it is not."""
  near = {p: held for p, held in facts.jsons.items() if p.count('/') < 2}
  found = {
    path: held
    for path, held in near.items()
    if isinstance(held, dict)
    and all(isinstance(held.get(key), list) for key in _LISTS)
    and held['images']
  }
  if not found:
    return None
  guess = guess_lib.Guess(
    'coco', f'COCO annotations, by {", ".join(found)}', 2.5
  )
  if len(found) < len(near):
    guess.say(
      'json',
      f'{", ".join(sorted(set(near) - set(found)))} are of another form',
      coco_annotations=','.join(found),
    )
  for path, held in found.items():
    _guess_boxes(guess, facts, path, held)
  sides = {p: _side(p) for p in found}
  if len(found) == 1:
    guess.say('split', 'drawn: there is one json')
  elif None in sides.values() or len({*sides.values()}) < len(sides):
    guess.unknown.append(
      f'Which json is which side of the split: {", ".join(found)}. Name one, or'
      ' one a side, in --config.data.coco_annotations.'
    )
    guess.fields['coco_annotations'] = next(iter(found))
  else:
    shown = ', '.join(f'{path} is {side}' for path, side in sides.items())
    guess.say('split', f'by the names of the files: {shown}')
  guess_lib.add_patients(
    guess, facts, [p for p in facts.images if not facts_lib.is_masks(p)]
  )
  named = {
    found
    for held in found.values()
    for item in held['images']
    for found in facts.find(_name(item))
  }
  guess_lib.add_unnamed(
    guess, [path for path in facts.images if path not in named], named
  )
  return guess


def _guess_boxes(guess, facts, path, held):
  """What the boxes of a json seem to be, and what is odd about them."""
  names = {c['id']: str(c['name']) for c in held['categories']
           if isinstance(c, dict) and {'id', 'name'} <= set(c)}  # fmt: skip
  items = [a for a in held['annotations'] if isinstance(a, dict)]
  boxes = [
    (a.get('image_id'), tuple(a['bbox']), names.get(a.get('category_id'), '?'))
    for a in items
    if isinstance(a.get('bbox'), list) and len(a['bbox']) == 4
    and all(type(x) in (int, float) for x in a['bbox'])
  ]  # fmt: skip
  counts = collections.Counter(name for *_, name in boxes)
  shown = ', '.join(f'{name}: {n:,}' for name, n in counts.most_common(8))
  images = [i for i in held['images'] if isinstance(i, dict)]
  guess.say(
    'labels',
    f'the number of boxes: {len(images):,} images, {len(boxes):,} boxes in'
    f' {path}' + (f' ({shown})' if shown else ''),
  )
  normal = [n for n in counts if vocabulary.is_normal(n) and not n.isdecimal()]
  if normal:
    guess.odd.append(
      f'Boxes of {normal[0]!r} in {path} are no lesions: their images count as'
      ' normal'
    )
  if boxes and max(max(box) for _, box, _ in boxes) <= 1:
    guess.say(
      'frame',
      f'all boxes of {path} lie in 0..1, so they are shares of the image',
      coco_frame=(1, 1),
    )
  twice = [key for key, n in collections.Counter(boxes).items() if n > 1]
  if twice:
    guess.odd.append(
      f'{len(twice):,} boxes of {path} stand there twice, one on image'
      f' {twice[0][0]}, so that lesions would count double: was a task'
      ' labelled twice? Take them out of the json, as prepare stops there'
    )
    guess.refused = True
  for item in facts_lib.spread(images, 5):
    said = item.get('width'), item.get('height')
    for file in facts.find(_name(item))[:1]:
      upright = facts_lib.upright_size(facts.root / file)
      if upright and upright == said[::-1] and said[0] != said[1]:
        guess.odd.append(
          f'{path} says {said[0]} x {said[1]} for {file}, which is'
          f' {upright[0]} x {upright[1]} when its EXIF orientation has turned'
          ' it: write the upright size and boxes, as prepare stops there'
        )
        guess.refused = True
        return


def _read_json(file, split, faults, files, patient):
  data = _load(file)
  categories = _read_categories(file, data['categories'], faults)

  def relative(image):
    return image.relative_to(files.root).as_posix()

  find = functools.partial(
    files.find,
    beside=file.parent,
    prefer=split and (lambda image: _side(relative(image)) == split),
  )
  images, out = _read_images(file, split, data['images'], faults, find, patient)
  boxes = _read_boxes(
    file, data['annotations'], faults, images, out, categories
  )
  records = []
  for key, found in boxes.items():
    findings = tuple(dict.fromkeys(name for _, name in found))
    record = images[key]
    records.append(
      dataclasses.replace(
        record,
        split=split,
        boxes=tuple(box for box, _ in found),
        names=tuple(name for _, name in found),
        findings=findings,
        classes=findings or ('normal',),
      )
    )
  return records


def _find_jsons(root, annotations):
  """{json: its split}, the split None where there is one json only."""
  if annotations:
    found = [root / name.strip() for name in annotations.split(',')]
  else:
    found = sorted(
      file
      for file in (*root.glob('*.json'), *root.glob('*/*.json'))
      if not any(map(files_lib.is_hidden, file.relative_to(root).parts))
    )
  if len(found) == 1:
    return {found[0]: None}
  splits = {}
  for file in found:
    splits[file] = _side(file.relative_to(root).as_posix())
  if (
    not found
    or None in splits.values()
    or len(found) > len(set(splits.values()))
  ):
    names = ', '.join(str(file.relative_to(root)) for file in found[:8])
    raise UserError(
      f'config.data.coco_annotations: {root} has '
      + (
        f'several: {names}; name one, or one a split, with commas between them'
        if found
        else 'no json; name it'
      )
    )
  return splits


def _side(path):
  """The side of the split that the words of a path name; None: none or two."""
  words = re.split('[^a-z]+', path.lower())
  named = set(filter(None, map(vocabulary.split, words)))
  return named.pop() if len(named) == 1 else None


def _load(file):
  """The json, its three lists being lists."""
  try:
    if file.stat().st_size > LIMIT:
      raise UserError(f'larger than {LIMIT >> 20} MiB')
    # NaN is no json, but Python writes it; where it is read, it is a fault.
    data = json.loads(file.read_text('utf-8-sig'))
  except FileNotFoundError as error:
    raise UserError(
      f'config.data.coco_annotations: {file} is not there'
    ) from error
  except OSError as error:
    raise UserError(f'{file}: cannot be read: {error.strerror}') from error
  except UnicodeDecodeError as error:
    raise UserError(f'{file}: not UTF-8 text; save it as UTF-8') from error
  except RecursionError as error:
    raise UserError(f'{file}: nested too deep for COCO annotations') from error
  except ValueError as error:
    raise UserError(f'{file}: not a json file ({error})') from error
  if not isinstance(data, dict):
    raise UserError(
      f'{file}: no object; COCO has images, annotations and categories'
    )
  for key in _LISTS:
    if not isinstance(data.get(key), list):
      raise UserError(
        f'{file}: no list {key!r}; COCO has images, annotations and categories'
      )
  return data


def _read_categories(file, items, faults):
  """{id: name}, without ids that two categories have."""
  names: dict[int | str, str] = {}
  seen = set()
  for i, item in enumerate(items):
    with faults.at(_place(file, 'category', i, item)):
      id = _id(item, 'id')
      if id in seen:
        names.pop(id, None)
        raise SourceFault('two categories have this id')
      seen.add(id)
      name = _text(item, 'name').strip()
      if not (name and name.isprintable()):
        raise SourceFault(f'{name!r} cannot name a category')
      names[id] = name
  return names


def _read_images(file, split, items, faults, find, patient):
  """{id: record without boxes}, and the ids of those that are left out."""
  if not items:
    raise UserError(f'{file}: no images')
  images, out = {}, set()
  owner, lost = {}, set()  # id of each file; files that are left out
  for i, item in enumerate(items):
    place = _place(file, 'image', i, item)
    id = image = None
    name = _name(item)
    if split and name:
      name = f'{split}/{name}'  # Two splits may call their images alike.
    with faults.at(place, name):
      try:
        id = _id(item, 'id')
      finally:  # A bad id is no reason to miss the row of the file.
        image = find(_text(item, 'file_name'))
      if image not in lost:
        if id in images or id in out:
          raise SourceFault('two images have this id')
        if image in owner:
          raise SourceFault(f'two images are of {_name(item)}')
        images[id] = files_lib.record(
          image,
          name,
          group=patient[image],
          frame=(_length(item, 'width'), _length(item, 'height')),
          own_frame=True,
          where=place,
        )
        owner[image] = id
        continue
    out.add(id)
    lost.add(image)
    for other in {id, owner.get(image)} & images.keys():
      gone = images.pop(other)
      out.add(other)
      if gone.file != str(image):
        faults.add(gone.where, 'two images have this id', gone.id)
        lost.add(pathlib.Path(gone.file))
  return images, out


def _read_boxes(
  file: pathlib.Path,
  items: list,
  faults: tables.Faults,
  images: dict[int | str, radiograph.Radiograph],
  out: set[int | str],
  categories: dict[int | str, str],
) -> dict[int | str, list[tuple[radiograph.Box, str]]]:
  """{id of image: [(box, name)]}, without images that have a bad one."""
  boxes: dict[int | str, list[tuple[radiograph.Box, str]]]
  boxes = {id: [] for id in images}
  out = set(out)
  seen = set()
  for i, item in enumerate(items):
    id = item.get('image_id') if isinstance(item, dict) else None
    id = id if _is_id(id) else None
    if id in out:
      continue
    with faults.at(
      _place(file, 'annotation', i, item), images[id].id if id in images else ''
    ):
      image = _id(item, 'image_id')
      if image not in images:
        raise SourceFault(f'no image has its image_id {reprlib.repr(id)}')
      if 'id' in item:
        if _id(item, 'id') in seen:
          raise SourceFault('two annotations have this id')
        seen.add(item['id'])
      category = _id(item, 'category_id')
      if category not in categories:
        raise SourceFault(
          f'no category has its category_id {reprlib.repr(category)}'
        )
      box, name = _box(item), categories[category]
      if not vocabulary.is_normal_box(name):
        boxes[image].append((box, name))
      continue
    if id is not None and boxes.pop(id, None) is not None:
      out.add(id)
  return boxes


def _box(item):
  box = _get(item, 'bbox')
  if not isinstance(box, list) or len(box) != 4:
    raise SourceFault(
      f'bbox {reprlib.repr(box)}; wanted x, y, width and height'
    )
  return tables.box(*(repr(_number(value, 'of bbox')) for value in box))


def _length(item, key):
  value = _number(_get(item, key), key)
  if value <= 0:
    raise SourceFault(f'{key} {value:g}; wanted above 0')
  return value


def _number(value, what):
  if type(value) not in (int, float):
    raise SourceFault(f'{what}: {reprlib.repr(value)} is no number')
  try:
    number = float(value)
  except OverflowError:
    number = math.inf
  if not math.isfinite(number):
    raise SourceFault(f'{what}: {reprlib.repr(value)} is not finite')
  return number


def _is_id(value):
  return type(value) in (int, str)


def _id(item, key):
  value = _get(item, key)
  if not _is_id(value):
    raise SourceFault(
      f'{key} {reprlib.repr(value)}; wanted a whole number or a text'
    )
  return value


def _text(item, key):
  value = _get(item, key)
  if not isinstance(value, str):
    raise SourceFault(f'{key} {reprlib.repr(value)}; wanted a text')
  return value


def _get(item, key):
  if not isinstance(item, dict):
    raise SourceFault(f'{reprlib.repr(item)}; wanted an object')
  if key not in item:
    raise SourceFault(f'no {key}')
  return item[key]


def _name(item):
  """The file_name, for a fault: '' where there is none."""
  name = item.get('file_name') if isinstance(item, dict) else ''
  return name if isinstance(name, str) else ''


def _place(file, kind, i, item):
  id = item.get('id') if isinstance(item, dict) else None
  if _is_id(id):
    return f'{file}, {kind} {reprlib.repr(id)}'
  return f'{file}, {kind} number {i + 1}'
