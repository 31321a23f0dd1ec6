"Every notebook under nbs/ is executed by CI. The list comes from the folder: a new notebook that nothing runs fails here."
import ast, re, shlex
from pathlib import Path
from nbdev.doclinks import nbglob
from nbdev.test import _keep_file
import test_exercises, test_studies

TOP = Path(__file__).resolve().parent.parent
NBS = TOP / 'nbs'
NOTEBOOKS = {p.relative_to(NBS).as_posix() for p in NBS.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts and not p.name.endswith('.out.ipynb')}
NOT_PROGRAMS = {'index.ipynb'}   # the README, whose commands are for a terminal


def recipe(target):
    "The commands of a target of the Makefile."
    return re.search(rf'(?m)^{target}:.*\n((?:\t.*\n?)+)', (TOP / 'Makefile').read_text())[1]


def run_by_nbdev(line):
    "Notebooks that a command `nbdev_test ...` executes, as nbdev itself lists them; folders with a file .notest are left out."
    words = shlex.split(line.partition('#')[0])
    options = {words[i][2:]: words[i + 1] for i in range(len(words)) if words[i].startswith('--skip_')}
    return {p.absolute().relative_to(NBS).as_posix() for p in nbglob(NBS, as_path=True, **options) if _keep_file(p, '.notest')}


def skipped_cells(path):
    "Cells that nbdev_test does not execute, though it executes their notebook."
    return re.findall(r'"#\|\s*(?:eval:\s*false|slow|gpu|notest)\b|skip_exec', (NBS / path).read_text())


def marks(node): return [ast.unparse(d) for d in node.decorator_list]


def marked_tests():
    "By notebook, the tests marked as executing it, as CI runs them."
    found = {}
    for path in (TOP / 'tests').glob('test_*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef) or any('mark.slow' in m or 'mark.skip' in m for m in marks(node)): continue
            for m in marks(node):
                for name in re.findall(r"'([\w/]+)'", m) if m.startswith('pytest.mark.executes(') else (): found.setdefault(f'{name}.ipynb', []).append(f'{path.name}::{node.name}')
    return found


def executed():
    "Notebooks by what executes them, within `make test` and `make test-notebooks`."
    line, = (l for l in recipe('test').splitlines() if 'nbdev_test' in l)
    whole_by_nbdev = {n for n in run_by_nbdev(line) if not skipped_cells(n)}
    return dict(nbdev=whole_by_nbdev, exercises=set(test_exercises.NOTEBOOKS), studies={f'studies/{n}.ipynb' for n in test_studies.STUDIES}, experiments=set(marked_tests()))


def test_every_notebook_is_executed():
    by = executed()
    assert len(NOTEBOOKS) > 100 and all(len(names) >= 5 for names in by.values()), by   # each of the four does find some
    missing = sorted(NOTEBOOKS - NOT_PROGRAMS - set().union(*by.values()))
    assert not missing, f'nothing executes {missing}: mark the test that runs it with pytest.mark.executes, or take it out of what nbdev_test skips'
    assert not by['experiments'] - NOTEBOOKS


def test_ci_runs_what_executes_them():
    "Both targets, with the markers under which the tests above are selected."
    ci = (TOP / '.ci/run').read_text()
    assert 'make test\n' in ci and 'make test-notebooks\n' in ci
    assert 'pytest tests' in recipe('test') and 'not slow and not browser and not notebooks' in recipe('test') and '-m notebooks' in recipe('test-notebooks')
    for test in (test_exercises.test_solutions_pass_and_stubs_fail, test_studies.test_a_trial_runs): assert {m.name for m in test.pytestmark} == {'notebooks', 'parametrize'}


def test_a_notebook_that_nothing_runs_is_found():
    "What the listing rests on: options of nbdev, a file .notest, cells that are skipped."
    line = next(l for l in recipe('test').splitlines() if 'nbdev_test' in l)
    listed = run_by_nbdev(line)
    assert '00_patches.ipynb' in listed and not [n for n in listed if n.startswith(('train_', 'studies/', 'course/1_'))]
    assert 'train_har.ipynb' in run_by_nbdev('nbdev_test') and skipped_cells('index.ipynb') and not skipped_cells('00_patches.ipynb')
