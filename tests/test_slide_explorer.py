"The slide explorer: what it reads and says in Python, and in a browser what a hand does to it."
import json, time
from io import BytesIO
from pathlib import Path
import nbformat, numpy as np, pytest, torch
from PIL import Image
from torch import nn
from patchgd_nb.images import pyramid
from patchgd_nb.datasets.biopsy import draw_biopsy
from patchgd_nb.images.readers import ArrayImage, open_image, write_pyramid
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.dashboard import SlideExplorer
from patchgd_nb.dashboard.slide import SlidePrediction
from patchgd_nb.dashboard.slide_view import MAX_PIXELS, read_view


@pytest.fixture(scope='module')
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp('slide') / 'slide.tif'
    write_pyramid(path, draw_biopsy(5, 4, 4, size=2048).pixels)
    return path


def model(size=1024, patch=64, stride=None):
    grid = PatchGrid(size, patch, stride)
    return PatchModel(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 16)), grid, 3, 16, nn.Sequential(nn.Flatten(), nn.Linear(16 * len(grid), 3, bias=False)))


def opened(png): return np.asarray(Image.open(BytesIO(png)))


@pytest.mark.parametrize('top, left, height, width, across', [(0, 0, 2048, 460, 100), (100.5, 33.3, 300.2, 200.7, 400), (-50, -50, 300, 300, 100), (1900, 300, 500, 500, 60), (512, 0, 64, 64, 2048)])
def test_a_view_holds_what_it_says(slide, top, left, height, width, across):
    "Its pixels are those of the file at its place, shrunk by a whole factor; they cover the view and are fine enough for the screen."
    image = open_image(slide)
    pixels, (t, l, h, w), level = read_view(image, top, left, height, width, across)
    whole = image.read(0, 0, *image.levels[level], level)
    step = image.shape[0] / image.levels[level][0]
    factor = round(h / step / pixels.shape[0])
    place = [round(v / step) for v in (t, l, h, w)]
    part = whole[place[0]:place[0] + place[2], place[1]:place[1] + place[3]].astype(float)
    assert np.abs(part.reshape(pixels.shape[0], factor, pixels.shape[1], factor, 3).mean((1, 3)) - pixels).max() <= .51
    assert factor * step <= max(1, width / across * 1.01)                        # fine enough
    end = lambda at, size, most: min(at + size, most // (factor * step) * factor * step)
    assert t <= max(top, 0) and l <= max(left, 0) and t + h >= end(top, height, image.shape[0]) - 1e-6 and l + w >= end(left, width, image.shape[1]) - 1e-6
    assert pixels.shape[1] <= 8 * across + 2                                     # and no finer than the levels make it


def test_no_view_reads_too_much():
    class Huge:
        shape, levels = (60_000, 60_000), [(60_000, 60_000)]
        def read(self, row, col, height, width, level=0):
            assert height * width <= MAX_PIXELS
            return np.zeros((height, width, 3), np.uint8)
    assert read_view(Huge(), 0, 0, 20_000, 20_000, 1000) is None and read_view(Huge(), 30_000, 30_000, 900, 900, 1000)[0].shape == (900, 900, 3)
    assert read_view(Huge(), 70_000, 0, 10, 10, 10) is None


@pytest.mark.parametrize('size, stride', [(1024, None), (1024, 32), (2048, None)])
def test_places_agree(slide, size, stride):
    "A patch chosen in the explorer is the patch that the model read, in the file and on the canvas; its latent is that of Z."
    e = SlideExplorer(model(size, 64, stride), slide)
    grid, z = e.model.grid, e.model.fill([e.canvas], content=e.content[None])[0].flatten(1).detach()
    step = 2048 // size
    assert e.step == step and e.share.sum() == pytest.approx(e.model.head(z.reshape(1, 16, *grid.shape))[0].max().item(), rel=1e-3)
    for k in np.flatnonzero(e.content.numpy())[::17].tolist():
        e.page.chosen = k
        assert np.allclose(e.page.patch['latent'], z[:, k].detach(), atol=1e-6)
        seen = opened(e.page.patch['png']).astype(float)
        assert seen.shape == (64 * step, 64 * step, 3)
        on_canvas = e.canvas.read(*grid.corner(k), 64, 64)
        assert np.abs(seen.reshape(64, step, 64, step, 3).mean((1, 3)) - on_canvas).mean() < (2 if step > 1 else 1e-9)
        assert f'row {grid.cell(k)[0]}, column {grid.cell(k)[1]}' in e.page.patch['about']


def test_more_training_shows(slide):
    e = SlideExplorer(model(), slide)
    before, k = e.page.grid['tints'], e.page.chosen
    with torch.no_grad(): e.model.head[1].weight.neg_()
    e.update()
    assert e.page.grid['tints'] != before and e.page.chosen == k


def test_a_prediction_needs_no_page(slide):
    "What the explorer shows is at hand without a widget, and is the same."
    m = model()
    p, e = SlidePrediction(m, slide), SlideExplorer(m, slide)
    k = e.page.chosen
    assert not hasattr(p, 'page') and np.array_equal(p.share, e.share) and p.caption == e.page.caption
    assert p.describe(k) == e.page.patch['about'] and np.array_equal(p.patch_pixels(k)[0], opened(e.page.patch['png']))
    assert p.to_canvas(*p.to_file(3, 5, 7, 9)) == pytest.approx((3, 5, 7, 9)) and len(p.plot().axes) == 3


def test_photographs_arrays_and_blank_ones():
    pixels = draw_biopsy(5, 4, 4).pixels
    e = SlideExplorer(model(), ArrayImage(pixels))
    assert e.step == 1 and e.page.grid['um'] == 0
    blank = SlideExplorer(model(), ArrayImage(np.full((512, 512, 3), 250, np.uint8)))
    assert blank.page.caption.split('; ')[1].startswith('0 of 256') and np.isfinite(blank.page.patch['mean']).all()
    assert len(e.plot().axes) == len(blank.plot().axes) == 3
    with pytest.raises(ValueError, match='square'): SlideExplorer(PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(192, 8)), PatchGrid((64, 32), 8), 2, 8, 'smaller'), ArrayImage(pixels))


def test_a_slide_that_is_gone_is_said(tmp_path, slide):
    path = tmp_path / 'copy.tif'
    path.write_bytes(slide.read_bytes())
    e = SlideExplorer(model(), path)
    path.unlink()
    pyramid._tile.cache_clear()
    e.page.window = [500., 500., 50., 50., 400]
    assert 'cannot be read' in e.page.place
    e.page.place, e.page.chosen = '', 135
    assert 'cannot be read' in e.page.place


SPY = '''
import json, threading, time
def spy():
    while True:
        p = ex.page
        open('slide.part', 'w').write(json.dumps(dict(window=list(p.window), chosen=p.chosen, tint=p.tint, place=p.place, level=p.view.get('level'), at=list(p.view.get('at', [])), about=p.patch.get('about', ''))))
        __import__('os').replace('slide.part', 'slide.json')
        time.sleep(.03)
threading.Thread(target=spy, daemon=True).start()
'''


def drive(lab, page, path, size, patch):
    "Open a slide in JupyterLab in two lines, then do with it what a hand does; Python's state and the pixels follow."
    code = f'''import torch
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
torch.manual_seed(0)
model = PatchModel('test_resnet', PatchGrid({size}, {patch}), n_classes=3, latent_dim=32, head='smaller')'''
    two = f"from patchgd_nb.dashboard import SlideExplorer\nex = SlideExplorer(model, {str(path)!r}); ex"
    kernel = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (code, two, SPY)], metadata=kernel), lab.root / 'slide.ipynb')
    lab.open(page, 'slide.ipynb')
    lab.start(page)
    assert lab.finished(page) == []
    view, state = page.locator('.patchgd-slide'), lambda: json.loads((lab.root / 'slide.json').read_text())
    slide = view.locator('canvas.slide')
    slide.wait_for()
    slide.scroll_into_view_if_needed()
    pixels = lambda: slide.evaluate('c => c.toDataURL()')
    def until(condition, what, seconds=30):
        for _ in range(int(seconds / .1)):
            if condition(): return
            time.sleep(.1)
        raise AssertionError(f'{what}: {state()}')
    until(lambda: state()['window'][4] > 0, 'the page asked for nothing')
    # zoom with the buttons: the window halves, Python reads a finer picture, the canvas changes
    start, first = state()['window'], pixels()
    for _ in range(4): view.locator('button.in').click()
    until(lambda: abs(state()['window'][3] / start[3] - .7 ** 4) < .01, 'zoom')
    until(lambda: state()['level'] is not None and view.evaluate('e => Number(e.dataset.sharp || 0)') > 0, 'no sharp picture')
    assert pixels() != first
    at, w = state()['at'], state()['window']
    assert at[0] <= max(w[0], 0) + 1 and at[1] <= max(w[1], at[1]) + 1
    # drag: to the right and down by 100 and 60 pixels of the screen
    before, seen, box = state()['window'], pixels(), slide.bounding_box()
    centre = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    page.mouse.move(*centre); page.mouse.down(); page.mouse.move(centre[0] + 100, centre[1] + 60, steps=6); page.mouse.up()
    scale = before[3] / (box['width'] - 2)
    until(lambda: np.allclose(state()['window'][:2], [before[0] - 60 * scale, before[1] - 100 * scale], atol=2 * scale), 'drag')
    assert pixels() != seen
    # wheel, for the slide has the focus now: what lies under the pointer stays there
    before = state()['window']
    page.mouse.move(*centre); page.mouse.wheel(0, -200)
    until(lambda: state()['window'][3] < .9 * before[3], 'wheel')
    after = state()['window']
    assert np.allclose([after[0] + after[2] / 2, after[1] + after[3] / 2], [before[0] + before[2] / 2, before[1] + before[3] / 2], atol=3 * scale)
    # click: the patch under the pointer
    page.mouse.click(centre[0] + 30, centre[1] - 20)
    scale, n = after[3] / (box['width'] - 2), size // patch
    row, col = (min(n - 1, int((after[i] + after[i + 2] / 2 + d * scale) / patch)) for i, d in ((0, -20), (1, 30)))
    until(lambda: abs(state()['chosen'] // n - row) + abs(state()['chosen'] % n - col) <= (1 if scale > patch / 4 else 0), f'click: {row}, {col}')
    k = state()['chosen']
    until(lambda: f'row {k // n}, column {k % n}' in state()['about'] and state()['about'] == view.locator('.about').inner_text(), 'about')
    # arrows: to the right and down; the picture of the patch and the latent follow
    patch_png, latent = view.locator('img.patch').get_attribute('src'), view.locator('canvas.latent').evaluate('c => c.toDataURL()')
    page.keyboard.press('ArrowRight'); page.keyboard.press('ArrowDown')
    until(lambda: state()['chosen'] == k + n + 1, 'arrows')
    until(lambda: view.locator('img.patch').get_attribute('src') != patch_png and view.locator('canvas.latent').evaluate('c => c.toDataURL()') != latent, 'the patch and its latent')
    assert len(view.locator('.numbers').text_content().split(', ')) == 32
    view.locator('canvas.latent').hover(position={'x': 120, 'y': 50})
    until(lambda: view.locator('.value').inner_text().startswith('number '), 'the value of a number')
    # one pixel of the file to one of the screen; tint; the whole slide again
    slide.focus()
    page.keyboard.press('1')
    until(lambda: 'one pixel of the screen: 1 of the file' in state()['place'] and state()['level'] == 0, '1 : 1')
    seen = pixels()
    view.locator('input.tint').fill('0')
    until(lambda: state()['tint'] == 0, 'tint')
    slide.focus(); page.keyboard.press('0')
    until(lambda: abs(state()['window'][3] - start[3]) < 2 and pixels() != seen, 'the whole slide')


@pytest.mark.browser
def test_in_jupyterlab(lab, page, slide): drive(lab, page, slide, 1024, 64)


@pytest.mark.browser
def test_a_real_slide_in_jupyterlab(lab, page, data): drive(lab, page, data / 'wsi/CMU-1-Small-Region.svs', 3072, 128)


@pytest.mark.notebooks
@pytest.mark.executes('dashboard/explorers', 'dashboard/slide')
def test_without_a_page_pictures_stay(tmp_path):
    "papermill: every explorer leaves a picture with a text, and nothing that needs a page."
    import subprocess, sys
    top = Path(__file__).resolve().parent.parent
    for name, count in (('explorers', 3), ('slide', 1)):
        run = subprocess.run([Path(sys.executable).parent / 'papermill', top / f'nbs/dashboard/{name}.ipynb', tmp_path / f'{name}.ipynb', '--no-progress-bar'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr[-2000:]
        outputs = [o for c in nbformat.read(tmp_path / f'{name}.ipynb', 4).cells for o in c.get('outputs', [])]
        pictures = [o for o in outputs if 'image/png' in o.get('data', {})]
        assert len(pictures) == count and all(len(o['metadata']['image/png']['alt']) > 40 for o in pictures)
        assert not any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for o in outputs)
        assert (tmp_path / f'{name}.ipynb').stat().st_size < 600_000
