"Other tasks than classes: a number, several labels at once, grades; trained and validated by `Trainer` on digits."
import pytest, torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MultilabelF1Score
from torchmetrics.regression import MeanAbsoluteError, R2Score
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import PatchGD
from patchgd_nb.trainer import Trainer
from patchgd_nb.training.callback import Callback
from patchgd_nb.training.metrics import Evaluation, classification_metrics

DIGITS = load_digits()
IMAGES, TARGET = torch.from_numpy(DIGITS.images).float()[:, None] / 8 - 1, torch.from_numpy(DIGITS.target)


def loaders(labels, n=1000):
    return DataLoader(TensorDataset(IMAGES[:n], labels[:n]), 50, shuffle=True), DataLoader(TensorDataset(IMAGES[n:1400], labels[n:1400]), 200)


def trainer_of(labels, n_out, epochs=4, seed=0, **options):
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    model = PatchModel(backbone, PatchGrid(8, 4), n_out, 16, 'smaller', in_chans=1)
    return Trainer(model, PatchGD(CoverSampler(1/2)), *loaders(labels), lr=5e-3, epochs=epochs, device='cpu', progress=False, **options)


class Stop(Callback):
    def __init__(self, *at): self.at = at
    def on_batch_end(self, trainer, result): trainer.stop = (trainer.epoch, trainer.batch) == self.at


def squared(scores, labels): return F.mse_loss(scores[:, 0], labels)
def error(scores, labels): return dict(mae=(scores[:, 0] - labels).abs().mean())


def test_regression(tmp_path):
    "How bright an image is; the best checkpoint has the smallest error, and a stopped run resumes to the bit."
    ink = IMAGES.flatten(1).mean(1)
    ink = (ink - ink.mean()) / ink.std()
    options = dict(loss=squared, metrics=error, best='mae', higher_is_better=False, ema=.9)
    whole = trainer_of(ink, 1, checkpoint=tmp_path / 'a', **options).fit()
    constant = float((ink[1000:1400] - ink[:1000].median()).abs().mean())
    assert list(whole.validate()) == ['loss', 'mae'] and whole.validate()['mae'] < .4 * constant
    errors = [e['mae'] for e in whole.trace.epochs]
    best = whole.checkpoints.load(best=True)
    assert best.score == -min(errors) == whole.best
    best.load_into(whole.model, averaged=True), whole.ema.load_state_dict(whole.model.state_dict())
    assert whole.validate()['mae'] == min(errors)
    trainer_of(ink, 1, checkpoint=tmp_path / 'b', callbacks=[Stop(2, 7)], **options).fit()
    resumed = trainer_of(ink, 1, seed=5, checkpoint=tmp_path / 'b', **options).fit(True)
    last = whole.checkpoints.load().state
    for key, model in (('model', resumed.model), ('ema', resumed.ema)): assert all(torch.equal(v, last[key][k]) for k, v in model.state_dict().items())
    assert resumed.best == whole.best


def test_several_labels_at_once():
    "Is it even, above four, a prime? Each mistaken by at most one half of the guesses that always give the commoner answer."
    facts = torch.stack([TARGET % 2 == 0, TARGET > 4, torch.isin(TARGET, torch.tensor([2, 3, 5, 7]))], 1).long()
    trainer = trainer_of(facts, 3, loss=lambda scores, labels: F.binary_cross_entropy_with_logits(scores, labels.float()), metrics=MultilabelF1Score(3), best='MultilabelF1Score').fit()
    scores, labels = trainer.predict(trainer.valid)
    rate = labels.float().mean(0)
    assert (((scores > 0) != labels).float().mean(0) < .5 * torch.minimum(rate, 1 - rate)).all()
    assert trainer.validate().keys() == {'loss', 'MultilabelF1Score'}


def test_grades():
    "Digits as grades: nine thresholds, each told whether it is exceeded; the answer is their number."
    exceeded = lambda labels: (labels[:, None] > torch.arange(9)).float()
    def measure(scores, labels): return classification_metrics(F.one_hot((scores > 0).sum(1), 10).float(), labels)
    trainer = trainer_of(TARGET, 9, loss=lambda scores, labels: F.binary_cross_entropy_with_logits(scores, exceeded(labels)), metrics=measure).fit()
    assert trainer.validate()['qwk'] > .7   # a constant has 0
    plain = trainer_of(TARGET, 9, epochs=1, loss=lambda scores, labels: F.binary_cross_entropy_with_logits(scores, exceeded(labels))).fit()
    assert plain.validate().keys() == {'loss'} and plain.evaluation.score(plain.trace.epochs[0]) == -plain.trace.epochs[0]['loss']   # the largest score is no answer


def test_probabilities_as_labels():
    soft = F.one_hot(TARGET, 10) * .9 + .01
    trainer = trainer_of(soft, 10, epochs=2).fit()
    assert trainer.validate()['accuracy'] > .4          # of a constant: .1


class Stream(IterableDataset):
    def __init__(self, n=10**9): self.n = n
    def __iter__(self): return ((IMAGES[i % 1000], TARGET[i % 1000]) for i in range(self.n))


def test_streams(tmp_path):
    "No length: a sentence, or a number of batches. One that ends early ends the epoch; one that is stopped resumes."
    def go(folder, stream, seed=0, epoch_batches=7, resume=False, **options):
        base = trainer_of(TARGET, 10, seed=seed)
        return Trainer(base.model, base.strategy, stream, epochs=2, epoch_batches=epoch_batches, checkpoint=folder and tmp_path / folder, device='cpu', progress=False, **options).fit(resume)
    endless = DataLoader(Stream(), 20)
    with pytest.raises(ValueError, match='give epoch_batches'): go(None, endless, epoch_batches=None)
    whole = go('a', endless)
    assert {r[:2] for r in whole.trace.inner} == {(e, b) for e in range(2) for b in range(7)}
    go('b', endless, callbacks=[Stop(1, 3)])
    resumed = go('b', endless, seed=4, resume=True)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in whole.model.state_dict().items())
    short = go('c', DataLoader(Stream(50), 20))
    assert {r[:2] for r in short.trace.inner} == {(e, b) for e in range(2) for b in range(3)} and short.epoch == 2
    with pytest.raises(ValueError, match='no batch in epoch 1'): go(None, iter([*DataLoader(Stream(50), 20)]))


def test_whether_more_is_better_is_known_to_the_metric():
    "Nobody has to say that an error is to be small; what is said wins."
    collection = MetricCollection([MeanAbsoluteError(), R2Score()])
    for metrics in (MeanAbsoluteError(), collection):
        assert Evaluation(metrics, 'MeanAbsoluteError').score(dict(loss=1., MeanAbsoluteError=3.)) == -3
    assert Evaluation(collection, 'R2Score').score(dict(loss=1., R2Score=.5)) == .5
    assert Evaluation(MeanAbsoluteError(), 'MeanAbsoluteError', True).score(dict(loss=1., MeanAbsoluteError=3.)) == 3
    assert Evaluation().score(dict(loss=1., qwk=.5)) == .5 and Evaluation().score(dict(loss=1.)) == -1
    assert Evaluation(lambda scores, labels: dict(mine=1.), 'mine').score(dict(loss=1., mine=2.)) == 2
