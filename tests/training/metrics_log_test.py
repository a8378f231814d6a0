"""metrics.jsonl, and the clock of its lines."""

import json

import pytest

from dpjax.errors import UserError
from dpjax.training import metrics_log


def test_lines_of_undone_steps_and_a_torn_line_leave_the_log(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(
    '{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo'
  )
  metrics_log.MetricsLog(tmp_path, done=2, tensorboard=False).close()
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert text == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
  'line', [b'{"step": 2, "lo', b'\xff\x00', b'[]', b'{"loss": 1}', b'',
           b'[' * 100_000, b'{"step": "2"}'],
  ids=range(7),
)  # fmt: skip
def test_a_line_damaged_in_the_middle_is_named(line, tmp_path):
  file = tmp_path / 'metrics.jsonl'
  file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
  before = file.read_bytes()
  with pytest.raises(UserError, match=r'metrics\.jsonl, line 2: ') as error:
    metrics_log.MetricsLog(tmp_path, done=3, tensorboard=False)
  assert '\n' not in str(error.value) and len(str(error.value)) < 500
  assert file.read_bytes() == before


def test_tensorboard_gets_every_finite_number(tmp_path):
  events = pytest.importorskip('tensorboardX')
  del events
  log = metrics_log.MetricsLog(tmp_path, done=0, tensorboard=True)
  log.write(1, split='train', loss=0.5, auroc=None)
  log.close()
  (file,) = (tmp_path / 'tensorboard').iterdir()
  assert b'train/loss' in file.read_bytes()
  assert b'auroc' not in file.read_bytes()


@pytest.fixture
def time(monkeypatch):
  """A clock that stands where it is put: time['now']."""
  now = {'now': 100.0}
  monkeypatch.setattr(metrics_log.time, 'perf_counter', lambda: now['now'])
  return now


def test_what_is_between_start_and_stop_is_training_over_all_starts(time):
  clock = metrics_log.Clock(began=90.0, training=5.0, wall=20.0)
  assert (clock.training, clock.wall) == (5.0, 30.0)
  clock.start()
  time['now'] += 2
  assert clock.training == 7.0
  clock.stop()
  time['now'] += 8  # a validation
  assert (clock.training, clock.wall) == (7.0, 40.0)
  clock.start()
  time['now'] += 1
  assert (clock.training, clock.wall) == (8.0, 41.0)


def test_an_interval_has_the_means_of_its_steps_and_their_rate(time):
  clock = metrics_log.Clock(began=100.0)
  clock.start()
  interval = metrics_log.Interval(16, clock)
  for loss in (1.0, 4.0):
    time['now'] += 0.5
    interval.add({'loss': loss})
  assert interval.close() == {'loss': 2.5, 'images_per_second': 32.0}
  time['now'] += 2
  interval.add({'loss': 7.0})
  assert interval.close() == {'loss': 7.0, 'images_per_second': 8.0}


def test_an_interval_covers_its_steps_over_a_validation_and_another_start(time):
  clock = metrics_log.Clock(began=100.0)
  clock.start()
  interval = metrics_log.Interval(16, clock)
  time['now'] += 1
  interval.add({'loss': 0.1})
  clock.stop()
  time['now'] += 50  # a validation
  clock.start()
  time['now'] += 1
  interval.add({'loss': 0.2})
  clock.stop()
  state = json.loads(json.dumps(interval.state))  # as in a checkpoint
  time['now'] += 1000
  again = metrics_log.Clock(time['now'], training=clock.training)
  again.start()
  time['now'] += 7  # compiles
  interval = metrics_log.Interval(16, again, state)
  time['now'] += 2
  interval.add({'loss': 0.3})
  means = interval.close()
  assert means == {'loss': (0.1 + 0.2 + 0.3) / 3, 'images_per_second': 12.0}


def test_a_full_disk_is_told_with_the_path(tmp_path):
  log = metrics_log.MetricsLog(tmp_path, done=0, tensorboard=False)
  log._file.close()
  log._file = open('/dev/full', 'a')
  with pytest.raises(UserError, match=r'metrics\.jsonl cannot be .*No space'):
    log.write(1, split='train', loss=0.5)
  log.close()  # without another error
