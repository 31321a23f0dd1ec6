"The cohort: Kaggle's layout, the same bytes for any number of processes, nothing in a thumbnail; folders that are wrong."
import os, signal, subprocess, sys, time
from pathlib import Path
import shutil
import numpy as np, pandas as pd, pytest, tifffile, torch
from patchgd_nb.datasets.biopsy import GLAND_INK, GLAND_SPREAD, PATTERNS, draw_biopsy, draw_glands, ink_spread
from patchgd_nb.datasets.panda import COLUMNS, GRADE_OF_SCORE, cut_regions, make_mini_panda, score_problem, plan_cohort, prepare_panda, read_panda, split_folds
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
    alone, together = (make_mini_panda(tmp_path / str(workers), n=4, seed=7, workers=workers, progress=False) for workers in (1, 2))
    assert slides_of(alone) == slides_of(together) and (alone / 'train.csv').read_bytes() == (together / 'train.csv').read_bytes()
    assert slides_of(alone).items() <= slides_of(cohort).items()


def test_an_interrupted_cohort_goes_on(cohort, tmp_path):
    folder = shutil.copytree(cohort, tmp_path / 'part')
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
    subprocess.run([sys.executable, TOP / 'data_scripts/make_mini_panda.py', '--out', tmp_path / 'c', '--n', '3', '--seed', '7'], check=True, timeout=300, capture_output=True)
    assert slides_of(tmp_path / 'c') == {k: v for k, v in slides_of(cohort).items() if k in slides_of(tmp_path / 'c')} and len(slides_of(tmp_path / 'c')) == 3


def test_a_cohort_of_an_earlier_drawing_is_drawn_anew(cohort, tmp_path):
    "Its names told only seed and number: its slides must neither be kept nor named in the table."
    rows = plan_cohort(2, 7)
    for name in ('mini007_00000', 'mini007_00001'):
        (tmp_path / 'train_images').mkdir(exist_ok=True)
        (tmp_path / f'train_images/{name}.tiff').write_bytes(b'an old slide')
    rows.assign(image_id=['mini007_00000', 'mini007_00001'])[COLUMNS].to_csv(tmp_path / 'train.csv', index=False)
    make_mini_panda(tmp_path, n=2, seed=7, workers=1, progress=False)
    table = read_panda(tmp_path)
    assert [p.read_bytes() for p in table.path] == list(slides_of(cohort).values())[:2]


def test_cohorts_of_different_seeds_share_nothing():
    a, b = plan_cohort(60, 0), plan_cohort(60, 1)
    assert not set(a.image_id) & set(b.image_id) and not set(a.seed) & set(b.seed)
    assert a.isup_grade.value_counts().eq(10).all()


def test_glands_differ_in_shape_alone():
    for p in PATTERNS:
        for g in draw_glands(p):
            assert g.sum() == pytest.approx(GLAND_INK, abs=.01) and ink_spread(g) == pytest.approx(GLAND_SPREAD, abs=.5)
            assert 0 <= g.min() and g.max() < 1.35
    assert min(np.abs(draw_glands(p).mean(0) - draw_glands(q).mean(0)).max() for p in PATTERNS for q in PATTERNS if p < q) > .02


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


def test_several_cores_put_content_into_a_third_of_the_canvas(cohort):
    "Three to five cores beside each other on a slide that is nearly square."
    from scipy.ndimage import label
    from patchgd_nb.images.slides import SlideDataset
    share = [(c > 0).float().mean().item() for c in SlideDataset(read_panda(cohort), PatchGrid(1024, 64)).content]
    assert .27 < np.mean(share) < .36 and .2 < min(share) and max(share) < .45
    slides = [draw_biopsy(seed, 3, 4) for seed in range(6)]
    assert all(.85 <= s.tissue.shape[1] / s.tissue.shape[0] <= 1 for s in slides)
    assert {label(s.tissue)[1] for s in slides} == {3, 4, 5}


def test_glass_and_canvas_are_one_colour(cohort):
    "A patch of glass is the same picture as a patch without a slide: no edge of a slide shows."
    from patchgd_nb.images.slides import SlideDataset
    slide, grid = draw_biopsy(3, 4, 5, size=512), PatchGrid(1024, 64)
    assert (slide.pixels[~slide.tissue] == 255).all() and slide.pixels[slide.tissue].min(1).max() < 228
    data = SlideDataset(read_panda(cohort).head(2), grid)
    for i in range(2):
        patches = grid.extract(torch.from_numpy(data.pixels(i)).permute(2, 0, 1)[None], range(len(grid)))[0]
        blank = patches[data.content[i] == 0].flatten(1).float()
        assert blank.mean(1).min() > 254.5 and (blank == 255).all(1).float().mean() > .9   # JPEG rings beside tissue


def test_amount_and_colour_do_not_tell_the_grade():
    "Tissue, cores and colours of a cohort's slides, small ones, and the ink that a thumbnail shows: a classifier of six grades does no better than chance."
    from scipy.ndimage import label
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    def features(row):
        b = draw_biopsy(row.seed, row.primary, row.secondary, 512, row.data_provider)
        h, w = (n // 8 * 8 for n in b.tissue.shape)
        small, inside = (x[:h, :w].reshape(h // 8, 8, w // 8, 8, -1) for x in (b.pixels, b.tissue))
        small = small.mean((1, 3))[inside.all((1, 3))[..., 0]]     # shrunk by 8, where the shapes are gone
        return [b.tissue.mean(), label(b.tissue)[1], *b.pixels[b.tissue].mean(0), *small.std(0), *np.percentile(small[:, 1], [5, 95])]
    plan = plan_cohort(120, 11)
    x = [features(row) for row in plan.itertuples()]
    score = cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)), x, plan.isup_grade, cv=5).mean()
    assert score < .27, score     # chance is 0.17, its standard error here 0.03
    assert abs(np.corrcoef([f[0] for f in x], plan.isup_grade)[0, 1]) < .3


def test_grade_follows_the_areas():
    for seed, (a, b) in enumerate([(3, 4), (4, 3), (4, 5), (3, 5)]):
        slide = draw_biopsy(seed, a, b)
        share = {p: (slide.pattern[slide.tissue] == p).mean() for p in (a, b, 0)}
        assert share[a] > 1.2 * share[b] > 0 and not slide.pattern[~slide.tissue].any()


BAD = [('', 'train.csv'), ('image_id,grade\na,1', 'isup_grade'), ('image_id,isup_grade\n', 'no images'), ('image_id,isup_grade\na,6', "'6' of a"), ('image_id,isup_grade\na,-1', "'-1'"), ('image_id,isup_grade\na,2.5', "'2.5'"),
       ('image_id,isup_grade\na,', "''"), ('image_id,isup_grade\na,high', "'high'"), ('image_id,isup_grade\n../a,1', '../a'), ('image_id,isup_grade\n.hidden,1', '.hidden'), ('image_id,isup_grade\na,1\na,2', 'a is named more than once'),
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


def test_regions_of_a_slide(tmp_path):
    from patchgd_nb.images.readers import write_pyramid
    write_pyramid(tmp_path / 'large.tiff', draw_biopsy(3, 3, 4, size=2048).pixels)
    folder = cut_regions(tmp_path / 'large.tiff', tmp_path / 'regions', n=12, size=400)
    rows = pd.read_csv(folder / 'train.csv')
    assert rows.sort_values('tissue').isup_grade.tolist() == sorted([0, 1, 2, 3, 4, 5] * 2) and len(read_panda(folder)) == 12
    with pytest.raises(ValueError, match='too small'): cut_regions(tmp_path / 'large.tiff', tmp_path / 'no', n=6, size=4096)


@pytest.fixture
def wrong(cohort, tmp_path):
    "A folder with one of each: a missing slide, a cut one, a broken tile, a double, an odd pair, a name twice, a label and a name that are none."
    folder = tmp_path / 'wrong'
    shutil.copytree(cohort, folder)
    rows, images = pd.read_csv(folder / 'train.csv', dtype=str), folder / 'train_images'
    names = rows.image_id.tolist()
    (images / f'{names[0]}.tiff').unlink()
    (images / f'{names[1]}.tiff').write_bytes((images / f'{names[1]}.tiff').read_bytes()[:-4000])
    with tifffile.TiffFile(images / f'{names[2]}.tiff') as tif: page = tif.pages[0]; start, n = page.dataoffsets[-1], page.databytecounts[-1]
    data = bytearray((images / f'{names[2]}.tiff').read_bytes())
    data[start:start + n] = bytes(n)
    (images / f'{names[2]}.tiff').write_bytes(data)
    (images / f'{names[4]}.tiff').write_bytes((images / f'{names[3]}.tiff').read_bytes())
    rows.loc[5, 'gleason_score'] = '3+3' if rows.isup_grade[5] != '1' else '4+4'
    more = pd.DataFrame([(names[6], 'radboud', '1', '3+3'), ('../../etc/passwd', 'radboud', '1', '3+3'), ('seven', 'radboud', '7', '3+3')], columns=COLUMNS)
    pd.concat([rows, more]).to_csv(folder / 'train.csv', index=False)
    return folder, names


def test_everything_wrong_with_a_folder_is_reported(wrong, tmp_path):
    folder, names = wrong
    result = prepare_panda(folder, tmp_path / 'out', folds=2, workers=2, progress=False)
    bad = pd.read_csv(tmp_path / 'out/problems.csv', dtype=str).set_index('line').problem
    lines = {'2': 'is missing', '3': 'ends before its last tile', '4': 'broken tile', '6': 'same file', '7': 'gleason_score', '26': 'more than once', '27': 'passwd', '28': "'7' of seven"}
    assert set(bad.index) == set(lines) and all(says in bad[line] and '\n' not in bad[line] for line, says in lines.items())
    assert (result['slides'], result['usable']) == (27, 19) and set(read_panda(folder, tmp_path / 'out/train.csv').image_id) == {n for i, n in enumerate(names) if i not in (0, 1, 2, 4, 5)}
    quick = prepare_panda(folder, tmp_path / 'quick', folds=2, quick=True, workers=1, progress=False)
    assert quick['usable'] == 20      # the broken tile is the one that is not seen


def test_skipping_rows_of_a_folder(wrong, tmp_path):
    folder, names = wrong
    with pytest.raises(ValueError, match='more than once'): read_panda(folder)
    rows = read_panda(folder, on_bad='skip', bad_list=tmp_path / 'list.csv')
    assert len(rows) == 23 and 'passwd' in (tmp_path / 'list.csv').read_text() and len(pd.read_csv(tmp_path / 'list.csv', header=None)) == 4


def test_folds_and_colours_of_a_prepared_folder(cohort, tmp_path):
    result = prepare_panda(cohort, tmp_path / 'a', folds=4, seed=3, canvases=[512], workers=2, progress=False)
    rows = read_panda(cohort, tmp_path / 'a/train.csv')
    assert result['usable'] == 24 and (rows.groupby(['fold', 'isup_grade']).size() == 1).all()
    for f in range(4): assert set(split_folds(rows, f, 4)[1].image_id) == set(split_folds(read_panda(cohort), f, 4, seed=3)[1].image_id)
    pixels = np.concatenate([p[p.min(2) < 243] for p in (tifffile.imread(f, key=2) for f in rows.path)]) / 255
    assert np.allclose(pixels.mean(0), result['tissue_mean'], atol=.02) and np.allclose(pixels.std(0), result['tissue_std'], atol=.02)
    small = read_panda(tmp_path / 'a/canvas_512')
    assert len(small) == 24 and tifffile.imread(small.path[0], key=0).shape == (512, 512, 3)


def killed_and_whole(tmp_path, command, times, wait):
    "Run a script to the end in one folder; in another kill it `times` times at random first. The files of both."
    rng = np.random.default_rng(0)
    for _ in range(times):
        p = subprocess.Popen(command(tmp_path / 'killed'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(rng.uniform(*wait))
        try: os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        p.wait()
    for out in ('killed', 'whole'): subprocess.run(command(tmp_path / out), check=True, capture_output=True, timeout=300)
    return [{p.relative_to(tmp_path / out): p.read_bytes().replace(str(tmp_path / out).encode(), b'') for p in sorted((tmp_path / out).rglob('*')) if p.is_file()} for out in ('killed', 'whole')]


@pytest.mark.slow
def test_preparing_killed_ten_times_ends_the_same(cohort, tmp_path):
    killed, whole = killed_and_whole(tmp_path, lambda out: [sys.executable, TOP / 'data_scripts/prepare_panda.py', '--data-dir', cohort, '--out', out, '--folds', '3', '--canvases', '1024', '512'], 10, (4, 9))
    assert killed == whole


@pytest.mark.slow
def test_the_cohort_killed_ten_times_ends_the_same(tmp_path):
    killed, whole = killed_and_whole(tmp_path, lambda out: [sys.executable, TOP / 'data_scripts/make_mini_panda.py', '--out', out, '--n', '60'], 10, (4, 7))
    assert killed == whole


@pytest.mark.parametrize('score, grade, odd', [('0+0', '0', False), ('negative', '0', False), ('3+4', '2', False), ('4+3', '2', True), ('5+5', '5', False), ('3+5', '4', False), ('9+9', '5', True), ('', '4', False), ('negative', '1', True)])
def test_scores_and_grades(score, grade, odd): assert (score_problem(score, grade) is not None) == odd
