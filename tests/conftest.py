"Shared by all tests: real data where there are any, a small cohort, one seed."
import os
from pathlib import Path
import hypothesis, pytest, torch
from patchgd_nb.panda import make_mini_panda

hypothesis.settings.register_profile('fixed', derandomize=True, deadline=None, max_examples=60)
hypothesis.settings.load_profile('fixed')
torch.set_num_threads(1)   # the tensors of tests are small; threads would only wait for each other


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
