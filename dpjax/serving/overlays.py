"""Pictures of where a model looks, of the images that a person looks at first.

overlays/NNNNNN.png is a row of panels: the radiograph, Grad-CAM, and the
attention to lesions of each stage.
"""

import contextlib
import heapq
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tqdm

from dpjax import atomic, signals
from dpjax.errors import SourceFault
from dpjax.report import overlay, words
from dpjax.serving import decode, table
from dpjax.serving.inputs import OVERLAYS, Input
from dpjax.serving.model import Model

if TYPE_CHECKING:
  from dpjax.serving.predict import Settings

ALL = -1
_BATCH = 16


def drawn(output: pathlib.Path) -> list[pathlib.Path]:
  """The pictures of an earlier call."""
  return [*(output / OVERLAYS).glob('[0-9]*.png')]


def clear(output: pathlib.Path) -> None:
  """Removes the pictures of an earlier call, and nothing else."""
  for file in drawn(output):
    file.unlink()


def draw(
  model: Model,
  output: pathlib.Path,
  found: Sequence[Input],
  settings: 'Settings',
) -> dict[str, str]:
  """Draws what is asked for and not there; returns {name: file from output}.

  The files are decoded once more: which are shown is known only when all have
  been answered.

  Args:
    model: that answered.
    output: where its predictions.csv is.
    found: all files.
    settings: predict.Settings.
  """
  if not settings.overlays:
    return {}
  rows = _chosen(output / table.PREDICTIONS, settings.overlays)
  place = {one.name: i for i, one in enumerate(found) if one.name in rows}
  files = {name: f'{OVERLAYS}/{i + 1:06d}.png' for name, i in place.items()}
  left = [name for name in place if not (output / files[name]).is_file()]
  (output / OVERLAYS).mkdir(exist_ok=True)
  stream = decode.stream(
    [found[place[name]].path for name in left],
    model.size, model.fit, settings.workers,
  )  # fmt: skip
  with (
    contextlib.closing(stream),
    tqdm.tqdm(
      total=len(left), desc='overlays', unit='img',
      disable=not settings.progress, dynamic_ncols=True,
    ) as bar,
  ):  # fmt: skip
    for start in range(0, len(left), _BATCH):
      names = left[start : start + _BATCH]
      images = [
        (name, image)
        for name, image in zip(names, stream, strict=False)
        if not isinstance(image, SourceFault)  # It was there a moment ago.
      ]
      signals.check()
      if images:
        squares = np.stack([image.square for _, image in images])
        for (name, image), maps in zip(
          images, model.maps(squares), strict=True
        ):
          picture = _picture(image.square, maps, name, rows[name])
          atomic.write_bytes(output / files[name], overlay.png(picture))
      bar.update(len(names))
  return {n: file for n, file in files.items() if (output / file).is_file()}


def _chosen(file, count):
  """{name: row} of what is drawn: the most suspicious, or the least sure."""

  def suspicion(row):
    if row['p_any_lesion']:
      return float(row['p_any_lesion'])
    return -max(table.probabilities(row).values())

  # One after the other: of a whole archive only `count` are kept.
  rows: Iterable[dict[str, str]] = table.read(file)
  if count != ALL:
    rows = heapq.nlargest(count, rows, key=suspicion)
  return {row['file']: row for row in rows}


def _picture(square, maps, name, row):
  shown: dict[str, tuple[np.ndarray, float | None]] = {
    'Grad-CAM': (maps['cam'], None)
  }
  shown |= {
    words.map_name(key): (values, 1.0)
    for key, values in maps.items()
    if key.startswith('att_pos/')
  }
  p = table.probabilities(row)[row['prediction']]
  return overlay.draw(
    square, np.zeros((0, 4)), 0, shown,
    caption=[f'{row["prediction"]}: {p:.3f}', name],
  )  # fmt: skip
