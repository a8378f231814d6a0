"""The charts of the report, for light and dark pages.

A chart is drawn once, in the inks of a light page on no background; `render`
puts those of a dark page in their place. It is made to be read at its own
width, that of a phone. The colours are those of Okabe and Ito (2008), which the
colour-blind can tell apart; where they run out, the dashes change.
"""

import functools
import io
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import patches, ticker
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure

WIDTH = 3.6  # inches: 360 pixels of a page
# Ink on a light page -> on a dark one. Every colour of a chart stands here.
_DARK = {
  '#24292e': '#e2e6ea',  # text
  '#6c757d': '#99a2ab',  # axes
  '#d5d9dd': '#3b424a',  # grid
  '#0072b2': '#45a3e0',
  '#d55e00': '#ee7f3c',
  '#009e73': '#35bd95',
  '#cc79a7': '#dd99be',
  '#e69f00': '#edb238',
  '#56b4e9': '#9ad3f5',
}
_INK, _AXIS, _GRID, *_COLOURS = _DARK
_DASHES = ('-', '--', ':', '-.')
_STYLE: dict[Any, Any] = {  # matplotlib's own type lists every key
  'font.size': 9,
  'axes.titlesize': 9.5,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.titlecolor': _INK,
  'axes.labelcolor': _INK,
  'axes.edgecolor': _AXIS,
  'axes.facecolor': 'none',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.xmargin': 0.02,
  'grid.color': _GRID,
  'grid.linewidth': 0.7,
  'xtick.color': _AXIS,
  'ytick.color': _AXIS,
  'xtick.labelcolor': _INK,
  'ytick.labelcolor': _INK,
  'text.color': _INK,
  'figure.facecolor': 'none',
  'legend.frameon': False,
  'legend.fontsize': 8.5,
  'legend.handlelength': 1.8,
  'legend.columnspacing': 1.2,
  'lines.linewidth': 1.6,
  # The page's own font. It is hardly ever wider than the one measured with.
  'svg.fonttype': 'none',
  'svg.hashsalt': 'dpjax',  # the same bytes for the same chart
}
_FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class Series(NamedTuple):
  """One line of a chart.

  Attributes:
    name: for the legend; '' for none.
    x: (N,).
    y: (N,); NaN leaves a gap.
    number: of its colour and dashes; -1: the ink of the text.
    kind: 'line', 'marked' (with a mark at each point), 'steps' (a value holds
      back to the point before), 'dots' (without a line) or 'faint' (a thin
      dashed line to refer to).
  """

  name: str
  x: Sequence[float]
  y: Sequence[float]
  number: int = 0
  kind: str = 'line'


def _styled(draw):
  """Draws under the report's style, whatever matplotlib's is."""

  @functools.wraps(draw)
  def wrapper(*args, **kwargs):
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
      # A class name in a script that the measuring font lacks; the page's
      # has it, most likely.
      warnings.filterwarnings('ignore', message='Glyph .* missing from')
      return draw(*args, **kwargs)

  return wrapper


@_styled
def render(figure: Figure) -> tuple[str, str, bytes]:
  """The chart as SVG text for a light and for a dark page, and as a PNG.

  The PNG is on white, with 200 pixels an inch.
  """
  # Each drawing would lay the chart out anew, and a little differently.
  backend_agg.FigureCanvasAgg(figure).draw()
  figure.set_layout_engine('none')
  stream = io.StringIO()
  figure.savefig(stream, format='svg', metadata={'Date': None})
  light = stream.getvalue()
  light = light[light.index('<svg') :]
  light = re.sub(r'font-family: [^;"]*', f'font-family: {_FONTS}', light)
  dark = light
  for ink, other in _DARK.items():
    dark = dark.replace(ink, other)
  png = io.BytesIO()
  figure.savefig(png, format='png', dpi=200, facecolor='white')
  return light, dark, png.getvalue()


@_styled
def lines(
  series: Sequence[Series],
  *,
  title: str,
  x: str,
  y: str,
  unit_square: bool = False,
  log: bool | None = False,
  legend: str = '',
) -> Figure:
  """Lines over common axes.

  Args:
    series: what to draw.
    title: above.
    x: title of the axis, with its unit.
    y: likewise.
    unit_square: both axes run from 0 to 1, at one scale.
    log: whether y is logarithmic; None: where its values span far.
    legend: title of the legend.
  """
  rows = 1 + len(series) // 2  # of the legend, about
  square = WIDTH * 0.98 + 0.15 * rows
  figure, axes = _new(square if unit_square else WIDTH * 0.7, title, x, y)
  values = np.concatenate([np.asarray(s.y, float) for s in series])
  values = values[np.isfinite(values)]
  for one in series:
    style = {
      'color': _colour(one.number),
      'linestyle': _DASHES[max(one.number, 0) // len(_COLOURS) % len(_DASHES)],
    }
    if any(other.kind == 'marked' for other in series) and one.kind == 'line':
      style |= {'linewidth': 1.2, 'alpha': 0.65}
    if one.kind == 'marked' or len(one.x) == 1:
      style |= {'marker': 'o', 'markersize': 3.5}
    if one.kind == 'steps':
      style['drawstyle'] = 'steps-post'
    if one.kind == 'dots':
      style |= {'marker': 'o', 'markersize': 6.5, 'linestyle': 'none'}
    if one.kind == 'faint':
      style = {'color': _AXIS, 'linestyle': (0, (3, 3)), 'linewidth': 1}
    axes.plot(one.x, one.y, label=_plain(one.name), **style)
  if unit_square:
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), aspect='equal')
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_locator(ticker.MultipleLocator(0.2))
  elif log or (log is None and _far(values)):
    axes.set_yscale('log')
    _plain_log(axes.yaxis)
  else:
    _room(axes, values)
  _legend(figure, axes, legend)
  return figure


@_styled
def bars(
  groups: Mapping[str, Sequence[int]],
  names: Sequence[str],
  *,
  title: str,
  x: str,
  y: str,
) -> Figure:
  """Counts as horizontal bars, one for each name and group.

  The axis is logarithmic where the counts span far; each bar says its number.

  Args:
    groups: group -> C counts.
    names: C names.
    title: above.
    x: title of the axis of counts.
    y: title of the axis of names.
  """
  counts = np.array(list(groups.values()))  # (G, C)
  height = 1.1 + len(names) * (0.08 + 0.165 * len(groups))
  figure, axes = _new(height, title, x, y)
  thick = 0.86 / len(groups)
  log = _far(counts[counts > 0])
  start = 0.7 if log else 0
  for g, (group, row) in enumerate(groups.items()):
    places = np.arange(len(names)) + thick * (g - (len(groups) - 1) / 2)
    axes.barh(
      places,
      np.maximum(np.array(row, float) - start, 0),
      thick * 0.86,
      left=start,
      color=_colour(g),
      label=_plain(group),
    )
    for place, count in zip(places, row, strict=True):
      axes.annotate(
        f'{count:,}',
        (max(count, start), place),
        xytext=(3, 0),
        textcoords='offset points',
        va='center_baseline',
        fontsize=8,
      )
  most = max(1, counts.max())
  if log:
    axes.set(xscale='log', xlim=(start, most * 3.2))
    _plain_log(axes.xaxis)
  else:
    axes.set_xlim(0, most * 1.16)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes.set_yticks(range(len(names)), [_short(n) for n in names])
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.tick_params(axis='y', length=0)
  axes.grid(axis='y', visible=False)
  _legend(figure, axes, '', columns=len(groups))
  return figure


@_styled
def confusion(
  matrix: np.ndarray, names: Sequence[str], *, title: str
) -> Figure:
  """A confusion matrix: counts, over the share of their row as a colour.

  Args:
    matrix: (C, C) counts; rows are the true classes.
    names: C names.
    title: above.
  """
  matrix = np.asarray(matrix)
  size = len(names)
  totals = matrix.sum(axis=1, keepdims=True)
  shares = matrix / np.maximum(totals, 1)
  figure, axes = _new(
    WIDTH * 0.95, title, 'Predicted class', 'True class (images)'
  )
  written = size <= 10  # beyond, the numbers would not fit
  for row in range(size):
    for column in range(size):
      axes.add_patch(
        patches.Rectangle(
          (column - 0.48, row - 0.48), 0.96, 0.96, facecolor=_COLOURS[0],
          alpha=0.03 + 0.52 * shares[row, column], linewidth=0,
        )
      )  # fmt: skip
      if written:
        cell = f'{matrix[row, column]:,}'
        if totals[row, 0]:
          cell += f'\n{100 * shares[row, column]:.0f} %'
        size_ = 8.5 if size <= 6 else 7
        axes.text(
          column, row, cell, ha='center', va='center', fontsize=size_,
          linespacing=1.25,
        )  # fmt: skip
  short = [_short(name, 12) for name in names]
  long = max(map(len, short)) > 4 or size > 12
  axes.set_xticks(range(size), short, rotation=45 if long else 0,
                  ha='right' if long else 'center')  # fmt: skip
  axes.set_yticks(
    range(size),
    [
      f'{name} ({total:,})'
      for name, total in zip(short, totals[:, 0], strict=True)
    ],
  )
  axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect='equal')
  axes.grid(visible=False)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  return figure


@_styled
def reliability(bins: Sequence[Mapping[str, float]], *, title: str) -> Figure:
  """Share right against probability, over the number of images.

  Args:
    bins: each with 'low', 'high', 'count', and 'confidence' and 'accuracy',
      None where the count is 0.
    title: above.
  """
  figure = Figure(figsize=(WIDTH, WIDTH), layout='constrained')
  top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
  figure.suptitle(
    _short(title, 44), fontsize=9.5, weight='bold', x=0.01, ha='left'
  )
  filled = [one for one in bins if one['count']]
  top.plot([0, 1], [0, 1], color=_AXIS, linestyle=(0, (3, 3)), linewidth=1,
           label='as stated')  # fmt: skip
  top.vlines(
    [one['confidence'] for one in filled],
    [one['confidence'] for one in filled],
    [one['accuracy'] for one in filled],
    color=_colour(1), linewidth=1.2, label='gap',
  )  # fmt: skip
  top.plot(
    [one['confidence'] for one in filled],
    [one['accuracy'] for one in filled],
    'o', markersize=4.5, color=_colour(0), label='bin',
  )  # fmt: skip
  top.set(xlim=(-0.015, 1.015), ylim=(-0.03, 1.03), ylabel='Share correct')
  counts = np.array([one['count'] for one in bins])
  low = np.array([one['low'] for one in bins])
  wide = np.array([one['high'] for one in bins]) - low
  bottom.bar(low, counts, wide * 0.92, align='edge', color=_colour(0))
  bottom.set(xlabel='Probability of the predicted class', ylabel='Images')
  if _far(counts[counts > 0]):
    bottom.set_yscale('log')
    bottom.set_ylim(0.7, counts.max() * 2)
    _plain_log(bottom.yaxis)
  else:
    bottom.yaxis.set_major_locator(ticker.MaxNLocator(3, integer=True))
  figure.align_ylabels()
  _legend(figure, top, '', columns=3)
  return figure


@_styled
def intervals(
  rows: Sequence[str],
  series: Mapping[str, Sequence[tuple[float, float, float] | None]],
  *,
  title: str,
  x: str,
  y: str,
  zero: bool = False,
) -> Figure:
  """Values with their intervals as dots and bars, one row each.

  Args:
    rows: their names.
    series: name -> for each row (value, low, high), or None.
    title: above.
    x: title of the axis of values.
    y: title of the axis of rows.
    zero: whether to mark 0, for differences.
  """
  step = 0.7 / len(series)
  named = [_wrapped(row, 24) for row in rows]
  lines_ = max(name.count('\n') + 1 for name in named)
  height = 1.0 + len(rows) * max(0.08 + 0.16 * lines_, 0.16 * len(series))
  figure, axes = _new(height, '', x, y)
  # From the edge: the names of the rows leave little room over the axes.
  figure.suptitle(
    _wrapped(title, 40), fontsize=9.5, weight='bold', x=0.01, ha='left'
  )
  if zero:
    axes.axvline(0, color=_AXIS, linewidth=1)
  for s, (name, values) in enumerate(series.items()):
    there = [i for i, value in enumerate(values) if value is not None]
    places = np.array(there) + step * (s - (len(series) - 1) / 2)
    value, low, high = np.array(
      [values[i] for i in there], float
    ).reshape(-1, 3).T  # fmt: skip
    # The value of the sample may lie outside of its bootstrap interval.
    axes.hlines(places, low, high, color=_colour(s), linewidth=1.6)
    axes.plot(value, places, 'osD^v<'[s % 6], markersize=5, color=_colour(s),
              label=_plain(name))  # fmt: skip
  axes.set_yticks(range(len(rows)), named, linespacing=0.95)
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
  axes.tick_params(axis='y', length=0)
  axes.grid(axis='y', visible=False)
  if len(series) > 1:
    _legend(figure, axes, '')
  return figure


def _new(height, title, x, y):
  figure = Figure(figsize=(WIDTH, height), layout='constrained')
  axes = figure.subplots()
  axes.set(title=_short(title, 44), xlabel=_plain(x), ylabel=_plain(y))
  return figure, axes


def _legend(figure, axes, title, columns=None):
  """Below the axes, where it covers nothing."""
  handles, names = axes.get_legend_handles_labels()
  shown = [(h, n) for h, n in zip(handles, names, strict=True) if n]
  if not shown:
    return
  handles, names = zip(*shown, strict=True)
  longest = max(map(len, names))
  most = next(n for n in (4, 3, 2, 1) if n == 1 or n * (longest + 6) < 66)
  figure.legend(
    handles,
    names,
    title=title or None,
    title_fontsize=8.5,
    loc='outside lower center',
    ncols=min(columns or most, most, len(names)),
  )


def _far(values):
  """Whether positive values span so far that a logarithmic axis is due."""
  values = np.asarray(values, float)
  return bool(values.size) and values.min() > 0 and (
    np.quantile(values, 0.98) / np.quantile(values, 0.02) > 20
  )  # fmt: skip


def _room(axes, values):
  """Scores (0 to 1) and losses keep clear of the frame."""
  if values.size and np.ptp(values) == 0:
    axes.set_ylim(values[0] - 0.05, values[0] + 0.05)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(5))


def _plain_log(axis):
  """1, 10, 100 and .1, not powers of ten."""
  axis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f'{v:,.10g}'))
  axis.set_minor_formatter(ticker.NullFormatter())


def _colour(number):
  return _INK if number < 0 else _COLOURS[number % len(_COLOURS)]


def _plain(text):
  """`text` as it is: a dollar would begin a formula, a line break a line.

  A legend leaves out what begins with an underscore.
  """
  text = ' '.join(str(text).split()).replace('$', r'\$')
  return f'\u200b{text}' if text.startswith('_') else text


def _short(text, length=22):
  text = str(text)
  kept = text if len(text) <= length else f'{text[: length - 3]}...'
  return _plain(kept)


def _wrapped(text, length):
  """`text` on two lines at most."""
  found = textwrap.wrap(
    ' '.join(str(text).split()), length, max_lines=2, placeholder='...'
  )
  return '\n'.join(map(_plain, found))
