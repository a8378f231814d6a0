"""How long scores, localisation and the report take, without the network.

python benchmarks/evidence_rate.py [--images=2000]

Prepares phantoms of 256 pixels in a temporary folder, makes up what a network
of 224 pixels would answer to the test split (seeded random numbers in the
shapes of ResNet18), and times what evaluate and report do with it.
"""

import argparse
import contextlib
import io
import pathlib
import runpy
import tempfile
import time

import numpy as np

from dpjax import prepare
from dpjax.config import record as record_lib
from dpjax.config import resolve as resolve_lib
from dpjax.evaluation import evaluate, explain, files, localisation
from dpjax.report import report

SIZE = 224
SIDES = {'stage1': 56, 'stage2': 28, 'stage3': 14, 'stage4': 7}


def make_config(images, path):
  """Of a set with `images` test images and a quarter as many others."""
  root = pathlib.Path(__file__).parents[1]
  config = runpy.run_path(str(root / 'configs/base.py'))['get_config']()
  config.data.phantom.count = images * 5 // 4
  config.data.path = str(path)
  config.split.test = 0.8
  config.train.progress = False
  return resolve_lib.resolve(config, num_devices=1, platform='cpu')


def answers(split, num_classes, rng):
  """Class probabilities (N, C), right more often than not."""
  logits = rng.normal(size=(len(split), num_classes))
  logits[np.arange(len(split)), split.labels] += 1.5
  return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def make_maps(count, rng):
  """What explain.compile_maps finds of `count` images."""
  found = {'cam': rng.random((count, 7, 7), np.float32)}
  for stage, side in SIDES.items():
    for sign in ('att_pos', 'att_neg'):
      found[f'{sign}/{stage}'] = rng.random((count, side, side), np.float32)
  return found


def main():
  """Prints a line for each part, and their sum."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=2000)
  count = parser.parse_args().images
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / 'run'
    workdir.mkdir()
    config = make_config(count, pathlib.Path(folder) / 'set')
    with contextlib.redirect_stderr(io.StringIO()):
      prepare.prepare(config)
    data = prepare.open_prepared(config)
    config.stage = 'retrain'
    config.init.backbone = None
    record_lib.save(config, workdir / 'config.json')
    images = evaluate.images_to_score(config.evaluate, data)
    rng = np.random.default_rng(0)
    seconds = {}
    start = time.perf_counter()

    def lap(name):
      nonlocal start
      seconds[name] = time.perf_counter() - start
      start = time.perf_counter()

    result = evaluate.score_classifier(
      workdir,
      config.evaluate,
      data.class_names,
      images,
      lambda split: (
        answers(split, data.num_classes, rng),
        {'inference': 1.0, 'images_per_second': None},
      ),
    )
    lap('scores and intervals')
    shown = explain.to_explain(images.split, 0)
    validation = images.validation
    rows = explain.Rows(validation, np.flatnonzero(validation.num_boxes))
    maps = make_maps(len(shown), rng)
    start = time.perf_counter()
    result |= {'step': 1, 'device': 'none', 'localisation': {}}
    ids, per_image, result['localisation'] = explain.localise(
      shown,
      maps,
      (rows, make_maps(len(rows), rng)),
      data.split('train'),
      size=SIZE,
      resamples=config.evaluate.resamples,
      seed=0,
    )
    localisation.write_scores(workdir / files.LOCALISATION, ids, per_image)
    np.savez_compressed(
      workdir / files.MAPS,
      ids=shown.ids,
      **{name: value.astype(np.float16) for name, value in maps.items()},
    )
    evaluate.write(workdir, result)
    lap(f'localisation of {len(shown)} images')
    report.write([str(workdir)], config)
    lap('report')
    page = (workdir / 'report.html').stat().st_size
  seconds['together'] = sum(seconds.values())
  print(f'{len(data.split("test"))} test images of {SIZE} pixels')
  for name, value in seconds.items():
    print(f'{name:<32} {value:6.1f} s')
  print(f'report.html: {page / 2**20:.1f} MiB')


if __name__ == '__main__':
  main()
