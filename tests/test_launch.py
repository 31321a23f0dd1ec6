"`patchgd launch`: several processes, one kernel, and what happens when one of them fails or somebody asks them to stop."
import json, os, signal, subprocess, sys, time
from pathlib import Path
import nbformat, pytest
from patchgd_nb.experiment.launch import COMMAND

pytestmark = pytest.mark.notebooks   # each starts two processes and a kernel
ENV = os.environ | dict(OMP_NUM_THREADS='1')
CELLS = '''
import os, torch
from torch import nn
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import PatchGD
from patchgd_nb.trainer import Trainer
from patchgd_nb.training.ranks import join_ranks, ranks
size = join_ranks()
if ranks.rank == fails: raise ValueError('no such slide')
torch.manual_seed(ranks.rank)
backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))
model = PatchModel(backbone, PatchGrid(16, 8), 3, latent_dim=4, head='smaller')
data = [(torch.rand(2, 3, 16, 16), torch.tensor([0, 2]))] * 4
run = Trainer(model, PatchGD(CoverSampler(1/4)), data, data[:1], epochs=epochs, checkpoint=f'{out_dir}/run', save_minutes=0, progress=False, device='cpu').fit(resume)
f'{size} processes, {run.epoch} epochs, kernel {"JPY_PARENT_PID" in os.environ}'
'''


def make_notebook(folder):
    cells = ["out_dir = 'runs'\nepochs = 2\nfails = None\nresume = False", *CELLS.strip().split('torch.manual_seed')]
    cells = [cells[0], cells[1], 'torch.manual_seed' + cells[2]]
    cells = [nbformat.v4.new_code_cell(source) for source in cells]
    cells[0].metadata['tags'] = ['parameters']
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), folder / 'small.ipynb')


def start(folder, *words): return subprocess.Popen([*COMMAND, 'launch', 'small.ipynb', 'out.ipynb', '--processes', '2', *words], cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def last_output(path): return nbformat.read(path, 4).cells[-1].outputs[-1]['data']['text/plain']


def left_behind(folder):
    "Processes that still have this folder as theirs."
    found = []
    for place in Path('/proc').glob('[0-9]*/cwd'):
        try: found += [place.parent.name] * (place.resolve() == folder.resolve())
        except OSError: pass
    return found


def test_two_processes_one_kernel(tmp_path):
    make_notebook(tmp_path)
    process = start(tmp_path)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert last_output(tmp_path / 'out.ipynb') == "'2 processes, 2 epochs, kernel True'"
    assert len(list(tmp_path.glob('*.ipynb'))) == 2 and (tmp_path / 'runs/run/e0002-b000000').is_dir()


def test_when_one_fails_all_end(tmp_path):
    make_notebook(tmp_path)
    process = start(tmp_path, '-p', 'fails', '1')
    out, err = process.communicate(timeout=180)
    assert process.returncode == 1 and 'process 1 of 2 failed: no such slide' in err
    time.sleep(3)   # a kernel looks for its parent once a second
    assert not left_behind(tmp_path)


@pytest.mark.skipif(sys.platform == 'win32', reason='signals')
def test_a_request_to_stop_is_agreed_on_and_the_run_resumed(tmp_path):
    make_notebook(tmp_path)
    process = start(tmp_path, '-p', 'epochs', '100000')
    end = time.time() + 120
    while not list(tmp_path.glob('runs/run/e*-b000001')) and time.time() < end: time.sleep(.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    names = sorted(p.name for p in (tmp_path / 'runs/run').glob('e*-b*'))
    epochs = int(names[-1][1:5]) + 1
    process = start(tmp_path, '-p', 'epochs', str(epochs), '-p', 'resume', 'anyway')
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert f'{epochs} epochs' in last_output(tmp_path / 'out-2.ipynb')


def test_torchrun_starts_them_as_well(tmp_path):
    make_notebook(tmp_path)
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--master-addr', '127.0.0.1', '--master-port', '29687', '--no-python', *COMMAND, 'launch', 'small.ipynb', 'out.ipynb']
    done = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '2 processes, 2 epochs' in last_output(tmp_path / 'out.ipynb')


def test_a_cell_of_a_notebook_starts_and_watches_it(tmp_path):
    make_notebook(tmp_path)
    cell = """
from patchgd_nb.experiment.launch import launch_from_notebook
watched = launch_from_notebook('small.ipynb', 'runs', epochs=2000)
print(watched.source.read()['status']['state'])
watched.source.do('stop')
print(watched.process.wait(60))
"""
    done = subprocess.run([sys.executable, '-c', cell], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=240)
    assert done.stdout.split() == ['training', '0'] or done.stdout.split() == ['waiting', '0'], done.stdout + done.stderr[-2000:]
    assert list((tmp_path / 'runs/run').glob('e*-b*'))


def test_the_embedded_cohort_on_two_processes(tmp_path):
    words = dict(n_slides=36, image_size=512, epochs=1, batch_size=4, out_dir='runs/a').items()
    command = [*COMMAND, 'launch', 'panda', '--processes', '2'] + [w for name, value in words for w in ('-p', name, str(value))]
    done = subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / 'runs/a/run.json').read_text())
    assert record['outcome'] == 'finished' and set(record['results']) == {'PatchGD', 'whole slide, shrunk'}
