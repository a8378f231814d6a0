"""The max-pool of the residual stem, with a gradient that suits the platform.

The gradient of XLA's own (select_and_scatter) is good on a TPU and on a CPU. On
a GPU it becomes a scatter of every single value with atomic additions, which
is slow and not deterministic; there the forward pass keeps which of the nine
values was the largest, one byte each, and the gradient reads it back.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from dpjax.models import platforms


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
  """Largest of each 3 x 3, at every other pixel, outside of x nothing.

  Of equal values the first, by rows, gets the gradient.

  Args:
    x: (B, H, W, C).

  Returns:
    (B, ceil(H / 2), ceil(W / 2), C).
  """
  return _native(x)


def _native(x):
  return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def _forward(x):
  def native(x):
    y = _native(x)
    return y, jnp.zeros(y.shape, jnp.int8)  # Not read, so not made.

  y, place = platforms.choose(x, gpu=_largest, other=native)
  return y, (x, place)


def _backward(kept, dy):
  def native(x, place, dy):
    del place
    return jax.vjp(_native, x)[1](dy)[0]

  def gather(x, place, dy):
    return _gather(place, dy, x.shape)

  return (platforms.choose(*kept, dy, gpu=gather, other=native),)


max_pool.defvjp(_forward, _backward)


def _largest(x):
  """The largest of each window, and which it is, 0 to 8, by rows."""
  _, height, width, _ = x.shape
  low = jnp.array(-jnp.inf, x.dtype)
  pad = ((0, 0, 0), (1, height % 2, 0), (1, width % 2, 0), (0, 0, 0))
  x = jax.lax.pad(x, low, pad)  # Odd sides: windows 2 i to 2 i + 2 fit.
  rows, columns = -(-height // 2), -(-width // 2)
  best = place = None
  for tap in range(9):
    i, j = divmod(tap, 3)
    value = jax.lax.slice(
      x,
      (0, i, j, 0),
      (x.shape[0], i + 2 * rows - 1, j + 2 * columns - 1, x.shape[3]),
      (1, 2, 2, 1),
    )
    if best is None:
      best, place = value, jnp.zeros(value.shape, jnp.int8)
    else:
      place = jnp.where(value > best, jnp.int8(tap), place)
      best = jnp.maximum(best, value)  # Not a where: NaN stays NaN.
  return best, place


def _gather(place, dy, shape):
  """The gradient: each pixel asks the windows that it is in.

  Pixel 2 r lies in the middle of window r alone; pixel 2 r + 1 at the end of
  window r and at the start of window r + 1. No value is written twice, and
  those of a pixel are added in the order of their windows.
  """
  b, rows, columns, c = dy.shape
  edge = ((0, 0), (0, 1), (0, 1), (0, 0))
  place = jnp.pad(place, edge)
  dy = jnp.pad(dy, edge)
  # By (whether it is the next window, whether the pixel is odd): the pixel's
  # place in the window along one side, or none.
  none = -9
  along = np.array([[1, 2], [none, 0]])

  def asked(down, right):
    at = slice(down, down + rows), slice(right, right + columns)
    wanted = 3 * along[down][:, None] + along[right][None, :]  # (2, 2)
    wanted = jnp.asarray(wanted, jnp.int8)[None, None, :, None, :, None]
    # (B, rows, 2, columns, 2, C): each window beside its four pixels.
    found = place[:, *at][:, :, None, :, None] == wanted
    return jnp.where(found, dy[:, *at][:, :, None, :, None], 0)

  whole = sum(asked(down, right) for down in (0, 1) for right in (0, 1))
  whole = whole.reshape(b, 2 * rows, 2 * columns, c)
  return whole[:, : shape[1], : shape[2]]
