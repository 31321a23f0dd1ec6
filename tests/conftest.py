"Shared by all tests: real data where there are any, a small cohort, one seed."
import os, signal
from pathlib import Path
import hypothesis, pytest, torch
from patchgd_nb.datasets.panda import make_mini_panda

hypothesis.settings.register_profile('fixed', derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile('fixed')
signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background jobs ignore Ctrl-C, and so would what they start
torch.set_num_threads(1)   # the tensors of tests are small; threads would only wait for each other
# nor may the notebooks that tests run beside each other wait for each other's threads
if 'PYTEST_XDIST_WORKER' in os.environ: os.environ.setdefault('OMP_NUM_THREADS', '1')


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


@pytest.fixture(scope='session')
def data():
    "The folder of real data (`PATCHGD_DATA`, else ../shared/data); tests that ask for it skip where it is absent."
    folder = Path(os.environ.get('PATCHGD_DATA') or Path(__file__).resolve().parents[2] / 'shared/data')
    if not folder.is_dir(): pytest.skip(f'real data are not at {folder}')
    return folder


@pytest.fixture(scope='session')
def cohort(tmp_path_factory): return make_mini_panda(tmp_path_factory.mktemp('cohort'), n=24, seed=7, workers=2, progress=False)


@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    from lab import Lab
    server = Lab(tmp_path_factory.mktemp('root'), tmp_path_factory.mktemp('home'))
    yield server
    server.close()


@pytest.fixture(scope='session')
def browser():
    from lab import FLAGS, chromium
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium(p), headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, lab):
    context = browser.new_context(viewport=dict(width=1280, height=1400))
    yield context.new_page()
    context.close()
    lab.shut_down()
