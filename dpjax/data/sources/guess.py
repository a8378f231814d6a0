"""What `inspect` takes a folder for, and why; and the patients in names."""

import collections
import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

from dpjax.data.decode import formats, image_file
from dpjax.data.sources import facts as facts_lib
from dpjax.errors import UserError


@dataclasses.dataclass
class Guess:
  """What a folder seems to be.

  Attributes:
    layout: of the registry.
    what: the set or the layout, and how it was recognised.
    certainty: 3: a public set by the names of its files; 2: a table or json
      that names the images; 1: folders that look like classes; below: without
      labels.
    said: (subject, what it seems to be, and why), in order.
    fields: field of config.data -> value that this takes, e.g. 'csv.image'.
    options: other flags of prepare.
    odd: what looks suspicious, a sentence each.
    unknown: what cannot be told, a sentence each.
    refused: prepare stops at what is odd here, whatever the command.
  """

  layout: str
  what: str
  certainty: float
  said: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  options: list[str] = dataclasses.field(default_factory=list)
  odd: list[str] = dataclasses.field(default_factory=list)
  unknown: list[str] = dataclasses.field(default_factory=list)
  refused: bool = False

  def say(self, subject: str, text: str, **fields: Any) -> None:
    """Adds a guess, and the fields that it takes ('_' for the dot)."""
    self.said.append((subject, text))
    for name, value in fields.items():
      self.fields[name.replace('csv_', 'csv.', 1)] = value


# How sets name their patients: an expression, as of data.patient_pattern, and
# whose names these are. The first that fits counts.
_PATIENTS = (
  (r'person\d+_[a-z]+|(?:NORMAL2-)?IM-\d+',
   'person7_virus_12 and IM-0115-0001, as Kermany et al. name children;'
   ' person7_virus and person7_bacteria count as two, as nobody knows'
   ' whether they are one'),
  (r'p\d{2}/(p\d+)/s\d+/', 'folders p10/p10000032, as in MIMIC-CXR'),
  (r'patient\d+', 'patient and a number'),
  (r'[Pp]atient[-_ ]?(\d+)', 'the number behind the word patient'),
  (r'[Ss]ubject[-_ ]?(\d+)', 'the number behind the word subject'),
  (r'(?:^|/)sub-([A-Za-z0-9]+)', 'sub-NAME, as BIDS names subjects'),
  (r'^(\d{8})_\d{3}\b', '00000013_005, as the NIH names patient and image'),
)  # fmt: skip


def add_patients(
  guess: Guess, facts: facts_lib.Facts, images: Sequence[str]
) -> None:
  """Says whom the images are of, if headers or names tell.

  Args:
    guess: to add to.
    facts: of the folder.
    images: paths from it.
  """
  if images and all(_may_be_dicom(path) for path in images):
    some = facts_lib.spread(images, 12)
    named = [name for path in some if (name := _in_header(facts, path))]
    if named:
      guess.say(
        'patients',
        f'the DICOM headers name them ({len(named)} of {len(some)} that were'
        ' read have a PatientID)',
      )
      return
  fits = []
  for pattern, whose in _PATIENTS:
    found = _patients(pattern, images)
    known = len(images) - found.count(None)
    if 2 * known >= len(images) and len(set(found) - {None}) > 1:
      fits.append((known, pattern, whose, found))
  if fits:
    _say_pattern(guess, images, *max(fits, key=lambda fit: fit[0]))
    return
  guess.say(
    'patients',
    'not named, so two images of one patient may come to both sides of a split',
  )
  _add_beginnings(guess, images)


def _say_pattern(guess, images, known, pattern, whose, found):
  where = 'names' if re.search(pattern, _name(images[0])) else 'paths'
  count = len(set(found) - {None})
  guess.say(
    'patients',
    f'{count:,}, by the {where} of the images: {whose}',
    patient_pattern=pattern,
  )
  if known < len(images):
    guess.odd.append(
      f'{len(images) - known:,} of {len(images):,} names have no patient by'
      f' that pattern, such as {images[found.index(None)]}; each counts as a'
      ' patient of its own, so look whether that is right'
    )
    guess.fields['unmatched_patients'] = 'own'


def _add_beginnings(guess, images):
  """Says that several images begin alike, as if that were the patient."""
  matches = (re.match(r'(.*?\d.*?)[_-]', _name(path)) for path in images)
  begins = collections.Counter(match[1] for match in matches if match)
  several = [name for name, count in begins.items() if 1 < count < 30]
  if len(begins) > 4 and sum(begins.values()) > 0.9 * len(images) and (
    2 * len(several) > len(begins)
  ):  # fmt: skip
    guess.odd.append(
      f'{len(begins):,} beginnings of names are shared by several images, such'
      f' as {several[0]}; if that is the patient, add'
      " --config.data.patient_pattern='^([^_-]+)'"
    )


def _patients(pattern, images):
  """Whom a pattern finds in each path, as folder.patients does."""

  def search(text):
    match = re.search(pattern, text)
    return match and next(filter(None, match.groups() or (match[0],)), None)

  found = [] if '/' in pattern else [search(_name(path)) for path in images]
  return found if any(found) else [search(path) for path in images]


def _in_header(facts, path):
  try:
    return image_file.header(str(facts.root / path)).get('patient')
  except UserError:
    return None


def _name(path):
  return path.rpartition('/')[2]


def _may_be_dicom(path):
  suffix = os.path.splitext(path)[1].lower()
  return formats.SUFFIXES.get(suffix, 'DICOM') == 'DICOM'


def add_missing(
  guess: Guess, without: Sequence[str], total: int, what: str
) -> None:
  """Says what to do about rows of a table that have no image.

  Args:
    guess: to add to.
    without: what the rows call these images.
    total: of all rows.
    what: the rows are, in the plural.
  """
  if not without:
    return
  text = f'{len(without):,} of {total:,} {what} have no image'
  if 2 * len(without) > total:
    guess.odd.append(
      f'{text}: a part of the set only? --on_error=skip leaves them out'
    )
    guess.options.append('--on_error=skip')
  else:
    guess.odd.append(
      f'{text}, such as {without[0]}; prepare stops there unless you add'
      ' --on_error=skip'
    )


def add_unnamed(guess: Guess, extra: Sequence[str], named: set[str]) -> None:
  """Says what to do about images that no table names.

  Args:
    guess: to add to.
    extra: these images.
    named: the others.
  """
  if not extra:
    return
  used = {folder for path in named for folder in _folders(path)}
  whole = sorted(
    {next((f for f in _folders(path) if f not in used), '') for path in extra}
  )
  text = f'{len(extra):,} images are in no row, such as {extra[0]}'
  if '' not in whole and len(whole) <= 8:
    guess.odd.append(
      f'{text}; all lie in {", ".join(whole)}, where no image is in a row, so'
      ' it is passed over'
    )
    # A path without a / would fit any folder of that name.
    guess.fields['ignore'] = (*guess.fields.get('ignore', ()), *whole)
  else:
    guess.odd.append(f'{text}; prepare stops there unless you add'
                     ' --on_error=skip')  # fmt: skip


def _folders(path):
  """The folders on the way to a path, from the outermost."""
  parts = path.split('/')[:-1]
  return ['/'.join(parts[: i + 1]) for i in range(len(parts))]
