"The dashboard without a browser: what it records, remembers, says and writes, and never in the way of training."
import json, os, subprocess, sys, time
from pathlib import Path
import nbformat, numpy as np, pytest, torch
from hypothesis import given, strategies as st
from torch import nn
from patchgd_nb import watch
from patchgd_nb.training.callback import Callback
from patchgd_nb.training.frame_store import FrameStore, frame_bytes
from patchgd_nb.training.trace import Trace
from patchgd_nb.training.zbank import ZBank
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler, UniformSampler
from patchgd_nb.strategy import CarryPatchGD, ExactPatchGD, GradientDescent, PatchGD
from patchgd_nb.trainer import Trainer
from patchgd_nb.training.controls import Controls
from patchgd_nb.dashboard.door import RunDoor, send_command, status_of
from patchgd_nb.dashboard.frames import LAYERS, MAX_CELLS, cell_colours, cell_latents, contributions, fit_colours, pack_frame, unpack_frame
from patchgd_nb.dashboard.live import PatchGDDashboard
from patchgd_nb.dashboard.paper import plot_run, plot_strip, run_film
from patchgd_nb.dashboard.player import Replay, replay, replay_data, run_html
from patchgd_nb.dashboard.recorder import FrameRecorder, RateLimiter
from patchgd_nb.dashboard.view import choose_view

TOP = Path(__file__).resolve().parent.parent


def tiny(grid, classes=3, norm=False): return PatchModel(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8), *([nn.BatchNorm1d(8)] if norm else [])), grid, classes, 8, 'smaller')


def batches(grid, n=3, size=4, blank=True):
    images = torch.randint(0, 255, (n * size, 3, *grid.image_size), dtype=torch.uint8)
    content = (torch.rand(n * size, len(grid)) > .4).float() if blank else None
    return [(images[i:i + size], torch.arange(size) % 3, content[i:i + size] if blank else None, [f'im{k}' for k in range(i, i + size)]) for i in range(0, n * size, size)]


def train(grid, strategy, callbacks=(), epochs=2, **kwargs):
    torch.manual_seed(1)
    model = tiny(grid, norm=True)
    data = batches(grid)
    return Trainer(model, strategy, data, data, epochs=epochs, callbacks=callbacks, device='cpu', progress=False, **kwargs).fit()


def shown(**kwargs):
    "A dashboard with a page, as if it were displayed."
    dash = PatchGDDashboard('widgets', **kwargs)
    dash.place()
    dash.numbers.due = lambda: True
    return dash


def weights(run): return torch.cat([p.detach().flatten() for p in run.model.parameters()])


STRATEGIES = [lambda: PatchGD(CoverSampler(1 / 4)), lambda: PatchGD(UniformSampler(1 / 2), inner_steps=3), lambda: ExactPatchGD(chunk=3), lambda: GradientDescent()]


@pytest.mark.parametrize('strategy', STRATEGIES)
@pytest.mark.parametrize('view', ['static', 'text', 'off', 'widgets'])
def test_looking_changes_nothing(strategy, view):
    "The same weights to the bit, whatever the view; a frame of every inner iteration costs no random number."
    grid = PatchGrid(48, 8)
    dash = PatchGDDashboard(view)
    dash.recorder.limiter.due = lambda: True
    a, b = train(grid, strategy()), train(grid, strategy(), [dash])
    assert torch.equal(weights(a), weights(b)) and not dash.errors
    assert all(torch.equal(x, y) for x, y in zip(a.model.buffers(), b.model.buffers()))
    assert (len(b.trace.frames) > 0) == (view != 'off')


@pytest.mark.parametrize('image, patch', [((48, 48), 8), ((64, 32), 8), ((144, 144), 1), ((60,), 4), ((8, 8, 8), 4)])
def test_any_grid_has_frames(image, patch):
    grid = PatchGrid(image, patch)
    dims = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[grid.ndim](1)
    model = PatchModel(nn.Sequential(dims, nn.Flatten(), nn.Linear(3, 8)), grid, 3, 8, nn.Sequential(nn.Flatten(), nn.Linear(8 * len(grid), 3)))
    dash = PatchGDDashboard('static')
    run = Trainer(model, PatchGD(CoverSampler(1 / 2)), [(torch.randint(0, 255, (2, 3, *image), dtype=torch.uint8), torch.tensor([0, 1]))], epochs=1, callbacks=[dash], progress=False).fit()
    f = run.trace.frames[-1]
    assert not dash.errors and len(f['state']) == f['rows'] * f['cols'] and max(f['rows'], f['cols']) <= MAX_CELLS
    assert (f['factor'] > 1) == (max(grid.shape) > MAX_CELLS)
    again = unpack_frame(*pack_frame(f))
    assert all(np.array_equal(again[k], f[k]) for k in LAYERS)
    plot_run(run.trace), plot_strip(run.trace)


def test_a_frame_says_what_happened():
    grid = PatchGrid(48, 8)
    recorder = FrameRecorder('im5')
    recorder.limiter.due = lambda: True
    run = train(grid, PatchGD(CoverSampler(1 / 4)), [recorder])
    frames, sampled = list(run.trace.frames), run.trace.samples('im5')
    assert {f['name'] for f in frames} == {'im5'} and len(frames) == len(sampled)
    total = np.zeros(36, int)
    for f, (epoch, batch, j, mask) in zip(frames, sampled):
        assert (f['epoch'], f['batch'], f['j']) == (epoch, batch, j)
        assert np.array_equal(f['state'] == 4, mask[0])
        total += mask[0]
        assert np.array_equal(f['times'], total) and (f['age'][mask[0]] == 0).all()
        before = np.any([m[0] for e, b, i, m in sampled if (e, b) == (epoch, batch) and i < j] or [np.zeros(36, bool)], 0)
        assert np.array_equal(f['state'] == 3, before & ~mask[0]) and not (f['state'] == 2).any()
    rows = [(i, r) for i, r in enumerate(run.trace.inner) if r[1] == frames[0]['batch']]
    assert [f['place'] for f in frames] == [i for i, _ in rows] and [f['loss'] for f in frames] == pytest.approx([r[3] for _, r in rows], rel=1e-5)


def test_cells_that_were_carried_are_said_to_be(tmp_path):
    "CarryPatchGD, second epoch: what this batch neither filled nor sampled is carried, with its age."
    recorder = FrameRecorder('im5')
    recorder.limiter.due = lambda: True
    run = train(PatchGrid(48, 8), CarryPatchGD(CoverSampler(1 / 8), ZBank(tmp_path), inner_steps=2), [recorder], epochs=3)
    first, last = [f for f in run.trace.frames if f['epoch'] == 0], run.trace.frames[-1]
    assert not any((f['state'] == 2).any() for f in first)
    carried = last['state'] == 2
    assert carried.sum() > 3 and (last['age'][carried] > 2).all() and (last['age'][last['state'] > 2] <= 1).all()


def test_a_whole_image_has_its_score():
    dash = shown()
    run = train(PatchGrid(48, 8), GradientDescent(), [dash])
    f = run.trace.frames[-1]
    assert f['whole'] and f['place'] == len(run.trace.inner) - 1 and f['true'] == '0' and 0 < f['probability'] <= 1
    assert dash.page.about['whole'] and dash.page.frame['head']['id'] == f['id'] and run.trace.pictures
    plot_run(run.trace)


def test_z_lies_as_the_image_lies():
    "One bright patch off the diagonal: its cell stands out, in the same place."
    grid, images = PatchGrid(48, 8), torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    images[0, :, 8:16, 32:40] = 255
    recorder = FrameRecorder()
    run = Trainer(tiny(grid), PatchGD(CoverSampler(1 / 4)), [(images, torch.tensor([1]))], epochs=1, callbacks=[recorder], progress=False).fit()
    frame = run.trace.frames[-1]
    for values in (frame['norm'], cell_latents(frame)[:, 0]):
        assert grid.cell(np.abs(values - np.median(values)).argmax()) == (1, 4)


@given(st.lists(st.booleans(), min_size=2, max_size=120), st.integers(4, 30), st.integers(1, 9))
def test_frames_span_the_run(held, room, batch):
    "The first batch as far as there is room, the last always, in their order, each with its own number; never more than there is room for."
    store = FrameStore(max_frames=room)
    for place, h in enumerate(held): store.add(dict(place=place, epoch=0, batch=place // batch, j=place % batch, held=h))
    places, ids = [f['place'] for f in store], [f['id'] for f in store]
    assert len(store) <= room and places[0] == 0 and places[-1] == len(held) - 1 and places == sorted(set(places)) == ids
    kept = [p for p in range(len(held)) if p < batch or held[p]]
    if len(kept) < room // 2: assert set(kept) <= set(places)
    if not any(held) and batch < room // 2 and len(held) > room:   # the gaps between the others differ little
        gaps = np.diff(places[min(batch, len(places)) - 1:])
        assert gaps.max() <= 4 * max(1, np.ceil((len(held) - batch) / (room - batch)))


def test_a_first_batch_of_large_frames_leaves_room():
    "Where bytes are the limit, too, half of the frames are of the rest of the run."
    store = FrameStore(max_bytes=50_000)
    for place in range(1000): store.add(dict(place=place, epoch=0, batch=place // 100, state=np.zeros(500, np.uint8)))
    places = [f['place'] for f in store]
    assert sum(p >= 100 for p in places) >= len(store) // 2 - 1 and max(np.diff([p for p in places if p >= 100])) < 200


def test_memory_of_a_trace_is_bounded(tmp_path):
    "Large grids, an own picture for each frame, many samples: in memory and on the disk below 20 MB."
    trace, rng = Trace(), np.random.default_rng(0)
    noise = [rng.integers(0, 256, 60_000, np.uint8).tobytes() for _ in range(16)]
    for place in range(1500):
        layers = {k: rng.integers(0, 9, 4096).astype(kind) for k, (_, kind) in LAYERS.items()}
        layers['latent'] = rng.integers(-127, 127, (4096, 16)).astype(np.int8)
        frame = dict(epoch=place // 100, batch=place % 100, j=0, place=place, name=f'im{place}', **layers)
        trace.add_frame(frame, noise[place % 16])
        trace.add_batch(place // 100, place % 100, [1.], 1e-3, place, np.ones((1, 8, 4096), bool), shape=(64, 64))
    frames = trace.frames
    held = sum(map(frame_bytes, frames)) + sum(map(len, trace.pictures.values())) + sum(s[-1].nbytes for s in trace.sampled)
    assert held < 20e6 and frames[0]['place'] == 0 and frames[-1]['place'] == 1499 and trace.pictures.keys() <= {f['name'] for f in frames}
    trace.save(tmp_path / 'trace.npz')
    assert (tmp_path / 'trace.npz').stat().st_size < 20e6 and len(Trace.load(tmp_path / 'trace.npz').frames) == len(frames)


def test_a_trace_of_the_version_before_is_read(tmp_path):
    "Its frames were of another kind: they are left out, all the rest is there."
    from patchgd_nb.training.trace import trace_from_arrays, trace_to_arrays
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [PatchGDDashboard('text')])
    header, arrays = trace_to_arrays(run.trace)
    del header['frame_limits']
    old = trace_from_arrays(header | dict(version=3, keep_frames=120), arrays)
    assert old.inner == run.trace.inner and old.epochs == run.trace.epochs and not old.frames and not old.pictures


def test_a_frame_of_a_trace_survives_the_disk(tmp_path):
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [PatchGDDashboard('static')], checkpoint=tmp_path)
    again = Trace.load(run.checkpoints.load().folder / 'trace.npz')
    assert len(again.frames) > 0 and again.pictures == {k: run.trace.pictures[k] for k in again.pictures}
    for b in again.frames:
        a = run.trace.frames.find(b['id'])
        assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_the_last_state_is_a_frame():
    "Though none was due: of the watched image, as its last batch left it."
    dash = shown(watch='im2')
    dash.recorder.limiter.due = lambda: False
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash], epochs=4)
    frames, rows = run.trace.frames, [i for i, r in enumerate(run.trace.inner) if r[1] == 0]
    assert frames[-1]['place'] == rows[-1] and dash.page.frame['head']['place'] == rows[-1]
    assert [f['place'] for f in frames if f['epoch'] == 0] == [0, 1, 2, 3]     # the first batch whole


@pytest.mark.parametrize('setting', [dict(delay=.02), dict(paused=True, steps=10**6)])
def test_every_step_is_a_frame_for_somebody_who_steps(setting):
    "Slowed down, or inner iteration by inner iteration."
    dash = shown(watch='im2')
    dash.recorder.limiter.due = lambda: False
    for name, value in setting.items(): setattr(dash.controls, name, value)
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash], epochs=3)
    assert [f['place'] for f in run.trace.frames] == [i for i, r in enumerate(run.trace.inner) if r[1] == 0]
    assert [row[0] for row in dash.page.index] == [f['id'] for f in run.trace.frames]


def test_frames_cost_a_small_share_of_the_time():
    "By the clock of the limiter itself: after the first, no frame is due while one more would not fit into the share."
    limiter = RateLimiter(share=.1, every=0, lively=0)
    assert limiter.due()
    limiter.run(lambda: time.sleep(.01))
    assert limiter.due()
    limiter.run(lambda: time.sleep(.05))
    assert not limiter.due()
    time.sleep(.2); assert not limiter.due()
    time.sleep(1.4); assert limiter.due()


def test_it_is_lively_at_first_and_under_the_hand(monkeypatch):
    "On a clock of its own: five a second in the first 20 seconds, whatever they cost, then what the share allows; again after a touch; in five minutes all is paid back."
    now = [100.]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    limiter, times = RateLimiter(share=.02), []
    def frame():
        now[0] += .03
        times.append(now[0])
    def pass_time(seconds):
        for _ in range(int(seconds / .05)):
            now[0] += .05
            if limiter.due(): limiter.run(frame)
        return now[0]
    pass_time(20)
    first = [t for t in times if t <= limiter.lively_until]
    assert 60 <= len(first) <= 100 and max(np.diff(first)) <= .35
    n = len(times); pass_time(60); quiet = len(times) - n
    assert 0 < quiet <= 60 * .02 / .03 + 1
    limiter.touch(); n = len(times); pass_time(5)
    assert len(times) - n >= 15
    pass_time(400)
    assert limiter.spent <= .02 * (now[0] - limiter.start) + .03


@pytest.mark.parametrize('head', ['smaller', 'original'])
def test_contributions_leave_the_model_as_it_was(head):
    grid = PatchGrid(64, 8)
    model = PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(192, 16)), grid, 3, 16, head).train()
    z, before = torch.randn(1, 16, 8, 8), [b.clone() for b in model.buffers()]
    state = torch.get_rng_state()
    share, winner = contributions(model, z)
    assert share.shape == (64,) and all(p.grad is None for p in model.parameters()) and model.head.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers())) and torch.equal(state, torch.get_rng_state())


def test_colours_mean_the_same_in_all_frames():
    "Equal latents have equal colours, whatever else their frames hold; and latents that differ much differ in colour."
    recorder = FrameRecorder('im5')
    recorder.limiter.due = lambda: True
    frames = list(train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [recorder], epochs=4).trace.frames)
    colours = fit_colours(frames)
    z, rgb = (np.concatenate([f(frame)[frame['state'] > 0] for frame in frames]) for f in (cell_latents, lambda frame: cell_colours(frame, colours)))
    apart = np.linalg.norm(z[:, None] - z[None], axis=-1)
    differ = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)
    assert differ[apart < 1e-6].max() < 1e-5 and differ[apart > np.quantile(apart, .9)].mean() > 2 * differ[apart < np.quantile(apart, .3)].mean()
    assert fit_colours([]) is None and rgb.min() >= 0 and rgb.max() <= 1


def test_another_view_is_refused():
    with pytest.raises(ValueError, match='movie'): choose_view('movie')
    with pytest.raises(ValueError, match='no frames'): replay(Trace())
    assert choose_view() == 'text'      # pytest is neither a page nor a notebook


# ---- one status ----

def said(dash): return dash.page.status['state'], dash.page.status['text']


def test_the_status_is_one():
    dash, seen = shown(), []
    class Look(Callback):
        def on_batch_end(self, trainer, result): seen.append((*said(dash), dash.page.status['epoch'], dash.page.status['batch']))
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash, Look()])
    assert {s[0] for s in seen} == {'training'} and seen[0][2] == 'epoch 1 of 2' and seen[-1][2] == 'epoch 2 of 2'
    assert said(dash)[0] == 'finished' and dash.page.status['epoch'] == 'epoch 2 of 2' and dash.page.status['left'] == '' and run.epoch == 2
    assert dash.page.status['memory']['used'] > 0 and dash.page.status['lr'] is not None


def test_a_failed_run_says_so_and_keeps_its_last_frame():
    class Fails(Callback):
        def on_batch_end(self, trainer, result):
            if trainer.epoch == 1: raise RuntimeError('somebody pulled\nthe plug')
    dash = shown()
    with pytest.raises(RuntimeError): train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash, Fails()])
    assert said(dash) == ('failed', 'failed: RuntimeError: somebody pulled the plug') and dash.page.frame['head']['epoch'] == 1


def test_a_stopped_run_says_so():
    class Stops(Callback):
        def on_batch_end(self, trainer, result): dash.do('stop')
    dash = shown()
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash, Stops()])
    assert said(dash)[0] == 'stopped' and run.progress < 1 and dash.page.status['left'] == ''


def test_a_run_that_was_stopped_goes_on():
    "A further fit: no command of the one before holds."
    class Stops(Callback):
        def on_batch_end(self, trainer, result): (trainer.epoch, trainer.batch) == (0, 2) and (dash.do('pause'), dash.do('stop'))
    dash = PatchGDDashboard('text')
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash, Stops()])
    assert run.progress < 1
    assert run.fit().progress == 1 and not dash.controls.paused


def test_a_misspelt_image_is_said_with_the_nearest_names():
    dash = shown(watch='in5')
    seen = []
    class Look(Callback):
        def on_batch_end(self, trainer, result): seen.append(said(dash))
    train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash, Look()])
    assert seen[-1][0] == 'elsewhere' and "no image is called 'in5'" in seen[-1][1] and 'im5' in seen[-1][1]
    dash = shown(watch='im5')
    seen.clear()
    train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash, Look()])
    assert {s[0] for s in seen} == {'training', 'elsewhere'} and any('im5 is not in this batch' in s[1] for s in seen)


def test_a_page_says_when_it_measures():
    class Look(Callback):
        def on_batch_end(self, trainer, result): seen.append(said(dash))
        def on_epoch_end(self, trainer, metrics): seen.append(said(dash))
    seen, dash = [], shown()
    train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash, Look()], epochs=1)
    assert [s[1] for s in seen[-2:]] == ['measures on the validation images', 'training'], seen


def test_counts_of_a_few_images_are_kept(monkeypatch):
    monkeypatch.setattr(FrameRecorder, 'COUNTED', 3)
    recorder = FrameRecorder()
    train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [recorder])
    assert len(recorder.times) == 3


def test_another_image_can_be_chosen_while_it_runs():
    class Choose(Callback):
        def on_epoch_start(self, trainer):
            if trainer.epoch == 1: dash.page.answer(dict(kind='set', name='watch', value='im9'))
    dash = shown(watch='im5')
    dash.recorder.limiter.due = lambda: True
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash, Choose()])
    assert {(f['epoch'], f['name']) for f in run.trace.frames} == {(0, 'im5'), (1, 'im9')} and dash.page.settings['watch'] == 'im9'
    assert set(dash.page.settings['names']) == {f'im{i}' for i in range(12)} and dash.page.settings['fraction'] == .25


def test_settings_that_make_no_sense_are_refused():
    controls = Controls()
    controls.strategy = PatchGD(CoverSampler(1 / 4))
    for name, value in (('fraction', 0), ('fraction', 2), ('fraction', 'half'), ('accumulate', -1), ('colour', 3)):
        with pytest.raises(ValueError): controls.set(name, value)
    with pytest.raises(ValueError, match='dance'): controls.do('dance')
    assert controls.strategy.sampler.fraction == .25 and not controls.paused


def test_a_pause_is_no_training_time():
    class Hand(Callback):
        def on_batch_end(self, trainer, result): dash.controls.delay = .2 if trainer.epoch == 0 and trainer.batch < 2 else 0.
    dash, began = shown(), time.time()
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [Hand(), dash])
    assert time.time() - began > .8 + run.seconds


# ---- views that fail ----

def test_a_view_that_fails_is_said_and_training_goes_on():
    class Broken(PatchGDDashboard):
        def show_frame(self, frame): raise OSError('the page is gone')
    dash = Broken('widgets')
    dash.place()
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash])
    assert run.epoch == 2 and 'OSError: the page is gone' in dash.errors and 'training goes on: OSError: the page is gone' in dash.page.status['alert']
    assert torch.equal(weights(run), weights(train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)))))


def test_a_broken_connection_is_no_harm(monkeypatch):
    "Every message to the page fails, the one that would say so included; the weights are those of a run without a view."
    from ipywidgets import Widget
    def gone(self, *args, **kwargs): raise OSError('the connection is gone')
    dash, alone = shown(), train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)))
    opened = dash.open
    def then_broken():
        opened()
        monkeypatch.setattr(Widget, 'send_state', gone)
        monkeypatch.setattr(Widget, 'notify_change', gone)
    dash.open = then_broken
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash])
    assert run.epoch == 2 and 'OSError: the connection is gone' in dash.errors and torch.equal(weights(run), weights(alone))


def test_a_view_that_cannot_open_is_no_harm(monkeypatch):
    monkeypatch.setattr('patchgd_nb.dashboard.live.RunPage', None)
    dash = PatchGDDashboard('widgets')
    assert train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash]).epoch == 2 and dash.errors and dash.page is None


# ---- the page ----

def test_a_page_is_answered():
    "Old frames, pictures, patches at full resolution, a film."
    dash, sent = shown(), []
    class Ask(Callback):
        def on_inner(self, trainer, j, loss, cells, Z):
            if len(trainer.trace.inner) == 0 and j == 0:
                dash.page.send = lambda message, buffers=(): sent.append((message, buffers))
                dash.page.answer(dict(kind='pin', id=0, row=1, col=2))
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash, Ask()])
    from io import BytesIO
    from PIL import Image
    message, (png,) = sent[0]
    assert message == dict(kind='patch', id=0, row=1, col=2, source='8 x 8 pixels')
    name = run.trace.frames[0]['name']
    batch = next(b for b in run.train if name in b[3])
    assert np.array_equal(np.asarray(Image.open(BytesIO(png))), batch[0][batch[3].index(name), :, 8:16, 16:24].permute(1, 2, 0).numpy())
    sent.clear()
    dash.page.answer(dict(kind='want', id=10**6))   # no other frame in its place
    assert sent.pop() == (dict(kind='frame'), ())
    for question in (dict(kind='want', id=3), dict(kind='picture', name=name), dict(kind='picture', name='nobody'), dict(kind='gif')): dash.page.answer(question)
    assert sent[0][0]['head']['id'] == 3 and len(sent[0][1][0]) == len(pack_frame(run.trace.frames.find(3))[1])
    assert sent[1][1][0] == run.trace.pictures[name] and sent[2][1] == [] and sent[3][1][0][:4] == b'GIF8'


# ---- the door ----

def test_a_run_is_seen_and_steered_through_its_folder(tmp_path):
    "Another process could do what is done here between two batches: it sees the frames, sets a fraction, pauses, steps and stops."
    seen = []
    class Other(Callback):
        def on_batch_end(self, trainer, result):
            eye = watch(tmp_path)
            seen.append((eye.page.status['state'], len(eye.page.index), eye.page.frame.get('head', {}).get('place')))
            if trainer.epoch == 1: eye.source.set('fraction', .5)
            if trainer.epoch == 2: eye.source.do('stop')
    dash = PatchGDDashboard('text')
    dash.numbers.due = lambda: True
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash, Other()], epochs=50, checkpoint=tmp_path)
    assert not dash.errors and run.strategy.sampler.fraction == .5 and 2 <= run.epoch < 10   # it is looked for 20 times a second
    assert seen[0] == ('training', 4, 3) and watch(tmp_path).page.status['state'] == 'stopped'
    eye = watch(tmp_path)
    assert eye.source.film()[:4] == b'GIF8'
    assert [e[0] for e in eye.page.index] == [f['id'] for f in run.trace.frames] == sorted(int(p.stem) for p in (tmp_path / 'live/frames').iterdir())


def test_odd_commands_do_no_harm(tmp_path):
    door, controls, errors = RunDoor(tmp_path), Controls(), []
    controls.strategy = PatchGD(CoverSampler(1 / 4))
    for i, text in enumerate(['', '[]', '{"kind": "do"}', '{"kind": "do", "what": "dance"}', '{"kind": "set", "name": "fraction", "value": 7}', 'é' * 20_000, '{"kind": "do", "what": "pause"}']):
        (door.commands / f'{i}.json').write_text(text)
    (door.commands / '00.json').mkdir()
    door.take_commands(controls, errors.append, every=0)
    assert controls.paused and len(errors) == 7 and controls.strategy.sampler.fraction == .25
    with pytest.raises(ValueError, match='no command'): send_command(tmp_path, kind='do', what='dance')
    with pytest.raises(ValueError, match='cannot be watched'): watch(tmp_path / 'nowhere')


def test_a_killed_run_is_lost(tmp_path):
    "Its process is gone; a run on another machine that says nothing is not judged by its number."
    dash = PatchGDDashboard('text')
    train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [dash], checkpoint=tmp_path)
    news = watch(tmp_path).source.read()
    running = news | dict(status=news['status'] | dict(state='training'))
    gone = subprocess.Popen([sys.executable, '-c', '']); gone.wait()
    def by(**process): return running | dict(process=news['process'] | process)
    assert status_of(running)['state'] == 'training' and status_of(by(pid=gone.pid))['state'] == 'lost'
    assert status_of(by(process_start='another process has its number'))['state'] == 'lost'
    assert status_of(by(pid=gone.pid, host='elsewhere'))['state'] == 'training'
    assert 'no news for 3 minutes' in status_of(running | dict(time=time.time() - 180))['text']


# ---- replay ----

def test_a_run_in_one_file(tmp_path):
    "All frames, curves and pictures; nothing from a network; a name that looks like markup ends nothing."
    class Named(FrameRecorder):
        def take(self, trainer, moment):
            frame = super().take(trainer, moment)
            frame['name'] = '</script><b>x'
            return frame
    recorder = Named('im5')
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [recorder], checkpoint=tmp_path / 'run')
    page = replay(run.trace).save(tmp_path / 'out/run.html').read_text()
    assert page.count('</script>') == 2 and 'http://' not in page.replace('http://www.w3.org', '') and 'https://' not in page
    data = json.loads(page.split('id="run">')[1].split('</script>')[0])
    assert [f['head']['id'] for f in data['frames']] == [f['id'] for f in run.trace.frames]
    assert replay(tmp_path / 'run').save(tmp_path / 'run.gif').read_bytes()[:4] == b'GIF8' and replay(tmp_path / 'run').save(tmp_path / 'run.png').read_bytes()[1:4] == b'PNG'
    with pytest.raises(ValueError, match='choose .html'): replay(run.trace).save(tmp_path / 'run.mp4')


def test_a_long_run_fits_into_its_file():
    trace, rng = Trace(), np.random.default_rng(0)
    for place in range(300):
        layers = {k: rng.integers(0, 9, 1024).astype(kind) for k, (_, kind) in LAYERS.items()}
        layers['latent'] = rng.integers(-127, 127, (1024, 64)).astype(np.int8)
        head = dict(epoch=place // 10, batch=place % 10, j=0, steps=1, place=place, name='a', loss=1., lr=1e-3, true='1', predicted='1', probability=.5, winner=1, rows=32, cols=32, factor=1, channels=64, z_scale=1., patch=8, whole=False, held=False)
        trace.add_frame(head | layers, b'x' if place == 0 else None)
        trace.add_batch(place // 10, place % 10, [1.], 1e-3, place)
    text = replay_data(trace, {}, {}, 2**20)
    data = json.loads(text)
    assert len(text) <= 2**20 and data['index'][0][0] == 0 and data['index'][-1][4] == 299 and len(data['frames']) >= 5
    assert len(run_html('a <run>', text)) < 2**20 + 200_000 and '<title>a &lt;run&gt;' in run_html('a <run>', text)


def test_a_film_shows_the_run():
    from io import BytesIO
    from PIL import Image
    recorder = FrameRecorder('im5')
    recorder.limiter.due = lambda: True
    run = train(PatchGrid(48, 8), PatchGD(CoverSampler(1 / 4)), [recorder], epochs=6)
    film = Image.open(BytesIO(run_film(run.trace, 10)))
    assert 5 <= film.n_frames <= 10


@pytest.mark.notebooks
@pytest.mark.executes('dashboard/live')
def test_without_a_page_pictures_and_lines_stay(tmp_path):
    "papermill: static pictures and a film in the executed notebook, a line per epoch, what `auto` chose, and no widget views."
    run = subprocess.run([Path(sys.executable).parent / 'papermill', TOP / 'nbs/dashboard/live.ipynb', tmp_path / 'out.ipynb', '--no-progress-bar'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    outputs = [o for c in nbformat.read(tmp_path / 'out.ipynb', 4).cells for o in c.get('outputs', [])]
    text = ''.join(o.get('text', '') for o in outputs)
    assert "view='auto' chose 'static'" in text and 'epoch 2: loss' in text
    pictures = [(kind, o) for o in outputs for kind in o.get('data', {}) if kind.startswith('image')]
    assert [kind for kind, _ in pictures].count('image/gif') == 1 and len(pictures) >= 4
    assert not any('application/vnd.jupyter.widget-view+json' in o.get('data', {}) for o in outputs)
