"The library without its contributors' tools."
import importlib.util, shutil, subprocess, sys, venv, zipfile
from pathlib import Path
import pytest

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


def test_the_wheel_holds_what_is_written_by_hand(tmp_path):
    "Scripts of the views and `py.typed`, beside every module; built from a copy, with the setuptools that is there or else the index's."
    source = tmp_path / 'source'
    shutil.copytree(TOP / 'patchgd_nb', source / 'patchgd_nb', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(TOP / name, source)
    here = ['--no-build-isolation'] if importlib.util.find_spec('setuptools') else []
    run = subprocess.run([sys.executable, '-m', 'pip', 'wheel', str(source), '--no-deps', *here, '-w', str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-1000:] + run.stderr[-1000:]
    wheel, = tmp_path.glob('*.whl')
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {p.relative_to(TOP).as_posix() for end in ('py', 'js') for p in (TOP / 'patchgd_nb').rglob(f'*.{end}')} | {'patchgd_nb/py.typed'}
    assert sum(name.endswith('.js') for name in wanted) >= 2 and wanted <= packed, wanted - packed


@pytest.mark.slow
def test_pip_install_alone_trains_one_batch(tmp_path):
    "`pip install .` into an empty environment; downloads several gigabytes."
    venv.create(tmp_path / 'venv', with_pip=True)
    python = tmp_path / 'venv/bin/python'
    subprocess.run([python, '-m', 'pip', 'install', '-q', str(TOP)], check=True, timeout=1800)
    installed = subprocess.run([python, '-m', 'pip', 'list'], capture_output=True, text=True, check=True).stdout
    assert 'nbdev' not in installed and 'fastcore' not in installed
    run = subprocess.run([python, '-c', TRAIN_ONE_BATCH], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert 'one batch trained' in run.stdout, run.stderr
