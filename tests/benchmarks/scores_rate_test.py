"""benchmarks/scores_rate.py, in short."""

import sys

from benchmarks import scores_rate


def test_each_part_of_the_scores_is_timed(monkeypatch, capsys):
  short = '--images=200', '--classes=3', '--resamples=20'
  monkeypatch.setattr(sys, 'argv', ['', *short])
  scores_rate.main()
  head, *lines = capsys.readouterr().out.splitlines()
  assert head.startswith('200 images, 3 classes, ') and ' 20 resamples' in head
  assert [line.split()[0] for line in lines] == [
    'scores', 'intervals', 'subgroups', 'together', 'memory',
  ]  # fmt: skip
