"""The runs of a study side by side, each a process on its own devices.

A process does one run by the study's own command with --only=FOLDER, so it does
what the command would do in a row. Stages I that runs share come first, and a
run whose stage II others share before those. The process that starts them holds
no device.
"""

import collections
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from dpjax import signals
from dpjax.errors import NonFinite, UserError, one_line
from dpjax.studies import runs
from dpjax.studies import tasks as tasks_lib
from dpjax.studies.places import Place

_LOOK = 0.2  # seconds between two looks at the processes


@dataclasses.dataclass(frozen=True)
class Jobs:
  """How the runs of a study are done side by side.

  Attributes:
    places: one for each process that runs at once.
    command: what does a run, with --only=FOLDER behind it.
    environment: of the processes.
    progress: whether a terminal shows how far they are.
    failed: folders of the runs whose processes died, in order.
  """

  places: Sequence[Place]
  command: Sequence[str]
  environment: Mapping[str, str]
  progress: bool = True
  failed: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Unit:
  """What one process does: a task's stage I (`shared`), or what follows it."""

  task: tasks_lib.Task
  shared: bool

  @property
  def folder(self) -> pathlib.Path:
    """Where it is kept."""
    if self.shared and self.task.pretraining is not None:
      return self.task.pretraining
    return self.task.folder

  @property
  def name(self):
    """As --only has it."""
    return tasks_lib.short(self.folder)

  @property
  def needs(self) -> dict[pathlib.Path, str]:
    """{workdir: what it is} of the missing stages before it."""
    task, found = self.task, dict[pathlib.Path, str]()
    if self.shared:
      return found
    if (one := task.pretraining) and not runs.is_whole(one, task):
      found[one] = one.name
    if (two := task.stage_two_elsewhere) and not runs.is_whole(two, task):
      found[two] = f'stage II, {two.relative_to(task.folder.parents[1])}'
    return found

  @property
  def makes(self) -> list[pathlib.Path]:
    """The workdirs of the stages that it trains and that are not whole yet."""
    folders = [folder for folder, _ in self.stages()]
    return [f for f in folders if not runs.is_whole(f, self.task)]

  def __str__(self) -> str:
    return f'{self.name}, for {self.task}' if self.shared else str(self.task)

  def stages(self):
    """[(where it is trained, epochs)], in order."""
    config = self.task.config
    if self.shared:
      return [(self.folder, config.pretrain.epochs)]
    before = self.task.retraining
    if before is None:
      return [(self.task.workdir, config.retrain.epochs)]
    found = [(self.task.workdir, config.finetune.epochs)]
    if self.task.stage_two_elsewhere is None:
      found.insert(0, (before.workdir, config.retrain.epochs))
    return found

  def done(self):
    """Epochs that the logs have."""
    return sum(
      min(runs.last_epoch(folder), epochs) for folder, epochs in self.stages()
    )


@dataclasses.dataclass
class _Running:
  unit: _Unit
  process: subprocess.Popen
  place: Place
  log: pathlib.Path
  began: float
  bar: tqdm.tqdm


def without(words: Sequence[str], names: Sequence[str]) -> list[str]:
  """A command line without the flags of these names, which all take a value."""
  kept, skip = [], False
  for word in words:
    name, equals, _ = word.lstrip('-').partition('=')
    own = word.startswith('-') and name in names
    if not own and not skip:
      kept.append(word)
    skip = own and not equals
  return kept


def run_all(
  tasks: Sequence[
    tuple[tasks_lib.Task, Callable[[tasks_lib.Task], None] | None]
  ],
  save: Callable[[], Any],
  jobs: Jobs | None,
) -> Any:
  """Does the tasks of a study side by side, as far as they are not done.

  A process that dies is told and listed in `jobs.failed`, and the rest goes on;
  runs that need a stage that it should have made are left out.

  Args:
    tasks: as in `runs.run_all`; all are checked before the first is begun.
    save: called after every task that came to an end here, and at the end.
    jobs: where, and by which command; None: here, one after the other
      (runs.run_all).

  Returns:
    What `save` returned at the end.

  Raises:
    UserError: as `runs.check`.
    KeyboardInterrupt, Stopped: after a signal, when all processes have ended.
  """
  if jobs is None:
    return runs.run_all(tasks, save)
  for task, _ in tasks:
    runs.check(task)
  waiting = _units([task for task, _ in tasks])
  total = len(waiting)
  free = collections.deque(enumerate(jobs.places))
  running: dict[int, _Running] = {}
  lost: set[pathlib.Path] = set()  # stages whose process died
  with _ended_with_us(running):
    while waiting or running:
      signals.check()
      for row in [row for row, job in running.items() if _is_over(job)]:
        job = running.pop(row)
        free.append((row, job.place))
        if not _tell(job, jobs, total - len(waiting) - len(running), total):
          lost.update(job.unit.makes)
        save()
      # Not while all places are busy: it looks into files.
      for unit in _ready(waiting, running) if free else ():
        if missing := unit.needs.keys() & lost:
          _say(f'{unit}: left out, without its {unit.needs[missing.pop()]}')
          jobs.failed.append(unit.name)
        elif not free:
          break
        elif not unit.shared and runs.report_done(unit.task):
          save()  # A stage before it has diverged.
        else:
          row, place = free.popleft()
          running[row] = _start(unit, place, jobs, row)
        waiting.remove(unit)
      time.sleep(_LOOK)
  return save()


def _units(tasks):
  """What is to be done: first the stages I that are missing, each once."""
  missing = [task for task in tasks if not runs.report_done(task)]
  shared: dict[pathlib.Path, tasks_lib.Task] = {}
  for task in missing:
    if not runs.is_pretrained(task):
      shared.setdefault(task.pretraining, task)
  return [
    *(_Unit(task, shared=True) for task in shared.values()),
    *(_Unit(task, shared=False) for task in missing),
  ]


def _ready(waiting, running):
  """The units that wait for no stage of another, in order."""
  busy = {folder for unit in waiting for folder in unit.makes}
  for job in running.values():
    busy.update(job.unit.makes, job.unit.needs)
  found = []
  for unit in waiting:
    if busy.isdisjoint(unit.needs):
      found.append(unit)
      busy.update(unit.needs)  # What nobody else makes it makes itself.
  return found


def _start(unit, place, jobs, row):
  """Starts the process of a unit."""
  unit.folder.parent.mkdir(parents=True, exist_ok=True)
  log = unit.folder.with_name(f'{unit.folder.name}.log')
  with (
    open(log, 'ab') as file,
    _on_cores(place.cores),
    signals.no_interrupt_for_children(),
  ):
    process = subprocess.Popen(
      [*jobs.command, f'--only={unit.name}'],
      env={**jobs.environment, **place.variables},
      stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
    )  # fmt: skip
  _say(f'{unit}: begun on {place.name}; {log}')
  bar = tqdm.tqdm(
    total=sum(epochs for _, epochs in unit.stages()), desc=unit.name,
    position=row, leave=False,
    disable=not (jobs.progress and sys.stderr.isatty()), dynamic_ncols=True,
    bar_format='{desc}: {percentage:3.0f}% {bar} {n:.1f}/{total:g} epochs',
  )  # fmt: skip
  return _Running(unit, process, place, log, time.monotonic(), bar)


def _is_over(job):
  """Whether its process has ended; else shows how far it is."""
  if job.process.poll() is not None:
    job.bar.close()
    return True
  if not job.bar.disable:
    job.bar.n = job.unit.done()
    job.bar.refresh()
  return False


def _tell(job, jobs, done, total):
  """Says in a line how a process ended; whether it left what it should."""
  unit = job.unit
  spent = f'{time.monotonic() - job.began:.0f} s ({done} of {total})'
  error = None
  if unit.shared:
    whole = runs.is_pretrained(unit.task)
    error = runs.failure(unit.folder)
  else:
    found = runs.look(unit.task)
    whole, error = found.state == 'finished', found.error
  if error is not None:
    _say(f'{unit}: diverged ({error}); the study goes on, {spent}')
  elif whole:
    _say(f'{unit}: finished in {spent}')
  else:
    status = job.process.returncode
    how = f'status {status}'
    if status < 0:
      how = f'killed by {signal.Signals(-status).name}'
    _say(one_line(f'{unit}: died after {spent}, {how}: {_last_line(job.log)}'))
    jobs.failed.append(unit.name)
    return False
  return True


def _last_line(log):
  lines = log.read_text(encoding='utf-8', errors='replace').split('\n')
  said = [line.strip() for line in lines if line.strip()]
  return f'{said[-1]} ({log})' if said else str(log)


def _say(text):
  tqdm.tqdm.write(text, file=sys.stdout)
  sys.stdout.flush()


@contextlib.contextmanager
def _on_cores(cores: Collection[int] | None) -> Iterator[None]:
  """What is started within it runs on these cores."""
  if cores is None:
    yield
    return
  before = os.sched_getaffinity(0)  # of this thread, which starts them
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _ended_with_us(running: dict[int, _Running]) -> Iterator[None]:
  """At its end no process is left: each saves what it has, and ends.

  Only ours are told to. Ctrl-C a second time does not wait for them.
  """
  try:
    yield
  finally:
    processes = [job.process for job in running.values()]
    for job in running.values():
      job.bar.close()
    try:
      for process in processes:
        process.terminate()
      for process in processes:
        process.wait()
    finally:
      for process in processes:
        process.kill()
      for process in processes:
        process.wait()


def run_only(
  tasks: Sequence[
    tuple[tasks_lib.Task, Callable[[tasks_lib.Task], None] | None]
  ],
  only: str,
) -> str:
  """Does one run of a study, or a stage I of it, and makes no table.

  Args:
    tasks: as in `runs.run_all`.
    only: 'seed0/resnet18', 'seed0/pretrain-1f2e3d4c': its folder.

  Returns:
    What came of it, in a line.

  Raises:
    UserError: one line: the study has none of that name; and what `runs.run`
      raises.
  """
  for task, work in tasks:
    if tasks_lib.short(task.folder) == only:
      return f'{task}: {runs.run(task, work).state}'
  for task, _ in tasks:
    folder = task.pretraining
    if folder is not None and tasks_lib.short(folder) == only:
      try:
        runs.pretrain(task.retraining or task)
      except NonFinite as error:  # It is on record.
        return f'{only}: diverged ({error})'
      return f'{only}: finished'
  names = ', '.join(tasks_lib.short(task.folder) for task, _ in tasks)
  raise UserError(f'--only={only}: the runs of this study are {names}')
