"Write README.md from nbs/index.ipynb, without Quarto.   python .ci/readme.py [file to write]"
import re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

top = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(top))
from patchgd_nb.experiment.gpu_report import fill_in
nb = nbformat.read(top / 'nbs/index.ipynb', 4)
nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
text, _ = MarkdownExporter().from_notebook_node(nb)
text = re.sub(r'\]\((?!https?:|#|\.\./)', '](nbs/', text)   # links are seen from one folder higher
text = text.replace('](../', '](')
text = fill_in(text, top / 'nbs/studies/gpu')   # what a GPU has measured, if one has
note = '<!-- made from nbs/index.ipynb by `make readme`: edit there -->\n\n'
Path(sys.argv[1] if len(sys.argv) > 1 else top / 'README.md').write_text(note + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n', encoding='utf-8')
