"""A trace of a run: the steps that were asked for, and no others."""

import contextlib
import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from dpjax.training import trace


def run(folder, steps, dispatches, size=1):
  """Dispatches of `size` steps each, under a trace of `steps`."""
  program = jax.jit(lambda x: x + 1)
  with contextlib.closing(trace.Trace(folder, steps)) as profile:
    for i in range(dispatches):
      with profile.dispatch(i * size):
        metrics = program(jnp.zeros(()))
      profile.sent(size, metrics)


def traced(folder):
  """The numbers of the steps that the traces in `folder` name."""
  found = []
  for file in folder.rglob('*.trace.json.gz'):
    events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
    found += [
      int(event['args']['step_num'])
      for event in events
      if event.get('name') == 'train'
    ]
  return sorted(found)


@pytest.mark.parametrize(
  ('steps', 'size', 'wanted'), [(2, 1, [2, 3]), (3, 2, [4, 6])]
)
def test_it_holds_whole_dispatches_after_the_first_two(
  tmp_path, steps, size, wanted
):
  run(tmp_path, steps, dispatches=6, size=size)
  assert traced(tmp_path) == wanted


def test_a_run_that_ends_before_leaves_what_there_was(tmp_path):
  run(tmp_path, steps=99, dispatches=3)
  assert traced(tmp_path) == [2]


def test_without_steps_nothing_is_written(tmp_path):
  run(tmp_path / 'trace', steps=0, dispatches=3)
  assert not (tmp_path / 'trace').exists()
