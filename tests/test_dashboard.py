"The dashboard: in a real browser while it trains, on paper without one, and never in the way of training."
import json, time
from pathlib import Path
import nbformat, numpy as np, pytest, torch
from torch import nn
from patchgd_nb.training.checkpoint import Checkpoints
from patchgd_nb.dashboard.live import PatchGDDashboard
from patchgd_nb.dashboard.player import FramePlayer, replay
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler, UniformSampler
from patchgd_nb.strategy import ExactPatchGD, GradientDescent, PatchGD
from patchgd_nb.training.trace import Trace
from patchgd_nb.trainer import Trainer
from patchgd_nb.dashboard.view import Z_LAYERS, choose_view, frame_message
from patchgd_nb.dashboard.frames import MAX_CELLS, FrameRecorder, RateLimiter, ZColours, contributions, plot_frame, plot_strip

TOP = Path(__file__).resolve().parent.parent


def tiny(grid, classes=3, norm=False): return PatchModel(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8), *([nn.BatchNorm1d(8)] if norm else [])), grid, classes, 8, 'smaller')


def batches(grid, n=3, size=4, blank=True):
    images = torch.randint(0, 255, (n * size, 3, *grid.image_size), dtype=torch.uint8)
    content = (torch.rand(n * size, len(grid)) > .4).float() if blank else None
    return [(images[i:i + size], torch.arange(size) % 3, content[i:i + size] if blank else None, [f'im{k}' for k in range(i, i + size)]) for i in range(0, n * size, size)]


def train(grid, strategy, callbacks=(), **kwargs):
    torch.manual_seed(1)
    model = tiny(grid, norm=True)
    data = batches(grid)
    return Trainer(model, strategy, data, data, epochs=2, callbacks=callbacks, device='cpu', progress=False, **kwargs).fit()


def weights(run): return torch.cat([p.detach().flatten() for p in run.model.parameters()])


@pytest.mark.parametrize('strategy', [lambda: PatchGD(CoverSampler(1 / 4)), lambda: PatchGD(UniformSampler(1 / 2), inner_steps=3), lambda: ExactPatchGD(chunk=3), lambda: GradientDescent()])
@pytest.mark.parametrize('view', ['static', 'text', 'off', 'widgets'])
def test_looking_changes_nothing(strategy, view):
    "The same weights to the bit, whatever the view; a frame of every inner iteration costs no random number."
    grid = PatchGrid(48, 8)
    dash = PatchGDDashboard(view)
    dash.recorder.limiter.due = lambda: True
    a, b = train(grid, strategy()), train(grid, strategy(), [dash])
    assert torch.equal(weights(a), weights(b)) and not dash.errors
    assert all(torch.equal(x, y) for x, y in zip(a.model.buffers(), b.model.buffers()))
    assert (len(b.trace.frames) > 0) == (view != 'off' and not isinstance(b.strategy, GradientDescent))


@pytest.mark.parametrize('image, patch', [((48, 48), 8), ((64, 32), 8), ((144, 144), 1), ((60,), 4), ((8, 8, 8), 4)])
def test_any_grid_has_frames(image, patch):
    grid = PatchGrid(image, patch)
    dims = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[grid.ndim](1)
    model = PatchModel(nn.Sequential(dims, nn.Flatten(), nn.Linear(3, 8)), grid, 3, 8, nn.Sequential(nn.Flatten(), nn.Linear(8 * len(grid), 3)))
    dash = PatchGDDashboard('static')
    dash.recorder.limiter.due = lambda: True
    run = Trainer(model, PatchGD(CoverSampler(1 / 2)), [(torch.randint(0, 255, (2, 3, *image), dtype=torch.uint8), torch.tensor([0, 1]))], epochs=1, callbacks=[dash], progress=False).fit()
    f = run.trace.frames[-1]
    assert not dash.errors and len(f['state']) == f['rows'] * f['cols'] and max(f['rows'], f['cols']) <= MAX_CELLS
    assert (f['factor'] > 1) == (max(grid.shape) > MAX_CELLS) and ('drawn coarser' in frame_message(f, 'age')['left']) == (f['factor'] > 1)
    for view in Z_LAYERS.values(): assert len(frame_message(f, view)['values']) == len(f['state']) * (3 if view == 'colours' else 1)
    plot_frame(run.trace), plot_strip(run.trace)


def test_a_frame_says_what_happened():
    grid, seen = PatchGrid(48, 8), []
    watch = FrameRecorder('im5')
    watch.limiter.due = lambda: True
    run = train(grid, PatchGD(CoverSampler(1 / 4)), [watch])
    frames, sampled = list(run.trace.frames), run.trace.samples('im5')
    assert {f['name'] for f in frames} == {'im5'} and len(frames) == len(sampled)
    total = np.zeros(36, int)
    for f, (epoch, batch, j, mask) in zip(frames, sampled):
        assert (f['epoch'], f['batch'], f['j']) == (epoch, batch, j)
        assert np.array_equal(f['state'] == 3, mask[0])
        total += mask[0]
        assert np.array_equal(f['times'], total) and (f['age'][mask[0]] == 0).all()
        before = np.any([m[0] for e, b, i, m in sampled if (e, b) == (epoch, batch) and i < j] or [np.zeros(36, bool)], 0)
        assert np.array_equal(f['state'] == 2, before & ~mask[0])
    assert sum(f['loss'] for f in frames) > 0 and [f['loss'] for f in frames] == pytest.approx([r[3] for r in run.trace.inner if r[1] == frames[0]['batch']], rel=1e-5)


def test_z_lies_as_the_image_lies():
    "One bright patch off the diagonal: its cell stands out, in the same place."
    grid, images = PatchGrid(48, 8), torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    images[0, :, 8:16, 32:40] = 255
    watch = FrameRecorder()
    watch.limiter.due = lambda: True
    run = Trainer(tiny(grid), PatchGD(CoverSampler(1 / 4)), [(images, torch.tensor([1]))], epochs=1, callbacks=[watch], progress=False).fit()
    norms = run.trace.frames[-1]['norm'].astype(float)
    odd = np.abs(norms - np.median(norms)).argmax()
    assert grid.cell(odd) == (1, 4)


def test_a_frame_of_a_trace_survives_the_disk(tmp_path):
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [PatchGDDashboard('static')], checkpoint=tmp_path)
    again = Trace.load(run.checkpoints.load().folder / 'trace.npz')
    assert len(again.frames) == len(run.trace.frames) > 0 and again.pictures == run.trace.pictures
    for a, b in zip(run.trace.frames, again.frames): assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_view_that_fails_is_said_and_training_goes_on():
    class Broken(PatchGDDashboard):
        def open(self):
            super().open()
            self.player.show = self.gone
        def gone(self, i): raise OSError('the page is gone')
        def draw_numbers(self): raise RuntimeError('no curves')
    dash = Broken('widgets')
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash])
    assert run.epoch == 2 and {'OSError: the page is gone', 'RuntimeError: no curves'} <= set(dash.errors) and 'training goes on' in dash.player.alert.value
    assert torch.equal(weights(run), weights(train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)))))


def test_frames_cost_a_small_share_of_the_time():
    "By the clock of the limiter itself: after the first, no frame is due while one more would not fit into the share."
    watch = RateLimiter(share=.1, every=0)
    assert watch.due()
    watch.run(lambda: time.sleep(.01))
    assert watch.due()
    watch.run(lambda: time.sleep(.05))
    assert not watch.due()
    time.sleep(.2); assert not watch.due()
    time.sleep(1.4); assert watch.due()
    watch.steps = 10          # fast inner iterations: their share is that of 50 ms each, not enough yet for a second frame
    assert not watch.due()
    watch.steps = 30
    assert watch.due()


def test_frames_leave_time_for_the_curves():
    "Where frames have spent the whole share, curves are drawn all the same, and then rest for as long as they cost."
    dash, drawn = PatchGDDashboard('widgets', share=.1), []
    def draw(): drawn.append(1); time.sleep(.05)
    dash.recorder.limiter.affordable, dash.draw_numbers = lambda: False, draw
    train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash])
    assert drawn and 1 <= dash.rested - dash.drawn < 5 and dash.recorder.limiter.spent >= .05


@pytest.mark.parametrize('head', ['smaller', 'original'])
def test_contributions_leave_the_model_as_it_was(head):
    grid = PatchGrid(64, 8)
    model = PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(192, 16)), grid, 3, 16, head).train()
    z, before = torch.randn(1, 16, 8, 8), [b.clone() for b in model.buffers()]
    state = torch.get_rng_state()
    share, winner = contributions(model, z)
    assert share.shape == (64,) and all(p.grad is None for p in model.parameters()) and model.head.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers())) and torch.equal(state, torch.get_rng_state())


def test_colours_are_still_where_z_is_still():
    z, colours = torch.randn(100, 16) @ torch.diag(torch.linspace(3, .1, 16)), ZColours()
    first = colours(z)
    for _ in range(20): last = colours(z + .01 * torch.randn_like(z))
    assert (first - last).abs().mean() < .1 * first.abs().mean()
    assert ZColours()(torch.randn(5, 2)).shape == (5, 3) and ZColours()(torch.zeros(4, 8)).isfinite().all()


def test_another_view_is_refused():
    with pytest.raises(ValueError, match='movie'): choose_view('movie')
    with pytest.raises(ValueError, match='no frames'): replay(Trace())
    assert choose_view() == 'text'      # pytest is neither a page nor a notebook


def test_without_a_page_pictures_and_lines_stay(tmp_path):
    "papermill: static pictures in the executed notebook, a line per epoch, what `auto` chose, and no widget views."
    import subprocess, sys
    run = subprocess.run([Path(sys.executable).parent / 'papermill', TOP / 'nbs/dashboard/live.ipynb', tmp_path / 'out.ipynb', '--no-progress-bar', '-p', 'epochs', '2'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    outputs = [o for c in nbformat.read(tmp_path / 'out.ipynb', 4).cells for o in c.get('outputs', [])]
    text = ''.join(o.get('text', '') for o in outputs)
    assert "view='auto' chose 'static'" in text and 'epoch 2: loss' in text
    assert sum('image/png' in o.get('data', {}) for o in outputs) >= 4
    assert not any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for o in outputs)


SPY = '''
import json as _json, threading as _threading, time as _time
_count, _last = [0], {}
_inner = PatchGDDashboard.on_inner
def _on_inner(self, trainer, j, loss, cells, Z):
    _count[0] += 1
    if trainer.checkpoints: _last.update(j=j, batch=trainer.batch, epoch=trainer.epoch, loss=float(loss), sampled=int((cells[:, 0] == 0).sum()), content=int((trainer.current.content[0] > 0).sum()), folder=str(trainer.checkpoints.folder))
    _inner(self, trainer, j, loss, cells, Z)
PatchGDDashboard.on_inner = _on_inner
def _spy():
    while True:
        d, r = globals().get('dash'), globals().get('replayed')
        state = dict(_last, inner=_count[0], frames=len(d.trainer.trace.frames) if d and d.trainer else 0, fraction=d.trainer.strategy.sampler.fraction if d and d.trainer else None, accumulate=d.trainer.strategy.accumulate if d and d.trainer else None,
                     pointed=d.player.page.pointed if d and d.player else None, about=d.player.page.about if d and d.player else '', stop=bool(d and d.trainer and d.trainer.stop), errors=d.errors if d else [],
                     shown=[r.shown['epoch'], r.shown['batch'], r.shown['j']] if r else None)
        open('state.part', 'w').write(_json.dumps(state)); __import__('os').replace('state.part', 'state.json')
        _time.sleep(.03)
_threading.Thread(target=_spy, daemon=True).start()
'''


@pytest.mark.browser
def test_in_jupyterlab_while_it_trains(lab, page):
    nb = nbformat.read(TOP / 'nbs/dashboard/live.ipynb', 4)
    for c in nb.cells: c.outputs = [] if c.cell_type == 'code' else c.get('outputs')
    where = next(i for i, c in enumerate(nb.cells) if 'parameters' in c.metadata.get('tags', []))
    nb.cells[where].source = 'epochs = 1000'
    nb.cells.insert(where, nbformat.v4.new_code_cell(SPY))
    for c in nb.cells:
        if c.cell_type == 'markdown': c.pop('outputs', None)
    nbformat.write(nb, lab.root / 'dash.ipynb')
    def state(): return json.loads((lab.root / 'state.json').read_text())
    def until(condition, seconds=30, what=''):
        for _ in range(int(seconds / .05)):
            if condition(): return
            time.sleep(.05)
        raise AssertionError(f'{what}: {state()}')
    def button(name): return page.locator('button.jupyter-button', has_text=name).first
    lab.open(page, 'dash.ipynb')
    lab.start(page)
    view = page.locator('.patchgd-view').first
    view.locator('canvas.image').wait_for(timeout=120_000)
    view.scroll_into_view_if_needed()
    pixels = lambda v=view, which='image': v.locator(f'canvas.{which}').evaluate('c => c.toDataURL()')
    # the picture changes while training runs
    first = pixels()
    until(lambda: pixels() != first, 60, 'the canvas does not change')
    # pause: nothing moves
    button('Pause').click()
    button('Resume').wait_for()
    time.sleep(1.)
    held = state()
    time.sleep(1.)
    assert state()['inner'] == held['inner'] and state()['loss'] == held['loss']
    # step: exactly one inner iteration more, three times; the picture follows
    for n in (1, 2, 3):
        before = pixels()
        button('Inner step').click()
        until(lambda: state()['inner'] == held['inner'] + n, 20, 'no step')
        time.sleep(.4)
        assert state()['inner'] == held['inner'] + n
    # one batch: to its end, not further
    here = state()
    button('Batch').click()
    until(lambda: state()['inner'] > here['inner'] or here['j'] == 3, 20, 'no batch')
    time.sleep(2.)
    there = state()
    assert (there['epoch'], there['batch']) == (here['epoch'], here['batch']) and there['j'] == 3
    # pointing: Python knows the cell, and says its row and column
    view.locator('canvas.image').hover(position={'x': 5, 'y': 5})
    until(lambda: state()['pointed'] == 0, 10, 'pointing')
    view.locator('canvas.z').focus()
    for key in ('ArrowRight', 'ArrowDown', 'ArrowRight'): page.keyboard.press(key)
    until(lambda: state()['pointed'] == 18 and 'row 1, column 2' in state()['about'], 10, 'arrow keys')
    until(lambda: 'row 1, column 2' in view.locator('.about').inner_text(), 10, 'the text of the cell')
    # Z shows something else
    before = pixels(which='z')
    page.get_by_label('Z shows').first.select_option('age')
    until(lambda: pixels(which='z') != before and 'age' in view.locator('.right').inner_text(), 10, 'choice')
    # resume, and another fraction: the next batch follows
    button('Resume').click()
    until(lambda: state()['inner'] > there['inner'] + 4, 30, 'no resume')
    assert state()['sampled'] == -(-state()['content'] // 4) or state()['j'] == 3
    readout = page.locator('.widget-slider', has_text='Fraction').locator('.widget-readout').first
    readout.fill('0.5'); readout.press('Enter')
    until(lambda: state()['fraction'] == .5, 10, 'fraction')
    at = state()
    until(lambda: (state()['epoch'], state()['batch']) > (at['epoch'], at['batch']) and abs(state()['sampled'] - state()['content'] / 2) <= 1 and state()['j'] == 1, 30, 'sampled count')
    box = page.locator('.widget-text', has_text='Accumulate').locator('input').first
    box.fill('1'); box.press('Enter')
    until(lambda: state()['accumulate'] == 1, 10, 'accumulate')
    # stop: a checkpoint, and the next cells run
    button('Stop').click()
    until(lambda: state()['stop'], 20, 'stop')
    assert lab.finished(page) == []
    assert Checkpoints(state()['folder']).load() and not state()['errors'] and state()['epoch'] < 999
    # play back: the slider goes to the first frame, the picture with it
    again = page.locator('.patchgd-view').last
    again.scroll_into_view_if_needed()
    newest = pixels(again)
    handle = page.locator('.widget-slider', has_text='Go back').last.locator('.noUi-handle')
    handle.focus()
    page.keyboard.press('Home')
    until(lambda: state()['shown'] is not None and pixels(again) != newest, 20, 'slider')
    assert state()['shown'] < [state()['epoch'], state()['batch'], state()['j']]


def notebook(*cells): return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata={'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}})


TRAIN = '''
import time, torch
from patchgd_nb.dashboard.live import PatchGDDashboard
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import PatchGD
from patchgd_nb.training.callback import Callback
from patchgd_nb.trainer import Trainer
def train(dash, size, epochs, *more):
    torch.manual_seed(0)
    data = [(torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8), torch.tensor([0, 1]))] * 4
    model = PatchModel('test_resnet', PatchGrid(size, 16), 2, latent_dim=16, head='smaller')
    return Trainer(model, PatchGD(CoverSampler(1/4)), data, epochs=epochs, callbacks=[dash, *more], device='cpu', progress=False).fit()
'''


def test_a_broken_connection_is_no_harm(monkeypatch):
    "Every message to the page fails, the one that would say so included; the weights are those of a run without a view."
    from ipywidgets import Widget
    def gone(self, *args, **kwargs): raise OSError('the connection is gone')
    dash, alone = PatchGDDashboard('widgets'), train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)))
    dash.recorder.limiter.due = lambda: True
    opened = dash.open
    def then_broken():
        opened()
        monkeypatch.setattr(Widget, 'send_state', gone)
        monkeypatch.setattr(Widget, 'notify_change', gone)
    dash.open = then_broken
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash])
    assert run.epoch == 2 and 'OSError: the connection is gone' in dash.errors and torch.equal(weights(run), weights(alone))


def test_a_view_that_cannot_open_is_no_harm(monkeypatch):
    monkeypatch.setattr('patchgd_nb.dashboard.player.PatchView', None)
    dash = PatchGDDashboard('widgets')
    assert train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash]).epoch == 2 and dash.errors and dash.controls is None


@pytest.mark.parametrize('strategy', [lambda: PatchGD(CoverSampler(1 / 4)), lambda: GradientDescent()])
def test_gauges_say_where_the_run_is(strategy):
    dash, said = PatchGDDashboard('widgets', budget=1e-3), []
    dash.recorder.limiter.due = dash.recorder.limiter.affordable = lambda: True
    dash.draw_numbers_if_due = lambda seconds: (dash.draw_numbers(), said.append(dash.player.progress.value))
    run = train(PatchGrid(48, 8), strategy(), [dash])
    assert 'epoch 1 of 2' in said[0] and 'batch 3 of 3' in said[2] and 'left' in said[0] and not dash.errors
    if run.trace.frames: assert 'inner iteration 4 of 4' in said[0] and 'exceeded' in said[0] and 'finished after 2 epochs' in dash.player.progress.value


def test_a_pause_is_no_training_time():
    class Hand(PatchGDDashboard):
        def on_batch_end(self, trainer, result):
            if trainer.epoch == 0: self.controls.delay.value = .2 if trainer.batch < 2 else 0
            super().on_batch_end(trainer, result)
    began = time.time()
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [Hand('widgets')])
    assert time.time() - began > .8 + run.seconds


def test_a_player_needs_nothing_but_the_trace():
    "A hand on the slider ends following; patches come from the small picture; where the frame lies is said."
    watch = FrameRecorder('im5')
    watch.limiter.due = lambda: True
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [watch])
    player = FramePlayer(run.trace)
    player.show_last()
    player.page.pointed = 8
    assert 'row 1, column 2' in player.page.about and 'small picture' in player.page.about and player.page.patch
    player.slider.value = 0
    assert player.shown is run.trace.frames[0] and not player.follow.value and 'epoch 1, batch 2' in player.progress.value
    player.show_last()
    assert player.shown is run.trace.frames[0] and player.slider.max == len(run.trace.frames) - 1 and not player.errors
    player.page.pointed = 36      # outside of the frame: nothing is said of it
    assert 'row 1, column 2' in player.page.about


def test_a_cell_is_read_at_full_resolution_while_it_trains():
    dash, seen = PatchGDDashboard('widgets'), []
    dash.recorder.limiter.due = lambda: True
    def point(seconds):
        dash.player.page.pointed = -1
        dash.player.page.pointed = 8
        seen.append(dash.player.page.about)
    dash.draw_numbers_if_due = point
    train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash])
    assert 'row 1, column 2' in seen[0] and '8 x 8 pixels' in seen[0] and not dash.errors


@pytest.mark.parametrize('shape', [(1, 40), (40, 1), (8, 4)])
def test_what_the_page_gets_fits_the_frame(shape):
    K = shape[0] * shape[1]
    frame = dict(epoch=0, batch=0, j=0, loss=1., name='a', label=0, winner=0, rows=shape[0], cols=shape[1], factor=1, state=np.full(K, 3, np.uint8), times=np.arange(K), age=np.zeros(K, int),
                 colours=np.zeros((3, K)), norm=np.ones(K), channel=np.ones(K), share=np.zeros(K))
    drawn = frame_message(frame, 'times')
    assert drawn['max'] == dict(times=K - 1, age=0) and drawn['times'][-1] == 255 and set(drawn['age']) == {0}


@pytest.mark.browser
def test_large_grids_are_drawn_smooth_and_larger_ones_coarser(lab, page):
    "64 x 64 cells: every frame that is sent is drawn, in a few milliseconds; 96 x 96 cells are put together, and it is said."
    code = TRAIN + '''
import numpy as np
from patchgd_nb.dashboard.view import PatchView, frame_message
def frame(n): return dict(epoch=0, batch=0, j=0, loss=1., name='a', label=0, winner=0, rows=n, cols=n, factor=1, state=np.random.randint(0, 4, n * n).astype(np.uint8), times=np.arange(n * n), age=np.arange(n * n) % 9,
    colours=np.random.randn(3, n * n), norm=np.ones(n * n), channel=np.ones(n * n), share=np.random.randn(n * n))
view = PatchView()
display(view)'''
    feed = "time.sleep(2)\nfor i in range(40): view.frame = frame_message(frame(64), 'share'); time.sleep(.1)"
    coarse = '''
dash, data = PatchGDDashboard('widgets'), [(torch.randint(0, 255, (1, 3, 384, 384), dtype=torch.uint8), torch.tensor([0]))]
model = PatchModel(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 16)), PatchGrid(384, 4), 2, 16, 'smaller')
run = Trainer(model, PatchGD(CoverSampler(1/4)), data, epochs=1, callbacks=[dash], device='cpu', progress=False).fit()
assert dash.player.page.frame['rows'] == 48 and run.trace.frames[-1]['factor'] == 2'''
    nbformat.write(notebook(code, feed, coarse), lab.root / 'large.ipynb')
    lab.open(page, 'large.ipynb')
    lab.start(page)
    assert lab.finished(page) == []
    view = page.locator('.patchgd-view')
    page.wait_for_timeout(1000)
    drawn, ms = (float(view.first.evaluate(f'e => e.dataset.{k}')) for k in ('drawn', 'ms'))
    assert drawn >= 38 and ms < 100, (drawn, ms)
    assert 'drawn coarser: 2 x 2 patches to a cell' in view.last.locator('.left').inner_text()


@pytest.mark.browser
def test_a_failing_view_and_a_closed_tab(lab, page):
    "The error is shown under the view; and when the tab is closed in the middle, training goes on to its end."
    code = TRAIN + '''
class Broken(PatchGDDashboard):
    def open(self):
        super().open()
        self.player.show = self.fail
    def fail(self, i): raise OSError('no picture <today>')
train(Broken('widgets'), 128, 1)'''
    long = '''
class Slow(Callback):
    def on_inner(self, trainer, *args):
        time.sleep(.1); open('count', 'w').write(str(len(trainer.trace.inner)))
run = train(PatchGDDashboard('widgets'), 128, 12, Slow())
open('finished', 'w').write(f'{run.epoch} {run.callbacks[0].errors}')'''
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


@pytest.mark.browser
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
        button = lambda name: page.locator('button.jupyter-button', has_text=name).first
        button('Train').click(timeout=90_000)
        canvas = page.locator('.patchgd-view canvas.image').first
        canvas.wait_for(timeout=60_000)
        first = canvas.evaluate('c => c.toDataURL()')
        until(lambda: canvas.evaluate('c => c.toDataURL()') != first)
        until(lambda: page.locator('.js-plotly-plot').count() and page.locator('.js-plotly-plot').evaluate('e => e.data?.[0]?.x?.length ?? 0') > 3)
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
