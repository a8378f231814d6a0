"""A mistake on the command line is one line that says what is wrong."""

import os
import subprocess
import sys

import pytest

from dpjax.config import flags as flags_lib
from dpjax.errors import UserError
from tests.config import given


def run_main(*arguments, **environment):
  return subprocess.run(
    [sys.executable, '-m', 'dpjax.main', *arguments],
    cwd=given.ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([], ['--config', 'missing']),
    (['evaluate'], ['--workdir', 'missing']),
    (
      ['report', '--workdir=/nowhere', '--config.evaluate.sede=1'],
      ['config.evaluate.sede', 'evaluate.seed'],
    ),
    (['--config=configs/nope.py'], ['configs/nope.py', 'no such file']),
    (['--config=pyproject.toml'], ['pyproject.toml', 'get_config']),
    (
      ['--config', 'configs/retrain.py', '--config.mgacr.epps=1'],
      ['config.mgacr.epps', 'mgacr.eps'],
    ),
    (['--config=configs/retrain.py:fast'], ['fast', 'quick']),
    (
      ['--config=configs/retrain.py', '--config.mgacr.epps=1'],
      ['config.mgacr.epps', 'mgacr.eps'],
    ),
    (
      ['--config=configs/retrain.py', '--config.data.image_size=big'],
      ['config.data.image_size', 'big'],
    ),
    (['--config=configs/retrain.py', '--confg.seed=1'], ['confg.seed']),
    (['trian', '--config=configs/retrain.py'], ['trian', 'train']),
  ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_status_2(
  arguments, words
):
  result = run_main(*arguments)
  assert result.returncode == 2
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), result.stderr
  assert all(word in lines[0] for word in words), lines[0]


def test_a_value_is_refused_before_jax_starts():
  result = run_main(
    '--config=configs/retrain.py', '--config.loss.beta=2',
    JAX_PLATFORMS='toaster',
  )  # fmt: skip
  assert result.returncode == 2
  assert result.stderr == (
    'error: config.loss.beta is 2.0; it must be a number, from 0.0 to 1.0\n'
  )


@pytest.mark.parametrize(
  ('given_as', 'hint'),
  [
    (['--config.data.findings=a,b'], "\"('a','b')\""),
    (['--config.data.findings', 'a,b'], "\"('a','b')\""),
    (['--config.data.classes=(a, b)'], "\"('a','b')\""),
    (['--config.data.classes=(a)'], '"(\'a\',)"'),
    (['--data.layout=csv'], '--config.data.layout=csv?'),
    (['--data.layout', 'csv'], '--config.data.layout=csv?'),
    (['--layout=csv'], '--config.data.layout=csv?'),
    (['--data.csv.label'], '--config.data.csv.label?'),
    (['config.data.layout=csv'], '--config.data.layout=csv?'),
    (['data.layout=csv'], '--config.data.layout=csv?'),
  ],
)
def test_a_tuple_or_field_that_is_written_otherwise_gets_a_hint(
  given_as, hint, capsys
):
  words = ['main', '--config=configs/retrain.py', *given_as]
  with pytest.raises(SystemExit) as end:
    flags_lib.parse_flags(words)
  error = capsys.readouterr().err
  assert end.value.code == 2
  assert hint in error and error.count('\n') == 1


@pytest.mark.parametrize(
  'value', ["('a','b')", '["a"]', "('a, b',)", 'a', '', '()', "a 'b'"]
)
def test_a_tuple_as_python_writes_it_and_one_text_get_no_hint(value):
  flags_lib._check_tuple('data.findings', value)


def test_one_name_with_a_comma_is_asked_for_as_such():
  with pytest.raises(UserError, match=r"\('Effusion, left',\)"):
    flags_lib._check_tuple('data.classes', 'Effusion, left')


def test_a_platform_that_is_not_here_is_one_line():
  result = run_main('--config=configs/retrain.py', JAX_PLATFORMS='toaster')
  assert result.returncode == 2
  last = result.stderr.strip().splitlines()[-1]
  assert last == 'error: JAX finds no device; JAX_PLATFORMS=toaster'


OWN = """
import runpy
from ml_collections import ConfigDict
def get_config(variant=''):
  config = runpy.run_path({base!r})['get_config'](variant)
  {change}
  return config
"""


def run_own(tmp_path, change, *flags):
  """`prepare` by a config file of the user's own, as far as it is refused."""
  base = str(given.ROOT / 'configs' / 'base.py')
  file = tmp_path / 'own.py'
  file.write_text(OWN.format(base=base, change=change))
  return run_main('prepare', f'--config={file}', *flags)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ('config.retrain.epoch = 3', ['retrain.epoch ', 'retrain.epochs']),
    ('config.retrain.epochs = "3"', ['own.py', 'line 6', 'epochs']),
    ('config.retrain.epochs = -3', ['retrain.epochs', '-3']),
    ('config.retrain.optim = ConfigDict({"clip": -1})', ['optim.clip', '-1']),
    ('confg.retrain.epochs = 3', ['line 6', 'NameError', 'confg']),
    ('config = None', ['own.py', 'ConfigDict']),
  ],
)
def test_a_mistake_in_a_file_of_the_users_own_is_one_line(
  tmp_path, change, words
):
  result = run_own(tmp_path, change)
  assert result.returncode == 2, result.stderr
  lines = result.stderr.strip().splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), result.stderr
  assert all(word in lines[0] for word in words), lines[0]


def test_a_file_of_the_users_own_counts_and_flags_go_before_it(tmp_path):
  change = 'config.update({"stage": "pretrain", "data": {"path": "own"}})'
  refused = run_own(tmp_path, change, '--config.data.layout=nih')
  assert refused.returncode == 2
  assert 'there is no prepared one in own' in refused.stderr
  refused = run_own(
    tmp_path, change, '--config.data.layout=nih', '--config.data.path=flag'
  )
  assert 'there is no prepared one in flag' in refused.stderr


@pytest.mark.parametrize('name', ['mine', 'rsna-256'])
def test_a_file_of_configs_is_known_by_its_name(name, tmp_path, monkeypatch):
  monkeypatch.setattr(flags_lib.fields, 'CONFIGS', tmp_path)
  (tmp_path / f'{name}.py').touch()
  words = ['main', f'--config={name}:quick', '--config', name, '-config=other']
  assert flags_lib._with_named_config(words) == [
    'main', f'--config={tmp_path}/{name}.py:quick',
    '--config', f'{tmp_path}/{name}.py', '-config=other',
  ]  # fmt: skip


def test_a_typing_error_in_a_file_of_flags_is_one_line(tmp_path):
  flagfile = tmp_path / 'flags'
  flagfile.write_text('--config=configs/retrain.py\n--config.mgacr.epps=1\n')
  result = run_main(f'--flagfile={flagfile}')
  assert result.returncode == 2
  assert result.stderr == (
    'error: config.mgacr.epps does not exist; did you mean mgacr.eps?\n'
  )


def test_a_bug_of_ours_in_the_flags_keeps_its_traceback(monkeypatch):
  def broken(_):
    raise ValueError('of ours')

  monkeypatch.setattr(flags_lib, '_check_words', broken)
  with pytest.raises(ValueError, match='of ours'):
    flags_lib.parse_flags(['main'])
