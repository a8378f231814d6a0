"""From a config as given to one that says what will be done, with every check.

What is refused is refused here, in one line that names the field, before
anything is allocated.
"""

import pathlib

import ml_collections

from dpjax import machine
from dpjax.config import fields
from dpjax.config.fields import refuse
from dpjax.data.sources import phantom, registry
from dpjax.models import sides


def resolve(
  config: ml_collections.ConfigDict,
  *,
  num_devices: int | None,
  platform: str,
  num_processes: int = 1,
) -> ml_collections.ConfigDict:
  """Returns a checked copy of `config`, ready to be recorded.

  Some fields stay open: data.placement=auto and train.steps_per_dispatch=0,
  which depend on the prepared set, and data.shuffle=auto, which depends on the
  run, are settled by training when it has them; init.backbone=auto by the
  recipe.

  Args:
    config: as given by configs/ and the flags. Fields that it lacks have their
      default.
    num_devices: devices that this run may use, over all processes; None for a
      command that uses none: then `parallel` is left as it is.
    platform: 'cpu', 'gpu' or 'tpu'.
    num_processes: of the job.

  Raises:
    UserError: one line that names the field and what would be right.
  """
  c = checked(config)
  c.data.threads = c.data.threads or min(machine.cores(), 16)
  c.data.workers = c.data.workers or machine.cores()
  accelerator = platform != 'cpu'
  if c.data.render == 'auto':
    c.data.render = 'device' if accelerator else 'host'
  if c.data.placement == 'auto' and c.data.render == 'host':
    c.data.placement = 'stream'
  if c.model.dtype == 'auto':
    c.model.dtype = 'bfloat16' if accelerator else 'float32'
  if num_devices is not None:
    _resolve_parallel(c, num_devices, num_processes)
    _check_batches(c)
    _check_placement(c)
  if c.data.label == 'auto':
    c.data.label = registry.label_policy(c.data.layout)
  if c.data.path is None:
    c.data.path = _default_path(c)
  _check_relevance(c)
  _check_network(c)
  _check_schedules(c)
  _check_losses(c)
  _check_mgacr(c)
  _check_start(c)
  _check_source(c)
  return c


def checked(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """All fields, each with a value that it may have by itself.

  Args:
    config: as given; fields that it lacks have their default.

  Raises:
    UserError: one line: there is no such field, or its value is none.
  """
  given = fields.flatten(config)
  declared = fields.table()
  for name in given:
    fields.check_field(declared, name)
  return fields.typed(
    {
      name: field.checked(name, given.get(name, field.default))
      for name, field in declared.items()
    }
  )


def _resolve_parallel(c, num_devices, num_processes):
  several = num_processes > 1
  parallel = c.parallel
  if parallel.devices > num_devices:
    refuse('parallel.devices', parallel.devices, f'at most {num_devices}')
  parallel.devices = parallel.devices or num_devices
  if several and parallel.devices != num_devices:
    refuse('parallel.devices', parallel.devices, f'0 or the {num_devices} of'
           f' all {num_processes} processes')  # fmt: skip
  if parallel.mode == 'auto':
    parallel.mode = 'jit' if parallel.devices == 1 else 'pmap'
    if several:
      parallel.mode = 'shard_map'
  if parallel.mode == 'jit' and parallel.devices > 1:
    refuse('parallel.mode', 'jit', 'pmap or shard_map on several devices')
  if parallel.mode == 'pmap' and several:
    refuse('parallel.mode', 'pmap', f'shard_map in a job of {num_processes}'
           ' processes')  # fmt: skip


def _default_path(c):
  # Where the two draws differ, so do the sets.
  split = f'-split{c.split.seed}' if c.split.seed else ''
  name = c.data.layout
  if name == 'phantom':
    count, seed = c.data.phantom.count, c.data.phantom.seed
    name = f'phantom-v{phantom.VERSION}-{count}-{seed}'
    if (least := c.data.phantom.least) != phantom.MIN_PER_CLASS:
      name += f'-least{least}'
  return f'data/{name}-{c.data.store_size}{split}'


# Fields that must fit each other.


def _check_batches(c):
  devices = c.parallel.devices
  for stage in ('pretrain', 'retrain'):
    size = c[stage].batch_size
    if size % devices:
      refuse(f'{stage}.batch_size', size, f'a multiple of the {devices}'
             ' devices, or fewer of them by parallel.devices')  # fmt: skip


def _check_relevance(c):
  """Fields that would say nothing beside the others."""
  flat = fields.flatten(c)
  needs = {
    'data.classes': ('data.label', ('class',)),
    'data.label_cap': ('data.label', ('count',)),
    'data.phantom.least': ('data.layout', ('phantom',)),
  }
  for name, field in fields.table().items():
    # Those of data.csv have their layout in their name.
    if name.startswith('data.csv.') or flat[name] == field.default:
      continue
    layouts = registry.layouts_reading(name.removeprefix('data.'))
    other, values = needs.get(name, ('data.layout', layouts))
    if values and name != 'data.label' and flat[other] not in values:
      wanted = f'left out unless {other} is {" or ".join(values)}'
      refuse(name, flat[name], wanted)


def _check_placement(c):
  if c.data.placement == 'resident' and c.data.render == 'host':
    refuse('data.placement', 'resident', 'stream where data.render is host, as'
           ' it is on CPUs; or give data.render=device')  # fmt: skip


def _check_network(c):
  size = c.data.image_size
  stages = (*sides.stage_sides(c.model.network, size, c.model.stage_sizes),)
  stride = sides.stride(c.model.network, c.model.stage_sizes)
  if size < stride:
    refuse('data.image_size', size, f"at least the network's {stride}")
  if c.evaluate.cam_stage not in ('last', *stages):
    refuse('evaluate.cam_stage', c.evaluate.cam_stage, f'last or one of'
           f' {", ".join(stages)}')  # fmt: skip
  taught = c.mgacr.stages
  if not set(taught) <= set(stages) or len(set(taught)) < len(taught):
    refuse('mgacr.stages', taught, f'a tuple of words among {stages}, each'
           ' once')  # fmt: skip


def _check_schedules(c):
  for stage in ('pretrain', 'retrain', 'finetune'):
    optim = c[stage].optim
    if optim.schedule == 'onecycle' and not optim.warmup:
      refuse(f'{stage}.optim.warmup', 0, 'above 0 for a onecycle schedule')
    if optim.schedule == 'step' and not optim.step_fractions:
      refuse(f'{stage}.optim.step_fractions', (), 'one share or more')


def _check_losses(c):
  for name, loss in (('loss', c.loss), ('finetune.loss', c.finetune.loss)):
    plain = loss.classification in ('ce', 'cb_ce', 'logit_adjusted')
    if loss.smoothing and not (plain and loss.kind == 'softmax'):
      refuse(f'{name}.smoothing', loss.smoothing, f'0, or {name}.classification'
             f' ce, cb_ce or logit_adjusted with {name}.kind=softmax'
             )  # fmt: skip
  if c.loss.begin and c.loss.classification in ('ce', 'focal'):
    refuse('loss.begin', c.loss.begin, 'left out where loss.classification is'
           f' {c.loss.classification}: it has no class weights')  # fmt: skip


def _check_mgacr(c):
  mgacr = c.mgacr
  if (mgacr.attention or mgacr.features) and not mgacr.stages:
    refuse('mgacr.stages', (), 'at least one stage, or attention and features'
           ' both False')  # fmt: skip
  alone = mgacr.features and not mgacr.attention
  if alone and not mgacr.stop_gradient_maps:
    refuse('mgacr.features', True, 'with mgacr.attention, or with'
           ' mgacr.stop_gradient_maps: Eq. 5 alone drives map+ to 1 and map-'
           ' to 0')  # fmt: skip


def _check_start(c):
  if c.retrain.freeze and c.init.backbone is None:
    refuse('retrain.freeze', True, 'with a backbone from somewhere:'
           ' init.backbone is None')  # fmt: skip
  if c.stage == 'finetune':
    if not c.finetune.epochs:
      refuse('finetune.epochs', 0, 'above 0 for stage=finetune')
    if c.init.backbone in (None, 'auto'):
      refuse('init.backbone', c.init.backbone, 'the workdir of a stage II for'
             ' stage=finetune')  # fmt: skip


def _check_source(c):
  if c.data.layout == 'phantom' or c.data.source is not None:
    return
  if not (pathlib.Path(c.data.path) / 'summary.json').is_file():
    refuse('data.source', None, f'the folder of the {c.data.layout} set: there'
           f' is no prepared one in {c.data.path}')  # fmt: skip
