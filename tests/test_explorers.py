"Explorers: every control moves the figure, in Python and in a browser."
import nbformat, numpy as np, pytest
from patchgd_nb.dashboard.explorers import GradientExplorer, MemoryWall, SamplerExplorer

OTHER = {SamplerExplorer: dict(image_size=2048, patch_size=32, fraction=.3, steps=12, first='uniform', second='cover'),
         MemoryWall: dict(backbone='mobilenetv2_100', batch=3, patch_size=64, patches=16), GradientExplorer: dict(steps=1, norms='frozen_stats', fill='batch_stats')}


def shown(e): return e.text.value, [(d.name, np.asarray(d.x).tolist(), np.asarray(d.y).tolist()) for d in e.figure.data]


@pytest.mark.parametrize('kind, control', [(k, c) for k in OTHER for c in OTHER[k]], ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_each_control_moves_the_figure(kind, control):
    e = kind()
    if control == 'backbone': e.controls['batch'].value = 2
    before = shown(e)
    e.controls[control].value = OTHER[kind][control]
    assert shown(e) != before


def test_what_cannot_be_is_said():
    e = SamplerExplorer()
    before = shown(e)[1]
    e.controls['image_size'].max, e.controls['image_size'].step = 10_000, 1
    e.controls['image_size'].value = 1000
    assert 'not divisible' in e.text.value and shown(e)[1] == before


@pytest.mark.browser
def test_in_jupyterlab(lab, page):
    code = 'from patchgd_nb.dashboard import SamplerExplorer, MemoryWall, GradientExplorer\nexplorers = [SamplerExplorer(), MemoryWall(), GradientExplorer()]\nfor e in explorers: display(e.box)'
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)], metadata={'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}), lab.root / 'explore.ipynb')
    lab.open(page, 'explore.ipynb')
    lab.start(page)
    assert lab.finished(page) == []
    text, curve = page.locator('.widget-html-content'), page.locator('.js-plotly-plot')
    curve.nth(2).wait_for(timeout=60_000)
    paths = lambda i: curve.nth(i).locator('path.js-line').evaluate_all('ps => ps.map(p => p.getAttribute("d")).join()')
    def follows(i, move):
        "After `move` both the curves and the text of explorer `i` are others."
        before, caption = paths(i), text.nth(i).inner_text()
        move()
        for _ in range(300):
            if paths(i) != before and text.nth(i).inner_text() != caption: return
            page.wait_for_timeout(100)
        raise AssertionError(f'explorer {i} did not follow')
    def slide(name, value):
        readout = page.locator('.widget-slider', has_text=name).locator('.widget-readout').first
        readout.fill(value); readout.press('Enter')
    follows(0, lambda: slide('Fraction', '0.3'))
    follows(0, lambda: page.get_by_label('against').first.select_option('cover'))
    follows(1, lambda: slide('Batch', '4'))
    follows(1, lambda: page.get_by_label('Backbone').first.select_option('resnet18'))
    follows(2, lambda: page.get_by_label('Inner steps').last.select_option('1'))
