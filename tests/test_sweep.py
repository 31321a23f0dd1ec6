"Sweeps: every combination once to its end, whoever is killed meanwhile; a typo in any row before the first one."
import json, os, signal, subprocess, sys, time
from pathlib import Path
import nbformat, pandas as pd, psutil, pytest
from hypothesis import given, strategies as st
from nbformat.v4 import new_code_cell, new_notebook
from patchgd_nb.experiment.command import main, parse_value, read_defaults
from patchgd_nb.experiment.record import read_run
from patchgd_nb.experiment.sweep_rows import combinations, make_rows, read_grid, row_folders
from patchgd_nb.experiment.sweep_table import follow_sweep, plot_sweep, read_sweep

TOP = Path(__file__).resolve().parent.parent
HAR = read_defaults(TOP / 'nbs/train_har.ipynb')
ENV = {n: v for n, v in os.environ.items() if n != 'CUDA_VISIBLE_DEVICES'} | dict(PYTHONPATH=os.pathsep.join([str(TOP), os.environ.get('PYTHONPATH', '')]))
COMMAND = [sys.executable, '-c', 'import sys; from patchgd_nb.experiment.command import main; sys.exit(main())', 'sweep']
RECORD = 'from patchgd_nb.experiment.record import RunRecord\nfrom patchgd_nb.experiment.parameters import Har\np = Har.of(globals())\nrecord = RunRecord(p)'
WORK = '''import os, psutil, signal, time
time.sleep(.05 if p.resume else p.lr)            # what is resumed has little left to do
row = psutil.Process().parent()
if p.latent_dim == 13: raise ValueError('the loss is not finite')
if p.latent_dim == 14: row.kill(); time.sleep(60)
if p.latent_dim == 15: row.parent().kill(); time.sleep(60)
with open(p.out_dir + '/ends', 'a') as f: f.write(f'{p.resume}\\n')
record.finish(score=p.fraction + .01 * p.seed, device=os.environ.get('CUDA_VISIBLE_DEVICES'), threads=os.environ.get('OMP_NUM_THREADS'), folder=os.getcwd())'''


@pytest.fixture
def tiny(tmp_path):
    "An experiment without training, and the folder it lies in: parameters and record as train_har has them."
    sources = '\n'.join(f'{n} = {v!r}' for n, v in HAR.items()), RECORD, WORK
    nb = new_notebook(cells=[new_code_cell(s) for s in sources], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    nb.cells[0].metadata.tags = ['parameters']
    nbformat.write(nb, tmp_path / 'tiny.ipynb')
    return tmp_path


def start(folder, grid, *options, notebook='tiny.ipynb', **env):
    "A sweep in a process group of its own, as a terminal starts it."
    (folder / 'grid.yaml').write_text(grid)
    return subprocess.Popen([*COMMAND, str(notebook), 'grid.yaml', '--out', 'out', *options], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=ENV | env)


def finish(process, code=0, timeout=300):
    said, error = process.communicate(timeout=timeout)
    assert process.returncode == code, said + error[-3000:]
    assert 'Traceback' not in error, error
    return said + error


def ends(folder): return {p.parent.name: p.read_text().split() for p in sorted((folder / 'out').glob('*/ends'))}
def wait_for(what, seconds=120):
    end = time.time() + seconds
    while not (found := what()):
        assert time.time() < end, 'it took too long'
        time.sleep(.05)
    return found


def at_work(folder):
    "The rows whose run is under way, with their kernels."
    runs = {p.parent.name: json.loads(p.read_text()) for p in (folder / 'out').glob('*/run.json')}
    return {name: psutil.Process(r['pid']) for name, r in runs.items() if r['outcome'] == 'running' and psutil.pid_exists(r['pid'])}


def left_behind(folder): return [p for p in psutil.process_iter(['cwd', 'pid']) if p.info['cwd'] == str(folder) and p.status() != psutil.STATUS_ZOMBIE]


# --- what is refused, before anything starts

@pytest.fixture
def here(tiny, monkeypatch, capfd):
    monkeypatch.chdir(tiny)
    before = signal.getsignal(signal.SIGTERM)
    def call(text, *args, notebook='tiny.ipynb'):
        if text is not None: (tiny / 'grid.yaml').write_text(text)
        code = main(['sweep', notebook, 'grid.yaml', '--out', 'out', *args])
        return code, capfd.readouterr().err
    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize('text, says', [
    ('', 'has no table'), ('seed', 'has no table'), ('[1, 2]', 'has no table'), ('{}', 'has no table'), ('seed: [0, 1', 'cannot be read as YAML'), ('seed: []', 'no value for seed'), ('seed: 1\nseed: 2', 'gives seed twice'),
    ('a: 1\n---\nb: 2', 'cannot be read as YAML'), ('&a {b: *a}', 'cannot be read as YAML'), ('seed: \x00', 'cannot be read as YAML'), ('out_dir: a', 'sets out_dir'), ('resume: true', 'sets resume'), (None, 'grid.yaml cannot be used'),
    ('fractoin: [1/4, 1/2]', 'did you mean fraction?'), ('seed: [0, 1, 2, 3, 4, 5, six, 7]', "row seed=six: seed='six' is not a whole number"), ('patch_size: [32, 48]\nseed: [0, 1]', 'row patch_size=48, seed=0: the signal'),
    ('fraction: [.nan]', 'fraction='), ('seed: {a: 1}', "seed={'a': 1}"), ('lr: !!python/object/apply:os.system [true]', 'lr=True')])
def test_what_is_refused(here, tiny, text, says):
    code, said = here(text)
    assert code == 2 and says in said and said.count('\n') == 1 and said.startswith('patchgd: '), said
    assert not (tiny / 'out').exists()


@pytest.mark.parametrize('args, says', [(['--workers', '0'], 'workers=0'), (['--scheduler', 'tcp://127.0.0.1:1', '--workers', '2'], 'leave out workers'), (['--scheduler', 'nonsense://'], 'no scheduler of Dask answers')])
def test_options_that_cannot_be_meant(here, args, says):
    code, said = here('seed: [0, 1]', *args)
    assert code == 2 and says in said and said.count('\n') == 1, said


def test_no_such_experiment_one_without_a_record_and_no_dask(here, tiny, monkeypatch):
    code, said = here('seed: 0', notebook='panad')
    assert code == 2 and 'there is no notebook panad' in said
    nb = nbformat.read(tiny / 'tiny.ipynb', 4)
    nb.cells[1:] = []
    nbformat.write(nb, tiny / 'bare.ipynb')
    code, said = here('seed: 0', notebook='bare.ipynb')
    assert code == 2 and 'leaves no run.json' in said
    monkeypatch.setitem(sys.modules, 'bokeh', None)
    code, said = here('seed: 0', '--dashboard')
    assert code == 2 and 'pip install bokeh' in said
    monkeypatch.setitem(sys.modules, 'distributed', None)
    code, said = here('seed: 0')
    assert code == 2 and "pip install 'patchgd_nb[scale]'" in said and said.count('\n') == 1


# --- the grid

@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none(), st.sampled_from(['off', '1e-3', 'yes', 'no', '1/8', 'runs/a', '0x1f', '1_000', '12:30'])), min_size=1))
def test_a_word_of_the_grid_is_a_word_of_the_command_line(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / 'words.yaml'
    path.write_text('x: [' + ', '.join(map(str, values)) + ']\nquoted: "8"')
    assert read_grid(path) == dict(x=[parse_value(str(v)) for v in values], quoted=['8'])


@given(st.dictionaries(st.sampled_from(['seed', 'latent_dim', 'epochs', 'batch_size']), st.lists(st.integers(1, 5), min_size=1), min_size=1))
def test_rows_are_the_different_combinations(grid):
    rows = make_rows(TOP / 'nbs/train_har.ipynb', grid)
    assert len(rows) == len({tuple(c.items()) for c in combinations(grid)}) == len({r.name for r in rows})
    assert all(set(r.varied) == {n for n, v in grid.items() if len(v) > 1} for r in rows)


def test_ten_thousand_rows_have_names_that_a_file_system_takes(tmp_path):
    path, start = TOP / 'nbs/train_har.ipynb', time.time()
    rows = make_rows(path, dict(seed=list(range(100)), lr=[i / 1000 for i in range(1, 101)], data_dir=['/data/' + 'ü' * 200]))
    assert len({r.key for r in rows}) == 10_000 and all(len(r.name.encode()) < 130 and '/' not in r.name for r in rows) and time.time() - start < 30
    row, = make_rows(path, dict(data_dir='../..'.split()))
    assert row_folders(tmp_path, [row])[row.key].resolve().parent == tmp_path.resolve()


# --- killed, and started again

TWELVE = 'fraction: [1/8, 1/4, 1/2]\nseed: [0, 1, 2, 3]\nlr: .3'


def check_twelve(folder, rows_ended):
    table = pd.read_csv(folder / 'out/sweep.csv')
    assert len(table) == 12 and set(table.outcome) == {'finished'} and not table.duplicated(['fraction', 'seed']).any()
    assert len(ends(folder)) == 12 and all(len(e) == 1 for e in ends(folder).values()), ends(folder)
    assert all(ends(folder)[n] == e for n, e in rows_ended.items())
    assert not left_behind(folder)
    return table


def test_killed_half_way_and_started_again(tiny):
    "12 rows on 2 workers: SIGKILL to the whole group when five are done. Each runs to its end once; one table."
    first = start(tiny, TWELVE, '--workers', '2', CUDA_VISIBLE_DEVICES='4, 7')
    wait_for(lambda: len(ends(tiny)) >= 5)
    second = subprocess.run([*COMMAND, 'tiny.ipynb', 'grid.yaml', '--out', 'out'], cwd=tiny, env=ENV, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1 and 'out is in use by another run' in second.stderr and second.stderr.count('\n') == 1
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = ends(tiny)
    assert 5 <= len(done) < 12 and set(read_sweep(tiny / 'out').outcome) <= {'finished', 'running', 'killed', 'interrupted', 'waiting'}   # from another process
    assert plot_sweep(tiny / 'out').layout.title.text.endswith('of 12 runs finished')
    said = finish(start(tiny, TWELVE, '--workers', '2', CUDA_VISIBLE_DEVICES='4, 7'))
    assert '12 of 12 rows finished' in said and 'rows, checked before the first one starts' in said
    table = check_twelve(tiny, done)
    assert set(table.device) == {4, 7} and set(table.folder) == {str(tiny)}     # as many as there are workers, and each on its own
    assert table.score.round(6).tolist() == [round(f + .01 * s, 6) for f in (.125, .25, .5) for s in range(4)]
    line = [trace for trace in plot_sweep(tiny / 'out').data if trace.mode == 'lines'][0]
    assert list(line.x) == [.125, .25, .5] and list(line.y) == pytest.approx([.14, .265, .515])
    assert follow_sweep(tiny / 'out').equals(read_sweep(tiny / 'out'))       # and ends at once, since the sweep has ended
    assert '0 s' not in finish(start(tiny, TWELVE))                              # the third time there is nothing to do


def test_a_worker_is_killed(tiny):
    "SIGKILL to one of two workers: its row is tried again from its checkpoint, the others do not notice."
    sweep = start(tiny, 'seed: [0, 1, 2, 3]\nlr: 3', '--workers', '2')
    victim, kernel = wait_for(lambda: len(at_work(tiny)) == 2 and at_work(tiny)).popitem()
    kernel.parent().parent().kill()
    finish(sweep)
    assert ends(tiny) == {n: ['True' if n == victim else 'False'] for n in ends(tiny)} and len(ends(tiny)) == 4
    assert not left_behind(tiny)


@pytest.mark.slow
def test_what_kills_its_worker_each_time_is_named_and_the_others_finish(tiny):
    "Rows that fail, that kill their process, that kill their worker: three, one and three attempts; one row that does nothing of the kind."
    said = finish(start(tiny, 'latent_dim: [13, 14, 15, 16]\nlr: .1', '--workers', '2', OMP_NUM_THREADS='3'), code=1)
    table = read_sweep(tiny / 'out').set_index('latent_dim')
    assert table.outcome.to_dict() == {13: 'failed', 14: 'failed', 15: 'failed', 16: 'finished'} and table.threads[16] == '3'
    assert 'the loss is not finite' in table.reason[13] and 'killed by signal 9, 3 times' in table.reason[14] and 'its worker was killed' in table.reason[15]
    assert all(Path(n).is_file() and str(Path(n).relative_to(tiny)) in said for n in table.notebook[:3])
    assert [len([*Path(n).parent.glob('tiny*.ipynb')]) for n in table.notebook] == [1, 3, 3, 1]
    assert not left_behind(tiny)


@pytest.mark.parametrize('number', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_sweep_leaves_rows_that_can_be_resumed(tiny, number):
    "Ctrl-C in a terminal reaches the whole group, a scheduler's SIGTERM the command only; nobody is left behind."
    sweep = start(tiny, 'seed: [0, 1, 2]\nlr: 60', '--workers', '2')
    wait_for(lambda: len(at_work(tiny)) == 2)
    if number == signal.SIGINT: os.killpg(sweep.pid, number)
    else: sweep.send_signal(number)
    said = finish(sweep, code=130)
    assert 'the same command goes on with what is in out' in said
    assert sorted(read_sweep(tiny / 'out').outcome) == ['interrupted', 'interrupted', 'waiting'] and not left_behind(tiny) and not (tiny / 'out/running.json').exists()


@pytest.mark.slow
def test_workers_of_a_scheduler_that_runs_already(tiny):
    "By its address, as those of Slurm and Kubernetes are used; workers with several threads are refused."
    from distributed import Client
    def started(*words): return subprocess.Popen([sys.executable, '-m', 'dask', *words], cwd=tiny, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    listening = tiny / 'scheduler.json'
    processes = [started('scheduler', '--host', '127.0.0.1', '--port', '0', '--no-dashboard', '--scheduler-file', str(listening))]
    try:
        address = wait_for(lambda: listening.exists() and json.loads(listening.read_text()))['address']
        worker = '--host', '127.0.0.1', '--no-dashboard', '--local-directory', str(tiny / 'dask')
        processes += [started('worker', address, '--nthreads', '1', *worker)]
        finish(start(tiny, 'seed: [0, 1]\nlr: .1', '--scheduler', address))
        assert [len(e) for e in ends(tiny).values()] == [1, 1]
        processes += [started('worker', address, '--nthreads', '2', *worker)]
        with Client(address, set_as_default=False) as client: client.wait_for_workers(2, timeout=120)
        said = finish(start(tiny, 'seed: [2, 3]', '--scheduler', address), code=2)
        assert 'have several threads' in said
    finally:
        for p in reversed(processes): p.terminate()
        for p in processes: p.wait(30)


@pytest.mark.slow
def test_twelve_real_runs_killed_half_way(tmp_path):
    "train_har, an epoch each: the same as above, with training, checkpoints and resuming."
    grid = 'fraction: [1/4, 1/2, 1]\nseed: [0, 1, 2, 3]\nepochs: 1'
    first = start(tmp_path, grid, '--workers', '2', notebook='har')
    def finished(): return [p.parent.name for p in (tmp_path / 'out').glob('*/run.json') if read_run(p.parent)['outcome'] == 'finished']
    wait_for(lambda: len(finished()) >= 5, 1200)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = {n: (tmp_path / 'out' / n / 'run.json').read_text() for n in finished()}
    assert '12 of 12 rows finished' in finish(start(tmp_path, grid, '--workers', '2', notebook='har'), timeout=1800)
    assert all((tmp_path / 'out' / n / 'run.json').read_text() == text for n, text in before.items())   # not run again
    table = pd.read_csv(tmp_path / 'out/sweep.csv')
    assert len(table) == 12 and set(table.outcome) == {'finished'} and (table['test accuracy'] > 1 / 6).all() and not left_behind(tmp_path)
