"""Where the best form of a computation depends on the platform."""

from collections.abc import Callable
from typing import Any

import jax


def choose(
  *args: Any, gpu: Callable[..., Any], other: Callable[..., Any]
) -> Any:
  """`gpu(*args)` in a program for GPUs, `other(*args)` in one for the rest.

  What counts is the platform that the program is compiled for, which need not
  be that of this machine. Both return arrays of the same shapes and types.
  """
  return jax.lax.platform_dependent(*args, cuda=gpu, rocm=gpu, default=other)
