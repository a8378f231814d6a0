"""benchmarks/throughput.sh, with a Python that only notes its commands."""

import os
import pathlib
import shlex
import subprocess

import pytest

from benchmarks import step_variants
from dpjax.config import fields

ROOT = pathlib.Path(__file__).parents[2]
# Says its platform where it is asked, and its arguments line by line.
PYTHON = """#!/usr/bin/env bash
printf '%q ' "$@" >>"$NOTES"
echo >>"$NOTES"
echo cpu
"""


@pytest.fixture
def script(tmp_path):
  """f(arguments) that runs it: what it said, and the commands as lists."""
  python = tmp_path / 'bin/python'
  python.parent.mkdir()
  python.write_text(PYTHON)
  python.chmod(0o755)

  def run(*arguments):
    notes = tmp_path / 'notes'
    notes.write_text('')
    done = subprocess.run(
      [ROOT / 'benchmarks/throughput.sh', *arguments],
      env={**os.environ, 'NOTES': str(notes),
           'PATH': f'{python.parent}:{os.environ["PATH"]}'},
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done, [*map(shlex.split, notes.read_text().splitlines())]

  return run


def test_every_command_is_one_that_there_is(script, tmp_path):
  done, commands = script('--dry', tmp_path / 'out')
  assert done.returncode == 0, done.stderr
  programs = [command[1] for command in commands if command[0] == '-m']
  assert set(programs) == {'dpjax.main'} and len(programs) >= 5
  for command in commands:
    if command[0] == 'benchmarks/step_variants.py':
      step_variants.arguments('cpu').parse_args(command[1:])
    for word in command:
      name, equals, _ = word.removeprefix('--config.').partition('=')
      if equals and word.startswith('--config.'):
        assert name in fields.table(), command
      if word.startswith('--config='):
        file = word.removeprefix('--config=').partition(':')[0]
        assert (ROOT / file).is_file()


def test_what_was_measured_is_not_measured_again(script, tmp_path):
  script('--dry', tmp_path / 'out')
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'out').iterdir()}
  done, commands = script('--dry', tmp_path / 'out')
  assert {p: p.stat().st_mtime_ns for p in before} == before
  assert not [command for command in commands if command[0] != '-c']
  assert done.stdout.count(' is there') == len(before)


def test_a_machine_without_an_accelerator_is_refused(script, tmp_path):
  done, commands = script(tmp_path / 'out')
  assert done.returncode == 2 and 'JAX finds no accelerator' in done.stderr
  assert len(commands) == 1
