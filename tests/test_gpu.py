"""The same on a CPU and on a GPU: what can run on both does, on the CPU in every suite, on a GPU where there is one.

On a GPU a run is repeated to the bit only with `torch.use_deterministic_algorithms(True)`; without, sums of gradients are
taken in an order that differs from run to run. Not run on a GPU yet."""
import gc, math, os, warnings
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')   # read when CUDA starts; deterministic products need it
import pytest, torch
from patchgd_nb.experiment.gpu_check import FORECASTS, SMALL_FORECASTS, STRATEGIES, TOLERANCES, forecast, gradient_difference, make_strategy
from patchgd_nb.memory import plan, step_bytes
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import CarryPatchGD, ExactPatchGD, GradientDescent, PatchGD
from patchgd_nb.trainer import Trainer
from patchgd_nb.training.callback import Callback
from patchgd_nb.training.device import room_for_images
from patchgd_nb.training.zbank import ZBank

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=needs_gpu)])
def device(request): return torch.device(request.param)


@pytest.fixture
def cuda():
    "For what has no meaning on a CPU."
    if not torch.cuda.is_available(): pytest.skip('there is no GPU')
    gc.collect(); torch.cuda.empty_cache()
    return torch.device('cuda')


def small(device, dtype=torch.float32):
    torch.manual_seed(0)
    return PatchModel('test_resnet', PatchGrid(128, 32), 3, 16, 'smaller').to(dtype).to(device).train()


def batch_of(n=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, 128, 128), dtype=torch.uint8, generator=g), torch.arange(n) % 3


# --- what is computed

@pytest.mark.parametrize('precision', TOLERANCES)
@pytest.mark.parametrize('name', STRATEGIES)
def test_a_gradient_is_that_of_a_cpu_in_64_bits(name, precision, device):
    found = gradient_difference(name, 'test_resnet', device, precision)
    assert found['holds'], found


def gradient(model, strategy, images, labels):
    found = {}
    class Keep(torch.optim.SGD):
        def step(self, closure=None): found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    strategy.step(model, images, labels, Keep(model.parameters(), lr=0.))
    return torch.cat([found[n].flatten() for n in sorted(found)])


def test_all_patches_at_once_are_gradient_descent_in_64_bits(device):
    full, ours = (gradient(small(device, torch.float64), s, *batch_of()) for s in (GradientDescent(), PatchGD(CoverSampler(1.))))
    assert float((full - ours).abs().max()) < 1e-10


def test_pixels_may_lie_on_the_device(device):
    images, labels = batch_of()
    a, b = (gradient(small(device, torch.float64), ExactPatchGD(2), x, labels) for x in (images, images.to(device)))
    assert float((a - b).abs().max()) < 1e-10


def test_a_fused_optimizer_takes_the_same_steps(device):
    "In 64 bits, to 1e-10; without a step the weights would differ from the first ones by nothing."
    def trained(**options):
        model = small(device, torch.float64)
        before, optimizer = model.head.state_dict(), torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
        before = {k: v.clone() for k, v in before.items()}
        for i in range(3):
            torch.manual_seed(i)
            PatchGD(CoverSampler(1/4)).step(model, *batch_of(seed=i), optimizer)
        assert any(not torch.equal(v, before[k]) for k, v in model.head.state_dict().items())
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float((trained() - trained(fused=True)).abs().max()) < 1e-10


# --- Z that is kept

def test_a_bank_gives_back_what_the_device_wrote(device, tmp_path):
    "The last Z of a batch, in half precision; cells that were neither filled nor sampled do not exist here."
    model, (images, labels), seen = small(device), batch_of(), []
    strategy = CarryPatchGD(CoverSampler(1/4), ZBank(tmp_path), inner_steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    strategy.step(model, images, labels, optimizer, names=['a', 'b'], on_inner=lambda j, loss, cells, Z: seen.append(Z.z.detach().clone()))
    z, age = strategy.bank.read(['a', 'b'], (model.latent_dim, *model.grid.shape))
    assert seen[-1].device.type == device.type and (age >= 0).all()
    assert torch.equal(z, seen[-1].flatten(2).transpose(1, 2).cpu().half().float())


class StopAt(Callback):
    def __init__(self, batch): self.batch = batch
    def on_batch_end(self, trainer, result): trainer.stop = trainer.stop or (trainer.epoch, trainer.batch) == self.batch


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True, warn_only=True)   # what has no such form shows itself in the bits
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('name', ['PatchGD', 'CarryPatchGD'])
def test_a_run_resumed_on_the_device_is_the_undisturbed_one(name, device, tmp_path, deterministic):
    "To the bit, by deterministic algorithms; stopped inside the second epoch."
    batches = [(*batch_of(seed=i), None, [f'{i}a', f'{i}b']) for i in range(3)]
    def run(folder, callbacks=(), resume=False):
        torch.manual_seed(0)
        strategy = make_strategy(name, tmp_path / f'{folder}_z')
        return Trainer(small(device), strategy, batches, epochs=3, device=device, callbacks=callbacks, checkpoint=tmp_path / folder, progress=False).fit(resume)
    whole, stopped = run('whole'), run('parts', [StopAt((1, 2))])
    assert stopped.progress < 1
    resumed = run('parts', resume=True)
    assert resumed.progress >= 1 and not torch.equal(next(stopped.model.head.parameters()), next(whole.model.head.parameters()))
    for k, v in whole.model.state_dict().items(): assert torch.equal(v, resumed.model.state_dict()[k]), k


# --- memory

@pytest.mark.parametrize('setting', SMALL_FORECASTS, ids=str)
def test_a_small_forecast_is_made_and_counted_on_the_device(setting, device):
    "On a CPU within 10 per cent; a GPU's work space is too large beside a model that small for a bound."
    found = forecast(device, *setting)
    assert found['counted'] > 0 and found['predicted'] > 0
    if device.type == 'cpu': assert found['holds'], found


@pytest.mark.slow
@pytest.mark.parametrize('setting', FORECASTS, ids=str)
def test_a_predicted_peak_is_within_10_per_cent(setting, cuda):
    found = forecast(cuda, *setting)
    assert found['holds'], found


def model_of(size):
    torch.manual_seed(0)
    return PatchModel('resnet18', PatchGrid(size, 256), 6, 256).train().cuda()


def batches_of(model, batch):
    "Of images that are large, and take no memory."
    image = torch.zeros(batch, 3, 1, 1, dtype=torch.uint8).expand(batch, 3, *model.grid.image_size)
    return [(image, torch.arange(batch) % 6)]


def peak_of(size, batch, fraction):
    "Bytes predicted, and those that the allocator counted at most in the second and third batch of a trainer."
    gc.collect(); torch.cuda.empty_cache()
    before, model = torch.cuda.memory_allocated(), model_of(size)
    predicted, batches = step_bytes(model, batch, math.ceil(len(model.grid) * fraction))['peak'], batches_of(model, batch)
    if batches[0][0].nbytes <= room_for_images(model.device): predicted += batches[0][0].nbytes   # they are sent there whole
    trainer = Trainer(model, PatchGD(CoverSampler(fraction), inner_steps=2, accumulate=1), batches, epochs=1, device='cuda', progress=False)
    trainer.fit()
    torch.cuda.reset_peak_memory_stats()
    trainer.epochs = 3; trainer.fit()
    return predicted, torch.cuda.max_memory_allocated() - before


@pytest.mark.slow
def test_a_step_on_16384_pixels_takes_what_one_on_2048_takes_but_for_z_and_head(cuda):
    (small, counted_small), (large, counted_large) = (peak_of(size, 1, 32 / (size // 256) ** 2) for size in (2048, 16384))
    assert counted_large - counted_small == pytest.approx(large - small, abs=.02 * counted_small)


@pytest.mark.slow
def test_memory_that_ran_out_is_free_again_and_the_hint_fits(cuda):
    total, budget = torch.cuda.get_device_properties(0).total_memory, 3 * 2**30
    try:
        torch.cuda.set_per_process_memory_fraction(budget / total)
        model = model_of(2048)
        small = torch.cuda.memory_allocated()
        with pytest.raises(MemoryError, match='out of memory in epoch 0, batch 0'), pytest.warns(UserWarning, match='more than the 3.00 GiB'):
            Trainer(model, PatchGD(CoverSampler(1/2)), batches_of(model, 16), device='cuda', memory_budget=budget, progress=False).fit()
        assert torch.cuda.memory_allocated() < 2 * small
        fits = plan(model, budget=budget, fraction=1/2).batch
        Trainer(model, PatchGD(CoverSampler(1/2)), batches_of(model, fits), epochs=1, device='cuda', progress=False).fit()
    finally: torch.cuda.set_per_process_memory_fraction(1.)


# --- waiting for the device

@pytest.fixture
def sync_mode(cuda):
    "Sets what torch does where the CPU waits for the GPU: 'error' or 'warn'."
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('strategy', [GradientDescent(), PatchGD(CoverSampler(1/4), accumulate=1), ExactPatchGD(2)], ids=repr)
def test_nothing_in_a_step_waits_for_the_device(strategy, cuda, sync_mode):
    "The first step may: cuDNN looks around, the optimizer makes its moments. After it only whoever reads the losses."
    model, (images, labels) = small(cuda), batch_of()
    images, labels, optimizer = images.pin_memory(), labels.cuda(), torch.optim.AdamW(model.parameters(), lr=1e-3)
    strategy.step(model, images, labels, optimizer)
    sync_mode('error')
    result = strategy.step(model, images, labels, optimizer)
    with pytest.raises(RuntimeError, match='synchroniz'): result.losses.cpu()      # the mode does find what waits
    sync_mode('default')
    assert result.losses.cpu().isfinite().all()


def test_with_z_kept_the_waiting_does_not_grow_with_the_inner_iterations(cuda, sync_mode, tmp_path):
    "Z comes from the host and goes back to it once in a batch, however many iterations it has."
    waits = []
    for steps in (2, 8):
        model, (images, labels) = small(cuda), batch_of()
        strategy = CarryPatchGD(CoverSampler(1/8), ZBank(tmp_path / str(steps)), inner_steps=steps, accumulate=1)
        optimizer, labels = torch.optim.AdamW(model.parameters(), lr=1e-3), labels.cuda()
        strategy.step(model, images, labels, optimizer, names=['a', 'b'])
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            sync_mode('warn')
            strategy.step(model, images, labels, optimizer, names=['a', 'b'])
            sync_mode('default')
        waits.append(sum('synchroniz' in str(w.message) for w in seen))
    assert 0 < waits[1] <= waits[0]


# --- learning in 16 bits

@pytest.mark.slow
@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_training_in_16_bits_learns(precision, cuda):
    torch.manual_seed(0)
    labels = torch.arange(8) % 2
    images = torch.randint(100, (8, 3, 256, 256), dtype=torch.uint8) + 120 * labels.byte()[:, None, None, None]
    model = PatchModel('resnet18', PatchGrid(256, 64), 2, 32, 'smaller')
    run = Trainer(model, PatchGD(CoverSampler(1/4)), [(images, labels)], [(images, labels)], lr=1e-3, epochs=30, precision=precision, device='cuda', progress=False).fit()
    assert run.trace.epochs[-1]['accuracy'] == 1 and all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
