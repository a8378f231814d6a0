"""Deep Pneumonia (Wei et al., arXiv 2207.11393) in JAX and Flax.

`load` opens what was trained here; nothing is imported before it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import os

  from dpjax.serving.model import Model

__all__ = ['__version__', 'load']
__version__ = '0.1.0'


def load(*runs: str | os.PathLike[str], **options: Any) -> Model:
  """The model of a trained run, or of several as an ensemble.

  Args:
    *runs: workdirs of stage II runs or recipes, or folders of exports.
    **options: of dpjax.serving.model.load, e.g. checkpoint='best'.

  Raises:
    dpjax.errors.UserError: one line: there is no such run, or they do not go
      together.
  """
  from dpjax.serving import model

  return model.load(*runs, **options)
