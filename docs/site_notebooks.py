"A notebook as the site shows it, and as students open it on Colab."
import copy, html, json, re
from pathlib import Path
import nbformat
from nbformat import NotebookNode, v4
from patchgd_nb.course.student import read_notebook, student_version

DIRECTIVE = re.compile(r'(?m)^#\|.*\n?')
HIDDEN = re.compile(r'(?m)^#\| *(hide|default_exp)\b')
NOTEBOOK_LINK = re.compile(r'\]\(([^)\s]+)\)')
FOR_LECTURERS = re.compile(r'(?m)^@checker\b|^[^#\'"\n]*\bcatches\(')   # checkers, and wrong answers to try them on
FOLDED = {'code_prompt_show': 'Show the solution', 'code_prompt_hide': 'Hide the solution'}
SOLUTION = re.compile(r'(?m)^ *# (BEGIN|END) SOLUTION\n?')
GIT, COLAB = 'patchgd-nb/patchgd_nb', 'https://colab.research.google.com/github'
BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'

INSTALL = '''# On Colab this installs the kit, which takes some minutes; elsewhere it does nothing.
import sys
if 'google.colab' in sys.modules:
    %pip install --quiet {wheel}
    from google.colab import output
    output.enable_custom_widget_manager()   # or dashboards stay blank'''


def colab_address(path: Path) -> str: return f'{COLAB}/{GIT}/blob/gh-pages/student/{path.name}'


def site_notebook(
    notebook: NotebookNode,
    taught: Path | None = None,   # of a lesson or session: it gets links for students
) -> NotebookNode:                # a new one
    "Without directives; in what is taught, solutions are folded, and checkers and wrong answers left out."
    notebook = copy.deepcopy(notebook)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            if HIDDEN.search(cell.source) or taught and FOR_LECTURERS.search(cell.source): continue
            source = DIRECTIVE.sub('', cell.source)
            if taught and SOLUTION.search(source):
                source = SOLUTION.sub('', source)
                cell.metadata.update(tags=[*cell.metadata.get('tags', []), 'hide-input'], mystnb=FOLDED)
            if not source.strip(): continue
            cell.source = source.strip('\n')
            # a plotly figure needs JupyterLab
            cell.outputs = [o for o in cell.outputs if 'application/vnd.plotly.v1+json' not in o.get('data', {})]
            for output in cell.outputs: _give_alt(output)
        cells.append(cell)
    if taught: cells.insert(_after_title(cells), v4.new_markdown_cell(_student_links(taught)))
    notebook.cells = cells
    notebook.metadata.pop('widgets', None)   # of widgets that no output shows; it would load scripts from elsewhere
    notebook.metadata['language_info'] = {'name': 'python', 'pygments_lexer': 'ipython3'}
    return notebook


def _give_alt(output) -> None:
    "A picture whose metadata say what it shows becomes HTML that says so: Sphinx and nbconvert would leave that out."
    for kind, picture in list(output.get('data', {}).items()):
        is_picture = kind in ('image/png', 'image/jpeg', 'image/gif')
        alt = output.get('metadata', {}).get(kind, {}).get('alt') if is_picture else ''
        if alt:
            data = ''.join(picture.split())
            output['data'] = {'text/html': f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{data}">'}


def _after_title(cells: list) -> int: return next((i + 1 for i, c in enumerate(cells) if c.cell_type == 'markdown'), 0)


def _student_links(path: Path) -> str:
    depth = '../' * (len(path.parts) - 1)
    slides = f'{depth}slides/{path.stem}.slides.html'
    return (f'<p class="student-links"><a href="{colab_address(path)}">Open in Colab</a> '
            f'<a href="{depth}student/{path.name}" download>Notebook with exercises to fill in</a> '
            f'<a href="{slides}">Slides</a></p>')


def absolute_links(
    text: str,      # Markdown
    folder: Path,   # where it lies, from the top of the repository
    site: str,      # address of the site
) -> str:
    "Links to other notebooks and pages, as a notebook needs them that lies alone."
    def replace(found: re.Match) -> str:
        target, anchor = found[1].partition('#')[::2]
        if not target or re.match(r'[a-z]+:', target): return found[0]
        parts: list[str] = []
        for part in (folder / target).parts: parts = parts[:-1] if part == '..' else [*parts, part]
        path = re.sub(r'\.(ipynb|md)$', '.html', '/'.join(parts))
        return f"]({site}/{path}{'#' + anchor if anchor else ''})"
    return NOTEBOOK_LINK.sub(replace, text)


def student_notebook(
    top: Path,     # of the repository
    path: Path,    # of the lecturer's notebook, from there
    site: str,     # address of the site
    wheel: str,    # what pip installs: the address of the wheel
) -> NotebookNode:
    "The student version, with a badge that opens it on Colab and a cell that installs the kit there."
    plain = student_version(read_notebook(top / path), path.relative_to('nbs').as_posix())
    notebook = nbformat.reads(json.dumps(plain), 4)
    for cell in notebook.cells:
        if cell.cell_type == 'markdown': cell.source = absolute_links(cell.source, path.parent, site)
    badge = v4.new_markdown_cell(f'[![Open in Colab]({BADGE})]({colab_address(path)})', id='open-in-colab')
    install = v4.new_code_cell(INSTALL.format(wheel=wheel), id='install')
    at = _after_title(notebook.cells)
    notebook.cells[at:at] = [badge, install]
    return notebook
