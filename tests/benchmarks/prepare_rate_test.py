"""benchmarks/prepare_rate.py, in short."""

import re
import sys

from benchmarks import prepare_rate
from dpjax import machine
from dpjax.data.sources import phantom


def test_each_repeat_and_the_medians_are_told(monkeypatch, capsys):
  read = phantom.read
  monkeypatch.setattr(
    phantom, 'read', lambda *args, **kw: read(*args, **kw)[:4]
  )
  monkeypatch.setattr(machine, 'cores', lambda: 1)  # No processes to start.
  monkeypatch.setattr(sys, 'argv', ['', '--images=8', '--repeats=1'])
  prepare_rate.main()
  head, *repeats, medians = capsys.readouterr().out.splitlines()
  assert head.startswith('1 cores, 8 images of ')
  assert len(repeats) == 1
  for line in repeats:
    rates = re.findall(r'(?:core|process|by 1) (\d+)', line)
    assert len(rates) == 3 and min(map(int, rates)) > 0
  assert medians.startswith('medians: ')
