"""One start of a tiny recipe, a signal at a chosen moment, and how it ends.

For benchmarks/chaos.py, which says what a campaign of these is.
"""

import dataclasses
import math
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from signal import SIGINT, SIGKILL, SIGTERM

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKDIR = 'run'
STAGES = {'pretrain': 'I', 'retrain': 'II', 'finetune': 'III'}  # in order
_EPOCHS = 4
# Paths are relative to the run's folder, so that equal runs leave equal files.
# Saved every 3 and logged every 4 of 20 steps: saves fall between log lines.
FLAGS = (
  f'--config={ROOT}/configs/recipe.py:quick',
  f'--workdir={WORKDIR}',
  '--config.data.path=data/phantom',
  '--config.data.phantom.count=60',
  '--config.data.store_size=48',
  '--config.data.image_size=32',
  '--config.model.stage_sizes=(1,)',
  '--config.model.width=4',
  "--config.mgacr.stages=('stage1',)",
  '--config.pretrain.hidden=16',
  '--config.pretrain.projection=8',
  '--config.pretrain.batch_size=8',
  '--config.retrain.batch_size=8',  # of fine-tuning too
  *(f'--config.{stage}.epochs={_EPOCHS}' for stage in STAGES),
  '--config.train.save_every=3',
  '--config.train.log_every=4',
  '--config.train.progress=False',
  '--config.evaluate.resamples=50',
)
PHASES = (
  'starting', 'preparing', 'compiling I', 'stage I', 'saving I', 'opening II',
  'compiling II', 'stage II', 'saving II', 'opening III', 'compiling III',
  'stage III', 'saving III', 'evaluating',
)  # fmt: skip
_LIMIT = 400  # seconds for one start
_PATIENCE = 120  # and for the rest of a job, once one of its processes is gone
_GRACE = 10  # and for workers to notice that their parent is gone


@dataclasses.dataclass(frozen=True)
class Blow:
  """A signal to one process, and its moment.

  Attributes:
    signal: SIGKILL, SIGTERM or SIGINT.
    phase: one of PHASES.
    share: of the time that the undisturbed run took from first to last seeing
      this phase; so long the blow waits from its beginning. One for 'saving'
      then waits for the next save.
    process: of the job.
  """

  signal: signal.Signals
  phase: str
  share: float
  process: int = 0


@dataclasses.dataclass(frozen=True)
class Start:
  """What became of one start of the command.

  Attributes:
    signal: the name of the one it got; '' if none, or if it ended before.
    moment: its phase then, and the seconds since its start.
    statuses: of the processes, as subprocess has them: -9 after SIGKILL.
    fault: why this is no proper end; '' if it is one.
    spans: phase -> seconds from when it was first seen to when it was last.
    pids: of the processes; each leads a session of its own.
  """

  signal: str
  moment: str
  statuses: tuple[int, ...]
  fault: str
  spans: dict[str, float]
  pids: tuple[int, ...]


class Progress:
  """Tells from its output and its files what a start is at."""

  def __init__(self, output: pathlib.Path, workdir: pathlib.Path):
    self._output, self._workdir = output, workdir
    self._sizes: dict[str, int] = {}  # of the logs as this start opened them

  def phase(self) -> str:
    """One of PHASES, or 'ending' after the last line."""
    text = self._output.read_text(errors='replace')
    if '\nrecipe: ' in text:
      return 'ending'
    after = 'evaluating'
    for stage, name in reversed(STAGES.items()):
      opened = re.search(rf'^{stage}: .*, to step .*\n', text, re.MULTILINE)
      if not opened:
        after = f'opening {name}'
        continue
      folder = self._workdir / stage
      # What an earlier start left half saved is gone when a stage is open.
      if any('tmp' in file for file in names(folder / 'checkpoints')):
        return f'saving {name}'
      whole = re.search(r'resumed at step (\d+), to step \1 ', opened[0])
      if whole or f'\n{stage} epoch {_EPOCHS}.00, validation' in text:
        return after
      log = folder / 'metrics.jsonl'
      size = log.stat().st_size if log.exists() else 0
      grown = size > self._sizes.setdefault(stage, size)
      return f'stage {name}' if grown else f'compiling {name}'
    return 'preparing' if ': preparing ' in text else 'starting'


def start(
  folder: pathlib.Path,
  number: int,
  blow: Blow | None,
  spans: Mapping[str, float],
  processes: int,
) -> Start:
  """Starts the command, deals the blow when its moment comes, sees it end.

  Args:
    folder: of the run; the output goes to start-NUMBER-PROCESS.txt there.
    number: of the start.
    blow: or None, to let it run.
    spans: those of the undisturbed run.
    processes: of the job, all on this machine, each with one CPU device.
  """
  outputs = [folder / f'start-{number}-{i}.txt' for i in range(processes)]
  progress = Progress(outputs[0], folder / WORKDIR)
  began = time.monotonic()
  job = _launch(folder, outputs)
  pids = tuple(process.pid for process in job)
  try:
    seen, hit = _watch(job, progress, blow, spans)
    hangs = any(process.poll() is None for process in job)
  except BaseException:  # We are stopped ourselves.
    _end(job)
    end_what_is_left(pids)
    raise
  _end(job)
  took = time.monotonic() - began
  statuses = [process.returncode for process in job]
  texts = [output.read_text(errors='replace') for output in outputs]
  which, phase, struck = hit or (0, '', took)
  if hangs and (processes == 1 or phase != 'starting'):
    # Who has not joined a job yet waits longer for the dead than we do.
    fault = f'did not end within {took:.0f} s'
  elif hit is None:
    fault = f'ended by itself with {statuses}' if any(statuses) else ''
  else:
    fault = judge(
      blow.signal, phase, statuses[which], texts[which], took - struck,
      waits=which > 0,
    )  # fmt: skip
    fault = fault or _check_job(statuses, texts[0], folder / WORKDIR)
  return Start(
    signal=blow.signal.name if hit else '',
    moment=f'{phase}, {struck:.1f} s' if hit else '',
    statuses=tuple(statuses),
    fault=fault,
    spans={name: last - first for name, (first, last) in seen.items()},
    pids=pids,
  )


def _end(job):
  for process in job:
    process.kill()  # nothing, where it has ended
    process.wait()


def _watch(job, progress, blow, spans):
  """Deals the blow, and waits for the end of a job or of our patience.

  Returns:
    {phase: [when first seen, when last]}, and the (process, phase, moment) of
    the blow, if it was dealt; in seconds since the start.
  """
  seen: dict[str, list[float]] = {}
  hit, ended = None, math.inf
  began = time.monotonic()
  while any(process.poll() is None for process in job):
    now, phase = time.monotonic() - began, progress.phase()
    seen.setdefault(phase, [now, now])[1] = now
    if blow and hit is None and blow.phase in seen:
      due = seen[blow.phase][0] + blow.share * spans.get(blow.phase, 0)
      saving = blow.phase.startswith('saving')
      if now >= due and (not saving or phase == blow.phase):
        # The others of a job are gone when the first one evaluates.
        which = blow.process if job[blow.process].poll() is None else 0
        _strike(job[which], blow.signal)
        hit = which, phase_of(which, phase), now
    if any(process.poll() is not None for process in job):
      ended = min(ended, now)
    if now > min(_LIMIT, ended + _PATIENCE):
      break
    time.sleep(0.003)
  return seen, hit


def phase_of(process: int, phase: str) -> str:
  """The phase of a process of a job whose first one is in `phase`."""
  # The first one evaluates alone: the others have nothing left to do.
  return 'ending' if process and phase == 'evaluating' else phase


def _launch(folder, outputs):
  temporary = folder / 'tmp'  # What a killed process leaves goes with it.
  temporary.mkdir(exist_ok=True)
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': str(ROOT),
    'PYTHONUNBUFFERED': '1',
    'TMPDIR': str(temporary),
    'XDG_CACHE_HOME': str(folder / 'cache'),
    'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
  }
  flags = [*FLAGS]
  if len(outputs) > 1:
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    flags += [
      f'--coordinator=localhost:{port}', f'--num_processes={len(outputs)}'
    ]  # fmt: skip
  job = []
  for i, output in enumerate(outputs):
    own = [f'--process_id={i}'] if len(outputs) > 1 else []
    with output.open('w') as stream:
      job.append(
        subprocess.Popen(
          [sys.executable, '-m', 'dpjax.main', *flags, *own],
          cwd=folder, env=environment, stdin=subprocess.DEVNULL,
          stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
        )
      )  # fmt: skip
  return job


def _strike(process, number):
  if number == SIGINT:  # A terminal sends it to all of the group.
    os.killpg(process.pid, number)
  else:
    process.send_signal(number)


def judge(
  number: signal.Signals, phase: str, status: int, text: str, later: float,
  waits: bool = False,
) -> str:  # fmt: skip
  """Why a process did not end as it should after a signal; '' if it did.

  Args:
    number: the signal.
    phase: in which it came.
    status: of the exit; negative where a signal has ended the process.
    text: all that the process printed.
    later: seconds from the signal to the end.
    waits: it waits for the first one of its job, where that one works alone.
  """
  name = f'{signal.Signals(number).name} in {phase}'
  training = phase.startswith(('compiling', 'stage', 'saving'))
  if phase == 'ending' and status in (0, 130, 143, -number):
    return ''  # All was done.
  if status == 0:  # Nearly done, or deaf.
    return f'{name}: swallowed' if later > 2 else ''
  if number == SIGKILL:
    return '' if status == -SIGKILL else f'{name}: ended with {status}'
  # By the signal itself, where nothing is to be saved. SIGINT does so before
  # Python has come to main, and outside of it (signals.fatal).
  outside = number == SIGTERM or phase == 'starting' or waits
  if status == -number and outside and not training:
    return ''
  saved = training and not phase.startswith('compiling')
  statuses = (143,) if saved or number == SIGTERM else (130, 143)
  if status not in statuses:
    return f'{name}: ended with {status}'
  if not re.search(r'^stopped.*the same command goes on', text, re.MULTILINE):
    return f'{name}: no line says that the same command goes on'
  return f'{name}: a traceback' if 'Traceback' in text else ''


def _check_job(statuses, text, workdir):
  """What is wrong with the other processes, or with what the first one said."""
  # Stopped with it, told of its loss, aborted by JAX, killed by us.
  proper = {0, 75, 130, 143, -signal.SIGABRT, -SIGKILL, -SIGTERM, -SIGINT}
  odd = [status for status in statuses if status not in proper]
  if odd:
    return f'a process of the job ended with {odd[0]}'
  said = re.search(r'^stopped .* saved at step (\d+) of', text, re.MULTILINE)
  if said and not any(
    said[1] in names(workdir / stage / 'checkpoints') for stage in STAGES
  ):
    return f'step {said[1]} is said to be saved, and is not there'
  return ''


def names(folder: pathlib.Path) -> list[str]:
  """What is in a folder; nothing where there is none."""
  try:
    return sorted(os.listdir(folder))
  except FileNotFoundError:
    return []


def end_what_is_left(sessions: Collection[int]) -> list[str]:
  """Ends the processes that live on in these sessions, and names them."""
  until = time.monotonic() + _GRACE
  while (left := _members(sessions)) and time.monotonic() < until:
    time.sleep(0.2)
  for pid in left:
    os.kill(pid, SIGKILL)
  return [f'{name} ({pid})' for pid, name in left.items()]


def _members(sessions):
  """{pid: name} of the living processes of these sessions."""
  found = {}
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      head, _, tail = stat.read_text().rpartition(')')
    except OSError:  # It has just ended.
      continue
    state, _, _, session = tail.split()[:4]
    if int(session) in sessions and state != 'Z':
      found[int(stat.parent.name)] = head.partition('(')[2]
  return found
