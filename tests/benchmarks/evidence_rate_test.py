"""benchmarks/evidence_rate.py, in short."""

import sys

from benchmarks import evidence_rate


def test_scores_maps_and_page_are_timed(monkeypatch, capsys):
  make_config = evidence_rate.make_config

  def small(images, path):
    config = make_config(images, path)
    config.evaluate.resamples = 20
    return config

  monkeypatch.setattr(evidence_rate, 'make_config', small)
  monkeypatch.setattr(sys, 'argv', ['', '--images=40'])
  evidence_rate.main()
  said = capsys.readouterr().out.splitlines()[-6:]
  assert said[0] == '40 test images of 224 pixels'
  for line, name in zip(
    said[1:],
    ('scores and', 'localisation of', 'report ', 'together', 'report.html: '),
    strict=True,
  ):
    assert line.startswith(name)
