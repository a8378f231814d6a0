"""The page of predict in a browser: it opens from disk, sorts and filters."""

import csv
import importlib.util
import shutil

import cv2
import numpy as np
import pytest

from dpjax.serving import page, table

CHROMIUM = shutil.which('chromium')
pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('playwright') is None or CHROMIUM is None,
  reason='needs playwright and chromium',
)
COUNT = 250
CLASSES = ['0', 'a<b & "c"', 'pneumonia']
EVIL = '<img src=x onerror=alert(1)>.png'


@pytest.fixture(scope='module')
def output(tmp_path_factory):
  """A folder as predict leaves it, with names that are no HTML."""
  folder = tmp_path_factory.mktemp('out')
  rng = np.random.default_rng(0)
  p = rng.dirichlet([1, 1, 1], COUNT)
  with open(folder / table.PREDICTIONS, 'w', newline='') as file:
    rows = csv.writer(file)
    rows.writerow(table.header(CLASSES))
    for i in range(COUNT):
      lesion = 1 - p[i, 0]
      rows.writerow(
        [EVIL if i == 7 else f'in/{i}.png', CLASSES[p[i].argmax()], *p[i],
         lesion, int(lesion > 0.5), '', 'aspect' if i < 3 else '']
      )  # fmt: skip
  (folder / 'overlays').mkdir()
  cv2.imwrite(str(folder / 'overlays' / '000008.png'), np.zeros((50, 400)))
  record = {
    'input': '/in', 'runs': [{'workdir': '/runs/mine', 'step': 3}],
    'class_names': CLASSES, 'threshold': 0.5, 'notes': ['a <note>'],
    'unlike_training': {'false_alarms': 0.02}, 'images': COUNT,
    'positive': 100, 'unlike': 3, 'faults': 1,
  }  # fmt: skip
  page.write(folder, record, {EVIL: 'overlays/000008.png'})
  return folder


@pytest.fixture(scope='module')
def tab(output):
  from playwright import sync_api

  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu']
    )
    opened = browser.new_page(viewport={'width': 390, 'height': 844})
    opened.said = []
    opened.on('console', lambda message: opened.said.append(message.text))
    opened.on('pageerror', lambda error: opened.said.append(str(error)))
    opened.goto((output / page.NAME).as_uri())
    yield opened
    browser.close()


@pytest.fixture(autouse=True)
def fresh(tab):
  tab.reload()


def column(tab, title):
  heads = tab.locator('#head th').all_text_contents()
  at = next(i for i, head in enumerate(heads) if head.startswith(title))
  return tab.locator(f'#body tr td:nth-child({at + 1})').all_text_contents()


def test_the_most_suspicious_come_first_a_hundred_at_a_time(tab, output):
  shown = [float(p) for p in column(tab, 'p any lesion')]
  every = sorted(
    (float(r['p_any_lesion']) for r in table.read(output / table.PREDICTIONS)),
    reverse=True,
  )
  np.testing.assert_allclose(shown, every[:100], atol=6e-4)
  tab.click('#next')
  shown = [float(p) for p in column(tab, 'p any lesion')]
  np.testing.assert_allclose(shown, every[100:200], atol=6e-4)
  assert tab.text_content('#page') == 'page 2 of 3'


def test_a_click_on_a_head_sorts_by_it_and_another_turns_it_round(tab):
  tab.click('#head button:has-text("file")')
  assert column(tab, 'file')[1:4] == ['in/0.png', 'in/1.png', 'in/2.png']
  tab.click('#head button:has-text("file")')
  assert column(tab, 'file')[0] == f'in/{COUNT - 1}.png'


def test_filters_leave_what_fits_all_of_them(tab):
  tab.check('#unlike')
  assert sorted(column(tab, 'file')) == ['in/0.png', 'in/1.png', 'in/2.png']
  tab.uncheck('#unlike')
  tab.select_option('#class', CLASSES[1])
  assert {*column(tab, 'prediction')} == {CLASSES[1]}
  tab.select_option('#class', '')
  tab.fill('#least', '0.95')
  shown = [float(p) for p in column(tab, 'p any lesion')]
  assert shown and min(shown) >= 0.95
  tab.fill('#least', '0')
  tab.fill('#file', '249')
  assert column(tab, 'file') == ['in/249.png']
  assert tab.text_content('#count').startswith('1 of 250')


def test_a_name_opens_its_picture_and_is_no_html(tab):
  tab.check('#drawn')
  assert column(tab, 'file') == [EVIL]
  tab.click('#body button')
  image = tab.locator('#body img')
  assert image.evaluate('i => i.decode().then(() => i.naturalWidth)') == 400
  assert EVIL in image.get_attribute('alt')


def test_the_browser_has_nothing_to_say_and_the_page_keeps_its_width(tab):
  assert tab.said == []
  assert tab.evaluate('document.documentElement.scrollWidth <= innerWidth')
