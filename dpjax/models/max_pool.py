"""The max-pool of the residual stem, and its gradient without a scatter.

The gradient of XLA's own (select_and_scatter) is good on a TPU and on a CPU. On
a GPU it becomes a scatter of every single value with atomic additions, which
is slow and not deterministic. What is trained there (models/stem.py) keeps
which of the nine values was the `largest`, one byte each, and reads it back
(`gather`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def max_pool(x: jax.Array) -> jax.Array:
  """Largest of each 3 x 3, at every other pixel, outside of x nothing.

  Args:
    x: (B, H, W, C).

  Returns:
    (B, ceil(H / 2), ceil(W / 2), C).
  """
  return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def largest(x: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
  """The largest of each window, and where it is.

  Args:
    x: (B, H, W, C).
    *others: of the same shape.

  Returns:
    what `max_pool` does; the place in the window, 0 to 8 by rows, int8; and
    what the others have there.
  """
  windows = zip(*map(_taps, (x, *others)), strict=True)
  best, *found = next(windows)
  place = jnp.zeros(best.shape, jnp.int8)
  for tap, (value, *beside) in enumerate(windows, 1):
    larger = value > best
    place = jnp.where(larger, jnp.int8(tap), place)
    found = [
      jnp.where(larger, b, a) for a, b in zip(found, beside, strict=True)
    ]
    best = jnp.maximum(best, value)  # Not a where: NaN stays NaN.
  return best, place, *found


def _taps(x):
  """The nine values of each window, an array each."""
  b, height, width, c = x.shape
  low = jnp.array(-jnp.inf, x.dtype)
  x = jax.lax.pad(
    x, low, ((0, 0, 0), (1, height % 2, 0), (1, width % 2, 0), (0, 0, 0))
  )
  # Rows 2 r + i and columns 2 s + j of what is padded.
  height, width = 2 * -(-height // 2) - 1, 2 * -(-width // 2) - 1
  for i in range(3):
    for j in range(3):
      yield jax.lax.slice(
        x, (0, i, j, 0), (b, i + height, j + width, c), (1, 2, 2, 1)
      )


def gather(
  place: jax.Array, dy: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
  """The gradient at the input: each pixel asks the windows that it is in.

  Args:
    place: of `largest`, (B, h, w, C).
    dy: the gradient at the output.
    shape: of the input.

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
