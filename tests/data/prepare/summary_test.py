"""What people are told of a set."""

from dpjax.data.prepare import summary

MADE = {
  'path': 'data/mine',
  'name': 'csv',
  'size': 256,
  'reused': False,
  'class_names': ['normal', '1', 'ill'],
  'counts': {'train': [8000, 20, 3], 'test': [900, 0, 1]},
  'patients': 7000,
  'boxes': 1234,
  'boxes_clipped': 0,
  'copies': 0,
  'left_out': 0,
  'skipped': 0,
}


def lines(**changes):
  return summary.format_summary({**MADE, **changes}).splitlines()


def test_classes_are_rows_with_their_number_and_name():
  table = [line.split() for line in lines()]
  assert table[1] == ['class', 'train', 'test', 'all']
  assert table[2] == ['0', 'normal', '8,000', '900', '8,900']
  # A class whose name is its number is told once.
  assert table[3] == ['1', '20', '0', '20']
  assert table[4] == ['2', 'ill', '3', '1', '4']
  assert table[5] == ['all', '8,023', '901', '8,924']
  columns = {len(line) for line in lines()[1:6]}
  assert len(columns) == 1


def test_a_split_that_lacks_a_class_is_warned_of():
  assert lines()[-1] == 'warning: test has no image of 1'
  counts = {'train': [8000, 20, 0], 'test': [900, 4, 0]}
  assert not any('warning' in line for line in lines(counts=counts))


def test_a_set_without_labels_has_no_table_of_classes():
  found = lines(counts={'unlabelled': 50_000})
  assert [line.split() for line in found[1:2]] == [['unlabelled', '50,000']]
  assert len(found) == 3


def test_patients_that_nobody_names_are_not_counted():
  assert 'patients 7,000, lesion boxes 1,234' in lines()
  assert 'patients not named, lesion boxes 1,234' in lines(patients=None)


def test_what_is_not_in_the_set_is_told_with_the_file_that_lists_it():
  text = '\n'.join(lines(copies=3, left_out=2, skipped=1, boxes_clipped=9))
  for words in (
    '(9 clipped to the frame)',
    'copies of another image 3: see duplicates.csv',
    'left out of the set 2: see left_out.csv',
    'faults 1, skipped: see quarantine.csv',
  ):
    assert words in text
