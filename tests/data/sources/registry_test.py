"""Every layout is read through the registry, by the settings that it takes."""

import inspect
import pathlib
import subprocess
import sys

import pytest

from dpjax.data.sources import registry, tables
from dpjax.errors import UserError
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


def _layout(root, names):
  for i, name in enumerate(names):
    (root / f'class{i % 2}').mkdir(exist_ok=True)
    (root / f'class{i % 2}' / name).write_bytes(b'')
  data = fakes.make_config(
    data__layout='folder', data__source='s', data__patient_pattern=r'patient\d+'
  ).data
  fields = registry.LAYOUTS['folder'].settings.values()
  return {name: data[name] for name in fields}


def test_names_in_which_the_pattern_finds_no_patient_are_refused(tmp_path):
  fields = _layout(
    tmp_path, ['patient1.png', 'Patient1_2.png', 'x.png', 'patient2.png']
  )
  with pytest.raises(UserError) as caught:
    registry.read('folder', tmp_path, tables.Faults(), fields)
  line = str(caught.value)
  assert 'finds nothing in 2 of 4 names, such as class0/x.png' in line
  assert '--config.data.unmatched_patients=own' in line
  fields['unmatched_patients'] = 'own'
  records, _ = registry.read('folder', tmp_path, tables.Faults(), fields)
  assert [r.group for r in records] == ['patient1', None, None, 'patient2']


def test_a_patient_of_the_table_needs_no_pattern(tmp_path):
  (tmp_path / 'labels.csv').write_text(
    'image,label,patient_id\npatient1.png,0,\nb.png,1,7\n'
  )
  for name in ('patient1.png', 'b.png'):
    (tmp_path / name).write_bytes(b'')
  config = fakes.make_config(
    data__layout='csv', data__source='s', data__patient_pattern=r'patient\d+'
  )
  fields = {
    **config.data,
    **{f'csv.{k}': v for k, v in config.data.csv.items()},
  }
  records, _ = registry.read('csv', tmp_path, tables.Faults(), fields)
  assert [record.group for record in records] == ['patient1', '7']


def test_images_that_a_column_has_no_patient_for_are_counted(tmp_path):
  (tmp_path / 'labels.csv').write_text(
    'image,label,patient_id\na.png,0,\nb.png,1,7\nc.dcm,1,\n'
  )
  for name in ('a.png', 'b.png', 'c.dcm'):
    (tmp_path / name).write_bytes(b'')
  config = fakes.make_config(data__layout='csv', data__source='s')
  fields = {
    **config.data,
    **{f'csv.{k}': v for k, v in config.data.csv.items()},
  }
  faults = tables.Faults()
  registry.read('csv', tmp_path, faults, fields)
  (remark,) = faults.remarks  # A DICOM file may name its patient itself.
  assert remark.startswith('1 of 3 images have no patient')
  faults = tables.Faults()
  registry.read('csv', tmp_path, faults, {**fields, 'csv.patient': ''})
  assert not faults.remarks


def test_a_box_that_stands_twice_is_a_fault_in_a_table_too(tmp_path):
  (tmp_path / 'labels.csv').write_text('image,label\na.png,0\nb.png,1\n')
  (tmp_path / 'boxes.csv').write_text(
    'image,x,y,width,height\n' + 'b.png,1,2,30,40\n' * 2
  )
  for name in ('a.png', 'b.png'):
    (tmp_path / name).write_bytes(b'')
  config = fakes.make_config(data__layout='csv', data__source='s')
  fields = {
    **config.data,
    **{f'csv.{k}': v for k, v in config.data.csv.items()},
  }
  faults = tables.Faults('skip')
  records, _ = registry.read('csv', tmp_path, faults, fields)
  assert [record.id for record in records] == ['a.png']
  ((_, id, reason),) = faults.found
  assert id == 'b.png' and reason.startswith('the same box stands there twice')


@pytest.mark.parametrize(
  ('layout', 'ids', 'files'),
  [
    (
      'competition',
      'train/{}',
      {
        'train.csv': 'p,1\nP.png,0\nq,0\n',
        'train_bboxes.csv': 'filename,x,y,width,height\np,1,1,9,9\n',
        'train/{}': '',
      },
    ),
    (
      'rsna',
      '{}',
      {
        'stage_2_train_labels.csv': 'patientId,x,y,width,height,Target\n'
        'p,1,1,9,9,1\nP.png,,,,,0\nq,,,,,0\n',
        'stage_2_train_images/{}': '',
      },
    ),
    (
      'nih',
      '{}',
      {
        'Data_Entry_2017.csv': 'Image Index,Finding Labels,Patient ID\n'
        'p,Mass,1\nP.png,No Finding,2\nq,No Finding,3\n',
        'images/{}': '',
      },
    ),
    (
      'vindr',
      '{}',
      {
        'train.csv': 'image_id,class_name,rad_id,x_min,y_min,x_max,y_max\n'
        'p,Mass,R1,1,1,9,9\nP.png,No finding,R2,,,,\nq,No finding,R1,,,,\n',
        'train/{}': '',
      },
    ),
  ],
)
def test_two_spellings_of_an_id_are_not_two_images_of_one_file(
  layout, ids, files, tmp_path
):
  for name, text in files.items():
    for file in ('p.png', 'q.png'):
      path = tmp_path / name.format(file)
      path.parent.mkdir(exist_ok=True)
      path.write_text(text)
  data = fakes.make_config(data__layout=layout, data__source='s').data
  one, two, good = map(ids.format, ('p', 'P.png', 'q'))
  with pytest.raises(UserError) as caught:
    registry.read(layout, tmp_path, tables.Faults(), data)
  assert f'{one} and {two} are one file, {tmp_path}' in str(caught.value)
  faults = tables.Faults('skip')
  records, _ = registry.read(layout, tmp_path, faults, data)
  assert [record.id for record in records] == [good]
  assert [fault[1] for fault in faults.found] == [one, two]
