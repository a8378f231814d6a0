"""From what a source says of an image to its class.

Three policies:

    count  the number of lesion boxes, capped: the paper's label, most likely;
           none for an image whose findings are not boxed
    any    0 without a finding, 1 with one or more, boxed or not
    class  the name that the source gives the image

Names that differ only in whether their accents are composed are one: macOS
takes them apart in the names of folders.
"""

import collections
import dataclasses
import difflib
import math
import unicodedata
from collections.abc import Sequence

from dpjax.data import radiograph, vocabulary
from dpjax.errors import UserError


def assign(
  records: Sequence[radiograph.Radiograph],
  policy: str,
  *,
  cap: int = 0,
  findings: Sequence[str] = (),
  classes: Sequence[str] = (),
) -> tuple[list[radiograph.Radiograph], tuple[str, ...]]:
  """Labels every record; one that the policy has no label for gets None.

  Args:
    records: as read.
    policy: 'count', 'any' or 'class'.
    cap: 'count': more boxes count as so many; 0: no cap.
    findings: names of the findings and boxes that count; others are dropped,
      their boxes too. Empty: all.
    classes: 'class': the names, in the order of their labels; an image of none
      of them, or of several, gets no label. Empty: all, the normal one first,
      then numbers by size, then the others in alphabetical order.

  Returns:
    The records with their label, and the name of each class.

  Raises:
    UserError: a name that no record has, or that stands twice; names that
      differ in nothing but case, blanks and hyphens, also from one of
      `findings`; two classes that say that there is no finding; boxes without
      a name where names count; no record with a label, or one class only;
      findings and no box to count; boxes, and no word on which images are
      without.
  """
  findings, classes = _composed(findings), _composed(classes)
  records = [_with_composed(record) for record in records]
  if findings:
    known = {n for r in records for n in (*(r.findings or ()), *r.names)}
    _check(findings, known, 'config.data.findings')
    _check_left_out(findings, known)
    records = [_only(record, findings) for record in records]
  if policy != 'class':
    _check_said(records, policy)
  labels, names = {
    'class': lambda: _by_class(records, classes),
    'any': lambda: _by_any(records),
    'count': lambda: _by_count(records, cap),
  }[policy]()
  if all(label is None for label in labels) and any(
    r.findings is not None or r.classes for r in records
  ):
    raise UserError(
      f'config.data.label: {policy} gives no image of this source a label'
    )
  return [
    dataclasses.replace(record, label=label)
    for record, label in zip(records, labels, strict=True)
  ], names


def _composed(names):
  return tuple(unicodedata.normalize('NFC', name) for name in names)


def _with_composed(record):
  """The record, the accents of its names composed."""
  names = (*record.classes, *(record.findings or ()), *record.names)
  if all(map(str.isascii, names)):
    return record
  return dataclasses.replace(
    record,
    classes=_composed(record.classes),
    findings=record.findings and _composed(record.findings),
    names=_composed(record.names),
  )


def _by_class(records, classes):
  """The place of an image's one class among the names."""
  known = {name for r in records for name in r.classes}
  _check(classes, known, 'config.data.classes')
  if not classes:
    _check_case(known)
  order = classes or sorted(known, key=_rank)
  _check_normal(order)
  if len(known) == 1 and not classes:
    raise UserError(
      f'config.data.label: class {order[0]!r} is the only one of this source;'
      ' is config.data.layout right?'
    )
  place = {name: i for i, name in enumerate(order)}
  labels = []
  for record in records:
    named = [place[n] for n in set(record.classes) if n in place]
    labels.append(named[0] if len(named) == 1 else None)
  return labels, tuple(order)


def _check_said(records, policy):
  """Refuses boxes of a source that says of no image whether it has a finding.

  An image without a box may be healthy, or unlabelled.
  """
  if any(r.boxes for r in records) and all(r.findings is None for r in records):
    raise UserError(
      f'config.data.label: {policy} gives no image of this source a label, in'
      ' spite of its boxes: nothing says which of the images without one have'
      ' no finding; config.data.csv.label must name a column that does'
    )


def _by_any(records):
  """Whether there is a finding."""
  labels = [
    None if r.findings is None else int(bool(r.findings or r.boxes))
    for r in records
  ]
  return labels, ('none', 'any')


def _by_count(records, cap):
  """The number of boxes, at most `cap` unless that is 0."""
  if not any(r.boxes for r in records) and any(r.findings for r in records):
    raise UserError(
      'config.data.label: count needs boxes, and no image of this source has'
      ' one; any or class may do'
    )
  labels = [
    None
    if r.findings is None or (r.findings and not r.boxes)
    else min(len(r.boxes), cap or len(r.boxes))
    for r in records
  ]
  highest = max((n for n in labels if n is not None), default=0)
  return labels, tuple(map(str, range(max(1, cap, highest) + 1)))


def _rank(name):
  normal = vocabulary.is_normal(name)
  words = -1 if normal else math.inf
  return not normal, float(name) if name.isdecimal() else words, name


def _only(record, findings):
  """The record with the findings that count, and their boxes."""
  if len(record.names) < len(record.boxes) or '' in record.names:
    raise UserError(
      f'config.data.findings: {record.where or record.id} has boxes without a'
      ' name; whether they count is unknown'
    )
  kept = [i for i, name in enumerate(record.names) if name in findings]
  return dataclasses.replace(
    record,
    findings=record.findings
    and tuple(name for name in record.findings if name in findings),
    boxes=tuple(record.boxes[i] for i in kept),
    names=tuple(record.names[i] for i in kept),
  )


def _check(wanted, known, field):
  known = known - {''}  # a box without a name
  for name, count in collections.Counter(wanted).items():
    if count > 1:
      raise UserError(f'{field}: {name!r} stands there twice')
    if name not in known:
      near = difflib.get_close_matches(name, sorted(known), n=1)
      names = ', '.join(map(repr, near or sorted(known)[:8]))
      hint = f'did you mean {names}?' if known else 'the source gives no names'
      raise UserError(f'{field}: no image has {name!r}; {hint}')


def _check_left_out(findings, known):
  """Refuses to drop what is another spelling of a finding that counts."""
  counted = {vocabulary.folded(name): name for name in findings}
  for name in sorted(known - {*findings}):
    other = counted.get(vocabulary.folded(name))
    if other is not None:
      raise UserError(
        f'config.data.findings: {name!r} would be dropped, and {other!r}'
        ' counts; write them alike in the source, or name both'
      )


def _check_normal(names):
  """Refuses two classes without a finding: one would count as a lesion."""
  normal = [name for name in names if vocabulary.is_normal(name)]
  if len(normal) > 1:
    raise UserError(
      f'config.data.classes: {normal[0]!r} and {normal[1]!r} both say that'
      ' there is no finding, and would be two classes; write them alike in the'
      ' source, or name the classes that you want, with one of the two'
    )


def _check_case(known):
  """Refuses one class in two spellings."""
  seen: dict[str, str] = {}
  for name in sorted(known):
    other = seen.setdefault(vocabulary.folded(name), name)
    if other != name:
      raise UserError(
        f'config.data.classes: {other!r} and {name!r} would be two classes;'
        ' write them alike in the source, or name the classes that you want'
      )
