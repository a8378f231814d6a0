"""The charts: readable on light and dark, for the colour-blind, and true."""

import io
import xml.etree.ElementTree as ET

import cv2
import matplotlib
import numpy as np
import pytest
from PIL import Image

from dpjax.report import figures

NAMES = ['0', '1', '2', '3', 'a<b & $c$ "d" $']
LIGHT, DARK = '#ffffff', '#1b1f23'  # the cards of report.css


def make_bars(counts=((1200, 150, 30, 6, 0), (130, 20, 4, 1, 1))):
  groups = dict(zip(('train', 'test'), counts, strict=True))
  return figures.bars(groups, NAMES, title='Counts', x='Images', y='Class')


def make_lines(**options):
  x = np.linspace(0, 1, 9)
  series = [
    figures.Series(name, x, x ** (i + 1), i) for i, name in enumerate(NAMES)
  ]
  return figures.lines(series, title='T', x='Epoch', y='Loss', **options)


def make_reliability():
  bins = [
    {'low': i / 5, 'high': (i + 1) / 5, 'count': i,
     'confidence': i / 5 + 0.1 if i else None, 'accuracy': 0.5 if i else None}
    for i in range(5)
  ]  # fmt: skip
  return figures.reliability(bins, title='T')


def make_intervals():
  series = {'a': [(0.5, 0.4, 0.6)] * 5, 'b': [None, *[(0.3, 0.2, 0.5)] * 4]}
  return figures.intervals(NAMES, series, title='T', x='Score', y='Map')


def make_long_intervals():
  names = ['balanced accuracy, classes 0 to 2', 'x' * 80, *NAMES[2:]]
  return figures.intervals(
    names, {'a': [(0.5, 0.4, 0.6)] * 5}, title='class-balanced-focal-loss '
    'minus contrastive-pre-training', x='Difference', y='Score', zero=True,
  )  # fmt: skip


CHARTS = {
  'bars': make_bars,
  'lines': make_lines,
  'square': lambda: make_lines(unit_square=True, legend='AUROC'),
  'confusion': lambda: figures.confusion(
    np.arange(25).reshape(5, 5), NAMES, title='T'
  ),
  'reliability': make_reliability,
  'intervals': make_intervals,
  'long': make_long_intervals,
}


@pytest.fixture(scope='module', params=CHARTS)
def chart(request):
  return CHARTS[request.param]()


def texts(chart):
  return ''.join(ET.fromstring(figures.render(chart)[0]).itertext())


def linear(colour):
  """'#rrggbb' as linear RGB (3,) (IEC 61966-2-1)."""
  value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
  power = ((value + 0.055) / 1.055) ** 2.4
  return np.where(value <= 0.04045, value / 12.92, power)


def luminance(colour):
  """Relative luminance (WCAG 2.2)."""
  return linear(colour) @ [0.2126, 0.7152, 0.0722]


def contrast(a, b):
  low, high = sorted((luminance(a), luminance(b)))
  return (high + 0.05) / (low + 0.05)


def test_a_chart_is_whole_svg_and_a_sharp_png_of_a_phones_width(chart):
  light, dark, png = figures.render(chart)
  for svg in (light, dark):
    assert ET.fromstring(svg).tag.endswith('svg')
  with Image.open(io.BytesIO(png)) as image:
    assert image.width == 720


def test_the_dark_chart_differs_from_the_light_one_in_its_inks_alone(chart):
  light, dark, _ = figures.render(chart)
  assert light != dark
  for ink, other in figures._DARK.items():
    assert ink not in dark
    light = light.replace(ink, other)
  assert light == dark
  # What is neither would be the same on both pages.
  assert '#000000' not in light and '#ffffff' not in light


def test_a_chart_is_the_same_bytes_each_time(chart):
  assert figures.render(chart) == figures.render(chart)


def test_no_legend_covers_data(chart):
  canvas = matplotlib.backends.backend_agg.FigureCanvasAgg(chart)
  canvas.draw()
  for legend in chart.legends:
    for axes in chart.axes:
      assert not legend.get_window_extent().overlaps(axes.bbox)


def test_nothing_is_cut_off_at_the_edge(chart):
  matplotlib.backends.backend_agg.FigureCanvasAgg(chart).draw()
  box = chart.get_tightbbox()  # inches
  width, height = chart.get_size_inches()
  assert box.x0 >= -0.02 and box.y0 >= -0.02
  assert box.x1 <= width + 0.02 and box.y1 <= height + 0.02


def test_every_axis_has_a_title(chart):
  shown = chart.axes[-1:] if len(chart.axes) > 1 else chart.axes
  assert all(axes.get_xlabel() for axes in shown)
  assert all(axes.get_ylabel() for axes in chart.axes)


def test_a_long_title_and_long_rows_go_on_below():
  found = texts(make_long_intervals())
  for words in ('contrastive-pre-training', 'balanced accuracy,', '0 to 2'):
    assert words in found


def test_a_dot_has_no_line_and_a_name_in_the_legend():
  chart = figures.lines(
    [figures.Series('at 0.5', [0.2, 0.4], [0.7, 0.8], -1, 'dots')],
    title='T', x='x', y='y', unit_square=True,
  )  # fmt: skip
  (line,) = chart.axes[0].lines
  assert line.get_linestyle() == 'None' and line.get_marker() == 'o'
  assert 'at 0.5' in texts(chart)


def test_matplotlibs_own_settings_stay_as_they_are():
  before = dict(matplotlib.rcParams)
  figures.render(make_bars())
  assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize('make', [make_bars, make_lines])
def test_a_name_is_drawn_as_it_is_written(make):
  chart = make()
  found = texts(chart)
  assert 'a<b & $c$ "d" $' in found


def test_a_name_of_another_script_gives_no_warning():
  chart = figures.bars(
    {'train': [1, 2]}, ['肺炎', '正常'], title='T', x='x', y='y'
  )
  assert '肺炎' in texts(chart)


def test_a_name_that_begins_with_an_underscore_is_in_the_legend():
  chart = figures.lines(
    [figures.Series('_a', [0, 1], [0, 1])], title='T', x='x', y='y'
  )
  assert '_a' in texts(chart)


@pytest.mark.parametrize(
  ('counts', 'scale'),
  [
    (((1200, 150, 30, 6, 0), (130, 20, 4, 1, 1)), 'log'),
    (((12, 15, 13, 16, 0), (13, 12, 14, 11, 11)), 'linear'),
  ],
)
def test_only_long_tailed_counts_get_a_logarithmic_axis(counts, scale):
  chart = make_bars(counts)
  assert chart.axes[0].get_xscale() == scale
  found = [text.get_text() for text in chart.axes[0].texts]
  assert found == [f'{n:,}' for row in counts for n in row]


def test_the_bars_end_at_their_counts():
  counts = ((1200, 150, 30, 6, 2), (130, 20, 4, 1, 1))
  ends = [p.get_x() + p.get_width() for p in make_bars(counts).axes[0].patches]
  np.testing.assert_allclose(ends, np.ravel(counts))


def test_a_cell_of_the_confusion_says_count_and_share_of_its_row():
  chart = figures.confusion(np.array([[3, 1], [0, 0]]), ['a', 'b'], title='T')
  found = [text.get_text() for text in chart.axes[0].texts]
  assert found == ['3\n75 %', '1\n25 %', '0', '0']  # no share of no image


def test_a_loss_that_falls_far_gets_a_logarithmic_axis():
  x = np.arange(50)
  falls = figures.Series('', x, 0.8**x)
  stays = figures.Series('', x, 2 - x / 50)
  scales = [
    figures.lines([one], title='T', x='x', y='y', log=None).axes[0].get_yscale()
    for one in (falls, stays)
  ]
  assert scales == ['log', 'linear']


def test_text_and_lines_stand_out_on_both_pages():
  inks = list(figures._DARK.items())
  for light, dark in inks[:1]:  # text: WCAG AA
    assert contrast(light, LIGHT) > 7 and contrast(dark, DARK) > 7
  for light, dark in inks[3:]:  # graphics ask for 3; yellows are bright
    assert contrast(light, LIGHT) > 1.9 and contrast(dark, DARK) > 3


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize(
  'loss',
  [  # Machado et al. (2009), severity 1, of linear RGB
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
     [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
     [-0.011820, 0.042940, 0.968881]],
  ],
  ids=['protanopia', 'deuteranopia'],
)  # fmt: skip
def test_the_colour_blind_tell_the_colours_apart(loss, dark):
  colours = [figures._DARK[c] if dark else c for c in figures._COLOURS]
  seen = np.clip(
    np.array([linear(c) for c in colours]) @ np.array(loss).T, 0, 1
  )
  power = 1.055 * seen ** (1 / 2.4) - 0.055
  seen = np.where(seen <= 0.0031308, 12.92 * seen, power).astype(np.float32)
  lab = cv2.cvtColor(seen[None], cv2.COLOR_RGB2LAB)[0]
  apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
  assert apart[np.triu_indices(len(colours), 1)].min() > 8
