"The doctor for gradients: our own strategies pass, wrong ones are named."
import multiprocessing, os
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from patchgd_nb import CarryPatchGD, CoverSampler, ExactPatchGD, GradientDescent, PatchGD, PatchGrid, PatchModel, Trainer, UniformSampler, WholeModel, ZBank
from patchgd_nb.datasets.har import signal_backbone
from patchgd_nb.experiment.command import check_parameters, main
from patchgd_nb.experiment.gradients import check_gradients
from patchgd_nb.experiment.parameters import Har, Panda
from patchgd_nb.experiment.record import RunRecord
from patchgd_nb.training.checkpoint import Checkpoints

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


# ---- steps written by someone who knew only the docstring of `check_gradients`, and what the doctor must say of them

def still_case():
    "Smooth, without BatchNorm and dropout; six images in four parts."
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 6))
    head = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(96, 3))
    return PatchModel(backbone, GRID, 3, latent_dim=6, head=head), torch.randn(6, 3, 48, 48), torch.arange(6) % 3

PARTS = torch.arange(16).chunk(4)

def read(model, z): return model.head(z.transpose(1, 2).unflatten(2, GRID.shape))

def two_passes(model, images, labels, optimizer, factor=1., between=None, second=None):
    "Gradient caching: Z without gradient, dL/dZ, then each part with its share."
    optimizer.zero_grad()
    with torch.no_grad(): z = torch.cat([model.encode(GRID.extract(images, p)) for p in PARTS], 1)
    z.requires_grad_()
    (F.cross_entropy(read(model, z), labels) * factor).backward()
    for p in PARTS:
        if between: between(model, optimizer)
        (model.encode(GRID.extract(images if second is None else second(images), p)) * z.grad[:, p] * factor).sum().backward()
    optimizer.step()

def part_by_part(model, images, labels, optimizer, shift=0):
    optimizer.zero_grad()
    for x, y in zip(images.split(2), labels.roll(shift).split(2)): (F.cross_entropy(model(x), y) / 3).backward()
    optimizer.step()

def checkpointed(model, images, labels, optimizer):
    optimizer.zero_grad()
    z = torch.cat([checkpoint(model.encode, GRID.extract(images, p), use_reentrant=False) for p in PARTS], 1)
    F.cross_entropy(read(model, z), labels).backward()
    optimizer.step()

def with_a_scaler(model, images, labels, optimizer, unscale=True):
    "fp16's way by hand: the factor is taken off before the step."
    optimizer.zero_grad()
    (F.cross_entropy(model(images), labels) * 2 ** 16).backward()
    for p in model.parameters() if unscale else (): p.grad /= 2 ** 16
    optimizer.step()

@pytest.mark.parametrize('step', [two_passes, part_by_part, checkpointed, with_a_scaler])
def test_right_steps_raise_no_alarm(step):
    report = check_gradients(step, *still_case())
    assert report.ok and not report.notes, report

def test_passes_with_gradient_that_count_as_batches_are_a_note():
    "Accumulation and checkpointing move running statistics several times: unlike a leak from the pass without gradient."
    model, images, labels = case()
    model.backbone[3].p = 0.
    for step in (lambda *a: part_by_part(*a), checkpointed):
        report = check_gradients(step, model, images.repeat(3, 1, 1, 1), labels.repeat(3))
        assert report.ok and 'counts as a batch' in report.notes[0], report
    report = check_gradients(two_passes, model, images, labels)
    assert [f for f in report.faults if 'the pass without gradient updates them too' in f], report

def stepped_per_part(model, images, labels, optimizer):
    two_passes(model, images, labels, optimizer, between=lambda m, o: (o.step(), o.zero_grad()))

def stepped_first(model, images, labels, optimizer):
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    optimizer.step()
    loss.backward()

def unit_norms(model, images, labels, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    for p in model.parameters(): p.grad /= p.grad.norm()
    optimizer.step()

def trains_a_copy(model, images, labels, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(deepcopy(model)(images), labels).backward()
    optimizer.step()

def uphill(model, images, labels, optimizer):
    optimizer.zero_grad()
    (-F.cross_entropy(model(images), labels)).backward()
    optimizer.step()

def softmax_twice(model, images, labels, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(model(images).softmax(1), labels).backward()
    optimizer.step()

def head_per_part(model, images, labels, optimizer):
    optimizer.zero_grad()
    for p in PARTS:
        z = torch.zeros(6, 16, 6, dtype=images.dtype).index_copy(1, p, model.encode(GRID.extract(images, p)))
        (F.cross_entropy(read(model, z), labels) / 4).backward()
    optimizer.step()

def half_the_cells_as_data(model, images, labels, optimizer):
    optimizer.zero_grad()
    z = torch.cat([z if i % 2 else z.data for i, z in enumerate(model.encode(GRID.extract(images, p)) for p in PARTS)], 1)
    F.cross_entropy(read(model, z), labels).backward()
    optimizer.step()

WRITTEN_BLIND = {
    'divided twice': (partial(two_passes, factor=1/4), ['backbone is 0.0625 (1/16) times', 'head is 0.25 (1/4) times']),
    'clipped per part': (partial(two_passes, between=lambda m, o: nn.utils.clip_grad_norm_(m.parameters(), .01)), ['backward makes the full gradient, but', 'altered']),
    'cleared per part': (partial(two_passes, between=lambda m, o: o.zero_grad()), ['are cleared (zero_grad) before a step has used them']),
    'cleared per part, by the model': (partial(two_passes, between=lambda m, o: m.zero_grad()), ['are cleared (zero_grad) before a step has used them']),
    'second pass flipped': (partial(two_passes, second=lambda x: x.flip(-1)), ['seen otherwise by a second pass']),
    'stepped per part': (stepped_per_part, ['steps 5 times, but the loss is computed 1 times']),
    'labels shifted': (partial(part_by_part, shift=1), ['the loss is another one (other labels']),
    'softmax twice': (softmax_twice, ['a softmax too many']),
    'head per part': (head_per_part, ['the head reads another Z']),
    'never unscaled': (partial(with_a_scaler, unscale=False), ['65536 times', 'gradient scaler']),
    'stepped first': (stepped_first, ['steps before backward']),
    'unit norms': (unit_norms, ['backward makes the full gradient, but', 'altered']),
    'trains a copy': (trains_a_copy, ['no gradient reaches any parameter', 'a copy']),
    'uphill': (uphill, ['the sign is turned']),
    'half the cells as data': (half_the_cells_as_data, ['patches are left out']),
}

@pytest.mark.parametrize('name', WRITTEN_BLIND)
def test_steps_written_blind_are_named(name):
    step, words = WRITTEN_BLIND[name]
    report = check_gradients(step, *still_case())
    said = ' '.join(report.faults)
    assert not report.ok and all(w in said for w in words), report
    if name != 'head per part': assert 'sampled' not in said, report   # no false trail


# ---- more of them: what a first doctor overlooked, or took for a fault

def cut(images): return images.unfold(2, 12, 12).unfold(3, 12, 12).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)   # (B, 16, 3, 12, 12), by hand
def embed(model, patches): return model.backbone(model.normalize(patches))

def two_ranks(model, images, labels, optimizer, head=1.):
    "Gradients of two shards put aside, cleared, averaged and given back; `head`: averaged once more."
    total = {p: torch.zeros_like(p) for p in model.parameters()}
    for r in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images[r::2]), labels[r::2]).backward()
        for p in total: total[p] += p.grad / 2
    for p in total: p.grad = total[p]
    for p in model.head.parameters(): p.grad *= head
    optimizer.step()

def by_closure(model, images, labels, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss
    assert optimizer.step(closure) > 0

def zeros_of_the_usual_format(model, images, labels, optimizer):
    optimizer.zero_grad()
    z = torch.zeros(len(images), 16, 6)
    for k in range(16): z[:, k] = embed(model, cut(images)[:, k])
    F.cross_entropy(read(model, z), labels).backward()
    optimizer.step()

def clipped_once(model, images, labels, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    nn.utils.clip_grad_norm_(model.parameters(), .01)
    optimizer.step()

@pytest.mark.parametrize('step', [two_ranks, by_closure, zeros_of_the_usual_format])
def test_more_right_steps_raise_no_alarm(step):
    report = check_gradients(step, *still_case())
    assert report.ok and not report.notes and torch.get_default_dtype() == torch.float32, report

def test_a_clipped_full_gradient_is_a_note():
    report = check_gradients(clipped_once, *still_case())
    assert report.ok and 'clipped?' in report.notes[0], report

def test_equal_patches_may_have_different_masks():
    "White patches cannot be told apart by what goes into dropout."
    model, images, labels = case(.3)
    images[:, :, :24] = 255
    for step in (ExactPatchGD(3).step, checkpointed):
        report = check_gradients(step, model, images, labels)
        assert report.ok, report

def test_a_step_that_insists_on_a_format_is_told_why():
    def step(model, images, labels, optimizer): model.backbone(cut(images)[:, 0].float())
    with pytest.raises(RuntimeError, match=r'does not run in torch.float64.*give its tensors the dtype of the model'): check_gradients(step, *still_case())
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(RuntimeError, match='^mine$'): check_gradients(lambda *a: (_ for _ in ()).throw(RuntimeError('mine')), *still_case())

def caching(model, images, labels, optimizer, chunk=4, stride=None, slope=lambda g: g, fill='train', kept=None, last=16):
    "Gradient caching by hand. `slope`: dL/dZ (B, 16, D) as the second pass reads it; `kept`: Z of earlier batches."
    optimizer.zero_grad()
    x = cut(images)
    model.train(fill == 'train')
    with torch.no_grad(): z = torch.stack([embed(model, patches) for patches in x])
    model.train()
    if kept is not None: z = kept.setdefault(x.shape, z).clone()
    F.cross_entropy(read(model, z.requires_grad_()), labels).backward()
    grad = slope(z.grad)
    for b in range(len(x)):
        for i in range(0, last, stride or chunk): embed(model, x[b, i:i + chunk]).backward(grad[b, i:i + chunk])
    optimizer.step()

def set_not_added(model, images, labels, optimizer):
    optimizer.zero_grad()
    z = model.encode(cut(images))
    parameters = list(model.parameters())
    for j, (y, s) in enumerate(zip(labels, read(model, z))):
        for p, g in zip(parameters, torch.autograd.grad(F.cross_entropy(s, y) / len(labels), parameters, retain_graph=True)):
            if j == 0 or p.ndim < 4: p.grad = g if p.grad is None else p.grad + g
            else: p.grad = g
    optimizer.step()

def unequal_parts(model, images, labels, optimizer):
    optimizer.zero_grad()
    for x, y in zip(images.split(4), labels.split(4)): (F.cross_entropy(model(x), y) / 2).backward()
    optimizer.step()

def columns_first(model, images, labels, optimizer):
    optimizer.zero_grad()
    F.cross_entropy(model.head(model.encode(cut(images)).transpose(1, 2).unflatten(2, GRID.shape).mT), labels).backward()
    optimizer.step()

def sampling(model, images, labels, optimizer, factor=1., cells=range(16), order=lambda i: i, scores=lambda s: s, shift=0):
    "Four patches of each image, by hand; `order`: in which their latents are written."
    optimizer.zero_grad()
    x = cut(images)
    with torch.no_grad(): z = torch.stack([embed(model, patches) for patches in x])
    i = torch.tensor(cells)[torch.rand(len(x), len(cells)).argsort(1)[:, :4]]
    rows = torch.arange(len(x))[:, None].expand_as(i)
    z = z.index_put((rows, order(i)), embed(model, x[rows, i].flatten(0, 1)).unflatten(0, i.shape))
    (F.cross_entropy(scores(read(model, z)), labels.roll(shift)) * factor).backward()
    optimizer.step()

BY_PATCHES = {
    'transposed': (partial(caching, slope=lambda g: g.unflatten(1, GRID.shape).transpose(1, 2).flatten(1, 2)), ['72 of 96 patches get the gradient of another cell, or image']),
    'last chunk dropped': (partial(caching, chunk=5, last=15), ['6 of 96 patches get no gradient (numbers 15, 31, 47']),
    'overlapping': (partial(caching, chunk=5, stride=4), ['18 of 96 patches count 2 times']),
    'rounded': (partial(caching, slope=lambda g: g.bfloat16().double()), ['96 of 96 patches get the gradient of something else', 'rounded']),
    'Z kept': (partial(caching, kept={}), ['right for the first batch only']),
    'set, not added': (set_not_added, ['every latent gets its right gradient', 'is p.grad set']),
    'unequal parts': (unequal_parts, ['images count unequally in the loss: 0.75, 0.75, 0.75, 0.75, 1.5, 1.5 times']),
    'other labels': (partial(part_by_part, shift=1), ['the loss raises other scores than those of the labels, in 6 of 6 images']),
    'softmax twice': (softmax_twice, ['the scores get another gradient', 'a softmax too many']),
    'columns first': (columns_first, ['the head reads another Z, in 6 of 6 images: its numbers are right, but in other cells']),
    'flipped': (partial(two_passes, second=lambda x: x.flip(-1)), ['96 patches that get a gradient are none of this batch']),
    'averaged twice': (partial(two_ranks, head=.5), ['head is 0.5 (1/2) times']),
}

@pytest.mark.parametrize('name', BY_PATCHES)
def test_the_patches_are_named(name):
    step, words = BY_PATCHES[name]
    report = check_gradients(step, *still_case())
    said = ' '.join(report.faults)
    assert not report.ok and all(w in said for w in words) and 'cleared' not in said, report

SAMPLED = {
    'a softmax too many': (dict(scores=lambda s: s.softmax(1)), 'a softmax too many'),
    'labels shifted': (dict(shift=1), 'the loss raises other scores than those of the labels'),
    'written in another order': (dict(order=lambda i: i.flip(1)), 'the head reads another Z'),
    'the border never': (dict(cells=[k for k in range(16) if k % 4 < 3 and k < 12]), '42 of 96 patches never get a gradient in 32 calls'),
}

@pytest.mark.parametrize('name', SAMPLED)
def test_sampled_steps_written_blind_are_named(name):
    torch.manual_seed(0)
    options, words = SAMPLED[name]
    report = check_gradients(partial(sampling, **options), *still_case(), expect='sampled')
    assert any(words in f for f in report.faults), report

def test_sampled_steps_that_are_right_or_weighted():
    torch.manual_seed(0)
    report = check_gradients(sampling, *still_case(), expect='sampled')
    assert report.ok and len(report.notes) == 1, report
    report = check_gradients(partial(sampling, factor=4.), *still_case(), expect='sampled')
    assert report.ok and 'each loss counts 4 times' in report.notes[1], report
    report = check_gradients(partial(sampling, cells=[*range(16), *range(4), *range(4), *range(4)]), *still_case(), expect='sampled')
    assert any('a sampler' in n or 'the sampler' in n for n in report.notes), report

def passes_that_differ(): return [(case(.3), 'dropout is off in the pass without gradient'), (case(), 'the two passes see different latents')]

@pytest.mark.parametrize('i', [0, 1])
def test_two_passes_in_different_modes(i):
    "Gradient caching whose first pass is in evaluation mode; a pass that the gradient does not depend on is none of our business."
    (model, images, labels), words = passes_that_differ()[i]
    if not i: model.backbone[1] = nn.Identity()
    report = check_gradients(partial(caching, fill='eval'), model, images, labels)
    assert any(words in f for f in report.faults), report
    def measured(model, images, labels, optimizer):
        with torch.no_grad(): model.eval()(images)
        model.train()
        GradientDescent().step(model, images, labels, optimizer)
    report = check_gradients(measured, model, images, labels)
    assert report.ok, report

def test_a_checkpoint_that_draws_new_masks():
    def step(model, images, labels, optimizer):
        optimizer.zero_grad()
        z = torch.stack([checkpoint(model.encode, x, use_reentrant=False, preserve_rng_state=False) for x in cut(images)])
        F.cross_entropy(read(model, z), labels).backward()
        optimizer.step()
    model, images, labels = case(.3)
    model.backbone[1] = nn.Identity()
    report = check_gradients(step, model, images, labels)
    assert ['dropout masks differ' in f for f in report.faults] == [True], report


# ---- `patchgd doctor --gradients RUN`

def leave_a_run(folder, kind, notebook, strategy, model=None, **changes):
    "What a run of an experiment leaves: run.json, and a checkpoint after two batches."
    torch.manual_seed(0)
    p = check_parameters(TOP / f'nbs/train_{notebook}.ipynb', dict(changes, out_dir=str(folder)))
    p = kind.check(p)
    RunRecord(p).finish()
    s = getattr(p, 'setting', p)
    model = model or PatchModel(s.backbone, p.grid, 6, latent_dim=s.latent_dim, head=s.head)
    shape = 2, len(model.normalize.mean), *model.grid.image_size
    batches = [(torch.rand(shape), torch.tensor([0, 1]))] * 2
    Trainer(model, strategy, batches, epochs=1, checkpoint=p.checkpoint, progress=False).fit()
    return p

def test_the_doctor_examines_a_run(tmp_path, capsys, monkeypatch):
    "A run whose slides are gone: they are made anew. A spoilt step of the same strategy is named."
    monkeypatch.setattr('patchgd_nb.datasets.panda.ProcessPoolExecutor', ThreadPoolExecutor)   # two slides: processes take longer
    leave_a_run(tmp_path, Panda, 'panda', PatchGD(CoverSampler(1/4), accumulate=2), image_size=128, patch_size=32, n_slides=6)
    assert main(['doctor', '--gradients', str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert 'PatchGD on test_resnet' in said and '2 slides made anew' in said and 'as expected (sampled)' in said and 'head.classify' in said, said
    healthy = PatchGD.step
    def spoilt(self, model, images, labels, optimizer, **kwargs):
        with torch.no_grad(): z = model.fill(images, content=kwargs['content'])
        optimizer.zero_grad()
        F.cross_entropy(model.head(z), labels).backward()
        optimizer.step()
    monkeypatch.setattr(PatchGD, 'step', spoilt)
    assert main(['doctor', '--gradients', str(tmp_path)]) == 1
    assert 'no gradient reaches backbone' in capsys.readouterr().out
    monkeypatch.setattr(PatchGD, 'step', healthy)
    assert not list(tmp_path.glob('cohort*'))   # nothing is written into the run

def test_the_doctor_examines_signals_and_carried_latents(tmp_path, capsys):
    "A backbone that is not timm's but an experiment's own; the run's own bank of latents stays as it was."
    p = leave_a_run(tmp_path / 'a', Har, 'har', ExactPatchGD(2), PatchModel(signal_backbone(9, 64), PatchGrid((128,), 32), 6, latent_dim=64, head='original', in_chans=9))
    assert main(['doctor', '--gradients', str(tmp_path / 'a')]) == 0
    assert 'ExactPatchGD on Sequential' in (said := capsys.readouterr().out) and '2 signals made anew' in said and 'as expected (full)' in said, said
    (bank := tmp_path / 'z').mkdir()
    (bank / 'z.bin').write_bytes(b'mine')
    model = PatchModel('test_resnet', PatchGrid(64, 32), 3, latent_dim=8, head='attention', in_chans=1)
    Trainer(model, PatchGD(CoverSampler(1/2)), [(torch.rand(2, 1, 64, 64), torch.tensor([0, 1]))], epochs=1, checkpoint=tmp_path / 'b', progress=False).fit()
    checkpoint = Checkpoints(tmp_path / 'b').load()
    checkpoint.config['strategy'] = repr(CarryPatchGD(CoverSampler(1/2), ZBank(bank)))
    Checkpoints(tmp_path / 'c').save(checkpoint.state, checkpoint.config)
    assert main(['doctor', '--gradients', str(tmp_path / 'c')]) == 0
    assert 'CarryPatchGD' in (said := capsys.readouterr().out) and 'random images, as its data are not known' in said, said
    assert (bank / 'z.bin').read_bytes() == b'mine'

def test_the_doctor_says_why_it_cannot_examine(tmp_path, capsys):
    model, images, labels = case()
    Trainer(model, GradientDescent(), [(images, labels)], epochs=1, checkpoint=tmp_path / 'own', progress=False).fit()
    Trainer(WholeModel('test_resnet', (48, 48), 3), GradientDescent(), [(images, labels)], epochs=1, checkpoint=tmp_path / 'whole', progress=False).fit()
    for folder, words in (('none', 'holds no checkpoint of a run'), ('own', "a backbone of one's own (Sequential)"), ('whole', 'a model of whole images')):
        assert main(['doctor', '--gradients', str(tmp_path / folder)]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count('\n') == 1, said


def _rank(rank, file, found):
    os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2)
    model, _, labels = case()
    images = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(rank))   # each rank has a part of the batch
    def step(model, images, labels, optimizer, average=True):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for p in model.parameters() if average else ():
            torch.distributed.all_reduce(p.grad)
            p.grad /= 2
        optimizer.step()
    for way in (step, partial(step, average=False)):
        found.put((way is step, [f for f in check_gradients(way, model, images, labels).faults if 'drift apart' in f]))
    torch.distributed.destroy_process_group()

def test_ranks_that_drift_apart(tmp_path):
    context = multiprocessing.get_context('spawn')
    found = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, tmp_path / 'meet', found)) for r in range(2)]
    for p in ranks: p.start()
    said = [found.get(timeout=120) for _ in range(4)]
    for p in ranks: p.join(60)
    assert sorted((average, len(faults)) for average, faults in said) == [(False, 1), (False, 1), (True, 0), (True, 0)]
