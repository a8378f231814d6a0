"""The ONNX graph answers as the network that it was made of."""

import numpy as np
import pytest

from dpjax.errors import UserError
from dpjax.metrics import calibration, predictions
from dpjax.serving import onnx_graph
from tests.serving import networks

onnxruntime = pytest.importorskip('onnxruntime')

BOTTLENECK = {'model__block': 'bottleneck', 'mgacr__batch_norm': False}
SPACE_TO_DEPTH = {'model__stem': 'space_to_depth', 'data__store_size': 48,
                  'model__stage_sizes': (2, 1)}  # fmt: skip
# 96 pixels make 3 x 3 cells of the 7 x 7 that VGG16's head wants.
VGG = {'model__network': 'vgg16', 'model__width': 2, 'data__image_size': 96}


def run(model, squares):
  session = onnxruntime.InferenceSession(model.SerializeToString())
  names = [output.name for output in session.get_outputs()]
  return dict(zip(names, session.run(None, {'images': squares}), strict=True))


@pytest.mark.parametrize(
  'changes',
  [{}, BOTTLENECK, SPACE_TO_DEPTH, VGG],
  ids=['basic', 'bottleneck', 'space_to_depth', 'vgg16'],
)
def test_a_graph_answers_as_its_network(changes):
  network = networks.make_network(attention='model__network' not in changes,
                                  **changes)  # fmt: skip
  squares = networks.squares(side=network.config.data.store_size)
  maps = changes is not VGG
  found = run(onnx_graph.build([network], temperature=1.7, maps=maps), squares)
  wanted = network.answer(squares)
  assert np.ptp(wanted['logits'], axis=0).min() > 0.01  # They tell apart.
  scaled = calibration.scale(predictions.softmax(wanted['logits']), 1.7)
  expected = {
    'logits': wanted['logits'],
    'probabilities': scaled,
    'embeddings': wanted['pooled'],
  }
  if maps:
    looked = network.explain(squares)
    assert looked['cam'].max() > 0
    expected['cam'] = looked['cam']
    for stage in network.config.mgacr.stages:
      expected[f'map_pos_{stage}'] = looked[f'att_pos/{stage}']
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


def test_any_number_of_squares_goes_in_and_nothing_but_plain_operators():
  model = onnx_graph.build([networks.make_network()], temperature=None)
  squares = networks.squares(5)
  whole = run(model, squares)
  one = run(model, squares[3:4])
  np.testing.assert_allclose(one['logits'][0], whole['logits'][3], atol=1e-5)
  used = {node.op_type for node in model.graph.node}
  assert 'BatchNormalization' not in used
  assert [(o.domain, o.version) for o in model.opset_import] == [('', 17)]


def test_several_runs_are_one_graph_of_their_mean():
  pair = [networks.make_network(0), networks.make_network(1)]
  squares = networks.squares()
  graph = onnx_graph.build(pair, temperature=0.6, maps=True)
  found = run(graph, squares)
  first, second = (network.answer(squares) for network in pair)
  mean = (
    predictions.softmax(first['logits']) + predictions.softmax(second['logits'])
  ) / 2
  scaled = calibration.scale(mean, 0.6)
  np.testing.assert_allclose(found['probabilities'], scaled, atol=1e-5)
  np.testing.assert_allclose(found['logits'], np.log(mean), atol=1e-5)
  np.testing.assert_allclose(
    found['embeddings'],
    np.concatenate([first['pooled'], second['pooled']], axis=1),
    rtol=1e-4,
  )
  looked = pair[0].explain(squares)  # As dpjax.load(A, B) has it.
  np.testing.assert_allclose(found['cam'], looked['cam'], rtol=1e-4, atol=1e-5)


def test_a_network_that_has_no_graph_is_refused_in_a_line():
  import dataclasses

  network = networks.make_network()
  objective = dataclasses.replace(network.objective, backbone=object())
  with pytest.raises(UserError, match='a object has no ONNX graph'):
    onnx_graph.build(
      [dataclasses.replace(network, objective=objective)], temperature=None
    )
