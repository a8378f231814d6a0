"""The kinds of fields, their marks, and the configs that are made of them."""

import math
import os

import ml_collections
import pytest

from dpjax.config import fields
from dpjax.errors import UserError


@pytest.mark.parametrize(
  ('field', 'good', 'bad'),
  [
    (fields.flag(True), [True, False], [1, 0, 'True', None]),
    (
      fields.number(0.5, 0, 1),
      [0.0, 1.0, 0.25],
      [-1e-9, 1.1, math.nan, '0.5', True, None, (0.5,)],
    ),
    (fields.number(2, 1), [1.0, 1e9], [0.99, math.inf, -math.inf, math.nan]),
    (fields.count(1, 1, 3), [1, 2, 3], [0, 4, 1.0, True, '1', None]),
    (fields.count(1, 0), [0, 10**9], [-1, 0.5]),
    (fields.word('a', 'b'), ['a', 'b'], ['', 'c', 'A', None, 1]),
    (fields.text('a'), ['', 'any'], [None, 1]),
    (
      fields.interval((0, 1), 0, 2),
      [(0, 0), (0.5, 2)],
      [(0,), (0, 1, 2), (1, 0), (-1, 1), (0, 2.1), ('a', 1), (True, 1),
       (math.nan, 1), 'ab', 1],
    ),
    (
      fields.numbers(above=0, lengths=(0, 2), wanted='x'),
      [(), (1, 0.5)],
      [(1,), (1, 2, 3), (0, 1), ('a', 1), (math.inf, 1)],
    ),
    (
      fields.numbers(above=0, below=1, wanted='x'),
      [(), (0.5,), (0.9, 0.1, 0.2)],
      [(0,), (1,), (True,)],
    ),
    (
      fields.counts(1, wanted='x', most=2),
      [(1,), (1, 9)],
      [(), (1, 2, 3), (0,), (1.0,), (True,)],
    ),
    (
      fields.counts(0, low=0, different=True, wanted='x'),
      [(0,), (2, 1)],
      [(), (1, 1), (-1,), (2**31,)],
    ),
    (fields.counts(empty=True, wanted='x'), [(), (3, 3)], [(0,)]),
    (fields.texts(), [(), ('a',)], [(1,), 'a', (None,)]),
    (fields.texts('a', 'b', length=2), [('c', '')], [(), ('a',), ('a',) * 3]),
    (fields.some('a', 'b'), [('a',), ('b', 'a')], [(), ('c',), ((),), 'a']),
    (fields.some('a', 'b', empty=True), [(), ('a',)], [('c',)]),
    (
      fields.rows(('a', ())),
      [(('b', ('x=1',)),)],
      [(), (('a',),), (('a', ()), ('a', ())), (('a', (1,)),), (('a', 'x=1'),),
       ('ab',)],
    ),
  ],
)  # fmt: skip
def test_a_field_takes_its_own_values_and_no_others(field, good, bad):
  for value in good:
    assert field.checked('a.b', value) == value
  for value in bad:
    with pytest.raises(UserError, match=r'^config\.a\.b is ') as error:
      field.checked('a.b', value)
    assert '\n' not in str(error.value)


def test_a_value_comes_back_in_the_type_of_its_field():
  assert type(fields.number(0.5, 0).checked('a', 1)) is float
  assert fields.counts(1, wanted='x').checked('a', [1, 2]) == (1, 2)
  assert fields.rows().checked('a', [['b', ['x=1']]]) == (('b', ('x=1',)),)


def test_the_home_of_a_user_may_stand_in_a_path_and_in_no_other_text():
  home = os.path.expanduser('~')
  assert fields.path().checked('a', '~/set') == f'{home}/set'
  assert fields.path().checked('a', 'x/~') == 'x/~'
  assert fields.text('').checked('a', '~/set') == '~/set'


@pytest.mark.parametrize('nothing', [None, '', 'None'])
def test_a_path_may_be_nothing_in_the_words_of_a_flag_too(nothing):
  assert fields.path('auto').checked('a', nothing) is None


def test_a_word_that_is_nearly_right_is_recognised():
  with pytest.raises(UserError, match=r'one of focal, ce \(did you mean focal'):
    fields.word('focal', 'ce').checked('loss', 'foca')


def declaration():
  c = fields.Section()
  c.size = fields.count(3, 0)
  c.data = fields.Section(resume=True)
  c.data.path = fields.path()
  c.data.here = fields.flag(True, machine=True)
  c.data.csv = fields.Section(source=True)
  c.data.csv.name = fields.text('x')
  return c


def test_a_mark_of_a_section_is_one_of_all_in_it():
  flat = dict(declaration().flatten())
  assert {name for name, field in flat.items() if field.resume} == {
    'data.path', 'data.here', 'data.csv.name'
  }  # fmt: skip
  assert {n for n, field in flat.items() if field.machine} == {'data.here'}
  assert {n for n, field in flat.items() if field.source} == {'data.csv.name'}


def test_a_section_with_other_defaults_keeps_the_rest_of_its_fields():
  data = declaration().data.but(here=False)
  flat = dict(data.flatten())
  assert flat['here'].default is False and flat['here'].machine
  assert flat['csv.name'].default == 'x'
  with pytest.raises(AttributeError):
    data.but(there=True)


def test_what_has_no_declaration_is_no_field():
  c = declaration()
  c.data.rate = 3
  with pytest.raises(TypeError):
    dict(c.flatten())


def test_a_plain_config_is_one_of_plain_values():
  config = fields.plain(declaration())
  assert config.to_dict() == {
    'size': 3,
    'data': {'path': None, 'here': True, 'csv': {'name': 'x'}},
  }
  config.size = 5
  assert fields.plain(declaration()).size == 3


def test_what_was_done_before_is_a_fields_own_or_that_of_its_section():
  c = fields.Section(before=fields.DEFAULT)
  c.inner = fields.Section()
  c.inner.rate = fields.number(2, 0)
  c.epochs = fields.number(4, 0, before=0.0)
  found = {name: field.before for name, field in c.flatten()}
  assert found == {'inner.rate': 2.0, 'epochs': 0.0}


def test_nothing_keeps_the_type_of_its_field():
  config = fields.typed({'data.source': None, 'init.backbone': None})
  for change in ({'data.source': 3}, {'init.backbone': ('a',)}):
    with pytest.raises(TypeError):
      config.update_from_flattened_dict(change)
  config.update_from_flattened_dict({'data.source': 'a', 'init.backbone': 'b'})
  assert (config.data.source, config.init.backbone) == ('a', 'b')
  config.data.source = None
  assert config.data.get_type('source') is str


def test_a_package_without_its_configs_says_so(monkeypatch, tmp_path):
  monkeypatch.setattr(fields, 'BASE', tmp_path / 'base.py')
  with pytest.raises(UserError, match='declares the fields'):
    fields.table.__wrapped__()


def test_check_field_tells_a_section_from_a_field():
  with pytest.raises(UserError, match='section'):
    fields.check_field(fields.table(), 'mgacr')
  with pytest.raises(UserError, match=r'did you mean mgacr\.eps'):
    fields.check_field(fields.table(), 'mgacr.epps')
  fields.check_field(fields.table(), 'mgacr.eps')


def test_a_config_dict_flattens_to_dotted_names():
  config = ml_collections.ConfigDict({'a': {'b': 1}, 'c': (2,)})
  assert fields.flatten(config) == {'a.b': 1, 'c': (2,)}
