"Time to score: when a curve shows a score, the search that chooses apart, energy where it is counted, results that are kept."
import json, math, sys
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from patchgd_nb.experiment.referee import TimedRun
from patchgd_nb.experiment.published import Published
from patchgd_nb.experiment.study_run import kept_result, settings_file
from patchgd_nb.experiment.time_to_score import best_score, growing_marks, median_until, seconds_until
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid


def curve_of(seconds, scores): return [dict(seconds=s, qwk=q) for s, q in zip(seconds, scores)]


@pytest.mark.parametrize('seed', range(20))
def test_the_first_mark_with_the_score_counts(seed):
    "One of the marks and nothing between them; a higher score is never earlier, and a score above all marks gives NaN."
    rng = np.random.default_rng(seed)
    moments, scores = np.cumsum(rng.uniform(.1, 1, 9)).tolist(), rng.uniform(size=9).tolist()
    curve = curve_of(moments, scores)
    for low, high in np.sort(rng.choice(scores, (20, 2))):
        first = seconds_until(curve, 'qwk', low)
        assert first in moments and max([s for m, s in zip(moments, scores) if m < first] + [-1]) < low <= scores[moments.index(first)]
        assert first <= seconds_until(curve, 'qwk', high)
    assert best_score(curve, 'qwk') == max(scores) and math.isnan(seconds_until(curve, 'qwk', max(scores) + 1e-9))
    assert math.isnan(seconds_until([], 'qwk', 0))


def test_a_seed_that_never_shows_the_score_is_the_latest():
    early, late, never = curve_of([1], [1.]), curve_of([9], [1.]), curve_of([1], [0.])
    assert median_until([late, early, never], 'qwk', .8) == 9 and median_until([early, early, never], 'qwk', .8) == 1
    assert math.isnan(median_until([never, never, early], 'qwk', .8)) and math.isnan(median_until([early, never], 'qwk', .8))


def test_marks_grow_by_one_factor_up_to_the_end():
    for n, first in ((2, .5), (7, .1), (12, .05)):
        marks = growing_marks(n, first)
        assert len(marks) == n and marks[0] == pytest.approx(first) and marks[-1] == 1
        assert np.allclose(np.diff(np.log(marks)), np.log(1 / first) / (n - 1))


@pytest.fixture
def races(monkeypatch):
    "What is asked of training and measuring, and a function that answers: the score of a rate, on a part, at each mark."
    from patchgd_nb.experiment import time_to_score as module
    asked, answers = [], {}
    def train(rival, seconds, lr, batch_size, seed, marks):
        asked.append(('train', lr, seed))
        return TimedRun(lr, 5, [1., 2.], [{}, {}], [math.nan, math.nan])
    def measure(rival, run, part):
        asked.append((part, run.lr))
        return [dict(seconds=s, joules=math.nan, qwk=q, accuracy=0.) for s, q in zip(run.marks, answers[part, run.lr])]
    monkeypatch.setattr(module, 'train_for', train)
    monkeypatch.setattr(module, 'measure_marks', measure)
    monkeypatch.setattr(module, 'measured_step_bytes', lambda *args: 2**20)
    def search(**given):
        answers.update({(part, lr): scores for part, rates in given.items() for lr, scores in rates.items()})
        return module.time_to_score(lambda seed: SimpleNamespace(setting='', prepared=0.), 'qwk', .8, list(given['choose']), [3, 4, 5], 2., 4, [.5, 1])
    return asked, search


def test_the_rate_is_chosen_apart_and_scored_once_for_each_seed(races):
    asked, search = races
    found = search(choose={1: [.1, .9], 2: [.8, .1], 3: [.7, .85]}, score={2: [.5, .6]})
    assert found['lr'] == 2   # the only one that is there at the first mark, though it falls again
    assert [a for a in asked if a[0] == 'train'] == [('train', 1, 3), ('train', 2, 3), ('train', 3, 3), ('train', 2, 4), ('train', 2, 5)]
    assert [a for a in asked if a[0] == 'score'] == 3 * [('score', 2)] and len(found['curves']) == 3
    assert 'NaN' not in json.dumps(found)


def test_without_the_score_the_best_one_is_chosen(races):
    assert races[1](choose={1: [.1, .7], 2: [.75, .1], 3: [.2, .3]}, score={2: [0, 0]})['lr'] == 2


def test_energy_is_unknown_where_nobody_counts(monkeypatch):
    "No GPU, no package, or a driver that refuses: NaN, and no error."
    from patchgd_nb.experiment import energy
    monkeypatch.setattr(energy.torch.cuda, 'is_available', lambda: False)
    assert math.isnan(energy.joules())
    monkeypatch.setattr(energy.torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(energy.torch.cuda, 'current_device', lambda: 0)
    def refuse(): raise RuntimeError('no permission')
    for driver in (None, SimpleNamespace(NVMLError=RuntimeError, nvmlInit=refuse)):
        energy._counter.cache_clear()
        monkeypatch.setitem(sys.modules, 'pynvml', driver)
        assert math.isnan(energy.joules())
    energy._counter.cache_clear()


def test_a_result_is_made_once_for_its_settings(tmp_path):
    made = []
    def make():
        made.append(1)
        return dict(n=len(made))
    first = settings_file(tmp_path, 'a way, slowly', dict(lr=1))
    assert [kept_result(first, make), kept_result(first, make)] == 2 * [dict(n=1)] and first.name.startswith('a_way__slowly_')
    assert kept_result(settings_file(tmp_path, 'a way, slowly', dict(lr=2)), make) == dict(n=2)
    def fail(): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): kept_result(tmp_path / 'rows/broken.json', fail)
    assert not (tmp_path / 'rows/broken.json').exists()   # what was interrupted is made again


@pytest.mark.parametrize('fraction, accumulate, updates', [(1/4, None, 1), (1/4, 2, 2), (1/4, 3, 2), (1, None, 1)])
def test_the_published_procedure_encodes_everything_and_draws_a_share(fraction, accumulate, updates):
    "All patches without gradient, blank ones too; a share with gradient in each inner iteration; a remainder is an update."
    torch.manual_seed(0)
    model = PatchModel('test_resnet', PatchGrid(128, 32), 3, 16, 'smaller')
    encode, counts = model.encode, {True: 0, False: 0}
    def counting(patches):
        counts[torch.is_grad_enabled()] += patches.shape[:-3].numel()
        return encode(patches)
    model.encode = counting
    images, labels = torch.randint(256, (2, 3, 128, 128), dtype=torch.uint8), torch.tensor([0, 1])
    J = round(1 / fraction)
    result = Published(fraction, accumulate).step(model, images, labels, torch.optim.SGD(model.parameters(), .1), torch.zeros(2, 16))
    assert counts == {False: 32, True: J * 2 * 16 * fraction} and result.optimizer_steps == updates
    assert result.losses.shape == (J,) and (result.sampled.sum(2) == 16 * fraction).all()
