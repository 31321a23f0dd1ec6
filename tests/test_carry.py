"Z kept between epochs: what goes in comes out, however images are rotated and runs are killed; only the oldest is encoded anew."
import errno, os, subprocess, warnings
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from patchgd_nb.images.slides import make_loader
from patchgd_nb.training.callback import Callback
from patchgd_nb.model import BATCHNORM, PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.base.dihedral import apply_dihedral
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import CarryPatchGD, PatchGD
from patchgd_nb.trainer import Trainer
from patchgd_nb.training.ranks import ranks
from patchgd_nb.training.zbank import MAX_MARKS, UndoLog, ZBank

SHAPE = (3, 4, 4)   # of a Z


def contents(bank, names): return [t.clone() for t in bank.read(names, SHAPE)]
def same(a, b): return all(torch.equal(x, y) for x, y in zip(a, b))


def put(bank, names, seed):
    "Write some cells of random Z, as a batch would."
    torch.manual_seed(seed)
    bank.clock += 2
    bank.write(names, torch.rand(len(names), 16) < .4, torch.randn(len(names), *SHAPE), torch.randint(2, (len(names), 16)))


@pytest.mark.parametrize('which', range(8))
def test_z_rotates_with_its_image(tmp_path, which):
    bank, z = ZBank(tmp_path), torch.randn(1, *SHAPE)
    bank.clock = 1
    bank.write(['a'], torch.ones(1, 16), z, torch.zeros(1, 16, dtype=torch.long), dihedral=[which])
    assert torch.equal(bank.read(['a'], SHAPE, [which])[0][0].T.view(*SHAPE), z[0].half().float())
    upright = bank.read(['a'], SHAPE)[0][0].T.view(*SHAPE)
    assert torch.equal(apply_dihedral(which, upright)[0], z[0].half().float())


def test_latents_beyond_half_precision_are_held_at_its_range(tmp_path):
    bank = ZBank(tmp_path)
    bank.clock = 1
    bank.write(['a'], torch.ones(1, 16), torch.full((1, *SHAPE), 1e6), torch.zeros(1, 16, dtype=torch.long))
    assert bank.read(['a'], SHAPE)[0].isfinite().all()


def test_a_bank_grows_with_the_data_set(tmp_path):
    bank, names = ZBank(tmp_path), [f'slide {i}' for i in range(300)]
    for i in range(0, 300, 10): put(bank, names[i:i + 10], i)
    again = ZBank(tmp_path)
    again.rewind(bank.mark())
    assert same(contents(bank, names), contents(again, names))


@settings(max_examples=25, deadline=None)
@given(before=st.lists(st.sampled_from(['ab', 'bc', 'd', 'ea']), max_size=4), after=st.lists(st.sampled_from(['ab', 'cf', 'gh', None]), max_size=6), cut=st.integers(0, 17))
def test_a_bank_goes_back_to_a_mark_whatever_came_after(tmp_path_factory, before, after, cut):
    "Also when the process died while it noted a row (the last note is cut), and when it dies again while it goes back."
    folder = tmp_path_factory.mktemp('z')
    bank = ZBank(folder)
    for i, names in enumerate(before): put(bank, list(names), i)
    names = sorted({n for b in before for n in b})
    moment, expected = bank.mark(), contents(bank, names) if names else None
    checkpoints = 0
    for i, ns in enumerate(after):
        if ns is not None: put(bank, list(ns), 100 + i)
        else:
            bank.mark()
            if checkpoints < 3: bank.commit(); checkpoints += 1
    if bank.shape is not None:   # a note cut short: its cell had not been changed yet
        record = 8 + 4 + 2 * 3
        with open(bank.undo_log.path(bank.undo_log.number), 'ab') as f: f.write(b'\1' * min(cut, record - 1))
    later = ZBank(folder)
    later.rewind(moment)
    if names: assert same(contents(later, names), expected)
    put(later, ['a', 'z'], 500)
    last = ZBank(folder)
    last.rewind(moment)
    if names: assert same(contents(last, names), expected)
    assert last.clock == moment['clock'] and len(last.rows) == len(names)


def test_a_mark_too_long_ago_leaves_an_empty_bank_and_says_so(tmp_path):
    bank = ZBank(tmp_path)
    put(bank, ['a'], 0)
    moment = bank.mark()
    for i in range(6): put(bank, ['a'], i); bank.mark(); bank.commit()
    later = ZBank(tmp_path)
    with pytest.warns(UserWarning, match='filled anew'): later.rewind(moment)
    assert (later.read(['a'], SHAPE)[1] == -1).all()


def test_marks_of_another_run_in_the_same_folder_are_not_taken_for_its_own(tmp_path):
    first, second = ZBank(tmp_path), ZBank(tmp_path)
    put(first, ['a'], 0)
    moment = first.mark()
    put(second, ['a'], 1); second.mark()
    later = ZBank(tmp_path)
    with pytest.warns(UserWarning, match='filled anew'): later.rewind(moment)
    assert (later.read(['a'], SHAPE)[1] == -1).all()


def test_a_bank_that_begins_anew_does_not_reuse_the_marks_of_the_lost_one(tmp_path):
    "Else a checkpoint from before the loss would be restored from notes made after it."
    bank = ZBank(tmp_path)
    put(bank, ['a'], 0)
    first = bank.mark()
    for p in tmp_path.glob('cells-*'): p.unlink()
    later = ZBank(tmp_path)
    with pytest.warns(UserWarning, match='filled anew'): later.rewind(first)
    put(later, ['b'], 1); later.mark()
    last = ZBank(tmp_path)
    with pytest.warns(UserWarning, match='filled anew'): last.rewind(first)


@settings(max_examples=25, deadline=None)
@given(changes=st.lists(st.none() | st.just(0) | st.sets(st.integers(0, 4), min_size=1), max_size=12), data=st.data())
def test_an_undo_log_restores_every_mark_it_keeps(tmp_path_factory, changes, data):
    "None is a mark that goes into a checkpoint, 0 one that does not; a set of cells is a change of them."
    folder = tmp_path_factory.mktemp('log')
    arrays = [np.zeros((5, *shape), dtype) for dtype, shape in [(np.int32, ()), (np.float16, (2,))]]
    log, moments, saved = UndoLog(folder), [], []
    log.next_file()
    for i, cells in enumerate([None, *changes]):
        if not cells:
            moments.append((log.mark(), [a.copy() for a in arrays]))
            if cells is None: log.commit(); saved.append(len(moments) - 1)
        else:
            log.save(np.array(sorted(cells)), arrays)
            for a in arrays: a[list(cells)] = i
    first = (saved[-MAX_MARKS:] or [0])[0]
    assert all(log.reaches(*m) for m, _ in moments[first:]) and len(log.numbers()) <= MAX_MARKS + 1
    mark, expected = data.draw(st.sampled_from(moments[first:]))
    for _ in range(2):     # also when it dies on the way, and does it again
        again = UndoLog(folder, log.run)
        again.play_back(*mark, arrays)
        assert all(np.array_equal(a, b) for a, b in zip(arrays, expected)) and again.reaches(*mark)
        again.save(np.array([3]), arrays)
        for a in arrays: a[3] = 99
    assert again.number > log.number


@pytest.mark.parametrize('calls', (4, 40))
def test_reading_the_state_any_number_of_times_changes_nothing(tmp_path, calls):
    "As does a checkpoint that could not be written: earlier moments can be gone back to, bit for bit."
    bank = ZBank(tmp_path)
    put(bank, ['a', 'b'], 0)
    moments = []
    for i in range(calls):
        if i % 4 == 0: moments.append((CarryPatchGD(CoverSampler(1/4), bank).state_dict(), contents(bank, ['a', 'b'])))
        bank.mark()
        put(bank, ['b', 'c'] if i % 2 else ['a'], i)
    for moment, expected in moments[::-1]:
        later = ZBank(tmp_path)
        with warnings.catch_warnings(): warnings.simplefilter('error'); later.rewind(moment)
        assert same(contents(later, ['a', 'b']), expected) and later.clock == moment['clock']


def test_the_undo_log_holds_the_cells_that_changed_and_stays_bounded(tmp_path):
    "40 images of 64 x 64 cells, 3 % of them changed in each of 8 epochs, a checkpoint after each."
    bank, shape, changed = ZBank(tmp_path), (8, 64, 64), torch.zeros(1, 4096, dtype=torch.bool)
    changed[:, 700:823] = True
    size = lambda: sum(p.stat().st_size for p in tmp_path.iterdir() if p.name.startswith(('undo', 'cells')))
    for epoch in range(8):
        for i in range(40):
            at = size()
            bank.write([f's{i}'], changed, torch.full((1, *shape), float(epoch)), torch.zeros(1, 4096, dtype=torch.long))
            assert size() - at == (123 * (8 + 4 + 2 * 8) if epoch else 0)   # number, time and numbers of each cell; before the first mark none
        before = size()
        bank.write(['s7'], changed, torch.zeros(1, *shape), torch.zeros(1, 4096, dtype=torch.long))
        assert size() == before   # once between two checkpoints
        bank.mark()
        if hasattr(bank, 'commit'): bank.commit()
    assert size() <= 4 * 40 * 123 * (8 + 4 + 2 * 8)


def test_a_log_of_an_earlier_version_is_not_misread(tmp_path):
    "Whole rows in undo-*.bin, and a mark that names a moment: the bank is filled anew, and says so."
    bank = ZBank(tmp_path)
    put(bank, ['a'], 0)
    old = dict(run=bank.undo_log.run, moment=1, clock=2, images=1, shape=(16, 3))
    (tmp_path / f"undo-{old['run']}-1.bin").write_bytes(bytes(8 + 16 * 4 + 16 * 3 * 2))
    later = ZBank(tmp_path)
    with pytest.warns(UserWarning, match='filled anew'): later.rewind(old)
    assert (later.read(['a'], SHAPE)[1] == -1).all() and not list(tmp_path.glob('undo-*'))


def test_a_checkpoint_that_is_written_again_pushes_no_other_out(tmp_path):
    bank, moments = ZBank(tmp_path), []
    for i in range(6):
        put(bank, ['a', 'b'], i)
        for _ in range(4): moment = bank.mark(); bank.commit()
        moments.append((moment, contents(bank, ['a', 'b'])))
    for moment, expected in moments[:1:-1]:
        bank.rewind(moment)
        assert same(contents(bank, ['a', 'b']), expected)


def test_one_image_twice_in_a_batch_is_undone(tmp_path):
    bank = ZBank(tmp_path)
    put(bank, ['a', 'b'], 0)
    moment, expected = bank.mark(), contents(bank, ['a', 'b'])
    for i in range(3): put(bank, ['a', 'a', 'b', 'a'], 1 + i); bank.mark()
    bank.rewind(moment)
    assert same(contents(bank, ['a', 'b']), expected)


def full_disk(partly=()):
    "`os.write` of a disk that takes so many bytes, one after the other, and then no more."
    write, left = os.write, list(partly)
    def write_some(f, data):
        if not left: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(f, data[:left.pop(0)])
    return write_some


@pytest.mark.parametrize('partly', [(), (5,), (12,), (10**6, 7), (10**6, 10**6, 7), *[(10**6,) * n + (30, 1) for n in range(2, 14, 3)]], ids=str)
def test_a_disk_that_is_full_at_any_write_changes_nothing(tmp_path, monkeypatch, partly):
    "Name, blocks, undo log: wherever it ends. Later notes are read rightly, and earlier moments can be gone back to."
    bank = ZBank(tmp_path)
    put(bank, ['a', 'b'], 0)
    moment, expected = bank.mark(), contents(bank, ['a', 'b'])
    put(bank, ['a'], 1)
    now, clock = contents(bank, ['a', 'b']), bank.clock
    with monkeypatch.context() as m:
        m.setattr(os, 'write', full_disk(partly))
        with pytest.raises(OSError, match='no room for .*No space left on device.*make room') as e: put(bank, ['a', 'b', 'new'], 2)
    assert str(tmp_path) in str(e.value) and '\n' not in str(e.value)
    bank.clock = clock
    assert same(contents(bank, ['a', 'b']), now)
    second = bank.mark()
    for i in range(3): put(bank, ['b', 'a', 'new', 'newer'], 3 + i)
    for mark, z in ((second, now), (moment, expected)):
        later = ZBank(tmp_path)
        later.rewind(mark)
        assert same(contents(later, ['a', 'b']), z)


def test_a_really_full_disk_is_a_sentence_and_no_bus_error(tmp_path):
    "A real one, where the system lets us make it small; in a process of its own, which a bus error would end."
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=600k', 'tmpfs', tmp_path], capture_output=True).returncode: pytest.skip('this system mounts no tmpfs')
    try:
        if (child := os.fork()) == 0:
            code, bank, shape = 1, ZBank(tmp_path / 'z'), (32, 16, 16)
            try:
                write = lambda i: bank.write([f'image {i}'], torch.ones(1, 256), torch.full((1, *shape), i + 1.), torch.zeros(1, 256, dtype=torch.long))
                for i in range(8): write(i)
                moment, expected = bank.mark(), [t.clone() for t in bank.read(['image 0', 'image 7'], shape)]
                try:
                    for i in range(100): write(i)
                except OSError as e: refused = 'no room' in str(e) and e.__cause__.errno == errno.ENOSPC
                bank.rewind(moment)
                code = not (refused and i < 99 and same(expected, bank.read(['image 0', 'image 7'], shape)))
            finally: os._exit(code)
        status = os.waitpid(child, 0)[1]
        assert status == 0, f'exit {os.waitstatus_to_exitcode(status)}'
    finally: subprocess.run(['umount', tmp_path])


def test_another_model_is_refused(tmp_path):
    bank = ZBank(tmp_path)
    put(bank, ['a'], 0)
    with pytest.raises(ValueError, match='16 cells x 3 numbers, this model has 4 x 9'): bank.read(['a'], (9, 2, 2))


# the strategy

GRID = PatchGrid(32, 8)


def small(seed=0, blank=None):
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, 2), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 3))
    return PatchModel(net, GRID, 2, 3, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)), blank=blank).train()


class Counted(PatchModel):
    def encode(self, patches):
        self.counts = getattr(self, 'counts', []) + [(len(patches), torch.is_grad_enabled())]
        return super().encode(patches)


def batch(n=3, seed=1):
    torch.manual_seed(seed)
    images, content = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8), (torch.rand(n, 16) < .6).float()
    content[:, 0] = 1
    return images, torch.randint(2, (n,)), content, [f'i{k}' for k in range(n)]


def step(strategy, model, b, **kwargs):
    images, labels, content, names = b
    return strategy.step(model, images, labels, torch.optim.SGD(model.parameters(), lr=.01), content=content, names=names, **kwargs)


@pytest.mark.parametrize('blank', (None, 255))
def test_carried_z_is_the_filled_one_while_the_weights_rest(tmp_path, blank):
    model, b = small(blank=blank), batch()
    for m in model.modules():
        if isinstance(m, BATCHNORM): m.eval()
    carry, seen, frozen = CarryPatchGD(CoverSampler(1/4), ZBank(tmp_path)), [], torch.optim.SGD(model.parameters(), lr=0.)
    for _ in range(3): carry.step(model, *b[:2], frozen, content=b[2], names=b[3], on_inner=lambda j, loss, cells, Z: seen.append(Z.z.detach().clone()))
    filled = model.fill(b[0], content=b[2])
    assert all(torch.allclose(z, filled, rtol=2e-3, atol=1e-4) for z in (seen[-1], seen[len(seen) // 2]))


def test_what_is_encoded_when(tmp_path):
    model, b = small(), batch(4)
    model.__class__ = Counted
    carry, total = CarryPatchGD(CoverSampler(1/4), ZBank(tmp_path), refresh=1/8), int(b[2].sum())
    step(carry, model, b)
    assert sum(n for n, grad in model.counts if not grad) > total // 2      # the first time all is filled, but for what is written at once
    for _ in range(3):
        model.counts = []
        result = step(carry, model, b)
        assert sum(n for n, grad in model.counts if grad) == result.sampled.sum() <= .45 * total
        assert sum(n for n, grad in model.counts if not grad) == torch.ceil(b[2].sum(1) / 8).sum()


def test_the_oldest_cells_are_encoded_anew(tmp_path):
    model, b = small(), batch(1)
    carry = CarryPatchGD(CoverSampler(1/4), ZBank(tmp_path), inner_steps=1, refresh=1/4)
    for _ in range(6):
        age = carry.bank.read(b[3], SHAPE)[1]
        result = step(carry, model, b)
        now = carry.bank.read(b[3], SHAPE)[1]
        held, fresh = (b[2] > 0) & ~result.sampled.any(0) & (age >= 0), now <= age
        if (held & ~fresh).any(): assert (held & fresh).sum() == torch.ceil(b[2].sum() / 4) and age[held & fresh].min() >= age[held & ~fresh].max()


def test_names_are_needed(tmp_path):
    b = batch()
    with pytest.raises(ValueError, match='names of images'): step(CarryPatchGD(CoverSampler(1/4), ZBank(tmp_path)), small(), (*b[:3], None))
    with pytest.raises(ValueError, match='refresh=2'): CarryPatchGD(CoverSampler(1/4), ZBank(tmp_path), refresh=2)


def test_two_runs_with_one_seed_are_one(tmp_path):
    "On a CPU, to the bit, for PatchGD and CarryPatchGD."
    for k, make in enumerate((lambda i: PatchGD(CoverSampler(1/4), accumulate=2), lambda i: CarryPatchGD(CoverSampler(1/4), ZBank(tmp_path / str(i))))):
        weights = []
        for i in range(2):
            model = small()
            Trainer(model, make(2 * k + i), [batch(3, s) for s in range(3)], [batch(4, 9)], epochs=3, progress=False).fit()
            weights.append(model.state_dict())
        assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])


def test_blank_patches_share_the_latent_of_one():
    "In evaluation the result is that of encoding them all."
    model = small(blank=255).double().eval()
    images, _, content, _ = batch()
    pixels = content.view(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    images = torch.where(pixels > 0, images, 255).to(torch.uint8)
    with torch.no_grad(): assert torch.allclose(model(images, content), model(images), rtol=0, atol=1e-12)
    assert torch.allclose(model(images, content), model(images), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match='blank=300'): small(blank=300)


def test_blank_patches_move_no_statistics_and_carry_no_gradient():
    plain, shared, b = small(), small(blank=255), batch()
    for model in (plain, shared): torch.manual_seed(3); PatchGD(CoverSampler(1/2)).step(model, *b[:2], torch.optim.SGD(model.parameters(), lr=0.), content=b[2])
    assert all(torch.equal(a, c) for (n, a), c in zip(plain.backbone.named_buffers(), shared.backbone.buffers()))


class Stop(Callback):
    "Stops the run after so many batches."
    def __init__(self, after): self.left = after
    def on_batch_end(self, trainer, result):
        self.left -= 1
        if not self.left: trainer.stop = True


@pytest.mark.parametrize('after', (2, 3, 7))
def test_a_run_with_kept_z_resumes_to_the_bit(tmp_path, after):
    "Inside an epoch and between two; the bank goes back to the checkpoint's moment, whatever was written to it since."
    batches = [batch(3, s)[:3] + ([f'{s}{k}' for k in range(3)],) for s in range(3)]
    def trainer(name, *callbacks):
        torch.manual_seed(5)
        return Trainer(small(), CarryPatchGD(CoverSampler(1/4), ZBank(tmp_path / name / 'z')), batches, [batch(4, 9)], epochs=4, progress=False, checkpoint=tmp_path / name, callbacks=callbacks)
    whole = trainer('whole').fit()
    trainer('cut', Stop(after)).fit()
    bank = ZBank(tmp_path / 'cut/z')      # what a process that went on for a while, and died, would have left
    bank.rewind(trainer('cut').checkpoints.load().state['strategy'])
    put(bank, ['00', '11'], 7)
    again = trainer('cut')
    torch.manual_seed(99)
    again.fit(resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))
    assert [e['loss'] for e in whole.trace.epochs] == [e['loss'] for e in again.trace.epochs][-4:]
    z = [t.strategy.bank.read(['00', '12', '21'], SHAPE) for t in (whole, again)]
    assert same(*z)


def run_with_kept_z(folder, *callbacks):
    torch.manual_seed(5)
    batches = [batch(3, s)[:3] + ([f'{s}{k}' for k in range(3)],) for s in range(3)]
    return Trainer(small(), CarryPatchGD(CoverSampler(1/4), ZBank(folder / 'z')), batches, [batch(4, 9)], epochs=4, progress=False, checkpoint=folder, callbacks=callbacks)


class Named(torch.utils.data.Dataset):
    "Twelve images with names, in a table as data sets of files have it."
    def __init__(self): self.rows, self.items = pd.DataFrame(dict(image_id=[f'image {i}' for i in range(12)]), index=range(5, 17)), [batch(1, s) for s in range(12)]
    def __len__(self): return 12
    def __getitem__(self, i): return self.items[i][0][0], i % 2, self.items[i][2][0], self.rows.image_id.iloc[i], 0


@pytest.mark.parametrize('workers', [0, 2])
def test_z_of_the_next_batch_is_asked_for_while_this_one_is_learnt(tmp_path, monkeypatch, workers):
    "From the second epoch on, in which it is known; by advice to the system, of which the numbers do not depend."
    def run(name, advice):
        asked, trained, advised = [], [], []
        monkeypatch.setattr(os, 'posix_fadvise', lambda fd, start, n, what: advised.append((os.readlink(f'/proc/self/fd/{fd}').split('/')[-1], start, n)), raising=False)
        if not advice: monkeypatch.delattr(os, 'posix_fadvise')
        torch.manual_seed(5)
        bank = ZBank(tmp_path / name)
        expect = bank.expect
        monkeypatch.setattr(bank, 'expect', lambda names: asked.append(names) or expect(names))
        watch = type('Watch', (Callback,), dict(on_batch_end=lambda self, trainer, result: trained.append(trainer.current.names)))()
        trainer = Trainer(small(), CarryPatchGD(CoverSampler(1/4), bank), make_loader(Named(), 3, True, workers), epochs=3, progress=False, callbacks=[watch]).fit()
        assert asked == [[] if k % 4 == 3 else trained[k + 1] for k in range(12)]
        return trainer.model.state_dict(), bank, asked, advised
    weights, bank, asked, advised = run('with', True)
    known = {name: row for name, row in bank.rows.items()}
    rows = [(file, known[name] * n, n) for names in asked[4:] for file, n in (('z.bin', 16 * SHAPE[0] * 2), ('written.bin', 16 * 4)) for name in names]
    assert advised == rows and len(rows) == 2 * 2 * 9
    assert all(map(torch.equal, weights.values(), run('without', False)[0].values()))


def test_what_other_ranks_hold_is_asked_for_too(tmp_path, monkeypatch):
    other, bank, advised = ZBank(tmp_path / 'rank1'), ZBank(tmp_path), []
    put(other, ['a', 'b'], 0)
    put(bank, ['b'], 1)
    for name, value in dict(size=2, rank=0).items(): monkeypatch.setattr(type(ranks), name, value)
    bank.read(['b'], SHAPE)       # looks at what the other has
    monkeypatch.setattr(os, 'posix_fadvise', lambda fd, start, n, what: advised.append((os.readlink(f'/proc/self/fd/{fd}'), start, n)), raising=False)
    bank.expect(['b', 'c'])
    place, z, written = str(tmp_path), 16 * SHAPE[0] * 2, 16 * 4
    assert advised == [(f'{place}/z.bin', 0, z), (f'{place}/written.bin', 0, written), (f'{place}/rank1/z.bin', z, z), (f'{place}/rank1/written.bin', written, written)]


def test_advice_never_ends_a_run(tmp_path):
    bank = ZBank(tmp_path)
    bank.expect(['a'])
    put(bank, ['a'], 0)
    before = contents(bank, ['a'])
    bank.z.path.rename(tmp_path / 'elsewhere')
    bank.expect(['a', 'b'])
    assert same(before, contents(bank, ['a']))


class After(Callback):
    "Calls something after so many batches."
    def __init__(self, n, call): self.n, self.call = n, call
    def on_batch_end(self, trainer, result):
        self.n -= 1
        if not self.n: self.call(trainer)


@pytest.mark.parametrize('after', (1, 4))
def test_a_disk_that_fills_up_ends_a_run_before_a_batch_and_it_resumes_to_the_bit(tmp_path, monkeypatch, after):
    "Weights, Z and clock are those after the last batch that was trained on."
    whole, cut = run_with_kept_z(tmp_path / 'whole').fit(), {}
    def fill_disk(trainer):
        bank = trainer.strategy.bank
        cut.update(weights={k: v.clone() for k, v in trainer.model.state_dict().items()}, clock=bank.clock, z=contents(bank, ['00', '12']) if after > 2 else None)
        monkeypatch.setattr(os, 'write', full_disk())
    first = run_with_kept_z(tmp_path / 'cut', After(after, fill_disk))
    with pytest.raises(OSError, match='no room for'): first.fit()
    monkeypatch.undo()
    assert all(torch.equal(v, cut['weights'][k]) for k, v in first.model.state_dict().items()) and first.strategy.bank.clock == cut['clock']
    if cut['z']: assert same(contents(first.strategy.bank, ['00', '12']), cut['z'])
    again = run_with_kept_z(tmp_path / 'cut').fit(resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))
    assert same(*[t.strategy.bank.read(['00', '12', '21'], SHAPE) for t in (whole, again)])


def test_checkpoints_that_could_not_be_written_do_not_spoil_the_one_that_was(tmp_path, monkeypatch):
    whole = run_with_kept_z(tmp_path / 'whole').fit()
    def refuse(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    first = run_with_kept_z(tmp_path / 'cut', After(3, lambda t: t.save()), After(4, lambda t: monkeypatch.setattr('patchgd_nb.training.checkpoint._write_folder', refuse)), *[After(n, lambda t: t.save()) for n in range(5, 12)])
    with pytest.warns(UserWarning, match='could not be written'): first.fit()
    monkeypatch.undo()
    again = run_with_kept_z(tmp_path / 'cut')
    with warnings.catch_warnings(): warnings.simplefilter('error'); again.fit(resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()))
    assert len(list((tmp_path / 'whole/z').glob('cells-*'))) <= MAX_MARKS + 1
