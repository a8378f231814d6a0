"""SIGTERM and SIGINT, noted for whoever can stop in good order."""

import signal


class Signals:
  """Within it, SIGTERM and SIGINT are noted; a second SIGINT interrupts.

  Attributes:
    received: the name of the last one, or None.
  """

  def __init__(self):
    self.received: str | None = None
    self._before = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, _):
    if self.received and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.received = signal.Signals(number).name
