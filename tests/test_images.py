"Windows of slides: right at every level and border, in every process, from damaged files a sentence."
import io, os, pickle, resource, signal, threading, time, zlib
from unittest import mock
import numpy as np, pytest, tifffile, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from patchgd_nb.datasets.biopsy import draw_biopsy
from patchgd_nb.images import pyramid, read_ahead as read_ahead_module
from patchgd_nb.images.canvas import Canvas, area_mean, content_share, overview
from patchgd_nb.images.pyramid import block_mean, write_pyramid
from patchgd_nb.images.read_ahead import N_AHEAD, read_ahead
from patchgd_nb.images.readers import PhotoImage, SlideImage, open_image
from patchgd_nb.images.tiff_pages import coded_size
from patchgd_nb.images.tile_cache import TileCache
from patchgd_nb.images.windows import ArrayImage, cut_window, intersect, paste
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import ExactPatchGD, PatchGD


@pytest.fixture(scope='module')
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp('slide') / 'slide.tiff'
    write_pyramid(path, draw_biopsy(1, 4, 3, size=1500).pixels)
    return path


@pytest.fixture(scope='module')
def even_slide(tmp_path_factory):
    path, pixels = tmp_path_factory.mktemp('even') / 'slide.tiff', draw_biopsy(1, 4, 3, size=1536).pixels
    write_pyramid(path, pixels[:, :pixels.shape[1] // 16 * 16])
    return path


def whole(path, level): return tifffile.imread(path, key=level)


def cut(pixels, r, c, h, w):
    "A window with white beyond the border."
    out = np.full((h, w, 3), 255, np.uint8)
    r0, r1, c0, c1 = max(r, 0), min(r + h, pixels.shape[0]), max(c, 0), min(c + w, pixels.shape[1])
    if r0 < r1 and c0 < c1: out[r0 - r:r1 - r, c0 - c:c1 - c] = pixels[r0:r1, c0:c1]
    return out


def test_levels_are_the_pyramids(slide):
    im = open_image(slide)
    assert im.shape == im.levels[0] and len(im.levels) == 3
    assert all(abs(im.levels[0][a] / im.levels[i][a] / 4 ** i - 1) < .06 for i in range(3) for a in (0, 1))


@given(level=st.integers(0, 2), r=st.integers(-600, 1600), c=st.integers(-600, 700), h=st.integers(1, 700), w=st.integers(1, 700))
def test_a_window_is_the_same_window_of_the_whole(slide, level, r, c, h, w):
    assert np.array_equal(open_image(slide).read(r, c, h, w, level), cut(whole(slide, level), r, c, h, w))


@settings(max_examples=30)
@given(size=st.sampled_from([100, 300, 512, 1024, 1500, 2048]), r=st.integers(0, 2000), c=st.integers(0, 2000), h=st.integers(1, 300), w=st.integers(1, 300))
def test_a_canvas_is_one_picture(slide, size, r, c, h, w):
    canvas = Canvas(open_image(slide), size)
    everything = canvas.read(0, 0, size, size)
    assert np.array_equal(canvas.read(r, c, h, w), cut(everything, r, c, h, w))
    assert max(canvas.box[2:]) <= size and max(canvas.box[2:]) > size / 4 - 2
    top, left, height, width = canvas.box
    assert abs(top - (size - height - top)) <= 1 and abs(left - (size - width - left)) <= 1      # in the middle


@pytest.mark.parametrize('kwargs', [dict(), dict(tile=(64, 128)), dict(rowsperstrip=17), dict(compression='zlib', tile=(96, 96)), dict(compression='lzw', rowsperstrip=5)], ids=str)
def test_plain_tiffs_are_read_as_well(tmp_path, kwargs):
    pixels = np.random.default_rng(0).integers(0, 256, (203, 311, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / 'x.tif', pixels, photometric='rgb', **kwargs)
    im = open_image(tmp_path / 'x.tif')
    assert im.levels == [(203, 311)]
    for window in [(0, 0, 203, 311), (-5, 100, 60, 300), (190, 300, 50, 50), (16, 0, 2, 311)]: assert np.array_equal(im.read(*window), cut(pixels, *window))


def test_transparency_is_white(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 4), dtype=np.uint8)
    tifffile.imwrite(tmp_path / 'x.tif', pixels, photometric='rgb', extrasamples=['unassalpha'])
    white = Image.new('RGBA', (40, 40), 'white')
    expected = Image.alpha_composite(white, Image.fromarray(pixels)).convert('RGB')
    assert np.array_equal(open_image(tmp_path / 'x.tif').read(0, 0, 40, 40), expected)


class Windows(Dataset):
    def __init__(self, im): self.im = im
    def __len__(self): return 12
    def __getitem__(self, i): return torch.from_numpy(self.im.read(100 * i, 40, 90, 200))


@pytest.mark.parametrize('workers, start', [(0, None), (2, 'fork'), (2, 'spawn')])
def test_workers_read_the_same(slide, workers, start):
    "Opened before the workers start, as a data set does."
    im = open_image(slide)
    im.read(0, 0, 10, 10)
    read = torch.cat(list(DataLoader(Windows(im), 4, num_workers=workers, multiprocessing_context=start)))
    pixels = whole(slide, 0)
    assert all(np.array_equal(read[i], cut(pixels, 100 * i, 40, 90, 200)) for i in range(12))


def test_an_image_is_pickled_as_a_path(slide):
    assert len(pickle.dumps(open_image(slide))) < 1000
    assert np.array_equal(pickle.loads(pickle.dumps(open_image(slide))).read(9, 9, 50, 50), open_image(slide).read(9, 9, 50, 50))


def test_a_replaced_file_is_read_anew(tmp_path):
    path = tmp_path / 'x.tiff'
    for value in (10, 200):
        write_pyramid(path, np.full((600, 600, 3), value, np.uint8))
        assert abs(int(open_image(path).read(0, 0, 4, 4)[0, 0, 0]) - value) < 3


def test_many_files_do_not_run_out_of_handles(tmp_path):
    for i in range(150): tifffile.imwrite(tmp_path / f'{i}.tif', np.full((16, 16, 3), i, np.uint8), photometric='rgb')
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + 20, hard))
    try:
        images = [open_image(tmp_path / f'{i}.tif') for i in range(150)]
        assert [int(im.read(0, 0, 1, 1)[0, 0, 0]) for im in images] == list(range(150))
    finally: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize('damage', [lambda d: b'', lambda d: d[:3], lambda d: d[:200], lambda d: d[:len(d) // 2], lambda d: d[:-10], lambda d: b'not a picture at all' * 50, lambda d: d[:4] + b'\xff' * 8 + d[12:]],
                         ids=['empty', '3 bytes', '200 bytes', 'half', '10 short', 'text', 'no directory'])
def test_damaged_files_end_in_a_sentence_with_their_name(slide, tmp_path, damage):
    bad = tmp_path / 'bad.tiff'
    bad.write_bytes(damage(slide.read_bytes()))
    with pytest.raises(ValueError, match='bad.tiff') as e: open_image(bad)
    assert '\n' not in str(e.value)


def test_a_broken_tile_is_named_when_it_is_read(slide, tmp_path):
    with tifffile.TiffFile(slide) as tif: start, n = tif.pages[0].dataoffsets[0], tif.pages[0].databytecounts[0]
    data = bytearray(slide.read_bytes())
    data[start:start + n] = bytes(n)
    (tmp_path / 'bad.tiff').write_bytes(data)
    with pytest.raises(ValueError, match='bad.tiff has a broken tile'): open_image(tmp_path / 'bad.tiff').read(0, 0, 100, 100)


@pytest.mark.parametrize('dtype', [np.float32, np.uint32, np.int16])
def test_other_pixels_are_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / 'x.tif', np.zeros((20, 20, 3), dtype), photometric='rgb')
    with pytest.raises(ValueError, match='x.tif.*save it with 8 or 16 bits'): open_image(tmp_path / 'x.tif')


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.tiff'): open_image(tmp_path / 'nowhere.tiff')


def test_block_mean_is_the_mean():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 3), dtype=np.uint8)
    expected = pixels.reshape(3, 4, 2, 4, 3).mean((1, 3))
    assert np.abs(block_mean(pixels, 4) - expected).max() <= .5


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('patch, canvas_size', [(64, 1024), (128, 1024), (32, 512)])
def test_no_patch_with_tissue_counts_as_blank(tmp_path, seed, patch, canvas_size):
    biopsy = draw_biopsy(500 + seed, *[(0, 0), (3, 3), (3, 4), (4, 3), (4, 5), (5, 5)][seed])
    write_pyramid(tmp_path / 's.tiff', biopsy.pixels)
    canvas, grid = Canvas(open_image(tmp_path / 's.tiff'), canvas_size), PatchGrid(canvas_size, patch)
    tissue, f = np.zeros((canvas_size, canvas_size), bool), 1024 // canvas_size
    top, left, h, w = canvas.box
    tissue[top:top + h, left:left + w] = biopsy.tissue[:h * f, :w * f].reshape(h, f, w, f).any((1, 3))
    share = content_share(canvas, grid)
    held = grid.extract(torch.from_numpy(tissue)[None, None], range(len(grid)))[0].flatten(1).any(1)
    assert not (held & (share == 0)).any()
    assert (share[~held] > 0).float().mean() < .2   # and most of the glass is left out
    assert ((share >= 0) & (share <= 1)).all()


def test_glass_alone_has_no_content(tmp_path):
    write_pyramid(tmp_path / 's.tiff', np.full((1024, 300, 3), 243, np.uint8))
    assert not content_share(Canvas(open_image(tmp_path / 's.tiff'), 1024), PatchGrid(1024, 64)).any()


def test_tissue_alone_is_all_content(tmp_path):
    "No glass to compare with: the palest tissue must not be taken for it."
    pixels = np.random.default_rng(0).integers(150, 215, (1024, 1024, 3), dtype=np.uint8)
    write_pyramid(tmp_path / 's.tiff', pixels)
    assert (content_share(Canvas(open_image(tmp_path / 's.tiff'), 1024), PatchGrid(1024, 64)) > 0).all()


def test_real_slides_bit_for_bit(data):
    "Against tifffile, at every level, over tile borders."
    for path in sorted(p for p in (data / 'wsi').iterdir() if p.suffix in ('.svs', '.tiff', '.tif')):
        try: im = open_image(path)
        except ValueError: continue      # formats of a later issue
        with tifffile.TiffFile(path) as tif:
            for level, (h, w) in enumerate(im.levels):
                if h * w > 2e8: continue
                page = tif.series[0].levels[level] if level < len(tif.series[0].levels) else None
                if page is None: continue
                pixels = page.asarray()[..., :3]
                for r, c in [(0, 0), (h // 2 - 100, w // 3), (h - 150, w - 150), (-50, -50)]: assert np.array_equal(im.read(r, c, 300, 300, level), cut(pixels, r, c, 300, 300)), (path.name, level)


def test_overview_of_a_real_slide_shows_the_whole(data):
    im = open_image(data / 'wsi/CMU-1-Small-Region.svs')
    low, scale = overview(im, 16)
    assert abs(low.shape[0] * scale - im.shape[0]) <= scale and abs(low.shape[1] * scale - im.shape[1]) <= scale
    direct = im.read(0, 0, low.shape[0] * 16, low.shape[1] * 16)
    assert np.abs(low.astype(int) - block_mean(direct, 16)).max() <= 1


@given(r=st.integers(-30, 60), c=st.integers(-30, 60), h=st.integers(1, 70), w=st.integers(1, 70))
def test_arrays_and_tensors_are_images(r, c, h, w):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    assert np.array_equal(ArrayImage(pixels).read(r, c, h, w), cut(pixels, r, c, h, w))
    assert np.array_equal(ArrayImage(torch.from_numpy(pixels).permute(2, 0, 1)).read(r, c, h, w), cut_window(pixels, r, c, h, w))


BOXES = st.tuples(st.integers(-20, 20), st.integers(-20, 20), st.integers(0, 25), st.integers(0, 25))


@given(a=BOXES, b=BOXES)
def test_what_boxes_have_in_common(a, b):
    "Against sets of pixels."
    def pixels(box): return {(r, c) for r in range(box[0], box[0] + box[2]) for c in range(box[1], box[1] + box[3])}
    common = intersect(a, b)
    assert common == intersect(b, a) and (common is None or min(common[2:]) > 0)
    assert (pixels(common) if common else set()) == pixels(a) & pixels(b)


@given(r=st.integers(-40, 40), c=st.integers(-40, 40), h=st.integers(0, 50), w=st.integers(0, 50))
def test_tiles_are_pasted_where_they_fit(r, c, h, w):
    out, tile = np.zeros((30, 20, 3), np.uint8), np.full((h, w, 3), 9, np.uint8)
    expected = out.copy()
    for i in range(h):
        for j in range(w):
            if 0 <= r + i < 30 and 0 <= c + j < 20: expected[r + i, c + j] = 9
    paste(out, tile, r, c)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize('pixels', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), torch.zeros(4, 4, 3, dtype=torch.uint8)])
def test_other_arrays_are_refused(pixels):
    with pytest.raises(ValueError, match='uint8'): ArrayImage(pixels)


@pytest.mark.parametrize('suffix, exact', [('png', True), ('jpg', False), ('bmp', True), ('webp', False)])
def test_photographs(tmp_path, suffix, exact):
    pixels = draw_biopsy(2, 3, 3).pixels[:400, :200]
    Image.fromarray(pixels).save(tmp_path / f'x.{suffix}')
    im, whole = open_image(tmp_path / f'x.{suffix}'), np.asarray(Image.open(tmp_path / f'x.{suffix}').convert('RGB'))
    assert im.shape == (400, 200) and (not exact or np.array_equal(whole, pixels))
    for w in [(0, 0, 400, 200), (-9, 150, 60, 90), (390, 190, 50, 50)]: assert np.array_equal(im.read(*w), cut(whole, *w))
    assert np.array_equal(pickle.loads(pickle.dumps(im)).read(5, 5, 9, 9), whole[5:14, 5:14])


def test_damaged_photographs_are_named(tmp_path):
    Image.fromarray(draw_biopsy(2, 3, 3).pixels).save(tmp_path / 'good.jpg')
    data = (tmp_path / 'good.jpg').read_bytes()
    for n in (0, 2, 100, len(data) // 2, len(data) - 2000):
        (tmp_path / 'bad.jpg').write_bytes(data[:n])
        os.utime(tmp_path / 'bad.jpg', ns=(n, n))
        with pytest.raises(ValueError, match='bad.jpg') as e: open_image(tmp_path / 'bad.jpg').read(0, 0, 10, 10)
        assert '\n' not in str(e.value)


def test_a_decompression_bomb_is_refused_unopened(tmp_path):
    def chunk(kind, data): return len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')
    for side in (12_000, 60_000):
        header = 2 * side.to_bytes(4, 'big') + bytes([8, 2, 0, 0, 0])
        (tmp_path / 'bomb.png').write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b''))
        with pytest.raises(ValueError, match='bomb.png would unpack'): open_image(tmp_path / 'bomb.png')


@pytest.mark.parametrize('kwargs, tags', [(dict(), ('ImageWidth', 'ImageLength', 'RowsPerStrip')), (dict(tile=(16, 16)), ('ImageWidth', 'ImageLength', 'TileWidth', 'TileLength'))], ids=['strip', 'tile'])
def test_a_tile_that_would_unpack_to_gigabytes_is_refused(tmp_path, kwargs, tags):
    tifffile.imwrite(tmp_path / 'bomb.tif', np.zeros((16, 16, 3), np.uint8), photometric='rgb', compression='zlib', **kwargs)
    with tifffile.TiffFile(tmp_path / 'bomb.tif', mode='r+b') as tif:
        for tag in tags: tif.pages[0].tags[tag].overwrite(48_000)
    with pytest.raises(ValueError, match='bomb.tif.*would unpack to'): open_image(tmp_path / 'bomb.tif')


@settings(max_examples=30)
@given(level=st.integers(0, 2), r=st.integers(0, 1400), c=st.integers(0, 350), h=st.integers(1, 300), w=st.integers(1, 300))
def test_openslide_reads_the_same(even_slide, level, r, c, h, w):
    "The oracle: another reader, at every level, over the border; where levels are exactly 4 times smaller, or OpenSlide interpolates."
    r, c = r // 4 ** level, c // 4 ** level
    assert np.array_equal(SlideImage(even_slide).read(r, c, h, w, level), open_image(even_slide).read(r, c, h, w, level))


@pytest.mark.parametrize('workers, start', [(2, 'fork'), (2, 'spawn')])
def test_openslide_in_workers(slide, workers, start):
    im = SlideImage(slide)
    im.read(0, 0, 10, 10)
    read = torch.cat(list(DataLoader(Windows(im), 4, num_workers=workers, multiprocessing_context=start)))
    assert all(np.array_equal(read[i], cut(whole(slide, 0), 100 * i, 40, 90, 200)) for i in range(12))


def test_a_pixels_size_is_known(slide, data):
    assert open_image(slide).um_per_pixel == pytest.approx(.5) == SlideImage(slide).um_per_pixel
    assert open_image(data / 'wsi/CMU-1-Small-Region.svs').um_per_pixel == pytest.approx(.499)


def test_real_slide_against_openslide(data):
    a, b = open_image(data / 'wsi/CMU-1-Small-Region.svs'), SlideImage(data / 'wsi/CMU-1-Small-Region.svs')
    for w in [(0, 0, 500, 500), (1000, 700, 333, 444), (2900, 2100, 200, 200), (-40, -40, 100, 100)]: assert np.array_equal(a.read(*w), b.read(*w))


def test_real_photograph(data):
    path = next((data / 'photos').glob('*.jpg'))
    im, pixels = open_image(path), np.asarray(Image.open(path))
    assert im.shape == (2700, 5400)
    for w in [(0, 0, 300, 300), (1500, 5300, 200, 200), (2600, -50, 200, 100)]: assert np.array_equal(im.read(*w), cut(pixels, *w))


@settings(max_examples=30)
@given(um=st.floats(.5, 4), background=st.sampled_from(['white', 'black']), r=st.integers(-50, 1200), c=st.integers(-50, 1200), h=st.integers(1, 200), w=st.integers(1, 200))
def test_a_canvas_at_a_scale_is_one_picture(slide, um, background, r, c, h, w):
    size = int(1500 / um * .5) + 40
    canvas = Canvas(open_image(slide), size, um_per_pixel=um, background=background)
    everything = canvas.read(0, 0, size, size)
    expected = cut(everything, r, c, h, w)
    inside = np.zeros((h, w), bool)
    inside[max(-r, 0):max(size - r, 0), max(-c, 0):max(size - c, 0)] = True
    assert np.array_equal(canvas.read(r, c, h, w)[inside], expected[inside])
    assert abs(canvas.box[2] * um / .5 - open_image(slide).shape[0]) <= 4 * um / .5 + 4
    top, left, *_ = canvas.box
    assert (everything[:top] == dict(white=255, black=0)[background]).all()


@given(h=st.integers(1, 9), w=st.integers(1, 9), f=st.integers(1, 5))
def test_area_mean_by_whole_factors_is_block_mean(h, w, f):
    pixels = np.random.default_rng(h).integers(0, 256, (h * f, w * f, 3), dtype=np.uint8)
    assert np.array_equal(area_mean(pixels, np.arange(h + 1) * f * 256, np.arange(w + 1) * f * 256), block_mean(pixels, f))


def test_area_mean_is_the_mean_over_the_area():
    pixels, edges = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8), np.rint(np.arange(14) * 2.9 * 256).astype(int)
    fine = np.repeat(np.repeat(pixels[:, :, 0].astype(float), 256, 0), 256, 1)
    expected = [[fine[a:b, c:d].mean() for c, d in zip(edges, edges[1:])] for a, b in zip(edges[:4], edges[1:5])]
    assert np.abs(area_mean(pixels, edges[:5], edges)[..., 0] - np.array(expected)).max() <= .5


def test_a_slide_in_two_scans_is_the_same_slide(tmp_path):
    "At 0.25 and 0.5 micrometres per pixel, on one canvas at 1: alike."
    pixels = draw_biopsy(3, 3, 4, size=2048).pixels
    pixels = pixels[:, :pixels.shape[1] // 4 * 4]
    write_pyramid(tmp_path / 'a.tiff', pixels, um_per_pixel=.25, quality=95)
    write_pyramid(tmp_path / 'b.tiff', block_mean(pixels, 2), um_per_pixel=.5, quality=95)
    a, b = (Canvas(open_image(tmp_path / f'{n}.tiff'), 600, um_per_pixel=1.).read(0, 0, 600, 600).astype(int) for n in 'ab')
    assert np.abs(a - b).mean() < 1.5


@pytest.mark.parametrize('kwargs', [dict(background='grey')])
def test_other_backgrounds_are_refused(slide, kwargs):
    with pytest.raises(ValueError, match='grey'): Canvas(open_image(slide), 512, **kwargs)


@pytest.mark.parametrize('seed', range(4))
def test_no_light_on_black_counts_as_blank(tmp_path, seed):
    "UltraMNIST as a pyramid: tiny digits and large ones."
    from patchgd_nb.datasets.ultramnist import load_digit_images, draw_image, image_layout
    pool = load_digit_images('train', 'scikit-learn')
    light = draw_image(pool, image_layout(pool, seed, 'train', seed, 2048, 0, 27), 2048)
    write_pyramid(tmp_path / 'x.tiff', np.repeat(light[..., None], 3, 2), quality=90)
    canvas, grid = Canvas(open_image(tmp_path / 'x.tiff'), 2048, background='black'), PatchGrid(2048, 64)
    share = content_share(canvas, grid, 'black')
    held = (grid.extract(torch.from_numpy(light)[None, None], range(len(grid)))[0].flatten(1) > 40).any(1)
    assert not (held & (share == 0)).any() and (share > 0).float().mean() < .5
    assert (content_share(canvas, grid, None) == 1).all()


# --- tiles are decoded once

class Sum(torch.nn.Module):
    "A backbone that costs nothing."
    def __init__(self): super().__init__(); self.w = torch.nn.Parameter(torch.ones(3, 4))
    def forward(self, x): return x.mean((2, 3)) @ self.w


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([16, 32, 64]), st.integers(20, 70), st.integers(18, 70), st.integers(0, 40), st.booleans())
def test_a_batch_decodes_each_tile_once(tmp_path_factory, tile, patch, stride, margin, exact):
    "However patches lie on the tiles: filled, then read again in random order, two images in a batch."
    stride = min(stride, patch)
    size = patch - (patch - 130 - margin) // stride * stride
    folder = tmp_path_factory.mktemp('once')
    for i in range(2): write_pyramid(folder / f'{i}.tiff', np.random.default_rng(i).integers(0, 255, (130, 90, 3), dtype=np.uint8), (1,), tile=tile)
    images, grid = [Canvas(open_image(folder / f'{i}.tiff'), size) for i in range(2)], PatchGrid(size, patch, stride)
    strategy = ExactPatchGD(chunk=3) if exact else PatchGD(CoverSampler(1/4), chunk=3)
    model, before = PatchModel(Sum(), grid, 2, 4, 'smaller'), pyramid._tile.decoded
    strategy.step(model, images, torch.tensor([0, 1]), torch.optim.SGD(model.parameters(), .1))
    assert pyramid._tile.decoded - before == 2 * -(-130 // tile) * -(-90 // tile)


def test_a_tile_cache_is_bounded_and_decodes_once_under_threads():
    "Whatever is asked for in whatever order: never more bytes than allowed, nobody gets another's tile, errors are not kept."
    made, lock = [], threading.Lock()
    def decode(i):
        with lock: made.append(i)
        time.sleep(.001)
        if i == 13: raise ValueError('13 is broken.')
        return np.full((10, 10, 3), i, np.uint8), (i, 0)
    for room, expected in ((10**6, 40), (5 * 1324, None)):
        tiles, wrong, highest = TileCache(decode, room), [], []
        made.clear()
        def use(seed):
            for i in np.random.default_rng(seed).permutation(40).tolist():
                try: pixels, corner = tiles(i)
                except ValueError:
                    if i != 13: wrong.append(i)
                else:
                    if corner != (i, 0) or (pixels != i).any() or i == 13: wrong.append(i)
                highest.append(tiles.held)
        running = [threading.Thread(target=use, args=(seed,)) for seed in range(8)]
        for t in running: t.start()
        for t in running: t.join()
        assert not wrong and max(highest) <= room
        assert tiles.held == sum(1024 + 300 for _ in tiles.tiles) and tiles.decoded == len(made) - made.count(13)
        if expected: assert len({*made}) == expected and tiles.decoded == expected - 1
        else: assert tiles.decoded > 40


def test_a_forked_process_does_not_wait_for_a_thread_of_its_parent():
    "The parent is decoding a tile while it forks: the child decodes it itself."
    begun, go_on = threading.Event(), threading.Event()
    def decode(i):
        if threading.current_thread() is not threading.main_thread(): begun.set(); go_on.wait()
        return np.zeros((2, 2, 3), np.uint8), (i, 0)
    tiles = TileCache(decode, 10**6)
    thread = threading.Thread(target=tiles, args=(1,))
    thread.start()
    begun.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if tiles(1)[1] == (1, 0) and tiles.decoded == 1 else 1)
    status = os.waitpid(child, 0)[1]
    go_on.set()
    thread.join()
    assert status == 0 and tiles.decoded == 1


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_reading_ahead_changes_nothing_and_is_bounded(sizes, threads):
    "The windows of every part in order, with any number of threads; no more is read than has room to wait."
    images, asked = [ArrayImage(np.random.default_rng(i).integers(0, 255, (50, 50, 3), dtype=np.uint8)) for i in range(3)], [0]
    parts = [[(i % 3, i % 50, 7 * i % 50, 9, 5) for i in range(n)] for n in sizes]
    def counted():
        for part in parts:
            asked[0] += len(part)
            yield part
    with mock.patch.object(read_ahead_module, 'N_READERS', threads):
        taken = 0
        for part, got in zip(parts, read_ahead(images, counted()), strict=True):
            assert len(got) == len(part) and all((p == images[b].read(*w)).all() for p, (b, *w) in zip(got, part))
            taken += len(part)
            assert asked[0] - taken < N_AHEAD + max(sizes)


@pytest.mark.parametrize('how', ['plain', 'progressive', 'exif', 'profile', 'filled'])
def test_the_size_of_a_jpeg_is_found_as_pillow_finds_it(how):
    rng = np.random.default_rng(0)
    more = dict(progressive=dict(progressive=True), exif=dict(exif=Image.Exif().tobytes() + b'\xff\xc0\0\x11\x08\1\1\1\1' * 3), profile=dict(icc_profile=rng.bytes(70000))).get(how, {})
    for size in [(1, 1), (17, 300), (256, 40)]:
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(stream, 'JPEG', **more)
        data = stream.getvalue()
        if how == 'filled': data = data[:2] + b'ab\xff\xff' + data[2:]
        assert coded_size(data, 'JPEG') == size == Image.open(io.BytesIO(stream.getvalue())).size[::-1]
        for cut in (0, 2, 3, 10, data.index(b'\xff\xda')):
            try: coded_size(data[:cut], 'JPEG')
            except ValueError as e: assert str(e) == 'it is no JPEG'
    with pytest.raises(ValueError, match='it is no JPEG'): coded_size(data[:2] + data[data.index(b'\xff\xda'):], 'JPEG')
