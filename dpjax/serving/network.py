"""One trained run as a network that answers, without its prepared set."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from dpjax.config import record as record_lib
from dpjax.config import resolve as resolve_lib
from dpjax.data import store
from dpjax.errors import UserError
from dpjax.evaluation import against, explain, files, run_config
from dpjax.metrics import predictions, unlike
from dpjax.models import heads
from dpjax.training import build, checkpoint, objectives, steps


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A run of stage II, restored.

  Attributes:
    workdir: of the run itself.
    config: its own, as it counts on this machine.
    class_names: of each class.
    step: of the checkpoint.
    objective: its networks, and how pixels reach them.
    state: their variables.
    temperature: that calibrates; None where the checkpoint was not evaluated.
    validation: what it said of the validation split (not calibrated); None
      without one.
    known: what training has seen; None where no evaluation has kept it.
    notes: what a user should know of it, in lines.
    class_counts: training images of each class; None where the checkpoint is
      of a version that did not say it.
  """

  workdir: pathlib.Path
  config: ConfigDict
  class_names: tuple[str, ...]
  step: int
  objective: objectives.Retraining
  state: steps.TrainState
  temperature: float | None
  validation: predictions.Predictions | None
  known: unlike.Known | None
  notes: tuple[str, ...]
  class_counts: Sequence[int] | None = None
  threshold = None  # An export has one on record; a run's is chosen anew.
  has_maps = True

  @property
  def size(self) -> int:
    """Side of the squares that it takes, pixels."""
    return self.config.data.store_size

  @property
  def fit(self) -> str:
    """How an image becomes a square (shards.square)."""
    return self.config.data.fit

  @property
  def dtype(self) -> str:
    """That it computes in."""
    return self.config.model.dtype

  @property
  def width(self) -> int:
    """K of its pooled features."""
    return self.state.params['backbone']['fc']['kernel'].shape[0]

  @functools.cached_property
  def sha256(self) -> str:
    """Of all parameters and statistics (steps.weights_digest)."""
    return steps.weights_digest(self.state)

  @functools.cached_property
  def _answer(self):
    return jax.jit(
      functools.partial(steps.embed_step, objective=self.objective)
    )

  def answer(self, squares: np.ndarray) -> dict[str, jax.Array]:
    """What the network says of squares, still on the device.

    Args:
      squares: (B, S, S) uint8, S the side that the run's set is stored in.

    Returns:
      {'logits': (B, C), 'pooled': (B, K)} float32.
    """
    return self._answer(self.state, {'images': squares})

  @functools.cached_property
  def cam(self) -> tuple[str, str]:
    """Target and stage of Grad-CAM; 'label' is nobody's here."""
    target = explain.cam_target(self.config, self.class_names)
    if target == 'label':
      target = 'prediction'
    return target, explain.cam_stage(self.config)

  @functools.cached_property
  def _explain(self):
    target, stage = self.cam
    return jax.jit(
      functools.partial(
        explain.explain_step,
        objective=self.objective,
        target=target,
        cam_stage=stage,
      )
    )

  def explain(self, squares: np.ndarray) -> dict[str, jax.Array]:
    """Where the answers come from (explain.explain_step), on the device."""
    labels = np.full(len(squares), -1, np.int32)
    return self._explain(self.state, {'images': squares, 'label': labels})


def restore(
  workdir: str | pathlib.Path,
  *,
  checkpoint: str | None = None,
  config: ConfigDict | None = None,
) -> Network:
  """Restores a run of stage II to answer.

  Args:
    workdir: of the run, or of a recipe: then its last stage counts.
    checkpoint: 'last' or 'best'; None: the one that was evaluated, else the
      last.
    config: of it count the section `evaluate` and the machine's fields; None:
      those of the run.

  Raises:
    UserError: one line: there is no such run or checkpoint, or a file of it is
      damaged.
  """
  if checkpoint not in (None, 'last', 'best'):
    raise UserError(f'checkpoint is {checkpoint!r}; wanted last or best')
  given, workdir = workdir, files.workdir_of(os.path.expanduser(workdir))
  if not (workdir / 'config.json').is_file():
    raise UserError(
      f'{given} holds no config.json; it must be the workdir of a stage II run'
      ' or of a recipe'
    )
  own = _own_config(workdir, config)
  evaluation = None
  if (workdir / files.EVALUATION).is_file():
    evaluation = files.read_evaluation(workdir, ('class_names', 'checkpoint'))
  which = checkpoint or (evaluation or {}).get('checkpoint') or 'last'
  step, state, record = _read(workdir, own, which)
  names = _class_names(workdir, own, state, record, evaluation)
  return Network(
    workdir=workdir,
    config=own,
    class_names=names,
    step=step,
    objective=_objective(own, state, names),
    state=state,
    class_counts=record.get('class_counts'),
    **_chosen(workdir, step, state, evaluation, len(names)),
  )


def _own_config(workdir, config):
  record_lib.load(workdir / 'config.json', whole=True)  # Else it is refused.
  own = resolve_lib.checked(run_config.get_config(str(workdir)))
  if own.stage == 'pretrain':
    raise UserError(
      f'{workdir} holds a run of {own.stage}, which does not classify'
    )
  if config is not None:
    own.evaluate = config.evaluate
    if config.model.dtype != 'auto':
      own.model.dtype = config.model.dtype
  if own.model.dtype == 'auto':
    on_cpu = jax.default_backend() == 'cpu'
    own.model.dtype = 'float32' if on_cpu else 'bfloat16'
  return own


def _chosen(workdir, step, state, evaluation, num_classes):
  """What an evaluation of this step has chosen and kept, as Network has it."""
  found = dict.fromkeys(('temperature', 'validation', 'known'))
  why = None
  if not evaluation:
    why = 'not evaluated'
  elif evaluation.get('step') != step:
    why = f'evaluated at step {evaluation.get("step")}, and this is {step}'
  elif evaluation.get('weights') not in (None, steps.weights_digest(state)):
    why = f'evaluated with other weights than step {step} has now'
  if why is not None:
    note = (
      f'{workdir}: {why}: probabilities are not calibrated, there is no'
      ' threshold and nothing is flagged; evaluate chooses all three'
    )
    return {**found, 'notes': (note,)}
  notes = []
  found['temperature'] = evaluation.get('temperature')
  if (workdir / files.VALIDATION).is_file() and evaluation.get('chosen_on'):
    found['validation'] = against.read_predictions(
      workdir / files.VALIDATION, num_classes
    )
  else:
    notes.append(
      f'{workdir}: nothing was chosen on a validation split, so no threshold'
    )
  found['known'] = unlike.read(workdir / files.FEATURES)
  if found['known'] is None:
    notes.append(
      f'{workdir}: no {files.FEATURES}, so nothing is flagged as unlike'
      ' training; evaluate writes it'
    )
  elif found['known'].features.shape[1] != (
    width := state.params['backbone']['fc']['kernel'].shape[0]
  ):
    raise UserError(
      f'{workdir / files.FEATURES} holds features of'
      f' {found["known"].features.shape[1]} numbers, and the network has'
      f' {width}; remove it, or evaluate again'
    )
  return {**found, 'notes': tuple(notes)}


def _read(workdir, config, which):
  """(step, state, record) of a checkpoint."""
  with contextlib.closing(
    checkpoint.Checkpoints(workdir, best=config.eval.best, write=False)
  ) as saved:
    step = saved.find(which)
    tree = saved.read_state(step)
    record = saved.read_record(step)
  seen = tree.get('average', tree)  # The weights that are evaluated.
  state = steps.TrainState(
    step=jax.numpy.asarray(step),
    params=seen['params'],
    batch_stats=seen.get('batch_stats', {}),
    opt_state=None,
  )
  return step, jax.tree.map(jax.numpy.asarray, state), record


def _class_names(workdir, config, state, record, evaluation):
  """The names, from whoever has them on record."""
  count = state.params['backbone']['fc']['bias'].shape[0]
  places = [
    lambda: record.get('class_names'),
    lambda: (evaluation or {}).get('class_names'),
    lambda: store.read_summary(config.data.path)['class_names'],
  ]
  for place in places:
    with contextlib.suppress(UserError, OSError):
      names = place()
      if names is not None and len(names) == count:
        return tuple(map(str, names))
  raise UserError(
    f'{workdir}: nothing says what its {count} classes are called: it was not'
    f' evaluated, and {config.data.path} is not the set that it was trained on'
  )


def _untrained(logits: jax.Array, labels: jax.Array) -> jax.Array:
  raise ValueError('a restored network has no loss')


def _objective(config, state, names):
  """The networks alone; nothing is trained here."""
  attention = None
  if 'attention' in state.params:
    attention = heads.AttentionHeads(
      stages=config.mgacr.stages, use_batch_norm=config.mgacr.batch_norm
    )
  return objectives.Retraining(
    backbone=build.make_backbone(
      config.model, num_classes=len(names), axis_name=None
    ),
    attention=attention,
    pixels=objectives.Pixels(
      image_size=config.data.image_size,
      mean=config.data.mean,
      std=config.data.std,
    ),
    classification=_untrained,
    weights={},
    mgacr={},
  )
