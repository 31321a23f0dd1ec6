"Tables, folders, lists and checkpoints that somebody else made, or that change while they are read: one sentence, or read right."
import csv, io, json, os, signal, sys, time, unicodedata
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
import numpy as np, pandas as pd, pytest, tifffile, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torch import nn
from patchgd_nb.base.files import file_stamp
from patchgd_nb.base.folders import composed, walk_files
from patchgd_nb.base.untrusted import BAD_IN_A_ROW, is_plain_name
from patchgd_nb.datasets.digits import read_idx
from patchgd_nb.datasets.har import make_signals
from patchgd_nb.datasets.panda import cut_regions, make_mini_panda, prepare_panda, read_panda
from patchgd_nb.datasets.ultramnist import UltraMNIST, make_ultramnist, read_ultramnist
from patchgd_nb.images import slides as slides_module
from patchgd_nb.images.prepare import find_duplicates, inspect_files, prepare_folder, prepare_tcga, read_images
from patchgd_nb.images import pyramid
from patchgd_nb.images.readers import clear_caches
from patchgd_nb.images.slides import SlideDataset, make_loader
from patchgd_nb.images.tables import BadImageLog, read_table
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import PatchGD
from patchgd_nb.trainer import Trainer
from patchgd_nb.training.callback import Callback
from patchgd_nb.training.checkpoint import Checkpoints, _digest, _read_manifest, _sealed
from patchgd_nb.training.trace import Trace


def one_sentence(error):
    text = str(error)
    assert '\n' not in text and text.endswith('.') and ': ' in text, text


@contextmanager
def at_most(seconds):
    "An end to what would wait for ever."
    def stop(*_): raise AssertionError(f'still waiting after {seconds} seconds')
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def threads(monkeypatch):
    "Threads in place of processes, which take seconds to start."
    for module in ('images.prepare', 'datasets.panda', 'datasets.ultramnist'): monkeypatch.setattr(f'patchgd_nb.{module}.ProcessPoolExecutor', ThreadPoolExecutor)


def picture(path, seed=0, side=32):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 200, (side, side, 3), dtype=np.uint8)).save(path, 'TIFF' if path.suffix in ('.svs', '.tiff', '.tif', '.btf') else None)
    return path


# --- tables

cells = st.text('ab,"é0 \n', max_size=5)

@given(st.lists(st.tuples(cells, cells) | st.sampled_from(['', ' ', ',', ' , '])), st.sampled_from(['\n', '\r\n', '\r']), st.booleans())
def test_a_row_is_named_by_its_line_in_the_file(tmp_path_factory, rows, end, bom):
    "Whatever blank lines and line breaks inside quotes come before it."
    path, expected, line = tmp_path_factory.getbasetemp() / 'lines.csv', [], 2
    text = 'a,image_id' + end
    for row in rows:
        if isinstance(row, str): text += row + end
        else:
            quoted = ['"' + c.replace('"', '""').replace('\n', end) + '"' for c in row]
            text += ','.join(quoted) + end
            if any(c.strip() for c in row): expected.append((line, *(composed(c.replace('\n', end)) for c in row)))
        line = 1 + len(io.StringIO(text, newline=None).readlines())
    path.write_bytes(('\ufeff' * bom + text).encode())
    try: table = read_table(path, ['a'])
    except ValueError as e:
        one_sentence(e)
        broken = [n for n, a, _ in expected if end in a]
        assert ('names no images' in str(e) and not expected) or (broken and f'line {broken[0]}:' in str(e))
    else: assert list(table.itertuples(name=None)) == expected


def test_line_numbers_in_messages_are_the_files(tmp_path):
    (tmp_path / 'train_images').mkdir()
    (tmp_path / 'train.csv').write_text('image_id,isup_grade\n\n\na,7\n')
    with pytest.raises(ValueError, match='train.csv, line 4'): read_panda(tmp_path)
    (tmp_path / 'train.csv').write_text('image_id,digit_sum\n\n \r\na,77\n')
    with pytest.raises(ValueError, match='train.csv, line 4'): read_ultramnist(tmp_path, 'train')
    (tmp_path / 'images.csv').write_text('\nimage_id,path,class\n\na,../b,c\n')
    with pytest.raises(ValueError, match='images.csv, line 4'): read_images(tmp_path / 'images.csv', tmp_path)


@pytest.mark.parametrize('data, says', [
    ('image_id,isup_grade\na,1\n'.encode('utf-16'), 'UTF-16'), (b'image_id,isup_grade,,\na,1,,\n', None), (b'image_id,isup_grade,x,x\na,1,2,3\n', 'two columns'), (b'image_id,isup_grade\n' + b'a' * 200_000 + b',1\n', 'field larger'),
    ('image_id,isup_grade\nn\xe4me,1\n'.encode('latin1'), 'not UTF-8'), (b'\xef\xbb\xbf"image_id","isup_grade"\r\n"007","1"\r\n,\r\n', None), (b'image_id,isup_grade\na\0,1\n', 'line break or the like'), (b'image_id,isup_grade\n"a"b,1\n', 'cannot be read'), (b'\n \n', 'empty')])
def test_odd_tables(tmp_path, data, says):
    (tmp_path / 't.csv').write_bytes(data)
    if says is None: return read_table(tmp_path / 't.csv', ['image_id', 'isup_grade']).iloc[0].tolist() in (['a', '1'], ['007', '1'])
    with pytest.raises(ValueError, match=says) as e: read_table(tmp_path / 't.csv', ['image_id', 'isup_grade'])
    one_sentence(e.value)


# --- the list of bad images

def test_the_list_grows_in_linear_time(tmp_path):
    log, start = BadImageLog('skip', tmp_path / 'bad.csv'), time.process_time()
    for i in range(4000): log(f'slide_{i}', ValueError('it is missing'))
    assert time.process_time() - start < 5 and len(log.names()) == 4000 and len((tmp_path / 'bad.csv').read_text().splitlines()) == 4000


@given(st.lists(st.tuples(st.sampled_from(['log', 'other', 'cut', 'lost']), st.text('ab,"\né', max_size=3)), max_size=12))
def test_the_list_is_what_the_file_says(tmp_path_factory, events):
    "Also what another process appends, half of a line from one that was killed, and a file that is moved away."
    path = tmp_path_factory.getbasetemp() / 'listed.csv'
    path.unlink(missing_ok=True)
    log, names = BadImageLog('skip', path), set()
    for what, name in events:
        line = io.StringIO()
        csv.writer(line, lineterminator='\n').writerow((name, 'why'))
        if what == 'log': log(name, ValueError('why'))
        if what == 'other' and (not path.exists() or path.read_bytes().endswith(b'\n')): path.open('a').write(line.getvalue())
        elif what == 'other': continue
        if what == 'cut' and path.exists() and path.read_bytes().endswith(b'\n'): path.open('a').write('half')
        if what == 'lost' and path.exists():
            path.unlink()
            names.clear()
        if what in ('log', 'other'): names.add(name)
        assert names <= log.names() <= names | {'half'}
    with_half = {row[0] for row in csv.reader(path.open(newline='')) if row} if path.exists() else set()
    assert names <= with_half | {'half'}


def test_a_list_is_not_sent_to_other_processes():
    import pickle
    log = BadImageLog('skip', 'bad.csv')
    assert len(pickle.dumps(log)) < 500


# --- many rows of few files

def test_a_file_is_opened_once_however_many_rows_name_it(tmp_path, monkeypatch):
    "By the same path or by links; a message names the path of its row."
    good, bad, opened = picture(tmp_path / 'good.tiff'), tmp_path / 'bad.tiff', []
    bad.write_bytes(b'II*\0 but no more')
    links = [tmp_path / f'{kind}{i}.tiff' for kind in ('good', 'bad') for i in range(6)]
    for i, link in enumerate(links): (os.link if i % 2 else os.symlink)(tmp_path / f'{link.name[:-6]}.tiff', link)
    paths = [good, bad, *links] * 20
    rows = pd.DataFrame(dict(image_id=[str(i) for i in range(len(paths))], path=paths, label=0))
    real = slides_module.open_image
    monkeypatch.setattr(slides_module, 'open_image', lambda path: opened.append(path) or real(path))
    data = SlideDataset(rows, PatchGrid(32, 8), on_bad='skip', bad_list=tmp_path / 'list.csv')
    assert len(opened) == 2 and len(data) == 140
    listed = {row[0]: row[1] for row in csv.reader(open(tmp_path / 'list.csv', newline=''))}
    assert len(listed) == 140 and all(str(paths[int(i)]) in why for i, why in listed.items())
    assert torch.equal(data[0][0], data[3][0])


def test_duplicates_among_many_files_of_one_size(tmp_path):
    for i in range(500): (tmp_path / f'{i:03d}.bmp').write_bytes(i.to_bytes(2000, 'little'))
    (tmp_path / 'twin.bmp').write_bytes((7).to_bytes(2000, 'little'))
    start = time.process_time()
    assert find_duplicates(sorted(tmp_path.iterdir())) == {tmp_path / 'twin.bmp': tmp_path / '007.bmp'}
    assert time.process_time() - start < 1


# --- a drive that is lost

def run_of(rows, folder, valid=None, workers=0, lazy=False, **kwargs):
    grid, options = PatchGrid(32, 8), dict(on_bad='skip', bad_list=folder / 'bad.csv')
    train = make_loader(SlideDataset(rows, grid, lazy=lazy, **options), 4, True, workers)
    held_out = None if valid is None else make_loader(SlideDataset(valid, grid, lazy=lazy, **options), 4)
    model = PatchModel(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), grid, 2, 4, 'smaller')
    return Trainer(model, PatchGD(CoverSampler(1/4)), train, held_out, device='cpu', progress=False, checkpoint=folder / 'run', **{'epochs': 3} | kwargs)


def rows_in(folder, n):
    return pd.DataFrame([(f'i{i}', picture(folder / f'i{i}.tiff', i), i % 2) for i in range(n)], columns=['image_id', 'path', 'label'])


class Unplug(Callback):
    "Takes the drive away after a batch."
    def __init__(self, folder, batch=1, epoch=0): self.folder, self.at = folder, (epoch, batch)
    def on_batch_end(self, trainer, result):
        if (trainer.epoch, trainer.batch) == self.at:
            self.folder.rename(self.folder.with_name('unplugged'))
            clear_caches()   # of large images no more than a few tiles are kept


@pytest.mark.parametrize('n, workers, lazy', [(100, 0, False), (100, 0, True), (12, 0, False), (12, 1, False), (12, 0, True)])
def test_a_drive_that_is_lost_ends_the_run(tmp_path, monkeypatch, n, workers, lazy):
    "It does not go on to the end without images; nothing is finished."
    rows = rows_in(tmp_path / 'drive', n)
    if workers:   # a worker cannot be made to forget: it has no room for the strips of an image
        monkeypatch.setattr(pyramid._tile, 'n_bytes', 5000)
        for path in rows.path: tifffile.imwrite(path, np.asarray(Image.open(path).resize((32, 128))), photometric='rgb', rowsperstrip=1)
    run = run_of(rows, tmp_path, workers=workers, lazy=lazy, epochs=9, callbacks=[Unplug(tmp_path / 'drive')])
    with pytest.raises(OSError, match=rf'{min(n, BAD_IN_A_ROW)}.* images in a row|5[0-9] images in a row') as e: run.fit()
    one_sentence(e.value)
    assert run.epoch < 3 and str(tmp_path / 'bad.csv') in str(e.value) and Checkpoints(tmp_path / 'run').load().state['batch'] + run.epoch > 0
    (tmp_path / 'unplugged').rename(tmp_path / 'drive')
    (tmp_path / 'bad.csv').unlink()
    again = run_of(rows, tmp_path, lazy=lazy, epochs=run.epoch + 1)
    assert again.fit(resume=True).epoch == run.epoch + 1


@pytest.mark.parametrize('lazy', [False, True])
def test_a_drive_that_is_lost_before_the_validation(tmp_path, lazy):
    rows, valid = rows_in(tmp_path / 'a', 8), rows_in(tmp_path / 'b', 3)
    run = run_of(rows, tmp_path, valid, lazy=lazy, epochs=1, callbacks=[Unplug(tmp_path / 'b')])
    with pytest.raises(OSError, match='images in a row') as e: run.fit()
    one_sentence(e.value)


def test_broken_images_among_good_ones_never_end_a_run(tmp_path):
    rows = rows_in(tmp_path / 'drive', 16)
    run = run_of(rows, tmp_path, epochs=20)
    for path in rows.path[::2]: path.unlink()
    clear_caches()   # of images so small, all tiles are kept
    assert run.fit().epoch == 20 and len(pd.read_csv(tmp_path / 'bad.csv', header=None)) == 8


# --- checkpoints

def checkpoint_in(folder):
    runs = Checkpoints(folder)
    return runs, runs.save(dict(model=dict(w=torch.ones(3)), epoch=0, batch=1))


@pytest.mark.parametrize('name', ['../outside', '/dev/zero', 'a/../../outside', 'pipe', 'folder', '', '.', '..', '/etc/passwd'])
def test_a_manifest_that_names_what_is_no_file_of_its_folder(tmp_path, name):
    runs, newest = checkpoint_in(tmp_path / 'run')
    (tmp_path / 'run/outside').write_bytes(b'x')
    os.mkfifo(newest / 'pipe')
    (newest / 'folder').mkdir()
    manifest = _read_manifest(newest)
    manifest['files'][name] = _digest(b'x')
    (newest / 'manifest.json').write_text(_sealed(manifest))
    with at_most(5), pytest.raises(ValueError, match='no checkpoint in .* is whole') as e: runs.load()
    one_sentence(e.value)


ODD = [None, True, -1, 3.5, 1e999, 'x', [], ['a'], {}, {'a': 1}, [[]] * 3]

@pytest.mark.parametrize('field', ['format', 'score', 'made', 'files', 'seal', 'whole'])
def test_a_manifest_of_odd_types(tmp_path, field):
    runs, newest = checkpoint_in(tmp_path)
    whole = _read_manifest(newest)
    for odd in ODD:
        manifest = whole | {field: odd}
        text = json.dumps(odd) if field == 'whole' else json.dumps(manifest) if field == 'seal' else _sealed(manifest)
        (newest / 'manifest.json').write_text(text)
        try: found = runs.load(best=True)
        except ValueError as e: one_sentence(e)
        else: assert found.folder == newest and (odd is None or field in ('score', 'made')), (field, odd)
        assert all(isinstance(s, (int, float)) for s in runs.scores().values())


@pytest.mark.parametrize('state', ['[]', '3', '{"dict": 3}', '{"dict": [[1]]}', '{"dict": [["epoch", "x"], ["batch", 0]]}', '{"dict": [["epoch", {"tensor": "gone"}]]}', '{"dict": [[{"dict": []}, 1]]}', '{"float": "x"}', '{"tuple": 4}', '{}', '{"a": 1, "b": 2}', '[' * 5000])
def test_a_state_of_odd_types(tmp_path, state):
    runs, newest = checkpoint_in(tmp_path)
    (newest / 'state.json').write_text(state)
    manifest = _read_manifest(newest)
    manifest['files']['state.json'] = _digest(state.encode())
    (newest / 'manifest.json').write_text(_sealed(manifest))
    with pytest.raises(ValueError, match='no checkpoint in .* is whole') as e: runs.load()
    one_sentence(e.value)


# --- pipes

def pipe(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def digits_with_a_pipe(folder):
    pipe(folder / 'images/a.png')
    (folder / 'train.csv').write_text('image_id,digit_sum\na,3\n')
    return read_ultramnist(folder, 'train')


def vanished_into_a_pipe(folder):
    rows = pd.DataFrame(dict(image_id=['a'], path=[pipe(folder / 'a.png')], digit_sum=[3]))
    return UltraMNIST(rows, PatchGrid(64, 16))[0]


def manifest_pipe(folder):
    runs, newest = checkpoint_in(folder)
    (newest / 'manifest.json').unlink()
    pipe(newest / 'manifest.json')
    return runs.load()


@pytest.mark.parametrize('read', [
    lambda d: BadImageLog('skip', pipe(d / 'bad.csv'))('a', ValueError('x')), lambda d: inspect_files([picture(d / 'a.png')], pipe(d / 'seen.jsonl').parent, progress=False), lambda d: read_idx(pipe(d / 'x.gz')), lambda d: read_idx(pipe(d / 'x')), digits_with_a_pipe, vanished_into_a_pipe,
    manifest_pipe, lambda d: Trace.load(pipe(d / 'trace.npz')), lambda d: read_table(pipe(d / 't.csv'), ['a'])], ids=['list', 'seen', 'idx.gz', 'idx', 'digits', 'digit', 'manifest', 'trace', 'table'])
def test_a_pipe_is_never_waited_for(tmp_path, read, threads):
    with at_most(5), pytest.raises((ValueError, OSError)) as e: read(tmp_path)
    one_sentence(e.value)


# --- replaced files, names, folders

def test_a_file_replaced_under_its_old_date_is_inspected_again(tmp_path, threads):
    path = picture(tmp_path / 'a.png')
    def look(): return inspect_files([path], tmp_path, workers=1, progress=False)[str(path)]['error']
    size, stamp = path.stat().st_size, path.stat().st_mtime_ns
    assert look() == ''
    (tmp_path / 'new').write_bytes(bytes(size))
    os.utime(tmp_path / 'new', ns=(stamp, stamp))
    os.replace(tmp_path / 'new', path)
    assert path.stat().st_size == size and path.stat().st_mtime_ns == stamp and 'a.png' in look()
    assert file_stamp(path)[:2] == (stamp, size)


NAMES = 'café', 'Ödem', 'Å'

@pytest.mark.parametrize('table, disk', [('NFC', 'NFD'), ('NFD', 'NFC'), ('NFD', 'NFD')])
def test_names_with_accents(tmp_path, table, disk, threads):
    "macOS writes them apart, a table that was typed has them in one."
    in_table, on_disk = ([unicodedata.normalize(form, n) for n in NAMES] for form in (table, disk))
    for i, name in enumerate(on_disk):
        for folder in ('train_images', f'photos/train/{on_disk[i]}'): picture(tmp_path / folder / f'{name}.tiff', i)
        picture(tmp_path / f'images/{name}.png', i)
    (tmp_path / 'train.csv').write_text('image_id,isup_grade,digit_sum\n' + ''.join(f'{n},1,3\n' for n in in_table))
    assert [composed(p.stem) for p in read_panda(tmp_path).path] == [composed(p.stem) for p in read_ultramnist(tmp_path, 'train').path] == list(NAMES)
    (tmp_path / 'images.csv').write_text('image_id,path,class\n' + ''.join(f'{n},train_images/{n}.tiff,{n}\n' for n in in_table))
    rows = read_images(tmp_path / 'images.csv', tmp_path)
    assert all(p.is_file() for p in rows.path) and set(rows['class']) == set(NAMES)
    (tmp_path / 'labels.csv').write_text('id,label\n' + ''.join(f'{n},{n}\n' for n in in_table))
    assert prepare_tcga(tmp_path / 'train_images', tmp_path / 'labels.csv', tmp_path / 'tcga', folds=2, workers=1, progress=False)['usable'] == 3
    assert prepare_folder(tmp_path / 'photos', tmp_path / 'out', workers=1, progress=False)['classes'] == sorted(NAMES)
    assert all(is_plain_name(n) for n in on_disk)


folders = st.lists(st.tuples(st.sampled_from(['folder', 'file', 'link']), st.integers(0, 8), st.integers(0, 8)), max_size=10)

@settings(max_examples=25)
@given(folders)
def test_folders_of_links_end_and_miss_nothing(tmp_path_factory, made):
    "Whatever leads where: every file that can be reached is found, each in one place, as `find -L` finds them."
    top = tmp_path_factory.mktemp('walk')
    places = [top]
    for i, (kind, where, target) in enumerate(made):
        path, goal = places[where % len(places)] / f'{kind}{i}', places[target % len(places)]
        if kind == 'folder': places.append(path.mkdir() or path)
        elif kind == 'file': path.write_text('')
        else: path.symlink_to(goal if target % 3 else 'nowhere')
    found = walk_files(top)
    assert sorted(p.resolve() for p in found) == sorted({p.resolve() for p in top.rglob('file*')}) and found == walk_files(top)


def test_slides_behind_links_are_prepared(tmp_path, threads):
    picture(tmp_path / 'disk/u1/TCGA-00-0001-01Z.svs')
    picture(tmp_path / 'photos/disk/a.png')
    (tmp_path / 'slides').mkdir()
    (tmp_path / 'slides/linked').symlink_to(tmp_path / 'disk')
    (tmp_path / 'disk/u1/back').symlink_to(tmp_path / 'disk')
    (tmp_path / 'slides/itself').symlink_to('itself')
    (tmp_path / 'labels.csv').write_text('id,label\nTCGA-00-0001,a\n')
    assert prepare_tcga(tmp_path / 'slides', tmp_path / 'labels.csv', tmp_path / 'out', workers=1, progress=False)['usable'] == 1
    (tmp_path / 'photos/train').mkdir()
    (tmp_path / 'photos/train/cat').symlink_to(tmp_path / 'photos/disk')
    assert prepare_folder(tmp_path / 'photos', tmp_path / 'out2', workers=1, progress=False)['classes'] == ['cat']


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / 'closed').mkdir()
    real = os.scandir
    def scandir(path):
        if str(path).endswith('closed'): raise PermissionError(13, 'Permission denied', str(path))
        return real(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(OSError, match='closed.*Permission denied') as e: walk_files(tmp_path)
    one_sentence(e.value)


# --- layouts

def test_slides_of_a_cohort_have_any_suffix(tmp_path):
    for name in ('a.svs', 'b.png', 'c.tiff', 'c.jpg', 'd.btf', 'e.ome.tif'): picture(tmp_path / 'train_images' / name)
    for name in ('.f.tiff', 'g.tiff.part'): (tmp_path / 'train_images' / name).write_bytes(b'')
    (tmp_path / 'train.csv').write_text('image_id,isup_grade\n' + ''.join(f'{n},1\n' for n in ('a', 'b', 'c', 'd', 'e', 'b.png')))
    assert [p.name for p in read_panda(tmp_path).path] == ['a.svs', 'b.png', 'c.tiff', 'd.btf', 'e.ome.tif', 'b.png']
    for name in 'fg':
        (tmp_path / 'train.csv').write_text(f'image_id,isup_grade\n{name},1\n')
        with pytest.raises(FileNotFoundError, match=rf'{name}.tiff is missing'): read_panda(tmp_path)


def test_slides_of_a_cohort_lie_where_the_table_says(tmp_path, threads):
    for i, name in enumerate(['x/1.tiff', 'y/1.tiff', 'train_images/c.svs']): picture(tmp_path / name, i, 64)
    (tmp_path / 'train.csv').write_text('image_id,data_provider,isup_grade,gleason_score,path\na,p,1,3+3,x/1.tiff\n\nb,p,1,3+3,y/1.tiff\nc,p,1,3+3,\nd,p,1,3+3,x/1.tiff\n')
    assert [str(p.relative_to(tmp_path)) for p in read_panda(tmp_path).path] == ['x/1.tiff', 'y/1.tiff', 'train_images/c.svs', 'x/1.tiff']
    result = prepare_panda(tmp_path, tmp_path / 'out', folds=1, canvases=[32], workers=1, progress=False)
    problems = pd.read_csv(tmp_path / 'out/problems.csv')
    assert result['usable'] == 3 and problems.image_id.tolist() == ['d'] and problems.line.tolist() == [6]
    assert len(read_panda(tmp_path, tmp_path / 'out/train.csv')) == 3
    assert [p.name for p in read_panda(tmp_path / 'out/canvas_32').path] == ['a.tiff', 'b.tiff', 'c.tiff']
    for path in ('../x.tiff', '/etc/passwd', 'x/../../y'):
        (tmp_path / 'train.csv').write_text(f'image_id,isup_grade,path\na,1,{path}\n')
        with pytest.raises(ValueError, match='line 2: the path of a leads out') as e: read_panda(tmp_path)
        one_sentence(e.value)


@pytest.mark.parametrize('suffix', ['.jpg', '.jpeg', '.png', '.JPG'])
def test_the_table_and_the_folder_of_kaggles_ultramnist(tmp_path, suffix):
    (tmp_path / 'train').mkdir()
    names = [f'{i:03d}' for i in range(30)]
    for i, name in enumerate(names): Image.new('L', (64, 64), i).save(tmp_path / f'train/{name}{suffix}')
    table = pd.DataFrame(dict(id=names, digit_sum=[i % 5 for i in range(30)]))
    table.to_csv(tmp_path / 'train.csv', index=False)
    train, valid = (read_ultramnist(tmp_path, split) for split in ('train', 'valid'))
    assert sorted([*train.image_id, *valid.image_id]) == names and sorted(valid.label) == [0, 1, 2, 3, 4]
    image, label, content, name = UltraMNIST(valid, PatchGrid(64, 16))[0]
    assert label == int(name) % 5 and abs(int(image.float().mean()) - int(name)) <= 1
    table[::-1].to_csv(tmp_path / 'train.csv', index=False)
    assert set(read_ultramnist(tmp_path, 'valid').image_id) == set(valid.image_id)


COUNTS = [(make_mini_panda, 'n size workers'), (make_ultramnist, 'image_size workers'), (lambda out, **k: cut_regions('slide.tiff', out, **k), 'n size'), (lambda out, **k: prepare_panda(out, out, progress=False, **k), 'folds workers'),
          (lambda out, **k: prepare_tcga(out, 'labels.csv', out, progress=False, **k), 'folds workers'), (lambda out, **k: prepare_folder(out, out, progress=False, **k), 'workers'), (lambda out, **k: make_signals(**{'n': 6, 'seed': 0} | k), 'n')]

@pytest.mark.parametrize('make, names', COUNTS, ids=['panda', 'ultramnist', 'cut', 'prepare panda', 'prepare tcga', 'prepare folder', 'signals'])
def test_counts_that_count_nothing_are_refused(tmp_path, make, names):
    for name in names.split():
        for value in (0, -3, 2.5):
            with pytest.raises(ValueError, match=rf'{name}={value} is not a whole number from 1') as e: make(tmp_path / 'out', **{name: value})
            one_sentence(e.value)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kwargs, says', [(dict(train=-1), 'train=-1'), (dict(valid=-1), 'valid=-1'), (dict(train=0, valid=0), 'images=0'), (dict(seed=-1), 'seed=-1'), (dict(max_sum=2.5), 'max_sum=2.5')])
def test_counts_of_digits(tmp_path, kwargs, says):
    with pytest.raises(ValueError, match=says): make_ultramnist(tmp_path / 'out', **kwargs)
    with pytest.raises(ValueError, match='seed=-1'): make_mini_panda(tmp_path / 'out', seed=-1)
    with pytest.raises(ValueError, match='canvases=0'): prepare_panda(tmp_path, tmp_path / 'out', canvases=[512, 0])
    assert not (tmp_path / 'out').exists()
