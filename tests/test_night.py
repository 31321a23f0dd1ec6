"A night of training: killed, told to stop, out of disk, out of readers; each time as if nothing had happened, or said in one sentence."
import json, multiprocessing, os, random, signal, subprocess, sys, threading, time
from contextlib import suppress
from pathlib import Path
import numpy as np, pandas as pd, psutil, pytest, torch
from PIL import Image
from torch import nn
from patchgd_nb.training.checkpoint import Checkpoints
from patchgd_nb.dashboard.live import PatchGDDashboard
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.images.slides import SlideDataset, make_loader
from patchgd_nb.strategy import PatchGD
from patchgd_nb.training.trace import Trace
from patchgd_nb.training.callback import Callback
from patchgd_nb.trainer import Trainer

ctx = multiprocessing.get_context('forkserver')   # one process that has imported torch and nothing more, from which runs are forked
ctx.set_forkserver_preload(['patchgd_nb.trainer', 'patchgd_nb.images.slides'])


def images_in(folder, n):
    "`n` small pictures, four classes of brightness, and the table of them."
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n): Image.fromarray(rng.integers(40 * (i % 4), 40 * (i % 4) + 90, (32, 32, 3), dtype=np.uint8)).save(folder / f'{i}.png')
    return pd.DataFrame([(str(i), folder / f'{i}.png', i % 4) for i in range(n)], columns=['image_id', 'path', 'label'])


class Slow(Callback):
    "Time for signals to arrive in the middle of things."
    def on_inner(self, trainer, j, loss, cells, Z): time.sleep(.002)


def trainer_of(rows, folder, workers=0, epochs=3, seed=0, batch_size=4, slides=SlideDataset, callbacks=(), **kwargs):
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    grid = PatchGrid(32, 8)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(.2), nn.Linear(144, 8))
    model = PatchModel(backbone, grid, 4, 8, 'smaller')
    train, valid = slides(rows, grid, augment=True), slides(rows, grid)
    torch.manual_seed(seed)
    return Trainer(model, PatchGD(CoverSampler(1/4)), make_loader(train, batch_size, True, workers), make_loader(valid, 8), lr=1e-2, epochs=epochs,
                   device='cpu', callbacks=callbacks, checkpoint=folder, progress=False, **{'save_minutes': 0} | kwargs)


def train(rows, folder, workers=0, seed=0, flush=None):
    "A run in a process of its own, resumed if there is something to resume; killed at its `flush`-th flush to the disk, if that is given."
    if flush is not None:
        left, fsync = iter(range(flush)), os.fsync
        os.fsync = lambda f: fsync(f) if next(left, None) is not None else os.kill(os.getpid(), signal.SIGKILL)
    trainer_of(rows, folder, workers, seed=seed, callbacks=[Slow()]).fit(resume=True)


def outcome(folder):
    "All that a run has learned and recorded, but for the seconds."
    found = Checkpoints(folder).load()
    trace = Trace.load(found.folder / 'trace.npz')
    sampled = [(e, b, j, ids, bits.tolist()) for e, b, j, ids, bits in trace.sampled]
    return {k: v.tolist() for k, v in found.state['model'].items()}, [r[:5] for r in trace.inner], sampled, [{k: v for k, v in e.items() if k != 'seconds'} for e in trace.epochs], found.folder.name


def killed_and_resumed(tmp_path, kills, workers):
    "Kill runs at random moments, `kills` times in all, at least half of them while a checkpoint is written; compare what they become with the undisturbed run."
    rows, rng = images_in(tmp_path / 'images', 16), random.Random(kills)
    p = ctx.Process(target=train, args=(rows, tmp_path / 'whole', workers)); p.start(); p.join(120)
    whole, done, inside, n = outcome(tmp_path / 'whole'), 0, 0, 0
    assert p.exitcode == 0 and whole[4] == 'e0003-b000000'
    while done < kills:
        n += 1
        folder, finished = tmp_path / f'run{n}', False
        while not finished and done < kills:
            flush = rng.randint(0, 25) if 2 * inside <= done else None
            p = ctx.Process(target=train, args=(rows, folder, workers, done if Checkpoints(folder).names() else 0, flush)); p.start()
            if flush is None:
                at = time.time() + rng.uniform(.1, 1.5)
                while p.is_alive() and time.time() < at: time.sleep(.01)
                with suppress(ProcessLookupError): os.kill(p.pid, signal.SIGKILL)   # it may just have ended by itself
            p.join(120)
            finished = p.exitcode == 0
            if not finished:
                assert p.exitcode == -signal.SIGKILL
                done, inside = done + 1, inside + len(list(folder.glob('e*.part')))
        if not finished:
            p = ctx.Process(target=train, args=(rows, folder, workers, 99 if Checkpoints(folder).names() else 0)); p.start(); p.join(120)
            assert p.exitcode == 0
        assert outcome(folder) == whole
        assert not list(folder.glob('e*.part'))
    print(f'{done} kills, {inside} of them inside writing, {n} runs')
    return inside


# once there is a checkpoint, every process has another seed and other first weights: what is resumed comes from the files alone
def test_killed_at_random_moments_and_resumed_it_is_the_same_run(tmp_path): assert killed_and_resumed(tmp_path, 4, 0) >= 1


def test_readers_end_when_the_run_is_killed(tmp_path):
    "Also where they were started by a server of their own, as Python 3.14 does."
    p = ctx.Process(target=train, args=(images_in(tmp_path / 'images', 16), tmp_path / 'run', 2)); p.start()
    while not Checkpoints(tmp_path / 'run').names(): time.sleep(.05)
    readers = psutil.Process(p.pid).children(recursive=True)
    os.kill(p.pid, signal.SIGKILL); p.join(30)
    gone, left = psutil.wait_procs(readers, timeout=30)
    for q in left: q.kill()
    assert len(gone) >= 2 and not left


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_killed_twenty_times(tmp_path, workers): assert killed_and_resumed(tmp_path, 20, workers) >= 5


def weights(run): return {k: v.tolist() for k, v in run.model.state_dict().items()}


class At(Callback):
    "Does something in the middle of a batch."
    def __init__(self, epoch, batch, do): self.at, self.do = (epoch, batch, 1), do
    def on_inner(self, trainer, j, loss, cells, Z):
        if (trainer.epoch, trainer.batch, j) == self.at: self.do()


@pytest.mark.parametrize('number, workers', [(signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_a_signal_ends_in_a_checkpoint(tmp_path, capsys, number, workers):
    "In the middle of a batch; the run goes on later as if nothing had happened."
    rows, before = images_in(tmp_path / 'images', 16), [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    whole = trainer_of(rows, tmp_path / 'whole', workers).fit()
    run = trainer_of(rows, tmp_path / 'run', workers, save_minutes=None, callbacks=[At(1, 2, lambda: os.kill(os.getpid(), number))]).fit()
    assert (run.epoch, run.batch, run.stop) == (1, 3, True) and run.checkpoints.names() == ['e0001-b000000', 'e0001-b000003']
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert 'Stopped after 1 epochs and 3 of 4 batches; fit(resume=True)' in capsys.readouterr().out
    again = trainer_of(rows, tmp_path / 'run', workers, seed=5).fit(resume=True)
    assert weights(again) == weights(whole)
    run.callbacks.clear()
    assert weights(run.fit()) == weights(whole)      # and in the same process


def test_a_second_signal_breaks_at_once(tmp_path):
    rows, log = images_in(tmp_path / 'images', 16), []
    class Twice(Callback):
        def on_inner(self, trainer, j, loss, cells, Z):
            if trainer.batch == 1:
                log.append(j)
                os.kill(os.getpid(), signal.SIGINT); time.sleep(.05)
        def on_fit_end(self, trainer): log.append('end')
    with pytest.raises(KeyboardInterrupt): trainer_of(rows, tmp_path / 'run', callbacks=[Twice()]).fit()
    assert log == [0, 1, 'end'] and Checkpoints(tmp_path / 'run').names() == ['e0000-b000001']
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_ends_a_pause(tmp_path):
    "Nobody has to press Resume first."
    dash = PatchGDDashboard('widgets')
    def pause():
        dash.controls.do('pause')
        threading.Timer(.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    run = trainer_of(images_in(tmp_path / 'images', 16), tmp_path / 'run', callbacks=[At(0, 1, pause), dash]).fit()
    assert not dash.errors and (run.epoch, run.batch) == (0, 2) and run.checkpoints.names()[-1] == 'e0000-b000002'


def test_ctrl_c_in_a_terminal_reaches_readers_too(tmp_path):
    "Every process of the group gets it; those that read ahead leave it to the one that trains."
    rows = images_in(tmp_path / 'images', 16)
    p = ctx.Process(target=train, args=(rows, tmp_path / 'run', 1)); p.start()
    while not Checkpoints(tmp_path / 'run').names(): time.sleep(.02)
    for q in [*psutil.Process(p.pid).children(recursive=True), psutil.Process(p.pid)]: q.send_signal(signal.SIGINT)
    p.join(60)
    assert p.exitcode == 0 and Checkpoints(tmp_path / 'run').load()


def test_the_first_line_says_how_to_go_on(tmp_path, capsys):
    rows = images_in(tmp_path / 'images', 8)
    trainer_of(rows, tmp_path / 'run', epochs=1).fit()
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and str(tmp_path / 'run') in out and '-p resume True' in out
    trainer_of(rows, None, epochs=1).fit()
    assert capsys.readouterr().out == ''


def test_a_folder_that_cannot_be_written_to_is_refused_before_training(tmp_path):
    (tmp_path / 'file').write_text('')
    run = trainer_of(images_in(tmp_path / 'images', 8), tmp_path / 'file')
    before = weights(run)
    with pytest.raises(ValueError, match='checkpoints cannot be written to'): run.fit()
    assert weights(run) == before and not run.trace.inner


def test_a_disk_that_fills_up_costs_checkpoints_not_the_run(tmp_path, monkeypatch):
    rows, fsync, calls = images_in(tmp_path / 'images', 16), os.fsync, []
    def full(handle):
        calls.append(handle)
        if 40 < len(calls) < 45: raise OSError(28, 'No space left on device')
        return fsync(handle)
    whole = trainer_of(rows, tmp_path / 'whole').fit()
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.warns(UserWarning, match='No space left on device.*is kept, the run goes on') as said: run = trainer_of(rows, tmp_path / 'run').fit()
    assert weights(run) == weights(whole) and len(said) == 4 and run.checkpoints.names()[-1] == 'e0003-b000000'
    assert not list((tmp_path / 'run').glob('*.part'))


class Deadly(SlideDataset):
    "The reader of one file crashes the process that reads it."
    def pixels(self, i): return os.kill(os.getpid(), signal.SIGSEGV) if self.rows.image_id[i] == '5' else super().pixels(i)


def test_a_reader_that_dies_is_named_with_its_file(tmp_path):
    rows = images_in(tmp_path / 'images', 16)
    with pytest.raises(RuntimeError, match=r'died while reading .*images/5\.png') as e: trainer_of(rows, tmp_path / 'run', 2, slides=Deadly).fit()
    assert '\n' not in str(e.value) and 'workers=0' in str(e.value)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_slide_that_is_deleted_while_it_is_read(tmp_path, workers):
    "One sentence that names it, also from another process; what was learned until then is on the disk."
    rows = images_in(tmp_path / 'images', 16)
    run = trainer_of(rows, tmp_path / 'run', workers, epochs=9, callbacks=[At(1, 1, lambda: [p.unlink() for p in rows.path[3:5]])])
    with pytest.raises((ValueError, OSError), match=r'images/[34]\.png') as e: run.fit()
    assert len(str(e.value).splitlines()) == 1 and Checkpoints(tmp_path / 'run').load().state['epoch'] >= 1


@pytest.mark.parametrize('n', [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_images_in_one_folder(tmp_path, n):
    "Opened without holding on to them: no more file handles than for sixteen."
    few = images_in(tmp_path / 'images', 16)
    for i in range(16, n): os.link(few.path[i % 16], tmp_path / f'images/{i}.png')
    rows = pd.DataFrame([(str(i), tmp_path / f'images/{i}.png', i % 4) for i in range(n)], columns=['image_id', 'path', 'label'])
    before, now = psutil.Process().num_fds(), time.time()
    class FewBatches(Callback):
        def on_batch_end(self, trainer, result): trainer.stop = trainer.batch == 3
    run = trainer_of(rows, tmp_path / 'run', 0, epochs=1, batch_size=16, save_minutes=None, callbacks=[FewBatches()])
    run.valid = None
    run.fit()
    print(f'{time.time() - now:.0f} s')
    assert run.batch == 3 and len(run.train) == n // 16 and psutil.Process().num_fds() <= before + 3


def kernels_of(p): return [q for q in psutil.Process(p.pid).children(recursive=True) if 'ipykernel' in ' '.join(q.cmdline())]


@pytest.mark.slow
@pytest.mark.parametrize('how', ['kill', 'interrupt'])
def test_papermill_picks_up_without_being_told_where(tmp_path, how):
    "The kernel dies, or papermill is interrupted; the notebook holds the line on how to go on, and that line is true."
    command = [Path(sys.executable).parent / 'papermill', Path(__file__).resolve().parent.parent / 'nbs/train_har.ipynb', tmp_path / 'out.ipynb', '--no-progress-bar', '-p', 'out_dir', tmp_path / 'run', '-p', 'epochs', '4', '-p', 'minutes', '30']
    folder = Checkpoints(tmp_path / 'run/patchgd')
    p = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while len(folder.names()) < 2 and p.poll() is None: time.sleep(.05)
    if how == 'kill':
        kernel, = kernels_of(p)
        kernel.kill()
    else: p.send_signal(signal.SIGINT)
    error, reached = p.communicate(timeout=120)[1], None
    assert p.returncode != 0
    text = ''.join(''.join(o.get('text', '')) for c in json.loads((tmp_path / 'out.ipynb').read_text())['cells'] for o in c.get('outputs', []))
    assert 'if this kernel dies, run again with resume=True (papermill: -p resume True)' in text, (text, error[-1000:])
    reached = folder.load().state
    if how == 'interrupt': assert reached['batch'] > 0, reached['epoch']     # it ended inside an epoch, in a checkpoint
    again = subprocess.run([*command, '-p', 'resume', 'True'], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr[-2000:]
    assert folder.names()[-1] == 'e0004-b000000' and f"Resumed from e{reached['epoch']:04}" in (tmp_path / 'out.ipynb').read_text()


@pytest.mark.slow
def test_an_hour(tmp_path):
    "The study on memory and file handles, whose last cell refuses growth; minutes: PATCHGD_SOAK_MINUTES, 60 unless given."
    minutes = os.environ.get('PATCHGD_SOAK_MINUTES', '60')
    subprocess.run([Path(sys.executable).parent / 'papermill', Path(__file__).resolve().parent.parent / 'nbs/studies/soak.ipynb', tmp_path / 'out.ipynb', '--no-progress-bar', '-p', 'minutes', minutes], check=True)
