"""Image files: grey levels by hand, and one line where there are none."""

import resource
import struct
import time
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from dpjax.data.decode import formats, image_file
from tests.data.decode.pictures import chunk, encoded, noise, png
from tests.data.source_files import image_refusal as refusal


def smooth(height=40, width=30):
  y, x = np.mgrid[:height, :width]
  return np.uint8(127 + 80 * np.sin(x / 9) * np.cos(y / 7))


def written(file, picture, **options):
  picture.save(file, **options)
  return str(file)


@pytest.mark.parametrize('name', ['a.png', 'a.tif', 'a.TIFF', 'a.bmp', 'a'])
@pytest.mark.parametrize('shape', [(1, 1), (3, 500), (500, 3), (33, 21)])
def test_eight_bits_are_read_as_stored(tmp_path, name, shape):
  levels = noise(*shape)
  kind = None if '.' in name else 'PNG'  # without a suffix, the content says
  path = written(tmp_path / name, Image.fromarray(levels), format=kind)
  read = image_file.read(path)
  np.testing.assert_array_equal(read, levels)
  assert read.dtype == np.uint8
  assert image_file.header(path) == {}


@pytest.mark.parametrize('options', [{}, {'progressive': True}])
def test_a_jpeg_is_read_to_within_its_rounding(tmp_path, options):
  levels = smooth()
  path = written(
    tmp_path / 'a.JPG', Image.fromarray(levels), quality=100, **options
  )
  # Quality 100 rounds cosine coefficients and pixels: two grey levels at most.
  assert np.abs(image_file.read(path).astype(int) - levels).max() <= 2


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA', 'P', 'CMYK'])
def test_grey_saved_as_colours_is_exactly_that_grey(tmp_path, mode):
  levels = noise(40, 30)
  picture = Image.fromarray(levels)
  if mode == 'CMYK':  # black ink alone
    none = Image.new('L', picture.size)
    picture = Image.merge('CMYK', [none] * 3 + [Image.fromarray(255 - levels)])
  name = 'a.tif' if mode == 'CMYK' else 'a.png'
  path = written(tmp_path / name, picture.convert(mode))
  np.testing.assert_array_equal(image_file.read(path), levels)


@pytest.mark.parametrize('name', ['a.png', 'a.bmp', 'a.tif'])
def test_colours_become_their_luma(tmp_path, name):
  channels = noise(40, 30, 3)
  path = written(tmp_path / name, Image.fromarray(channels))
  luma = channels @ np.array([0.299, 0.587, 0.114])
  assert np.abs(image_file.read(path) - luma).max() <= 0.51


def test_of_a_jpeg_in_ycbcr_the_luma_is_taken(tmp_path):
  levels = smooth()
  flat = np.full_like(levels, 128)
  picture = Image.merge(
    'YCbCr', [Image.fromarray(levels)] + 2 * [Image.fromarray(flat)]
  )
  path = written(tmp_path / 'a.jpg', picture, quality=100)
  assert np.abs(image_file.read(path).astype(int) - levels).max() <= 2


def test_one_bit_is_black_and_white(tmp_path):
  bits = noise(20, 30) > 127
  for name in ('a.png', 'a.tif', 'a.bmp'):
    path = written(tmp_path / name, Image.fromarray(bits))
    np.testing.assert_array_equal(image_file.read(path), bits * np.uint8(255))


def test_a_palette_is_looked_up(tmp_path):
  index = noise(20, 30, top=4)
  picture = Image.fromarray(index).convert('P')
  picture.putpalette([0, 0, 0, 9, 9, 9, 255, 0, 0, 255, 255, 255])
  table = np.uint8([0, 9, 76, 255])  # 0.299 * 255 = 76.2
  for name in ('a.png', 'a.bmp', 'a.tif'):
    path = written(tmp_path / name, picture)
    np.testing.assert_array_equal(image_file.read(path), table[index])


def test_what_is_transparent_is_black_as_air_is(tmp_path):
  levels, alpha = noise(20, 30), noise(20, 30)[::-1]
  picture = Image.merge('LA', [Image.fromarray(levels), Image.fromarray(alpha)])
  wanted = np.rint(levels.astype(float) * alpha / 255)
  for name, mode in (('a.png', 'LA'), ('b.png', 'RGBA'), ('a.tif', 'RGBA')):
    read = image_file.read(written(tmp_path / name, picture.convert(mode)))
    np.testing.assert_array_equal(read, wanted)
  # A palette with an alpha of its own, and one colour that is transparent.
  index = noise(20, 30, top=3)
  picture = Image.fromarray(index).convert('P')
  picture.putpalette([200, 200, 200, 100, 100, 100, 50, 50, 50])
  path = written(tmp_path / 'p.png', picture, transparency=bytes([255, 51, 0]))
  np.testing.assert_array_equal(
    image_file.read(path), np.uint8([200, 20, 0])[index]
  )
  path = written(tmp_path / 'l.png', Image.fromarray(levels), transparency=255)
  np.testing.assert_array_equal(
    image_file.read(path), np.where(levels == 255, 0, levels)
  )


@pytest.mark.parametrize('name', ['a.png', 'a.tif', 'big.tif'])
@pytest.mark.parametrize('bits', [8, 9, 10, 12, 14, 16])
def test_of_deep_levels_the_bits_in_use_are_kept(tmp_path, name, bits):
  levels = noise(20, 30, top=1 << bits, dtype=np.uint16)
  levels[0, :2] = 0, (1 << bits) - 1
  big = levels.astype('>u2') if name == 'big.tif' else levels
  path = written(tmp_path / name, Image.fromarray(big))
  # A container is 8, 10, 12, 14 or 16 bits deep; 9 bits lie in one of 10.
  container = {9: 10}.get(bits, bits)
  wanted = np.floor(levels / 2.0 ** (container - 8))
  np.testing.assert_array_equal(image_file.read(path), wanted)


@pytest.mark.parametrize('share', [1, 300])
def test_a_stray_or_a_marker_does_not_darken_the_rest(tmp_path, share):
  levels = noise(64, 48, top=4096, dtype=np.uint16)
  levels.flat[:share] = 65535
  Image.fromarray(levels).save(tmp_path / 'a.png')
  read = image_file.read(str(tmp_path / 'a.png'))
  np.testing.assert_array_equal(read, np.minimum(levels >> 4, 255))


def test_bright_levels_that_are_many_are_no_strays(tmp_path):
  levels = noise(64, 48, top=4096, dtype=np.uint16)
  levels.flat[:40] += 60000  # of 3072, and of forty levels
  Image.fromarray(levels).save(tmp_path / 'a.png')
  read = image_file.read(str(tmp_path / 'a.png'))
  np.testing.assert_array_equal(read, levels >> 8)


def test_what_is_transparent_throughout_is_refused(tmp_path):
  pixels = noise(20, 30, 4)
  pixels[..., 3] = 0
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  line = refusal(tmp_path / 'a.png')
  assert line.startswith('transparent throughout')


def test_whole_numbers_of_32_bits_are_read_up_to_16(tmp_path):
  levels = noise(20, 30, top=4096, dtype=np.int32)
  levels[0, 0] = 4095
  path = written(tmp_path / 'a.tif', Image.fromarray(levels))
  np.testing.assert_array_equal(image_file.read(path), levels // 16)
  for wrong in (-1, 65_536):
    levels[3, 4] = wrong
    written(tmp_path / 'a.tif', Image.fromarray(levels))
    assert str(wrong) in refusal(path) and '0 to 65535' in refusal(path)


def test_floating_point_is_scaled_by_its_range(tmp_path):
  levels = np.linspace(-3, 5, 600).reshape(20, 30).astype(np.float32)
  path = written(tmp_path / 'a.tif', Image.fromarray(levels))
  wanted = (levels.astype(float) + 3) / 8 * 255
  assert np.abs(image_file.read(path) - wanted).max() <= 0.51
  written(tmp_path / 'a.tif', Image.fromarray(np.full_like(levels, 7)))
  assert not image_file.read(path).any()
  for wrong in (np.nan, np.inf, -np.inf):
    levels[3, 4] = wrong
    written(tmp_path / 'a.tif', Image.fromarray(levels))
    assert 'not finite' in refusal(path)


def tiff(levels, **tags):
  """A TIFF by hand: uncompressed, little-endian, one strip."""
  data = levels.astype(levels.dtype.newbyteorder('<')).tobytes()
  height, width = levels.shape
  bits = levels.dtype.itemsize * 8
  values = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8}
  values |= {277: 1, 278: height, 279: len(data)}
  values |= {int(tag[1:]): value for tag, value in tags.items()}
  entries = (
    struct.pack('<HHII', t, 4, 1, v) for t, v in sorted(values.items())
  )
  directory = struct.pack('<H', len(values)) + b''.join(entries) + bytes(4)
  return b'II*\0' + struct.pack('<I', 8 + len(data)) + data + directory


@pytest.mark.parametrize(
  'dtype, scale', [(np.uint8, 1), (np.uint16, 257), (np.float32, 1 / 255)]
)
def test_where_white_is_0_a_tiff_is_turned_over(tmp_path, dtype, scale):
  levels = noise(20, 30)
  levels[0, :2] = 0, 255
  deep = levels.astype(dtype) * dtype(scale)
  path = tmp_path / 'a.tif'
  # SampleFormat 3: floating point.
  form = {'t339': 3} if dtype == np.float32 else {}
  for photometric, wanted in ((1, levels), (0, 255 - levels)):
    path.write_bytes(tiff(deep, t262=photometric, **form))
    np.testing.assert_array_equal(image_file.read(str(path)), wanted)


@pytest.mark.parametrize(
  'orientation, upright',
  {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.fliplr(np.rot90(stored, -1)),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.fliplr(np.rot90(stored)),
    8: np.rot90,
    9: lambda stored: stored,  # means nothing
  }.items(),
)
def test_an_orientation_is_obeyed(tmp_path, orientation, upright):
  levels = noise(20, 30)
  exif = Image.Exif()
  exif[0x112] = orientation
  for name in ('a.png', 'a.jpg'):
    stored = Image.fromarray(smooth(20, 30))
    path = written(tmp_path / name, stored, exif=exif)
    plain = image_file.read(written(tmp_path / f'plain {name}', stored))
    np.testing.assert_array_equal(image_file.read(path), upright(plain))
  for deep in (levels, levels.astype(np.uint16)):
    (tmp_path / 'a.tif').write_bytes(tiff(deep, t274=orientation))
    read = image_file.read(str(tmp_path / 'a.tif'))
    np.testing.assert_array_equal(read, upright(levels))


def test_a_picture_of_several_frames_is_refused(tmp_path):
  pictures = [Image.fromarray(noise(20, 30) + np.uint8(i)) for i in range(3)]
  for name in ('a.tif', 'a.png'):
    path = written(
      tmp_path / name, pictures[0], save_all=True, append_images=pictures[1:]
    )
    assert refusal(path) == '3 frames; wanted one'


def jpeg(width, height):
  whole = encoded(Image.fromarray(noise(16, 16)), 'JPEG')
  at = whole.index(b'\xff\xc0') + 5
  return whole[:at] + struct.pack('>HH', height, width) + whole[at + 4 :]


BOMBS = {
  'a.png': png(60_000, 60_000),
  'a.jpg': jpeg(60_000, 60_000),
  'a.tif': tiff(noise(4, 4), t256=60_000, t257=60_000, t278=60_000),
  'packed.tif': tiff(noise(4, 4), t256=60_000, t257=60_000, t259=8),
  'a.bmp': b'BM'
  + struct.pack('<IIIIiiHHI', 99, 0, 54, 40, 60_000, 60_000, 1, 24, 0)
  + bytes(20),
}


@pytest.mark.parametrize('name', BOMBS)
def test_a_huge_image_is_refused_at_once_and_without_its_memory(tmp_path, name):
  file = tmp_path / name
  file.write_bytes(BOMBS[name])
  image_file.read(
    written(tmp_path / f'warm {name}', Image.fromarray(noise(4, 4)))
  )
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  start = time.process_time()
  line = refusal(file)
  assert time.process_time() - start < 0.5
  # KiB; one image of that size takes 3,500,000.
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 30_000
  assert line == '60000 x 60000 pixels; wanted at most 100,000,000 in all'


def test_a_text_that_inflates_without_end_is_refused(tmp_path):
  text = b'key\0\0' + zlib.compress(bytes(1 << 26))
  path = tmp_path / 'a.png'
  path.write_bytes(png(3, 3, data=bytes(12), extra=chunk(b'zTXt', text)))
  assert 'too large' in refusal(path)


def test_there_is_one_limit_of_size_for_all_formats(tmp_path, monkeypatch):
  # Pillow warns from a limit of its own on.
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)
  monkeypatch.setattr(formats, 'MAX_PIXELS', 600)
  for name in ('a.png', 'a.jpg', 'a.tif', 'a.bmp'):
    path = written(tmp_path / name, Image.fromarray(smooth(20, 30)))
    assert image_file.read(path).shape == (20, 30)
    written(tmp_path / name, Image.fromarray(smooth(20, 31)))
    assert '31 x 20 pixels' in refusal(path)


def test_colours_of_16_bits_are_refused_not_made_black(tmp_path):
  path = tmp_path / 'a.png'
  for colour, channels in ((2, 3), (4, 2), (6, 4)):
    rows = bytes(3 * (1 + 3 * 2 * channels))
    path.write_bytes(png(3, 3, depth=16, colour=colour, data=rows))
    assert '16 bits' in refusal(path)


@pytest.mark.parametrize(
  'content, reason',
  [
    (b'', 'empty'),
    (b'id,label\n1,0\n', 'no PNG, JPEG, TIFF, BMP or DICOM file'),
    (b'<html>404</html>', 'no PNG, JPEG, TIFF, BMP or DICOM file'),
    (encoded(Image.new('L', (9, 9)), 'GIF'), 'holds a GIF though it is'),
    (
      encoded(Image.new('L', (9, 9)), 'JPEG'),
      'holds a JPEG but is named .png',
    ),
    (bytes(128) + b'DICM', 'holds a DICOM but is named .png; rename it'),
    (png(0, 3), 'broken'),
    (png(3, 3, data=bytes(5)), 'cut short'),
  ],
)
def test_what_is_no_png_of_one_whole_image_is_refused(
  tmp_path, content, reason
):
  path = tmp_path / 'a.png'
  path.write_bytes(content)
  assert reason in refusal(path)


BROKEN_EXIF = {
  'no EXIF': b'no such thing as a TIFF header',
  'empty': b'',
  'cut in its header': b'II*\0\x08',
  'cut in its directory': b'II*\0' + struct.pack('<IH', 8, 9),
  'beyond its end': b'MM\0*' + struct.pack('>I', 1 << 31),
  'a value beyond its end': b'II*\0'
  + struct.pack('<IHHHIII', 8, 1, 271, 2, 99, 1 << 20, 0),
  'an orientation that is a text': b'II*\0'
  + struct.pack('<IHHHI4sI', 8, 1, 0x112, 2, 4, b'six\0', 0),
}


@pytest.mark.parametrize('case', BROKEN_EXIF)
@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
def test_a_broken_exif_block_says_nothing_of_a_whole_image(
  tmp_path, case, format
):
  levels = np.full((16, 24), 90, np.uint8)  # exact in a JPEG too
  levels[:, 8:] = 160
  exif = b'Exif\0\0' + BROKEN_EXIF[case]
  path = tmp_path / 'a'
  quality = {'quality': 100} if format == 'JPEG' else {}
  content = encoded(Image.fromarray(levels), format, exif=exif, **quality)
  path.write_bytes(content)
  assert exif.removeprefix(b'Exif\0\0') in content
  read = image_file.read(str(path))
  assert read.shape == levels.shape
  assert np.abs(read.astype(int) - levels).max() <= 1
  # The pixels are not forgiven.
  path.write_bytes(content[: -len(content) // 4])
  assert refusal(path)


@pytest.mark.parametrize('compression', ['raw', 'tiff_lzw'])
@pytest.mark.parametrize('block', [1 << 31, 9, 1, 0])
@pytest.mark.parametrize('tag', [34665, 34853])  # where EXIF and GPS are
@pytest.mark.parametrize('turn', [1, 6])
def test_a_broken_exif_block_of_a_tiff_says_nothing_either(
  tmp_path, compression, block, tag, turn
):
  levels = noise(20, 30)
  # 305, Software, is taken for a place to put the tag.
  content = encoded(
    Image.fromarray(levels),
    'TIFF',
    compression=compression,
    tiffinfo={0x112: turn, 305: 'a'},
  )
  at = content.index(struct.pack('<HHI', 305, 2, 2))
  entry = struct.pack('<HHII', tag, 4, 1, block)
  (tmp_path / 'a.tif').write_bytes(content[:at] + entry + content[at + 12 :])
  wanted = np.rot90(levels, -1) if turn == 6 else levels  # its own directory's
  np.testing.assert_array_equal(
    image_file.read(str(tmp_path / 'a.tif')), wanted
  )


def samples():
  """Whole files of every kind, by name."""
  grey = Image.fromarray(smooth())
  deep = Image.fromarray(smooth().astype(np.uint16) * 257)
  exif = Image.Exif()
  exif[0x112] = 6
  return {
    'grey.png': encoded(grey, 'PNG'),
    'deep.png': encoded(deep, 'PNG'),
    'palette.png': encoded(grey.convert('P'), 'PNG', transparency=3),
    'alpha.png': encoded(grey.convert('LA'), 'PNG', exif=exif),
    'grey.jpg': encoded(grey, 'JPEG', exif=exif),
    'progressive.jpg': encoded(grey.convert('RGB'), 'JPEG', progressive=True),
    'cmyk.jpg': encoded(grey.convert('CMYK'), 'JPEG'),
    'grey.tif': encoded(grey, 'TIFF'),
    'deep.tif': encoded(deep, 'TIFF'),
    'float.tif': encoded(grey.convert('F'), 'TIFF'),
    'lzw.tif': encoded(grey, 'TIFF', compression='tiff_lzw'),
    'deflate.tif': encoded(grey, 'TIFF', compression='tiff_adobe_deflate'),
    'jpeg.tif': encoded(grey, 'TIFF', compression='jpeg'),
    'packbits.tif': encoded(grey, 'TIFF', compression='packbits'),
    'grey.bmp': encoded(grey, 'BMP'),
    'colour.bmp': encoded(grey.convert('RGB'), 'BMP'),
  }


SAMPLES = samples()


@pytest.mark.parametrize('name', SAMPLES)
def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path, name, capfd):
  content, file = SAMPLES[name], tmp_path / name
  file.write_bytes(content)
  whole = image_file.read(str(file))
  refused = 0
  cuts = {*range(0, len(content), 37), *range(len(content) - 20, len(content))}
  for cut in cuts:
    file.write_bytes(content[:cut])
    try:
      # The last bytes may hold nothing of the image.
      np.testing.assert_array_equal(image_file.read(str(file)), whole)
    except ValueError as error:
      assert str(error).startswith(f'{file}: ')
      refused += 1
  assert refused >= len(cuts) - 25
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('name', ['lzw.tif', 'deflate.tif'])
def test_what_libtiff_says_does_not_reach_the_user(tmp_path, name, capfd):
  content = bytearray(SAMPLES[name])
  for at in range(40, 400, 7):
    content[at] = 0xFF
  (tmp_path / name).write_bytes(content)
  assert 'broken' in refusal(tmp_path / name)
  assert capfd.readouterr() == ('', '')


def test_what_pillow_logs_does_not_reach_the_user(tmp_path, caplog):
  (tmp_path / 'a.tif').write_bytes(tiff(noise(4, 4), t277=3840))
  assert refusal(tmp_path / 'a.tif')
  assert not caplog.records


@hypothesis.settings(
  max_examples=400,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  st.sampled_from(sorted(SAMPLES)),
  st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
    max_size=8,
  ),
  st.floats(0, 1),
)
def test_broken_files_raise_one_line_and_nothing_else(
  tmp_path, name, changes, end
):
  content = bytearray(SAMPLES[name])
  for place, value in changes:
    # Half of the changes in the first bytes, where the header is.
    content[int(place**3 * len(content))] = value
  if end < 0.3:
    del content[int(end / 0.3 * len(content)) :]
  file = tmp_path / name
  file.write_bytes(content)
  try:
    read = image_file.read(str(file))
  except ValueError as error:
    assert str(error).startswith(f'{file}: ') and str(error).isprintable()
  else:
    assert read.dtype == np.uint8 and read.ndim == 2
