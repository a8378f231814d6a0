"""A line that is told is one line, and not a page."""

import pytest

from dpjax import errors


def test_a_short_line_stays():
  assert errors.one_line('config.seed is -1; it must be 0 or more') == (
    'config.seed is -1; it must be 0 or more'
  )


@pytest.mark.parametrize('length', [500, 501, 100_000])
def test_a_long_line_keeps_what_is_wrong_and_what_would_be_right(length):
  head, tail = 'config.data.source is ', '; it must be a folder'
  line = errors.one_line(head + 'x' * (length - len(head + tail)) + tail)
  assert len(line) == 500
  assert line.startswith(head) and line.endswith(tail)
  assert ('[...]' in line) == (length > 500)


def test_a_reason_stands_without_the_name_however_that_is_printed():
  for name in ('a.png', 'a\nb.png', 'a\udce9.png'):
    fault = errors.SourceFault(errors.printable(f'{name}: no image'))
    assert errors.reason_of(fault, name) == 'no image'
  assert errors.reason_of(errors.UserError('b: no'), 'a') == 'b: no'


def test_a_line_end_in_a_name_starts_no_line():
  assert errors.one_line("no file 'a\nb\r\u2028'") == (
    r"no file 'a\nb\r\u2028'"
  )
