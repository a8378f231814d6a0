"""inspect: what it says of a folder, and that its command reads the set.

Each set is in the form that its publishers ship, with computed images.
"""

import ast
import gzip
import hashlib
import json
import os
import pathlib
import re
import shlex
import textwrap

import cv2
import numpy as np
import pytest

from dpjax.config import fields as fields_lib
from dpjax.data.sources import facts, inspect, registry, tables
from dpjax.errors import UserError

ROOT = pathlib.Path(__file__).parents[3]
SIZE = 160, 150  # of an image
LIST = "['pneumonia', 'infiltrates']"


def draw(root, *paths, size=SIZE):
  """Images of noise, each another one."""
  for path in paths:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    seed = int(hashlib.md5(str(path).encode()).hexdigest()[:8], 16)
    pixels = np.random.default_rng(seed).integers(0, 256, size[::-1])
    cv2.imwrite(str(file), pixels.astype(np.uint8))


def table(root, path, *lines):
  (root / path).parent.mkdir(parents=True, exist_ok=True)
  data = ('\n'.join(lines) + '\n').encode()
  (root / path).write_bytes(
    gzip.compress(data) if path.endswith('.gz') else data
  )


def guessed(root):
  """(layout, {field: value}, other flags) of the command that is printed."""
  said = inspect.inspect(root)
  assert all(len(line) <= 80 for line in said.splitlines()[:-20])
  command = said[said.index('python -m') :]
  words = shlex.split(command.replace('\\\n', ' '))
  flags = dict(word.partition('=')[::2] for word in words[5:])
  layout = flags.pop('--config.data.layout')
  source = flags.pop('--config.data.source')
  fields, others = {}, []
  for flag, value in flags.items():
    if not flag.startswith('--config.data.'):
      others.append(f'{flag}={value}')
      continue
    name = flag.removeprefix('--config.')
    field = fields_lib.table()[name]
    if field.kind is tuple:
      value = ast.literal_eval(value)
    fields[name.removeprefix('data.')] = field.checked(name, value)
  return layout, source, fields, others


def read(root):
  """The records that the printed command reads, by their id."""
  layout, source, given, others = guessed(root)
  assert not others
  defaults = {
    name.removeprefix('data.'): field.default
    for name, field in fields_lib.table().items()
    if name.startswith('data.')
  }
  if defaults['label'] == 'auto':
    defaults['label'] = registry.label_policy(layout)
  records, _ = registry.read(
    layout, pathlib.Path(source), tables.Faults(), {**defaults, **given}
  )
  return given, {record.id: record for record in records}


# One function a set: it makes the folder and returns what must come of it:
# (how many images are read, how many of them have boxes, how many patients).


def chexpert(root):
  paths = [
    f'CheXpert-v1.0-small/{side}/patient{p:05}/study1/view{v}_{name}.jpg'
    for side, patients in (('train', range(6)), ('valid', range(6, 8)))
    for p in patients
    for v, name in ((1, 'frontal'), (2, 'lateral'))
  ]
  draw(root, *paths)
  for side in ('train', 'valid'):
    table(
      root,
      f'CheXpert-v1.0-small/{side}.csv',
      'Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema,Pneumonia',
      *(
        f'{p},Male,{50 + i},{"Frontal" if "front" in p else "Lateral"},AP,'
        f'{"1.0,," if i % 3 else ",-1.0,1.0"}'
        for i, p in enumerate(paths)
        if f'/{side}/' in p
      ),
    )
  return 8, 0, 8


def mimic(root):
  ids = [(f'p10/p1000{i // 2}/s5{i:02}', f'{i:08x}-aa') for i in range(12)]
  draw(root, *(f'files/{folder}/{id}.jpg' for folder, id in ids))
  split = ('train', 'validate', 'test')
  table(
    root,
    'mimic-cxr-2.0.0-split.csv.gz',
    'dicom_id,study_id,subject_id,split',
    *(f'{id},5{i:02},1000{i // 2},{split[i // 2 % 3]}'
      for i, (_, id) in enumerate(ids)),
  )  # fmt: skip
  table(
    root,
    'mimic-cxr-2.0.0-chexpert.csv.gz',
    'subject_id,study_id,Edema,No Finding,Pneumonia',
    *(f'1000{i // 2},5{i:02},,{"1.0," if i % 2 else ",1.0"}'
      for i in range(12)),
  )  # fmt: skip
  table(
    root,
    'mimic-cxr-2.0.0-metadata.csv.gz',
    'dicom_id,subject_id,study_id,ViewPosition',
    *(f'{id},1000{i // 2},5{i:02},{("AP", "PA", "PA", "LATERAL")[i % 4]}'
      for i, (_, id) in enumerate(ids)),
  )  # fmt: skip
  return 9, 0, 6


def padchest(root):
  draw(root, *(f'{i % 2}/{i:05}.png' for i in range(12)))
  cells = ("['normal']", f'"{LIST}"', "[' pleural effusion']", '[]')
  table(
    root,
    'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv',
    ',ImageID,ImageDir,PatientID,Projection,Labels',
    *(f'{i},{i:05}.png,{i % 2},P{i // 2},{("PA", "AP", "PA", "L")[i // 3]},'
      f'{cells[i % 4]}' for i in range(12)),
  )  # fmt: skip
  return 9, 0, 5


def siim(root):
  draw(root, *(f'dicom-images-train/1.2.{i}/1.2.{i}.png' for i in range(8)),
       size=(1024, 1024))  # fmt: skip
  rows = [f'1.2.{i}, -1' for i in range(0, 8, 2)]
  rows += [f'1.2.{i}, {g} 10 1014 10' for i in range(1, 8, 2)
           for g in (50000, 900000)]  # fmt: skip
  table(root, 'train-rle.csv', 'ImageId, EncodedPixels', *rows)
  return 8, 4, 0


def covid(root):
  for name in ('COVID', 'Normal', 'Viral Pneumonia', 'Lung_Opacity'):
    draw(root, *(f'Set/{name}/{kind}/{name}-{i}.png' for i in range(3)
                 for kind in ('images', 'masks')))  # fmt: skip
  return 12, 0, 0


def chest_xray(root):
  paths = [
    f'{side}/{name}/{file}.jpeg'
    for side, k in (('train', 100), ('val', 200), ('test', 300))
    for i in range(k, k + 4)
    for name, file in (('NORMAL', f'NORMAL2-IM-{i:04}-0001'),
                       ('PNEUMONIA', f'person{i}_virus_{i}'))
  ]  # fmt: skip
  draw(root, *paths, *(f'chest_xray/{path}' for path in paths))
  draw(root, *(f'__MACOSX/{path}' for path in paths))
  return 24, 0, 24


def brax(root):
  paths = [f'images/id_{i // 2}/Study_{i}/image.png' for i in range(8)]
  draw(root, *paths)
  table(
    root,
    'master_spreadsheet_update.csv',
    'DicomPath,PngPath,PatientID,PatientSex,AccessionNumber,Pneumonia,Edema,'
    'ViewPosition',
    *(f'anonymized/{i}.dcm,{p},id_{i // 2},M,A{i},{i % 2}.0,{i % 2}.0,'
      f'{"L" if i == 7 else ("PA", "AP")[i % 2]}' for i, p in enumerate(paths)),
  )  # fmt: skip
  return 7, 0, 4


def shenzhen(root):
  draw(root, *(f'CXR_png/CHNCXR_{i:04}_{i % 2}.png' for i in range(8)))
  return 8, 0, 0


def montgomery(root):
  draw(root, *(f'CXR_png/MCUCXR_{i:04}_{i % 2}.png' for i in range(8)))
  draw(root, *(f'ManualMask/leftMask/MCUCXR_{i:04}_{i % 2}.png'
               for i in range(8)))  # fmt: skip
  return 8, 0, 0


def jsrt(root):
  draw(root, *(f'All247images/JPC{"NL"[i % 2]}N{i:03}.png' for i in range(8)))
  return 8, 0, 0


def nih_sample(root):
  draw(root, *(f'sample/images/{i:08}_000.png' for i in range(8)))
  labels = ('No Finding', 'Pneumonia|Edema', 'Edema', 'Pneumonia')
  table(
    root,
    'sample/sample_labels.csv',
    'Image Index,Finding Labels,Follow-up #,Patient ID,View Position',
    *(f'{i:08}_000.png,{labels[i % 4]},0,{i},PA' for i in range(8)),
  )
  return 8, 0, 8


def nih(root):
  draw(root, *(f'images_00{1 + i % 2}/images/{i:08}_000.png' for i in range(8)))
  table(
    root,
    'Data_Entry_2017_v2020.csv',
    'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,'
    'Patient Gender,View Position',
    *(f'{i:08}_000.png,{"Mass|Edema" if i % 2 else "No Finding"},0,{i},50,M,PA'
      for i in range(8)),
  )  # fmt: skip
  return 8, 0, 8


def rsna(root):
  draw(root, *(f'stage_2_train_images/a{i}.png' for i in range(6)))
  table(
    root,
    'stage_2_train_labels.csv',
    'patientId,x,y,width,height,Target',
    *(f'a{i},10,20,30,40,1' if i % 2 else f'a{i},,,,,0' for i in range(6)),
  )
  return 6, 3, 0


def competition(root):
  draw(root, *(f'train/{i}.jpg' for i in range(6)))
  table(root, 'train.csv', *(f'{i},{i % 2}' for i in range(6)))
  table(root, 'train_bboxes.csv', 'filename,x,y,width,height',
        *(f'{i},1,2,3,4' for i in range(1, 6, 2)))  # fmt: skip
  return 6, 3, 0


def vindr(root):
  draw(root, *(f'train/{i:032x}.png' for i in range(6)))
  table(
    root,
    'train.csv',
    'image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max,width,height',
    *(f'{i:032x},Nodule/Mass,8,R{r},100,200,300,400,2000,3000' if i % 2
      else f'{i:032x},No finding,14,R{r},,,,,2000,3000'
      for i in range(6) for r in (8, 9, 10)),
  )  # fmt: skip
  return 6, 3, 0


def coco(root, categories=('opacity',), box=(5, 6, 7, 8), **changes):
  draw(root, *(f'{side}2017/{i}.png' for side in ('train', 'val')
               for i in range(6)))  # fmt: skip
  for k, side in enumerate(('train', 'val')):
    (root / 'annotations').mkdir(exist_ok=True)
    (root / f'annotations/instances_{side}2017.json').write_text(
      json.dumps({
        'images': [{'id': i, 'file_name': f'{side}2017/{i}.png',
                    'width': SIZE[0], 'height': SIZE[1]} for i in range(6)],
        'annotations': [
          {'id': 10 * i + k, 'image_id': i, 'category_id': i // 2 % len(
            categories), 'bbox': box} for i in range(1, 6, 2)],
        'categories': [{'id': i, 'name': name}
                       for i, name in enumerate(categories)],
        **changes,
      })
    )  # fmt: skip
  return 12, 6, 0


def shares(root):
  return coco(root, box=(0.1, 0.2, 0.3, 0.4))


def plain(root):
  draw(root, *(f'img/{i}.png' for i in range(8)))
  table(root, 'labels.csv', 'image,label,patient_id,split',
        *(f'./img/{i}.dcm,{i % 2}.0,p{i // 2},{"dev" if i > 3 else "trn"}'
          for i in range(8)))  # fmt: skip
  table(root, 'boxes.csv', 'file,xmin,ymin,xmax,ymax,class',
        *(f'{i}.png,.1,.2,.3,.4,opacity' for i in range(1, 8, 2)))  # fmt: skip
  return 8, 4, 4


def columns_of_classes(root):
  draw(root, *(f'{i}.png' for i in range(6)))
  draw(root, *(f'masks/{i}.png' for i in range(6)))
  table(root, 'train.csv', 'filename,normal,pneumonia,effusion',
        *(f'{i},{",".join("01"[j == i % 3] for j in range(3))}'
          for i in range(6)))  # fmt: skip
  return 6, 0, 0


def patients_as_folders(root):
  draw(root, *(f'{name}/{name[0]}{i}/{k}.png' for name in ('normal', 'ill')
               for i in range(5) for k in range(2)))  # fmt: skip
  return 20, 0, 10


def words_in_two_cases(root):
  draw(root, *(f'{name}/{"Pp"[i % 2]}atient{k}{i // 2:02}_{i % 2}.png'
               for k, name in enumerate(('normal', 'ill'))
               for i in range(8)))  # fmt: skip
  return 16, 0, 8


SETS = (chexpert, mimic, padchest, siim, covid, chest_xray, brax, shenzhen,
        montgomery, jsrt, nih_sample, nih, rsna, competition, vindr, coco,
        shares,
        plain, columns_of_classes, patients_as_folders,
        words_in_two_cases)  # fmt: skip


@pytest.mark.parametrize('make', SETS, ids=lambda make: make.__name__)
def test_the_printed_command_reads_the_set(make, tmp_path):
  images, boxed, patients = make(tmp_path)
  _, records = read(tmp_path)
  assert len(records) == images
  assert sum(bool(r.boxes) for r in records.values()) == boxed
  assert len({r.group for r in records.values()} - {None}) == patients
  frames = {r.frame for r in records.values() if r.boxes} - {None}
  for record in records.values():
    width, height = record.frame or SIZE
    for x0, y0, x1, y1 in record.boxes:
      assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
  assert len(frames) <= 1


def test_a_finding_against_the_rest_is_read_as_its_column_says(tmp_path):
  mimic(tmp_path)
  fields, records = read(tmp_path)
  assert fields['csv.label'] == '("Pneumonia",)'
  assert [records[f'{i:08x}-aa'].classes for i in (0, 1)] == [
    ('Pneumonia',),
    ('negative',),
  ]
  assert {r.split for r in records.values()} == {'train', 'validation', 'test'}
  assert not any(int(id[:8], 16) % 4 == 3 for id in records)  # lateral


def test_of_two_tables_with_one_column_a_single_one_is_joined(tmp_path):
  mimic(tmp_path)
  # As downloaded: the labels of a second program, and of radiologists.
  table(tmp_path, 'mimic-cxr-2.0.0-negbio.csv.gz',
        'subject_id,study_id,Edema,No Finding,Pneumonia',
        *(f'1000{i // 2},5{i:02},,,-1.0' for i in range(12)))  # fmt: skip
  table(tmp_path, 'mimic-cxr-2.1.0-test-set-labeled.csv',
        'study_id,Fracture,Pneumonia', '504,1.0,', '505,,1.0')  # fmt: skip
  fields, records = read(tmp_path)
  assert fields['csv.join'] == (
    'mimic-cxr-2.0.0-chexpert.csv.gz',
    'mimic-cxr-2.0.0-metadata.csv.gz',
  )
  assert [records[f'{i:08x}-aa'].classes for i in (0, 1)] == [
    ('Pneumonia',),
    ('negative',),
  ]
  said = ' '.join(inspect.inspect(tmp_path).split())
  assert 'negbio.csv.gz is left aside' in said
  assert 'test-set-labeled.csv is left aside' in said


def test_the_columns_of_findings_are_those_of_one_table(tmp_path):
  mimic(tmp_path)
  table(tmp_path, 'more.csv', 'study_id,Fracture', '500,1.0', '501,0.0')
  fields, _ = guessed(tmp_path)[2:]
  assert 'more.csv' in fields['csv.join']
  assert fields['csv.label'] == '("Pneumonia",)'
  assert 'Pneumonia, one of 2 columns' in inspect.inspect(tmp_path)


def test_a_split_of_numbers_is_left_aside_in_any_spelling(tmp_path):
  images = [f'{i}.png' for i in range(12)]
  draw(tmp_path, *images)
  for column in ('split', 'Split'):
    rows = (f'{name},{i % 2},{i % 5}' for i, name in enumerate(images))
    table(tmp_path, 'labels.csv', f'image,label,{column}', *rows)
    assert guessed(tmp_path)[2]['csv.split'] == ''
    assert {r.split for r in read(tmp_path)[1].values()} == {None}


def test_a_lone_column_of_normal_tells_it_from_abnormal(tmp_path):
  draw(tmp_path, *(f'{i}.png' for i in range(12)))
  table(tmp_path, 'labels.csv', 'image,No Finding',
        *(f'{i}.png,{i % 2}' for i in range(12)))  # fmt: skip
  _, records = read(tmp_path)
  assert [records[f'{i}.png'].classes for i in (0, 1)] == [
    ('abnormal',),
    ('No Finding',),
  ]
  assert [records[f'{i}.png'].findings for i in (0, 1)] == [('abnormal',), ()]


def test_of_folders_in_folders_nobody_knows_which_are_the_patients(tmp_path):
  draw(tmp_path, *(f'{c}/{c[0]}{p}/study{p}{s}{c[0]}/v.png' for s in range(2)
                   for c in ('normal', 'ill') for p in range(6)))  # fmt: skip
  _, _, fields, _ = guessed(tmp_path)
  assert 'patient_pattern' not in fields
  said = ' '.join(inspect.inspect(tmp_path).split())
  assert 'Which folder below that of a class is a patient' in said
  # What it proposes finds the patient, not the study.
  pattern = re.search(r"patient_pattern='(\S+)'", said)[1]
  assert re.search(pattern, 'ill/i3/study30i/v.png')[1] == 'i3'


def test_names_that_end_in_a_number_are_of_the_class_of_their_folder(tmp_path):
  draw(tmp_path, *(f'{c}/{i}_{i % 2}.png' for c in ('normal', 'ill')
                   for i in range(6)))  # fmt: skip
  given, records = read(tmp_path)
  assert 'class_pattern' not in given
  assert {r.classes for r in records.values()} == {('normal',), ('ill',)}
  assert 'All names end in _0 or _1' in inspect.inspect(tmp_path)


def test_a_name_that_is_no_text_is_said_in_a_line_that_can_be_printed(tmp_path):
  draw(tmp_path, *(f'{c}/{i}.png' for c in ('normal', 'ill') for i in range(3)))
  os.rename(tmp_path / 'ill', os.fsencode(tmp_path) + b'/b\xf6se')
  said = inspect.inspect(tmp_path)
  assert said.encode() and r'b\udcf6se: 3' in said
  held = os.fsencode(tmp_path) + b'/b\xf6se'
  said = inspect.inspect(os.fsdecode(held))
  assert said.encode() and 'No command' in said


# What looks suspicious: (what makes it, words that must be said).


def two_jsons_of_one_side(root):
  coco(root)
  (root / 'annotations/instances_val2017.json').rename(root / 'b.json')


def labelled_twice(root):
  coco(root)
  path = root / 'annotations/instances_val2017.json'
  held = json.loads(path.read_text())
  held['annotations'] += [
    {**item, 'id': 100 + item['id']} for item in held['annotations']
  ]
  path.write_text(json.dumps(held))


def turned(root):
  """JPEGs that EXIF turns, and a json of their size before."""
  from PIL import Image

  exif = Image.Exif()
  exif[0x112] = 6
  pixels = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)
  Image.fromarray(pixels).save(root / '0.jpg', exif=exif)
  (root / 'a.json').write_text(
    json.dumps({
      'images': [{'id': 0, 'file_name': '0.jpg', 'width': 50, 'height': 40}],
      'annotations': [{'id': 0, 'image_id': 0, 'category_id': 0,
                       'bbox': [1, 2, 3, 4]}],
      'categories': [{'id': 0, 'name': 'opacity'}],
    })
  )  # fmt: skip


def one_class_in_test(root):
  draw(root, *(f'train/{c}/{i}.png' for c in ('normal', 'ill')
               for i in range(3)), 'test/ill/9.png')  # fmt: skip


def damaged(root):
  draw(root, *(f'{c}/{i}.png' for c in ('normal', 'ill') for i in range(3)))
  (root / 'ill/0.png').write_bytes((root / 'ill/0.png').read_bytes()[:200])
  cv2.imwrite(str(root / 'ill/1.png'), np.full((150, 160), 7, np.uint8))


def rows_without_images(root):
  plain(root)
  for i in range(3):
    (root / f'img/{i}.png').unlink()


def images_without_rows(root):
  plain(root)
  draw(root, 'img/new.png')


def a_folder_without_rows(root):
  plain(root)
  draw(root, 'other/new.png')


def packed(root):
  chest_xray(root)
  (root / 'more.zip').write_bytes(b'PK')
  (root / 'meta.xlsx').write_bytes(b'PK')


def a_link_to_a_folder(root):
  draw(root, *(f'{c}/{i}.png' for c in ('normal', 'ill') for i in range(3)))
  (root / 'viral').symlink_to(root / 'ill')


def some_without_a_patient(root):
  patients_as_folders(root)
  for i, file in enumerate(sorted(root.rglob('*.png'))):
    name = 'scan' if i % 5 == 0 else f'patient{i % 4}_'
    file.rename(root / file.parts[-3] / f'{name}{i}.png')


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda root: coco(root, categories=('No_finding', 'mass')),
     ["'No_finding'", 'no lesions']),
    (two_jsons_of_one_side, ['Which json', 'b.json', 'filled in']),
    (labelled_twice, ['3 boxes', 'twice', 'mended']),
    (turned, ['50 x 40', '0.jpg, which is 40 x 50', 'mended']),
    (one_class_in_test, ['side test has one class only, ill']),
    (damaged, ['2 of 6 images', 'ill/0.png: cut short', 'ill/1.png']),
    (rows_without_images, ['3 of 8 rows have no image', '--on_error=skip']),
    (images_without_rows, ['1 images are in no row', 'img/new.png']),
    (packed, ['still packed, such as more.zip', 'meta.xlsx', 'csv']),
    (a_link_to_a_folder,
     ['link to a folder is not followed, such as viral', 'mended']),
    (some_without_a_patient, ['4 of 20 names', 'scan', '=own']),
  ],
)  # fmt: skip
def test_what_looks_suspicious_is_said(make, words, tmp_path):
  make(tmp_path)
  said = ' '.join(inspect.inspect(tmp_path).split())
  for word in words:
    assert word in said, said


def test_a_folder_whose_images_no_row_names_is_passed_over(tmp_path):
  a_folder_without_rows(tmp_path)
  fields, records = read(tmp_path)
  assert fields['ignore'] == ('other',) and len(records) == 8


def test_sizes_of_originals_that_are_not_told_are_asked_for(tmp_path):
  vindr(tmp_path)
  table = tmp_path / 'train.csv'
  rows = [line.split(',')[:8] for line in table.read_text().splitlines()]
  table.write_text('\n'.join(map(','.join, rows)))
  said = ' '.join(inspect.inspect(tmp_path).split())
  assert 'reaches 300, 400, and the image is 160 x 150' in said
  assert '--config.data.original_sizes=WIDTHxHEIGHT' in said
  assert 'when the above is filled in' in said


def test_a_small_part_of_a_set_is_read_as_such(tmp_path):
  rsna(tmp_path)
  for i in range(5):
    (tmp_path / f'stage_2_train_images/a{i}.png').unlink()
  *_, others = guessed(tmp_path)
  assert others == ['--on_error=skip']
  assert '5 of 6 exams have no image' in inspect.inspect(tmp_path)


def test_images_without_any_label_get_no_command(tmp_path):
  draw(tmp_path, '1.png', 'more/2.png')
  said = inspect.inspect(tmp_path)
  assert 'No command' in said and 'python -m' not in said
  assert 'labels.csv' in said


def test_a_folder_without_images_and_none_at_all_are_said(tmp_path):
  table(tmp_path, 'labels.csv', 'image,label', 'a,b')
  assert 'There is no image here' in inspect.inspect(tmp_path)
  with pytest.raises(UserError, match='is not a folder'):
    inspect.inspect(tmp_path / 'nowhere')


def test_the_set_is_found_in_the_one_folder_that_was_unpacked(tmp_path):
  one = tmp_path / "it's a set"
  (one / 'archive').mkdir(parents=True)
  chest_xray(one / 'archive')
  _, source, *_ = guessed(one)
  assert source == str(one / 'archive')  # quoted for the shell


def test_of_very_many_folders_some_are_looked_into_and_it_is_said(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(facts, 'MAX_SUBFOLDERS', 4)
  monkeypatch.setattr(facts, 'MAX_ROWS', 7)
  chexpert(tmp_path)
  said = inspect.inspect(tmp_path)
  assert '4 of the 6 folders in train' in said
  assert 'the first 7 rows' in said and 'have no image' not in said
  assert 'CheXpert' in said and 'patient_pattern' in said


def test_nothing_of_the_folder_is_changed(tmp_path):
  padchest(tmp_path)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  inspect.inspect(tmp_path)
  assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}


# The sets of docs/datasets.md, by their headings there.
DOCUMENTED = {
  'CheXpert': (chexpert, 'CheXpert-v1.0-small'),
  'MIMIC-CXR-JPG': (mimic, ''),
  'PadChest': (padchest, ''),
  'SIIM-ACR Pneumothorax': (siim, ''),
  'COVID-19 Radiography Database': (covid, 'Set'),
  'Kaggle chest_xray': (chest_xray, ''),
}


@pytest.mark.parametrize('heading', DOCUMENTED)
def test_the_manual_quotes_what_inspect_says(heading, tmp_path, monkeypatch):
  make, inner = DOCUMENTED[heading]
  make(tmp_path / 'set')
  (tmp_path / 'PATH').symlink_to(tmp_path / 'set' / inner)
  monkeypatch.chdir(tmp_path)
  page = (ROOT / 'docs' / 'datasets.md').read_text()
  section = page.partition(f'\n### {heading}\n')[2].partition('\n##')[0]
  said = textwrap.indent(inspect.inspect('PATH'), '    ')
  assert said in section
