"""Ours and PyTorch's step in turns, on one device, from the same batch.

The peer takes batches that are rendered before the step, so here ours gets the
same ones, whatever the config renders with; in inference both give logits and
nothing else. Rates are compared only after both have computed the same from the
same weights.
"""

import functools
import gc
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dpjax.benchmark import programs, timing, torch_baseline
from dpjax.data.feed import pipeline, render_device
from dpjax.training import batches, steps
from dpjax.training.programs import compile_step

# Largest relative difference of a loss, and of logits relative to the largest:
# in float32, by JAX's platform, and in the config's own type. The first is the
# proof; the second finds what goes wrong in bfloat16 only.
_TOLERANCE = {'cpu': 1e-4, 'gpu': 5e-4}
_OWN_TOLERANCE = {'float32': 2e-3, 'bfloat16': 2e-2}
# And of the gradient's norm in float32: the loss of stage I alone is nearly the
# same for any network at its start.
_GRADIENT_TOLERANCE = 5e-3


def check(config: ConfigDict) -> dict[str, Any]:
  """What the peer is.

  Args:
    config: as resolved.

  Raises:
    UserError: PyTorch is missing, or it cannot do what the config asks for.
  """
  torch_baseline.check(config)
  variants, missing = torch_baseline.variants()
  import torch

  on = 'cpu'
  if torch.cuda.is_available():
    on = torch.cuda.get_device_name()
  return {
    'package': 'torch',
    'version': torch.__version__,
    'device': on,
    'variants': list(variants),
    'missing': missing,
    # What JAX may take of a GPU's memory; PyTorch has the rest.
    'memory_share_of_jax': os.environ.get(programs.MEMORY_SHARE),
    'batches': 'rendered before the step, for both; it takes views and masks on'
    ' the device, uint8 where they are augmented',
    'work': 'dpjax also computes accuracy and gradient norm at each step;'
    ' PyTorch the norm only where it clips by it',
    'tolerance': _TOLERANCE[jax.default_backend()],
    'gradient_tolerance': _GRADIENT_TOLERANCE,
    'own_tolerance': _OWN_TOLERANCE[config.model.dtype],
  }


def measure_both(
  bench: Any, part: str, variants: Sequence[str]
) -> dict[str, Any]:
  """Rates of ours and of each variant of the peer, and their ratios.

  Args:
    bench: a programs.Bench.
    part: 'pretrain', 'retrain' or 'inference'.
    variants: of torch_baseline.variants.

  Returns:
    {'unit', 'check', 'sizes': [one a batch size]}. 'check', in float32: the
    'differences' by variant, and an 'error' if one is too large, and then there
    are no sizes. A size has 'per_second' by name ('dpjax', and 'dpjax, K=...'
    where it trains with several steps a dispatch); 'ratios' of medians, of
    'dpjax' and of the 'fastest' of ours to each variant; 'ours' and 'theirs',
    the fastest names, and their 'ratio'; or an 'error'.
  """
  sizes, _ = bench.sizes(programs.stage_of(part))
  found: dict[str, Any] = {
    'unit': 'pairs' if part == 'pretrain' else 'images',
    'check': {},
    'sizes': [],
  }
  # One size is enough, the smallest: float32 takes more memory.
  for size in sizes[:1]:
    bench.say(f'{part}, against PyTorch, the same in float32')
    found['check'] = _measured(_check, bench, part, size, variants)
  if 'error' not in found['check']:
    for size in sizes:
      bench.say(f'{part}, against PyTorch, batch {size}')
      found['sizes'].append(_measured(_in_turns, bench, part, size, variants))
  return found


def _measured(measurement, bench, part, size, variants):
  found = programs.attempt(
    functools.partial(measurement, bench, part, size, variants),
    {'batch_size': size},
  )
  _free()
  return found


def _run(bench, part, size, **changes):
  return bench.sized(
    programs.stage_of(part), size,
    data__render='host', data__placement='stream', **changes,
  )  # fmt: skip


def _check(bench, part, size, variants):
  """The differences in float32: of logits, or of loss and gradient."""
  run = _run(bench, part, size, model__dtype='float32')
  with jax.default_matmul_precision('highest'):  # No TensorFloat-32.
    program, batch, host = _program(bench, run, part)
  ours, gradient = _ours(program, batch, bench.state(part), part)
  weights = bench.weights(run.stage)
  allowed = _TOLERANCE[jax.default_backend()]
  found: dict[str, Any] = {'differences': {}, 'gradient_differences': {}}
  for variant in variants:
    step = torch_baseline.make_step(
      run, weights, run.total_steps, variant, exact=True
    )
    placed = step.place(host)
    why = _unlike(
      found['differences'], variant, 'logits' if gradient is None else 'loss',
      _theirs(step, placed, part), ours, allowed,
    )  # fmt: skip
    if not why and gradient is not None:
      why = _unlike(
        found['gradient_differences'], variant, 'gradient norm',
        step.gradient_norm(placed), gradient, _GRADIENT_TOLERANCE,
      )  # fmt: skip
    if why:
      return found | {'error': f'in float32 {why}'}
  return found


def _in_turns(bench, part, size, variants):
  """Both in the config's own type, in turns."""
  run = _run(bench, part, size)
  program, batch, host = _program(bench, run, part)
  ours, _ = _ours(program, batch, bench.state(part), part)
  weights = bench.weights(run.stage)
  images = {'dpjax': size}  # of a call, by name
  if part == 'inference':
    call = programs.infer_call(program, bench.state(part), [batch], None)
  else:
    call = programs.train_call(program, bench.state(part), batch, None)
  calls = {'dpjax': call}
  if part != 'inference' and (count := run.config.train.steps_per_dispatch) > 1:
    # As it trains: what a dispatch costs, a CUDA graph saves PyTorch too.
    name = f'dpjax, K={count}'
    images[name] = size * count
    program, batch, _ = _program(bench, run, part, count)
    calls[name] = programs.train_call(program, bench.state(part), batch, None)
  found: dict[str, Any] = {'differences': {}, 'first_call_seconds': {}}
  allowed = _OWN_TOLERANCE[run.config.model.dtype]
  for variant in variants:
    began = time.perf_counter()
    step = torch_baseline.make_step(run, weights, run.total_steps, variant)
    placed = step.place(host)
    theirs = _theirs(step, placed, part)
    found['first_call_seconds'][variant] = time.perf_counter() - began
    what = 'logits' if part == 'inference' else 'loss'
    differences = found['differences']
    if why := _unlike(differences, variant, what, theirs, ours, allowed):
      return found | {'error': why}
    images[variant] = size
    one = step.infer if part == 'inference' else step.train
    calls[variant] = _call(step, one, placed)
  times = timing.measure(calls, *bench.repeats)
  rates = {
    name: timing.summary([images[name] / t for t in of])
    for name, of in times.items()
  }
  return found | {'per_second': rates, **_ratios(rates, variants)}


def _program(bench, run, part, count=1):
  """Ours, compiled; its batch on the devices; one batch on the host."""
  state = bench.state(part)
  if part == 'inference':
    host = _rendered(run, programs.evaluation_batches(run, None, 1)[0])
    batch = batches.place(run, host)
    step = functools.partial(_logits, objective=run.objective)
    program, _ = timing.compile_ahead(
      compile_step(run, step, gather=True), state, batch, None
    )
  else:
    # The stream begins anew for each.
    host = pipeline.first(batches.training_stream(run), 1)[0]
    program, batch, _ = programs.training_program(run, state, None, count)
  return program, batch, host


def _rendered(run, batch):
  """A batch of plain images with the views that our step makes of them."""
  size = run.config.data.image_size
  views = np.asarray(render_device.plain(batch['images'], size))[:, None]
  return {k: v for k, v in batch.items() if k != 'images'} | {'views': views}


def _logits(state, batch, *, objective, axis_name):
  """What the peer's inference computes, and no more."""
  found = steps.embed_step(
    state, batch, objective=objective, axis_name=axis_name
  )
  return {'logits': found['logits']}


def _ours(program, batch, state, part):
  """(logits, None), or (loss, gradient norm)."""
  if part == 'inference':
    return np.asarray(program(state, batch, None)['logits']), None
  _, metrics = program(state, batch, None)
  return np.float64(metrics['loss']), np.float64(metrics['gradient_norm'])


def _theirs(step, placed, part):
  if part == 'inference':
    return step.infer(placed).float().cpu().numpy()
  return step.losses(placed)['loss']


def _unlike(differences, variant, what, theirs, ours, allowed):
  """Puts the difference on record; says why it is too large, else None."""
  difference = float(np.abs(theirs - ours).max() / np.abs(ours).max())
  differences[variant] = difference if np.isfinite(difference) else None
  if difference <= allowed:  # A NaN is not.
    return None
  return (
    f'the {what} of {variant} differs by {difference:.2g} of ours, which is'
    f' more than {allowed:g}: nothing to compare'
  )


def _ratios(rates, variants):
  """Ours by theirs, of medians."""
  medians = {name: of['median'] for name, of in rates.items()}
  theirs = max(variants, key=medians.__getitem__)
  ours = max((n for n in medians if n not in variants), key=medians.__getitem__)
  return {
    'ratios': {
      name: {
        'dpjax': medians['dpjax'] / medians[name],
        'fastest': medians[ours] / medians[name],
      }
      for name in variants
    },
    'ours': ours,
    'theirs': theirs,
    'ratio': medians[ours] / medians[theirs],
  }


def _call(step, one, batch):
  """f(n) of a method of the peer's step, waited for."""

  def call(number):
    for _ in range(number):
      one(batch)
    step.wait()

  return call


def _free():
  """Gives the device memory of finished steps back."""
  import torch

  gc.collect()
  if torch.cuda.is_available():
    torch.cuda.empty_cache()
