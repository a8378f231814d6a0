"""What two sets share, in whatever form they are."""

import shutil

import cv2
import numpy as np
import pytest

from dpjax import csv_cells, leakage
from dpjax.config import record as record_lib
from dpjax.data.prepare import duplicates, shards
from dpjax.errors import UserError
from dpjax.serving import audit, table
from tests import fakes


def shared(paths, tmp_path):
  lines = audit.audit([*map(str, paths)], tmp_path / 'audit.csv',
                      progress=False)  # fmt: skip
  return lines, [*table.read(tmp_path / 'audit.csv')]


def test_files_of_a_prepared_set_are_found_in_it_exactly_and_nearly(
  served, tmp_path
):
  folder = tmp_path / 'mine'
  folder.mkdir()
  one, two, three = sorted(served.files.iterdir())[:3]
  shutil.copy(one, folder / 'a.png')
  pixels = cv2.imread(str(two), cv2.IMREAD_GRAYSCALE)
  cv2.imwrite(str(folder / 'b.jpg'), cv2.resize(pixels, (200, 200)))
  rng = np.random.default_rng(0)
  cv2.imwrite(str(folder / 'c.png'), rng.integers(0, 256, (64, 64)))
  (folder / 'd.png').write_bytes(three.read_bytes()[:99])
  lines, rows = shared([folder, served.data.path], tmp_path)
  assert [(r['id_a'], r['id_b'], r['what']) for r in rows] == [
    ('a.png', one.stem, 'exact'),
    ('b.jpg', two.stem, 'near'),
  ]
  assert 0 < int(rows[1]['bits']) <= 16
  assert len(lines) == 2 and 'd.png' in lines[0]
  assert '2 of 3 images' in lines[1] and '1 exactly, 1 nearly' in lines[1]


def test_a_run_is_known_by_its_manifest_and_saw_its_training_split(
  served, tmp_path
):
  lines, rows = shared([served.data.path, served.workdir], tmp_path)
  assert {r['id_a'] for r in rows} == {*served.data.split('train').ids}
  assert {r['what'] for r in rows} == {'exact'}
  groups = [{*split.groups} for split in served.data.splits.values()]
  train, every = (
    len({*served.data.split('train').groups}),
    len(set().union(*groups)),
  )
  assert f'of {train} of its {every} patients' in lines[-1]
  manifest = served.workdir / 'training_manifest.csv'
  assert shared([served.data.path, manifest], tmp_path)[1] == [
    row | {'set_b': str(manifest)} for row in rows
  ]


def write_wide(folder, count=4):
  """Radiographs twice as wide as high, and JPEGs of them."""
  for name in ('orig', 'copy'):
    (folder / name).mkdir()
  for i in range(count):
    rng = np.random.default_rng(i)
    small = rng.integers(0, 256, (6, 9)).astype(np.uint8)
    pixels = cv2.resize(small, (320, 160), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / f'orig/{i}.png'), pixels)
    cv2.imwrite(str(folder / f'copy/{i}.jpg'), pixels)
  return folder / 'orig', folder / 'copy'


def test_copies_of_what_a_run_saw_are_hashed_as_its_squares_were_made(tmp_path):
  originals, copies = write_wide(tmp_path)
  rows = [leakage.COLUMNS]
  for file in sorted(originals.iterdir()):
    pixels = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
    padded, _ = shards.square(pixels, np.zeros((0, 4)), 256, 'pad')
    hashed = duplicates.fingerprint(padded).tobytes().hex()
    rows.append(('retrain', file.name, shards.digest(pixels), hashed))
  run = tmp_path / 'recipe/retrain'
  run.mkdir(parents=True)
  with open(run / leakage.FILE, 'w', newline='') as stream:
    csv_cells.write(stream, rows)
  lines, _ = shared([run, copies], tmp_path)
  assert lines[0].startswith(f'note: {run}: no config.json')
  config = fakes.make_config(data__fit='pad')
  record_lib.save(config, run / 'config.json')
  for path in (run, run / leakage.FILE, tmp_path / 'recipe'):
    lines, found = shared([path, copies], tmp_path)
    assert [(r['id_a'], r['id_b'], r['what']) for r in found] == [
      (f'{i}.png', f'{i}.jpg', 'near') for i in range(4)
    ]
    assert len(lines) == 1


def test_an_output_that_cannot_be_written_is_refused_before_all_else(tmp_path):
  for output in (tmp_path / 'no/o.csv', tmp_path):
    with pytest.raises(UserError, match=f'--output={output}'):
      audit.audit(['gone', 'too'], output, progress=False)


def test_a_patient_of_two_dicom_folders_is_found_by_his_id(tmp_path):
  pytest.importorskip('pydicom')
  rng = np.random.default_rng(0)
  for folder, patients in (('a', 'PQ'), ('b', 'QR')):
    (tmp_path / folder).mkdir()
    for patient in patients:
      pixels = rng.integers(0, 256, (64, 64), np.uint8)
      fakes.write_dicom(tmp_path / folder / f'{patient}.dcm', pixels,
                        PatientID=patient)  # fmt: skip
  lines, rows = shared([tmp_path / 'a', tmp_path / 'b'], tmp_path)
  assert [(r['id_a'], r['id_b'], r['what']) for r in rows] == [
    ('Q.dcm', 'Q.dcm', 'patient')
  ]
  assert '0 of 2 images' in lines[0] and '1 of its 2 patients' in lines[0]


def test_one_set_or_none_is_refused_in_a_line(served, tmp_path):
  with pytest.raises(UserError, match='two sets or more'):
    shared([served.files], tmp_path)
  with pytest.raises(UserError, match='gone: no such file or folder'):
    shared([served.files, tmp_path / 'gone'], tmp_path)
  assert not (tmp_path / 'audit.csv').exists()
