"""What the tasks of a study are, and which stages they share."""

import json
import shutil

import pytest

from dpjax.errors import NonFinite, Stopped, UserError
from dpjax.studies import runs
from dpjax.studies import tasks as tasks_lib
from tests.config import given
from tests.studies import fake_runs
from tests.studies.fake_runs import TUNED, make_task


@pytest.fixture
def fake(tmp_path, monkeypatch):
  return fake_runs.install(tmp_path, monkeypatch)


@pytest.mark.parametrize(
  ('text', 'field', 'value'),
  [
    ('mgacr.features=False', ('mgacr', 'features'), False),
    ('mgacr.features=false', ('mgacr', 'features'), False),
    ('retrain.epochs=3', ('retrain', 'epochs'), 3.0),
    ('model.stage_sizes=(3,4,6,3)', ('model', 'stage_sizes'), (3, 4, 6, 3)),
    ('loss.classification=ce', ('loss', 'classification'), 'ce'),
    ('init.backbone=None', ('init', 'backbone'), None),
    (' config.mgacr.eps = 0.5 ', ('mgacr', 'eps'), 0.5),
    ('data.source=a=b', ('data', 'source'), 'a=b'),
  ],
)
def test_an_override_has_the_type_of_its_field(text, field, value):
  config = fake_runs.make_config()
  before = config.to_json()
  section, name = field
  found = tasks_lib.apply_overrides(config, [text])[section][name]
  assert found == value and type(found) is type(value)
  assert config.to_json() == before


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('mgacr.featurs=False', 'did you mean mgacr.features?'),
    ('mgacr=False', 'is a section'),
    ('mgacr.features', 'section.field=value'),
    ('mgacr.features=1', 'must be a bool'),
    ('mgacr.features=None', 'must be a bool'),
    ('mgacr.eps=True', 'must be a float'),
    ('retrain.batch_size=1.5', 'must be a int'),
    ('retrain.epochs=many', 'must be a float'),
    ('model.stage_sizes=3', 'must be a tuple'),
    ('retrain.epochs=-1.0', 'retrain.epochs is -1.0'),  # by resolve
  ],
)
def test_an_override_that_cannot_be_is_one_line_that_names_its_row(text, said):
  with pytest.raises(UserError, match=r'^.+$') as caught:
    tasks_lib.resolved(
      fake_runs.make_config(), '+ more', [text], 0, fake_runs.resolve
    )
  line = str(caught.value)
  assert said in line and line.startswith("'+ more': ") and '\n' not in line


def test_rows_that_share_a_folder_are_refused():
  tasks_lib.check_names(['+ a', '+ b'])
  with pytest.raises(UserError, match=r"'a b' and '\+ A-b' are both"):
    tasks_lib.check_names(['a b', '+ A-b'])
  with pytest.raises(UserError, match='needs a letter'):
    tasks_lib.check_names(['+'])


@pytest.mark.parametrize(
  ('override', 'shared'),
  [
    ('loss.classification=ce', True),
    ('mgacr.features=False', True),
    ('retrain.epochs=9', True),
    ('eval.best=accuracy', True),
    ('evaluate.resamples=3', True),
    ('train.log_every=7', True),
    ('data.shuffle=grain', True),  # as a study of before, that has no word
    ('data.shuffle=numpy', False),
    ('pretrain.temperature=0.5', False),
    ('model.width=8', False),
    ('data.image_size=32', False),
    ('train.deterministic=True', False),
    ('seed=1', False),
  ],
)
def test_stage_i_is_shared_where_stage_ii_alone_differs(override, shared):
  config = fake_runs.make_config()
  other = tasks_lib.apply_overrides(config, [override])
  same = tasks_lib.pretraining_key(config) == tasks_lib.pretraining_key(other)
  assert same == shared


def test_studies_of_the_version_before_find_their_stage_i():
  """It is kept under the key that version faa881e gave it."""
  keys = [
    tasks_lib.pretraining_key(given.resolve(file='recipe', variant=name))
    for name in ('', 'small')
  ]
  assert keys == ['ed4780c3', '129a7b23']


def share(*tasks):
  """Those tasks, as a study of them does them."""
  return tasks_lib.share_stage_two(tasks)


def make_pair(root):
  """A row that ends with a stage II, and one that is fine-tuned after it."""
  return share(make_task(root, 'a'), make_task(root, 'b', TUNED))


def run_pair(root, fake):
  """Runs those two; what came of the second."""
  plain, tuned = make_pair(root)
  runs.run(plain)
  found = runs.run(tuned)
  fake.calls.clear()
  return found


def test_a_row_is_fine_tuned_from_the_stage_ii_that_another_ends_with(
  tmp_path, fake
):
  plain, tuned = make_pair(tmp_path)
  assert runs.run(plain).state == 'finished'
  fake.calls.clear()
  found = runs.run(tuned)
  # The former is whole and not opened: several may start from it at once.
  assert fake.calls == [
    ('finetune', 'seed0/b/finetune'),
    ('evaluate', 'seed0/b/finetune'),
  ]
  assert not (tmp_path / 'seed0/b/retrain').exists()
  assert found.seconds['training'] == 60.0
  times = [seconds for seconds, _ in runs.validations(found)]
  assert times == [30.0, 40.0, 50.0, 60.0]
  # Whichever comes first, it is the one that is scored anyway.
  tuned, plain = share(
    make_task(tmp_path, 'b', TUNED), make_task(tmp_path, 'a')
  )
  assert runs.look(tuned) == found and runs.look(plain).state == 'finished'


def test_rows_that_are_fine_tuned_alike_but_for_that_share_it_too(
  tmp_path, fake
):
  others = [*TUNED, 'finetune.loss.beta=0.9']
  for task in share(
    make_task(tmp_path, 'a', TUNED), make_task(tmp_path, 'b', others)
  ):
    runs.run(task)
  trained = [place for what, place in fake.calls if what == 'retrain']
  assert {*trained} == {'seed0/a/retrain'}


@pytest.mark.parametrize(
  'other',
  [{'seed': 1}, {'loss__gamma': 1.0}, {'data__path': 'other'},
   {'init__backbone': 'None'}, {'mgacr__features': False}],
)  # fmt: skip
def test_another_stage_ii_is_not_shared(other, tmp_path):
  a = make_task(tmp_path, 'a', **other)
  tasks = share(a, make_task(tmp_path, 'b', TUNED))
  assert tasks[1].retraining.workdir == tmp_path / 'seed0/b/retrain'
  assert tasks[1].stage_two_elsewhere is None


@pytest.mark.parametrize('stage', ['retrain', 'finetune'])
def test_what_began_with_a_stage_ii_of_its_own_goes_on_with_it(
  stage, tmp_path, fake
):
  """As all studies of before did."""
  fake.fails[f'seed0/b/{stage}'] = Stopped('stopped')
  with pytest.raises(Stopped):
    runs.run(make_task(tmp_path, 'b', TUNED))
  fake.fails.clear()
  plain, tuned = make_pair(tmp_path)
  assert tuned.retraining.workdir == tmp_path / 'seed0/b/retrain'
  assert runs.run(tuned).state == runs.run(plain).state == 'finished'
  # A third takes the stage II that is scored.
  third = share(plain, tuned, make_task(tmp_path, 'c', TUNED))[2]
  assert third.retraining.workdir == tmp_path / 'seed0/a'


def test_other_rows_do_not_change_what_a_run_was_fine_tuned_from(
  tmp_path, fake
):
  found = run_pair(tmp_path, fake)
  for rows in (
    [make_task(tmp_path, 'b', TUNED)],
    [make_task(tmp_path, 'b', TUNED), make_task(tmp_path, 'z')],
    [make_task(tmp_path, 'z', TUNED), make_task(tmp_path, 'b', TUNED)],
  ):
    own = next(task for task in share(*rows) if task.name == 'b')
    assert runs.run(own) == found
  assert not fake.calls


def test_a_run_is_not_taken_for_one_that_a_new_stage_ii_was_trained_before(
  tmp_path, fake
):
  plain, tuned = make_pair(tmp_path)
  runs.run(plain)
  runs.run(tuned)
  shutil.rmtree(tmp_path / 'seed0/a')
  changed = make_task(tmp_path, 'a', loss__gamma=1.0)
  runs.run(changed)
  _, tuned = share(changed, make_task(tmp_path, 'b', TUNED))
  with pytest.raises(UserError, match=r'seed0/a holds a run of another config'):
    runs.run(tuned)


def test_what_ends_with_a_stage_ii_keeps_its_own_record(tmp_path, fake):
  """How it is to be evaluated is not that of what goes on from it."""
  own = [*TUNED, 'evaluate.prevalence=balanced']
  plain, tuned = share(make_task(tmp_path, 'a'), make_task(tmp_path, 'b', own))
  runs.run(plain)
  fake.fails['seed0/b/finetune'] = Stopped('stopped')
  with pytest.raises(Stopped):
    runs.run(tuned)
  (tmp_path / 'seed0/a/finished').unlink()  # As of an earlier version.
  fake.fails.clear()
  plain, tuned = share(make_task(tmp_path, 'a'), make_task(tmp_path, 'b', own))
  assert runs.run(tuned).state == runs.look(plain).state == 'finished'


def test_a_stage_ii_that_is_there_goes_before_one_that_is_not(tmp_path, fake):
  runs.run(make_task(tmp_path, 'x', TUNED))
  fake.calls.clear()
  for task in share(
    make_task(tmp_path, 'new', TUNED), make_task(tmp_path, 'x', TUNED)
  ):
    runs.run(task)
  assert ('retrain', 'seed0/new/retrain') not in fake.calls


def test_a_row_may_be_fine_tuned_itself_after_it_lent_its_stage_ii(
  tmp_path, fake
):
  found = run_pair(tmp_path, fake)
  both = share(
    make_task(tmp_path, 'a', [*TUNED, 'finetune.loss.beta=0.9']),
    make_task(tmp_path, 'b', TUNED),
  )
  assert runs.run(both[0]).state == 'finished' and runs.run(both[1]) == found
  assert [what for what, _ in fake.calls] == ['finetune', 'evaluate']


def test_a_stage_ii_that_was_removed_is_trained_again(tmp_path, fake):
  plain, tuned = make_pair(tmp_path)
  runs.run(plain)
  runs.run(tuned)
  shutil.rmtree(tmp_path / 'seed0/a')
  assert runs.look(tuned).state == 'missing'
  fake.calls.clear()
  assert runs.run(tuned).state == 'finished'
  assert fake.calls[0] == ('retrain', 'seed0/a')


@pytest.mark.parametrize('rows', [('a', 'b'), ('b',)])
@pytest.mark.parametrize('still_there', [True, False])
def test_a_copied_or_moved_study_is_by_itself(
  still_there, rows, tmp_path, fake
):
  fake.root = tmp_path / 'x'
  for task in make_pair(tmp_path / 'x'):
    runs.run(task)
  shutil.copytree(tmp_path / 'x', tmp_path / 'y')
  if not still_there:
    shutil.rmtree(tmp_path / 'x')
  fake.root, places = tmp_path / 'y', []
  for name in rows:
    task = make_task(tmp_path / 'y', name, TUNED if name == 'b' else ())
    places.append(share(task)[0])
  for task in places:
    (task.workdir / 'evaluation.json').unlink()
    assert runs.run(task).seconds['training'] in (40.0, 60.0)
  # All of it is below y, or the fake had raised.
  assert {what for what, _ in fake.calls} >= {'evaluate'}


def test_a_half_trained_run_that_was_evaluated_by_hand_is_not_finished(
  tmp_path, fake
):
  task = make_task(tmp_path)
  runs.run(task)
  (task.workdir / 'finished').unlink()
  log = task.workdir / 'metrics.jsonl'
  *_, last = map(json.loads, log.read_text().splitlines())
  for epoch, state in ((0.5, 'missing'), (1.0, 'finished')):
    # Of 6 steps, the last one logged.
    log.write_text(json.dumps({**last, 'epoch': epoch}) + '\n')
    assert runs.look(task).state == state


def test_a_study_with_a_shared_stage_ii_may_be_moved(tmp_path, fake):
  fake.root = tmp_path / 'x'
  before = [runs.run(task).seconds for task in make_pair(tmp_path / 'x')]
  (tmp_path / 'x').rename(tmp_path / 'y')
  moved = [runs.look(task) for task in make_pair(tmp_path / 'y')]
  assert [run.seconds for run in moved] == before
  runs.validations(moved[1])


def test_a_stage_ii_that_diverges_ends_all_that_would_go_on_from_it(
  tmp_path, fake
):
  fake.fails['seed0/a'] = NonFinite('step 3: loss is nan')
  plain, tuned = make_pair(tmp_path)
  runs.run(plain)
  fake.calls.clear()
  assert runs.run(tuned).error == 'stage II: step 3: loss is nan'
  assert not fake.calls
