"""Which tables of a folder are those of the layout csv, and their columns.

The names and the cells of the columns tell; a few public sets have names of
their own (_SETS).
"""

import collections
import dataclasses
import os
import re

from dpjax.data import radiograph, vocabulary
from dpjax.data.sources import facts as facts_lib
from dpjax.data.sources import guess as guess_lib
from dpjax.data.sources import tables

# Public sets by columns of their table of images.
_SETS = (
  ('CheXpert', ('Path', 'Frontal/Lateral', 'AP/PA')),
  ('MIMIC-CXR-JPG', ('dicom_id', 'study_id', 'subject_id')),
  ('PadChest', ('ImageID', 'PatientID', 'Labels')),
  ('SIIM-ACR Pneumothorax Segmentation', ('ImageId', 'EncodedPixels')),
  ('BRAX', ('DicomPath', 'PngPath', 'PatientID')),
  ('a part of NIH ChestX-ray14', ('Image Index', 'Finding Labels')),
)
# Labelled by the program of CheXpert, which leaves a cell empty where a report
# does not mention the finding.
_BLANK_IS_NEGATIVE = ('CheXpert', 'MIMIC-CXR-JPG', 'BRAX')
# Columns by their names, without signs and in lower case.
_PATIENT = ('patientid', 'patient', 'subjectid', 'subject', 'patientnumber',
            'patientno', 'pid')  # fmt: skip
_SPLIT = ('split', 'set', 'partition', 'subset', 'fold', 'dataset',
          'datasettype')  # fmt: skip
_LABEL = ('label', 'labels', 'class', 'classname', 'target', 'finding',
          'findings', 'findinglabels', 'diagnosis', 'category', 'pathology',
          'disease')  # fmt: skip
_BOX_NAME = ('finding', 'findings', 'findinglabel', 'class', 'classname',
             'label', 'name', 'category', 'lesion')  # fmt: skip
_VIEW = ('frontallateral', 'viewposition', 'view', 'projection')
_FRONTAL = ('frontal', 'pa', 'ap', 'aphorizontal', 'apsupine')
_PERSON = ('age', 'patientage', 'sex', 'gender', 'patientsex', 'patientgender')
_RLE = ('encodedpixels', 'rle', 'rlemask')
_SIDES = (('x', 'y', 'width', 'height'), ('x', 'y', 'w', 'h'),
          ('left', 'top', 'width', 'height'), ('bboxx', 'y', 'w', 'h'),
          ('xmin', 'ymin', 'width', 'height'))  # fmt: skip
_CORNERS = (
  ('xmin', 'ymin', 'xmax', 'ymax'),
  ('x1', 'y1', 'x2', 'y2'),
  ('x0', 'y0', 'x1', 'y1'),
  ('left', 'top', 'right', 'bottom'),
)
_TOLD = (*_PATIENT, *_SPLIT, *_LABEL, *_VIEW, *_PERSON, *_RLE)
_DISEASE = 'pneumonia'  # what dpjax is for


@dataclasses.dataclass(frozen=True)
class _Named:
  """A table and the column of it that names images."""

  table: facts_lib.Table
  image: str
  share: float  # of the rows whose image is there


def recognise(facts: facts_lib.Facts) -> guess_lib.Guess | None:
  """What the csv files of a folder say of its images; None: nothing."""
  named = [one for table in facts.tables if (one := _named(facts, table))]
  boxes = [one for one in named if _box_columns(one.table)]
  plain = [one for one in named if one not in boxes]
  if not plain:
    return None
  main = min(plain, key=lambda one: (-_worth(one), one.table.path))
  # The tables of two sides of a split have the same columns.
  parts = [one for one in plain if one.table.columns == main.table.columns]
  sets = [name for name, columns in _SETS if main.table.has(*columns)]
  what = f'{sets[0]}, by the columns of' if sets else 'images and their table,'
  guess = guess_lib.Guess('csv', f'{what} {main.table.path}', 2)
  columns = _add_tables(guess, facts, main, parts)
  _add_label(guess, main.table, main.image, columns, sets)
  _add_rows(guess, columns, sets)
  _add_split(guess, columns, parts)
  _add_patients(guess, facts, columns)
  _add_carried(guess, columns)
  _add_boxes(guess, boxes)
  _add_masks(guess, facts)
  if not facts.incomplete:
    _add_missing(guess, facts, parts)
  return guess


def _named(facts, table):
  """The column of a table that names images, if one does."""
  best = None
  names = set(facts.by_name)
  for column in table.columns:
    if table.columns.count(column) > 1:
      continue
    cells = [cell for cell in table.cells(column) if cell]
    some = facts_lib.spread(cells, 300)
    if len({*some}) < min(10, len(some) / 4):
      continue  # a few values again and again
    there = sum(bool(facts.find(cell)) for cell in some) / max(1, len(some))
    asked = {facts_lib.bare(cell) for cell in cells}
    share = max(there, len(asked & names) / max(1, len(names)))
    if share >= 0.3 and (best is None or share > best.share):
      best = _Named(table, column, share)
  return best


def _worth(named):
  """How much a table looks like that of the images: more is likelier."""
  table = named.table
  label = any(tables.plain(c) in (*_LABEL, *_RLE) for c in table.columns)
  label = label or bool(_finding_columns({c: table for c in table.columns}))
  usual = table.path == 'labels.csv'
  return (
    2 * usual
    + label
    + 0.5 * any(tables.plain(c) in _PATIENT for c in table.columns)
    + 0.25 * any(tables.plain(c) in _SPLIT for c in table.columns)
  )


def _joined(guess, facts, table):
  """Tables without images that add findings, views or patients by a key.

  No two with a column that may be read: MIMIC-CXR-JPG holds the labels of two
  programs, and of radiologists for its test side.
  """
  kept: list[facts_lib.Table] = []
  owner: dict[str, str] = {}
  found = _joinable(facts, table)
  for other in sorted(found, key=lambda t: 'chexpert' not in t.name.lower()):
    told = [
      c
      for c in other.columns
      if c not in table.columns
      and (tables.plain(c) in _TOLD or _finding_columns({c: other}))
    ]
    again = next((c for c in told if c in owner), None)
    if again is None:
      kept.append(other)
      owner.update(dict.fromkeys(told, other.path))
    else:
      guess.odd.append(
        f'{other.path} is left aside: {owner[again]} has the column {again!r}'
        ' too, and just one of them can be joined'
      )
  return [other for other in found if other in kept]


def _joinable(facts, table):
  """The tables that share a key with that of the images, and add to it."""
  if not any(tables.plain(c) in ('studyid', 'dicomid') for c in table.columns):
    return []
  return [
    other
    for other in facts.tables
    if other is not table
    and any(tables.plain(c) in ('studyid', 'dicomid') and c in table.columns
            for c in other.columns)
    and not set(other.columns) <= set(table.columns)
    and (_finding_columns({c: other for c in other.columns})
         or any(tables.plain(c) in (*_VIEW, *_SPLIT) for c in other.columns))
  ]  # fmt: skip


def _add_tables(guess, facts, main, parts):
  """Says which tables there are; returns {column: its table} of all."""
  table = main.table
  paths = ','.join(sorted(one.table.path for one in parts))
  guess.say(
    'table',
    f'{paths}; its column {main.image!r} names the images',
    **({'csv_labels': paths} if paths != 'labels.csv' else {}),
    **({'csv_image': main.image} if main.image != 'image' else {}),
  )
  joined = _joined(guess, facts, table) if len(parts) == 1 else []
  if joined:
    keys = [c for c in joined[0].columns if c in table.columns]
    guess.say(
      'joined',
      f'{", ".join(t.path for t in joined)}, by {", ".join(keys)}',
      csv_join=tuple(other.path for other in joined),
    )
  columns: dict[str, facts_lib.Table] = {}
  for one in (table, *joined):
    columns = dict.fromkeys(one.columns, one) | columns
  # Those of the table itself first.
  return dict.fromkeys(table.columns, table) | columns


def _add_label(guess, table, image, columns, sets):
  """Which column, or columns, say what an image shows."""
  rle = _one(columns, _RLE)
  findings = _finding_columns(columns)
  label = _one(columns, _LABEL)
  if rle:
    values = [c for c in columns[rle].cells(rle) if c and c != '-1']
    guess.say(
      'labels',
      f'run-length masks in {rle!r}; each connected part is a lesion with its'
      f' box, and -1 is none ({len(values):,} masks). The frame of the masks is'
      ' 1024 x 1024 in SIIM-ACR; if yours has another, change it',
      csv_label='',
      csv_rle=rle,
      csv_frame=(1024, 1024),
    )
  elif label:
    _add_classes(guess, label, columns[label].cells(label))
  elif findings:
    _add_findings(guess, findings, columns, sets)
  else:
    few = [
      column
      for column in table.columns
      if column != image
      and tables.plain(column) not in (*_PATIENT, *_SPLIT, *_VIEW, *_PERSON)
      and 2 <= len({c for c in table.cells(column) if c}) <= 12
    ]
    if few:
      some = ', '.join(sorted({c for c in table.cells(few[0]) if c})[:4])
      guess.say(
        'labels',
        f'perhaps {few[0]!r}, as it has few values ({some})',
        csv_label=few[0],
      )
      guess.unknown.append(
        'No column is called label or class. If it is none of'
        f' {", ".join(few)}, set --config.data.csv.label.'
      )
      return
    guess.certainty = 0.5
    guess.say('labels', 'none: no column has any; for stage I alone',
              csv_label='')  # fmt: skip


def _add_classes(guess, label, cells):
  """One column of names: one an image, or several."""
  lists = [_names(cell) for cell in cells if cell]
  counts = collections.Counter(
    name for names in lists for name in dict.fromkeys(names)
  )
  shown = ', '.join(f'{n}: {c:,}' for n, c in counts.most_common(6))
  several = sum(len(names) > 1 for names in lists)
  text = f'column {label!r}: {shown}'
  text += f' and {len(counts) - 6} more' * (len(counts) > 6)
  fields = {} if label == 'label' else {'csv_label': label}
  guess.say('labels', text, **fields)
  if len(lists) < len(cells):
    guess.odd.append(
      f'{len(cells) - len(lists):,} of {len(cells):,} cells of {label!r} are'
      ' empty: these images stay without a label'
    )
  if len(counts) == 1:
    guess.odd.append(f'{label!r} has one class only: {next(iter(counts))}')
  if set(counts) - {'0', '1'} and {'-1', '-1.0'} & set(counts):
    guess.odd.append(f'{label!r} has -1 beside more than 1 and 0')
  normal = [n for n in counts if vocabulary.is_normal(n)]
  disease = [n for n in counts if n.lower() == _DISEASE]
  if several and normal and disease:
    guess.say(
      'classes',
      f'{normal[0]} and {disease[0]}, as {several:,} images have several names;'
      ' images with neither stay without a label. For any finding against none'
      ' put --config.data.label=any in its place',
      classes=(normal[0], disease[0]),
    )
  elif several:
    guess.say(
      'classes',
      f'none against any finding, as {several:,} images have several names',
      label='any',
    )


def _add_findings(guess, findings, columns, sets):
  """A column for each finding: 1, 0, -1, or empty; those of one table."""
  wanted = [c for c in findings if c.lower() == _DISEASE]
  wanted += [c for c in findings if not vocabulary.is_normal(c)]
  column = (wanted or findings)[0]
  findings = [c for c in findings if columns[c] is columns[column]]
  values = {c: columns[c].cells(c) for c in findings}
  states = {
    column: collections.Counter(map(_state, cells))
    for column, cells in values.items()
  }
  rows = [tuple(map(_state, row)) for row in zip(*values.values(), strict=True)]
  if all(sorted({*row}) == ['0', '1'] and row.count('1') == 1 for row in rows):
    guess.say(
      'labels',
      f'the columns {", ".join(findings)}: each row has 1 in just one',
      csv_label=','.join(findings),
    )
    return
  count = states[column]
  of = (
    f'one of {len(findings)} columns'
    if findings[1:]
    else 'the one column of findings'
  )
  guess.say(
    'labels',
    f'{column}, {of}: 1 ({count["1"]:,} rows), 0 ({count["0"]:,}), -1, unsure'
    f' ({count["-1"]:,}), empty ({count[""]:,})',
    csv_label=f'("{column}",)',
  )
  if column.lower() != _DISEASE and not vocabulary.is_normal(column):
    guess.unknown.append(
      f'Which finding is the label. {column} is the first of'
      f' {", ".join(findings)}; several with commas between them are classes.'
    )
  if count['-1']:
    guess.say(
      'uncertain',
      '-1 leaves an image without a label; --config.data.uncertain=positive or'
      ' negative takes it for 1 or 0',
    )  # fmt: skip
  if count[''] and set(sets) & set(_BLANK_IS_NEGATIVE):
    guess.say(
      'empty',
      'an empty cell (the report does not mention it) counts as 0; with'
      ' --config.data.blank=ignore such images stay without a label',
      blank='negative',
    )
  elif count['']:
    guess.say(
      'empty',
      'an empty cell leaves an image without a label;'
      ' --config.data.blank=negative takes it for 0',
    )


def _add_rows(guess, columns, sets):
  """Frontal views only, where a column says which they are."""
  view = _one(columns, _VIEW)
  if not view:
    return
  values = {cell for cell in columns[view].cells(view) if cell}
  frontal = sorted(v for v in values if tables.plain(v) in _FRONTAL)
  other = sorted(values - set(frontal))
  if frontal and (other or 'CheXpert' in sets):
    guess.say(
      'rows',
      f'frontal views, by {view!r}'
      + (f'; passed over: {", ".join(other[:6])}' if other else ''),
      csv_where=f'{view}={"|".join(frontal)}',
    )


def _add_split(guess, columns, parts):
  column = _one(columns, _SPLIT)
  if column:
    counts = collections.Counter(columns[column].cells(column))
    shown = ', '.join(
      f'{n or "empty"}: {c:,}' for n, c in counts.most_common(6)
    )
    if all(vocabulary.split(name) for name in counts if name):
      guess.say(
        'split',
        f'the column {column!r} is kept: {shown}',
        **({} if column == 'split' else {'csv_split': column}),
      )
      return
    if tables.plain(column) == 'split':
      guess.odd.append(
        f'the column {column!r} names no sides of a split ({shown}), so it is'
        ' left aside'
      )
      guess.fields['csv.split'] = ''
  words = (re.split('[^a-z]+', one.table.path.lower()) for one in parts)
  sides = {next(filter(None, map(vocabulary.split, w)), '') for w in words}
  if len(parts) > 1 and len(sides) == len(parts) and '' not in sides:
    guess.say('split', 'by the names of the tables')
  else:
    guess.say('split', 'drawn: no column says')


def _add_patients(guess, facts, columns):
  column = _one(columns, _PATIENT)
  if column:
    cells = map(tables.patient, columns[column].cells(column))
    count = len({*map(radiograph.patient, cells)} - {''})
    guess.say(
      'patients',
      f'the column {column!r}, {count:,} of them',
      **({} if column == 'patient_id' else {'csv_patient': column}),
    )
    return
  guess_lib.add_patients(
    guess, facts, [p for p in facts.images if not facts_lib.is_masks(p)]
  )


def _add_carried(guess, columns):
  """What scores are told apart by."""
  several_views = '|' in guess.fields.get('csv.where', '')
  wanted = (*_PERSON, *(_VIEW if several_views else ()))
  carried = tuple(
    column for column in columns if tables.plain(column) in wanted
  )
  if carried:
    guess.say(
      'carried',
      f'{", ".join(carried)}, for scores by group',
      csv_metadata=carried,
    )


def _add_boxes(guess, found):
  """The table of boxes, their form and the frame that they count in."""
  if not found:
    return
  found.sort(key=lambda one: (one.table.path != 'boxes.csv', one.table.path))
  one = found[0]
  columns, form = _box_columns(one.table)
  rows = [r for r in zip(*map(one.table.cells, columns), strict=True) if all(r)]
  name = _one(dict.fromkeys(one.table.columns), _BOX_NAME)
  fields = {}
  if one.table.path != 'boxes.csv':
    fields['csv_boxes'] = one.table.path
  if one.image != 'image':
    fields['csv_box_image'] = one.image
  if columns != ('x', 'y', 'width', 'height'):
    fields['csv_box_columns'] = columns
  if form == 'corners':
    fields['csv_box_form'] = 'corners'
  if name and name != 'finding':
    fields['csv_box_name'] = name
  what = {
    'sides': 'left upper corner, width and height',
    'corners': 'two corners',
  }[form]
  guess.say(
    'boxes',
    f'{len(rows):,} in {one.table.path}: {", ".join(columns)} ({what})'
    + (f'; {name!r} says what each is' if name else ''),
    **fields,
  )
  try:
    numbers = [tuple(map(float, row)) for row in rows]
  except ValueError:
    guess.odd.append(f'{one.table.path} has cells of boxes that are no numbers')
    return
  if numbers and max(map(max, numbers)) <= 1:
    guess.say('frame', 'boxes lie in 0..1, so they are shares of the image',
              csv_frame=(1, 1))  # fmt: skip


def _add_masks(guess, facts):
  masks = sorted(facts_lib.mask_folders(facts.images))
  if masks:
    guess.say(
      'left out',
      f'folders {", ".join(masks)}: by their name masks, no radiographs',
      ignore=(*masks,),
    )


def _add_missing(guess, facts, parts):
  """Rows without an image, and images without a row."""
  named, without, other, total = set(), [], False, 0
  for one in parts:
    for cell in filter(None, one.table.cells(one.image)):
      total += 1
      found = facts.find(cell)
      named.update(found)
      if not found:
        without.append(cell)
        continue
      name = facts_lib.clean(cell).rpartition('/')[2]
      there = found[0].rpartition('/')[2]
      other |= name not in (there, os.path.splitext(there)[0])
  if other:
    guess.odd.append(
      'Files have another suffix or spelling than in the table; they are taken'
      ' by the rest of their name'
    )
  guess_lib.add_missing(guess, without, total, 'rows')
  extra = [path for path in facts.images if path not in named]
  guess_lib.add_unnamed(
    guess, [p for p in extra if not facts_lib.is_masks(p)], named
  )


def _finding_columns(columns):
  """Columns of 1, 0, -1 and nothing."""
  found = []
  for column, table in columns.items():
    cells = set(table.cells(column))
    if (
      {_state(cell) for cell in cells} <= {'1', '0', '-1', ''}
      and cells & {'1', '1.0', '0', '0.0', '-1', '-1.0', 'True', 'False'}
      and not re.search(r'id$|age$|index|^$|unnamed', column.lower())
    ):
      found.append(column)
  return found


def _state(cell):
  """'1', '0', '-1', '' or the cell: what it says of a finding."""
  text = cell.lower()
  if text in tables.MISSING:
    return ''
  return {'true': '1', 'false': '0'}.get(text, re.sub(r'\.0*$', '', text))


def _box_columns(table):
  """(four columns, their form), or None."""
  plain = {tables.plain(column): column for column in table.columns}
  for form, kinds in (('corners', _CORNERS), ('sides', _SIDES)):
    for names in kinds:
      if all(name in plain for name in names):
        return tuple(plain[name] for name in names), form
  return None


def _names(cell):
  """The names in a label cell: A|B, or a list as Python writes it."""
  if cell.startswith('[') and cell.endswith(']'):
    parts = cell[1:-1].split(',')
  else:
    parts = cell.split('|')
  return [name for name in (part.strip(' \'"') for part in parts) if name]


def _one(columns, names):
  """The first of the columns that has one of the names, in their order."""
  plain = {tables.plain(column): column for column in reversed(list(columns))}
  return next((plain[name] for name in names if name in plain), None)
