"""configs/: every field is declared, documented and resolves."""

import itertools
import re

import pytest

from dpjax import losses
from dpjax.config import fields
from dpjax.config import resolve as resolve_lib
from dpjax.data.feed import render_common
from dpjax.data.prepare import duplicates
from dpjax.data.sources import phantom, registry
from dpjax.distributed import parallel
from dpjax.evaluation import gradcam
from dpjax.studies import tasks as tasks_lib
from dpjax.training import build, optim
from tests.config import given

_END = "def get_config(variant=''):"  # of the declaration
FILES = ('base', 'pretrain', 'retrain', 'recipe')


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('variant', ['', 'paper', 'quick'])
@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_every_file_and_variant_resolves(file, variant, platform):
  config = resolve_lib.resolve(
    given.make(file, variant), num_devices=1, platform=platform
  )
  assert 'auto' not in (
    config.data.render, config.model.dtype, config.parallel.mode
  )  # fmt: skip
  assert config.data.path


def test_each_file_changes_only_its_stage():
  base = fields.flatten(given.make('base'))
  for file in FILES[1:]:
    flat = fields.flatten(given.make(file))
    assert {k for k in base if flat[k] != base[k]} <= {'stage'}
    assert flat['stage'] == file


def test_every_field_is_documented_in_place():
  """By a comment that ends its line, or by one that stands above it."""
  lines = (given.ROOT / 'configs' / 'base.py').read_text().splitlines()
  declared = re.compile(r' *c\.[\w.]+ = (?!Section|_)')
  undocumented = [
    line
    for above, line in itertools.pairwise(lines[: lines.index(_END)])
    if declared.match(line)
    and '#' not in line
    and not above.lstrip().startswith('#')
  ]
  assert not undocumented


def test_every_declared_field_is_in_the_config_with_its_default():
  assert {name: field.default for name, field in fields.table().items()} == (
    fields.flatten(given.make('base'))
  )


@pytest.mark.parametrize('name, field', fields.table().items())
def test_every_default_is_what_its_field_may_be(name, field):
  value = field.checked(name, field.default)
  assert value == field.default and type(value) is type(field.default)


def test_what_is_the_machines_is_marked_so():
  parallel = {name for name in fields.table() if name.startswith('parallel.')}
  assert fields.marked('machine') == parallel | {
    'data.placement',
    'data.prefetch',
    'data.render',
    'data.threads',
    'data.workers',
    'model.dtype',
    'train.steps_per_dispatch',
  }


def test_the_blur_that_may_be_asked_for_fits_what_the_renders_hold():
  for stage in ('pretrain', 'retrain'):
    field = fields.table()[f'{stage}.augment.blur_sigma']
    most = render_common.BLUR_RADIUS / 2
    assert field.fits((0.0, most)) and not field.fits((0.0, most + 1e-6))


@pytest.mark.parametrize(
  ('name', 'known'),
  [
    ('data.layout', {'phantom', *registry.LAYOUTS}),
    ('evaluate.cam_target', gradcam.TARGETS),
    ('mgacr.lesions_only', losses.MGACR_TERMS),
    ('pretrain.optim.schedule', optim.SCHEDULES),
    ('retrain.optim.schedule', optim.SCHEDULES),
    ('loss.classification', build.CLASSIFICATION_LOSSES),
    ('model.network', build.NETWORKS),
    ('parallel.mode', {'auto', *parallel.MODES}),
  ],
)
def test_every_declared_word_is_known_where_it_counts(name, known):
  field = fields.table()[name]
  assert set(field.words or field.default) == set(known)


def test_declared_bounds_are_those_of_the_code_behind_them():
  near = fields.table()['split.near']
  assert near.fits(duplicates.MAX_NEAR)
  assert not near.fits(duplicates.MAX_NEAR + 1)
  count = fields.table()['data.phantom.count']
  fewest = 5 * phantom.MIN_PER_CLASS  # of five classes
  phantom.class_counts(fewest)
  assert count.fits(fewest) and not count.fits(fewest - 1)
  least = fields.table()['data.phantom.least']
  assert least.default == least.before == phantom.MIN_PER_CLASS


def test_the_paper_variant_takes_the_equations_literally():
  config = given.resolve(variant='paper')
  assert config.mgacr.eps == 0
  assert config.mgacr.lesions_only == ()
  assert not config.mgacr.stop_gradient_maps
  assert config.mgacr.reduction == 'batch'
  assert config.retrain.batch_size == 16
  # And without any of docs/remedies.md.
  assert config.loss.classification == 'cb_focal'
  assert not config.finetune.epochs and not config.retrain.average
  assert not config.loss.begin and not config.loss.smoothing
  assert config.evaluate.prevalence == 'none'


def test_the_rows_of_the_ablation_add_one_technique_each():
  names, overrides = zip(*given.resolve().ablate.rows, strict=True)
  without = [set(row) for row in overrides]
  assert names[0] == 'ResNet18' and not without[-1]
  # What each row no longer leaves out, from the paper's Table I.
  added = [above - row for above, row in itertools.pairwise(without)]
  assert added == [
    {'init.backbone=None'},
    {'mgacr.attention=False'},
    {'mgacr.features=False'},
    {'loss.classification=ce', 'loss.begin=0', 'finetune.epochs=0'},
  ]
  assert all(row <= above for above, row in itertools.pairwise(without))


@pytest.mark.parametrize('variant', ['', 'paper', 'small', 'quick'])
def test_only_the_last_row_of_the_ablation_has_class_weights(variant):
  config = given.resolve(variant=variant)
  for name, overrides in config.ablate.rows:
    row = tasks_lib.apply_overrides(config, overrides)
    weighted = row.loss.classification != 'ce' or row.finetune.epochs > 0
    assert weighted == (name == config.ablate.rows[-1][0])
