"Data sets of large images: what a batch holds, and what becomes of files that are broken, vanish, or were never there."
import os, zlib
from concurrent.futures import ProcessPoolExecutor
import numpy as np, pandas as pd, pytest, tifffile, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from patchgd_nb.base.dihedral import apply_dihedral
from patchgd_nb.base.untrusted import is_plain_name
from patchgd_nb.datasets.biopsy import draw_biopsy
from patchgd_nb.images.canvas import Canvas
from patchgd_nb.images.readers import ArrayImage, write_pyramid
from patchgd_nb.model import PatchModel
from patchgd_nb.datasets.panda import read_panda
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.images.slides import ResizedDataset, SlideDataset, DihedralView, collate, make_loader
from patchgd_nb.images.tables import BadImageLog, read_table
from patchgd_nb.strategy import ExactPatchGD, PatchGD
from patchgd_nb.trainer import Trainer


@pytest.mark.parametrize('data', [b'', b'II*\0 but no more'], ids=['empty', 'cut'])
def test_an_unreadable_slide_stops_before_training(cohort, tmp_path, data):
    rows = read_panda(cohort)
    (tmp_path / 'bad.tiff').write_bytes(data)
    rows.loc[3, 'path'] = tmp_path / 'bad.tiff'
    with pytest.raises(ValueError, match='bad.tiff'): SlideDataset(rows, PatchGrid(1024, 64))


def test_items_are_the_canvas_where_there_is_content(cohort):
    rows, grid = read_panda(cohort).iloc[:4], PatchGrid(1024, 64)
    slides = SlideDataset(rows, grid)
    for i in range(4):
        image, grade, content, name, how = slides[i]
        canvas = torch.from_numpy(slides.canvases[i].read(0, 0, 1024, 1024)).permute(2, 0, 1)
        held = (content > 0).nonzero().flatten()
        assert torch.equal(grid.extract(image[None], held), grid.extract(canvas[None], held))
        assert (grid.extract(image[None], (content == 0).nonzero().flatten()) == 255).all()
        assert (grade, name) == (rows.isup_grade[i], rows.image_id[i])


def test_content_turns_with_its_image(cohort):
    grid, slides = PatchGrid(1024, 64), SlideDataset(read_panda(cohort).iloc[:2], PatchGrid(1024, 64), augment=True)
    turned = set()
    for _ in range(24):
        image, _, content, *_ = slides[0]
        dark = (grid.extract(image[None], range(256)) < 255).flatten(2).any(2)[0]
        assert (content[dark] > 0).all() and (content[~dark] < .03).all()   # content is measured on a coarser grid: a hair more
        turned.add(tuple(content.tolist()))
    assert len(turned) == 8


def test_a_square_has_eight_ways_to_lie():
    picture = torch.arange(16).reshape(1, 4, 4)
    assert len({tuple(apply_dihedral(h, picture)[0].flatten().tolist()) for h in range(8)}) == 8


def test_shrunk_slides_are_means_by_area(cohort):
    slides = SlideDataset(read_panda(cohort).iloc[:2], PatchGrid(1024, 64))
    image, grade, content, name, how = ResizedDataset(slides, 128)[1]
    expected = torch.from_numpy(slides.pixels(1)).float().reshape(128, 8, 128, 8, 3).mean((1, 3)).permute(2, 0, 1)
    assert (image.float() - expected).abs().max() <= .51 and grade == slides.rows.isup_grade[1]


@settings(max_examples=40)
@given(how=st.integers(0, 7), r=st.integers(-20, 60), c=st.integers(-20, 60), h=st.integers(1, 50), w=st.integers(1, 50))
def test_a_window_of_a_turned_canvas(how, r, c, h, w):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 50, 3), dtype=np.uint8)
    canvas = Canvas(ArrayImage(pixels), 64)
    whole = apply_dihedral(how, torch.from_numpy(canvas.read(0, 0, 64, 64)).movedim(-1, 0))[0].movedim(0, -1).numpy()
    assert np.array_equal(DihedralView(canvas, how).read(r, c, h, w), ArrayImage(np.ascontiguousarray(whole)).read(r, c, h, w))


def tiny(grid): return PatchModel(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8)), grid, 6, 8, 'smaller')


@pytest.mark.parametrize('strategy', [lambda: PatchGD(CoverSampler(1 / 4)), lambda: ExactPatchGD(chunk=3)])
def test_training_from_the_file_is_training_from_memory(cohort, strategy):
    "Lazily read or not, workers or not: the same weights, bit for bit."
    grid, rows, weights = PatchGrid(1024, 64), read_panda(cohort).iloc[:6].reset_index(drop=True), []
    for lazy, workers in ((False, 0), (True, 0), (True, 2)):
        torch.manual_seed(1)
        model = tiny(grid)
        Trainer(model, strategy(), make_loader(SlideDataset(rows, grid, lazy=lazy), 2, True, workers), epochs=1, device='cpu', progress=False).fit()
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


BAD_NAMES = ['../../etc/passwd', '/etc/passwd', '..', '', '.hidden', 'a/b', 'a b', 'a\n', '~root', '-rf']


@pytest.mark.parametrize('name', BAD_NAMES)
def test_names_that_leave_their_folder(name): assert not is_plain_name(name)


def table(folder, paths): return pd.DataFrame([(p.stem, p, i % 2) for i, p in enumerate(paths)], columns=['image_id', 'path', 'label'])


def bomb(path):
    def chunk(kind, data): return len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', 2 * (40_000).to_bytes(4, 'big') + bytes([8, 2, 0, 0, 0])) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b''))


@pytest.fixture
def mixed(tmp_path):
    "Four good images and four that are not: a zero-byte slide, a truncated JPEG, a bomb, a broken tile."
    for i in range(3): write_pyramid(tmp_path / f'good{i}.tiff', draw_biopsy(i, 3, 4, size=512).pixels)
    Image.fromarray(draw_biopsy(5, 4, 4, size=512).pixels).save(tmp_path / 'good3.jpg')
    (tmp_path / 'empty.tiff').write_bytes(b'')
    (tmp_path / 'cut.jpg').write_bytes((tmp_path / 'good3.jpg').read_bytes()[:3000])
    bomb(tmp_path / 'bomb.png')
    data = bytearray((tmp_path / 'good0.tiff').read_bytes())
    with tifffile.TiffFile(tmp_path / 'good0.tiff') as tif: start, n = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
    data[start:start + n] = bytes(n)
    (tmp_path / 'tile.tiff').write_bytes(data)
    return table(tmp_path, sorted(p for p in tmp_path.iterdir()))


@pytest.mark.parametrize('lazy', [False, True])
@pytest.mark.parametrize('workers', [0, 2])
def test_bad_images_are_quarantined(mixed, tmp_path, lazy, workers):
    grid, names = PatchGrid(512, 64), []
    slides = SlideDataset(mixed, grid, lazy=lazy, on_bad='skip', bad_list=tmp_path / 'list/bad.csv')
    run = Trainer(tiny(grid), PatchGD(CoverSampler(1 / 2)), make_loader(slides, 2, workers=workers), make_loader(slides, 3), epochs=2, device='cpu', progress=False).fit()
    listed = pd.read_csv(tmp_path / 'list/bad.csv', header=None)
    assert sorted(listed[0]) == ['bomb', 'cut', 'empty', 'tile'] and run.epoch == 2
    assert all(name in why and '\n' not in why for name, why in zip(listed[0], listed[1]))
    assert {n for b in make_loader(slides, 1) if b for n in b[3]} == {'good0', 'good1', 'good2', 'good3'}


@pytest.mark.parametrize('name', ['empty', 'cut', 'bomb', 'tile'])
@pytest.mark.parametrize('lazy', [False, True])
def test_bad_images_stop_a_run_by_default(mixed, name, lazy):
    grid = PatchGrid(512, 64)
    with pytest.raises(ValueError, match=name) as e:
        for batch in make_loader(SlideDataset(mixed[mixed.image_id == name].reset_index(drop=True), grid, lazy=lazy), 1): grid.extract(batch[0], range(64))
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('lazy', [False, True])
def test_a_file_that_vanishes_between_epochs(tmp_path, lazy):
    for i in range(3): write_pyramid(tmp_path / f's{i}.tiff', draw_biopsy(i, 3, 4, size=512).pixels)
    rows, grid = table(tmp_path, sorted(tmp_path.glob('*.tiff'))), PatchGrid(512, 64)
    strict, careful = SlideDataset(rows, grid, lazy=lazy), SlideDataset(rows, grid, lazy=lazy, on_bad='skip', bad_list=tmp_path / 'bad.csv')
    (tmp_path / 's1.tiff').unlink()
    with pytest.raises((ValueError, FileNotFoundError), match='s1.tiff'): list(make_loader(strict, 1))
    for _ in range(2): assert [n for b in make_loader(careful, 1) if b for n in b[3]] == ['s0', 's2']
    assert pd.read_csv(tmp_path / 'bad.csv', header=None)[0].tolist() == ['s1']


def test_no_image_left_is_said(tmp_path):
    (tmp_path / 'a.tiff').write_bytes(b'')
    with pytest.raises(ValueError, match='no image is left'): SlideDataset(table(tmp_path, [tmp_path / 'a.tiff']), PatchGrid(512, 64), on_bad='skip', bad_list=tmp_path / 'bad.csv')


def report(args): BadImageLog('skip', args[0])(f'n{args[1]}', ValueError('x, "y"\nz'))


def test_many_processes_write_one_list(tmp_path):
    with ProcessPoolExecutor(4) as pool: list(pool.map(report, [(tmp_path / 'bad.csv', i) for i in range(40)]))
    assert BadImageLog('skip', tmp_path / 'bad.csv').names() == {f'n{i}' for i in range(40)}


def test_another_word_for_on_bad_is_refused():
    with pytest.raises(ValueError, match='ignore'): BadImageLog('ignore')


def test_scales_are_refused_or_kept(tmp_path):
    write_pyramid(tmp_path / 'a.tiff', draw_biopsy(1, 3, 4, size=512).pixels, um_per_pixel=.5)
    rows = table(tmp_path, [tmp_path / 'a.tiff'])
    slides = SlideDataset(rows, PatchGrid(512, 64), um_per_pixel=1.)
    assert max(slides.canvases[0].box[2:]) == 256
    with pytest.raises(ValueError, match='a.tiff takes'): SlideDataset(rows, PatchGrid(256, 64), um_per_pixel=.6)
    with pytest.raises(ValueError, match='nothing finer'): SlideDataset(rows, PatchGrid(1024, 64), um_per_pixel=.25)
    Image.fromarray(draw_biopsy(1, 3, 4, size=512).pixels).save(tmp_path / 'b.png')
    with pytest.raises(ValueError, match='b.png does not tell'): SlideDataset(table(tmp_path, [tmp_path / 'b.png']), PatchGrid(512, 64), um_per_pixel=1.)


def test_batches_of_nothing():
    assert collate([None, None]) is None


@pytest.mark.parametrize('data, says', [(b'', 'cannot be read'), (b'a\n1', 'no column'), (b'image_id,label\n', 'names no images'), (b'\0\xff' * 30, 't.csv'), (b'image_id,label\n"a,1', 't.csv')])
def test_tables_that_are_none(tmp_path, data, says):
    (tmp_path / 't.csv').write_bytes(data)
    with pytest.raises(ValueError, match=says) as e: read_table(tmp_path / 't.csv', ['image_id', 'label'])
    assert '\n' not in str(e.value)


def test_what_reads_leaves_large_pictures_to_numpy(tmp_path):
    "Each thread in which torch works on many numbers starts threads of its own; those that read would take the cores from the network."
    class Large(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found = []
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            tensors = [t for t in (*args, out) if torch.is_tensor(t)]
            if not func.is_view and any(t.numel() >= 2 ** 15 for t in tensors): self.found.append(str(func))   # torch's own bound
            return out
    write_pyramid(tmp_path / 'a.tiff', draw_biopsy(0, 3, 4, size=2048).pixels, (1, 4))
    rows = pd.DataFrame(dict(image_id=['a'], path=[tmp_path / 'a.tiff'], label=[0]))
    grid = PatchGrid(2048, 8)
    assert len(grid) >= 2 ** 15
    with Large() as large:
        views, pictures = (SlideDataset(rows, grid, lazy=lazy) for lazy in (True, False))
        (view, *_), (picture, *_) = views[0], pictures[0]
        for dihedral in range(8): DihedralView(view.canvas, dihedral).read(512, 512, 256, 256)
    assert not large.found and picture.shape == (3, 2048, 2048)
    with Large() as large: torch.zeros(2 ** 15).add(1)
    assert large.found
