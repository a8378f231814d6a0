"""What each way to compute the training step costs, beside the usual one.

python benchmarks/step_variants.py [--image_size=224] [--batch_size=256]

Both stages' steps on one device, with the network of configs/base.py: compiled
ahead, warmed up, and timed on one batch that stands on the device. Variants of
the program alternate within one process. XLA's flags are read once a process,
so each has processes of its own, which alternate likewise; flags that this XLA
does not know are named and left out.

The batch is of phantoms, prepared in a temporary folder. --trace=DIR leaves a
profile of the first variant's step there, for TensorBoard or Perfetto.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).parents[1]
STAGES = {'pretrain': 'stage I', 'retrain': 'stage II'}
ROUNDS = 2  # processes a set of flags

FLAGS = {
  'cpu': (
    '--xla_cpu_enable_fast_math=true',
    '--xla_cpu_use_onednn=true',
    '--xla_cpu_experimental_onednn_custom_call=true',
    '--xla_cpu_experimental_ynn_fusion_type=individual_convolution',
    '--xla_cpu_prefer_vector_width=512',
  ),
  # CUDA graphs with and without the convolutions, then their kernels.
  'gpu': (
    '--xla_gpu_enable_command_buffer=+CONVOLUTION',
    '--xla_gpu_enable_command_buffer=',
    '--xla_gpu_enable_latency_hiding_scheduler=true',
    '--xla_gpu_experimental_enable_conv_fusion=true',
    '--xla_gpu_cudnn_gemm_fusion_level=2',
    '--xla_gpu_enable_cublaslt=true',
  ),
  'tpu': (),
}


@dataclasses.dataclass(frozen=True)
class Variant:
  """How a step departs from the usual one.

  Attributes:
    network: fields of the backbone.
    batch_norm: arguments of Flax's BatchNorm, in place of ours; None: ours. The
      stem's pool is then apart from it, and on a GPU has XLA's slow gradient.
    donate: the old state's memory is the new one's.
    dispatch: steps made by one call.
  """

  network: dict[str, Any] = dataclasses.field(default_factory=dict)
  batch_norm: dict[str, Any] | None = None
  donate: bool = True
  dispatch: int = 1


def variants(platform):
  """{name: Variant}; 'base' is what training does, one step a dispatch."""
  usual, other = 'float32', 'bfloat16'
  if platform != 'cpu':
    usual, other = other, usual
  # A CPU unrolls the steps of a dispatch, and each takes as long to compile.
  several = 2 if platform == 'cpu' else 8
  found = {
    'base': Variant(),
    'space-to-depth stem': Variant(network={'stem': 'space_to_depth'}),
    'BatchNorm of Flax': Variant(batch_norm={}),
    'BatchNorm in two passes': Variant(batch_norm={'use_fast_variance': False}),
    'state not donated': Variant(donate=False),
    f'{several} steps a dispatch': Variant(dispatch=several),
    other: Variant(network={'dtype': other}),
  }
  if usual == 'bfloat16':  # In float32 there is no narrower sum to take.
    found['BatchNorm sums in bfloat16'] = Variant(
      batch_norm={'force_float32_reductions': False}
    )
  return found


@dataclasses.dataclass
class Timed:
  """A compiled step with the state it goes on from."""

  call: Any
  state: Any
  batch: Any
  dispatch: int
  result: dict[str, Any]

  def run(self, steps):
    """Makes at least `steps` steps; returns the seconds of one."""
    import jax

    calls = max(1, steps // self.dispatch)
    start = time.perf_counter()
    for _ in range(calls):
      self.state, metrics = self.call(self.state, self.batch, None)
    jax.block_until_ready((self.state, metrics))
    return (time.perf_counter() - start) / (calls * self.dispatch)


def make_timed(built, batch, variant):
  """The variant's step on `batch`, a tree of numpy arrays, compiled."""
  import jax.numpy as jnp
  from flax import linen as nn

  from dpjax.models import max_pool, resnet
  from dpjax.training import batches, build, packed, programs

  network = dict(variant.network)
  if 'dtype' in network:
    network['dtype'] = jnp.dtype(network['dtype'])
  model = dataclasses.replace(
    built.objective, backbone=built.objective.backbone.clone(**network)
  )
  built = dataclasses.replace(built, objective=model)
  optimizer, schedule = build.make_optimizer(built, 1000)
  placed = batches.place_dispatch(built, [batch] * variant.dispatch)
  step = programs.compile_training(
    built, optimizer, schedule, variant.dispatch, donate=variant.donate
  )
  usual = resnet.batch_norm

  def batch_norm(train, dtype, axis_name):
    if variant.batch_norm is None:
      return usual(train, dtype, axis_name)
    return functools.partial(
      nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5,
      dtype=dtype, axis_name=axis_name, **variant.batch_norm,
    )  # fmt: skip

  def norm_and_pool(norm, x, train):
    if variant.batch_norm is None:
      return usual_stem(norm, x, train)
    return max_pool.max_pool(nn.relu(norm(x)))

  # No field of the network's: a variant that wins becomes one.
  usual_stem = resnet.norm_and_pool
  with (
    mock.patch.object(resnet, 'batch_norm', batch_norm),
    mock.patch.object(resnet, 'norm_and_pool', norm_and_pool),
  ):
    state = packed.at_rest(built, build.initial_state(built, optimizer))
    start = time.perf_counter()
    call = step.lower(state, placed, None).compile()
  result = {'compile': time.perf_counter() - start, 'seconds': []}
  # XLA counts the body of a loop once, and what is unrolled as often as it is.
  if variant.dispatch == 1:
    cost = call.cost_analysis()
    result |= {'flops': cost['flops'], 'bytes': cost['bytes accessed']}
  return Timed(call, state, placed, variant.dispatch, result)


def make_config(size, rows):
  """configs/base.py with batches of `rows` squares of `size` pixels."""
  config = runpy.run_path(str(ROOT / 'configs/base.py'))['get_config']()
  config.data.image_size = size
  config.data.store_size = max(size, config.data.store_size)
  config.data.placement = 'stream'
  config.data.phantom.count = max(80, 2 * rows)  # Some of each class to train.
  config.pretrain.batch_size = config.retrain.batch_size = rows
  config.parallel.devices = 1
  config.train.progress = False
  return config


def measure(args):
  """Times the variants that `args` names in this process.

  Returns:
    {'device': name, stage: {variant: {'seconds': a step's, one a repeat,
    'compile', 'flops', 'bytes'}}}.
  """
  import jax

  from dpjax import prepare
  from dpjax.config import resolve as resolve_lib
  from dpjax.training import batches, build

  device = jax.devices()[0]
  chosen = variants(device.platform)
  if args.variants:
    chosen = {name: chosen[name] for name in args.variants.split(',')}
  config = make_config(args.image_size, args.batch_size)
  results = {'device': f'{device.device_kind} ({device.platform})'}
  with tempfile.TemporaryDirectory() as folder:
    config.data.path = str(pathlib.Path(folder) / 'set')
    config = resolve_lib.resolve(
      config, num_devices=1, platform=device.platform
    )
    with contextlib.redirect_stderr(io.StringIO()):
      prepare.prepare(config)
    data = prepare.open_prepared(config)
    for stage in args.stages.split(','):
      built = build.build(config, stage, data)
      stream = iter(batches.training_stream(built))
      batch = next(stream)
      stream.close()
      timed = {n: make_timed(built, batch, v) for n, v in chosen.items()}
      for step in timed.values():
        step.run(args.steps)
      for _ in range(args.repeats):
        for step in timed.values():
          step.result['seconds'].append(step.run(args.steps))
      results[stage] = {name: step.result for name, step in timed.items()}
      if args.trace:
        with jax.profiler.trace(f'{args.trace}/{stage}'):
          next(iter(timed.values())).run(args.steps)
  return results


def child(flags, *arguments):
  """A process with more XLA_FLAGS, without a word if it dies of them."""
  environment = {
    **os.environ,
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flags}'.strip(),
    'PYTHONPATH': str(ROOT),
  }
  return subprocess.run(
    [sys.executable, *arguments],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )


def measure_flags(args, platform):
  """The base step under each of FLAGS that this XLA knows, as `measure`."""
  probe = 'import jax; jax.devices()'
  known = ['']
  for flags in FLAGS[platform]:
    if child(flags, '-c', probe).returncode:  # XLA aborts the process.
      print(f'{flags}: not known to this XLA; left out', flush=True)
    else:
      known.append(flags)
  results = {stage: {} for stage in args.stages.split(',')}
  settings = [
    f'--{name}={getattr(args, name)}'
    for name in ('stages', 'image_size', 'batch_size', 'repeats', 'steps')
  ]
  for flags in known * ROUNDS:
    run = child(flags, __file__, '--child', '--variants=base', *settings)
    if run.returncode:
      last = (run.stderr.strip().splitlines() or ['no message'])[-1]
      print(f'{flags}: failed: {last}', flush=True)
      continue
    found = json.loads(run.stdout.splitlines()[-1])
    for stage, of_stage in results.items():
      new = found[stage]['base']
      old = of_stage.setdefault(flags or 'base', new)
      if old is not new:
        old['seconds'] += new['seconds']
  return results


def table(results, rows):
  """Lines of a markdown table of {variant: result}, batches of `rows`."""
  import numpy as np

  yield (
    '| variant | ms/step | fastest to slowest | images/s | time against base'
    ' | GFLOP | GB accessed | compile s |'
  )
  yield '| --- ' + '| ---: ' * 7 + '|'
  base = np.median(results['base']['seconds']) if 'base' in results else np.nan
  for name, result in results.items():
    seconds = np.array(result['seconds'])
    median = np.median(seconds)
    counted = (
      f'{result[key] / 1e9:.1f}' if key in result else '-'
      for key in ('flops', 'bytes')
    )
    cells = (
      name.replace('--', ''),
      f'{median * 1e3:.2f}',
      f'{seconds.min() * 1e3:.2f} to {seconds.max() * 1e3:.2f}',
      f'{rows / median:,.0f}',
      f'{median / base:.3f}',
      *counted,
      f'{result["compile"]:.1f}',
    )
    yield f'| {" | ".join(cells)} |'


def arguments(platform):
  """The parser, with defaults for the platform."""
  cpu = platform == 'cpu'
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--image_size', type=int, default=128 if cpu else 224)
  parser.add_argument('--batch_size', type=int, default=16 if cpu else 256)
  parser.add_argument('--repeats', type=int, default=5)
  # A repeat's; enough of them hide the last wait.
  parser.add_argument('--steps', type=int, default=2 if cpu else 32)
  parser.add_argument('--stages', default='pretrain,retrain')
  parser.add_argument('--variants', default='', help='empty: all and the flags')
  parser.add_argument('--trace', help='folder for a profile of the first one')
  parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
  return parser


def main():
  """Prints a table for each stage: of the variants, and of the flags."""
  if '--child' in sys.argv:
    print(json.dumps(measure(arguments('cpu').parse_args())))
    return
  # This process must not hold the device while its children measure.
  asked = child('', '-c', 'import jax; print(jax.default_backend())')
  if asked.returncode:
    sys.exit(f'step_variants: JAX does not start:\n{asked.stderr}')
  platform = asked.stdout.split()[-1]
  args = arguments(platform).parse_args()
  parts = []
  if not args.variants:
    parts.append(('XLA flags', measure_flags(args, platform)))
  results = measure(args)
  parts.insert(0, ('the program', results))
  rows, size = args.batch_size, args.image_size
  print(f'{results["device"]}, batches of {rows}, {size} pixels')
  for title, part in parts:
    for stage in args.stages.split(','):
      print(f'\n{STAGES[stage]}, {title} (images: radiographs)\n')
      print(*table(part[stage], rows), sep='\n')


if __name__ == '__main__':
  main()
