"""Programs that XLA has written are read as they are written."""

import pathlib

import pytest

from dpjax.benchmark import hlo, kernels

RECORDED = pathlib.Path(__file__).parents[1] / 'recorded'

# By hand: what recorded programs of a few kernels do not have.
SIGNS = """HloModule signs, is_scheduled=true

%inner (p.0: (f32[2,3], u8[4])) -> f32[2,3] {
  %p.0 = (f32[2,3]{1,0:T(8,128)S(1)}, /*index=1*/u8[4]{0}) parameter(0)
  ROOT %g = f32[2,3]{1,0:T(8,128)S(1)} get-tuple-element(%p.0), index=0
}

ENTRY %main (a: pred[], b: bf16[<=5,0]) -> f32[] {
  %a = pred[] parameter(0)
  %b = bf16[<=5,0]{1,0} parameter(1)
  %c = s4[3]{0} constant({1, 2, 3})
  %t = ((f32[2,3]{1,0}, s32[]), u8[4]) tuple(f32[2,3]{1,0} %b, s4[3] %c)
  ROOT %r = f32[] custom-call(%t, %a), custom_call_target="f(x)=%y", \
called_computations={%inner, %other}, metadata={op_name="a[\\"k\\"]"}
}
"""


def test_shapes_operands_and_attributes_are_read_whatever_stands_in_them():
  module = hlo.parse(SIGNS)
  assert module.entry == 'main' and [*module.computations] == ['inner', 'main']
  inner, main = module.computations['inner'], module.computations['main']
  pair = inner.parameters[0]
  assert [(x.dtype, x.dims, x.space) for x in pair.arrays] == [
    ('f32', (2, 3), 1), ('u8', (4,), 0),
  ]  # fmt: skip
  assert [x.bytes for x in pair.arrays] == [24, 4]
  assert inner.root.name == 'g' and inner.root.operands == ('p.0',)
  assert main.parameters[1].arrays[0].dims == (5, 0)
  assert main.by_name['c'].arrays[0].bytes == 2  # 3 of 4 bits
  assert main.by_name['c'].operands == ()
  assert main.by_name['t'].operands == ('b', 'c')
  assert len(main.by_name['t'].arrays) == 3
  assert main.root.attribute('custom_call_target') == 'f(x)=%y'
  assert main.root.called['called_computations'] == ('inner', 'other')
  assert main.root.op_name == r'a[\"k\"]'
  assert [(user.name, index) for user, index in main.users['a']] == [('r', 1)]


@pytest.mark.parametrize(
  ('name', 'parameters'), [('h100', 3), ('h100x8', 3), ('v5e', 9)]
)
def test_recorded_programs_are_whole(name, parameters):
  module = hlo.parse((RECORDED / f'program-{name}.txt').read_text())
  entry = module.computations[module.entry]
  assert len(entry.parameters) == parameters
  for computation in module.computations.values():
    for one in computation.instructions:
      assert all(name in computation.by_name for name in one.operands)
      for names in one.called.values():
        assert all(name in module.computations for name in names)


def test_an_operation_is_followed_to_the_files_that_called_it():
  module = hlo.parse((RECORDED / 'program-h100.txt').read_text())
  body = module.computations['region_0.6']
  convolution = body.by_name['cudnn-conv.2']
  sources = module.sources(convolution)
  # net < step < lambda < scanned (three lines of it) < one < the module.
  assert sources == ['/dpjax/record.py'] * 8
  assert module.sources(body.by_name['get-tuple-element.39']) == []


def test_other_texts_are_refused():
  with pytest.raises(
    hlo.UnknownForm, match='not the text of a compiled program'
  ):
    hlo.parse('module @jit_f {\n}\n')
  for line, said in (
    ('nonsense', 'not an instruction'),
    ('%a = f32[]', 'not an instruction'),
    ('%a = f32[] 7', 'no operation'),
    ('%a = f32[] add(', 'a parenthesis stays open'),
  ):
    with pytest.raises(hlo.UnknownForm, match=said):
      hlo.parse(f'ENTRY %main () -> f32[] {{\n  {line}\n}}\n')
  for line, said in (
    ('ROOT %a = odd[3] custom-call()', 'a type of unknown size: odd'),
    ('ROOT %a = f32[] add(%b)', "nothing there is 'b'"),
    ('ROOT %a = f32[] custom-call(), dim_labels=b0f_0io->b0f', 'another form'),
    ('ROOT %a = f32[] dot(), lhs_contracting_dims={0}', 'another form'),
  ):
    with pytest.raises(hlo.UnknownForm, match=said):
      kernels.read(f'ENTRY %main () -> f32[] {{\n  {line}\n}}\n')
