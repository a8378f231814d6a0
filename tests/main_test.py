"""The one door: what a command needs, and where it writes."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import children

ROOT = pathlib.Path(__file__).parents[1]

FLAGS = (
  '--config.data.phantom.count=50',
  '--config.data.store_size=64',
  '--config.data.image_size=32',
  '--config.data.render=device',
  '--config.model.stage_sizes=(1,)',
  '--config.model.width=4',
  "--config.mgacr.stages=('stage1',)",
  '--config.retrain.batch_size=8',
  '--config.retrain.epochs=0.5',
  '--config.train.progress=False',
)

# `python -m dpjax.main`, and then what it has imported. Neither JAX nor what
# stands on it imports these of itself (scipy once was a part of JAX's own
# import), so whoever brings one in is our module.
DRIVER = """
import runpy, sys
sys.argv[0] = 'dpjax.main'
try:
  runpy.run_module('dpjax.main', run_name='__main__')
except SystemExit as end:
  roots = {name.partition('.')[0] for name in sys.modules}
  print('imported', *sorted(roots))
  raise
"""


# Imports what a command does, all but dpjax.main; then each is a child of it.
FORKS = """
import json, os, runpy, signal, sys
from dpjax.training import loop
for line in sys.stdin:
  words, code, files = json.loads(line)
  if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    continue
  signal.alarm(600)
  for number, file in enumerate(files, 1):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
  sys.argv = ['dpjax.main', *words]
  exec(code)
  runpy.run_module('dpjax.main', run_name='__main__')
"""


def environment(platform):
  return {**children.environment(), 'JAX_PLATFORMS': platform}


def run(cwd, *arguments, driver=('-c', DRIVER), platform='cpu'):
  return subprocess.run(
    [sys.executable, *driver, *arguments],
    cwd=cwd,
    env=environment(platform),
    capture_output=True,
    text=True,
    check=False,
    timeout=600,
  )


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
  """A fresh folder with configs/ and the prepared phantom, as a user's."""
  folder = tmp_path_factory.mktemp('checkout')
  (folder / 'configs').symlink_to(ROOT / 'configs')
  made = run(folder, 'prepare', '--config=configs/retrain.py', *FLAGS)
  assert made.returncode == 0, made.stderr
  return folder


@pytest.fixture(scope='module')
def forked(checkout, tmp_path_factory):
  """`python -m dpjax.main` in `checkout`, but for the time of its imports.

  A function of the words on the command line, and of code that runs before.
  """
  folder = tmp_path_factory.mktemp('said')
  files = [folder / 'out', folder / 'err']
  server = subprocess.Popen(
    [sys.executable, '-c', FORKS], cwd=checkout, env=environment('cpu'),
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip

  def run(*words, code=''):
    line = json.dumps([words, code, [*map(str, files)]])
    server.stdin.write(line + '\n')
    server.stdin.flush()
    status = int(server.stdout.readline())
    said = [file.read_text() for file in files]
    return subprocess.CompletedProcess(words, status, *said)

  with server:
    yield run


@pytest.fixture(scope='module')
def trained(checkout):
  return run(checkout, '--config=configs/retrain.py', *FLAGS)


def test_training_needs_neither_opencv_nor_scipy_where_the_device_renders(
  trained,
):
  assert trained.returncode == 0, trained.stderr
  imported = trained.stdout.splitlines()[-1].split()
  assert imported[0] == 'imported' and 'dpjax' in imported
  assert not {
    'cv2',
    'matplotlib',
    'scipy',
    'sklearn',
    'tensorflow',
    'tensorflow_datasets',
  } & set(imported)


def test_the_workdir_is_named_after_the_config_and_the_set_after_its_settings(
  trained, checkout
):
  assert trained.returncode == 0, trained.stderr
  workdir = checkout / 'runs' / 'retrain'
  names = {path.name for path in workdir.iterdir()}
  assert names == {
    'checkpoints',
    'config.json',
    'metrics.jsonl',
    'training_manifest.csv',
  }
  config = json.loads((workdir / 'config.json').read_text())
  assert config['stage'] == 'retrain'
  assert config['init']['backbone'] is None  # there is no runs/pretrain
  # Nothing is left open.
  assert '"auto"' not in (workdir / 'config.json').read_text()
  assert config['data']['threads'] > 0 and config['data']['workers'] > 0
  assert config['train']['steps_per_dispatch'] > 0
  assert config['parallel'] == {'devices': 1, 'mode': 'jit'}
  data = {path.name for path in (checkout / 'data').iterdir()}
  assert data == {pathlib.Path(config['data']['path']).name}


def test_a_workdir_without_a_run_is_one_line_and_exit_status_2(
  checkout, forked
):
  result = forked(
    'evaluate', '--config=configs/retrain.py', '--workdir=elsewhere', *FLAGS
  )
  assert result.returncode == 2
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1, result.stderr
  assert lines[0].startswith('error: --workdir=elsewhere holds no config.json')
  assert not (checkout / 'elsewhere').exists()


def test_a_run_is_scored_and_reported_by_its_own_config(checkout, trained):
  assert trained.returncode == 0, trained.stderr
  workdir = checkout / 'runs' / 'retrain'
  own = ('--workdir=runs/retrain', '--config.evaluate.resamples=5')
  scored = run(checkout, 'evaluate', *own, '--config.evaluate.split=validation')
  assert scored.returncode == 0, scored.stderr
  found = json.loads((workdir / 'evaluation.json').read_text())
  assert (found['split'], found['settings']['resamples']) == ('validation', 5)
  # As by the flags that it was trained with.
  by_flags = run(
    checkout, 'evaluate', '--config=configs/retrain.py', *FLAGS, *own,
    '--config.evaluate.split=validation',
  )  # fmt: skip
  assert by_flags.returncode == 0, by_flags.stderr
  again = json.loads((workdir / 'evaluation.json').read_text())
  timed = ('seconds', 'images_per_second')
  assert {k: v for k, v in again.items() if k not in timed} == {
    k: v for k, v in found.items() if k not in timed
  }
  reported = run(checkout, 'report', own[0], platform='nowhere')
  assert reported.returncode == 0, reported.stderr
  for name in ('evaluation.json', 'predictions.csv', 'report.html',
               'report.json'):  # fmt: skip
    (workdir / name).unlink()


def test_files_are_answered_by_the_runs_own_config(checkout, trained, tmp_path):
  assert trained.returncode == 0, trained.stderr
  rng = np.random.default_rng(0)
  for name in ('a', 'b'):
    file = tmp_path / 'in' / f'{name}.png'
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (90, 90), np.uint8)).save(file)
  (tmp_path / 'in' / 'c.png').write_bytes(b'none')
  out = tmp_path / 'out'
  said = run(
    checkout, 'predict', '--workdir=runs/retrain', f'--input={tmp_path / "in"}',
    f'--output={out}', '--on_error=skip', '--overlays=all',
    driver=('-m', 'dpjax.main'),
  )  # fmt: skip
  assert said.returncode == 0, said.stderr
  assert 'not evaluated' in said.stdout and '2 radiographs' in said.stdout
  table = (out / 'predictions.csv').read_text().splitlines()
  assert [row.partition(',')[0] for row in table] == ['file', 'a.png', 'b.png']
  assert len([*(out / 'overlays').iterdir()]) == 2
  refused = run(checkout, 'predict', '--workdir=runs/retrain',
                driver=('-m', 'dpjax.main'))  # fmt: skip
  assert refused.returncode == 2
  assert refused.stderr.startswith('error: --input is missing')


@pytest.mark.parametrize(
  'flag',
  ['--on_error=skip', '--strict', '--preview=3', '--verify', '--beam_runner=X'],
)
def test_a_flag_of_prepare_is_refused_elsewhere(checkout, forked, flag):
  result = forked(
    '--config=configs/retrain.py', '--workdir=elsewhere', flag, *FLAGS
  )
  assert result.returncode == 2
  name = flag.partition('=')[0]
  assert result.stderr == f'error: {name} is for prepare, not for train\n'
  assert not (checkout / 'elsewhere').exists()


@pytest.mark.parametrize(
  ('command', 'flag', 'line'),
  [
    ('train', '--peer=torch', '--peer is for benchmark, not for train'),
    ('train', '--target=h100', '--target is for benchmark, not for train'),
    (
      'benchmark',
      '--dump',
      '--dump and --fit are for --target, which is missing',
    ),
    (
      'evaluate',
      '--coordinator=auto',
      '--coordinator is for train, not for evaluate: that runs in one process',
    ),
  ],
)
def test_a_flag_of_another_command_is_refused(forked, command, flag, line):
  result = forked(command, '--config=configs/retrain.py', flag, *FLAGS)
  assert result.returncode == 2
  assert result.stderr == f'error: {line}\n'


def test_other_shares_of_the_classes_are_not_ignored_by_export(
  checkout, forked
):
  result = forked(
    'export', '--output=answers', '--workdir=run',
    '--config.evaluate.prevalence=balanced',
  )  # fmt: skip
  assert result.returncode == 2
  assert result.stderr == (
    'error: config.evaluate.prevalence is for evaluate and predict; an export'
    ' answers for the shares of the classes in training\n'
  )
  assert not (checkout / 'answers').exists()


@pytest.mark.parametrize('command', ['train', 'compare'])
def test_a_flag_that_the_set_overrules_is_refused(command, checkout, forked):
  result = forked(
    command, '--config=configs/recipe.py', '--workdir=overruled', *FLAGS,
    '--config.split.unit=image',
  )  # fmt: skip
  assert result.returncode == 2
  assert result.stderr == (
    "error: config.split.unit is 'image'; it must be 'patient', as the prepared"
    ' set data/phantom-v1-50-0-64 has it; for another set name a data.path of'
    ' its own\n'
  )
  assert not (checkout / 'overruled').exists()


def test_another_stage_of_the_maps_is_not_ignored_by_predict_on_an_export(
  forked, tmp_path
):
  (tmp_path / 'model.json').write_text('{}')
  result = forked(
    'predict', f'--workdir={tmp_path}', '--input=in', '--output=out',
    '--config.evaluate.cam_stage=stage1',
  )  # fmt: skip
  assert result.returncode == 2
  assert result.stderr.startswith(
    f'error: config.evaluate.cam_stage: {tmp_path} is an export'
  )


def test_prepare_verifies_and_draws_the_set_that_is_there(checkout):
  for flag, words in (
    ('--verify', 'all 50 images are as its manifest has them'),
    ('--preview=4', 'phantom-v1-50-0-64-preview.png'),
  ):
    result = run(
      checkout,
      'prepare',
      '--config=configs/retrain.py',
      flag,
      *FLAGS,
      driver=('-m', 'dpjax.main'),
    )
    assert result.returncode == 0, result.stderr
    assert words in result.stdout
  sheet = checkout / 'data' / 'phantom-v1-50-0-64-preview.png'
  assert sheet.read_bytes().startswith(b'\x89PNG')
  sheet.unlink()


@pytest.mark.parametrize('command', ['prepare', 'report'])
def test_what_needs_no_device_starts_no_jax(
  command, checkout, trained, tmp_path
):
  assert trained.returncode == 0, trained.stderr
  flags = ('--config=configs/retrain.py', *FLAGS)
  if command == 'prepare':
    flags += (f'--config.data.path={tmp_path / "set"}',)
  result = run(checkout, command, *flags, platform='nowhere')
  assert result.returncode == 0, result.stderr
  written = {'prepare': 'squares of 64 pixels', 'report': 'report.html'}[
    command
  ]
  assert written in result.stdout


def test_inspect_needs_a_folder_and_no_config(checkout, tmp_path):
  said = run(checkout, 'inspect', f'--source={tmp_path}', platform='nowhere')
  assert said.returncode == 0, said.stderr
  assert 'There is no image here' in said.stdout
  assert not {'jax', 'flax'} & set(said.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
  ('words', 'line'),
  [
    (['inspect'], '--source is missing; the folder to look at, e.g.'
     ' --source=PATH'),
    (['inspect', '/a'], '/a: did you mean --source=/a?'),
    (['inspect', '--source=/a', '--verify'],
     '--verify is for prepare, not for inspect'),
    (['prepare', '--source=/a'], '--source is for inspect, not for prepare; the'
     ' others take --config.data.source'),
  ],
)  # fmt: skip
def test_what_inspect_is_not_told_rightly_is_one_line(words, line, forked):
  result = forked(*words)
  assert result.returncode == 2
  assert result.stderr == f'error: {line}\n'


# Training meets something.
MEETS = """
import numpy as np
from dpjax.errors import UserError
from dpjax.training import loop

def train(*_):
  {what}

loop.train = train
"""
REPORT_IT = 'please report it'


def run_into(forked, what, *flags):
  return forked(
    '--config=configs/retrain.py', *FLAGS, *flags, code=MEETS.format(what=what)
  )


@pytest.mark.parametrize(
  ('what', 'words'),
  [
    ('np.zeros(2) + np.zeros(3)', 'ValueError: operands could not be'),
    ('open(b"a", mode="q")', 'ValueError: invalid mode'),
    ('raise OSError("not of the operating system")', 'OSError: not of'),
    ('raise BlockingIOError(11, "try again")', 'BlockingIOError: [Errno 11]'),
    (
      'open(__import__("dpjax.errors").errors.__file__ + ".css")',
      'FileNotFoundError: [Errno 2]',
    ),
    ('import dpjax.nothing', 'ModuleNotFoundError'),
    ('raise RuntimeError("ours")', 'RuntimeError: ours'),
  ],
)
def test_a_bug_of_ours_keeps_its_traceback_and_asks_to_be_reported(
  what, words, forked
):
  result = run_into(forked, what)
  assert result.returncode == 1
  *trace, last = result.stderr.strip().splitlines()
  assert REPORT_IT in last
  assert 'Traceback (most recent call last):' in trace
  assert trace[-1].startswith(words)


@pytest.mark.parametrize(
  ('what', 'line'),
  [
    ('raise UserError("mend it")', 'error: mend it'),
    (
      'raise OSError(28, "No space left on device")',
      'error: [Errno 28] No space left on device',
    ),
    (
      'raise UserError("a name\\nof " + "x" * 9999 + "; it must be short")',
      r'error: a name\nof '
      + 'x' * 282
      + ' [...] '
      + 'x' * 182
      + '; it must be short',
    ),
    (
      'open("nowhere/at/all")',
      "error: [Errno 2] No such file or directory: 'nowhere/at/all'",
    ),
  ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_status_2(
  what, line, forked
):
  result = run_into(forked, what)
  assert result.returncode == 2
  assert result.stderr.strip().splitlines()[-1] == line
  assert 'Traceback' not in result.stderr and REPORT_IT not in result.stderr


@pytest.mark.parametrize(
  ('what', 'last'),
  [
    ('raise UserError("mend it")', 'UserError: mend it'),
    ('raise OSError(28, "No space")', 'OSError: [Errno 28] No space'),
  ],
)
def test_traceback_shows_where_a_users_mistake_was_raised(what, last, forked):
  result = run_into(forked, what, '--traceback')
  assert result.returncode == 1
  assert result.stderr.strip().endswith(last)
  assert 'Traceback (most recent call last):' in result.stderr
  assert REPORT_IT not in result.stderr


# A signal comes in a place where an exception would be discarded, as in a
# callback of JAX.
STOPPED = """
import os, signal, time

class Discards:
  def __init__(self, number):
    self.number = number
  def __del__(self):
    os.kill(os.getpid(), self.number)

def before(owner, name, number):
  function = getattr(owner, name)
  def wrapped(*args, **kwargs):
    Discards(number)
    return function(*args, **kwargs)
  setattr(owner, name, wrapped)

{moment}
"""
STARTS = """
from dpjax.distributed import processes
before(processes, 'start', signal.{number})
"""
OPENS = """
from dpjax import prepare
before(prepare, 'open_prepared', signal.{number})
"""
COMPILES = """
import jax
from dpjax.training import programs
class Slow:
  def lower(self, *_):
    return self
  def compile(self):
    time.sleep(10_000)  # If this is waited for, the test does not end.
programs.compile_training = lambda *_: Slow()
before(programs.Programs, '__getitem__', signal.{number})
"""
# Its first state is compiled too; tracing stands for XLA here.
INITIALISES = """
from dpjax.training import objectives, programs
objectives.Retraining.init = lambda *_: time.sleep(10_000)
before(programs, 'first_call', signal.{number})
"""


@pytest.mark.parametrize(
  ('moment', 'number', 'status'),
  [
    (STARTS, 'SIGINT', 130),
    (INITIALISES, 'SIGINT', 130),
    (OPENS, 'SIGINT', 130),
    (COMPILES, 'SIGINT', 130),
    (COMPILES, 'SIGTERM', 143),
  ],
)
def test_a_signal_before_the_first_step_is_never_lost(
  moment, number, status, forked
):
  result = forked(
    '--config=configs/retrain.py', '--workdir=stopped', *FLAGS,
    code=STOPPED.format(moment=moment.format(number=number)),
  )  # fmt: skip
  assert result.returncode == status, result.stderr
  said = (result.stdout if number == 'SIGTERM' else result.stderr).strip()
  last = said.splitlines()[-1]
  assert last.startswith('stopped') and 'the same command goes on' in last
  assert 'Traceback' not in result.stderr


def write_weights(file, prefix, change):
  """Torch weights of the network of FLAGS, written as safetensors."""
  from safetensors.numpy import save_file

  shapes = {'conv1.weight': (4, 1, 7, 7)}
  shapes |= {f'layer1.0.conv{i}.weight': (4, 4, 3, 3) for i in (1, 2)}
  for bn in ('bn1', 'layer1.0.bn1', 'layer1.0.bn2'):
    parts = ('weight', 'bias', 'running_mean', 'running_var')
    shapes |= {f'{bn}.{part}': (4,) for part in parts}
  tensors = {
    prefix + name: np.full(shape, 0.1, np.float32)
    for name, shape in shapes.items()
  }
  change(tensors)
  save_file(tensors, file)


def test_weights_under_a_wrappers_prefix_are_trained_from(checkout):
  file = checkout / 'module.safetensors'
  write_weights(file, 'module.', lambda tensors: None)
  done = run(
    checkout, '--config=configs/retrain.py', *FLAGS, '--workdir=module',
    f'--config.init.backbone={file}',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert f'{file}: the prefix module. is taken off' in done.stdout
  assert (checkout / 'module/checkpoints').is_dir()


def test_weights_that_are_not_finite_are_refused_before_training(checkout):
  file = checkout / 'nan.safetensors'

  def spoil(tensors):
    tensors['layer1.0.conv2.weight'][1, 2, 0, 0] = np.nan

  write_weights(file, '', spoil)
  done = run(
    checkout, '--config=configs/retrain.py', *FLAGS, '--workdir=nan',
    f'--config.init.backbone={file}',
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith(f'error: config.init.backbone: {file}: ')
  assert 'layer1.0.conv2.weight' in line and 'NaN' in line
  assert not (checkout / 'nan/metrics.jsonl').exists()
