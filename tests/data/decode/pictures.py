"""Pixels that are known, and the bytes of image files."""

import io
import struct
import zlib

import numpy as np


def noise(*shape, top=256, dtype=np.uint8):
  return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


def encoded(picture, kind, **options):
  stream = io.BytesIO()
  picture.save(stream, kind, **options)
  return stream.getvalue()


def chunk(kind, data):
  check = struct.pack('>I', zlib.crc32(kind + data))
  return struct.pack('>I', len(data)) + kind + data + check


def png(width, height, depth=8, colour=0, data=bytes(9), extra=b''):
  header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + extra
    + chunk(b'IDAT', zlib.compress(data))
    + chunk(b'IEND', b'')
  )
