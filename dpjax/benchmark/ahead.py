"""Programs compiled for devices that are not there: will it fit, how long?"""

import dataclasses
import math
import pathlib
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from dpjax import atomic, prepare, signals
from dpjax.benchmark import (
  hlo,
  predicted,
  programs,
  record,
  targets,
  text_predicted,
  timing,
)
from dpjax.config import resolve as resolve_lib
from dpjax.data.feed import pipeline
from dpjax.errors import UserError
from dpjax.training import batches, build
from dpjax.training.programs import compile_evaluation, compile_training

_PARTS = ('pretrain', 'retrain', 'inference')
# Without a device nothing can be tried out.
_OPTIONS: dict[str, dict[str, Any]] = {
  'gpu': {'xla_gpu_autotune_level': 0},
  'tpu': {},
}
_PATIENCE = 60  # seconds after which it is said that the compiler is at work
_FITTED = (64, 256)  # rows of a device, where fewer than two sizes are compiled
_ROUNDED = 16  # rows of a device
_CHECKS = 2

# What the numbers in benchmark.json mean.
_NOTES = {
  'predicted': 'nothing here was measured: the programs are those of the'
  ' compiler, the times those of a model (dpjax/benchmark/predicted.py)',
  'programs': 'of one device; all figures but memory are of one step',
  'memory': "the compiler's plan, bytes; all: what the parts take together",
  'kernels': 'instructions that are run, those of loops as often as they turn;'
  ' small_kernels: of them those that move fewer than 4 MB',
  'bytes': 'of operands and results in device memory; of an operand that is'
  ' only sliced or gathered from, what is taken',
  'flops': 'of convolutions and matrix products; with padding where a library'
  ' computes them (GPUs), without it elsewhere',
  'seconds': 'best: each kernel at its roofline and launched from a CUDA graph;'
  ' worst: at 79 % of it and launched one by one; on a TPU the cycles that its'
  ' compiler estimates, and 79 % of their rate',
  'limit_per_second': 'all products at the peak or all bytes at the bandwidth,'
  ' whichever takes longer',
  'autotuning': 'off, for want of a device: a program that is compiled beside'
  ' one may choose other kernels of a library',
}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """One program.

  Attributes:
    text: the scheduled program.
    memory: bytes of one device: 'arguments', 'results', 'temporaries', 'code',
      and what they take together, 'all'.
    seconds: that the compiler took.
  """

  text: str
  memory: dict[str, int]
  seconds: float


def resolve(config: ConfigDict, target: targets.Target) -> Any:
  """The config as a run on the target would resolve it.

  What follows the devices follows those of the target, and not those here.

  Args:
    config: as given by configs/ and the flags.
    target: what to compile for.

  Raises:
    UserError: one line that names the field and what would be right.
  """
  config = resolve_lib.checked(config)
  if config.parallel.mode == 'pmap':
    raise UserError(
      'config.parallel.mode pmap runs on devices that are here; --target takes'
      ' jit or shard_map'
    )
  devices = config.parallel.devices or target.count
  if devices > 1 and config.parallel.mode == 'auto':
    config.parallel.mode = 'shard_map'
  return resolve_lib.resolve(
    config,
    num_devices=target.count,
    platform=target.device.platform,
    num_processes=target.processes,
  )


def compile_part(
  bench: programs.Bench,
  part: str,
  batch_size: int,
  count: int = 1,
) -> Compiled:
  """Compiles one part of the benchmark for the bench's topology.

  Args:
    bench: with a topology.
    part: 'pretrain', 'retrain' or 'inference'.
    batch_size: over all devices; may be above the training set.
    count: steps a dispatch, where it trains.

  Raises:
    jax.errors.JaxRuntimeError: the compiler cannot, e.g. for want of memory.
  """
  stage = programs.stage_of(part)
  run = bench.sized(stage, batch_size)
  state, images = bench.state(part), bench.images(run)
  if part == 'inference':
    step = compile_evaluation(run)
  else:
    optimizer, schedule = build.make_optimizer(run, run.total_steps)
    step = compile_training(run, optimizer, schedule, count)
  batch = _batch(bench, part, batch_size, count, images)
  lowered = step.lower(state, batch, images)
  began = time.perf_counter()
  with timing.uncached():
    program = lowered.compile(compiler_options=_OPTIONS[run.devices.platform])
  return Compiled(
    program.as_text() or '', _memory(program), time.perf_counter() - began
  )


def _batch(bench, part, batch_size, count, images):
  """The shapes of a batch: those of a small one, with more rows."""
  stage = programs.stage_of(part)
  devices = bench.config.parallel.devices
  small = bench.sized(stage, min(batch_size, 2 * devices))
  if part == 'inference':
    host = programs.evaluation_batches(small, images, 1)[0]
    batch, axis = batches.place(small, host), 0
  else:
    drawn = pipeline.first(batches.training_stream(small), count)
    batch, axis = batches.place_dispatch(small, drawn), int(count > 1)

  def grown(x):
    shape = (*x.shape[:axis], batch_size, *x.shape[axis + 1 :])
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=x.sharding)

  return jax.tree.map(grown, batch)


def _memory(program):
  found = program.memory_analysis()
  memory = {
    'arguments': found.argument_size_in_bytes,
    'results': found.output_size_in_bytes - found.alias_size_in_bytes,
    'temporaries': found.temp_size_in_bytes,
    'code': found.generated_code_size_in_bytes,
  }
  return memory | {'all': sum(memory.values())}


def run_ahead(
  config: ConfigDict,
  workdir: str | pathlib.Path,
  target: targets.Target,
  *,
  dump: bool = False,
  fit: bool = False,
) -> str:
  """Compiles what benchmark.parts names for a target and reads it.

  Writes WORKDIR/benchmark.json and its table WORKDIR/benchmark.md.

  Args:
    config: as resolved for the target.
    workdir: may be that of a run.
    target: what to compile for.
    dump: keep the programs too, as WORKDIR/programs/PART-bBATCH-kK-TARGET.txt.
    fit: find the largest batch that fits into the memory of each device.

  Returns:
    the table.

  Raises:
    UserError: one line, where config, set and target do not fit, or the
      compiler is not installed.
  """
  began = time.perf_counter()
  topology = targets.open_topology(target)
  workdir = pathlib.Path(workdir)
  bench = programs.Bench(config, prepare.open_prepared(config), topology)
  parts = [part for part in _PARTS if part in config.benchmark.parts]
  found = {
    **record.circumstances(config),
    'target': {
      'name': target.name,
      'devices': target.count,
      'processes': target.processes,
      **dataclasses.asdict(target.device),
      'usable': target.device.usable,
    },
    'notes': _NOTES,
  }
  for part in parts:
    bench.check(programs.stage_of(part))
  workdir.mkdir(parents=True, exist_ok=True)
  keep = workdir / 'programs' if dump else None
  for _ in _compile_parts(bench, target, parts, found, keep, fit):
    found['seconds'] = time.perf_counter() - began
    page = text_predicted.format_text(found)
    record.write(workdir, found, page)
  return page


def _compile_parts(bench, target, parts, found, keep, fit):
  """Puts the programs into `found`; yields after each, so that it is kept."""
  cases = {part: _cases(bench, part) for part in parts}
  number, of = 0, sum(len(some) for some in cases.values())
  for part in parts:
    own = found[part] = {
      'unit': 'pairs' if part == 'pretrain' else 'images',
      'training_records': len(bench.run(programs.stage_of(part)).records),
      'left_out': bench.sizes(programs.stage_of(part))[1],
      'programs': [],
    }
    for size, count in cases[part]:
      number += 1
      bench.say(
        f'{part}, batch {size}, {count} a dispatch: compiling for'
        f' {target.name} ({number} of {of})'
      )
      own['programs'].append(_program(bench, target, part, size, count, keep))
      yield
    if fit:
      own['fit'] = _fit(bench, target, part, own['programs'])
      yield
  found['finished'] = True
  yield


def _cases(bench, part):
  """(batch size, steps a dispatch) of each program."""
  stage = programs.stage_of(part)
  sizes, _ = bench.sizes(stage)
  cases = {(size, 1) for size in sizes}
  if part != 'inference':
    run = bench.run(stage)
    counts = bench.config.benchmark.steps_per_dispatch
    counts = counts or (1, run.config.train.steps_per_dispatch)
    cases |= {(run.settings.batch_size, count) for count in counts}
  return sorted(cases)


def _program(bench, target, part, size, count, keep):
  """What is known of one program; why it cannot be compiled, or read."""
  about = {'batch_size': size, 'steps_per_dispatch': count}
  compiled = _patiently(bench, part, size, count)
  if isinstance(compiled, str):
    return about | {'error': compiled}
  bench.say(f'compiled in {compiled.seconds:.0f} s')
  if keep:
    keep.mkdir(exist_ok=True)
    name = target.name.replace(':', '-')
    path = keep / f'{part}-b{size}-k{count}-{name}.txt'
    atomic.write_text(path, compiled.text)
    about['text'] = str(path.relative_to(keep.parent))
  about |= {
    'compile_seconds': compiled.seconds,
    'memory': compiled.memory,
    'fits': compiled.memory['all'] <= target.device.usable,
  }
  try:
    return about | predicted.describe(
      compiled.text,
      target.device,
      rows=size,
      count=count,
      dtype=bench.config.model.dtype,
      shape=target.shape,
      devices=bench.config.parallel.devices,
    )
  except hlo.UnknownForm as error:
    return about | {'error': f'its program cannot be read: {error}'}


def _patiently(bench, part, size, count):
  """The program, or the compiler's reason; says every minute that it works.

  Raises:
    KeyboardInterrupt, Stopped: a signal has come.
  """
  began, said = time.perf_counter(), 0

  def tell():
    nonlocal said
    minutes = int((time.perf_counter() - began) // _PATIENCE)
    if minutes > said:
      said = minutes
      bench.say(f'still compiling, for {said * _PATIENCE} s')

  try:
    return signals.interruptible(
      compile_part, bench, part, size, count, meanwhile=tell
    )
  except jax.errors.JaxRuntimeError as error:
    return str(error).strip().splitlines()[0]


def _fit(bench, target, part, tried):
  """The largest batch, by a line through two programs, and one to check it.

  Memory is not quite a line, so where that one does not fit another is tried:
  on the line to it, or a tenth smaller where it did not compile. No program is
  compiled twice.

  Returns:
    {'batch_size', 'bytes', 'fits'}: of the last program that was tried, with an
    'error' where it does not compile; 'batch_size' 0 where none fits.
  """
  devices, usable = bench.config.parallel.devices, target.device.usable
  known = {  # bytes, or why it does not compile
    one['batch_size']: one['memory']['all'] if 'memory' in one else one['error']
    for one in tried
    if one['steps_per_dispatch'] == 1
  }

  def look(size, why):
    if size not in known:
      bench.say(f'{part}, batch {size}: {why}')
      one = _patiently(bench, part, size, 1)
      known[size] = one if isinstance(one, str) else one.memory['all']
    return known[size]

  def points():
    return {k: taken for k, taken in known.items() if isinstance(taken, int)}

  for rows in _FITTED:
    if len(points()) < 2:
      taken = look(rows * devices, 'to fit the memory')
      if isinstance(taken, str):
        return {'batch_size': 0, 'bytes': None, 'fits': False, 'error': taken}
  block, most = _ROUNDED * devices, math.inf
  for _ in range(_CHECKS):
    size = int(min(most, _on_line(points(), usable))) // block * block
    if size < block:
      return {'batch_size': 0, 'bytes': None, 'fits': False}
    taken = look(size, 'does it fit?')
    if isinstance(taken, str):
      found = {'bytes': None, 'fits': False, 'error': taken}
      most = 0.9 * size
    else:
      found = {'bytes': taken, 'fits': taken <= usable}
    if found['fits']:
      break
  return {'batch_size': size, **found}


def _on_line(points, usable):
  """The batch that takes `usable` bytes on the line of the largest two."""
  (first, low), (second, high) = sorted(points.items())[-2:]
  slope = max(high - low, 1) / (second - first)
  return first + (usable - low) / slope
