"""From a config and a prepared set to the pieces of a run.

Training and evaluation build the same networks, losses and batches from the
same config here, so that neither can drift from the other.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpjax import losses
from dpjax.data import store, vocabulary
from dpjax.data.feed import decisions, pipeline
from dpjax.data.prepare import duplicates
from dpjax.distributed import parallel, processes
from dpjax.errors import UserError
from dpjax.models import heads, resnet, sides, vgg
from dpjax.training import optim, steps

_READ = 1024  # images read at once where all are read


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One stage of one config on one prepared set.

  Attributes:
    config: as resolved (dpjax.config.resolve).
    stage: 'pretrain' or 'retrain'.
    data: the prepared set.
    model: the stage's losses and outputs.
  """

  config: Any
  stage: str
  data: store.Store
  model: steps.Pretraining | steps.Retraining

  @property
  def settings(self) -> Any:
    """The stage's own section of the config."""
    return self.config[self.stage]

  @functools.cached_property
  def training_records(self) -> pipeline.Records:
    """The training split; in stage I all that needs no label, too."""
    if self.stage != 'pretrain':
      return pipeline.Records((self.data.split('train'),))
    splits = _for_pretraining(self.data)
    if extra := self.config.data.pretrain_extra:
      other = store.load(extra)
      if other.size != self.data.size:
        raise UserError(
          f'config.data.pretrain_extra: {extra} holds squares of {other.size}'
          f' pixels and data.path of {self.data.size}; prepare both alike'
        )
      added = _for_pretraining(other)
      self._check_none_held_out(added, extra)
      splits += added
    return pipeline.Records(tuple(splits))

  def _check_none_held_out(self, splits, path):
    """Raises UserError where an image, or a copy of it, is held out."""
    for name in ('validation', 'test'):
      if name not in self.data.splits:
        continue
      held_out = self.data.split(name)
      for split in splits:
        found = duplicates.between(
          split.source_digests.tolist(),
          split.hashes,
          held_out.source_digests.tolist(),
          held_out.hashes,
          self.config.split.near,
        )
        if found:
          raise UserError(
            f'config.data.pretrain_extra: {split.ids[found[0].first]} of {path}'
            f' is an image of the {name} split of data.path, or a copy of one'
            f' ({len(found)} are); training must not see it'
          )

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of the training records: the same set, wherever it stands."""
    records = self.training_records
    columns = (records.column(c).tolist() for c in ('ids', 'labels', 'digests'))
    return hashlib.sha256(json.dumps([*columns]).encode()).hexdigest()

  def check_trained_on(self, record: dict[str, Any]) -> None:
    """Raises UserError if a checkpoint's `record` names other training data.

    `data.path` may change in a run, the set may not: the iterator's state would
    mean other images, and what is held out might have been trained on.
    """
    if record.get('trained_on', self.fingerprint) != self.fingerprint:
      raise UserError(
        f'config.data.path: {self.data.path} is not the set that the run was'
        ' trained on; name that one, or another workdir'
      )

  def optimizer(self, total: int) -> tuple[Any, Any]:
    """The stage's optimizer and schedule over `total` steps (optim.make)."""
    frozen = self.stage == 'retrain' and self.model.frozen
    return optim.make(
      steps=total,
      frozen=self.model.frozen_parameters if frozen else None,
      **self.settings.optim,
    )

  def training_stream(self) -> Any:
    """The endless stream of augmented batches (pipeline.training)."""
    records = self.training_records
    batch_size = self.settings.batch_size
    if batch_size > len(records):
      raise UserError(
        f'config.{self.stage}.batch_size is {batch_size}; it must be at most'
        f' the {len(records)} training radiographs'
      )
    return pipeline.training(
      records,
      self._plan(augmented=True, images=not self.resident),
      batch_size=batch_size,
      **self._reading(),
    )

  def stream_once(
    self, split: Any, batch_size: int, images: bool = True
  ) -> Any:
    """Every record of `split` once, in order (pipeline.sequential).

    Stage I sees pairs, the same ones at every call; stage II plain images.

    Args:
      split: of the prepared set.
      batch_size: over all processes.
      images: read them; False where they are on the device.
    """
    augmented = self.stage == 'pretrain'
    return pipeline.sequential(
      pipeline.Records((split,)),
      self._plan(augmented=augmented, masks=False, images=images),
      batch_size=batch_size,
      **self._reading(),
    )

  def _reading(self):
    return {
      'seed': self.config.seed,
      'process': (0, 1) if self._alone else parallel.share(),
      'threads': self.config.data.threads,
      'prefetch': self.config.data.prefetch,
    }

  @property
  def _alone(self):
    """Whether one process does this by itself, even in a job of several."""
    return self.config.parallel.mode == 'jit'

  def _plan(self, augmented, masks=True, images=True):
    pair = self.stage == 'pretrain'
    kind = self.config.pretrain.views
    return pipeline.BatchSpec(
      image_size=self.config.data.image_size,
      augmentation=decisions.Augmentation(**self.settings.augment)
      if augmented
      else None,
      views=(3 if kind == 'three' else 2) if pair else 1,
      plain_anchor=pair and kind != 'augmented',
      mask_sides=tuple(self.model.pixels.mask_sides.items()) if masks else (),
      mask_kind=self.config.mgacr.mask,
      normal=vocabulary.is_normal(self.data.class_names[0]),
      host=self.config.data.render == 'host',
      images=images,
    )

  @property
  def steps_per_epoch(self) -> float:
    """Batches that show each training record once; may be a fraction."""
    return len(self.training_records) / self.settings.batch_size

  @property
  def total_steps(self) -> int:
    """Updates of the whole stage."""
    return max(1, round(self.settings.epochs * self.steps_per_epoch))

  @property
  def steps_per_dispatch(self) -> int:
    """train.steps_per_dispatch; 0 there: 1 on a CPU, else by the batch size.

    A dispatch costs the host about half a millisecond, which only steps of few
    images are too short to hide. Validations, which fall on the ends of
    dispatches, are not moved by more than half of what is between two.
    """
    if wanted := self.config.train.steps_per_dispatch:
      return wanted
    if jax.default_backend() == 'cpu':
      return 1
    batch_size = self.settings.batch_size
    wanted = min(16, 1024 * self.config.parallel.devices // batch_size)
    if self.config.eval.every:
      wanted = min(wanted, int(self.config.eval.every * self.steps_per_epoch))
    return max(1, wanted)

  @functools.cached_property
  def resident(self) -> bool:
    """Whether training reads its images from the memory of the devices.

    data.placement=auto: where the training and validation images take less than
    a quarter of what is free there.
    """
    placement = self.config.data.placement
    if placement != 'auto':
      return placement == 'resident'
    if self.config.data.render == 'host':
      return False
    images = len(self.training_records) + len(
      self.data.splits.get('validation', ())
    )
    free = parallel.free_bytes()
    fits = free is not None and images * self.data.size**2 < free / 4
    # All processes run the same program, whatever is free on their devices.
    return processes.first_says(fits)

  def images(self, records: Any) -> jax.Array | None:
    """The stored squares (N, S, S) on every device, or None if not resident.

    Args:
      records: a split or pipeline.Records.
    """
    if not self.resident:
      return None
    images = np.empty((len(records), self.data.size, self.data.size), np.uint8)
    for start in range(0, len(images), _READ):
      rows = np.arange(start, min(start + _READ, len(images)))
      images[rows] = records.images(rows)
    return parallel.replicate(images, **self._devices)

  @property
  def _devices(self):
    parallel_ = self.config.parallel
    return {'mode': parallel_.mode, 'devices': parallel_.devices}

  def compile(
    self, step: Callable[..., Any], **options: Any
  ) -> Callable[[Any, Any, Any], Any]:
    """parallel.compile_step as the config says, f(state, batch, images).

    Args:
      step: steps.train_step or steps.eval_step of this experiment's model.
      **options: donate, gather, steps of parallel.compile_step.
    """

    def with_images(state, batch, images, **kwargs):
      if images is not None:
        squares = images.at[batch['index']].get(mode='promise_in_bounds')
        batch = {**batch, 'images': squares}
      return step(state, batch, **kwargs)

    return parallel.compile_step(with_images, **self._devices, **options)

  def compile_training(
    self, optimizer: Any, schedule: Any, count: int = 1, donate: bool = True
  ) -> Callable[[Any, Any, Any], Any]:
    """`compile` of the stage's update, `count` of them a dispatch."""
    step = functools.partial(
      steps.train_step, stage=self.model, optimizer=optimizer, schedule=schedule
    )
    return self.compile(step, donate=donate, steps=count)

  def compile_evaluation(self) -> Callable[[Any, Any, Any], Any]:
    """`compile` of what the stage says of each image, for `infer`."""
    step = functools.partial(steps.eval_step, stage=self.model)
    return self.compile(step, gather=True)

  def place(self, batch: Any, stacked: bool = False) -> Any:
    """parallel.place as the config says, of what the step needs of a batch."""
    unused = {'valid'}
    if 'images' in batch or 'views' in batch:
      unused.add('index')
    batch = {k: v for k, v in batch.items() if k not in unused}
    return parallel.place(batch, stacked=stacked, **self._devices)

  def place_dispatch(self, batches: Sequence[Any]) -> Any:
    """`place` of the batches of one dispatch, one a step."""
    if len(batches) == 1:
      return self.place(batches[0])
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
    return self.place(stacked, stacked=True)

  def replicate(self, tree: Any) -> Any:
    """parallel.replicate as the config says."""
    return parallel.replicate(tree, **self._devices)

  def infer(
    self, eval_step: Callable[[Any, Any, Any], Any], state: Any, split: Any,
    batch_size: int, images: jax.Array | None = None,
  ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:  # fmt: skip
    """Yields (rows, outputs) for every batch of a split, whole, in order.

    Args:
      eval_step: compiled steps.eval_step.
      state: a steps.TrainState.
      split: of the prepared set.
      batch_size: rounded up to a multiple of the devices.
      images: of the split, if they are on the devices.
    """
    batch_size = self._whole(batch_size)
    stream = self.stream_once(split, batch_size, images=images is None)
    pending = None  # (rows, outputs still on the device)
    for start, batch in zip(
      range(0, len(split), batch_size), stream, strict=True
    ):
      outputs = eval_step(state, self.place(batch), images)
      if pending is not None:
        yield _on_host(*pending)
      pending = min(batch_size, len(split) - start), outputs
    if pending is not None:
      yield _on_host(*pending)

  def first_batch(
    self, split: Any, batch_size: int, images: jax.Array | None = None
  ) -> Any:
    """The first batch of `infer`, on the devices: to compile for."""
    stream = self.stream_once(
      split, self._whole(batch_size), images=images is None
    )
    return self.place(pipeline.first(stream, 1)[0])

  def _whole(self, batch_size):
    """Rounded up to a multiple of the devices."""
    devices = self.config.parallel.devices
    return -(-batch_size // devices) * devices

  def collect(
    self, eval_step: Callable[[Any, Any, Any], Any], state: Any, split: Any,
    batch_size: int, images: jax.Array | None = None,
  ) -> dict[str, np.ndarray]:  # fmt: skip
    """What `infer` yields of a whole split, an array (N, ...) an output."""
    parts: dict[str, list[np.ndarray]] = {}
    for _, outputs in self.infer(eval_step, state, split, batch_size, images):
      for name, value in outputs.items():
        parts.setdefault(name, []).append(value)
    return {name: np.concatenate(part) for name, part in parts.items()}


def _on_host(rows, outputs):
  outputs = jax.device_get(outputs)
  return rows, {name: value[:rows] for name, value in outputs.items()}


def _for_pretraining(data):
  """The splits that stage I may see."""
  names = [name for name in ('train', 'unlabelled') if name in data.splits]
  return [data.split(name) for name in names]


def build(config: Any, stage: str, data: store.Store) -> Experiment:
  """Makes the networks and losses of one stage; allocates nothing.

  Args:
    config: as resolved.
    stage: 'pretrain' or 'retrain'.
    data: the prepared set; it gives the classes and their counts.

  Raises:
    UserError: one line, where config and set do not fit.
  """
  dtype = jnp.dtype(config.model.dtype)
  axis_name = None if config.parallel.mode == 'jit' else parallel.AXIS
  backbone = functools.partial(
    vgg.VGG16, width=config.model.width, dtype=dtype, axis_name=axis_name
  )
  if config.model.network == 'resnet':
    backbone = functools.partial(
      resnet.ResNet,
      stage_sizes=config.model.stage_sizes,
      width=config.model.width,
      block=config.model.block,
      stem=config.model.stem,
      dtype=dtype,
      axis_name=axis_name,
    )
  pixels = functools.partial(
    steps.Pixels,
    image_size=config.data.image_size,
    mean=config.data.mean,
    std=config.data.std,
  )
  if stage == 'pretrain':
    model = steps.Pretraining(
      backbone=backbone(num_classes=0),
      projector=heads.Projector(
        hidden=config.pretrain.hidden, out=config.pretrain.projection
      ),
      pixels=pixels(),
      temperature=config.pretrain.temperature,
    )
    return Experiment(config, stage, data, model)

  mgacr = config.mgacr
  weights = {
    'att_pos': mgacr.weight_pos if mgacr.attention else 0.0,
    'att_neg': mgacr.weight_neg if mgacr.attention else 0.0,
    'feat': mgacr.weight_feat if mgacr.features else 0.0,
  }
  taught = any(weights.values())
  if taught and not data.split('train').num_boxes.any():
    taught = False
    weights = dict.fromkeys(weights, 0.0)
    print(
      'warning: config.mgacr: no image of the training split has a box, so'
      ' there is nothing to teach attention with; it is left out',
      file=sys.stderr,
    )
  cells = sides.stage_sides(
    config.model.network, config.data.image_size, config.model.stage_sizes
  )
  model = steps.Retraining(
    backbone=backbone(num_classes=data.num_classes),
    attention=heads.AttentionHeads(
      stages=mgacr.stages,
      use_batch_norm=mgacr.batch_norm,
      axis_name=axis_name,
    )
    if taught
    else None,
    pixels=pixels(
      mask_sides={stage: cells[stage] for stage in mgacr.stages}
      if taught
      else {},
      mask_kind=mgacr.mask,
    ),
    classification=classification_loss(
      config.loss, class_counts(data.split('train'), data.num_classes)
    ),
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
  return Experiment(config, stage, data, model)


def class_counts(split: Any, num_classes: int) -> np.ndarray:
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


def classification_loss(
  config: Any, counts: np.ndarray
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The config's classification loss, (logits (B, C), labels (B,)) -> (B,)."""
  gamma = config.gamma if config.classification.endswith('focal') else 0.0
  if config.classification == 'ce':
    return losses.cross_entropy
  if config.classification == 'focal':
    return functools.partial(losses.focal, gamma=gamma, kind=config.kind)
  weights = np.asarray(losses.effective_number_weights(counts, config.beta))
  if config.normalize == 'images':
    weights = weights * counts.sum() / (weights * counts).sum()
  return functools.partial(
    losses.cb_focal,
    weights=weights.astype(np.float32),
    gamma=gamma,
    kind=config.kind,
  )


def initial_state(
  experiment: Experiment, optimizer: Any, backbone: Any = None,
  source: str = '',
) -> steps.TrainState:  # fmt: skip
  """A fresh state, with a pre-trained backbone where one is given.

  Args:
    experiment: of this stage.
    optimizer: of this stage.
    backbone: {'params', 'batch_stats'} or None.
    source: where it comes from, for an error.
  """
  from dpjax.training import checkpoint

  variables = jax.jit(experiment.model.init)(
    jax.random.key(experiment.config.seed)
  )
  if backbone is not None:
    variables = checkpoint.merge_backbone(variables, backbone, source)
    variables = jax.tree.map(jnp.asarray, variables)
  state = steps.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=optimizer.init(variables['params']),
  )
  return experiment.replicate(state)


def read_backbone(source: str, experiment: Experiment) -> Any:
  """The backbone that `init.backbone` names: a workdir or torch weights.

  Raises:
    UserError: one line, where it is missing or another network's.
  """
  from dpjax.training import checkpoint

  if pathlib.Path(source).suffix in ('.npz', '.safetensors', '.pth', '.pt'):
    if experiment.config.model.network != 'resnet':
      raise UserError(
        f'config.init.backbone: {source}: torch weights are read for'
        ' model.network resnet only'
      )
    try:
      return resnet.from_torch(
        resnet.load_torch_weights(source), experiment.model.backbone
      )
    except UserError as error:
      raise UserError(f'config.init.backbone: {source}: {error}') from error
  return checkpoint.load_backbone(source)
