"""benchmarks/overview.py draws the picture that README shows."""

import cv2
import numpy as np

from benchmarks import overview


def test_the_picture_in_docs_is_what_it_draws(tmp_path, monkeypatch):
  shown = cv2.imread(str(overview.PICTURE)).astype(int)
  monkeypatch.setattr(overview, 'PICTURE', tmp_path / 'overview.png')
  overview.main()
  drawn = cv2.imread(str(tmp_path / 'overview.png')).astype(int)
  assert drawn.shape == shown.shape
  # Another OpenCV draws letters and edges by some levels otherwise.
  assert np.abs(drawn - shown).mean() < 1
