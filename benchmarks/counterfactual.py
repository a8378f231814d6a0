"""Do the answers follow the lesion? Phantoms with and without their opacities.

python benchmarks/counterfactual.py RUN [RUN ...]

A phantom is computed, so the same chest can be computed without its opacities.
For every lesion image of the test split this prints how the log-odds of any
lesion, logsumexp_{c > 0} z_c - z_0, change when they are taken out, and what
share of Grad-CAM and of HiResCAM (Draelos and Carin, 2020: gradients are not
averaged over the positions) lies in the boxes at each stage.
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from dpjax.config import record as record_lib
from dpjax.data.prepare import shards
from dpjax.data.sources import phantom
from dpjax.evaluation import evaluate, explain, localisation
from dpjax.models import sides
from dpjax.training import inference, programs


def without_opacities(split, rows, info):
  """The stored squares (N, S, S) of rows of a split, recomputed without any."""
  size = max(256, split.size)  # as dpjax/prepare.py computes them
  records = {
    record.id: record
    for record in phantom.read(
      info['data.phantom.count'],
      info['data.phantom.seed'],
      size,
      info.get('data.phantom.least', phantom.MIN_PER_CLASS),
    )
  }
  none = np.zeros((0, 4), np.float32)
  images = []
  for row in rows:
    plan = records[str(split.ids[row])].pixels.args[0]
    for label in (plan.label, 0):
      pixels = phantom.render(dataclasses.replace(plan, label=label), size)
      square, _ = shards.square(pixels, none, split.size, 'stretch')
      if label:  # Else it would be another chest.
        assert (square == split.images(np.array([row]))[0]).all()
    images.append(square)
  return np.stack(images)


@dataclasses.dataclass(frozen=True)
class Replaced(explain.Rows):
  """Rows with other images."""

  pixels: np.ndarray

  def images(self, indices):
    return self.pixels[indices]


def describe(workdir):
  """Prints the lines of one run."""
  config = record_lib.load(workdir / 'config.json')
  opened = evaluate.open_run(config, workdir)
  run, state, split = opened.run, opened.state, opened.images.split
  model = run.objective.backbone
  lesions = explain.Rows(split, np.flatnonzero(split.num_boxes))
  info = run.data.info['provenance']
  bare = Replaced(
    split, lesions.rows, without_opacities(split, lesions.rows, info)
  )

  def odds(logits):
    return jax.nn.logsumexp(logits[:, 1:], axis=1) - logits[:, 0]

  def collect(step, part):
    return inference.collect(run, step, state, part, config.evaluate.batch_size)

  def cams(stage, state, batch, *, axis_name):
    del axis_name
    variables = {k: tree['backbone'] for k, tree in state.network.items()}
    images = run.objective.pixels.views(batch)[:, 0]
    features = model.apply(variables, images)[1][stage]
    slope = jax.grad(
      lambda zero: odds(
        model.apply(variables, images, offsets={stage: zero})[0]
      ).sum()
    )(jnp.zeros_like(features))
    slopes = {
      'Grad-CAM': slope.mean(axis=(1, 2), keepdims=True), 'HiResCAM': slope
    }  # fmt: skip
    return {
      name: jax.nn.relu((features * g).sum(axis=-1)).astype(jnp.float32)
      for name, g in slopes.items()
    }

  def in_box(maps):
    return localisation.per_image(
      maps, lesions.boxes, lesions.num_boxes, config.data.image_size, None
    )['energy_in_box'].mean()

  embed = programs.compile_embedding(run)
  present, taken_out, normal = (
    np.asarray(odds(collect(embed, part)['logits']))
    for part in (
      lesions,
      bare,
      explain.Rows(split, np.flatnonzero(split.num_boxes == 0)),
    )
  )
  change = present - taken_out
  print(
    f'{workdir}\n  log-odds: {present.mean():+.2f} with opacities,'
    f' {taken_out.mean():+.2f} without, difference {change.mean():+.2f},'
    f' above 0 in {np.mean(change > 0):.2f} of {len(change)}; normal images'
    f' {normal.mean():+.2f}'
  )
  for stage in sides.resnet(config.data.image_size, config.model.stage_sizes):
    maps_of = functools.partial(cams, stage)
    found = collect(programs.compile_step(run, maps_of, gather=True), lesions)
    shares = ', '.join(
      f'{name} {in_box(maps):.3f}' for name, maps in found.items()
    )
    print(f'  {stage}: in box, {shares}')


if __name__ == '__main__':
  for argument in sys.argv[1:]:
    describe(pathlib.Path(argument))
