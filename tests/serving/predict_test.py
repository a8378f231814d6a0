"""The predict command: files in, a table and a page out."""

import copy
import csv
import dataclasses
import errno
import json
import os
import pathlib
import shutil
import subprocess

import cv2
import jax
import numpy as np
import pytest

import dpjax
from dpjax import file_lock, signals
from dpjax.errors import Stopped, UserError
from dpjax.serving import decode, export, predict, table
from dpjax.serving import model as model_lib
from tests import fakes

QUIET = predict.Settings(progress=False)


@pytest.fixture(scope='module')
def model(served):
  return dpjax.load(served.workdir, batch_size=4)


@pytest.fixture
def folder(served, tmp_path):
  """Twelve radiographs, two of them in a folder of their own, and a text."""
  found = tmp_path / 'in'
  (found / 'more').mkdir(parents=True)
  for i, file in enumerate(sorted(served.files.iterdir())[:12]):
    shutil.copy(file, found / ('more' if i > 9 else '.') / file.name)
  (found / 'notes.txt').write_text('nothing to see')
  return found


def rows(output):
  return [*table.read(output / table.PREDICTIONS)]


def run(model, given, output, **changes):
  return predict.predict(
    model, given, output, dataclasses.replace(QUIET, **changes)
  )


@pytest.fixture(scope='module')
def opened(model, tmp_path_factory):
  """An export of the model, without maps."""
  folder = tmp_path_factory.mktemp('export') / 'model'
  export.export(model, folder, ['stablehlo'])
  return dpjax.load(folder, batch_size=4)


def test_every_file_at_any_depth_has_a_row_with_what_the_library_says(
  model, folder, tmp_path
):
  record = run(model, folder, tmp_path / 'out')
  found = rows(tmp_path / 'out')
  names = [row['file'] for row in found]
  assert sorted(names) == sorted(
    file.relative_to(folder).as_posix() for file in folder.rglob('*.png')
  )
  wanted = model.predict([folder / name for name in names])
  given = np.array([[*table.probabilities(row).values()] for row in found])
  np.testing.assert_allclose(given, wanted.probabilities, atol=1e-6)
  assert [row['prediction'] for row in found] == wanted.prediction
  assert [row['positive'] == '1' for row in found] == [*wanted.positive]
  assert {row['spread'] for row in found} == {''}
  assert record['images'] == 12 and record['faults'] == 0
  assert record == json.loads((tmp_path / 'out/predict.json').read_text())
  assert {f.name for f in (tmp_path / 'out').iterdir()} == {
    'predictions.csv', 'predict.json', 'index.html',
  }  # fmt: skip


def test_an_image_and_a_table_of_files_are_inputs_too(model, folder, tmp_path):
  image = next(folder.glob('*.png'))
  run(model, image, tmp_path / 'one')
  assert [row['file'] for row in rows(tmp_path / 'one')] == [image.name]
  page = (tmp_path / 'one' / 'index.html').read_text()
  assert '>1 radiograph of ' in page and '>1 are ' not in page
  with open(tmp_path / 'list.csv', 'w', newline='') as file:
    listed = csv.writer(file)
    listed.writerow(['age', 'where'])
    listed.writerow(['40', f'in/{image.name}'])
    listed.writerow(['50', 'in/gone.png'])
  record = run(model, tmp_path / 'list.csv', tmp_path / 'two', on_error='skip')
  assert [r['file'] for r in rows(tmp_path / 'two')] == [f'in/{image.name}']
  assert record['faults'] == 1
  faults = [*table.read(tmp_path / 'two' / 'faults.csv')]
  assert faults[0]['file'] == 'in/gone.png' and 'No such' in faults[0]['reason']


def test_a_fault_ends_it_or_is_listed(model, folder, tmp_path):
  bad = folder / 'broken.png'
  bad.write_bytes(next(folder.glob('*.png')).read_bytes()[:500])
  cv2.imwrite(str(folder / 'flat.png'), np.full((90, 90), 7, np.uint8))
  with pytest.raises(UserError, match=r'broken\.png: .*--on_error=skip'):
    run(model, folder, tmp_path / 'out')
  assert not (tmp_path / 'out' / 'predictions.csv').exists()
  record = run(model, folder, tmp_path / 'out', on_error='skip')
  faults = {
    row['file']: row['reason']
    for row in table.read(tmp_path / 'out' / 'faults.csv')
  }
  assert (record['images'], record['faults']) == (12, 2)
  assert faults.keys() == {'broken.png', 'flat.png'}
  assert 'one grey level, 7' in faults['flat.png']


@pytest.mark.parametrize('stops', [1, 2])
def test_a_stopped_one_goes_on_to_the_same_files(
  stops, model, folder, tmp_path, monkeypatch
):
  options = {'embeddings': True}
  run(model, folder, tmp_path / 'whole', **options)
  seen = []

  def stop():
    seen.append(None)
    if len(seen) > 4 * stops:
      raise Stopped('SIGTERM')

  with monkeypatch.context() as patch:
    patch.setattr(signals, 'check', stop)
    with pytest.raises(Stopped):
      run(model, folder, tmp_path / 'out', **options)
  part = tmp_path / 'out' / 'predictions.csv.part'
  before = part.read_text()
  assert 1 <= before.count('\n') < 12
  part.write_text(before + 'phantom-half,0.2')  # as a kill leaves it
  run(model, folder, tmp_path / 'out', resume=True, **options)
  for name in ('predictions.csv', 'index.html'):
    whole = (tmp_path / 'whole' / name).read_bytes()
    assert (tmp_path / 'out' / name).read_bytes() == whole
  one, other = (
    fakes.read_npz(tmp_path / d / 'embeddings.npz') for d in ('whole', 'out')
  )
  np.testing.assert_array_equal(one['files'], other['files'])
  np.testing.assert_array_equal(one['features'], other['features'])
  assert not [*(tmp_path / 'out').glob('*.part')]


def test_nothing_is_answered_again_where_all_is_done(
  model, folder, tmp_path, monkeypatch
):
  run(model, folder, tmp_path / 'out')
  monkeypatch.setattr(type(model), 'answer', None)
  record = run(model, folder, tmp_path / 'out', resume=True, overlays=2)
  assert record['images'] == 12
  assert len([*(tmp_path / 'out' / 'overlays').iterdir()]) == 2


def test_another_calls_part_is_not_gone_on_with(
  model, second, folder, tmp_path
):
  run(model, folder, tmp_path / 'out')
  with pytest.raises(UserError, match='begun with another set of runs'):
    run(dpjax.load(second), folder, tmp_path / 'out', resume=True)


def test_pictures_of_another_stage_are_not_put_beside_those_that_are_there(
  served, model, folder, tmp_path
):
  config = copy.deepcopy(served.config)
  config.evaluate.cam_stage = 'stage1'
  other = dpjax.load(served.workdir, batch_size=4, config=config)
  out = tmp_path / 'out'
  run(model, folder, out)
  run(other, folder, out, resume=True, overlays=1)  # The rows are the same.
  run(other, folder, out, resume=True, overlays=2)
  with pytest.raises(UserError, match=r'evaluate\.cam_stage: stage1; leave'):
    run(model, folder, out, resume=True, overlays=3)
  assert len([*(out / 'overlays').iterdir()]) == 2


def test_other_files_are_not_gone_on_with(model, folder, tmp_path):
  run(model, folder, tmp_path / 'out')
  # Pictures are named by the place of a file: this one would shift them all.
  first = min(folder.glob('*.png'))
  shutil.copy(first, folder / '0-first.png')
  with pytest.raises(UserError, match='another list of files') as error:
    run(model, folder, tmp_path / 'out', resume=True, overlays=-1)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'out' / 'overlays').exists()


def changed_temperature(model):
  model.temperature *= 2


def changed_weights(model):
  (network,) = model.networks
  params = jax.tree.map(lambda leaf: leaf * 1.5, network.state.params)
  model.networks = (
    dataclasses.replace(network, state=network.state.replace(params=params)),
  )


def changed_features(model):
  (network,) = model.networks
  known = dataclasses.replace(network.known, distance=0.0)
  model.networks = (dataclasses.replace(network, known=known),)


def without_features(model):
  (network,) = model.networks
  model.networks = (dataclasses.replace(network, known=None),)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (changed_temperature, 'temperature'),
    (changed_weights, 'set of runs'),
    (changed_features, r'features\.npz'),
    (without_features, r'features\.npz'),
  ],
)
def test_a_run_that_answers_otherwise_now_is_not_gone_on_with(
  change, words, served, model, folder, tmp_path
):
  run(model, folder, tmp_path / 'out')
  other = dpjax.load(served.workdir, batch_size=4)
  change(other)
  with pytest.raises(UserError, match=f'begun with another {words}'):
    run(other, folder, tmp_path / 'out', resume=True)


def test_an_export_in_another_ones_place_is_not_gone_on_with(
  opened, folder, tmp_path
):
  (network,) = opened.networks
  shutil.copytree(network.workdir, tmp_path / 'model')
  run(dpjax.load(tmp_path / 'model'), folder, tmp_path / 'out')
  record = json.loads((tmp_path / 'model' / 'model.json').read_text())
  record['runs'][0]['hashes']['weights'] = 'another'
  (tmp_path / 'model' / 'model.json').write_text(json.dumps(record))
  with pytest.raises(UserError, match='begun with another set of runs'):
    run(dpjax.load(tmp_path / 'model'), folder, tmp_path / 'out', resume=True)


@pytest.mark.parametrize(
  ('holds', 'file'),
  [
    ('a run', 'config.json'),
    ('a run', 'finetune/config.json'),
    ('an export', 'model.json'),
    ('an evaluation', 'evaluation.json'),
    ('a prepared set', 'summary.json'),
    ('a predictions.csv that predict has not', 'predictions.csv'),
  ],
)
def test_a_folder_of_something_else_is_left_as_it_is(
  holds, file, model, folder, tmp_path, monkeypatch
):
  out = tmp_path / 'out'
  for name in (file, 'predictions.csv'):
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text('theirs')
  monkeypatch.setattr(type(model), 'answer', None)  # Nothing is computed.
  with pytest.raises(UserError, match=f'--output=.* holds {holds}'):
    run(model, folder, out)
  assert (out / 'predictions.csv').read_text() == 'theirs'
  assert len([*out.rglob('*.*')]) == len({file, 'predictions.csv'})


def test_names_that_are_no_lines_of_text_are_found_again(
  model, folder, tmp_path, monkeypatch
):
  odd = tmp_path / os.fsdecode(b'in\xff')
  odd.mkdir()
  names = ['a\x85b.png', 'c\u2028d.png', 'e\nf.png', 'g\rh.png', 'i\\n.png',
           '=k.png', 'ü.png', os.fsdecode(b'l\xe9.png')]  # fmt: skip
  files = sorted(folder.glob('*.png'))
  for name, file in zip(names, files, strict=False):
    shutil.copy(file, odd / name)

  def back(name):
    return name.encode('latin-1', 'backslashreplace').decode('unicode_escape')

  run(model, odd, tmp_path / 'whole', overlays=-1, embeddings=True)
  found = [row['file'] for row in rows(tmp_path / 'whole')]
  assert {back(name) for name in found} == {*names}
  content = (tmp_path / 'whole' / 'predictions.csv').read_text()
  assert len(content.splitlines()) == 1 + len(names)
  answer = type(model).answer

  def once(self, images, names):
    monkeypatch.setattr(type(model), 'answer', stopped)
    return answer(self, images, names)

  def stopped(self, images, names):
    raise Stopped('SIGTERM')

  monkeypatch.setattr(type(model), 'answer', once)
  with pytest.raises(Stopped):
    run(model, odd, tmp_path / 'out', embeddings=True)
  monkeypatch.setattr(type(model), 'answer', answer)
  run(model, odd, tmp_path / 'out', embeddings=True, resume=True, overlays=-1)
  assert (tmp_path / 'out' / 'predictions.csv').read_text() == content
  assert len([*(tmp_path / 'out' / 'overlays').iterdir()]) == len(names)


def test_a_damaged_part_is_one_line(model, folder, tmp_path):
  run(model, folder, tmp_path / 'out')
  part = (tmp_path / 'out' / 'predictions.csv').rename(
    tmp_path / 'out' / 'predictions.csv.part'
  )
  part.write_bytes(part.read_bytes()[:-40] + bytes(39) + b'\n')
  with pytest.raises(UserError, match=r'\.part is damaged') as error:
    run(model, folder, tmp_path / 'out', resume=True)
  assert '\n' not in str(error.value)


def test_its_own_pictures_in_the_input_are_no_input(model, folder):
  for _ in range(2):
    assert run(model, folder, folder, overlays=2)['images'] == 12


def test_only_one_predict_writes_into_a_folder(model, folder, tmp_path):
  work = file_lock.Work('x', 'predicts', 'wait')
  (tmp_path / 'out').mkdir()
  with (
    file_lock.locked(tmp_path / 'out' / '.predict.lock', work),
    pytest.raises(UserError, match=r'--output=.*predicts; wait for it'),
  ):
    run(model, folder, tmp_path / 'out')


def test_embeddings_are_the_librarys_and_name_their_files(
  model, folder, tmp_path
):
  run(model, folder, tmp_path / 'out', embeddings=True)
  found = fakes.read_npz(tmp_path / 'out' / 'embeddings.npz')
  names = [row['file'] for row in rows(tmp_path / 'out')]
  assert [*found['files']] == names
  np.testing.assert_allclose(
    found['features'], model.embed([folder / n for n in names]), atol=1e-5
  )


def test_an_export_answers_as_its_run(model, opened, folder, tmp_path):
  for one, name in ((model, 'run'), (opened, 'export')):
    run(one, folder, tmp_path / name, embeddings=True)
  found, wanted = rows(tmp_path / 'export'), rows(tmp_path / 'run')
  for one, other in zip(found, wanted, strict=True):
    for column in ('file', 'prediction', 'positive'):
      assert one[column] == other[column]
    assert table.probabilities(one) == pytest.approx(
      table.probabilities(other), abs=1e-5
    )
  found, wanted = (
    fakes.read_npz(tmp_path / name / 'embeddings.npz')
    for name in ('export', 'run')
  )
  np.testing.assert_allclose(found['features'], wanted['features'], rtol=1e-4)
  record = json.loads((tmp_path / 'export' / 'predict.json').read_text())
  assert record['runs'][0]['step'] == model.networks[0].step


def test_pictures_of_an_export_without_maps_are_refused_before_anything(
  opened, folder, tmp_path
):
  with pytest.raises(UserError, match='exported without --maps'):
    run(opened, folder, tmp_path / 'out', overlays=1)
  assert not (tmp_path / 'out').exists()


def test_a_class_of_the_name_of_a_column_is_refused_before_anything(
  model, folder, tmp_path
):
  names = 'normal', 'any_lesion', 'b', 'c', 'd'
  (network,) = model.networks
  other = model_lib.Model([dataclasses.replace(network, class_names=names)])
  with pytest.raises(UserError, match='class is called any_lesion, and so is'):
    run(other, folder, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_the_most_suspicious_are_drawn_and_an_earlier_calls_pictures_go(
  model, folder, tmp_path
):
  out = tmp_path / 'out'
  run(model, folder, out, overlays=-1)
  assert len([*(out / 'overlays').iterdir()]) == 12
  (out / 'overlays' / 'mine.png').touch()
  run(model, folder, out, overlays=3)
  (out / 'overlays' / 'mine.png').unlink()
  drawn = sorted((out / 'overlays').iterdir())
  files = sorted(file for file in folder.rglob('*.png'))
  lesion = {row['file']: float(row['p_any_lesion']) for row in rows(out)}
  top = sorted(lesion, key=lesion.get)[-3:]
  places = [int(file.stem) - 1 for file in drawn]
  assert {str(files[i].relative_to(folder)) for i in places} == {*top}
  assert cv2.imread(str(drawn[0])).shape[1] > 4 * 256  # four panels


def test_worker_processes_give_the_same_in_the_same_order(
  model, folder, tmp_path, monkeypatch
):
  run(model, folder, tmp_path / 'one')
  monkeypatch.setattr(decode, '_FEW', 0)
  run(model, folder, tmp_path / 'two', workers=2)
  one, two = (
    (tmp_path / name / 'predictions.csv').read_bytes()
    for name in ('one', 'two')
  )
  assert one == two


def test_a_worker_that_dies_is_one_line_that_says_where(monkeypatch):
  monkeypatch.setattr(decode, '_FEW', 0)
  ends = ['1', 'import os; os._exit(1)', *['1'] * 30]
  with pytest.raises(UserError, match='worker process died') as error:
    [*decode.ordered(exec, ends, workers=2)]
  assert 'it was at 1 or one of the' in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda root: root / 'gone', 'gone: no such file or folder'),
    (lambda root: root, 'holds no image'),
  ],
)
def test_an_input_without_images_is_one_line_and_leaves_nothing(
  make, words, model, tmp_path
):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=words) as error:
    run(model, make(tmp_path / 'empty'), tmp_path / 'out')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'out').exists()


def test_every_file_of_pydicoms_corpus_is_answered_or_listed(model, tmp_path):
  pytest.importorskip('pydicom')
  from pydicom import data

  corpus = pathlib.Path(data.__file__).parent / 'test_files'
  record = run(model, corpus, tmp_path / 'out', on_error='skip')
  faults = [*table.read(tmp_path / 'out' / 'faults.csv')]
  assert record['images'] > 20 and record['faults'] == len(faults) > 5
  assert all(row['reason'] and '\n' not in row['reason'] for row in faults)


def test_fuzzed_files_are_answered_or_listed(model, folder, tmp_path):
  rng = np.random.default_rng(0)
  whole = next(folder.glob('*.png')).read_bytes()
  for i in range(40):
    content = bytearray(whole)
    for place in rng.integers(0, len(content), 1 + i):
      content[place] = rng.integers(256)
    (folder / f'fuzzed-{i}.png').write_bytes(content[: rng.integers(8, 70000)])
  record = run(model, folder, tmp_path / 'out', on_error='skip')
  assert record['images'] + record['faults'] == 52 and record['faults'] > 20


@pytest.fixture(params=['4k', '60k'])
def small_disk(request, tmp_path):
  """A file system with no room for the table, or for the pictures."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', f'size={request.param}', 'tmpfs', disk]
  if (
    shutil.which('mount') is None
    or subprocess.run(mount, capture_output=True, check=False).returncode
  ):
    pytest.skip('mounting a tmpfs takes root')
  yield disk
  subprocess.run(['umount', disk], check=True)


def test_a_full_disk_is_named_and_leaves_no_half_file(
  model, folder, small_disk
):
  with pytest.raises(OSError) as error:
    run(model, folder, small_disk / 'out', overlays=-1)
  assert error.value.errno == errno.ENOSPC
  assert str(small_disk / 'out') in str(error.value.filename)
  left = {file.name for file in (small_disk / 'out').iterdir()}
  whole = {'predict.json', 'predictions.csv.part', 'predictions.csv',
           'overlays'}  # fmt: skip
  assert left <= whole
