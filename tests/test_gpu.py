"On a GPU: what was predicted, against what its allocator counts; and training in 16 bits. Not run on a GPU yet; skipped where there is none."
import gc, math
import pytest, torch
from patchgd_nb.memory import plan, step_bytes
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import PatchGD
from patchgd_nb.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')]


def model_of(size):
    torch.manual_seed(0)
    return PatchModel('resnet18', PatchGrid(size, 256), 6, 256).train().cuda()


def batches_of(model, batch):
    "Of images that are large, and take no memory."
    image = torch.zeros(batch, 3, 1, 1, dtype=torch.uint8).expand(batch, 3, *model.grid.image_size)
    return [(image, torch.arange(batch) % 6)]


def peak_of(size, batch, fraction, precision='off'):
    "Bytes predicted, and those that the allocator counted at most in the second and third batch."
    gc.collect(); torch.cuda.empty_cache()
    before, model = torch.cuda.memory_allocated(), model_of(size)
    predicted = step_bytes(model, batch, math.ceil(len(model.grid) * fraction), precision=precision)['peak']
    trainer = Trainer(model, PatchGD(CoverSampler(fraction), inner_steps=2, accumulate=1), batches_of(model, batch), epochs=1, precision=precision, device='cuda', progress=False)
    trainer.fit()
    torch.cuda.reset_peak_memory_stats()
    trainer.epochs = 3; trainer.fit()
    return predicted, torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize('precision', ['off', 'bf16', 'fp16'])
def test_a_predicted_peak_is_within_10_per_cent(precision):
    predicted, counted = peak_of(2048, 2, 1/2, precision)
    assert counted == pytest.approx(predicted, rel=.1)


def test_a_step_on_16384_pixels_takes_what_one_on_2048_takes_but_for_z_and_head():
    (small, counted_small), (large, counted_large) = (peak_of(size, 1, 32 / (size // 256) ** 2) for size in (2048, 16384))
    assert counted_large - counted_small == pytest.approx(large - small, abs=.02 * counted_small)


def test_memory_that_ran_out_is_free_again_and_the_hint_fits():
    gc.collect(); torch.cuda.empty_cache()
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


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_training_in_16_bits_learns(precision):
    torch.manual_seed(0)
    labels = torch.arange(8) % 2
    images = torch.randint(100, (8, 3, 256, 256), dtype=torch.uint8) + 120 * labels.byte()[:, None, None, None]
    model = PatchModel('resnet18', PatchGrid(256, 64), 2, 32, 'smaller')
    run = Trainer(model, PatchGD(CoverSampler(1/4)), [(images, labels)], [(images, labels)], lr=1e-3, epochs=30, precision=precision, device='cuda', progress=False).fit()
    assert run.trace.epochs[-1]['accuracy'] == 1 and all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
