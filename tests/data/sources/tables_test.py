"""Tables and faults: what is read, what is left out, what is one line."""

import csv
import io
import math
import pathlib
import tempfile

import hypothesis
import pytest
from hypothesis import strategies as st

from dpjax.data.sources import tables
from dpjax.errors import SourceFault, UserError

COLUMNS = ('id', 'x')


def write(folder, content, encoding='utf-8'):
  path = folder / 'table.csv'
  path.write_bytes(content.encode(encoding))
  return path


def read(path, columns=COLUMNS, faults=None, **options):
  faults = faults or tables.Faults()
  return [
    (row.number, row.cells)
    for row in tables.rows(path, columns, faults, **options)
  ]


def refused(path, columns=COLUMNS, **options):
  """The one line, the same whatever is asked for on an error."""
  messages = []
  for on_error in ('fail', 'skip'):
    with pytest.raises(UserError) as caught:
      read(path, columns, tables.Faults(on_error), **options)
    messages.append(str(caught.value))
  assert messages[0] == messages[1] and messages[0].isprintable()
  return messages[0]


def test_rows_are_named_by_the_header_in_any_order(tmp_path):
  path = write(tmp_path, 'x,other,id\n1,,a\n2,b,c\n')
  assert read(path) == [
    (2, {'x': '1', 'other': '', 'id': 'a'}),
    (3, {'x': '2', 'other': 'b', 'id': 'c'}),
  ]


def test_without_a_header_the_columns_are_those_asked_for(tmp_path):
  assert read(write(tmp_path, 'a,1\n'), header=False) == [
    (1, {'id': 'a', 'x': '1'})
  ]


@pytest.mark.parametrize(
  'content',
  [
    '\ufeffid,x\na,1\n',
    'id,x\r\na,1\r\n',
    'id,x\ra,1',
    ' id , x \n a ,\t1 \n',
    '"id","x"\n"a","1"\n',
    'id,x,,\na,1\n',
    'id,x\na,1,,,\n',
  ],
)
def test_what_spreadsheets_add_changes_nothing(tmp_path, content):
  assert read(write(tmp_path, content)) == [(2, {'id': 'a', 'x': '1'})]


def test_a_row_is_numbered_by_the_line_that_it_begins_at(tmp_path):
  path = write(tmp_path, '\n\nid,x\n\n"a\nb",1\n,,\nc,2\n')
  faults = tables.Faults()
  rows = list(tables.rows(path, COLUMNS, faults))
  assert [(row.number, row['id']) for row in rows] == [(5, 'a\nb'), (8, 'c')]
  assert str(rows[1]) == f'{path}, row 8'
  assert rows[1]['no such column'] == ''


@pytest.mark.parametrize(
  'content, reason',
  [
    ('', "row 1: no column 'id' in the header ''"),
    ('\n \n,,\n', "row 1: no column 'id' in the header ''"),
    ('a,1\n', "row 1: no column 'id' in the header 'a,1'"),
    ('\nid,y\na,1\n', "row 2: no column 'x' in the header 'id,y'"),
    ('ids,x\n', "did you mean 'ids'?"),
    ('"i\nd",x\n', r"did you mean 'i\nd'?"),
    ('id,x,id\na,1,b\n', "two columns are 'id'"),
    ('id,x\n"a,1\nb,2\n', 'not a csv file'),
    ('id,x\n' + 'a' * 200_000 + ',1\n', 'not a csv file'),
  ],
)
def test_a_file_that_is_no_such_table_is_refused_whole(
  tmp_path, content, reason
):
  path = write(tmp_path, content)
  message = refused(path)
  assert message.startswith(str(path)) and reason in message


def test_a_table_of_nothing_is_refused_only_where_it_has_no_header(tmp_path):
  assert read(write(tmp_path, 'id,x\n')) == []
  assert refused(write(tmp_path, '\n'), header=False).endswith(
    ': no rows; wanted id,x'
  )


@pytest.mark.parametrize(
  'content, row',
  [
    ('id,x\na,1\ngrün,2\n'.encode('latin-1'), 'row 3'),
    ('id,x\na,1\n'.encode('utf-16'), 'row 1'),
    (b'id,x\na,\xc3', 'row 2'),
    (b'\x89PNG\r\n\x1a\n' + bytes(40), 'row 1'),
  ],
)
def test_another_encoding_is_named_with_its_row(tmp_path, content, row):
  path = tmp_path / 'table.csv'
  path.write_bytes(content)
  message = refused(path)
  assert message == f'{path}: not UTF-8 text ({row}); save it as UTF-8'


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
  message = refused(tmp_path / 'table.csv')
  assert message.endswith('table.csv: no such file; wanted a csv of id,x')
  assert 'cannot be read' in refused(tmp_path)


def test_a_row_of_another_length_is_a_fault(tmp_path):
  path = write(tmp_path, 'id,x\na,1\nb\nc,1,2\nd,2,\n')
  with pytest.raises(UserError) as caught:
    read(path)
  assert str(caught.value) == f'{path}, row 3: 1 cells; wanted 2: id,x'
  faults = tables.Faults('skip')
  assert [cells['id'] for _, cells in read(path, faults=faults)] == ['a', 'd']
  assert faults.found == [
    (f'{path}, row 3', '', '1 cells; wanted 2: id,x'),
    (f'{path}, row 4', '', '3 cells; wanted 2: id,x'),
  ]


def test_a_reader_may_take_rows_of_another_length_and_check_them(tmp_path):
  path = write(tmp_path, 'id,x\na,1\nb\n')
  sound, short = tables.rows(path, COLUMNS, tables.Faults(), check=False)
  sound.check()
  with pytest.raises(SourceFault, match='1 cells'):
    short.check()
  assert short['id'] == 'b' and short['x'] == ''


def test_fail_raises_the_first_fault_with_its_place():
  faults = tables.Faults()
  with pytest.raises(UserError) as caught:
    with faults.at('labels.csv, row 7', 'a'):
      raise SourceFault('too bad')
  assert str(caught.value) == 'labels.csv, row 7: too bad'


def test_skip_notes_one_fault_for_an_image_and_goes_on():
  faults = tables.Faults('skip')
  for id, reason in (('a', 'one'), ('b', 'two'), ('a', 'three'), ('', 'four')):
    with faults.at('place', id):
      raise SourceFault(reason)
  faults.add(pathlib.Path('x'), 'five')
  assert faults.found == [
    ('place', 'a', 'one'),
    ('place', 'b', 'two'),
    ('place', '', 'four'),
    ('x', '', 'five'),
  ]
  assert faults.left_out == {'a', 'b'}


def test_an_error_that_is_no_fault_of_the_data_is_not_taken_for_one():
  for error in (ValueError('ours'), KeyError('ours')):
    with pytest.raises(type(error)):
      with tables.Faults('skip').at('place', 'a'):
        raise error


def test_a_fault_is_one_line_whatever_the_file_is_called():
  faults = tables.Faults('skip')
  faults.add('a\nb\udcff', 'reason\r\x1b[1m', 'i\td')
  assert faults.found == [(r'a\nb\udcff', r'i\td', r'reason\r\x1b[1m')]
  assert faults.left_out == {'i\td'}  # the id as it is
  with pytest.raises(UserError, match=r'^a\\nb: reason$'):
    tables.Faults().add('a\nb', 'reason')


@pytest.mark.parametrize(
  'text', ['', 'x', 'nan', '-inf', '1e999', '1,5', '0x1']
)
def test_a_cell_without_a_finite_number_is_a_fault(text):
  with pytest.raises(SourceFault) as caught:
    tables.number(text, 'width')
  assert str(caught.value).startswith(f'width {text!r} is no')


@hypothesis.given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_as_they_were_written(value):
  assert tables.number(repr(value), 'x') == value


def test_boxes_are_corners_or_a_corner_and_sides():
  assert tables.box('1', '2.5', '3', '4') == (1, 2.5, 4, 6.5)
  assert tables.box('-5', '0', '3', '4') == (-5, 0, -2, 4)
  assert tables.corners('1', '2.5', '3', '4') == (1, 2.5, 3, 4)


@pytest.mark.parametrize(
  'cells',
  [
    ('1', '2', '0', '4'),
    ('1', '2', '3', '-4'),
    ('1', '2', '3', ''),
    ('1', 'nan', '3', '4'),
    ('1e308', '0', '1e308', '4'),
    ('1e17', '0', '1', '4'),
  ],
)
def test_a_box_without_area_or_end_is_a_fault(cells):
  with pytest.raises(SourceFault):
    tables.box(*cells)


@pytest.mark.parametrize(
  'cells, reason',
  [
    (('3', '2', '1', '4'), 'x_min below x_max'),
    (('1', '4', '3', '2'), 'y_min below y_max'),
    (('1', '2', '1', '4'), 'x_min below x_max'),
    (('1', '2', 'inf', '4'), "x_max 'inf'"),
  ],
)
def test_corners_the_wrong_way_round_are_a_fault(cells, reason):
  with pytest.raises(SourceFault, match=reason):
    tables.corners(*cells)


CELL = st.text(st.characters(codec='utf-8'), max_size=5)


@hypothesis.settings(deadline=None)
@hypothesis.given(st.lists(st.lists(CELL, min_size=1, max_size=4), max_size=6))
def test_rows_that_a_csv_writer_wrote_come_back_stripped(cells):
  text = io.StringIO()
  csv.writer(text).writerows([['id', 'x', 'y'], *cells])
  wanted = [[cell.strip() for cell in row] for row in cells]
  wanted = [row for row in wanted if any(row)]
  with tempfile.TemporaryDirectory() as folder:
    path = write(pathlib.Path(folder), text.getvalue())
    faults = tables.Faults('skip')
    rows = list(tables.rows(path, ('id', 'x', 'y'), faults))
  fit = [r[:3] for r in wanted if len(r) >= 3 and not any(r[3:])]
  assert [[row[name] for name in ('id', 'x', 'y')] for row in rows] == fit
  assert len(faults.found) == len(wanted) - len(fit)


@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(
  st.one_of(
    st.binary(max_size=60),
    st.text(st.sampled_from('id,x"\n\r\t\x00;ü\ufeff 1'), max_size=40).map(
      lambda text: text.encode()
    ),
  ),
  st.booleans(),
)
def test_any_bytes_are_a_table_or_one_line(content, header):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'table.csv')
    path.write_bytes(content)
    try:
      read(path, faults=tables.Faults('skip'), header=header)
    except ValueError as error:
      assert str(error).isprintable() and str(error).startswith(str(path))


@hypothesis.given(*[st.text(max_size=8) | st.floats().map(repr)] * 4)
def test_any_cells_are_a_box_with_an_area_or_a_fault(a, b, c, d):
  for make in (tables.box, tables.corners):
    try:
      x0, y0, x1, y1 = make(a, b, c, d)
    except SourceFault as fault:
      assert str(fault)
    else:
      assert -math.inf < x0 < x1 < math.inf and -math.inf < y0 < y1 < math.inf


@pytest.mark.parametrize(
  'cell, names',
  [
    ('a', ['a']),
    ('a | b|c', ['a', 'b', 'c']),
    ("['normal']", ['normal']),
    ("['a', ' b, c']", ['a', 'b, c']),
    ('["a", \'b\']', ['a', 'b']),
    ("['a', '']", ['a']),
    ('[a, b c]', ['a', 'b c']),
    ('[]', []),
    ('[ ]', []),
    ('["it\'s"]', ["it's"]),
  ],
)
def test_a_cell_may_hold_several_names(cell, names):
  assert [*tables.names(cell)] == names


@pytest.mark.parametrize(
  'cell',
  [
    '[',
    '[a' + ' ' * 100_000,
    "['a'",
    "['a' 'b']",
    "['a'] x",
    "[['a']]",
    "['a]",
    "['a'b]",
  ],
)
def test_a_list_of_another_form_is_a_fault(cell):
  with pytest.raises(SourceFault, match='is no list of names'):
    tables.names(cell)
