"""Validation: when, and how a state scores on the held-out split."""

import math
from collections.abc import Callable
from typing import Any

import jax

from dpjax.data import vocabulary
from dpjax.metrics import predictions
from dpjax.metrics import scores as scores_lib
from dpjax.training import inference, steps
from dpjax.training.run import Run


def validation_steps(
  total: int, every: float, steps_per_epoch: float, size: int
) -> set[int]:
  """The steps after which there is a validation: the last, and by eval.every.

  Args:
    total: steps of the run.
    every: epochs between validations; 0 for the last step only.
    steps_per_epoch: may be a fraction.
    size: steps of a dispatch; all but the last are multiples of it.
  """
  found = {total}
  if every:
    apart = max(every * steps_per_epoch, 1.0)
    for i in range(1, math.ceil(total / apart) + 1):
      found.add(min(total, size * max(1, round(i * apart / size))))
  return found


def validate(
  run: Run,
  eval_step: Callable[[Any, Any, Any], Any],
  state: steps.TrainState,
  images: jax.Array | None = None,
) -> dict[str, float | None]:
  """Scores the whole validation split.

  Stage I: the loss and accuracy among the views of each batch, by the running
  statistics; the rows that fill the last batch are not among them. Stage II:
  the loss and metrics.scores.summary.

  Args:
    run: of the step, on a set with a validation split.
    eval_step: compiled, as by programs.compile_evaluation.
    state: a steps.TrainState.
    images: of the split, if they are on the devices (batches.resident_images).
  """
  split = run.data.split('validation')
  outputs = inference.collect(
    run, eval_step, state, split, run.settings.batch_size, images
  )
  loss = float(outputs['loss'].mean())
  if run.stage == 'pretrain':
    accuracy = float(outputs['contrastive_accuracy'].mean())
    return {'loss': loss, 'contrastive_accuracy': accuracy}
  if not math.isfinite(loss):
    return {'loss': loss}  # Nothing else is defined, and the loop stops.
  summary = scores_lib.summary(
    split.labels,
    predictions.softmax(outputs['logits']),
    any_lesion=vocabulary.is_normal(run.data.class_names[0]),
  )
  return {'loss': loss, **summary}
