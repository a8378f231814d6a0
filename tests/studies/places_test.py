"""Which GPUs or cores the runs of a study get, and what is refused."""

import os

import pytest

from dpjax.errors import UserError
from dpjax.studies import places


def test_gpus_are_taken_in_turn_with_equal_parts_of_their_memory():
  found = places.make_places(3, None, 'gpu', 4, {})
  assert [p.variables for p in found] == [
    {'CUDA_VISIBLE_DEVICES': i} for i in '012'
  ]
  given = {
    'CUDA_VISIBLE_DEVICES': '4,7',
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '.8',
  }
  found = places.make_places(4, 2, 'gpu', 2, given)
  assert [p.variables['CUDA_VISIBLE_DEVICES'] for p in found] == [*'4747']
  assert {p.variables['XLA_PYTHON_CLIENT_MEM_FRACTION'] for p in found} == {
    '0.400'
  }
  assert [p.name for p in found] == ['GPU 4', 'GPU 7'] * 2
  (one,) = places.make_places(1, 3, 'gpu', 1, {})
  assert one.variables['XLA_PYTHON_CLIENT_MEM_FRACTION'] == '0.300'


@pytest.mark.parametrize(
  ('arguments', 'reason'),
  [
    (
      (5, None, 'gpu', 4),
      '4 GPUs with 1 on each; --jobs_per_device=2 would do',
    ),
    ((2, None, 'gpu', 1), '1 GPU with 1 on each; --jobs_per_device=2 would do'),
    ((2, 2, 'cpu', 1), '--jobs_per_device is for GPUs'),
    ((10**6, None, 'cpu', 1), 'core'),
    ((2, None, 'tpu', 4), 'here is a tpu'),
    ((0, None, 'gpu', 4), 'wanted 1 or more'),
    ((1, 0, 'gpu', 4), 'wanted 1 or more'),
  ],
)
def test_what_there_is_no_room_for_is_refused(arguments, reason):
  with pytest.raises(UserError, match=r'^--jobs') as error:
    places.make_places(*arguments, {})
  assert reason in str(error.value)


def test_devices_are_found_by_another_process(monkeypatch):
  probe = 'print("a word"); print("gpu", 4)'
  monkeypatch.setattr(places, '_PROBE', probe)
  assert places.devices({**os.environ, 'JAX_PLATFORMS': 'cuda'}) == ('gpu', 4)
  assert places.devices({'JAX_PLATFORMS': 'cpu'}) == ('cpu', 1)
  monkeypatch.setattr(places, '_PROBE', 'raise SystemExit("no driver")')
  with pytest.raises(UserError, match=r'finds no device \(no driver\)'):
    places.devices({})
