"One run at a time in a folder; a resumed run is the run that it was; a killed one is told from a running one."
import json, multiprocessing, os, shutil, signal, subprocess, sys, time, warnings
from functools import partial
from pathlib import Path
import pytest, torch
from torch.utils.data import DataLoader, Subset, TensorDataset
from patchgd_nb.base.lock import RunLock, is_alive, this_process
from patchgd_nb.experiment import command
from patchgd_nb.experiment.parameters import Har
from patchgd_nb.experiment.record import RunRecord, free_path, read_run
from patchgd_nb.sampler import CoverSampler, UniformSampler
from patchgd_nb.strategy import GradientDescent, PatchGD
from patchgd_nb.training.callback import Callback
from patchgd_nb.training.schedule import linear_warmup_decay
from patchgd_nb.trainer import Trainer

FORK = multiprocessing.get_context('fork')   # a process that need not import torch again
X, Y = torch.linspace(-1, 1, 48).reshape(12, 4), torch.arange(12) % 3
DATA, OTHER = TensorDataset(X, Y), TensorDataset(X + 1, Y)

def trainer(folder, data=DATA, batch_size=3, strategy=None, callbacks=(), epochs=1, **options):
    torch.manual_seed(0)
    return Trainer(torch.nn.Linear(4, 3), strategy or GradientDescent(), DataLoader(data, batch_size), epochs=epochs, checkpoint=folder, callbacks=callbacks, device='cpu', progress=False, **options)

def quiet(f):
    "The result of f(); every warning is an error."
    with warnings.catch_warnings(): warnings.simplefilter('error'); return f()


class Waits(Callback):
    def __init__(self, event): self.event = event
    def on_batch_end(self, trainer, result): self.event.wait(60)

def one_of_two(folder, start, refused, said):
    torch.set_num_threads(1)
    start.wait(60)
    try: trainer(folder, callbacks=[Waits(refused)]).fit(resume=True); said.put((os.getpid(), None))
    except OSError as e: refused.set(); said.put((os.getpid(), str(e)))

def test_of_two_runs_started_together_one_runs_and_one_refuses(tmp_path, capfd):
    "Twenty times. The one that runs goes on until the other has been refused; what it leaves is whole."
    for n in range(20):
        folder, start, refused, said = tmp_path / str(n), FORK.Barrier(2), FORK.Event(), FORK.SimpleQueue()
        both = [FORK.Process(target=one_of_two, args=(folder, start, refused, said)) for _ in range(2)]
        for p in both: p.start()
        for p in both: p.join(90)
        ends = dict(said.get() for _ in range(2))
        winner, = [pid for pid, words in ends.items() if words is None]
        refusal, = [words for words in ends.values() if words]
        assert f'{folder} is in use by another run (process {winner} on ' in refusal and ', since 2' in refusal and '\n' not in refusal
        assert {p.name for p in folder.iterdir()} - {'running.lock', 'live'} == {'e0001-b000000', 'best.json'}
        assert quiet(lambda: trainer(folder).fit(resume=True)).epoch == 1


SCRIPT = '''
import sys, torch
from patchgd_nb.experiment.parameters import Har
from patchgd_nb.experiment.record import RunRecord
from patchgd_nb.strategy import GradientDescent
from patchgd_nb.trainer import Trainer
p = Har.check({values!r})
try: record = RunRecord(p)
except OSError as e: print('refused', e); sys.exit()
batches = [(torch.randn(3, 4), torch.tensor([0, 1, 2]))] * 4
Trainer(torch.nn.Linear(4, 3), GradientDescent(), batches, epochs=5, max_seconds=None, checkpoint=p.checkpoint, device='cpu', progress=False).fit(p.resume)
input()   # until both have said how it went
record.finish()
'''

def values(out_dir, **changes):
    return command.read_defaults(Path(__file__).resolve().parent.parent / 'nbs/train_har.ipynb') | dict(out_dir=str(out_dir)) | changes

@pytest.mark.slow
def test_twenty_pairs_of_programs(tmp_path):
    for n in range(20):
        script = SCRIPT.format(values=values(tmp_path / str(n)))
        both = [subprocess.Popen([sys.executable, '-c', script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        while all(p.poll() is None for p in both): time.sleep(.05)
        said = [p.communicate('\n', timeout=120) for p in both]
        assert sorted(out.startswith('refused') for out, _ in said) == [False, True], said
        assert read_run(tmp_path / str(n))['outcome'] == 'finished' and quiet(lambda: trainer(tmp_path / str(n) / 'patchgd').checkpoints.load()).folder.name == 'e0005-b000000'


def hold_and_sleep(folder, ready, fork):
    RunLock(folder).acquire()
    if fork and os.fork() == 0: time.sleep(20); os._exit(0)   # a reader that outlives the run
    ready.set()
    time.sleep(60)

def killed_run(folder, fork=False):
    ready = FORK.Event()
    p = FORK.Process(target=hold_and_sleep, args=(folder, ready, fork))
    p.start()
    assert ready.wait(30)
    return p

@pytest.mark.parametrize('fork', [False, True])
def test_the_lock_of_a_killed_run_is_taken_over_with_a_word(tmp_path, fork):
    p = killed_run(tmp_path, fork)
    with pytest.raises(BlockingIOError, match=f'process {p.pid} on '): trainer(tmp_path).fit()
    assert not list(tmp_path.glob('e*'))   # it has touched nothing
    os.kill(p.pid, signal.SIGKILL)
    while is_alive(RunLock(tmp_path).owner()): time.sleep(.01)   # nobody has waited for it yet
    with pytest.warns(UserWarning, match=f'a run that was killed .process {p.pid} on .*taken over'): trainer(tmp_path).fit()
    assert not (tmp_path / 'running.json').exists()
    p.join()


@pytest.mark.parametrize('owner, says', [(dict(host='gpu-7', pid=12), 'process 12 on gpu-7.* nobody can see whether it still exists: if it has ended, delete .*running.json'), ([], 'running.json is damaged'), (dict(pid='x'), 'delete'), (dict(pid=-1), 'nobody can see')])
def test_a_lock_that_cannot_be_asked_about_is_respected(tmp_path, owner, says):
    (tmp_path / 'running.json').write_text(json.dumps(this_process() | owner if owner else owner))
    with pytest.raises(BlockingIOError, match=says): trainer(tmp_path).fit()
    (tmp_path / 'running.json').unlink()
    quiet(trainer(tmp_path).fit)


def test_within_a_process_one_may_come_again(tmp_path):
    "Trainers in and under one folder, a fit within a fit, a record made twice; an error leaves nothing behind, and ranks do not lock."
    class Inner(Callback):
        def on_epoch_end(self, t, metrics): trainer(tmp_path / 'patchgd/deep').fit(); trainer(tmp_path / 'patchgd').fit(); assert RunLock(tmp_path / 'patchgd').owner()
    class Fails(Callback):
        def on_fit_start(self, t): raise KeyError('a typo')
    def go():
        RunRecord(Har.check(values(tmp_path)))
        record = RunRecord(Har.check(values(tmp_path)))
        trainer(tmp_path / 'patchgd', callbacks=[Inner()]).fit()
        with pytest.raises(KeyError): trainer(tmp_path / 'patchgd', callbacks=[Fails()]).fit()
        assert RunLock(tmp_path).owner()['pid'] == os.getpid()
        record.finish()
    quiet(go)
    assert not list(tmp_path.rglob('running.json'))

def test_ranks_but_the_first_do_not_lock(tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with RunLock(tmp_path / 'a'): assert not (tmp_path / 'a').exists()


def patchgd(fraction=.5, sampler=CoverSampler, **options): return PatchGD(sampler(fraction), **options)

def test_resuming_another_run_is_refused_with_what_differs(tmp_path):
    whole = trainer(tmp_path / 'a').fit()
    before = {k: v.clone() for k, v in whole.model.state_dict().items()}
    for options, says in (
            (dict(data=OTHER), 'train 12 items [0-9a-f]{8} there, 12 items [0-9a-f]{8} here'), (dict(data=TensorDataset(X, Y.flip(0))), 'train 12 items'), (dict(data=Subset(DATA, range(6)), batch_size=2), 'train 12 items .* there, 6 items'),
            (dict(batch_size=4), 'batch_size 3 there, 4 here; batches 4 there, 3 here'), (dict(lr=.1), r'lr 0.001 there, 0.1 here'), (dict(weight_decay=.5), 'optimizer weight_decay 0.01 there, 0.5 here'), (dict(warmup=.5), r'schedule linear_warmup_decay\(warmup=0.05\) there, .*0.5'),
            (dict(clip=1.), 'clip None there, 1.0 here'), (dict(ema=.9), 'ema None there, 0.9 here'), (dict(accumulate_batches=2), 'accumulate_batches 1 there, 2 here'), (dict(strategy=patchgd()), r'strategy GradientDescent\(loss=cross_entropy\) there, PatchGD\(sampler=CoverSampler\(fraction=0.5\)'),
            (dict(optimizer=partial(torch.optim.AdamW, betas=(.5, .9))), r'optimizer betas \(0.9, 0.999\) there, \(0.5, 0.9\) here'), (dict(precision='bf16'), "precision 'off' there, 'bf16' here")):
        again = trainer(tmp_path / 'a', epochs=2, **options)
        mine = {k: v.clone() for k, v in again.model.state_dict().items()}
        with pytest.raises(ValueError, match=f"e0001-b000000 belongs to another run .*{says}.*resume='anyway'") as e: again.fit(resume=True)
        assert '\n' not in str(e.value) and all(torch.equal(v, mine[k]) for k, v in again.model.state_dict().items()) and not again.epoch
    # what may change, and what is the same in other words
    may = dict(epochs=2, max_seconds=100., save_minutes=None, callbacks=[Callback()], memory_budget='16GB', schedule=partial(linear_warmup_decay, warmup=.05))
    shutil.copytree(tmp_path / 'a', tmp_path / 'moved')
    assert quiet(lambda: trainer(tmp_path / 'moved', **may).fit(resume=True)).epoch == 2
    assert all(torch.equal(v, before[k]) for k, v in whole.model.state_dict().items())

def test_samplers_and_steps_are_part_of_a_strategy():
    from patchgd_nb.training.settings import describe
    told = [describe(s) for s in (patchgd(), patchgd(.25), patchgd(sampler=UniformSampler), patchgd(inner_steps=2), patchgd(accumulate=1), patchgd(reduction='sum'))]
    assert len(set(told)) == 6 and describe(patchgd(chunk=2)) == told[0]

def test_going_on_anyway_goes_on_with_the_new_values(tmp_path):
    trainer(tmp_path).fit()
    again = trainer(tmp_path, epochs=2, lr=.1, weight_decay=.5)
    with pytest.warns(UserWarning, match='lr 0.001 there, 0.1 here.*resumed anyway'): again.fit(resume='anyway')
    assert again.epoch == 2 and again.optimizer.param_groups[0]['weight_decay'] == .5 and again.trace.inner[5][4] > .01
    quiet(lambda: trainer(tmp_path, epochs=3, lr=.1, weight_decay=.5).fit(resume=True))   # from now on, this is the run
    with pytest.raises(ValueError, match="resume='yes' is not known: choose True, False or 'anyway'"): trainer(tmp_path).fit(resume='yes')


def test_a_record_refuses_a_second_run_and_other_parameters(tmp_path):
    p = killed_run(tmp_path / 'r')
    with pytest.raises(BlockingIOError, match=f'process {p.pid} on'): RunRecord(Har.check(values(tmp_path / 'r')))
    assert not (tmp_path / 'r/run.json').exists()
    p.kill(); p.join()
    with pytest.warns(UserWarning, match='was killed'): RunRecord(Har.check(values(tmp_path / 'r', seed=1))).finish(score=1)
    for changes, says in ((dict(seed=2), 'seed 1 there, 2 here'), (dict(seed=1, fraction='1/8', lr=.5), 'fraction 0.5 there, 0.125 here; lr 0.002 there, 0.5 here')):
        with pytest.raises(ValueError, match=f"belongs to another run .{says}.*resume='anyway'"): RunRecord(Har.check(values(tmp_path / 'r', resume='true', **changes)))
        assert read_run(tmp_path / 'r')['results'] == dict(score=1) and not RunLock(tmp_path / 'r').owner()
    quiet(lambda: RunRecord(Har.check(values(tmp_path / 'r', resume=True, seed=1, epochs=99, minutes=3, data_dir='/elsewhere'))).finish())
    with pytest.warns(UserWarning, match='seed 1 there, 2 here.*anyway'): RunRecord(Har.check(values(tmp_path / 'r', resume='anyway', seed=2))).finish()
    with pytest.raises(ValueError, match="resume='yes' is not True, False or 'anyway'"): Har.check(values('r', resume='yes'))

def record_and_sleep(folder, ready): RunRecord(Har.check(values(folder))); ready.set(); time.sleep(60)

def test_a_killed_run_is_told_from_a_running_one(tmp_path):
    ready = FORK.Event()
    p = FORK.Process(target=record_and_sleep, args=(tmp_path, ready))
    p.start()
    assert ready.wait(60) and read_run(tmp_path)['outcome'] == 'running' and read_run(tmp_path)['pid'] == p.pid
    p.kill(); p.join()
    assert read_run(tmp_path)['outcome'] == 'killed' and json.loads((tmp_path / 'run.json').read_text())['outcome'] == 'running'
    with pytest.raises(ValueError, match='cannot be read as the record of a run'): read_run(tmp_path / 'nothing')


def test_the_command_keeps_executed_notebooks_and_looks_at_the_lock_first(tmp_path, monkeypatch, capsys):
    papermill = pytest.importorskip('papermill')
    notebook, ran = Path(__file__).resolve().parent.parent / 'nbs/train_har.ipynb', []
    monkeypatch.setattr(papermill, 'execute_notebook', lambda path, out, *a, **k: (ran.append(out), Path(out).write_text(f'run {len(ran)}')))
    def go(): return command.main(['run', str(notebook), '-p', 'out_dir', str(tmp_path)])
    assert [go(), go()] == [0, 0] and [(tmp_path / f'train_har{n}.ipynb').read_text() for n in ('', '-2')] == ['run 1', 'run 2']
    assert capsys.readouterr().out.splitlines() == ran
    p = killed_run(tmp_path)
    assert go() == 1 and len(ran) == 2 and f'process {p.pid} on' in capsys.readouterr().err
    p.kill(); p.join()
    assert go() == 0 and len(ran) == 3 and free_path(tmp_path / 'train_har.ipynb').name == 'train_har-4.ipynb'
