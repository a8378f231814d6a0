"""How many cells the features of a network's stages have: arithmetic alone.

Apart from the networks, so that whoever draws or counts masks needs no JAX.
"""

from collections.abc import Sequence


def resnet(image_size: int, stage_sizes: Sequence[int]) -> dict[str, int]:
  """Side, in cells, of each stage's features for square images.

  The stem, the max-pool and every stage but the first each halve, upwards.

  Args:
    image_size: side of the images in pixels.
    stage_sizes: as given to `ResNet`.

  Returns:
    {'stage1': side, 'stage2': side, ...}.
  """
  side = -(-image_size // 2)
  sides = {}
  for i in range(len(stage_sizes)):
    side = -(-side // 2)
    sides[f'stage{i + 1}'] = side
  return sides


def vgg16(image_size: int) -> dict[str, int]:
  """The same of VGG16, whose five max-pools each halve, downwards."""
  return {f'stage{i}': image_size >> i for i in range(1, 6)}


def stage_sides(
  network: str, image_size: int, stage_sizes: Sequence[int]
) -> dict[str, int]:
  """The same of the network that `model.network` names.

  Args:
    network: 'resnet' or 'vgg16'.
    image_size: side of the images in pixels.
    stage_sizes: of a ResNet; VGG16 has its own.
  """
  return {
    'resnet': lambda: resnet(image_size, stage_sizes),
    'vgg16': lambda: vgg16(image_size),
  }[network]()


def stride(network: str, stage_sizes: Sequence[int]) -> int:
  """Pixels that one cell of the last stage stands for, along a side.

  A residual network's stem halves twice and its first stage not at all.

  Args:
    network, stage_sizes: as of `stage_sides`.
  """
  return {'resnet': 2 ** (len(stage_sizes) + 1), 'vgg16': 32}[network]
