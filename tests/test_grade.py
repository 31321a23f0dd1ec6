"Twelve submissions, most of them bad: a table, and nothing else harmed."
import csv, json, os, shutil, stat, subprocess, sys, time
from pathlib import Path
import psutil, pytest
import patchgd_nb.course.grade as grading
from patchgd_nb.course.grade import Runner, grade, read_table
from patchgd_nb.course.sandbox import Limits, _landlock_version
from patchgd_nb.course.sessions import make_steps, read_session

IS_CONFINED = _landlock_version() > 0
SMALL = dict(cell_seconds=3, minutes=1, memory='700MB', printed='5MB', processes=20)   # a kernel needs some 200 MB


def text(source): return dict(cell_type='markdown', id=f'm{len(source)}', metadata={}, source=source)
def code(source): return dict(cell_type='code', id=f'c{len(source)}', metadata={}, execution_count=None, outputs=[], source=source)


LECTURER = [
    code('#| default_exp course.toy'),
    code('''#| export
from patchgd_nb.course.exercise import catches, checker

@checker
def check_half(half):
    yield 'half of eight is four', half(8) == 4, 'Divide by two.'
    yield 'half of seven is three and a half', half(7) == 3.5, 'The remainder is dropped: use /.'

@checker
def check_value(value): yield 'it is 8', value == 8, 'Two to the power of three.'
'''),
    text('### Exercise 9.1: Half\n*Difficulty 1 of 3, about 2 minutes.*\n\nHalf of a number.'),
    code('def half(x):\n    # BEGIN SOLUTION\n    return x / 2\n    # END SOLUTION'), code('check_half(half)'), text('<details><summary>Hint</summary>\n\nDivide.\n\n</details>'),
    text('### Exercise 9.2: Cube\n*Difficulty 1 of 3, about 2 minutes.*\n\nThe volume of a cube of side 2.'),
    code('# BEGIN SOLUTION\nvalue = 2 ** 3\n# END SOLUTION'), code('check_value(value)'), text('<details><summary>Hint</summary>\n\nMultiply, and again.\n\n</details>')]
METADATA = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))


@pytest.fixture(scope='module')
def lecturer(tmp_path_factory):
    "A folder with one lecturer's notebook."
    folder = tmp_path_factory.mktemp('lecturer')
    (folder / '9_toy.ipynb').write_text(json.dumps(dict(cells=LECTURER, metadata=METADATA, nbformat=4, nbformat_minor=5)))
    return folder


def submission(lecturer, half='return x / 2', value='2 ** 3', first='', between='', metadata=None, edit=None):
    "The student's version, filled in; `first` and `between` are cells before the exercises and between them."
    nb = json.loads(json.dumps(read_session(lecturer / '9_toy.ipynb', '9_toy.ipynb').student))
    for cell in nb['cells']:
        cell['source'] = ''.join(cell['source']).replace("raise NotImplementedError('Write this part.')", half).replace('...   # write this part', value)
    second = next(i for i, c in enumerate(nb['cells']) if '9.2' in c['source'])
    if between: nb['cells'].insert(second, code(between))
    if first: nb['cells'].insert(0, code(first))
    if metadata is not None: nb['metadata'] = metadata
    if edit: nb['cells'] = edit(nb['cells'])
    return json.dumps(nb)


CHEAT = '''import patchgd_nb.course.exercise as exercise
class Perfect:
    ok, score, lines, not_reached, mistake = True, 1., [], 0, ''
def check_half(*answers): return Perfect()
check_value = exercise.checker = exercise.Report = lambda *answers: Perfect()
'''


def submissions(lecturer, folder):
    "Twelve of them, and what is expected: scores of both exercises and words of the remarks."
    def make(**parts): return submission(lecturer, **parts)
    bad = 'import os, shutil\nfrom pathlib import Path\n'
    harm = f'''{bad}
for harm in (lambda: shutil.rmtree({str(folder)!r}), lambda: Path({str(folder.parent)!r}, 'written').write_text('x'), lambda: os.kill({os.getpid()}, 0)):
    try: harm()
    except OSError: pass
try: stolen = Path({str(lecturer / '9_toy.ipynb')!r}).read_text()
except OSError: stolen = ''
'''
    forks = 'import subprocess, sys\nmany = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], start_new_session=True) for _ in range(60)]\nimport time; time.sleep(2)'
    return {
        'a_right': (make(), (1, 1), ''),
        'b_half_right': (make(half='return x // 2', value='...'), (.5, 0), '9.1: 1 of 2 checks passed: The remainder is dropped: use /. 9.2 is not written yet.'),
        'c_endless': (make(half='while True: pass', value='8'), (0, 1), 'The check of 9.1 took more than 3 s.'),
        'd_memory': (make(between='import time\nkept = []\nwhile True:\n    kept.append(b"x" * 2**24)\n    time.sleep(.02)'), (1, 0), 'It needed more than 700 MB of memory.'),
        'e_prints': (make(between='for _ in range(1000): print("x" * 10**6)'), (1, 0), ('It printed more than 5 MB.', 'It needed more than 700 MB of memory.')),   # the kernel keeps what it has not sent yet
        'f_deletes_itself': (make(first=f'{bad}shutil.rmtree(os.getcwd())', between='x = bytearray(2**40)'), (1, 1), 'Code cell 4 ran out of memory.'),
        'g_deletes_others': (make(first=harm, value='8 if not stolen else 0'), (1, 1 if IS_CONFINED else 0), '' if IS_CONFINED else 'It changed the folder of submissions, which was put back.'),
        'h_no_kernel': (make(metadata=dict(kernelspec=dict(name='julia-1.10', display_name='Julia', language='julia'))), (0, 0), 'There is no kernel julia-1.10'),
        'i_broken': ('{"cells": [', None, 'The file is not a notebook.'),
        'j_forks': (make(between=forks), (1, 0), 'It started more than 20 processes.'),
        'k_exits': (make(between='import os; os._exit(3)'), (1, 0), 'The kernel died in code cell 3.'),
        'l_redefines': (make(half='return 0', value='0', first=CHEAT), (0, 0), 'check_half was defined anew; the grader used its own.')}


FAST = ['a_right', 'b_half_right', 'i_broken', 'h_no_kernel']


def put(folder, texts):
    folder.mkdir()
    for name, data in texts.items(): (folder / f'{name}.ipynb').write_text(data)
    return folder


def check_row(row, expected):
    _, scores, remark = expected
    if scores is None: assert row['session'] == '' and row['total'] == '0'
    else: assert (float(row['9.1']), float(row['9.2'])) == scores and float(row['total']) == sum(scores), row
    one_of = remark if isinstance(remark, tuple) else (remark,)
    assert any(r in row['remarks'] for r in one_of) and bool(remark) == bool(row['remarks']), row


def rows_of(table):
    with open(table, newline='') as file: return {row['submission'].removesuffix('.ipynb'): row for row in csv.DictReader(file)}


def test_a_few_submissions(lecturer, tmp_path, capsys):
    "Right, half right, no notebook, no kernel; a second start keeps the rows, one that was handed in again is graded again."
    folder, table = put(tmp_path / 'handed in', {}), tmp_path / 'out/table.csv'
    wanted = {name: what for name, what in submissions(lecturer, folder).items() if name in FAST}
    for name, (data, *_) in wanted.items(): (folder / f'{name}.ipynb').write_text(data)
    assert grade(folder, table, trusted=True, lecturer=str(lecturer), **SMALL) == 0
    rows = rows_of(table)
    assert list(rows) == sorted(wanted)
    for name, expected in wanted.items(): check_row(rows[name], expected)
    assert '2/4 b_half_right.ipynb: 0.5 of 2' in capsys.readouterr().out
    asked = []
    real, grading.grade_submission = grading.grade_submission, lambda name, *rest: asked.append(name) or real(name, *rest)
    try:
        grade(folder, table, trusted=True, lecturer=str(lecturer), **SMALL)
        assert not asked and rows_of(table) == rows
        (folder / 'b_half_right.ipynb').write_text('[]')
        grade(folder, table, trusted=True, lecturer=str(lecturer), **SMALL)
        assert asked == ['b_half_right.ipynb'] and rows_of(table)['b_half_right']['remarks'] == 'The file is not a notebook.'
    finally: grading.grade_submission = real


def test_a_stop_loses_nothing(lecturer, tmp_path, monkeypatch):
    "Interrupted at the second submission: the first row is there, and stays."
    folder, table = put(tmp_path / 'in', {'a': '1', 'b': '2', 'c': '3'}), tmp_path / 'table.csv'
    monkeypatch.setattr(Runner, 'refuse_if_broken', lambda self: None)
    real = grading.grade_submission

    def stops(name, *rest):
        if name == 'b.ipynb': raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(grading, 'grade_submission', stops)
    with pytest.raises(KeyboardInterrupt): grade(folder, table, trusted=True, lecturer=str(lecturer))
    assert list(read_table(table)) == ['a.ipynb']
    monkeypatch.setattr(grading, 'grade_submission', lambda name, *rest: real(name, *rest) if name != 'a.ipynb' else pytest.fail('graded again'))
    grade(folder, table, trusted=True, lecturer=str(lecturer))
    assert list(read_table(table)) == ['a.ipynb', 'b.ipynb', 'c.ipynb']


@pytest.mark.notebooks
def test_twelve_submissions(lecturer, tmp_path):
    "The table is right, the folder is as it was, no process is left, and nothing was written beside it."
    folder, table = put(tmp_path / 'in', {}), tmp_path / 'table.csv'
    wanted = submissions(lecturer, folder)
    for name, (data, *_) in wanted.items(): (folder / f'{name}.ipynb').write_text(data)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    start = time.time()
    assert grade(folder, table, trusted=True, lecturer=str(lecturer), **SMALL) == 0
    print(f'{time.time() - start:.0f} s')
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir() if p.name == 'written'] == ([] if IS_CONFINED else ['written'])
    assert not [p for p in psutil.process_iter(['cmdline']) if 'time.sleep(100)' in ' '.join(p.info['cmdline'] or ())]
    assert not [p for p in Path(os.environ.get('TMPDIR', '/tmp')).glob('patchgd-grade-*') if p.stat().st_ctime > start]
    rows = rows_of(table)
    assert len(rows) == len(wanted) == 12
    for name, expected in wanted.items(): check_row(rows[name], expected)


def test_what_is_changed_in_the_folder_is_put_back(tmp_path):
    "Where the system cannot keep a submission away from it."
    folder = put(tmp_path / 'in', {'a': '1', 'b': '2'})
    files = grading._read_folder(folder)
    assert not grading._put_back(folder, files)
    (folder / 'a.ipynb').write_text('other')
    (folder / 'b.ipynb').unlink()
    assert grading._put_back(folder, files) and (folder / 'a.ipynb').read_text() == '1'
    shutil.rmtree(folder)
    assert grading._put_back(folder, files) and (folder / 'b.ipynb').read_text() == '2'


def test_cells_that_are_missing_or_edited_are_named(lecturer):
    session = read_session(lecturer / '9_toy.ipynb', '9_toy.ipynb')
    def remarks(edit): return make_steps(json.loads(submission(lecturer, edit=edit)), session)[1]
    assert remarks(None) == []
    assert remarks(lambda cells: cells[:5]) == ['9.2 is missing.']
    assert remarks(lambda cells: [c for c in cells if 'check_value' not in c['source']]) == ['The check of 9.2 is missing.']
    assert remarks(lambda cells: [c | dict(source=c['source'].replace('check_half(half)', 'check_half(lambda x: x / 2)')) for c in cells]) == ['The check of 9.1 was edited.']
    lost = remarks(lambda cells: [dict(c, id=f'new{i}', metadata={}) for i, c in enumerate(cells)])   # as some editors save it
    assert lost == []
    steps, _ = make_steps(json.loads(submission(lecturer, edit=lambda cells: cells[:5])), session)
    assert steps[-1]['exercise'] == '9.2'   # called at the end all the same


# --- a container, as far as it can be tested without one

FAKE = '''#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
with open({log!r}, 'a') as log: log.write(json.dumps(words) + '\\n')
if words[0] == 'run':
    i = words.index('an-image')
    env = dict(words[k + 1].split('=', 1) for k in range(i) if words[k] == '--env')
    os.makedirs({work!r}, exist_ok=True)
    env |= dict(HOME={work!r}, PATH=os.environ['PATH'], PYTHONPATH=os.environ.get('PYTHONPATH', ''))
    sys.exit(subprocess.run([{python!r}, *words[i + 2:]], cwd={work!r}, env=env).returncode)
sys.exit({info} if words[0] == 'info' else 0 if words[:2] != ['image', 'inspect'] else words[2] != 'an-image')
'''


@pytest.fixture
def fake_docker(tmp_path, monkeypatch):
    "A command `docker` that writes down how it is called and runs the command here; returns what it wrote."
    def make(info=0):
        path, log = tmp_path / 'bin/docker', tmp_path / 'log'
        path.parent.mkdir(exist_ok=True)
        path.write_text(FAKE.format(python=sys.executable, log=str(log), work=str(tmp_path / 'w'), info=info))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv('PATH', f'{path.parent}{os.pathsep}/usr/bin:/bin')
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]
    return make


def test_in_a_container(lecturer, tmp_path, fake_docker):
    "The real command line, its flags, its input and output; the engine is a fake one that runs the command here."
    calls = fake_docker()
    folder, table = put(tmp_path / 'in', {'a': submission(lecturer)}), tmp_path / 'table.csv'
    assert grade(folder, table, lecturer=str(lecturer), image='an-image', **SMALL | dict(cell_seconds=20)) == 0
    assert read_table(table)['a.ipynb'].scores == {'9.1': 1, '9.2': 1}
    runs = [words for words in calls() if words[0] == 'run']
    assert len(runs) == 2   # one for an empty notebook, first
    flags = ' '.join(runs[-1])
    for flag in ('--rm', '--network none', '--read-only', f'--memory {700 * 2**20}', '--pids-limit 320', '--cap-drop ALL', '--security-opt no-new-privileges', '--user', '--ulimit fsize='): assert flag in flags
    assert not [w for w in runs[-1] if w in ('--volume', '-v', '--mount', '--privileged')]   # nothing of this machine is mounted
    assert not [w for w in runs[-1] if str(tmp_path) in w]


@pytest.mark.slow
def test_a_container_that_takes_too_long_is_ended(lecturer, tmp_path, fake_docker):
    calls = fake_docker()
    folder, table = put(tmp_path / 'in', {'a': submission(lecturer, between='import time; time.sleep(100)')}), tmp_path / 'table.csv'
    grade(folder, table, lecturer=str(lecturer), image='an-image', cell_seconds=100, minutes=.25)
    assert read_table(table)['a.ipynb'].remarks == ['It took more than 15 s.']
    name = next(w for words in reversed(calls()) if words[0] == 'run' for w in words if w.startswith('patchgd-grade-'))
    assert ['kill', name] in calls()


@pytest.mark.parametrize('info, image, says', [(1, 'an-image', 'docker is installed and does not answer'), (0, 'another', 'There is no image another')])
def test_without_a_container_trust_is_asked_for(lecturer, tmp_path, fake_docker, monkeypatch, info, image, says):
    fake_docker(info)
    folder = put(tmp_path / 'in', {'a': submission(lecturer)})
    with pytest.raises(ValueError, match=says) as error: grade(folder, tmp_path / 'table.csv', lecturer=str(lecturer), image=image)
    assert not (tmp_path / 'table.csv').exists() and ('--trusted' in str(error.value)) == bool(info)


@pytest.mark.parametrize('files, out, says', [({}, 'table.csv', 'holds no notebooks'), ({'a': '1'}, 'in/a.ipynb', 'is no table of grades')])
def test_bad_input_is_refused_before_anything_runs(lecturer, tmp_path, files, out, says):
    folder = put(tmp_path / 'in', files)
    with pytest.raises(ValueError, match=says): grade(folder, tmp_path / out, trusted=True, lecturer=str(lecturer))


def test_a_process_is_kept_from_other_files(tmp_path):
    if not IS_CONFINED: pytest.skip('this system has no Landlock')
    (tmp_path / 'mine').mkdir()
    lines = ['import socket, sys', 'from pathlib import Path', 'from patchgd_nb.course.sandbox import confine', f'confine([{str(tmp_path / "mine")!r}])',
             f'Path({str(tmp_path / "mine/a")!r}).write_text("a")', f'Path({str(tmp_path / "b")!r}).write_text("b")']
    run = subprocess.run([sys.executable, '-c', '\n'.join(lines)], capture_output=True, text=True)
    assert 'PermissionError' in run.stderr and (tmp_path / 'mine/a').exists() and not (tmp_path / 'b').exists()
