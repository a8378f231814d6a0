"""Runs of a study that train nothing: files alone, seeded by what they are."""

import functools
import json
import pathlib

import numpy as np
import xxhash

from dpjax import leakage, prepare
from dpjax.config import resolve as resolve_lib
from dpjax.data.feed import pipeline
from dpjax.evaluation import evaluate
from dpjax.metrics import predictions, scores
from dpjax.studies import tasks as tasks_lib
from dpjax.training import loop
from dpjax.training import workdir as workdir_lib
from tests import fakes

TUNED = ('finetune.epochs=4.0',)  # overrides of a row that is fine-tuned
STORE = fakes.make_store(train=24, validation=9, test=30)

resolve = functools.partial(
  resolve_lib.resolve, num_devices=8, platform='cpu'
)  # fmt: skip


def make_config(**changes):
  """Of a study of two rows and two seeds, as small as can be."""
  return fakes.make_config(
    **{
      'model__stage_sizes': (1,),
      'model__width': 4,
      'mgacr__stages': ('stage1',),
      'stage': 'recipe',
      'pretrain__epochs': 1.0,
      'retrain__epochs': 1.0,
      'evaluate__resamples': 40,
      'ablate__seeds': (0, 1),
      'ablate__rows': (
        ('+ pre-training', ('mgacr.features=False', 'mgacr.attention=False')),
        ('+ attention', ('mgacr.features=False',)),
      ),
      'compare__pixels': 8,
      **changes,
    }
  )


def make_task(workdir, name='row', overrides=(), seed=0, **changes):
  """The task of a row, as a study has it."""
  config = make_config(**changes)
  own = tasks_lib.resolved(config, name, overrides, seed, resolve)
  return tasks_lib.network(own, workdir, name)


class Fake:
  """loop.train and evaluate.evaluate, as far as a study sees them.

  Attributes:
    calls: (what, folder under the study's workdir), in order.
    fails: {folder: what train raises there}.
  """

  def __init__(self, root):
    self.root = pathlib.Path(root)
    self.calls = []
    self.fails = {}

  def _note(self, what, workdir):
    folder = str(pathlib.Path(workdir).relative_to(self.root))
    name = folder.split('-')[0] if 'pretrain-' in folder else folder
    self.calls.append((what, name))
    if what != 'evaluate' and name in self.fails:
      raise self.fails[name]

  def train(self, config, stage, workdir):
    """Leaves config.json, a checkpoint, a log and a manifest."""
    workdir_lib.claim_workdir(workdir, config, stage)
    workdir_lib.record_config(workdir, config, stage)
    self._note(stage, workdir)
    (workdir / 'checkpoints' / '3').mkdir(parents=True, exist_ok=True)
    lines = [
      {'step': 3 * i, 'split': 'validation', 'accuracy': 0.1 * i + config.seed,
       'epoch': config[stage].epochs * i / 2, 'seconds_training': 10.0 * i}
      for i in (1, 2)
    ]  # fmt: skip
    (workdir / 'metrics.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines)
    )
    leakage.write(workdir, stage, pipeline.Records((STORE.split('train'),)))

  def evaluate(self, config, workdir):
    """Leaves predictions.csv and evaluation.json of made-up answers."""
    self._note('evaluate', workdir)
    seed = xxhash.xxh32_intdigest(str(workdir.relative_to(self.root)).encode())
    split = STORE.split(config.evaluate.split)
    write_evaluation(
      workdir, split, np.random.default_rng(seed), settings=config.evaluate
    )


def install(tmp_path, monkeypatch):
  """A Fake in the place of training and evaluation."""
  fake = Fake(tmp_path)
  monkeypatch.setattr(loop, 'train', fake.train)
  monkeypatch.setattr(evaluate, 'evaluate', fake.evaluate)
  monkeypatch.setattr(prepare, 'open_prepared', lambda config: STORE)
  return fake


def write_evaluation(workdir, split, rng, strength=1.0, settings=None):
  """The evaluation of random answers that lean to the truth."""
  logits = rng.normal(size=(len(split), 3))
  logits[np.arange(len(split)), split.labels] += strength
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  predictions.write_predictions(
    workdir / 'predictions.csv', split.ids, split.labels, probabilities, '012',
    split.groups,
  )  # fmt: skip
  is_test = split is STORE.split('test')
  result = {
    'checkpoint': 'last',
    'data': (settings and settings.path) or 'memory',
    **({'settings': settings.to_dict()} if settings else {}),
    'split': 'test' if is_test else 'validation',
    'device': 'none',
    'class_names': ['0', '1', '2'],
    **scores.scores(split.labels, probabilities, '012'),
    'localisation': {'cam': {'scores': {'energy_in_box': rng.random()}}},
    'seconds': {'inference': 1.5},
    'images_per_second': 20.0,
  }
  (workdir / 'evaluation.json').write_text(json.dumps(result))
  return probabilities
