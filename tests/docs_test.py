"""The manuals name files, modules and functions that are there."""

import ast
import fnmatch
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md')])
FILES = [
  f'/{path.relative_to(ROOT).as_posix()}'
  for folder in ('benchmarks', 'configs', 'docs', 'dpjax', 'launch', 'tests')
  for path in (ROOT / folder).rglob('*.*')
  if '__pycache__' not in path.parts
]
# A program of ours; not a name that stands for many, as configs/NAME.py.
PROGRAM = r'(?<![\w*./-])(?:\.?[\w*-]+/)*[\w*.-]+\.(?:py|sh|sbatch)\b'


def found(name):
  """The files that a page may mean: it leaves out where a path begins."""
  return fnmatch.filter(FILES, f'*/{name}')


def names_in(file):
  """What a module defines, and what its classes do, as Class.name."""

  def of(body):
    for node in body:
      if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
        if isinstance(node, ast.ClassDef):
          yield from (f'{node.name}.{name}' for name in of(node.body))
      for target in getattr(node, 'targets', [getattr(node, 'target', None)]):
        if isinstance(target, ast.Name):
          yield target.id

  return set(of(ast.parse((ROOT / file[1:]).read_text()).body))


def ours_in(script):
  """(module of dpjax, name taken from it) all through a program."""
  tree = ast.parse(script.read_text())
  modules = {
    alias.asname or alias.name: f'/{node.module}/{alias.name}'.replace('.', '/')
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom) and node.module.startswith('dpjax')
    for alias in node.names
  }
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      file = modules.get(node.value.id, '') + '.py'
      if file in FILES:
        yield file, node.attr


@pytest.mark.parametrize(
  'script',
  [*ROOT.glob('benchmarks/*.py')],
  ids=lambda path: path.name,
)
def test_what_a_program_beside_the_package_takes_from_it_is_there(script):
  assert {
    (file, name) for file, name in ours_in(script) if name not in names_in(file)
  } == set()


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request):
  return request.param.read_text()


def test_every_program_that_a_page_names_is_there(page):
  named = set(re.findall(PROGRAM, page))
  named = {name for name in named if not re.search(r'\b[A-Z]+\.py', name)}
  assert {name for name in named if not found(name)} == set()


def test_every_file_that_a_page_links_to_is_there(page):
  links = re.findall(r'\]\((?!https?:|#)([^)#]+)', page)
  assert [
    link
    for link in links
    if not any((ROOT / at / link).exists() for at in ('', 'docs'))
  ] == []


def test_every_dotted_name_of_ours_is_a_module_or_stands_in_one(page):
  missing = set()
  for dotted in set(re.findall(r'\bdpjax(?:\.[A-Za-z_]\w*)+', page)):
    *module, last = dotted.split('.')
    whole = found('/'.join([*module, f'{last}.py']))
    whole += found('/'.join([*module, last, '__init__.py']))
    parents = found('/'.join(module) + '.py')
    parents += found('/'.join([*module, '__init__.py']))
    if not whole and not any(last in names_in(file) for file in parents):
      missing.add(dotted)
  assert missing == set()


def test_what_a_page_says_to_stand_in_a_module_stands_there(page):
  """As in `losses.py` `nt_xent`, `focal`: names right after a file."""
  missing, checked = [], 0
  pattern = rf'`({PROGRAM})`((?:(?: |, | and )`[A-Za-z_][\w.]*`)+)'
  for file, rest in re.findall(pattern, ' '.join(page.split())):
    for name in re.findall(r'`([A-Za-z_][\w.]*)`', rest):
      if '/' in name or name.endswith(('.py', '.sh', '.sbatch')):
        break  # The next file.
      checked += 1
      if not any(name in names_in(one) for one in found(file)):
        missing.append((file, name))
  assert missing == []
  assert checked > 40 or 'Where things stand' not in page  # The map.
