"""What a training run says of itself, in lines for people."""

import pathlib

import jax

from dpjax.training import packed
from dpjax.training.run import Run
from dpjax.training.start import Start


def start(run: Run, workdir: pathlib.Path, begin: Start) -> str:
  """Where it starts and ends, on what, and the size of its networks."""
  anew = run.settings.optim.begin
  # Their shapes: unpacked, they would lie on the devices twice.
  params = jax.eval_shape(packed.unpack, begin.state.params)
  return (
    f'{run.stage}: {workdir}, {begin.origin}, to step {run.total_steps}'
    f' ({run.settings.epochs:g} epochs of {len(run.records)} radiographs by'
    f' {run.settings.batch_size}), {_devices(run)}'
    + (f', the schedule drawn anew from step {anew}' if anew else '')
    + '\n'
    f'{run.stage}: {_parameters(params)}'
  )


def _parameters(params):
  """How many there are, in all and in each part of the network."""
  counts = {
    part: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for part, tree in params.items()
  }
  parts = ', '.join(f'{part} {_millions(n)}' for part, n in counts.items())
  return f'{_millions(sum(counts.values()))} parameters ({parts})'


def _millions(count):
  return f'{count / 1e6:.3g} M'


def _devices(run):
  config = run.config
  kind = jax.devices()[0].device_kind
  parts = [
    f'{run.devices.mode} on {run.devices.count} x {kind}',
    config.model.dtype,
  ]
  if jax.process_count() > 1:
    parts.append(f'{jax.process_count()} processes')
  if config.train.steps_per_dispatch > 1:
    parts.append(f'{config.train.steps_per_dispatch} steps a dispatch')
  if config.data.placement == 'resident':
    parts.append('images in device memory')
  return ', '.join(parts)


def scores(run: Run, step: int, found: dict[str, float | None]) -> str:
  """The scores of a validation."""
  text = ', '.join(
    f'{name} {value:.4g}' for name, value in found.items() if value is not None
  )
  epoch = step / run.steps_per_epoch
  return (
    f'{run.stage} epoch {epoch:.2f}, validation: {text or "no radiographs"}'
  )
