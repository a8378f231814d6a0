"""Every layout is read through the registry, by the settings that it takes."""

import inspect
import pathlib
import subprocess
import sys

import pytest

from dpjax.data.sources import registry, tables
from tests import fakes


@pytest.mark.parametrize('name', registry.LAYOUTS)
def test_a_layout_is_a_word_of_the_config_with_its_own_label_policy(
  name, tmp_path
):
  config = fakes.make_config(data__layout=name, data__source=str(tmp_path))
  assert config.data.layout == name
  assert config.data.label == registry.LAYOUTS[name].label


def test_the_phantoms_label_is_the_papers():
  assert registry.label_policy('phantom') == 'count'


@pytest.mark.parametrize('name', registry.LAYOUTS)
def test_the_settings_of_a_layout_are_fields_of_the_config(name):
  """And its reader takes each of them."""
  layout = registry.LAYOUTS[name]
  data = fakes.make_config().data
  for field in layout.settings.values():
    section, _, last = field.rpartition('.')
    assert last in (data[section] if section else data)
  signature = inspect.signature(layout.reader)
  signature.bind('source', tables.Faults(), **dict(layout.settings))
  assert layout.doc and layout.label in ('count', 'any', 'class')


def test_what_is_found_for_auto_is_told_by_field(tmp_path):
  (tmp_path / 'labels.csv').write_text('file,label,patient_id\na,0,7\n')
  (tmp_path / 'a.png').write_bytes(b'')
  settings = registry.LAYOUTS['csv'].settings
  fields = {f'csv.{k}': v for k, v in fakes.make_config().data.csv.items()}
  data = fakes.make_config(data__layout='csv', data__source='s').data
  fields |= {
    name: data[name]
    for name in (
      'patient_pattern',
      'ignore',
      'uncertain',
      'blank',
      'classes',
      'label',
    )
  } | {'csv.image': 'file'}
  assert fields.keys() == {*settings.values()}
  records, found = registry.read('csv', tmp_path, tables.Faults(), fields)
  assert [record.group for record in records] == ['7']
  assert found == {
    'csv.patient': 'patient_id',
    'csv.split': '',
    'csv.boxes': '',
    'csv.box_name': '',
  }


def test_what_reads_decodes_and_prepares_imports_no_jax():
  """It takes the memory of a GPU machine's devices."""
  root = pathlib.Path(registry.__file__).parents[3]
  code = """
import importlib, pathlib, sys
for room in ('sources', 'decode', 'prepare'):
  for file in sorted(pathlib.Path('dpjax/data', room).glob('*.py')):
    importlib.import_module(f'dpjax.data.{room}.{file.stem}')
for name in ('decisions', 'render_common', 'render_host', 'lesion_masks'):
  importlib.import_module(f'dpjax.data.feed.{name}')
found = {'jax', 'jaxlib', 'flax', 'grain'} & set(sys.modules)
assert not found, found
"""
  subprocess.run([sys.executable, '-c', code], check=True, cwd=root)
