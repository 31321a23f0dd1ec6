"The tree: notebooks, modules and README agree, notebooks are clean, nothing too large."
import ast, json, re, shutil, subprocess, sys
from pathlib import Path
import pytest

TOP = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (TOP / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
PARTS = ['nbs', 'patchgd_nb', '.ci', 'settings.ini', 'README.md']


@pytest.fixture
def copy(tmp_path):
    "The tree's sources in a folder of their own, so that commands that write leave the tree alone."
    for name in PARTS:
        skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'runs', 'data')
        if (TOP / name).is_dir(): shutil.copytree(TOP / name, tmp_path / name, ignore=skip)
        else: shutil.copy(TOP / name, tmp_path / name)
    return tmp_path


def test_the_top_level_is_short():
    "Each thing at the top is known; whatever else there is belongs into a folder."
    if not (TOP / '.git').exists(): pytest.skip('this is no checkout')
    listed = subprocess.run(['git', 'ls-files'], cwd=TOP, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    top = {name.split('/')[0] for name in listed}
    assert top == {'.ci', '.github', '.gitignore', 'CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md', 'LICENSE', 'MANIFEST.in', 'Makefile', 'README.md',
                   'data_scripts', 'docs', 'nbs', 'patchgd_nb', 'pyproject.toml', 'pytest.ini', 'settings.ini', 'setup.py', 'tests'}


def contents(folder): return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file() and '__pycache__' not in p.parts}
def command(folder, name): subprocess.run([Path(sys.executable).parent / name], cwd=folder, check=True, timeout=120)


def test_export_leaves_the_modules_unchanged(copy):
    before = contents(copy / 'patchgd_nb')
    command(copy, 'nbdev_export')
    assert contents(copy / 'patchgd_nb') == before, 'run `make clean` and commit'


def test_notebooks_are_clean(copy):
    before = contents(copy / 'nbs')
    command(copy, 'nbdev_clean')
    assert contents(copy / 'nbs') == before, 'run `make clean` and commit'


def test_readme_is_in_step_with_its_notebook(copy):
    subprocess.run([sys.executable, '.ci/readme.py'], cwd=copy, check=True, timeout=120)
    assert (copy / 'README.md').read_text() == (TOP / 'README.md').read_text(), 'run `make readme` and commit'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_notebook(path):
    "No stored errors, no orphaned widget views, no machine paths, a kernel papermill finds, at most 1 MB."
    nb = json.loads(path.read_text())
    outputs = [o for c in nb['cells'] for o in c.get('outputs', [])]
    assert not [o for o in outputs if o['output_type'] == 'error']
    assert not [o for o in outputs if 'application/vnd.jupyter.widget-view+json' in o.get('data', {})] or 'widgets' in nb['metadata']
    assert nb['metadata']['kernelspec']['name'] == 'python3'
    assert str(Path.home()) + '/' not in path.read_text() and str(TOP) not in path.read_text()
    shown = re.sub(r'base64,[^"\\\\]+', '', json.dumps(outputs))
    assert not re.findall(r'(?<![\w.:/])/(?:work|home|root|tmp|Users|var)/[\w./-]+', shown)
    assert path.stat().st_size < 1_000_000   # without its pictures: see test_texts.py


# --- inputs are not trusted

def unsafe(source):
    "Calls in a piece of Python that could run what they load."
    source = re.sub(r'(?m)^(\s*)[%!].*$', r'\1pass', source)   # magics of a notebook
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in LOADERS: out.append(f'from {node.module} import')
        if not isinstance(node, ast.Call): continue
        name, said = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        module, _, what = name.rpartition('.')
        if name in ('eval', 'exec') or what in ('read_pickle', 'unsafe_load', 'load_module', 'Unpickler', 'load_state_dict_from_url'): out.append(name)
        if module in ('np', 'numpy') and what == 'load' and said.get('allow_pickle') != 'False': out.append(name)
        if module == 'torch' and what == 'load' and said.get('weights_only') != 'True': out.append(name)
        if module in LOADERS and what in ('load', 'loads', 'open') and not ast.unparse(node).startswith('pickle.loads(pickle.dumps('): out.append(name)   # one's own, just made, is known
    return out

LOADERS = ('pickle', 'joblib', 'dill', 'cloudpickle', 'shelve', 'marshal', 'yaml', 'torch.jit', 'torch.hub')


@pytest.mark.parametrize('code', ['np.load(f)', 'numpy.load(f, allow_pickle=True)', 'torch.load(f)', 'torch.load(f, weights_only=flag)', 'pickle.load(f)', 'pickle.loads(f.read())', 'from pickle import loads', 'pd.read_pickle(f)', 'joblib.load(f)', 'yaml.load(f)', 'eval(text)', 'x = [torch.load(p) for p in paths]', '%matplotlib inline\nshelve.open(f)'])
def test_what_could_run_is_found(code): assert unsafe(code)


def test_nothing_loads_pickles():
    "In no module, script or notebook; figures that run while a file is read are no figures."
    for code in ('np.load(f, allow_pickle=False)', 'torch.load(f, weights_only=True)', 'json.load(f)', 'Trace.load(f)', 'pickle.loads(pickle.dumps(image))'): assert not unsafe(code)
    sources = {p: p.read_text() for folder in ('patchgd_nb', 'data_scripts', 'docs', '.ci') for p in (TOP / folder).rglob('*.py')}
    for p in NOTEBOOKS:
        cells = [c for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code']
        sources.update({f'{p.name}, cell {c["id"]}': ''.join(c['source']) for c in cells if not ''.join(c['source']).startswith(('%%bash', '%%sh', '%%html', '%%javascript'))})
    assert len(sources) > 500 and not {p: found for p, s in sources.items() if (found := unsafe(s))}


SERVER = re.compile(r"(?:jupyter[ -](?:lab|notebook|server)|jupyter_server|-m', 'jupyterlab'|\bvoila)[ ',]+(?=-|'-|\$|\S+\.ipynb)")


def open_doors(text):
    "Lines that start a notebook server for more than this machine, or without its token."
    lines = re.sub(r'\\\n\s*', ' ', text).splitlines()
    bad = re.compile(r'0\.0\.0\.0|ip=\*|(token|password)=(""|\'\'|\s|$)|disable_check_xsrf|allow_unauthenticated_access=True|allow_origin=\*|-no-token')
    started = [l for l in lines if SERVER.search(l)]
    return [l for l in started if bad.search(l) or 'ip=127.0.0.1' not in l.replace('ip 127', 'ip=127') or ('voila' in l.lower() and 'token' not in l)], started


def test_servers_listen_to_this_machine_and_ask_for_a_token():
    for line in ('jupyter lab --ip=0.0.0.0 x.ipynb', 'jupyter lab x.ipynb', "jupyter lab --ip=127.0.0.1 --IdentityProvider.token='' x.ipynb", 'voila x.ipynb --Voila.ip=127.0.0.1', 'jupyter notebook --ip=127.0.0.1 --ServerApp.password='): assert open_doors(line)[0], line
    texts = {p: p.read_text() for p in (TOP / 'Makefile', TOP / 'README.md', TOP / 'CONTRIBUTING.md', *(TOP / '.ci').iterdir(), *(TOP / 'docs').rglob('*.*'), *(TOP / '.github').rglob('*.yml'), *(TOP / 'patchgd_nb').rglob('*.py'), *(TOP / 'data_scripts').glob('*.py'), *[p for p in (TOP / 'tests').glob('*.py') if p.name != Path(__file__).name]) if p.is_file()}
    for p in NOTEBOOKS: texts[p] = '\n'.join(''.join(c['source']) for c in json.loads(p.read_text())['cells'])
    found = {p: open_doors(t) for p, t in texts.items()}
    assert {p.name for p, (_, started) in found.items() if started} >= {'Makefile', 'lab.py'}   # the pattern finds those that are known
    assert not {p: bad for p, (bad, _) in found.items() if bad}


# --- links lead somewhere

LINK = re.compile(r'\]\(([^)\s]+)\)')


def texts(path):
    "Prose of a notebook, or a page."
    if path.suffix == '.md': return path.read_text()
    return '\n'.join(''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'markdown')


PAGES = [*NOTEBOOKS, *(TOP / 'docs').glob('*.md'), *(p for p in (TOP / 'nbs').rglob('*.md') if '.ipynb_checkpoints' not in p.parts), *TOP.glob('*.md')]


@pytest.mark.parametrize('path', PAGES, ids=lambda p: p.relative_to(TOP).as_posix())
def test_links_lead_to_files(path):
    prose = re.sub(r'(?s)```.*?```', '', texts(path))
    links = [l.split('#')[0] for l in LINK.findall(prose) if not l.startswith(('http:', 'https:', '#'))]
    assert not [l for l in links if not (path.parent / l).exists()]


def test_the_readme_fits_on_a_screen_and_a_half():
    assert len((TOP / 'README.md').read_text().split()) <= 900
    assert sum(bool(LINK.findall(texts(p))) for p in PAGES) > 25      # links look as the pattern expects
