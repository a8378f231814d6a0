"""First weights of the networks, drawn along one axis and then shaped.

In float32 they are those of `jax.nn.initializers` to the bit (in bfloat16 not,
under jax 0.12): number i belongs to position i in row-major order, whatever the
axes. But a draw of several axes takes XLA longer to compile for a CPU, one of
3 x 3 x 4 x 8 eight times as long, and a network has dozens of them, all before
its first step.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers as jaxs
from jax.typing import DTypeLike

# Of a standard normal that is cut off at -2 and 2.
_CUT = np.float32(0.87962566103423978)


def kaiming(
  key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
  """Normal with variance 2 / fan_out, as torchvision's convolutions have it.

  Args:
    key: of the draw.
    shape: of the kernel; the last axis is the outputs, that before it the
      inputs, the others are positions.
    dtype: of the weights.

  References:
    He et al., Delving Deep into Rectifiers, 2015, Eq. 14.
  """
  variance = 2 * shape[-2] / math.prod(shape)
  return _flat(jaxs.normal(_root(variance)), key, shape, dtype)


def lecun(
  key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> jax.Array:
  """Normal, cut off at two deviations, with variance 1 / fan_in.

  What Flax gives a layer that asks for nothing else.

  Args:
    key: of the draw.
    shape: of the kernel, as in `kaiming`.
    dtype: of the weights.

  References:
    LeCun et al., Efficient BackProp, 1998, Eq. 16.
  """
  deviation = _root(shape[-1] / math.prod(shape)) / _CUT
  return _flat(jaxs.truncated_normal(deviation), key, shape, dtype)


def normal(deviation: float) -> Callable[..., jax.Array]:
  """(key, shape, dtype) -> normal weights with this standard deviation."""
  return partial(_flat, jaxs.normal(deviation))


def _flat(initializer, key, shape, dtype=jnp.float32):
  return initializer(key, (math.prod(shape),), dtype).reshape(shape)


def _root(variance):
  return np.sqrt(np.float32(variance))  # In float32, as JAX takes it.
