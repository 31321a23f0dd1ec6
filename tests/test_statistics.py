"BatchNorm's running statistics, estimated again: against statistics computed by hand, and nothing else changed."
import random
import numpy as np, pytest, torch
from torch import nn
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.training.loader import Batch, Loader
from patchgd_nb.training.statistics import reestimate_statistics

GRID = PatchGrid(16, 8)


class Backbone(nn.Module):
    def __init__(self, dropout=0.):
        super().__init__()
        self.conv, self.norm, self.drop, self.out = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(dropout), nn.Linear(3, 5)

    def forward(self, x): return self.out(self.norm(self.drop(self.conv(x))).relu().mean((2, 3)))


def patch_model(head=None, dropout=0.):
    return PatchModel(Backbone(dropout), GRID, 4, 5, head or nn.Sequential(nn.Flatten(), nn.Linear(20, 4)), in_chans=1).double()


def batches_of(n, size=3):
    content = [(torch.rand(size, 4) < .7).float() for _ in range(n)]
    for c in content: c[:, 0] = 1.
    return [Batch(torch.randn(size, 1, 16, 16, dtype=torch.float64), torch.randint(4, (size,)), c) for c in content]


def by_hand(calls):
    "Mean and variance of each call, averaged with equal weights: plain sums over the values of a channel."
    means, variances = [], []
    for x in calls:
        values = x.transpose(0, 1).flatten(1)
        mean = values.sum(1) / values.shape[1]
        means.append(mean)
        variances.append(((values - mean[:, None]) ** 2).sum(1) / (values.shape[1] - 1))
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


def patches_of(batch):
    "The patches with content in order of (image, patch), cut with plain slices."
    return torch.stack([batch.images[i, :, r * 8:r * 8 + 8, c * 8:c * 8 + 8] for i in range(len(batch.images)) for r in range(2) for c in range(2) if batch.content[i, 2 * r + c] > 0])


@pytest.mark.parametrize('chunk', [1, 2, 8])
def test_statistics_are_those_of_the_patches_with_content(chunk):
    model, batches = patch_model(), batches_of(4)
    calls = [part for b in batches[:3] for part in patches_of(b).split(3 * chunk) if len(part) > 1]
    mean, variance = by_hand([model.backbone.conv(p).detach() for p in calls])
    assert reestimate_statistics(model, batches, 3, chunk) is model
    assert torch.allclose(model.backbone.norm.running_mean, mean, rtol=0, atol=1e-12)
    assert torch.allclose(model.backbone.norm.running_var, variance, rtol=0, atol=1e-12)
    assert model.backbone.norm.num_batches_tracked == len(calls)


def test_the_norm_of_a_head_as_well():
    norm = nn.BatchNorm2d(5)
    model, batches = patch_model(nn.Sequential(norm, nn.Flatten(), nn.Linear(20, 4))), batches_of(2)
    calls = []
    norm.register_forward_pre_hook(lambda m, args: calls.append(args[0]))
    reestimate_statistics(model, batches, 2)
    mean, variance = by_hand(calls)
    assert len(calls) == 2 and torch.allclose(norm.running_mean, mean, atol=1e-12) and torch.allclose(norm.running_var, variance, atol=1e-12)
    model.backbone.eval()   # what the head reads follows from batch statistics of the backbone, as in training
    assert not torch.allclose(calls[0], model.fill(batches[0].images, content=batches[0].content))


def test_any_other_module_by_its_forward():
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(nn.Linear(6, 6), norm, nn.Linear(6, 2)).double()
    batches = [(torch.randn(7, 6, dtype=torch.float64), torch.zeros(7)) for _ in range(3)]
    reestimate_statistics(model, batches, 3)
    mean, variance = by_hand([model[0](x).detach() for x, _ in batches])
    assert torch.allclose(norm.running_mean, mean, atol=1e-12) and torch.allclose(norm.running_var, variance, atol=1e-12)


def test_nothing_else_changes():
    model, batches = patch_model(dropout=.5), batches_of(3)
    model.head.eval()
    model.backbone.norm.momentum = .3
    twin = patch_model(dropout=.9)
    twin.load_state_dict(model.state_dict())
    loader = Loader([(b.images[0], 0, b.content[0]) for b in batches_of(6)], 2, shuffle=True)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    modes = [m.training for m in model.modules()]
    weights = [w.clone() for w in model.parameters()]
    reestimate_statistics(model, loader, 2)
    assert torch.equal(torch.get_rng_state(), states[0]) and np.random.get_state()[1].tolist() == states[1] and random.getstate() == states[2]
    assert [m.training for m in model.modules()] == modes and model.backbone.norm.momentum == .3
    assert all(map(torch.equal, weights, model.parameters())) and not any(w.grad is not None for w in model.parameters())
    assert not model.backbone.norm._forward_pre_hooks
    reestimate_statistics(twin, loader, 2)   # dropout is off, and the same random state makes the same batches
    assert torch.equal(twin.backbone.norm.running_var, model.backbone.norm.running_var)


def test_modes_and_momentum_return_after_an_error():
    model = patch_model()
    with pytest.raises(OSError): reestimate_statistics(model, (_ for _ in 'x' if _fails()), 2)
    assert all(m.training for m in model.modules()) and model.backbone.norm.momentum == .1
    with pytest.raises(ValueError, match='n=0'): reestimate_statistics(model, batches_of(1), 0)


def _fails(): raise OSError('cannot be read')


def test_without_batchnorm_nothing_is_read():
    for model in (nn.Linear(3, 2), nn.BatchNorm1d(3, track_running_stats=False)):
        reestimate_statistics(model, (_ for _ in 'x' if _fails()))


def test_n_batches_are_read_and_none_is_skipped():
    read, batches = [], batches_of(5)

    def reading():
        for i, b in enumerate([None, batches[0], None, *batches[1:]]):
            read.append(i)
            yield b

    model, twin = patch_model(), patch_model()
    twin.load_state_dict(model.state_dict())
    reestimate_statistics(model, reading(), 2)
    reestimate_statistics(twin, batches, 2)
    assert read == [0, 1, 2, 3] and torch.equal(model.backbone.norm.running_var, twin.backbone.norm.running_var)


def test_a_single_value_is_left_out():
    "One image and a norm over vectors: no variance, hence no call; the statistics stay."
    norm = nn.BatchNorm1d(20)
    model = patch_model(nn.Sequential(nn.Flatten(), norm, nn.Linear(20, 4)))
    before = norm.running_mean.clone()
    reestimate_statistics(model, batches_of(2, size=1), 2)
    assert torch.equal(norm.running_mean, before) and norm.training
    reestimate_statistics(model, [*batches_of(1, size=1), *batches_of(1)], 2)
    assert norm.num_batches_tracked == 1 and not torch.equal(norm.running_mean, before)
