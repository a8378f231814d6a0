"""One stage of one config on one prepared set, as plain data."""

import dataclasses
import functools

import ml_collections

from dpjax.data import store
from dpjax.data.feed import pipeline
from dpjax.distributed import parallel
from dpjax.training import objectives


def stage_settings(
  config: ml_collections.ConfigDict, stage: str
) -> ml_collections.ConfigDict:
  """A stage's section of a config; fine-tuning has the batches of stage II.

  Args:
    config: as resolved.
    stage: 'pretrain', 'retrain' or 'finetune'.
  """
  if stage != 'finetune':
    return config[stage]
  shared = {name: config.retrain[name] for name in ('batch_size', 'augment')}
  return ml_collections.ConfigDict({**shared, **config.finetune})


def total_steps(settings: ml_collections.ConfigDict, count: int) -> int:
  """Updates of a stage with these settings on `count` training records."""
  return max(1, round(settings.epochs * (count / settings.batch_size)))


@dataclasses.dataclass(frozen=True)
class Run:
  """What `build.build` makes of a config and a set.

  Attributes:
    config: as resolved, for this set and these devices too (auto.resolve).
    stage: 'pretrain', 'retrain' or 'finetune'.
    data: the prepared set.
    records: what the stage trains on.
    objective: the stage's networks and losses.
    devices: what it runs on.
  """

  config: ml_collections.ConfigDict
  stage: str
  data: store.Store
  records: pipeline.Records
  objective: objectives.Objective
  devices: parallel.Devices

  @functools.cached_property
  def settings(self) -> ml_collections.ConfigDict:
    """The stage's own section of the config (stage_settings)."""
    return stage_settings(self.config, self.stage)

  @property
  def classifier(self) -> objectives.Retraining:
    """The objective of a stage that classifies.

    Raises:
      ValueError: the run is of stage I.
    """
    if not isinstance(self.objective, objectives.Retraining):
      raise ValueError(f'{self.stage} has no classifier')
    return self.objective

  @functools.cached_property
  def steps_per_epoch(self) -> float:
    """Batches that show each training record once; may be a fraction."""
    return len(self.records) / self.settings.batch_size

  @functools.cached_property
  def total_steps(self) -> int:
    """Updates of the whole stage."""
    return total_steps(self.settings, len(self.records))

  @property
  def average(self) -> float:
    """Decay of the average of its weights; 0 where there is none."""
    return self.settings.get('average', 0.0)
