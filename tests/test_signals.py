"Signals: UCI HAR's layout, synthetic windows, the notebook; and UltraMNIST's notebook."
import json, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from patchgd_nb.datasets.har import CHANNELS, make_signals, read_har

TOP = Path(__file__).resolve().parent.parent


def papermill(notebook, out, **parameters):
    args = [a for k, v in parameters.items() for a in ('-p', k, str(v))]
    return subprocess.run([Path(sys.executable).parent / 'papermill', TOP / f'nbs/{notebook}.ipynb', out / 'out.ipynb', '--no-progress-bar', '-p', 'out_dir', out, *args],
                          cwd=out, capture_output=True, text=True, timeout=900)


@pytest.fixture
def uci(tmp_path):
    "A folder in UCI's layout, of synthetic signals."
    x, y = make_signals(18, 0)
    for split, part in (('train', slice(0, 12)), ('test', slice(12, 18))):
        (tmp_path / split / 'Inertial Signals').mkdir(parents=True)
        np.savetxt(tmp_path / split / f'y_{split}.txt', y[part] + 1, fmt='%d')
        for c, name in enumerate(CHANNELS): np.savetxt(tmp_path / split / 'Inertial Signals' / f'{name}_{split}.txt', x[part, c])
    return tmp_path


def test_ucis_layout_is_read(uci):
    x, y = make_signals(18, 0)
    train, y_train, test, y_test = read_har(uci)
    assert np.allclose(train, x[:12]) and np.allclose(test, x[12:]) and y_train.tolist() == y[:12].tolist() and y_test.tolist() == y[12:].tolist()


def missing(uci): (uci / 'test/Inertial Signals/body_gyro_y_test.txt').unlink()
def label(uci): (uci / 'train/y_train.txt').write_text('7\n' * 12)
def ragged(uci): (uci / 'train/Inertial Signals/body_acc_x_train.txt').write_text('1 2 3\n1 2\n')
def shorter(uci): (uci / 'train/y_train.txt').write_text('1\n' * 5)


@pytest.mark.parametrize('damage, says', [(missing, 'body_gyro_y_test.txt'), (label, 'label 7'), (ragged, 'train'), (shorter, '5 labels')])
def test_what_is_wrong_is_said_in_one_sentence(uci, damage, says):
    damage(uci)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as e: read_har(uci)
    assert str(e.value).endswith('.')


@pytest.mark.executes('train_har')
def test_train_har_without_data(tmp_path):
    run = papermill('train_har', tmp_path, epochs=1)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['synthetic'] and results['test accuracy'] > .4


@pytest.mark.slow
def test_train_har_on_real_signals(data, tmp_path):
    run = papermill('train_har', tmp_path, epochs=4, data_dir=data / 'har')
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads((tmp_path / 'results.json').read_text())
    assert not results['synthetic'] and results['test accuracy'] >= .85


@pytest.mark.slow
def test_train_ultramnist_learns(tmp_path):
    "Six of ten sums right, of digits it never saw; on a quiet machine in 10 minutes."
    run = papermill('train_ultramnist', tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads((tmp_path / 'results.json').read_text())
    assert results['accuracy'] >= .6 and results['seconds'] < 900
