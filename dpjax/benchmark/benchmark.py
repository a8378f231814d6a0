"""How fast a config runs here: input only, step only, end to end.

Everything is as the config says (type, render, placement, stem, devices, mode);
only the batch size and the steps a dispatch are swept. benchmark.json is
written after each part, so that a run which ends early leaves what it has.
"""

import contextlib
import functools
import io
import itertools
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dpjax import prepare
from dpjax.benchmark import (
  hlo,
  predicted,
  programs,
  record,
  targets,
  text,
  timing,
)
from dpjax.errors import NonFinite, warn
from dpjax.training import batches, loop
from dpjax.training.programs import compile_step

STAGES = ('pretrain', 'retrain')
# On accelerators, where the config names none.
_STEPS_PER_DISPATCH = (1, 4, 16)
# Lines of the log that hold the compilation, and what was read meanwhile.
_FIRST_LINES = 2
_EVALUATED = 4  # different batches that inference goes round

# What the numbers in benchmark.json mean.
_NOTES = {
  'repeats': 'median, min and max of benchmark.repeats blocks, each of at'
  ' least benchmark.seconds, after a warm-up, each waited for to its end',
  'step': 'the same batches again and again, on the devices from the start;'
  ' state donated, compiled ahead',
  'compile_seconds': 'the persistent cache of compiled programs was off; what a'
  " GPU's kernels were tuned to stays known in the process, so only the first"
  ' program of its shapes is wholly new',
  'work': "XLA's estimates for one step on one device, of the program with one"
  ' step a dispatch (of a scan XLA counts the body once). No hardware counters.'
  ' flops: before compilation, so without what is computed twice; in the'
  ' compiled program (flops_compiled) XLA leaves out calls of libraries'
  ' (convolutions on GPUs). bytes_accessed: of the compiled program, after'
  ' fusion; too little where it calls libraries',
  'shares': 'of what one device was measured to do at best in the same run'
  ' (peaks, medians)',
  'program_bytes': "the compiler's plan for one device: arguments, results and"
  ' scratch',
  'peak_bytes': 'the most in use on a device; null where that is not known, or'
  ' was reached before this measurement',
  'end_to_end': 'dpjax.training.loop.train without validation; rates of the'
  f' lines of its log after the first {_FIRST_LINES}',
  'stall_share': '1 - end to end / step only, of medians; below 0 is noise',
  'cores_busy_with_others': 'CPU cores that other processes used on average'
  ' while this was measured; null where that is not known',
  'predicted': 'the program by the model of benchmark --target, where the'
  ' figures of the device are known (dpjax/benchmark/targets.py): to judge the'
  ' model by',
  'pairs': 'a pair is one radiograph of stage I with all its views',
}


def run_benchmark(
  config: ConfigDict, workdir: str | pathlib.Path, peer: str | None = None
) -> str:
  """Measures what benchmark.parts names.

  Writes WORKDIR/benchmark.json and its table WORKDIR/benchmark.md.

  Args:
    config: as resolved (dpjax.config.resolve).
    workdir: may be that of a run.
    peer: 'torch' to run the same in PyTorch, in turns with ours.

  Returns:
    the table.

  Raises:
    UserError: one line, where config, set, machine and peer do not fit.
    dpjax.errors.Stopped: a signal came during the end-to-end part.
  """
  began = time.perf_counter()
  workdir = pathlib.Path(workdir)
  wanted = config.benchmark.parts
  # First, for the preparation of a set is work too.
  found = {**_circumstances(config, peer), 'notes': _NOTES}
  if peer:
    from dpjax.benchmark import against_torch

    # Before anything is prepared: a peer that is missing or cannot do this.
    found['peer'] = against_torch.check(config)
  bench = programs.Bench(config, prepare.open_prepared(config))
  for part in wanted:
    if part != 'input':
      bench.check(programs.stage_of(part))
  workdir.mkdir(parents=True, exist_ok=True)
  _warn_of_load(found['host']['load_at_start'])
  others = timing.Others()
  for _ in _measure_parts(bench, found):
    found['host']['cores_busy_with_others'] = others.cores()
    found['seconds'] = time.perf_counter() - began
    page = text.format_text(found)
    record.write(workdir, found, page)
  return page


def _measure_parts(bench, found):
  """Puts the parts into `found`; yields after each, so that it can be kept."""
  wanted = bench.config.benchmark.parts
  stages = [stage for stage in STAGES if stage in wanted]
  peaks = None
  if set(wanted) - {'input'}:
    bench.say('what the device does at best')
    peaks = timing.device_peaks(bench.config.model.dtype, *bench.repeats)
    found['peaks'] = peaks
  for stage in stages:
    found[stage] = _stage(bench, stage, peaks)
    yield
  if 'inference' in wanted:
    found['inference'] = _inference(bench, peaks)
    yield
  if 'input' in wanted:
    found['input'] = {stage: _input(bench, stage) for stage in stages or STAGES}
    yield
  if peer := found.get('peer'):
    from dpjax.benchmark import against_torch

    for part in (*stages, 'inference'):
      if part in wanted:
        peer[part] = against_torch.measure_both(bench, part, peer['variants'])
        yield
  found['finished'] = True
  yield


def _warn_of_load(load):
  cpus = os.cpu_count() or 1
  if load > cpus / 2:
    warn(
      f'others are at work here (load {load:.1f} on {cpus} cores), so'
      ' the rates will be too low, and ratios may be off'
    )


def _circumstances(config, peer):
  """Where and with what this was measured."""
  device = jax.devices()[0]
  return {
    **record.circumstances(config, *([peer] if peer else [])),
    'device': {
      'kind': device.device_kind,
      'platform': device.platform,
      'used': config.parallel.devices,
      'present': jax.device_count(),
      'mode': config.parallel.mode,
      'processes': jax.process_count(),
    },
  }


def _stage(bench, stage, peaks):
  """Step only and end to end, of one stage."""
  own = bench.run(stage)
  size = own.settings.batch_size
  sizes, left_out = bench.sizes(stage)
  dispatches = bench.config.benchmark.steps_per_dispatch
  if not dispatches:
    on_cpu = jax.default_backend() == 'cpu'
    dispatches = (1,) if on_cpu else _STEPS_PER_DISPATCH
  # The own batch size at K = 1 tells the work of a step, at the own K the
  # input's share of the loop.
  cases = {(size, 1), (size, own.config.train.steps_per_dispatch)}
  cases |= {(size, count) for count in dispatches}
  cases |= {(batch, 1) for batch in sizes}
  found: dict[str, Any] = {
    'unit': 'pairs' if stage == 'pretrain' else 'images',
    'training_records': len(own.records),
    'batch_size': size,
    'steps_per_dispatch': own.config.train.steps_per_dispatch,
    'resident': own.config.data.placement == 'resident',
    'step': [],
    'left_out': left_out,
  }
  work = {}  # of a step, by batch size
  for batch, count in sorted(cases):
    bench.say(f'{stage}, step only, batch {batch}, {count} a dispatch')
    one = programs.attempt(
      functools.partial(_step, bench, stage, batch, count),
      {'batch_size': batch, 'steps_per_dispatch': count},
    )
    own_work = one.pop('work', None)  # Of a scan it is no step's.
    if count == 1:
      work[batch] = own_work
    found['step'].append(one | _shares(one, work.get(batch), peaks))
  bench.forget()
  alone = next(
    one
    for one in found['step']
    if one['batch_size'] == size
    and one['steps_per_dispatch'] == own.config.train.steps_per_dispatch
  )
  bench.say(f'{stage}, end to end')
  if 'error' in alone:
    found['end_to_end'] = {'error': alone['error']}
  else:
    found['end_to_end'] = programs.attempt(
      lambda: _end_to_end(bench, own, alone['per_second']['median']), {}
    )
  return found


def _step(bench, stage, batch_size, count):
  """One stage at one batch size and number of steps a dispatch."""
  before = timing.peak_bytes()
  run = bench.sized(stage, batch_size)
  state, images = bench.state(stage), bench.images(run)
  program, batch, about = programs.training_program(run, state, images, count)
  about |= _by_model(bench, run, program, batch_size, count)
  call = programs.train_call(program, state, batch, images)
  times = timing.measure_one(call, *bench.repeats)
  return about | _rates(times, batch_size, count) | _peak(before)


def _by_model(bench, run, program, rows, count=1):
  """What `benchmark --target` would predict, where the device is known."""
  device = targets.of_kind(jax.devices()[0].device_kind)
  found = None
  if device is not None:
    try:
      found = predicted.describe(
        program.as_text(),
        device,
        rows=rows,
        count=count,
        dtype=run.config.model.dtype,
        shape=targets.slice_shape(run.devices.used),
        devices=run.devices.count,
      )
    except hlo.UnknownForm as error:  # Of a compiler that is newer than we are.
      bench.say(f'its program cannot be read, so nothing is predicted: {error}')
  return {'predicted': found}


def _rates(times, batch_size, count=1):
  """Of seconds a dispatch of `count` steps."""
  return {
    'ms_per_step': timing.summary([1e3 * t / count for t in times]),
    'per_second': timing.summary([batch_size * count / t for t in times]),
  }


def _peak(before):
  """The most memory in use, if this measurement has reached it."""
  now = timing.peak_bytes()
  reached = now is not None and now > (before or 0)
  return {'peak_bytes': now if reached else None}


def _shares(one, work, peaks):
  """FLOP/s and bytes/s of a device, and their shares of its peaks.

  `work` is that of one step, or None.
  """
  found = {'work': work}
  for name, quantity in (('flops', 'flops'), ('bytes', 'bytes_accessed')):
    rate = share = None
    if work and work[quantity] and 'ms_per_step' in one:
      rate = work[quantity] / (one['ms_per_step']['median'] / 1e3)
      share = rate / peaks[f'{name}_per_second']['median']
    found |= {f'{name}_per_second': rate, f'{name}_share': share}
  return found


def _end_to_end(bench, own, step_only):
  """The real loop, on its own data, in a workdir that is thrown away.

  `step_only` is the rate of the step alone, a second.
  """
  repeats, seconds = bench.repeats
  size, count = own.settings.batch_size, own.config.train.steps_per_dispatch
  number = count * max(1, math.ceil(seconds * step_only / size / count))
  config = own.config.copy_and_resolve_references()
  config.init.backbone = None
  config.eval.every = 0.0
  config.train.log_every = number
  config.train.save_every = 0
  config.train.tensorboard = config.train.progress = False
  total = number * (repeats + _FIRST_LINES)
  config[own.stage].epochs = total * size / len(own.records)
  said = sys.stderr if bench.config.train.progress else io.StringIO()
  with (
    tempfile.TemporaryDirectory(prefix='dpjax-benchmark-') as folder,
    contextlib.redirect_stdout(said),
  ):
    try:
      loop.train(config, own.stage, folder)
    except NonFinite as error:
      return {'error': f'the training diverged ({error})'}
    log = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in log]
  rates = [e['images_per_second'] for e in lines if e['split'] == 'train']
  found = timing.summary(rates[_FIRST_LINES:])
  return {
    'batch_size': size,
    'steps_per_dispatch': count,
    'steps_per_repeat': number,
    'per_second': found,
    'step_only_per_second': step_only,
    'stall_share': 1 - found['median'] / step_only,
  }


def _inference(bench, peaks):
  """steps.eval_step on plain images of the training split."""
  stage = programs.stage_of('inference')
  sizes, left_out = bench.sizes(stage)
  found = {'unit': 'images', 'step': [], 'left_out': left_out}
  for size in sizes:
    bench.say(f'inference, batch {size}')
    one = programs.attempt(
      functools.partial(_infer, bench, stage, size),
      {'batch_size': size, 'steps_per_dispatch': 1},
    )
    found['step'].append(one | _shares(one, one.pop('work', None), peaks))
  bench.forget()
  return found


def _infer(bench, stage, batch_size):
  before = timing.peak_bytes()
  run = bench.sized(stage, batch_size)
  state, images = bench.state('inference'), bench.images(run)
  host = programs.evaluation_batches(run, images, _EVALUATED)
  placed = [batches.place(run, batch) for batch in host]
  program, about = programs.evaluation_program(run, state, placed[0], images)
  about |= _by_model(bench, run, program, batch_size)
  call = programs.infer_call(program, state, placed, images)
  times = timing.measure_one(call, *bench.repeats)
  return about | _rates(times, batch_size) | _peak(before)


def _input(bench, stage):
  """Rates of the input alone, in each way that there is."""
  own = bench.run(stage)
  size = own.settings.batch_size
  found = {
    'unit': 'pairs' if stage == 'pretrain' else 'images',
    'batch_size': size,
    'rates': {},
  }
  for kind, title in text.INPUTS.items():
    bench.say(f'{stage}, input only: {title}')
    found['rates'][kind] = programs.attempt(
      functools.partial(_input_rate, bench, stage, kind), {}
    )
  return found


def _input_rate(bench, stage, kind):
  with contextlib.ExitStack() as stack:
    call = _input_call(bench, stage, kind, stack)
    times = timing.measure_one(call, *bench.repeats)
  size = bench.run(stage).settings.batch_size
  return {'per_second': timing.summary([size / t for t in times])}


def _input_call(bench, stage, kind, stack):
  """f(n) that makes n batches."""
  if kind == 'store':
    run = bench.run(stage)
    return _store_call(run.records, run.settings.batch_size)
  run = bench.run(
    stage,
    data__render='host' if kind == 'host' else 'device',
    data__placement='resident'
    if kind in ('decisions', 'resident')
    else 'stream',
  )
  stream = iter(batches.training_stream(run))
  stack.enter_context(contextlib.closing(stream))
  if kind in ('decisions', 'host'):

    def draw(number):
      for _ in range(number):
        next(stream)

    return draw
  images = batches.resident_images(run, run.records)
  # Without `gather` each device keeps its own rows: nothing is sent about.
  render = compile_step(
    run, functools.partial(_render, pixels=run.objective.pixels)
  )

  def call(number):
    before = None
    for _ in range(number):
      rendered = render(
        None, batches.place_dispatch(run, [next(stream)]), images
      )
      # One behind, as in the loop; the host must not run away.
      jax.block_until_ready(before)
      before = rendered
    jax.block_until_ready(before)

  return call


def _render(state, batch, *, pixels, axis_name):
  """Finished pixels, and lesion masks where the stage has some."""
  del state, axis_name
  masks = pixels.masks(batch) if pixels.mask_sides else {}
  return pixels.views(batch), masks


def _store_call(records, size):
  order = np.random.default_rng(0).permutation(len(records))
  starts = itertools.cycle(range(0, len(order) - size + 1, size))

  def call(number):
    for start in itertools.islice(starts, number):
      records.images(order[start : start + size])

  return call
