"The doctor for gradients: our own strategies pass, wrong ones are named."
import multiprocessing, os, subprocess, sys
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from torch import nn
from patchgd_nb import CarryPatchGD, CoverSampler, ExactPatchGD, GradientDescent, PatchGD, PatchGrid, PatchModel, UniformSampler, ZBank
from patchgd_nb.experiment.gradients import check_gradients

TOP = Path(__file__).resolve().parent.parent
GRID = PatchGrid(48, 12)


def case(dropout=0.):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8))
    return PatchModel(backbone, GRID, 3, latent_dim=8, head='smaller'), torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8), torch.tensor([0, 2])


@pytest.mark.parametrize('dropout', [0., .3])
@pytest.mark.parametrize('strategy', [GradientDescent(), PatchGD(CoverSampler(1.)), ExactPatchGD(1), ExactPatchGD(3)], ids=repr)
def test_full_gradients_pass(strategy, dropout):
    report = check_gradients(strategy.step, *case(dropout))
    assert report.ok and all(r.difference < 1e-9 for r in report.rows), report

@pytest.mark.parametrize('strategy', [PatchGD(CoverSampler(1/4)), PatchGD(CoverSampler(1/4), inner_steps=1), PatchGD(CoverSampler(1/4), accumulate=1), PatchGD(UniformSampler(1/4), inner_steps=3)], ids=repr)
def test_sampled_gradients_are_named_and_pass_as_such(strategy):
    report = check_gradients(strategy.step, *case())
    assert not report.ok and any('sampled' in f for f in report.faults), report
    report = check_gradients(strategy.step, *case(), expect='sampled')
    assert report.ok and 'head' in report.notes[0], report

def test_a_carried_gradient_passes_as_sampled(tmp_path):
    strategy = CarryPatchGD(CoverSampler(1/8), ZBank(tmp_path / 'z'))
    report = check_gradients(strategy.step, *case(), expect='sampled', names=['a', 'b'], calls=48)
    assert report.ok, report
    report = check_gradients(CarryPatchGD(CoverSampler(1/8), ZBank(tmp_path / 'y')).step, *case(), names=['a', 'b'])
    assert any('sampled' in f for f in report.faults), report

def test_blank_patches_are_no_fault():
    content = torch.ones(2, 16)
    content[0, 3:9] = 0
    assert check_gradients(ExactPatchGD(3).step, *case(), content=content).ok

def test_the_model_is_left_as_it_was():
    model, images, labels = case()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    check_gradients(PatchGD(CoverSampler(1/4)).step, model, images, labels)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and all(p.grad is None for p in model.parameters())

def test_any_module_and_any_loop():
    "No grid, no backbone, no strategy: a plain network, and a step written by hand."
    net, x, y = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(8, 3, 4, 4), torch.arange(8) % 3
    def accumulated(model, images, labels, optimizer, divide=4):
        optimizer.zero_grad()
        for i in range(0, 8, 2): (F.cross_entropy(model(images[i:i + 2]), labels[i:i + 2]) / divide).backward()
        optimizer.step()
    assert check_gradients(accumulated, net, x, y).ok
    report = check_gradients(lambda *a: accumulated(*a, divide=1), net, x, y)
    assert '4 times the full one' in report.faults[0] and '4 times' in repr(report)
    with pytest.raises(ValueError, match="expect='half' is not known"): check_gradients(accumulated, net, x, y, expect='half')

def skipping(model, images, labels, optimizer):
    "The backbone's gradient through half of the image only."
    optimizer.zero_grad()
    z = model.encode(GRID.extract(images, range(16)))
    z = torch.cat([z[:, :8], z[:, 8:].detach()], 1)
    F.cross_entropy(model.head(z.transpose(1, 2).unflatten(2, GRID.shape)), labels).backward()
    optimizer.step()

def self_moving(model, images, labels, optimizer):
    GradientDescent().step(model, images, labels, optimizer)
    with torch.no_grad():
        for p in model.parameters(): p *= .99

def forgotten_head(model, images, labels, optimizer):
    optimizer.zero_grad()
    for p in model.head.parameters(): p.requires_grad_(False)
    F.cross_entropy(model(images), labels).backward()
    for p in model.head.parameters(): p.requires_grad_(True)
    optimizer.step()

@pytest.mark.parametrize('step, words', [(skipping, 'the direction differs'), (self_moving, 'changes weights by itself'), (forgotten_head, 'no gradient reaches head')])
def test_wrong_gradients_are_named(step, words):
    report = check_gradients(step, *case())
    assert not report.ok and any(words in f for f in report.faults), report

def test_the_expectation_of_an_uneven_sample_is_named():
    "Always the first half of the patches: no mean over calls repairs that."
    report = check_gradients(skipping, *case(), expect='sampled', calls=4)
    assert any('points elsewhere' in f for f in report.faults), report


def _rank(rank, file, average, found):
    os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2)
    model, _, labels = case()
    images = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(rank))   # each rank has a part of the batch
    def step(model, images, labels, optimizer):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for p in model.parameters() if average else ():
            torch.distributed.all_reduce(p.grad)
            p.grad /= 2
        optimizer.step()
    found.put([f for f in check_gradients(step, model, images, labels).faults if 'drift apart' in f])
    torch.distributed.destroy_process_group()

@pytest.mark.parametrize('average', [True, False])
def test_ranks_that_drift_apart(tmp_path, average):
    context = multiprocessing.get_context('spawn')
    found = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, tmp_path / 'meet', average, found)) for r in range(2)]
    for p in ranks: p.start()
    said = [found.get(timeout=120) for _ in ranks]
    for p in ranks: p.join(60)
    assert [len(s) for s in said] == [0, 0] if average else [1, 1]

def test_the_zoo(tmp_path):
    "Every specimen of the study is named: its last cell says so."
    run = subprocess.run([Path(sys.executable).parent / 'papermill', TOP / 'nbs/studies/wrong_gradients.ipynb', tmp_path / 'out.ipynb', '--no-progress-bar'], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
