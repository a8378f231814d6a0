"""Cells that a spreadsheet would run are made harmless, and come back."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpjax import csv_cells

FORMULAS = ['=1+1', '+cmd', '-x', '@SUM(A1)', '\tx', '\rx', '=', "'=x", "''-y"]
HARMLESS = ['', 'a=b', "'a", "''", "'", 'x-1', '-1', '+2.5', '-1e-05', '-.5',
            '-inf', '0', ' =x']  # fmt: skip


def written(rows, **kwargs):
  stream = io.StringIO(newline='')
  csv_cells.write(stream, rows, **kwargs)
  return stream.getvalue()


@pytest.mark.parametrize('text', FORMULAS)
def test_a_formula_is_written_as_a_text(text):
  assert csv_cells.harmless(text) == f"'{text}"


@pytest.mark.parametrize('cell', [*HARMLESS, -1, -0.5, None])
def test_numbers_and_other_texts_stay(cell):
  assert csv_cells.harmless(cell) == cell
  assert csv_cells.original(str(cell)) == str(cell)


@given(st.text('\'=+-@\t\r\n,;"a1. '))
def test_every_text_comes_back_and_begins_with_no_sign(text):
  said = written([[text, 'b']])
  (row,) = csv_cells.read(io.StringIO(said, newline=''))
  assert row == [text, 'b']
  ((cell, _),) = csv.reader(io.StringIO(said, newline=''))
  if cell[:1] in [*'=+-@\t\r']:
    float(cell)  # a number


def test_a_file_of_an_earlier_version_reads_as_it_is():
  rows = [['id', 'p_a'], ['=x', '-1'], ['-scan', '0.5']]
  stream = io.StringIO(newline='')
  csv.writer(stream).writerows(rows)
  assert [*csv_cells.read(io.StringIO(stream.getvalue(), newline=''))] == rows
