"Z, heads and models."
import pytest, torch
from torch import nn
from patchgd_nb.head import SIZES, make_head
from patchgd_nb.model import PatchModel, module_mode
from patchgd_nb.patches import PatchGrid
from patchgd_nb.zblock import ZBlock

HEADS = [*SIZES, 'attention']


def tiny(grid, n_classes=3, latent_dim=4, head='smaller', chans=3):
    "A PatchModel whose backbone is one linear layer."
    pixels = chans * torch.tensor(grid.patch_size).prod()
    return PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(int(pixels), latent_dim)), grid, n_classes, latent_dim, head, in_chans=chans)


@pytest.mark.parametrize('row, col', [(0, 3), (2, 1), (4, 0)])
def test_z_is_not_transposed(row, col):
    "An image with one bright, off-diagonal patch is bright in that cell of Z, and nowhere else."
    grid = PatchGrid((40, 32), 8)
    image = torch.zeros(1, 3, 40, 32)
    image[:, :, row * 8:row * 8 + 8, col * 8:col * 8 + 8] = 1
    model = tiny(grid)
    Z = model.fill(image)[0]
    assert Z.shape == (4, 5, 4)
    differs = (Z - Z[:, 1, 3][:, None, None] if (row, col) != (1, 3) else 0).abs().sum(0) > 1e-6
    assert differs.nonzero().tolist() == [[row, col]]
    written = ZBlock.empty(1, 4, grid.shape).write(torch.tensor([[0, grid.index(row, col)]]), torch.ones(1, 4))
    assert written[0].sum(0).nonzero().tolist() == [[row, col]]


def test_write_sends_gradient_into_its_cells_only_and_counts_age():
    Z = ZBlock(torch.randn(2, 3, 2, 2))
    before, latents = Z.z.clone(), torch.randn(2, 3, requires_grad=True)
    weights = torch.randn(2, 3, 2, 2)
    (Z.write(torch.tensor([[0, 1], [1, 2]]), latents) * weights).sum().backward()
    assert torch.equal(latents.grad, torch.stack([weights[0, :, 0, 1], weights[1, :, 1, 0]]))
    assert torch.equal(Z.z[0, :, 0, 0], before[0, :, 0, 0]) and torch.equal(Z.z[0, :, 0, 1], latents[0])
    assert Z.age.tolist() == [[1, 0, 1, 1], [1, 1, 0, 1]]
    Z.write(torch.tensor([[0, 0]]), torch.randn(1, 3))
    assert Z.age.tolist() == [[0, 1, 2, 2], [2, 2, 1, 2]]


@pytest.mark.parametrize('head', HEADS)
@pytest.mark.parametrize('shape', [(1,), (9,), (1, 1), (1, 7), (16, 16), (32, 32), (1, 1, 1), (2, 3, 4)], ids=str)
def test_batch_of_one_trains_with_every_head_and_grid(head, shape):
    module = make_head(head, 8, shape, 5).train()
    scores = module(torch.randn(1, 8, *shape))
    scores.sum().backward()
    assert scores.shape == (1, 5) and all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_unknown_head_is_refused():
    with pytest.raises(ValueError, match='huge'): make_head('huge', 8, (2, 2), 5)


@pytest.mark.parametrize('name', ['test_resnet', 'test_convnext', 'test_vit', 'mobilenetv2_050', 'resnet18'])
@pytest.mark.parametrize('batch, size', [(1, 64), (2, 128)])
def test_any_timm_backbone_encodes_and_classifies(name, batch, size):
    "Batch size 1 on a 1 x 1 grid included, in training mode."
    model = PatchModel(name, PatchGrid(size, 64), n_classes=6, latent_dim=16).train()
    images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
    scores = model(images)
    scores.sum().backward()
    assert scores.shape == (batch, 6) and model.fill(images).shape == (batch, 16, *model.grid.shape)


def test_unknown_timm_name_suggests_a_near_one():
    with pytest.raises(ValueError, match='resnet') as e: PatchModel('resnet81', PatchGrid(64, 64), 6)
    assert 'resnet81' in str(e.value) and '\n' not in str(e.value)


def test_weights_that_cannot_be_fetched_end_in_one_sentence(monkeypatch):
    import timm
    def offline(*args, **kwargs): raise OSError('no route to the hub')
    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(RuntimeError, match='pretrained=False') as e: PatchModel('resnet18', PatchGrid(64, 64), 6, pretrained=True)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit'])
def test_evaluation_depends_on_no_chunk(name):
    model = PatchModel(name, PatchGrid(192, 64), n_classes=6, latent_dim=8).double().eval()
    images, content = torch.randn(2, 3, 192, 192, dtype=torch.float64), (torch.rand(2, 9) > .4)
    with torch.no_grad(): scores = [model(images, content, chunk) for chunk in (1, 2, 5, 9, 100)]
    assert max((s - scores[0]).abs().max() for s in scores) < 1e-10
    with torch.enable_grad(): assert (model(images, content) - scores[0]).abs().max() < 1e-10


def test_blank_patches_hold_one_latent_in_training_and_evaluation():
    model = PatchModel('test_resnet', PatchGrid(128, 64), n_classes=6, latent_dim=8)
    images, content = torch.randint(256, (2, 3, 128, 128), dtype=torch.uint8), torch.tensor([[1., 0, 1, 0], [0, 0, 0, 0]])
    for mode in (model.train(), model.eval()):
        Z = mode.fill(images, content=content).flatten(2)
        assert (Z[0, :, [1, 3]] == 0).all() and (Z[1] == 0).all() and (Z[0, :, [0, 2]] != 0).any()
    changed = images.clone()
    changed[0, :, :64, 64:] = 9
    assert torch.equal(model(images, content), model(changed, content))


@pytest.mark.parametrize('mode, moves', [('eval', False), ('frozen_stats', False), ('batch_stats', False), ('train', True)])
def test_what_filling_does_to_batchnorm_is_a_named_choice(mode, moves):
    model = PatchModel('test_resnet', PatchGrid(128, 64), n_classes=6, latent_dim=8).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.fill(torch.randint(256, (2, 3, 128, 128), dtype=torch.uint8), mode=mode)
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items()) == moves
    assert all(m.training for m in model.modules())
    with pytest.raises(ValueError, match='odd'), module_mode(model, 'odd'): pass


def test_images_that_are_read_lazily_go_through_the_same_code():
    class Lazy:
        def __init__(self, pixels): self.pixels = pixels
        def read(self, r, c, h, w): return self.pixels[:, r:r + h, c:c + w].permute(1, 2, 0).numpy()
    images = torch.randint(256, (2, 3, 128, 128), dtype=torch.uint8)
    model = PatchModel('test_resnet', PatchGrid(128, 64), n_classes=6, latent_dim=8).eval()
    with torch.no_grad(): assert torch.equal(model([Lazy(i) for i in images]), model(images))
