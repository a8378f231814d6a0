"""Where a trained run looks: Grad-CAM and attention maps against the boxes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dpjax.data import store, vocabulary
from dpjax.errors import UserError
from dpjax.evaluation import gradcam, localisation
from dpjax.models import sides
from dpjax.training import objectives, programs, steps
from dpjax.training.run import Run

WITHOUT_BOXES = 32  # images without a box whose maps are kept, at most


def explain_step(
  state: steps.TrainState,
  batch: objectives.Batch,
  *,
  objective: objectives.Retraining,
  target: str,
  cam_stage: str,
  axis_name: str | None = None,
) -> dict[str, jax.Array]:
  """Where the answers to one device's share of plain images come from.

  Args:
    state: of stage II.
    batch: as steps.eval_step takes it.
    objective: the networks.
    target: whose gradient Grad-CAM takes (gradcam.target_weights).
    cam_stage: the features that it looks at.
    axis_name: unused; rows do not depend on each other.

  Returns:
    {'cam': (b, h, w)} and, with attention, {'att_pos/STAGE', 'att_neg/STAGE':
    (b, h, w)}.
  """
  del axis_name
  images = objective.pixels.views(batch)[:, 0]
  seen = state.network
  variables = {
    name: {'params': params, 'batch_stats': seen['batch_stats'].get(name, {})}
    for name, params in seen['params'].items()
  }
  found = {
    'cam': gradcam.grad_cam(
      objective.backbone, variables['backbone'], images, batch['label'],
      target=target, stage=cam_stage,
    )
  }  # fmt: skip
  if objective.attention is not None:
    _, features = objective.backbone.apply(variables['backbone'], images)
    maps = objective.attention.apply(variables['attention'], features)
    for name, (map_pos, map_neg) in maps.items():
      found |= {f'att_pos/{name}': map_pos, f'att_neg/{name}': map_neg}
  return found


@dataclasses.dataclass(frozen=True)
class Rows:
  """Some rows of a split, with a split's interface.

  Attributes:
    split: of a prepared set.
    rows: (M,) which.
  """

  split: store.Split
  rows: np.ndarray

  def __len__(self) -> int:
    return len(self.rows)

  @property
  def ids(self) -> np.ndarray:
    return self.split.ids[self.rows]

  @property
  def labels(self) -> np.ndarray:
    return self.split.labels[self.rows]

  @property
  def boxes(self) -> np.ndarray:
    return self.split.boxes[self.rows]

  @property
  def num_boxes(self) -> np.ndarray:
    return self.split.num_boxes[self.rows]

  @property
  def groups(self) -> np.ndarray:
    return self.split.groups[self.rows]

  def images(self, indices: np.ndarray) -> np.ndarray:
    """The stored squares of rows `indices`."""
    return self.split.images(self.rows[indices])

  def check_unchanged(self) -> None:
    """As of the split."""
    self.split.check_unchanged()


def to_explain(split: store.Split, seed: int) -> Rows:
  """The images with a box, and at most WITHOUT_BOXES seeded others."""
  others = np.flatnonzero(split.num_boxes == 0)
  rng = np.random.default_rng(seed)
  some = rng.permutation(others)[:WITHOUT_BOXES]
  return Rows(
    split, np.sort(np.concatenate([np.flatnonzero(split.num_boxes), some]))
  )


def cam_target(config: ConfigDict, class_names: Sequence[str]) -> str:
  """The target that evaluate.cam_target comes to.

  'lesion' is 'label' where no class says that nothing is there.
  """
  target = config.evaluate.cam_target
  if target == 'lesion' and not vocabulary.is_normal(class_names[0]):
    return 'label'
  return target


def compile_maps(run: Run, target: str, stage: str) -> jax.stages.Wrapped:
  """`explain_step` of a run of stage II, compiled.

  `inference.collect` with it gives {map: (N, h, w)} of every row of a split.

  Args:
    run: of stage II.
    target: of `cam_target`.
    stage: of `cam_stage`.

  Raises:
    ValueError: the run is of stage I.
  """
  return programs.compile_step(
    run,
    functools.partial(
      explain_step,
      objective=run.classifier,
      target=target,
      cam_stage=stage,
    ),
    gather=True,
  )


def cam_stage(config: ConfigDict) -> str:
  """The stage that evaluate.cam_stage names.

  Raises:
    UserError: the run's network has none of that name.
  """
  model, size = config.model, config.data.image_size
  stages = (*sides.stage_sides(model.network, size, model.stage_sizes),)
  wanted = config.evaluate.cam_stage
  if wanted not in ('last', *stages):
    raise UserError(
      f'config.evaluate.cam_stage is {wanted!r}; the stages of this run are'
      f' {", ".join(stages)}'
    )
  return stages[-1] if wanted == 'last' else wanted


def localise(
  shown: Rows,
  maps: dict[str, np.ndarray],
  validation: tuple[Rows, dict[str, np.ndarray]] | None,
  training: store.Split,
  *,
  size: int,
  resamples: int,
  seed: int,
) -> tuple[np.ndarray, dict[str, localisation.Scores], dict[str, Any]]:
  """Scores maps against the boxes, beside maps that have not seen the image.

  Args:
    shown: the images.
    maps: {map: (M, h, w)} of all of them; scored where there is a box.
    validation: images with boxes and their maps, to choose the thresholds of
      IoU on; None leaves IoU undefined.
    training: the training split, for the prior.
    size: side in pixels at which maps and boxes meet.
    resamples: of the bootstrap.
    seed: of the bootstrap and of the random baseline.

  Returns:
    ids (N,) of the images with a box; {map: {score: (N,)}} of them; and
    evaluation.json's 'localisation'.
  """
  with_box = np.flatnonzero(shown.num_boxes)
  scored = Rows(shown.split, shown.rows[with_box])

  def baselines(count):
    return localisation.baselines(
      count, maps['cam'].shape[1:], size, training.boxes, training.num_boxes,
      seed,
    )  # fmt: skip

  # What a map says of "no lesion" is not scored: it is high nearly everywhere.
  every = {n: m[with_box] for n, m in maps.items() if 'att_neg' not in n}
  every |= baselines(len(scored))
  chosen_on: dict[str, np.ndarray] = {}
  if validation is not None:
    rows, own = validation
    chosen_on = own | baselines(len(rows))
  per_image, result = {}, {}
  for name, value in every.items():
    threshold = None
    if name in chosen_on:
      threshold = localisation.choose_threshold(
        chosen_on[name], rows.boxes, rows.num_boxes, size
      )
    values = localisation.per_image(
      value, scored.boxes, scored.num_boxes, size, threshold
    )
    means, intervals = localisation.summarise(
      values, resamples=resamples, seed=seed, patients=scored.groups
    )
    per_image[name] = values
    result[name] = {
      'num_images': len(scored),
      'scores': means,
      'intervals': intervals,
      'threshold': threshold,
    }
  return scored.ids, per_image, result
