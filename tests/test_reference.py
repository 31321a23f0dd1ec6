"Every strategy against a slow implementation of its own (`reference.py`), in float64, over random configurations."
from copy import deepcopy
import tempfile
import hypothesis, pytest, torch
from hypothesis import given, strategies as st
from torch import nn
from patchgd_nb import CarryPatchGD, CoverSampler, ExactPatchGD, GradientDescent, PatchGD, PatchGrid, PatchModel, UniformSampler, ZBank
from reference import Reference, mode

D, CLASSES, RATE = 4, 3, .1


def small_backbone(ndim, channels, patch, norm, dropout, groups):
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[ndim]
    bn = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[ndim]
    layers = [conv(channels, 6, 2, padding=1), *([bn(6)] if norm else []), nn.ReLU(), conv(6, 6, 1, groups=groups), nn.Dropout(dropout), nn.Flatten()]
    body = nn.Sequential(*layers)
    with torch.no_grad(), mode(body, 'eval'): width = body(torch.zeros(1, channels, *patch)).shape[1]
    return nn.Sequential(*layers, nn.Linear(width, D), nn.Tanh())


@st.composite
def settings(draw):
    ndim = draw(st.integers(1, 3))
    patch = [draw(st.integers(2, 4)) for _ in range(ndim)]
    stride = [draw(st.integers(1, p)) for p in patch]
    size = [p + t * draw(st.integers(0, {1: 7, 2: 3, 3: 1}[ndim])) for p, t in zip(patch, stride)]
    return dict(ndim=ndim, patch=patch, stride=stride, size=size, B=draw(st.integers(1, 3)), channels=draw(st.integers(1, 3)), norm=draw(st.booleans()),
                dropout=draw(st.sampled_from([0., .3])), groups=draw(st.sampled_from([1, 2, 3])), blank=draw(st.sampled_from([0., .4])), seed=draw(st.integers(0, 10**6)),
                fraction=draw(st.sampled_from([1., .5, .3, .1])), accumulate=draw(st.none() | st.integers(1, 5)), steps=draw(st.none() | st.integers(1, 5)), chunk=draw(st.integers(1, 5)),
                reduction=draw(st.sampled_from(['mean', 'sum'])), head_norm=draw(st.booleans()), momentum=draw(st.sampled_from([.1, None])),
                frozen=draw(st.sampled_from(['', '', 'backbone.', 'head.', 'backbone.0.', 'head.0.', 'head.1.'])))


def case(s):
    "A model in training mode, its images, labels and content."
    torch.manual_seed(s['seed'])
    grid = PatchGrid(tuple(s['size']), tuple(s['patch']), tuple(s['stride']))
    backbone = small_backbone(s['ndim'], s['channels'], s['patch'], s['norm'], s['dropout'], s['groups'])
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[s['ndim']](D) if s['head_norm'] and s['B'] * len(grid) > 1 else nn.Identity()
    head = nn.Sequential(norm, nn.Flatten(), nn.Linear(D * len(grid), 8), nn.Tanh(), nn.Linear(8, CLASSES))
    model = PatchModel(backbone, grid, CLASSES, D, head, in_chans=s['channels']).double().train()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm): m.momentum = s['momentum']
    for name, p in model.named_parameters(): p.requires_grad_(not s['frozen'] or not name.startswith(s['frozen']))
    images, labels = torch.randn(s['B'], s['channels'], *s['size'], dtype=torch.float64), torch.randint(CLASSES, (s['B'],))
    content = None if not s['blank'] else (torch.rand(s['B'], len(grid)) > s['blank']).float()
    return model, images, labels, content


def compare(s, strategy, other, batches=1, **kwargs):
    "Both from the same weights and random state; losses, weights and running statistics after `batches` must agree to 1e-10."
    model, images, labels, content = case(s)
    twin = deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for b in range(batches):
        before = torch.get_rng_state()
        result = strategy.step(model, images, labels, optimizer, content=content, **kwargs)
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        if strategy.sampler:   # the same draws
            there = torch.ones(len(images), len(model.grid)) if content is None else content
            strategy.sample(there, strategy.inner_iterations(there), None)
        losses = other(Reference(twin.backbone, twin.head, images, labels, s['patch'], s['stride'], content, D), result.sampled)
        assert torch.equal(torch.get_rng_state(), after)
        assert result.losses.tolist() == pytest.approx(losses, abs=1e-10)
        for (name, p), q in zip(model.state_dict().items(), twin.state_dict().values()): assert (p - q).abs().max() < 1e-10, name


@given(settings())
def test_gradient_descent(s):
    compare(s, GradientDescent(), lambda r, sampled: r.gradient_descent(RATE))

@given(settings(), st.sampled_from([CoverSampler, UniformSampler]), st.sampled_from(['eval', 'frozen_stats', 'batch_stats']))
def test_patchgd(s, sampler, fill):
    strategy = PatchGD(sampler(s['fraction']), s['steps'], s['accumulate'], fill, s['chunk'], s['reduction'])
    compare(s, strategy, lambda r, sampled: r.patchgd(RATE, sampled, s['accumulate'], fill, s['chunk'], s['reduction']))

@given(settings(), st.sampled_from(['frozen_stats', 'train']))
def test_exact_patchgd(s, how):
    compare(s, ExactPatchGD(s['chunk'], how), lambda r, sampled: r.exact_patchgd(RATE, s['chunk'], how))

@hypothesis.settings(max_examples=30)
@given(settings(), st.sampled_from([0., 1/8, .5, 1.]))
def test_carry_patchgd(s, refresh):
    "Three batches of the same images, whose Z is kept."
    with tempfile.TemporaryDirectory() as folder:
        strategy, kept = CarryPatchGD(CoverSampler(s['fraction']), ZBank(folder), s['steps'], s['accumulate'], refresh, chunk=s['chunk'], reduction=s['reduction']), dict(clock=0)
        names = [f'image {b}' for b in range(s['B'])]
        compare(s, strategy, lambda r, sampled: r.carry_patchgd(RATE, sampled, kept, names, s['accumulate'], refresh, chunk=s['chunk'], reduction=s['reduction']), batches=3, names=names)
