"A run watched and steered by its folder, from a terminal: any run that has one, in another process."
import io, itertools, json, os, signal, subprocess, sys, time
from pathlib import Path
from threading import Thread
import pytest, torch
from rich.console import Console
from torch import nn
from patchgd_nb.dashboard import PatchGDDashboard, watch
from patchgd_nb.experiment import terminal
from patchgd_nb.experiment.command import main
from patchgd_nb.experiment.steer import ask_run, pause_run, set_value, step_run
from patchgd_nb.experiment.terminal import age_level, describe_run, draw_run, follow_run, sparkline, watch_run
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import ExactPatchGD, GradientDescent, PatchGD
from patchgd_nb.trainer import Trainer
from patchgd_nb.training import run_folder
from patchgd_nb.training.callback import Callback
from patchgd_nb.training.checkpoint import find_checkpoint
from patchgd_nb.training.controls import Controls
from patchgd_nb.training.folder_steering import FolderSteering, with_steering
from patchgd_nb.training.run_folder import RunFolder, find_live, read_status, send_command, status_of

PATCHGD = [Path(sys.executable).parent / 'patchgd']
RUN = '''
import sys, torch
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import PatchGD
from patchgd_nb.trainer import Trainer
torch.set_num_threads(1)
torch.manual_seed(0)
images = torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8)
data = [(images[i:i + 2], torch.tensor([0, 1]), None, [f'slide {i}', f'slide {i + 1}']) for i in (0, 2)]
model = PatchModel('test_resnet', PatchGrid(64, 16), 2, latent_dim=16, head='smaller')
run = Trainer(model, PatchGD(CoverSampler(1/4)), data, data, epochs=int(sys.argv[2]), checkpoint=sys.argv[1], device='cpu', progress=False, schedule=lambda share: 1.).fit(sys.argv[3:] == ['resume'])
print(f'{run.epoch} {run.batch} {len(run.trace.inner)}')
'''


def start(folder, epochs, *more): return subprocess.Popen([sys.executable, '-c', RUN, folder, str(epochs), *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ, OMP_NUM_THREADS='1'))


def until(condition, seconds=60):
    end = time.time() + seconds
    while not (found := condition()):
        assert time.time() < end, 'it did not happen'
        time.sleep(.02)
    return found


def patchgd(*words, timeout=60):
    done = subprocess.run([*PATCHGD, *map(str, words)], capture_output=True, text=True, timeout=timeout)
    assert 'Traceback' not in done.stderr
    return done.returncode, (done.stdout + done.stderr).strip()


def train(folder=None, strategy=None, callbacks=(), epochs=10**6, size=48, image=None, n=2, **options):
    torch.manual_seed(0)
    grid = PatchGrid(image or size, 16 if image is None else 4)
    net = nn.Sequential(nn.Flatten(), nn.LazyLinear(8))
    model = PatchModel(net, grid, 3, 8, 'smaller', in_chans=3) if image is None else PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 ** len(image), 8)), grid, 3, 8, 'smaller')
    data = [(torch.randint(0, 255, (2, 3, *grid.image_size), dtype=torch.uint8), torch.tensor([0, 1]), None, [f'im{2 * i}', f'im{2 * i + 1}']) for i in range(n)]
    return Trainer(model, strategy or PatchGD(CoverSampler(1 / 4)), data, epochs=epochs, callbacks=callbacks, checkpoint=folder, device='cpu', progress=False, **options)


class Slow(Callback):
    "A run that does not write a checkpoint a millisecond."
    def on_inner(self, *args): time.sleep(.02)


@pytest.fixture
def running(tmp_path):
    "Runs in threads of this process, stopped at the end."
    runs = []
    def start(*args, **options):
        run = train(tmp_path, *args, **options)
        thread = Thread(target=run.fit, daemon=True)
        runs.append((run, thread))
        thread.start()
        until(lambda: (tmp_path / 'live/status.json').exists())
        return run
    yield start
    for run, thread in runs:
        for c in run.callbacks:
            if hasattr(c, 'controls'): c.controls.stopping = True
        run.stop = True
        thread.join(30)


@pytest.fixture
def here(monkeypatch, capfd):
    before = signal.getsignal(signal.SIGTERM)
    def call(*args):
        try: code = main([str(a) for a in args])
        except SystemExit as e: code = e.code
        return code, ''.join(capfd.readouterr()).strip()
    yield call
    signal.signal(signal.SIGTERM, before)


# --- from a terminal

def test_a_run_in_another_process_is_watched_paused_stepped_changed_and_stopped(tmp_path):
    "A plain Trainer with a checkpoint folder and nothing else; then it is resumed to its end, where the watcher's exit code is 0."
    folder = tmp_path / 'a'
    run = start(folder, 10**5)
    try:
        until(lambda: (folder / 'live/status.json').exists())
        watcher = subprocess.Popen([*PATCHGD, 'watch', folder, '--every', '.1'], stdout=subprocess.PIPE, text=True)
        code, said = patchgd('pause', folder)
        assert code == 0 and f'{folder} is paused: epoch' in said
        held = read_status(folder / 'live')['status']
        time.sleep(.5)
        assert read_status(folder / 'live')['status'] == held and held['state'] == 'paused'
        code, said = patchgd('step', folder)
        assert code == 0 and f'paused after inner iteration {held["inner"] + 1} of the run' in said
        code, said = patchgd('step', folder, '--batch')
        after = read_status(folder / 'live')
        assert code == 0 and after['status']['inner'] % 4 == 0 and after['curves']['n'] == after['status']['inner']
        code, said = patchgd('set', folder, 'fraction', '1/2')
        assert code == 0 and 'is 0.5 from the next batch on' in said
        assert patchgd('continue', folder)[0] == 0
        until(lambda: read_status(folder / 'live')['status']['inner'] > after['status']['inner'] + 10)
        code, said = patchgd('stop', folder)
        assert code == 0 and 'stops after this batch and writes a checkpoint' in said
        out, _ = run.communicate(timeout=60)
    finally: run.kill()
    assert run.returncode == 0 and 'Stopped after' in out
    lines = watcher.communicate(timeout=30)[0].splitlines()
    assert watcher.returncode == 1 and lines[-1].startswith('stopped after') and any(l.startswith('paused') for l in lines) and 'GiB' in lines[-1]
    epoch, batch, n = map(int, out.split()[-3:])
    state = find_checkpoint(folder, best=False).state
    assert (state['epoch'], state['batch']) == (epoch, batch)
    assert patchgd('pause', folder) == (2, f'patchgd: {folder} has ended ({status_of(read_status(folder / "live"))["text"]}): there is nothing to steer.')
    again = start(folder, epoch + 3, 'resume')
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0 and f'Resumed from e{epoch:04d}' in out and out.split()[-3] == str(epoch + 3), out
    assert patchgd('watch', folder)[0] == 0


def test_a_step_to_the_end_of_a_batch_ends_from_wherever_it_begins(tmp_path, running):
    "Also from the last inner iteration, after which the batch has none; and from the end of a batch, on to the next one."
    running(callbacks=[Slow()], size=64)   # 16 patches, a quarter of them sampled: four inner iterations
    def inner(): return read_status(tmp_path / 'live')['status']['inner']
    pause_run(tmp_path)
    while inner() % 4: step_run(tmp_path)
    for _ in range(3):                     # more than an epoch of two batches
        step_run(tmp_path)                 # into the next batch
        while inner() % 4: step_run(tmp_path)
        last = inner()
        assert f'paused after inner iteration {last} of' in step_run(tmp_path, batch=True)
        assert f'paused after inner iteration {last + 4} of' in step_run(tmp_path, batch=True)
        assert read_status(tmp_path / 'live')['curves']['n'] == last + 4


def test_ctrl_c_ends_the_watching_and_not_the_run(tmp_path, running):
    run = running(callbacks=[Slow()])
    watcher = subprocess.Popen([*PATCHGD, 'watch', tmp_path, '--plain'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = watcher.stdout.readline()
    watcher.send_signal(signal.SIGINT)
    _, said = watcher.communicate(timeout=30)
    assert watcher.returncode == 130 and said == 'patchgd: interrupted.\n' and line.startswith('training, epoch') and not run.stop


def test_what_cannot_be_is_said_in_a_sentence(tmp_path, running, here):
    for words in (['watch', tmp_path], ['pause', tmp_path / 'nothing'], ['set', tmp_path, 'fraction', '.5']):
        code, said = here(*words)
        assert code == 2 and said.startswith('patchgd: ') and 'cannot be watched' in said and '\n' not in said
    run = running(callbacks=[Slow()])
    for name, value, why in (('fraction', '7', 'at most 1'), ('fraction', '0', 'above 0'), ('fraction', '-0.5', 'above 0'), ('fraction', '1/0', 'no number'), ('fraction', 'half', 'no number'), ('accumulate', '-1', '0 (all of a batch) or more'), ('accumulate', '1.5', 'no number'), ('speed', '3', 'cannot be set here')):
        code, said = here('set', tmp_path, name, value)
        assert code == 2 and why in said.splitlines()[-1] and said.count('patchgd: ') == 1, (name, value, said)
    assert run.strategy.sampler.fraction == .25 and here('set', tmp_path, 'watch', 'im1')[0] == 0


@pytest.mark.parametrize('strategy', [ExactPatchGD(chunk=3), GradientDescent()], ids=str)
def test_a_strategy_without_a_sampler_has_no_fraction(tmp_path, running, here, strategy):
    running(strategy=strategy, callbacks=[Slow()])
    code, said = here('set', tmp_path, 'fraction', '.5')
    assert code == 2 and f'{type(strategy).__name__} has no fraction to set: it samples no patches' in said
    assert here('pause', tmp_path)[0] == 0 and here('step', tmp_path)[0] == 0


def test_a_run_that_is_busy_answers_later(tmp_path, here):
    "The command waits in its folder, and is taken; nothing is lost."
    class Long(Callback):
        def on_inner(self, *args): time.sleep(1.5)
    run = train(tmp_path, callbacks=[Long()])
    thread = Thread(target=run.fit, daemon=True)
    thread.start()
    until(lambda: (tmp_path / 'live/status.json').exists())
    code, said = here('stop', tmp_path, '--seconds', '.1')
    assert code == 1 and 'has not answered within 0.1 s (training): the command stays in its folder' in said
    thread.join(30)
    assert run.stop and not thread.is_alive() and here('stop', tmp_path)[0] == 2


# --- any run that has a folder

@pytest.mark.parametrize('view', [None, 'off', 'static', 'text', 'widgets'])
def test_every_run_with_a_folder_is_steered(tmp_path, running, here, view):
    "Whatever its dashboard shows, or without one; by one callback, which is the dashboard where that is on."
    dashboards = [] if view is None else [PatchGDDashboard(view)]
    run = running(callbacks=[*dashboards, Slow()])
    assert sum(getattr(c, 'steers', False) for c in run.callbacks) == 1
    assert any(isinstance(c, FolderSteering) for c in run.callbacks) == (view in (None, 'off'))
    assert here('pause', tmp_path)[0] == 0
    before = read_status(find_live(tmp_path))['status']['inner']
    assert here('step', tmp_path)[0] == 0 and read_status(find_live(tmp_path))['status']['inner'] == before + 1
    assert here('set', tmp_path, 'fraction', '.5')[0] == 0 and run.strategy.sampler.fraction == .5
    seen = watch(tmp_path)
    assert seen.page.status['state'] == 'paused' and seen.page.settings['fraction'] == .5 and seen.page.about['note'].startswith('no pictures') == (view in (None, 'off'))
    cells = read_status(find_live(tmp_path))['cells']
    assert (cells['rows'], cells['cols']) == (3, 3) and '4' in cells['states'] and cells['name'] in ('im0', 'im2')
    assert here('stop', tmp_path)[0] == 0
    until(lambda: status_of(read_status(find_live(tmp_path)))['state'] == 'stopped')


def test_a_strategy_that_calls_nobody_is_steered_between_batches(tmp_path, running, here):
    class Own(PatchGD):
        def step(self, *args, on_inner=None, **options):
            time.sleep(.02)
            return super().step(*args, **options)
    run = running(strategy=Own(CoverSampler(1 / 4)))
    assert here('pause', tmp_path)[0] == 0
    held = len(run.trace.inner)
    time.sleep(.3)
    assert len(run.trace.inner) == held and here('step', tmp_path)[0] == 0 and len(run.trace.inner) == held + 3   # three inner iterations a batch
    assert here('stop', tmp_path)[0] == 0
    until(lambda: status_of(read_status(find_live(tmp_path)))['state'] == 'stopped')


def test_no_folder_no_steering():
    run = train()
    assert not any(getattr(c, 'steers', False) for c in run.callbacks) and with_steering([], None) == []


@pytest.mark.parametrize('image', [(24,), (16, 32), (8, 8, 12)])
def test_any_grid_is_told_of(tmp_path, image):
    run = train(tmp_path, image=image, epochs=2).fit()
    cells = read_status(tmp_path / 'live')['cells']
    assert cells['rows'] * cells['cols'] == len(run.model.grid) == len(cells['states']) == len(cells['ages'])


def test_steering_changes_nothing(tmp_path):
    "The same weights to the bit as without a folder."
    a, b = train(epochs=3).fit(), train(tmp_path, epochs=3).fit()
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters()))


def test_a_folder_that_goes_ends_the_telling_and_not_the_run(tmp_path):
    import shutil
    class Gone(Callback):
        def on_epoch_end(self, trainer, metrics): shutil.rmtree(tmp_path / 'live', ignore_errors=True)
    assert train(tmp_path, callbacks=[Gone()], epochs=4).fit().epoch == 4


def test_one_rank_of_several_speaks_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    train(tmp_path, epochs=1).fit()
    train(tmp_path, callbacks=[PatchGDDashboard('text')], epochs=1).fit()
    assert not (tmp_path / 'live').exists()


# --- what looking costs

@pytest.mark.parametrize('took, share', [(5e-6, .001), (.001, .001), (.1, .001)])
def test_a_look_costs_less_than_a_thousandth(tmp_path, monkeypatch, took, share):
    "Counted by a clock that only looks move, and inner iterations of 10 ms: on a disk, over a network, over a very slow one."
    class Clock:
        now = looking = 0.
        def perf_counter(self): return self.now
    clock, door = Clock(), RunFolder(tmp_path)
    stat = os.stat
    def slow(path, **options):
        if path == door.commands: clock.now, clock.looking = clock.now + took, clock.looking + took
        return stat(path, **options)
    monkeypatch.setattr(run_folder.os, 'stat', slow)
    monkeypatch.setattr(run_folder, 'time', clock)
    door.take_commands(Controls())
    clock.now += 4   # a folder that has just been made is listed for three seconds
    for _ in range(10**5):
        clock.now += .01
        door.take_commands(Controls())
    assert 0 < clock.looking / clock.now < share
    looks = clock.looking / took
    assert looks < clock.now / .05 + 2


def test_a_command_laid_within_the_same_second_is_found(tmp_path):
    "Some file systems count the time of a folder's change in seconds."
    door, controls = RunFolder(tmp_path), Controls()
    for n in range(3):
        (door.commands / f'{n}.json').write_text(json.dumps(dict(kind='set', name='delay', value=n)))
        os.utime(door.commands, (10**9, 10**9))
        door.take_commands(controls, every=0)
        os.utime(door.commands, (10**9, 10**9))
        assert controls.delay == n


# --- what is drawn

STATUS = dict(state='training', text='training', epoch='epoch 2 of 9', batch='batch 1 of 4', left='30 s left', inner=17, progress=.2, lr=1e-3, saved=None, memory=dict(name='GPU memory', used=3.2, peak=3.5, budget=16.))
NEWS = dict(about=dict(title='PatchGD, 4 x 4 patches of 16 pixels'), settings=dict(fraction=.25), status=STATUS, process={}, time=0., answers={},
            cells=dict(name='slide 3', rows=4, cols=4, factor=1, states='0011401122443333', ages=[0, 0, 5, 5, 0, 0, 5, 5, 40, 40, 0, 0, 1, 1, 2, 2]),
            curves=dict(n=16, smooth=[[0, 1, 2], [2., 1.5, 1.]], metrics=dict(qwk=[[7, 15], [.5, .75]])))


def drawn(width, **options):
    page = Console(width=width, file=io.StringIO(), legacy_windows=False, **options)
    page.print(draw_run(NEWS, STATUS, page))
    return page.file.getvalue()


def test_a_run_fits_any_width():
    for width in (60, 80, 200):
        lines = drawn(width, color_system=None).splitlines()
        assert max(map(len, lines)) <= width
        text = '\n'.join(lines)
        for words in ('PatchGD, 4 x 4', 'epoch 2 of 9, batch 1 of 4, 30 s left', '20%', 'inner iteration 17', 'training loss', 'qwk', '0.75', '3.2 GiB', 'slide 3'): assert words in text, (words, text)


def test_cells_have_colours_where_there_are_any_and_letters_elsewhere():
    plain, colours = drawn(80, color_system=None), drawn(80, color_system='truecolor', force_terminal=True)
    assert plain.splitlines()[-4:] == ['  ..     11', '# ..   0 11', '~~##   4400', '++++   1111'] and '\x1b' not in plain
    assert '▀' in colours and '\x1b[' in colours and colours.count('▀') == 8 * 16 * 2
    assert [age_level(a, 40) for a in (0, 1, 10, 11, 21, 31, 40)] == [0, 1, 1, 2, 3, 4, 4]


def test_a_terminal_without_unicode():
    class Old(io.StringIO): encoding = 'ascii'
    page = Console(width=80, file=Old(), color_system=None, legacy_windows=False)
    page.print(draw_run(NEWS, STATUS, page))
    assert page.file.getvalue().isascii()
    assert sparkline([3], ascii_only=True).isascii() and sparkline([float(i) for i in range(99)], 30, True)[-1] == '#'


def test_the_screen_is_drawn_to_the_end_of_the_run(tmp_path, monkeypatch):
    "On a terminal: it is drawn again and again; what is left at the end is the end. A file that cannot be read for a moment is no end."
    live = tmp_path / 'live'
    live.mkdir()
    def write(**status): (live / 'status.json').write_text(json.dumps(NEWS | dict(time=time.time(), status=STATUS | status)))
    steps = itertools.chain([lambda: write(inner=18), lambda: (live / 'status.json').write_text('{'), lambda: write(state='paused', text='paused'), lambda: write(state='failed', text='failed: ValueError: no')])
    write()
    monkeypatch.setattr(terminal.time, 'sleep', lambda seconds: next(steps)())
    page = Console(width=80, file=io.StringIO(), force_terminal=True, legacy_windows=False, color_system='truecolor')
    assert follow_run(tmp_path, page, .1, plain=False) == 1
    text = page.file.getvalue()
    assert 'inner iteration 18' in text and 'paused' in text and text.rindex('failed: ValueError: no') > text.rindex('paused')


def test_the_watching_ends_with_the_experiment(tmp_path, monkeypatch):
    "It trains PatchGD, then a baseline in a folder of its own, then draws its figures: three looks, one end, and its outcome."
    from patchgd_nb.base.lock import this_process
    def record(outcome): (tmp_path / 'run.json').write_text(json.dumps(dict(outcome=outcome, **this_process())))
    def write(name, **status):
        (tmp_path / name / 'live').mkdir(parents=True, exist_ok=True)
        (tmp_path / name / 'live/status.json').write_text(json.dumps(NEWS | dict(time=time.time(), status=STATUS | status)))
        os.utime(tmp_path / name / 'live/status.json', ns=(next(ticks), next(ticks)))
    ticks = itertools.count(time.time_ns(), 10**9)
    for outcome, code in (('finished', 0), ('interrupted', 1)):
        steps = iter([lambda: write('patchgd', state='finished', text='finished: 9 epochs'), lambda: write('whole', text='the baseline'), lambda: write('whole', state='finished', text='finished: 3 epochs'), lambda: record(outcome)])
        record('running')
        write('patchgd')
        monkeypatch.setattr(terminal.time, 'sleep', lambda seconds: next(steps)())
        page = Console(width=80, file=io.StringIO())
        assert follow_run(tmp_path, page, .1, plain=True) == code
        said = [line.partition(',')[0] for line in page.file.getvalue().splitlines()]
        assert said == ['training', 'finished: 9 epochs; the experiment is still at work', 'the baseline', 'finished: 3 epochs; the experiment is still at work', 'finished: 3 epochs']


def test_a_lost_run_ends_the_watching(tmp_path, capfd):
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    door = RunFolder(tmp_path)
    door.write(**{k: NEWS[k] for k in ('about', 'settings', 'status', 'cells', 'curves')})
    news = read_status(door.folder)
    (door.folder / 'status.json').write_text(json.dumps(news | dict(process=news['process'] | dict(pid=gone.pid))))
    assert watch_run(tmp_path) == 1 and 'has ended without a word' in capfd.readouterr().out
    with pytest.raises(ValueError, match='nothing to steer'): ask_run(tmp_path, 1, kind='do', what='pause')


def test_nothing_heavy_is_imported_to_steer(tmp_path):
    code = f'''import sys
from patchgd_nb.experiment.command import main
assert main(['pause', {str(tmp_path)!r}]) == 2 and main(['watch', {str(tmp_path)!r}]) == 2
assert not {{'torch', 'numpy', 'pandas', 'matplotlib'}} & set(sys.modules), sorted(sys.modules)'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
