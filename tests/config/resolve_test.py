"""What a config may hold, and what is refused in one line."""

import ml_collections
import pytest

from dpjax.config import fields
from dpjax.config import resolve as resolve_lib
from dpjax.errors import UserError
from tests.config import given


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
    ({'data__patient_pattern': 'p'}, ['patient_pattern', 'coco or folder']),
    ({'data__blank': 'negative'}, ['data.blank', 'data.layout is csv']),
    ({'data__class_pattern': 'p'}, ['class_pattern', 'layout is folder']),
    ({'data__original_sizes': 'a.csv'}, ['original_sizes', 'layout is vindr']),
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
    ({'mgacr__stages': ('stage1', 'stage1')}, ['mgacr.stages', 'each once']),
    ({'compare__methods': ('knn', 'knn')}, ['compare.methods', 'each once']),
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
    (
      {'loss__smoothing': 0.1, 'loss__classification': 'cb_focal'},
      ['loss.smoothing', 'cb_ce'],
    ),
    (
      {'finetune__loss__smoothing': 0.1, 'finetune__loss__kind': 'sigmoid'},
      ['finetune.loss.smoothing', 'softmax'],
    ),
    (
      {'loss__begin': 0.5, 'loss__classification': 'ce'},
      ['loss.begin', 'class weights'],
    ),
    ({'evaluate__prevalence': '0.5,0.4'}, ['evaluate.prevalence', 'balanced']),
    ({'evaluate__prevalence': 'even'}, ['evaluate.prevalence', 'balanced']),
    (
      {'stage': 'finetune', 'init__backbone': 'r', 'finetune__epochs': 0.0},
      ['finetune.epochs', '0'],
    ),
    (
      {'stage': 'finetune', 'finetune__epochs': 2.0},
      ['init.backbone', 'auto', 'stage II'],
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
    ({'data__csv__frame': ('a', 1)}, ['data.csv.frame', '(1024, 1024)']),
    ({'data__csv__frame': (1024,)}, ['data.csv.frame', 'width, height']),
    ({'data__csv__frame': (0, 1024)}, ['data.csv.frame']),
    ({'data__csv__frame': (1024, float('nan'))}, ['data.csv.frame']),
    ({'data__csv__box_columns': ('x',)}, ['box_columns', '4 texts', "'x','y'"]),
    ({'retrain__augment__scale': (5e-4, 1.0)}, ['augment.scale', '0.001']),
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
  with pytest.raises(UserError) as error:
    given.resolve(**changes)
  message = str(error.value)
  assert '\n' not in message
  assert all(word in message for word in words), message


def test_the_mode_follows_devices_and_processes():
  def mode(devices, processes=1):
    config = given.resolve(num_devices=devices, num_processes=processes)
    return config.parallel.mode, config.parallel.devices

  assert mode(1) == ('jit', 1)
  assert mode(8) == ('pmap', 8)
  assert mode(8, processes=2) == ('shard_map', 8)


def test_the_word_none_means_none():
  assert given.resolve(init__backbone='None').init.backbone is None
  assert given.resolve(init__backbone='').init.backbone is None


@pytest.mark.parametrize(
  'layout, label',
  [('rsna', 'count'), ('nih', 'any'), ('folder', 'class'), ('csv', 'class')],
)
def test_the_label_is_by_default_what_the_layout_can_tell(layout, label):
  resolved = given.resolve(data__layout=layout, data__source='somewhere')
  assert resolved.data.label == label
  chosen = given.resolve(
    data__layout=layout, data__source='somewhere', data__label='any'
  )
  assert chosen.data.label == 'any'


def test_another_draw_of_the_splits_is_another_set():
  default, drawn = given.resolve(), given.resolve(split__seed=3)
  assert drawn.data.path == f'{default.data.path}-split3'
  assert given.resolve(data__path='mine', split__seed=3).data.path == 'mine'


def test_resolving_leaves_the_given_config_alone():
  config = given.make()
  before = config.to_json()
  resolve_lib.resolve(config, num_devices=1, platform='cpu')
  assert config.to_json() == before


def test_a_field_of_a_users_file_that_does_not_exist_is_named():
  config = given.make()
  config.retrain.epoch = 3
  with pytest.raises(UserError, match=r'retrain\.epoch .* retrain\.epochs'):
    resolve_lib.resolve(config, num_devices=1, platform='cpu')


def test_a_section_of_the_users_own_is_completed_and_checked():
  config = given.make()
  config.retrain.optim = ml_collections.ConfigDict({'learning_rate': 1})
  resolved = resolve_lib.resolve(config, num_devices=1, platform='cpu')
  assert resolved.retrain.optim.learning_rate == 1
  assert type(resolved.retrain.optim.learning_rate) is float
  assert resolved.retrain.optim.momentum == given.make().retrain.optim.momentum
  config.retrain.optim = ml_collections.ConfigDict({'learning_rate': 'high'})
  with pytest.raises(UserError, match=r"optim\.learning_rate is 'high'"):
    resolve_lib.resolve(config, num_devices=1, platform='cpu')


@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_nothing_stays_open_that_can_be_known_without_the_set(platform):
  resolved = fields.flatten(
    given.resolve(platform=platform, data__source='s', data__layout='csv')
  )
  still = {name for name, value in resolved.items() if value == 'auto'}
  still -= {name for name in still if name.startswith('data.csv.')}
  # Of the reader, the recipe and of training, which know the set.
  wanted = {'init.backbone', 'data.shuffle'}
  if platform != 'cpu':
    wanted.add('data.placement')
  assert still == wanted
  for name in ('data.threads', 'data.workers', 'parallel.devices'):
    assert resolved[name] >= 1
  assert resolved['data.threads'] <= 16


def test_without_devices_what_depends_on_them_stays_as_it_was_given():
  config = given.make(parallel__devices=3, retrain__batch_size=7)
  resolved = resolve_lib.resolve(config, num_devices=None, platform='cpu')
  assert resolved.parallel.to_dict() == {'mode': 'auto', 'devices': 3}
  with pytest.raises(UserError, match=r'loss\.beta'):
    resolve_lib.resolve(
      given.make(loss__beta=2.0), num_devices=None, platform='cpu'
    )


def test_a_command_without_devices_takes_the_flags_of_a_gpu():
  """prepare and report are given the run's flags, and start no JAX."""
  config = given.resolve(num_devices=None, data__placement='resident')
  assert config.data.placement == 'resident'
