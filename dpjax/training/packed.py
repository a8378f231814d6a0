"""A training state as a few long vectors, which is what a GPU steps.

A step that updates each of a hundred arrays by itself is hundreds of kernels,
most of which take longer to launch than to run. Laid end to end, the arrays are
clipped, decayed, updated and averaged over devices as two. They must lie so at
rest: to pack them in each step costs what it saves. Convolution kernels lie as
cuDNN reads them (OHWI, where Flax has HWIO), so that none is transposed.

The training loop packs a state at its own borders; checkpoints, evaluation and
exports have it as the modules know it. Values are moved and never changed, and
what the optimizer does to them it does one by one but for the gradient's norm,
which is summed in another order.
"""

import dataclasses
import math
from typing import Any

import flax
import jax
import jax.numpy as jnp

from dpjax.training.run import Run


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where each array of a tree lies; a part of the type of a `Packed`.

  Attributes:
    structure: of the tree.
    shapes: of its arrays, in order.
  """

  structure: Any
  shapes: tuple[tuple[int, ...], ...]


@flax.struct.dataclass
class Packed:
  """A tree of float32 arrays as two vectors.

  Attributes:
    kernels: (1, n) what has more than one axis; with two axes itself, so that
      optim.decay_mask knows it for what it is.
    others: (m,) biases, and scales and statistics of BatchNorm.
    layout: of the tree.
  """

  kernels: jax.Array
  others: jax.Array
  layout: Layout = flax.struct.field(pytree_node=False)


def suits(run: Run) -> bool:
  """Whether the run's steps are made on a packed state.

  Not elsewhere than on a GPU, where the compiler does without; and not where an
  optimizer tells arrays apart by their names.
  """
  frozen = getattr(run.objective, 'frozen', False)
  return run.devices.platform == 'gpu' and not frozen


def at_rest(run: Run, state: Any) -> Any:
  """The run's state as its steps have it: packed where that suits.

  Args:
    run: whose devices the state lies on.
    state: steps.TrainState, on the devices, and not donated; or its shapes,
      where the devices are not there.
  """
  if not suits(run):
    return state
  if run.devices.topology:
    return run.devices.replicate(jax.eval_shape(pack, state))
  return jax.jit(pack, out_shardings=state.step.sharding)(state)


def as_modules_know(state: Any) -> Any:
  """The way back from `at_rest`, for whoever is no step."""
  if not any(_is_packed(t) for t in jax.tree.leaves(state, is_leaf=_is_packed)):
    return state
  return jax.jit(unpack, out_shardings=state.step.sharding)(state)


def pack(state: Any) -> Any:
  """A training state with each tree like its params or batch_stats packed.

  Args:
    state: steps.TrainState; what mirrors its parameters, as the optimizer's
      momentum does, is found by its structure.
  """
  found = {
    jax.tree.structure(tree)
    for tree in (state.params, state.batch_stats)
    if jax.tree.leaves(tree)
  }

  def is_one(tree):
    return jax.tree.structure(tree) in found

  return jax.tree.map(
    lambda tree: pack_tree(tree) if is_one(tree) else tree,
    state,
    is_leaf=is_one,
  )


def unpack(state: Any) -> Any:
  """A tree without anything packed in it; as it is where nothing is."""
  return jax.tree.map(
    lambda tree: _unpack_tree(tree) if _is_packed(tree) else tree,
    state,
    is_leaf=_is_packed,
  )


def _is_packed(tree):
  return isinstance(tree, Packed)


def like(example: Any, tree: Any) -> Any:
  """`tree`, packed if `example` is."""
  return pack_tree(tree) if isinstance(example, Packed) else tree


def pack_tree(tree: Any) -> Packed:
  """A tree of arrays as two vectors."""
  arrays, structure = jax.tree.flatten(tree)
  layout = Layout(structure, tuple(a.shape for a in arrays))
  kernels, others = (
    [_flat(a) for a in arrays if (a.ndim > 1) == is_kernel]
    for is_kernel in (True, False)
  )
  return Packed(_joined(kernels)[None], _joined(others), layout)


def _unpack_tree(packed):
  filled = {True: 0, False: 0}
  arrays = []
  for shape in packed.layout.shapes:
    is_kernel = len(shape) > 1
    vector = packed.kernels[0] if is_kernel else packed.others
    start, size = filled[is_kernel], math.prod(shape)
    arrays.append(_shaped(vector[start : start + size], shape))
    filled[is_kernel] += size
  return jax.tree.unflatten(packed.layout.structure, arrays)


def _joined(vectors):
  return jnp.concatenate(vectors) if vectors else jnp.zeros(0, jnp.float32)


def _flat(array):
  return (array.transpose(3, 0, 1, 2) if array.ndim == 4 else array).ravel()


def _shaped(vector, shape):
  if len(shape) != 4:
    return vector.reshape(shape)
  height, width, inputs, outputs = shape
  return vector.reshape(outputs, height, width, inputs).transpose(1, 2, 3, 0)
