"What is written: spelling, short sentences in the course, pictures with words, notebooks of a readable size."
import json, re, subprocess, sys
from importlib.util import find_spec
from pathlib import Path
import pytest

TOP = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (TOP / 'nbs').rglob('*.ipynb') if not any(part[0] == '.' for part in p.relative_to(TOP).parts) and not p.name.endswith('.out.ipynb'))
LESSONS = sorted((TOP / 'nbs').glob('0*.ipynb'))
COURSE = sorted((TOP / 'nbs/course').glob('*.ipynb'))
SESSIONS = [p for p in COURSE if re.match(r'[1-9]_', p.name)]
PAGES = sorted([*TOP.glob('*.md'), *(TOP / 'docs').glob('*.md'), *(p for p in (TOP / 'nbs').rglob('*.md') if '.ipynb_checkpoints' not in p.parts)])


def cells(path, kind): return [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]
def prose(path): return [''.join(c['source']) for c in cells(path, 'markdown')]
def name(path): return path.relative_to(TOP).as_posix()


# --- spelling

@pytest.mark.skipif(not find_spec('codespell_lib'), reason='codespell is not installed')
def test_spelling(tmp_path):
    "Prose, comments and docstrings of notebooks, and pages; words that are no mistakes are in .ci/codespell.cfg."
    for path in NOTEBOOKS:
        target = tmp_path / name(path).replace('/', '.')
        sources = [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]
        target.with_suffix('.md').write_text('\n\n'.join(sources), encoding='utf-8')
    for path in PAGES: (tmp_path / name(path).replace('/', '.')).write_text(path.read_text(encoding='utf-8'), encoding='utf-8')
    (tmp_path / 'wrong.txt').write_text('teh gradient')
    run = subprocess.run([sys.executable, '-m', 'codespell_lib', '--config', str(TOP / '.ci/codespell.cfg'), '.'], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    found = run.stdout.splitlines()
    assert found.pop(next(i for i, l in enumerate(found) if 'wrong.txt' in l)).endswith('teh ==> the')   # it does look
    assert not found


# --- short sentences

LONGEST = 30   # words
LONGER = []    # sentences of the course that may be longer: how they begin


def sentences(text):
    "Sentences of Markdown; code, formulas, tables and addresses left out."
    text = re.sub(r'(?s)```.*?```|\$\$.*?\$\$|\\begin\{(\w+\*?)\}.*?\\end\{\1\}|<!--.*?-->', '\n\n', text)
    text = re.sub(r'`[^`\n]*`|\$[^$\n]+\$', 'X', text)                  # code or a formula counts as one word
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', text)              # the words of a link
    text = re.sub(r'</?(details|summary|p|div|br|table|tr|td|th|ul|li)\b[^>]*>', '\n\n', text)
    text = re.sub(r'<[^>]+>', '', text)
    lines = ['' if l.lstrip().startswith('|') else l for l in text.splitlines()]
    lines = [re.sub(r'^\s*(#+|>|[-*+]|\d+[.)])\s+', '\n\n', l) + ('\n' if l.startswith('#') else '') for l in lines]
    for paragraph in re.split(r'\n\s*\n', '\n'.join(lines)):
        for sentence in re.split(r'(?<=[.!?])["\'*)_]*\s+', ' '.join(paragraph.split())):
            if words := [w for w in sentence.split() if re.search(r'\w', w)]: yield ' '.join(words)


def test_sentences_are_found():
    "Where they end, and what is no part of them."
    text = '## Head\nOne two. Three `four five` $a b$!\n- six: seven [eight nine](ten)\n- x\n\n| a | b |\n\n$$c d$$\n```py\ne f\n```\n<details><summary>Hint</summary>\n\nIt is (twice.) So.</details>'
    assert list(sentences(text)) == ['Head', 'One two.', 'Three X X!', 'six: seven eight nine', 'x', 'Hint', 'It is (twice.', 'So.']


@pytest.mark.parametrize('path', SESSIONS, ids=lambda p: p.stem)
def test_sentences_of_the_course_are_short(path):
    "At most 30 words: many of those who read it read a foreign language."
    long = [s for text in prose(path) for s in sentences(text) if len(s.split()) > LONGEST and not s.startswith(tuple(LONGER))]
    assert not long, '\n'.join(f'{len(s.split())} words: {s}' for s in long)


# --- pictures

def outputs(path):
    "(cell id, data, metadata) of each output."
    return [(c['id'], o.get('data', {}), o.get('metadata', {})) for c in cells(path, 'code') for o in c.get('outputs', [])]


def without_words(html):
    "Pictures of a piece of HTML that have no alternative text."
    html = re.sub(r'(?s)<script.*?</script>', '', html)
    return [i[:80] for i in re.findall(r'<img\b[^>]*>', html) if not re.search(r'\balt=("\s*[^"\s][^"]*"|\'\s*[^\'\s][^\']*\')', i)]


def test_pictures_without_words_are_found():
    assert without_words('<img src="a"><img alt="" src="b"><img alt=" " src="c">') and not without_words('<img src="a" alt="a grid"><script>"<img>"</script>')


@pytest.mark.parametrize('path', [*NOTEBOOKS, *PAGES], ids=name)
def test_pictures_have_words(path):
    "An alternative text for each: in outputs, in prose, on pages."
    texts = [path.read_text(encoding='utf-8')] if path.suffix == '.md' else prose(path)
    texts = [re.sub(r'(?s)```.*?```|`[^`\n]*`', '', text) for text in texts]   # pictures, not code that speaks of them
    shown = [] if path.suffix == '.md' else [''.join(data.get('text/html', '')) for _, data, _ in outputs(path)]
    assert not [i for text in texts + shown for i in without_words(text)]
    assert not [i for text in texts for i in re.findall(r'!\[\s*\]\([^)]{0,60}', text)]


@pytest.mark.parametrize('path', [*LESSONS, *COURSE], ids=lambda p: p.stem)
def test_pictures_of_lessons_and_course_are_html_with_words(path):
    "A bare image/png has no alternative text: end the cell in `picture(fig, 'what it shows')`; explorers keep theirs in the output's metadata."
    bare = [cell for cell, data, about in outputs(path) for kind in data
            if kind.startswith('image/') and 'alt=' not in ''.join(data.get('text/html', '')) and not about.get(kind, {}).get('alt', '').strip()]
    assert not bare, f'cells {bare}'


# --- size

def size_without_pictures(path):
    "Bytes of a notebook, outputs included, but not its pictures."
    nb = json.loads(path.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        for output in cell.get('outputs', []):
            data = output.get('data', {})
            for kind in [k for k in data if k.startswith('image/')]: del data[kind]
            if 'text/html' in data:
                html = re.sub(r'data:(image|video)/[^"\')\s]+', '', ''.join(data['text/html']))
                data['text/html'] = re.sub(r'(?s)<svg\b.*?</svg>', '', html)
    return len(json.dumps(nb, indent=1, ensure_ascii=False).encode())


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name)
def test_notebooks_are_small(path):
    "Less than 200 KB without pictures, less than 1 MB with them."
    assert size_without_pictures(path) < 200_000 and path.stat().st_size < 1_000_000


# --- stored answers

@pytest.mark.parametrize('path', [*LESSONS, *SESSIONS], ids=lambda p: p.stem)
def test_stored_answers_are_right(path):
    "What a committed notebook shows below a checker: that the solution passed."
    shown = [json.dumps(c['outputs']) for c in cells(path, 'code') if re.search(r'^check_\w+\(', ''.join(c['source']), re.M)]
    assert shown and all('Right: ' in text and 'Not yet right' not in text for text in shown)
