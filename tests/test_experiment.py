"Parameters that stop a wrong run at once, the account of a run, the command, the doctor."
import ast, json, os, signal, string, subprocess, sys, time
from pathlib import Path
import nbformat, pytest
from hypothesis import given, strategies as st
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from patchgd_nb.experiment import parameters
from patchgd_nb.experiment.record import RunRecord, to_plain_data
from patchgd_nb.experiment.command import read_defaults, parse_value
from patchgd_nb.experiment.parameter_record import HeadName
from patchgd_nb.experiment.parameters import Har, Panda, Photos, Slides, UltraMnist
from patchgd_nb.head import PUBLISHED, SIZES

TOP = Path(__file__).resolve().parent.parent
RECORDS = dict(train_panda=Panda, train_ultramnist=UltraMnist, train_har=Har, train_slides=Slides, train_photos=Photos)
DEFAULTS = {n: read_defaults(TOP / f'nbs/{n}.ipynb') for n in RECORDS}
NAMES = [(n, f) for n, d in DEFAULTS.items() for f in d]
ENV = dict(os.environ, PYTHONPATH=os.pathsep.join([str(TOP), os.environ.get('PYTHONPATH', '')]))
BUILD = 'from patchgd_nb.experiment.record import RunRecord\nfrom patchgd_nb.experiment.parameters import Har\np = Har.of(globals())\naccount = RunRecord(p)'


def refusal(record, values):
    "The sentence with which a record refuses values."
    with pytest.raises(ValueError) as e: record.check(values)
    text = str(e.value)
    assert type(e.value) is ValueError and '\n' not in text and text[-1] in '.?' and len(text) < 500 + len(', '.join(record.model_fields))
    return text


def cells(changes=None):
    "The parameters cell of train_har, with changes."
    return '\n'.join(f'{k} = {v!r}' for k, v in {**DEFAULTS['train_har'], **(changes or {})}.items())


def write(path, *sources):
    nb = new_notebook(cells=[new_code_cell(s) for s in sources], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    nb.cells[0].metadata.tags = ['parameters']
    nbformat.write(nb, path)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch, capfd):
    "The command in this process, in a folder of its own: exit code, what it printed."
    from patchgd_nb.experiment.command import main
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', ENV['PYTHONPATH'])
    before = signal.getsignal(signal.SIGTERM)
    yield lambda *args: (main([str(a) for a in args]), ''.join(capfd.readouterr()))
    signal.signal(signal.SIGTERM, before)


def patchgd(*args, cwd, timeout=120, **env):
    return subprocess.run([sys.executable, '-c', 'import sys; from patchgd_nb.experiment.command import main; sys.exit(main())', *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=timeout, env={**ENV, **env})


@pytest.mark.parametrize('name', RECORDS)
def test_a_notebook_sets_what_its_record_holds_and_nothing_sets_it_again(name):
    record = RECORDS[name].check(DEFAULTS[name])
    assert set(DEFAULTS[name]) == set(record.model_fields) and not any(f.default is not ... and not f.is_required() for f in type(record).model_fields.values())
    code = [c for c in nbformat.read(TOP / f'nbs/{name}.ipynb', 4).cells if c.cell_type == 'code']
    assert code[0].metadata.tags == ['parameters'] and f'{RECORDS[name].__name__}.of(globals())' in code[1].source
    for c in code[2:]:
        stored = {n.id for n in ast.walk(ast.parse(c.source)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        read = {n.id for n in ast.walk(ast.parse(c.source)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        assert not (stored | read) & set(DEFAULTS[name])   # the record's values are used, and its names stay free for the cell to run again


def test_what_is_derived():
    p = Panda.check(DEFAULTS['train_panda'])
    assert p.grid.shape == (16, 16) and p.is_synthetic and p.folder == Path('runs/panda/cohort_300_1024_0') and p.max_epochs == p.epochs and p.max_seconds is None
    assert p.bad_image_options == dict(on_bad='raise', bad_list=Path('runs/panda/bad_images.csv')) and p.checkpoint == Path('runs/panda/patchgd')
    assert Panda.check({**DEFAULTS['train_panda'], 'data_dir': Path('/d')}).folder == Path('/d')
    u = [UltraMnist.check({**DEFAULTS['train_ultramnist'], 'preset': n}) for n in parameters.SETTINGS]
    assert [x.grid.shape for x in u] == [(8, 8), (4, 4), (10, 10)] and [(x.max_epochs, x.max_seconds) for x in u] == [(s.epochs, s.minutes and 60 * s.minutes) for s in parameters.SETTINGS.values()]
    assert u[0].max_seconds is None   # what a newcomer runs does not depend on a clock
    given = UltraMnist.check({**DEFAULTS['train_ultramnist'], 'minutes': .5, 'epochs': 3})
    assert (given.max_epochs, given.max_seconds) == (3, 30)
    assert {*SIZES, *PUBLISHED, 'attention'} == set(HeadName.__origin__.__args__)


@given(st.sampled_from(NAMES), st.integers(0, 20), st.sampled_from(string.ascii_lowercase))
def test_a_slip_of_the_finger_names_the_parameter(which, at, letter):
    "A letter more, at any place of any name of at least five letters."
    notebook, field = which
    wrong = field[:at] + letter + field[at:]
    if len(field) < 5 or wrong in DEFAULTS[notebook]: return
    values = dict(DEFAULTS[notebook])
    values[wrong] = values.pop(field)
    assert refusal(RECORDS[notebook], values) == f'{wrong} is not a parameter of this notebook: did you mean {field}?'


@given(st.sampled_from(NAMES), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=3), st.lists(st.integers(), max_size=3), st.builds(dict)))
def test_any_value_is_taken_or_refused_in_one_sentence(which, value):
    notebook, field = which
    values = {**DEFAULTS[notebook], field: value}
    try: p = RECORDS[notebook].check(values)
    except ValueError:
        refusal(RECORDS[notebook], values)
        return
    taken = getattr(p, field)
    assert taken == value or field == 'fraction' or taken is {'true': True, 'false': False}.get(value)
    assert type(taken) is type(value) or (type(taken), type(value)) in [(float, int), (float, str), (bool, str)]
    json.dumps(p.model_dump(mode='json'), allow_nan=False)


@pytest.mark.parametrize('notebook, changes, says', [
    ('train_har', dict(batch_size='8'), "batch_size='8' is not a whole number from 1"), ('train_har', dict(batch_size=0), 'batch_size=0'), ('train_har', dict(epochs=True), 'epochs=True'),
    ('train_har', dict(fraction=0), 'fraction=0'), ('train_har', dict(fraction='9/8'), "fraction='9/8'"), ('train_har', dict(fraction='1/0'), "fraction='1/0'"), ('train_har', dict(fraction=float('nan')), 'fraction=nan'),
    ('train_har', dict(out_dir=2026), "-y 'out_dir: \"2026\"'"), ('train_har', dict(out_dir=''), "out_dir=''"), ('train_har', dict(head='smallr'), 'did you mean smaller?'), ('train_har', dict(patch_size=48), 'the nearest patch_size that divides it is 32'),
    ('train_har', dict(minutes=0), 'minutes=0'), ('train_har', dict(epochs=None), 'epochs=None'), ('train_har', dict(strategy='patchdg'), 'did you mean patchgd?'), ('train_har', dict(optimizer='sgdd'), 'did you mean sgd?'),
    ('train_panda', dict(keep_z=True), 'keep_z is not a parameter of this notebook'), ('train_har', dict(seed=-1), 'seed=-1'), ('train_har', dict(resume='yes'), "resume='yes' is not True, False or 'anyway'"),
    ('train_panda', dict(patch_size=2048), 'patch_size 2048 is larger than the image'), ('train_panda', dict(patch_size=100), 'not divisible into patches of 100: the nearest patch_size that divides it is 128'),
    ('train_panda', dict(fold=3), 'fold=3 is not one of 0 to 2'), ('train_panda', dict(table='t.csv'), "table='t.csv'"), ('train_panda', dict(n_slides=2), 'n_slides=2'), ('train_panda', dict(precision='fp32'), "did you mean fp16?"),
    ('train_ultramnist', dict(mnist='m', data_dir='d'), 'give one of the two'), ('train_ultramnist', dict(preset='paper_400'), 'did you mean paper_4000?'), ('train_ultramnist', dict(minutes=-1), 'minutes=-1')])
def test_what_is_refused(notebook, changes, says): assert says in refusal(RECORDS[notebook], {**DEFAULTS[notebook], **changes})


def test_a_missing_parameter_and_one_that_resembles_none():
    values = dict(DEFAULTS['train_har'])
    seed = values.pop('seed')
    assert refusal(Har, values).startswith('seed is not set')
    assert 'there are data_dir, out_dir' in refusal(Har, dict(values, seed=seed, qqqq=1))
    assert Har.check(dict(values, seed=seed, fraction='1/8', resume='true', lr=1)).fraction == .125


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.sampled_from(['True', 'False', 'None', '1/8', 'runs/a', 'nan', '', '1_0', '0x1', '-3', '1e5', 'true'])))
def test_words_become_what_papermill_makes_of_them(value):
    from papermill.cli import _resolve_type
    assert repr(parse_value(str(value))) == repr(_resolve_type(str(value)))


def test_run_again_at_the_end_it_does_not_complain(tmp_path, monkeypatch):
    "In one kernel, as a person does: names of a run are no parameters, a corrected cell counts in place of the wrong one."
    monkeypatch.setenv('PYTHONPATH', ENV['PYTHONPATH'])
    later = "losses, best, name, table = [.5], .9, 'x', {}\nfor i in range(3): pass\nimport json"
    wrong, right = '# Parameters\nfractoin = 0.25\n', '# Parameters\nfraction = 0.25\n'
    checked = 'try: Har.of(globals()); said = None\nexcept ValueError as e: said = str(e)\nprint(said)'
    nb = nbformat.read(write(tmp_path / 'n.ipynb', cells(dict(out_dir=str(tmp_path / 'r'))), BUILD, later, BUILD, checked, wrong, checked, checked, right, checked, cells() + '\nepoch = 3', checked, cells(), checked, 'p.fraction, Har.of(globals()).fraction'), 4)
    NotebookClient(nb, timeout=120, kernel_name='python3').execute()
    said = [''.join(o.get('text', '') for o in c.outputs) for c in nb.cells if c.source == checked]
    refused = 'fractoin is not a parameter of this notebook: did you mean fraction?\n'
    assert said == ['None\n', refused, refused, 'None\n', 'epoch is not a parameter of this notebook: did you mean epochs?\n', 'None\n']
    assert nb.cells[-1].outputs[0].data['text/plain'] == '(0.5, 0.5)'


def test_a_script_has_no_cells(tmp_path):
    for wrong, code in (('', 0), ('fractoin = 1', 1)):
        p = subprocess.run([sys.executable, '-c', f'{cells()}\n{wrong}\nfrom patchgd_nb.experiment.parameters import Har\nHar.of(globals())\nimport sys; assert not any(m in sys.modules for m in ("torch", "timm", "pandas", "IPython"))'], env=ENV, capture_output=True, text=True, timeout=60)
        assert p.returncode == code and ('did you mean fraction?' in p.stderr) == bool(wrong), p.stderr


def test_nbdev_test_finds_it_too(tmp_path):
    "It keeps no history of cells."
    from execnb.shell import CaptureShell
    for wrong in ('', 'fractoin = 1'):
        code = f'from execnb.shell import CaptureShell\nk = CaptureShell()\nk.run({cells()!r}); k.run({wrong!r})\nk.run("from patchgd_nb.experiment.parameters import Har; Har.of(globals())")\nprint(repr(k.exc))'
        p = subprocess.run([sys.executable, '-c', code], env=ENV, capture_output=True, text=True, timeout=60)
        assert 'did you mean fraction?' in p.stdout if wrong else p.stdout.strip() == 'None', p.stdout + p.stderr


def test_papermill_with_a_typo_fails_in_seconds(tmp_path):
    start = time.time()
    p = subprocess.run([Path(sys.executable).parent / 'papermill', TOP / 'nbs/train_panda.ipynb', 'out.ipynb', '--no-progress-bar', '-p', 'fractoin', '0.1', '-p', 'out_dir', 'r'], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=120)
    assert p.returncode == 1 and 'ValueError: fractoin is not a parameter of this notebook: did you mean fraction?' in p.stderr
    assert time.time() - start < 60 and not (tmp_path / 'r').exists()


def test_the_command_refuses_before_a_kernel_starts(tmp_path, here, monkeypatch):
    import papermill
    monkeypatch.setattr(papermill, 'execute_notebook', lambda *a, **k: pytest.fail('a kernel would start'))
    for args, says in ((['panda', '-p', 'fractoin', '0.1'], 'did you mean fraction?'), (['har', 'out.ipynb', '-p', 'epochs', '1.5'], 'epochs=1.5 is not a whole number'), (['panad'], 'there are har, panda, photos, slides, ultramnist'),
                       (['no.ipynb'], 'no.ipynb'), (['har', '-y', '{epochs: [1]}'], 'epochs=[1]'), (['har', '-y', 'epochs'], 'not a table in YAML')):
        code, said = here('run', *args)
        assert code == 2 and says in said and said.count('\n') == 1, said
    assert not list(tmp_path.iterdir())
    p = patchgd('run', 'panda', '-p', 'fractoin', '0.1', cwd=tmp_path)
    assert p.returncode == 2 and p.stderr == 'patchgd: fractoin is not a parameter of this notebook: did you mean fraction?\n'
    assert patchgd('--help', cwd=tmp_path).returncode == 0


def test_the_command_says_its_version_and_answers_without_heavy_imports(tmp_path):
    import patchgd_nb
    p = patchgd('--version', cwd=tmp_path)
    assert (p.returncode, p.stdout.strip(), p.stderr) == (0, f'patchgd {patchgd_nb.__version__}', '')
    code = 'import sys\nfrom patchgd_nb.experiment.command import main\ntry: main(["--help"])\nexcept SystemExit: pass\nassert not {"torch", "timm", "pandas", "papermill", "pydantic"} & set(sys.modules)'
    p = subprocess.run([sys.executable, '-c', code], env=ENV, capture_output=True, text=True, timeout=60)
    assert p.returncode == 0 and '--version' in p.stdout, p.stderr


def test_a_notebook_is_not_written_over(tmp_path, here):
    source = write(tmp_path / 'own.ipynb', 'seed = 0').read_bytes()
    code, said = here('run', 'own.ipynb', './own.ipynb')
    assert code == 2 and 'is the notebook itself' in said and (tmp_path / 'own.ipynb').read_bytes() == source
    assert 'did you mean seed?' in here('run', 'own.ipynb', '-p', 'sed', 1)[1]
    write(tmp_path / 'own.ipynb', 'import os\nseed = os.getpid()')
    assert 'plain values' in here('run', 'own.ipynb')[1]
    (tmp_path / 'own.ipynb').write_text('no notebook')
    assert 'cannot be read as a notebook' in here('run', 'own.ipynb')[1]


@pytest.mark.parametrize('last, code, outcome, says', [
    ('1/0', 1, 'failed: ZeroDivisionError: division by zero', 'stopped with ZeroDivisionError (division by zero)'),
    ('import os, signal; os.kill(os.getpid(), signal.SIGKILL)', 1, 'running', 'its kernel died'),
    ('pass', 0, 'interrupted', None),   # it ends without a last word
    ('account.finish(score=.5)', 0, 'finished', None)])
def test_how_a_run_ends(tmp_path, here, last, code, outcome, says):
    write(tmp_path / 'own.ipynb', cells(), BUILD, last)
    ended, said = here('run', 'own.ipynb', '-p', 'out_dir', 'r', '-p', 'fraction', '1/8', 'out/o.ipynb')
    account = json.loads((tmp_path / 'r/run.json').read_text())
    assert account['outcome'] == outcome and account['parameters']['fraction'] == .125 and account['seconds'] >= 0
    assert account['versions']['torch'] and account['hardware']['cores'] >= 1 and account['hardware']['memory'] > 2**28 and set(account['code'] or {}) <= {'commit', 'dirty'}
    top = nbformat.read(tmp_path / 'out/o.ipynb', 4).cells[0]
    assert ended == code, said
    if says is None: assert top.cell_type == 'code' and 'out/o.ipynb\n' in said
    else:
        again = 'patchgd run own.ipynb out/o.ipynb -p out_dir r -p fraction 1/8 -p resume True'
        assert says in top.source and again in top.source and top.source in said
    if outcome == 'running': assert not Path(f"/proc/{account['pid']}").exists()
    if outcome == 'finished': assert account['results'] == dict(score=.5)


@pytest.mark.parametrize('number', [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_the_command_is_interrupted(tmp_path, number):
    write(tmp_path / 'own.ipynb', cells(), BUILD, 'import time; time.sleep(90)')
    p = subprocess.Popen([sys.executable, '-c', 'import sys; from patchgd_nb.experiment.command import main; sys.exit(main())', 'run', 'own.ipynb', '-p', 'out_dir', 'r'], cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    for _ in range(600):
        if (tmp_path / 'r/run.json').exists(): break
        time.sleep(.1)
    time.sleep(1.)
    p.send_signal(number)
    error = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and 'own.ipynb was interrupted' in error, error[-2000:]
    assert json.loads((tmp_path / 'r/run.json').read_text())['outcome'] == 'interrupted'
    assert 'was interrupted' in nbformat.read(tmp_path / 'r/own.ipynb', 4).cells[0].source


def test_an_interrupted_run_has_time_to_finish_its_batch(tmp_path):
    "Papermill alone kills a kernel after five seconds: a batch takes longer on slides."
    batch = """import time
from pathlib import Path
from patchgd_nb.training.steering import handle_signals
stop = []
with handle_signals(lambda: stop.append(1)):
    while not stop: time.sleep(.1)
    time.sleep(6)
    Path('r/batch').write_text('whole')
raise KeyboardInterrupt"""
    write(tmp_path / 'own.ipynb', cells(), BUILD, batch)
    p = subprocess.Popen([sys.executable, '-c', 'import sys; from patchgd_nb.experiment.command import main; sys.exit(main())', 'run', 'own.ipynb', '-p', 'out_dir', 'r'], cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while p.poll() is None and not (tmp_path / 'r/run.json').exists(): time.sleep(.1)
    time.sleep(1.)
    p.send_signal(signal.SIGINT)
    error = p.communicate(timeout=60)[1]
    assert p.returncode == 130 and (tmp_path / 'r/batch').exists(), error[-2000:]


def test_an_account_is_whole_or_not_there(tmp_path, monkeypatch):
    run = RunRecord(Har.check({**DEFAULTS['train_har'], 'out_dir': str(tmp_path)}))
    monkeypatch.setattr(os, 'replace', lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError): run.write('finished')
    monkeypatch.undo()
    assert json.loads((tmp_path / 'run.json').read_text())['outcome'] == 'running'
    run.finish(True, score=float('nan'))
    assert (lambda a: (a['outcome'], a['results']))(json.loads((tmp_path / 'run.json').read_text())) == ('interrupted', dict(score=None))
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='cannot be written'): RunRecord(Har.check({**DEFAULTS['train_har'], 'out_dir': str(tmp_path / 'file')}))


@given(st.recursive(st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.none(), st.booleans()), lambda s: st.one_of(st.lists(s, max_size=3), st.dictionaries(st.text(max_size=2), s, max_size=3)), max_leaves=8))
def test_results_become_json(value): json.dumps(to_plain_data(value), allow_nan=False)


def test_the_doctor(tmp_path):
    start = time.time()
    p = patchgd('doctor', cwd=tmp_path)
    assert p.returncode == 0 and 'Nothing is missing.' in p.stdout and 'read a JPEG pyramid' in p.stdout, p.stdout + p.stderr
    assert time.time() - start < 60
    (tmp_path / 'openslide.py').write_text("raise OSError('libopenslide.so.1: cannot open shared object file')")
    p = patchgd('doctor', cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), ENV['PYTHONPATH']]))
    assert p.returncode == 1 and 'libopenslide.so.1' in p.stdout and '-> pip install --force-reinstall' in p.stdout and '1 of these must be put right.' in p.stdout


def test_a_memory_budget_sets_the_batch():
    from patchgd_nb.memory import plan
    from patchgd_nb.model import PatchModel
    p = Panda.check({**DEFAULTS['train_panda'], 'memory_budget': '1GB'})
    model = PatchModel('test_resnet', p.grid, 6, 64, 'smaller')
    assert p.batch_size_for(model) == plan(model, budget='1GB', fraction=p.fraction).batch != p.batch_size
    assert Panda.check(DEFAULTS['train_panda']).batch_size_for(model) == p.batch_size
    with pytest.raises(ValueError, match="memory_budget='much' is not an amount of memory"): Panda.check({**DEFAULTS['train_panda'], 'memory_budget': 'much'})


@pytest.mark.parametrize('name', RECORDS)
def test_strategy_and_optimizer_by_name(tmp_path, name):
    from patchgd_nb.strategy import CarryPatchGD, ExactPatchGD, GradientDescent, PatchGD
    def record(**changes): return RECORDS[name].check({**DEFAULTS[name], 'out_dir': str(tmp_path), **changes})
    made = {s: record(strategy=s).make_strategy() for s in ('patchgd', 'carry', 'exact', 'whole')}
    assert [type(s) for s in made.values()] == [PatchGD, CarryPatchGD, ExactPatchGD, GradientDescent]
    assert made['carry'].bank.folder == tmp_path / 'patchgd/z'
    for s in ('patchgd', 'carry'):
        given = record(strategy=s, fraction=.25, accumulate=3, inner_steps=7).make_strategy()
        assert (given.sampler.fraction, given.accumulate, given.inner_steps) == (.25, 3, 7)
        assert record(strategy=s, inner_steps=None).make_strategy().inner_steps is None
    updates = [dict(), dict(inner_steps=7), dict(strategy='carry'), dict(accumulate=None), dict(strategy='exact')]
    assert [record(**dict(fraction=1/16, accumulate=2, inner_steps=None) | u).updates_per_batch for u in updates] == [8, 4, 2, 1, 1]
    assert [record(optimizer=o).optimizer_class.__name__ for o in ('adamw', 'adam', 'sgd')] == ['AdamW', 'Adam', 'SGD']


def test_work_is_counted_as_torch_counts_it(tmp_path):
    "For every strategy, blank patches and a batch that is left out; counting draws no random number and leaves the strategy as it was."
    import torch
    from patchgd_nb.experiment.work import count_multiply_adds, count_passes, item_work, training_work
    from patchgd_nb.model import PatchModel
    from patchgd_nb.patches import PatchGrid
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(900, 8))
    model = PatchModel(backbone, PatchGrid(128, 32), n_classes=3, latent_dim=8, head='smaller')
    content, images = (torch.rand(5, 16) < .5).float(), torch.randint(256, (4, 3, 128, 128), dtype=torch.uint8)
    content[1] = 0
    optimizer, names = torch.optim.SGD(model.parameters(), lr=0.), list('abcd')
    for name in ('patchgd', 'carry', 'exact', 'whole'):
        strategy = Har.check({**DEFAULTS['train_har'], 'out_dir': str(tmp_path), 'strategy': name, 'fraction': .25}).make_strategy()
        before = torch.get_rng_state()
        predicted = [training_work(model, strategy, list(content), 4, epochs) for epochs in (1, 2, 3)]
        assert torch.equal(before, torch.get_rng_state()) and not (tmp_path / 'har').exists() and (name != 'carry' or not strategy.bank.rows)
        options = dict(names=names) if name == 'carry' else {}
        counted = [count_multiply_adds(lambda: strategy.step(model, images, torch.zeros(4, dtype=torch.long), optimizer, content[:4], **options)) for _ in range(2)]
        assert predicted[0] == counted[0] and predicted[2] - predicted[1] == predicted[1] - predicted[0]
        if name != 'carry': assert counted[0] == counted[1] == predicted[1] - predicted[0]
        else: assert predicted[1] - predicted[0] < predicted[0]   # Z is there already
    volume = count_passes(strategy, (2, 3, 4), [torch.ones(24)] * 3, 2)
    assert volume[0].trained == 48 and item_work(model.head, 8, 4, 4).trained > 0
