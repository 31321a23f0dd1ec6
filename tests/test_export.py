"Leaving the kit: exported models give its scores in a process that cannot import it; features lie where the slide has them."
import json, signal, subprocess, sys, zipfile
from pathlib import Path
import h5py, numpy as np, pandas as pd, pytest, torch
from torch import nn
from patchgd_nb.datasets.digit_sums import DigitSumHead, stroke_backbone
from patchgd_nb.datasets.har import signal_backbone
from patchgd_nb.experiment import dense_model, export as export_module, timm_format
from patchgd_nb.experiment.command import main
from patchgd_nb.experiment.dense_model import DenseModel, dense_patches, example_images, export_graph, trace
from patchgd_nb.experiment.export import export
from patchgd_nb.experiment.patch_features import magnification, place_notes
from patchgd_nb.experiment.predict import predict
from patchgd_nb.experiment.rebuild import load_model
from patchgd_nb.images.canvas import Canvas
from patchgd_nb.images.convert import SCREEN_PIXEL
from patchgd_nb.images.pyramid import block_mean
from patchgd_nb.images.readers import open_image, write_pyramid
from patchgd_nb.images.slides import SlideDataset, make_loader
from patchgd_nb.images.windows import ArrayImage
from patchgd_nb.model import PatchModel, WholeModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import GradientDescent, PatchGD
from patchgd_nb.trainer import Trainer


# --- a stranger: a process of its own, in another folder, in which the kit cannot be imported

STRANGER = '''
import sys
class Absent:   # what must not be there
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in %(absent)r: raise ImportError(f'{name} is not here')
sys.meta_path.insert(0, Absent())
for name in %(absent)r:
    try: __import__(name)
    except ImportError: pass
    else: sys.exit(f'{name} can be imported')
import json, numpy as np
%(load)s
for i, folder in enumerate(json.load(open('folders.json'))): np.save(f'scores{i}.npy', scores_of(folder, np.load(f'images{i}.npy')))
print('loaded', *sorted({m.split('.')[0] for m in sys.modules} & {'patchgd_nb', 'timm', 'torch'}))
'''
LOAD = dict(
    torch=('patchgd_nb timm', '''
import torch
def scores_of(folder, images):
    net = torch.export.load(folder + '/model.pt2').module()
    return torch.cat([net(torch.from_numpy(part)) for part in (images[:1], images[1:4], images[4:])]).detach().numpy()'''),
    onnx=('patchgd_nb timm torch', '''
import onnxruntime
def scores_of(folder, images):
    session = onnxruntime.InferenceSession(folder + '/model.onnx')
    return np.concatenate([session.run(None, dict(images=part))[0] for part in (images[:1], images[1:4], images[4:])])'''),
    timm=('patchgd_nb', '''
import timm, torch
def scores_of(folder, images):
    net = timm.create_model('local-dir:' + folder, pretrained=True).eval()
    asked = timm.data.resolve_model_data_config(net)
    mean, std = (torch.tensor(asked[name]).view(-1, 1, 1) for name in ('mean', 'std'))
    assert images.shape[1:] == tuple(asked['input_size']), asked
    return net((torch.from_numpy(images) / 255 - mean) / std).detach().numpy()'''))

def stranger(format, folders, images, place):
    "What the exported model in each folder says of its images, (N, C, ...), by a program that has never heard of the kit."
    absent, load = LOAD[format]
    place.mkdir()
    (place / 'stranger.py').write_text(STRANGER % dict(absent=absent.split(), load=load))
    (place / 'folders.json').write_text(json.dumps([str(f) for f in folders]))
    for i, x in enumerate(images): np.save(place / f'images{i}.npy', x)
    run = subprocess.run([sys.executable, '-I', 'stranger.py'], cwd=place, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and 'loaded' in run.stdout and 'patchgd_nb' not in run.stdout, run.stdout + run.stderr
    return [np.load(place / f'scores{i}.npy') for i in range(len(folders))]

def expected_of(model, format):
    "Twenty images that no export has seen, and what the kit says of them: scores; of patches the latents, where the backbone is exported."
    images = torch.cat([example_images(model, 'uint8' if model.grid.ndim > 1 else 'float32', 4, 50 + i) for i in range(5)])
    if format == 'timm': images = model.grid.extract(images, [1])[:, 0]
    with torch.no_grad(): return images.numpy(), (model.encode(images) if format == 'timm' else model(images)).numpy()

def test_the_stranger_cannot_import_the_kit(tmp_path):
    "The interpreter has it installed; a program that needs it would fail in the tests below."
    (tmp_path / 'a.py').write_text(STRANGER % dict(absent=['patchgd_nb'], load='import patchgd_nb'))
    run = subprocess.run([sys.executable, '-I', 'a.py'], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode and 'patchgd_nb is not here' in run.stderr


# --- runs of each kind

def batches_of(model, n=8):
    dtype = 'uint8' if model.grid.ndim > 1 else 'float32'
    return [(example_images(model, dtype, 4, i), torch.arange(4) % model.n_classes) for i in range(n // 4)]

def trained(folder, model, batches=None, **options):
    batches = batches or batches_of(model)
    return Trainer(model, PatchGD(CoverSampler(1/2), chunk=8), batches, batches, epochs=2, lr=3e-3, checkpoint=folder, device='cpu', progress=False, **options).fit()

MODELS = dict(
    attention=lambda: PatchModel('test_resnet', PatchGrid((96, 64), 32, 16), 3, 8, 'attention', class_names=['none', 'some', 'much']),
    sized=lambda: PatchModel('test_vit', PatchGrid(64, 32), 2, 8, 'published_smaller', in_chans=4, mean=.4, std=[.1, .2, .3, .4], blank=255),
    digits=lambda: PatchModel(stroke_backbone(8, 16), PatchGrid(64, 16), 19, 8, DigitSumHead(8, 18, width=16), in_chans=1, mean=0., std=.3),
    signals=lambda: PatchModel(signal_backbone(9, 16, 16), PatchGrid((128,), 16, 8), 6, 16, 'original', in_chans=9))

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "A run of each of `MODELS`, made when it is asked for."
    top, made = tmp_path_factory.mktemp('runs'), {}
    def run(name):
        if name not in made:
            torch.manual_seed(3)
            trained(top / name / 'patchgd', MODELS[name]())
            made[name] = top / name
        return made[name]
    return run

@pytest.fixture(scope='module')
def exported(runs, tmp_path_factory):
    "A folder with a run in a format, made when it is asked for: what the export returned."
    made = {}
    def get(name, format):
        if (name, format) not in made: made[name, format] = export(runs(name), tmp_path_factory.mktemp('exported') / 'new/folder', format)
        return made[name, format]
    return get

@pytest.mark.parametrize('format', LOAD)
def test_a_stranger_gets_the_scores_of_the_kit(runs, exported, tmp_path, format):
    "In batches of 1, 3 and 16, to 1e-5."
    names = [n for n in MODELS if not (format == 'timm' and n in ('digits', 'signals'))]
    paths, (images, expected) = [exported(n, format) for n in names], zip(*(expected_of(load_model(runs(n)), format) for n in names))
    folders = [path if format == 'timm' else path.parent for path in paths]
    for name, out, found, wanted in zip(names, folders, stranger(format, folders, images, tmp_path / 'elsewhere'), expected):
        assert found.dtype == np.float32 and found.shape == wanted.shape and wanted.std() > 1e-3, name
        assert np.abs(found - wanted).max() < 1e-5, name
        note = json.loads((out / f'{format}.json').read_text())
        assert note['largest_difference'] < 1e-5 and all((out / f).is_file() for f in note['files'])
        assert out.parts[-2:] == ('new', 'folder') and not list(out.glob('unchecked*'))

FAMILIES = [('resnet50', 'original', {}), ('mobilenetv2_100', 'published', {}), ('convnextv2_atto', 'attention', {}), ('deit_tiny_patch16_224', 'attention', {}), ('vit_tiny_patch16_224', 'larger', dict(dynamic_img_size=True))]

@pytest.mark.slow
@pytest.mark.parametrize('name, head, arguments', FAMILIES, ids=lambda x: str(x))
def test_every_family_of_backbones(tmp_path, name, head, arguments):
    "Those of the papers, and transformers, after a few steps of training; every format."
    torch.manual_seed(0)
    model = PatchModel(name, PatchGrid(192, 64), 6, 64, head, backbone_kwargs=arguments)
    trained(tmp_path / 'run', model)
    model = load_model(tmp_path / 'run')
    for format in LOAD:
        export(tmp_path / 'run', tmp_path / 'out', format)
        images, expected = expected_of(model, format)
        found, = stranger(format, [tmp_path / 'out'], [images], tmp_path / format)
        assert np.abs(found - expected).max() < 1e-5


# --- the graph

def test_patches_by_reshaping_are_those_of_the_grid():
    rng = np.random.default_rng(0)
    for _ in range(60):
        ndim = int(rng.integers(1, 4))
        axes = [(p, int(rng.integers(1, p + 1)), int(rng.integers(1, 5))) for p in rng.integers(1, 7, ndim).tolist()]
        grid = PatchGrid(tuple(p + t * (n - 1) for p, t, n in axes), tuple(p for p, *_ in axes), tuple(t for _, t, _ in axes))
        images = torch.randint(256, (2, 3, *grid.image_size), dtype=torch.uint8)
        assert torch.equal(dense_patches(images, grid), grid.extract(images, range(len(grid))))

def test_large_images_go_through_in_parts(monkeypatch):
    model = MODELS['attention']().eval()
    images = example_images(model, 'uint8')
    monkeypatch.setattr(dense_model, 'PART_PIXELS', 4 * 32 * 32)
    dense = DenseModel(model)
    assert dense.parts == 4 and DenseModel(model, 99).parts == len(model.grid)
    with torch.no_grad(): assert (dense(images) - model(images)).abs().max() < 1e-5 and (trace(model).module()(images) - model(images)).abs().max() < 1e-5
    seen = []
    model.backbone.register_forward_hook(lambda net, x, y: seen.append(len(x[0])))
    with torch.no_grad(): dense(images)
    assert max(seen) <= 3 * 4 and sum(seen) == 3 * len(model.grid)

def test_no_folder_of_this_machine_is_in_a_file(exported):
    pt2, onnx = (exported('attention', format) for format in ('torch', 'onnx'))
    with zipfile.ZipFile(pt2) as z: inside = b''.join(z.read(n) for n in z.namelist())
    for data in (inside, onnx.read_bytes()):
        assert not any(text.encode() in data for text in (str(pt2.parent), str(Path(torch.__file__).parent), str(Path.home()) + '/', 'dense_model.py'))

def test_floats_can_be_asked_for(runs, tmp_path):
    "Already normalised, as the kit takes floats; bytes are then refused by the graph."
    export(runs('attention'), tmp_path, dtype='float32')
    model = load_model(runs('attention'))
    images = example_images(model, 'float32', 5, 9)
    net = torch.export.load(tmp_path / 'model.pt2').module()
    with torch.no_grad(): assert (net(images) - model(images)).abs().max() < 1e-5
    assert json.loads((tmp_path / 'torch.json').read_text())['input']['dtype'] == 'float32'
    with pytest.raises(Exception, match='.'): net((images * 50).byte())

def test_what_gives_other_scores_is_not_kept(runs, tmp_path, monkeypatch):
    good = dense_model.FORMATS['torch']
    for wrong in (lambda path, images: good.scores(path, images) + 1e-3, lambda path, images: good.scores(path, images) * float('nan')):
        monkeypatch.setitem(dense_model.FORMATS, 'torch', good._replace(scores=wrong))
        with pytest.raises(ValueError, match='nothing is kept'): export(runs('signals'), tmp_path)
        assert not list(tmp_path.glob('*.pt2'))
    monkeypatch.setattr(timm_format, 'latents_by_timm', lambda folder, patches: torch.zeros(len(patches), 8))
    with pytest.raises(ValueError, match='nothing is kept'): export(runs('attention'), tmp_path, 'timm')
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != '.lock') == ['timm.json', 'torch.json']
    monkeypatch.undo()
    assert export(runs('signals'), tmp_path).exists()   # the note says what was to be there: the next attempt goes on

def test_a_network_that_no_graph_can_hold_is_refused(tmp_path):
    class Moody(nn.Module):
        def forward(self, x): return x.flatten(1)[:, :4] if x.sum() > 0 else -x.flatten(1)[:, :4]
    model = PatchModel(Moody(), PatchGrid(32, 16), 2, 4, 'smaller')
    with pytest.raises(ValueError, match='cannot trace the model') as e: trace(model)
    assert '\n' not in str(e.value)

def test_other_numbers_are_exported_in_32_bits(tmp_path):
    torch.manual_seed(0)
    model = PatchModel('test_resnet', PatchGrid(64, 32), 2, 8, 'smaller').double()
    trained(tmp_path / 'run', model)
    export(tmp_path / 'run', tmp_path / 'out')
    images = example_images(model, 'uint8', 4, 7)
    with torch.no_grad(): assert (torch.export.load(tmp_path / 'out/model.pt2').module()(images) - load_model(tmp_path / 'run')(images)).abs().max() < 1e-5


# --- features

def slide(path, seed, height=400, width=300, um=None):
    "A small slide: glass, and a dark block of tissue somewhere."
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 245, np.uint8)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    block = pixels[top:top + height // 3, left:left + width // 3]
    block[:] = rng.integers(60, 160, (*block.shape[:2], 1)) + rng.integers(0, 60, 3)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, pixels, (1, 4), tile=128, **(dict(um_per_pixel=um) if um else {}))
    return path

@pytest.fixture(scope='module')
def slides(tmp_path_factory):
    "A folder with a run on slides, and slides."
    top, grid = tmp_path_factory.mktemp('slides'), PatchGrid(128, 32)
    for i in range(4): slide(top / f'slides/s{i}.tiff', i, um=.5)
    slide(top / 'slides/inner/s0.tiff', 9, 900, 1100, SCREEN_PIXEL)   # readers take that for unknown
    rows = pd.DataFrame(dict(image_id=[f's{i}' for i in range(4)], path=[str(top / f'slides/s{i}.tiff') for i in range(4)], label=[0, 1, 0, 1]))
    data = SlideDataset(rows, grid)
    torch.manual_seed(0)
    trained(top / 'run', PatchModel('test_resnet', grid, 2, 8, 'smaller'), make_loader(data, 2))
    return top

def test_features_are_latents_and_lie_where_the_slide_has_them(slides, tmp_path):
    "Each patch is read again from the file, at its coordinates and its size there, and encoded: the same vector."
    assert export(slides / 'run', tmp_path / 'out', 'features', slides / 'slides', progress=False) == tmp_path / 'out'
    model, n_compared = load_model(slides / 'run'), 0
    found = sorted(p.relative_to(tmp_path / 'out').as_posix() for p in (tmp_path / 'out').rglob('*.h5'))
    assert found == ['inner/s0.h5', 's0.h5', 's1.h5', 's2.h5', 's3.h5'] and not len(pd.read_csv(tmp_path / 'out/problems.csv'))
    for name in found:
        image = open_image(str(slides / 'slides' / name.replace('.h5', '.tiff')))
        with h5py.File(tmp_path / 'out' / name) as f: features, coords, notes = f['features'][:], f['coords'][:], dict(f['coords'].attrs)
        assert features.dtype == np.float32 and features.shape[1] == 8 and coords.dtype == np.int64 and coords.shape == (len(features), 2) and 0 < len(features) < 16
        side, shrunk = notes['patch_size_level0'], notes['patch_size_level0'] // notes['patch_size']
        assert (notes['level0_height'], notes['level0_width']) == image.shape and notes['patch_size'] == 32 and notes['overlap'] == 0 and side == 32 * shrunk
        for z, (x, y) in zip(features, coords):
            if x < 0 or y < 0 or x + side > image.shape[1] or y + side > image.shape[0]: continue   # beyond the image the canvas is white
            patch = torch.from_numpy(block_mean(image.read(y, x, side, side), shrunk)).movedim(-1, 0)[None]
            with torch.no_grad(): difference = np.abs(model.encode(patch)[0].numpy() - z).max()
            n_compared += 1
            assert difference < (1e-5 if shrunk == 4 else 2e-3)   # the large one is read from its coarse level, a JPEG of its own
    assert n_compared >= 10

def test_features_are_those_that_predict_reads(slides, tmp_path):
    "As many patches with content, for each slide."
    export(slides / 'run', tmp_path / 'a', 'features', slides / 'slides', progress=False)
    table = pd.read_csv(predict(slides / 'run', slides / 'slides', tmp_path / 'b', maps=False, progress=False))
    for name, n in zip(table.image_id, table.patches):
        with h5py.File(tmp_path / f'a/{Path(name).with_suffix("")}.h5') as f: assert len(f['features']) == n

def test_magnification_is_noted_where_the_file_tells(slides):
    grid = PatchGrid(128, 32)
    known, unknown = (place_notes('s', Canvas(open_image(str(slides / f'slides/{n}.tiff')), 128), grid) for n in ('s0', 'inner/s0'))
    assert known['level0_magnification'] == 20 and known['target_magnification'] == 5 and known['patch_size_level0'] == 128   # shrunk by 4
    assert 'level0_magnification' not in unknown and unknown['patch_size_level0'] == 32 * 12
    assert [magnification(um) for um in (.12, .25, .5, 1, 2, 8)] == [80, 40, 20, 10, 5, 1.25]

def test_bad_images_are_listed_and_finished_ones_kept(slides, tmp_path):
    folder = tmp_path / 'in'
    for i in range(3): slide(folder / f'{i}.tiff', i)
    (folder / 'bad.tiff').write_bytes(b'II*')
    def make(**options): return export(slides / 'run', tmp_path / 'out', 'features', folder, progress=False, **options)
    out = make()
    problems = pd.read_csv(out / 'problems.csv')
    assert problems.image_id.tolist() == ['bad'] and sorted(p.name for p in out.glob('*.h5')) == ['0.h5', '1.h5', '2.h5'] and not list(out.rglob('*.part'))
    before = {p.name: p.stat().st_mtime_ns for p in out.glob('*.h5')}
    (out / '1.h5').unlink()
    slide(folder / 'bad.tiff', 7)   # mended
    make()
    after = {p.name: p.stat().st_mtime_ns for p in out.glob('*.h5')}
    assert {n for n in after if after[n] != before.get(n)} == {'1.h5', 'bad.h5'} and not len(pd.read_csv(out / 'problems.csv'))
    make(pt_files=True)
    for p in out.glob('*.h5'):
        with h5py.File(p) as f: assert torch.equal(torch.load(out / f'pt_files/{p.stem}.pt', weights_only=True), torch.from_numpy(f['features'][:]))

def test_a_slide_of_glass_has_no_features(slides, tmp_path):
    write_pyramid(tmp_path / 'glass.tiff', np.full((300, 300, 3), 245, np.uint8), (1, 4), tile=128)
    export(slides / 'run', tmp_path / 'out', 'features', tmp_path / 'glass.tiff', progress=False)
    with h5py.File(tmp_path / 'out/glass.h5') as f: assert f['features'].shape == (0, 8) and f['coords'].shape == (0, 2)

def test_an_interrupted_export_of_features_goes_on(slides, tmp_path, monkeypatch):
    from patchgd_nb.experiment import patch_features
    write, calls = patch_features.write_bag, []
    def stop_at_the_third(*args):
        if len(calls) == 2: raise KeyboardInterrupt
        calls.append(args[0])
        write(*args)
    monkeypatch.setattr(patch_features, 'write_bag', stop_at_the_third)
    with pytest.raises(KeyboardInterrupt): export(slides / 'run', tmp_path / 'out', 'features', slides / 'slides', progress=False)
    assert len(list((tmp_path / 'out').rglob('*.h5'))) == 2
    monkeypatch.setattr(patch_features, 'write_bag', write)
    export(slides / 'run', tmp_path / 'out', 'features', slides / 'slides', progress=False)
    assert len(list((tmp_path / 'out').rglob('*.h5'))) == 5

def test_a_loss_of_ones_own_has_features_all_the_same(slides, tmp_path):
    rows = pd.DataFrame(dict(image_id=['s0', 's1'], path=[str(slides / f'slides/s{i}.tiff') for i in range(2)], label=[0, 1]))
    torch.manual_seed(0)
    data = make_loader(SlideDataset(rows, PatchGrid(128, 32)), 2)
    Trainer(PatchModel('test_resnet', PatchGrid(128, 32), 2, 8, 'smaller'), PatchGD(CoverSampler(1/2)), data, data, epochs=1, checkpoint=tmp_path / 'run', loss=lambda s, y: s.square().mean(), device='cpu', progress=False).fit()
    export(tmp_path / 'run', tmp_path / 'out', 'features', slides / 'slides/s0.tiff', progress=False)
    assert (tmp_path / 'out/s0.h5').is_file()
    assert 'as in the loss' in export_module.model_note(load_model(tmp_path / 'run'), 'uint8', dict(loss='<lambda>'))['output']['meaning']


# --- the command, and what is refused

@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    "The command in this process, in a folder of its own: exit code, what it printed."
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    def call(*args):
        try: code = main([str(a) for a in args])
        except SystemExit as e: code = e.code
        return code, ''.join(capfd.readouterr())
    yield call
    signal.signal(signal.SIGTERM, before)

def one_sentence(said): return said.startswith('patchgd: ') and said.count('\n') == 1 and 'Traceback' not in said and 'Errno' not in said

def test_the_command(here, runs, slides):
    code, said = here('export', runs('attention'), '--out', 'new/folder')
    assert code == 0 and said.strip().splitlines()[-1] == 'new/folder/model.pt2' and Path('new/folder/model.pt2').is_file()
    assert here('export', runs('attention'), '--out', 'new/folder', '--format', 'timm')[0] == 0   # formats share a folder
    code, said = here('export', slides / 'run', '--out', 'bags', '--format', 'features', '--images', slides / 'slides', '--no-progress')
    assert code == 0 and len(list(Path('bags').rglob('*.h5'))) == 5
    assert here('export', slides / 'run', '--out', 'bags', '--format', 'features', '--images', slides / 'slides', '--no-progress')[0] == 0

def test_what_cannot_be_exported_is_said(here, runs, slides, tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'empty').mkdir()
    Trainer(WholeModel('test_resnet', (64, 64), 2), GradientDescent(), batches_of(PatchModel('test_resnet', PatchGrid(64, 32), 2, 8)), epochs=1, checkpoint=tmp_path / 'whole', device='cpu', progress=False).fit()
    here('--version')   # what training has printed is gone
    features = ('--format', 'features', '--images')
    for words, says in ((['nothing'], 'no checkpoint'), ([tmp_path / 'empty'], 'no checkpoint'), ([tmp_path / 'whole'], 'no PatchModel'), ([runs('digits'), '--format', 'timm'], 'no model of timm'), ([runs('signals'), '--format', 'timm'], 'no model of timm'),
                        ([runs('attention'), '--format', 'tflite'], 'not known'), ([runs('attention'), '--dtype', 'int4'], 'not known'), ([runs('attention'), '--format', 'timm', '--dtype', 'uint8'], 'torch and onnx'), ([runs('attention'), '--images', slides / 'slides'], 'leave them out'),
                        ([slides / 'run', '--format', 'features'], 'give images='), ([slides / 'run', *features, tmp_path / 'empty'], 'no images'), ([slides / 'run', *features, 'absent'], 'there is no'), ([runs('signals'), *features, slides / 'slides'], 'square images'),
                        ([runs('attention'), *features, slides / 'slides'], 'square images')):
        code, said = here('export', *words, '--out', 'out')
        assert code == 2 and one_sentence(said) and says in said, (words, said)
    for words in ([runs('attention')], [slides / 'run', *features, slides / 'slides']):
        code, said = here('export', *words, '--out', 'file')
        assert code == 2 and one_sentence(said) and (tmp_path / 'file').read_text() == 'mine', said

def test_nothing_is_replaced(here, runs, slides, tmp_path):
    "Results of other weights, or of something else that has the same name."
    features = ('--format', 'features', '--images')
    assert here('export', runs('attention'), '--out', 'a')[0] == 0 and here('export', runs('attention'), '--out', 'a', '--format', 'timm')[0] == 0 and here('export', slides / 'run', '--out', 'a', *features, slides / 'slides/s0.tiff')[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / 'a').iterdir() if p.suffix not in ('.lock', '.csv')}
    for words in ([slides / 'run'], [runs('attention'), '--dtype', 'float32'], [runs('sized'), '--format', 'timm'], [slides / 'run', *features, slides / 'slides/s1.tiff']):
        code, said = here('export', *words, '--out', 'a')
        assert code == 2 and one_sentence(said) and 'give another folder' in said, said
    assert before == {p: p.read_bytes() for p in before}
    Path('b').mkdir()
    for format, name in (('torch', 'model.pt2'), ('onnx', 'model.onnx'), ('timm', 'config.json')):
        Path('b', name).write_text('mine')
        code, said = here('export', runs('attention'), '--out', 'b', '--format', format)
        assert code == 2 and one_sentence(said) and 'is there already' in said and Path('b', name).read_text() == 'mine'

def test_missing_packages_are_named(here, runs, slides, monkeypatch):
    found = dense_model.find_spec
    for missing, words in (('onnxscript', [runs('attention'), '--format', 'onnx']), ('h5py', [slides / 'run', '--format', 'features', '--images', slides / 'slides'])):
        monkeypatch.setattr(dense_model, 'find_spec', lambda name: None if name == missing else found(name))
        code, said = here('export', *words, '--out', 'out')
        assert code == 2 and one_sentence(said) and missing in said and "pip install 'patchgd_nb[export]'" in said
