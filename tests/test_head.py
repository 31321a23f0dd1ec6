"The heads: ours to the bit, the authors' by numbers written down here anew."
import pytest, torch
from torch import nn
from patchgd_nb.head import PUBLISHED, SIZES, ConvHead, PublishedHead, make_head
from patchgd_nb.model import BATCHNORM, PatchModel, module_mode
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import ExactPatchGD, GradientDescent, PatchGD

# (layers at the grid's size, layers that halve it, channels): the authors' five
AUTHORS = dict(published=(1, 3, 256), published_smaller=(0, 3, 256), published_larger=(1, 4, 256), published_smaller_feat=(1, 3, 128), published_larger_feat=(1, 3, 512))


@pytest.mark.parametrize('name', AUTHORS)
def test_the_authors_head_is_built_layer_by_layer_as_they_have_it(name):
    "On their setting, Z of 256 channels on 16 x 16 cells and six classes, against the same layers written out."
    same, halving, width = AUTHORS[name]
    torch.manual_seed(3)
    layers, channels, side = [], 256, 16
    for stride in [1] * same + [2] * halving:
        layers.append(nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU(), nn.BatchNorm2d(width), nn.Dropout2d(.2)))
        channels, side = width, (side + stride - 1) // stride
    plain = nn.Sequential(nn.Sequential(*layers), nn.Flatten(), nn.Linear(width * side * side, 6))
    torch.manual_seed(3)
    head = make_head(name, 256, (16, 16), 6)
    assert [tuple(p.shape) for p in head.parameters()] == [tuple(p.shape) for p in plain.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), plain.state_dict().values(), strict=True))
    z = torch.randn(2, 256, 16, 16)
    for mode in (True, False):   # with dropout and statistics of the batch, and without
        torch.manual_seed(4); a = head.train(mode)(z)
        torch.manual_seed(4); b = plain.train(mode)(z)
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(head.state_dict().values(), plain.state_dict().values(), strict=True))   # the statistics moved alike


@pytest.mark.parametrize('shape', [(1,), (17,), (1, 1), (3, 9), (16, 16), (1, 1, 1), (2, 5, 9)], ids=str)
@pytest.mark.parametrize('name', ['published', 'published_larger'])
def test_halving_rounds_up_in_one_to_three_axes(name, shape):
    head = make_head(name, 4, shape, 3).eval()
    left = head.layers(torch.zeros(1, 4, *shape)).shape[2:]
    for _ in range(AUTHORS[name][1]): shape = [-(-n // 2) for n in shape]
    assert list(left) == list(shape) and head.classify.in_features == AUTHORS[name][2] * left.numel()
    assert [type(m).__name__ for m in head.modules() if isinstance(m, nn.modules.dropout._DropoutNd)] == [f'Dropout{len(shape)}d'] * sum(AUTHORS[name][:2])


def test_one_value_per_channel_takes_running_statistics_and_leaves_them():
    head = make_head('published', 4, (4, 4), 3).train()      # 4 x 4, 2 x 2, 1 x 1, 1 x 1 after its layers
    norms = [m for m in head.modules() if isinstance(m, BATCHNORM)]
    before = [m.running_mean.clone() for m in norms]
    assert head(torch.randn(1, 4, 4, 4)).isfinite().all()
    assert [not torch.equal(m.running_mean, b) for m, b in zip(norms, before)] == [True, True, False, False]
    assert [int(m.num_batches_tracked) for m in norms] == [1, 1, 0, 0] and head.training
    head(torch.randn(2, 4, 4, 4))
    assert [int(m.num_batches_tracked) for m in norms] == [2, 2, 1, 1]


@pytest.mark.parametrize('strategy', [GradientDescent(), PatchGD(CoverSampler(1 / 2), accumulate=1), ExactPatchGD(2)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize('cells', [1, 3])
def test_one_image_trains_with_it(strategy, cells):
    model = PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), PatchGrid(2 * cells, 2), 3, 4, 'published_smaller_feat').train()
    result = strategy.step(model, torch.randn(1, 3, 2 * cells, 2 * cells), torch.tensor([1]), torch.optim.SGD(model.parameters(), .1))
    assert result.losses.isfinite().all() and all(p.isfinite().all() for p in model.parameters())


def test_exact_patchgd_is_gradient_descent_once_dropout_and_statistics_stand_still():
    model = PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), PatchGrid(6, 2), 3, 4, 'published_smaller_feat').double().train()
    images, labels, gradients = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 2]), []
    model.head.eval()
    class Keep(torch.optim.SGD):
        def step(self, *args): gradients.append([p.grad.clone() for p in model.parameters()])
    for strategy in (GradientDescent(), ExactPatchGD(2)): strategy.step(model, images, labels, Keep(model.parameters(), lr=0.))
    assert max((a - b).abs().max() for a, b in zip(*gradients, strict=True)) < 1e-10


def test_it_is_for_one_grid():
    with pytest.raises(ValueError, match=r'made for a grid of \(4, 4\), Z has \(8, 8\)') as e: make_head('published', 4, (4, 4), 3)(torch.randn(2, 4, 8, 8))
    assert '\n' not in str(e.value) and str(e.value).endswith('.')
    with pytest.raises(ValueError, match='attention'): make_head('published', 4, (1, 2, 2, 1), 3)
    with pytest.raises(ValueError, match='published_larger_feat'): make_head('publshed', 4, (2, 2), 3)


def test_ours_are_what_they_were():
    "The same draws, the same layers: to the bit."
    for name, (same, halving, width) in SIZES.items():
        torch.manual_seed(3)
        widths = [5] + [width] * (same + halving)
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, s, 1), nn.GroupNorm(1, b), nn.ReLU()) for a, b, s in zip(widths, widths[1:], [1] * same + [2] * halving)]
        classify = nn.Linear(width, 3)
        torch.manual_seed(3)
        head, z = ConvHead(5, (9, 9), 3, name), torch.randn(1, 5, 9, 9)
        assert torch.equal(head(z), classify(nn.Sequential(*layers)(z).flatten(2).mean(2)))
    assert SIZES == dict(original=(2, 2, 128), smaller=(1, 1, 128), larger=(4, 2, 128), smaller_feat=(2, 2, 64), larger_feat=(2, 2, 256)) and PUBLISHED == AUTHORS
    assert isinstance(PatchModel(nn.Flatten(), PatchGrid(4, 2), 3, 12).head, ConvHead) and not isinstance(make_head('larger', 4, (2, 2), 3), PublishedHead)


@pytest.mark.parametrize('mode, dropout, moves', [('eval', False, False), ('frozen_stats', True, False), ('batch_stats', True, False), ('train', True, True)])
def test_modes_by_name_rule_its_batchnorm_too(mode, dropout, moves):
    head = make_head('published_smaller', 4, (4, 4), 3).train()
    norm = head.layers[0][2]
    with module_mode(head, mode):
        assert head.layers[0][3].training == dropout
        head(torch.randn(2, 4, 4, 4))
    assert (norm.running_mean != 0).any() == moves and norm.training and norm.track_running_stats
