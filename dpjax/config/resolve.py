"""From a config as given to one without 'auto', with every check.

The fields and their meaning stand in configs/base.py. Here is what is refused,
in one line that names the field, before anything is allocated.
"""

import difflib
import math
import pathlib

import ml_collections

from dpjax.config.fields import flatten
from dpjax.errors import UserError

# Where a field takes one of a few words.
CHOICES = {
  'stage': ('pretrain', 'retrain', 'recipe'),
  'data.layout': (
    'phantom',
    'competition',
    'rsna',
    'vindr',
    'nih',
    'coco',
    'folder',
    'csv',
  ),
  'data.fit': ('stretch', 'pad'),
  'data.label': ('auto', 'count', 'any', 'class'),
  'split.unit': ('patient', 'image'),
  'data.render': ('auto', 'host', 'device'),
  'data.placement': ('auto', 'stream', 'resident'),
  'model.network': ('resnet', 'vgg16'),
  'model.block': ('basic', 'bottleneck'),
  'model.stem': ('conv', 'space_to_depth'),
  'model.dtype': ('auto', 'float32', 'bfloat16'),
  'pretrain.views': ('augmented', 'plain', 'three'),
  'pretrain.optim.schedule': ('constant', 'cosine', 'onecycle', 'step'),
  'retrain.optim.schedule': ('constant', 'cosine', 'onecycle', 'step'),
  'loss.classification': ('ce', 'focal', 'cb_ce', 'cb_focal'),
  'loss.kind': ('softmax', 'sigmoid'),
  'loss.normalize': ('images', 'classes'),
  'mgacr.reduction': ('batch', 'sample'),
  'mgacr.negative': ('mse', 'ratio'),
  'mgacr.mask': ('area', 'binary'),
  'eval.best': (
    'accuracy',
    'balanced_accuracy',
    'macro_f1',
    'auroc_any_lesion',
  ),
  'evaluate.checkpoint': ('last', 'best'),
  'evaluate.split': ('train', 'validation', 'test'),
  'evaluate.cam_target': ('lesion', 'label', 'prediction'),
  'parallel.mode': ('auto', 'jit', 'pmap', 'shard_map'),
}

# Lowest and highest value of numbers; None: any finite one above.
RANGES = {
  'seed': (0, 2**31 - 1),
  'data.store_size': (32, 4096),
  'data.image_size': (16, 4096),
  'data.label_cap': (0, None),
  'split.seed': (0, None),
  'split.test': (0.0, 0.9),
  'split.validation': (0.0, 0.9),
  'split.near': (-1, 64),
  'data.mean': (0.0, 1.0),
  'data.std': (1e-6, None),
  'data.threads': (0, 1024),
  'data.prefetch': (1, 1024),
  'data.workers': (0, 1024),
  'data.phantom.count': (50, None),
  'data.phantom.seed': (0, None),
  'model.width': (1, 4096),
  'pretrain.temperature': (1e-6, None),
  'pretrain.hidden': (1, None),
  'pretrain.projection': (1, None),
  'loss.beta': (0.0, 1.0),
  'loss.gamma': (0.0, None),
  'mgacr.weight_pos': (0.0, None),
  'mgacr.weight_neg': (0.0, None),
  'mgacr.weight_feat': (0.0, None),
  'mgacr.eps': (0.0, None),
  'train.steps_per_dispatch': (0, 1024),
  'train.save_every': (0, None),
  'train.log_every': (1, None),
  'train.keep': (1, None),
  'eval.every': (0.0, None),
  'evaluate.batch_size': (1, None),
  'evaluate.resamples': (1, None),
  'evaluate.seed': (0, None),
  'benchmark.repeats': (1, 1000),
  'benchmark.seconds': (0.0, 3600.0),
  'compare.pixels': (4, 4096),
  'parallel.devices': (0, None),
}
for _stage in ('pretrain', 'retrain'):
  RANGES |= {
    f'{_stage}.epochs': (1e-6, None),
    f'{_stage}.batch_size': (1, None),
    f'{_stage}.augment.aspect': (1.0, None),
    f'{_stage}.augment.flip': (0.0, 1.0),
    f'{_stage}.augment.rotation': (0.0, 180.0),
    f'{_stage}.augment.brightness': (0.0, 1.0),
    f'{_stage}.augment.contrast': (0.0, 1.0),
    f'{_stage}.augment.blur': (0.0, 1.0),
    f'{_stage}.augment.noise': (0.0, 1.0),
    f'{_stage}.optim.learning_rate': (0.0, None),
    f'{_stage}.optim.momentum': (0.0, 1.0),
    f'{_stage}.optim.weight_decay': (0.0, None),
    f'{_stage}.optim.warmup': (0.0, 0.99),
    f'{_stage}.optim.step_factor': (0.0, 1.0),
    f'{_stage}.optim.clip': (0.0, None),
  }

# Tuples: (lowest, highest, length or None) of their numbers, in rising order.
_INTERVALS = {
  f'{stage}.augment.{field}': bounds
  for stage in ('pretrain', 'retrain')
  for field, bounds in {
    'scale': (1e-3, 1.0),
    'blur_sigma': (0.0, 2.0),  # half of render_common.BLUR_RADIUS
    'noise_std': (0.0, 255.0),
  }.items()
}


# What compare can train.
METHODS = ('knn', 'tree', 'adaboost', 'forest', 'svm', 'vgg16', 'resnet18',
           'resnet50', 'recipe')  # fmt: skip

# What benchmark can time.
PARTS = ('pretrain', 'retrain', 'inference', 'input')

# Tuples of texts.
_TEXTS = ('data.findings', 'data.classes', 'data.csv.metadata',
          'data.csv.box_columns')  # fmt: skip

# What a prepared set was read with; it is on record in the set.
READING = ('data.layout', 'data.label', 'data.label_cap', 'data.findings',
           'data.classes', 'data.patient_pattern', 'data.vindr_readers',
           'data.coco_annotations', 'data.csv.')  # fmt: skip


def resolve(config, *, num_devices, platform, num_processes=1):
  """Returns a checked copy of `config` without 'auto', ready to be recorded.

  Args:
    config: as given by configs/ and the flags.
    num_devices: devices that this run may use, over all processes.
    platform: 'cpu', 'gpu' or 'tpu'.
    num_processes: of the job.

  Raises:
    UserError: one line that names the field and what would be right.
  """
  c = ml_collections.ConfigDict(config.to_dict())
  for name in ('data.source', 'data.path', 'data.pretrain_extra',
               'evaluate.path', 'init.backbone'):  # fmt: skip
    section, field = name.split('.')
    if c[section][field] in ('', 'None'):  # the flag parser's None is a word
      c[section][field] = None
  _check_values(c)
  accelerator = platform != 'cpu'
  if c.data.render == 'auto':
    c.data.render = 'device' if accelerator else 'host'
  if c.data.placement == 'auto' and c.data.render == 'host':
    c.data.placement = 'stream'
  if c.model.dtype == 'auto':
    c.model.dtype = 'bfloat16' if accelerator else 'float32'
  if c.parallel.devices > num_devices:
    _refuse('parallel.devices', c.parallel.devices, f'at most {num_devices}')
  c.parallel.devices = c.parallel.devices or num_devices
  several = num_processes > 1
  if several and c.parallel.devices != num_devices:
    _refuse('parallel.devices', c.parallel.devices, f'0 or the {num_devices} of'
            f' all {num_processes} processes')  # fmt: skip
  if c.parallel.mode == 'auto':
    c.parallel.mode = 'jit' if c.parallel.devices == 1 else 'pmap'
    if several:
      c.parallel.mode = 'shard_map'
  if c.parallel.mode == 'jit' and c.parallel.devices > 1:
    _refuse('parallel.mode', 'jit', 'pmap or shard_map on several devices')
  if c.parallel.mode == 'pmap' and several:
    _refuse('parallel.mode', 'pmap', f'shard_map in a job of {num_processes}'
            ' processes')  # fmt: skip
  if c.data.label == 'auto':
    own = {'folder': 'class', 'csv': 'class', 'nih': 'any'}
    c.data.label = own.get(c.data.layout, 'count')
  if c.data.path is None:
    # Where the two draws differ, so do the sets.
    split = f'-split{c.split.seed}' if c.split.seed else ''
    c.data.path = f'data/{c.data.layout}-{c.data.store_size}{split}'
    if c.data.layout == 'phantom':
      from dpjax.data.sources import phantom

      c.data.path = (
        f'data/phantom-v{phantom.VERSION}-{c.data.phantom.count}'
        f'-{c.data.phantom.seed}-{c.data.store_size}{split}'
      )
  _check_combinations(c)
  return c


def _refuse(name, value, wanted):
  raise UserError(f'config.{name} is {value!r}; it must be {wanted}')


def _check_values(c):
  """Each field alone."""
  flat = flatten(c)
  for name, choices in CHOICES.items():
    if flat[name] not in choices:
      near = difflib.get_close_matches(str(flat[name]), choices, n=1)
      hint = f' (did you mean {near[0]}?)' if near else ''
      _refuse(name, flat[name], f'one of {", ".join(choices)}{hint}')
  for name, (low, high) in RANGES.items():
    value = flat[name]
    # A NaN fails every comparison.
    if not (
      low <= value <= high if high is not None else low <= value < math.inf
    ):
      bound = f'at least {low}' if high is None else f'from {low} to {high}'
      _refuse(name, value, f'a number, {bound}')
  for name in _TEXTS:
    value = flat[name]
    if not isinstance(value, tuple) or not all(
      isinstance(word, str) for word in value
    ):
      _refuse(name, value, "a tuple of texts, e.g. ('0','1')")
  for name, (low, high) in _INTERVALS.items():
    value = flat[name]
    if (
      not _numbers(value)
      or len(value) != 2
      or not low <= value[0] <= value[1] <= high
    ):
      _refuse(name, value, f'(lowest, highest) within {low} to {high}')
  sizes = flat['model.stage_sizes']
  if (
    not isinstance(sizes, tuple)
    or not 1 <= len(sizes) <= 4
    or not all(isinstance(n, int) and n >= 1 for n in sizes)
  ):
    _refuse('model.stage_sizes', sizes, 'one to four counts, e.g. (2,2,2,2)')
  for name in ('ablate.seeds', 'compare.seeds'):
    seeds = flat[name]
    if (
      not isinstance(seeds, tuple)
      or not seeds
      or len(set(seeds)) < len(seeds)
      or not all(type(n) is int and 0 <= n < 2**31 for n in seeds)
    ):
      _refuse(name, seeds, 'different whole numbers, e.g. (0, 1, 2)')
  parts = flat['benchmark.parts']
  if not isinstance(parts, tuple) or not parts or not set(parts) <= set(PARTS):
    _refuse('benchmark.parts', parts, f'a tuple of {", ".join(PARTS)}')
  for name in ('benchmark.batch_sizes', 'benchmark.steps_per_dispatch'):
    sizes = flat[name]
    if not isinstance(sizes, tuple) or not all(
      type(n) is int and n > 0 for n in sizes
    ):
      _refuse(name, sizes, 'a tuple of whole numbers above 0, e.g. (16, 64)')
  methods = flat['compare.methods']
  if (
    not isinstance(methods, tuple)
    or not methods
    or not set(methods) <= set(METHODS)
  ):
    _refuse('compare.methods', methods, f'a tuple of {", ".join(METHODS)}')
  rows = flat['ablate.rows']
  if (
    not isinstance(rows, tuple)
    or not rows
    or not all(
      isinstance(row, tuple)
      and len(row) == 2
      and isinstance(row[0], str)
      and isinstance(row[1], tuple)
      and all(isinstance(text, str) for text in row[1])
      for row in rows
    )
    or len({row[0] for row in rows}) < len(rows)
  ):
    _refuse('ablate.rows', rows, "rows of different names, each ('name',"
            " ('section.field=value', ...))")  # fmt: skip
  for stage in ('pretrain', 'retrain'):
    name = f'{stage}.optim.step_fractions'
    if not _numbers(flat[name]) or not all(0 < f < 1 for f in flat[name]):
      _refuse(name, flat[name], 'shares of the run, e.g. (0.5, 0.75)')


def _numbers(value):
  return isinstance(value, tuple) and all(
    isinstance(v, (int, float)) and not isinstance(v, bool) for v in value
  )


def _check_combinations(c):
  """Fields that must fit each other."""
  for name, default, needs, values in (
    ('data.classes', (), 'data.label', ('class',)),
    ('data.label_cap', 0, 'data.label', ('count',)),
    ('data.vindr_readers', 'union', 'data.layout', ('vindr',)),
    ('data.coco_annotations', '', 'data.layout', ('coco',)),
    ('data.patient_pattern', '', 'data.layout', ('folder', 'coco', 'csv')),
  ):
    flat = flatten(c)
    if flat[name] != default and flat[needs] not in values:
      wanted = f'left out unless {needs} is {" or ".join(values)}'
      _refuse(name, flat[name], wanted)
  if c.data.placement == 'resident' and c.data.render == 'host':
    _refuse('data.placement', 'resident', 'stream where data.render is host, as'
            ' it is on CPUs; or give data.render=device')  # fmt: skip
  stages = stage_names(c.model)
  # A residual network's stem halves twice, and its first stage not at all.
  stride = 2 ** (len(stages) + (c.model.network == 'resnet'))
  if c.data.image_size < stride:
    _refuse(
      'data.image_size', c.data.image_size, f"at least the network's {stride}"
    )
  if c.evaluate.cam_stage not in ('last', *stages):
    _refuse('evaluate.cam_stage', c.evaluate.cam_stage, f'last or one of'
            f' {", ".join(stages)}')  # fmt: skip
  for name in ('pretrain.batch_size', 'retrain.batch_size'):
    section, field = name.split('.')
    size, devices = c[section][field], c.parallel.devices
    if size % devices:
      _refuse(name, size, f'a multiple of the {devices} devices, or fewer of'
              ' them by parallel.devices')  # fmt: skip
  for field, allowed in (
    ('stages', stages),
    ('lesions_only', ('att_pos', 'att_neg', 'feat')),
  ):
    value = c.mgacr[field]
    if not isinstance(value, tuple) or not set(value) <= set(allowed):
      _refuse(f'mgacr.{field}', value, f'a tuple of words among {allowed}')
  for name in ('pretrain', 'retrain'):
    optim = c[name].optim
    if optim.schedule == 'onecycle' and not optim.warmup:
      _refuse(f'{name}.optim.warmup', 0, 'above 0 for a onecycle schedule')
    if optim.schedule == 'step' and not optim.step_fractions:
      _refuse(f'{name}.optim.step_fractions', (), 'one share or more')
  if (c.mgacr.attention or c.mgacr.features) and not c.mgacr.stages:
    _refuse('mgacr.stages', (), 'at least one stage, or attention and features'
            ' both False')  # fmt: skip
  if c.retrain.freeze and c.init.backbone is None:
    _refuse('retrain.freeze', True, 'with a backbone from somewhere:'
            ' init.backbone is None')  # fmt: skip
  alone = c.mgacr.features and not c.mgacr.attention
  if alone and not c.mgacr.stop_gradient_maps:
    _refuse(
      'mgacr.features', True, 'with mgacr.attention, or with '
      'mgacr.stop_gradient_maps: Eq. 5 alone drives map+ to 1 and map- to 0',
    )  # fmt: skip
  if c.data.layout != 'phantom' and c.data.source is None and not (
    pathlib.Path(c.data.path) / 'summary.json'
  ).is_file():  # fmt: skip
    _refuse(
      'data.source', None, f'the folder of the {c.data.layout} set: there is no'
      f' prepared one in {c.data.path}',
    )  # fmt: skip


def stage_names(model):
  """('stage1', 'stage2', ...) of the network of config.model."""
  count = 5 if model.network == 'vgg16' else len(model.stage_sizes)
  return tuple(f'stage{i + 1}' for i in range(count))
