"Bad inputs, a thousand and more: each ends in one sentence or on the list of what was skipped, none in an error of a library. All drawn from fixed seeds."
import gzip, io, os, re, resource, struct, time, zipfile, zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pandas as pd, pytest, tifffile
from PIL import Image
from patchgd_nb.datasets.biopsy import draw_biopsy
from patchgd_nb.images.canvas import Canvas, content_share
from patchgd_nb.images.readers import open_image, write_pyramid
from patchgd_nb.datasets.panda import read_panda, split_folds
from patchgd_nb.patches import PatchGrid
from patchgd_nb.images.prepare import decode_all, inspect_files, prepare_folder, prepare_tcga, read_images
from patchgd_nb.datasets.har import make_signals, read_har
from patchgd_nb.images.slides import SlideDataset, collate
from patchgd_nb.images.tables import BadImageLog, read_table
from patchgd_nb.datasets.digits import load_digit_images, read_idx
from patchgd_nb.datasets.ultramnist import UltraMNIST, make_ultramnist, read_ultramnist

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
            call = dict(csv=lambda: read_panda(folder), tiff=lambda: decode_all(open_image(folder / name)), png=lambda: decode_all(open_image(folder / name)), npz=lambda: read_har(folder)).get(name.rpartition('.')[2], lambda: load_digit_images('train', str(folder)))
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
    decode_all(image)
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
                    item = SlideDataset(rows, PatchGrid(64, 16), on_bad='skip', bad_list=bad)[0]
                    assert item is None or item[0].shape == (3, 64, 64)
                skipped(quarantined, bad, path.name)
            path.unlink()
    print(dict(kinds))
    assert kinds['refused'] > 350, kinds


def png(side, data=b'', extra=b''):
    "A PNG that says it has `side` x `side` pixels."
    def chunk(kind, data): return len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', 2 * side.to_bytes(4, 'big') + bytes([8, 2, 0, 0, 0])) + extra + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


def tagged(path, changes, pixels=None, **kwargs):
    "A tiled TIFF some of whose tags say something else."
    tifffile.imwrite(path, np.zeros((128, 128, 3), np.uint8) if pixels is None else pixels, photometric='rgb', **(dict(tile=(64, 64), compression='zlib') | kwargs))
    with tifffile.TiffFile(path, mode='r+b') as tif:
        for name, value in changes.items(): tif.pages[0].tags[name].overwrite(value)
    return path


def laughs(): return '<!DOCTYPE x [<!ENTITY a0 "ha">' + ''.join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10)) + ']><OME>&a9;</OME>'


def test_bombs(tmp_path):
    "Small files that say, or unpack to, gigabytes: refused at once, whichever door they come in by."
    rng, paths = np.random.default_rng(0), []
    def put(name, data):
        (tmp_path / name).write_bytes(data)
        paths.append(tmp_path / name)
    for i, side in enumerate((10_000, 20_000, 60_000, 2**20, 2**31 - 1, 0)): put(f'png{i}.png', png(side, bytes(1000)))
    text = zlib.compress(bytes(200_000_000))
    def chunk(kind, data): return len(data).to_bytes(4, 'big') + kind + data + zlib.crc32(kind + data).to_bytes(4, 'big')
    put('text.png', png(8, bytes(200), chunk(b'zTXt', b'a\0\0' + text)))
    put('profile.png', png(8, bytes(8 * 25), chunk(b'iCCP', b'a\0\0' + text)) [:-30])
    buffer = io.BytesIO()
    Image.new('RGB', (64, 64)).save(buffer, 'JPEG')
    jpeg = buffer.getvalue()
    at = jpeg.index(b'\xff\xc0') + 5
    put('sides.jpg', jpeg[:at] + struct.pack('>HH', 65_500, 65_500) + jpeg[at + 4:])
    put('bmp.bmp', b'BM' + struct.pack('<IHHI', 54, 0, 0, 54) + struct.pack('<IiiHHIIiiII', 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0))
    put('gif.gif', b'GIF89a' + struct.pack('<HH', 65_535, 65_535) + b'\0\0\0' + b',' + struct.pack('<HHHH', 0, 0, 65_535, 65_535) + b'\0\x02\x02L\x01\0;')
    for i, (tag, value) in enumerate([('ImageWidth', 2**31), ('ImageLength', 2**31), ('ImageWidth', 2**20), ('TileWidth', 2**30), ('TileLength', 2**30), ('ImageWidth', 0), ('TileWidth', 0), ('SamplesPerPixel', 2**15), ('BitsPerSample', (64, 64, 64)), ('Compression', 99)]):
        paths.append(tagged(tmp_path / f'tag{i}.tif', {tag: value}))
    for i, (h, w) in enumerate([(2**20, 64), (64, 2**20)]):   # all tiles blank and left out
        paths.append(tagged(tmp_path / f'long{i}.tif', dict(ImageLength=h, ImageWidth=w), np.zeros((64 * 2**14 if h > w else 64, 64 if h > w else 64 * 2**14, 3), np.uint8)))
    for path in paths: assert answer(lambda: seen(path), path.name) == 'refused', path

    # a tile that is a JPEG of another size than the directory says
    path = tmp_path / 'tile.tif'
    tifffile.imwrite(path, np.full((64, 64, 3), 90, np.uint8), tile=(64, 64), compression='jpeg', photometric='rgb')
    data = path.read_bytes()
    at = data.index(b'\xff\xc0') + 5
    path.write_bytes(data[:at] + struct.pack('>HH', 65_500, 65_500) + data[at + 4:])
    assert answer(lambda: seen(path), path.name) == 'refused'
    # a tile of zeros in place of 12 KB, packed a thousandfold, and entities that unfold a billionfold: read no further than they should be
    path = tagged(tmp_path / 'deflate.tif', {}, description=laughs())
    with tifffile.TiffFile(path) as tif: start, n = tif.pages[0].dataoffsets[0], tif.filehandle.size
    long = zlib.compress(bytes(300_000_000))
    with tifffile.TiffFile(path, mode='r+b') as tif:
        offsets, counts = list(tif.pages[0].dataoffsets), list(tif.pages[0].databytecounts)
        tif.pages[0].tags['TileOffsets'].overwrite([n] + offsets[1:])
        tif.pages[0].tags['TileByteCounts'].overwrite([len(long)] + counts[1:])
    with open(path, 'r+b') as f:
        f.seek(n)
        f.write(long)
    answer(lambda: seen(path), path.name)


def test_formats_that_are_none(tmp_path):
    "The ending lies: text, PostScript, scripts and one format under another's name. Nothing is run to find out."
    (tmp_path / 'whole').mkdir()
    whole, kinds = pictures(tmp_path / 'whole'), Counter()
    script = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(' + str(tmp_path / 'ran').encode() + b') (w) file closefile\nshowpage\n'
    others = dict(text=b'not a picture\n' * 9, empty=b'', eps=script, svg=b'<svg xmlns="http://www.w3.org/2000/svg"/>', csv=b'image_id,isup_grade\n', zip=b'PK\5\6' + bytes(18), elf=b'\x7fELF' + bytes(60), pickle=b'\x80\x04\x95.', pdf=b'%PDF-1.4\n%%EOF', ini=b'[Slide_1]\nImageFile=../../etc/passwd\n', vms=b'[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\nImageFile=../../../../etc/passwd\n')
    endings = ['.tiff', '.svs', '.ndpi', '.mrxs', '.vms', '.dcm', '.scn', '.jpg', '.png', '.bmp', '.webp', '.gif', '', '.TIFF', '.jpg.tiff']
    for kind, data in {**others, **whole}.items():
        for end in endings:
            path = tmp_path / f'{kind.replace(".", "_")}{end}'
            path.write_bytes(data)
            kinds[kind in others, answer(lambda: seen(path), path.name)] += 1
            path.unlink()
    assert not (tmp_path / 'ran').exists() and kinds[True, 'refused'] == len(others) * len(endings) and kinds[True, 'read'] == 0, kinds


def test_an_image_that_names_other_files(tmp_path):
    "An OME-TIFF may say that its pixels lie in another file: they are not read from there."
    (tmp_path / 'secret').mkdir()
    pixels = draw_biopsy(3, 3, 4, size=256).pixels
    tifffile.imwrite(tmp_path / 'secret/a.ome.tif', pixels, photometric='rgb', tile=(64, 64), compression='jpeg', ome=True)
    tifffile.imwrite(tmp_path / 'b.ome.tif', 255 - pixels, photometric='rgb', tile=(64, 64), compression='jpeg', ome=True)
    with tifffile.TiffFile(tmp_path / 'secret/a.ome.tif') as tif: xml = tif.ome_metadata
    uuid = re.search(r'UUID="([^"]+)"', xml)[1]
    for i, name in enumerate(('secret/a.ome.tif', '../' + tmp_path.name + '/secret/a.ome.tif', str(tmp_path / 'secret/a.ome.tif'), '/etc/passwd', '/dev/zero')):
        told = re.sub(r'<TiffData [^/]*/>|<TiffData[^>]*>.*?</TiffData>', f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:12345678-1234-1234-1234-123456789abc</UUID></TiffData>', xml)
        assert told != xml and uuid
        path = tmp_path / f'n{i}.ome.tif'
        tifffile.imwrite(path, 255 - pixels, photometric='rgb', tile=(64, 64), compression='jpeg', description=told, metadata=None)
        if answer(lambda: seen(path), path.name) == 'read': assert seen(path) == seen(tmp_path / 'b.ome.tif')


# --- digits, signals, folders

def test_damaged_digits(tmp_path):
    "MNIST's own files, packed or not, and folders of them that do not fit together."
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (40, 6, 6), dtype=np.uint8), np.arange(40, dtype=np.uint8) % 10
    def idx(a): return bytes([0, 0, 8, a.ndim]) + b''.join(n.to_bytes(4, 'big') for n in a.shape) + a.tobytes()
    kinds = Counter()
    for packed in (False, True):
        whole = gzip.compress(idx(images)) if packed else idx(images)
        for i, (kind, data) in enumerate(damaged(whole, 5, 60)):
            path = tmp_path / f'i{i}{".gz" if packed else ""}'
            path.write_bytes(data)
            kinds[answer(lambda: read_idx(path), path.name)] += 1
    bombs = dict(header=bytes([0, 0, 8, 3]) + b'\xff' * 12, axes=bytes([0, 0, 8, 255]) + bytes(2000), none=bytes([0, 0, 8, 0, 1]), floats=bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]), long=idx(images) + bytes(9))
    for name, data in bombs.items():
        for end, pack in (('', bytes), ('.gz', gzip.compress)):
            (tmp_path / f'{name}{end}').write_bytes(pack(data))
            assert answer(lambda: read_idx(tmp_path / f'{name}{end}'), name) == 'refused'
    (tmp_path / 'swollen.gz').write_bytes(gzip.compress(idx(images) + bytes(10**8), 1))
    assert answer(lambda: read_idx(tmp_path / 'swollen.gz'), 'swollen') == 'refused'
    pairs = [(images[:0], labels[:0]), (images[:39], labels), (images, labels[:39]), (images[0], labels), (labels, labels), (images, images), (images[:, :0], labels), (images, labels // 2), (images, labels + 1), (images, labels * 0 + 255), (images[None], labels)]
    for i, pair in enumerate(pairs):
        folder = tmp_path / f'pair{i}'
        folder.mkdir()
        for name, a in zip(('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'), pair): (folder / name).write_bytes(idx(a))
        assert answer(lambda: load_digit_images('train', str(folder)), folder.name) == 'refused', i
    assert kinds['refused'] > 60, kinds


def test_damaged_signals(tmp_path):
    x, y = make_signals(12, 0)
    parts, kinds = dict(X_train=x, y_train=y + 1, X_test=x, y_test=y + 1), Counter()
    def npz(path, **arrays): np.savez(path, **arrays)
    class Ran:
        def __reduce__(self): return Path.touch, (tmp_path / 'ran',)
    wrong = [dict(X_train=None), dict(y_test=None), dict(X_train=x[:5]), dict(X_train=x[:, :8]), dict(X_train=x[..., :9]), dict(X_train=x[0]), dict(X_train=np.float32(1)), dict(X_train=x * np.nan), dict(X_test=np.where(x > 1, np.inf, x)), dict(X_train=x.astype(str)), dict(X_train=np.array([Ran()], dtype=object)), dict(X_train=x.astype(complex)), dict(y_train=y),
             dict(y_train=y + .5), dict(y_train=y * np.nan), dict(y_train=y + 2**40), dict(y_train=-y), dict(y_train=y[:, None] + 1), dict(y_train=y[:5] + 1), dict(y_train=np.array(['a'] * 12)), dict(y_train=np.array([Ran()] * 12)), dict(y_train=np.int64(3)), dict(X_train=x[:0], y_train=y[:0]), dict(y_train=np.zeros(12, 'datetime64[s]')), dict(y_train=np.zeros(12, [('a', 'i4')]))]
    for i, change in enumerate(wrong):
        folder = tmp_path / f'w{i}'
        folder.mkdir()
        npz(folder / 'a.npz', **{k: v for k, v in {**parts, **change}.items() if v is not None})
        kinds[answer(lambda: read_har(folder), folder.name)] += 1
    npz(tmp_path / 'whole.npz', **parts)
    for i, (kind, data) in enumerate(damaged((tmp_path / 'whole.npz').read_bytes(), 7, 80)):
        folder = tmp_path / f'd{i}'
        folder.mkdir()
        (folder / 'a.npz').write_bytes(data)
        kinds[answer(lambda: read_har(folder), folder.name)] += 1
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, dict(descr='<f4', fortran_order=False, shape=(10**12, 9, 128)))
    for name, member, size in (('huge', head.getvalue() + bytes(100), 0), ('zeros', b'', 3 * 10**9)):
        folder = tmp_path / name
        folder.mkdir()
        with zipfile.ZipFile(folder / 'a.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z: z.writestr('X_train.npy', member)
        if size:   # the archive's directory says that it unpacks to 3 GB
            data = bytearray((folder / 'a.npz').read_bytes())
            data[(at := data.index(b'PK\1\2') + 24):at + 4] = struct.pack('<I', size)
            (folder / 'a.npz').write_bytes(data)
        assert answer(lambda: read_har(folder), name) == 'refused'
    assert not (tmp_path / 'ran').exists() and kinds['refused'] > 60, kinds


def test_damaged_tables_of_signals(tmp_path):
    "UCI's text files."
    from patchgd_nb.datasets.har import CHANNELS
    x, y = make_signals(6, 0)
    for split in ('train', 'test'):
        (tmp_path / split / 'Inertial Signals').mkdir(parents=True)
        np.savetxt(tmp_path / split / f'y_{split}.txt', y + 1, fmt='%d')
        for c, name in enumerate(CHANNELS): np.savetxt(tmp_path / split / 'Inertial Signals' / f'{name}_{split}.txt', x[:, c], fmt='%.3f')
    assert answer(lambda: read_har(tmp_path)) == 'read'
    for path in (tmp_path / 'train/y_train.txt', tmp_path / 'test/Inertial Signals/body_gyro_y_test.txt'):
        whole, kinds = path.read_bytes(), Counter()
        others = [b'', b'\n', b'\0' * 100, b'a b c\n' * 6, b'nan\n' * 6, b'1e999\n' * 6, b'1 2 3\n' * 6, b'1\n' * 7, b'\xff\xfe' + whole, whole + whole, b'1.5\n' * 6, b'1' * 100_000, b'# 1\n' * 6, b'0x1\n' * 6]
        for data in [*others, *(d for _, d in damaged(whole, 3, 24))]:
            path.write_bytes(data)
            kinds[answer(lambda: read_har(tmp_path), tmp_path.name)] += 1
        assert kinds['refused'] > 20, kinds
        path.write_bytes(whole)


@pytest.fixture
def threads(monkeypatch):
    "Threads in place of processes, which take seconds to start."
    monkeypatch.setattr('patchgd_nb.images.prepare.ProcessPoolExecutor', ThreadPoolExecutor)


def test_names_on_the_disk(tmp_path, threads):
    "What lies in a folder was named by somebody else too: line breaks, bytes that are no text, two files of one name."
    data = pictures((tmp_path / 'whole').mkdir() or tmp_path / 'whole')['photo.jpg']
    tiff = (tmp_path / 'whole/pyramid.tiff').read_bytes()
    (tmp_path / 'photos/train/c').mkdir(parents=True)
    odd = ['a\nb', 'a\x1b[2J', 'a\u2028', os.fsdecode(b'\xff\xfe'), '-rf', '..x', ' ', 'ä', '"quoted", twice', '=1+1']
    for i, name in enumerate(odd): (tmp_path / f'photos/train/c/{name}.jpg').write_bytes(data + bytes(i))
    result = prepare_folder(tmp_path / 'photos', tmp_path / 'out', workers=1, progress=False)
    assert (result['usable'], result['problems']) == (6, 4)
    assert len(read_images(tmp_path / 'out/images.csv', tmp_path / 'photos')) == 6
    for why in pd.read_csv(tmp_path / 'out/problems.csv').problem: one_sentence(ValueError(why), 'rename')
    for i, name in enumerate(['u1/TCGA-05-4000-01Z', 'u2/TCGA-05-4000-01Z', 'u3/TCGA-05-4001-01Z', 'u4/TCGA-05\n', 'u5/TCGA-05-\x1b']):
        path = tmp_path / f'tcga/{name}.svs'
        path.parent.mkdir(parents=True)
        path.write_bytes(tiff + bytes(i))
    (tmp_path / 'labels.csv').write_text('id,label\nTCGA-05-4000,a\nTCGA-05-4001,b\n"TCGA-05-4002 ""x""",b\n')
    result = prepare_tcga(tmp_path / 'tcga', tmp_path / 'labels.csv', tmp_path / 'out', folds=2, workers=1, progress=False)
    assert (result['usable'], result['problems']) == (2, 4)
    for why in pd.read_csv(tmp_path / 'out/problems.csv').problem: one_sentence(ValueError(why), 'tcga', 'labels.csv', 'rename')


def test_damaged_notes(tmp_path, threads):
    "`seen.jsonl` after a crash of the disk: lines that are none are looked at again. And a list of bad images that is none."
    Image.new('RGB', (64, 64)).save(tmp_path / 'a.png')
    def look(): return inspect_files([tmp_path / 'a.png'], tmp_path, workers=1, progress=False)
    whole, right = (look(), (tmp_path / 'seen.jsonl').read_bytes())[1], look()
    for data in (b'\0' * 50 + b'\n' + whole, b'[]\n', b'{}\n1\nnull\n"x"\n', b'{"path": 3}\n', whole[:-9] + b'\n', b'\xff\xfe\n', b'{"path": "x", "stamp": 1, "error": ""}\n', b'[' * 5000 + b'\n'):
        (tmp_path / 'seen.jsonl').write_bytes(data)
        assert look() == right
    for data in (b'\0' * 100, b'"' + b'a' * 200_000, b'\xff\n' * 50, b'"open'):
        (tmp_path / 'bad.csv').write_bytes(data)
        answer(lambda: BadImageLog('skip', tmp_path / 'bad.csv')('a', ValueError('x')), 'bad.csv')


def test_damaged_images_of_digits(tmp_path):
    make_ultramnist(tmp_path, 1, 1, 256, mnist='scikit-learn', workers=1, progress=False)
    rows, path = read_ultramnist(tmp_path, 'train'), tmp_path / 'images/train_000000.png'
    whole, data = path.read_bytes(), UltraMNIST(rows, PatchGrid(256, 64), 'skip', tmp_path / 'bad.csv')
    strict = UltraMNIST(rows, PatchGrid(256, 64))
    others = [b'', png(256), png(20_000), png(0), b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 256 256\n', gzip.compress(whole)]
    for new in [*others, *(d for _, d in damaged(whole, 9, 64))]:
        path.write_bytes(new)
        answer(lambda: strict[0], path.name)
        skipped(lambda: data[0], tmp_path / 'bad.csv', path.name)


def test_a_thousand_inputs_were_answered():
    "The tests above, counted; alone, this one has nothing to count."
    if not ANSWERS: pytest.skip('run with the tests above')
    print(dict(ANSWERS))
    assert ANSWERS['refused'] + ANSWERS['skipped'] >= 1000
