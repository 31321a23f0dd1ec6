"The library without its contributors' tools."
import importlib.util, json, os, shutil, subprocess, sys, venv, zipfile
from pathlib import Path
import pytest
from filelock import FileLock
import patchgd_nb
from patchgd_nb.experiment.notebooks import notebook_files

TOP = Path(__file__).resolve().parent.parent

TRAIN_ONE_BATCH = '''
import importlib, pkgutil, torch, patchgd_nb
modules = [m.name for m in pkgutil.walk_packages(patchgd_nb.__path__, 'patchgd_nb.') if not m.name.endswith('_modidx')]
assert len(modules) >= 40, modules
for m in modules: importlib.import_module(m)
from patchgd_nb.patches import PatchGrid; from patchgd_nb.sampler import CoverSampler
from patchgd_nb.model import PatchModel; from patchgd_nb.strategy import PatchGD
model = PatchModel('test_resnet', PatchGrid(128, 64), n_classes=6, latent_dim=16)
step = PatchGD(CoverSampler(1/2)).step(model, torch.randint(256, (2, 3, 128, 128), dtype=torch.uint8), torch.tensor([0, 5]), torch.optim.AdamW(model.parameters()))
assert step.optimizer_steps == 1 and step.loss > 0
print('one batch trained')
'''

NO_DEV_TOOLS = '''
import sys
for name in ('nbdev', 'fastcore', 'execnb', 'ghapi', 'fastgit', 'pytest', 'hypothesis', 'playwright'): sys.modules[name] = None   # cannot be imported
'''


def test_every_module_works_without_the_contributors_tools():
    "nbdev, fastcore and the test tools are made impossible to import."
    run = subprocess.run([sys.executable, '-c', NO_DEV_TOOLS + TRAIN_ONE_BATCH], capture_output=True, text=True, timeout=300)
    assert 'one batch trained' in run.stdout, run.stderr


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    "Built from a copy, with the setuptools that is there or else the index's."
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    for name in ('patchgd_nb', 'nbs'): shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'runs', 'data'))
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'): shutil.copy(TOP / name, source)
    here = ['--no-build-isolation'] if importlib.util.find_spec('setuptools') else []
    run = subprocess.run([sys.executable, '-m', 'pip', 'wheel', str(source), '--no-deps', *here, '-w', str(folder)], cwd=folder, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-1000:]
    return next(folder.glob('*.whl'))


def test_the_wheel_holds_what_is_written_by_hand(wheel):
    "Scripts of the views and `py.typed`, beside every module."
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {p.relative_to(TOP).as_posix() for end in ('py', 'js') for p in (TOP / 'patchgd_nb').rglob(f'*.{end}')} | {'patchgd_nb/py.typed'}
    assert sum(name.endswith('.js') for name in wanted) >= 2 and wanted <= packed, wanted - packed


def test_the_wheel_holds_the_notebooks(wheel):
    "All that `patchgd copy` gives, pictures and all, in less than 8 MB."
    packed = set(zipfile.ZipFile(wheel).namelist())
    notebooks = {f'patchgd_nb/notebooks/{p.as_posix()}' for p in notebook_files(TOP / 'nbs')}
    assert len(notebooks) > 80 and notebooks <= packed, notebooks - packed
    assert wheel.stat().st_size < 8_000_000


def environment_of(folder): return dict({k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}, PYTHONPATH=str(folder))


def patchgd(python, cwd, *words, env=None, timeout=600):
    "The command, by this Python; what it printed."
    run = subprocess.run([python, '-c', 'import sys; from patchgd_nb.experiment.command import main; sys.exit(main())', *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-2000:]
    return run.stdout


def test_the_command_works_without_a_checkout(wheel, tmp_path):
    "From the unpacked wheel: the version, its notebooks, a slide."
    zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
    env = environment_of(tmp_path / 'site')
    assert patchgd(sys.executable, tmp_path, '--version', env=env) == f'patchgd {patchgd_nb.__version__}\n'
    patchgd(sys.executable, tmp_path, 'copy', 'lessons', env=env)
    assert notebook_files(tmp_path / 'lessons') == notebook_files(TOP / 'nbs')
    code = 'from patchgd_nb.experiment.notebooks import find_notebook; print(find_notebook("panda"))'
    found = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True).stdout.strip()
    assert found == str(tmp_path / 'site/patchgd_nb/notebooks/train_panda.ipynb')


@pytest.mark.slow
def test_pip_install_alone_trains_one_batch(tmp_path):
    "`pip install .` into an empty environment; downloads several gigabytes."
    venv.create(tmp_path / 'venv', with_pip=True)
    python = tmp_path / 'venv/bin/python'
    subprocess.run([python, '-m', 'pip', 'install', '-q', str(TOP)], check=True, timeout=1800)
    installed = subprocess.run([python, '-m', 'pip', 'list'], capture_output=True, text=True, check=True).stdout
    assert 'nbdev' not in installed and 'fastcore' not in installed
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    run = subprocess.run([python, '-c', TRAIN_ONE_BATCH], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert 'one batch trained' in run.stdout, run.stderr


@pytest.mark.slow
def test_a_users_way_through_an_empty_environment(wheel, tmp_path):
    "Only the wheel is installed: the doctor, the notebooks, a cohort, the main job, predictions; downloads several gigabytes."
    venv.create(tmp_path / 'venv', with_pip=True)
    python, env = tmp_path / 'venv/bin/python', {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    subprocess.run([python, '-m', 'pip', 'install', '-q', str(wheel)], check=True, timeout=1800)
    command = tmp_path / 'venv/bin/patchgd'

    def run(*words): return subprocess.run([command, *words], cwd=tmp_path, env=env, check=True, capture_output=True, text=True, timeout=900).stdout

    assert 'Nothing is missing.' in run('doctor')
    run('copy', 'lessons')
    assert (tmp_path / 'lessons/00_patches.ipynb').is_file()
    run('make', 'panda', '--out', 'cohort', '--n', '12')
    run('run', 'panda', '-p', 'data_dir=cohort', '-p', 'out_dir', 'runs/a', '-p', 'image_size=512', '-p', 'epochs=1', '-p', 'folds=2', '-p', 'batch_size=2')
    record = json.loads((tmp_path / 'runs/a/run.json').read_text())
    assert record['outcome'] == 'finished' and record['code'] is None and (tmp_path / 'runs/a/train_panda.ipynb').is_file()
    run('predict', 'runs/a', 'cohort/train_images', '--out', 'predictions')
    assert len((tmp_path / 'predictions/predictions.csv').read_text().splitlines()) == 13 and len(list((tmp_path / 'predictions/maps').glob('*.geojson'))) == 12


# --- only the wheel: what a student has

TAUGHT = sorted(p.relative_to(TOP / 'nbs').as_posix() for folder, pattern in (('nbs', '[0-9][0-9]_*.ipynb'), ('nbs/course', '[1-9]_*.ipynb')) for p in (TOP / folder).glob(pattern))


@pytest.fixture(scope='session')
def student(wheel, tmp_path_factory):
    "An environment with only the wheel in it, shared by all test processes, and the lecturer's notebooks; downloads several gigabytes."
    shared = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ: shared = shared.parent   # of all workers
    folder, env = shared / 'student', {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    user, lock = shared / f"student.{os.environ.get('PYTEST_XDIST_WORKER', 'only')}", FileLock(shared / 'student.lock')
    with lock:
        user.touch()
        if not (folder / 'lessons').is_dir():
            venv.create(folder / 'venv', with_pip=True)
            subprocess.run([folder / 'venv/bin/python', '-m', 'pip', 'install', '-q', str(wheel)], check=True, timeout=1800, env=env)
            subprocess.run([folder / 'venv/bin/patchgd', 'copy', 'lessons', '--solutions'], cwd=folder, check=True, timeout=300, env=env)
    yield folder, env
    with lock:   # the last one takes the gigabytes away
        user.unlink()
        if not list(shared.glob('student.*[!k]')): shutil.rmtree(folder)


@pytest.mark.notebooks
@pytest.mark.parametrize('name', TAUGHT)
def test_a_notebook_runs_from_the_wheel_alone(student, tmp_path, name):
    "Every lesson and session with its solutions, from the first cell to the last, as papermill runs it."
    folder, env = student
    run = subprocess.run([folder / 'venv/bin/python', '-m', 'papermill', name, tmp_path / 'out.ipynb', '--cwd', folder / 'lessons' / Path(name).parent, '--no-progress-bar'],
                         cwd=folder / 'lessons', env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]


# --- a classroom

STAND_IN = '''
import sys, types
output = types.SimpleNamespace(enable_custom_widget_manager=lambda: print('widgets enabled'))
sys.modules['google'], sys.modules['google.colab'] = types.ModuleType('google'), types.ModuleType('google.colab')
sys.modules['google.colab'].output = output
'''
RUN_NOTEBOOK = '''
import nbformat, sys
from nbclient import NotebookClient
NotebookClient(nbformat.read(sys.argv[1], 4), timeout=1800, resources={'metadata': {'path': sys.argv[2]}}).execute()
'''
MEMORY = '''
import json, psutil, resource
from pathlib import Path
Path('memory.json').write_text(json.dumps(dict(now=psutil.Process().memory_info().rss, peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)))
'''


def run_cells(python, cells, folder):
    "The cells in a kernel of this environment; what it held in memory at the end, and at most, in GB."
    import nbformat
    path = folder / 'notebook.ipynb'
    nbformat.write(nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(MEMORY)]), path)
    env = dict({k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'JUPYTER_PATH')}, OMP_NUM_THREADS='2', IPYTHONDIR=str(folder / 'ipython'))
    run = subprocess.run([python, '-c', RUN_NOTEBOOK, str(path), str(folder)], env=env, capture_output=True, text=True, timeout=3600)
    assert run.returncode == 0, run.stderr[-3000:]
    return {k: round(v / 1e9, 2) for k, v in json.loads((folder / 'memory.json').read_text()).items()}


def lesson_cells(name):
    import nbformat
    return nbformat.read(TOP / f'nbs/{name}.ipynb', 4).cells


@pytest.mark.slow
def test_the_install_cell_of_student_notebooks(wheel, tmp_path):
    "As on Colab: an environment with a kernel and without the kit; downloads several gigabytes."
    import nbformat
    sys.path.insert(0, str(TOP / 'docs'))
    from site_notebooks import student_notebook
    student = student_notebook(TOP, Path('nbs/00_patches.ipynb'), 'https://site', str(wheel))
    install = next(c for c in student.cells if c.cell_type == 'code')
    assert f'%pip install --quiet {wheel}' in install.source
    venv.create(tmp_path / 'venv', with_pip=True)
    python = tmp_path / 'venv/bin/python'
    subprocess.run([python, '-m', 'pip', 'install', '-q', 'ipykernel', 'nbclient'], check=True, timeout=900)
    memory = run_cells(python, [nbformat.v4.new_code_cell(STAND_IN), install, *lesson_cells('00_patches')], tmp_path)
    print('lesson 00, GB:', memory)
    assert memory['peak'] < 4


@pytest.mark.slow
def test_the_requirements_file_of_a_hub(wheel, tmp_path):
    "Installed into an empty environment; then lessons run in it, in less memory than the guide says; downloads several gigabytes."
    venv.create(tmp_path / 'venv', with_pip=True)
    python = tmp_path / 'venv/bin/python'
    (tmp_path / 'requirements.txt').write_text(f'patchgd_nb @ {wheel.as_uri()}\n')
    subprocess.run([python, '-m', 'pip', 'install', '-q', '-r', str(tmp_path / 'requirements.txt')], check=True, timeout=1800)
    for name in ('00_patches', '05_strategy', '07_trainer'):
        memory = run_cells(python, lesson_cells(name), tmp_path)
        print(f'{name}, GB:', memory)
        assert memory['peak'] < 2, name   # what docs/lecturers.md gives a student
