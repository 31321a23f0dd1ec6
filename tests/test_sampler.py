"Samplers: covers without repeats, no blank patch, a bound on memory."
from math import ceil
import pytest, torch
from patchgd_nb.sampler import CoverSampler, PatchSampler, UniformSampler, WeightedSampler

FRACTIONS = [1/2, 1/3, 1/4, 1/7, 1/8, 1/16, 1/32, 1.]


@pytest.mark.parametrize('fraction', FRACTIONS)
def test_a_cover_takes_every_patch_once_on_every_grid(fraction):
    for m in range(1, 33):
        for n in {1, m, 32, 33 - m}:
            sampled = CoverSampler(fraction)(torch.ones(2, m * n))
            assert (sampled.sum(0) == 1).all(), (m, n)
            assert sampled.sum(2).max() <= ceil(fraction * m * n - 1e-9), (m, n)
            assert sampled.any(2).all() or m * n < len(sampled)


@pytest.mark.parametrize('sampler', [CoverSampler, UniformSampler, WeightedSampler])
@pytest.mark.parametrize('fraction', FRACTIONS)
def test_blank_patches_are_never_sampled(sampler, fraction):
    content = torch.rand(5, 40) * (torch.rand(5, 40) > torch.tensor([.1, .5, .9, .97, 2.])[:, None])   # the last image is all blank
    for steps in (None, 1, 3, 50):
        sampled = sampler(fraction)(content, steps)
        assert steps is None or len(sampled) == steps
        assert not (sampled & (content <= 0)).any()
        limit = torch.tensor([ceil(fraction * int(c) - 1e-9) for c in (content > 0).sum(1)])
        assert (sampled.sum(2) <= limit).all()
    assert sampler is not CoverSampler or (sampler(fraction)(content).sum(0) == (content > 0)).all()


def test_uniform_coverage_is_what_probability_says():
    draws = 400
    seen = torch.stack([UniformSampler(1/8)(torch.ones(1, 64), 8).any(0).float().mean() for _ in range(draws)])
    expected = 1 - (1 - 1/8) ** 8
    assert abs(seen.mean() - expected) < 4 * seen.std() / draws ** .5


def test_weights_steer_the_draw():
    content = torch.tensor([[.1, .3, .6]])
    first = WeightedSampler(.01)(content, 6000).float().mean(0)
    assert torch.allclose(first, content, atol=.03)


def test_same_seed_same_sample():
    draws = [(torch.manual_seed(3), CoverSampler(1/4)(torch.ones(2, 36)))[1] for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.parametrize('fraction', [0, -1, 1.5])
def test_impossible_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match='fraction'): CoverSampler(fraction)


def test_a_sampler_without_a_draw_says_so():
    with pytest.raises(NotImplementedError, match='define one'): PatchSampler(1/4)(torch.ones(1, 4))
