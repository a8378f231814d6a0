"""Claims about dpjax.models.sides: the networks' features have these sides."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from dpjax.models import resnet, sides, vgg


def computed(model, size):
  """{stage: side of its features}; of shapes, nothing is computed."""
  images = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
  (_, features), _ = jax.eval_shape(
    model.init_with_output, jax.random.key(0), images
  )
  return {k: v.shape[1:3] for k, v in features.items() if k != 'pooled'}


def squares(found):
  return {stage: (side, side) for stage, side in found.items()}


@pytest.mark.parametrize('size', [96, 97, 112, 224])
@pytest.mark.parametrize('stage_sizes', [(1, 1, 1, 1), (1, 1)], ids=str)
def test_the_sides_are_those_of_resnets_features(size, stage_sizes):
  model = resnet.ResNet(stage_sizes=stage_sizes, width=2)
  found = squares(sides.stage_sides('resnet', size, stage_sizes))
  assert found == computed(model, size)


@pytest.mark.parametrize('size', [32, 47, 96, 112, 224])
def test_the_sides_are_those_of_vggs_features(size):
  found = squares(sides.stage_sides('vgg16', size, (2, 2, 2, 2)))
  assert found == computed(vgg.VGG16(width=2), size)


def test_the_arithmetic_needs_no_jax():
  code = 'import sys, dpjax.models.sides; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)
