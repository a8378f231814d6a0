"""benchmarks/serving_rate.py, in short."""

import re
import subprocess
import sys

import pytest

from benchmarks import serving_rate
from dpjax import machine
from dpjax.serving import model as model_lib
from tests.serving import networks

# Holds 60 MB, and so does a process that it starts; until their input ends.
HOLDS = """
import subprocess, sys
held = b'x' * 60_000_000
if len(sys.argv) == 1:
  subprocess.run([sys.executable, sys.argv[0], 'below'], check=True)
else:
  print('held', flush=True)
  sys.stdin.read()
"""


def test_rates_shares_and_memory_are_told(tmp_path, monkeypatch, capsys):
  loaded = model_lib.Model([networks.make_network(root=tmp_path)], batch_size=4)
  monkeypatch.setattr(model_lib, 'load', lambda run: loaded)
  monkeypatch.setattr(machine, 'cores', lambda: 1)  # No processes to start.
  asked = []
  monkeypatch.setattr(
    serving_rate, 'peak', lambda command: asked.append(command) or (7, 1)
  )
  monkeypatch.setattr(
    sys, 'argv',
    ['', 'RUN', '--side=64', '--images=4', '--repeats=2', '--files=3,5'],
  )  # fmt: skip
  serving_rate.main()
  head, *repeats, medians, few, many = capsys.readouterr().out.splitlines()
  assert head.startswith('1 cores; 4 files of 64 x 64 pixels')
  assert len(repeats) == 2
  for line in repeats:
    rates = re.findall(r'([\d.]+) images/s and ([\d.]+) ms', line)
    assert len(rates) == 3 and min(float(n) for r in rates for n in r) > 0
  assert re.match(r'medians: predict is [\d.]+% as fast', medians)
  assert few == '3 files: 7 MB at most, 1 s' and many.startswith('5 files')
  assert [command[3] for command in asked] == ['predict', 'predict']


def test_the_memory_is_that_of_a_process_and_those_below_it(tmp_path):
  (tmp_path / 'holds.py').write_text(HOLDS)
  with subprocess.Popen(
    [sys.executable, str(tmp_path / 'holds.py')],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE,
  ) as process:  # fmt: skip
    assert process.stdout.readline() == b'held\n'
    family = serving_rate.family(process.pid)
    megabytes = sum(map(serving_rate.held, family)) / 1e6
    process.stdin.close()
  assert len(family) == 2 and 120 < megabytes < 200
  assert serving_rate.held(process.pid) == 0  # It has ended.


def test_a_command_that_fails_is_no_figure():
  with pytest.raises(subprocess.CalledProcessError):
    serving_rate.peak([sys.executable, '-c', 'raise SystemExit(3)'])
  megabytes, _ = serving_rate.peak([sys.executable, '-c', ''])
  assert megabytes < 100
