"""The page of the report: sections of text, tables and pictures, in one file.

Whatever comes from data is escaped here, in one place: a text is escaped unless
it is `Html`.
"""

import base64
import html
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dpjax.report import figures, overlay

_STYLES = pathlib.Path(__file__).with_name('report.css')
# Should anything ask for the network, the browser refuses.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Html(str):
  """A text that is HTML already."""


class Missing(Exception):
  """A section's data are not there; the text says in a line why."""


class Fact(NamedTuple):
  """A large figure at the top of the page.

  Attributes:
    what: its name.
    value: the figure.
    interval: below it, or ''.
    note: below that: what it is to be held against, or ''.
  """

  what: str
  value: str
  interval: str = ''
  note: str = ''


def escape(value: object) -> Html:
  """`value` as HTML."""
  return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: Iterable[object], between: str = '') -> Html:
  """The parts, escaped where they are not HTML."""
  return Html(between.join(map(escape, parts)))


def score(
  value: float | None, interval: Sequence[float] | None = None, sign: str = ''
) -> Html:
  """A score to three decimals, its interval in brackets; '-' for None."""
  if value is None:
    return Html('-')
  text = f'{value:{sign}.3f}'
  if interval is None:
    return Html(text)
  low, high = (f'{end:{sign}.3f}' for end in interval)
  return Html(f'{text} <span class="interval">[{low}, {high}]</span>')


def capital(text: str) -> str:
  """`text` with a large first letter."""
  return text[:1].upper() + text[1:]


class Section:
  """One section while it is written.

  Attributes:
    key: its name in report.json and in the page's links.
    title: for people.
    numbers: of report.json.
    files: name -> PNG, for the folder beside the page.
    missing: why it is left out, or None.
  """

  def __init__(self, key: str, title: str):
    self.key, self.title = key, title
    self.numbers: dict[str, Any] = {}
    self.files: dict[str, bytes] = {}
    self.missing: str | None = None
    self._html: list[str] = []

  def leave_out(self, reason: str) -> None:
    """Forgets what was written; the reason stands there in its place."""
    self.missing = reason
    self.numbers, self.files, self._html = {}, {}, []

  def say(self, text: str, kind: str = '') -> None:
    """A paragraph; kind 'note' is a smaller one."""
    kind = f' class="{kind}"' if kind else ''
    self._html.append(f'<p{kind}>{escape(text)}</p>')

  def heading(self, text: str) -> None:
    """A heading below the section's."""
    self._html.append(f'<h3>{escape(text)}</h3>')

  def table(
    self,
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    caption: str,
    kind: str = 'numbers',
  ) -> None:
    """A table whose first column names the rows; it scrolls in its own box.

    Args:
      header: of all columns.
      rows: a name and the cells.
      caption: above.
      kind: of the cells, 'numbers' (to the right) or 'words'.
    """
    head = join(Html(f'<th scope="col">{escape(cell)}</th>') for cell in header)
    body = []
    for name, *cells in rows:
      row = join(Html(f'<td>{escape(cell)}</td>') for cell in cells)
      body.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>')
    # The box takes the focus, so that the keyboard scrolls it too.
    self._html.append(
      f'<div class="table {kind}" tabindex="0" role="region"'
      f' aria-label="{escape(caption)}"><table><caption>{escape(caption)}'
      f'</caption><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody>'
      '</table></div>'
    )

  def charts(self, charts: Mapping[str, tuple[Figure, str]]) -> None:
    """Charts side by side: file name -> (chart, what it shows in words)."""
    parts = []
    for name, (figure, alt) in charts.items():
      light, dark, png = figures.render(figure)
      self.files[f'{self.key}-{name}.png'] = png
      light, dark = (_uri(one.encode(), 'svg+xml') for one in (light, dark))
      parts.append(
        '<figure><picture><source media="(prefers-color-scheme: dark)"'
        f' srcset="{dark}"><img src="{light}" alt="{escape(alt)}"></picture>'
        '</figure>'
      )
    self._html.append(f'<div class="charts">{"".join(parts)}</div>')

  def tiles(self, tiles: Mapping[str, tuple[np.ndarray, str, str]]) -> None:
    """Small pictures side by side: file name -> (pixels, caption, alt text).

    Args:
      tiles: pixels are (H, W, 3) uint8, RGB.
    """
    parts = []
    for name, (pixels, caption, alt) in tiles.items():
      self.files[f'{self.key}-{name}.png'] = overlay.png(pixels)
      parts.append(_picture(pixels, caption, alt))
    self._html.append(f'<div class="tiles">{"".join(parts)}</div>')

  def row(
    self,
    name: str,
    pixels: np.ndarray,
    side: int,
    titles: Sequence[str],
    caption: str,
  ) -> None:
    """A row of overlay.draw; on the page its panels may go below each other.

    Args:
      name: of its file.
      pixels: (H, W, 3) uint8, RGB.
      side: of its panels.
      titles: of its panels; of the last of them, if the first are not to be
        shown on the page.
      caption: above them.
    """
    self.files[f'{self.key}-{name}.png'] = overlay.png(pixels)
    parts = [
      _picture(panel, title, f'{title}. {caption}')
      for panel, title in zip(
        cut(pixels, side)[-len(titles) :], titles, strict=True
      )
    ]
    self._html.append(
      f'<h4>{escape(caption)}</h4><div class="tiles row">{"".join(parts)}</div>'
    )

  def render(self, number: int) -> str:
    """The section as HTML."""
    body = ''.join(self._html)
    if self.missing is not None:
      body = f'<p class="missing">Left out: {escape(self.missing)}.</p>'
    return (
      f'<section id="{self.key}"><h2><span>{number}</span>'
      f'{escape(self.title)}</h2>{body}</section>'
    )


def cut(row: np.ndarray, side: int) -> list[np.ndarray]:
  """The panels (side, side, 3) of a row of overlay.draw."""
  step = side + overlay.GAP
  top = overlay.TITLE
  return [
    row[top : top + side, left : left + side]
    for left in range(0, row.shape[1], step)
  ]


def render(
  title: str,
  lead: str,
  warnings: Sequence[str],
  data: str,
  facts: Sequence[Fact],
  whose: str,
  sections: Sequence[Section],
) -> str:
  """The whole page.

  Args:
    title: of the page.
    lead: a line below it.
    warnings: what nobody may overlook, a line each.
    data: what the facts were counted on, or ''.
    facts: large figures at the top.
    whose: the run that they are of; '' where there is one only.
    sections: in order.
  """
  cells = ''.join(
    f'<div><dt>{escape(one.what)}</dt><dd>{escape(one.value)}'
    + join(
      Html(f'<span class="{kind}">{escape(text)}</span>')
      for kind, text in (('interval', one.interval), ('against', one.note))
      if text
    )
    + '</dd></div>'
    for one in facts
  )
  large = f'<dl class="facts">{cells}</dl>' if cells else ''
  above = ''.join(
    f'<p class="{kind}">{escape(text)}</p>'
    for kind, text in (
      *(('warning', one) for one in warnings),
      ('whose', whose if cells else ''),
      ('data', data),
    )
    if text
  )
  links = ''.join(
    f'<li><a href="#{one.key}">{escape(one.title)}</a>'
    + ('' if one.missing is None else ' <small>(left out)</small>')
    + '</li>'
    for one in sections
  )
  body = ''.join(one.render(i) for i, one in enumerate(sections, start=1))
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
    f'<style>{_STYLES.read_text(encoding="utf-8")}</style></head><body>'
    f'<header><h1>{escape(title)}</h1><p>{escape(lead)}</p>{above}{large}'
    f'<nav aria-label="Sections"><ol>{links}</ol></nav></header>'
    f'<main>{body}</main></body></html>\n'
  )


def _picture(pixels, caption, alt):
  height, width = pixels.shape[:2]
  uri = _uri(overlay.png(pixels), 'png')
  return (
    f'<figure><img src="{uri}" alt="{escape(alt)}" width="{width}"'
    f' height="{height}"><figcaption>{escape(caption)}</figcaption></figure>'
  )


def _uri(data, kind):
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
