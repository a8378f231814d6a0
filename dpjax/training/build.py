"""From a config and a prepared set to a run, its optimizer and first state.

Training and evaluation build the same networks, losses and batches from the
same config here, so that neither can drift from the other.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from dpjax import losses
from dpjax.data import store
from dpjax.distributed import parallel, processes
from dpjax.errors import UserError, warn
from dpjax.models import heads, resnet, sides, vgg
from dpjax.training import (
  auto,
  batches,
  checkpoint,
  objectives,
  optim,
  programs,
  steps,
)
from dpjax.training.run import Run, total_steps


def build(
  config: ConfigDict,
  stage: str,
  data: store.Store,
  topology: parallel.Topology | None = None,
) -> Run:
  """Makes the networks and losses of one stage; allocates nothing.

  Args:
    config: as resolved (dpjax.config.resolve).
    stage: 'pretrain', 'retrain' or 'finetune'.
    data: the prepared set; it gives the classes and their counts.
    topology: what to compile for, if not for the devices that are here.

  Raises:
    UserError: one line, where config and set do not fit.
  """
  records = batches.training_records(config, stage, data)
  config = auto.resolve(config, stage, data, records, topology)
  devices = parallel.Devices(
    config.parallel.mode, config.parallel.devices, topology
  )
  make = {
    'pretrain': _pretraining,
    'retrain': _retraining,
    'finetune': _finetuning,
  }[stage]
  objective = make(config, data, devices.axis_name)
  return Run(config, stage, data, records, objective, devices)


def _pretraining(config, data, axis_name):
  """Stage I; it needs nothing of the set."""
  del data
  return objectives.Pretraining(
    backbone=make_backbone(config.model, num_classes=0, axis_name=axis_name),
    projector=heads.Projector(
      hidden=config.pretrain.hidden, out=config.pretrain.projection
    ),
    pixels=_pixels(config),
    temperature=config.pretrain.temperature,
  )


def _retraining(config, data, axis_name):
  """Stage II."""
  mgacr = config.mgacr
  weights = _mgacr_weights(mgacr, data.split('train'))
  attention, mask_sides = None, {}
  if any(weights.values()):
    every = sides.stage_sides(
      config.model.network, config.data.image_size, config.model.stage_sizes
    )
    mask_sides = {stage: every[stage] for stage in mgacr.stages}
    attention = heads.AttentionHeads(
      stages=mgacr.stages,
      use_batch_norm=mgacr.batch_norm,
      axis_name=_shared(config.model, axis_name),
    )
  counts = class_counts(data.split('train'), data.num_classes)
  early, begin = None, 0
  if config.loss.begin:
    early = unweighted_loss(config.loss, counts)
    # Of a run that is extended it stays where it was.
    total = config.retrain.optim.begin or total_steps(
      config.retrain, len(data.split('train'))
    )
    begin = round(config.loss.begin * total)
  return objectives.Retraining(
    backbone=make_backbone(
      config.model, num_classes=data.num_classes, axis_name=axis_name
    ),
    attention=attention,
    pixels=_pixels(config, mask_sides=mask_sides, mask_kind=mgacr.mask),
    classification=classification_loss(config.loss, counts),
    early=early,
    begin=begin,
    weights=weights,
    frozen=config.retrain.freeze,
    mgacr={
      'reduction': mgacr.reduction,
      'negative': mgacr.negative,
      'eps': mgacr.eps,
      'lesions_only': mgacr.lesions_only,
      'stop_gradient_maps': mgacr.stop_gradient_maps,
    },
  )


def _finetuning(config, data, axis_name):
  """Stage II with the loss of `finetune`, which may teach no attention."""
  settings = config.finetune
  objective = dataclasses.replace(
    _retraining(config, data, axis_name),
    classification=classification_loss(
      settings.loss, class_counts(data.split('train'), data.num_classes)
    ),
    early=None,
    frozen=settings.freeze,
  )
  if not settings.freeze:
    return objective
  return dataclasses.replace(
    objective,
    weights=dict.fromkeys(objective.weights, 0.0),
    pixels=dataclasses.replace(objective.pixels, mask_sides={}),
  )


def _resnet(settings, **options):
  return resnet.ResNet(
    stage_sizes=settings.stage_sizes,
    width=settings.width,
    block=settings.block,
    stem=settings.stem,
    **options,
  )


def _vgg16(settings, **options):
  return vgg.VGG16(width=settings.width, **options)


# By the words of config.model.network; each is (section `model`, num_classes=,
# dtype=, axis_name=) -> a module that returns (logits, features), as ResNet.
NETWORKS = {'resnet': _resnet, 'vgg16': _vgg16}


def make_backbone(
  settings: ConfigDict, *, num_classes: int, axis_name: str | None
) -> Any:
  """The network of the section `model` of a config.

  Args:
    settings: the section, as resolved.
    num_classes: of its classifier; 0 for none.
    axis_name: of the devices that share a batch, or None.
  """
  return NETWORKS[settings.network](
    settings,
    num_classes=num_classes,
    dtype=jnp.dtype(settings.dtype),
    axis_name=_shared(settings, axis_name),
  )


def _shared(settings, axis_name):
  """The axis of the devices that normalise by the same statistics."""
  return axis_name if settings.batch_norm == 'batch' else None


def _pixels(config, **masks):
  return objectives.Pixels(
    image_size=config.data.image_size,
    mean=config.data.mean,
    std=config.data.std,
    **masks,
  )


def _mgacr_weights(mgacr, split):
  """{term: weight}; all 0, with a warning, where there is nothing to teach."""
  weights = {
    'att_pos': mgacr.weight_pos if mgacr.attention else 0.0,
    'att_neg': mgacr.weight_neg if mgacr.attention else 0.0,
    'feat': mgacr.weight_feat if mgacr.features else 0.0,
  }
  if any(weights.values()) and not split.num_boxes.any():
    warn(
      'config.mgacr: no image of the training split has a box, so'
      ' there is nothing to teach attention with; it is left out'
    )
    return dict.fromkeys(weights, 0.0)
  return weights


def class_counts(split: store.Rows, num_classes: int) -> np.ndarray:
  """Radiographs of each class (C,).

  Raises:
    UserError: one is unlabelled, or there is one class only.
  """
  if num_classes < 2:
    raise UserError(
      f'config.data.path: the set has {num_classes} class; stage II needs 2'
    )
  if (split.labels < 0).any():
    row = int(np.argmax(split.labels < 0))
    raise UserError(
      f'config.data.path: {split.ids[row]} of the training split has no'
      ' label; stage II needs one for each'
    )
  return np.bincount(split.labels, minlength=num_classes)


def _cross_entropy(settings, counts):
  del counts
  return functools.partial(losses.cross_entropy, smoothing=settings.smoothing)


def _logit_adjusted(settings, counts):
  # Half an image of a class without any: its loss stays finite.
  present = np.maximum(counts, 0.5)
  return functools.partial(
    losses.logit_adjusted,
    log_prior=np.log(present / present.sum()).astype(np.float32),
    tau=settings.tau,
    smoothing=settings.smoothing,
  )


def _focal(settings, counts):
  del counts
  return functools.partial(
    losses.focal, gamma=settings.gamma, kind=settings.kind
  )


def _cb_cross_entropy(settings, counts):
  if settings.kind == 'sigmoid':  # The binary cross entropies of Cui's code.
    return _class_balanced(settings, counts, gamma=0.0)
  return functools.partial(
    losses.cb_cross_entropy,
    weights=_class_weights(settings, counts),
    smoothing=settings.smoothing,
  )


def _cb_focal(settings, counts):
  return _class_balanced(settings, counts, gamma=settings.gamma)


def _class_balanced(settings, counts, gamma):
  return functools.partial(
    losses.cb_focal,
    weights=_class_weights(settings, counts),
    gamma=gamma,
    kind=settings.kind,
  )


def _class_weights(settings, counts):
  weights = np.asarray(losses.effective_number_weights(counts, settings.beta))
  if settings.normalize == 'images':
    weights = weights * counts.sum() / (weights * counts).sum()
  return weights.astype(np.float32)


# By the words of config.loss.classification; each is
# (section loss, counts of the classes (C,)) -> (logits, labels) -> losses (B,).
CLASSIFICATION_LOSSES = {
  'ce': _cross_entropy,
  'focal': _focal,
  'cb_ce': _cb_cross_entropy,
  'cb_focal': _cb_focal,
  'logit_adjusted': _logit_adjusted,
}


def classification_loss(
  settings: ConfigDict, counts: np.ndarray
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The config's classification loss, (logits (B, C), labels (B,)) -> (B,).

  Args:
    settings: the section `loss` of a config.
    counts: training radiographs of each class (C,).
  """
  return CLASSIFICATION_LOSSES[settings.classification](settings, counts)


def unweighted_loss(
  settings: ConfigDict, counts: np.ndarray
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """`classification_loss` as if all classes were equally frequent."""
  settings = settings.copy_and_resolve_references()
  settings.beta = settings.tau = 0.0
  return classification_loss(settings, counts)


def make_optimizer(
  run: Run, total: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The run's optimizer and schedule over `total` steps (optim.make)."""
  frozen = None
  if isinstance(run.objective, objectives.Retraining) and run.objective.frozen:
    frozen = run.objective.frozen_parameters
  return optim.make(
    steps=total,
    frozen=frozen,
    **run.settings.optim,
  )


def initial_state(
  run: Run,
  optimizer: optax.GradientTransformation,
  backbone: Any = None,
  source: str = '',
  attention: Any = None,
) -> steps.TrainState:
  """A fresh state, with what is trained already where it is given.

  Args:
    run: to begin.
    optimizer: of this run.
    backbone: {'params', 'batch_stats'} or None.
    source: where it comes from, for an error.
    attention: likewise of the attention.
  """
  if run.devices.topology:  # Of what is not there only shapes are known.
    return state_shapes(run, optimizer)
  variables = programs.first_call(
    jax.jit(run.objective.init), jax.random.key(run.config.seed)
  )
  if backbone is not None:
    variables = checkpoint.merge_backbone(variables, backbone, source)
  if attention is not None:
    variables = checkpoint.merge_attention(variables, attention, source)
  variables = jax.tree.map(jnp.asarray, variables)
  return run.devices.replicate(_first_state(run, optimizer, variables))


def state_shapes(
  run: Run, optimizer: optax.GradientTransformation
) -> steps.TrainState:
  """What `initial_state` makes, as shapes on the run's devices.

  Nothing is compiled: a saved state is restored into it at once.
  """
  variables = jax.eval_shape(run.objective.init, jax.random.key(0))
  begin = functools.partial(_first_state, run, optimizer)
  return run.devices.replicated_shapes(jax.eval_shape(begin, variables))


def _first_state(run, optimizer, variables):
  """The state before the first step."""
  state = steps.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=optimizer.init(variables['params']),
  )
  return steps.with_average(state) if run.average else state


def read_backbone(source: str, run: Run) -> Any:
  """The backbone that `init.backbone` names: a workdir or torch weights.

  Raises:
    UserError: one line, where it is missing or another network's.
  """
  if pathlib.Path(source).suffix in ('.npz', '.safetensors', '.pth', '.pt'):
    if run.config.model.network != 'resnet':
      raise UserError(
        f'config.init.backbone: {source}: torch weights are read for'
        ' model.network resnet only'
      )
    try:
      tensors = resnet.load_torch_weights(source)
    except UserError as error:  # It names the file.
      raise UserError(f'config.init.backbone: {error}') from error
    try:
      prefix, own = resnet.without_prefix(tensors)
      backbone = resnet.from_torch(own, run.objective.backbone)
    except UserError as error:
      raise UserError(f'config.init.backbone: {source}: {error}') from error
    if prefix and processes.is_process_0():
      others = len(tensors) - len(own)
      print(
        f'init.backbone: {source}: the prefix {prefix} is taken off'
        + (f'; left out beside it: {others}' if others else ''),
        flush=True,
      )
    return backbone
  return checkpoint.load_backbone(source)
