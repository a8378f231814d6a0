"""Runs side by side: what is started where and when, and how it ends.

The processes are a shell's, which leave the marks of a run and train nothing.
"""

import os
import signal
import subprocess
import sys

import pytest

from dpjax import signals
from dpjax.errors import Stopped, UserError
from dpjax.studies import jobs, places, runs
from dpjax.studies import tasks as tasks_lib
from tests.studies import fake_runs

# What a run leaves: an event at its beginning and end, and `done`, a stage I
# `finished`. What else it does is in $1, by the end of its folder's name.
SCRIPT = """
only=${2#--only=}; folder=$ROOT/$only
say() { echo "$1 $only $CUDA_VISIBLE_DEVICES" >> $ROOT/events; }
say begin
mkdir -p $folder
cores=$(sed -n 's/^Cpus_allowed_list:[^0-9]*//p' /proc/self/status)
echo "$cores" > $folder/cores
eval "$1"
touch $folder/done $folder/finished
say end
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
  """Four runs of two seeds, those of a seed sharing their stage I."""

  def look(task):
    run = runs.Run(task.config.seed, task.workdir)
    error = runs.failure(task.pretraining) or runs.failure(task.workdir)
    done = (task.workdir / 'done').exists()
    return runs.Run(
      run.seed, run.workdir, {'scores': {}} if done else {}, error
    )

  monkeypatch.setattr(runs, 'look', look)
  config = fake_runs.make_config()
  return [
    (tasks_lib.network(
      tasks_lib.resolved(config, name, overrides, seed, fake_runs.resolve),
      tmp_path, name,
    ), None)
    for seed in (0, 1)
    for name, overrides in config.ablate.rows
  ]  # fmt: skip


def make_jobs(root, behaviour=':', count=2):
  return jobs.Jobs(
    [
      places.Place(f'GPU {i}', {'CUDA_VISIBLE_DEVICES': str(i)})
      for i in range(count)
    ],
    ['sh', '-c', SCRIPT, 'sh', behaviour],
    {**os.environ, 'ROOT': str(root)},
  )


def events(root):
  lines = (root / 'events').read_text().splitlines()
  return [tuple(line.split()) for line in lines]


def short(name):
  return name.partition('-')[0] if 'pretrain-' in name else name


def test_stages_that_runs_share_come_first_and_once(study, tmp_path, capsys):
  saved = []
  mine = make_jobs(tmp_path)
  result = jobs.run_all(study, lambda: saved.append(1) or len(saved), mine)
  seen = events(tmp_path)
  begun = [short(name) for what, name, _ in seen if what == 'begin']
  assert sorted(begun[:2]) == ['seed0/pretrain', 'seed1/pretrain']
  assert sorted(begun[2:]) == sorted(
    f'seed{i}/{row}' for i in (0, 1) for row in ('attention', 'pre-training')
  )
  for i in (0, 1):
    order = [(what, short(name)) for what, name, _ in seen]
    ready = order.index(('end', f'seed{i}/pretrain'))
    for row in ('attention', 'pre-training'):
      assert order.index(('begin', f'seed{i}/{row}')) > ready
  # After each end, and at last.
  assert result == len(saved) == 7 and not mine.failed
  said = capsys.readouterr().out.splitlines()
  assert sum(': begun on GPU ' in line for line in said) == 6
  assert sum(': finished in ' in line for line in said) == 6
  assert said[-1].endswith('(6 of 6)')

  # Nothing is done twice.
  (tmp_path / 'events').unlink()
  jobs.run_all(study, lambda: None, make_jobs(tmp_path))
  assert not (tmp_path / 'events').exists()
  assert capsys.readouterr().out.count('finished before') == 4


def test_as_many_run_at_once_as_there_are_places_each_on_its_own(
  study, tmp_path
):
  # A stage I waits for the other one to begin.
  meet = """
    case $only in *pretrain*)
      n=0
      while [ $(grep -c 'begin.*pretrain' $ROOT/events) -lt 2 ]; do
        n=$((n + 1)); [ $n -gt 500 ] && exit 9; sleep .02
      done;;
    esac"""
  mine = make_jobs(tmp_path, meet)
  jobs.run_all(study, lambda: None, mine)
  assert not mine.failed
  busy = set()
  for what, name, place in events(tmp_path):
    if what == 'begin':
      assert place not in busy
      busy.add(place)
    else:
      busy.remove(place)
    assert len(busy) <= 2, name
  assert {place for *_, place in events(tmp_path)} == {'0', '1'}


def test_the_death_of_one_is_told_and_the_rest_goes_on(study, tmp_path, capsys):
  fails = """
    case $only in
      seed0/attention) echo 'Out of memory: 7 GiB'; kill -KILL $$;;
      seed1/pretrain*) echo 'error: no such set'; exit 2;;
    esac"""
  mine = make_jobs(tmp_path, fails)
  jobs.run_all(study, lambda: None, mine)
  said = capsys.readouterr().out
  assert 'killed by SIGKILL: Out of memory: 7 GiB' in said
  assert 'status 2: error: no such set' in said
  assert (tmp_path / 'seed0' / 'pre-training' / 'done').exists()
  folder = study[2][0].pretraining.name
  assert set(mine.failed) == {
    'seed0/attention',
    f'seed1/{folder}',
    'seed1/attention',
    'seed1/pre-training',
  }
  assert said.count(f'left out, without its {folder}') == 2
  assert 'Out of memory' in (tmp_path / 'seed0' / 'attention.log').read_text()

  # The same command does what is left.
  mine = make_jobs(tmp_path)
  jobs.run_all(study, lambda: None, mine)
  assert not mine.failed
  assert all(runs.look(task).state == 'finished' for task, _ in study)


@pytest.fixture
def sharing(study, tmp_path):
  """Three runs of a seed, two of them fine-tuned from the stage II of one."""
  del study  # Its `look`.
  tuned = 'finetune.epochs=1.0'
  return [
    (task, None)
    for task in tasks_lib.share_stage_two([
      tasks_lib.network(
        tasks_lib.resolved(
          fake_runs.make_config(), name, overrides, 0, fake_runs.resolve
        ),
        tmp_path, name,
      )
      for name, overrides in (
        ('late', [tuned]),
        ('later', [tuned, 'finetune.loss.beta=0.9']),
        ('plain', []),
      )
    ])
  ]  # fmt: skip


def test_a_run_begins_when_the_stage_ii_that_it_shares_is_there(
  sharing, tmp_path
):
  leaves = 'mkdir -p $folder/finetune; touch $folder/finetune/done'
  mine = make_jobs(tmp_path, leaves, count=3)
  jobs.run_all(sharing, lambda: None, mine)
  assert not mine.failed
  seen = [(what, short(name)) for what, name, _ in events(tmp_path)]
  assert seen[:4] == [
    ('begin', 'seed0/pretrain'), ('end', 'seed0/pretrain'),
    ('begin', 'seed0/plain'), ('end', 'seed0/plain'),
  ]  # fmt: skip
  assert sorted(seen[4:]) == [
    (what, f'seed0/{name}')
    for what in ('begin', 'end')
    for name in ('late', 'later')
  ]


def test_a_death_after_a_stage_ii_leaves_it_to_the_others(sharing, tmp_path):
  late, later, _ = sharing
  tasks = [
    (task, None) for task in tasks_lib.share_stage_two([late[0], later[0]])
  ]  # fmt: skip
  dies = """
    case $only in
      seed0/late) mkdir -p $folder/retrain; touch $folder/retrain/finished
        kill -KILL $$;;
      seed0/later) mkdir -p $folder/finetune; touch $folder/finetune/done;;
    esac"""
  mine = make_jobs(tmp_path, dies)
  jobs.run_all(tasks, lambda: None, mine)
  assert mine.failed == ['seed0/late']
  assert runs.look(later[0]).state == 'finished'


def test_a_stage_ii_that_no_run_of_these_ends_with_is_made_by_one_of_them(
  sharing, tmp_path
):
  """Of several, the others wait for it: two would be in each other's way."""
  leaves = 'mkdir -p $folder/finetune; touch $folder/finetune/done; sleep .3'
  mine = make_jobs(tmp_path, leaves, count=3)
  jobs.run_all(sharing[:2], lambda: None, mine)
  seen = [(what, short(name)) for what, name, _ in events(tmp_path)]
  assert [what for what, name in seen if 'pretrain' not in name] == [
    'begin', 'end', 'begin', 'end',
  ]  # fmt: skip


@pytest.mark.parametrize('dies', ['plain', 'pretrain*'])
def test_without_a_stage_ii_to_share_a_run_is_left_out(
  dies, sharing, tmp_path, capsys
):
  mine = make_jobs(tmp_path, f'case $only in seed0/{dies}) exit 9;; esac')
  jobs.run_all(sharing, lambda: None, mine)
  begun = [short(name) for what, name, _ in events(tmp_path) if what == 'begin']
  assert begun == ['seed0/pretrain', 'seed0/plain'][: 1 + (dies == 'plain')]
  said = capsys.readouterr().out
  for name in ('late', 'later'):
    assert f'seed0/{name}' in mine.failed
    if dies == 'plain':
      assert (
        f'{name}, seed 0: left out, without its stage II, seed0/plain' in said
      )


def test_a_divergence_is_no_death(study, tmp_path, capsys):
  diverges = """
    case $only in
      seed0/pretrain* | seed1/attention)
        echo '{"error": "step 3"}' > $folder/failed.json; exit 0;;
    esac"""
  mine = make_jobs(tmp_path, diverges)
  jobs.run_all(study, lambda: None, mine)
  assert not mine.failed
  assert [runs.look(task).state for task, _ in study] == [
    'diverged', 'diverged', 'finished', 'diverged',
  ]  # fmt: skip
  begun = {name for what, name, _ in events(tmp_path) if what == 'begin'}
  assert not begun & {'seed0/attention', 'seed0/pre-training'}
  assert 'diverged (step 3); the study goes on' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('number', 'raised'), [('INT', KeyboardInterrupt), ('TERM', Stopped)]
)
def test_a_signal_ends_all_processes_and_only_ours(
  study, tmp_path, number, raised
):
  # Both wait until they are told to end; one of them sends us the signal.
  waits = f"""
    trap 'say stopped; exit 143' TERM
    echo $$ > $folder/ready
    case $only in seed1/*)
      n=0
      while [ $(ls $ROOT/*/*/ready | wc -l) -lt 2 ]; do
        n=$((n + 1)); [ $n -gt 500 ] && exit 9; sleep .02
      done
      kill -{number} $PPID;;
    esac
    while :; do sleep .02; done"""
  other = subprocess.Popen(['sleep', '600'])
  try:
    with signals.noted(), pytest.raises(raised):
      jobs.run_all(study, lambda: None, make_jobs(tmp_path, waits))
    assert other.poll() is None
  finally:
    other.kill()
    other.wait()
  assert sorted(what for what, *_ in events(tmp_path)) == [
    'begin', 'begin', 'stopped', 'stopped',
  ]  # fmt: skip
  ours = [int(file.read_text()) for file in tmp_path.glob('*/*/ready')]
  assert len(ours) == 2
  for process in ours:
    with pytest.raises(ProcessLookupError):
      os.kill(process, 0)


def test_a_process_gets_no_interrupt_of_the_terminal(study, tmp_path):
  # No shell: it clears the mask that it is started with.
  says = """
import os, pathlib, signal, sys
folder = pathlib.Path(os.environ['ROOT'], sys.argv[1].partition('=')[2])
folder.mkdir(parents=True)
print(*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, [])))
for name in ('done', 'finished'):
  (folder / name).touch()
"""
  mine = jobs.Jobs(
    [places.Place('here')],
    [sys.executable, '-S', '-c', says],
    {**os.environ, 'ROOT': str(tmp_path)},
  )
  jobs.run_all(study[:1], lambda: None, mine)
  log = study[0][0].workdir.with_suffix('.log')
  assert str(int(signal.SIGINT)) in log.read_text().split()
  assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.skipif(
  not hasattr(os, 'sched_getaffinity'), reason='cores are shared out on Linux'
)
def test_each_process_has_its_part_of_the_cores(study, tmp_path):
  before = os.sched_getaffinity(0)
  count = min(2, len(before))
  shares = places.make_places(count, None, 'cpu', 1, {})
  assert frozenset().union(*(place.cores for place in shares)) == before
  assert sum(len(place.cores) for place in shares) == len(before)
  mine = make_jobs(tmp_path)
  jobs.run_all(study, lambda: None, jobs.Jobs(
    shares, mine.command, mine.environment
  ))  # fmt: skip
  assert os.sched_getaffinity(0) == before

  def parsed(text):
    ranges = (part.split('-') for part in text.strip().split(','))
    return {c for r in ranges for c in range(int(r[0]), int(r[-1]) + 1)}

  seen = {
    frozenset(parsed(file.read_text())) for file in tmp_path.glob('*/*/cores')
  }
  assert seen <= {place.cores for place in shares}


def test_the_command_of_a_run_is_that_of_the_study():
  words = ['ablate', '--config=c.py', '--jobs', '4', '--jobs_per_device=2',
           '--workdir=jobs', '-jobs=3', '--config.seed=1']  # fmt: skip
  assert jobs.without(words, ['jobs', 'jobs_per_device', 'only']) == [
    'ablate', '--config=c.py', '--workdir=jobs', '--config.seed=1',
  ]  # fmt: skip


def test_one_run_is_done_alone(study, tmp_path, monkeypatch):
  done = []

  def run(task, work):
    done.append(task.workdir)
    return runs.Run(task.config.seed, task.workdir, {'scores': {}})

  monkeypatch.setattr(runs, 'run', run)
  monkeypatch.setattr(runs, 'pretrain', lambda task: done.append('stage I'))
  said = jobs.run_only(study, 'seed1/attention')
  assert said == '+ attention, seed 1: finished'
  assert done == [tmp_path / 'seed1' / 'attention']
  folder = study[0][0].pretraining
  assert jobs.run_only(study, f'seed0/{folder.name}').endswith(': finished')
  assert done[1:] == ['stage I']
  with pytest.raises(UserError, match='the runs of this study are seed0/pre-'):
    jobs.run_only(study, 'seed7/attention')


def test_how_far_a_run_is_stands_in_the_logs_of_its_stages(tmp_path):
  config = fake_runs.make_config(
    pretrain__epochs=2.0, retrain__epochs=3.0, finetune__epochs=1.5
  )
  own = tasks_lib.resolved(config, 'row', (), 0, fake_runs.resolve)
  task = tasks_lib.network(own, tmp_path, 'row')
  unit = jobs._Unit(task, shared=False)
  assert unit.name == 'seed0/row' and unit.done() == 0
  assert [epochs for _, epochs in unit.stages()] == [3, 1.5]
  for (folder, _), epoch in zip(unit.stages(), (3.01, 0.5), strict=True):
    folder.mkdir(parents=True)
    line = f'{{"split": "train", "epoch": {epoch}}}\n'
    old = '{"split": "train", "epoch": 0.1}\n' * 500
    (folder / 'metrics.jsonl').write_text(old + line + '{"split": "tr')
  assert unit.done() == 3.5
  shared = jobs._Unit(task, shared=True)
  assert shared.stages() == [(task.pretraining, 2)] and shared.done() == 0
