"Runs: resumed to the bit, on time, measured rightly; and the record of them."
import json, shutil
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from sklearn.metrics import accuracy_score, cohen_kappa_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from patchgd_nb.training.checkpoint import Checkpoints
from patchgd_nb.model import PatchModel, WholeModel
from patchgd_nb.training.loader import Loader
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler, UniformSampler
from patchgd_nb.strategy import CarryPatchGD, ExactPatchGD, GradientDescent, PatchGD, StepResult
from patchgd_nb.training.trace import Trace, trace_to_arrays
from patchgd_nb.training.callback import Callback
from patchgd_nb.training.protocols import BatchLoader, Classifier, NamedBatchStrategy, PatchClassifier, ResumableLoader, Stateful, TrainingStrategy
from patchgd_nb.trainer import Trainer, linear_warmup_decay

STRATEGIES = [PatchGD(CoverSampler(1/4), accumulate=3), PatchGD(UniformSampler(1/2)), GradientDescent(), ExactPatchGD(1)]


def data_of(n=24, size=16):
    g = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 4, (n,), generator=g)
    images = torch.randint(0, 60, (n, 3, size, size), generator=g) + 60 * labels[:, None, None, None]
    return TensorDataset(images.byte(), labels)


def model_of(seed=0, n_classes=4):
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(.3), nn.Linear(144, 8))
    return PatchModel(backbone, PatchGrid(16, 8), n_classes, 8, 'smaller')


class StopAfter(Callback):
    def __init__(self, epochs): self.epochs = epochs
    def on_epoch_end(self, trainer, metrics): trainer.stop = trainer.epoch == self.epochs


def run(folder, strategy, stop=4, seed=0, resume=False, workers=0, **kwargs):
    model = model_of(seed)
    torch.manual_seed(seed)
    train = DataLoader(data_of(), 6, shuffle=True, num_workers=workers)
    return Trainer(model, strategy, train, DataLoader(data_of(), 8), epochs=4, checkpoint=folder, callbacks=[StopAfter(stop)], progress=False, **kwargs).fit(resume)


@pytest.mark.parametrize('strategy, precision', [*[(s, 'off') for s in STRATEGIES], (STRATEGIES[0], 'bf16')], ids=str)
def test_a_resumed_run_equals_the_undisturbed_one_to_the_bit(tmp_path, strategy, precision):
    "Even if the new process has another seed and drew random numbers."
    whole = run(tmp_path / 'a', strategy, precision=precision)
    for stop in (1, 3): torch.manual_seed(50 + stop), run(tmp_path / 'b', strategy, stop, seed=0 if stop == 1 else 9, resume=stop > 1, precision=precision)
    resumed = run(tmp_path / 'b', strategy, seed=7, resume=True, precision=precision)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    drop = lambda t: ([r[:5] for r in t.inner], [{k: v for k, v in e.items() if k != 'seconds'} for e in t.epochs])
    assert drop(whole.trace) == drop(resumed.trace)
    assert whole.validate() == resumed.validate()


class Noisy(torch.utils.data.Dataset):
    "Items changed at random, as augmentation does; counts them."
    def __init__(self): self.read = 0
    def __len__(self): return 24
    def __getitem__(self, i):
        self.read += 1
        image, label = data_of()[i]
        return image.float() / 100 + torch.randn(()), label


class StopInside(Callback):
    def __init__(self, at): self.at = at
    def on_batch_end(self, trainer, result): trainer.stop = (trainer.epoch, trainer.batch) in self.at


LOADERS = dict(plain=lambda: DataLoader(Noisy(), 5, shuffle=True), workers=lambda: DataLoader(Noisy(), 5, shuffle=True, num_workers=2),
               generator=lambda: DataLoader(Noisy(), 5, shuffle=True, generator=torch.Generator().manual_seed(3)),
               persistent=lambda: DataLoader(data_of(), 5, shuffle=True, num_workers=1, persistent_workers=True),
               ours=lambda: Loader(Noisy(), 5, True), ours_workers=lambda: Loader(Noisy(), 5, True, 2),
               batches=lambda: [next(iter(DataLoader(data_of(), 5))) for _ in range(4)])


@pytest.mark.parametrize('name', LOADERS)
def test_a_run_resumed_inside_epochs_equals_the_undisturbed_one_to_the_bit(tmp_path, name):
    "Stopped twice in the middle of an epoch, resumed by new trainers with other weights, seeds and loaders."
    def go(folder, seed, at=(), resume=False):
        model = model_of(seed)
        torch.manual_seed(seed)
        train = LOADERS[name]()
        return Trainer(model, STRATEGIES[0], train, DataLoader(data_of(), 8), epochs=3, callbacks=[StopInside(at)], checkpoint=tmp_path / folder, progress=False).fit(resume)
    whole = go('a', 0)
    first = go('b', 0, [(1, 2)])
    assert (first.epoch, first.batch) == (1, 2) and len(first.trace.epochs) == 2     # measured where it stopped
    if 'ours' in name: go('b', 8, [(2, 1)], True)
    resumed = go('b', 9, resume=True)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    drop = lambda t: ([r[:5] for r in t.inner], [(e, b, j, ids, bits.tolist()) for e, b, j, ids, bits in t.sampled], [{k: v for k, v in e.items() if k != 'seconds'} for e in t.epochs])
    assert drop(whole.trace) == drop(resumed.trace)
    if name == 'ours': assert resumed.train.dataset.data.read == 24 - 4 - 5   # only what was left of the epoch
    if name not in ('plain', 'ours'): return
    again = go('c', 0, [(1, 2)])
    again.callbacks.clear()
    again.fit()                                                              # in the same process, without files
    assert all(torch.equal(v, again.model.state_dict()[k]) for k, v in whole.model.state_dict().items())


class Remembers(PatchGD):
    "A strategy with a state of its own."
    seen = 0
    def step(self, *args, **kwargs): self.seen += 1; return super().step(*args, **kwargs)
    def state_dict(self): return dict(seen=self.seen)
    def load_state_dict(self, state): self.seen = state['seen']


def test_the_state_of_a_strategy_goes_with_the_checkpoint(tmp_path):
    run(tmp_path, Remembers(CoverSampler(1/4)), 2)
    resumed = run(tmp_path, Remembers(CoverSampler(1/4)), resume=True)
    assert resumed.strategy.seen == 16


def test_minutes_inside_an_epoch(tmp_path):
    saved = []
    for minutes, names in ((0, ['e0000-b000001', 'e0000-b000002', 'e0000-b000003', 'e0001-b000000']), (None, ['e0001-b000000']), (10, ['e0001-b000000'])):
        trainer = Trainer(model_of(), STRATEGIES[0], DataLoader(data_of(), 6), epochs=1, checkpoint=tmp_path / str(minutes), save_minutes=minutes, progress=False)
        trainer.checkpoints.keep = 9
        assert trainer.fit().checkpoints.names() == names


def test_a_fresh_start_sets_an_earlier_run_aside(tmp_path, capsys):
    old = run(tmp_path, STRATEGIES[0], 2)
    new = run(tmp_path, STRATEGIES[0], 1, seed=5)
    assert new.checkpoints.names() == ['e0001-b000000'] and 'before-1' in capsys.readouterr().out
    assert Checkpoints(tmp_path / 'before-1').load().state['epoch'] == 2
    new.epochs = 6
    assert new.fit().checkpoints.names()[0] != 'before' and not (tmp_path / 'before-2').exists()     # going on is no fresh start


def test_another_number_of_batches_is_refused_or_said(tmp_path):
    run(tmp_path, STRATEGIES[0], 1)
    def again(resume): Trainer(model_of(), STRATEGIES[0], DataLoader(data_of(), 4), epochs=2, checkpoint=tmp_path, progress=False).fit(resume)
    with pytest.raises(ValueError, match='batch_size 6 there, 4 here; batches 4 there, 6 here'): again(True)
    with pytest.warns(UserWarning, match='batches 4 there, 6 here'): again('anyway')


def test_another_optimizer_is_refused(tmp_path):
    run(tmp_path, STRATEGIES[0], 1)
    with pytest.raises(ValueError, match='optimizer AdamW there, SGD here'):
        Trainer(model_of(), STRATEGIES[0], DataLoader(data_of(), 6), optimizer=torch.optim.SGD, checkpoint=tmp_path, progress=False).fit(True)


@pytest.mark.parametrize('spoil', ['loss', 'weight'])
def test_numbers_that_go_astray_stop_the_run(tmp_path, spoil):
    "At the third batch of the second epoch: its images are named, and no checkpoint holds what it did."
    class Astray(PatchGD):
        steps = 0
        def step(self, model, *args, **kwargs):
            result, self.steps = super().step(model, *args, **kwargs), self.steps + 1
            if self.steps == 7 and spoil == 'loss': result.losses[1] = torch.inf
            if self.steps == 7 and spoil == 'weight': model.head.classify.weight.data[0, 0] = torch.nan
            return result
    batches = [(*b, None, [f'image {i}{j}' for j in range(6)]) for i, b in enumerate(DataLoader(data_of(), 6))]
    trainer = Trainer(model_of(), Astray(CoverSampler(1/4)), batches, epochs=3, checkpoint=tmp_path, save_minutes=0, progress=False)
    with pytest.raises(FloatingPointError, match=f'the loss became inf in epoch 1, batch 2 .*image 20.* checkpoint is .*e0001-b000002' if spoil == 'loss' else 'a weight became .*image 20.*e0001-b000002') as e: trainer.fit()
    assert '\n' not in str(e.value)
    found = trainer.checkpoints.load()
    assert found.folder.name == 'e0001-b000002' and all(v.isfinite().all() for v in found.state['model'].values())


def test_resuming_from_an_empty_folder_starts_afresh(tmp_path):
    assert run(tmp_path / 'new', STRATEGIES[0], 1, resume=True).epoch == 1


def test_another_models_checkpoint_is_refused(tmp_path):
    run(tmp_path, STRATEGIES[0], 1)
    with pytest.raises(ValueError, match='e0001-b000000 .*classes 4 there, 7 here') as e: Trainer(model_of(n_classes=7), STRATEGIES[0], DataLoader(data_of(), 6), checkpoint=tmp_path, progress=False).fit(resume=True)
    assert '\n' not in str(e.value)


def test_best_is_the_epoch_with_the_highest_kappa(tmp_path):
    trainer = run(tmp_path, STRATEGIES[0])
    best = max(e['qwk'] for e in trainer.trace.epochs)
    found = trainer.checkpoints.load(best=True)
    found.load_into(trainer.model)
    assert found.score == best
    assert trainer.validate()['qwk'] == best


@pytest.mark.parametrize('strategy', STRATEGIES, ids=repr)
def test_metrics_are_scikit_learns(strategy):
    trainer = run(None, strategy)
    scores, labels = trainer.predict(trainer.valid)
    guess, measured = scores.argmax(1), trainer.validate()
    assert measured['accuracy'] == pytest.approx(accuracy_score(labels, guess))
    assert measured['qwk'] == pytest.approx(cohen_kappa_score(labels, guess, weights='quadratic', labels=range(4)), abs=1e-5)
    assert labels.tolist() == data_of().tensors[1].tolist()


def test_constant_answers_have_a_kappa_of_zero():
    trainer = run(None, STRATEGIES[0], 1)
    nn.init.zeros_(trainer.model.head.classify.weight)
    trainer.valid = DataLoader(TensorDataset(data_of().tensors[0][:4], torch.zeros(4).long()), 2)
    assert trainer.validate()['qwk'] == 0


@given(st.floats(0, 1), st.floats(.001, .9))
def test_schedule_rises_then_falls(progress, warmup):
    rate = linear_warmup_decay(progress, warmup)
    assert 0 <= rate <= 1
    assert rate == pytest.approx(max(progress / warmup, .01) if progress < warmup else (1 - progress) / (1 - warmup))


def test_a_time_budget_ends_the_run_and_its_schedule():
    trainer = Trainer(model_of(), STRATEGIES[0], DataLoader(data_of(), 6), epochs=10**6, max_seconds=1.5, progress=False).fit()
    rates = [r[4] for r in trainer.trace.inner]
    assert 1.5 <= trainer.seconds < 3 and trainer.epoch > 1
    assert max(rates) > .8e-3 and rates[-1] < .2e-3


def test_whole_images_train_too():
    data = TensorDataset(torch.randint(256, (8, 3, 64, 64), dtype=torch.uint8), torch.arange(8) % 4)
    trainer = Trainer(WholeModel('test_resnet', (64, 64), 4), GradientDescent(), DataLoader(data, 4), DataLoader(data, 4), epochs=1, progress=False).fit()
    assert len(trainer.trace.inner) == 2 and trainer.trace.shape is None


@pytest.mark.parametrize('label', [-1, 4])
def test_a_label_that_is_no_class_stops_before_its_batch(label):
    batch = (torch.zeros(2, 3, 16, 16), torch.tensor([1, label]), None, ['good', 'bad'])
    model = model_of()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf'label {label} of image bad .* 0 to 3'): Trainer(model, STRATEGIES[0], [batch], progress=False).fit()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_no_batches_is_refused():
    with pytest.raises(ValueError, match='no batches'): Trainer(model_of(), STRATEGIES[0], DataLoader(data_of(4), 6, drop_last=True))


def test_progress_bars_cost_nothing_to_the_result(capsys):
    quiet, shown = run(None, STRATEGIES[0], 2), run(None, STRATEGIES[0], 2)
    model = model_of(0)
    torch.manual_seed(0)
    shown = Trainer(model, STRATEGIES[0], DataLoader(data_of(), 6, shuffle=True), DataLoader(data_of(), 8), epochs=4, callbacks=[StopAfter(2)]).fit()
    assert all(torch.equal(v, shown.model.state_dict()[k]) for k, v in quiet.model.state_dict().items())
    assert 'epoch' in capsys.readouterr().err


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 9), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_a_record_survives_saving(tmp_path_factory, batches, keep, shape):
    rng, trace = np.random.default_rng(0), Trace(keep)
    truth = []
    for b, steps in enumerate(batches):
        sampled = rng.random((steps, 2, shape[0] * shape[1])) < .4
        trace.add_batch(0, b, rng.random(steps).tolist(), 1e-3, b + .25, sampled, ['x', 'y'], shape)
        truth += list(sampled)
    trace.add_epoch(epoch=0, seconds=1.5, qwk=.25)
    path = tmp_path_factory.mktemp('trace') / 't.npz'
    trace.save(path)
    again = Trace.load(path)
    assert (again.inner, again.epochs, again.shape) == (trace.inner, trace.epochs, shape)
    assert all((rows == t).all() for (*_, rows), t in zip(again.samples(), truth[-keep:], strict=True))
    assert (again.times_sampled('y') == sum(t[1] for t in truth[-keep:]).reshape(shape)).all()


def test_a_record_with_a_pickle_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self): return (open, (str(tmp_path / 'harm'), 'w'))
    np.savez(tmp_path / 'bomb.npz', head=np.array(Bomb(), dtype=object))
    with pytest.raises(ValueError): Trace.load(tmp_path / 'bomb.npz')
    assert not (tmp_path / 'harm').exists()


def test_a_later_version_is_named(tmp_path):
    head, arrays = trace_to_arrays(Trace())
    np.savez(tmp_path / 't.npz', head=np.array(json.dumps(head | dict(version=7))), **arrays)
    with pytest.raises(ValueError, match='version 7'): Trace.load(tmp_path / 't.npz')


# what version 0.1 wrote: a run of three epochs, stopped after two of the three batches of its second
OLD = Path(__file__).parent / 'checkpoint_0_1'
OLD_LOSSES = [1.198665, 1.193873, 1.094756, 1.050702, 0.947648, 0.998665, 0.999627, 0.900815, 0.901995]   # of the same run, undisturbed


def old_run(folder):
    "The trainer of that run, with other weights."
    g = torch.Generator().manual_seed(4)
    labels = torch.arange(12) % 3
    images = (torch.randint(0, 60, (12, 1, 8, 8), generator=g) + 60 * labels[:, None, None, None]).byte()
    data = TensorDataset(images, labels)
    model = PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 4, bias=False)), PatchGrid(8, 4), 3, 4, 'smaller', in_chans=1)
    model.head = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    strategy = PatchGD(CoverSampler(1/2), inner_steps=1)
    return Trainer(model, strategy, DataLoader(data, 4, shuffle=True), DataLoader(data, 6), lr=1e-2, epochs=3, checkpoint=folder, device='cpu', progress=False)


def test_a_checkpoint_of_version_0_1_is_read():
    found = Checkpoints(OLD).load()
    assert found.folder.name == 'e0001-b000002' and found.config['backbone'] == 'Sequential' and found.config['classes'] == 3
    model = found.load_into(old_run(None).model)
    assert all(torch.equal(v, found.state['model'][k]) for k, v in model.state_dict().items())


def test_a_trace_of_version_0_1_is_read():
    trace = Trace.load(OLD / 'e0001-b000002/trace.npz')
    assert [r[:3] for r in trace.inner] == [(0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 1, 0)] and trace.shape == (2, 2)
    assert trace.inner.column(3).tolist() == pytest.approx(OLD_LOSSES[:5], abs=1e-6)
    assert trace.epochs[0]['qwk'] == pytest.approx(7 / 9) and all(rows.sum(1).tolist() == [2] * 4 for *_, rows in trace.samples())


def test_a_run_of_version_0_1_is_resumed_where_it_was(tmp_path):
    "Inside an epoch: the same order of images, the same patches, so the losses are those of the undisturbed run."
    shutil.copytree(OLD, tmp_path / 'run')
    resumed = old_run(tmp_path / 'run').fit(resume=True)
    assert resumed.epoch == 3 and resumed.trace.inner.column(3).tolist() == pytest.approx(OLD_LOSSES, abs=1e-5)
    assert resumed.trace.epochs[-1]['qwk'] == pytest.approx(0.842105, abs=1e-5)
    assert json.loads((tmp_path / 'run/e0003-b000000/manifest.json').read_text())['made']['optimizer'] == 'AdamW'     # the key on the disk


class OnlyStep:
    "A strategy of a user's own: no base class, one method."
    def step(self, model, images, labels, optimizer, content=None, precision=None, on_inner=None):
        optimizer.zero_grad()
        scores = model(images)
        loss = nn.functional.cross_entropy(scores, labels)
        loss.backward()
        optimizer.step()
        return StepResult(loss.detach()[None], scores.detach(), None, 1)


class WithState(OnlyStep):
    "One that has a state, and still no base class."
    seen = 0
    def step(self, *args, **kwargs): self.seen += 1; return super().step(*args, **kwargs)
    def state_dict(self): return dict(seen=self.seen)
    def load_state_dict(self, state): self.seen = state['seen']


class WithNames(OnlyStep):
    "One that asks for names."
    needs_names = True
    def step(self, *args, names, dihedral, **kwargs): self.names = names; return super().step(*args, **kwargs)


def test_what_protocols_ask_for(tmp_path):
    for s in (OnlyStep(), WithState(), WithNames(), *STRATEGIES): assert isinstance(s, TrainingStrategy)
    assert not isinstance(OnlyStep(), (NamedBatchStrategy, Stateful)) and isinstance(WithState(), Stateful) and isinstance(WithNames(), NamedBatchStrategy)
    carry = CarryPatchGD(CoverSampler(1/4), None)
    assert isinstance(carry, NamedBatchStrategy) and carry.needs_names and isinstance(carry, Stateful) and not isinstance(object(), TrainingStrategy)
    ours, plain = Loader(data_of(), 6), DataLoader(data_of(), 6)
    assert isinstance(ours, ResumableLoader) and isinstance(plain, BatchLoader) and not isinstance(plain, ResumableLoader) and isinstance([*plain], BatchLoader)
    whole = WholeModel('test_resnet', (16, 16), 4)
    assert isinstance(model_of(), PatchClassifier) and isinstance(whole, Classifier) and not isinstance(whole, PatchClassifier) and not isinstance(nn.Linear(2, 2), Classifier)


@pytest.mark.parametrize('strategy', [OnlyStep, WithState, GradientDescent])
@pytest.mark.parametrize('plain', [False, True])
def test_a_strategy_that_only_steps_and_a_plain_module_train_and_resume(tmp_path, strategy, plain):
    def go(folder, seed, stop=4, resume=False):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)) if plain else model_of(seed)
        data = TensorDataset(data_of().tensors[0].float() / 255, data_of().tensors[1])
        torch.manual_seed(seed)
        return Trainer(model, strategy(), DataLoader(data, 6, shuffle=True), DataLoader(data, 8), epochs=4, checkpoint=tmp_path / folder, callbacks=[StopAfter(stop)], memory_budget='1MB', progress=False).fit(resume)
    whole = go('a', 0)
    go('b', 0, 2)
    resumed = go('b', 5, resume=True)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items()) and set(whole.trace.epochs[0]) >= {'accuracy', 'qwk'}
    if strategy is WithState: assert resumed.strategy.seen == 16


def test_names_are_handed_to_whom_asks_for_them():
    batch = (torch.rand(2, 3, 16, 16), torch.tensor([0, 1]), None, ['x', 'y'])
    assert Trainer(model_of(), WithNames(), [batch], epochs=1, progress=False).fit().strategy.names == ['x', 'y']
    quiet = WithNames()
    quiet.needs_names, quiet.step = False, OnlyStep().step
    Trainer(model_of(), quiet, [batch], epochs=1, progress=False).fit()


def small(strategy=None, seed=0, batches=4, epochs=2, valid=False, **options):
    "A trainer of a linear model with dropout, in milliseconds."
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(.2), nn.Linear(4, 3))
    g = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(4 * batches, 2, 2, generator=g), torch.arange(4 * batches) % 3)
    torch.manual_seed(seed)
    return Trainer(model, strategy or GradientDescent(), DataLoader(data, 4, shuffle=True), DataLoader(data, 8) if valid else None, epochs=epochs, device='cpu', progress=False, **options)


def same(a, b): return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


class At(Callback):
    "Does something at the end of a batch, or in it."
    def __init__(self, at, do, inner=False): self.at, self.do, self.inner = at, do, inner
    def on_batch_end(self, trainer, result):
        if not self.inner and (trainer.epoch, trainer.batch) == self.at: self.do(trainer)
    def on_inner(self, trainer, *_):
        if self.inner and (trainer.epoch, trainer.batch) == self.at: self.do(trainer)


def stop(trainer): trainer.stop = True
def fail(trainer): raise KeyError('a typo')


@pytest.mark.parametrize('look', ['validate', 'predict'])
def test_who_looks_does_not_change_the_run(look):
    "Modes, buffers (also of modules that count in eval mode) and every random state are as they were."
    class Counting(nn.Flatten):
        def __init__(self): super().__init__(); self.register_buffer('n', torch.zeros(()))
        def forward(self, x): self.n += 1; np.random.rand(); return super().forward(x)
    def go(callbacks):
        trainer = small(valid=True, callbacks=callbacks)
        trainer.model[0] = Counting()
        trainer.model[2].eval()          # train() at the epoch's start, then eval by a user
        return trainer.fit()
    def peek(trainer):
        before = [m.training for m in trainer.model.modules()], np.random.get_state()[1].tolist()
        trainer.validate() if look == 'validate' else trainer.predict(trainer.valid)
        assert before == ([m.training for m in trainer.model.modules()], np.random.get_state()[1].tolist())
    assert same(go([At((0, 1), peek)]).model, go([]).model)


def test_validation_uses_the_loss_that_is_learned_from():
    trainer = small(valid=True, loss=lambda scores, labels: 7 * nn.functional.cross_entropy(scores, labels), epochs=1).fit()
    scores, labels = trainer.predict(trainer.valid)
    assert trainer.validate()['loss'] == pytest.approx(7 * float(nn.functional.cross_entropy(scores, labels))) and trainer.strategy.loss is not GradientDescent().loss


def test_labels_on_another_device_are_fetched():
    "As a loader that puts batches onto a GPU gives them."
    class OnGPU(torch.Tensor):
        fetched = 0
        def cpu(self): OnGPU.fetched += 1; return self.as_subclass(torch.Tensor)
    trainer = small(valid=True)
    trainer.valid = [(x, y.as_subclass(OnGPU)) for x, y in trainer.valid]
    assert type(trainer.predict(trainer.valid)[1]) is torch.Tensor and OnGPU.fetched == 2 and 'accuracy' in trainer.validate()


def test_groups_keep_their_ratio_and_an_instance_its_rates(tmp_path):
    def of(model): return torch.optim.SGD([dict(params=model[1].parameters(), lr=1e-5), dict(params=[*model[2].parameters(), *model[4].parameters()], lr_scale=.5)], lr=1e-3)
    seen = []
    class See(Callback):
        def on_batch_end(self, trainer, result): seen.append([g['lr'] for g in trainer.optimizer.param_groups])
    trainer = small(optimizer=of, callbacks=[See(), At((1, 2), stop)], checkpoint=tmp_path).fit()
    assert max(a for a, _ in seen) > .8e-5 and all(b == pytest.approx(50 * a) for a, b in seen) and trainer.lr == .5e-3
    assert [g['lr'] for g in trainer.optimizer.param_groups] == [1e-5, 1e-3]
    resumed = small(optimizer=of, callbacks=[See()], checkpoint=tmp_path).fit(True)
    assert all(b == pytest.approx(50 * a) for a, b in seen) and resumed.trace.inner[-1][4] == pytest.approx(seen[-1][1])
    given = of(trainer.model)
    assert Trainer(trainer.model, GradientDescent(), trainer.train, optimizer=given, device='cpu').optimizer is given
    with pytest.warns(UserWarning, match='leaves out 2 parameters that are not frozen .4.weight'): small(optimizer=lambda m: torch.optim.SGD(m[:3].parameters(), lr=1.))
    part = small().model
    part[4].requires_grad_(False)
    Trainer(part, GradientDescent(), trainer.train, optimizer=lambda m: torch.optim.SGD(m[:3].parameters(), lr=1.), device='cpu')


def test_a_run_that_is_prolonged_after_its_end_begins_a_new_schedule(tmp_path):
    trainer = small(epochs=5, warmup=.2, checkpoint=tmp_path / 'a').fit()
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')
    trainer.epochs = 10
    prolonged = trainer.fit().trace.inner.column(4)
    later = small(epochs=10, warmup=.2, seed=3, checkpoint=tmp_path / 'b').fit(True)
    resumed = later.trace.inner.column(4)
    assert prolonged[20:].tolist() == prolonged[:20].tolist() == resumed[20:].tolist()
    assert prolonged[19] < .1e-3 and prolonged[20] <= .01e-3 and max(prolonged[20:]) == 1e-3
    assert same(trainer.model, later.model)


@pytest.mark.parametrize('at', [(0, 2), (1, 1)])
def test_accumulation_average_and_clipping_resume_to_the_bit(tmp_path, at):
    "Also in the middle of a group of batches: the gradients that wait are saved. The rest of an epoch is applied."
    options = dict(accumulate_batches=3, ema=.8, clip=.5, valid=True, schedule=lambda p: 1 - p / 2)
    whole = small(**options, checkpoint=tmp_path / 'a')
    steps = []
    whole.optimizer.register_step_post_hook(lambda *_: steps.append((whole.epoch, whole.batch)))
    whole.fit()
    assert steps == [(0, 2), (0, 4), (1, 2), (1, 4)] and whole.trace.inner[-1][4] == pytest.approx(1e-3 * (1 - 7 / 16))
    stopped = small(**options, checkpoint=tmp_path / 'b', callbacks=[At(at, stop)]).fit()
    assert stopped.precision.pending == at[1] and stopped.checkpoints.load().state['pending'] == at[1]
    resumed = small(**options, seed=9, checkpoint=tmp_path / 'b').fit(True)
    assert same(whole.model, resumed.model) and same(whole.ema, resumed.ema) and not same(whole.ema, whole.model)
    found, other = whole.checkpoints.load(), small()
    assert same(found.load_into(other.model), whole.model) and same(found.load_into(other.model, averaged=True), whole.ema)
    with pytest.raises(ValueError, match='several updates in one batch'): Trainer(model_of(), STRATEGIES[0], [1], accumulate_batches=2)


@pytest.mark.parametrize('where', ['batch', 'inner', 'loader', 'epoch', 'metric'])
def test_an_error_leaves_a_checkpoint_of_the_last_whole_batch(tmp_path, where):
    "And the run resumes from it to the bit."
    class AtEpoch(Callback):
        def on_epoch_end(self, trainer, metrics): fail(trainer)
    callbacks = dict(batch=[At((0, 3), fail)], inner=[At((0, 2), fail, inner=True)], epoch=[AtEpoch()]).get(where, [])
    broken = small(valid=True, checkpoint=tmp_path, callbacks=callbacks, best='nothing' if where == 'metric' else None)
    if where == 'loader':
        class Broken(DataLoader):
            def __iter__(self):
                for i, b in enumerate(super().__iter__()):
                    if i == 3: torch.rand(5); fail(None)
                    yield b
        broken.train = Broken(broken.train.dataset, 4, shuffle=True)
    with pytest.raises((KeyError, ValueError), match="a typo|best='nothing' is not measured: choose one of loss, accuracy, qwk"): broken.fit()
    assert broken.checkpoints.names() == [dict(epoch='e0001-b000000', metric='e0000-b000004').get(where, 'e0000-b000003')]
    go_on = 'anyway' if where == 'metric' else True   # a metric that was corrected is another one
    resumed, whole = small(valid=True, seed=4, checkpoint=tmp_path).fit(go_on), small(valid=True).fit()
    assert same(resumed.model, whole.model) and [r[:5] for r in resumed.trace.inner] == [r[:5] for r in whole.trace.inner]


def test_a_batch_that_is_half_done_is_not_saved_and_no_error_hides_another(tmp_path):
    class Breaks(GradientDescent):
        steps = 0
        def step(self, *args, **kwargs):
            self.steps, result = self.steps + 1, super().step(*args, **kwargs)
            return result if self.steps < 4 else fail(None)
    half = small(Breaks(), checkpoint=tmp_path / 'a', callbacks=[At((0, 2), Trainer.save)])
    with pytest.raises(KeyError): half.fit()
    assert half.checkpoints.names()[-1] == 'e0000-b000002'
    class Unread(GradientDescent):
        steps = 0
        def step(self, *args, **kwargs):
            self.steps += 1
            if self.steps == 3: torch.rand(3), fail(None)          # a lazily read image, say: no weight has changed yet
            return super().step(*args, **kwargs)
    with pytest.raises(KeyError): small(Unread(), checkpoint=tmp_path / 'c').fit()
    assert same(small(seed=3, checkpoint=tmp_path / 'c').fit('anyway').model, small().fit().model) and (tmp_path / 'c/e0002-b000000').exists()
    unsaved = small(checkpoint=tmp_path / 'b', callbacks=[At((0, 2), fail)])
    def refuse(*_): raise TypeError('no state')
    unsaved.strategy.state_dict = refuse
    with pytest.warns(UserWarning, match='no checkpoint could be written .no state'), pytest.raises(KeyError): unsaved.fit()


def test_the_state_of_callbacks_goes_with_the_checkpoint(tmp_path):
    class Counts(Callback):
        n = 0
        def on_batch_end(self, trainer, result): self.n += 1
        def state_dict(self): return dict(n=self.n)
        def load_state_dict(self, state): self.n = state['n']
    class Gone(Counts): pass
    small(checkpoint=tmp_path, callbacks=[Gone(), Counts(), At((1, 1), stop)]).fit()
    old, new = Counts(), Counts()
    small(checkpoint=tmp_path, callbacks=[old, new]).fit(True)
    assert (old.n, new.n) == (8, 3)


@pytest.mark.parametrize('ema', [None, .5])
def test_statistics_are_estimated_again_before_validating(ema):
    "Of the model that is validated, over training batches; the run itself is the same."
    class See(Callback):
        def on_epoch_end(self, trainer, metrics): self.norm = (trainer.model if ema is None else trainer.ema)[2].running_mean.clone()
    trainer, other = (small(valid=True, reestimate=n, ema=ema, epochs=1, callbacks=[See()]).fit() for n in (4, 0))
    judged = trainer.model if ema is None else trainer.ema
    means = [judged[1](x.flatten(1)).mean(0) for x, _ in trainer.train]
    assert torch.allclose(trainer.callbacks[0].norm, torch.stack(means).mean(0), atol=1e-5) and not torch.allclose(other.callbacks[0].norm, trainer.callbacks[0].norm)
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), other.model.parameters())) and torch.equal(trainer.random_states['torch'], other.random_states['torch'])
