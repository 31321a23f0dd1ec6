"""Slides from lessons and sessions, by nbconvert and reveal.js.

python docs/slides.py [NOTEBOOK ...] [--out _docs/slides]

Each heading begins a slide; each picture, and what would not fit below it, goes on a slide under it. Reveal.js and
MathJax are copied beside the slides, so that no network is needed in the lecture room."""
import argparse, html, re, shutil, sys
from importlib.metadata import files
from pathlib import Path
import nbformat
from nbconvert import SlidesExporter
sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_site import TOP, lessons, sessions, titled
from site_notebooks import absolute_links, site_notebook

LINES, FULL = 16, 20   # of code on a slide, where a longer cell shows its output only; of everything on a slide
HEADING = re.compile(r'(?m)^(#{1,3}) +')


def is_picture(cell) -> bool:
    data = [o.get('data', {}) for o in cell.get('outputs', [])]
    return any('<img' in d.get('text/html', '') or any(k.startswith('image/') for k in d) for d in data)


def is_hidden(cell) -> bool:
    "Code that a slide leaves out: what is marked, what is long, how a picture is drawn, what mostly imports."
    lines = [l for l in cell.source.splitlines() if l.strip() and not l.lstrip().startswith('#')]
    imports = sum(bool(re.match(r'(import|from)\b|%', l)) for l in lines)
    tags = cell.metadata.get('tags', [])
    marked = re.search(r'(?m)^#\| *(hide_input|code-fold)', cell.source) or 'hide-input' in tags
    return bool(marked) or len(lines) > (4 if is_picture(cell) else LINES) or imports > len(lines) / 2


def size(cell) -> int:
    "Lines that a cell takes on a slide, more or less."
    if cell.cell_type == 'markdown':
        lines = [l for l in cell.source.splitlines() if l.strip()]
        paragraphs = len(re.split(r'\n\s*\n', cell.source))
        return int(sum(1 + len(l) // 80 + 2 * l.startswith('$$') for l in lines) + .5 * paragraphs)
    code = 0 if cell.metadata.get('no_source') else len(cell.source.splitlines())
    text = ''.join(o.get('text', '') or str(o.get('data', {}).get('text/plain', '')) for o in cell.outputs)
    return code + (15 if is_picture(cell) else min(12, text.count('\n') + bool(text)))


def as_slides(notebook, path: Path, site: str):
    "The notebook with the metadata that nbconvert reads."
    hidden = {c.id for c in notebook.cells if c.cell_type == 'code' and is_hidden(c)}
    notebook = site_notebook(notebook, path)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == 'markdown' and 'class="student-links"' in cell.source: continue
        if cell.cell_type == 'code' and cell.id in hidden:
            if not cell.outputs: continue
            cell.metadata['no_source'] = True
        if cell.cell_type == 'markdown':
            cell.source = absolute_links(cell.source, path.parent, site)
            cells += [part for piece in split_at_headings(cell) for part in split_where_full(piece)]
        else: cells.append(cell)
    used = 0
    for i, cell in enumerate(cells):
        heading = HEADING.search(cell.source) if cell.cell_type == 'markdown' else None
        kind = 'slide' if heading and len(heading[1]) < 3 else 'subslide' if heading else ''
        if not kind and cell.cell_type == 'markdown' and cell.source.lstrip().startswith('<details'): kind = 'subslide'
        is_full = used + size(cell) > FULL or cell.cell_type == 'code' and is_picture(cell)
        if not kind and used and is_full: kind = 'subslide'
        cell.metadata['slideshow'] = {'slide_type': kind or '-'}
        used = size(cell) + (0 if kind else used)
    notebook.cells = cells
    return notebook


def split_at_headings(cell) -> list:
    "One cell for each heading of a text."
    parts = [p for p in re.split(r'(?m)^(?=#{1,3} )', cell.source) if p.strip()]
    if len(parts) < 2 or '```' in cell.source: return [cell]
    return [nbformat.v4.new_markdown_cell(p.strip()) for p in parts]


def split_where_full(cell) -> list:
    "One cell for each slide that a text fills; paragraphs, tables and equations stay whole."
    if size(cell) <= FULL or '```' in cell.source or '<details' in cell.source: return [cell]
    parts: list[str] = []
    for paragraph in re.split(r'\n\s*\n', cell.source):
        together = f'{parts[-1]}\n\n{paragraph}' if parts else paragraph
        if parts and size(nbformat.v4.new_markdown_cell(together)) <= FULL: parts[-1] = together
        else: parts.append(paragraph)
    return [nbformat.v4.new_markdown_cell(p) for p in parts]


def copy_scripts(out: Path) -> None:
    "Reveal.js from the package sphinx-revealjs, MathJax from sphinx-mathjax-offline."
    for package, start, folder in (('sphinx-revealjs', 'sphinx_revealjs/_static/revealjs/', 'reveal'),
                                   ('sphinx-mathjax-offline', 'sphinx-mathjax-offline/static/mathjax/', 'mathjax')):
        for file in files(package):
            name = file.as_posix()
            if not name.startswith(start) or name.endswith(('.map', '.esm.js')): continue
            name = name.removeprefix(start)
            if folder == 'mathjax' and name != 'tex-svg.js': continue
            if folder == 'reveal' and not name.startswith(('dist/', 'plugin/notes/')): continue
            target = out / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), target)


def make_slides(
    paths: list[Path],   # of notebooks, from the top of the repository
    out: str | Path,     # folder of the slides
    site: str = '',      # address of the site, for links
) -> list[Path]:
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    copy_scripts(out)
    exporter = SlidesExporter(template_name='slides', extra_template_basedirs=[str(TOP / 'docs/_templates')],
                              reveal_url_prefix='reveal', reveal_theme='white', reveal_transition='none',
                              reveal_number='c/t', reveal_width='1280', reveal_height='800')
    written = []
    for path in paths:
        notebook = as_slides(nbformat.read(TOP / path, 4), path, site)
        about = {'metadata': {'name': path.stem, 'path': str(TOP / path.parent)}}
        page, _ = exporter.from_notebook_node(notebook, about)
        target = out / f'{path.stem}.slides.html'
        target.write_text(page, encoding='utf-8')
        written.append(target)
    names = {p.stem: html.escape(titled(p).rpartition(' <')[0]) for p in paths}
    links = ''.join(f'<li><a href="{stem}.slides.html">{name}</a></li>' for stem, name in names.items())
    (out / 'index.html').write_text('<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width"><title>Slides</title><body style="font: 20px/1.6 system-ui; margin: 2em; '
        'color-scheme: light dark"><h1>Slides</h1><p>Arrows: right to the next heading, down through its '
        f'details; S for the speaker\'s view, F for the whole screen.</p><ul>{links}</ul></body></html>',
        encoding='utf-8')
    return written


if __name__ == '__main__':
    from make_site import address
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('notebooks', nargs='*', type=Path, help='all lessons and sessions unless given')
    parser.add_argument('--out', type=Path, default=TOP / '_docs/slides', help='folder of the slides')
    options = parser.parse_args()
    chosen = [p.resolve().relative_to(TOP) for p in options.notebooks] or [*sessions(), *lessons()]
    for written in make_slides(chosen, options.out, address()): print(written)
