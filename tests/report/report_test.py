"""The report: every section, its numbers, and what is left out and why."""

import csv
import dataclasses
import html
import html.parser
import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from dpjax import prepare
from dpjax.errors import UserError
from dpjax.metrics import predictions, score_table
from dpjax.report import figures, overlay, report
from tests import children, fakes
from tests.report import workdirs

STORE = workdirs.make_store(test=60)
CONFIG = fakes.make_config(evaluate__resamples=20)
PNG = b'\x89PNG\r\n\x1a\n'  # begins such a file
DRAWN = ('<svg/>', '<svg/>', PNG)
KEYS = ('run', 'classes', 'counts', 'masks', 'training', 'decisions',
        'calibration', 'scores', 'subgroups', 'localisation', 'comparison',
        'speed')  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  """A small set in memory, and charts that are built but not drawn."""
  monkeypatch.setattr(report, '_open', lambda path: STORE)
  monkeypatch.setattr(figures, 'render', lambda chart: DRAWN)


@pytest.fixture
def only(monkeypatch):
  """only(KEY, ...): the report has these sections alone."""

  def choose(*keys):
    chosen = {key: report.SECTIONS[key] for key in keys}
    monkeypatch.setattr(report, 'SECTIONS', chosen)

  return choose


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Two recipes: their folders, to be copied."""
  root = tmp_path_factory.mktemp('made')
  workdirs.write(root / 'mine', STORE, seed=1)
  workdirs.write(root / 'plain', STORE, seed=2,
                 changes={'mgacr__features': False}.items())  # fmt: skip
  return root


@pytest.fixture
def folders(made, tmp_path):
  shutil.copytree(made, tmp_path / 'runs')
  return [tmp_path / 'runs' / name for name in ('mine', 'plain')]


@pytest.fixture(scope='module')
def both(made, tmp_path_factory):
  """The report of two runs: (folder, page, report.json's sections)."""
  root = tmp_path_factory.mktemp('both')
  shutil.copytree(made, root / 'runs')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, '_open', lambda path: STORE)
    patch.setattr(figures, 'render', lambda chart: DRAWN)
    path = report.write([root / 'runs/mine', root / 'runs/plain'], CONFIG)
  return path.parent, path.read_text(), read(path.parent)


def read(folder):
  return json.loads((folder / 'report.json').read_text())['sections']


def left_out(sections):
  return {k: s['left_out'] for k, s in sections.items() if s['left_out']}


class Page(html.parser.HTMLParser):
  """What a browser would make of the page, as far as the tests ask."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.texts, self.open = [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in ('meta', 'link', 'img', 'source'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, text):
    self.texts.append(text)

  def attributes(self, tag, name):
    return [found.get(name) for kind, found in self.tags if kind == tag]


def test_two_whole_runs_leave_no_section_out(both):
  _, _, sections = both
  assert tuple(sections) == KEYS
  assert left_out(sections) == {}


def test_the_page_is_one_file_of_closed_tags_without_scripts_or_addresses(both):
  _, text, _ = both
  page = Page(text)
  assert page.open == []
  assert 'script' not in [tag for tag, _ in page.tags]
  for tag, name in (('img', 'src'), ('source', 'srcset'), ('link', 'href')):
    assert all(uri.startswith('data:') for uri in page.attributes(tag, name))
  away = [a for a in page.attributes('a', 'href') if not a.startswith('#')]
  assert away == ['MODEL_CARD.md']  # Beside it.
  assert 'url(' not in text and '@import' not in text


def test_every_picture_says_in_words_what_it_shows(both):
  alts = Page(both[1]).attributes('img', 'alt')
  assert len(alts) > 40 and all(alt.strip() for alt in alts)


def test_the_links_at_the_top_lead_to_the_sections(both):
  page = Page(both[1])
  links = [href[1:] for href in page.attributes('a', 'href') if href[0] == '#']
  ids = [id for id in page.attributes('section', 'id') if id]
  assert links == ids == list(KEYS)


def test_each_figure_is_a_png_beside_the_page_too(both):
  folder, _, sections = both
  named = [name for section in sections.values() for name in section['figures']]
  assert sorted(named) == sorted(p.name for p in (folder / 'report').iterdir())
  assert len(named) == len(set(named)) > 25
  for name in named:
    assert (folder / 'report' / name).read_bytes()[:8] == PNG


def test_it_goes_into_the_first_workdir_and_touches_no_other(folders, only):
  only('run', 'counts')
  before = sorted(folders[1].rglob('*'))
  path = report.write(folders, CONFIG)
  assert path == folders[0] / 'report.html'
  assert sorted(folders[1].rglob('*')) == before
  assert not list(folders[0].glob('*.tmp'))


def test_the_same_runs_give_the_same_bytes(folders, only):
  only('classes', 'decisions', 'comparison')
  first = report.write(folders[:1], CONFIG).read_bytes()
  assert report.write(folders[:1], CONFIG).read_bytes() == first


def test_figures_of_an_earlier_report_go_and_other_files_stay(folders, only):
  only('decisions')
  report.write(folders, CONFIG)
  (folders[0] / 'report' / 'mine.png').write_text('my own')
  (folders[0] / 'retrain/predictions.csv').unlink()
  report.write(folders[:1], CONFIG)
  named = [n for s in read(folders[0]).values() for n in s['figures']]
  there = {p.name for p in (folders[0] / 'report').iterdir()}
  assert there == {*named, 'mine.png'}


def test_scores_stand_there_to_three_decimals_with_their_intervals(both):
  folder, text, sections = both
  result = json.loads((folder / 'retrain/evaluation.json').read_text())
  assert sections['scores']['mine']['scores'] == result['scores']
  assert sections['scores']['mine']['intervals'] == result['intervals']
  table = text[text.index('id="scores"') : text.index('id="subgroups"')]
  for name, value in result['scores'].items():
    if value is None:
      continue
    low, high = result['intervals'][name]
    assert (
      f'{value:.3f} <span class="interval">[{low:.3f}, {high:.3f}]</span>'
      in table
    )
  assert 'balanced accuracy, classes 0 to 2' not in table.lower()  # undefined


def test_the_top_says_on_what_the_first_run_was_scored(both):
  folder, text, _ = both
  top = ' '.join(Page(text[: text.index('<main>')]).texts)
  lesions = int((STORE.split('test').labels > 0).sum())
  assert f'Scored on 60 radiographs, {lesions} of them with a lesion' in top
  assert 'memory, test split' in top
  assert 'computed phantoms' in top
  assert 'at threshold 0.410, chosen on validation' in top
  maps = json.loads((folder / 'retrain/evaluation.json').read_text())[
    'localisation'
  ]
  points = {n: one['scores']['pointing_game'] for n, one in maps.items()}
  best = max(('random', 'centre', 'prior'), key=points.get)
  assert top.count(f'best baseline: {best}, {points[best]:.3f}') == 2
  stage = max(workdirs.STAGES, key=lambda s: points[f'att_pos/{s}'])
  assert f'Pointing game, map+, {stage} (best of 2 stages)' in top
  assert f'{points[f"att_pos/{stage}"]:.3f}' in top


def test_only_phantoms_are_called_phantoms(made, tmp_path, monkeypatch, only):
  only('counts')
  monkeypatch.setitem(STORE.info, 'name', 'rsna')
  shutil.copytree(made, tmp_path / 'runs')
  file = tmp_path / 'runs/mine/retrain/config.json'
  record = json.loads(file.read_text())
  record['data']['layout'] = 'rsna'
  file.write_text(json.dumps(record))
  text = report.write([tmp_path / 'runs/mine'], CONFIG).read_text()
  assert 'phantoms' not in text


def test_the_accuracy_stands_beside_that_of_the_commonest_class(both):
  text = both[1]
  table = text[text.index('id="scores"') : text.index('id="subgroups"')]
  names = re.findall(r'<th scope="row">([^<]*)</th>', table)
  assert names[:2] == ['Accuracy', 'Accuracy of always the commonest class']


def test_scores_are_called_as_in_the_printed_table(both):
  text = ' '.join(Page(both[1]).texts)
  for name, title in score_table.SUMMARY.items():
    if name != 'balanced_accuracy_0_2':  # undefined for three classes
      assert f'{title.long[0].upper()}{title.long[1:]}' in text
  assert 'NLL' not in text
  assert 'prior: mean lesion mask of training' in text


def test_grad_cam_is_said_to_be_of_what_was_used(both, made, tmp_path, only):
  text = ' '.join(Page(both[1]).texts)
  assert 'Grad-CAM of the logit of the true class, at stage2.' in text
  only('localisation')
  file = shutil.copytree(made, tmp_path / 'runs') / 'mine/retrain'
  result = json.loads((file / 'evaluation.json').read_text())
  del result['cam_target'], result['cam_stage']  # as of an earlier version
  (file / 'evaluation.json').write_text(json.dumps(result))
  text = report.write([tmp_path / 'runs/mine'], CONFIG).read_text()
  assert 'id="localisation"' in text and 'Grad-CAM of' not in text


def test_a_damaged_image_costs_its_section_alone(folders, monkeypatch, only):
  only('classes', 'masks', 'scores', 'localisation')

  def damaged(self, indices):
    raise UserError('memory: an image cannot be read; prepare it again')

  monkeypatch.setattr(type(STORE.split('test')), 'images', damaged)
  text = report.write(folders[:1], CONFIG).read_text()
  out = left_out(read(folders[0]))
  assert set(out) == {'classes', 'masks'}
  assert all('cannot be read' in reason for reason in out.values())
  assert 'None: memory: an image cannot be read' in text


def test_an_error_of_ours_is_not_blamed_on_the_data(folders, monkeypatch):
  def broken(section, report_data):
    raise KeyError('ours')

  monkeypatch.setattr(report, 'SECTIONS', {'scores': ('Scores', broken)})
  with pytest.raises(KeyError, match='ours'):
    report.write(folders, CONFIG)


def test_the_config_fields_that_differ_are_listed(both):
  differences = both[2]['run']['differences']
  assert differences['mgacr.features'] == [True, False]
  # Not where they start: a stage I does not read MGACR, so theirs are alike.
  assert set(differences) == {'mgacr.features'}


def test_what_training_left_out_is_not_said_to_be_taught(both, folders, only):
  assert both[2]['run']['runs']['mine']['MGACR'] == 'attention, features'
  assert both[2]['run']['runs']['plain']['MGACR'] == 'attention'
  only('run', 'masks')
  log = folders[0] / 'retrain/metrics.jsonl'
  terms = 'loss/att_pos', 'loss/att_neg', 'loss/feat'
  log.write_text(
    ''.join(
      json.dumps({k: v for k, v in json.loads(line).items() if k not in terms})
      + '\n'
      for line in log.read_text().splitlines()
    )
  )
  report.write(folders[:1], CONFIG)
  told = read(folders[0])['run']['runs']['mine']['MGACR']
  assert told == 'none (no boxes to teach it, or weights of 0)'
  assert f'- MGACR: {told}' in (folders[0] / 'MODEL_CARD.md').read_text()
  assert 'no run was trained with masks' in left_out(read(folders[0]))['masks']


def test_a_method_without_a_network_has_no_facts_of_one(folders, only):
  only('run', 'masks')
  knn = folders[0] / 'retrain'
  record = json.loads((knn / 'config.json').read_text())
  record['stage'], record['init']['backbone'] = 'classical', None
  (knn / 'config.json').write_text(json.dumps(record))
  result = json.loads((knn / 'evaluation.json').read_text())
  result |= {'checkpoint': None, 'step': None}
  (knn / 'evaluation.json').write_text(json.dumps(result))
  report.write([knn], CONFIG)
  facts = read(knn)['run']['runs']['mine']
  assert set(facts) == {'Seed', 'Data set', 'Classes', 'Scored', 'Evaluated on',
                        'notes'}  # fmt: skip
  assert 'no run was trained with masks' in left_out(read(knn))['masks']
  assert not (knn / 'MODEL_CARD.md').exists()


def test_the_counts_are_those_of_the_set(both):
  for name, counts in both[2]['counts']['counts'].items():
    labels = STORE.split(name).labels.tolist()
    assert counts == [labels.count(c) for c in range(3)]


def test_one_image_of_each_class_is_drawn_by_the_seed(both, folders, only):
  only('classes')
  chosen = both[2]['classes']['chosen']
  split = STORE.split('test')
  rows = {str(id): row for row, id in enumerate(split.ids)}
  assert [split.labels[rows[c['id']]] for c in chosen.values()] == [0, 1, 2]
  others = set()
  for seed in range(3):
    report.write(folders[:1], fakes.make_config(evaluate__seed=seed))
    others.add(str(read(folders[0])['classes']['chosen']))
  assert len(others) == 3


def test_the_masks_cover_the_boxes_of_their_image(both):
  masks = both[2]['masks']
  split = STORE.split('train')
  row = split.ids.tolist().index(masks['id'])
  points = (np.arange(480) + 0.5) / 480
  covered = np.zeros((480, 480), bool)
  for x0, y0, x1, y1 in split.boxes[row, : split.num_boxes[row]]:
    covered |= np.outer((points > y0) & (points < y1),
                        (points > x0) & (points < x1))  # fmt: skip
  assert masks['sides'] == {'stage1': 12, 'stage2': 6}
  for share in masks['covered'].values():
    assert share == pytest.approx(covered.mean(), abs=0.015)


def test_a_curve_has_the_area_that_its_legend_says(both):
  folder, text, sections = both
  ids, labels, probabilities, _ = predictions.read_predictions(
    folder / 'retrain/predictions.csv'
  )
  del ids
  numbers = sections['decisions']['mine']
  for name, positive, score in (
    ('1', labels == 1, probabilities[:, 1]),
    ('any lesion', labels > 0, 1 - probabilities[:, 0]),
  ):
    pairs = np.subtract.outer(score[positive], score[~positive])
    area = (pairs > 0).mean() + (pairs == 0).mean() / 2
    roc, pr = numbers['roc'][name], numbers['pr'][name]
    assert roc['area'] == pytest.approx(area)
    assert np.trapezoid(roc['y'], roc['x']) == pytest.approx(area, abs=1e-4)
    # Each positive in turn: the share of positives down to it.
    precisions = [(positive & (score >= s)).sum() / (score >= s).sum()
                  for s in score[positive]]  # fmt: skip
    assert pr['area'] == pytest.approx(np.mean(precisions))
    steps = -np.diff(pr['x']) * np.array(pr['y'])[:-1]
    assert steps.sum() == pytest.approx(pr['area'], abs=1e-4)
    assert f'{name}: {area:.3f}' in text


def test_a_test_split_of_one_class_has_no_curves_and_the_page_says_so(
  tmp_path, monkeypatch, only
):
  only('decisions', 'calibration', 'scores')
  test = STORE.split('test')
  alone = dataclasses.replace(test, labels=np.ones_like(test.labels))
  data = dataclasses.replace(STORE, splits={**STORE.splits, 'test': alone})
  monkeypatch.setattr(report, '_open', lambda path: data)
  workdirs.write(tmp_path / 'run', data)
  text = report.write([tmp_path / 'run'], CONFIG).read_text()
  section = read(tmp_path / 'run')['decisions']
  assert section['figures'] == ['decisions-confusion-0.png']
  assert 'No curves: all images scored are of the class 1' in text
  assert section['run']['roc'] == {} and not left_out(read(tmp_path / 'run'))


def test_a_class_without_images_in_the_test_split_is_named(
  tmp_path, monkeypatch, only
):
  only('decisions')
  test = STORE.split('test')
  two = dataclasses.replace(test, labels=test.labels.clip(0, 1))
  data = dataclasses.replace(STORE, splits={**STORE.splits, 'test': two})
  monkeypatch.setattr(report, '_open', lambda path: data)
  workdirs.write(tmp_path / 'run', data)
  text = report.write([tmp_path / 'run'], CONFIG).read_text()
  section = read(tmp_path / 'run')['decisions']
  assert set(section['run']['roc']) == {'0', '1', 'any lesion'}
  assert 'No curve, as no image is of it: 2.' in text


def test_the_dot_on_the_roc_is_the_threshold(both):
  folder, text, sections = both
  _, labels, probabilities, _ = predictions.read_predictions(
    folder / 'retrain/predictions.csv'
  )
  pairs = [(label > 0, 1 - p[0] >= 0.41)
           for label, p in zip(labels, probabilities, strict=True)]  # fmt: skip
  called = {
    truth: np.mean([said for is_lesion, said in pairs if is_lesion == truth])
    for truth in (False, True)
  }
  roc = sections['decisions']['mine']['roc']['any lesion']
  assert roc['at_threshold'] == pytest.approx([called[False], called[True]])
  assert 'any lesion at 0.410' in text
  # It lies on the curve.
  corners = np.stack([roc['x'], roc['y']], axis=1)
  share = np.linspace(0, 1, 501)[:, None, None]
  curve = (1 - share) * corners[:-1] + share * corners[1:]
  away = np.linalg.norm(curve - roc['at_threshold'], axis=-1)
  assert away.min() < 2e-3


def test_the_training_curves_are_the_log(both):
  folder, _, sections = both
  lines = (folder / 'retrain/metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  curves = sections['training']['stage2']
  assert {'loss', 'loss/att_pos', 'loss/att_neg', 'loss/feat',
          'loss/classification', 'macro_f1'} <= set(curves)  # fmt: skip
  for split in ('train', 'validation'):
    own = [line for line in lines if line['split'] == split]
    assert curves['loss']['mine'][split] == {
      'epoch': [line['epoch'] for line in own],
      'value': [line['loss'] for line in own],
    }
  assert set(sections['training']['stage1']) == {
    'loss', 'loss/contrast', 'contrastive_accuracy', 'gradient_norm'
  }  # fmt: skip


def test_a_long_log_is_averaged_and_keeps_its_mean(folders, only):
  only('training')
  log = folders[0] / 'retrain/metrics.jsonl'
  values = np.random.default_rng(0).normal(size=1200)
  log.write_text(
    ''.join(
      json.dumps({'step': i, 'split': 'train', 'epoch': i, 'loss': v}) + '\n'
      for i, v in enumerate(values)
    )
  )
  report.write(folders[:1], CONFIG)
  curve = read(folders[0])['training']['stage2']['loss']['mine']['train']
  np.testing.assert_allclose(curve['value'], values.reshape(300, 4).mean(1))


def test_the_gallery_shows_as_many_hits_as_misses(both):
  folder, text, sections = both
  overlays = sections['localisation']['overlays']
  assert [one['hit'] for one in overlays] == [True] * 4 + [False] * 4
  with np.load(folder / 'retrain/maps.npz') as maps:
    cams = dict(zip(maps['ids'].tolist(), maps['cam'], strict=True))
  split = STORE.split('test')
  for one in overlays:
    row = split.ids.tolist().index(one['id'])
    cam = cams[one['id']]
    y, x = (np.array(np.unravel_index(cam.argmax(), cam.shape)) + 0.5) / len(
      cam
    )
    # The cell's centre is the maximum after bilinear scaling, within a pixel.
    inside = any(
      x0 - 0.02 < x < x1 + 0.02 and y0 - 0.02 < y < y1 + 0.02
      for x0, y0, x1, y1 in split.boxes[row, : split.num_boxes[row]]
    )
    assert inside or not one['hit']
    kind = 'hit' if one['hit'] else 'miss'
    assert f'Grad-CAM {kind}: {one["id"]}, class' in text


def test_the_attention_of_every_stage_is_shown_once(both):
  _, text, sections = both
  assert text.count('<h4>map+ at every stage: ') == 1
  shown = sections['localisation']['overlays'][0]['id']
  assert f'<h4>map+ at every stage: {shown}, class' in text
  for stage in workdirs.STAGES:
    assert f'map+, {stage}. map+ at every stage: {shown}' in text
  assert 'localisation-stages.png' in sections['localisation']['figures']


def test_each_row_of_the_gallery_is_a_png_of_its_panels(both):
  folder, _, sections = both
  names = sections['localisation']['figures']
  for kind in ('hit', 'miss'):
    for number in range(4):
      assert f'localisation-{kind}-{number}.png' in names
      file = folder / f'report/localisation-{kind}-{number}.png'
      width = cv2.imread(str(file)).shape[1]
      assert width == 4 * 256 + 3 * overlay.GAP


def test_the_comparison_subtracts_the_other_from_the_first_run(both):
  folder, _, sections = both
  right = {}
  for name in ('mine', 'plain'):
    _, labels, probabilities, _ = predictions.read_predictions(
      folder.parent / name / 'retrain/predictions.csv'
    )
    right[name] = probabilities.argmax(axis=1) == labels
  found = sections['comparison']['mine minus plain']
  assert found['scores']['accuracy']['difference'] == pytest.approx(
    right['mine'].mean() - right['plain'].mean()
  )
  assert found['mcnemar']['only_a_right'] == (
    (right['mine'] & ~right['plain']).sum()
  )


def test_the_order_of_the_predictions_does_not_matter(both, folders, only):
  only('comparison')
  file = folders[1] / 'retrain/predictions.csv'
  with open(file, newline='') as stream:
    header, *rows = csv.reader(stream)
  with open(file, 'w', newline='') as stream:
    csv.writer(stream).writerows([header, *rows[::-1]])
  report.write(folders, CONFIG)
  title = 'mine minus plain'
  now, before = (s['comparison'][title] for s in (read(folders[0]), both[2]))
  for key in ('scores', 'mcnemar'):
    assert now[key] == before[key]


def test_runs_on_other_images_are_not_compared(folders, only):
  only('comparison')
  file = folders[1] / 'retrain/predictions.csv'
  header, first, *rows = file.read_text().splitlines(keepends=True)
  file.write_text(''.join([header, f'other-{first}', *rows]))
  report.write(folders, CONFIG)
  assert 'not in both' in left_out(read(folders[0]))['comparison']


def test_one_run_alone_has_nothing_to_be_compared_with(folders):
  report.write(folders[:1], CONFIG)
  assert list(left_out(read(folders[0]))) == ['comparison']


def test_the_speed_is_that_of_the_log(both):
  folder, _, sections = both
  lines = (folder / 'retrain/metrics.jsonl').read_text().splitlines()
  rates = [json.loads(line).get('images_per_second') for line in lines]
  speed = sections['speed']['speed']
  assert speed['Stage II: training, images/s']['mine'] == pytest.approx(
    np.median([rate for rate in rates if rate])
  )
  assert speed['Stage II: with validation']['mine'] == 33


def make_benchmark(kind):
  """What benchmark.json holds, of inference alone."""
  rates = {'median': 1234.5, 'min': 1200.0, 'max': 1300.0}
  return {
    'finished': True,
    'device': {
      'kind': kind, 'platform': 'gpu', 'used': 1, 'present': 1, 'mode': 'jit',
    },
    'host': {
      'cpus': 2, 'load_at_start': None, 'cores_busy_with_others': 0.9,
    },
    'versions': {'jax': '0.0'},
    'environment': {},
    'config': CONFIG.to_dict(),
    'inference': {
      'unit': 'images',
      'step': [
        {
          'batch_size': 64, 'steps_per_dispatch': 1, 'ms_per_step': rates,
          'per_second': rates, 'flops_share': 0.25, 'bytes_share': None,
          'compile_seconds': 1.5, 'program_bytes': 2**20, 'peak_bytes': None,
        },
      ],
      'left_out': [{'batch_size': 1024, 'why': 'too <large>'}],
    },
  }  # fmt: skip


def test_the_tables_of_a_benchmark_are_shown(folders, only):
  only('speed')
  found = make_benchmark('<b>')
  (folders[0] / 'retrain/benchmark.json').write_text(json.dumps(found))
  text = report.write(folders[:1], CONFIG).read_text()
  assert read(folders[0])['speed']['benchmark'] == {
    'mine': json.loads(json.dumps(found))
  }
  for words in ('1,234', '25.0 %', 'step only', 'Device: 1 of 1 x &lt;b&gt;',
                'kept 0.9 of the 2 CPU cores',
                'batch 1024 left out: too &lt;large&gt;'):  # fmt: skip
    assert words in text


def test_a_benchmark_of_another_shape_is_said(folders, only):
  only('speed')
  (folders[0] / 'retrain/benchmark.json').write_text('{"cases": [1]}')
  text = report.write(folders[:1], CONFIG).read_text()
  assert 'mine: benchmark.json is of another version' in text
  assert read(folders[0])['speed']['benchmark'] == {'mine': {'cases': [1]}}


ODD = '<b>&\'"$x$ </section>'


def test_names_that_look_like_html_are_shown_as_they_are(tmp_path, monkeypatch):
  test = STORE.split('test')
  odd = dataclasses.replace(
    test, ids=np.array([f'{ODD}{i}' for i in range(60)])
  )
  data = dataclasses.replace(STORE, splits={**STORE.splits, 'test': odd})
  names = ['0', f'{ODD}1', f'{ODD}2']
  monkeypatch.setattr(type(data), 'class_names', names)
  monkeypatch.setattr(report, '_open', lambda path: data)
  folder = tmp_path / "a & <i>b'"
  own = workdirs.write(folder, data, path=f'data/{ODD}', names=names)
  result = json.loads((own / 'evaluation.json').read_text())
  result['subgroups'] = {ODD: {ODD: result['subgroups']['sex']['F']}}
  result['device'] = ODD
  (own / 'evaluation.json').write_text(json.dumps(result))
  page = Page(report.write([folder], CONFIG).read_text())
  assert left_out(read(folder)) == {'comparison': left_out(read(folder))[
    'comparison']}  # fmt: skip
  assert page.open == []
  assert not {'b', 'i'} & {tag for tag, _ in page.tags}
  assert len(page.attributes('section', 'id')) == len(KEYS)
  texts = ''.join(page.texts)
  for name in (*names, ODD, "a & <i>b'"):
    assert name in texts
  assert any(ODD in alt for alt in page.attributes('img', 'alt'))


@pytest.mark.parametrize('damage', ['missing', 'torn', 'binary'])
@pytest.mark.parametrize(
  ('file', 'gone'),
  [
    ('evaluation.json', {'decisions', 'calibration', 'scores', 'subgroups',
                         'localisation'}),
    ('predictions.csv', set()),
    ('metrics.jsonl', set()),  # stage I has one
    ('maps.npz', set()),
    ('localisation.csv', set()),
    ('config.json', {'masks'}),
  ],
)  # fmt: skip
def test_a_broken_file_costs_its_sections_and_a_line(
  file, gone, damage, folders, monkeypatch, capsys
):
  for chart in ('lines', 'bars', 'confusion', 'reliability', 'intervals'):
    monkeypatch.setattr(figures, chart, lambda *_, **__: None)
  folder = folders[0] / 'retrain'
  whole = (folder / file).read_bytes()
  if damage == 'missing':
    (folder / file).unlink()
  elif damage == 'torn':
    (folder / file).write_bytes(whole[: len(whole) // 2 + 3])
  else:
    (folder / file).write_bytes(b'\xff\0')
  text = report.write([folder], CONFIG).read_text()
  told = capsys.readouterr().err.splitlines()
  assert len(told) == (damage != 'missing')
  assert all(
    line.startswith(f'warning: {folder}: ') and file in line for line in told
  )
  out = left_out(read(folder))
  assert set(out) == gone | {'comparison'}
  assert all(reason and '\n' not in reason for reason in out.values())
  if damage != 'missing':
    notes = read(folder)['run']['runs']['mine']['notes']
    assert [note for note in notes if file in note] == notes != []
    assert notes[0] in html.unescape(text)


def test_a_torn_last_line_of_the_log_is_said_and_the_rest_is_shown(
  folders, only
):
  only('run', 'training')
  log = folders[0] / 'retrain/metrics.jsonl'
  log.write_text(log.read_text()[:-20])
  text = report.write(folders[:1], CONFIG).read_text()
  assert '1 of 36 lines of metrics.jsonl cannot be read' in text
  curve = read(folders[0])['training']['stage2']['loss']['mine']
  assert len(curve['train']['value']) == 30
  assert len(curve['validation']['value']) == 5


@pytest.mark.parametrize(
  'change',
  [
    {'scores': []},
    {'per_class': None},
    {'confusion_matrix': [[1]]},
    {'localisation': {'cam': 3}},
    {'subgroups': {'age': [1]}},
    {'reliability': [{}]},
    {'intervals': None},
    {'class_names': []},
    {'threshold': '0.5'},
    {'settings': [1]},
  ],
  ids=lambda change: next(iter(change)),
)
def test_an_evaluation_of_another_version_costs_no_traceback(
  change, folders, only
):
  only(
    'counts', 'decisions', 'calibration', 'scores', 'subgroups', 'localisation'
  )
  file = folders[0] / 'retrain/evaluation.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | change))
  report.write(folders[:1], CONFIG)
  out = left_out(read(folders[0]))
  assert out and all('\n' not in reason for reason in out.values())
  assert 'counts' not in out


def test_without_the_prepared_set_its_sections_say_so(
  folders, monkeypatch, only
):
  only('classes', 'counts', 'masks', 'scores')

  def absent(path):
    raise UserError(f'config.data.path: {path} is not a prepared set')

  monkeypatch.setattr(report, '_open', absent)
  report.write(folders, CONFIG)
  out = left_out(read(folders[0]))
  assert set(out) == {'classes', 'counts', 'masks'}
  assert all('is not a prepared set' in reason for reason in out.values())


def test_a_set_that_was_moved_is_found_where_the_config_says(
  folders, monkeypatch, tmp_path, only
):
  only('classes', 'counts', 'masks')

  def moved(path):
    if path != str(tmp_path):
      raise UserError(f'{path} is not there')
    return STORE

  monkeypatch.setattr(report, '_open', moved)
  report.write(folders, fakes.make_config(data__path=str(tmp_path)))
  assert left_out(read(folders[0])) == {}


@pytest.mark.parametrize(
  ('gone', 'named', 'lacking'),
  [
    ('memory', '/elsewhere', {'counts'}),  # trained on
    ('/elsewhere', '/elsewhere', {'classes'}),  # scored on
    ('memory', '', set()),  # moved since
    ('/elsewhere', '', set()),  # moved back
  ],
)
def test_a_set_stands_for_another_only_where_it_is_the_same(
  gone, named, lacking, folders, monkeypatch, only
):
  only('classes', 'counts')

  def opened(path):
    if path == gone:
      raise UserError(f'{path} is not a prepared set')
    return STORE

  monkeypatch.setattr(report, '_open', opened)
  file = folders[0] / 'retrain/evaluation.json'
  result = json.loads(file.read_text())
  result |= {'data': '/elsewhere', 'settings': {'path': named}}
  file.write_text(json.dumps(result))
  report.write(folders[:1], CONFIG)
  reason = f'{gone} is not a prepared set'
  assert left_out(read(folders[0])) == dict.fromkeys(lacking, reason)
  card = (folders[0] / 'MODEL_CARD.md').read_text()
  assert ('## Data' in card) == ('counts' not in lacking)


def test_an_ensemble_on_another_set_does_not_say_that_it_was_trained_on_it(
  folders, only
):
  only('classes', 'counts')
  ensemble = folders[0] / 'retrain'
  (ensemble / 'config.json').unlink()
  file = ensemble / 'evaluation.json'
  result = json.loads(file.read_text()) | {'settings': {'path': 'memory'}}
  file.write_text(json.dumps(result))
  report.write([ensemble], CONFIG)
  assert left_out(read(ensemble)) == {
    'counts': 'no config.json names the set that was trained on'
  }


def test_a_run_of_stage_one_alone_has_its_curves(folders):
  report.write([folders[0] / 'pretrain'], CONFIG)
  sections = read(folders[0] / 'pretrain')
  assert set(sections['training']['stage1']) >= {'loss', 'loss/contrast'}
  assert set(left_out(sections)) == {
    'masks', 'decisions', 'calibration', 'scores', 'subgroups', 'localisation',
    'comparison',
  }  # fmt: skip


def test_a_method_without_a_config_is_compared_too(folders, only):
  only('run', 'scores', 'comparison', 'speed')
  (folders[1] / 'retrain/config.json').unlink()
  report.write([folders[0], folders[1] / 'retrain'], CONFIG)
  assert left_out(read(folders[0])) == {}


def test_runs_of_one_name_are_told_apart(made, tmp_path, only):
  only('run')
  for place in 'ab':
    shutil.copytree(made / 'mine', tmp_path / place / 'mine')
  report.write([tmp_path / place / 'mine' for place in 'ab'], CONFIG)
  record = json.loads((tmp_path / 'a/mine/report.json').read_text())
  assert list(record['workdirs']) == ['a/mine', 'b/mine']


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (['mine', 'mine/retrain'], 'is given twice'),
    (['nowhere'], 'holds no run'),
    ([], 'names no run'),
  ],
)
def test_workdirs_that_hold_no_runs_are_refused(names, message, folders):
  root = folders[0].parent
  with pytest.raises(UserError, match=message) as raised:
    report.write([root / name for name in names], CONFIG)
  assert '\n' not in str(raised.value)


WITHOUT_JAX = """
import sys
from configs import base
from dpjax.config import resolve
from dpjax.report import figures, report

# The first chart is drawn, and stands for all.
drawn, render = [], figures.render
figures.render = lambda chart: drawn or drawn.extend(render(chart)) or drawn
config = resolve.resolve(base.get_config(), num_devices=1, platform='cpu')
report.write(sys.argv[1:], config)
sys.exit('it imported JAX' if 'jax' in sys.modules else 0)
"""


def test_writing_a_report_does_not_even_import_jax(tmp_path):
  """So it takes no memory of a GPU that a training is using."""
  data = prepare.open_prepared(
    fakes.make_config(
      data__path=str(tmp_path / 'set'), data__phantom__count=50,
      data__workers=1,
    )
  )  # fmt: skip
  for name in ('mine', 'plain'):
    workdirs.write(tmp_path / name, data, path=data.path)
  subprocess.run(
    [sys.executable, '-c', WITHOUT_JAX, 'mine', 'plain'],
    cwd=tmp_path, check=True,
    env=children.environment(),
  )  # fmt: skip
  assert left_out(read(tmp_path / 'mine')) == {}
