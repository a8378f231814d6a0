"""A campaign in short: a kill and a stop; and that it sees what is wrong."""

import json
import shutil
import subprocess
import sys
from signal import SIGINT, SIGKILL, SIGTERM

import numpy as np
import pytest

from benchmarks import blows, chaos

GO_ON = 'stopped by SIGTERM and saved at step 7 of 20; the same command goes on'


@pytest.fixture(scope='module')
def campaign(tmp_path_factory):
  """(folder, runs): killed in saves of II and III; stopped in stage I."""
  folder = tmp_path_factory.mktemp('chaos')
  # As soon as the phase is there: later it may be over on a faster machine.
  plans = (
    [
      blows.Blow(SIGKILL, 'saving II', 0.0),
      blows.Blow(SIGKILL, 'saving III', 0.0),
    ],
    [blows.Blow(SIGTERM, 'stage I', 0.0)],
  )
  return folder, chaos.campaign(folder, plans)


@pytest.mark.slow
def test_a_killed_and_a_stopped_run_end_as_the_undisturbed_one(campaign):
  _, runs = campaign
  killed, stopped = runs
  assert [start.statuses for start in killed.starts] == [
    (-SIGKILL,),
    (-SIGKILL,),
    (0,),
  ]
  assert [start.statuses for start in stopped.starts] == [(143,), (0,)]
  assert killed.starts[0].moment.startswith('saving II,')
  assert killed.starts[1].moment.startswith('saving III,')
  for run in runs:
    assert not any(start.fault for start in run.starts)
    assert run.differs == dict.fromkeys(chaos.COLUMNS, '')
  table = chaos.format_table(runs).splitlines()
  assert len(table) == 6
  assert table[3].split() == ['0', 'equal', 'equal', 'equal', 'equal']


@pytest.mark.slow
def test_an_undisturbed_run_has_nothing_to_warn_of(campaign):
  # It saves between validations, of which Orbax has a word to say.
  said = (campaign[0] / 'undisturbed/start-1-0.txt').read_text()
  assert 'epoch 4.00' in said and 'warning' not in said.lower()


@pytest.mark.slow
def test_whatever_differs_is_found_in_its_own_column(campaign, tmp_path):
  reference = campaign[0] / 'undisturbed'
  other = tmp_path / 'other'
  shutil.copytree(reference, other)
  same = dict.fromkeys(chaos.COLUMNS, '')
  assert chaos.compare(other, reference) == same

  retrain, finetune = other / 'run/retrain', other / 'run/finetune'
  (other / 'data/.phantom.lock').touch()
  assert chaos.compare(other, reference) == {
    **same,
    'files': 'data/.phantom.lock is left over',
  }
  (other / 'data/.phantom.lock').unlink()

  half = retrain / 'checkpoints/17.orbax-checkpoint-tmp'
  half.mkdir()
  assert half.name in chaos.compare(other, reference)['files']
  half.rmdir()

  (retrain / 'config.json').rename(tmp_path / 'config.json')
  found = chaos.compare(other, reference)
  assert found == {**same, 'files': 'run/retrain/config.json is missing'}
  (tmp_path / 'config.json').rename(retrain / 'config.json')

  log = retrain / 'metrics.jsonl'
  first, *lines = log.read_text().splitlines(keepends=True)
  entry = json.loads(first)
  # Another time is no difference; the last digit of a loss is one.
  entry['seconds_wall'] += 1
  log.write_text(''.join([json.dumps(entry) + '\n', *lines]))
  assert chaos.compare(other, reference) == same
  entry['loss'] = float(np.nextafter(entry['loss'], 100))
  log.write_text(''.join([json.dumps(entry) + '\n', *lines]))
  found = chaos.compare(other, reference)
  assert 'step 4, train: loss' in found.pop('log')
  assert found == dict.fromkeys(('weights', 'scores', 'files'), '')

  # An earlier state in the place of the last one.
  newest, before = '20', '18'
  shutil.rmtree(finetune / 'checkpoints' / newest)
  (finetune / 'checkpoints' / before).rename(finetune / 'checkpoints' / newest)
  evaluation = json.loads((finetune / 'evaluation.json').read_text())
  evaluation['threshold'] = 0.123
  (finetune / 'evaluation.json').write_text(json.dumps(evaluation))
  found = chaos.compare(other, reference)
  assert found['weights'].startswith('finetune: ')
  assert 'threshold 0.123' in found['scores']


def test_a_seed_draws_the_same_campaign_again():
  plans = [chaos.draw(7, i, processes=2) for i in range(200)]
  assert plans == [chaos.draw(7, i, processes=2) for i in range(200)]
  assert plans != [chaos.draw(8, i, processes=2) for i in range(200)]
  drawn = [blow for plan in plans for blow in plan]
  assert {blow.phase for blow in drawn} == {*blows.PHASES}
  assert {blow.signal for blow in drawn} == {SIGKILL, SIGTERM, SIGINT}
  assert {blow.process for blow in drawn} == {0, 1}
  assert all(0 <= blow.share < 1 for blow in drawn)
  assert {len(plan) for plan in plans} == {1, 2, 3, 4}


@pytest.mark.parametrize(
  ('number', 'phase', 'status'),
  [
    (SIGKILL, 'stage I', -9),
    (SIGTERM, 'stage I', 143),
    (SIGINT, 'saving II', 143),
    (SIGINT, 'evaluating', 130),
    (SIGTERM, 'evaluating', -15),
    (SIGINT, 'starting', -2),
  ],
)
def test_an_end_that_readme_has_is_none_to_complain_of(number, phase, status):
  assert not blows.judge(number, phase, status, f'a\n{GO_ON}\n', 1.0)


@pytest.mark.parametrize(
  ('number', 'phase', 'status', 'text', 'fault'),
  [
    (SIGTERM, 'stage I', 0, '', 'swallowed'),
    (SIGINT, 'starting', 0, '', 'swallowed'),
    (SIGTERM, 'stage I', -15, '', 'ended with -15'),
    (SIGINT, 'stage I', 130, GO_ON, 'ended with 130'),
    (SIGINT, 'evaluating', -2, GO_ON, 'ended with -2'),
    (SIGINT, 'evaluating', 130, '', 'no line'),
    (SIGTERM, 'stage I', 143, f'Traceback\n{GO_ON}', 'traceback'),
    (SIGKILL, 'stage I', 1, '', 'ended with 1'),
  ],
)
def test_any_other_end_is_a_fault(number, phase, status, text, fault):
  assert fault in blows.judge(number, phase, status, text, 10.0)


def test_who_waits_for_the_first_of_a_job_may_end_by_the_signal_itself():
  assert not blows.judge(SIGINT, 'opening II', -2, '', 1.0, waits=True)
  assert blows.judge(SIGINT, 'opening II', -2, '', 1.0)
  assert blows.judge(SIGINT, 'stage II', -2, '', 1.0, waits=True)


def test_its_output_and_files_tell_what_a_run_is_at(tmp_path):
  output = tmp_path / 'output'
  checkpoints = tmp_path / 'pretrain/checkpoints'
  log = tmp_path / 'pretrain/metrics.jsonl'
  checkpoints.mkdir(parents=True)
  output.touch()
  progress = blows.Progress(output, tmp_path)

  def after(line):
    with output.open('a') as stream:
      stream.write(line + '\n')
    return progress.phase()

  # Left by a kill: of no meaning before the stage is open.
  half = checkpoints / '3.orbax-checkpoint-tmp'
  half.mkdir()
  assert progress.phase() == 'starting'
  assert after('data is not there: preparing 60 phantom') == 'preparing'
  half.rmdir()
  log.write_text('an earlier line\n')
  opened = 'pretrain: run, resumed at step 3, to step 20 (4 epochs)'
  assert after(opened) == 'compiling I'
  log.write_text('an earlier line\nanother\n')
  assert progress.phase() == 'stage I'
  half.mkdir()
  assert progress.phase() == 'saving I'
  half.rmdir()
  assert after('pretrain epoch 4.00, validation: loss 2') == 'opening II'
  done = 'retrain: run, resumed at step 20, to step 20 (4 epochs)'
  assert after(done) == 'opening III'
  assert after(done.replace('retrain', 'finetune')) == 'evaluating'
  assert after('recipe: 20 s') == 'ending'


def test_the_others_of_a_job_are_done_when_the_first_one_evaluates():
  assert blows.phase_of(1, 'evaluating') == 'ending'
  assert blows.phase_of(0, 'evaluating') == 'evaluating'
  assert blows.phase_of(1, 'saving II') == 'saving II'


def test_what_a_run_leaves_running_is_ended_and_named(monkeypatch):
  monkeypatch.setattr(blows, '_GRACE', 0.1)
  program = (
    'import subprocess, sys; print("up", flush=True);'
    ' subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"])'
  )
  parent = subprocess.Popen(
    [sys.executable, '-c', program],
    stdout=subprocess.PIPE,
    start_new_session=True,
  )
  stranger = subprocess.Popen([sys.executable, '-c', 'input()'],
                              stdin=subprocess.PIPE)  # fmt: skip
  with parent, stranger:
    parent.stdout.readline()
    left = blows.end_what_is_left({parent.pid})
    assert any(f'({parent.pid})' in name for name in left)
    assert parent.wait(10) == -SIGKILL
    assert stranger.poll() is None  # not ours to end
    stranger.communicate(b'\n')
  assert not blows.end_what_is_left({parent.pid})
