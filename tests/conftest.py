"""Every test sees eight CPU devices and strict broadcasting."""

import os

# Both are read once, when JAX starts its backend: set them before the import.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
).strip()

import jax

# (N,) with (N, 1) is (N, N) in silence: the classic mistake in a loss.
jax.config.update('jax_numpy_rank_promotion', 'raise')
