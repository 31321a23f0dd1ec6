"Bad inputs, a thousand and more: each ends in one sentence or on the list of what was skipped, none in an error of a library. All drawn from fixed seeds."
import gzip, io, os, re, resource, struct, time, zipfile, zlib
from collections import Counter
from pathlib import Path
import numpy as np, pandas as pd, pytest, tifffile
from PIL import Image
from patchgd_nb.biopsy import draw_biopsy
from patchgd_nb.canvas import Canvas, content_share
from patchgd_nb.images import open_image, write_pyramid
from patchgd_nb.panda import read_panda, split_folds
from patchgd_nb.patches import PatchGrid
from patchgd_nb.prepare import decode, look_through, prepare_folder, prepare_tcga, read_images
from patchgd_nb.signals import make_signals, read_har
from patchgd_nb.slides import BadList, Slides, batch_of, read_table
from patchgd_nb.ultramnist import UltraMNIST, digit_pool, make_ultramnist, read_idx, read_ultramnist

ANSWERS = Counter()   # what became of the inputs of this run: refused, skipped, read
OURS = (ValueError, FileNotFoundError)


def one_sentence(error, *names):
    "That an error is ours: of a plain type, one line, ending as a sentence, and naming the file, the row or the value."
    text = str(error)
    assert type(error) in OURS, (type(error), text)
    assert len(text.splitlines()) == 1 and len(text) < 2500 and text.endswith('.') and ': ' in text and 'Traceback' not in text, text
    assert any(str(n) in text for n in names), (names, text)


def answer(call, *names):
    "Whether an input was 'refused', in a sentence that names one of `names`, or 'read'; within seconds."
    start = time.process_time()
    try: call()
    except Exception as e:
        one_sentence(e, *names)
        kind = 'refused'
    else: kind = 'read'
    assert time.process_time() - start < 10, names
    ANSWERS[kind] += 1
    return kind


def skipped(call, list_path, *names):
    "Whether with on_bad='skip' an input was 'skipped' onto the list, where one sentence says why; else as `answer`."
    kind = answer(call, list_path, *names)
    if not list_path.exists(): return kind
    with open(list_path, newline='') as f: listed = pd.read_csv(f, header=None, dtype=str, keep_default_na=False)
    for name, text in zip(listed[0], listed[1]): one_sentence(ValueError(text), *names, name)
    list_path.unlink()
    ANSWERS.update({kind: -1, 'skipped': 1})
    return 'skipped'


@pytest.fixture(autouse=True)
def memory():
    "No input takes more than 1.5 GB."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1.5 * 2**20


# --- tables

CELLS = ['', ' ', 'NaN', 'nan', 'None', 'inf', '-1', '6', '1e400', '9' * 400, '2.5', '0x1', '٣', '½', '1\0', '\0', '"', "'", '""', '=1+1', 'a\nb', 'a\rb', 'a\u2028b', '\x1b[2J', '\ufeff', '../../etc/passwd', '..', '.', '/etc/passwd', '/dev/zero', '~/x', 'C:\\x', 'a/../../x', 'a\\b',
         'https://host/x.tiff', 'a' * 300, 'a' * 5000, 'ä' * 200, '\udcff', '\ufffd', '${HOME}', '$(id)', '{0}', '%s%n', 'True', '[]', 'slide_0', 'slide_0 ', 'SLIDE_0', 'CON', '-rf', '🂡']
WHOLE = [b'', b'\n', b'\n\n\n', b'\xef\xbb\xbf', b'\xff\xfe', b'\0' * 100, b'\0\xff' * 50, b'"', b'"' * 1001, b',' * 1000, b'\r', b'\x89PNG\r\n\x1a\n' + bytes(50), b'PK\x03\x04' + bytes(80), gzip.compress(b'image_id\n' * 50), b'{"image_id": [1]}', b'<html></html>', b'a' * 300_000, b'a,' * 100_000, b'\x80\x04\x95.']


def encoded(text): return text.encode('utf-8', 'surrogateescape') if not any(0xd800 <= ord(c) < 0xdc80 for c in text) else text.encode('utf-8', 'replace')


def tables(header, good, seed):
    "Bytes of tables that are wrong: (what is wrong, bytes). `good` is the row that would be right."
    rng = np.random.default_rng(seed)
    def table(rows, head=header, sep=',', end='\n'): return encoded(end.join(sep.join(r) for r in (head, *rows)) + end)
    quoted = lambda cell: '"' + cell.replace('"', '""') + '"'
    for data in WHOLE: yield 'whole', data
    for cell in CELLS:
        for i in range(len(header)):
            row = list(good)
            row[i] = quoted(cell)
            yield f'cell {i} {cell[:20]!r}', table([row])
    for i in range(len(header)):
        yield 'column left out', table([good[:i] + good[i + 1:]], header[:i] + header[i + 1:])
        yield 'column misspelt', table([good], [h + ('_' if h == header[i] else '') for h in header])
        yield 'column twice', table([(*good, good[i])], (*header, header[i]))
    yield 'row twice', table([good, good])
    yield 'header only', table([])
    yield 'header twice', table([header, good])
    yield 'no header', table([good], good)
    yield 'a cell too many', table([(*good, '1')])
    yield 'a comma too many', table([(*good, '')])
    yield 'a cell too many later', table([good, (*good, '1')])
    yield 'a cell too few', table([good[:1]])
    yield 'an open quote', table([good]) + b'"slide_0,'
    yield 'semicolons', table([good], sep=';')
    yield 'tabs', table([good], sep='\t')
    for code in ('utf-16', 'utf-32'): yield code, (','.join(header) + '\n' + ','.join(good) + '\n').encode(code)
    yield 'a very long line', table([good]) + b'x' * 2_000_000
    whole = table([good] * 3)
    for _ in range(25): yield 'cut', whole[:rng.integers(1, len(whole) - 1)]
    for _ in range(40):
        data = bytearray(whole)
        for i in rng.integers(0, len(data), rng.integers(1, 6)): data[i] = rng.integers(256)
        yield 'bytes changed', bytes(data)
    for _ in range(15): yield 'noise', rng.integers(0, 256, rng.integers(1, 400), dtype=np.uint8).tobytes()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "One file of each kind that is right, in the folders that the readers expect."
    top = tmp_path_factory.mktemp('files')
    pixels = draw_biopsy(3, 3, 4, size=256).pixels
    for folder in ('train_images', 'images', 'sub'): (top / folder).mkdir()
    write_pyramid(top / 'train_images/slide_0.tiff', pixels, tile=64)
    Image.fromarray(pixels).save(top / 'images/slide_0.png')
    Image.fromarray(pixels).save(top / 'sub/a.jpg')
    return top


def inside(rows, top):
    "No row that was accepted leads out of the folder, and none is there twice."
    assert all(p.resolve().is_relative_to(top.resolve()) and p.is_file() for p in rows.path) and not rows.image_id.duplicated().any()


@pytest.mark.parametrize('reader', ['panda', 'ultramnist', 'images'])
def test_tables_that_are_wrong(reader, files, tmp_path):
    header, good, name = dict(panda=(['image_id', 'isup_grade'], ['slide_0', '3'], 'train.csv'), ultramnist=(['image_id', 'digit_sum'], ['slide_0', '9'], 'train.csv'), images=(['image_id', 'path', 'class'], ['slide_0', 'sub/a.jpg', 'x'], 'images.csv'))[reader]
    for folder in ('train_images', 'images', 'sub'): os.symlink(files / folder, tmp_path / folder)
    read = dict(panda=lambda **k: read_panda(tmp_path, **k), ultramnist=lambda **k: read_ultramnist(tmp_path, 'train', **k), images=lambda **k: read_images(tmp_path / name, tmp_path, **k))[reader]
    kinds = Counter()
    for i, (what, data) in enumerate(tables(header, good, 1)):
        (tmp_path / name).write_bytes(data)
        kinds[answer(lambda: inside(read(), files), name)] += 1
        if i % 3 == 0: kinds[skipped(lambda: inside(read(on_bad='skip', bad_list=tmp_path / 'bad.csv'), files), tmp_path / 'bad.csv', name)] += 1
    assert kinds['refused'] > 150 and kinds['skipped'] > 10, kinds


def test_tables_of_labels_and_folds(files, tmp_path):
    "prepare_tcga's labels, before a slide is opened; and the column `fold` of a table."
    for what, data in tables(['id', 'label'], ['slide_0', 'x'], 2):
        (tmp_path / 'labels.csv').write_bytes(data)
        answer(lambda: prepare_tcga(files / 'sub', tmp_path / 'labels.csv', tmp_path / 'out', progress=False), 'labels.csv', 'sub')   # a folder without slides
    for cell in CELLS:
        rows = pd.DataFrame(dict(image_id=['a', 'b'], path=['a', 'b'], isup_grade=[1, 2], data_provider=['', ''], fold=['0', cell]))
        answer(lambda: split_folds(rows, 0, 2), 'fold')


def test_what_is_no_file(files, tmp_path):
    "Folders, pipes, links to nowhere and to themselves, in place of tables and images."
    for name in ('train.csv', 'x.tiff', 'x.png', 'x.npz', 'train-images-idx3-ubyte'):
        for make in (lambda p: p.mkdir(), os.mkfifo, lambda p: os.symlink('nowhere', p), lambda p: os.symlink(p.name, p)):
            folder = tmp_path / f'{name}{time.time_ns()}'
            folder.mkdir()
            make(folder / name)
            call = dict(csv=lambda: read_panda(folder), tiff=lambda: decode(open_image(folder / name)), png=lambda: decode(open_image(folder / name)), npz=lambda: read_har(folder)).get(name.rpartition('.')[2], lambda: digit_pool('train', str(folder)))
            assert answer(call, name, folder) == 'refused'


def test_links_are_followed_and_names_are_not(files, tmp_path):
    "Whoever puts a link into the folder means it; a table cannot make one."
    (tmp_path / 'train_images').mkdir()
    os.symlink(files / 'train_images/slide_0.tiff', tmp_path / 'train_images/linked.tiff')
    (tmp_path / 'train.csv').write_text('image_id,isup_grade\nlinked,2\n')
    assert len(read_panda(tmp_path)) == 1
    os.symlink(files / 'sub', tmp_path / 'more')
    (tmp_path / 'images.csv').write_text('image_id,path,class\na,more/../images/slide_0.png,x\n')   # there, but by way of `..`
    with pytest.raises(ValueError, match='leads out'): read_images(tmp_path / 'images.csv', tmp_path)


# --- images

def seen(path):
    "Everything that training and preparing do with a file; what they see, as one number."
    image = open_image(path)
    decode(image)
    canvas, grid = Canvas(image, 64), PatchGrid(64, 16)
    share = content_share(canvas, grid)
    assert share.shape == (16,) and share.isfinite().all()
    return zlib.crc32(canvas.read(0, 0, 64, 64).tobytes() + share.numpy().tobytes())


def pictures(folder):
    "Whole files of every kind, small: a dict of bytes by name."
    pixels = draw_biopsy(3, 3, 4, size=256).pixels
    def tiff(name, **kwargs): tifffile.imwrite(folder / name, pixels, photometric='rgb', **kwargs)
    write_pyramid(folder / 'pyramid.tiff', pixels, (1, 4), tile=64)
    for name, compression in (('lzw', 'lzw'), ('deflate', 'zlib'), ('zstd', 'zstd'), ('webp', 'webp'), ('jpeg2000', 'jpeg2000'), ('plain', None)): tiff(f'{name}.tif', tile=(64, 64), compression=compression)
    tiff('strips.tif', rowsperstrip=32, compression='zlib')
    tiff('big.tif', tile=(64, 64), compression='jpeg', bigtiff=True)
    with tifffile.TiffWriter(folder / 'ome.ome.tiff', ome=True) as tif:
        tif.write(pixels, subifds=1, tile=(64, 64), compression='jpeg', photometric='rgb')
        tif.write(pixels[::2, ::2], subfiletype=1, tile=(64, 64), compression='jpeg', photometric='rgb')
    for suffix in ('jpg', 'png', 'bmp', 'webp', 'gif'): Image.fromarray(pixels).save(folder / f'photo.{suffix}')
    Image.fromarray(pixels).save(folder / 'progressive.jpg', progressive=True)
    Image.fromarray(pixels).convert('P').save(folder / 'palette.png')
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def damaged(data, seed, n):
    "A file cut at random lengths, with bits turned (mostly where its directory lies), bytes zeroed, parts repeated."
    rng = np.random.default_rng(seed)
    for i in range(n):
        new, end = bytearray(data), len(data)
        kind = ('cut', 'head', 'tail', 'anywhere', 'zeros', 'ones', 'doubled', 'shifted')[i % 8]
        at = int(rng.integers(0, end))
        if kind == 'cut': new = new[:at]
        if kind == 'head': new[rng.integers(0, min(600, end))] ^= 1 << rng.integers(8)
        if kind == 'tail': new[-rng.integers(1, min(600, end))] ^= 1 << rng.integers(8)
        if kind == 'anywhere':
            for j in rng.integers(0, end, 8): new[j] ^= 1 << rng.integers(8)
        if kind in ('zeros', 'ones'): new[at:at + 200] = (b'\0' if kind == 'zeros' else b'\xff') * len(new[at:at + 200])
        if kind == 'doubled': new = new[:at] + new[at // 2:]
        if kind == 'shifted': del new[at]
        yield kind, bytes(new)


def test_damaged_images(tmp_path):
    "Refused, or read: damage inside a JPEG, or in a tag that says nothing of the pixels, cannot be seen."
    (tmp_path / 'whole').mkdir()
    kinds, bad = Counter(), tmp_path / 'bad.csv'
    for n, (name, data) in enumerate(pictures(tmp_path / 'whole').items()):
        whole = seen(tmp_path / 'whole' / name)
        for i, (kind, new) in enumerate(damaged(data, n, 64 if 'tif' in name else 40)):
            path = tmp_path / f'd{n}_{i}{"".join(Path(name).suffixes)}'
            path.write_bytes(new)
            same = []
            got = answer(lambda: same.append(seen(path) == whole), path.name)
            kinds[got if got == 'refused' else 'read the same' if same[0] else 'read otherwise'] += 1
            if i % 6 == 0:
                rows = pd.DataFrame(dict(image_id=['a'], path=[path], label=[0]))
                def quarantined():
                    item = Slides(rows, PatchGrid(64, 16), on_bad='skip', bad_list=bad)[0]
                    assert item is None or item[0].shape == (3, 64, 64)
                skipped(quarantined, bad, path.name)
            path.unlink()
    print(dict(kinds))
    assert kinds['refused'] > 350, kinds
