"""Programs compiled for devices that are not there."""

import dataclasses
import time
from typing import Any

from dpjax.benchmark import programs, timing
from dpjax.training import batches
from dpjax.training.programs import compile_evaluation

# Without a device nothing can be tried out.
_OPTIONS = {'gpu': {'xla_gpu_autotune_level': 0}, 'tpu': {}}


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


def compile_part(
  bench: programs.Bench,
  part: str,
  batch_size: int,
  count: int = 1,
  options: dict[str, Any] | None = None,
) -> Compiled:
  """Compiles one part of the benchmark for the bench's topology.

  Args:
    bench: with a topology.
    part: 'pretrain', 'retrain' or 'inference'.
    batch_size: over all devices.
    count: steps a dispatch, where it trains.
    options: of the compiler, beside our own.

  Raises:
    jax.errors.JaxRuntimeError: the compiler cannot, e.g. for want of memory.
  """
  stage = programs.stage_of(part)
  run = bench.sized(stage, batch_size)
  state, images = bench.state(stage), bench.images(run)
  if part == 'inference':
    step = compile_evaluation(run)
    host = programs.evaluation_batches(run, images, 1)[0]
    batch = batches.place(run, host)
  else:
    step, batch = programs.training_step(run, count)
  lowered = step.lower(state, batch, images)
  began = time.perf_counter()
  with timing.uncached():
    program = lowered.compile(
      compiler_options=_OPTIONS[run.devices.platform] | (options or {})
    )
  return Compiled(
    program.as_text(), _memory(program), time.perf_counter() - began
  )


def _memory(program):
  found = program.memory_analysis()
  memory = {
    'arguments': found.argument_size_in_bytes,
    'results': found.output_size_in_bytes - found.alias_size_in_bytes,
    'temporaries': found.temp_size_in_bytes,
    'code': found.generated_code_size_in_bytes,
  }
  return memory | {'all': sum(memory.values())}
