"""benchmarks/input_peers.py, in short."""

import argparse

import pytest

from benchmarks import input_peers
from dpjax import prepare


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """(config, prepared set) of 60 phantoms of 48 pixels."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in {'STORED': 48, 'SIZE': 32, 'BATCH': 8}.items():
      patch.setattr(input_peers, name, value)
    config = input_peers.make_config(60, tmp_path_factory.mktemp('in') / 'set')
    config.model.stage_sizes, config.mgacr.stages = (1,), ('stage1',)
    prepare.prepare(config)
    yield config, prepare.open_prepared(config)


@pytest.mark.parametrize('stage', ['pretrain', 'retrain'])
def test_the_three_streams_of_dpjax_have_rates(small, stage):
  streams = input_peers.dpjax_streams(small[0], stage, small[1])
  assert list(streams) == [
    'dpjax, host render', 'dpjax, device render', 'dpjax, decisions only',
  ]  # fmt: skip
  for measure in streams.values():
    assert measure(0.01) > 0


# torchvision decodes as it did, and says that TorchCodec will.
@pytest.mark.filterwarnings('ignore:.*TorchCodec:DeprecationWarning')
@pytest.mark.torch
def test_a_table_has_the_loaders_beside_them(small, tmp_path, capsys):
  pytest.importorskip('torchvision')
  config, data = small
  input_peers.write_copies(data.split('train'), tmp_path)
  arguments = argparse.Namespace(repeats=1, seconds=0.01)
  input_peers.compare(config, 'retrain', data, tmp_path, arguments)
  out = capsys.readouterr().out
  _, _, *rows = (line for line in out.splitlines() if line.startswith('| '))
  assert [row.split('|')[1].split(' (')[0].strip() for row in rows] == [
    'dpjax, host render', 'dpjax, device render',
    'dpjax, decisions only', 'torch, JPEG files', 'torch, memory map',
  ]  # fmt: skip
