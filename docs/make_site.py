"""Build the site from the notebooks:   python docs/make_site.py [--out _docs]

Sources are gathered in `_proc/site`, laid out as in the repository, so that links between notebooks stay as they are;
what is published as it is (student notebooks, the wheel, the page of a run) lies in `_proc/extra`."""
import argparse, os, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import nbformat
sys.path.insert(0, str(Path(__file__).resolve().parent))
from api_pages import api_pages
from site_notebooks import NOTEBOOK_LINK, site_notebook, student_notebook

TOP = Path(__file__).resolve().parent.parent
PROC, SITE, EXTRA = TOP / '_proc', TOP / '_proc/site', TOP / '_proc/extra'
WRITTEN: set[Path] = set()   # sources of the site, this time
WINGS = {'base': 'Base, and security', 'training': 'Training', 'images': 'Images: where pixels come from',
         'datasets': 'Data sets', 'dashboard': 'Dashboard', 'experiment': 'Experiment: runs and commands',
         'studies': 'Studies',
         'course': 'Course: checkers and grading'}


def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=['='])
    parser.read(TOP / 'settings.ini', encoding='utf-8')
    return dict(parser['DEFAULT'])


def address() -> str: return settings()['doc_host'] + settings()['doc_baseurl']


def wheel_name() -> str: return f"{settings()['lib_name']}-{settings()['version']}-py3-none-any.whl"


def source_files(pattern: str) -> list[Path]:
    "Files of `nbs`, from the top of the repository, without what runs and editors leave behind."
    found = (p.relative_to(TOP) for p in sorted((TOP / 'nbs').rglob(pattern)))
    return [p for p in found if not any(part[0] == '.' or part in ('runs', 'data') for part in p.parts)
            and not p.name.endswith('.out.ipynb') and p != Path('nbs/index.ipynb')]


def lessons() -> list[Path]: return [p for p in source_files('0*.ipynb') if p.parent == Path('nbs')]
def sessions() -> list[Path]: return [p for p in source_files('[1-9]_*.ipynb') if p.parent == Path('nbs/course')]


def toctree(caption: str, pages: list[str], depth: int = 1) -> str:
    head = [f':caption: {caption}'] if caption else []
    return '\n'.join(['```{toctree}', ':hidden:', f':maxdepth: {depth}', *head, '', *pages, '```', ''])


def without_ending(path: Path) -> str: return path.with_suffix('').as_posix()


def links_that_lead_out(
    text: str,      # Markdown
    folder: Path,   # where it lies, from the top
) -> str:
    "Links to files that are no pages of the site (code, tests, settings) lead to the repository."
    def replace(found: re.Match) -> str:
        target, anchor = found[1].partition('#')[::2]
        if re.match(r'[a-z]+:', target): return found[0]
        if not target or target.endswith(('.ipynb', '.md', '.png', '.gif', '.svg')):
            slug = re.sub(r'[^\w-]', '', anchor.lower())   # JupyterLab keeps capitals and marks, the site does not
            return f']({target}{"#" + slug if slug else ""})'
        path = os.path.normpath(folder / target)
        if not (TOP / path).exists(): return found[0]
        kind = 'tree' if (TOP / path).is_dir() else 'blob'
        return f"]({settings()['git_url']}/{kind}/{settings()['branch']}/{path}{'#' + anchor if anchor else ''})"
    return NOTEBOOK_LINK.sub(replace, text)


def put(path: Path, data: bytes) -> None:
    "A source of the site; one that is as it was keeps its time, and Sphinx does not read it again."
    target = SITE / path
    WRITTEN.add(target)
    if target.exists() and target.read_bytes() == data: return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def write_page(path: Path, text: str) -> None: put(path, links_that_lead_out(text, path.parent).encode())


def gather_notebooks() -> None:
    taught = {*lessons(), *sessions()}
    for path in source_files('*.ipynb'):
        notebook = site_notebook(nbformat.read(TOP / path, 4), path if path in taught else None)
        for cell in notebook.cells:
            if cell.cell_type == 'markdown': cell.source = links_that_lead_out(cell.source, path.parent)
        put(path, nbformat.writes(notebook).encode())
    for ending in ('png', 'gif', 'svg', 'mp4', 'json'):
        for path in source_files(f'*.{ending}'): put(path, (TOP / path).read_bytes())


def gather_pages() -> None:
    "Pages written as Markdown; a wing's page lists its notebooks."
    for path in source_files('*.md'):
        if path.parent.name not in WINGS: write_page(path, (TOP / path).read_text(encoding='utf-8'))
    for wing, title in WINGS.items():
        page, own = Path('nbs', wing, 'README.md'), TOP / 'nbs' / wing / 'README.md'
        notebooks = [p.stem for p in source_files('*.ipynb') if p.parent == page.parent and p not in sessions()]
        links = '\n'.join(f'- [{n}]({n}.ipynb)' for n in notebooks)
        listed = (f'# {title}\n\nThe notebooks of this wing, each the module `patchgd_nb.{wing}` of the same name:\n\n'
                  f'{links}\n')
        text = own.read_text(encoding='utf-8') if own.exists() else listed
        write_page(page, f'{text}\n{toctree("", notebooks)}')
    for name in ('CONTRIBUTING.md', 'CHANGELOG.md'): write_page(Path(name), (TOP / name).read_text(encoding='utf-8'))
    for path in sorted((TOP / 'docs').glob('*.md')): write_page(path.relative_to(TOP), path.read_text(encoding='utf-8'))
    write_page(Path('index.md'), index_page())


def titled(path: Path) -> str:
    "Entry of a table of contents: the number of a lesson, and its title."
    cells = nbformat.read(TOP / path, 4).cells
    found = next((m for c in cells if c.cell_type == 'markdown' and (m := re.match(r'# +(.+)', c.source))), None)
    title = found[1].strip() if found else path.stem
    number = path.stem.partition('_')[0]
    return f'{title if title.startswith(number.lstrip("0") or "0") else f"{number} {title}"} <{without_ending(path)}>'


def index_page() -> str:
    "The README, and the table of contents of the site."
    readme = (TOP / 'README.md').read_text(encoding='utf-8')
    experiments = [p for p in source_files('train_*.ipynb') if p.parent == Path('nbs')]
    course = [titled(p) for p in sessions()]
    parts = [toctree('Start', ['docs/which_one', 'docs/watch', 'nbs/README']),
             toctree('Lessons', [titled(p) for p in lessons()])]
    if course: parts.append(toctree('Course', course))
    parts += [toctree('For lecturers', ['docs/lecturers']),
              toctree('Experiments', [without_ending(p) for p in experiments]),
              toctree('Wings', [f'{title} <nbs/{w}/README>' for w, title in WINGS.items()]),
              toctree('Reference', ['api/index', 'CONTRIBUTING', 'CHANGELOG'])]
    return readme + '\n' + '\n'.join(parts)


def gather_extra() -> None:
    "What is published as it is: notebooks for students, the wheel that they install, the page of a run."
    student = EXTRA / 'student'
    student.mkdir(parents=True, exist_ok=True)
    for path in (*lessons(), *sessions()):
        notebook = student_notebook(TOP, path, address(), f'{address()}/wheel/{wheel_name()}')
        nbformat.write(notebook, student / path.name)
    hub = EXTRA / 'hub/requirements.txt'
    hub.parent.mkdir(exist_ok=True)
    wheel = f"{settings()['lib_name']} @ {address()}/wheel/{wheel_name()}"
    hub.write_text(f"# For the users' environment of a JupyterHub\n{wheel}\n")
    (EXTRA / '.nojekyll').touch()   # or GitHub's pages leave out folders that begin with an underscore
    newest = max(p.stat().st_mtime for p in (TOP / 'patchgd_nb').rglob('*') if p.suffix in ('.py', '.js', '.html'))
    newest = max(newest, (TOP / 'docs/watch_run.py').stat().st_mtime)
    page = EXTRA / 'watch/run.html'
    if not page.exists() or page.stat().st_mtime < newest:
        from watch_run import save_run
        save_run(page.parent)


def build_wheel() -> None:
    "From a copy, so that nothing is left in the repository."
    copy = PROC / 'wheel_source'
    shutil.rmtree(copy, ignore_errors=True)
    skip = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints', 'runs', 'data', '*.out.ipynb')
    for name in ('patchgd_nb', 'nbs'): shutil.copytree(TOP / name, copy / name, ignore=skip)
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'):
        shutil.copy(TOP / name, copy)
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--disable-pip-version-check', '--no-deps']
    subprocess.run([*pip, str(copy), '-w', str(EXTRA / 'wheel')], check=True)
    shutil.rmtree(copy)


def build(
    out: str | Path,        # folder of the pages
    wheel: bool = True,     # whether to build the wheel that student notebooks install on Colab
    jobs: int = 1,          # processes
) -> str:                   # warnings of Sphinx, a line each
    "Gather the sources, and let Sphinx write the pages."
    WRITTEN.clear()
    gather_notebooks()
    gather_pages()
    for name, page in api_pages(TOP / 'patchgd_nb').items(): put(Path('api', name), page.encode())
    for old in {p for p in SITE.rglob('*') if p.is_file()} - WRITTEN: old.unlink()
    gather_extra()
    if wheel: build_wheel()
    warnings, html = PROC / 'warnings.txt', PROC / 'built/html'   # myst-nb writes pictures beside this folder
    subprocess.run([sys.executable, '-m', 'sphinx', '-b', 'html', '-q', '-n', '-j', str(jobs),
                    '-d', str(PROC / 'doctrees'), '-w', str(warnings), '-c', str(TOP / 'docs'), str(SITE), str(html)],
                   check=True, cwd=TOP)
    out = Path(out)
    for old in out.iterdir() if out.is_dir() else ():
        if old.name == 'slides': continue   # made by another command
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    shutil.copytree(html, out, dirs_exist_ok=True)
    return warnings.read_text(encoding='utf-8')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default=TOP / '_docs', help='folder of the pages')
    parser.add_argument('--no-wheel', action='store_true', help='leave the wheel out')
    parser.add_argument('--jobs', type=int, default=1, help='processes')
    options = parser.parse_args()
    sys.exit(1 if build(options.out, not options.no_wheel, options.jobs) else 0)
