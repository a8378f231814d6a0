"""Which targets there are, and what is said of one that there is not."""

import importlib.util
import types

import pytest

from dpjax.benchmark import targets
from dpjax.errors import UserError


@pytest.mark.parametrize(
  ('name', 'kind', 'count', 'processes'),
  [
    ('h100', 'NVIDIA H100 80GB HBM3', 1, 1),
    ('h100x8', 'NVIDIA H100 80GB HBM3', 8, 1),
    ('h200x64', 'NVIDIA H200', 64, 8),
    ('rtx4090', 'NVIDIA GeForce RTX 4090', 1, 1),
    ('v5e', 'TPU v5 lite', 1, 1),
    ('v5e:16x16', 'TPU v5 lite', 256, 64),
    ('v5p:2x2x1', 'TPU v5', 4, 1),
    ('tpu7x:2x2x1', 'TPU7x', 8, 1),  # two devices a chip
  ],
)
def test_a_target_is_a_device_and_how_many(name, kind, count, processes):
  found = targets.find(name)
  assert found.device.kind == kind
  assert (found.count, found.processes) == (count, processes)
  assert targets.of_kind(kind) is found.device


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('h10', 'did you mean h100?'),
    ('v3:2x2', 'h100x8'),
    ('', 'v5p:2x2x1'),
    ('h100:2', 'e.g. h100x8'),
    ('h100x12', 'a multiple'),
    ('h100x0', 'unknown'),
    ('v5ex4', 'e.g. v5e:2x2'),
    ('v5e:2x', 'e.g. v5e:2x2'),
    ('v5e:2,2', 'e.g. v5e:2x2'),
  ],
)
def test_a_wrong_one_is_told_in_a_line_that_says_what_there_is(name, said):
  with pytest.raises(UserError, match=f'--target={name}') as error:
    targets.find(name)
  assert said in str(error.value) and '\n' not in str(error.value)


def test_the_figures_of_each_device_are_of_its_size():
  for name, device in targets.DEVICES.items():
    assert device.source, name
    # Operations that a byte leaves time for: 100 to 700 on all of them.
    assert 100 < device.flops / device.bandwidth < 700, name
    assert 16e9 < device.memory < 200e9 and device.usable <= device.memory, name
    if device.cuda:
      # Four tensor cores a multiprocessor, of 2^n products a clock each.
      clocks = device.cuda.cores * 4 * device.cuda.clock * 1e9
      assert 60 < device.flops / 2 / clocks < 1200, name
      assert device.cuda.shared % 1024 == 0
    else:
      assert 0.9e9 < device.clock < 2.5e9, name


@pytest.mark.parametrize(('name', 'extra'), [('l4', 'cuda'), ('v5e', 'tpu')])
def test_without_the_compiler_one_line_says_what_to_install(
  name, extra, monkeypatch
):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda module: None)
  with pytest.raises(UserError, match=rf"-e '\.\[{extra}\]'"):
    targets.open_topology(targets.find(name))


def test_the_compiler_is_told_the_figures_of_the_gpu():
  text = targets.cuda_config(targets.DEVICES['h100'])
  for line in ('core_count: 132', 'memory_bandwidth: 3352000000000',
               'major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES',
               'device_description_str: "NVIDIA H100 80GB HBM3"'):  # fmt: skip
    assert line in text
  assert 'minor: 9 feature_extension: NONE' in targets.cuda_config(
    targets.DEVICES['l4']
  )


def test_the_shape_of_a_slice_is_that_of_the_chips_that_share_a_batch():
  def at(*coords, platform='tpu'):
    return types.SimpleNamespace(platform=platform, coords=coords)

  chips = [at(x, y, 0) for y in range(2) for x in range(4)]
  assert targets.slice_shape(chips) == (4, 2, 1)
  assert targets.slice_shape(chips[:4]) == (4, 1, 1)
  # Those of a GPU are its number, and a CPU has none.
  gpus = [at(0, 0, i, platform='gpu') for i in range(8)]
  assert targets.slice_shape(gpus) == ()
  assert targets.slice_shape([types.SimpleNamespace(platform='cpu')]) == ()
