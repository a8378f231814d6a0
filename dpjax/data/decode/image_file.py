"""An image file as 8-bit grey levels: PNG, JPEG, TIFF, BMP or DICOM.

The one door to the decoders. Pillow and pydicom are imported when the first
file is read: training reads prepared sets and needs neither.
"""

import numpy as np

from dpjax.data.decode import dicom, formats, raster


def read(path: str) -> np.ndarray:
  """The grey levels of an image file, turned upright.

  What a file is, its content says; how its levels are understood, raster.read
  and dicom.read say.

  Args:
    path: the file.

  Returns:
    (H, W) uint8, 0 black.

  Raises:
    SourceFault: it is no whole image of these formats, has another format's
      suffix, several frames or more than `formats.MAX_PIXELS`: one line.
    UserError: it is a DICOM file, and what that takes is not installed.
  """
  with formats.one_line(path):
    format = formats.checked_kind(path)
    return dicom.read(path) if format == 'DICOM' else raster.read(path, format)


def header(path: str) -> dict[str, str]:
  """What a file says of its patient: `dicom.header`; {} if it is no DICOM.

  Raises:
    SourceFault, UserError: as in `read`.
  """
  with formats.one_line(path):
    is_dicom = formats.checked_kind(path) == 'DICOM'
    return dicom.header(path) if is_dicom else {}
