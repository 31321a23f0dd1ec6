"Loaders draw the same with any number of workers, from any batch on; and random states go from machine to machine."
import random
import numpy as np, pytest, torch
from torch.utils.data import DataLoader
from patchgd_nb.base.random_states import get_random_states, seeded, set_random_states
from patchgd_nb.training.loader import Loader, iterate_from


class Augmented(torch.utils.data.Dataset):
    "Items that draw from all three generators."
    def __len__(self): return 12
    def __getitem__(self, i): return torch.tensor([i, torch.rand(()).item(), np.random.rand(), random.random()], dtype=torch.float64)


def draw(): return torch.rand(()).item(), np.random.rand(), random.random()


def one_pass(loader, start=None, done=0):
    batches, start = iterate_from(loader, start, done)
    return torch.stack(list(batches)), start


def test_all_draws_are_the_same_with_any_number_of_workers_and_from_any_batch_on():
    torch.manual_seed(0)
    seen, start = one_pass(Loader(Augmented(), 2, True))
    assert all(len(column.unique()) == 12 for column in seen.flatten(0, 1).T)
    for workers in (0, 2):
        loader = Loader(Augmented(), 2, True, workers)
        for done in (4, 1):
            np.random.seed(done); random.seed(done); torch.manual_seed(done)   # another process
            assert torch.equal(one_pass(loader, start, done)[0], seen[done:])
        set_random_states(start, loader)
        assert torch.equal(one_pass(loader)[0], seen)


def test_reading_items_leaves_no_trace_in_later_draws():
    after = []
    for data in (Augmented(), torch.arange(12)):
        torch.manual_seed(1); np.random.seed(1); random.seed(1)
        list(Loader(data, 2, True))
        after.append(draw())
    assert after[0] == after[1]


def test_a_block_with_a_seed_of_its_own():
    with seeded(2**62 + 3): first = draw()
    with seeded(2**62 + 3): assert draw() == first
    with seeded(3): assert all(a != b for a, b in zip(draw()[1:], first[1:]))   # torch's own looks at the lower half only
    states = get_random_states()
    with pytest.raises(ZeroDivisionError), seeded(1): draw(); 1 / 0
    now = get_random_states()
    assert torch.equal(now['torch'], states['torch']) and torch.equal(now['numpy'][1], states['numpy'][1]) and now['python'] == states['python']


def test_workers_of_torch_s_own_loader_draw_again_what_they_drew():
    "Not with `persistent_workers`, whose states live on."
    torch.manual_seed(0)
    seen, start = one_pass(DataLoader(Augmented(), 2, True, num_workers=2))
    assert torch.equal(one_pass(DataLoader(Augmented(), 2, True, num_workers=2), start, 3)[0], seen[3:])


@pytest.mark.parametrize('there, here', [(4, 2), (2, 4), (1, 1), (3, 0), (0, 2)])
def test_a_run_is_resumed_on_another_number_of_gpus(monkeypatch, there, here):
    "A fake of torch's functions: states that have no GPU are left out, GPUs without a state keep theirs."
    gpus = [torch.tensor([-1, i]) for i in range(here)]
    def set_state(state, device='cuda'): gpus[device if isinstance(device, int) else device.index] = state
    def set_all(states):
        for i, state in enumerate(states): set_state(state, i)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: here > 0)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: here)
    monkeypatch.setattr(torch.cuda, 'set_rng_state', set_state)
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', set_all)
    monkeypatch.setattr(torch.cuda, 'get_rng_state_all', lambda: gpus)
    states = get_random_states() | dict(cuda=[torch.tensor([7, i]) for i in range(there)])
    expected = torch.rand(3)
    set_random_states(states)
    assert torch.equal(torch.rand(3), expected)
    assert [g.tolist() for g in gpus] == [[7, i] if i < there else [-1, i] for i in range(here)]


def test_random_states_of_version_0_1_are_read():
    "From a checkpoint on the disk: texts, a tensor and numbers for numpy, a tuple for Python."
    from pathlib import Path
    from patchgd_nb.training.checkpoint import Checkpoints
    states = Checkpoints(Path(__file__).parent / 'checkpoint_0_1').load().state['random']
    set_random_states(states)
    first = draw()
    set_random_states(states)
    assert draw() == first and np.random.get_state()[0] == states['numpy'][0] and random.getstate()[0] == states['python'][0]
