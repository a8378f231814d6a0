"""Augmentation on the host: decisions carried out by OpenCV.

The twin of render_device, which says the same in JAX; what is drawn, in which
order and under which map, decisions.py has.
"""

import numpy as np

from dpjax.data.feed import decisions, render_common


def render(
  images: np.ndarray, drawn: decisions.Decisions, size: int
) -> np.ndarray:
  """Renders the decided views with OpenCV.

  Agrees with `render_device.render` to a mean of 0.5 and a maximum of 2 grey
  levels. OpenCV before 5 rounds coordinates to 1/32 pixel: there the mean
  holds, but on hard edges the maximum does not (seen: 6 levels on phantoms).

  Args:
    images: (B, S, S) uint8.
    drawn: from decisions.draw or decisions.identity, leading with (B, V).
    size: side of the views in pixels.

  Returns:
    (B, V, size, size) uint8.
  """
  import cv2  # not needed where the device renders

  batch, views = drawn['gain'].shape
  source = images.shape[1]
  n = render_common.subsamples(source, size)
  matrices = np.concatenate(
    [
      part.reshape(batch, views, 2, -1)
      for part in render_common.pixel_affine(
        drawn['affine'].astype(np.float64), source, n * size
      )
    ],
    -1,
  )  # (B, V, 2, 3)
  gain, std = drawn['gain'], drawn['noise']
  shift = render_common.MID_GREY - gain * render_common.MID_GREY + drawn['bias']
  taps = render_common.blur_taps(np, drawn['blur'])
  out = np.empty((batch, views, size, size), np.uint8)
  # Memory that is used again is not cleared by the system again.
  image = np.empty((source, source), np.float32)
  read = np.empty((n * size, n * size), np.float32)
  for b in range(batch):
    # OpenCV rounds 8-bit reads to whole levels, and float reads not.
    np.copyto(image, images[b])
    for v in range(views):
      view = cv2.warpAffine(
        image,
        matrices[b, v],
        (n * size, n * size),
        read,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
      )
      if n > 1:
        view = cv2.resize(view, (size, size), interpolation=cv2.INTER_AREA)
      # The taps sum to 1 and the border is replicated, so the blur may as well
      # come before the intensity, which then goes with noise, rounding and
      # clipping in one pass.
      if drawn['blur'][b, v] > 0:
        view = cv2.sepFilter2D(
          view, -1, taps[b, v], taps[b, v], borderType=cv2.BORDER_REPLICATE
        )
      added = view
      if std[b, v] > 0:
        added = render_common.noise(np, drawn['noise_seed'][b, v], size)
      cv2.addWeighted(
        view, gain[b, v], added, std[b, v], shift[b, v], out[b, v], cv2.CV_8U
      )
  return out
