"Settings of Sphinx; `docs/make_site.py` gathers the sources in `_proc/site` and calls it."
from configparser import ConfigParser
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
_parser = ConfigParser(delimiters=['='])
_parser.read(TOP / 'settings.ini', encoding='utf-8')
_settings = _parser['DEFAULT']

project, author, copyright = _settings['title'], _settings['author'], _settings['copyright']
version = release = _settings['version']
extensions = ['myst_nb', 'sphinx-mathjax-offline']
exclude_patterns = ['**/.ipynb_checkpoints']
nb_execution_mode = 'off'
nb_render_markdown_format = 'myst'
myst_enable_extensions = ['amsmath', 'attrs_inline', 'colon_fence', 'deflist', 'dollarmath', 'fieldlist']
myst_heading_anchors = 4
myst_dmath_double_inline = True

python_maximum_signature_line_length = 88
add_module_names = False
nitpick_ignore_regex = [('py:.*', '.*')]      # annotations name what other libraries define
suppress_warnings = ['myst.header']           # a README may begin below a title

html_theme = 'sphinx_book_theme'
html_title = project
html_static_path = ['_static']
html_css_files = ['site.css']
html_extra_path = ['../_proc/extra']
html_baseurl = _settings['doc_host'] + _settings['doc_baseurl'] + '/'
html_show_sourcelink = False
html_copy_source = False
html_theme_options = dict(
    repository_url=_settings['git_url'], repository_branch=_settings['branch'], use_repository_button=True,
    use_download_button=False, use_fullscreen_button=False, show_toc_level=2, home_page_in_toc=True,
    navbar_persistent=[],
    show_navbar_depth=1)
