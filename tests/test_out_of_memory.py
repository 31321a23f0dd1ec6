"A step that will not fit is predicted; memory that runs out ends in a sentence, and is free again."
import gc, weakref
import pytest, torch
from patchgd_nb.memory import step_bytes
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import ExactPatchGD, GradientDescent, PatchGD
from patchgd_nb.trainer import Trainer


def model(): return PatchModel('test_resnet', PatchGrid(256, 64), 3, 8, 'smaller')
def batch(n=2): return torch.randint(256, (n, 3, 256, 256), dtype=torch.uint8), torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize('strategy', [PatchGD(CoverSampler(1/4)), ExactPatchGD(4)], ids=repr)
def test_a_step_that_will_not_fit_is_predicted_with_one_that_does(strategy):
    half = step_bytes(model(), 2, 4)['peak'] / .9
    with pytest.warns(UserWarning, match=r'a step on 4 images with 4 sampled patches of each is expected to take 0\.\d+ GiB, more than the 0\.\d+ GiB there are: batch_size=2 fits') as said:
        Trainer(model(), strategy, [batch(4), batch(4)], epochs=2, memory_budget=half + 2**16, progress=False).fit()
    assert len([w for w in said if 'expected to take' in str(w.message)]) == 1      # once, not for every batch


def test_what_fits_is_not_warned_about(recwarn):
    Trainer(model(), PatchGD(CoverSampler(1/4)), [batch()], epochs=1, memory_budget='4GB', progress=False).fit()
    Trainer(model(), GradientDescent(), [batch()], epochs=1, memory_budget='1MB', progress=False).fit()      # nothing is known of it
    assert not [w for w in recwarn if 'expected to take' in str(w.message)]


class Greedy(PatchGD):
    "Asks for more memory than there is, in the second batch."
    def step(self, model, images, *args, **kwargs):
        kept = torch.ones(4_000_000)
        self.held, self.calls = weakref.ref(kept), getattr(self, 'calls', 0) + 1
        if self.calls == 2: torch.empty(2**58)
        return super().step(model, images, *args, **kwargs)


def test_memory_that_runs_out_ends_in_a_sentence_and_is_free_again():
    trainer = Trainer(model(), Greedy(CoverSampler(1/4)), [batch(), batch(), batch()], epochs=1, progress=False)
    with pytest.raises(MemoryError, match=r'^out of memory in epoch 0, batch 1 \(.*allocate.*\): .*batch_size') as e: trainer.fit()
    assert '\n' not in str(e.value) and e.value.__cause__ is None and e.value.__context__ is None
    assert trainer.strategy.held() is None                          # although the error, with all its frames, is still here
    assert all(p.grad is None for p in trainer.model.parameters())
    Trainer(trainer.model, PatchGD(CoverSampler(1/4)), [batch()], epochs=1, progress=False).fit()      # the same kernel goes on


def test_other_errors_stay_what_they_are():
    class Broken(PatchGD):
        def step(self, *args, **kwargs): raise RuntimeError('something else')
    with pytest.raises(RuntimeError, match='^something else$'): Trainer(model(), Broken(CoverSampler(1/4)), [batch()], progress=False).fit()
