"""The layouts of sources, and who reads each.

A new reader is a file of this folder, which also has `recognise`, by which
inspect knows such a set, and an entry here. Its name is a word of
config.data.layout too, and its settings fields of config.data: configs/base.py
declares both.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from dpjax.data import radiograph
from dpjax.data.sources import (
  boxes,
  coco,
  competition,
  facts,
  folder,
  guess,
  guess_csv,
  guess_folder,
  nih,
  plain_csv,
  rsna,
  tables,
  vindr,
)
from dpjax.errors import UserError, printable

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
  """A way in which sets come.

  Attributes:
    doc: what it is, in a line.
    reader: called as (source, faults, **settings); returns the records.
    recognise: called as (facts); returns what a folder is if it seems to be of
      this layout.
    settings: argument of `reader` -> the field of config.data that it is.
    label: the policy of labels.assign where data.label is 'auto'.
    find: called as (source, **settings); returns those of the settings that
      were 'auto', as found in the source. None: it has none such.
    unit: what to do where boxes are shares of the image in place of pixels.
  """

  doc: str
  reader: Callable[..., list[radiograph.Radiograph]]
  recognise: Callable[[facts.Facts], guess.Guess | None]
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
  label: str = 'count'
  find: Callable[..., dict[str, Any]] | None = None
  unit: str = 'config.data.layout=csv reads such by config.data.csv.frame'


_IGNORE = {'ignore': 'ignore'}
_PATIENT = {'patient_pattern': 'patient_pattern', **_IGNORE}

LAYOUTS: dict[str, Layout] = {
  'competition': Layout(
    "the paper's set: train.csv, train_bboxes.csv and a folder train",
    competition.read,
    competition.recognise,
    _IGNORE,
  ),
  'rsna': Layout(
    'RSNA Pneumonia Detection Challenge, stage 2',
    rsna.read,
    rsna.recognise,
    _IGNORE,
  ),
  'vindr': Layout(
    'VinDr-CXR, as PhysioNet or Kaggle ships it',
    vindr.read,
    vindr.recognise,
    {'readers': 'vindr_readers', 'sizes': 'original_sizes', **_IGNORE},
  ),
  'nih': Layout(
    'NIH ChestX-ray14', nih.read, nih.recognise, _IGNORE, label='any'
  ),
  'coco': Layout(
    'COCO annotations, one json or one a split',
    coco.read,
    coco.recognise,
    {'annotations': 'coco_annotations', 'frame': 'coco_frame', **_PATIENT},
    unit=coco.UNIT_HINT,
  ),
  'folder': Layout(
    'a folder for each class',
    folder.read,
    guess_folder.recognise,
    {'class_pattern': 'class_pattern', **_PATIENT},
    label='class',
  ),
  'csv': Layout(
    'a table with a row an image, and perhaps one with a row a lesion',
    plain_csv.read,
    guess_csv.recognise,
    {
      **{field.name: f'csv.{field.name}'
         for field in dataclasses.fields(plain_csv.Tables)},
      'uncertain': 'uncertain',
      'blank': 'blank',
      'classes': 'classes',
      'policy': 'label',
      **_PATIENT,
    },
    label='class',
    find=plain_csv.find,
    unit='give --config.data.csv.frame="(1,1)"',
  ),
}  # fmt: skip


def read(
  layout: str,
  source: pathlib.Path,
  faults: tables.Faults,
  fields: Mapping[str, Any],
) -> tuple[list[radiograph.Radiograph], dict[str, Any]]:
  """Reads a source; decodes no image.

  Args:
    layout: of LAYOUTS.
    source: the folder.
    faults: takes what is wrong with an image or a row.
    fields: field of config.data -> its value, as 'csv.image'.

  Returns:
    The records, and what the fields that were 'auto' stand for in this source:
    field -> value.

  Raises:
    UserError: one line: the source is not of that layout, or a bad setting.
  """
  kind = LAYOUTS[layout]
  settings = {name: fields[field] for name, field in kind.settings.items()}
  found = kind.find(source, **settings) if kind.find else {}
  settings |= found
  records = kind.reader(source, faults, **settings)
  records = _one_each(records, faults)
  records = boxes.check(records, faults, kind.unit)
  if settings.get('patient'):
    _remark_patients(records, faults)
  if 'patient_pattern' in kind.settings.values():
    _check_patients(
      records,
      fields['patient_pattern'],
      fields.get('unmatched_patients', 'fault'),
    )
  return records, {kind.settings[name]: v for name, v in found.items()}


def _one_each(records, faults):
  """The records whose file no other id names, and a fault for each other one.

  A name finds its file in any case and with any suffix: two spellings of an id
  would be two images, each perhaps with another label.
  """
  first: dict[str, str] = {}  # file -> an id of it
  doubles: dict[str, tuple[str, str]] = {}  # file -> two ids of it
  for record in records:
    id = first.setdefault(record.file, record.id)
    if record.file and id != record.id:
      doubles.setdefault(record.file, (id, record.id))
  for record in records:
    if record.file in doubles:
      one, two = doubles[record.file]
      faults.add(
        record.where or record.file,
        f'{one} and {two} are one file, {record.file}; write them alike',
        record.id,
      )
  return [record for record in records if record.file not in doubles]


def _remark_patients(records, faults):
  """Says how many images a column of patients has an empty cell for."""
  # The header of a DICOM file may name him.
  alone = sum(record.group is None and not record.header for record in records)
  if alone:
    faults.remarks.append(
      f'{alone:,} of {len(records):,} images have no patient in'
      ' config.data.csv.patient, and each counts as a patient of its own'
    )


def _check_patients(records, pattern, unmatched):
  """Refuses images that neither a pattern nor a table finds a patient for.

  Each would be a patient of its own, and the others of its patient perhaps on
  another side of the split.
  """
  alone = [record for record in records if record.group is None]
  if pattern and alone and unmatched == 'fault':
    example = printable(alone[0].id)
    raise UserError(
      f'config.data.patient_pattern: {pattern!r} finds nothing in'
      f' {len(alone):,} of {len(records):,} names, such as {example}; widen it'
      ' ((?i) before it takes any case), or make each of them a patient of its'
      ' own by --config.data.unmatched_patients=own'
    )


def layouts_reading(field: str) -> tuple[str, ...]:
  """The layouts for which alone a field of config.data says something.

  () for a field that is of all of them, or of none.

  Args:
    field: as in the settings of a layout, 'csv.image'.
  """
  # How a patient is found in a name says what to do where none is.
  field = {'unmatched_patients': 'patient_pattern'}.get(field, field)
  found = tuple(
    name for name, kind in LAYOUTS.items() if field in kind.settings.values()
  )
  return found if len(found) < len(LAYOUTS) else ()


def label_policy(layout: str) -> str:
  """The policy of labels.assign where data.label is 'auto'."""
  return LAYOUTS[layout].label if layout in LAYOUTS else 'count'
