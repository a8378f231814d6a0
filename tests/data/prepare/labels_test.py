"""From what a source says of an image to its class, by hand and by law."""

import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from dpjax.data import radiograph, vocabulary
from dpjax.data.prepare import labels
from dpjax.errors import UserError


def record(findings=(), names=(), classes=(), boxes=None):
  """A record with as many boxes as names, or `boxes` without any."""
  count = len(names) if boxes is None else boxes
  return radiograph.Radiograph(
    id='x',
    pixels=lambda: None,
    findings=None if findings is None else tuple(findings),
    names=tuple(names),
    classes=tuple(classes),
    boxes=tuple((0.0, 0.0, 0.1 + i, 1.0) for i in range(count)),
    where='labels.csv, row 7',
  )


def assigned(records, policy, **options):
  """The labels, and the names of the classes."""
  read, names = labels.assign(records, policy, **options)
  return [r.label for r in read], names


def refused(records, policy, **options):
  with pytest.raises(UserError) as caught:
    labels.assign(records, policy, **options)
  message = str(caught.value)
  assert message and message.isprintable()
  return message


def test_count_is_the_number_of_boxes():
  records = [record(boxes=n) for n in (0, 2, 4, 1)]
  assert assigned(records, 'count') == ([0, 2, 4, 1], tuple('01234'))


def test_more_boxes_than_the_cap_count_as_the_cap():
  records = [record(boxes=n) for n in (0, 2, 4, 1)]
  assert assigned(records, 'count', cap=2) == ([0, 2, 2, 1], tuple('012'))
  assert assigned(records, 'count', cap=5) == ([0, 2, 4, 1], tuple('012345'))


def test_count_has_two_classes_even_where_no_image_has_a_box():
  assert assigned([record()], 'count') == ([0], ('0', '1'))


def test_a_finding_without_a_box_is_one_for_any_and_has_no_count():
  records = [record(), record(['mass']), record(['mass'], ['mass']),
             record(boxes=1)]  # fmt: skip
  assert assigned(records, 'any') == ([0, 1, 1, 1], ('none', 'any'))
  assert assigned(records, 'count')[0] == [0, None, 1, 1]


def test_an_image_of_which_nothing_is_said_stays_unlabelled():
  records = [record(None), record(None, ['mass']), record()]
  assert assigned(records, 'any')[0] == [None, None, 0]
  assert assigned(records, 'count')[0] == [None, None, 0]
  records = [record(None, classes=names) for names in ([], ['b'], ['a'])]
  assert assigned(records, 'class') == ([None, 1, 0], ('a', 'b'))


def test_boxes_alone_say_of_no_image_that_it_is_without_a_finding():
  records = [record(None, boxes=1), record(None)]
  for policy in ('count', 'any'):
    message = refused(records, policy)
    assert message.startswith(f'config.data.label: {policy} gives no image')
    assert 'in spite of its boxes' in message and 'csv.label' in message
  # Names of classes are not asked of boxes: the set is one for stage I.
  assert assigned(records, 'class')[0] == [None, None]


def test_a_set_of_which_nothing_is_said_is_a_set_without_labels():
  for policy in ('count', 'any', 'class'):
    assert assigned([record(None)] * 2, policy)[0] == [None, None]


def test_classes_are_in_order_the_normal_one_first_then_numbers_by_size():
  names = ['viral', '10', 'No_Finding', '2', 'bacterial', '1']
  found, order = assigned([record(classes=[n]) for n in names], 'class')
  assert order == ('No_Finding', '1', '2', '10', 'bacterial', 'viral')
  assert [order[label] for label in found] == names


def test_classes_may_be_put_in_order_and_others_become_unlabelled():
  records = [record(classes=[n]) for n in ('normal', 'viral', 'bacterial')]
  assert assigned(records, 'class', classes=('viral', 'normal')) == (
    [1, 0, None],
    ('viral', 'normal'),
  )


def test_an_image_of_several_classes_gets_no_label():
  records = [
    record(classes=names)
    for names in (['a'], ['a', 'b'], ['b', 'b'], ['a', 'c'], [])
  ]
  assert assigned(records, 'class')[0] == [0, None, 1, None, None]
  # Of the classes that are asked for, it is of one only.
  options = {'classes': ('a', 'b')}
  assert assigned(records, 'class', **options)[0] == [0, None, 1, 0, None]


def test_of_findings_that_do_not_count_the_boxes_go_too():
  records = [
    record(['mass', 'nodule'], ['mass', 'nodule', 'mass']),
    record(['nodule'], ['nodule']),
    record(['mass']),
    record(None, ['nodule']),
  ]
  read, _ = labels.assign(records, 'count', findings=('mass',))
  assert [r.label for r in read] == [2, 0, None, None]
  assert [r.names for r in read] == [('mass', 'mass'), (), (), ()]
  assert read[0].boxes == (records[0].boxes[0], records[0].boxes[2])
  assert [r.findings for r in read] == [('mass',), (), ('mass',), None]
  assert assigned(records, 'any', findings=('mass',))[0] == [1, 0, 1, None]


@pytest.mark.parametrize('other', ['mass', 'MASS', 'Mass '])
def test_another_spelling_of_a_finding_that_counts_is_not_dropped_in_silence(
  other,
):
  for records in (
    [record(['Mass'], ['Mass']), record([other], [other])],
    [record(['Mass'], ['Mass', other])],
  ):
    message = refused(records, 'count', findings=('Mass',))
    assert message.startswith(f'config.data.findings: {other!r} would be ')
    assert "'Mass' counts" in message
    options = {'findings': ('Mass', other)}
    read, _ = labels.assign(records, 'count', **options)
    assert [r.boxes for r in read] == [r.boxes for r in records]


def test_boxes_without_a_name_cannot_be_told_apart_by_finding():
  for bad in (record(['mass'], boxes=1), record(['mass'], ['mass', ''])):
    message = refused([record(['mass']), bad], 'count', findings=('mass',))
    assert message.startswith('config.data.findings: labels.csv, row 7 ')


@pytest.mark.parametrize(
  'options, near',
  [
    ({'findings': ('Mass',)}, "did you mean 'mass'?"),
    ({'findings': ('qqqq',)}, "did you mean 'mass', 'nodule'?"),
    ({'findings': ('',)}, 'did you mean'),
    ({'findings': ('mass', 'mass')}, 'twice'),
    ({'classes': ('Sick',)}, "did you mean 'sick'?"),
    ({'classes': ('qqqq',)}, "did you mean 'sick', 'well'?"),
    ({'classes': ('sick', 'sick')}, 'twice'),
  ],
)
def test_a_name_that_no_image_has_is_refused_with_one_that_it_has(
  options, near
):
  records = [
    record(['mass'], ['nodule'], ['sick']),
    record(classes=['well']),
  ]
  message = refused(records, 'class', **options)
  [field] = options
  assert message.startswith(f'config.data.{field}: ') and near in message


def test_a_name_is_refused_where_the_source_has_none():
  for field in ('classes', 'findings'):
    message = refused([record()], 'class', **{field: ('mass',)})
    assert 'gives no names' in message


def test_two_spellings_of_a_class_are_refused_until_one_is_chosen():
  records = [record(classes=[n]) for n in ('Viral', 'normal', 'viral')]
  message = refused(records, 'class')
  assert message.startswith('config.data.classes: ')
  assert "'Viral'" in message and "'viral'" in message
  options = {'classes': ('normal', 'viral')}
  assert assigned(records, 'class', **options)[0] == [None, 0, 1]


def test_a_name_is_one_with_its_accents_composed_or_not():
  one, other = (
    unicodedata.normalize(form, 'Opacité') for form in ('NFC', 'NFD')
  )
  assert one != other
  records = [
    record(classes=['normal']),
    record([one], [one], [one]),
    record([other], [other, one], [other]),
    record(None),
  ]
  assert assigned(records, 'class') == ([0, 1, 1, None], ('normal', one))
  for name in (one, other):
    options = {'classes': (name, 'normal')}
    assert assigned(records, 'class', **options)[1] == (one, 'normal')
    read, _ = labels.assign(records, 'count', findings=(name,))
    assert [r.label for r in read] == [0, 1, 2, None]
    assert read[2].names == (one, one)


@pytest.mark.parametrize('other', ['No Finding', 'healthy', '0'])
def test_two_names_for_normal_are_refused_until_one_is_chosen(other):
  records = [record(classes=[n]) for n in ('normal', other, 'viral')]
  for options in ({}, {'classes': (other, 'normal')}):
    message = refused(records, 'class', **options)
    assert message.startswith('config.data.classes: ')
    assert repr(other) in message and "'normal'" in message
    assert 'both say that there is no finding' in message
  options = {'classes': ('normal', 'viral')}
  assert assigned(records, 'class', **options)[0] == [0, None, 1]
  # What counts findings takes both for none.
  read = [record(classes=[n]) for n in ('normal', other)]
  assert assigned([*read, record(['viral'])], 'any')[0] == [0, 0, 1]


def test_a_policy_that_labels_nothing_is_refused():
  assert 'class gives no image' in refused([record(), record()], 'class')
  unsaid = [record(None, classes=['a'])]
  for policy in ('count', 'any'):
    assert f'config.data.label: {policy} ' in refused(unsaid, policy)


@pytest.mark.parametrize(
  'name, normal',
  [
    ('normal', True),
    ('NORMAL', True),
    ('No Finding', True),
    ('no_finding', True),
    ('Healthy', True),
    ('abnormal', False),
    ('not normal', False),
    ('normal_variant', False),
    ('', False),
  ],
)
def test_what_a_normal_image_is_called(name, normal):
  assert vocabulary.is_normal(name) == normal


def test_all_but_the_label_stays_as_it_was():
  records = [record(['mass'], ['mass'], ['sick']), record(classes=['well'])]
  for policy in ('count', 'any', 'class'):
    read, _ = labels.assign(records, policy)
    for before, after in zip(records, read, strict=True):
      assert {**vars(after), 'label': None} == vars(before)


NAMES = st.lists(
  st.sampled_from(['normal', 'mass', 'Nodule', '0', '1', '10', 'No Finding']),
  max_size=3,
)
RECORDS = st.lists(
  st.builds(record, st.none() | NAMES, NAMES, NAMES), max_size=8
)


@hypothesis.given(
  RECORDS,
  st.sampled_from(('count', 'any', 'class')),
  st.integers(0, 3),
  NAMES.map(tuple),
  NAMES.map(tuple),
)
def test_every_label_is_one_of_the_classes(
  records, policy, cap, findings, classes
):
  try:
    read, names = labels.assign(
      records, policy, cap=cap, findings=findings, classes=classes
    )
  except ValueError as error:
    assert str(error).startswith('config.data.')
    return
  assert len(read) == len(records) and len(set(names)) == len(names)
  for before, after in zip(records, read, strict=True):
    assert after.label is None or 0 <= after.label < len(names)
    if policy == 'class':
      named = set(before.classes) & set(names)
      wanted = names.index(*named) if len(named) == 1 else None
      assert after.label == wanted
    else:
      uncounted = policy == 'count' and after.findings and not after.boxes
      unsaid = before.findings is None
      assert (after.label is None) == (unsaid or bool(uncounted))
    if findings:
      assert set(after.findings or ()) | set(after.names) <= set(findings)


def test_findings_without_a_box_are_not_counted_as_none():
  records = [record(), record(boxes=2), record(['mass']), record(None)]
  assert assigned(records, 'count')[0] == [0, 2, None, None]
  assert assigned(records, 'any')[0] == [0, 1, 1, None]


def test_a_source_without_boxes_is_not_counted():
  message = refused([record(), record(['mass'])], 'count')
  assert message.startswith('config.data.label: count needs boxes')
  # One without a finding has nothing to count.
  assert assigned([record(), record()], 'count')[0] == [0, 0]


def test_one_class_alone_is_refused_unless_it_is_asked_for():
  records = [record(classes=['images'])] * 3
  assert "'images' is the only one" in refused(records, 'class')
  options = {'classes': ('images',)}
  assert assigned(records, 'class', **options)[0] == [0, 0, 0]


@pytest.mark.parametrize(
  ('names', 'any_lesion', 'ordinal'),
  [
    (('0', '1', '2'), True, True),
    (('none', 'any'), True, False),
    (['Normal', 'Pneumonia'], True, False),
    (('bacterial', 'viral'), False, False),
    (('1', '2'), False, False),
  ],
)
def test_class_names_say_what_scores_may_take_them_for(
  names, any_lesion, ordinal
):
  found = vocabulary.meaning(names)
  assert found == {'any_lesion': any_lesion, 'ordinal': ordinal}
