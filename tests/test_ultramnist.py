"UltraMNIST: sums, sizes, boxes; the same files however they are made; folders that are wrong."
import gzip, itertools, json, os, shutil, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st
from PIL import Image
from patchgd_nb.patches import PatchGrid
from patchgd_nb.datasets.digit_sums import DigitSumHead, sum_distribution
from patchgd_nb.datasets.digits import read_idx
from patchgd_nb.datasets.ultramnist import DrawnUltraMNIST, UltraMNIST, load_digit_images, digit_sizes, digits_of_sum, draw_image, make_ultramnist, place_boxes, image_layout, read_ultramnist
from patchgd_nb.experiment.parameters import UltraMnist
from patchgd_nb.images.slides import make_loader
from patchgd_nb.experiment.command import read_defaults

TOP = Path(__file__).resolve().parent.parent
KWARGS = dict(train=20, valid=10, image_size=256, max_sum=9, mnist='scikit-learn', seed=5, progress=False)


def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def digits(tmp_path_factory): return make_ultramnist(tmp_path_factory.mktemp('ultra'), workers=2, **KWARGS)


@given(st.integers(0, 27), st.integers(0, 10**6))
def test_three_to_five_digits_with_the_sum(total, seed):
    drawn = digits_of_sum(np.random.default_rng(seed), total)
    assert sum(drawn) == total and 3 <= len(drawn) <= 5 and all(0 <= d <= 9 for d in drawn)


def test_every_way_to_make_a_sum_comes_up_alike():
    rng = np.random.default_rng(0)
    drawn = [tuple(digits_of_sum(rng, 2)) for _ in range(6000)]
    three = [d for d in drawn if len(d) == 3]
    counts = pd.Series(three).value_counts()
    assert len(counts) == 6 and counts.max() < 1.35 * counts.min()      # 002 020 200 011 101 110
    assert abs(len(three) / len(drawn) - 1/3) < .03


@given(st.integers(128, 4000), st.integers(3, 5), st.integers(0, 10**6))
def test_boxes_lie_inside_and_apart(image_size, n, seed):
    rng = np.random.default_rng(seed)
    sizes = digit_sizes(rng, n, image_size)
    assert 14 <= sizes.min() and sizes.max() <= 252
    placed = [(r, c, s) for (r, c), s in zip(place_boxes(rng, sizes, image_size), sizes)]
    assert all(0 <= r <= image_size - s and 0 <= c <= image_size - s for r, c, s in placed)
    for i, (r, c, s) in enumerate(placed):
        for r2, c2, s2 in placed[:i]: assert r + s <= r2 or r2 + s2 <= r or c + s <= c2 or c2 + s2 <= c


def test_sizes_are_v_shaped():
    sizes = np.log(digit_sizes(np.random.default_rng(0), 40000, 4000) / 14) / np.log(18)
    small, middle, large = np.histogram(sizes, [0, .2, .4, .6, .8, 1.01])[0][[0, 2, 4]]
    assert small > 5 * middle and large > 5 * middle


def test_layout(digits):
    train, boxes = pd.read_csv(digits / 'train.csv'), pd.read_csv(digits / 'boxes.csv')
    assert list(train) == ['image_id', 'digit_sum'] and train.digit_sum.value_counts().eq(2).all() and len(pd.read_csv(digits / 'valid.csv')) == 10
    assert list(boxes) == ['image_id', 'row', 'col', 'size', 'digit']
    assert (boxes.groupby('image_id').digit.sum()[train.image_id] == train.digit_sum.to_numpy()).all()
    assert boxes.groupby('image_id').size().between(3, 5).all()
    assert 'scikit-learn' in (digits / 'source.txt').read_text()


def test_light_lies_in_the_boxes(digits):
    boxes = pd.read_csv(digits / 'boxes.csv')
    for name, mine in boxes.groupby('image_id'):
        pixels = np.array(Image.open(digits / f'images/{name}.png'))
        assert pixels.shape == (256, 256) and pixels.dtype == np.uint8
        for b in mine.itertuples():
            s = mine.loc[b.Index, 'size']
            window = pixels[b.row:b.row + s, b.col:b.col + s]
            assert window.max() > 100
            window[:] = 0
        assert not pixels.any()


def test_validation_has_other_digits():
    a, b = load_digit_images('train', 'scikit-learn'), load_digit_images('valid', 'scikit-learn')
    assert not {i.tobytes() for i in a[0]} & {i.tobytes() for i in b[0]} and len(a[0]) + len(b[0]) == 1797


def test_the_same_for_any_number_of_processes_and_after_losses(digits, tmp_path):
    again = make_ultramnist(tmp_path / 'a', workers=1, **KWARGS)
    assert files(again) == files(digits)
    for p in sorted((again / 'images').iterdir())[::4]: p.unlink()
    (again / 'train.csv').unlink()
    make_ultramnist(again, workers=2, **KWARGS)
    assert files(again) == files(digits)


def test_killed_at_random_moments_it_ends_the_same(tmp_path):
    "Five times, the whole group of processes; then one undisturbed call."
    args = ['--train', '60', '--valid', '20', '--image-size', '900', '--max-sum', '9', '--seed', '5', '--workers', '2', '--mnist', 'scikit-learn']
    command = lambda out: [sys.executable, TOP / 'data_scripts/make_ultramnist.py', '--out', out, *args]
    rng = np.random.default_rng(0)
    for _ in range(5):
        p = subprocess.Popen(command(tmp_path / 'killed'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(rng.uniform(1.5, 3.5))
        try: os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        p.wait()
    for out in ('killed', 'whole'): subprocess.run(command(tmp_path / out), check=True, capture_output=True, timeout=200)
    assert files(tmp_path / 'killed') == files(tmp_path / 'whole')


@pytest.mark.parametrize('format', ['png', 'jpeg'])
def test_items_and_content(tmp_path, format):
    folder, grid = make_ultramnist(tmp_path, format=format, workers=1, **KWARGS), PatchGrid(256, 32)
    pool = load_digit_images('train', 'scikit-learn')
    for i, (image, total, content, name) in enumerate(UltraMNIST(read_ultramnist(folder, 'train'), grid)):
        drawn = torch.from_numpy(draw_image(pool, image_layout(pool, 5, 'train', i, 256, 0, 9), 256))
        assert image.shape == (1, 256, 256) and total == i % 10 and (image[0].int() - drawn.int()).abs().max() <= (0 if format == 'png' else 90)
        lit = (grid.extract(drawn[None, None], range(64)) > 32).flatten(2).any(2)[0]
        assert not (lit & (content == 0)).any() and (content > 0).float().mean() < .8


def test_idx_files_of_mnist(data, tmp_path):
    images, labels, source = load_digit_images('valid', str(data / 'mnist'))
    assert images.shape == (10000, 28, 28) and labels.shape == (10000,) and labels.max() == 9 and 'MNIST' in source
    assert load_digit_images('train', str(data / 'mnist'))[0].shape == (60000, 28, 28)
    name = 't10k-labels-idx1-ubyte'
    (tmp_path / name).write_bytes(gzip.open(data / f'mnist/{name}.gz').read())
    assert (read_idx(tmp_path / name) == labels).all()
    (tmp_path / 'cut.gz').write_bytes((data / f'mnist/{name}.gz').read_bytes()[:2000])
    with pytest.raises(ValueError, match='cut.gz'): read_idx(tmp_path / 'cut.gz')
    with pytest.raises(FileNotFoundError, match='train-images'): load_digit_images('train', str(tmp_path))


@pytest.mark.parametrize('kwargs', [dict(image_size=64), dict(max_sum=46), dict(min_sum=5, max_sum=4), dict(format='gif')])
def test_impossible_settings_are_refused(tmp_path, kwargs):
    with pytest.raises(ValueError) as e: make_ultramnist(tmp_path / 'x', **KWARGS | kwargs)
    assert not (tmp_path / 'x').exists() and '\n' not in str(e.value)


@pytest.mark.parametrize('text, says', [('', 'train.csv'), ('image_id,sum\na,1', 'digit_sum'), ('image_id,digit_sum\na,46', "'46'"), ('image_id,digit_sum\na,x', "'x'"), ('image_id,digit_sum\n../../etc/passwd,3', 'passwd'), ('image_id,digit_sum\nnot_there,3', 'not_there')])
def test_a_table_that_is_wrong_is_refused(digits, tmp_path, text, says):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'train.csv').write_text(text)
    with pytest.raises((ValueError, FileNotFoundError)) as e: read_ultramnist(tmp_path, 'train')
    assert says in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('damage', [lambda d: b'', lambda d: d[:len(d) // 2], lambda d: b'no picture'])
def test_a_damaged_image_is_named(digits, tmp_path, damage):
    rows = read_ultramnist(digits, 'valid')
    (tmp_path / 'bad.png').write_bytes(damage(rows.path[0].read_bytes()))
    rows.loc[0, 'path'] = tmp_path / 'bad.png'
    with pytest.raises(ValueError, match='bad.png'): UltraMNIST(rows, PatchGrid(256, 32))[0]


def experiment(out, **parameters):
    "Run the notebook as a user does; its results."
    args = [a for k, v in parameters.items() for a in ('-p', k, str(v))]
    run = subprocess.run([Path(sys.executable).parent / 'papermill', TOP / 'nbs/train_ultramnist.ipynb', out / 'out.ipynb', '--no-progress-bar', '-p', 'out_dir', out, *args], cwd=out, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads((out / 'results.json').read_text())


@pytest.mark.executes('train_ultramnist')
def test_the_experiment_runs_and_skips_what_is_broken(digits, tmp_path):
    shutil.copytree(digits, tmp_path / 'data')
    (tmp_path / 'data/images/valid_000003.png').write_bytes(b'')      # of the images that are read in any time
    result = experiment(tmp_path, data_dir=tmp_path / 'data', epochs=1, batch_size=4, on_bad='skip')
    assert 0 <= result['accuracy'] <= 1 and 'valid_000003' in (tmp_path / 'bad_images.csv').read_text()


# new images in every pass, and a head that knows that digits add up

def test_drawn_images_are_new_in_every_pass_and_the_same_for_a_seed():
    data = DrawnUltraMNIST(12, PatchGrid(128, 32), max_sum=5, mnist='scikit-learn')
    def passes(workers, skip=0):
        torch.manual_seed(3)
        loader = make_loader(data, 4, True, workers)
        first = [b.images for b in loader]
        loader.skip = skip
        return first, [b.images for b in loader], [b.labels for b in loader]
    (a, b, labels), (c, d, _), (_, rest, _) = passes(0), passes(2), passes(0, skip=2)
    assert all(map(torch.equal, a, c)) and all(map(torch.equal, b, d)) and torch.equal(rest[0], b[2])
    assert not any(torch.equal(x, y) for p in a for x in p for q in b for y in q)
    assert sorted(torch.cat(labels).tolist()) == sorted([*range(6)] * 2)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 12), st.integers(0, 10**6))
def test_the_sum_of_cells_has_the_distribution_of_all_combinations(cells, values, max_sum, seed):
    p = torch.rand(2, cells, values, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + .01
    p /= p.sum(2, keepdim=True)
    expected = torch.zeros(2, max_sum + 1, dtype=torch.float64)
    for chosen in itertools.product(range(values), repeat=cells):
        if sum(chosen) <= max_sum: expected[:, sum(chosen)] += torch.stack([p[:, k, v] for k, v in enumerate(chosen)]).prod(0)
    assert torch.allclose(sum_distribution(p.log(), max_sum).exp(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('shape', [(1, 1), (8, 8), (3, 5), (10, 10)])
@pytest.mark.parametrize('max_sum', [0, 9, 27])
def test_scores_of_sums_are_finite_with_their_gradients(shape, max_sum):
    torch.manual_seed(0)
    head = DigitSumHead(6, max_sum)
    z = (50 * torch.randn(2, 6, *shape)).requires_grad_()
    torch.nn.functional.cross_entropy(head(z), torch.tensor([0, max_sum])).backward()
    assert head(z).shape == (2, max_sum + 1) and z.grad.isfinite().all() and all(p.grad.isfinite().all() for p in head.parameters())


def test_the_small_preset_draws_its_images_unless_z_is_kept():
    defaults = read_defaults(TOP / 'nbs/train_ultramnist.ipynb')
    p, carried, paper = (UltraMnist.check({**defaults, **c}) for c in ({}, dict(strategy='carry'), dict(preset='paper_512')))
    assert p.draws_anew and not carried.draws_anew and not paper.draws_anew and p.folder != carried.folder
    model = p.make_model()
    assert model(torch.zeros(1, 1, 256, 256, dtype=torch.uint8)).shape == (1, 10)
    assert model.normalize(torch.zeros(1, 1, 2, 2, dtype=torch.uint8)).eq(0).all()   # black is nothing at all
