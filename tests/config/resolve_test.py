"""What a config may hold, and what is refused in one line."""

import itertools
import os
import pathlib
import re
import runpy
import subprocess
import sys

import ml_collections
import pytest

from dpjax.config import fields as fields_lib
from dpjax.config import flags as flags_lib
from dpjax.config import record as record_lib
from dpjax.config import resolve as resolve_lib

ROOT = pathlib.Path(__file__).parents[2]
FILES = ('base', 'pretrain', 'retrain', 'recipe')


def make(file='retrain', variant='', **changes):
  path = ROOT / 'configs' / f'{file}.py'
  config = runpy.run_path(str(path))['get_config'](variant)
  config.update_from_flattened_dict(changes)
  return config


def resolve(*, num_devices=1, platform='cpu', num_processes=1, **changes):
  changes = {k.replace('__', '.'): v for k, v in changes.items()}
  return resolve_lib.resolve(
    make(**changes),
    num_devices=num_devices,
    platform=platform,
    num_processes=num_processes,
  )


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('variant', ['', 'paper', 'quick'])
@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_every_file_and_variant_resolves(file, variant, platform):
  config = resolve_lib.resolve(
    make(file, variant), num_devices=1, platform=platform
  )
  assert 'auto' not in (
    config.data.render, config.model.dtype, config.parallel.mode
  )  # fmt: skip
  assert config.data.path


def test_each_file_changes_only_its_stage():
  base = fields_lib.flatten(make('base'))
  for file in FILES[1:]:
    flat = fields_lib.flatten(make(file))
    assert {k for k in base if flat[k] != base[k]} <= {'stage'}
    assert flat['stage'] == file


def test_every_field_is_documented_in_place():
  text = (ROOT / 'configs' / 'base.py').read_text()
  lines = text.splitlines()
  undocumented = []
  for i, line in enumerate(lines):
    field = re.match(r'  c\.(\w+\.?)+ = (?!ConfigDict)', line)
    if not field or line.startswith('    '):
      continue
    comment_above = any(
      previous.strip().startswith('#') for previous in lines[max(0, i - 6) : i]
    )
    if '#' not in line and not comment_above:
      undocumented.append(line.strip())
  assert not undocumented


def test_the_paper_variant_takes_the_equations_literally():
  config = resolve(variant='paper')
  assert config.mgacr.eps == 0
  assert config.mgacr.lesions_only == ()
  assert not config.mgacr.stop_gradient_maps
  assert config.mgacr.reduction == 'batch'
  assert config.retrain.batch_size == 16


def test_every_table_of_checks_names_real_fields():
  known = fields_lib.flatten(make())
  assert set(resolve_lib.CHOICES) <= set(known)
  assert set(resolve_lib.RANGES) <= set(known)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'loss__classification': 'cbfocal'}, ['loss.classification', 'cb_focal']),
    ({'data__layout': 'rnsa'}, ['data.layout', 'phantom', 'competition']),
    ({'data__label': 'counts'}, ['data.label', 'count']),
    ({'data__fit': 'crop'}, ['data.fit', 'stretch, pad']),
    ({'data__classes': (0, 1)}, ['data.classes', "('0','1')"]),
    ({'data__findings': (1,)}, ['data.findings', 'texts']),
    ({'data__classes': ('a',)}, ['data.classes', 'data.label is class']),
    ({'data__vindr_readers': 'R8'}, ['vindr_readers', 'data.layout is vindr']),
    ({'data__patient_pattern': 'p'}, ['patient_pattern', 'folder or coco']),
    ({'split__unit': 'exam'}, ['split.unit', 'patient, image']),
    ({'split__test': 1.0}, ['split.test', '0.9']),
    ({'split__near': 100}, ['split.near', '64']),
    ({'data__image_size': 16}, ['data.image_size', '32']),
    ({'data__std': 0.0}, ['data.std']),
    ({'loss__gamma': float('nan')}, ['loss.gamma']),
    ({'retrain__epochs': -1.0}, ['retrain.epochs']),
    ({'retrain__epochs': float('inf')}, ['retrain.epochs']),
    ({'data__mean': float('nan')}, ['data.mean', '0.0 to 1.0']),
    ({'pretrain__optim__warmup': 0.0}, ['pretrain.optim.warmup', 'onecycle']),
    ({'retrain__optim__warmup': 1.0}, ['retrain.optim.warmup']),
    (
      {
        'retrain__optim__schedule': 'step',
        'retrain__optim__step_fractions': (),
      },
      ['retrain.optim.step_fractions'],
    ),
    ({'retrain__augment__blur_sigma': (0.1, 3.0)}, ['blur_sigma', '2.0']),
    ({'retrain__augment__scale': (0.9, 0.5)}, ['retrain.augment.scale']),
    ({'retrain__augment__scale': (0.9,)}, ['retrain.augment.scale']),
    ({'model__stage_sizes': (2, 0)}, ['model.stage_sizes']),
    ({'mgacr__stages': ('stage5',)}, ['mgacr.stages', 'stage4']),
    ({'mgacr__lesions_only': ('feet',)}, ['mgacr.lesions_only', 'feat']),
    (
      {'mgacr__attention': False, 'mgacr__stop_gradient_maps': False},
      ['mgacr.features', 'mgacr.attention', 'stop_gradient_maps'],
    ),
    ({'model__network': 'vgg'}, ['model.network', 'vgg16']),
    ({'pretrain__views': 'two'}, ['pretrain.views', 'three']),
    (
      {'retrain__freeze': True, 'init__backbone': 'None'},
      ['retrain.freeze', 'init.backbone is None'],
    ),
    ({'evaluate__cam_target': 'lesions'}, ['evaluate.cam_target', 'lesion']),
    ({'evaluate__cam_stage': 'stage9'}, ['evaluate.cam_stage', 'stage4']),
    ({'ablate__seeds': ()}, ['ablate.seeds', '(0, 1, 2)']),
    ({'ablate__seeds': (1, 1)}, ['ablate.seeds', 'different']),
    ({'ablate__rows': (('a',),)}, ['ablate.rows', 'section.field=value']),
    (
      {'ablate__rows': (('a', ()), ('a', ()))},
      ['ablate.rows', 'different names'],
    ),
    ({'compare__methods': ('knn', 'cnn')}, ['compare.methods', 'resnet50']),
    ({'compare__methods': ()}, ['compare.methods', 'resnet50']),
    ({'compare__pixels': 1}, ['compare.pixels']),
    ({'data__layout': 'competition'}, ['data.source']),
    ({'num_devices': 8, 'retrain__batch_size': 12}, ['batch_size', '8']),
    ({'parallel__devices': 3}, ['parallel.devices', 'at most 1']),
    ({'num_devices': 2, 'parallel__mode': 'jit'}, ['parallel.mode', 'pmap']),
    (
      {'num_devices': 4, 'num_processes': 2, 'parallel__mode': 'pmap'},
      ['parallel.mode', 'shard_map', '2 processes'],
    ),
    (
      {'num_devices': 4, 'num_processes': 2, 'parallel__devices': 2},
      ['parallel.devices', 'the 4 of all 2 processes'],
    ),
    (
      {'data__placement': 'resident', 'data__render': 'host'},
      ['data.placement', 'data.render'],
    ),
    ({'data__placement': 'memory'}, ['data.placement', 'resident']),
    ({'model__stem': 'space'}, ['model.stem', 'space_to_depth']),
    ({'train__steps_per_dispatch': -1}, ['train.steps_per_dispatch']),
    ({'benchmark__parts': ('train',)}, ['benchmark.parts', 'inference']),
    ({'benchmark__batch_sizes': (0,)}, ['benchmark.batch_sizes']),
    ({'benchmark__steps_per_dispatch': (1.5,)}, ['whole numbers']),
  ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_the_field(
  changes, words
):
  with pytest.raises(ValueError) as error:
    resolve(**changes)
  message = str(error.value)
  assert '\n' not in message
  assert all(word in message for word in words), message


def test_the_mode_follows_devices_and_processes():
  def mode(devices, processes=1):
    config = resolve(num_devices=devices, num_processes=processes)
    return config.parallel.mode, config.parallel.devices

  assert mode(1) == ('jit', 1)
  assert mode(8) == ('pmap', 8)
  assert mode(8, processes=2) == ('shard_map', 8)


def test_speed_may_change_in_a_resume_and_the_network_may_not():
  old = resolve()
  faster = resolve(
    data__placement='stream', train__steps_per_dispatch=4,
    model__stem='space_to_depth', benchmark__repeats=9,
  )  # fmt: skip
  assert record_lib.differences(old, faster) == []
  assert record_lib.differences(old, resolve(model__width=8))


def test_the_word_none_means_none():
  assert resolve(init__backbone='None').init.backbone is None
  assert resolve(init__backbone='').init.backbone is None


@pytest.mark.parametrize(
  'layout, label',
  [('rsna', 'count'), ('nih', 'any'), ('folder', 'class'), ('csv', 'class')],
)
def test_the_label_is_by_default_what_the_layout_can_tell(layout, label):
  resolved = resolve(data__layout=layout, data__source='somewhere')
  assert resolved.data.label == label
  chosen = resolve(
    data__layout=layout, data__source='somewhere', data__label='any'
  )
  assert chosen.data.label == 'any'


def test_another_draw_of_the_splits_is_another_set():
  default, drawn = resolve(), resolve(split__seed=3)
  assert drawn.data.path == f'{default.data.path}-split3'
  assert resolve(data__path='mine', split__seed=3).data.path == 'mine'


def test_resolving_leaves_the_given_config_alone():
  config = make()
  before = config.to_json()
  resolve_lib.resolve(config, num_devices=1, platform='cpu')
  assert config.to_json() == before


def test_a_saved_config_comes_back_the_same(tmp_path):
  config = resolve()
  record_lib.save(config, tmp_path / 'config.json')
  loaded = record_lib.load(tmp_path / 'config.json')
  assert fields_lib.flatten(loaded) == fields_lib.flatten(config)
  assert not record_lib.differences(loaded, config)


def test_differences_name_fields_that_change_the_result_and_no_others():
  old, new = resolve(), resolve()
  new.data.threads, new.train.log_every = 7, 3
  assert not record_lib.differences(old, new)
  new.model.width = 32
  assert record_lib.differences(old, new) == ['model.width: 64 -> 32']


def run_main(*arguments, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'dpjax.main', *arguments],
    cwd=ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([], ['--config', 'missing']),
    (['--config=configs/nope.py'], ['configs/nope.py', 'no such file']),
    (['--config=pyproject.toml'], ['pyproject.toml', 'get_config']),
    (
      ['--config', 'configs/retrain.py', '--config.mgacr.epps=1'],
      ['config.mgacr.epps', 'mgacr.eps'],
    ),
    (['--config=configs/retrain.py:fast'], ['fast', 'quick']),
    (
      ['--config=configs/retrain.py', '--config.mgacr.epps=1'],
      ['config.mgacr.epps', 'mgacr.eps'],
    ),
    (
      ['--config=configs/retrain.py', '--config.data.image_size=big'],
      ['config.data.image_size', 'big'],
    ),
    (['--config=configs/retrain.py', '--confg.seed=1'], ['confg.seed']),
    (['trian', '--config=configs/retrain.py'], ['trian', 'train']),
  ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_status_2(
  arguments, words
):
  result = run_main(*arguments)
  assert result.returncode == 2
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), result.stderr
  assert all(word in lines[0] for word in words), lines[0]


def test_a_platform_that_is_not_here_is_one_line():
  result = run_main('--config=configs/retrain.py', JAX_PLATFORMS='toaster')
  assert result.returncode == 2
  last = result.stderr.strip().splitlines()[-1]
  assert last == 'error: JAX finds no device; JAX_PLATFORMS=toaster'


def test_check_field_tells_a_section_from_a_field():
  with pytest.raises(ValueError, match='section'):
    flags_lib.check_field(make(), 'mgacr')
  flags_lib.check_field(make(), 'mgacr.eps')


def test_a_config_dict_flattens_to_dotted_names():
  config = ml_collections.ConfigDict({'a': {'b': 1}, 'c': (2,)})
  assert fields_lib.flatten(config) == {'a.b': 1, 'c': (2,)}


def test_the_rows_of_the_ablation_add_one_technique_each():
  names, overrides = zip(*resolve().ablate.rows, strict=True)
  without = [set(row) for row in overrides]
  assert names[0] == 'ResNet18' and not without[-1]
  # What each row no longer leaves out, from the paper's Table I.
  added = [above - row for above, row in itertools.pairwise(without)]
  assert added == [
    {'init.backbone=None'},
    {'mgacr.attention=False'},
    {'mgacr.features=False'},
    {'loss.classification=ce'},
  ]
  assert all(row <= above for above, row in itertools.pairwise(without))
