"The command `patchgd`: what it understands, how it ends, what each part of it does."
import inspect, json, os, re, runpy, signal, subprocess, sys, time, tracemalloc
from importlib import import_module
from pathlib import Path
import numpy as np, pandas as pd, pytest, tifffile
from PIL import Image
import patchgd_nb.experiment
from notebook_cells import run_cells
from patchgd_nb.experiment.command import COMMANDS, main, make_parser, take_parameters
from patchgd_nb.experiment.notebooks import find_notebook, notebook_files, notebooks_folder
from patchgd_nb.experiment.options import REQUIRED, Command, add_argument
from patchgd_nb.images import open_image
from patchgd_nb.images.convert import convert_image, unpack_page
from patchgd_nb.images.prepare import read_images
from patchgd_nb.images.splits import class_names, split_by_fold, split_by_name

TOP = Path(__file__).resolve().parent.parent


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    "The command in this process, in a folder of its own: exit code, what it printed."
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def call(*args):
        try: code = main([str(a) for a in args])
        except SystemExit as e: code = e.code
        return code, ''.join(capfd.readouterr())

    yield call
    signal.signal(signal.SIGTERM, before)


def one_sentence(said): return said.startswith('patchgd: ') and said.count('\n') == 1 and 'Traceback' not in said


# --- what it understands

@pytest.mark.parametrize('command', COMMANDS, ids=lambda c: c.words)
def test_a_command_has_its_functions_arguments(command):
    "As Python sees them, though the source was only read: names, defaults, and a word on each."
    function = getattr(import_module(f'patchgd_nb.{command.module}'), command.function)
    wanted = {n: REQUIRED if p.default is p.empty else p.default for n, p in inspect.signature(function).parameters.items() if p.kind is not p.VAR_KEYWORD}
    found = command.signature()
    assert {a.name: a.default for a in found.arguments} == wanted and all(a.comment for a in found.arguments)
    assert found.summary == inspect.getdoc(function) and set(command.positional.split()) <= set(wanted)


OPTIONS = dict(   # what the scripts had before they were doors
    cut_slide='--slide --out --n --size --seed', make_mini_panda='--out --n --size --seed --workers', prepare_folder='--data-dir --out --quick --workers',
    make_ultramnist='--out --train --valid --image-size --min-sum --max-sum --mnist --seed --workers --format',
    prepare_panda='--data-dir --out --folds --seed --canvases --quick --workers', prepare_tcga='--slides --labels --out --folds --seed --quick --workers')

@pytest.mark.parametrize('script', OPTIONS)
def test_a_script_keeps_its_options(script, monkeypatch, capfd):
    monkeypatch.setattr(sys, 'argv', [script, '--help'])
    with pytest.raises(SystemExit) as e: runpy.run_path(str(TOP / f'data_scripts/{script}.py'), run_name='__main__')
    assert e.value.code == 0 and set(OPTIONS[script].split()) <= set(re.findall(r'--[a-z-]+', capfd.readouterr().out))
    assert len((TOP / f'data_scripts/{script}.py').read_text().splitlines()) < 8   # no logic of its own


def test_words_become_arguments():
    parse = lambda *words: vars(make_parser().parse_args(words))
    args = parse('prepare', 'panda', '--data-dir', 'd', '--out', 'o', '--canvases', '512', '1024', '--quick')
    assert args.pop('command').function == 'prepare_panda'
    assert args == dict(data_dir='d', out='o', folds=5, seed=0, canvases=[512, 1024], quick=True, workers=None, progress=True)
    assert parse('convert', 'a.png', 'b.tiff', '--high', '4095')['high'] == 4095. and parse('copy', 'lessons')['folder'] == 'lessons'


def test_what_is_on_can_be_turned_off():
    parse = lambda *words: vars(make_parser().parse_args(['predict', 'run', 'slides', '--out', 'o', *words]))
    assert (args := parse())['maps'] and args['progress'] and not args['parquet']
    assert not (args := parse('--no-maps', '--no-progress'))['maps'] and not args['progress']
    assert parse('--maps', '--progress') == parse()
    for command in COMMANDS:
        switches = [a for a in command.signature().arguments if a.annotation == 'bool']
        required = [w for a in command.signature().arguments if a.default is REQUIRED for w in ([] if a.name in command.positional.split() else [f'--{a.name.replace("_", "-")}']) + ['x']]
        off = [f'--no-{a.name.replace("_", "-")}' for a in switches if a.default]
        args = vars(make_parser().parse_args([*command.words.split(), *required, *off]))
        assert not any(args[a.name] for a in switches)


@pytest.mark.parametrize('words', [['make', 'panda', '--out', 'file', '--n', 1], ['make', 'ultramnist', '--out', 'file', '--train', 1], ['prepare', 'folder', '--data-dir', 'photos', '--out', 'file'], ['convert', 'photos/train/a/x.png', 'file/x.tiff']], ids=str)
def test_a_file_where_a_folder_is_wanted(here, tmp_path, words):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'photos/train/a').mkdir(parents=True)
    Image.new('RGB', (64, 64)).save(tmp_path / 'photos/train/a/x.png')
    code, said = here(*words)
    assert code == 2 and one_sentence(said) and 'Errno' not in said and 'file' in said and 'cannot be used' in said and (tmp_path / 'file').read_text() == 'mine'


def test_a_parameter_is_given_in_either_way(here):
    assert take_parameters(['run', 'har', '-p', 'lr', '-1e-3', '-p', 'a=b=c', '-y', '{x: 1}', 'out', '-p', 'e=']) == (['run', 'har', 'out'], [('lr', '-1e-3'), ('a', 'b=c'), ('e', '')], ['{x: 1}'])
    for words in (['-p', 'fractoin', '.5'], ['-p', 'fractoin=.5']):
        code, said = here('run', 'har', *words, 'out.ipynb')
        assert code == 2 and one_sentence(said) and 'did you mean fraction?' in said
    for words in (['-p'], ['-p', 'seed'], ['-p', '=1'], ['-y'], ['-p', 'lr=-1']):
        code, said = here('run', 'har', *words)
        assert code == 2 and one_sentence(said), (words, said)


@pytest.mark.parametrize('text', ['[ab]', '{1: 2}', '', 'seed', '[[seed, 1]]', '[' * 5000, '{? [a] : 1}', '{null: 1}', '!!python/object:os.system {}', 'seed: 2020-01-01', '{seed: {a: 1}}', 'seed: [1', '\x00'])
def test_odd_yaml_ends_in_a_sentence(here, text):
    code, said = here('run', 'har', '-y', text)
    assert code == 2 and one_sentence(said), said


@pytest.mark.parametrize('cells', [[{}], [dict(cell_type='code', source='seed = 0')], [dict(source='x', metadata=None)], [dict(source=5, metadata={})], 7, ['x'], [dict(source='', metadata=dict(tags=3))], [dict(source=[1], metadata={})]])
def test_odd_notebooks_end_in_a_sentence(here, tmp_path, cells):
    (tmp_path / 'own.ipynb').write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    code, said = here('run', 'own.ipynb')
    assert code == 2 and one_sentence(said) and 'cannot be read as a notebook' in said


def test_help_answers_within_half_a_second():
    "That of every command; nothing heavy is imported for it, and what is taken is mostly Python's own start."
    words = [[], ['run'], ['doctor'], ['make'], ['prepare'], *(c.words.split() for c in COMMANDS)]
    code = f'''import contextlib, io, sys, time
from patchgd_nb.experiment.command import main
slowest = 0
for words in {words!r}:
    start, out = time.process_time(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out): main([*words, '--help'])
    except SystemExit as e: assert e.code == 0
    assert 'usage: patchgd' in out.getvalue()
    slowest = max(slowest, time.process_time() - start)
heavy = {{'torch', 'timm', 'pandas', 'numpy', 'papermill', 'pydantic', 'yaml', 'tifffile'}} & set(sys.modules)
print(not heavy, slowest < .5)'''
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, env=dict(os.environ, PYTHONPATH=str(TOP)))
    assert run.stdout.split() == ['True'] * 2, run.stdout + run.stderr


# --- how it ends

@pytest.mark.parametrize('error, code, says', [(ValueError('n=0: ask for\n1 or more.'), 2, 'patchgd: n=0: ask for 1 or more.\n'), (FileNotFoundError('there is no x: check the path.'), 2, 'there is no x'),
    (OSError(28, 'No space left on device', 'out/a.tiff'), 1, 'No space left'), (KeyboardInterrupt(), 130, 'patchgd: interrupted.\n'), (ZeroDivisionError('division by zero'), 1, 'stopped with ZeroDivisionError (division by zero).'), (MemoryError(), 1, 'stopped with MemoryError')])
def test_exit_codes(here, monkeypatch, error, code, says):
    def call(self, arguments): raise error
    monkeypatch.setattr(Command, 'call', call)
    ended, said = here('cut', '--slide', 'a.svs', '--out', 'o')
    assert ended == code and one_sentence(said) and says in said


def test_sigterm_interrupts_any_command(here, monkeypatch):
    def call(self, arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    monkeypatch.setattr(Command, 'call', call)
    assert here('copy', 'x') == (130, 'patchgd: interrupted.\n')


def test_words_that_are_not_understood(here):
    for words in (['frob'], [], ['make'], ['make', 'mnist'], ['make', 'panda'], ['make', 'panda', '--out', 'o', '--n', 'x'], ['run'], ['convert', 'a']):
        code, said = here(*words)
        assert code == 2 and 'Traceback' not in said and 'patchgd' in said
    for words in (['make', 'panda', '--out', 'o', '--n', '-3'], ['cut', '--slide', 'nothing.svs', '--out', 'o'], ['convert', 'nothing.png', 'a.tiff'], ['prepare', 'folder', '--data-dir', 'nothing', '--out', 'o'], ['doctor', '--gradients', 'nothing']):
        code, said = here(*words)
        assert code == 2 and one_sentence(said), said


FAKE = '''"""Fakes of what predicts."""
def predict(
    run: str,             # an out_dir
    folder: str,          # of images
    out: str,             # where the predictions go
    batch: int = 4,       # images at once
    uncertain: bool = False,   # over eight orientations
) -> str:
    "Predict."
    return f'{run} {folder} {out} {batch} {uncertain}'

def evaluate(
    run: str,      # an out_dir
    table: str,    # of labelled images
    data_dir: str | None = None,   # where they lie
) -> dict:
    "Evaluate."
    return dict(run=run, table=table, data_dir=data_dir)
'''

def test_predict_and_evaluate_are_wired_to_their_functions(here, tmp_path, monkeypatch):
    "To whatever arguments these have: modules of those names are put in their place."
    for name in ('predict', 'evaluate'):
        (tmp_path / f'{name}.py').write_text(FAKE)
        monkeypatch.delitem(sys.modules, f'patchgd_nb.experiment.{name}', raising=False)
    monkeypatch.setattr(patchgd_nb.experiment, '__path__', [str(tmp_path), *patchgd_nb.experiment.__path__])
    assert here('predict', 'runs/a', 'slides', '--out', 'o', '--batch', '2') == (0, 'runs/a slides o 2 False\n')
    assert here('predict', 'runs/a', 'slides')[0] == 2
    code, said = here('evaluate', 'runs/a', 't.csv')
    assert code == 0 and json.loads(said) == dict(run='runs/a', table='t.csv', data_dir=None)
    for name in ('predict', 'evaluate'):   # the fakes leave
        del sys.modules[f'patchgd_nb.experiment.{name}']
        delattr(patchgd_nb.experiment, name)


# --- the notebooks

def test_copied_notebooks_are_whole_and_ones_own_stay(here, tmp_path):
    code, said = here('copy', 'mine/lessons')
    folder = tmp_path / 'mine/lessons'
    assert code == 0 and notebook_files(folder) == notebook_files(notebooks_folder()) and f'{len(notebook_files(folder))} files copied' in said
    for path in (folder / f for f in notebook_files(folder)):   # links lead to files, all inside the folder
        if path.suffix not in ('.ipynb', '.md'): continue
        cells = json.loads(path.read_text())['cells'] if path.suffix == '.ipynb' else [dict(cell_type='markdown', source=path.read_text())]
        prose = re.sub(r'(?s)```.*?```', '', '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown'))
        links = [l.split('#')[0] for l in re.findall(r'\]\(([^)\s]+)\)', prose) if not l.startswith(('http:', 'https:', '#'))]
        for link in links: assert (path.parent / link).resolve().exists() and folder in (path.parent / link).resolve().parents, f'{path} {link}'
    (folder / '00_patches.ipynb').write_text('mine')
    (folder / '01_sampler.ipynb').unlink()
    code, said = here('copy', folder)
    assert code == 0 and '00_patches.ipynb was changed and is kept' in said and '1 files copied' in said
    assert (folder / '00_patches.ipynb').read_text() == 'mine' and (folder / '01_sampler.ipynb').exists()
    assert here('copy', folder / '00_patches.ipynb')[0] == 2


def test_ones_own_notebook_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_notebook('slides').parent == find_notebook('train_photos').parent == notebooks_folder()
    (tmp_path / 'train_slides.ipynb').write_text('{}')
    assert find_notebook('slides') == Path('train_slides.ipynb')


# --- slides and photographs of one's own

def test_splits_follow_the_table():
    rows = pd.DataFrame(dict(image_id=list('abcd'), fold=list('0011'), split=['train', 'train', 'val', 'test'], label=[0, 2, 2, 0]))
    rows['class'] = ['x', 'z', 'z', 'x']
    assert [list(p.image_id) for p in split_by_fold(rows, 1)] == [['a', 'b'], ['c', 'd']]
    assert [list(p.image_id) for p in split_by_name(rows)] == [['a', 'b'], ['c']] and class_names(rows) == ['x', 'class 1', 'z']
    for wrong in (lambda: split_by_fold(rows, 2), lambda: split_by_fold(rows.assign(fold='x'), 0), lambda: split_by_fold(rows.drop(columns='fold'), 0), lambda: split_by_name(rows[:2]), lambda: split_by_name(rows.drop(columns='split')), lambda: class_names(rows[:1])):
        with pytest.raises(ValueError, match='[.:]'): wrong()


def test_a_row_without_a_class_makes_none(tmp_path):
    for name in 'ab': Image.new('RGB', (8, 8)).save(tmp_path / f'{name}.png')
    (tmp_path / 'images.csv').write_text('image_id,path,class\na,a.png,cat\nb,b.png,dog\nc,a.png,\n')
    rows = read_images(tmp_path / 'images.csv', tmp_path, 'skip', tmp_path / 'bad.csv')
    assert list(rows.label) == [0, 1] and class_names(rows) == ['cat', 'dog']


SMALL = dict(train_photos=dict(n_photos=16, image_size=96, patch_size=32, epochs=1, batch_size=4), train_slides=dict(n_slides=12, image_size=256, epochs=1, batch_size=2))

@pytest.mark.executes('train_photos', 'train_slides')
@pytest.mark.parametrize('name', SMALL)
def test_experiments_on_ones_own_images(tmp_path, monkeypatch, name):
    "Every cell, in this process: classes from the table, figures by class, and a second run on the folder that the first one made."
    monkeypatch.chdir(tmp_path)
    assert len(json.loads((TOP / f'nbs/{name}.ipynb').read_text())['cells']) < 25

    def run(**changes): return run_cells(name, **SMALL[name] | changes)

    first = run(out_dir=str(tmp_path / 'a'))
    summary, record = (json.loads((tmp_path / f'a/{file}.json').read_text()) for file in ('results', 'run'))
    assert record['outcome'] == 'finished' and list(record['results']) == ['PatchGD'] and 0 <= record['results']['PatchGD']['accuracy'] <= 1
    assert list(summary['by_class']) == first['classes'] == sorted(first['classes']) and len(first['classes']) == (4 if 'photos' in name else 6)
    p = first['p']
    if name == 'train_slides': return
    rows = pd.read_csv(p.table_path)
    two = rows[rows['class'].isin(['one', 'two'])]
    two.to_csv(tmp_path / 'two.csv', index=False)
    second = run(out_dir=str(tmp_path / 'b'), data_dir=str(p.folder), table=str(tmp_path / 'two.csv'))
    assert second['classes'] == ['one', 'two'] and not (tmp_path / 'b' / p.example.name).exists()


# --- conversion

RNG = np.random.default_rng(0)
GREY, COLOUR = RNG.integers(0, 65536, (70, 90), dtype=np.uint16), RNG.integers(0, 65536, (3, 70, 90), dtype=np.uint16)

@pytest.mark.parametrize('options', [dict(), dict(compression='zlib', rowsperstrip=7), dict(rowsperstrip=7), dict(tile=(32, 32)), dict(tile=(32, 48), compression='lzw', predictor=True), dict(byteorder='>'), dict(byteorder='>', compression='zlib'), dict(bigtiff=True)], ids=str)
def test_any_layout_of_numbers_is_unpacked_to_the_bit(tmp_path, options):
    "Grey, planes, and colours side by side, in strips, tiles and in one piece: the upper eight of sixteen bits."
    for pixels, layout, wanted in ((GREY, dict(photometric='minisblack'), np.repeat(GREY[..., None], 3, 2)), (GREY, dict(photometric='miniswhite'), np.repeat(65535 - GREY[..., None], 3, 2)),
                                   (COLOUR, dict(photometric='rgb', planarconfig='separate'), np.moveaxis(COLOUR, 0, 2)), (np.moveaxis(COLOUR, 0, 2), dict(photometric='rgb'), np.moveaxis(COLOUR, 0, 2))):
        path = tmp_path / 'in.tif'
        kw = {k: v for k, v in options.items() if k not in ('byteorder', 'bigtiff')}
        with tifffile.TiffWriter(path, byteorder=options.get('byteorder'), bigtiff=options.get('bigtiff', False)) as tif: tif.write(np.ascontiguousarray(pixels), **layout, **kw)
        with tifffile.TiffFile(path) as tif: image, said = unpack_page(tif, tif.pages[0], tmp_path / 'raw')
        assert (image.read(0, 0, 70, 90) == wanted >> 8).all() and f'{pixels.min()} to {pixels.max()}' in said


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_picture_lies_as_it_is_to_be_shown(tmp_path, orientation):
    from PIL import ImageOps
    pixels = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / 'in.tif', pixels, photometric='rgb', extratags=[(274, 3, 1, orientation, True)])
    with tifffile.TiffFile(tmp_path / 'in.tif') as tif: image, _ = unpack_page(tif, tif.pages[0], tmp_path / 'raw')
    picture = Image.fromarray(pixels)
    picture.getexif()[274] = orientation
    assert (image.read(0, 0, *image.shape) == np.asarray(ImageOps.exif_transpose(picture))).all()


def test_what_convert_writes_and_says(here, tmp_path):
    ramp = np.tile(np.linspace(0, 4095, 1100).astype(np.uint16), (1050, 1))
    tifffile.imwrite(tmp_path / 'twelve.tif', ramp, compression='zlib', rowsperstrip=5)
    code, said = here('convert', 'twelve.tif', 'sub/out.tiff', '--high', '4095')
    assert code == 0 and '1050 x 1100 pixels' in said and 'values from 0 to 4095' in said
    image = open_image('sub/out.tiff')
    assert image.levels == [(1050, 1100), (262, 275)] and image.um_per_pixel is None and not list(Path('sub').glob('*.unpacked'))
    assert abs(image.read(100, 0, 200, 1000)[..., 1].astype(int) - (ramp[100:300, :1000] >> 4)).max() <= 4
    Image.fromarray(np.uint16([[0, 65535] * 40] * 80)).save('deep.png')
    assert here('convert', 'deep.png', 'deep.tiff')[0] == 0 and open_image('deep.tiff').read(0, 0, 80, 80).std() > 100


def test_a_photograph_above_pillows_limit_is_converted(here, tmp_path, monkeypatch):
    Image.fromarray(RNG.integers(100, 110, (300, 400, 3), dtype=np.uint8)).save(tmp_path / 'big.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10_000)
    with pytest.raises(ValueError, match='more pixels than is safe|unpack'): open_image(tmp_path / 'big.png')
    assert here('convert', 'big.png', 'big.tiff')[0] == 0 and Image.MAX_IMAGE_PIXELS == 10_000
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
    assert open_image(tmp_path / 'big.tiff').shape == (300, 400)
    import psutil
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: type('Memory', (), dict(available=100_000)))
    code, said = here('convert', 'big.png', 'x.tiff')
    assert code == 2 and 'are free' in said and one_sentence(said) and not (tmp_path / 'x.tiff').exists()


def test_a_tiff_is_unpacked_at_flat_memory(tmp_path):
    "32 MB of numbers, in strips and in one piece."
    pixels = np.zeros((4000, 4000), np.uint16)
    for options in (dict(compression='zlib', rowsperstrip=64), {}):
        tifffile.imwrite(tmp_path / 'in.tif', pixels, **options)
        tracemalloc.start()
        with tifffile.TiffFile(tmp_path / 'in.tif') as tif: image, _ = unpack_page(tif, tif.pages[0], tmp_path / 'raw')
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert image.shape == (4000, 4000) and peak < 16e6


def test_what_cannot_be_meant_is_not_converted(here, tmp_path):
    tifffile.imwrite(tmp_path / 'stack.tif', np.zeros((5, 64, 64), np.uint16))
    tifffile.imwrite(tmp_path / 'float.tif', np.zeros((64, 64), np.float32))
    tifffile.imwrite(tmp_path / 'fine.tif', np.zeros((64, 64), np.uint16))
    (tmp_path / 'broken.tif').write_bytes((tmp_path / 'fine.tif').read_bytes()[:500])
    for words in (['stack.tif', 'o.tiff'], ['float.tif', 'o.tiff'], ['fine.tif', 'o.png'], ['fine.tif', 'fine.tif'], ['fine.tif', 'o.tiff', '--low', '9', '--high', '9'], ['fine.tif', 'o.tiff', '--quality', '0'], ['broken.tif', 'o.tiff'], ['.', 'o.tiff']):
        code, said = here('convert', *words)
        assert code == 2 and one_sentence(said) and not (tmp_path / 'o.tiff').exists(), (words, said)
    assert here('convert', 'float.tif', 'o.tiff', '--low', '-1', '--high', '1')[0] == 0 and open_image(tmp_path / 'o.tiff').read(9, 9, 1, 1).flatten().tolist() == [128] * 3
