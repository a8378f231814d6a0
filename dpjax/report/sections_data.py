"""Sections of the report: the radiographs, their labels and their masks.

A section is a function of (section, report_data) that writes into the section,
or raises page.Missing with the reason why it is left out.
"""

import numpy as np

from dpjax.data.feed import decisions, lesion_masks
from dpjax.evaluation import files
from dpjax.models import sides as sides_lib
from dpjax.report import figures, overlay, page
from dpjax.report.report_data import ReportData, read_image

SIDE = 320  # pixels of a radiograph's tile


def classes(section: page.Section, report_data: ReportData) -> None:
  """One image of each class under its boxes (the paper's Fig. 1)."""
  data = report_data.prepared('scored')
  first = next((run for run in report_data.runs if run.evaluation), None)
  preferred = first.evaluation['split'] if first else 'test'
  order = sorted(data.splits, key=lambda name: name != preferred)
  rng = np.random.default_rng(report_data.seed)
  tiles, chosen, none = {}, {}, []
  for label, name in enumerate(data.class_names):
    for split_name in order:
      split = data.splits[split_name]
      rows = np.flatnonzero(split.labels == label)
      if len(rows):
        break
    else:
      none.append(str(name))
      continue
    row = int(rng.choice(rows))
    count = int(split.num_boxes[row])
    boxes = f'{count} box' + ('' if count == 1 else 'es')
    tiles[str(label)] = (
      _radiograph(split, row),
      f'Class {name}: {split.ids[row]}, {split_name}, {boxes}',
      f'Radiograph of class {name} under {boxes}',
    )
    chosen[str(name)] = {'id': str(split.ids[row]), 'split': split_name}
  if not tiles:
    raise page.Missing('the prepared set has no labelled images')
  section.say(
    'A radiograph of each class, drawn at random'
    f' (seed {report_data.seed}), with the boxes of its lesions.'
  )
  section.tiles(tiles)
  if none:
    section.say(f'There is no image of class {", ".join(none)}.', 'note')
  section.numbers['chosen'] = chosen


def counts(section: page.Section, report_data: ReportData) -> None:
  """How many radiographs each class has in each split (Fig. 2)."""
  data = report_data.prepared('trained')
  names = [str(name) for name in data.class_names]
  table = {
    split_name: np.bincount(
      split.labels[split.labels >= 0], minlength=len(names)
    ).tolist()
    for split_name, split in data.splits.items()
    if (split.labels >= 0).any()
  }
  if not table:
    raise page.Missing('the prepared set has no labelled images')
  total = np.sum(list(table.values()), axis=0)
  shown = ', '.join(
    f'{name} {n:,}' for name, n in zip(names, total.tolist(), strict=True)
  )
  section.charts(
    {
      'counts': (
        figures.bars(
          table, names, title='Radiographs of each class', x='Radiographs',
          y='Class',
        ),
        f'Bars of the radiographs of each class by split; in all: {shown}',
      )
    }
  )  # fmt: skip
  section.table(
    ['Class', *table, 'All'],
    [
      [name, *(f'{row[i]:,}' for row in table.values()), f'{total[i]:,}']
      for i, name in enumerate(names)
    ]
    + [
      [
        'All',
        *(f'{sum(row):,}' for row in table.values()),
        f'{total.sum():,}',
      ]
    ],
    'Radiographs',
  )
  unlabelled = {
    split_name: int((split.labels < 0).sum())
    for split_name, split in data.splits.items()
    if (split.labels < 0).any()
  }
  for split_name, count in unlabelled.items():
    section.say(f'{split_name}: {count:,} without a label.', 'note')
  section.numbers |= {
    'class_names': names, 'counts': table, 'unlabelled': unlabelled
  }  # fmt: skip


def masks(section: page.Section, report_data: ReportData) -> None:
  """mask+ and mask- of one image at each stage (Fig. 5)."""
  run = next(filter(_has_masks, report_data.runs), None)
  if run is None:
    raise page.Missing('no run was trained with masks (MGACR)')
  data = report_data.prepared('trained')
  split_name = next(
    (n for n, split in data.splits.items() if (split.num_boxes > 0).any()), None
  )
  if split_name is None:
    raise page.Missing('the prepared set has no boxes')
  split = data.splits[split_name]
  rng = np.random.default_rng(report_data.seed)
  row = int(rng.choice(np.flatnonzero(split.num_boxes)))
  sides, found = _masks(run.config, split, row)
  image = read_image(split, row)
  section.say(
    f'{split.ids[row]} ({split_name}), drawn at random among the images with'
    f' boxes (seed {report_data.seed}), without augmentation. mask+ is the'
    ' share of a cell that lesions cover, and mask- is 1 - mask+; they are what'
    ' the attention maps are taught.'
  )
  tiles = {'image': (_radiograph(split, row), 'The radiograph and its boxes',
                     'Radiograph under its boxes')}  # fmt: skip
  for sign, kind in (('+', 'positive'), ('-', 'negative')):
    for stage, side in sides.items():
      mask = found[stage][0] if sign == '+' else 1 - found[stage][0]
      tiles[f'{stage}-{kind}'] = (
        overlay.masked(image, mask, sign == '+', SIDE),
        f'mask{sign}, {stage}, {side} x {side} cells',
        f'Radiograph under mask{sign} of {stage}',
      )
    section.tiles(tiles)
    tiles = {}
  section.numbers |= {
    'id': str(split.ids[row]),
    'sides': sides,
    'covered': {name: float(mask.mean()) for name, mask in found.items()},
  }


def _has_masks(run):
  """Whether a run was trained with them."""
  c = run.config
  return bool(c and c.stage in files.CLASSIFIERS and run.mgacr)


def _masks(config, split, row):
  """{stage: side} and {stage: mask+ (1, side, side)} of one image, plain."""
  sides = sides_lib.stage_sides(
    config.model.network, config.data.image_size, config.model.stage_sizes
  )
  sides = {s: side for s, side in sides.items() if s in config.mgacr.stages}
  return sides, lesion_masks.on_host(
    split.boxes[[row]],
    split.num_boxes[[row]],
    decisions.identity(1)['affine'][:, 0],
    sides,
    config.mgacr.mask,
  )


def _radiograph(split, row):
  """The tile of one image under its boxes, (SIDE, SIDE, 3) uint8."""
  drawn = overlay.draw(
    read_image(split, row), split.boxes[row],
    int(split.num_boxes[row]), {}, caption=(), side=SIDE,
  )  # fmt: skip
  return page.cut(drawn, SIDE)[0]
