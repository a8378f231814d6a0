"""Where the best form of a computation depends on the platform."""

from collections.abc import Callable
from typing import Any

import jax


def choose(
  *args: Any,
  other: Callable[..., Any],
  gpu: Callable[..., Any] | None = None,
  tpu: Callable[..., Any] | None = None,
) -> Any:
  """The form of what is done that suits the platform of the program.

  What counts is the platform that the program is compiled for, which need not
  be that of this machine. All return arrays of the same shapes and types.

  Args:
    *args: of whichever is taken.
    other: the form for what has none of its own.
    gpu: the form for GPUs, where it is not `other`.
    tpu: likewise for TPUs.
  """
  forms = {}
  if gpu is not None:
    forms['cuda'] = forms['rocm'] = gpu
  if tpu is not None:
    forms['tpu'] = tpu
  return jax.lax.platform_dependent(*args, **forms, default=other)
