"The four ways to learn from one batch: equal where mathematics says so, stepping always."
from math import ceil
import pytest, torch
from torch import nn
from patchgd_nb.head import make_head
from patchgd_nb.model import BATCHNORM, PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler, UniformSampler
from patchgd_nb.strategy import ExactPatchGD, GradientDescent, PatchGD, Precision


def model_of(name, size=128, patch=64, head='smaller'):
    torch.manual_seed(1)
    return PatchModel(name, PatchGrid(size, patch), n_classes=4, latent_dim=8, head=head).double().train()


def collate(model, n):
    g = torch.Generator().manual_seed(n)
    images = torch.randn(n, 3, *model.grid.image_size, dtype=torch.float64, generator=g)
    return images, torch.arange(n) % model.n_classes


def gradients(model, strategy, *batch, **kwargs):
    "The gradient one step leaves, and the result; the weights stay as they were."
    kept = {}
    class Keep(torch.optim.SGD):
        def step(self, *a, **k): kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    result = strategy.step(model, *batch, Keep(model.parameters(), lr=0.), **kwargs)
    return kept, result


def largest_difference(a, b): return max((a[k] - b[k]).abs().max().item() for k in a.keys() | b.keys())


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_convnext'])
@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('sampler', [CoverSampler, UniformSampler])
def test_patchgd_with_all_patches_is_gradient_descent(name, n, sampler):
    "Invariant 1, BatchNorm in training mode; its running statistics agree as well."
    a, b = model_of(name), model_of(name)
    full, _ = gradients(a, GradientDescent(), *collate(a, n))
    ours, result = gradients(b, PatchGD(sampler(1.)), *collate(b, n))
    assert result.sampled.all() and largest_difference(full, ours) < 1e-10
    assert max((v - a.state_dict()[k]).abs().max().item() for k, v in b.state_dict().items()) < 1e-10


def test_that_holds_with_blank_patches_too():
    a, content = model_of('test_resnet', 192), torch.rand(2, 9) > .5
    full, _ = gradients(a, GradientDescent(), *collate(a, 2), content=content)
    ours, _ = gradients(model_of('test_resnet', 192), PatchGD(CoverSampler(1.)), *collate(a, 2), content=content)
    assert largest_difference(full, ours) < 1e-10


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_convnext'])
@pytest.mark.parametrize('n', [1, 3])
def test_exact_patchgd_is_exact_for_every_chunk(name, n):
    "With BatchNorm the running statistics are used: a chunk's own would make the result depend on the chunk."
    a = model_of(name, 192)
    for m in a.modules():
        if isinstance(m, BATCHNORM): m.eval()
    full, _ = gradients(a, GradientDescent(), *collate(a, n))
    for chunk in (1, 2, 3, 4, 5, 8, 64):
        ours, _ = gradients(model_of(name, 192), ExactPatchGD(chunk), *collate(a, n))
        assert largest_difference(full, ours) < 1e-10, chunk


def dropping(patch=4):
    torch.manual_seed(2)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * patch * patch, 16), nn.Dropout(.5), nn.ReLU(), nn.Linear(16, 8))
    return PatchModel(backbone, PatchGrid(12, patch), n_classes=4, latent_dim=8, head='smaller').double().train()


@pytest.mark.parametrize('chunk', [1, 2, 3, 5, 9])
def test_exact_patchgd_replays_dropout(chunk):
    "Against autograd through the same chunks, drawing the same random numbers; the random state ends the same."
    model, other, (images, labels) = dropping(), dropping(), collate(dropping(), 2)
    torch.manual_seed(5)
    parts = model.cells(images).split(chunk * 2)
    latents = torch.cat([model.encode(model.grid.gather(images, p)) for p in parts])
    z = latents.unflatten(0, (2, 9)).transpose(1, 2).unflatten(2, (3, 3))
    nn.functional.cross_entropy(model.head(z), labels).backward()
    full, after = {k: p.grad for k, p in model.named_parameters()}, torch.get_rng_state()
    torch.manual_seed(5)
    ours, _ = gradients(other, ExactPatchGD(chunk), images, labels)
    assert largest_difference(full, ours) < 1e-10
    assert torch.equal(torch.get_rng_state(), after)


class Counting(torch.optim.SGD):
    "Counts its steps and the gradient it was given."
    steps, given = 0, 0.
    def step(self, *args, **kwargs):
        self.steps += 1
        self.given += sum(p.grad.abs().sum().item() for g in self.param_groups for p in g['params'] if p.grad is not None)


@pytest.mark.parametrize('fraction', [1/2, 1/4, 1/8, 1/16, 1/32])
def test_every_grid_steps_and_flushes_the_remainder(fraction):
    "Invariant 2: ceil(J / accumulate) optimizer steps, on every grid from 1 x 1 to 32 x 32."
    for m in range(1, 33):
        for n in {m, 33 - m}:
            model = PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), PatchGrid((m, n), 1), 3, 2, head=nn.Sequential(nn.Flatten(), nn.Linear(2 * m * n, 3)))
            images = torch.rand(2, 3, m, n)
            for accumulate in (None, 1, 3, 7):
                optimizer = Counting(model.parameters(), lr=0.)
                result = PatchGD(CoverSampler(fraction), accumulate=accumulate).step(model, images, torch.tensor([0, 2]), optimizer)
                J = len(result.sampled)
                assert optimizer.steps == result.optimizer_steps == ceil(J / (accumulate or J)) >= 1
                assert (result.sampled.sum(0) == 1).all()
            assert all(p.grad is None or not p.grad.any() for p in model.parameters())   # nothing is left over for the next batch


def test_a_remainder_is_used_not_dropped():
    "Five inner iterations in groups of four: the fifth alone makes the second step, at full weight."
    model = model_of('test_vit', 320)
    steps = []
    class Keep(torch.optim.SGD):
        def step(self, *a, **k): steps.append({n: p.grad.clone() for n, p in model.named_parameters()})
    batch = collate(model, 1)
    result = PatchGD(CoverSampler(1/5), accumulate=4).step(model, *batch, Keep(model.parameters(), lr=0.))
    assert len(result.losses) == 5 and len(steps) == 2
    grads = []
    for j in range(5):   # each inner iteration by hand; the weights did not move
        Z = model.fill(batch[0]).flatten(2).transpose(1, 2)
        cells = result.sampled[j].nonzero()
        Z = Z.index_put((cells[:, 0], cells[:, 1]), model.encode(model.grid.gather(batch[0], cells)))
        model.zero_grad()
        nn.functional.cross_entropy(model.head(Z.transpose(1, 2).unflatten(2, (5, 5))), batch[1]).backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    mean = {n: sum(g[n] for g in grads[:4]) / 4 for n in grads[0]}
    assert largest_difference(steps[0], mean) < 1e-10 and largest_difference(steps[1], grads[4]) < 1e-10


def test_filling_leaves_batchnorm_alone_by_default():
    "Only patches that carry gradient move the running statistics, and all inner iterations together count as one call."
    model = model_of('test_resnet', 192)
    count = [k for k in model.state_dict() if k.endswith('num_batches_tracked')]
    batch = collate(model, 2)
    gradients(model, PatchGD(CoverSampler(1/3)), *batch)
    assert {int(model.state_dict()[k]) for k in count} == {1}
    gradients(model, PatchGD(CoverSampler(1/3), fill_mode='train', chunk=9), *batch)
    assert {int(model.state_dict()[k]) for k in count} == {3}


@pytest.mark.parametrize('strategy', [GradientDescent(), PatchGD(CoverSampler(1/4)), ExactPatchGD(2)], ids=repr)
@pytest.mark.parametrize('blank', [[], [0], [0, 1]])
def test_all_blank_images_and_batches_train_the_head(strategy, blank):
    model = model_of('test_resnet')
    content = torch.ones(2, 4)
    content[blank] = 0
    grads, result = gradients(model, strategy, *collate(model, 2), content=content)
    assert result.optimizer_steps == 1 and grads['head.classify.weight'].abs().sum() > 0
    if len(blank) == 2: assert sum(g.abs().sum() for k, g in grads.items() if k.startswith('backbone')) == 0


@pytest.mark.parametrize('kind', ['off', 'bf16', 'fp16'])
@pytest.mark.parametrize('strategy', [GradientDescent(), PatchGD(CoverSampler(1/4), accumulate=3), ExactPatchGD(2)], ids=repr)
def test_mixed_precision_learns_a_batch(kind, strategy):
    torch.manual_seed(0)
    model = PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 8)), PatchGrid(16, 4), 4, 8, 'smaller')
    images, labels, precision = torch.randn(4, 3, 16, 16), torch.arange(4), Precision(kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = [strategy.step(model, images, labels, optimizer, precision=precision).loss for _ in range(40)]
    assert losses[-1] < .3 * losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize('make', [lambda: PatchGD(CoverSampler(.5), inner_steps=0), lambda: PatchGD(CoverSampler(.5), accumulate=0), lambda: ExactPatchGD(0), lambda: Precision('fp8')])
def test_impossible_settings_are_refused(make):
    with pytest.raises(ValueError): make()


@pytest.mark.parametrize('strategy', [GradientDescent(), PatchGD(CoverSampler(1/4)), ExactPatchGD(2)], ids=repr)
def test_a_strategy_that_keeps_nothing_has_an_empty_state_and_needs_no_names(strategy):
    assert strategy.state_dict() == {} and strategy.load_state_dict({}) is None and strategy.needs_names is False


def test_a_norm_in_the_head_counts_once_and_an_interrupted_batch_leaves_statistics_alone():
    head = nn.Sequential(nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))
    model = model_of('test_resnet', head=head)
    norms, batch = [m for m in model.modules() if isinstance(m, BATCHNORM)], collate(model, 2)
    def stop(*a): raise KeyboardInterrupt
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt): gradients(model, PatchGD(CoverSampler(1/4)), *batch, on_inner=stop)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    gradients(model, PatchGD(CoverSampler(1/4)), *batch)
    assert {int(m.num_batches_tracked) for m in norms} == {1} and {m.momentum for m in norms} == {.1}


@pytest.mark.parametrize('frozen', ['backbone.', 'head.', 'backbone.1.'])
@pytest.mark.parametrize('strategy', [ExactPatchGD(2), PatchGD(CoverSampler(1.))], ids=repr)
def test_frozen_parts(strategy, frozen):
    "As gradient descent with the same parts frozen; a frozen backbone is encoded without gradient only, once."
    results = []
    for how in (GradientDescent(), strategy):
        model = dropping().train()
        model.backbone[2].p = 0.
        for name, p in model.named_parameters(): p.requires_grad_(not name.startswith(frozen))
        encode, calls = model.encode, []
        model.encode = lambda patches: (calls.append(torch.is_grad_enabled()), encode(patches))[1]
        results.append(gradients(model, how, *collate(model, 2))[0])
    assert results[0].keys() == results[1].keys() and largest_difference(*results) < 1e-10
    if frozen == 'backbone.' and isinstance(strategy, ExactPatchGD): assert not any(calls)


ALL = [GradientDescent, lambda **k: PatchGD(CoverSampler(1/4), **k), lambda **k: ExactPatchGD(2, **k)]

@pytest.mark.parametrize('make', ALL)
def test_the_loss_is_in_float32_for_weights_of_16_bits_and_of_any_kind(make):
    seen = []
    def squares(scores, labels):
        seen.append(scores.dtype)
        return nn.functional.mse_loss(scores[:, 0], labels)
    model = dropping().bfloat16()
    result = make(loss=squares).step(model, collate(model, 2)[0], torch.tensor([.5, 1.5]), torch.optim.SGD(model.parameters(), lr=.1))
    assert set(seen) == {torch.float32} == {result.losses.dtype} and '0x' not in repr(make(loss=squares)) and 'loss' not in repr(make())


@pytest.mark.parametrize('make', ALL)
def test_steps_that_the_scaler_skips_are_not_counted_and_autocast_asks_for_the_models_device(make, monkeypatch):
    asked, autocast = [], torch.autocast
    monkeypatch.setattr(torch, 'autocast', lambda device, dtype: (asked.append(device), autocast(device, dtype))[1])
    model = dropping().float()
    images, labels = collate(model, 2)
    images[0, 0, 0, 0] = torch.inf
    assert make().step(model, images.float(), labels, torch.optim.SGD(model.parameters(), lr=.1), precision=Precision('fp16')).optimizer_steps == 0
    assert set(asked) == {'cpu'}


def test_a_sum_over_a_cover_is_the_whole_gradient_of_the_backbone():
    for reduction, backbone, head in (('mean', 1/9, 1.), ('sum', 1., 9.)):
        net = dropping()
        net.backbone[2].p = 0.
        full, batch = gradients(net, GradientDescent(), *collate(net, 2))[0], collate(net, 2)
        ours = gradients(net, PatchGD(CoverSampler(1/9), reduction=reduction), *batch)[0]
        for k in full: assert torch.allclose(ours[k], full[k] * (backbone if k.startswith('backbone') else head), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError): PatchGD(CoverSampler(1/9), reduction='max')


def test_exact_patchgd_takes_blank_cells_as_gradient_descent_does():
    a, content = model_of('test_vit', 192), torch.rand(2, 9) > .5
    a.blank = 255
    full, ours = (gradients(a, s, *collate(a, 2), content=content)[0] for s in (GradientDescent(), ExactPatchGD(2)))
    assert largest_difference(full, ours) < 1e-10


def test_another_number_of_inner_iterations_compiles_nothing_anew():
    "On a momentum that depends on J, torch.compile compiled once for each J."
    compiled = []
    def backend(graph, inputs):
        compiled.append(1)
        return graph.forward
    torch._dynamo.reset()
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 8))
    model = PatchModel(backbone, PatchGrid(16, 4), 4, 8, 'smaller').train()
    model.backbone.compile(dynamic=True, backend=backend)
    counts = []
    for J in (2, 3, 4, 5, 6):
        PatchGD(CoverSampler(1/4), inner_steps=J).step(model, torch.randn(2, 3, 16, 16), torch.tensor([0, 1]), torch.optim.SGD(model.parameters(), lr=.1))
        counts.append(len(compiled))
    torch._dynamo.reset()
    assert len(set(counts)) == 1, counts
