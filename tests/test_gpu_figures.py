"What a GPU tells, its files: continued after a kill, within a time, and what the README makes of them."
import json, os, re, shutil, signal, subprocess, sys
from pathlib import Path
import pytest
from patchgd_nb.experiment.gpu_report import UNKNOWN, bars, fill_in, gpu_sentence, read_figures
from patchgd_nb.experiment.measurements import Measurements

TOP = Path(__file__).resolve().parent.parent
ABOUT = dict(device='made up', rehearsal=False, code='0')


class Clock:
    now = 0.
    def __call__(self): return self.now
    def work(self, seconds, **figures):
        self.now += seconds
        return figures


def test_no_measurement_begins_when_the_minutes_are_used(tmp_path):
    clock, done = Clock(), []
    m = Measurements(tmp_path / 'a.json', 1, ABOUT, clock)
    for name, takes in dict(a=50, b=20, c=1).items(): m.measure(name, lambda: done.append(name) or clock.work(takes))
    assert done == ['a', 'b'] and m.left == ['c'] and m.seconds_left == -10      # the second began in time
    again = Measurements(tmp_path / 'a.json', 1, ABOUT, clock)
    assert again.measure('long', lambda: clock.work(1), seconds=61) is None and again.left == ['long']
    again.measure('c', lambda: done.append('c') or clock.work(1))
    assert done == ['a', 'b', 'c'] and set(json.loads((tmp_path / 'a.json').read_text())['figures']) == set('abc')


KILLED = '''
import sys, os, signal
from patchgd_nb.experiment.measurements import Measurements
m = Measurements(sys.argv[1], 9, dict(device='made up', rehearsal=False, code='0'))
for name in 'abcd':
    def work():
        print(name, flush=True)
        if name == sys.argv[2]: os.kill(os.getpid(), signal.SIGKILL)
        return dict(value=ord(name))
    m.measure(name, work)
'''


def test_after_a_kill_the_next_call_goes_on(tmp_path):
    "Each figure is measured once, but for the one that was under way; the file is whole at all times."
    def call(at): return subprocess.run([sys.executable, '-c', KILLED, tmp_path / 'a.json', at], capture_output=True, text=True, timeout=120)
    first = call('c')
    assert first.returncode == -signal.SIGKILL and first.stdout.split() == ['a', 'b', 'c'], first.stderr
    assert set(json.loads((tmp_path / 'a.json').read_text())['figures']) == {'a', 'b'}
    second = call('-')
    assert second.returncode == 0 and second.stdout.split() == ['c', 'd'], second.stderr
    figures = json.loads((tmp_path / 'a.json').read_text())['figures']
    assert {n: f['value'] for n, f in figures.items()} == {n: ord(n) for n in 'abcd'} and not list(tmp_path.glob('*.part'))


@pytest.mark.parametrize('what', ['device', 'code', 'rehearsal'])
def test_figures_about_something_else_are_set_aside(what, tmp_path):
    Measurements(tmp_path / 'a.json', 1, ABOUT).measure('x', lambda: dict(value=1))
    m = Measurements(tmp_path / 'a.json', 1, ABOUT | {what: 'another'})
    assert not m.is_known('x') and json.loads((tmp_path / 'a.1.json').read_text())['about'] == ABOUT


def test_a_broken_file_is_set_aside(tmp_path):
    (tmp_path / 'a.json').write_text('{"about": {')
    assert not Measurements(tmp_path / 'a.json', 1, ABOUT).figures and (tmp_path / 'a.1.json').exists()


def test_an_error_costs_no_other_figure_and_is_tried_again(tmp_path):
    m = Measurements(tmp_path / 'a.json', 1, ABOUT)
    def fail(): raise RuntimeError('CUDA out of memory')
    assert 'out of memory' in m.measure('x', fail)['error'] and m.measure('y', lambda: dict(value=2))['value'] == 2
    again = Measurements(tmp_path / 'a.json', 1, ABOUT)
    assert again.is_known('y') and not again.is_known('x') and again.measure('x', lambda: dict(value=1))['value'] == 1


# --- the README

def speed_file(folder, faster=4., fill=.7, **about):
    def row(seconds, use): return dict(seconds=seconds, utilisation=use)
    figures = {'resnet50, 4096 pixels, off': dict(rows=dict(published=row(1., .1))),
               'resnet50, 4096 pixels, bf16': dict(rows=dict(PatchGD=row(1 / faster, .5), fill=row(1., fill))), 'rate, off': dict(error='x')}
    (folder / 'gpu_speed.json').write_text(json.dumps(dict(about=ABOUT | about, date='2026-12-01', figures=figures)))


def readme(folder):
    "The README that the checkout's script writes beside the files of `folder`."
    for name in ('nbs/index.ipynb', '.ci/readme.py', 'patchgd_nb'):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (TOP / name).is_dir(): shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'), dirs_exist_ok=True)
        else: shutil.copy(TOP / name, folder / name)
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    run = subprocess.run([sys.executable, '.ci/readme.py'], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return (folder / 'README.md').read_text()


def test_the_readme_says_what_a_gpu_has_measured_or_that_none_has(tmp_path):
    row = re.compile(r'(?m)^\| a GPU .*$')
    assert row.search(readme(tmp_path))[0].endswith(f'| **{UNKNOWN}** |')
    figures = tmp_path / 'nbs/studies/gpu'
    figures.mkdir(parents=True)
    speed_file(figures)
    text = readme(tmp_path)
    assert '4.0 times' in row.search(text)[0] and '70%' in row.search(text)[0] and '(made up, 2026-12-01)' in row.search(text)[0]
    assert len(text.split()) <= 900
    speed_file(figures, rehearsal=True)      # nobody's figures
    assert row.search(readme(tmp_path))[0].endswith(f'| **{UNKNOWN}** |')


def test_a_readme_without_the_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match='0 rows of the README'): fill_in('| b | c |\n', tmp_path)


@pytest.mark.parametrize('faster,fill,holds', [(3., .6, [True, True]), (2.99, .59, [False, False])])
def test_bars_hold_or_not(faster, fill, holds, tmp_path):
    speed_file(tmp_path, faster, fill)
    table = bars(tmp_path)
    assert list(table.holds[-2:]) == holds and list(table.holds[:-2]) == [UNKNOWN] * 4


def test_committed_figures_are_a_gpus():
    "Whatever lies in the folder has the schema, was no rehearsal, and names its device, versions and date."
    for path in (TOP / 'nbs/studies/gpu').glob('*.json'):
        found = json.loads(path.read_text())
        about = found['about']
        assert re.fullmatch(r'gpu_(check|speed|train)(\.\d+)?\.json', path.name) and not about['rehearsal'] and 'CPU' not in about['device']
        assert about['versions']['torch'] and about['code'] and re.fullmatch(r'\d{4}-\d\d-\d\d', found['date'])
        assert all('took' in f and 'date' in f for f in found['figures'].values())
    assert gpu_sentence(TOP / 'nbs/studies/gpu') in (TOP / 'README.md').read_text()
    assert read_figures(TOP / 'nbs', 'speed')['figures'] == {}


# --- known numbers

def test_utilisation_and_idle_time_of_known_numbers():
    from patchgd_nb.experiment.device_speed import covered, utilisation
    assert utilisation(500, 2., 1000.) == .25
    assert covered([(0, 1), (.5, 2), (4, 5), (4, 4.5)]) == 3


def test_a_call_without_a_gpu_is_refused_and_a_rehearsal_stays_out_of_its_folder(tmp_path):
    import torch
    from patchgd_nb.experiment.gpu import main, run_part
    if not torch.cuda.is_available(): assert main(['speed', '--out', str(tmp_path / 'new')]) == 2 and not (tmp_path / 'new').exists()
    assert main(['speed', '--rehearse', '--out', str(tmp_path / 'studies/gpu')]) == 2
    m = run_part('check', tmp_path, minutes=0, rehearse=True)
    assert m.path.name == 'rehearsal_check.json' and m.left and not m.path.exists()


def test_the_makefile_has_a_call_per_part():
    commands = subprocess.run(['make', '-n', 'gpu', 'GPU_OUT=here', 'GPU_PYTHON=python'], cwd=TOP, capture_output=True, text=True, timeout=60).stdout
    assert re.findall(r'python -m patchgd_nb\.experiment\.gpu (\w+) --out here --minutes 8', commands) == ['check', 'speed', 'train']
    assert 'pip' not in commands
