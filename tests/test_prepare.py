"Looking through thousands of files: everything wrong is found, a kill costs nothing, patients stay on one side."
import json, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from patchgd_nb.datasets.biopsy import draw_biopsy
from patchgd_nb.images.readers import write_pyramid
from patchgd_nb.patches import PatchGrid
from patchgd_nb.images.prepare import inspect_files, prepare_folder, prepare_tcga, read_images, find_duplicates
from patchgd_nb.images.slides import SlideDataset, make_loader

TOP = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.filterwarnings('ignore:The least populated class')


def slide(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, draw_biopsy(seed, 3, 4, size=300).pixels, levels=(1,))


@pytest.mark.parametrize('key', ['patient', 'barcode', 'file', 'stem'])
def test_tcga_labels_by_any_id(tmp_path, key):
    names = [f'TCGA-{i // 2:02d}-{i // 2:04d}-01Z-00-DX{i % 2}.uuid{i}.svs' for i in range(12)]
    for i, n in enumerate(names): slide(tmp_path / f'slides/u{i}/{n}', i)
    of = dict(patient=lambda n: n[:12], barcode=lambda n: n.split('.')[0], file=lambda n: n, stem=lambda n: n[:-4])[key]
    rows = pd.DataFrame({'id': [of(n) for n in names], 'label': [('LUAD', 'LUSC')[i // 2 % 2] for i in range(12)]}).drop_duplicates()
    rows.to_csv(tmp_path / 'labels.csv', index=False)
    result = prepare_tcga(tmp_path / 'slides', tmp_path / 'labels.csv', tmp_path / 'out', folds=3, workers=1, progress=False)
    table = read_images(tmp_path / 'out/images.csv', tmp_path / 'slides')
    assert result['usable'] == 12 and result['problems'] == 0 and result['classes'] == ['LUAD', 'LUSC']
    assert (table.groupby('patient').fold.nunique() == 1).all() and set(table.fold) == {'0', '1', '2'}
    assert all(('LUAD', 'LUSC')[label] == c and int(p.name[5:7]) % 2 == label for label, c, p in zip(table.label, table['class'], table.path))


def test_tcga_by_the_script(tmp_path):
    for i in range(4): slide(tmp_path / f'slides/TCGA-00-{i:04d}-01Z.svs', i)
    (tmp_path / 'labels.csv').write_text('id,label\n' + ''.join(f'TCGA-00-{i:04d},{"ab"[i % 2]}\n' for i in range(4)))
    run = subprocess.run([sys.executable, TOP / 'data_scripts/prepare_tcga.py', '--slides', tmp_path / 'slides', '--labels', tmp_path / 'labels.csv', '--out', tmp_path / 'out', '--folds', '2'], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0 and json.loads(run.stdout)['usable'] == 4, run.stderr


def photos(tmp_path):
    for split, n in (('train', 4), ('val', 2)):
        for c in ('cat', 'dog'):
            (tmp_path / f'photos/{split}/{c}').mkdir(parents=True)
            for i in range(n): Image.fromarray(np.random.default_rng((i, n, c == 'cat')).integers(0, 256, (60 + i, 80, 3), dtype=np.uint8)).save(tmp_path / f'photos/{split}/{c}/{i}.JPEG')
    return tmp_path / 'photos'


def test_folders_of_photographs(tmp_path):
    data = photos(tmp_path)
    (data / 'train/cat/cut.JPEG').write_bytes((data / 'train/cat/0.JPEG').read_bytes()[:800])
    (data / 'train/cat/twin.JPEG').write_bytes((data / 'train/cat/1.JPEG').read_bytes())
    (data / 'val/cow').mkdir()
    (data / 'val/cow/0.JPEG').write_bytes((data / 'val/dog/0.JPEG').read_bytes())
    run = subprocess.run([sys.executable, TOP / 'data_scripts/prepare_folder.py', '--data-dir', data, '--out', tmp_path / 'out'], capture_output=True, text=True, timeout=200)
    assert run.returncode == 0 and json.loads(run.stdout)['usable'] == 12, run.stderr
    bad = pd.read_csv(tmp_path / 'out/problems.csv').set_index('image_id').problem
    assert 'cannot be decoded' in bad['train/cat/cut.JPEG'] and 'same file' in bad['train/cat/twin.JPEG'] and 'training does not have' in bad['val/cow/0.JPEG'] and len(bad) == 3
    rows = read_images(tmp_path / 'out/images.csv', data)
    train = SlideDataset(rows[rows.split == 'train'].reset_index(drop=True), PatchGrid(80, 20), background='black', blank=None)
    batch = next(iter(make_loader(train, 8)))
    assert sorted(batch[1].tolist()) == [0] * 4 + [1] * 4 and batch[2].sum(1).tolist() == [16.] * 8      # rows 0 to 3 hold a photograph of 60 to 63
    assert (batch[0][0][:, :10] == 0).all() and batch[0][0][:, 10:70].float().std() > 50


@pytest.mark.parametrize('path', ['../../etc/passwd', '/etc/passwd', 'a/../../x', 'nowhere.jpg'])
def test_paths_that_lead_out(tmp_path, path):
    (tmp_path / 'images.csv').write_text(f'image_id,path,class\na,{path},c\n')
    (tmp_path / 'data').mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match='line 2'): read_images(tmp_path / 'images.csv', tmp_path / 'data')
    with pytest.raises(ValueError, match='no image is left'): read_images(tmp_path / 'images.csv', tmp_path / 'data', 'skip', tmp_path / 'bad.csv')
    assert path in (tmp_path / 'bad.csv').read_text()


def test_a_file_that_changed_is_looked_at_again(tmp_path):
    slide(tmp_path / 'a.tiff', 0)
    assert not inspect_files([tmp_path / 'a.tiff'], tmp_path, workers=1, progress=False)[str(tmp_path / 'a.tiff')]['error']
    (tmp_path / 'a.tiff').write_bytes((tmp_path / 'a.tiff').read_bytes()[:500])
    assert 'a.tiff' in inspect_files([tmp_path / 'a.tiff'], tmp_path, workers=1, progress=False)[str(tmp_path / 'a.tiff')]['error']


def test_doubles_are_found_among_many(tmp_path):
    for i in range(9): (tmp_path / f'{i}').write_bytes(bytes([i // 2]) * 100)
    assert {p.name: q.name for p, q in find_duplicates(sorted(tmp_path.iterdir())).items()} == {'1': '0', '3': '2', '5': '4', '7': '6'}


@pytest.mark.parametrize('labels, says', [('id,label\na,x\na,y', 'line 3: a has a label already'), ('name,label\na,x', "no column 'id'"), ('', 'cannot be read')])
def test_labels_that_are_wrong(tmp_path, labels, says):
    slide(tmp_path / 's/a.svs', 0)
    (tmp_path / 'labels.csv').write_text(labels)
    with pytest.raises(ValueError, match=says): prepare_tcga(tmp_path / 's', tmp_path / 'labels.csv', tmp_path / 'out', progress=False)


def test_empty_folders_are_said(tmp_path):
    (tmp_path / 'labels.csv').write_text('id,label\na,x\n')
    with pytest.raises(FileNotFoundError, match='no slides'): prepare_tcga(tmp_path, tmp_path / 'labels.csv', tmp_path / 'out', progress=False)
    with pytest.raises(FileNotFoundError, match='no images'): prepare_folder(tmp_path, tmp_path / 'out', progress=False)
