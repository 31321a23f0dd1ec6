"The main job, as a user runs it: papermill on nbs/train_panda.ipynb."
import hashlib, json, re, shutil, subprocess, sys, time
from pathlib import Path
from notebook_cells import run_cells
import pytest, torch
from patchgd_nb.images.canvas import Canvas, content_share
from patchgd_nb.training.checkpoint import Checkpoints
from patchgd_nb.images.readers import open_image
from patchgd_nb.model import PatchModel
from patchgd_nb.datasets.panda import read_panda
from patchgd_nb.patches import PatchGrid

TOP = Path(__file__).resolve().parent.parent


def papermill(out, **parameters):
    "Run the notebook; the finished process, whose exit code tells."
    args = [a for k, v in parameters.items() for a in ('-p', k, str(v))]
    return subprocess.run([Path(sys.executable).parent / 'papermill', TOP / 'nbs/train_panda.ipynb', out / 'out.ipynb', '--no-progress-bar', '-p', 'out_dir', out, *args],
                          cwd=out, capture_output=True, text=True, timeout=1200)


def results(out): return json.loads((out / 'results.json').read_text())['table']


def compare(out, **parameters):
    "Run the main job to its end: the two rows of its table, and the seconds it took; the baseline has no less memory, and the work that whole epochs allow."
    start = time.time()
    run = papermill(out, **parameters)
    assert run.returncode == 0, run.stderr[-2000:]
    patchgd, whole = results(out).values()
    print(f'PatchGD {patchgd}\nbaseline {whole}\n{time.time() - start:.0f} s')
    assert .95 * patchgd['kept for backward (MiB)'] < whole['kept for backward (MiB)'] <= patchgd['kept for backward (MiB)']
    work, of_epoch = (row['work (10^12 multiply-adds)'] for row in (patchgd, whole)), whole['work (10^12 multiply-adds)'] / whole['epochs']
    if 'minutes' not in parameters: assert abs(next(work) - next(work)) <= max(of_epoch / 2, 1e-9) and whole['epochs'] > patchgd['epochs'] == parameters.get('epochs', patchgd['epochs'])
    pictures = [o for c in json.loads((out / 'out.ipynb').read_text())['cells'] for o in c.get('outputs', []) if 'image/png' in o.get('data', {})]
    assert len(pictures) >= 4
    return patchgd, whole, time.time() - start


SHORT = dict(epochs=2, folds=2, image_size=512, batch_size=2)


@pytest.fixture(scope='module')
def short_run(tmp_path_factory):
    "Every cell of it, in the short form; too short to learn anything."
    out = tmp_path_factory.mktemp('short')
    return out, compare(out, n_slides=12, **SHORT)


@pytest.mark.executes('train_panda')
def test_main_job_runs_to_its_end(short_run):
    out, (patchgd, whole, _) = short_run
    assert all(-1 <= row['QWK'] <= 1 for row in (patchgd, whole))
    assert json.loads((out / 'run.json').read_text())['results'] == dict(zip(results(out), (patchgd, whole)))
    training, = [c for c in json.loads((out / 'out.ipynb').read_text())['cells'] if 'PatchGDDashboard()' in ''.join(c['source'])]
    kinds = [k for o in training['outputs'] for k in o.get('data', {}) if k.startswith(('image', 'text/html'))]
    assert kinds == ['image/png', 'image/png', 'image/gif']   # the dashboard's pictures, and no bar beside its lines


@pytest.mark.slow
def test_a_busy_machine_shows_the_same_result(short_run, tmp_path):
    "To the bit, on one type of machine: the weights after each epoch that is kept, of both models, and the table without its seconds."
    first, busy = short_run[0], subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try: run = papermill(tmp_path, data_dir=first / 'cohort_12_512_0', **SHORT)
    finally: busy.kill()
    assert run.returncode == 0, run.stderr[-2000:]
    def weights(out): return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.glob('*/e*/model.safetensors'))}
    def table(out): return {name: {k: v for k, v in row.items() if '(s' not in k} for name, row in results(out).items()}
    assert len(weights(first)) >= 4 and weights(first) == weights(tmp_path) and table(first) == table(tmp_path)


@pytest.mark.slow
def test_main_job_learns_what_shrunk_slides_do_not_show(tmp_path):
    "Without parameters, as a newcomer runs it: QWK 0.85, and 0.20 above the baseline, within 12 minutes."
    patchgd, whole, seconds = compare(tmp_path)
    assert patchgd['QWK'] >= .85 and patchgd['QWK'] - whole['QWK'] >= .20 and seconds < 60 * 12


@pytest.mark.slow
def test_real_slide_end_to_end(data, tmp_path):
    "Regions of a real H&E slide in Kaggle's layout train and evaluate; the whole slide goes through the same code."
    slide = data / 'wsi/CMU-1-Small-Region.svs'
    subprocess.run([sys.executable, TOP / 'data_scripts/cut_slide.py', '--slide', slide, '--out', tmp_path / 'regions', '--n', '30'], check=True, timeout=300)
    assert len(read_panda(tmp_path / 'regions')) == 30
    run = papermill(tmp_path, data_dir=tmp_path / 'regions', patch_size=128, minutes=.15, batch_size=4, folds=3)
    assert run.returncode == 0, run.stderr[-2000:]
    assert all(-1 <= row['QWK'] <= 1 for row in results(tmp_path).values())
    model = PatchModel('test_resnet', PatchGrid(3072, 128), 6, latent_dim=64, head='smaller')
    model.load_state_dict(Checkpoints(tmp_path / 'patchgd').load(best=True).state['model'])      # the head takes any grid
    canvas = Canvas(open_image(slide), 3072)
    content = content_share(canvas, model.grid)[None]
    assert canvas.factor == 1 and 0 < int((content > 0).sum()) < len(model.grid)
    with torch.no_grad(): scores = model.eval()([canvas], content)
    assert scores.shape == (1, 6) and scores.isfinite().all()


@pytest.mark.parametrize('parameters, says', [
    (dict(data_dir='no_such_folder'), 'no_such_folder/train.csv'),
    (dict(backbone='resnet81'), 'resnet81'),
    (dict(patch_size=2048), 'patch_size 2048 is larger than the image'),
    (dict(patch_size=100), 'image_size 1024 is not divisible'),
], ids=lambda v: str(v)[:30])
def test_bad_input_ends_before_training(tmp_path, monkeypatch, parameters, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(says)): run_cells('train_panda', n_slides=6, out_dir=str(tmp_path), **parameters)
    assert not (tmp_path / 'patchgd').exists()


def label(folder): text = (folder / 'train.csv').read_text(); (folder / 'train.csv').write_text(text + 'extra,radboud,7,3+3\n')
def table(folder): (folder / 'train.csv').write_text('image_id;isup_grade\na;1\n')
def slide(folder): next((folder / 'train_images').iterdir()).write_bytes(b'II*\0')


def test_a_bad_folder_ends_before_training(cohort, tmp_path, monkeypatch):
    "What is wrong with a table or a slide is said; by papermill in its last words, with an exit code that tells."
    monkeypatch.chdir(tmp_path)
    for damage, says in ((table, 'train.csv has no column'), (label, "isup_grade '7' of extra"), (slide, 'cannot be read as a TIFF image')):
        shutil.copytree(cohort, tmp_path / damage.__name__)
        damage(tmp_path / damage.__name__)
        with pytest.raises(ValueError, match=re.escape(says)): run_cells('train_panda', out_dir=str(tmp_path / damage.__name__), data_dir=str(tmp_path / damage.__name__))
    run = papermill(tmp_path, data_dir=tmp_path / 'slide')
    assert run.returncode == 1 and says in run.stderr, run.stderr[-2000:]
    assert not [*tmp_path.rglob('patchgd')]


@pytest.mark.slow
def test_keeping_z_and_going_on_after_a_break(tmp_path):
    "The main job with Z kept between epochs; what a second run finds is enough to go on."
    few = dict(n_slides=30, epochs=1, strategy='carry')
    run = papermill(tmp_path, **few)
    assert run.returncode == 0, run.stderr[-2000:]
    run = papermill(tmp_path, **few | dict(epochs=2), resume=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert results(tmp_path)['CarryPatchGD']['epochs'] == 2 and (tmp_path / 'patchgd/z/z.bin').exists()
