"Files one can trust: whatever happens to them, they are refused or replaced by older ones, never misread."
import contextlib, errno, json, os, random, resource, shutil, subprocess, warnings
import numpy as np, pytest, torch
from hypothesis import given, strategies as st
from torch import nn
from patchgd_nb.training.checkpoint import Checkpoints, model_config, pack, unpack
from patchgd_nb.model import PatchModel, WholeModel
from patchgd_nb.base.random_states import get_random_states
from patchgd_nb.patches import PatchGrid
from patchgd_nb.training.trace import Trace


def state_of(batch): return dict(model=dict(w=torch.full((40,), float(batch))), epoch=0, batch=batch, random=get_random_states(), moments=[torch.ones(3), (1, None, 'x')])


def save(runs, batch, **kwargs):
    trace = Trace()
    trace.add_batch(0, batch, [.5], 1e-3, 1.)
    return runs.save(state_of(batch), files={'trace.npz': trace.save}, **kwargs)


@pytest.fixture
def two(tmp_path):
    "A folder of two checkpoints, and the newest."
    runs = Checkpoints(tmp_path / 'runs')
    save(runs, 1)
    return runs, save(runs, 2)


def number(runs):
    "Which checkpoint is read, all of its state being its own, and what is said."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        found = runs.load()
    b = found.state['batch']
    assert torch.equal(found.state['model']['w'], torch.full((40,), float(b))) and found.state['moments'][1] == (1, None, 'x') and found.state['moments'][0].tolist() == [1, 1, 1]
    return b, [str(w.message) for w in said]


plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.builds(lambda v: torch.tensor(v), st.lists(st.integers(-9, 9))),
                     lambda v: st.lists(v, max_size=3) | st.tuples(v, v) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), v, max_size=3), max_leaves=9)


def same(a, b):
    if torch.is_tensor(a): return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(plain)
def test_plain_data_come_back_as_they_were(value):
    packed = json.loads(json.dumps(pack(value, tensors := {})))
    assert same(unpack(packed, tensors), value)


@pytest.mark.parametrize('value, path', [({'a': [1, {2}]}, '/a/1'), ({'b': np.zeros(2)}, '/b'), ({'c': {'d': b'x'}}, '/c/d')])
def test_what_is_not_plain_data_is_named(value, path):
    with pytest.raises(TypeError, match=f'^{path} is of type'): pack(value, {})


@pytest.mark.parametrize('file', ['model.safetensors', 'state.safetensors', 'state.json', 'trace.npz', 'manifest.json'])
def test_a_file_that_was_cut_or_changed_is_never_used(two, file):
    "50 lengths and 50 changed bytes."
    runs, newest = two
    whole, rng = (newest / file).read_bytes(), random.Random(file)
    assert number(runs) == (2, [])
    for n in rng.sample(range(len(whole)), min(50, len(whole))):
        (newest / file).write_bytes(whole[:n])
        b, said = number(runs)
        assert b == 1 and len(said) == 1 and 'e0000-b000002' in said[0] and '\n' not in said[0]
    for n in rng.choices(range(len(whole)), k=50):
        (newest / file).write_bytes(whole[:n] + bytes([whole[n] ^ rng.randint(1, 255)]) + whole[n + 1:])
        assert number(runs)[0] == 1
    (newest / file).unlink()
    assert number(runs)[0] == 1
    (newest / file).write_bytes(whole)
    assert number(runs) == (2, [])


def test_all_damaged_is_one_sentence(two):
    runs, _ = two
    for name in runs.names(): (runs.folder / name / 'state.json').write_text('{}')
    with pytest.raises(ValueError, match='no checkpoint in .* is whole') as e: runs.load()
    assert '\n' not in str(e.value)


def test_a_damaged_mark_of_the_best_does_no_harm(tmp_path):
    runs = Checkpoints(tmp_path)
    for b, score in ((1, .1), (2, .7), (3, .2)): save(runs, b, score=score)
    (tmp_path / 'best.json').write_bytes(b'\x80nothing')
    assert runs.load(best=True).state['batch'] == 2
    (tmp_path / 'e0000-b000002/model.safetensors').write_bytes(b'')
    with pytest.warns(UserWarning, match='b000002 is damaged .*b000003 is used'): assert runs.load(best=True).state['batch'] == 3
    save(runs, 4, score=.7)
    assert json.loads((tmp_path / 'best.json').read_text())['checkpoint'] in runs.names()


@pytest.mark.parametrize('file', ['model.safetensors', 'state.safetensors', 'state.json', 'trace.npz', 'manifest.json'])
@pytest.mark.parametrize('sealed', [False, True])
def test_a_pickle_bomb_does_not_run(two, tmp_path, file, sealed):
    "Renamed as any file, also with a manifest that fits it."
    from patchgd_nb.training.checkpoint import _digest, _read_manifest, _sealed
    class Bomb:
        def __reduce__(self): return (open, (str(tmp_path / 'harm'), 'w'))
    runs, newest = two
    manifest = _read_manifest(newest)
    if file == 'trace.npz': np.savez(newest / file, head=np.array(Bomb(), dtype=object))
    else: torch.save(Bomb(), newest / file)
    if sealed and file != 'manifest.json':
        manifest['files'][file] = _digest((newest / file).read_bytes())
        (newest / 'manifest.json').write_text(_sealed(manifest))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        found = runs.load()
        if file == 'trace.npz' and sealed:
            with pytest.raises(ValueError): Trace.load(found.folder / file)
        else: assert found.state['batch'] == 1
    assert not (tmp_path / 'harm').exists()


def test_the_last_three_and_the_best_are_kept(tmp_path):
    runs = Checkpoints(tmp_path)
    for b, score in enumerate([float('nan'), None, .9, .9, None, float('nan'), .2], 1): save(runs, b, score=score)
    assert [int(n[-1]) for n in runs.names()] == [3, 5, 6, 7]
    assert runs.load().state['batch'] == 7 and runs.load(best=True).state['batch'] == 3


def test_ten_thousand_epochs_are_later_than_nine(tmp_path):
    runs = Checkpoints(tmp_path)
    for epoch in (9999, 10000, 100000): runs.save(state_of(0) | dict(epoch=epoch))
    assert runs.load().state['epoch'] == 100000


def test_what_a_crash_left_is_cleared_and_never_read(two):
    runs, newest = two
    for name in ('e0000-b000003.part', 'e0000-b000002.old.part'): shutil.copytree(newest, runs.folder / name)
    assert number(runs) == (2, [])
    save(runs, 3)
    assert not list(runs.folder.glob('*.part')) and number(runs) == (3, [])
    save(runs, 3)
    assert number(runs) == (3, [])


def test_later_checkpoints_than_the_one_written_are_of_another_past(two):
    runs, newest = two
    save(runs, 9)
    (runs.folder / 'e0000-b000009/state.json').write_text('')
    assert number(runs)[0] == 2
    save(runs, 3)
    assert runs.names() == ['e0000-b000001', 'e0000-b000002', 'e0000-b000003'] and number(runs) == (3, [])


def test_a_later_format_is_named(two, monkeypatch):
    runs, _ = two
    monkeypatch.setattr('patchgd_nb.training.checkpoint.FORMAT', 7)
    save(runs, 3)
    monkeypatch.undo()
    with pytest.raises(ValueError, match='of format 7, this version reads format 1'): runs.load()


def test_shared_and_turned_tensors_are_saved(tmp_path):
    "Tied weights, slices and other layouts in memory."
    w = torch.arange(24.).reshape(4, 6)
    Checkpoints(tmp_path).save(dict(model=dict(a=w, b=w, c=w.T, d=w[1:3], e=w.half(), f=w > 3, g=torch.tensor(3)), epoch=1, batch=0))
    found = Checkpoints(tmp_path).load().state['model']
    assert all(torch.equal(found[k], v) for k, v in dict(a=w, b=w, c=w.T, d=w[1:3], e=w.half(), f=w > 3, g=torch.tensor(3)).items())


def patch_model(grid=PatchGrid(16, 8), n_classes=4, latent=8, head='smaller', backbone=None):
    return PatchModel(backbone or nn.Sequential(nn.Flatten(), nn.Linear(192, latent)), grid, n_classes, latent, head)


@pytest.mark.parametrize('other, says', [
    (lambda: patch_model(grid=PatchGrid(16, 8, 4)), r'grid PatchGrid\(image_size=\(16, 16\), patch_size=\(8, 8\), stride=\(8, 8\)\): 2 x 2 patches there, .*3 x 3 patches here\)'),
    (lambda: patch_model(n_classes=6), r'\(classes 4 there, 6 here\)'),
    (lambda: patch_model(latent=9), r'\(latent_dim 8 there, 9 here\)'),
    (lambda: patch_model(head='original'), r'\(head ConvHead \[128, 128\] there, ConvHead \[128, 128, 128, 128\] here\)'),
    (lambda: patch_model(backbone='test_resnet'), r'backbone Sequential there, test_resnet here'),
    (lambda: patch_model(backbone=nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 8))), r'backbone.1.weight \(8, 192\) there, \(5, 192\) here'),
    (lambda: patch_model().double(), 'numbers torch.float32 there, torch.float64 here'),
    (lambda: WholeModel('test_resnet', (16, 16), 4), 'head ConvHead'),
], ids=['grid', 'classes', 'latent_dim', 'head', 'backbone', 'layers', 'numbers', 'whole'])
def test_what_differs_is_said_exactly(tmp_path, other, says):
    model, runs = patch_model(), Checkpoints(tmp_path)
    runs.save(dict(model=model.state_dict(), epoch=1, batch=0), model_config(model))
    assert runs.load().load_into(patch_model()) is not None
    with pytest.raises(ValueError, match=says) as e: runs.load().load_into(other())
    assert '\n' not in str(e.value) and 'another folder' in str(e.value)


def test_a_full_disk_keeps_the_older_checkpoint(two):
    "A real one, where the system lets us make it small."
    runs, newest = two
    small = runs.folder.parent / 'small'
    small.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', small], capture_output=True).returncode: pytest.skip('this system mounts no tmpfs')
    try:
        full = Checkpoints(small)
        assert save(full, 1) and full.names() == ['e0000-b000001']
        big = state_of(2) | dict(model=dict(w=torch.zeros(100_000)))
        with pytest.warns(UserWarning, match=r'b000002 could not be written .*No space left on device.*: e0000-b000001 is kept'): assert full.save(big) is None
        assert full.names() == ['e0000-b000001'] and not list(small.glob('*.part')) and full.load().state['batch'] == 1
        assert save(full, 3)
        with pytest.raises(ValueError, match='cannot be written to'):
            (small / 'rest').write_bytes(bytes(os.statvfs(small).f_bavail * 4096))
            full.check_writable()
    finally: subprocess.run(['umount', small])


@contextlib.contextmanager
def file_size(most):
    "No file may grow larger than `most` bytes."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_may_not_grow_keeps_the_older_checkpoint(two):
    runs, _ = two
    with file_size(3000), pytest.warns(UserWarning, match='File too large.*e0000-b000002 is kept'): assert save(runs, 3) is None
    assert number(runs) == (2, []) and not list(runs.folder.glob('*.part'))


@pytest.mark.parametrize('call', ['fsync', 'rename', 'mkdir'])
@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_every_refusal_of_the_disk_is_a_warning(two, monkeypatch, call, code):
    runs, _ = two
    def refuse(*args, **kwargs): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, call, refuse)
    with pytest.warns(UserWarning, match=f'{os.strerror(code)}.*e0000-b000002 is kept'): assert save(runs, 3) is None
    monkeypatch.undo()
    assert number(runs) == (2, []) and not list(runs.folder.glob('*.part'))


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='file cannot|file/a'): Checkpoints(tmp_path / 'file/a').check_writable()
    (tmp_path / 'closed').mkdir(mode=0o555)
    root = os.geteuid() == 0
    if root: os.chmod(tmp_path, 0o755); os.seteuid(65534)
    try:
        with pytest.raises(ValueError, match='checkpoints cannot be written to .*: give a folder') as e: Checkpoints(tmp_path / 'closed').check_writable()
    finally:
        if root: os.seteuid(0)
    assert '\n' not in str(e.value)
