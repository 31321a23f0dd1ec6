"Properties of the whole algorithm, over any grid, stride, fraction, mask, type of pixel and head: DESIGN's invariants, widened by hypothesis."
from math import ceil, prod
import pytest, torch
from hypothesis import example, given, settings, strategies as st
from torch import nn
from patchgd_nb.head import PUBLISHED, SIZES, make_head
from patchgd_nb.images.readers import ArrayImage
from patchgd_nb.memory import saved_for_backward
from patchgd_nb.model import PatchModel, module_mode
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler, UniformSampler, WeightedSampler
from patchgd_nb.strategy import ExactPatchGD, GradientDescent, PatchGD, Precision

CONV, BATCHNORM = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}, {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
WIDTH = 3   # of a latent


def backbone(ndim, chans, norm=False):
    "A convolution, a mean, a linear layer: as small as a network gets."
    return nn.Sequential(CONV[ndim](chans, 4, 3, padding=1), BATCHNORM[ndim](4) if norm else nn.Identity(), nn.Tanh(), POOL[ndim](1), nn.Flatten(), nn.Linear(4, WIDTH))


@st.composite
def grids(draw, ndims=(1, 2, 3), most=4):
    "Any grid, of patches that overlap or do not; a few patches along each axis."
    patches = [draw(st.integers(1, 5)) for _ in range(draw(st.sampled_from(ndims)))]
    axes = [(draw(st.integers(1, most)), p, draw(st.integers(1, p))) for p in patches]
    return PatchGrid(tuple((n - 1) * t + p for n, p, t in axes), tuple(p for _, p, _ in axes), tuple(t for *_, t in axes))


@st.composite
def masks(draw, batch, patches):
    "Content of each patch: everything, nothing, or anything; whole images are blank more often than chance would have it."
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    share = torch.tensor(draw(st.lists(st.sampled_from([0., .2, .6, 1.]), min_size=batch, max_size=batch)))
    return torch.rand(batch, patches, generator=g) * (torch.rand(batch, patches, generator=g) < share[:, None])


@st.composite
def cases(draw, ndims=(1, 2, 3), heads=('smaller', 'attention'), dtypes=(torch.uint8, torch.float32, torch.float64), norm=False, double=True, most=3):
    "A model in training mode, a batch for it, and its content; small enough to be tried by the hundred."
    grid, batch, chans = draw(grids(ndims, most)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    head = make_head(draw(st.sampled_from(heads)), WIDTH, grid.shape, 4)
    model = PatchModel(backbone(grid.ndim, chans, norm), grid, 4, WIDTH, head, in_chans=chans).train()
    dtype = draw(st.sampled_from(dtypes))
    images = torch.randint(256, (batch, chans, *grid.image_size), dtype=torch.uint8) if dtype == torch.uint8 else torch.randn(batch, chans, *grid.image_size).to(dtype)
    content = draw(st.none() | masks(batch, len(grid)))
    return model.double() if double else model, images, torch.randint(4, (batch,)), content


class Keep(torch.optim.SGD):
    "Keeps the gradients that it is given at each step, and moves nothing."
    def __init__(self, model):
        super().__init__(model.parameters(), lr=0.)
        self.names, self.given = {p: n for n, p in model.named_parameters()}, []
    def step(self, *args, **kwargs): self.given.append({n: p.grad.clone() for p, n in self.names.items() if p.grad is not None})


def gradient(strategy, model, images, labels, content):
    "The gradient of one step, and what the step returned."
    optimizer = Keep(model)
    result = strategy.step(model, images, labels, optimizer, content=content)
    assert len(optimizer.given) == result.optimizer_steps
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())   # nothing is left for the next batch
    return optimizer.given[-1], result


def difference(a, b):
    "Largest difference of two gradients; one that is absent is zero."
    return max((a.get(k, torch.zeros(())) - b.get(k, torch.zeros(()))).abs().max().item() for k in a.keys() | b.keys())


# --- 1: equal where mathematics says so

@given(cases(norm=False), st.sampled_from([CoverSampler, UniformSampler, WeightedSampler]), st.integers(1, 9))
def test_all_patches_in_one_inner_step_are_gradient_descent(case, sampler, chunk):
    full, _ = gradient(GradientDescent(), *case)
    ours, result = gradient(PatchGD(sampler(1.), inner_steps=1, chunk=chunk), *case)
    content = case[3] if case[3] is not None else torch.ones(len(case[1]), len(case[0].grid))
    assert torch.equal(result.sampled[0], content > 0)
    assert difference(full, ours) < 1e-10


@given(cases(norm=False), st.integers(1, 70))
def test_exact_patchgd_is_gradient_descent_for_any_chunk(case, chunk):
    full, one = gradient(GradientDescent(), *case)
    ours, two = gradient(ExactPatchGD(chunk), *case)
    assert difference(full, ours) < 1e-10 and (one.scores - two.scores).abs().max() < 1e-10 and abs(one.loss - two.loss) < 1e-10


@given(cases(norm=True, heads=('smaller',)), st.integers(1, 70))
def test_that_holds_with_batchnorm_on_its_running_statistics(case, chunk):
    model = case[0]
    with module_mode(model.backbone, 'frozen_stats'): full, _ = gradient(GradientDescent(), *case)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert difference(full, gradient(ExactPatchGD(chunk), *case)[0]) < 1e-10
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@given(cases(heads=('smaller',)), st.integers(0, 2**20), st.sampled_from([1 / 2, 1 / 3, .9]), st.sampled_from(['off', 'bf16']))
def test_a_step_leaves_blank_patches_out_of_everything(case, seed, fraction, kind):
    "What blank patches show changes no gradient, no score, no loss: they may hold NaN. Where patches overlap, pixels that only blank ones see."
    model, images, labels, content = case
    if content is None or not images.is_floating_point(): return
    seen = model.grid.place((content > 0).view(*content.shape, *[1] * (model.grid.ndim + 1)).expand(*content.shape, 1, *model.grid.patch_size).float()) > 0
    spoilt = images.where(seen.expand_as(images), torch.nan)
    for strategy in (PatchGD(CoverSampler(fraction)), ExactPatchGD(2), GradientDescent()):
        both = []
        for pixels in (images, spoilt):
            torch.manual_seed(seed)
            optimizer = Keep(model)
            result = strategy.step(model, pixels, labels, optimizer, content=content, precision=Precision(kind))
            both.append([result.losses, result.scores, *(g for step in optimizer.given for g in step.values())])
        assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*both, strict=True))


# --- 2: a step for every batch

@given(cases(double=False, heads=('smaller', 'attention')), st.sampled_from([CoverSampler, UniformSampler, WeightedSampler]), st.floats(1e-9, 1), st.none() | st.integers(1, 7), st.none() | st.integers(1, 9), st.sampled_from(['eval', 'frozen_stats', 'batch_stats', 'train']), st.sampled_from(['off', 'bf16']))
def test_every_batch_steps_and_flushes_its_remainder(case, sampler, fraction, inner_steps, accumulate, fill_mode, kind):
    model, images, labels, content = case
    strategy = PatchGD(sampler(fraction), inner_steps, accumulate, fill_mode)
    for _ in range(2):   # a second batch finds nothing of the first
        optimizer = Keep(model)
        result = strategy.step(model, images, labels, optimizer, content=content, precision=Precision(kind))
        J = len(result.sampled)
        assert J == inner_steps or inner_steps is None
        assert len(optimizer.given) == result.optimizer_steps == ceil(J / min(accumulate or J, J)) >= 1
        assert all(g['head.classify.weight'].any() for g in optimizer.given)   # none of the steps is empty, blank images or not
        assert result.losses.shape == (J,) and result.losses.isfinite().all() and result.scores.shape == (len(images), 4)
        assert not (result.sampled & (content <= 0)).any() if content is not None else True
        assert all(p.grad is None or not p.grad.any() for p in model.parameters()) and all(p.dtype == torch.float32 for p in model.parameters())


@given(cases(heads=('smaller',)), st.integers(1, 6), st.integers(1, 6))
def test_groups_of_inner_steps_are_their_mean(case, inner_steps, accumulate):
    "With weights that stand still, each optimizer step is given the mean over its group; the last group is shorter, not lighter."
    model, images, labels, content = case
    def run(every):
        torch.manual_seed(7)
        optimizer = Keep(model)
        PatchGD(CoverSampler(1 / 3), inner_steps, every).step(model, images, labels, optimizer, content=content)
        return optimizer.given
    single, grouped = run(1), run(accumulate)
    assert len(single) == inner_steps
    for i, g in enumerate(grouped):
        group = single[i * accumulate:(i + 1) * accumulate]
        assert difference(g, {k: sum(s.get(k, 0) for s in group) / len(group) for k in g}) < 1e-10


# --- 3: evaluation

@given(cases(norm=True, heads=('smaller', 'published_smaller_feat', 'attention')), st.integers(1, 9), st.integers(1, 50))
def test_evaluation_depends_on_no_chunk_and_no_company(case, chunk, other):
    "The scores of an image are the same for any chunk, alone or in a batch, with gradient or without; nothing is drawn, nothing is moved."
    model, images, _, content = case
    model.eval()
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        scores = model(images, content, chunk)
        again = [model(images, content, other), torch.cat([model(images[i:i + 1], None if content is None else content[i:i + 1], other) for i in range(len(images))])]
    again.append(model(images, content).detach())
    assert max((s - scores).abs().max().item() for s in again) < 1e-10
    assert torch.equal(torch.get_rng_state(), state) and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@given(cases(ndims=(2,), dtypes=(torch.uint8,), heads=('smaller',)), st.integers(1, 9))
def test_images_read_by_window_are_the_same_images(case, chunk):
    model, images, labels, content = case
    if images.shape[1] != 3: images, model.backbone[0], model.normalize = images[:, :1].repeat(1, 3, 1, 1), CONV[2](3, 4, 3, padding=1).double(), type(model.normalize)(model.backbone, 3).double()
    lazy = [ArrayImage(i) for i in images]
    for strategy in (PatchGD(CoverSampler(1 / 2)), ExactPatchGD(chunk)):
        both = []
        for batch in (images, lazy):
            torch.manual_seed(3)
            both.append(gradient(strategy, model, batch, labels, content)[0])
        assert difference(*both) < 1e-10
    with torch.no_grad(): assert (model(images, content) - model(lazy, content, chunk)).abs().max() < 1e-10


# --- 5, 6: batches of one, and memory

@given(grids(most=3), st.sampled_from([*SIZES, *[h for h in PUBLISHED if h != 'published_larger_feat'], 'attention']), st.sampled_from([GradientDescent(), PatchGD(CoverSampler(1 / 2), accumulate=1), ExactPatchGD(2)]), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_one_image_trains_with_every_head(grid, head, strategy, norm, blank):
    model = PatchModel(backbone(grid.ndim, 1, norm), grid, 4, WIDTH, head, in_chans=1).train()
    content = torch.zeros(1, len(grid)) if blank else None
    result = strategy.step(model, torch.randn(1, 1, *grid.image_size), torch.tensor([2]), torch.optim.SGD(model.parameters(), .1), content=content)
    assert result.losses.isfinite().all() and all(p.isfinite().all() for p in model.parameters())


@given(st.data())
@settings(max_examples=40)
def test_bytes_kept_depend_on_patches_and_cells_not_on_pixels(data):
    "The same patches on the same cells, on more pixels (a larger stride): to the byte the same. Twice the patches: the backbone keeps twice as much."
    ndim, cells, patch, batch = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 4)), data.draw(st.integers(2, 5)), data.draw(st.integers(1, 3))
    torch.manual_seed(0)
    def kept(stride, n, images=batch):
        grid = PatchGrid((stride * (cells - 1) + patch,) * ndim, patch, stride)
        net = PatchModel(backbone(ndim, 2), grid, 4, WIDTH, 'smaller', in_chans=2).train()
        chosen = torch.cartesian_prod(torch.arange(images), torch.randperm(len(grid))[:n])
        pixels = torch.zeros(1, 2, *[1] * ndim).expand(images, 2, *grid.image_size)
        with saved_for_backward(net) as back: z = net.encode(grid.gather(pixels, chosen))
        with saved_for_backward(net, z) as front: net.head(torch.zeros(images, len(grid), WIDTH).index_put((chosen[:, 0], chosen[:, 1]), z).transpose(1, 2).unflatten(2, grid.shape))
        return back.total, front.total
    n = data.draw(st.integers(1, cells ** ndim // 2))
    few = [kept(stride, n) for stride in range(1, patch + 1)]
    assert len(set(few)) == 1
    assert kept(patch, 2 * n)[0] == 2 * few[0][0] == kept(1, n, 2 * batch)[0]


# --- samplers and geometry, where the tests beside them do not reach

@given(st.integers(1, 4), st.integers(1, 60), st.sampled_from([CoverSampler, UniformSampler, WeightedSampler]), st.floats(1e-300, 1), st.none() | st.integers(1, 30), st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bool, torch.int64, torch.uint8]), st.data())
def test_any_content_is_sampled_within_bounds(batch, patches, sampler, fraction, steps, dtype, data):
    content = data.draw(masks(batch, patches))
    content = content.gt(0).to(dtype) if not dtype.is_floating_point else content.to(dtype)
    if dtype.is_floating_point and data.draw(st.booleans()): content.view(-1)[data.draw(st.integers(0, content.numel() - 1))] = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf, -1., 1e-7, 6e4]))
    sampled = sampler(fraction)(content, steps)
    total = (content > 0).sum(1)
    assert sampled.dtype == torch.bool and sampled.shape[1:] == content.shape and (steps is None or len(sampled) == steps)
    assert not (sampled & ~(content > 0)).any()
    most = torch.tensor([min(int(n), max(1, ceil(int(n) * fraction - 1e-9))) for n in total])
    assert (sampled.sum(2) <= most).all()
    if sampler is not CoverSampler: assert (sampled.sum(2) == most).all()   # never none, however small the fraction
    elif steps is None: assert torch.equal(sampled.sum(0), (content > 0).long())


@given(st.lists(st.integers(-3, 40), min_size=1, max_size=3), st.integers(-2, 12), st.none() | st.integers(-2, 12))
def test_a_grid_tiles_its_image_or_is_refused(size, patch, stride):
    "Every pixel is in some patch, none is outside; or one sentence says what does not fit."
    try: grid = PatchGrid(tuple(size), patch, stride)
    except ValueError as e:
        assert str(e).endswith('.') and '\n' not in str(e) and any(str(n) in str(e) for n in (*size, patch, stride))
        return
    covered = grid.place(torch.ones(1, len(grid), 1, *grid.patch_size))
    assert (covered == 1).all() and len(grid) == prod(grid.shape) and covered.shape[2:] == tuple(size)


@given(st.tuples(*[st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=3), st.lists(st.integers(0, 9) | st.floats(), max_size=3))] * 3))
@example(((), 1, None))
@example((float('inf'), 4, 4))
def test_what_is_no_number_is_no_grid(args):
    "Parameters come from notebooks: text, nothing, infinities."
    try: grid = PatchGrid(*args)
    except ValueError as e: assert str(e).endswith('.') and len(str(e).splitlines()) == 1 and any(says in str(e) for says in ('must be', 'choose', 'pad the image'))
    else: assert len(grid) >= 1


@given(cases(most=2, heads=('smaller',)))
@settings(max_examples=20)
def test_what_does_not_fit_is_refused_in_one_sentence(case):
    model, images, labels, _ = case
    with pytest.raises(ValueError) as e: model.fill(images, content=torch.ones(len(images), len(model.grid) + 1))
    assert str(e.value).endswith('.') and '\n' not in str(e.value)
    with pytest.raises(ValueError) as e: model.fill(images.repeat(1, 1, *[2] * model.grid.ndim))
    assert str(e.value).endswith('.') and '\n' not in str(e.value)
    with pytest.raises(ValueError, match='attention'): make_head('smaller', WIDTH, (1, 2, 2, 1), 4)
    assert make_head('attention', WIDTH, (1, 2, 2, 1), 4)(torch.randn(2, WIDTH, 1, 2, 2, 1)).shape == (2, 4)
