"""What a study trains, what it shares, and what it takes as done."""

import json
import pathlib

import pytest

from dpjax.errors import NonFinite, Stopped, UserError
from dpjax.studies import runs, tables
from tests.studies import fake_runs
from tests.studies.fake_runs import TUNED, make_task


@pytest.fixture
def fake(tmp_path, monkeypatch):
  return fake_runs.install(tmp_path, monkeypatch)


def test_rows_share_one_stage_i_a_seed(tmp_path, fake):
  for seed in (0, 1):
    for name, override in (('a', 'loss.classification=ce'), ('b', 'seed=5')):
      runs.run(make_task(tmp_path, name, [override], seed))
  assert fake.calls == [
    (what, f'seed{seed}/{folder}')
    for seed in (0, 1)
    for what, folder in (
      ('pretrain', 'pretrain'), ('retrain', 'a'), ('evaluate', 'a'),
      ('retrain', 'b'), ('evaluate', 'b'),
    )
  ]  # fmt: skip


def test_what_stage_i_did_not_read_may_change_under_it(tmp_path, fake):
  runs.run(make_task(tmp_path, 'a'))
  (pretraining,) = tmp_path.glob('seed0/pretrain-*')
  (pretraining / 'finished').unlink()  # as after a kill in its last step
  runs.run(make_task(tmp_path, 'b', ['loss.gamma=1.0']))
  assert [what for what, _ in fake.calls].count('pretrain') == 2


def test_what_is_finished_is_not_done_again(tmp_path, fake, capsys):
  first = runs.run(make_task(tmp_path))
  fake.calls.clear()
  capsys.readouterr()
  assert runs.run(make_task(tmp_path)) == first
  assert not fake.calls
  (line,) = capsys.readouterr().out.splitlines()
  assert 'row, seed 0: finished before' in line


def test_what_was_trained_and_not_evaluated_is_evaluated(tmp_path, fake):
  task = make_task(tmp_path)
  runs.run(task)
  (task.workdir / 'evaluation.json').unlink()
  assert runs.look(task).state == 'missing'
  fake.calls.clear()
  assert runs.run(task).state == 'finished'
  # loop.train finds nothing left to do there.
  assert fake.calls == [('retrain', 'seed0/row'), ('evaluate', 'seed0/row')]


def test_other_flags_of_the_evaluation_evaluate_again(tmp_path, fake):
  runs.run(make_task(tmp_path))
  other = make_task(tmp_path, evaluate__split='validation')
  assert runs.look(other).state == 'missing'
  assert runs.run(other).result['split'] == 'validation'
  assert runs.look(make_task(tmp_path)).state == 'missing'


@pytest.mark.parametrize(
  'flags',
  [
    {'evaluate__split': 'validation'},
    {'evaluate__path': 'another/set'},
    {'evaluate__cam_target': 'label'},
  ],
)
def test_an_evaluation_by_hand_with_other_flags_is_not_taken(
  flags, tmp_path, fake
):
  task = make_task(tmp_path)
  runs.run(task)
  by_hand = make_task(tmp_path, **flags)
  fake.evaluate(by_hand.config, task.workdir)
  assert runs.look(task).state == 'missing'
  assert runs.run(task).result['data'] == 'memory'


def test_an_evaluation_that_does_not_say_its_flags_is_not_of_another_set(
  tmp_path, fake
):
  task = make_task(tmp_path)
  runs.run(task)
  file = task.workdir / 'evaluation.json'
  result = json.loads(file.read_text())
  del result['settings']
  file.write_text(json.dumps(result))
  assert runs.look(task).state == 'finished'
  file.write_text(json.dumps({**result, 'data': 'another/set'}))
  assert runs.look(task).state == 'missing'


def test_an_evaluation_of_before_there_was_a_field_is_taken(tmp_path, fake):
  task = make_task(tmp_path)
  runs.run(task)
  file = task.workdir / 'evaluation.json'
  result = json.loads(file.read_text())
  del result['settings']['prevalence']
  file.write_text(json.dumps(result))
  assert runs.look(task).state == 'finished'
  shifted = make_task(tmp_path, evaluate__prevalence='balanced')
  assert runs.look(shifted).state == 'missing'


def test_runs_on_a_set_elsewhere_ask_training_whether_it_is_the_same(
  tmp_path, fake
):
  runs.run(make_task(tmp_path))
  fake.calls.clear()
  moved = make_task(tmp_path, data__path='elsewhere')
  assert runs.look(moved).state == 'missing'
  # loop.train refuses another set (tests/training/loop_test.py).
  fake.fails['seed0/pretrain'] = ValueError('not the set')
  with pytest.raises(ValueError, match='not the set'):
    runs.run(moved)
  assert runs.look(moved).state == 'missing'
  assert fake.calls == [('pretrain', 'seed0/pretrain')]


def test_a_workdir_may_be_named_from_the_root_or_from_here(
  tmp_path, fake, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  fake.root = pathlib.Path('.')
  runs.run(make_task(pathlib.Path('.')))
  fake.calls.clear()
  assert runs.run(make_task(tmp_path)).state == 'finished'
  assert not fake.calls


def test_a_signal_passes_and_the_run_goes_on_from_there(tmp_path, fake):
  fake.fails['seed0/row'] = Stopped('stopped')
  with pytest.raises(Stopped):
    runs.run(make_task(tmp_path))
  fake.fails.clear()
  fake.calls.clear()
  assert runs.run(make_task(tmp_path)).state == 'finished'
  assert fake.calls == [('retrain', 'seed0/row'), ('evaluate', 'seed0/row')]


def test_a_run_that_diverges_is_on_record_and_not_tried_again(
  tmp_path, fake, capsys
):
  fake.fails['seed0/row'] = NonFinite('step 3: loss is nan')
  found = runs.run(make_task(tmp_path))
  assert (found.state, found.error) == ('diverged', 'step 3: loss is nan')
  fake.calls.clear()
  assert runs.run(make_task(tmp_path)) == found
  assert not fake.calls
  assert 'diverged before (step 3: loss is nan)' in capsys.readouterr().out


def test_a_run_that_diverged_at_once_may_be_mended_in_place(tmp_path, fake):
  fake.fails['seed0/row'] = NonFinite('step 3: loss is nan')
  runs.run(make_task(tmp_path))
  fake.fails.clear()
  mended = make_task(tmp_path, retrain__optim__learning_rate=1e-3)
  assert runs.run(mended).state == 'finished'


def test_all_rows_of_a_stage_i_that_diverges_have(tmp_path, fake):
  fake.fails['seed0/pretrain'] = NonFinite('step 1: loss is nan')
  first, second = (runs.run(make_task(tmp_path, name)) for name in 'ab')
  assert first.state == second.state == 'diverged'
  assert first.error.startswith('stage I, ') and 'step 1' in first.error
  assert fake.calls == [('pretrain', 'seed0/pretrain')]
  scratch = make_task(tmp_path, 'c', ['init.backbone=None'])
  assert runs.run(scratch).state == 'finished'


@pytest.mark.parametrize('evaluated', [True, False])
def test_a_run_of_another_config_is_refused(tmp_path, fake, evaluated):
  task = make_task(tmp_path)
  runs.run(task)
  if not evaluated:
    (task.workdir / 'evaluation.json').unlink()
  other = make_task(tmp_path, loss__gamma=1.0)
  changed = f'loss.gamma: {task.config.loss.gamma} -> 1.0'
  with pytest.raises(UserError, match=rf"^'row': .*{changed}"):
    runs.run(other)
  # Where and how data are read, and other studies, may change.
  free = make_task(tmp_path, data__threads=1, ablate__seeds=(7,))
  runs.check(free)


def test_weights_from_a_file_need_no_stage_i(tmp_path, fake):
  task = make_task(tmp_path, init__backbone=str(tmp_path / 'weights.npz'))
  (tmp_path / 'weights.npz').touch()
  found = runs.run(task)
  assert fake.calls[0] == ('retrain', 'seed0/row')
  assert found.seconds['pretraining'] == 0


def test_a_row_is_fine_tuned_after_a_stage_ii_of_its_own(tmp_path, fake):
  found = runs.run(make_task(tmp_path, overrides=TUNED))
  assert fake.calls == [
    ('pretrain', 'seed0/pretrain'),
    ('retrain', 'seed0/row/retrain'),
    ('finetune', 'seed0/row/finetune'),
    ('evaluate', 'seed0/row/finetune'),
  ]
  assert found.workdir == tmp_path / 'seed0/row/finetune'
  # 20 s each, by the fake's logs.
  assert found.seconds['pretraining'] == 20.0
  assert found.seconds['training'] == 60.0
  times = [seconds for seconds, _ in runs.validations(found)]
  assert times == [30.0, 40.0, 50.0, 60.0]
  # Beside rows without it, stage I is the same.
  fake.calls.clear()
  runs.run(make_task(tmp_path, 'other'))
  assert fake.calls[0] == ('retrain', 'seed0/other')
  fake.calls.clear()
  assert runs.run(make_task(tmp_path, overrides=TUNED)) == found
  assert not fake.calls


def test_a_row_that_was_fine_tuned_is_not_one_that_is_not(tmp_path, fake):
  """Its evaluation would be that of the fine-tuned run."""
  runs.run(make_task(tmp_path, overrides=TUNED))
  fake.calls.clear()
  with pytest.raises(UserError, match=r"'row': .*row/finetune.*--workdir"):
    runs.run(make_task(tmp_path))
  assert not fake.calls


def test_a_study_that_was_moved_tells_the_same_times(tmp_path, fake):
  del fake
  before = runs.run(make_task(tmp_path / 'a', overrides=TUNED)).seconds
  (tmp_path / 'a').rename(tmp_path / 'b')
  moved = runs.look(make_task(tmp_path / 'b', overrides=TUNED))
  assert moved.seconds == before


def test_a_row_whose_stage_ii_diverges_has_and_may_be_mended(tmp_path, fake):
  fake.fails['seed0/row/retrain'] = NonFinite('step 3: loss is nan')
  found = runs.run(make_task(tmp_path, overrides=TUNED))
  assert found.error == 'stage II: step 3: loss is nan'
  fake.fails.clear()
  fake.calls.clear()
  assert runs.run(make_task(tmp_path, overrides=TUNED)) == found
  assert not fake.calls
  (tmp_path / 'seed0/row/retrain/failed.json').unlink()
  again = runs.run(make_task(tmp_path, overrides=TUNED))
  assert again.state == 'finished'


def test_the_time_of_a_run_has_that_of_its_stage_i(tmp_path, fake):
  found = runs.run(make_task(tmp_path))
  # 20 s each, and 20 images/s, by the fake's logs.
  assert found.seconds == {
    'pretraining': 20.0,
    'training': 40.0,
    'ms_per_image': 50.0,
  }


def test_a_broken_evaluation_is_named_and_not_overwritten(tmp_path, fake):
  del fake
  task = make_task(tmp_path)
  runs.run(task)
  file = task.workdir / 'evaluation.json'
  for text in '', '{"scores": {}', '{}', '{"split": 3}':
    file.write_text(text)
    with pytest.raises(UserError) as error:
      runs.run(task)
    assert str(error.value).startswith(str(file))
    assert file.read_text() == text


def test_a_torn_last_line_of_a_log_is_left_out(tmp_path):
  whole = {'step': 1, 'split': 'train', 'seconds_training': 2.5}
  (tmp_path / 'metrics.jsonl').write_text(
    json.dumps(whole) + '\n' + '{"step": 2, "spl'
  )
  assert runs.lines(tmp_path, 'train') == [whole]
  assert runs.trained(tmp_path) == 2.5
  assert runs.trained(tmp_path / 'nothing') == 0


def test_however_often_it_is_asked_its_logs_are_read_once(
  tmp_path, fake, monkeypatch
):
  found = runs.run(make_task(tmp_path))
  real, read = runs.lines, []
  monkeypatch.setattr(
    runs, 'lines', lambda *args: read.append(args) or real(*args)
  )
  assert tables.mean_seconds([found]) == tables.records([found])[0]['seconds']
  assert tables.mean_seconds([found])['training'] == 40.0
  assert len(read) == 2  # of stage I and of stage II
