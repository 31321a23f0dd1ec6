"Several processes train as one: the same weights, no hang, one reduction of gradients per step of the optimizer."
import json, os, subprocess, sys, time
from pathlib import Path
import pytest, torch

JOBS = Path(__file__).with_name('ranks_jobs.py')
ENV = os.environ | dict(GLOO_SOCKET_IFNAME='lo', OMP_NUM_THREADS='1')


def together(folder, job, size=2, timeout=240, expect=0, **options):
    "What a job returns on each rank."
    folder.mkdir(exist_ok=True)
    (folder / 'meet').unlink(missing_ok=True)
    processes = [subprocess.Popen([sys.executable, JOBS, job, str(rank), str(size), folder, json.dumps(options)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(size)]
    end = time.time() + timeout
    try:
        while any(p.poll() is None for p in processes):
            if any(p.poll() for p in processes): break   # one has failed: the others wait for it, as a launcher knows
            assert time.time() < end, 'the processes hang'
            time.sleep(.05)
    finally:
        for p in processes: p.kill() if p.poll() is None and any(q.poll() for q in processes) else None
        for p in processes:
            if p.poll() is None: p.kill()
    texts = [p.communicate()[0] for p in processes]
    if expect is None: return texts
    assert [p.returncode for p in processes] == [expect] * size, '\n'.join(texts)
    return [torch.load(folder / f'{rank}.pt', weights_only=False) for rank in range(size)]


def largest(a, b): return max(float((a[k] - b[k]).abs().max()) for k in a)


SETTINGS = {
    'PatchGD': dict(kind='patch'),
    'PatchGD, a step after every two iterations': dict(kind='patch', options=dict(accumulate=2, fraction=.2)),
    'PatchGD, uniform draws': dict(kind='patch', options=dict(sampler='uniform', inner_steps=3)),
    'ExactPatchGD': dict(kind='exact'),
    'CarryPatchGD': dict(kind='carry', options=dict(accumulate=1)),
    'gradient descent': dict(kind='whole'),
    'three batches an update': dict(kind='patch', accumulate_batches=3)}
BLANK = dict(blank=True, valid=True)   # content differs, and in every other batch one rank's images are all blank
SETTINGS = {name: settings | BLANK for name, settings in SETTINGS.items()}


@pytest.fixture(scope='module')
def one(tmp_path_factory):
    "The runs on one process, with twice as many images in a batch."
    return together(tmp_path_factory.mktemp('one'), 'several', 1, settings=SETTINGS)[0]


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    return together(tmp_path_factory.mktemp('two'), 'several', settings=SETTINGS)


@pytest.mark.parametrize('name', SETTINGS)
def test_two_processes_are_one_with_all_the_images(one, two, name):
    for rank in (found[name] for found in two):
        assert largest(one[name]['weights'], rank['weights']) < 1e-9
        assert rank['steps'] == one[name]['steps'] == rank['gradients'] > 0     # one reduction for each step
        assert rank['tables'] == 2 * 4                                          # and one table for each batch
        for ours, theirs in zip(rank['epochs'], one[name]['epochs'], strict=True):
            assert {k: v for k, v in ours.items() if k != 'seconds'} == pytest.approx({k: v for k, v in theirs.items() if k != 'seconds'}, abs=1e-9)


def test_left_in_the_middle_of_a_batch_and_resumed(one, tmp_path):
    names = ['PatchGD', 'ExactPatchGD', 'CarryPatchGD', 'three batches an update']
    for found in together(tmp_path, 'several', settings={n: SETTINGS[n] for n in names}, interrupted=names):
        for name in names: assert largest(one[name]['weights'], found[name]['weights']) < 1e-9, name


def test_one_process_killed_and_both_started_again(one, tmp_path):
    texts = together(tmp_path / 'two', 'train', expect=None, dies=[1, 2, True], **SETTINGS['CarryPatchGD'])
    assert not (tmp_path / 'two/0.pt').exists() and (tmp_path / 'two/run/e0001-b000002').is_dir(), texts
    for rank in together(tmp_path / 'two', 'train', resume=True, **SETTINGS['CarryPatchGD']):
        assert largest(one['CarryPatchGD']['weights'], rank['weights']) < 1e-9


def test_what_is_changed_at_the_first_rank_holds_for_all(tmp_path):
    first, second = together(tmp_path, 'steered')
    assert first == second and first[0] == 1/3 and first[1] == first[2] > 3


def test_check_gradients_is_silent(tmp_path):
    for found in together(tmp_path, 'gradients'): assert found == dict(exact=True, patch=True)


def test_two_hundred_configurations_without_a_hang(tmp_path):
    "Ranks with fewer batches or none, blank images, a single image, frozen parts, 16 bits: in one pair of processes."
    for alike in together(tmp_path, 'many', timeout=400): assert alike == [True] * 200
