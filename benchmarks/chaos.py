"""Kills and stops a tiny recipe at random moments: its outcome must not change.

python -m benchmarks.chaos RUNS [--seed=0] [--processes=1] [--keep]

Each run is the real command (the three stages of a tiny network on 60 phantoms,
then the evaluation) in a folder of its own. One to four times it gets SIGKILL,
SIGTERM or SIGINT (Ctrl-C, to its whole process group) in a phase drawn at
random, and each time the same command is given again, until it ends by itself.
What is there then is compared with an undisturbed run, to the bit:

  weights  the whole final state of each stage, optimizer included
  scores   evaluation.json but for its times, and its csv files
  log      metrics.jsonl but for its times
  files    every other file of the workdir and the prepared set; none missing,
           none left over (nor any process)

A stop must end with a status and a line that docs/running.md has. A signal that
does not keep a run from going on to its end is swallowed, which is a fault too.
The exit status is 1 if a run failed; --keep then keeps its folder, with all
outputs.

Each run compiles anew, unless JAX_COMPILATION_CACHE_DIR is set; it takes about
a minute on two cores. Only processes that it has started itself are ended.
"""

import argparse
import collections
import dataclasses
import json
import logging
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from signal import SIGINT, SIGKILL, SIGTERM

import numpy as np

from benchmarks import blows

COLUMNS = ('weights', 'scores', 'log', 'files')
_TIMES = ('seconds', 'images_per_second', 'seconds_training', 'seconds_wall')


@dataclasses.dataclass(frozen=True)
class Run:
  """A run from its first start to its end.

  Attributes:
    starts: of the command, in order.
    differs: of COLUMNS: the first difference from the undisturbed run, or '';
      nothing where the run did not come to its end.
  """

  starts: list[blows.Start]
  differs: dict[str, str]

  @property
  def faults(self) -> list[str]:
    """All that is wrong."""
    ends = [start.fault for start in self.starts if start.fault]
    return ends + [f'{k}: {text}' for k, text in self.differs.items() if text]


def draw(seed: int, index: int, processes: int = 1) -> list[blows.Blow]:
  """The blows of run `index`: the same for the same seed."""
  rng = random.Random(f'{seed}/{index}')
  drawn, first = [], 0
  for _ in range(rng.randint(1, 4)):
    # Phases that are done do not come again, but every start begins.
    phase = rng.choice([0, *range(first, len(blows.PHASES))])
    number = rng.choice((SIGKILL, SIGKILL, SIGTERM, SIGINT))
    name, process = blows.PHASES[phase], rng.randrange(processes)
    drawn.append(blows.Blow(number, name, rng.random(), process))
    # A stage that was disturbed is opened and compiled again.
    again = (
      'starting', 'compiling I', 'opening II', 'opening III', 'evaluating'
    )  # fmt: skip
    begun = max(k for k in map(blows.PHASES.index, again) if k <= phase)
    first = max(first, begun)
  return drawn


def run_once(
  folder: pathlib.Path,
  drawn: Sequence[blows.Blow] = (),
  reference: pathlib.Path | None = None,
  spans: Mapping[str, float] | None = None,
  processes: int = 1,
) -> Run:
  """A run in which each blow meets one start, and the last start none.

  Args:
    folder: for it; made here.
    drawn: the blows.
    reference: the undisturbed run's folder; None for that run itself.
    spans: its blows.Start.spans.
    processes: of the job.
  """
  folder.mkdir(parents=True)
  starts: list[blows.Start] = []
  try:
    for blow in (*drawn, None):
      number = len(starts) + 1
      starts.append(blows.start(folder, number, blow, spans or {}, processes))
      if not any(starts[-1].statuses):
        break  # Done, perhaps before the blow.
  finally:
    left = blows.end_what_is_left({pid for s in starts for pid in s.pids})
  differs = {}
  if reference and not any(starts[-1].statuses):
    differs = compare(folder, reference)
  if left:
    differs['files'] = f'left running: {", ".join(left)}'
  return Run(starts, differs)


def compare(folder: pathlib.Path, reference: pathlib.Path) -> dict[str, str]:
  """The first difference between two finished runs in each of COLUMNS."""
  found = dict.fromkeys(COLUMNS, '')
  for path in sorted({*_paths(folder), *_paths(reference)}):
    one, two = folder / path, reference / path
    if not (one.exists() and two.exists()):
      found['files'] = f'{path} is {"left over" if one.exists() else "missing"}'
    elif one.is_file():
      column, read = _column(path)
      if not found[column] and read(one) != read(two):
        found[column] = f'{path}: {_difference(read(one), read(two))}'
  for stage in blows.STAGES:
    # Which steps are kept depends on where it stopped, but all are whole.
    kept = blows.names(folder / blows.WORKDIR / stage / 'checkpoints')
    if odd := [name for name in kept if not name.isdigit()]:
      found['files'] = f'{stage}/checkpoints/{odd[0]} is left over'
    one, two = (
      _weights(x / blows.WORKDIR / stage) for x in (folder, reference)
    )
    if odd := [k for k in one.keys() | two.keys() if one.get(k) != two.get(k)]:
      found['weights'] = f'{stage}: {len(odd)} arrays, e.g. {min(odd)}'
  return found


def _paths(folder):
  """All of workdir and set, relative to `folder`, but for the checkpoints."""
  for part in (blows.WORKDIR, 'data'):
    for path in (folder / part).rglob('*'):
      if 'checkpoints' not in path.parts:
        yield path.relative_to(folder)


def _column(path):
  """Where a file is compared, and how it is read for that."""
  if path.name == 'metrics.jsonl':
    return 'log', _read_log
  if path.name == 'evaluation.json':
    return 'scores', _read_scores
  is_score = path.suffix == '.csv' and 'manifest' not in path.name
  return 'scores' if is_score else 'files', pathlib.Path.read_bytes


def _read_log(path):
  lines = map(json.loads, path.read_text().splitlines())
  return [{k: v for k, v in x.items() if k not in _TIMES} for x in lines]


def _read_scores(path):
  entries = json.loads(path.read_text()).items()
  return [{name: value} for name, value in entries if name not in _TIMES]


def _difference(one, two):
  if len(one) != len(two) or isinstance(one, bytes):
    return f'other bytes or lines ({len(one)}, undisturbed {len(two)})'
  for a, b in zip(one, two, strict=True):
    for name in sorted(a.keys() | b.keys()):
      if a.get(name) != b.get(name):
        at = f'step {a["step"]}, {a["split"]}: ' if 'split' in a else ''
        return f'{at}{name} {a.get(name)}, undisturbed {b.get(name)}'[:200]
  return 'other order'


def _weights(workdir):
  """{name: (dtype, shape, bytes)} of the newest checkpoint."""
  import jax

  from dpjax.training import checkpoint

  state = checkpoint.read_state(workdir)
  arrays = {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
  }
  return {k: (x.dtype, x.shape, x.tobytes()) for k, x in arrays.items()}


def format_table(runs: Sequence[Run]) -> str:
  """A row a start; in that of the last one, how the run compares."""
  rows = [('run', 'signal', 'in', 'status', *COLUMNS)]
  for i, run in enumerate(runs, 1):
    for start in run.starts:
      verdicts = [''] * len(COLUMNS)
      if start is run.starts[-1]:
        words = {None: '-', '': 'equal'}
        verdicts = [words.get(run.differs.get(c), 'DIFFERS') for c in COLUMNS]
      status = ' '.join(map(str, start.statuses))
      status += ' FAULT' if start.fault else ''
      number = str(i) if start is run.starts[0] else ''
      rows.append((number, start.signal, start.moment, status, *verdicts))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(map(str.ljust, row, widths)).rstrip() for row in rows
  )


def campaign(
  folder: pathlib.Path,
  plans: Sequence[Sequence[blows.Blow]],
  processes: int = 1,
  keep: bool = False,
) -> list[Run]:
  """The undisturbed run, then one for each plan; a line each.

  Args:
    folder: for all of them.
    plans: the blows of each run.
    processes: of each run.
    keep: the folders of failed runs, and the undisturbed one.

  Raises:
    RuntimeError: the undisturbed run fails.
  """
  reference = folder / 'undisturbed'
  began = time.monotonic()
  whole = run_once(reference, processes=processes)
  if whole.faults:
    said = (reference / 'start-1-0.txt').read_text()
    raise RuntimeError(f'undisturbed: {whole.faults[0]}\n{said}')
  print(f'undisturbed: {time.monotonic() - began:.0f} s', flush=True)
  spans, runs = whole.starts[0].spans, []
  for i, drawn in enumerate(plans, 1):
    began, own = time.monotonic(), folder / f'run-{i}'
    run = run_once(own, drawn, reference, spans, processes)
    runs.append(run)
    if not run.starts[0].signal and not any(run.starts[0].statuses):
      spans = run.starts[0].spans  # The machine has become faster.
    done = [f'{s.signal} in {s.moment}' for s in run.starts if s.signal]
    print(
      f'run {i} of {len(plans)}, {time.monotonic() - began:.0f} s:'
      f' {"; ".join(done) or "done before any signal"}:'
      f' {"; ".join(run.faults) or "equal"}',
      flush=True,
    )
    if not (run.faults and keep):
      shutil.rmtree(own)
  return runs


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a campaign; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('runs', type=int, help='how many, beside the undisturbed')
  parser.add_argument('--seed', type=int, default=0, help='of the campaign')
  parser.add_argument('--processes', type=int, default=1, help='of each run')
  parser.add_argument('--keep', action='store_true', help='failed runs')
  options = parser.parse_args(arguments)
  # A shell's background job ignores SIGINT, and so would all that it starts.
  signal.signal(SIGINT, signal.default_int_handler)
  # A SIGTERM of our own leaves nothing running either.
  signal.signal(SIGTERM, lambda *_: sys.exit(128 + SIGTERM))
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # This process only compares.
  logging.getLogger('absl').setLevel(logging.ERROR)
  plans = [
    draw(options.seed, i, options.processes) for i in range(1, options.runs + 1)
  ]
  folder = pathlib.Path(tempfile.mkdtemp(prefix='dpjax-chaos-'))
  failed = True
  try:
    runs = campaign(folder, plans, options.processes, options.keep)
    failed = any(run.faults for run in runs)
  finally:
    if failed and options.keep:
      print(f'kept: {folder}')
    else:
      shutil.rmtree(folder)
  print(f'\n{format_table(runs)}\n')
  for i, run in enumerate(runs, 1):
    for fault in run.faults:
      print(f'run {i}: {fault}')
  counts = collections.Counter(s.signal for run in runs for s in run.starts)
  told = [f'{n} {name}' for name, n in sorted(counts.items()) if name]
  bad = sum(bool(run.faults) for run in runs)
  print(f'{len(runs)} runs, {", ".join(told) or "no signal"}: {bad} failed')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())
