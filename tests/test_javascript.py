"The scripts of the views: whole files, joined as the page gets them, whose traits are those of their classes."
import re, shutil, subprocess
from pathlib import Path
import pytest
from patchgd_nb.dashboard.slide_view import SlidePage
from patchgd_nb.dashboard.page import RUN_SCRIPTS, RunPage
from patchgd_nb.dashboard.view import JS_FOLDER, load_js, show_js

FILES = sorted(JS_FOLDER.rglob('*.js'))
WIDGETS = {RunPage: RUN_SCRIPTS, SlidePage: ('colours.js', 'slide_view.js')}


@pytest.fixture(scope='module')
def node():
    "Node's path: one that is there, else the one that comes with Playwright."
    if path := shutil.which('node'): return path
    playwright = pytest.importorskip('playwright')
    path = Path(playwright.__file__).parent / 'driver/node'
    if not path.is_file(): pytest.skip('there is no Node')
    return str(path)


def checked(node, path): return subprocess.run([node, '--check', path], capture_output=True, text=True, timeout=60)


def test_every_view_has_its_file():
    assert {name for names in WIDGETS.values() for name in names} | {'run_replay.js'} == {p.name for p in FILES}


@pytest.mark.parametrize('file', FILES, ids=lambda p: p.name)
def test_syntax(node, tmp_path, file):
    copy = tmp_path / f'{file.stem}.mjs'
    copy.write_bytes(file.read_bytes())
    assert not (run := checked(node, copy)).returncode, run.stderr
    copy.write_text(file.read_text() + '}')
    assert checked(node, copy).returncode   # the check can fail


@pytest.mark.parametrize('kind', WIDGETS)
def test_the_page_gets_all_parts(node, tmp_path, kind):
    "All files; together a module, which defines no name twice and renders."
    text = kind._esm
    assert text == load_js(*WIDGETS[kind]) and all((JS_FOLDER / name).read_text() in text for name in WIDGETS[kind])
    (tmp_path / 'joined.mjs').write_text(text)
    assert not (run := checked(node, tmp_path / 'joined.mjs')).returncode, run.stderr
    script = "import('./joined.mjs').then(m => console.log(typeof m.default.render))"
    run = subprocess.run([node, '-e', script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.stdout == 'function\n', run.stderr


@pytest.mark.parametrize('kind', WIDGETS)
def test_traits_are_those_of_the_class(kind):
    "What the page gets, sets and listens to is a trait; every trait of ours is used by the page."
    traits = {t for t in kind.class_trait_names(sync=True) if t in vars(kind)}
    used = set(re.findall(r"model\.[gs]et\('(\w+)'", kind._esm))
    assert used == traits and len(traits) == 8


def test_amounts_have_a_colour(node, tmp_path):
    "Ends and middle of a scale, and what lies beyond its ends."
    code = load_js('colours.js') + "\nconsole.log(JSON.stringify([colour(PUOR, -1), colour(PUOR, 0), colour(PUOR, .5), colour(PUOR, 1), colour(PUOR, 2), cellOf(13, 5)]))"
    (tmp_path / 'colours.mjs').write_text(code)
    run = subprocess.run([node, 'colours.mjs'], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == '[[84,39,136],[84,39,136],[247,247,247],[179,88,6],[179,88,6],[2,3]]', run.stderr


def test_a_lesson_shows_a_function():
    shown = show_js('colours.js', 'clamp').data
    assert shown.startswith('```js\nfunction clamp(') and shown.endswith('\n}\n```')
    assert show_js('colours.js', 'cellOf').data.startswith('```js\n// Row and column')
    with pytest.raises(ValueError, match="no function 'nothing'"): show_js('colours.js', 'nothing')
