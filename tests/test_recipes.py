"Training outside the trainer: the recipes of nbs/studies/recipes, cell by cell, as they stand there."
import json, warnings
from pathlib import Path
import pytest

CELLS = json.loads((Path(__file__).resolve().parent.parent / 'nbs/studies/recipes.ipynb').read_text())['cells']


def chapters():
    "Code cells by the heading that they stand under."
    out, name = {}, 'begin'
    for cell in CELLS:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': name = next((line[3:] for line in source.splitlines()[::-1] if line.startswith('## ')), name)
        else: out.setdefault(name, []).append(source)
    return out

@pytest.mark.parametrize('name, package', [('accelerate', 'accelerate'), ('Lightning', 'lightning')])
def test_a_recipe_trains_like_the_plain_loop(name, package, tmp_path, monkeypatch):
    "The loss of the plain loop falls; other loops end with its weights, to the bit: the notebook's asserts say so."
    pytest.importorskip(package, reason=f'the recipe for {name} needs `pip install {package}`')
    monkeypatch.chdir(tmp_path)   # whatever a framework writes
    found, namespace = chapters(), {'__name__': 'recipes'}
    assert any('assert same(model, plain)' in cell for cell in found[name])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # of workers and logging intervals
        for cell in (*found['begin'], *found['A plain loop'], *found[name]): exec(cell, namespace)

def test_recipes_are_short():
    for name, cells in chapters().items():
        if name == 'begin': continue
        for cell in cells: assert len([line for line in cell.splitlines() if line.strip()]) <= 15, cell
