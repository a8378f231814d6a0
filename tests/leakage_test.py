"""What a run was trained on, and what it may therefore not be scored on."""

import csv

import numpy as np
import pytest

from dpjax import leakage
from dpjax.data.feed import pipeline
from dpjax.errors import UserError
from tests import fakes

NEAR = 16


def records(*splits):
  return pipeline.Records(splits)


def rows(workdir):
  with open(workdir / leakage.FILE, newline='', encoding='utf-8') as file:
    return list(csv.reader(file))


def test_every_training_image_is_listed_by_stage_id_and_digest(tmp_path):
  first, second = (fakes.make_split(5, 16, seed=s) for s in (0, 1))
  leakage.write(tmp_path, 'pretrain', records(first, second))
  ids = [*first.ids, *second.ids]
  digests = [*first.source_digests, *second.source_digests]
  hashes = [h.tobytes().hex() for s in (first, second) for h in s.hashes]
  assert rows(tmp_path) == [
    ['stage', 'id', 'source_xxh3', 'perceptual_hash'],
    *(['pretrain', *row] for row in zip(ids, digests, hashes, strict=True)),
  ]


def test_what_the_backbone_saw_counts_too_even_when_it_is_gone(tmp_path):
  first, second, other = (fakes.make_split(5, 16, seed=s) for s in (0, 1, 2))
  (tmp_path / 'one').mkdir()
  (tmp_path / 'two').mkdir()
  leakage.write(tmp_path / 'one', 'pretrain', records(first))
  leakage.write(tmp_path / 'two', 'retrain', records(second), tmp_path / 'one')
  (tmp_path / 'one' / leakage.FILE).unlink()
  for split, stage in ((first, 'pretrain'), (second, 'retrain')):
    with pytest.raises(UserError, match=f'of its {stage}') as caught:
      leakage.check_unseen(tmp_path / 'two', split, 'test of data', NEAR)
    assert '5 of the 5 images of test of data' in str(caught.value)
  leakage.check_unseen(tmp_path / 'two', other, 'test of data', NEAR)


def test_one_image_among_many_is_found(tmp_path):
  seen, unseen = (fakes.make_split(20, 16, seed=s) for s in (0, 1))
  leakage.write(tmp_path, 'retrain', records(seen))
  leakage.check_unseen(tmp_path, unseen, 'x', NEAR)
  unseen.pixels[13] = seen.pixels[4]
  with pytest.raises(UserError) as caught:
    leakage.check_unseen(tmp_path, unseen, 'x', NEAR)
  assert '1-13 is 0-4 of its retrain' in str(caught.value)
  assert np.array_equal(unseen.pixels[13], seen.pixels[4])


def test_a_copy_in_another_file_counts_as_the_image_itself(tmp_path):
  seen, unseen = (fakes.make_split(20, 64, seed=s) for s in (0, 1))
  leakage.write(tmp_path, 'pretrain', records(seen))
  unseen.pixels[13] = seen.pixels[4] // 2 + 30  # less contrast
  with pytest.raises(UserError, match='1-13 is a copy of 0-4 of its pretrain'):
    leakage.check_unseen(tmp_path, unseen, 'x', NEAR)
  leakage.check_unseen(tmp_path, unseen, 'x', near=-1)


def test_the_fingerprint_is_the_training_sets_and_not_its_places():
  trained = records(fakes.make_split(6, 16, seed=0))
  again = records(fakes.make_split(6, 16, seed=0))
  print_ = leakage.fingerprint(trained)
  assert leakage.fingerprint(again) == print_
  leakage.check_trained_on({'trained_on': print_}, again, 'elsewhere')
  # A checkpoint from before it was recorded.
  leakage.check_trained_on({}, again, 'elsewhere')
  other = fakes.make_split(6, 16, seed=0)
  other.pixels[0, 0, 0] += 1
  assert leakage.fingerprint(records(other)) != print_
  with pytest.raises(UserError, match=r'config\.data\.path: elsewhere is not'):
    leakage.check_trained_on(
      {'trained_on': print_}, records(other), 'elsewhere'
    )


@pytest.mark.parametrize('name', ['validation', 'test'])
def test_no_image_that_is_held_out_is_added_to_a_training_set(name):
  data = fakes.make_store()
  added = fakes.make_split(9, 48, seed=60)
  leakage.check_none_held_out([added], 'extra', data, NEAR)
  added.pixels[4] = data.split(name).pixels[2]
  with pytest.raises(UserError, match=rf'60-4 of extra .* {name} split'):
    leakage.check_none_held_out([added], 'extra', data, NEAR)


def test_a_manifest_is_as_the_checkpoint_knows_it_or_refused(tmp_path):
  leakage.write(tmp_path, 'retrain', records(fakes.make_split(8, 8, seed=0)))
  record = {'manifest': leakage.digest(tmp_path)}
  leakage.check_manifest(tmp_path, record)
  file = tmp_path / leakage.FILE
  whole = file.read_bytes()
  for less in whole[: whole.rindex(b'\n', 0, -2) + 1], b'', None:
    file.unlink()
    if less is not None:
      file.write_bytes(less)
    with pytest.raises(UserError, match=r'training_manifest\.csv is not as'):
      leakage.check_manifest(tmp_path, record)
    leakage.check_manifest(tmp_path, {})  # of an earlier version
