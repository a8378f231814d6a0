"""Exports: what is written answers as the checkpoint, or nothing is written."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import dpjax
from dpjax.errors import UserError
from dpjax.models import resnet
from dpjax.serving import export, exported, onnx_graph
from dpjax.serving import model as model_lib
from tests import fakes
from tests.serving import networks

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def model(root):
  return model_lib.Model([networks.make_network(root=root)])


@pytest.fixture(scope='module')
def whole(model, tmp_path_factory):
  """All formats, with maps."""
  folder = tmp_path_factory.mktemp('export') / 'whole'
  return folder, export.export(model, folder, maps=True)


def test_all_files_answer_as_the_checkpoint_on_vectors_beside_them(
  model, whole
):
  folder, record = whole
  assert {file.name for file in folder.iterdir()} == {
    'model.onnx', 'model.stablehlo', 'weights.safetensors', 'model.json',
    'test_vectors.npz', 'MODEL_CARD.md',
  }  # fmt: skip
  vectors = fakes.read_npz(folder / 'test_vectors.npz')
  squares = vectors['images']
  wanted = model.networks[0].answer(squares)
  assert np.ptp(wanted['logits'], axis=0).min() > 0.01
  outputs = {'logits', 'probabilities', 'embeddings', 'cam', 'map_pos_stage1',
             'map_pos_stage2'}  # fmt: skip
  assert set(vectors) - {'images'} == outputs == set(record['outputs'])
  np.testing.assert_allclose(vectors['logits'], wanted['logits'], atol=1e-4)
  for name in ('model.onnx', 'model.stablehlo'):
    found = exported.runner(folder / name)(squares[:3])  # Any number.
    assert set(found) == outputs
    for output, value in found.items():
      np.testing.assert_allclose(value, vectors[output][:3], atol=1e-4)


def test_the_stablehlo_is_of_all_three_platforms(whole):
  content = (whole[0] / 'model.stablehlo').read_bytes()
  program = jax.export.deserialize(bytearray(content))
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  assert str(program.in_avals[0]) == 'uint8[B,64,64]'


def test_init_backbone_takes_the_weights_back_bit_for_bit(model, whole):
  tensors = resnet.load_torch_weights(whole[0] / 'weights.safetensors')
  state = model.networks[0].state
  back = resnet.from_torch(tensors, model.networks[0].objective.backbone)
  jax.tree.map(
    np.testing.assert_array_equal,
    back,
    {'params': state.params['backbone'],
     'batch_stats': state.batch_stats['backbone']},
  )  # fmt: skip


@pytest.mark.parametrize('left', ['model.stablehlo', 'model.onnx'])
def test_an_export_opens_as_a_run_does(model, whole, tmp_path, left):
  folder, record = whole
  (tmp_path / left).write_bytes((folder / left).read_bytes())
  only = {**record, 'files': {left: record['files'][left]}}
  (tmp_path / 'model.json').write_text(json.dumps(only))
  opened = dpjax.load(tmp_path)
  images = [*networks.squares(), networks.squares(1, 96)[0]]
  found, wanted = opened.predict(images), model.predict(images)
  np.testing.assert_allclose(
    found.probabilities, wanted.probabilities, atol=1e-5
  )
  np.testing.assert_allclose(found.embeddings, wanted.embeddings, rtol=1e-4)
  assert found.unlike_training is None
  maps = opened.explain(images[0]).maps
  looked = model.explain(images[0]).maps
  assert set(maps) == {name for name in looked if 'att_neg' not in name}
  for name, value in maps.items():
    np.testing.assert_allclose(value, looked[name], atol=1e-4)


def test_several_runs_are_one_model(root, tmp_path):
  pair = [networks.make_network(seed, root=root) for seed in (0, 1)]
  both = model_lib.Model(pair)
  both.temperature = 0.6  # As fitted to the mean of two validation splits.
  record = export.export(both, tmp_path / 'two')
  assert len(record['runs']) == 2 and record['temperature'] == 0.6
  weights = {run['hashes']['weights'] for run in record['runs']}
  assert len(weights) == 2
  found = dpjax.load(tmp_path / 'two').predict([*networks.squares()])
  wanted = both.predict([*networks.squares()])
  np.testing.assert_allclose(
    found.probabilities, wanted.probabilities, atol=1e-5
  )
  assert [run['name'] for run in record['runs']] == ['run0', 'run1']
  names = sorted(record['files'])
  assert names == ['model.onnx', 'model.stablehlo', 'weights-1.safetensors',
                   'weights-2.safetensors']  # fmt: skip


def test_vgg16_has_no_torch_layout_and_no_maps(tmp_path_factory, tmp_path):
  vgg = model_lib.Model(
    [
      networks.make_network(
        attention=False,
        model__network='vgg16',
        model__width=2,
        root=tmp_path_factory.mktemp('vgg'),
      )
    ]
  )
  record = export.export(vgg, tmp_path / 'vgg')
  assert sorted(record['files']) == ['model.onnx', 'model.stablehlo']
  with pytest.raises(UserError, match='weights of a ResNet only'):
    export.export(vgg, tmp_path / 'other', ['torch'])
  with pytest.raises(UserError, match='closed form in a ResNet only'):
    export.export(vgg, tmp_path / 'other', maps=True)
  assert [path.name for path in tmp_path.iterdir()] == ['vgg']


def test_a_cam_without_a_closed_form_is_refused_with_what_would_be_right(
  tmp_path,
):
  network = networks.make_network(evaluate__cam_stage='stage1')
  with pytest.raises(UserError, match=r'at stage1 .*cam_stage=last'):
    export.export(model_lib.Model([network]), tmp_path / 'none', maps=True)
  assert not [*tmp_path.iterdir()]


@pytest.fixture
def wrong_graph(monkeypatch):
  """A graph with preprocessing that is off by half a grey level."""
  build = onnx_graph.build

  def off(networks, **options):
    graph = build(networks, **options)
    for constant in graph.graph.initializer:
      if constant.name.startswith('sub_'):
        value = onnx.numpy_helper.to_array(constant) + np.float32(0.5 / 255)
        constant.CopyFrom(onnx.numpy_helper.from_array(value, constant.name))
    return graph

  onnx = pytest.importorskip('onnx')
  monkeypatch.setattr(onnx_graph, 'build', off)


def test_a_file_that_answers_otherwise_ends_the_command_and_leaves_nothing(
  model, tmp_path, wrong_graph
):
  with pytest.raises(RuntimeError, match=r'model\.onnx: \w+ differs'):
    export.export(model, tmp_path / 'out', ['onnx'])
  assert not [*tmp_path.iterdir()]


def test_an_earlier_export_is_replaced_as_a_whole_and_survives_a_failure(
  model, tmp_path, monkeypatch
):
  out = tmp_path / 'out'
  export.export(model, out, ['onnx'])
  (out / 'notes.txt').write_text('mine')
  before = {file.name: file.read_bytes() for file in out.iterdir()}

  def full(*arguments):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(export.atomic, 'write_json', full)
    with pytest.raises(OSError, match='No space'):
      export.export(model, out, ['torch'])
  assert {file.name: file.read_bytes() for file in out.iterdir()} == before
  assert [path.name for path in tmp_path.iterdir()] == ['out']
  export.export(model, out, ['torch'])
  assert {file.name for file in out.iterdir()} == {
    'weights.safetensors', 'model.json', 'test_vectors.npz', 'notes.txt',
    'MODEL_CARD.md',
  }  # fmt: skip
  with pytest.raises(UserError, match='neither model'):
    dpjax.load(out)


def test_what_a_killed_export_left_is_removed_by_the_next(
  model, tmp_path, monkeypatch
):
  out = tmp_path / 'out'
  with monkeypatch.context() as patch:
    patch.setattr(export.shutil, 'rmtree', lambda *_, **__: None)
    patch.setattr(export.atomic, 'write_json', None)
    with pytest.raises(TypeError):
      export.export(model, out, ['torch'])
  assert [*out.iterdir()]
  export.export(model, out, ['torch'])
  assert {file.name for file in out.iterdir()} == {
    'weights.safetensors', 'model.json', 'test_vectors.npz', 'MODEL_CARD.md',
  }  # fmt: skip


@pytest.mark.parametrize(
  ('holds', 'file'),
  [
    ('a run', 'config.json'),
    ('a run', 'retrain/config.json'),
    ('what predict has written', 'predict.json'),
    ('an evaluation', 'evaluation.json'),
  ],
)
def test_something_else_is_not_written_over(model, tmp_path, holds, file):
  (tmp_path / file).parent.mkdir(exist_ok=True)
  (tmp_path / file).write_text('{}')
  with pytest.raises(UserError, match=f'holds {holds}'):
    export.export(model, tmp_path, ['onnx'])
  assert [f.name for f in tmp_path.iterdir()] == [file.split('/')[0]]


def test_a_damaged_export_is_refused_in_a_line(model, whole, tmp_path):
  (tmp_path / 'model.onnx').write_bytes(b'no graph')
  files = {'model.onnx': whole[1]['files']['model.onnx']}
  record = json.dumps({**whole[1], 'files': files})
  (tmp_path / 'model.json').write_text(record)
  with pytest.raises(UserError, match=r'model\.onnx is not as model\.json'):
    dpjax.load(tmp_path)


@pytest.mark.parametrize(
  'damage',
  [
    lambda record: record.pop('class_names'),
    lambda record: record.update(class_names=record['class_names'][:2]),
    lambda record: record.update(class_names=7),
    lambda record: record['input'].update(fit='squeeze'),
    lambda record: record['input'].update(side=7),
    lambda record: record.update(temperature=0),
    lambda record: record.update(threshold='0.5'),
    lambda record: record.pop('notes'),
    lambda record: record.update(runs=[{}]),
    lambda record: record.update(files=[]),
  ],
)
def test_a_description_of_another_network_is_refused_in_a_line(
  damage, whole, tmp_path
):
  folder = shutil.copytree(whole[0], tmp_path / 'model')
  record = json.loads((folder / 'model.json').read_text())
  damage(record)
  (folder / 'model.json').write_text(json.dumps(record))
  with pytest.raises(UserError, match=r'model\.json is damaged; export again'):
    dpjax.load(folder)


def ten_lines():
  """The program of docs/serving.md that needs no dpjax."""
  page = (ROOT / 'docs' / 'serving.md').read_text()
  (found,) = re.findall(r'```python\n(# Without dpjax.*?)```', page, re.DOTALL)
  lines = [line for line in found.splitlines() if line.strip()]
  assert len(lines) <= 11  # With the heading.
  return found


def test_ten_lines_run_an_export_where_there_is_no_dpjax(
  model, whole, tmp_path
):
  cv2 = pytest.importorskip('cv2')
  image = networks.squares(1, 128)[0]
  cv2.imwrite(str(tmp_path / 'image.png'), image)
  for name in ('model.onnx', 'model.json'):
    (tmp_path / name).write_bytes((whole[0] / name).read_bytes())
  # None there is a module that cannot be imported.
  without = 'import sys; sys.modules.update(dpjax=None, jax=None, flax=None)\n'
  found = subprocess.run(
    [sys.executable, '-I', '-c', without + ten_lines()],
    cwd=tmp_path, capture_output=True, text=True, check=True,
  )  # fmt: skip
  said = dict(line.rsplit(' ', 1) for line in found.stdout.splitlines())
  wanted = model.predict(image).probabilities[0]
  assert list(said) == list(networks.CLASSES)
  np.testing.assert_allclose(
    [float(value) for value in said.values()], wanted, atol=1e-4
  )


def test_the_command_exports_a_run_with_its_threshold_and_its_card(
  served, tmp_path
):
  out = tmp_path / 'out'
  ran = subprocess.run(
    [sys.executable, '-m', 'dpjax.main', 'export', '--format=onnx', '--maps',
     f'--workdir={served.workdir}', f'--output={out}'],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert ran.returncode == 0, ran.stderr
  assert 'model.onnx: answers as the checkpoint' in ran.stdout
  run, opened = dpjax.load(served.workdir), dpjax.load(out)
  assert opened.threshold == run.threshold is not None
  paths = [served.files / f'{id}.png' for id in served.data.split('test').ids]
  found, wanted = opened.predict(paths), run.predict(paths)
  np.testing.assert_allclose(
    found.probabilities, wanted.probabilities, atol=1e-5
  )
  np.testing.assert_array_equal(found.positive, wanted.positive)
  text = (out / 'MODEL_CARD.md').read_text()
  recall = served.result['scores']['balanced_accuracy']
  assert f'| balanced accuracy | {recall:.3f}' in text
