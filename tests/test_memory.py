"Bytes kept for the backward pass: independent of the number of pixels."
import pytest, torch
from torch import nn
from patchgd_nb.memory import forward_bytes, inner_step_bytes, largest_image, saved_for_backward
from patchgd_nb.model import PatchModel, WholeModel
from patchgd_nb.patches import PatchGrid


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
