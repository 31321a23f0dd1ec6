"Studies whose figures the documentation states: run again, they must still hold."
import json, re, subprocess, sys
from pathlib import Path
import pytest

TOP = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(tmp_path):
    "One step on 4096, 16384 and 32768 pixels a side at equal sampled patches: at most 10 per cent more at its peak."
    run = subprocess.run([Path(sys.executable).parent / 'papermill', TOP / 'nbs/studies/gigapixel.ipynb', tmp_path / 'out.ipynb', '--no-progress-bar'], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr[-2000:]
    found = re.search(r"([+-][\d.]+)% from 4096 to 32768", (tmp_path / 'out.ipynb').read_text())
    assert float(found[1]) <= 10


@pytest.mark.slow
def test_ultramnist_is_made_fast(tmp_path):
    "At least 10 images of 4000 pixels a second and core."
    run = subprocess.run([Path(sys.executable).parent / 'papermill', TOP / 'nbs/studies/bench_ultramnist.ipynb', tmp_path / 'out.ipynb', '--no-progress-bar', '-p', 'mnist', 'scikit-learn'], cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr[-2000:]
    tables = [o['data']['text/plain'] for c in json.loads((tmp_path / 'out.ipynb').read_text())['cells'] for o in c.get('outputs', []) if 'text/plain' in o.get('data', {})]
    table = next(''.join(t) for t in tables if 'process' in ''.join(t))
    rates = [float(x) for x in re.findall(r'\d+\.\d', table)]
    assert len(rates) >= 2 and max(rates[:2]) >= 10, table


TRIALS = dict(   # every study, with as little work as shows that it runs
    batchnorm_statistics=dict(slides=12, slide_epochs=1, train=32, valid=16, digit_epochs=1, batches=[2]), bench_dashboard=dict(seconds=2, longer=3, pairs=2), bench_readers=dict(size=2048, repeats=1, side=512, step_repeats=1, predict_side=8192, predict_backbone='test_resnet'),
    bench_speed=dict(backbones=['resnet18'], sizes=[256], minutes=.05, epoch_images=2, out_file='bench.json'), bench_ultramnist=dict(image_size=512, images=16, repeats=1, mnist='scikit-learn'),
    carry_augmentation=dict(slides=12, epochs=1), carry_scores=dict(seconds=3, seeds=[0], data_dir='cohort'), gigapixel=dict(sizes='1024 2048'), head_scores=dict(slides=12, heads=['smaller', 'published']),
    panda_seeds=dict(seeds=[0], out_dir='seeds', extra=dict(n_slides=6, epochs=1, image_size=512, folds=2, batch_size=2)), recipes={}, ultramnist_ablation=dict(seconds=2, valid=20), wrong_gradients={},
    papers_panda={}, papers_ultramnist={}, papers_tcga={}, papers_imagenet={}, papers_har={}, papers_ablations={},
    referee=dict(variants=['shapes'], seconds=.2), attention_and_tissue=dict(variants=['shapes'], seconds=.2), whole_token=dict(variants=['density'], seconds=.2), read_larger=dict(variants=['density'], seconds=.2))


TRIALS |= dict(gpu=dict(out_dir='rehearsal', measure=['check', 'speed', 'train'], rehearse=True))
TRIALS |= dict(soak=dict(minutes=.2, images=16, growth=.1), sweep=dict(grid=dict(fraction=['1/2'], epochs=1), workers=1))
STUDIES = sorted(p.stem for p in (TOP / 'nbs/studies').glob('*.ipynb'))   # one without a trial runs as it is


def test_trials_are_of_studies(): assert TRIALS.keys() <= set(STUDIES)


@pytest.mark.notebooks
@pytest.mark.parametrize('name', STUDIES)
def test_a_trial_runs(tmp_path, name):
    "From the first cell to the last; what a study finds, it finds with its own parameters only."
    run = subprocess.run([Path(sys.executable).parent / 'papermill', TOP / f'nbs/studies/{name}.ipynb', tmp_path / 'out.ipynb', '--no-progress-bar', '-y', json.dumps(TRIALS.get(name, {}))], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-2000:]
