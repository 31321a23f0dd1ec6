"Bytes kept for the backward pass: independent of the number of pixels."
import math
import pytest, torch
from torch import nn
from patchgd_nb.memory import LiveBytes, forward_bytes, inner_step_bytes, largest_image, plan, saved_for_backward, step_bytes
from patchgd_nb.base.units import parse_bytes
from patchgd_nb.model import PatchModel, WholeModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import PatchGD


def count(module, run):
    "An independent count, by storage, of what `run` keeps beyond the module's weights."
    weights = {t.data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept = {}
    def pack(t):
        if t.data_ptr() not in weights: kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t): out = run()
    return sum(kept.values())


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit'])
def test_backbones_share_is_the_same_for_512_and_8192_pixels(name):
    "To the byte, at the same sampled patches; Z and head grow with the cells only (256 times as many)."
    shares, heads = [], []
    for size in (512, 8192):
        model = PatchModel(name, PatchGrid(size, 64), n_classes=6, latent_dim=16, head='smaller').train()
        image = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(1, 3, size, size)   # large, and takes no memory
        cells = torch.tensor([[0, k] for k in (0, 7, 33, 63)])
        shares.append(count(model.backbone, lambda: model.encode(model.grid.gather(image, cells))))
        z = torch.zeros(1, 16, *model.grid.shape, requires_grad=True)
        heads.append(count(model.head, lambda: model.head(z * 1)))
        assert inner_step_bytes(model, 1, 4) == (shares[-1], heads[-1])
    assert shares[0] == shares[1] > 0
    assert 200 < heads[1] / heads[0] <= 256.5


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'mobilenetv2_050'])
def test_meta_device_counts_what_the_cpu_keeps(name):
    model = WholeModel(name, (96, 96), 6).train()
    with saved_for_backward(model) as saved: out = model(torch.zeros(2, 3, 96, 96))
    assert saved.total == count(model, lambda: model(torch.zeros(2, 3, 96, 96))) == forward_bytes(model, 2, 3, 96, 96)


def test_whole_image_training_grows_256_fold():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    assert forward_bytes(net, 1, 3, 8192, 8192) == 256 * forward_bytes(net, 1, 3, 512, 512)


def test_largest_image_is_the_largest():
    make = lambda size: WholeModel('test_resnet', (size, size), 6)
    size = largest_image(make, 4, 40 * 2**20)
    assert forward_bytes(make(size), 4, 3, size, size) <= 40 * 2**20 < forward_bytes(make(size + 1), 4, 3, size + 1, size + 1)


# the whole step, and plans

def played(model, batch, fraction):
    "Peak bytes of tensors in a real step, less the images."
    images, labels = torch.randint(256, (batch, 3, *model.grid.image_size), dtype=torch.uint8), torch.zeros(batch, dtype=torch.long)
    optimizer, strategy = torch.optim.AdamW(model.parameters()), PatchGD(CoverSampler(fraction), inner_steps=2, accumulate=2)
    strategy.step(model, images, labels, optimizer)
    live = LiveBytes(*model.parameters(), *model.buffers(), *(v for s in optimizer.state.values() for v in s.values()), images)
    with live: strategy.step(model, images, labels, optimizer)
    return live.peak - images.nbytes


@pytest.mark.parametrize('name,size,patch,batch,fraction,head', [('test_resnet', 512, 64, 3, 1/4, 'original'), ('test_resnet', 1024, 128, 1, 1/2, 'attention'), ('test_convnext', 384, 96, 4, 1/8, 'smaller'),
                                                                 ('test_vit', 320, 160, 2, 1/2, 'larger'), ('resnet18', 256, 128, 2, 1/2, 'smaller')])
def test_the_predicted_peak_is_the_real_one(name, size, patch, batch, fraction, head):
    torch.manual_seed(0)
    model = PatchModel(name, PatchGrid(size, patch), 6, 64, head).train()
    predicted = step_bytes(model, batch, math.ceil(len(model.grid) * fraction))
    assert .9 < predicted['peak'] / played(model, batch, fraction) < 1.1
    assert predicted['work'] >= inner_step_bytes(model, batch, math.ceil(len(model.grid) * fraction))[0]     # at least what is kept for backward
    assert predicted['peak'] == sum(v for k, v in predicted.items() if k != 'peak')


def test_a_plan_fits_and_the_next_batch_does_not():
    model = PatchModel('test_resnet', PatchGrid(1024, 128), 6).train()
    for budget in ('300MB', '1GB', '4GB'):
        p = plan(model, budget=budget)
        assert p.peak <= .9 * p.budget < step_bytes(model, p.batch + 1, p.patches)['peak'] and p.patches == 8


def test_one_image_that_does_not_fit_is_sampled_more_thinly():
    model = PatchModel('test_resnet', PatchGrid(8192, 256), 6).eval()      # in evaluation mode: planned for training all the same
    p = plan(model, budget='600MB', fraction=1/2)
    assert p.batch == 1 and 1 <= p.patches < 512 and p.peak <= .9 * p.budget and not model.training
    with pytest.raises(ValueError, match='not even one patch'): plan(model, budget='20MB')


def test_the_size_of_the_image_costs_z_and_the_head_only():
    need = {s: step_bytes(PatchModel('test_resnet', PatchGrid(s, 128), 6, 32, 'smaller').train(), 2, 16) for s in (2048, 16384)}
    cells = 2 * 32 * 4 * (128 ** 2 - 16 ** 2)
    assert 0 < need[16384]['peak'] - need[2048]['peak'] < 60 * cells    # Z, its copies, and what the head keeps of them: a matter of cells, not pixels
    assert need[16384]['weights'] == need[2048]['weights']


def test_a_real_step_on_16384_pixels_takes_what_one_on_2048_takes_but_for_z_and_head():
    "At 32 sampled patches; within 2 per cent, after the growth that the plan predicts."
    need, real = {}, {}
    for size in (2048, 16384):
        torch.manual_seed(0)
        model = PatchModel('test_resnet', PatchGrid(size, 128), 6, 32, 'smaller').train()
        image = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(1, 3, size, size)   # large, and takes no memory
        content = (torch.arange(len(model.grid)) < 64).float()[None]                  # as many patches to fill
        optimizer, strategy = torch.optim.AdamW(model.parameters()), PatchGD(CoverSampler(1/2), inner_steps=2, accumulate=2)
        step = lambda: strategy.step(model, image, torch.zeros(1, dtype=torch.long), optimizer, content=content)
        step()
        live = LiveBytes(*model.parameters(), *model.buffers(), *(v for s in optimizer.state.values() for v in s.values()))
        with live: assert int(step().sampled.sum()) == 64
        need[size], real[size] = step_bytes(model, 1, 32)['peak'], live.peak
    assert real[16384] - real[2048] == pytest.approx(need[16384] - need[2048], abs=.02 * real[2048])


@pytest.mark.parametrize('budget,bytes', [('16GB', 2**34), ('1.5 GB', 3 * 2**29), ('900MiB', 900 * 2**20), (12345, 12345)])
def test_amounts_of_memory(budget, bytes): assert parse_bytes(budget) == bytes


@pytest.mark.parametrize('budget', ['', 'much', '16', -1, 0, '0GB', '16 PB', None, float('inf'), float('nan'), '9' * 400 + 'GB', '9' * 308 + 'TB'], ids=lambda b: str(b)[:9])
def test_amounts_that_are_none(budget):
    with pytest.raises(ValueError, match="like '16GB'"): parse_bytes(budget)
