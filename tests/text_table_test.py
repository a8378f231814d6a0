"""Columns that stand under each other."""

import pytest

from dpjax import text_table

ROWS = [('name', 'n', 'share'), ('a', '1', '.5'), ('longer', '1,000', '')]


def test_a_column_is_as_wide_as_its_widest_cell():
  assert text_table.lines(ROWS, '<>>') == [
    'name        n  share',
    'a           1     .5',
    'longer  1,000',
  ]


def test_the_last_side_and_width_go_for_all_further_columns():
  assert text_table.pad(ROWS, '<>', (1, 6)) == [
    ['name  ', '     n', ' share'],
    ['a     ', '     1', '    .5'],
    ['longer', ' 1,000', '      '],
  ]
  assert text_table.pad(ROWS, '<', (8,))[1] == ['a       ', '1       ',
                                                '.5      ']  # fmt: skip


def test_no_rows_are_no_lines():
  assert text_table.lines([], '<') == []


def test_rows_of_unequal_length_are_refused():
  with pytest.raises(ValueError, match='zip'):
    text_table.lines([('a', 'b'), ('c',)], '<')
