"""What is installed works without its checkout, in any folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

pytest.importorskip('setuptools', minversion='77')
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """A folder that holds what a wheel of this checkout installs."""
  root = tmp_path_factory.mktemp('wheel')
  for name in ('dpjax', 'configs'):
    shutil.copytree(
      ROOT / name, root / 'checkout' / name,
      ignore=shutil.ignore_patterns('__pycache__'),
    )  # fmt: skip
  for name in ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, root / 'checkout')
  code = 'from setuptools import build_meta; print(build_meta.build_wheel("."))'
  built = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', code],
    cwd=root / 'checkout', capture_output=True, text=True, check=True,
  )  # fmt: skip
  wheel = root / 'checkout' / built.stdout.split()[-1]
  zipfile.ZipFile(wheel).extractall(root / 'site')
  return root / 'site'


def run(installed, cwd, *words):
  return subprocess.run(
    [sys.executable, '-m', 'dpjax', *words],
    cwd=cwd, env={**os.environ, 'PYTHONPATH': str(installed)},
    capture_output=True, text=True, check=False,
  )  # fmt: skip


def test_every_file_of_the_package_is_in_the_wheel(installed):
  def files(root):
    return {
      str(path.relative_to(root))
      for path in root.rglob('*')
      if path.is_file() and '__pycache__' not in path.parts
    }

  there = files(installed / 'dpjax')
  assert files(ROOT / 'dpjax') <= there
  assert {f'configs/{name}' for name in files(ROOT / 'configs')} <= there
  (entry,) = installed.glob('*.dist-info/entry_points.txt')
  assert 'dpjax = dpjax.__main__:main' in entry.read_text()


def test_a_config_goes_by_its_name_in_any_folder(installed, tmp_path):
  path = '--config.data.path=set'
  found = run(
    installed, tmp_path, 'prepare', '--config=pretrain:quick', path,
    '--config.data.phantom.count=50', '--config.data.workers=1',
  )  # fmt: skip
  assert found.returncode == 0, found.stderr
  # :quick stores squares of 128 pixels, the default is 256.
  assert 'squares of 128 pixels' in found.stdout
  assert (tmp_path / 'set' / 'summary.json').is_file()


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    ('retrain:quik', ['quik', 'quick']),
    ('retrian', ['retrian', 'no such file', 'retrain']),
    ('configs/retrain.py', ['configs/retrain.py', 'no such file', 'retrain']),
  ],
)
def test_a_name_that_is_none_is_one_line(installed, tmp_path, config, words):
  found = run(installed, tmp_path, f'--config={config}')
  assert found.returncode == 2
  (line,) = found.stderr.splitlines()
  assert all(word in line for word in words), line


def test_a_file_of_the_name_is_meant_by_itself(installed, tmp_path):
  (tmp_path / 'retrain').write_text('def get_config(): return 3\n')
  found = run(installed, tmp_path, '--config=retrain')
  assert found.returncode == 2
  assert 'returns no ConfigDict' in found.stderr
