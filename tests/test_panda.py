"The cohort: Kaggle's layout, the same bytes for any number of processes, nothing in a thumbnail; folders that are wrong."
import subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest, tifffile, torch
from patchgd_nb.biopsy import INK, PATTERNS, SPREAD, draw_biopsy, glands, spread
from patchgd_nb.panda import COLUMNS, PandaSlides, Shrunk, cut_regions, make_mini_panda, plan_cohort, read_panda, split_folds, turn
from patchgd_nb.patches import PatchGrid

TOP = Path(__file__).resolve().parent.parent


def slides_of(folder): return {p.name: p.read_bytes() for p in sorted((folder / 'train_images').iterdir())}


def test_layout_is_kaggles(cohort):
    rows = pd.read_csv(cohort / 'train.csv')
    assert list(rows) == COLUMNS == ['image_id', 'data_provider', 'isup_grade', 'gleason_score']
    assert sorted(p.name for p in cohort.iterdir()) == ['train.csv', 'train_images']
    assert sorted(slides_of(cohort)) == sorted(f'{i}.tiff' for i in rows.image_id)
    assert set(rows.data_provider) == {'karolinska', 'radboud'} and rows.isup_grade.value_counts().eq(4).all()
    isup = {'0+0': 0, 'negative': 0, '3+3': 1, '3+4': 2, '4+3': 3, '4+4': 4, '3+5': 4, '5+3': 4, '4+5': 5, '5+4': 5, '5+5': 5}
    assert [isup[s] for s in rows.gleason_score] == rows.isup_grade.tolist()


def test_slides_are_pyramids_of_jpeg_tiles(cohort):
    for path in (cohort / 'train_images').iterdir():
        with tifffile.TiffFile(path) as tif:
            assert len(tif.pages) == 3 and {p.tile for p in tif.pages} == {(512, 512)} and {p.compression.name for p in tif.pages} == {'JPEG'}
            assert max(tif.pages[0].shape) >= 1024
            assert [p.shape[0] for p in tif.pages] == [tif.pages[0].shape[0] // f for f in (1, 4, 16)]
            tissue = (tif.pages[0].asarray().min(2) < 228).mean()
            assert .1 < tissue < .5


@pytest.mark.parametrize('size', [2048, 4096])
def test_larger_slides_by_option(tmp_path, size):
    make_mini_panda(tmp_path, n=1, size=size, workers=1, progress=False)
    with tifffile.TiffFile(next((tmp_path / 'train_images').iterdir())) as tif: assert max(tif.pages[0].shape) == size


def test_the_same_bytes_for_any_number_of_processes(cohort, tmp_path):
    again = make_mini_panda(tmp_path / 'again', n=24, seed=7, workers=1, progress=False)
    assert slides_of(again) == slides_of(cohort) and (again / 'train.csv').read_bytes() == (cohort / 'train.csv').read_bytes()


def test_an_interrupted_cohort_goes_on(cohort, tmp_path):
    folder = make_mini_panda(tmp_path / 'part', n=24, seed=7, workers=2, progress=False)
    paths = sorted((folder / 'train_images').iterdir())
    for p in paths[::5]: p.unlink()
    (folder / 'train.csv').unlink()
    paths[1].with_name(paths[1].name + '.part').write_bytes(b'half of a slide')
    kept = {p: p.stat().st_mtime_ns for p in paths if p.exists()}
    make_mini_panda(folder, n=24, seed=7, workers=2, progress=False)
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert {k: v for k, v in slides_of(folder).items() if k.endswith('.tiff')} == slides_of(cohort)
    assert len(read_panda(folder)) == 24


def test_script_makes_the_same(cohort, tmp_path):
    subprocess.run([sys.executable, TOP / 'data_scripts/make_mini_panda.py', '--out', tmp_path / 'c', '--n', '6', '--seed', '7'], check=True, timeout=300, capture_output=True)
    assert slides_of(tmp_path / 'c') == {k: v for k, v in slides_of(cohort).items() if k in slides_of(tmp_path / 'c')} and len(slides_of(tmp_path / 'c')) == 6


def test_cohorts_of_different_seeds_share_nothing():
    a, b = plan_cohort(60, 0), plan_cohort(60, 1)
    assert not set(a.image_id) & set(b.image_id) and not set(a.seed) & set(b.seed)
    assert a.isup_grade.value_counts().eq(10).all()


def test_glands_differ_in_shape_alone():
    for p in PATTERNS:
        for g in glands(p):
            assert g.sum() == pytest.approx(INK, abs=.01) and spread(g) == pytest.approx(SPREAD, abs=.5)
            assert 0 <= g.min() and g.max() < 1.35
    assert min(np.abs(glands(p).mean(0) - glands(q).mean(0)).max() for p in PATTERNS for q in PATTERNS if p < q) > .02


def test_a_thumbnail_does_not_tell_the_pattern():
    "A classifier on colours, their variation, and on a thumbnail's texture does no better than chance in cross-validation."
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    def features(seed, pattern):
        b = draw_biopsy(seed, pattern, pattern)
        h, w = (s // 16 * 16 for s in b.tissue.shape)
        inside = b.tissue[:h, :w].reshape(h // 16, 16, w // 16, 16).all((1, 3))
        small = b.pixels[:h, :w].reshape(h // 16, 16, w // 16, 16, 3).mean((1, 3))[inside]
        return [*b.pixels[b.tissue].mean(0), *small.mean(0), *small.std(0), *np.percentile(small[:, 1], [5, 95])]
    patterns = [3, 4, 5] * 14
    x = [features(900 + i, p) for i, p in enumerate(patterns)]
    score = cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), x, patterns, cv=5).mean()
    assert score < .55, score     # chance is 0.33, its standard error here 0.07


def test_grade_follows_the_areas():
    for seed, (a, b) in enumerate([(3, 4), (4, 3), (4, 5), (3, 5)]):
        slide = draw_biopsy(seed, a, b)
        share = {p: (slide.pattern[slide.tissue] == p).mean() for p in (a, b, 0)}
        assert share[a] > 1.2 * share[b] > 0 and not slide.pattern[~slide.tissue].any()


BAD = [('', 'train.csv'), ('image_id,grade\na,1', 'isup_grade'), ('image_id,isup_grade\n', 'no slides'), ('image_id,isup_grade\na,6', "'6' of a"), ('image_id,isup_grade\na,-1', "'-1'"), ('image_id,isup_grade\na,2.5', "'2.5'"),
       ('image_id,isup_grade\na,', "''"), ('image_id,isup_grade\na,high', "'high'"), ('image_id,isup_grade\n../a,1', '../a'), ('image_id,isup_grade\n.hidden,1', '.hidden'), ('image_id,isup_grade\na,1\na,2', 'a more than once'),
       ('image_id,isup_grade\na,1', 'a.tiff'), ('image_id,isup_grade\na,1,9,9\nb,"2', 'train.csv'), ('\0\0\xff', 'train.csv')]


@pytest.mark.parametrize('text, says', BAD)
def test_a_folder_that_is_wrong_is_refused_in_one_sentence(tmp_path, text, says):
    (tmp_path / 'train.csv').write_bytes(text.encode('latin1'))
    with pytest.raises((ValueError, FileNotFoundError)) as e: read_panda(tmp_path)
    assert says in str(e.value) and '\n' not in str(e.value) and 'train.csv' in str(e.value)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'): read_panda(tmp_path / 'nowhere')


def test_a_line_number_is_the_files(tmp_path):
    (tmp_path / 'train.csv').write_text('image_id,isup_grade\na,1\nb,2\nc,7\n')
    with pytest.raises(ValueError, match='line 4'): read_panda(tmp_path)


@pytest.mark.parametrize('data', [b'', b'II*\0 but no more'], ids=['empty', 'cut'])
def test_an_unreadable_slide_stops_before_training(cohort, tmp_path, data):
    rows = read_panda(cohort)
    (tmp_path / 'bad.tiff').write_bytes(data)
    rows.loc[3, 'path'] = tmp_path / 'bad.tiff'
    with pytest.raises(ValueError, match='bad.tiff'): PandaSlides(rows, PatchGrid(1024, 64))


@pytest.mark.parametrize('folds', [2, 3, 5])
def test_every_slide_is_held_out_once_and_grades_are_shared_out(cohort, folds):
    rows = read_panda(cohort)
    held = [split_folds(rows, f, folds, seed=3) for f in range(folds)]
    assert sorted(i for _, v in held for i in v.image_id) == sorted(rows.image_id)
    for train, valid in held:
        assert not set(train.image_id) & set(valid.image_id) and len(train) + len(valid) == len(rows)
        assert folds > 3 or valid.isup_grade.value_counts().reindex(range(6), fill_value=0).between(4 // folds, -(-4 // folds)).all()
    assert split_folds(rows, 0, folds, 3)[1].equals(held[0][1])


@pytest.mark.parametrize('fold, folds', [(3, 3), (-1, 3), (0, 99)])
def test_impossible_folds_are_refused(cohort, fold, folds):
    with pytest.raises(ValueError): split_folds(read_panda(cohort), fold, folds)


def test_items_are_the_canvas_where_there_is_content(cohort):
    rows, grid = read_panda(cohort).iloc[:4], PatchGrid(1024, 64)
    slides = PandaSlides(rows, grid)
    for i in range(4):
        image, grade, content, name = slides[i]
        canvas = torch.from_numpy(slides.canvases[i].read(0, 0, 1024, 1024)).permute(2, 0, 1)
        held = (content > 0).nonzero().flatten()
        assert torch.equal(grid.extract(image[None], held), grid.extract(canvas[None], held))
        assert (grid.extract(image[None], (content == 0).nonzero().flatten()) == 255).all()
        assert (grade, name) == (rows.isup_grade[i], rows.image_id[i])


def test_content_turns_with_its_image(cohort):
    grid, slides = PatchGrid(1024, 64), PandaSlides(read_panda(cohort).iloc[:2], PatchGrid(1024, 64), augment=True)
    turned = set()
    for _ in range(24):
        image, _, content, _ = slides[0]
        dark = (grid.extract(image[None], range(256)) < 255).flatten(2).any(2)[0]
        assert torch.equal(dark, content > 0)
        turned.add(tuple(content.tolist()))
    assert len(turned) == 8


def test_a_square_has_eight_ways_to_lie():
    picture = torch.arange(16).reshape(1, 4, 4)
    assert len({tuple(turn(h, picture)[0].flatten().tolist()) for h in range(8)}) == 8


def test_shrunk_slides_are_means_by_area(cohort):
    slides = PandaSlides(read_panda(cohort).iloc[:2], PatchGrid(1024, 64))
    image, grade = Shrunk(slides, 128)[1]
    expected = torch.from_numpy(slides.pixels(1)).float().reshape(128, 8, 128, 8, 3).mean((1, 3)).permute(2, 0, 1)
    assert (image.float() - expected).abs().max() <= .51 and grade == slides.rows.isup_grade[1]


def test_regions_of_a_slide(tmp_path):
    from patchgd_nb.images import write_pyramid
    write_pyramid(tmp_path / 'large.tiff', draw_biopsy(3, 3, 4, size=2048).pixels)
    folder = cut_regions(tmp_path / 'large.tiff', tmp_path / 'regions', n=12, size=400)
    rows = pd.read_csv(folder / 'train.csv')
    assert rows.sort_values('tissue').isup_grade.tolist() == sorted([0, 1, 2, 3, 4, 5] * 2) and len(read_panda(folder)) == 12
    with pytest.raises(ValueError, match='too small'): cut_regions(tmp_path / 'large.tiff', tmp_path / 'no', n=6, size=4096)
