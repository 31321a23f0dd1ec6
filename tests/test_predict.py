"After training: a run's folder gives back its model, predicts images of any kind and number, and is measured on others."
import json, math, multiprocessing, os, random, shutil, signal, threading, time, uuid
from pathlib import Path
import numpy as np, pandas as pd, psutil, pytest, torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset
from patchgd_nb.base.dihedral import apply_dihedral
from patchgd_nb.datasets.digit_sums import DigitSumHead, stroke_backbone
from patchgd_nb.datasets.ultramnist import UltraMNIST
from patchgd_nb.experiment.evaluate import bootstrap_intervals, evaluate, held_out_metrics
from patchgd_nb.experiment import predict as predict_module
from patchgd_nb.experiment.predict import LoadedRun, predict
from patchgd_nb.experiment.rebuild import load_model, rebuild
from patchgd_nb.training.checkpoint import find_checkpoint
from patchgd_nb.experiment.result_table import ResultTable
from patchgd_nb.experiment.run_gradients import read_run, rebuild_model
from patchgd_nb.images import pyramid
from patchgd_nb.images.readers import clear_caches, write_pyramid
from patchgd_nb.images.slides import SlideDataset, make_loader
from patchgd_nb.model import PatchModel, WholeModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import GradientDescent, PatchGD
from patchgd_nb.trainer import Trainer
from patchgd_nb.training.checkpoint import Checkpoint, model_config

TOP = Path(__file__).resolve().parent


def trained(folder, model, train, valid=None, **options):
    "A run of one epoch on the CPU."
    return Trainer(model, PatchGD(CoverSampler(1/2), chunk=8), train, valid, epochs=1, checkpoint=folder, device='cpu', progress=False, **options).fit()


def slide(path, seed, height=400, width=300):
    "A small slide: glass, and a dark block of tissue somewhere."
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 245, np.uint8)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    block = pixels[top:top + height // 3, left:left + width // 3]
    block[:] = rng.integers(60, 160, (*block.shape[:2], 1)) + rng.integers(0, 60, 3)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, pixels, (1, 4), tile=128)
    return path


def table_of(folder, n, first=0, **size):
    "A folder of slides and its table, with labels and patients."
    rows = pd.DataFrame([dict(image_id=f's{i:03d}', path=f's{i:03d}.tiff', label=i % 3, patient=f'p{i // 2}') for i in range(n)])
    for i, path in enumerate(rows.path): slide(folder / path, first + i, **size)
    rows.to_csv(folder / 'table.csv', index=False)
    return rows.assign(path=[str(folder / p) for p in rows.path])


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "A run on twelve slides in `run`, its slides in `slides`, six others in `others`."
    top, grid = tmp_path_factory.mktemp('predict'), PatchGrid(128, 32)
    rows = table_of(top / 'slides', 12)
    table_of(top / 'others', 6, 50)
    torch.manual_seed(0)
    valid = SlideDataset(rows[8:].reset_index(drop=True), grid)
    model = PatchModel('test_resnet', grid, 3, 8, 'smaller', class_names=['none', 'some', 'much'])
    run = trained(top / 'run/patchgd', model, make_loader(SlideDataset(rows[:8], grid, augment=True), 4, True), make_loader(valid, 3))
    return top, run


def tensors(n=8, size=64, chans=3):
    g = torch.Generator().manual_seed(1)
    return [(torch.randint(256, (4, chans, size, size), dtype=torch.uint8, generator=g), torch.arange(4) % 2) for _ in range(n // 4)]


# --- a checkpoint makes its model again

MODELS = dict(
    arguments=lambda: PatchModel('test_resnet', PatchGrid(64, 16), 2, 8, 'attention', backbone_kwargs=dict(drop_path_rate=.1), mean=.4, std=[.1, .2, .3], class_names=['no', 'yes']),
    sized=lambda: PatchModel('test_vit', PatchGrid(64, 32, 16), 2, 8, 'published_smaller', blank=255),
    double=lambda: PatchModel('test_resnet', PatchGrid((64, 64), (32, 16)), 2, 4, 'larger_feat').double(),
    ours=lambda: PatchModel(stroke_backbone(8, 32), PatchGrid(64, 32), 3, 8, DigitSumHead(8, 2, width=16), in_chans=1, mean=0., std=.3))

@pytest.mark.parametrize('name', MODELS)
def test_a_checkpoint_gives_back_its_model(tmp_path, name):
    torch.manual_seed(3)
    model = MODELS[name]()
    batches = tensors(chans=len(model.normalize.mean))
    run = trained(tmp_path / 'run/patchgd', model, batches, batches, ema=.5)
    torch.manual_seed(4)
    again = load_model(tmp_path / 'run')
    with torch.no_grad(): assert all(torch.equal(again(x), run.predict([(x, y)])[0].to(again.dtype)) for x, y in batches)   # by the averaged weights, as validated
    assert again.describe() == model.describe() and not again.training


def test_the_best_checkpoint_is_taken_unless_the_newest_is_asked_for(tmp_path):
    numbers = iter([.9, .1])
    run = Trainer(MODELS['arguments'](), PatchGD(CoverSampler(1.)), tensors(), tensors(), epochs=2, checkpoint=tmp_path, device='cpu', progress=False, metrics=lambda s, y: dict(good=next(numbers)), best='good').fit()
    assert find_checkpoint(tmp_path).folder.name == 'e0001-b000000' and find_checkpoint(tmp_path, best=False).folder.name == 'e0002-b000000'
    assert all(torch.equal(a, b) for a, b in zip(load_model(tmp_path, best=False).state_dict().values(), run.model.state_dict().values()))


def test_what_a_checkpoint_cannot_know_is_asked_for(tmp_path):
    def own(): return PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), PatchGrid(64, 16), 2, 4, nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    run = trained(tmp_path / 'own', own(), tensors())
    Trainer(WholeModel('test_resnet', (64, 64), 2), GradientDescent(), tensors(), epochs=1, checkpoint=tmp_path / 'whole', device='cpu', progress=False).fit()
    for folder, says in ((tmp_path / 'own', "backbone and a head of one's own"), (tmp_path / 'whole', 'no PatchModel'), (TOP / 'checkpoint_0_1', 'before checkpoints described'), (tmp_path, 'no checkpoint')):
        with pytest.raises(ValueError, match=says) as e: load_model(folder)
        assert '\n' not in str(e.value) and str(e.value).endswith('.')
    assert all(torch.equal(a, b) for a, b in zip(load_model(tmp_path / 'own', own()).state_dict().values(), run.model.state_dict().values()))
    old = PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False)), PatchGrid(8, 4), 3, 4, nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False)), in_chans=1)
    load_model(TOP / 'checkpoint_0_1', old)


def test_the_doctor_makes_the_model_by_its_description(tmp_path):
    "Guessed from shapes, two heads of one shape would be mistaken for each other."
    trained(tmp_path, MODELS['arguments'](), tensors())
    model = rebuild_model(*read_run(tmp_path))
    assert model.backbone.made_as['drop_path_rate'] == .1 and model.class_names == ['no', 'yes']


@pytest.mark.parametrize('change', [dict(backbone=dict(name='hf-hub:a/b', arguments={})), dict(backbone=dict(name='test_resnet', arguments=dict(checkpoint_path='/x.pth'))), dict(backbone=[1]), dict(backbone=dict(name='absent', arguments={})), dict(grid=dict(image_size=[64])), dict(head=dict(name='huge', arguments={})), dict(mean='x'), dict(n_classes=None)], ids=str)
def test_a_description_from_anybody_ends_in_a_sentence(change):
    model = MODELS['arguments']()
    made = dict(model_config(model), description=dict(model=json.loads(json.dumps(model.describe())) | change))
    with pytest.raises(ValueError, match='describes no model') as e: rebuild(Checkpoint(Path('run'), made, None, dict(model=model.state_dict())))
    assert '\n' not in str(e.value) and str(e.value).endswith('.')


# --- which images took part

def test_a_checkpoint_notes_its_images_and_how_they_were_read(place, tmp_path):
    top, _ = place
    found = find_checkpoint(top / 'run')
    assert found.config['description']['images'] == dict(kind='slides', um_per_pixel=None, background='white', blank='glass', lazy=None)
    noted = json.loads((found.folder / 'images.json').read_text())
    assert [n for n, _ in noted['train']] == [f's{i:03d}' for i in range(8)] and [n for n, _ in noted['valid']] == [f's{i:03d}' for i in range(8, 12)]
    assert len({mark for use in noted.values() for _, mark in use}) == 12
    trained(tmp_path, MODELS['arguments'](), DataLoader(Subset(list(zip(*tensors()[0])), [2, 1])))   # a data set of one's own
    found = find_checkpoint(tmp_path)
    assert found.config['description']['images'] is None and json.loads((found.folder / 'images.json').read_text()) == dict(train=None, valid=[])


# --- predictions

def read(path): return pd.read_csv(path, dtype=dict(image_id=str))

def test_predictions_are_those_of_validation(place, tmp_path):
    top, run = place
    table = read(predict(top / 'run', top / 'slides', tmp_path, progress=False))
    expected = run.predict(run.valid)[0].softmax(1).numpy()
    assert table.image_id.tolist() == [f's{i:03d}' for i in range(12)] and not len(read(tmp_path / 'problems.csv'))
    assert np.abs(table.filter(like='p_').to_numpy()[8:] - expected).max() < 1e-6
    assert (table['class'] == table.filter(like='p_').to_numpy().argmax(1)).all() and table.class_name[0] == run.model.class_names[table['class'][0]]
    assert {p.name for p in (tmp_path / 'maps').iterdir()} == {f's{i:03d}.{kind}' for i in range(12) for kind in ('png', 'geojson')}


@pytest.mark.parametrize('lazy', [False, True])
def test_uncertainty_is_over_the_eight_orientations(place, tmp_path, lazy):
    top, run = place
    reading = dict(kind='slides', um_per_pixel=None, background='white', blank='glass', lazy=lazy)
    table = read(predict(top / 'run', top / 'slides/s003.tiff', tmp_path, orientations=True, reading=reading, progress=False))
    image, _, content, *_ = SlideDataset(pd.DataFrame(dict(image_id=['x'], path=[top / 'slides/s003.tiff'], label=[0])), run.model.grid)[0]
    with torch.no_grad(): each = [run.model(*(t[None] for t in (apply_dihedral(d, image)[0].contiguous(), apply_dihedral(d, content.view(1, 4, 4))[0].flatten())))[0].softmax(0).numpy() for d in range(8)]
    assert np.allclose(table.filter(like='p_').to_numpy()[0], np.mean(each, 0), atol=1e-6) and np.allclose(table.filter(like='sd_').to_numpy()[0], np.std(each, 0), atol=1e-6)
    assert table.filter(like='sd_').to_numpy().max() > 1e-4


def test_digits_are_read_as_in_validation(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / 'images').mkdir()
    for i in range(4): Image.fromarray((rng.integers(0, 256, (64, 64)) * (np.indices((64, 64)).sum(0) < 70)).astype(np.uint8)).save(tmp_path / f'images/{i}.png')
    rows = pd.DataFrame(dict(image_id=list('0123'), path=[tmp_path / f'images/{i}.png' for i in range(4)], digit_sum=[0, 1, 2, 0]))
    model = PatchModel(stroke_backbone(8, 16), PatchGrid(64, 16), 3, 8, DigitSumHead(8, 2, width=8), in_chans=1, mean=0., std=.3)
    data = UltraMNIST(rows, model.grid)
    run = trained(tmp_path / 'run', model, make_loader(data, 2), make_loader(data, 2))
    table = read(predict(tmp_path / 'run', tmp_path / 'images', tmp_path / 'out', progress=False))
    assert np.abs(table.filter(like='p_').to_numpy() - run.predict(run.valid)[0].softmax(1).numpy()).max() < 1e-6


def test_what_cannot_be_predicted_is_said(place, tmp_path):
    top, _ = place
    trained(tmp_path / 'tensors', MODELS['arguments'](), tensors())
    trained(tmp_path / 'loss', MODELS['arguments'](), tensors(), loss=lambda s, y: s.square().mean())
    (tmp_path / 'empty').mkdir()
    predict(top / 'run', top / 'others', tmp_path / 'out', maps=False, progress=False)
    for run, folder, options, says in ((tmp_path / 'tensors', top / 'slides', {}, 'reading=dict'), (tmp_path / 'loss', top / 'slides', {}, 'makes no probabilities'), (top / 'run', tmp_path / 'empty', {}, 'no images'),
                                       (top / 'run', tmp_path / 'absent', {}, 'there is no'), (top / 'run', top / 'others', dict(orientations=True), 'other orientations'), (top / 'run', top / 'slides', {}, 'other images')):
        with pytest.raises((ValueError, OSError), match=says) as e: predict(run, folder, tmp_path / 'out', **dict(maps=False) | options)
        assert '\n' not in str(e.value) and str(e.value).endswith('.')
    reading = dict(kind='slides', um_per_pixel=None, background='black', blank=None)
    assert len(read(predict(tmp_path / 'tensors', top / 'others', tmp_path / 'b', reading=reading, progress=False))) == 6


# --- maps, against RFC 7946 and what QuPath reads

def check_geojson(text, height, width):
    "The rules of RFC 7946 for a collection of polygons without holes, and QuPath's for the properties of tiles."
    def refuse(name): raise AssertionError(f'{name} is no JSON')
    found = json.loads(text, parse_constant=refuse)
    assert found['type'] == 'FeatureCollection' and isinstance(found['features'], list) and 'crs' not in found and 'geometry' not in found
    for f in found['features']:
        assert f['type'] == 'Feature' and f['geometry'].keys() == {'type', 'coordinates'} and f['geometry']['type'] == 'Polygon' and 'features' not in f
        ring, = f['geometry']['coordinates']
        assert len(ring) >= 4 and ring[0] == ring[-1] and all(len(p) == 2 and all(type(n) in (int, float) for n in p) for p in ring)
        assert sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, ring[1:])) > 0      # counterclockwise
        assert all(0 <= x <= width and 0 <= y <= height for x, y in ring)
        p = f['properties']
        assert p['objectType'] == 'tile' and str(uuid.UUID(f['id'])) == f['id'] and all(type(n) in (int, float) and math.isfinite(n) for n in p['measurements'].values())
        assert set(p['classification']) == {'name', 'color'} and all(type(c) is int and 0 <= c < 256 for c in p['classification']['color'])
    assert len({f['id'] for f in found['features']}) == len(found['features'])
    return found['features']


def test_maps_are_geojson_in_pixels_of_the_slide(place, tmp_path):
    "Tissue drawn at known pixels of a slide of 1600 x 800, which the canvas shrinks by 13, lies in the patches that have content."
    top, run = place
    pixels = np.full((1600, 800, 3), 245, np.uint8)
    pixels[310:520, 470:790] = 90
    (tmp_path / 'in/sub').mkdir(parents=True)
    write_pyramid(tmp_path / 'in/sub/a.tiff', pixels, (1, 4))
    predict(top / 'run', tmp_path / 'in', tmp_path / 'out', progress=False)
    found = check_geojson((tmp_path / 'out/maps/sub/a.geojson').read_text(), 1600, 800)
    rings = np.array([f['geometry']['coordinates'][0] for f in found])
    covered = np.zeros((1600, 800), bool)
    for ring in rings.round().astype(int): covered[ring[:, 1].min():ring[:, 1].max(), ring[:, 0].min():ring[:, 0].max()] = True
    side = 13 * 32
    assert covered[310:520, 470:790].all() and covered.sum() <= 6 * side ** 2 and 0 < len(found) <= 6
    picture = np.asarray(Image.open(tmp_path / 'out/maps/sub/a.png')).astype(int)
    assert max(picture.shape) <= 1100 and abs(picture.shape[0] / picture.shape[1] - 2) < .01
    values = np.array([f['properties']['measurements']['contribution'] for f in found])
    assert (np.sign(values) == [1 if f['properties']['classification']['name'].startswith('for') else -1 for f in found]).all()


# --- interrupted, broken, many

def test_a_bad_image_is_listed_and_passed_over(place, tmp_path):
    top, _ = place
    folder = shutil.copytree(top / 'others', tmp_path / 'in')
    (folder / 'a_broken.tiff').write_bytes((folder / 's000.tiff').read_bytes()[:900])
    (folder / 'b_text.svs').write_text('no slide')
    os.mkfifo(folder / 'pipe.tiff')
    (folder / 'link').symlink_to(top / 'slides')
    table = read(predict(top / 'run', folder, tmp_path / 'out', progress=False, maps=False))
    problems = read(tmp_path / 'out/problems.csv')
    assert len(table) == 18 and problems.image_id.tolist() == ['a_broken', 'b_text'] and problems.problem.str.endswith('.').all()
    (folder / 'a_broken.tiff').write_bytes((folder / 's001.tiff').read_bytes())                 # mended, and begun again
    again = read(predict(top / 'run', folder, tmp_path / 'out', progress=False, maps=False))
    assert again[:18].equals(table) and again.image_id.tolist()[18:] == ['a_broken'] and read(tmp_path / 'out/problems.csv').image_id.tolist() == ['b_text']


def test_killed_at_random_moments_it_ends_with_the_same_results(place, tmp_path):
    top, _ = place
    folder = shutil.copytree(top / 'slides', tmp_path / 'in')
    (folder / 's004_bad.tiff').write_bytes(b'II*')
    out, rng = tmp_path / 'killed', random.Random(3)
    def work(): predict(top / 'run', folder, out, orientations=True, workers=2, progress=False)
    def slow_work():
        append = ResultTable.append
        ResultTable.append = lambda self, *cells: (append(self, *cells), time.sleep(.05))   # in this process only
        work()
    for rows in (1, 4, 8):
        child = multiprocessing.get_context('fork').Process(target=slow_work)
        child.start()
        deadline = time.time() + 60
        while child.is_alive() and time.time() < deadline and not (out.joinpath('predictions.csv').exists() and (out / 'predictions.csv').read_bytes().count(b'\n') > rows): time.sleep(.002)
        time.sleep(rng.random() * .03)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert 9 <= (out / 'predictions.csv').read_bytes().count(b'\n') < 13      # the header, and not yet all
    with (out / 'predictions.csv').open('ab') as f: f.write(b's010,half a ro')   # and the power went
    work()
    predict(top / 'run', folder, tmp_path / 'whole', orientations=True, progress=False)
    def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file() and p.suffix != '.lock'}
    assert contents(out) == contents(tmp_path / 'whole')


def check_flat(place, folder, first, last):
    top, _ = place
    rng = np.random.default_rng(0)
    folder.mkdir()
    base = rng.integers(60, 160, (512, 512, 3), dtype=np.uint8)
    for i in range(last): write_pyramid(folder / f'{i:04d}.tiff', np.roll(base, i, 0), (1, 4), tile=256)
    used, append = {}, ResultTable.append
    def noted(self, *cells):
        append(self, *cells)
        if len(self.done) in (first, last): used[len(self.done)] = psutil.Process().memory_info().rss
    with pytest.MonkeyPatch.context() as m:
        m.setattr(ResultTable, 'append', noted)
        predict(top / 'run', folder, folder / 'out', maps=False, workers=2, progress=False)
    assert used[last] < 1.05 * used[first], used


def test_memory_does_not_grow_with_the_number_of_images(place, tmp_path): check_flat(place, tmp_path / 'in', 40, 140)

@pytest.mark.slow
def test_memory_does_not_grow_over_a_thousand_images(place, tmp_path): check_flat(place, tmp_path / 'in', 50, 1000)


# --- evaluation

def test_images_of_the_run_are_refused_under_any_name(place, tmp_path):
    top, _ = place
    with pytest.raises(ValueError, match='12 of 12 images .* took part in the run, .* in its training'): evaluate(top / 'run', top / 'slides/table.csv')
    folder = shutil.copytree(top / 'others', tmp_path / 'in')
    shutil.copy(top / 'slides/s009.tiff', folder / 's005.tiff')
    rows = read(folder / 'table.csv').assign(image_id=[f'new{i}' for i in range(6)])
    rows.to_csv(folder / 'table.csv', index=False)
    with pytest.raises(ValueError, match="1 of 6 images .*'new5' in its validation"): evaluate(top / 'run', folder / 'table.csv')
    rows[:5].to_csv(folder / 'table.csv', index=False)
    result = evaluate(top / 'run', folder / 'table.csv', tmp_path / 'out', resamples=50, progress=False)
    assert result['measured_on'].endswith('none of which took part in training or validation') and result['images'] == 5


def test_every_metric_has_its_interval(place, tmp_path):
    top, _ = place
    folder = shutil.copytree(top / 'others', tmp_path / 'in')
    (folder / 's005.tiff').write_bytes(b'II*')
    with pytest.warns(UserWarning, match="bear names .* 's000'"): result = evaluate(top / 'run', folder / 'table.csv', tmp_path / 'out', resamples=60, seed=3, progress=False)
    assert json.loads((tmp_path / 'out/evaluation.json').read_text()) == result and (result['images'], result['unreadable'], result['patients']) == (5, 1, 3) and 'patients' in result['interval']
    table = pd.read_csv(tmp_path / 'out/evaluation.csv', index_col='metric')
    assert list(table.index) == ['accuracy', 'balanced_accuracy', 'qwk', 'auroc', 'loss'] and (table.low <= table.high).all()
    predicted, labels = read(tmp_path / 'out/predictions.csv'), read(folder / 'table.csv').label[:5]
    assert table.value.accuracy == pytest.approx((predicted['class'] == labels).mean())
    same = evaluate(top / 'run', folder / 'table.csv', tmp_path / 'out', resamples=60, seed=3, progress=False)
    assert same == result


def test_intervals_follow_from_the_seed_and_hold_the_figure():
    g = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(40, 3, generator=g), torch.arange(40) % 3
    first, again, other = (bootstrap_intervals(held_out_metrics, scores, labels, resamples=60, seed=seed) for seed in (1, 1, 2))
    assert first == again and first['loss'] != other['loss'] and all(first[n][0] <= v <= first[n][1] for n, v in held_out_metrics(scores, labels).items())


def test_what_cannot_be_evaluated_is_said(place, tmp_path):
    top, _ = place
    shutil.copytree(top / 'others', tmp_path / 'in')
    table = tmp_path / 'in/table.csv'
    rows = read(table)
    for changed, options, says in ((rows.drop(columns='label'), {}, 'no column of labels'), (rows.assign(label=7), {}, "label '7' is no class"), (rows, dict(label='stage'), "no column 'stage'"), (rows.assign(image_id='x'), {}, 'more than once')):
        changed.to_csv(table, index=False)
        with pytest.raises(ValueError, match=says) as e: evaluate(top / 'run', table, **options)
        assert '\n' not in str(e.value) and str(e.value).endswith('.')
    rows.assign(label=['none', 'some', 'much'] * 2).to_csv(table, index=False)      # names of classes
    trained(tmp_path / 'run', PatchModel('test_resnet', PatchGrid(128, 32), 3, 8, class_names=['none', 'some', 'much']), tensors(size=128))
    with pytest.warns(UserWarning, match='could not be checked'): result = evaluate(tmp_path / 'run', table, resamples=20, reading=dict(kind='slides'), progress=False)
    assert 'could not be checked' in result['measured_on']


@pytest.mark.parametrize('tile, patch, stride', [(64, 32, 32), (64, 48, 48), (32, 64, 64), (64, 40, 20)])
def test_a_tile_is_decoded_once_for_a_prediction(tmp_path, monkeypatch, tile, patch, stride):
    "Of any level, whatever it is wanted for: tissue, glass, the map, patches. There is room for rows of tiles, not for all."
    height, width, levels, rng = 2100, 600, (1, 2, 4, 8, 16), np.random.default_rng(0)
    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[100:1500, 250:420] = rng.integers(60, 160, (1400, 170, 1))
    write_pyramid(tmp_path / 's.tiff', pixels, levels, tile=tile)
    n_tiles = [-(-(height // f) // tile) * -(-(width // f) // tile) for f in levels]
    grid, decoded, inner, lock = PatchGrid(patch - (patch - height) // stride * stride, patch, stride), [], pyramid._tile.decode, threading.Lock()
    model = PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(3 * patch ** 2, 4)), grid, 2, 4, 'smaller').eval()
    monkeypatch.setattr(predict_module, 'load_run', lambda run: LoadedRun(model, dict(kind='slides', um_per_pixel=None, background='white', blank='glass', lazy=True), 'off'))
    def decode(*key):
        with lock: decoded.append(key[3:])
        return inner(*key)
    room = sum(n_tiles[1:]) + -(-width // tile) * (patch // tile + 3)
    assert room < sum(n_tiles) * .8
    monkeypatch.setattr(pyramid._tile, 'decode', decode)
    monkeypatch.setattr(pyramid._tile, 'n_bytes', room * (3 * tile ** 2 + 1024))
    clear_caches()
    table = read(predict('run', tmp_path / 's.tiff', tmp_path / 'out', workers=2, progress=False, device='cpu'))
    assert len(table) == 1 and [*(tmp_path / 'out/maps').glob('*.png')] and len(decoded) == len({*decoded}) > n_tiles[0] / 4
