"The cells of an experiment, run in this process: much sooner than by papermill, which starts a kernel for each."
import json
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / 'nbs'


def run_cells(notebook, **parameters):
    "Every code cell in turn, with other parameters; the names that they leave. An error ends it, as it ends a notebook."
    import matplotlib
    matplotlib.use('Agg')
    names = {}
    for cell in json.loads((NBS / f'{notebook}.ipynb').read_text())['cells']:
        if cell['cell_type'] != 'code': continue
        exec(''.join(cell['source']), names)
        if 'parameters' in cell['metadata'].get('tags', []): names |= parameters
    return names
