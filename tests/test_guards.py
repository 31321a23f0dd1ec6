"How the code is written: whole classes, lines that fit, imports that only look down. Everything is read as a syntax tree."
import ast, inspect, json, re, subprocess, sys
from functools import lru_cache
from importlib import import_module
from pathlib import Path
import pytest

TOP = Path(__file__).resolve().parent.parent
PACKAGE = TOP / 'patchgd_nb'
WIDTH, CLASS_LINES = 120, 90
MODULES = sorted(p for p in PACKAGE.rglob('*.py') if p.name not in ('_modidx.py', '__init__.py'))
NOTEBOOKS = sorted(p for p in (TOP / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
LESSONS = [p for p in NOTEBOOKS if re.match(r'\d\d_', p.name) and p.parent.name == 'nbs']
WINGS_BELOW, WINGS_ABOVE = ['base', 'training', 'images', 'datasets'], ['dashboard', 'experiment', 'course']   # the lessons stand between them


def dotted(path): return '.'.join(path.relative_to(TOP).with_suffix('').parts)

@lru_cache
def code_cells(path):
    "Source of a notebook's code cells, magics made harmless."
    cells = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code']
    return [re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', s) for s in cells if not s.startswith('%%')]

def rank(module):
    "Where a module stands: wings below, the lessons in the order of their numbers, wings above."
    parts = module.split('.')
    if parts[1] in WINGS_BELOW: return WINGS_BELOW.index(parts[1])
    lessons = [p.stem[3:] for p in LESSONS]
    if parts[1] in lessons: return len(WINGS_BELOW) + lessons.index(parts[1])
    return len(WINGS_BELOW) + len(lessons) + WINGS_ABOVE.index(parts[1])

def imported(tree, module):
    "Modules of the package that a syntax tree imports, at any depth, relative or not."
    out, package = set(), module.split('.')[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level: base = '.'.join(package[:len(package) - node.level + 1] + ([base] if base else []))
            names = [base, *(f'{base}.{a.name}' for a in node.names)]
        else: continue
        out |= {n for n in names if (PACKAGE.parent / n.replace('.', '/')).with_suffix('.py').is_file()}
    return {n for n in out if n.startswith('patchgd_nb.')}

GRAPH = {dotted(p): imported(ast.parse(p.read_text()), dotted(p)) for p in MODULES}


def test_the_guards_read_what_there_is():
    assert len(MODULES) >= 35 and len(LESSONS) == 8 and len(NOTEBOOKS) >= 45
    assert 'patchgd_nb.base.files' in GRAPH['patchgd_nb.images.pyramid'] and 'patchgd_nb.zblock' in GRAPH['patchgd_nb.strategy']
    assert imported(ast.parse('def f():\n    from ..memory import plan'), 'patchgd_nb.experiment.parameters') == {'patchgd_nb.memory'}

def test_numbers_are_reading_order():
    assert [int(p.name[:2]) for p in LESSONS] == list(range(8))
    assert all(f'#| default_exp {p.stem[3:]}' in code_cells(p) for p in LESSONS)

@pytest.mark.parametrize('module', GRAPH)
def test_modules_import_only_from_below(module):
    for used in GRAPH[module]: assert rank(used) < rank(module) or module.split('.')[:-1] == used.split('.')[:-1] != ['patchgd_nb'], f'{module} imports {used}'

def test_no_circles():
    left = {m: set(used) for m, used in GRAPH.items()}
    while left:
        free = [m for m, used in left.items() if not used & left.keys()]
        assert free, f'these import each other: {sorted(left)}'
        for m in free: del left[m]

@pytest.mark.parametrize('path', LESSONS, ids=lambda p: p.stem)
def test_a_lesson_meets_no_later_one(path):
    "In demonstrations, too: wings below and earlier lessons only; the checkers of its exercises aside."
    own = f'patchgd_nb.{path.stem[3:]}'
    used = set().union(*(imported(ast.parse(s), 'patchgd_nb.x') for s in code_cells(path)))
    names = {a.name for s in code_cells(path) for n in ast.walk(ast.parse(s)) if isinstance(n, ast.ImportFrom) and n.module == 'patchgd_nb' for a in n.names}
    assert not names, f'{path.name} imports {names} from the package: say the module'
    assert not {u for u in used if rank(u) >= rank(own) and not re.fullmatch(r'patchgd_nb\.course\.\w*lessons', u)}

def hung(tree):
    "Functions hung onto a class after the fact: `Class.name = function`."
    assigned = [t for n in tree.body if isinstance(n, ast.Assign) for t in ast.walk(n) if isinstance(t, ast.Attribute) and isinstance(t.ctx, ast.Store)]
    return [ast.unparse(t) for t in assigned if isinstance(t.value, ast.Name) and t.value.id[:1].isupper()]

def test_classes_are_whole():
    assert hung(ast.parse('class A: pass\ndef _f(self): pass\nA.f, A.g = _f, property(_f)')) == ['A.f', 'A.g']
    assert not {dotted(p): found for p in MODULES if (found := hung(ast.parse(p.read_text())))}

def body_lines(node, lines):
    "Lines of a class, documented signatures, blank lines and docstrings not counted."
    skip = set()
    for n in ast.walk(node):
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            if n.body[0].lineno > n.lineno: skip |= set(range(n.lineno, n.body[0].lineno))
            if ast.get_docstring(n) is not None: skip |= set(range(n.body[0].lineno, n.body[0].end_lineno + 1))
    return sum(1 for i in range(node.lineno, node.end_lineno + 1) if i not in skip and lines[i - 1].strip())


def test_a_class_is_one_idea():
    found = {}
    for p in MODULES:
        s = p.read_text()
        for n in ast.walk(ast.parse(s)):
            if isinstance(n, ast.ClassDef) and (size := body_lines(n, s.splitlines())) > CLASS_LINES: found[f'{dotted(p)}.{n.name}'] = size
    assert not found, found

def long_lines(text): return [l for l in text.splitlines() if len(l) > WIDTH]

def test_lines_fit():
    generated = re.compile(r"(?ms)^__all__ = \[.*?\]\n")   # nbdev's own
    exported = {dotted(p): len(long_lines(generated.sub('', p.read_text(), 1))) for p in MODULES}
    for p in [*PACKAGE.rglob('__init__.py'), *(TOP / 'docs').glob('*.py')]: exported[p.relative_to(TOP).as_posix()] = len(long_lines(p.read_text()))
    cells = {p.relative_to(TOP).as_posix(): sum(len(long_lines(s)) for s in code_cells(p)) for p in NOTEBOOKS}
    assert not any(exported.values()), {m: n for m, n in exported.items() if n}
    assert not any(cells.values()), {m: n for m, n in cells.items() if n}

FIXED = '''patches.PatchGrid sampler.CoverSampler sampler.UniformSampler zblock.ZBlock model.PatchModel strategy.GradientDescent strategy.PatchGD strategy.ExactPatchGD
strategy.CarryPatchGD trainer.Trainer memory.saved_for_backward memory.plan training.zbank.ZBank images.open_image dashboard.PatchGDDashboard'''.split()

@pytest.mark.parametrize('name', FIXED)
def test_fixed_import_paths(name):
    module, what = name.rsplit('.', 1)
    assert getattr(import_module(f'patchgd_nb.{module}'), what).__name__ == what

def test_the_package_hands_on_its_names_when_they_are_used():
    run = subprocess.run([sys.executable, '-c', 'import sys, patchgd_nb; assert not {"torch", "timm", "pandas"} & set(sys.modules); from patchgd_nb import *; print(*sorted(n for n in dir() if n[0] != "_"))'],
                         capture_output=True, text=True, timeout=120)
    assert set(run.stdout.split()) >= set('PatchGrid CoverSampler UniformSampler WeightedSampler ZBlock ZBank PatchModel WholeModel GradientDescent PatchGD ExactPatchGD CarryPatchGD Trainer Callback Trace open_image PatchGDDashboard replay plan check_gradients'.split()), run.stderr
    with pytest.raises(ImportError): exec('from patchgd_nb import Nothing')
    assert (PACKAGE / 'py.typed').is_file()

def test_a_class_shows_its_source():
    from patchgd_nb import PatchGD, Trace, Trainer
    assert PatchGD.step.__qualname__ == 'PatchGD.step' and 'def samples' in inspect.getsource(Trace) and Trainer.save.__name__ == 'save'

SCRIPTS_IN_STRINGS = 0   # modules: may only fall

def test_javascript_lies_in_files():
    assert len([p for p in MODULES if re.search(r'(?m)^\s*(export (default|function)|const \w+ = .*=>)', p.read_text())]) <= SCRIPTS_IN_STRINGS
    scripts = sorted(PACKAGE.rglob('*.js'))
    assert len(scripts) >= 2 and not {p.name: long_lines(p.read_text()) for p in scripts if long_lines(p.read_text())}

def test_the_table_of_contents_fits_on_a_screen():
    assert len([p for p in (TOP / 'nbs').iterdir() if p.name[0] not in '._']) <= 24

def silencing(source):
    "Whether a cell changes for good which warnings are shown: the notebook run after it in the same process would miss its own."
    calls = [n.value for n in ast.parse(source).body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    return any(ast.unparse(c.func).split('.')[-1] in ('simplefilter', 'filterwarnings') for c in calls)

@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.relative_to(TOP / 'nbs').as_posix())
def test_a_notebook_leaves_warnings_as_they_were(path):
    assert silencing("import warnings\nwarnings.simplefilter('ignore')") and not silencing("with warnings.catch_warnings(): warnings.simplefilter('always')")
    assert not any(map(silencing, code_cells(path)))


def test_every_notebook_imports_what_there_is():
    "Also in notebooks that the suite does not run: what they import from the package exists, and parameters can be set."
    missing, untagged = [], []
    for p in NOTEBOOKS:
        for s in code_cells(p):
            for n in ast.walk(ast.parse(s)):
                if not isinstance(n, ast.ImportFrom) or not (n.module or '').startswith('patchgd_nb.'): continue
                module = import_module(n.module)
                missing += [f'{p.name}: {n.module}.{a.name}' for a in n.names if not hasattr(module, a.name) and f'{n.module}.{a.name}' not in GRAPH]
        if p.parent.name == 'studies' and re.search(r'papermill nbs/studies/\S+ \S+ (\\\n)?\s*-[py]', p.read_text()):
            if '"parameters"' not in p.read_text(): untagged.append(p.name)
    assert not missing and not untagged, (missing, untagged)
