"""What this machine has for a process, found without starting JAX."""

import os


def cores() -> int:
  """How many processor cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # a job's share of a machine
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
