"A step asks its device nothing, sends pixels once, casts weights once, and calls the head as often as it must."
import inspect, warnings
from types import SimpleNamespace
import pytest, torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from patchgd_nb import model as model_module
from patchgd_nb.model import PatchModel, compile_backbone
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import CarryPatchGD, ExactPatchGD, GradientDescent, PatchGD
from patchgd_nb.training.device import forward_peak, free_bytes, room_for_images, send
from patchgd_nb.training.optimizer import fused_where_possible, make_optimizer
from patchgd_nb.training.precision import Precision
from patchgd_nb.training.zbank import ZBank

STRATEGIES = [GradientDescent(), PatchGD(CoverSampler(1/4)), PatchGD(CoverSampler(1/4), accumulate=1, reduction='sum'), ExactPatchGD(3), ExactPatchGD(3, 'train')]


def small(device='cpu', head='attention'):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 8))
    return PatchModel(backbone, PatchGrid(32, 8), 4, 8, head, blank=255).train().to(device)


def batch(n=2):
    g = torch.Generator().manual_seed(n)
    content = torch.ones(n, 16)
    content[0, :5] = 0
    return torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), torch.arange(n), content


class Traffic(TorchDispatchMode):
    "What goes to a device, and what it is asked. The device `meta` has no numbers: whoever asks for one gets an error."
    def __init__(self):
        super().__init__()
        self.sent, self.waited = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        to = torch.device(kwargs.get('device') or 'cpu')
        if name == '_to_copy' and to.type != args[0].device.type:
            self.sent.append(args[0])
            if to.type == 'cpu' or not kwargs.get('non_blocking'): self.waited.append(inspect.stack()[3].lineno)
        if name in ('_local_scalar_dense', 'nonzero', 'masked_select') and args[0].device.type != 'cpu': self.waited.append(name)
        return func(*args, **kwargs)


@pytest.mark.parametrize('strategy', STRATEGIES, ids=repr)
def test_a_step_asks_its_device_nothing(strategy):
    "On `meta`, where numbers, places of numbers and copies to the CPU are errors; what is sent is sent without waiting."
    model, (images, labels, content) = small('meta'), batch()
    optimizer = make_optimizer(torch.optim.AdamW, model)
    with Traffic() as traffic: result = strategy.step(model, images, labels, optimizer, content=content)
    assert result.losses.device.type == 'meta' and not traffic.waited and traffic.sent


@pytest.mark.parametrize('ask', [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x.cpu(), lambda x: x[x > 0]])
def test_that_device_would_notice(ask):
    with pytest.raises((RuntimeError, NotImplementedError)): ask(torch.zeros(3, device='meta'))
    with Traffic() as traffic: torch.zeros(3).to('meta')
    assert traffic.waited


def test_carrying_waits_only_when_the_bank_is_written(tmp_path, monkeypatch):
    model, (images, labels, content) = small('meta'), batch()
    strategy, kept = CarryPatchGD(CoverSampler(1/4), ZBank(tmp_path)), []
    monkeypatch.setattr(strategy.bank, 'write', lambda *args: kept.append(args))
    with Traffic() as traffic:
        for _ in range(2): strategy.step(model, images, labels, make_optimizer(torch.optim.AdamW, model), content=content, names=['a', 'b'])
    assert len(kept) == 2 and not traffic.waited


@pytest.mark.parametrize('room', [0, 10 ** 9])
@pytest.mark.parametrize('strategy', STRATEGIES, ids=repr)
def test_pixels_are_sent_once_where_they_fit(strategy, room, monkeypatch):
    "And otherwise as patches, when they are needed."
    monkeypatch.setattr(model_module, 'room_for_images', lambda device: room)
    model, (images, labels, content) = small('meta'), batch()
    with Traffic() as traffic: strategy.step(model, images, labels, make_optimizer(torch.optim.AdamW, model), content=content)
    pixels = [t.shape for t in traffic.sent if t.dtype == torch.uint8 and t.ndim == 4 and len(t) > 1]   # one blank patch is no pixel of theirs
    assert (pixels == [images.shape]) == bool(room) and sum(s[0] for s in pixels if s != images.shape) > 0 or room
    with torch.no_grad(), Traffic() as traffic: model.eval()(images, content)
    assert [t.shape for t in traffic.sent if t.dtype == torch.uint8 and t.ndim == 4].count(images.shape) == bool(room)


def test_on_a_cpu_nothing_is_moved():
    model, (images, *_) = small(), batch()
    lazy = [object()]
    assert model.bring(images) is images and model.bring(lazy) is lazy and send(images, images.device) is images
    assert model.chunk_that_fits(2) == 8


class Calls:
    "How often the head is called, and how many weights are cast to 16 bits."
    def __init__(self, model):
        self.heads, self.casts, self.weights = 0, 0, {p.shape for p in model.parameters() if p.ndim > 1}
        model.head.register_forward_pre_hook(lambda *_: setattr(self, 'heads', self.heads + 1))

    def count(self):
        calls = self
        class Casts(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                cast = func is torch.ops.aten._to_copy.default and kwargs.get('dtype') == torch.bfloat16
                calls.casts += cast and args[0].shape == (4, 3, 3, 3)   # the convolution's
                return func(*args, **(kwargs or {}))
        return Casts()


# head passes; casts of a weight of the backbone: without gradient, and with it for each version of the weights
@pytest.mark.parametrize('strategy, heads, casts', [(GradientDescent(), 1, 1), (PatchGD(CoverSampler(1/4)), 4, 2), (PatchGD(CoverSampler(1/4), accumulate=2), 4, 3),
                                                    (PatchGD(CoverSampler(1/4), accumulate=1), 4, 5), (ExactPatchGD(2), 1, 2)], ids=repr)
def test_passes_of_the_head_and_casts_of_the_weights(strategy, heads, casts):
    model, (images, labels, _) = small(head='smaller'), batch()
    model.blank, calls = None, Calls(model)
    with calls.count(): strategy.step(model, images, labels, torch.optim.SGD(model.parameters(), lr=.1), precision=Precision('bf16'))
    assert (calls.heads, calls.casts) == (heads, casts)


@pytest.mark.parametrize('accumulate', [None, 1, 3])
def test_shared_casts_are_never_of_old_weights(accumulate, monkeypatch):
    "The same losses and weights, to the bit, as with a cast for every inner iteration."
    def learn():
        model, (images, labels, _) = small(head='smaller'), batch()
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=.5)
        losses = [PatchGD(CoverSampler(1/8), accumulate=accumulate).step(model, images, labels, optimizer, precision=Precision('bf16')).losses for _ in range(2)]
        return torch.cat(losses), *model.state_dict().values()
    ours, autocast = learn(), torch.autocast
    monkeypatch.setattr(torch, 'autocast', lambda *a: autocast(*a, cache_enabled=False))
    assert all(map(torch.equal, ours, learn()))


@pytest.mark.parametrize('strategy', [lambda c: PatchGD(CoverSampler(1/4), chunk=c), lambda c: ExactPatchGD(c or 8)])
def test_a_chunk_from_memory_gives_the_same_numbers(strategy):
    losses = []
    for chunk in (None, 1, 5, 16):
        model, (images, labels, content) = small().double(), batch()
        model.backbone[2].p = 0.
        torch.manual_seed(1)
        losses.append(strategy(chunk).step(model, images, labels, torch.optim.SGD(model.parameters(), lr=.1), content=content).losses)
    assert max((l - losses[0]).abs().max().item() for l in losses) < 1e-10


def test_a_fill_takes_as_many_patches_as_an_inner_iteration():
    sampled = torch.zeros(2, 2, 64, dtype=torch.bool)
    sampled[1, 0, :20] = True
    assert PatchGD(CoverSampler(1/4)).fill_chunk(sampled) == 20 and PatchGD(CoverSampler(1/4)).fill_chunk(sampled[:1]) == 8
    assert PatchGD(CoverSampler(1/4), chunk=3).fill_chunk(sampled) == 3


def test_the_largest_output_counts():
    assert forward_peak(nn.Sequential(nn.Linear(2, 50), nn.Linear(50, 3)), torch.zeros(7, 2)) == 4 * 7 * 50 * 4


@pytest.mark.parametrize('make', [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_optimizer_makes_the_same_steps(make):
    weights = []
    for fused in (True, False):
        model, (images, labels, _) = small().double(), batch()
        optimizer = make_optimizer(make, model, .1, .01) if fused else make(model.parameters(), lr=.1, weight_decay=.01)
        assert bool(optimizer.defaults['fused']) == fused
        for group in optimizer.param_groups: group.update({'eps': 1e-3} if 'eps' in group else {})   # else Adam makes steps of noise where a gradient is zero
        torch.manual_seed(1)
        for _ in range(3): PatchGD(CoverSampler(1/4)).step(model, images, labels, optimizer)
        weights.append([p.detach() for p in model.parameters()])
    assert max((a - b).abs().max().item() for a, b in zip(*weights)) < 1e-10


def test_moments_are_laid_out_like_their_weights_after_loading():
    model, (images, labels, _) = small(), batch()
    model.backbone[0].weight.data = model.backbone[0].weight.data.contiguous(memory_format=torch.channels_last)   # as of a large network
    optimizer = make_optimizer(torch.optim.AdamW, model)
    PatchGD(CoverSampler(1/4)).step(model, images, labels, optimizer)
    saved = optimizer.state_dict()
    for state in saved['state'].values(): state.update({k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()})
    other = make_optimizer(torch.optim.AdamW, model)
    other.load_state_dict(saved)
    weight = model.backbone[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    assert other.state[weight]['exp_avg'].stride() == weight.stride() and torch.equal(other.state[weight]['exp_avg'], optimizer.state[weight]['exp_avg'])


@pytest.mark.parametrize('ratio', [.5, 1.5])
def test_a_compiled_backbone_stays_only_if_it_is_faster(ratio, monkeypatch):
    "The same numbers either way; weights, gradients and statistics are as before; another number of patches compiles nothing anew."
    torch._dynamo.reset()
    model, compiled = small(), []
    def backend(graph, inputs):
        compiled.append(1)
        return graph.forward
    before, patches = {k: v.clone() for k, v in model.state_dict().items()}, batch()[0][..., :8, :8]
    with torch.no_grad(): latents = model.eval().encode(patches)
    measure, calls = model_module._ratio_to_plain, []
    monkeypatch.setattr(model_module, '_ratio_to_plain', lambda *a: (calls.append(measure(*a, turns=1)), ratio)[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        compile_backbone(model, backend=backend)
    assert calls[0] > 0 and (model.backbone._compiled_call_impl is not None) == (ratio < 1)
    said = [str(w.message) for w in caught if '1.50 times' in str(w.message)]
    assert len(said) == (ratio > 1) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad(): assert torch.allclose(model.encode(patches), latents, atol=1e-6)
    n = len(compiled)
    for k in (3, 5, 9): model.encode(patches[:1].expand(k, -1, -1, -1).clone()).sum().backward()
    assert n and len(compiled) <= n + 1   # with gradient: once for all numbers of patches
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@pytest.mark.parametrize('strategy', STRATEGIES, ids=repr)
def test_on_a_gpu_nothing_waits(strategy):
    model, (images, labels, content) = small('cuda'), batch()
    optimizer = make_optimizer(torch.optim.AdamW, model)
    strategy.step(model, images, labels, optimizer, content=content)
    try:
        torch.cuda.set_sync_debug_mode('error')
        result = strategy.step(model, images, labels, optimizer, content=content)
    finally: torch.cuda.set_sync_debug_mode('default')
    assert result.losses.isfinite().all()


def test_a_part_of_a_gpu_that_torch_may_use_is_all_there_is(monkeypatch):
    "A limit of 4 GB on a GPU of 140, 100 of them free: not a quarter of the 100 is to be had."
    fakes = dict(mem_get_info=(100 * 2**30, 140 * 2**30), memory_reserved=3 * 2**30, memory_allocated=2**30, get_per_process_memory_fraction=4 / 140)
    for name, value in fakes.items(): monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: SimpleNamespace(total_memory=140 * 2**30))
    gpu = torch.device('cuda', 0)
    assert free_bytes(gpu) == pytest.approx(3 * 2**30) and room_for_images(gpu) == pytest.approx(2**32 / 20)
    monkeypatch.setattr(torch.cuda, 'get_per_process_memory_fraction', lambda device: 1.)
    assert free_bytes(gpu) == 102 * 2**30 and room_for_images(gpu) == 7 * 2**30
