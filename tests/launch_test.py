"""The scripts of launch/, with everything they call replaced by a recorder."""

import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import time

import pytest
import yaml

from dpjax.config import fields

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([
  *LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch'),
  *(ROOT / 'benchmarks').glob('*.sh'), ROOT / '.ci' / 'run',
])  # fmt: skip
FLAGS = ('--config=configs/retrain.py', '--workdir=runs/with space',
         '--config.mgacr.stages=("stage1",)')  # fmt: skip

# What dpjax itself makes of a command line, without running anything.
READER = """
import json, sys
from absl import flags
from dpjax import main
from dpjax.config import flags as flags_lib
rest = flags_lib.parse_flags(sys.argv)
names = ('coordinator', 'num_processes', 'process_id', 'workdir')
read = {name: flags.FLAGS[name].value for name in names}
read['mode'] = flags.FLAGS['config'].value.parallel.mode
read['stages'] = flags.FLAGS['config'].value.mgacr.stages
print(json.dumps({**read, 'command': rest[1:]}))
"""


def read(arguments):
  """The values of dpjax.main's flags in `python -m dpjax.main ARGUMENTS`."""
  done = subprocess.run(
    [sys.executable, '-c', READER, *arguments],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def recorder(path, body):
  """An executable that notes its arguments in PATH.log, then does `body`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    f"#!/usr/bin/env bash\nprintf '%s\\0' \"$@\" '' >>'{path}.log'\n{body}\n"
  )
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


def calls(path):
  """The arguments of each call of a recorder."""
  log = pathlib.Path(f'{path}.log')
  if not log.is_file():
    return []
  words = log.read_text().split('\0\0')[:-1]
  return [call.split('\0') for call in words]


class Machine:
  """An environment that launch/venv.sh takes as made, and a PATH of fakes."""

  def __init__(self, folder):
    self.venv, self.bin = folder / 'venv', folder / 'bin'
    self.python = self.venv / 'bin' / 'python'
    # Answers venv.sh as Python, and `-m dpjax.main` not at all.
    recorder(
      self.python,
      f'[[ $1 == -m ]] || exec "{sys.executable}" "$@"\nexit ${{ENDS:-0}}',
    )
    recorder(self.bin / 'nvidia-smi', 'exit 0')

  def environment(self, **more):
    kept = {k: v for k, v in os.environ.items() if k != 'PYTHON'}
    path = f'{self.bin}:{os.environ["PATH"]}'
    return {**kept, 'PATH': path, 'VENV': str(self.venv), **more}

  def installed(self, extra):
    """Leaves the stamp by which venv.sh knows that nothing is to install."""
    key = subprocess.run(
      ['bash', '-c', 'echo "$(cksum <pyproject.toml) $PWD"'],
      cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    major, minor = sys.version_info[:2]
    (self.venv / f'.installed-{extra}').write_text(f'{major}.{minor} {key}')

  def run(self, *command, cwd=ROOT, **environment):
    return subprocess.run(
      command, cwd=cwd, env=self.environment(**environment),
      capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

  def trained(self):
    """The command lines of dpjax.main, without `-m dpjax.main`."""
    return [c[2:] for c in calls(self.python) if c[:2] == ['-m', 'dpjax.main']]


@pytest.fixture
def machine(tmp_path):
  return Machine(tmp_path)


# All scripts.


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
  path = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  shellcheck = shutil.which('shellcheck', path=path)
  if shellcheck is None:
    pytest.skip('shellcheck is not installed')
  done = subprocess.run(
    [shellcheck, '--external-sources', str(script)],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
  'file',
  [*SCRIPTS, LAUNCH / 'jobset.yaml', ROOT / 'docs' / 'many_machines.md'],
  ids=lambda path: path.name,
)
def test_every_field_that_is_named_exists(file):
  for name in re.findall(r'--config\.([a-z0-9_.]+)', file.read_text()):
    fields.check_field(fields.table(), name)


@pytest.mark.parametrize('name', ['gpus.sh', 'tpu_pod.sh'])
def test_what_is_called_by_name_is_executable(name):
  assert os.access(LAUNCH / name, os.X_OK)


# One machine, many GPUs.


def test_gpus_runs_one_process_under_pmap_with_all_flags(machine):
  machine.installed('cuda')
  done = machine.run('launch/gpus.sh', 'train', *FLAGS, ENDS='143')
  assert done.returncode == 143, done.stderr
  [arguments] = machine.trained()
  flags = read(arguments)
  assert flags['mode'] == 'pmap'
  assert flags['command'] == ['train']
  assert flags['workdir'] == 'runs/with space'
  assert flags['stages'] == ['stage1']
  assert not flags['coordinator']


def test_gpus_does_not_fall_back_to_the_cpu(machine):
  machine.installed('cuda')
  recorder(machine.bin / 'nvidia-smi', 'exit 9')
  done = machine.run('launch/gpus.sh', *FLAGS)
  assert done.returncode == 1
  assert 'no NVIDIA GPU' in done.stderr
  assert not machine.trained()


# Slurm.


def slurm(machine, status=0, state='RUNNING', ran=1000, **more):
  """Runs the batch script as Slurm does: a copy of it, elsewhere."""
  machine.installed('cuda')
  recorder(
    machine.bin / 'srun',
    f'while [[ $1 == --* ]]; do shift; done\n"$@"\nexit {status}',
  )
  recorder(machine.bin / 'scontrol', f'echo "JobId=7 JobState={state}"')
  spooled = machine.bin.parent / 'slurm_script'
  shutil.copy(LAUNCH / 'slurm.sbatch', spooled)
  # bash goes on counting from a SECONDS that it is started with.
  environment = {'SLURM_SUBMIT_DIR': str(ROOT), 'SLURM_JOB_ID': '7',
                 'SLURM_CPUS_PER_TASK': '8', 'SECONDS': str(ran)}  # fmt: skip
  done = machine.run('bash', str(spooled), *FLAGS, **environment | more)
  asked = [c for c in calls(machine.bin / 'scontrol') if c[0] == 'requeue']
  assert asked in ([], [['requeue', '7']])
  return done, bool(asked)


def directives():
  lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
  options = [s.removeprefix('#SBATCH --') for s in lines if s[:8] == '#SBATCH ']
  return {name: value for name, _, value in (o.partition('=') for o in options)}


def test_slurm_starts_every_task_with_all_flags(machine):
  done, _ = slurm(machine)
  assert done.returncode == 0, done.stderr
  [command] = calls(machine.bin / 'srun')
  assert '--kill-on-bad-exit=1' in command
  # Slurm 22.05 and newer do not hand it on to srun.
  assert '--cpus-per-task=8' in command
  [arguments] = machine.trained()
  flags = read(arguments)
  assert flags['coordinator'] == 'auto'
  assert flags['workdir'] == 'runs/with space'
  # Several processes take shard_map, which is what auto then means.
  assert flags['mode'] == 'auto'


def test_slurm_has_a_task_for_each_gpu_that_sees_all_of_its_node():
  """JAX's detection gives a task the one device numbered SLURM_LOCALID."""
  options = directives()
  assert options['ntasks-per-node'] == options['gpus-per-node']
  assert not {'gpus-per-task', 'gpu-bind', 'ntasks-per-gpu'} & set(options)


def test_slurm_signals_the_tasks_in_time_and_keeps_one_log():
  options = directives()
  assert options['signal'] == 'TERM@120'  # 'B:' would signal the script alone
  assert options['open-mode'] == 'append'
  assert 'requeue' in options


def test_sbatch_reads_every_directive():
  """It reads none after the first command."""
  text = (LAUNCH / 'slurm.sbatch').read_text()
  code = re.search(r'^[^#\n]', text, re.MULTILINE)
  assert text.rindex('#SBATCH') < code.start()


@pytest.mark.parametrize(
  ('status', 'again'),
  [(0, False), (1, False), (2, False), (130, False), (143, True), (137, True),
   (134, True)],
)  # fmt: skip
def test_slurm_queues_again_what_was_stopped_or_died(machine, status, again):
  done, queued = slurm(machine, status=status)
  assert queued == again
  if not again:
    assert done.returncode == status


@pytest.mark.parametrize('state', ['CANCELLED', 'COMPLETING', 'PENDING'])
def test_slurm_leaves_a_cancelled_or_preempted_job_to_slurm(machine, state):
  done, queued = slurm(machine, status=143, state=state)
  assert not queued
  assert done.returncode == 143


def test_slurm_gives_up_after_so_many_restarts(machine):
  done, queued = slurm(machine, status=137, SLURM_RESTART_COUNT='19')
  assert queued
  (machine.bin / 'scontrol.log').unlink()
  done, queued = slurm(machine, status=137, SLURM_RESTART_COUNT='20')
  assert not queued
  assert done.returncode == 137
  assert '20 restarts' in done.stderr


def test_slurm_does_not_repeat_what_ends_at_once(machine):
  done, queued = slurm(machine, status=137, ran=0)
  assert not queued
  assert done.returncode == 137


def test_slurm_script_outlives_a_sigterm_while_the_tasks_save(machine):
  """Slurm sends it on preemption; the end of the script is that of all."""
  stop = 'kill -TERM $PPID; sleep 0.2;'  # PPID: the batch script
  machine.installed('cuda')
  recorder(machine.bin / 'srun', f'{stop} touch "$SAVED"; exit 143')
  recorder(machine.bin / 'scontrol', 'echo JobState=RUNNING')
  saved = machine.bin / 'saved'
  done = machine.run(
    'bash', 'launch/slurm.sbatch', SLURM_SUBMIT_DIR=str(ROOT), SECONDS='900',
    SLURM_JOB_ID='7', SAVED=str(saved),
  )  # fmt: skip
  assert saved.is_file()
  assert ['requeue', '7'] in calls(machine.bin / 'scontrol'), done.stderr


def test_slurm_outside_a_checkout_says_so(machine, tmp_path):
  done, _ = slurm(machine, SLURM_SUBMIT_DIR=str(tmp_path))
  assert done.returncode == 2
  assert 'is no checkout of dpjax' in done.stderr


# A TPU slice.


@pytest.fixture
def slice_of_two(machine, tmp_path):
  """gcloud, and two workers: a home folder each, and storage of both."""
  # A repository of its own: the test does not ask what is committed here.
  checkout = tmp_path / 'checkout'
  shutil.copytree(LAUNCH, checkout / 'launch')
  shutil.copy(ROOT / 'pyproject.toml', checkout)
  for words in (
    ('init', '--quiet'),
    ('add', '.'),
    ('-c', 'user.name=test', '-c', 'user.email=test', 'commit', '-qm', 'all'),
  ):
    subprocess.run(['git', *words], cwd=checkout, check=True)
  homes = [tmp_path / f'worker{i}' for i in range(2)]
  share = tmp_path / 'the share'
  for home in homes:
    home.mkdir()
  home_list = ' '.join(f"'{home}'" for home in homes)
  recorder(
    machine.bin / 'gcloud',
    f"""
for home in {home_list}; do
  if [[ $4 == scp ]]; then
    cp "$5" "$home"
  else
    for word in "$@"; do
      [[ $word != --command=* ]] || command=${{word#--command=}}
    done
    (cd "$home" && HOME=$home bash -c "$command") || exit
  fi
done""",
  )

  def launch(*arguments):
    script = str(checkout / 'launch' / 'tpu_pod.sh')
    environment = {'SHARE': str(share), 'TPU_NAME': 'mine', 'ZONE': 'here',
                   'PYTHON': sys.executable}  # fmt: skip
    return machine.run(script, *arguments, **environment)

  return homes, share, launch


def test_tpu_pod_runs_the_same_command_on_every_worker(machine, slice_of_two):
  homes, share, launch = slice_of_two
  done = launch(*FLAGS)
  assert done.returncode == 0, done.stderr
  assert 'not committed' not in done.stderr
  commands = machine.trained()
  assert len(commands) == 2
  assert commands[0] == commands[1]
  flags = read(commands[0])
  assert flags['coordinator'] == 'auto'
  assert flags['workdir'] == 'runs/with space'
  assert flags['stages'] == ['stage1']
  copy, _ = calls(machine.bin / 'gcloud')
  assert copy[:4] == ['compute', 'tpus', 'tpu-vm', 'scp']
  for call in calls(machine.bin / 'gcloud'):
    assert {'--worker=all', '--zone=here'} <= set(call)
  for home in homes:
    # The committed files are there, and data and runs are common to all.
    assert (home / 'dpjax' / 'pyproject.toml').is_file()
    assert (home / 'dpjax' / 'runs').resolve() == (share / 'runs').resolve()
    assert (home / 'dpjax' / 'data').resolve() == (share / 'data').resolve()


def test_tpu_pod_says_that_it_copies_only_what_is_committed(
  slice_of_two, tmp_path
):
  _, _, launch = slice_of_two
  with (tmp_path / 'checkout' / 'pyproject.toml').open('a') as file:
    file.write('# changed')
  assert 'not committed' in launch(*FLAGS).stderr


def test_tpu_pod_stop_lets_every_worker_save(machine, slice_of_two):
  homes, _, launch = slice_of_two
  running = []
  for home in homes:
    shutil.copytree(LAUNCH, home / 'dpjax' / 'launch')
    # A process that is dpjax.main by its command line, and saves on SIGTERM.
    code = (
      'import pathlib, signal, sys, time\n'
      'def save(*_):\n'
      '  pathlib.Path("saved").touch()\n'
      '  sys.exit(143)\n'
      'signal.signal(signal.SIGTERM, save)\n'
      'pathlib.Path("up").touch()\n'
      'time.sleep(30)\n'
    )
    process = subprocess.Popen(
      [sys.executable, '-c', code, 'dpjax.main'], cwd=home
    )
    running.append(process)
    (home / 'dpjax' / 'run.pid').write_text(f'{process.pid}\n')
  try:
    for home in homes:
      end = time.monotonic() + 120
      while not (home / 'up').exists() and time.monotonic() < end:
        time.sleep(0.02)
    done = launch('stop')
    assert done.returncode == 0, done.stderr
    assert [p.wait(timeout=120) for p in running] == [143, 143]
    assert all((home / 'saved').is_file() for home in homes)
  finally:
    for process in running:
      process.kill()
  assert not machine.trained()


def test_tpu_pod_stop_spares_another_process_of_that_number(slice_of_two):
  homes, _, launch = slice_of_two
  (homes[0] / 'dpjax').mkdir()
  shutil.copytree(LAUNCH, homes[0] / 'dpjax' / 'launch')
  process = subprocess.Popen(
    [sys.executable, '-c', 'import time; time.sleep(30)']
  )
  try:
    (homes[0] / 'dpjax' / 'run.pid').write_text(f'{process.pid}\n')
    done = launch('stop')
    assert done.returncode == 0, done.stderr
    assert process.poll() is None
  finally:
    process.kill()
    process.wait()


# Kubernetes.


@pytest.fixture(scope='module')
def jobset():
  return yaml.safe_load((LAUNCH / 'jobset.yaml').read_text())


def container(jobset):
  [workers] = jobset['spec']['replicatedJobs']
  [found] = workers['template']['spec']['template']['spec']['containers']
  return found


def expanded(jobset, index):
  """The arguments of pod `index`, as Kubernetes expands $(NAME) in them."""
  values = {'JOBSET_NAME': jobset['metadata']['name'],
            'JOB_COMPLETION_INDEX': str(index)}  # fmt: skip
  given = {variable['name'] for variable in container(jobset)['env']}
  # The index is Kubernetes' own; the rest has to be in the manifest.
  known = {
    k: v for k, v in values.items() if k in given | {'JOB_COMPLETION_INDEX'}
  }
  return [
    re.sub(r'\$\((\w+)\)', lambda found: known[found[1]], argument)
    for argument in container(jobset)['args']
  ]


def test_jobset_starts_as_many_processes_as_it_tells_them(jobset):
  [workers] = jobset['spec']['replicatedJobs']
  job = workers['template']['spec']
  assert job['completionMode'] == 'Indexed'
  assert job['completions'] == job['parallelism']
  count = workers['replicas'] * job['parallelism']
  assert count > 1
  read_flags = [read(expanded(jobset, index)) for index in range(count)]
  assert [flags['num_processes'] for flags in read_flags] == [count] * count
  assert [flags['process_id'] for flags in read_flags] == list(range(count))
  assert len({flags['coordinator'] for flags in read_flags}) == 1
  assert len({flags['workdir'] for flags in read_flags}) == 1
  assert container(jobset)['command'] == ['python', '-m', 'dpjax.main']


def test_jobset_coordinator_is_pod_0_by_its_stable_name(jobset):
  """<JobSet>-<replicated job>-<job>-<pod>.<subdomain>: JobSet's own naming."""
  name = jobset['metadata']['name']
  [workers] = jobset['spec']['replicatedJobs']
  network = jobset['spec']['network']
  subdomain = network.get('subdomain', name)
  host, _, port = read(expanded(jobset, 0))['coordinator'].rpartition(':')
  assert host == f'{name}-{workers["name"]}-0-0.{subdomain}'
  assert network['enableDNSHostnames']
  assert [p['containerPort'] for p in container(jobset)['ports']] == [int(port)]


def test_jobset_restarts_all_pods_but_not_after_a_mistake(jobset):
  [workers] = jobset['spec']['replicatedJobs']
  job = workers['template']['spec']
  pod = job['template']['spec']
  assert job['backoffLimit'] == 0
  assert pod['restartPolicy'] == 'Never'  # podFailurePolicy asks for it
  assert jobset['spec']['failurePolicy']['maxRestarts'] > 0
  [rule] = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['values'] == [2]
  assert rule['onExitCodes']['containerName'] == container(jobset)['name']
  [final] = jobset['spec']['failurePolicy']['rules']
  assert final['action'] == 'FailJobSet'
  assert final['onJobFailureReasons'] == ['PodFailurePolicy']
  assert pod['terminationGracePeriodSeconds'] >= 120


def test_jobset_keeps_data_and_workdir_on_storage_of_all_pods(jobset):
  [workers] = jobset['spec']['replicatedJobs']
  pod = workers['template']['spec']['template']['spec']
  volumes = {volume['name']: volume for volume in pod['volumes']}
  mounts = {
    m['mountPath']: m['name'] for m in container(jobset)['volumeMounts']
  }
  assert set(mounts.values()) == set(volumes)
  home = container(jobset)['workingDir']
  workdir = read(expanded(jobset, 0))['workdir']
  for folder in ('data', workdir.partition('/')[0]):
    assert 'persistentVolumeClaim' in volumes[mounts[f'{home}/{folder}']]


# The tests.


def test_all_tests_go_to_several_workers_and_a_part_as_it_is_asked_for(machine):
  machine.installed('test')
  part = ['tests/losses_test.py', '-k', 'a b']
  for asked in ([], part):
    done = machine.run('bash', 'launch/test.sh', *asked)
    assert done.returncode == 0, done.stderr
  whole, same = (c for c in calls(machine.python) if c[:2] == ['-m', 'pytest'])
  assert same[2:] == part
  assert '--dist=loadfile' in whole and '-n' in whole
