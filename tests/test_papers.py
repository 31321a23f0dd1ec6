"The papers' tables: rows, their sources, and the one place where the papers' own figures are entered."
from dataclasses import replace
from pathlib import Path
import pandas as pd
import pytest
from patchgd_nb.experiment.paper_figures import COLUMNS, blank_figures, compare, read_figures
from patchgd_nb.experiment.presets import CHOSEN, CODE, PRESETS, QUOTED, choose_rows, covering_rows, make_tiny, sources

FIGURES = Path(__file__).resolve().parent.parent / 'nbs/studies/paper_figures.csv'


def test_every_row_has_a_place_for_the_papers_figure():
    "The table has a line for each row and metric, and no other; what is entered has a source."
    table = pd.read_csv(FIGURES, dtype=str, keep_default_na=False)
    assert table[COLUMNS[:3]].values.tolist() == blank_figures()[COLUMNS[:3]].values.tolist()
    assert (table.source != '').ge(table.value != '').all()
    assert len(read_figures()) == (table.value != '').sum()


def test_the_papers_settings_are_the_defaults():
    row = PRESETS['ablation_fraction']['fraction 1/8']
    assert (row.optimizer, row.lr, row.epochs, row.warmup_epochs, row.image_size, row.patch_size, row.fraction) == ('adam', 1e-3, 100, 2, 512, 32, 1/8)
    source = sources(row).source
    assert all(source[n] == QUOTED for n in ('optimizer', 'lr', 'epochs', 'warmup_epochs')) and all(source[n] == CODE for n in ('image_size', 'patch_size', 'fraction'))
    assert source['latent_dim'] == CHOSEN   # what is not known says so


def test_the_tables_have_what_the_papers_compare():
    panda = PRESETS['panda'].rows
    cells = {(r.image_size, r.memory_budget, r.method) for r in panda if r.backbone == 'resnet50'}
    assert cells >= {(s, b, m) for s in (512, 2048, 4096) for b in ('4GB', '16GB', '24GB') for m in ('PatchGD', 'whole', 'whole, extended head')}
    for name in ('panda', 'ultramnist', 'tcga', 'imagenet'): assert len({r.backbone for r in PRESETS[name].rows}) == 4
    assert {r.image_size for r in PRESETS['ultramnist'].rows} == {512, 4000}


@pytest.mark.parametrize('name', PRESETS)
def test_a_few_rows_cover_every_value(name):
    rows = PRESETS[name].rows
    for setting in ('method', 'backbone', 'image_size', 'memory_budget', 'fraction', 'head', 'latent_dim', 'inner_steps', 'accumulate'):
        assert {getattr(r, setting) for r in covering_rows(rows)} == {getattr(r, setting) for r in rows}


def test_what_does_not_fit_and_what_did_not_run():
    preset = PRESETS['panda']
    table = compare(preset, {preset.rows[0].name: dict(outcome='does not fit')}, read_figures())
    assert table['accuracy', 'here'].tolist()[:2] == ['does not fit', 'not measured yet']


def test_whole_images_that_do_not_fit_are_no_error(tmp_path):
    from patchgd_nb.experiment.study_run import run_rows
    row = make_tiny(PRESETS['panda']['4096, 4GB, whole'])
    rows = [replace(row, name=n, memory_budget=b) for n, b in (('little', '2MB'), ('enough', '256MB'))]
    results = run_rows(rows, tmp_path)
    assert results['little']['outcome'] == 'does not fit' and results['enough']['outcome'] == 'finished' and results['enough']['batch'] == 4


def test_patches_fit_where_the_batch_does_not(tmp_path):
    "With a smaller budget the batch shrinks, then the fraction; then nothing fits."
    from patchgd_nb.experiment.study_data import open_data
    from patchgd_nb.experiment.study_run import fit_row, make_row_model
    row = replace(make_tiny(PRESETS['imagenet'].rows[0]), head='smaller', fraction=1.)
    data = open_data(row, None, tmp_path, 16)
    model = make_row_model(row, data)
    found = [fit_row(replace(row, memory_budget=b), model, data) for b in ('512MB', '32MB', '16MB', '1MB')]
    assert found[-1] is None and found[0].batch_size == 4 and found[0].fraction == 1
    assert found[1].batch_size < 4 or found[1].fraction < 1
    assert found[2].batch_size <= found[1].batch_size and found[2].fraction <= found[1].fraction


def test_names_of_rows_are_checked():
    with pytest.raises(ValueError, match='is not a row of the table panda: there are'): choose_rows(PRESETS['panda'], 'tiny', ['8192'])
