"""What the sections of the report say of scores, intervals and maps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dpjax.evaluation import localisation
from dpjax.metrics import score_table
from dpjax.report import page

_STAR = '\u00a0*'  # lower is better; never on a line of its own
# What the page calls them, by the names of evaluation.json.
SCORES = {
  name: page.capital(score.long) + _STAR * score.lower_is_better
  for name, score in score_table.SUMMARY.items()
}
PER_CLASS = {
  name: page.capital(score.long)
  for name, score in score_table.PER_CLASS.items()
}
LOCALISATION = {
  name: page.capital(title.long) for name, title in localisation.SCORES.items()
}
# Of Grad-CAM, by the names in evaluation.json.
CAM_TARGETS = {
  'lesion': 'the log-odds of any lesion',
  'label': 'the logit of the true class',
  'prediction': 'the logit of the predicted class',
}


def drawn(result: Mapping[str, Any]) -> str:
  """What a bootstrap drew: 'images', or 'patients' where one has several."""
  several = result.get('num_patients') not in (None, result.get('num_images'))
  return 'patients' if several else 'images'


def legend(results: Iterable[Mapping[str, Any]]) -> str:
  """What stands in the tables of scores.

  Args:
    results: of evaluation.json, or of against.compare_runs.
  """
  unit, how = 'images', ''
  if any(drawn(result) == 'patients' for result in results):
    unit = 'patients'
    how = (
      ' Each patient is drawn with all their images, so that images of one do'
      ' not count as independent.'
    )
  return (
    f'In brackets: 95 % bootstrap intervals over {unit} (Clopper-Pearson for'
    f' the recall of a class with fewer than 10 {unit}). Bootstrap intervals of'
    f' a handful of {unit} are too narrow.{how} * Lower is better. A dash: not'
    ' defined for these data, or not computed.'
  )


def cell(group: Mapping[str, Any], name: str) -> page.Html:
  """A score and its interval, of a group or a map."""
  return page.score(group['scores'].get(name), group['intervals'].get(name))


def span(
  group: Mapping[str, Any] | None, name: str
) -> tuple[float, float, float] | None:
  """(value, low, high), or None where undefined."""
  if not group or group['scores'].get(name) is None:
    return None
  value = group['scores'][name]
  low, high = group['intervals'].get(name) or (value, value)
  return value, low, high


def describe(
  rows: Sequence[str], spans: Mapping[str, Sequence[Any]], sign: str = ''
) -> str:
  """The values of a chart (figures.intervals) in words.

  Args:
    rows: their names.
    spans: name -> for each row (value, low, high), or None.
    sign: '+' shows that of a difference.
  """
  return '; '.join(
    f'{name}: '
    + ', '.join(
      f'{row} {span[0]:{sign}.3f}'
      for row, span in zip(rows, found, strict=True)
      if span
    )
    for name, found in spans.items()
  )


def map_name(name: str) -> str:
  """A map of evaluation.json's localisation, such as 'att_pos/stage1'."""
  kind, _, stage = name.partition('/')
  kinds = {
    'cam': 'Grad-CAM',
    'att_pos': 'map+',
    'att_neg': 'map-',
    'random': 'random: uniform noise',
    'centre': 'centre: Gaussian in the middle',
    'prior': 'prior: mean lesion mask of training',
  }
  return kinds.get(kind, kind) + (f', {stage}' if stage else '')
