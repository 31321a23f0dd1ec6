"What `test_ranks.py` runs in several processes at once: `python ranks_jobs.py JOB RANK SIZE FOLDER JSON`."
from functools import partial
import json, os, random, signal, sys
from pathlib import Path
import torch, torch.distributed as dist
from torch import nn
from patchgd_nb.experiment.gradients import check_gradients
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler, UniformSampler
from patchgd_nb.strategy import CarryPatchGD, ExactPatchGD, GradientDescent, PatchGD
from patchgd_nb.training.callback import Callback
from patchgd_nb.training.ranks import ranks
from patchgd_nb.training.zbank import ZBank
from patchgd_nb.trainer import Trainer

K = 16


class Backbone(nn.Module):
    "Normalises by the patch, unless told otherwise, and not by the batch."
    def __init__(self, dropout=0., norm=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), norm or nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.LazyLinear(5))

    def forward(self, x): return self.layers(x)


def make_model(seed=0, dropout=0., frozen=False, norm=None):
    torch.manual_seed(seed)
    backbone = Backbone(dropout, norm)
    backbone(torch.zeros(1, 3, 8, 8))
    model = PatchModel(backbone, PatchGrid(32, 8), 3, latent_dim=5, head='smaller').double()
    if frozen: model.backbone.requires_grad_(False)
    return model


def make_batches(seed, n, b, blank_from=None):
    "Batches of `b` named images; contents from a few patches to all; of some batches, the last images are blank."
    g = torch.Generator().manual_seed(seed)
    batches = []
    for i in range(n):
        images = torch.rand(b, 3, 32, 32, generator=g).double()
        share = torch.rand(b, 1, generator=g)
        content = (torch.rand(b, K, generator=g) < share).float()
        content[:, 0] = 1
        if blank_from is not None and i % 2: content[blank_from:] = 0
        batches.append((images, torch.randint(0, 3, (b,), generator=g), content, [f'{i}-{j}' for j in range(b)]))
    return batches


def part_of(batch, rank, size):
    "A rank's images of a batch."
    b = len(batch[1]) // size
    return tuple(part[rank * b:(rank + 1) * b] for part in batch)


def make_strategy(kind, folder, **options):
    sampler = dict(cover=CoverSampler, uniform=UniformSampler)[options.pop('sampler', 'cover')](options.pop('fraction', .25), seed=0)
    if kind == 'whole': return GradientDescent()
    if kind == 'exact': return ExactPatchGD(chunk=3)
    if kind == 'carry': return CarryPatchGD(sampler, ZBank(Path(folder, 'z')), **options)
    return PatchGD(sampler, **options)


class Dies(Callback):
    "The process is killed in the middle of a batch, or leaves it so."
    def __init__(self, epoch, batch, killed): self.place, self.killed = (epoch, batch), killed
    def on_inner(self, trainer, j, loss, cells, Z):
        if (trainer.epoch, trainer.batch) != self.place: return
        if self.killed: os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt


def train(rank, size, folder, kind='patch', b=4, batches=4, epochs=2, blank=False, options={}, valid=False, dies=None, resume=False, optimizer='Adam', **more):
    "A run on the images of this rank; the weights, and what was counted."
    data = [part_of(batch, rank, size) for batch in make_batches(1, batches, b, b // 2 if blank else None)]
    model = make_model(seed=rank)   # unlike weights: the run makes them alike
    if dies and (rank == size - 1 or not dies[2]): more['callbacks'] = [Dies(*dies)]
    before = ranks.gradients, ranks.tables
    trainer = Trainer(model, make_strategy(kind, folder, **options), data, [part_of(batch, rank, size) for batch in make_batches(2, 3, b)] if valid else None, optimizer=getattr(torch.optim, optimizer), lr=.01,
                      epochs=epochs, progress=False, checkpoint=Path(folder, 'run') if resume or dies or more.pop('checkpoint', False) else None, save_minutes=0, device='cpu', **more)
    steps = []
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    trainer.fit(resume=resume)
    return dict(weights={k: v.clone() for k, v in model.state_dict().items()}, steps=len(steps), gradients=ranks.gradients - before[0], tables=ranks.tables - before[1], epochs=trainer.trace.epochs,
                batches=sum(1 for _ in {(e, i) for e, i, *_ in trainer.trace.inner}))


def several(rank, size, folder, settings, interrupted=()):
    "Runs one after the other, by name; some are left in the middle of a batch, and resumed."
    found = {}
    for number, (name, options) in enumerate(settings.items()):
        place = Path(folder, str(number))
        if name in interrupted:
            try: train(rank, size, place, dies=[1, 2, False], **options)
            except KeyboardInterrupt: pass
        found[name] = train(rank, size, place, resume=name in interrupted, **options)
    return found


def many(rank, size, folder, n=200, seed=0):
    "Runs of `n` random configurations, one after the other; whether weights, their average and statistics were the same on all ranks after each."
    rng, alike = random.Random(seed), []
    for i in range(n):
        kind = rng.choice(['patch', 'carry', 'exact', 'whole', 'patch'])
        options = dict(sampler=rng.choice(['cover', 'uniform']), fraction=rng.choice([.1, .25, .5, 1.])) if kind in ('patch', 'carry') else {}
        if options: options |= dict(inner_steps=rng.choice([None, 1, 3]), accumulate=rng.choice([None, 1, 2]))
        several = rng.choice([1, 2, 3]) if options.get('accumulate') is None else 1
        kinds = rng.choices(['all', 'blank', 'none', 'one image', 'few'], k=6)
        counts = [rng.randint(0, 3), rng.randint(0, 3)]
        counts[rng.randint(0, 1)] = 3
        data = []
        for number, (images, labels, content, names) in enumerate(make_batches(i, counts[rank], 2)):
            what = kinds[3 * rank + number]
            if what == 'blank': content[:] = 0
            if what == 'few': content[:, 1:] = 0
            keep = 1 if what == 'one image' else 2
            data.append(None if what == 'none' else (images[:keep], labels[:keep], content[:keep], [f'{n} of {rank}' for n in names[:keep]]))
        norm = nn.BatchNorm2d(6) if rng.random() < .4 else None   # its statistics are averaged at the end of an epoch
        model = make_model(rank, frozen=rng.random() < .1, norm=norm)
        precision = rng.choice(['off', 'off', 'bf16', 'fp16'])
        if precision != 'off': model.float(); data = [d and (d[0].float(), *d[1:]) for d in data]
        clip, ema = rng.choice([None, .1]), rng.choice([None, .9])
        sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=.05)
        trainer = Trainer(model, make_strategy(kind, Path(folder, str(i)), **options), Endless(data), optimizer=sgd, epochs=2, epoch_batches=3, accumulate_batches=several, precision=precision, clip=clip, ema=ema, progress=False, device='cpu')
        trainer.fit()
        states = [m.state_dict() for m in (model, trainer.ema) if m is not None]
        flat = torch.cat([v.detach().flatten().double() for s in states for v in s.values() if v.is_floating_point()])
        others = ranks.gather(flat)
        alike.append(bool(flat.isfinite().all()) and all(torch.equal(flat, other) for other in others))
    return alike


class Changes(Callback):
    "Somebody sets another fraction, at the first rank only."
    first_rank_only = True
    def on_batch_end(self, trainer, result): trainer.strategy.sampler.fraction, trainer.strategy.accumulate = 1/3, 1


def steered(rank, size, folder):
    "Fraction of this rank's strategy, and steps of its optimizer, after a change at the first."
    trainer = Trainer(make_model(rank), make_strategy('patch', folder), [part_of(batch, rank, size) for batch in make_batches(1, 3, 4)], epochs=1, callbacks=[Changes()], progress=False, device='cpu')
    steps = []
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    trainer.fit()
    return trainer.strategy.sampler.fraction, len(steps), ranks.gradients


def gradients(rank, size, folder):
    "Faults that `check_gradients` finds in steps of two processes which have the same images."
    images, labels, content, names = make_batches(3, 1, 4)[0]
    found = {}
    for kind, options in dict(exact={}, patch=dict(fraction=1.)).items():
        strategy = make_strategy(kind, folder, **options)
        step = partial(strategy.step, names=names) if kind == 'patch' else strategy.step
        found[kind] = check_gradients(step, make_model(), images, labels, expect='full').ok
    return found


class Endless:
    "Batches in a number that nobody knows."
    def __init__(self, batches): self.batches = batches
    def __iter__(self): return iter(self.batches or [None])


JOBS = dict(steered=steered, train=train, gradients=gradients, several=several, many=many)

if __name__ == '__main__':
    job, rank, size, folder, options = sys.argv[1:]
    torch.set_num_threads(1)
    rank, size = int(rank), int(size)
    if size > 1: dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=size)
    result = JOBS[job](rank, size, folder, **json.loads(options))
    torch.save(result, Path(folder, f'{rank}.pt'))
    if size > 1: dist.destroy_process_group()
