"""config.json comes back as it was, and says what may change."""

import json
import pathlib
import shutil

import pytest

from dpjax.config import fields
from dpjax.config import record as record_lib
from dpjax.errors import UserError
from tests.config import given


def test_speed_may_change_in_a_resume_and_the_network_may_not():
  old = given.resolve()
  faster = given.resolve(
    data__placement='stream', train__steps_per_dispatch=4,
    model__stem='space_to_depth', benchmark__repeats=9,
  )  # fmt: skip
  assert record_lib.differences(old, faster) == []
  assert record_lib.differences(old, given.resolve(model__width=8))


def test_a_saved_config_comes_back_the_same(tmp_path):
  config = given.resolve()
  record_lib.save(config, tmp_path / 'config.json')
  loaded = record_lib.load(tmp_path / 'config.json')
  assert fields.flatten(loaded) == fields.flatten(config)
  assert not record_lib.differences(loaded, config)


def test_differences_name_fields_that_change_the_result_and_no_others():
  old, new = given.resolve(), given.resolve()
  new.data.threads, new.train.log_every = 7, 3
  assert not record_lib.differences(old, new)
  new.model.width = 32
  assert record_lib.differences(old, new) == ['model.width: 64 -> 32']


def test_what_is_recorded_as_null_takes_a_text_and_nothing_else(tmp_path):
  record_lib.save(given.resolve(), tmp_path / 'config.json')
  loaded = record_lib.load(tmp_path / 'config.json')
  assert loaded.data.source is None
  with pytest.raises(TypeError):
    loaded.data.source = 3
  loaded.update_from_flattened_dict({'data.source': 'here'})
  assert loaded.data.source == 'here'


def test_a_run_of_the_version_before_goes_on(tmp_path):
  """It recorded 'auto' and 0 for what was found, and lacked some fields."""
  new = given.resolve(data__layout='csv', data__source='here')
  columns = {'patient': 'id', 'split': '', 'boxes': 'b.csv', 'box_name': ''}
  new.update_from_flattened_dict(
    {
      **{f'data.csv.{name}': value for name, value in columns.items()},
      'init.backbone': None,
      'data.placement': 'resident',
      'train.steps_per_dispatch': 4,
    }
  )
  old = new.to_dict()
  old['data']['csv'] |= dict.fromkeys(columns, 'auto')
  old['data'] |= {'placement': 'auto', 'threads': 0, 'workers': 0}
  old['init']['backbone'] = 'auto'
  old['train']['steps_per_dispatch'] = 0
  del old['model']['stem'], old['model']['network'], old['retrain']['freeze']
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(old))
  assert record_lib.differences(record_lib.load(path), new) == []

  # A field that has no 'auto' may be called so, and may not change.
  old['data']['csv']['image'] = 'auto'
  path.write_text(json.dumps(old))
  assert record_lib.differences(record_lib.load(path), new) == [
    "data.csv.image: 'auto' -> 'image'"
  ]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
  """A recipe's folder, with both stages on record; the cwd is around it."""
  monkeypatch.chdir(tmp_path)
  one, two = (pathlib.Path('runs/a', s) for s in ('pretrain', 'retrain'))
  config = given.resolve(init__backbone=None)
  for workdir in one, two:
    workdir.mkdir(parents=True)
    record_lib.save(config, workdir / 'config.json')
    config.init.backbone = str(one)
  return pathlib.Path('runs/a')


def backbone_differs(folder, backbone):
  """Whether stage II in `folder` refuses to go on from `backbone`."""
  old = record_lib.load(folder / 'retrain' / 'config.json')
  new = given.resolve(init__backbone=str(backbone))
  return record_lib.differences(old, new) != []


def write_backbone(workdir, text):
  file = workdir / 'retrain' / 'config.json'
  record = json.loads(file.read_text())
  record['init']['backbone'] = str(text)
  file.write_text(json.dumps(record))


@pytest.mark.parametrize('spelled', ['now', 'from the cwd', 'from the root'])
@pytest.mark.parametrize('fate', ['stays', 'moves', 'is copied', 'is linked'])
def test_a_recipe_goes_on_wherever_its_folder_is(recipe, spelled, fate):
  if spelled != 'now':  # as earlier versions recorded it
    own = recipe / 'pretrain'
    write_backbone(recipe, own if spelled == 'from the cwd' else own.absolute())
  place = recipe
  if fate == 'moves':
    place = recipe.rename('elsewhere')
  elif fate == 'is copied':
    place = pathlib.Path(shutil.copytree(recipe, 'elsewhere'))
    # This version writes its stage I anew, with what may change in a run.
    config = given.resolve(init__backbone=None, train__log_every=3)
    record_lib.save(config, place / 'pretrain' / 'config.json')
  elif fate == 'is linked':
    place = pathlib.Path('elsewhere')
    place.symlink_to(recipe)
  own = place / 'pretrain'
  for backbone in own, own.absolute(), f'./{own}':
    assert not backbone_differs(place, backbone)


def test_a_recipe_records_nothing_of_where_it_is(recipe):
  text = (recipe / 'retrain' / 'config.json').read_text()
  assert json.loads(text)['init']['backbone'] == '../pretrain'
  found = record_lib.load(recipe / 'retrain' / 'config.json').init.backbone
  assert pathlib.Path(found) == recipe / 'pretrain'
  # Stage II alone may be a link too: what is beside it is where it is.
  pathlib.Path('two').symlink_to(recipe / 'retrain')
  found = record_lib.load('two/config.json').init.backbone
  assert pathlib.Path(found).samefile(recipe / 'pretrain')


def test_another_run_of_the_same_name_is_another_backbone(recipe):
  other = pathlib.Path('runs/b/pretrain')
  other.mkdir(parents=True)
  config = given.resolve(init__backbone=None, seed=7)
  record_lib.save(config, other / 'config.json')
  assert backbone_differs(recipe, other)
  assert backbone_differs(recipe, 'None')


def test_two_runs_that_name_themselves_are_compared_all_the_same(tmp_path):
  configs = []
  for name in ('a', 'b'):
    run = tmp_path / name / 'pretrain'
    run.mkdir(parents=True)
    configs.append(given.resolve(init__backbone=str(run)))
    record_lib.save(configs[-1], run / 'config.json')
  assert not record_lib.differences(*configs)


def test_a_backbone_elsewhere_is_recorded_as_given(recipe):
  lone = pathlib.Path('lone/run')
  lone.mkdir(parents=True)
  for backbone in str(recipe / 'pretrain'), 'w.npz', '../w.npz':
    config = given.resolve(init__backbone=backbone)
    record_lib.save(config, lone / 'config.json')
    found = record_lib.load(lone / 'config.json')
    assert not record_lib.differences(found, config)
    if not backbone.startswith('..'):
      assert found.init.backbone == backbone


@pytest.mark.parametrize('place', ['pretrain-1f2e3d4c', 'plain/retrain'])
def test_a_study_that_was_moved_finds_what_its_runs_started_from(
  place, tmp_path
):
  start = tmp_path / 'seed7/study/seed0' / place
  run = tmp_path / 'seed7/study/seed0/row/finetune'
  for folder in start, run:
    folder.mkdir(parents=True)
  config = given.resolve(init__backbone=str(start))
  record_lib.save(config, run / 'config.json')
  moved = (tmp_path / 'seed7/study').rename(tmp_path / 'moved')
  found = record_lib.load(moved / 'seed0/row/finetune/config.json')
  assert found.init.backbone == str(moved / 'seed0' / place)
  # A copy beside the original is not what its run started from.
  start.mkdir(parents=True)
  found = record_lib.load(moved / 'seed0/row/finetune/config.json')
  assert found.init.backbone == str(start)


def test_against_nothing_every_field_of_the_run_differs():
  """An open one too: a study names its stages I by these lines."""
  config = given.resolve(file='recipe')
  lines = record_lib.differences({}, config)
  flat = fields.flatten(config)
  assert {line.partition(':')[0] for line in lines} == {
    name for name, value in flat.items() if value is not None
  } - fields.marked('resume')
  assert "data.csv.patient: None -> 'auto'" in lines


def test_a_field_that_came_later_is_what_was_done_before(tmp_path):
  old = given.resolve().to_dict()
  del old['model']['network'], old['retrain']['freeze'], old['eval']
  del old['finetune']
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(old))
  loaded = record_lib.load(path)
  assert loaded.model.network == 'resnet' and loaded.retrain.freeze is False
  assert loaded.finetune.epochs == 0
  assert loaded.finetune.optim == given.resolve().finetune.optim
  changed = given.resolve(model__network='vgg16')
  assert "model.network: 'resnet' -> 'vgg16'" in (
    record_lib.differences(loaded, changed)
  )


def test_how_a_run_is_fine_tuned_may_change_until_it_is():
  old, new = given.resolve(finetune__epochs=0), given.resolve()
  for stage in 'pretrain', 'retrain':
    old.stage = new.stage = stage
    assert record_lib.differences(old, new) == []
  old.stage = new.stage = 'finetune'
  assert record_lib.differences(old, new) == ['finetune.epochs: 0.0 -> 4.0']


def test_what_stage_i_does_not_read_may_change_after_it():
  """A recipe is extended in its last stage, or mended before its second."""
  old = given.resolve(stage='pretrain')
  new = given.resolve(
    stage='pretrain', retrain__epochs=60, retrain__batch_size=8,
    loss__beta=0.5, mgacr__features=False, eval__best='accuracy',
  )  # fmt: skip
  assert record_lib.differences(old, new) == []
  new.eval.every, new.pretrain.epochs = 2.0, 9.0
  assert record_lib.differences(old, new) == [
    'eval.every: 1.0 -> 2.0', 'pretrain.epochs: 4.0 -> 9.0'
  ]  # fmt: skip
  # Another stage in its folder is another run.
  new = given.resolve(stage='retrain')
  assert "stage: 'pretrain' -> 'retrain'" in record_lib.differences(old, new)
  assert record_lib.differences(new, old) == ["stage: 'retrain' -> 'pretrain'"]


def test_a_run_is_opened_as_this_machine_has_it():
  there = given.resolve(
    num_devices=8, platform='gpu', model__width=8, data__prefetch=99,
    train__steps_per_dispatch=16, data__placement='resident',
  )  # fmt: skip
  here = given.resolve(num_devices=1, platform='cpu', model__width=16)
  opened = fields.flatten(record_lib.on_this_machine(there, here))
  assert there.parallel.mode == 'pmap' and there.model.dtype == 'bfloat16'
  for name, value in opened.items():
    of = here if name in fields.marked('machine') else there
    assert value == fields.flatten(of)[name], name
  assert opened['model.width'] == 8 and opened['parallel.devices'] == 1
  assert there.parallel.devices == 8  # as it was


@pytest.mark.parametrize(
  'text', ['', '{"a": ', '[1, 2]', '\udcff', '[' * 100_000, '{"a":' * 100_000]
)
def test_a_damaged_record_is_told_in_a_line(tmp_path, text):
  path = tmp_path / 'config.json'
  path.write_bytes(text.encode(errors='surrogateescape'))
  with pytest.raises(UserError, match=r'config\.json is damaged'):
    record_lib.load(path)
  with pytest.raises(UserError) as error:
    record_lib.load(path)
  line = str(error.value)
  assert line.startswith(str(path)) and '\n' not in line and len(line) < 500


@pytest.mark.parametrize(
  ('field', 'value', 'told'),
  [
    ('seed', 'zero', "config.seed is 'zero'; it must be a whole number"),
    ('seed', True, 'config.seed is True; it must be a whole number'),
    ('stage', 'retain', "'retain'; it must be one of"),
    ('model.width', -4, 'config.model.width is -4; it must be'),
    ('mgacr.eps', None, 'config.mgacr.eps is None; it must be a number'),
    ('mgacr.epss', 1, 'config.mgacr.epss does not exist; did you mean'),
    ('mgacr', 3, 'config.mgacr is a section'),
    ('data.path', 3, 'config.data.path is 3; it must be a path'),
  ],
)
def test_a_record_is_checked_as_flags_are(field, value, told, tmp_path):
  record = given.resolve().to_dict()
  *sections, leaf = field.split('.')
  inner = record
  for section in sections:
    inner = inner[section]
  inner[leaf] = value
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(record))
  with pytest.raises(UserError) as error:
    record_lib.load(path)
  assert str(error.value).startswith(f'{path}: ') and told in str(error.value)


def test_a_record_that_lacks_a_field_is_not_whole(tmp_path):
  record = given.resolve().to_dict()
  del record['train']['keep']
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(record))
  record_lib.load(path)
  with pytest.raises(UserError, match=r'config\.train\.keep is missing'):
    record_lib.load(path, whole=True)


@pytest.mark.parametrize(
  ('there', 'wanted'),
  [(('old', 'new'), 'old'), (('new',), 'new'), (('old',), 'old'), ((), 'old')],
)
def test_a_set_is_elsewhere_only_where_it_is_gone_and_there_is_one(
  there, wanted, tmp_path
):
  for name in there:
    (tmp_path / name).mkdir()
  own, here = (
    given.resolve(data__path=str(tmp_path / name)) for name in ('old', 'new')
  )
  assert record_lib.set_path(own, here) == str(tmp_path / wanted)
  here.data.path = None
  assert record_lib.set_path(own, here) == str(tmp_path / 'old')
