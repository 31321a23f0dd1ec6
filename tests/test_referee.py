"The referee: equal memory, equal time, images that chose nothing; and features of other tools."
import time
import numpy as np
import pytest
import torch
from patchgd_nb.experiment.referee import NAMES, Rival, TimedRun, largest_that_fits, make_rival, measured_step_bytes, search, train_for
from patchgd_nb.experiment.referee_cohort import draw_slide, make_referee_cohort, open_parts
from patchgd_nb.patches import PatchGrid
from patchgd_nb.training.backbone import make_backbone


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A function from a rival's name and setting to the rival, on a tiny cohort."
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('cohort')
    data, plain = open_parts(make_referee_cohort(folder, 'density', dict(train=8, choose=4, score=4), 256), PatchGrid(256, 64))
    backbone = make_backbone('test_resnet', 16, (64, 64))
    return lambda name, setting: make_rival(name, setting, backbone, data, plain, 4, 16, str(folder / 'z'))


def test_a_step_of_fewer_patches_takes_fewer_bytes(made):
    few, many = (measured_step_bytes(made('PatchGD', f), 4) for f in (1/8, 1))
    assert few < many / 2
    exact = [measured_step_bytes(made('ExactPatchGD', n), 4) for n in (1, 8)]
    assert exact[0] < exact[1]
    whole, twice = (measured_step_bytes(made(name, 256), 4) for name in NAMES[-2:])
    assert twice < .8 * whole   # what checkpointing is for


def test_measuring_memory_changes_nothing(made):
    rival = made('PatchGD', 1/2)
    before = {n: p.clone() for n, p in rival.model.state_dict().items()}
    state = torch.get_rng_state()
    measured_step_bytes(rival, 4)
    assert torch.equal(state, torch.get_rng_state()) and all(torch.equal(p, before[n]) for n, p in rival.model.state_dict().items())


def test_bisection_finds_the_largest(made):
    settings = [1, 1/2, 1/4, 1/8]
    bytes_of = {s: measured_step_bytes(made('PatchGD', s), 4) for s in settings}
    for s in settings:
        rival, used = largest_that_fits(lambda s: made('PatchGD', s), settings, 4, bytes_of[s])
        assert used <= bytes_of[s] and used == max(b for b in bytes_of.values() if b <= bytes_of[s])


@pytest.mark.parametrize('name', NAMES)
def test_everybody_stops_when_the_time_is_up(made, name):
    rival = made(name, {'ExactPatchGD': 4}.get(name, 128 if name.startswith('whole') else 1/4))
    start = time.process_time()
    run = train_for(rival, .5 + rival.prepared, 1e-3, 4)
    steps = (time.process_time() - start) / run.batches   # of one batch, loading included
    assert len(run.marks) == 3 and .5 + rival.prepared <= run.marks[-1] < .5 + rival.prepared + 3 * max(steps, .1)


def test_what_chooses_does_not_score(made, monkeypatch):
    "Every rate is measured on `choose` once, and the chosen run alone on `score`."
    from patchgd_nb.experiment import referee
    asked = []
    def measure(rival, part):
        asked.append(part)
        return dict(qwk=float(len(asked) == 2), accuracy=0.)   # the second rate is the best
    monkeypatch.setattr(referee, 'measure', measure)
    result = search(made('frozen features, attention', None), [1e-3, 2e-3, 3e-3], .05, 4)
    assert asked == 3 * ['choose'] + 3 * ['score'] and result['lr'] == 2e-3


def test_every_run_of_a_search_starts_from_the_same_weights(made, monkeypatch):
    from patchgd_nb.experiment import referee
    starts = []
    def train(rival, *args):
        starts.append(torch.cat([p.detach().flatten().clone() for p in rival.model.parameters()]))
        with torch.no_grad(): [p.add_(1) for p in rival.model.parameters()]
        return TimedRun(1e-3, 1, [1.], [rival.model.state_dict()])
    monkeypatch.setattr(referee, 'train_for', train)
    search(made('random patches, end to end', 1/2), [1e-3, 2e-3], .05, 4)
    assert torch.equal(*starts)


def test_a_thumbnail_tells_the_density_and_not_the_shapes():
    def seen(special, usual):
        means = np.array([[draw_slide(100 * i + k, s, special, usual)[0].mean() - 255 for i in range(6)] for k, s in enumerate((.1, .9))])
        tissue = np.array([[draw_slide(100 * i + k, s, special, usual)[1].mean() for i in range(6)] for k, s in enumerate((.1, .9))])
        ink = means / tissue
        return abs(ink[0].mean() - ink[1].mean()) / ink.std(1).mean()
    assert seen(0, None) > 2 > 1 > seen(3, 0)


@pytest.mark.parametrize('wrong', ['missing', 'text', 'no coords', 'lengths', 'columns'])
def test_features_that_cannot_be_used_are_named(tmp_path, wrong):
    h5py = pytest.importorskip('h5py')
    from patchgd_nb.experiment.rivals import read_features
    def write(name, features, coords):
        with h5py.File(tmp_path / f'{name}.h5', 'w') as f:
            f['features'] = features
            if coords is not None: f['coords'] = coords
    write('a', np.zeros((3, 8)), np.zeros((3, 2)))
    if wrong == 'text': (tmp_path / 'b.h5').write_text('no HDF5')
    if wrong == 'no coords': write('b', np.zeros((3, 8)), None)
    if wrong == 'lengths': write('b', np.zeros((3, 8)), np.zeros((4, 2)))
    if wrong == 'columns': write('b', np.zeros((3, 9)), np.zeros((3, 2)))
    with pytest.raises((ValueError, OSError), match='b.h5') as e: read_features(tmp_path, ['a', 'b'], [0, 1])
    assert str(e.value).count('. ') == 0
