"""Whether the folders of a source are those of classes (layout folder)."""

import collections
import re

from dpjax.data import vocabulary
from dpjax.data.sources import facts as facts_lib
from dpjax.data.sources import guess as guess_lib

# The class at the end of names, as in the sets of Shenzhen and Montgomery.
_CLASS_IN_NAME = r'_([01])\.[a-z]+$'
_JSRT = 'JPC(NN|LN)'  # no nodule, lung nodule
_BY_NAME = {
  'CHNCXR': 'the Shenzhen set, by names such as CHNCXR_0001_0.png',
  'MCUCXR': 'the Montgomery County set, by names such as MCUCXR_0001_0.png',
}


def recognise(facts: facts_lib.Facts) -> guess_lib.Guess | None:
  """What the folders of a source say of its images; None: nothing."""
  guess = guess_lib.Guess('folder', '', 1, refused=bool(facts.linked))
  images = _passed_over(guess, facts)
  in_names = [re.search(_JSRT, path) for path in images]
  if images and all(in_names):
    return _as_jsrt(guess, facts, images, in_names)
  paths = [path.split('/') for path in images]
  splits = any(len(p) > 1 and vocabulary.split(p[0]) for p in paths)
  depth = 3 if splits else 2
  inside = [p for p in paths if len(p) >= depth]
  counts = collections.Counter(p[depth - 2] for p in inside)
  no_classes = len(counts) < 2 or len(counts) > max(20, len(images) / 3)
  in_names = [re.search(_CLASS_IN_NAME, path) for path in images]
  if images and all(in_names) and len({m[1] for m in in_names if m}) == 2:
    # Any exporter may number its files so: folders of classes go before.
    if no_classes or all(p[-1].startswith((*_BY_NAME,)) for p in paths):
      return _by_name(guess, facts, images, in_names)
    guess.odd.append(
      'All names end in _0 or _1; if that is the class, and not the folder, add'
      f" --config.data.class_pattern='{_CLASS_IN_NAME}'"
    )
  if no_classes:
    return None
  wanted = 'SPLIT/CLASS/IMAGE' if splits else 'CLASS/IMAGE'
  guess.what = f'a folder for each class, as {wanted}'
  names = {name.lower() for name in counts}
  if {'covid', 'viral pneumonia'} <= names:
    guess.what = 'the COVID-19 Radiography Database, by its folders'
  elif names == {'normal', 'pneumonia'} and any(
    'person' in p[-1] for p in paths
  ):
    guess.what = "Kaggle's chest_xray (Kermany et al.), by folders and names"
  shown = ', '.join(
    f'{name}: {count:,}' for name, count in counts.most_common(9)
  )
  guess.say('labels', f'the names of the folders: {shown}')
  if not any(map(vocabulary.is_normal, counts)):
    guess.odd.append('No class is called normal, or anything like it; scores'
                     ' for "any lesion" need one')  # fmt: skip
  _add_split(guess, inside, splits, set(counts))
  _add_patients(guess, facts, images, depth)
  outside = [p for p in paths if len(p) < depth]
  if outside:
    guess.odd.append(
      f'{len(outside):,} images are in no folder of a class, such as'
      f' {"/".join(outside[0])}; prepare stops there unless you add'
      ' --on_error=skip'
    )
  if 'boxes.csv' in {table.path for table in facts.tables}:
    guess.say('boxes', 'boxes.csv')
  return guess


def _by_name(guess, facts, images, found):
  name = images[0].rpartition('/')[2].partition('_')[0]
  guess.certainty = 1.5
  guess.what = _BY_NAME.get(name, 'images whose names end in their class')
  counts = collections.Counter(match[1] for match in found)
  guess.say(
    'labels',
    f'0: {counts["0"]:,}, 1: {counts["1"]:,}, by the ends of the names',
    class_pattern=_CLASS_IN_NAME,
  )
  guess.say('split', 'drawn: no folder says')
  guess_lib.add_patients(guess, facts, images)
  return guess


def _as_jsrt(guess, facts, images, found):
  guess.certainty = 1.5
  guess.what = 'JSRT, by names such as JPCLN001'
  counts = collections.Counter(match[1] for match in found)
  guess.say(
    'labels',
    f'NN (no nodule): {counts["NN"]:,}, LN (a nodule): {counts["LN"]:,}',
    class_pattern=_JSRT,
    classes=('NN', 'LN'),
  )
  guess.say('split', 'drawn: no folder says')
  guess_lib.add_patients(guess, facts, images)
  return guess


def _passed_over(guess, facts):
  """The images without those of masks and of a twin; says which these are."""
  images = list(facts.images)
  masks = facts_lib.mask_folders(images)
  left_out = sorted(masks)
  if masks:
    count = len(images)
    images = [path for path in images if not facts_lib.is_masks(path)]
    count -= len(images)
    guess.say(
      'left out',
      f'{count:,} images in folders {", ".join(left_out)}: by their name masks,'
      ' no radiographs',
    )
  twin = _twin(images)
  if twin:
    own = {path for path in images if not path.startswith(f'{twin}/')}
    again = [path for path in images if path not in own]
    same = sum(path[len(twin) + 1 :] in own for path in again)
    guess.say(
      'left out',
      f'the folder {twin}: it holds the same folders once more, and {same:,} of'
      f' its {len(again):,} images by name',
    )
    if same < len(again):
      guess.odd.append(
        f'{len(again) - same:,} images are in {twin} alone; look whether they'
        ' belong to the set'
      )
    left_out.append(twin)
    images = sorted(own)
  if left_out:
    guess.fields['ignore'] = tuple(left_out)
  return images


def _twin(images):
  """A folder that has the folders of the source in it again; '' for none."""
  # folder -> the folders in it
  inner: dict[str, set[str]] = collections.defaultdict(set)
  for path in images:
    first, *rest = path.split('/')[:-1] or ('',)
    inner[first].update(rest[:1])
  for folder, below in inner.items():
    if len(below) > 1 and below <= set(inner) - {folder}:
      return folder
  return ''


def _add_split(guess, inside, splits, classes):
  if not splits:
    guess.say('split', 'drawn: no folder says')
    return
  sides: dict[str, collections.Counter[str]] = collections.defaultdict(
    collections.Counter
  )
  for path in inside:
    sides[path[0]][path[1]] += 1
  shown = ', '.join(f'{name}: {c.total():,}' for name, c in sides.items())
  guess.say('split', f'the folders are kept ({shown})')
  for name, counts in sides.items():
    if vocabulary.split(name) is None:
      guess.odd.append(f'The folder {name} names no side of a split')
    elif len(counts) == 1:
      guess.odd.append(
        f'The side {name} has one class only, {next(iter(counts))}: curves and'
        ' balanced scores will not be defined on it'
      )
    elif classes - set(counts):
      missing = ', '.join(sorted(classes - set(counts)))
      guess.odd.append(f'The side {name} has no image of {missing}')


def _add_patients(guess, facts, images, depth):
  """By names and paths, or by folders below those of the classes."""
  guess_lib.add_patients(guess, facts, images)
  if 'patient_pattern' in guess.fields or guess.said[-1][1].startswith('the D'):
    return
  deep = [path.split('/') for path in images if path.count('/') >= depth]
  folders = {tuple(p[:-1]) for p in deep}
  classes = {folder[depth - 2] for folder in folders}
  if len(deep) < len(images) or len(folders) <= 2 * len(classes):
    return
  deeper = next((p for p in deep if len(p) > depth + 1), None)
  if deeper:
    first = '[^/]+/' * (depth - 1)
    guess.unknown.append(
      'Which folder below that of a class is a patient, as in'
      f' {"/".join(deeper)}. If it is the first, add'
      f" --config.data.patient_pattern='^{first}([^/]+)/'; if the last,"
      " '([^/]+)/[^/]+$'."
    )
  else:
    guess.said.pop()
    guess.say(
      'patients',
      f'{len(folders):,}, by the folders that the images lie in, as there are'
      ' several in each class',
      patient_pattern='([^/]+)/[^/]+$',
    )
