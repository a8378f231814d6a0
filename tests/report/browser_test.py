"""The report in a browser: on a phone and a desktop, in light and dark."""

import importlib.util
import shutil

import pytest

from dpjax.report import report
from tests import fakes
from tests.report import workdirs

CHROMIUM = shutil.which('chromium')
pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('playwright') is None or CHROMIUM is None,
  reason='needs playwright and chromium',
)
VIEWS = [
  (width, scheme) for width in (390, 1280) for scheme in ('light', 'dark')
]


@pytest.fixture(scope='module')
def page_file(tmp_path_factory):
  """The report of two recipes with a class name that is long."""
  data = workdirs.make_store(test=40)
  root = tmp_path_factory.mktemp('reports')
  names = ['0', 'a<b & c', 'pneumonia' * 12]
  workdirs.write(root / 'mine', data, seed=1, names=names)
  workdirs.write(root / ('plain' * 20), data, seed=2, names=names)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, '_open', lambda path: data)
    return report.write(
      [root / 'mine', root / ('plain' * 20)],
      fakes.make_config(evaluate__resamples=20),
    )


@pytest.fixture(scope='module')
def seen(page_file):
  """What each view found: {(width, scheme): facts}; one browser for all."""
  from playwright import sync_api

  found = {}
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu']
    )
    for width, scheme in VIEWS:
      context = browser.new_context(
        viewport={'width': width, 'height': 844}, color_scheme=scheme
      )
      page = context.new_page()
      said, asked = [], []
      page.on('console', lambda message, to=said: to.append(message.text))
      page.on('pageerror', lambda error, to=said: to.append(str(error)))
      page.on('request', lambda request, to=asked: to.append(request.url))
      page.goto(page_file.as_uri())
      page.evaluate('Promise.all([...document.images].map(i => i.decode()))')
      found[width, scheme] = page.evaluate(
        """() => ({
          scroll: document.documentElement.scrollWidth,
          width: innerWidth,
          images: [...document.images].map(
            i => [i.naturalWidth, i.alt, i.getBoundingClientRect().width]),
          shown: [...document.querySelectorAll('picture img')].map(
            i => i.currentSrc),
          page: getComputedStyle(document.body).backgroundColor,
          small: [...document.querySelectorAll('p, td, th, li, dd, dt')].map(
            e => parseFloat(getComputedStyle(e).fontSize)),
        })"""
      ) | {'said': said, 'asked': asked}
      context.close()
    browser.close()
  return found


@pytest.fixture(params=VIEWS, ids=lambda view: f'{view[0]}-{view[1]}')
def view(request, seen):
  return seen[request.param]


def test_the_browser_has_nothing_to_say(view):
  assert view['said'] == []


def test_nothing_but_the_file_itself_is_asked_for(view, page_file):
  others = [url for url in view['asked'] if not url.startswith('data:')]
  assert others == [page_file.as_uri()]


def test_the_page_does_not_scroll_sideways(view):
  assert view['scroll'] <= view['width']


def test_every_image_has_loaded_and_says_what_it_shows(view):
  assert len(view['images']) > 40
  for natural, alt, width in view['images']:
    assert natural > 0 and alt.strip()
    assert 100 < width <= view['width']


def test_text_is_large_enough_to_read(view):
  assert min(view['small']) >= 12  # pixels


@pytest.mark.parametrize('width', [390, 1280])
def test_dark_pages_show_other_charts_on_another_ground(width, seen):
  light, dark = seen[width, 'light'], seen[width, 'dark']
  assert light['page'] != dark['page']
  assert len(light['shown']) == len(dark['shown']) > 20
  assert not set(light['shown']) & set(dark['shown'])
