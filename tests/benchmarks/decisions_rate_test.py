"""The table of benchmarks/decisions_rate.py, in short."""

import os
import sys

from benchmarks import decisions_rate


def rows(monkeypatch, capsys, *flags):
  short = '--seconds=0.01', '--repeats=1', '--records', '8', '40'
  monkeypatch.setattr(sys, 'argv', ['', *short, '--batch_size', '16', *flags])
  decisions_rate.main()
  lines = capsys.readouterr().out.splitlines()
  return [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]


def test_both_orders_are_timed_where_a_batch_fits_the_set(monkeypatch, capsys):
  pinned = []
  monkeypatch.setattr(os, 'sched_setaffinity', lambda *on: pinned.append(on))
  for flags, cores in (((), 1), (('--pixels',), 0)):
    found = rows(monkeypatch, capsys, *flags)[-4:]
    assert [row[:4] for row in found] == [
      [stage, '40', '16', shuffle]
      for stage in ('pretrain', 'retrain')
      for shuffle in ('grain', 'numpy')
    ]
    for row in found:
      assert all(float(cell.replace(',', '')) > 0 for cell in (row[4], row[6]))
    assert len(pinned) == cores
    pinned.clear()
