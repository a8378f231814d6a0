"""What this machine has for a process."""

import os
import subprocess
import sys

from dpjax import machine
from tests import children


def test_there_is_a_core_at_least_and_a_share_of_a_machine_is_obeyed():
  assert 1 <= machine.cores() <= os.cpu_count()
  if hasattr(os, 'sched_setaffinity'):
    program = (
      'import os; from dpjax import machine;'
      'os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);'
      'print(machine.cores())'
    )
    result = subprocess.run(
      [sys.executable, '-c', program],
      env=children.environment(),
      capture_output=True,
      text=True,
      check=True,
    )
    assert result.stdout.split() == ['1']
