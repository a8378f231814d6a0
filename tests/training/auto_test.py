"""What `auto` and 0 stand for, by the set and the devices."""

import jax
import pytest

from dpjax.data.feed import pipeline
from dpjax.distributed import parallel, processes
from dpjax.training import build as build_lib
from tests import fakes

OPEN = ('patient', 'split', 'boxes', 'box_name')  # a set says what they were


def build(stage='retrain', data=None, **changes):
  config = fakes.make_config(
    model__stage_sizes=(1,), model__width=4, mgacr__stages=('stage1',),
    **changes,
  )  # fmt: skip
  return build_lib.build(config, stage, data or fakes.make_store())


def test_images_lie_on_the_device_by_default_where_they_take_a_quarter(
  monkeypatch,
):
  needed = (48 + 12) * 48 * 48  # training and validation images of the fake set

  def resident(free, **changes):
    monkeypatch.setattr(parallel, 'free_bytes', lambda: free)
    return (
      build(**{'data__render': 'device', **changes}).config.data.placement
      == 'resident'
    )

  assert resident(4 * needed + 1)
  assert not resident(4 * needed)
  assert not resident(None)  # a CPU does not tell
  assert not resident(99 * needed, data__render='host')
  assert not resident(99 * needed, data__placement='stream')
  assert resident(0, data__placement='resident')


def test_a_dispatch_holds_more_steps_where_batches_are_small(monkeypatch):
  def steps_per_dispatch(batch_size, **changes):
    config = build(retrain__batch_size=batch_size, **changes).config
    return config.train.steps_per_dispatch

  assert steps_per_dispatch(16) == 1  # on a CPU
  assert steps_per_dispatch(16, train__steps_per_dispatch=3) == 3
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(pipeline.Records, '__len__', lambda _: 32000)
  assert [steps_per_dispatch(n) for n in (16, 64, 256, 1024, 4096)] == [
    16, 16, 4, 1, 1,
  ]  # fmt: skip
  assert steps_per_dispatch(1024, parallel__devices=8) == 8  # 128 a device
  # No more than there are steps between two validations.
  assert steps_per_dispatch(16, eval__every=0.005) == 10
  assert steps_per_dispatch(16, eval__every=0.0) == 16


@pytest.mark.parametrize('own', [True, False])
def test_all_processes_of_a_job_place_their_images_as_process_0_says(
  own, monkeypatch
):
  free = 10**9 if own else 0
  monkeypatch.setattr(parallel, 'free_bytes', lambda: free)
  asked = []

  def others_way(fits):
    asked.append(fits)
    return not fits

  monkeypatch.setattr(processes, 'broadcast_from_0', others_way)
  job = {'parallel__mode': 'shard_map', 'parallel__devices': 4}
  found = build(data__render='device', **job).config.data.placement
  assert found == ('stream' if own else 'resident') and asked == [own]
  # One that works by itself asks nobody: the others may be gone.
  found = build(data__render='device').config.data.placement
  assert found == ('resident' if own else 'stream') and asked == [own]


def test_what_a_user_has_chosen_stays_and_the_users_config_too():
  config = fakes.make_config(
    data__render='device', data__placement='resident',
    data__shuffle='grain', train__steps_per_dispatch=5,
    **{f'data__csv__{name}': f'my {name}' for name in OPEN},
  )  # fmt: skip
  run = build_lib.build(config, 'retrain', fakes.make_store())
  assert run.config.to_dict() == config.to_dict()
  config = fakes.make_config()
  config.data.placement = 'auto'
  run = build_lib.build(config, 'retrain', fakes.make_store())
  assert run.config.data.shuffle == 'numpy'
  assert config.data.placement == config.data.shuffle == 'auto'
  assert config.train.steps_per_dispatch == 0


@pytest.mark.parametrize('layout, left', [('phantom', ''), ('csv', 'auto')])
def test_columns_stay_open_where_only_the_set_could_tell(layout, left):
  config = build(data__layout=layout, data__source='here').config
  assert {config.data.csv[name] for name in OPEN} == {left}
  assert config.data.csv.image == 'image'
