"Exercises of the lessons and the course: their format, solutions that pass, stubs and wrong answers that do not."
import ast, json, re
from importlib import import_module
from pathlib import Path
import nbformat, pytest
from patchgd_nb.course.student import (BEGIN, END, exercise_notebooks, make_stub, parse_cell, read_exercises, read_notebook, show_solution, source_of, student_version)

TOP = Path(__file__).resolve().parent.parent
NOTEBOOKS = exercise_notebooks(TOP / 'nbs')                       # by their path from there
PUBLISHED = {name for name in NOTEBOOKS if re.fullmatch(r'\d\d_\w+\.ipynb|course/\d_\w+\.ipynb', name)}
SESSION_MODULES = [p for p in (TOP / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts and ('course' in p.parts or p.name in PUBLISHED)]
ENOUGH = 24                                                       # exercises that check themselves, at least


def exercises_of(name): return read_exercises(read_notebook(NOTEBOOKS[name]), name)


def catches_of(path):
    "Wrong answers that a notebook shows to each checker."
    found = {}
    for cell in read_notebook(path)['cells']:
        if cell['cell_type'] != 'code' or 'catches(' not in source_of(cell): continue
        for n in ast.walk(parse_cell(source_of(cell))):
            if isinstance(n, ast.Call) and ast.unparse(n.func) == 'catches': found[ast.unparse(n.args[0])] = [ast.unparse(a) for a in n.args[1:]]
    return found


CATCHES = {checker: wrong for path in SESSION_MODULES for checker, wrong in catches_of(path).items()}


def test_there_are_enough_exercises():
    assert len(PUBLISHED) == len(NOTEBOOKS)   # nowhere else
    assert sum(len(exercises_of(name)) for name in NOTEBOOKS) >= ENOUGH


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_exercises_keep_their_format(name):
    "Heading, difficulty, minutes, task, solution, checker, hint; numbers in order, after the number of the notebook."
    exercises, number = exercises_of(name), Path(name).stem.partition('_')[0]
    assert [e.number for e in exercises] == [f'{number}.{i}' for i in range(1, len(exercises) + 1)]
    assert all(1 <= e.minutes <= 45 and len(e.task.split()) >= 5 for e in exercises)


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_checkers_are_in_the_library_and_catch_wrong_answers(name):
    "Each checker can be imported from where the student's version does it, and is shown two wrong answers at least."
    for e in exercises_of(name):
        assert getattr(getattr(import_module(e.module), e.checker), 'is_checker', False), e
        assert len(set(CATCHES.get(e.checker, ()))) >= 2, f'{e.checker} of {e.number} is shown no two wrong answers'


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_students_version_hides_solutions(name):
    "A valid notebook; no directive, no checker; what stands between BEGIN and END stands in folded cells only."
    nb = read_notebook(NOTEBOOKS[name])
    student = student_version(nb, name)
    nbformat.validate(nbformat.from_dict(student))
    visible = [source_of(c) for c in student['cells'] if '<details>' not in source_of(c)]
    assert not [s for s in visible if BEGIN in s or END in s or '@checker' in s or re.search(r'(?m)^#\|', s)]
    folded = [source_of(c) for c in student['cells'] if '<summary>Solution</summary>' in source_of(c)]
    exercises = read_exercises(nb, name)
    assert len(folded) == len(exercises)
    for e, solution in zip(exercises, folded):
        source = source_of(nb['cells'][e.solution])
        secret = re.search(rf'(?s){BEGIN}\n(.*?)\n\s*{END}', source)[1].strip()
        stub = next(source_of(c) for c in student['cells'] if c['metadata'].get('patchgd') == dict(exercise=e.number, part='answer'))
        assert secret in solution and secret not in stub and ('NotImplementedError' in stub or '...' in stub)
        assert not [s for s in visible if secret in s and len(secret) > 30]
        parse_cell(stub)
    outputs = [c for c in student['cells'][next(i for i, c in enumerate(student['cells']) if '### Exercise' in source_of(c)):] if c.get('outputs')]
    assert not outputs


@pytest.mark.parametrize('name', sorted(p.relative_to(TOP / 'nbs').as_posix() for p in SESSION_MODULES))
def test_questions_have_a_form(name):
    "Questions without code say how long one thinks, and have an answer that is folded away."
    cells = [source_of(c) for c in read_notebook(TOP / 'nbs' / name)['cells'] if c['cell_type'] == 'markdown']
    heads = [i for i, s in enumerate(cells) if re.match(r'###\s+Question', s)]
    for i in heads:
        assert re.match(r'### Question \d+\.\d+[^\n]*\n\*To think about, \d+ minutes?\.\*\n', cells[i]), cells[i][:100]
        until = next((j for j in range(i + 1, len(cells)) if re.match('#{1,3} ', cells[j])), len(cells))
        assert '<summary>Answer</summary>' in '\n'.join(cells[i:until]), cells[i][:100]


# --- the generator, on a notebook made here

def cells(*sources): return [dict(cell_type='markdown' if s[0] in '#<' and not s.startswith('#|') and BEGIN not in s else 'code', id=f'c{i}', metadata={}, source=s,
                                  **({} if s[0] in '#<' and not s.startswith('#|') and BEGIN not in s else dict(outputs=[], execution_count=None))) for i, s in enumerate(sources)]


HEAD = '### Exercise 1.1: Double\n*Difficulty 1 of 3, about 5 minutes.*\n\nTwice a number, please.'
ANSWER = f'def double(x):\n    {BEGIN}\n    return 2 * x\n    {END}'
HINT = '<details><summary>Hint</summary>\n\nMultiply.\n\n</details>'


def notebook(*sources): return dict(cells=cells(*sources), metadata={}, nbformat=4, nbformat_minor=5)


@pytest.mark.parametrize('sources, says', [
    ([HEAD, 'check_double(double)', HINT], 'has 0 times a code cell with # BEGIN SOLUTION'),
    ([HEAD, ANSWER, HINT], '0 times a code cell that ends in a call'),
    ([HEAD, ANSWER, 'check_double(double)'], '0 times a text cell'),
    ([HEAD, ANSWER, 'check_double(double)', 'check_double(double)', HINT], '2 times'),
    ([HEAD, HINT, ANSWER, 'check_double(double)'], 'not in the order'),
    ([HEAD.replace('of 3', 'of 5'), ANSWER, 'check_double(double)', HINT], 'its heading is not'),
    ([HEAD, ANSWER.replace(END, ''), 'check_double(double)', HINT], f'without an {END}'),
    ([HEAD, ANSWER, 'check_double(double)', HINT] * 2, 'stands twice')])
def test_what_leaves_the_format_is_refused(sources, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error: student_version(notebook(*sources), 'course/1_x.ipynb')
    assert 'course/1_x.ipynb' in str(error.value)


@pytest.mark.parametrize('source, stub', [
    (ANSWER, "def double(x):\n    raise NotImplementedError('Write this part.')"),
    (f'{BEGIN}\na, (b, *c) = 1, (2, 3)\nd: int = 4\nfor i in range(3):\n    e = i\n{END}\nprint(a)', '\n'.join(f'{n} = ...   # write this part' for n in 'abcde') + '\nprint(a)'),
    (f'class A:\n    x = 1\n    {BEGIN}\n    def f(self): return 3\n    {END}', 'class A:\n    x = 1\n    f = ...   # write this part'),
    (f'class A:\n    def f(self):\n        y = 1\n        {BEGIN}\n        y += 1\n        {END}\n        return y', "class A:\n    def f(self):\n        y = 1\n        raise NotImplementedError('Write this part.')\n        return y"),
    (f'def f(x):\n    {BEGIN}\n    return x\n    {END}\n\n{BEGIN}\ny = f(3)\n{END}', "def f(x):\n    raise NotImplementedError('Write this part.')\n\ny = ...   # write this part"),
    (f'%matplotlib inline\n{BEGIN}\nmodel.head = 3\n{END}', '%matplotlib inline\n...   # write this part')])
def test_stubs(source, stub):
    assert make_stub(source) == stub
    assert BEGIN not in show_solution(source) and len(show_solution(source).splitlines()) == len(source.splitlines()) - 2 * source.count(BEGIN)


def test_a_checker_outside_the_notebook_is_imported_as_written():
    nb = notebook(HEAD, ANSWER, 'from patchgd_nb.course.exercise import catches\nimport math', 'from patchgd_nb.course.lessons import check_double\ncheck_double(double)', HINT)
    sources = [source_of(c) for c in student_version(nb)['cells']]
    assert 'from patchgd_nb.course.lessons import check_double\ncheck_double(double)' in sources and 'import math' in sources


# --- every notebook, run as a student who first checks the stub, then finds the solution

def steps_of(nb, name):
    "(cell, what its output has to say): the student's version with each answer written after its stub was checked."
    exercises = {e.number: e for e in read_exercises(nb, name)}
    student = student_version(nb, name)['cells']
    checks = {c['metadata']['patchgd']['exercise']: c for c in student if c['metadata'].get('patchgd', {}).get('part') == 'check'}
    for cell in student:
        mark = cell['metadata'].get('patchgd', {})
        if cell['cell_type'] != 'code': continue
        if mark.get('part') != 'answer': yield cell, 'Right: ' if mark.get('part') == 'check' else ''
        else:
            yield cell | dict(metadata=dict(tags=['raises-exception'])), ''   # code around a stub may stumble over it
            yield checks[mark['exercise']], 'Not written yet.'
            yield cell | dict(source=show_solution(source_of(nb['cells'][exercises[mark['exercise']].solution]))), ''


@pytest.fixture(scope='module')
def copied(tmp_path_factory):
    "Where `patchgd copy` put the notebooks."
    from patchgd_nb.course.student import copy_course
    folder = tmp_path_factory.mktemp('copied') / 'lessons'
    copy_course(folder)
    return folder


@pytest.mark.notebooks
@pytest.mark.parametrize('name', NOTEBOOKS)
def test_solutions_pass_and_stubs_fail(name, copied):
    "The student's version, run from the first cell to the last."
    from nbclient import NotebookClient
    nb, steps = read_notebook(NOTEBOOKS[name]), []
    steps = list(steps_of(nb, name))
    made = nbformat.from_dict(dict(cells=[json.loads(json.dumps(c | dict(id=f'step{i}', outputs=[]))) for i, (c, _) in enumerate(steps)], metadata=nb['metadata'], nbformat=4, nbformat_minor=5))
    for cell in made.cells: cell.source = source_of(cell)
    NotebookClient(made, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=str((copied / name).parent)))).execute()
    for cell, (_, says) in zip(made.cells, steps):
        said = '\n'.join(o.get('data', {}).get('text/plain', o.get('text', '')) for o in cell.outputs)
        assert says in said, f'{cell.source}\n{said}'
