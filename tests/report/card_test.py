"""The model card: what the run knows, and nothing that it does not."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from dpjax.report import card, card_items, report
from tests import fakes
from tests.report import workdirs

STORE = workdirs.make_store(test=60)
CONFIG = fakes.make_config()


@dataclasses.dataclass(frozen=True)
class Split(fakes.Split):
  """One that says more of its patients."""

  groups: np.ndarray = None
  metadata: dict = dataclasses.field(default_factory=dict)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Two recipes, to be copied."""
  root = tmp_path_factory.mktemp('made')
  for seed, name in enumerate(('mine', 'other')):
    workdirs.write(root / name, STORE, seed=seed)
  return root


@pytest.fixture
def render(made, tmp_path, monkeypatch):
  """render(change, data) is the card after change(evaluation.json)."""

  def made_of(
    change=lambda result: None, data=STORE, names=('mine',), model=None
  ):
    monkeypatch.setattr(report, '_open', lambda path: data)
    for name in names:
      shutil.copytree(made / name, tmp_path / name)
      file = tmp_path / name / 'retrain' / 'evaluation.json'
      result = json.loads(file.read_text())
      if change(result) is None:
        file.write_text(json.dumps(result))
      else:
        file.unlink()
    found = report.gather([tmp_path / name for name in names], CONFIG)
    return card.render(found, model), result

  return made_of


def section(text, title):
  (found,) = re.findall(rf'^## {title}\n(.*?)(?=^## |\Z)', text, re.M | re.S)
  return found


def test_every_score_stands_there_with_its_interval(render):
  text, result = render()
  scores = section(text, 'Scores')
  shown = 0
  for name, value in result['scores'].items():
    if value is not None and '/' not in name:
      low, high = result['intervals'][name]
      assert f'| {value:.3f} [{low:.3f}, {high:.3f}] |' in scores, name
      shown += 1
  assert shown > 8
  assert f'{result["temperature"]:.3f}' in section(text, 'Calibration')
  for name, one in result['localisation'].items():
    value = one['scores']['pointing_game']
    assert f'| {name} | {one["num_images"]}' in section(text, 'Localisation')
    assert f'{value:.3f}' in section(text, 'Localisation')


def test_the_data_are_counted_by_split_class_and_patient(render):
  splits = {}
  for name, split in STORE.splits.items():
    sexes = np.array(['F', 'M', 'F'])[np.arange(len(split)) % 3]
    splits[name] = Split(
      **vars(split),
      metadata=dict.fromkeys(
        ('PatientSex', 'detector', 'image_quality'), sexes
      ),
      groups=np.arange(len(split)) // 2,
    )
  text, _ = render(data=dataclasses.replace(STORE, splits=splits))
  data = section(text, 'Data')
  labels = np.bincount(STORE.split('test').labels)
  boxes = (STORE.split('test').num_boxes > 0).sum()
  row = ['test', 60, 30, *labels, boxes]
  assert f'| {" | ".join(map(str, row))} |' in data
  # Who the patients are, not which cable was plugged in; no age in an image.
  who = section(text, 'Demography')
  assert '| F | 32 | 8 | 40 |' in who
  assert re.findall('^By (.*):$', who, re.M) == ['PatientSex']


@pytest.mark.parametrize(
  ('unit', 'words'),
  [
    ('patient', 'All images of a patient, and copies of an image, are on one'),
    ('image', 'Images of one patient may be on both sides of the split'),
  ],
)
def test_the_split_is_said_to_be_by_what_it_was_made(
  unit, words, made, monkeypatch
):
  monkeypatch.setattr(report, '_open', lambda path: STORE)
  found = report.gather([made / 'mine'], CONFIG)
  found.runs[0].config.split.unit = unit
  data = section(card.render(found), 'Data')
  assert words in data and ('patient may' in data) == (unit == 'image')


def test_scores_are_of_a_set_by_name(render):
  text, _ = render(lambda result: result.update(data='/data/hospital b'))
  scores = section(text, 'Scores')
  assert 'mine: 60 radiographs: hospital b, test split;' in scores


def test_weaknesses_are_what_the_numbers_show(render):
  def weak(result):
    result['per_class']['1']['recall'] = 0.25
    result['scores'] |= {'accuracy': 0.4, 'ece_scaled': 0.2}
    result |= {'majority_accuracy': 0.5, 'temperature': None}
    maps = result['localisation']
    maps['cam']['scores']['pointing_game'] = 0.1
    maps['centre']['scores']['pointing_game'] = 0.99

  told = section(render(weak)[0], 'Known weaknesses')
  for words in (
    'phantoms', 'class 1, 25%', 'commonest class', 'off by 0.200',
    'not calibrated', 'no better than the baseline centre', '60 radiographs',
  ):  # fmt: skip
    assert words in told, words


def test_a_strong_run_is_not_called_weak(render):
  def strong(result):
    for one in result['per_class'].values():
      one['recall'] = 0.9
    result['scores'] |= {'accuracy': 0.9, 'ece_scaled': 0.01}
    result |= {'majority_accuracy': 0.5, 'num_images': 60, 'subgroups': {}}
    result['localisation']['cam']['scores']['pointing_game'] = 1.0
    for name in ('auroc_any_lesion', 'balanced_accuracy'):
      result['intervals'][name] = [0.85, 0.95]

  told = section(render(strong)[0], 'Known weaknesses').strip().splitlines()
  assert len(told) == 3  # Phantoms, few, one source: those remain.


@pytest.mark.parametrize(
  ('items', 'title', 'count'),
  [
    (card_items.CLAIM, 'CLAIM (2024 update)', 44),
    (card_items.TRIPOD_AI, 'TRIPOD+AI (2024)', 52),
  ],
)
def test_every_item_of_a_guideline_is_answered_or_open(
  render, items, title, count
):
  assert len({number for number, *_ in items}) == len(items) == count
  text, _ = render()
  titles = set(re.findall(r'^## (.*)$', text, re.M))
  part = text.split(f'### {title}')[1].split('### ')[0]
  for number, what, where in items:
    answered = f'- {number} {what}: {where}' in part
    assert answered == (where in titles)
    assert answered != (f'- [ ] {number} {what}' in part)


def test_a_run_without_an_evaluation_leaves_its_items_open(render):
  text, _ = render(lambda result: False)
  assert '## Scores' not in text
  assert '- [ ] 28 metrics of performance' in text
  assert 'was not evaluated' in section(text, 'Known weaknesses')


def make_model(*steps, temperature=None):
  """What model.json says of runs at these steps."""
  runs = [
    {'name': f'run{i}', 'step': step, 'hashes': {'weights': 'abc'}}
    for i, step in enumerate(steps)
  ]
  return {
    'runs': runs, 'temperature': temperature, 'threshold': None, 'files': {},
    'versions': {}, 'test_vectors': {'file': 'test_vectors.npz'},
  }  # fmt: skip


def of_step(step):
  return lambda result: result.update(step=step)


def test_of_an_ensemble_no_score_is_claimed(render):
  text, _ = render(of_step(5), names=('mine', 'other'), model=make_model(5, 5))
  assert 'of the ensemble this card knows no score' in text
  assert 'mine: 60 radiographs' in text and 'other: 60 radiographs' in text


@pytest.mark.parametrize(
  ('temperature', 'words'),
  [(0.6214, 'calibrated by temperature 0.621'), (None, 'not calibrated')],
)
def test_an_ensemble_is_the_mean_calibrated_as_a_whole(
  render, temperature, words
):
  model = make_model(5, 5, temperature=temperature)
  text, _ = render(of_step(5), names=('mine', 'other'), model=model)
  assert 'mean of the softmax of their logits' in section(text, 'Model')
  assert f'then as a whole {words}' in section(text, 'Model')
  assert f'The ensemble: {words}' in section(text, 'Calibration')


def test_scores_of_another_checkpoint_are_not_the_exports(render):
  text, _ = render(of_step(9), model=make_model(5))
  assert '> Warning: mine was evaluated at step 9, and this is step 5' in text
  for title in ('Scores', 'Subgroups', 'Calibration', 'Localisation'):
    assert f'## {title}' not in text
  assert 'this checkpoint was not evaluated' in text


@pytest.mark.parametrize(
  ('weights', 'known'), [('of before', False), ('abc', True), (None, True)]
)
def test_scores_of_other_weights_at_its_step_are_not_the_exports(
  weights, known, render
):
  def weighed(result):
    result.update(step=5, weights=weights)

  text, _ = render(weighed, model=make_model(5))
  assert ('evaluated with other weights than step 5 has now' in text) != known
  assert ('## Scores' in text) == known


def test_the_report_writes_it_and_links_it(made, tmp_path, monkeypatch):
  monkeypatch.setattr(report, '_open', lambda path: STORE)
  monkeypatch.setattr(report, 'SECTIONS', {})
  shutil.copytree(made, tmp_path, dirs_exist_ok=True)
  page = report.write([tmp_path / 'mine', tmp_path / 'other'], CONFIG)
  assert '<a href="MODEL_CARD.md">' in page.read_text()
  text = (tmp_path / 'mine' / 'MODEL_CARD.md').read_text()
  assert text.startswith('# Model card: mine\n')
