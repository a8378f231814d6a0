"""Where the best form of a computation depends on the platform."""

from collections.abc import Callable
from typing import Any

import jax


def choose(
  *args: Any,
  gpu: Callable[..., Any],
  other: Callable[..., Any],
  tpu: Callable[..., Any] | None = None,
) -> Any:
  """`gpu(*args)` in a program for GPUs, `other(*args)` in one for the rest.

  What counts is the platform that the program is compiled for, which need not
  be that of this machine. All return arrays of the same shapes and types.

  Args:
    *args: of whichever is taken.
    gpu: the form for GPUs.
    other: the form for what has none of its own.
    tpu: the form for TPUs, where it is not `other`.
  """
  forms = {'cuda': gpu, 'rocm': gpu}
  if tpu is not None:
    forms['tpu'] = tpu
  return jax.lax.platform_dependent(*args, **forms, default=other)
