"""Public sets in the form that people have them, each by one command.

Every test makes files of its set's form, and reads them by the flags that
docs/datasets.md has for it.
"""

import ast
import gzip
import pathlib
import re
import shlex
import unicodedata

import cv2
import numpy as np
import pytest
import scipy.ndimage

from dpjax.data.prepare import labels as labels_lib
from dpjax.data.sources import registry, tables
from dpjax.errors import SourceFault, UserError
from tests import fakes

DOCS = pathlib.Path(registry.__file__).parents[3] / 'docs' / 'datasets.md'


def write(root, tables_, *images):
  """Makes tables {name: lines}, and files that are images by name only."""
  for name, lines in tables_.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = ''.join(f'{line}\n' for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)
  for name in images:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'no image')
  return root


def read(layout, root, on_error='fail', **fields):
  """{id: record}, labelled, as prepare reads a set; and the class names."""
  data = fakes.make_config(
    data__layout=layout,
    data__source=str(root),
    **{f'data__{name}': value for name, value in fields.items()},
  ).data
  flat = {
    f'{name}.{k}' if hasattr(value, 'items') else name: v
    for name, value in data.items()
    for k, v in (value.items() if hasattr(value, 'items') else [('', value)])
  }
  records, _ = registry.read(layout, root, tables.Faults(on_error), flat)
  records, names = labels_lib.assign(
    records, data.label, findings=data.findings, classes=data.classes
  )
  return {record.id: record for record in records}, names


def documented(heading):
  """(layout, fields of config.data) of the command that the docs have."""
  section = DOCS.read_text().partition(f'\n### {heading}\n')[2].split('\n##')[0]
  command = re.search(r'(?m)^ +python (?:.*\\\n)*.*\n', section)[0]
  fields = {}
  for word in shlex.split(command):
    name, equals, value = word.partition('=')
    if equals and name.startswith('--config.data.'):
      name = name.removeprefix('--config.data.').replace('.', '__')
      is_tuple = value.startswith('(') and name != 'csv__label'
      is_tuple &= not name.endswith('pattern')
      fields[name] = ast.literal_eval(value) if is_tuple else value
  assert fields.pop('source') == 'PATH'
  return fields.pop('layout'), fields


def read_documented(heading, root, **changes):
  layout, fields = documented(heading)
  return read(layout, root, **{**fields, **changes})


def labels(records):
  return {id: record.label for id, record in records.items()}


CHEXPERT = 'Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pneumonia'
ROOT = 'CheXpert-v1.0-small'


def write_chexpert(root, name=ROOT):
  views = {
    'train/patient00001/study1/view1_frontal.jpg': 'Frontal,AP,,,1.0',
    'train/patient00001/study1/view2_lateral.jpg': 'Lateral,,,,1.0',
    'train/patient00002/study1/view1_frontal.jpg': 'Frontal,AP,,1.0,0.0',
    'train/patient00003/study1/view1_frontal.jpg': 'Frontal,PA,,-1.0,-1.0',
    'train/patient00003/study2/view1_frontal.jpg': 'Frontal,PA,1.0,,',
    'valid/patient64541/study1/view1_frontal.jpg': 'Frontal,AP,0.0,1.0,1.0',
  }
  lines = {'train': [CHEXPERT], 'valid': [CHEXPERT]}
  for path, cells in views.items():
    lines[path[:5]].append(f'{ROOT}/{path},Male,61,{cells}')
  return write(
    root / name, {f'{k}.csv': v for k, v in lines.items()}, *views
  ), [f'{ROOT}/{path}' for path in views]


@pytest.mark.parametrize('name', [ROOT, 'renamed'])
def test_chexpert_one_finding_against_the_rest(tmp_path, name):
  root, paths = write_chexpert(tmp_path, name)
  records, names = read_documented('CheXpert', root)
  assert names == ('negative', 'Pneumonia')
  frontal = [path for path in paths if 'frontal' in path]
  # Uncertain is not known; blank, not mentioned, is negative.
  assert labels(records) == dict(zip(frontal, [1, 0, None, 0, 1], strict=True))
  assert [r.group for r in records.values()] == [
    'patient00001', 'patient00002', 'patient00003', 'patient00003',
    'patient64541',
  ]  # fmt: skip
  assert [r.split for r in records.values()] == ['train'] * 4 + ['validation']
  assert records[frontal[0]].metadata == {'Sex': 'Male', 'Age': '61'}
  for policy, label in (('positive', 1), ('negative', 0)):
    records, _ = read_documented('CheXpert', root, uncertain=policy)
    assert records[frontal[2]].label == label
  records, _ = read_documented('CheXpert', root, blank='ignore')
  assert [*labels(records).values()] == [1, 0, None, None, 1]


def test_chexpert_a_ranked_list_of_findings(tmp_path):
  root, paths = write_chexpert(tmp_path)
  ranked = {
    'csv__label': 'No Finding,Pneumonia,Edema',
    'classes': ('No Finding', 'Pneumonia', 'Edema'),
  }
  records, names = read_documented('CheXpert', root, **ranked)
  assert names == ranked['classes']
  frontal = [path for path in paths if 'frontal' in path]
  assert labels(records) == dict(zip(frontal, [1, 2, None, 0, 1], strict=True))
  assert records[frontal[4]].findings == ('Pneumonia', 'Edema')
  with pytest.raises(
    UserError, match=r'has both Pneumonia and Edema; .*classes'
  ):
    read_documented('CheXpert', root, csv__label=ranked['csv__label'])
  # Any of them is no class of several.
  records, _ = read_documented(
    'CheXpert', root, csv__label="('No Finding', 'Pneumonia','Edema')",
    label='any',
  )  # fmt: skip
  assert [*labels(records).values()] == [1, 1, None, 0, 1]


def test_one_finding_in_brackets_names_its_class(tmp_path):
  root, _ = write_chexpert(tmp_path)
  records, names = read_documented(
    'CheXpert', root, csv__label="('Pneumonia',)"
  )
  assert names == ('negative', 'Pneumonia')
  assert [*labels(records).values()] == [1, 0, None, 0, 1]


def test_a_filter_that_no_row_passes_is_told_what_there_is(tmp_path):
  root, _ = write_chexpert(tmp_path)
  for where, words in (
    ('Frontal/Lateral=frontal', "'Frontal', 'Lateral'"),
    ('Frontal/Lateral', 'wanted Column=Value'),
    ('View=Frontal', "no column 'View'"),
  ):
    with pytest.raises(UserError, match=words):
      read_documented('CheXpert', root, csv__where=where)
  both = 'Frontal/Lateral=Frontal|Lateral; Sex=Male'
  assert len(read_documented('CheXpert', root, csv__where=both)[0]) == 6


def test_mimic_joins_its_tables_and_keeps_its_split(tmp_path):
  ids = ('aa-1', 'bb-2', 'cc-3', 'dd-4')
  files = [
    f'files/p10/p100{i // 2}/s500{i}/{id}.jpg' for i, id in enumerate(ids)
  ]
  split = ('train', 'validate', 'test', 'train')
  write(
    tmp_path,
    {
      'mimic-cxr-2.0.0-split.csv.gz': [
        'dicom_id,study_id,subject_id,split',
        *(f'{id},500{i},100{i // 2},{split[i]}' for i, id in enumerate(ids)),
      ],
      'mimic-cxr-2.0.0-chexpert.csv.gz': [
        'subject_id,study_id,Edema,No Finding,Pneumonia',
        '1000,5000,,1.0,',
        '1000,5001,,,1.0',
        '1001,5002,,,-1.0',
      ],
      'mimic-cxr-2.0.0-metadata.csv.gz': [
        'dicom_id,subject_id,study_id,ViewPosition,Rows',
        *(
          f'{id},100{i // 2},500{i},{"PA" if i else "AP"},3056'
          for i, id in enumerate(ids)
        ),
      ],
    },
    *files,
  )
  records, names = read_documented('MIMIC-CXR-JPG', tmp_path)
  assert names == ('negative', 'Pneumonia')
  # An empty cell is a finding that the report does not mention; of an image
  # without a row of findings nobody knows.
  assert labels(records) == dict(zip(ids, [0, 1, None, None], strict=True))
  assert [r.split for r in records.values()] == [
    'train', 'validation', 'test', 'train',
  ]  # fmt: skip
  assert [r.group for r in records.values()] == ['1000', '1000', '1001', '1001']
  assert records['aa-1'].metadata == {'ViewPosition': 'AP'}
  assert records['bb-2'].file == str(tmp_path / files[1])
  other = tmp_path / 'other.csv'
  other.write_text('a,b\n1,2\n')
  with pytest.raises(UserError, match='no column of the table of images'):
    read_documented('MIMIC-CXR-JPG', tmp_path, csv__join=('other.csv',))
  other.write_text('study_id,Pneumonia\n5000,1\n5000,0\n')
  with pytest.raises(UserError, match='row 3: a second row of 5000'):
    read_documented('MIMIC-CXR-JPG', tmp_path, csv__join=('other.csv',))


def test_padchest_reads_lists_of_labels(tmp_path):
  rows = {
    '1': ('PA', "['normal']", 0),
    '2': ('AP', "['pneumonia', 'infiltrates']", 1),
    '3': ('PA', "[' pleural effusion', 'pneumonia']", 1),
    '4': ('PA', "['exclude']", None),
    '5': ('PA', '[]', None),
    '6': ('L', "['normal']", None),
  }
  write(
    tmp_path,
    {
      'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv': [
        ',ImageID,ImageDir,StudyID,PatientID,Projection,Labels',
        *(
          f'{i},{i}.png,0,s{i},p{i},{view},"{cell}"'
          for i, (view, cell, _) in rows.items()
        ),
      ]
    },
    *(f'0/{i}.png' for i in rows),
  )
  records, names = read_documented('PadChest', tmp_path)
  assert names == ('normal', 'pneumonia')
  assert labels(records) == {
    f'{i}.png': label for i, (view, _, label) in rows.items() if view != 'L'
  }
  assert records['2.png'].findings == ('pneumonia', 'infiltrates')
  assert records['5.png'].findings is None
  assert records['3.png'].group == 'p3'


def siim_mask(rle, width=1024, height=1024):
  """As the challenge's own mask_functions.py decodes it."""
  mask = np.zeros(width * height)
  array = np.asarray([int(x) for x in rle.split()])
  position = 0
  for start, length in zip(array[0::2], array[1::2], strict=True):
    position += start
    mask[position : position + length] = 255
    position += length
  return mask.reshape(width, height).T


def siim_rle(mask):
  flat = np.flatnonzero(np.diff(np.pad(mask.T.ravel() > 0, 1).astype(int)))
  words, end = [], 0
  for start, stop in flat.reshape(-1, 2):
    words += [start - end, stop - start]
    end = stop
  return ' '.join(map(str, words))


def test_siims_masks_give_a_box_for_each_connected_component(tmp_path):
  one = np.zeros((1024, 1024))
  one[100:140, 300:310] = 1
  one[140:150, 310:330] = 1  # by a corner
  one[500:510, 900:1024] = 1
  two = np.zeros((1024, 1024))
  two[0:7, 0:1] = 1
  write(
    tmp_path,
    {
      'train-rle.csv': [
        'ImageId, EncodedPixels',
        f'1.2.840.1, {siim_rle(one)}',
        f'1.2.840.1, {siim_rle(two)}',
        '1.2.840.2, -1',
        '1.2.840.2.3,-1',
      ]
    },
    *(
      f'dicom-images-train/{n}/{n}.1/{n}.dcm'
      for n in ('1.2.840.1', '1.2.840.2', '1.2.840.2.3')
    ),
  )
  records, names = read_documented('SIIM-ACR Pneumothorax', tmp_path)
  assert names == ('normal', 'lesion')
  assert [*labels(records).values()] == [1, 0, 0]
  first = records['1.2.840.1']
  assert {*first.boxes} == {
    (300, 100, 330, 150), (900, 500, 1024, 510), (0, 0, 1, 7),
  }  # fmt: skip
  assert first.frame == (1024, 1024) and first.names == ('lesion',) * 3
  records, _ = read_documented('SIIM-ACR Pneumothorax', tmp_path, label='count')
  assert [*labels(records).values()] == [3, 0, 0]
  with pytest.raises(UserError, match=r'csv\.frame.*\(1024, 1024\)'):
    read_documented('SIIM-ACR Pneumothorax', tmp_path, csv__frame=())


@pytest.mark.parametrize('seed', range(20))
def test_boxes_of_masks_are_those_that_scipy_finds(seed):
  rng = np.random.default_rng(seed)
  height, width = rng.integers(3, 40, 2)
  mask = rng.random((height, width)) < rng.choice([0.1, 0.4, 0.8])
  mask[0, 0] |= not mask.any()
  rle = siim_rle(mask)
  np.testing.assert_array_equal(siim_mask(rle, width, height) > 0, mask)
  found, _ = scipy.ndimage.label(mask, np.ones((3, 3)))
  wanted = {
    (x.start, y.start, x.stop, y.stop)
    for y, x in scipy.ndimage.find_objects(found)
  }
  assert {*tables.run_length_boxes([rle], int(width), int(height))} == wanted
  # In two rows it is the same.
  left, right = mask.copy(), mask.copy()
  left[:, width // 2 :] = right[:, : width // 2] = False
  if left.any() and right.any():
    two = [siim_rle(left), siim_rle(right)]
    assert {*tables.run_length_boxes(two, int(width), int(height))} == wanted


@pytest.mark.parametrize(
  'mask, reason',
  [
    ('', 'pairs of gap and length'),
    ('1', 'pairs of gap and length'),
    ('1 2 3', 'pairs of gap and length'),
    ('-1 2', 'pairs of gap and length'),
    ('1 x', 'pairs of gap and length'),
    ('1 0', 'a run of length 0'),
    ('90 11', 'ends outside'),
    ('1 99999999999999999999', 'ends outside'),
  ],
)
def test_a_mask_of_another_form_is_a_fault(mask, reason):
  with pytest.raises(SourceFault, match=reason):
    tables.run_length_boxes([mask], 10, 10)


@pytest.mark.parametrize('row', ['a,-1', 'a,1 2', 'a,x', 'a,1 2 3'])
def test_a_bad_row_of_masks_leaves_its_image_out(tmp_path, row):
  write(
    tmp_path,
    {'labels.csv': ['image,mask', 'a,1 2', 'b,3 4', 'c,-1', row]},
    *(f'{name}.png' for name in 'abc'),
  )
  fields = {'csv__label': '', 'csv__rle': 'mask', 'csv__frame': (10, 10)}
  with pytest.raises(UserError, match=r'labels\.csv, row'):
    read('csv', tmp_path, **fields)
  records, _ = read('csv', tmp_path, 'skip', **fields)
  assert [*records] == ['b', 'c']


def test_covid_radiography_passes_over_its_masks(tmp_path):
  names = ('COVID', 'Normal', 'Lung_Opacity', 'Viral Pneumonia')
  write(
    tmp_path,
    {},
    *(
      f'{name}/{folder}/{name}-{i}.png'
      for name in names
      for folder in ('images', 'masks')
      for i in (1, 2)
    ),
  )
  records, classes = read_documented('COVID-19 Radiography Database', tmp_path)
  assert classes == ('Normal', 'COVID', 'Lung_Opacity', 'Viral Pneumonia')
  assert len(records) == 8 and not any('masks' in id for id in records)
  assert records['COVID/images/COVID-1.png'].classes == ('COVID',)
  with pytest.raises(UserError, match=r'config\.data\.ignore'):
    read('folder', tmp_path)
  with pytest.raises(UserError, match=r"of masks; .* \('masks',\)"):
    read('folder', tmp_path, patient_pattern='.+')
  with pytest.raises(UserError, match=r"nothing in .* is called 'maks'"):
    read('folder', tmp_path, ignore=('maks',))


def test_chest_xray_passes_over_its_inner_twin(tmp_path):
  names = [
    f'{split}/{name}'
    for i, split in enumerate(('train', 'val', 'test'))
    for name in (
      f'NORMAL/NORMAL2-IM-{i}115-0001-0002.jpeg',
      f'PNEUMONIA/person{i}_bacteria_2.jpeg',
    )
  ]
  write(tmp_path, {}, *names, *(f'chest_xray/{name}' for name in names),
        *(f'__MACOSX/{name}' for name in names), '.DS_Store')  # fmt: skip
  records, classes = read_documented('Kaggle chest_xray', tmp_path)
  assert classes == ('NORMAL', 'PNEUMONIA') and {*records} == {*names}
  assert [records[name].group for name in names[:3]] == [
    'NORMAL2-IM-0115', 'person0_bacteria', 'NORMAL2-IM-1115',
  ]  # fmt: skip
  assert [records[name].split for name in names] == [
    'train', 'train', 'validation', 'validation', 'test', 'test',
  ]  # fmt: skip
  with pytest.raises(UserError, match=r"ignore .* as \('chest_xray',\)"):
    read('folder', tmp_path)
  # The twin alone is the set, too.
  assert len(read('folder', tmp_path / 'chest_xray')[0]) == 6


BOX = 'image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max'
SEEN = ['c,Nodule/Mass,8,R8,1200,600,1800,1500', 'd,No finding,14,R8,,,,']


@pytest.mark.parametrize('form', ['meta', 'columns', 'flag', 'named'])
def test_vindrs_boxes_fit_smaller_copies(tmp_path, form):
  lines, fields, more = [BOX, *SEEN], {}, {}
  if form == 'meta':
    more['train_meta.csv'] = ['image_id,dim0,dim1', 'c,3000,2400', 'd,1,2']
  elif form == 'columns':
    lines = [f'{BOX},width,height', *(f'{line},2400,3000' for line in SEEN)]
  elif form == 'flag':
    fields['original_sizes'] = '2400x3000'
  else:
    more['my/sizes.csv'] = [
      'image_id,width,height', 'c,2400,3000', 'd,2400,3000',
    ]  # fmt: skip
    fields['original_sizes'] = 'my/sizes.csv'
  write(tmp_path, {'train.csv': lines, **more})
  (tmp_path / 'train').mkdir()
  for name in 'cd':
    small = np.zeros((512, 512), np.uint8)
    cv2.imwrite(str(tmp_path / f'train/{name}.png'), small)
  records, _ = read('vindr', tmp_path, **fields)
  boxes, clipped = records['c'].unit_boxes(512, 512)
  np.testing.assert_allclose(boxes, [[0.5, 0.2, 0.75, 0.5]])
  assert clipped == 0
  if form == 'named':
    write(tmp_path, {'my/sizes.csv': ['image_id,width,height', 'c,2,3']})
    with pytest.raises(UserError, match=r"'d' is not in sizes\.csv"):
      read('vindr', tmp_path, **fields)
  if form == 'flag':
    with pytest.raises(UserError, match='original_sizes: c has a box up to'):
      read('vindr', tmp_path)
    # That is said, too.
    records, _ = read('vindr', tmp_path, original_sizes='files')
    assert records['c'].frame is None


def test_brax_reads_its_paths_and_findings(tmp_path):
  # As RadHarmony and MaCheX read them; the DICOM files lie beside the PNG.
  paths = [f'id_{i}/Study_{i}.1/Series_1/image-{i}' for i in '1234']
  write(
    tmp_path,
    {
      'master_spreadsheet_update.csv': [
        'DicomPath,PngPath,PatientID,PatientSex,PatientAge,No Finding,'
        'Pneumonia,ViewPosition',
        *(
          f'Anonymized_DICOMs/{path}.dcm,images/{path}.png,p{i},F,85 or more,'
          f'{cells}'
          for i, (path, cells) in enumerate(
            zip(
              paths, (',1.0,PA', '1.0,,AP', ',1.0,LL', ',-1.0,PA'), strict=True
            )
          )
        ),
      ]
    },
    *(f'images/{path}.png' for path in paths),
    *(f'Anonymized_DICOMs/{path}.dcm' for path in paths),
  )
  records, names = read_documented('BRAX', tmp_path)
  assert names == ('negative', 'Pneumonia')
  assert [*labels(records).values()] == [1, 0, None]
  assert [r.group for r in records.values()] == ['p0', 'p1', 'p3']


@pytest.mark.parametrize(
  'heading, files, classes',
  [
    ('Shenzhen',
     {'CXR_png/CHNCXR_0001_0.png': 0, 'CXR_png/CHNCXR_0327_1.png': 1},
     ('0', '1')),
    ('Montgomery',
     {'CXR_png/MCUCXR_0001_0.png': 0, 'CXR_png/MCUCXR_0104_1.png': 1,
      'ManualMask/leftMask/MCUCXR_0001_0.png': None,
      'ManualMask/rightMask/MCUCXR_0001_0.png': None}, ('0', '1')),
    ('JSRT', {'Nodule154images/JPCLN001.png': 1,
              'NonNodule93images/JPCNN001.png': 0}, ('NN', 'LN')),
  ],
)  # fmt: skip
def test_the_class_may_stand_in_the_files_name(
  tmp_path, heading, files, classes
):
  write(tmp_path, {}, *files)
  records, names = read_documented(heading, tmp_path)
  assert names == classes
  assert labels(records) == {k: v for k, v in files.items() if v is not None}


def test_a_name_without_a_class_is_a_fault(tmp_path):
  write(tmp_path, {}, 'a_0.png', 'a_1.png', 'b.png')
  with pytest.raises(UserError, match=r'b\.png: .*class_pattern.* finds no'):
    read('folder', tmp_path, class_pattern=r'_(\d)\.')
  with pytest.raises(UserError, match='no regular expression'):
    read('folder', tmp_path, class_pattern='(')


def test_patients_may_be_folders(tmp_path):
  names = [f'{name}/p{i}/{j}.png' for name, i in (('normal', 0), ('ill', 1))
           for j in (0, 1)]  # fmt: skip
  write(tmp_path, {}, *names)
  for pattern, groups in (
    ('([^/]+)/[^/]+$', {'p0', 'p1'}),
    (r'p\d', {'p0', 'p1'}),
    ('.+', {'0.png', '1.png'}),
    ('.+/.+', {*names}),
  ):
    records, classes = read('folder', tmp_path, patient_pattern=pattern)
    assert classes == ('normal', 'ill') and {*records} == {*names}
    assert {r.group for r in records.values()} == groups
  write(tmp_path, {}, 'normal/p2/0.png')
  with pytest.raises(UserError, match=r'config\.data\.patient_pattern'):
    read('folder', tmp_path)
  # A DICOM file names its patient itself.
  write(tmp_path / 'scans', {}, 'a/p1/1.dcm', 'a/p2/1.dcm', 'b/p3/1.dcm')
  assert len(read('folder', tmp_path / 'scans')[0]) == 3


@pytest.mark.parametrize(
  'names',
  [
    ('set/train/ill/1.png', 'set/test/ill/1.png'),
    ('clinic1/normal/1.png', 'clinic2/ill/1.png', 'clinic1/ill/2.png'),
  ],
)
def test_a_folder_above_the_set_is_no_class(tmp_path, names):
  write(tmp_path, {}, *names)
  with pytest.raises(UserError, match='which is no class, then'):
    read('folder', tmp_path, patient_pattern='.+')


def test_a_column_for_each_class(tmp_path):
  lines = ['image,normal,pneumonia,effusion', 'a,1,0,0', 'b,0,1,0', 'c,0,0,1']
  write(tmp_path, {'labels.csv': lines}, *(f'{n}.png' for n in 'abcd'))
  with (tmp_path / 'labels.csv').open('a') as file:
    file.write('d,0,0,0\n')
  columns = {'csv__label': 'normal,pneumonia,effusion'}
  records, names = read('csv', tmp_path, **columns)
  assert names == ('normal', 'effusion', 'pneumonia')
  # Not normal, by something that has no column.
  assert labels(records) == {'a': 0, 'b': 2, 'c': 1, 'd': None}
  for cells, reason in (
    ('0,1,1', 'both pneumonia and effusion'),
    ('0,2,0', "pneumonia '2'; wanted 1, 0, -1 or nothing"),
    ('0,yes,0', "pneumonia 'yes'"),
  ):
    write(tmp_path, {'labels.csv': [*lines, f'd,{cells}']})
    with pytest.raises(UserError, match=f'row 5: .*{reason}'):
      read('csv', tmp_path, **columns)
  write(tmp_path, {'labels.csv': [*lines, 'd,0,1,1']})
  ranked = ('normal', 'effusion', 'pneumonia')
  records, _ = read('csv', tmp_path, **columns, classes=ranked)
  assert records['d'].label == 1


@pytest.mark.parametrize(
  'cells, wanted',
  [
    (['1.0', '0.0', ''], [1, 0, None]),
    (['1.0', '0.0', '-1.0'], [1, 0, None]),
    (['2.0', '0.0', '1'], [2, 0, 1]),
  ],
)
def test_numbers_as_pandas_writes_them(tmp_path, cells, wanted):
  lines = [f'{n},{cell}' for n, cell in zip('abc', cells, strict=True)]
  write(tmp_path, {'labels.csv': ['image,label', *lines]},
        *(f'{n}.png' for n in 'abc'))  # fmt: skip
  records, names = read('csv', tmp_path)
  assert [*labels(records).values()] == wanted
  assert names == tuple(map(str, range(len(names))))


def test_minus_one_is_uncertain_beside_one_and_zero_only(tmp_path):
  lines = ['image,label', 'a,2', 'b,-1', 'c,1']
  write(tmp_path, {'labels.csv': lines}, *(f'{n}.png' for n in 'abc'))
  with pytest.raises(UserError, match=r"row 3: label '-1'; .* here is '2'"):
    read('csv', tmp_path)
  assert [*read('csv', tmp_path, 'skip')[0]] == ['a', 'c']
  write(tmp_path, {'labels.csv': ['image,label', 'a,ill', 'b,', 'c,well']})
  with pytest.raises(UserError, match=r'row 3: config\.data\.blank=negative'):
    read('csv', tmp_path, blank='negative')


def test_boxes_may_be_given_by_their_corners(tmp_path):
  write(
    tmp_path,
    {
      'labels.csv': ['image,label', 'a,normal', 'b,ill'],
      'boxes.csv': ['image,xmin,ymin,xmax,ymax', 'b,40,50,80,100'],
    },
    'a.png',
    'b.png',
  )
  corners = {
    'csv__box_form': 'corners',
    'csv__box_columns': ('xmin', 'ymin', 'xmax', 'ymax'),
  }
  records, _ = read('csv', tmp_path, **corners)
  assert records['b'].boxes == ((40, 50, 80, 100),)
  write(tmp_path, {'boxes.csv': ['image,xmin,ymin,xmax,ymax', 'b,40,50,8,9']})
  with pytest.raises(UserError, match=r'boxes\.csv, row 2: a box from 40, 50'):
    read('csv', tmp_path, **corners)


def nfd(text):
  return unicodedata.normalize('NFD', text)


@pytest.mark.parametrize(
  'cell',
  ['./images/ä 1.png', 'images\\ä 1.png', '.\\images\\ä 1', 'ä 1.PNG',
   'ä 1.dcm', 'Images/Ä 1.png', '{root}/images/ä 1.png', nfd('images/ä 1.png'),
   'old name/images/ä 1.png'],
)  # fmt: skip
@pytest.mark.parametrize('spelt', [nfd, str])
def test_a_name_finds_its_image_however_it_is_written(tmp_path, cell, spelt):
  cell = cell.format(root=tmp_path)
  lines = ['image,label', f'{cell},ill', 'b.png,normal']
  write(tmp_path, {'labels.csv': lines}, spelt('images/ä 1.png'), 'b.png')
  records, _ = read('csv', tmp_path)
  assert records[cell].file == str(tmp_path / spelt('images/ä 1.png'))


def test_a_name_that_means_two_images_in_another_spelling_is_a_fault(tmp_path):
  lines = ['image,label', '1.dcm,ill', 'b.png,normal']
  write(tmp_path, {'labels.csv': lines}, 'x/1.jpg', 'x/1.PNG', 'b.png')
  with pytest.raises(UserError, match=r'two files are 1\.dcm'):
    read('csv', tmp_path)


def test_a_path_of_another_machine_or_part_finds_nothing(tmp_path):
  for cell in ('/data/set/train/1.png', 'test/1.png', '../set/train/1.png'):
    lines = ['image,label', f'{cell},ill', 'b.png,normal']
    write(tmp_path, {'labels.csv': lines}, 'train/1.png', 'test/2.png', 'b.png')
    with pytest.raises(UserError, match=r'labels\.csv, row 2'):
      read('csv', tmp_path)


@pytest.mark.parametrize(
  'word, side',
  [
    *((w, 'train') for w in ('train', 'Training', 'TRAIN')),
    *((w, 'validation') for w in ('val', 'valid', 'Validate', 'validation',
                                  'dev', 'Development')),
    *((w, 'test') for w in ('test', 'Testing')),
  ],
)  # fmt: skip
def test_every_reader_knows_the_words_of_splits(tmp_path, word, side):
  write(tmp_path / 'folder', {}, f'{word}/ill/1.png', f'{word}/normal/1.png')
  records, _ = read('folder', tmp_path / 'folder')
  assert {r.split for r in records.values()} == {side}
  lines = ['image,label,split', f'a,ill,{word}', f'b,normal,{word}']
  write(tmp_path / 'csv', {'labels.csv': lines}, 'a.png', 'b.png')
  records, _ = read('csv', tmp_path / 'csv')
  assert {r.split for r in records.values()} == {side}


def test_a_word_that_is_no_split_is_told_those_that_are(tmp_path):
  lines = ['image,label,split', 'a,ill,holdout', 'b,normal,']
  write(tmp_path, {'labels.csv': lines}, 'a.png', 'b.png')
  with pytest.raises(UserError, match=r"'holdout'; .*train/training.*validate"):
    read('csv', tmp_path)


@pytest.mark.parametrize(
  'json, image, file_name',
  [
    # CVAT, now with a folder for each subset; Label Studio, also as Windows
    # writes it; Roboflow; VIA, whose file may have any name; labelme2coco.py.
    ('annotations/instances_default.json', 'images/1.png', '1.png'),
    ('annotations/instances_default.json', 'images/default/1.png', '1.png'),
    ('annotations/instances_default.json', 'images/a/1.png', 'a/1.png'),
    ('result.json', 'images/8ee8-1.png', 'images/8ee8-1.png'),
    ('result.json', 'images/8ee8-1.png', 'images\\8ee8-1.png'),
    ('train/_annotations.coco.json', 'train/1_png.rf.0a.jpg',
     '1_png.rf.0a.jpg'),
    ('via_export_coco.json', '1.png', '1.png'),
    ('annotations.json', 'JPEGImages/1.jpg', 'JPEGImages/1.jpg'),
  ],
)  # fmt: skip
def test_coco_as_the_tools_of_the_field_write_it(
  tmp_path, json, image, file_name
):
  text = (
    '{"info": {}, "licenses": [], "images": [{"id": 0, "width": 40, "height":'
    ' 30, "file_name": "%s", "license": 0, "flickr_url": "", "coco_url": "",'
    ' "date_captured": 0}], "annotations": [{"id": 0, "image_id": 0,'
    ' "category_id": 1, "segmentation": [], "area": 12.0, "bbox": [1.0, 2.0,'
    ' 3.0, 4.0], "iscrowd": 0, "ignore": 0, "attributes": {"occluded":'
    ' false}}], "categories": [{"id": 0, "name": "chest", "supercategory":'
    ' "none"}, {"id": 1, "name": "opacity"}]}'
  )
  write(tmp_path, {json: [text % file_name.replace('\\', '\\\\')]}, image)
  [record] = read('coco', tmp_path)[0].values()
  assert record.file == str(tmp_path / image)
  assert record.boxes == ((1, 2, 4, 6),)
  drawn = f'Visualization/{pathlib.Path(image).name}'
  write(tmp_path, {}, drawn)
  [record] = read('coco', tmp_path, ignore=('Visualization',))[0].values()
  assert record.file == str(tmp_path / image)


def test_coco_as_label_studio_1_16_writes_it_on_windows_is_a_fault(tmp_path):
  text = (
    '{"images": [{"id": 0, "width": 40, "height": 30, "file_name":'
    ' "..\\\\..\\\\media\\\\upload\\\\4\\\\8ee8-1.png"}], "annotations": [],'
    ' "categories": []}'
  )
  write(tmp_path, {'result.json': [text]}, 'images/8ee8-1.png')
  with pytest.raises(UserError, match=r'result\.json, image 0'):
    read('coco', tmp_path)
