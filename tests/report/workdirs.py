"""Workdirs as training and `evaluate` leave them, of seeded random numbers."""

import dataclasses
import itertools
import json

import numpy as np

from dpjax.config import record as record_lib
from dpjax.data.feed import decisions, lesion_masks
from dpjax.evaluation import localisation
from dpjax.metrics import predictions
from tests import fakes

STAGES = {'stage1': 12, 'stage2': 6}
SUMMARY = (
  'accuracy', 'balanced_accuracy', 'macro_f1', 'auroc_any_lesion',
  'average_precision_any_lesion', 'sensitivity_any_lesion',
  'specificity_any_lesion', 'quadratic_kappa', 'ece', 'brier', 'nll',
  'ece_scaled', 'brier_scaled', 'nll_scaled',
)  # fmt: skip
PER_CLASS = ('precision', 'recall', 'specificity', 'f1', 'auroc',
             'average_precision')  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Store(fakes.Store):
  """fakes.Store with what the report reads of summary.json."""

  info: dict = dataclasses.field(default_factory=lambda: {'name': 'phantom'})


def make_store(**sizes):
  """fakes.make_store, as a Store."""
  made = fakes.make_store(**sizes)
  return Store(splits=made.splits, size=made.size)


def write(workdir, data, *, seed=0, path='memory', changes=(), names=None):
  """Fills `workdir` as a recipe does; returns its stage II workdir.

  Args:
    workdir: the folder to make.
    data: a prepared set with the splits train, validation and test.
    seed: of the numbers.
    path: of the set, as the run records it.
    changes: of fakes.make_config, as pairs.
    names: of the classes, if not the set's own.
  """
  rng = np.random.default_rng(seed)
  names = [str(n) for n in names or data.class_names]
  config = fakes.make_config(**dict(changes))
  config.data.path = path
  config.init.backbone = str(workdir / 'pretrain')
  for stage in ('pretrain', 'retrain'):
    (workdir / stage).mkdir(parents=True)
    record = config.copy_and_resolve_references()
    record.stage = stage
    record_lib.save(record, workdir / stage / 'config.json')
    lines = list(_log(rng, stage))
    (workdir / stage / 'metrics.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines)
    )
  folder = workdir / 'retrain'
  split = data.split('test')
  scores = rng.normal(size=(len(split), len(names)))
  scores[np.arange(len(split)), split.labels] += 1.5
  probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
  predictions.write_predictions(
    folder / 'predictions.csv', split.ids, split.labels, probabilities, names
  )
  _write_maps(rng, folder, split)
  result = _evaluation(rng, folder, split, probabilities, names, path)
  (folder / 'evaluation.json').write_text(json.dumps(result))
  return folder


def _log(rng, stage):
  """The lines of a metrics.jsonl of 6 epochs of 10 steps."""
  terms = {
    'pretrain': ['contrast'],
    'retrain': ['classification', 'att_pos', 'att_neg', 'feat'],
  }[stage]
  for step in range(2, 61, 2):
    fall = np.exp(-step / 25)
    losses = {f'loss/{t}': fall * rng.uniform(0.8, 1.2) for t in terms}
    accuracy = 'contrastive_accuracy' if stage == 'pretrain' else 'accuracy'
    clock = {'seconds_training': step / 2, 'seconds_wall': step / 2 + 3}
    yield {
      'step': step, 'split': 'train', 'epoch': step / 10,
      accuracy: 1 - fall * rng.uniform(0.8, 1), 'gradient_norm': 3.0,
      'learning_rate': 0.1, 'loss': sum(losses.values()), **losses,
      'images_per_second': rng.uniform(90, 110), **clock,
    }  # fmt: skip
    if step % 10 == 0:
      summary = {accuracy: 1 - fall}
      if stage == 'retrain':
        summary |= {
          name: (1 - fall) * rng.uniform(0.8, 1) for name in SUMMARY[1:4]
        }
      yield {'step': step, 'split': 'validation', 'epoch': step / 10,
             'loss': len(terms) * fall + 0.1, **summary, **clock}  # fmt: skip


def _write_maps(rng, folder, split):
  """maps.npz: half of the CAMs lie in the boxes."""
  plain = np.flatnonzero(split.num_boxes == 0)[:2]
  rows = np.sort(np.r_[np.flatnonzero(split.num_boxes), plain])
  masks = lesion_masks.on_host(
    split.boxes[rows], split.num_boxes[rows],
    decisions.identity(len(rows))['affine'][:, 0], STAGES, 'area',
  )  # fmt: skip
  maps = {}
  for stage, mask in masks.items():
    noisy = (mask + rng.uniform(0, 0.5, mask.shape)).clip(0, 1)
    maps |= {f'att_pos/{stage}': noisy, f'att_neg/{stage}': 1 - noisy}
  cam = rng.uniform(0, 0.5, masks['stage2'].shape)
  cam[::2] += masks['stage2'][::2]
  boxed = np.flatnonzero(split.num_boxes[rows])
  scored = localisation.per_image(
    cam[boxed], split.boxes[rows][boxed], split.num_boxes[rows][boxed],
    48, None,
  )  # fmt: skip
  localisation.write_scores(
    folder / 'localisation.csv', split.ids[rows][boxed], {'cam': scored}
  )
  np.savez(
    folder / 'maps.npz',
    ids=split.ids[rows],
    cam=cam.astype(np.float16),
    **{name: value.astype(np.float16) for name, value in maps.items()},
  )


def _evaluation(rng, folder, split, probabilities, names, path):
  counts = len(names)
  matrix = np.zeros((counts, counts), int)
  np.add.at(matrix, (split.labels, probabilities.argmax(axis=1)), 1)
  flat = [*SUMMARY, *(f'{s}/{name}' for name in names for s in PER_CLASS)]
  scores, intervals = _scores(rng, flat)
  scores['balanced_accuracy_0_2'] = intervals['balanced_accuracy_0_2'] = None
  edges = np.linspace(0, 1, 16)
  bins = []
  for low, high in itertools.pairwise(edges):
    count = 0 if low < 0.3 else int(rng.integers(1, 9))
    bins.append({
      'low': low, 'high': high, 'count': count,
      'confidence': (low + high) / 2 if count else None,
      'accuracy': rng.uniform(0, 1) if count else None,
    })  # fmt: skip
  maps = ('cam', *(f'{sign}/{stage}' for stage in STAGES
                   for sign in ('att_pos', 'att_neg')),
          'random', 'centre', 'prior')  # fmt: skip
  localisation = {}
  for name in maps:
    found, spans = _scores(
      rng, ('pointing_game', 'energy_in_box', 'iou', 'pixel_ap')
    )
    localisation[name] = {
      'num_images': int((split.num_boxes > 0).sum()), 'scores': found,
      'intervals': spans, 'threshold': 0.35,
    }  # fmt: skip
  groups = {}
  for column, values in {'sex': ('F', 'M'), 'age': ('<= 41', '> 41')}.items():
    for value in values:
      found, spans = _scores(rng, SUMMARY[:4])
      groups.setdefault(column, {})[value] = {
        'num_images': len(split) // 2, 'scores': found, 'intervals': spans,
      }  # fmt: skip
  return {
    'checkpoint': 'last', 'step': 60, 'data': path,
    'split': 'test', 'device': 'cpu', 'class_names': names,
    'num_images': len(split), 'scores': scores, 'intervals': intervals,
    'per_class': {
      name: {
        **{s: scores[f'{s}/{name}'] for s in PER_CLASS},
        'support': int(matrix[i].sum()),
      }
      for i, name in enumerate(names)
    },
    'confusion_matrix': matrix.tolist(), 'majority_accuracy': 0.4,
    'chosen_on': 'validation', 'threshold': 0.41, 'temperature': 1.7,
    'reliability': bins, 'reliability_scaled': bins, 'subgroups': groups,
    'localisation': localisation, 'cam_target': 'label',
    'cam_stage': 'stage2', 'seconds': {'inference': 1.5},
    'images_per_second': 200.0,
  }  # fmt: skip


def _scores(rng, flat):
  """({name: value}, {name: interval around it})."""
  scores = {name: float(rng.uniform(0.3, 0.9)) for name in flat}
  return scores, {name: [v - 0.06, v + 0.05] for name, v in scores.items()}
