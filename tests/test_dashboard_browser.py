"The dashboard in a real JupyterLab and a real browser: what a person sees, while it trains, after a reload, in another tab, without a kernel."
import itertools, json, re, time
from pathlib import Path
import nbformat, numpy as np, pytest

pytestmark = pytest.mark.browser
TOP = Path(__file__).resolve().parent.parent
SHOTS = Path(__import__('os').environ.get('PATCHGD_SCREENSHOTS') or '/nowhere')   # where pictures of the pages are kept, if wanted

TRAIN = '''
import json, os, threading, time, torch
import numpy as np
from patchgd_nb.dashboard.live import PatchGDDashboard
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import CarryPatchGD, ExactPatchGD, GradientDescent, PatchGD
from patchgd_nb.training.callback import Callback
from patchgd_nb.training.zbank import ZBank
from patchgd_nb.trainer import Trainer
torch.set_num_threads(1)
def data(size, n=4):
    torch.manual_seed(0)
    images = torch.randint(0, 255, (2 * n, 3, size, size), dtype=torch.uint8)
    return [(images[i:i + 2], torch.tensor([0, 1]), (torch.arange((size // 16) ** 2) % 5 > 0).float().repeat(2, 1), [f'slide {i}', f'slide {i + 1}']) for i in range(0, 2 * n, 2)]
def train(dash, size=128, epochs=1000, *more, strategy=None, **options):
    torch.manual_seed(0)
    model = PatchModel('test_resnet', PatchGrid(size, 16), 2, latent_dim=16, head='smaller')
    return Trainer(model, strategy or PatchGD(CoverSampler(1/4)), data(size), data(size, 1), epochs=epochs, callbacks=[*more, dash], device='cpu', progress=False, **options).fit()
class Note(Callback):
    "Writes what the run does, for the test to read; and slows it down."
    def __init__(self, dash, wait=.05): self.dash, self.wait, self.n = dash, wait, 0
    def on_inner(self, trainer, j, loss, cells, Z):
        self.n += 1
        sampler = getattr(trainer.strategy, 'sampler', None)
        state = dict(n=self.n, epoch=trainer.epoch, batch=trainer.batch, j=j, fraction=sampler and sampler.fraction, accumulate=getattr(trainer.strategy, 'accumulate', 0), errors=self.dash.errors, watch=self.dash.controls.watch)
        open('state.part', 'w').write(json.dumps(state)); os.replace('state.part', 'state.json')
        time.sleep(self.wait)
'''
RUN = 'dash = PatchGDDashboard(watch="slide 0")\nrun = train(dash, 128, 1000, Note(dash), checkpoint="runs/a")'

LAZY = '''
import tifffile
from patchgd_nb.datasets.biopsy import draw_biopsy
from patchgd_nb.images import open_image
from patchgd_nb.images.canvas import Canvas, content_share
tifffile.imwrite('core.tiff', draw_biopsy(3, 3, 4).pixels, tile=(256, 256), photometric='rgb')
grid = PatchGrid(1024, 64)
canvas = Canvas(open_image('core.tiff'), 1024)
batch = [canvas], torch.tensor([1]), content_share(canvas, grid)[None], ['core of 3+4']
model = PatchModel('test_resnet', grid, 2, latent_dim=16, head='smaller')
Trainer(model, PatchGD(CoverSampler(1/8)), [batch], [batch], epochs=2, callbacks=[PatchGDDashboard()], device='cpu', progress=False).fit()
'''
PINK = '''c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;
    for (let i = 0; i < d.length; i += 4) n += d[i] - d[i + 1] > 40 && d[i + 2] - d[i + 1] > 15 && d[i] > 120; return n; }'''


def grey_legend(view):
    "What the legend of the image says, and how it draws it, without colours."
    found = view.locator('.legend.of-image').evaluate('''e => [...e.querySelectorAll('canvas')].map(c => [c.parentElement.textContent.trim(), [c.width, c.height],
        [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]])''')
    pixels = {name: np.array(values, float).reshape(size[1], size[0], 4) for name, size, values in found}
    return {name: (p[..., :3] * p[..., 3:] / 255 + 255 - p[..., 3:]) @ [.299, .587, .114] for name, p in pixels.items()}


def notebook(*cells): return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata={'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}})


class Room:
    "A notebook in JupyterLab, and what its run says."
    def __init__(self, lab, page, name, *cells):
        self.lab, self.page, self.name, self.file = lab, page, name, lab.root / 'state.json'
        self.file.unlink(missing_ok=True)
        nbformat.write(notebook(*cells), lab.root / name)
        lab.open(page, name)
        lab.start(page)

    def state(self):
        try: return json.loads(self.file.read_text())
        except (OSError, ValueError): return dict(n=0)

    def until(self, condition, seconds=60, what='it'):
        end = time.time() + seconds
        while time.time() < end:
            if condition(): return
            self.page.wait_for_timeout(100)
        raise AssertionError(f'{what} did not happen: {self.state()}, {self.said(self.page)!r}')

    def view(self, page=None): return (page or self.page).locator('.patchgd-run').last

    def said(self, page=None):
        view = self.view(page)
        return view.locator('.status').inner_text() if view.count() else 'no view'

    def button(self, name, page=None): return self.view(page).locator(f'button.{name}')

    def pixels(self, which='image', page=None): return self.view(page).locator(f'canvas.{which}').evaluate('c => c.toDataURL()')

    def place(self, page=None): return self.view(page).locator('.where').inner_text()

    def first_frame(self, page=None, seconds=120):
        self.view(page).locator('canvas.image').wait_for(timeout=1000 * seconds)
        self.until(lambda: 'epoch' in self.place(page), seconds, 'a first frame')

    def moves(self, page=None):
        before = self.pixels(page=page)
        self.until(lambda: self.pixels(page=page) != before, 60, 'another picture')

    def works(self, page=None):
        "Pause holds the run, a step is one step, Resume goes on: by what the run itself says."
        self.button('pause', page).click()
        self.until(lambda: self.said(page).startswith('paused'), 60, 'a pause')
        self.page.wait_for_timeout(700)
        held = self.state()['n']
        self.page.wait_for_timeout(700)
        assert self.state()['n'] == held
        self.button('inner', page).click()
        self.until(lambda: self.state()['n'] == held + 1, 30, 'a step')
        self.page.wait_for_timeout(500)
        assert self.state()['n'] == held + 1
        s = self.state()
        if s['watch'] == f"slide {2 * s['batch']}":   # what was stepped to is what is shown
            self.until(lambda: f"epoch {s['epoch'] + 1}, batch {s['batch'] + 1}, inner {s['j'] + 1} " in self.place(page), 30, 'its frame')
        self.button('pause', page).click()
        self.until(lambda: self.state()['n'] > held + 3, 30, 'going on')

    def shot(self, name):
        if SHOTS.is_dir(): self.page.screenshot(path=SHOTS / f'{name}.png')

    def stop(self, page=None):
        self.button('stop', page).click()
        assert self.lab.finished(self.page) == []


@pytest.fixture
def page(browser, lab):
    "A laptop's screen."
    context = browser.new_context(viewport=dict(width=1440, height=900), accept_downloads=True)
    yield context.new_page()
    context.close()
    lab.shut_down()


def save(page): page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")


def test_while_it_trains_and_after(lab, page):
    "Everything on the page does what it says; then the page is loaded again, and again with a new kernel."
    room = Room(lab, page, 'all.ipynb', TRAIN, RUN)
    room.first_frame()
    room.moves()
    room.works()
    view = room.view()
    # all of it fits on the screen, to its last line
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    assert box['height'] <= 740 and box['width'] <= 1100
    for part in ('button.pause', 'canvas.image', 'canvas.z', '.pin', '.slider', 'svg.losses', 'svg.metrics', '.memory'): assert view.locator(part).is_visible()
    room.shot('training')
    # the batch: to its end, and not further
    room.button('batch').click()
    room.until(lambda: room.said().startswith('paused'), 30, 'a pause after the batch')
    page.wait_for_timeout(700)
    held = room.state()
    page.wait_for_timeout(500)
    assert room.state() == held and held['j'] == 3
    # pointing and pinning: row and column of the patch, and its pixels
    view.locator('canvas.z').focus()
    page.keyboard.press('Enter')
    page.keyboard.press('ArrowRight')
    where = view.locator('.pin .cell').inner_text()
    page.keyboard.press('ArrowDown')
    room.until(lambda: view.locator('.pin .cell').inner_text() != where and 'pinned' in view.locator('.pin .cell').inner_text(), 10, 'another pin')
    assert any(word in view.locator('.pin-text').inner_text() for word in ('sampled', 'blank'))
    # Z shows something else, and the legend says what
    before = room.pixels('z')
    view.locator('select.of-z').select_option('age')
    room.until(lambda: room.pixels('z') != before and 'inner iterations' in view.locator('.z-legend').inner_text(), 10, 'age')
    # the settings reach the strategy; another slide is watched
    room.button('settings').click()
    view.locator('input.accumulate').fill('1')
    view.locator('input.accumulate').press('Enter')
    view.locator('input.fraction').focus()
    for _ in range(5): page.keyboard.press('ArrowRight')
    view.locator('select.watch').select_option('slide 4')
    room.button('settings').click()
    room.button('pause').click()
    room.until(lambda: (s := room.state())['fraction'] == .3 and s['accumulate'] == 1 and s['watch'] == 'slide 4', 30, 'settings')
    index = lambda: view.evaluate("e => e.querySelector('.verdict').textContent")
    room.until(lambda: 'true' in index() and (lab.root / 'runs/a/live/status.json').exists() and json.loads((lab.root / 'runs/a/live/status.json').read_text())['index'][-1][5] == 'slide 4', 60, 'the other slide')
    # a film and a picture to keep
    with page.expect_download(timeout=60_000) as film: room.button('gif').click()
    with page.expect_download(timeout=60_000) as picture: room.button('png').click()
    assert Path(film.value.path()).read_bytes()[:4] == b'GIF8' and Path(picture.value.path()).read_bytes()[1:4] == b'PNG'
    # the end: a replay in its place, which needs no kernel
    room.stop()
    room.until(lambda: room.said().startswith('stopped after'), 30, 'the end')
    assert room.view().locator('.training').first.is_hidden() and not room.state()['errors']
    def plays(page):
        view = room.view(page)
        view.locator('.slider').wait_for(timeout=90_000)
        view.scroll_into_view_if_needed()
        room.until(lambda: view.locator('.where').inner_text().startswith('epoch'), 30, 'the last frame')
        assert view.locator('svg.losses path').count() >= 2 or view.locator('svg.losses polyline').count() >= 2
        last = room.pixels(page=page)
        view.locator('.slider').focus()
        for _ in range(12): page.keyboard.press('PageDown')
        page.keyboard.press('Home')
        room.until(lambda: room.pixels(page=page) != last, 30, 'an older frame')
    plays(page)
    save(page)
    page.wait_for_timeout(1500)
    page.reload()
    plays(page)
    lab.shut_down()
    lab.open(page, 'all.ipynb')
    plays(page)
    assert page.get_by_text('Error displaying widget').count() == 0 and page.get_by_text('Loading widget').count() == 0
    room.shot('new_kernel')


def test_a_page_that_is_loaded_again_while_it_trains(lab, page, browser):
    "The notebook was saved; the page is loaded again, twice, then opened in a second tab: picture and buttons, while the kernel is busy."
    room = Room(lab, page, 'again.ipynb', TRAIN, RUN)
    room.first_frame()
    save(page)
    page.wait_for_timeout(1500)
    for _ in range(2):
        page.reload()
        room.first_frame(seconds=180)
        assert 'curve' not in room.said() and room.view().locator('svg.losses').inner_html().count('<') > 5
        room.moves()
        room.works()
    n = room.state()['n']
    second = page.context.new_page()
    second.goto(f'http://127.0.0.1:{lab.port}/lab/workspaces/second/tree/again.ipynb?token={lab.token}')
    room.first_frame(second, 180)
    room.moves(second)
    room.works(second)
    room.until(lambda: room.state()['n'] > n + 10, 60, 'training all the while')
    room.button('stop', second).click()
    room.until(lambda: room.said(second).startswith(('stopped', 'stops')), 60, 'the end')
    second.close()


def test_watched_from_another_notebook(lab, page):
    "A run of papermill, which knows of no page, is seen and steered by its folder: paused, stepped, stopped; an image is chosen."
    import os, subprocess, sys
    (lab.root / 'state.json').unlink(missing_ok=True)
    nbformat.write(notebook(TRAIN, RUN.replace('runs/a', 'runs/watched')), lab.root / 'night.ipynb')
    night = subprocess.Popen([Path(sys.executable).parent / 'papermill', 'night.ipynb', 'night.out.ipynb', '--no-progress-bar'], cwd=lab.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ, OMP_NUM_THREADS='1'))
    try:
        for _ in range(1200):
            if (lab.root / 'state.json').exists() and (lab.root / 'runs/watched/live/status.json').exists(): break
            time.sleep(.1)
        room = Room.__new__(Room)
        room.lab, room.page, room.name, room.file = lab, page, 'watch.ipynb', lab.root / 'state.json'
        nbformat.write(notebook("from patchgd_nb import watch", "watch('runs/watched')"), lab.root / 'watch.ipynb')
        lab.open(page, 'watch.ipynb')
        lab.start(page)
        room.first_frame()
        room.moves()
        room.works()
        room.shot('watch')
        room.button('stop').click()
        assert night.wait(120) == 0
        room.until(lambda: room.said().startswith('stopped'), 60, 'the end')
    finally: night.kill()


def test_an_experiment_of_the_terminal_is_watched_and_steered(lab, page):
    "`patchgd run photos` in a terminal knows of no page; a second notebook sees it, holds it, steps it and stops it, and it can be resumed."
    import os, subprocess, sys
    from patchgd_nb.training.checkpoint import find_checkpoint
    small = dict(n_photos=16, image_size=96, patch_size=32, batch_size=4, epochs=5000, out_dir='runs/night', fraction=.25)
    words = [w for name, value in small.items() for w in ('-p', name, str(value))]
    run = subprocess.Popen([Path(sys.executable).parent / 'patchgd', 'run', 'photos', 'night.ipynb', *words], cwd=lab.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))
    try:
        nbformat.write(notebook('from patchgd_nb import watch', "watch('runs/night')"), lab.root / 'second.ipynb')
        lab.open(page, 'second.ipynb')
        for _ in range(600):
            if (lab.root / 'runs/night/patchgd/live/status.json').exists(): break
            page.wait_for_timeout(100)
        lab.start(page)
        room = Room.__new__(Room)
        room.lab, room.page, room.name, room.file = lab, page, 'second.ipynb', lab.root / 'nothing.json'
        room.first_frame()
        room.moves()
        assert 'PatchGD, 3 x 3 patches of 32 pixels' in room.view().inner_text() and 'pictures' not in room.view().inner_text()
        # held: nothing moves
        room.button('pause').click()
        room.until(lambda: room.said().startswith('paused'), 30, 'a pause')
        def counter():   # (epoch, batch, inner iteration), as the page says it
            return tuple(map(int, re.match(r'epoch (\d+), batch (\d+), inner (\d+)', room.place()).groups()))
        def step():
            before = room.place()
            room.button('inner').click()
            room.until(lambda: room.place() != before, 30, 'a step')
            page.wait_for_timeout(300)
            return counter()
        now = step()   # the page shows every iteration of a run that is held
        held, picture = room.place(), room.pixels()
        page.wait_for_timeout(700)
        assert room.place() == held and room.pixels() == picture and room.said().startswith('paused')
        # stepped: by one, and to the first of the next batch after the last
        for _ in range(4):
            epoch, batch, inner = now
            now = step()
            assert now == (epoch, batch, inner + 1) or now in ((epoch, batch + 1, 1), (epoch + 1, 1, 1)) and inner == 3, (epoch, batch, inner, now)
        room.shot('second_notebook')
        # stopped: the experiment ends by itself, says so, and leaves what it can be resumed from
        room.button('stop').click()
        out, _ = run.communicate(timeout=60)
        assert run.returncode == 0, out
        room.until(lambda: room.said().startswith('stopped after'), 30, 'the end')
        assert json.loads((lab.root / 'runs/night/run.json').read_text())['outcome'] == 'interrupted' and (lab.root / 'night.ipynb').exists()
        state = find_checkpoint(lab.root / 'runs/night', best=False).state
        assert (state['epoch'] + 1, state['batch']) == now[:2] or (state['epoch'], state['batch']) == (now[0], 0), (state['epoch'], state['batch'], now)
        assert lab.finished(page) == []
    finally: run.kill()


@pytest.mark.parametrize('width, scheme', [(800, 'light'), (1280, 'light'), (1440, 'dark'), (1920, 'light')])
def test_it_fits_other_screens(lab, browser, width, scheme):
    "Nothing is cut off at its right, texts can be read: their contrast is at least 4.5."
    context = browser.new_context(viewport=dict(width=width, height=900))
    page = context.new_page()
    try:
        room = Room(lab, page, f'wide_{width}.ipynb', TRAIN, 'dash = PatchGDDashboard()\ntrain(dash, 256, 1, Note(dash, 0))')
        if scheme == 'dark': page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        room.first_frame()
        assert lab.finished(page) == []
        room.until(lambda: room.said().startswith('finished'), 30, 'the end')
        page.wait_for_timeout(1000)
        view = room.view()
        view.scroll_into_view_if_needed()
        room.shot(f'width_{width}_{scheme}')
        assert view.evaluate('e => e.scrollWidth <= e.clientWidth + 1')
        contrast = view.evaluate('''e => {
            const rgb = s => (s.match(/[\\d.]+/g) || []).map(Number), canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
            const solid = css => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = css; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
            const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
            const ground = n => { for (; n; n = n.parentElement) { const c = solid(getComputedStyle(n).backgroundColor); if (c[3] > 250) return c; } return [255, 255, 255]; };
            return [...e.querySelectorAll('*')].filter(n => n.offsetParent && [...n.childNodes].some(t => t.nodeType == 3 && t.textContent.trim()) && !n.closest(':disabled')).map(n => {
                const a = light(solid(getComputedStyle(n).color)), b = light(ground(n));
                return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), n.className, n.textContent.slice(0, 30)]; }).sort((a, b) => a[0] - b[0]).slice(0, 3); }''')
        assert contrast[0][0] >= 4.5, contrast
    finally:
        context.close()
        lab.shut_down()


def test_every_strategy_a_failing_run_and_two_at_once(lab, page):
    "Each says what it is; a failure says its sentence, and its last frame stays; a misspelt slide is said; 64 x 64 cells are drawn at once."
    cells = [TRAIN,
             'train(PatchGDDashboard(), 128, 1, strategy=ExactPatchGD())',
             'train(PatchGDDashboard(watch="slide 2"), 128, 3, strategy=CarryPatchGD(CoverSampler(1/8), ZBank("z"), inner_steps=2))',
             'train(PatchGDDashboard(), 128, 1, strategy=GradientDescent())',
             'class Fails(Callback):\n    def on_epoch_end(self, trainer, metrics): raise RuntimeError("somebody pulled <the> plug")\ntry: train(PatchGDDashboard(), 128, 2, Fails())\nexcept RuntimeError: pass',
             'train(PatchGDDashboard(watch="slied 2"), 128, 1)',
             'dash = PatchGDDashboard()\ntrain(dash, 1024, 1)\nprint(dash.errors)', LAZY]
    room = Room(lab, page, 'each.ipynb', *cells)
    assert lab.finished(page, 400) == []
    views = page.locator('.patchgd-run')
    room.until(lambda: views.count() == 7, 60, 'seven views')
    exact, carry, whole, failed, misspelt, large, lazy = (views.nth(i) for i in range(7))
    text = lambda view, part: view.locator(part).first.text_content()   # JupyterLab hides cells that are off the screen
    for view in (exact, carry, whole, large, lazy): assert text(view, '.status').startswith('finished')
    carry.scroll_into_view_if_needed()
    carry.locator('.slider').focus()
    page.keyboard.press('End')
    room.until(lambda: 'carried' in text(carry, '.legend.of-image'), 30, 'the legend of carried cells')
    # without colours the states are told apart, too: what the legend draws is drawn by what draws the panels
    drawn = grey_legend(carry)
    assert {'sampled now', 'refreshed', 'filled', 'carried', 'blank'} <= set(drawn), set(drawn)
    for a, b in itertools.combinations(drawn, 2): assert (np.abs(drawn[a] - drawn[b]) > 50).mean() > .04, (a, b)
    whole.scroll_into_view_if_needed()
    assert 'there is no Z' in text(whole, '.veil.of-z') and 'predicted' in text(whole, '.verdict')
    assert text(failed, '.status') == 'failed: RuntimeError: somebody pulled <the> plug' and 'epoch 1' in text(failed, '.where')
    large.scroll_into_view_if_needed()
    room.until(lambda: int(large.get_attribute('data-drawn') or 0) > 0, 30, 'a drawing')
    large.locator('.slider').focus()
    for _ in range(6): page.keyboard.press('ArrowLeft')
    page.wait_for_timeout(500)
    assert float(large.get_attribute('data-ms')) < 100
    # a slide that is read from its file while it trains: its picture, and the pixels of a patch
    lazy.scroll_into_view_if_needed()
    room.until(lambda: lazy.locator('canvas.image').evaluate(PINK) > 200, 30, 'tissue')
    assert 'core of 3+4' in text(lazy, 'select.watch') and 'true 1' in text(lazy, '.verdict')
    room.shot('each')


def test_an_exported_page_shows_the_run(lab, browser, tmp_path):
    "nbconvert's HTML from a saved notebook: the run plays there; without scripts there is its picture, with a text."
    import subprocess, sys
    context = browser.new_context(viewport=dict(width=1440, height=900))
    page = context.new_page()
    try:
        Room(lab, page, 'export.ipynb', TRAIN, 'train(PatchGDDashboard(), 128, 2)')
        assert lab.finished(page) == []
        page.wait_for_timeout(1000)
        save(page)
        page.wait_for_timeout(2000)
        subprocess.run([Path(sys.executable).parent / 'jupyter', 'nbconvert', '--to', 'html', '--output-dir', tmp_path, lab.root / 'export.ipynb'], check=True, capture_output=True, timeout=120)
    finally:
        context.close()
        lab.shut_down()
    assert (tmp_path / 'export.html').stat().st_size < 3e6
    plain = browser.new_context(java_script_enabled=False, offline=True).new_page()
    plain.goto((tmp_path / 'export.html').as_uri())
    picture = plain.locator('img[alt^="The end of a run"]')
    assert picture.count() == 1 and 'inner iteration' in picture.get_attribute('alt') and picture.evaluate('e => e.naturalWidth') > 900
    plain.context.close()
    shown = browser.new_context(offline=True).new_page()
    shown.goto((tmp_path / 'export.html').as_uri())
    view = shown.locator('.patchgd-run')
    view.wait_for(timeout=30_000)
    assert view.locator('.status').inner_text().startswith('finished') and shown.locator('img[alt^="The end of a run"]').count() == 0
    shown.context.close()


def test_a_file_to_send_plays_offline_and_can_be_read_by_all(browser, tmp_path):
    "run.html from the disk, the network off: it plays from its first to its last frame; axe finds nothing serious."
    import torch
    from axe_core_python.sync_playwright import Axe
    from test_dashboard import PatchGD, PatchGrid, CoverSampler, FrameRecorder, replay, train
    torch.manual_seed(0)
    recorder = FrameRecorder('im5')
    recorder.limiter.due = lambda: True
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [recorder], epochs=8)
    path = replay(run.trace).save(tmp_path / 'run.html')
    for scheme in ('light', 'dark'):
        context = browser.new_context(viewport=dict(width=1280, height=900), offline=True, color_scheme=scheme)
        page, errors = context.new_page(), []
        page.on('pageerror', lambda e: errors.append(str(e)))
        page.on('console', lambda m: errors.append(m.text) if m.type == 'error' else None)
        page.goto(path.as_uri())
        view = page.locator('.patchgd-run')
        view.wait_for(timeout=30_000)
        page.wait_for_timeout(1000)
        ids = [f['id'] for f in run.trace.frames]
        view.locator('.slider').focus()
        page.keyboard.press('Home')
        page.evaluate("() => { window.seen = []; const e = document.querySelector('.patchgd-run'); new MutationObserver(() => window.seen.push(Number(e.dataset.id))).observe(e, {attributes: true, attributeFilter: ['data-id']}); }")
        if scheme == 'light':
            for _ in range(6): page.keyboard.press('PageDown')
            view.locator('select.speed').select_option('4')
            view.locator('.play').click()
            for _ in range(400):
                if page.evaluate("() => window.seen.at(-1)") == ids[-1]: break
                page.wait_for_timeout(100)
            seen = page.evaluate('() => window.seen')
            assert ids[0] in seen and seen[-1] == ids[-1] and len(set(seen)) > len(ids) / 3
        found = Axe().run(page)
        serious = [v['id'] for v in found['violations'] if v['impact'] in ('serious', 'critical')]
        assert not serious and not errors, (serious, errors)
        context.close()


def test_a_failing_view_and_a_closed_tab(lab, page):
    "The error is shown under the view; and when the tab is closed in the middle, training goes on to its end."
    code = TRAIN + '''
class Broken(PatchGDDashboard):
    def show_frame(self, frame): raise OSError('no picture <today>')
d = Broken('widgets')
train(d, 128, 12, Note(d))'''
    long = '''
class Slow(Callback):
    def on_inner(self, trainer, *args):
        time.sleep(.1); open('count', 'w').write(str(len(trainer.trace.inner)))
quiet = PatchGDDashboard('widgets')
run = train(quiet, 128, 12, Slow())
open('finished', 'w').write(f'{run.epoch} {quiet.errors}')'''
    nbformat.write(notebook(code, long), lab.root / 'closed.ipynb')
    lab.open(page, 'closed.ipynb')
    lab.start(page)
    alert = page.locator('[role=alert]', has_text='training goes on')
    alert.first.wait_for(timeout=90_000)
    assert 'OSError: no picture <today>' in alert.first.inner_text()
    for _ in range(600):
        if (lab.root / 'count').exists() and (lab.root / 'count').read_text() not in ('', '0'): break
        time.sleep(.1)
    page.close()
    at = int((lab.root / 'count').read_text() or 0)
    assert at < 160
    for _ in range(900):
        if (lab.root / 'finished').exists() and (lab.root / 'finished').read_text(): break
        time.sleep(.1)
    assert (lab.root / 'finished').read_text() == '12 []' and int((lab.root / 'count').read_text()) > at


def test_on_a_page_of_voila_while_it_trains(browser, tmp_path):
    "Placed before training, which runs in a thread: the picture and the curves change, pause holds, a step is one step, stop ends it; and without the token there is no page."
    from lab import voila
    placed = '''
import ipywidgets
from threading import Thread
class Count(Callback):
    n = 0
    def on_inner(self, *args): self.n += 1; open('count', 'w').write(str(self.n)); time.sleep(.05)
dash, button = PatchGDDashboard(), ipywidgets.Button(description='Train')
trainer = train(dash, 128, 1000, Count())
def work():
    trainer.fit()
    open('end', 'w').write(f'{trainer.stop} {dash.view} {dash.errors}')
def begin(button):
    button.disabled = True
    Thread(target=work).start()
button.on_click(begin)
ipywidgets.VBox([button, dash.place()])'''
    nbformat.write(notebook(TRAIN.replace('.fit()', ''), placed), tmp_path / 'page.ipynb')
    count = lambda: int((tmp_path / 'count').read_text() or -1)
    def until(condition, seconds=60):
        for _ in range(10 * seconds):
            if condition(): return
            page.wait_for_timeout(100)
        raise AssertionError((tmp_path / 'home/voila.log').read_text()[-2000:])
    (tmp_path / 'home').mkdir()
    with voila(tmp_path / 'page.ipynb', tmp_path / 'home') as address:
        page = browser.new_context(viewport=dict(width=1280, height=1400)).new_page()
        page.goto(address.split('?')[0], timeout=90_000)
        assert page.get_by_role('button', name='Train').count() == 0 and 'token' in page.inner_text('body').lower()
        page.goto(address, timeout=90_000)
        button = lambda name: page.locator('button', has_text=name).first
        button('Train').click(timeout=90_000)
        canvas = page.locator('.patchgd-run canvas.image').first
        canvas.wait_for(timeout=60_000)
        first = canvas.evaluate('c => c.toDataURL()')
        until(lambda: canvas.evaluate('c => c.toDataURL()') != first)
        until(lambda: page.locator('svg.losses path, svg.losses polyline').count() >= 2)
        button('Pause').click()
        button('Resume').wait_for()
        page.wait_for_timeout(500)
        held = count()
        page.wait_for_timeout(1000)
        assert count() == held
        button('Inner step').click()
        until(lambda: count() == held + 1)
        page.wait_for_timeout(500)
        assert count() == held + 1
        button('Stop').click()
        until(lambda: (tmp_path / 'end').exists() and (tmp_path / 'end').read_text())
        assert (tmp_path / 'end').read_text() == 'True widgets []'
        page.context.close()
