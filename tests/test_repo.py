"The tree: notebooks, modules and README agree, notebooks are clean, nothing too large."
import json, re, shutil, subprocess, sys
from pathlib import Path
import pytest

TOP = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (TOP / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PARTS = ['nbs', 'patchgd_nb', '.ci', 'settings.ini', 'README.md']


@pytest.fixture
def copy(tmp_path):
    "The tree's sources in a folder of their own, so that commands that write leave the tree alone."
    for name in PARTS:
        skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'runs', 'data')
        if (TOP / name).is_dir(): shutil.copytree(TOP / name, tmp_path / name, ignore=skip)
        else: shutil.copy(TOP / name, tmp_path / name)
    return tmp_path


def contents(folder): return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file() and '__pycache__' not in p.parts}
def command(folder, name): subprocess.run([Path(sys.executable).parent / name], cwd=folder, check=True, timeout=120)


def test_export_leaves_the_modules_unchanged(copy):
    before = contents(copy / 'patchgd_nb')
    command(copy, 'nbdev_export')
    assert contents(copy / 'patchgd_nb') == before, 'run `make clean` and commit'


def test_notebooks_are_clean(copy):
    before = contents(copy / 'nbs')
    command(copy, 'nbdev_clean')
    assert contents(copy / 'nbs') == before, 'run `make clean` and commit'


def test_readme_is_in_step_with_its_notebook(copy):
    subprocess.run([sys.executable, '.ci/readme.py'], cwd=copy, check=True, timeout=120)
    assert (copy / 'README.md').read_text() == (TOP / 'README.md').read_text(), 'run `make readme` and commit'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook(path):
    "No stored errors, no orphaned widget views, no machine paths, a kernel papermill finds, at most 1 MB."
    nb = json.loads(path.read_text())
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not [o for o in outputs if o['output_type'] == 'error']
    assert not [o for o in outputs if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})] or 'widgets' in nb['metadata']
    assert nb['metadata']['kernelspec']['name'] == 'python3'
    assert str(Path.home()) + '/' not in path.read_text() and str(TOP) not in path.read_text()
    assert path.stat().st_size < (150_000 if path.stem[0].isdigit() else 1_000_000)


def test_rooms_import_only_from_floors_below():
    floors = [{'patches', 'head', 'trace', 'biopsy'}, {'sampler', 'zblock', 'images', 'memory'}, {'canvas'}, {'slides'}, {'prepare'}, {'model', 'panda', 'ultramnist', 'signals'}, {'strategy'}, {'trainer', 'controls', 'gauges'}, {'watch'}, {'view'}, {'dashboard', 'slide_page'}, {'slide_explorer'}, {'explorers'}]
    floor = {room: i for i, rooms in enumerate(floors) for room in rooms}
    modules = [p for p in (TOP / 'patchgd_nb').glob('*.py') if p.stem[0] != '_']
    assert {p.stem for p in modules} == set(floor)
    assert 'from .' in (TOP / 'patchgd_nb/dashboard.py').read_text()      # imports look as the pattern expects
    for p in modules:
        used = set(re.findall(r'(?m)^from (?:patchgd_nb)?\.(\w+) import', p.read_text()))
        assert all(floor[u] < floor[p.stem] for u in used), (p.stem, used)
