"Pages of the modules, read from their syntax trees: nothing is imported, and comments beside arguments are shown."
import ast, io, re, tokenize
from collections.abc import Iterator
from pathlib import Path

KEPT = ('__init__', '__call__')   # of the methods whose names begin with an underscore


def comments_of(
    source: str,         # a module's text
) -> dict[int, str]:     # line number -> the comment at its end
    "Comments by line, which the syntax tree leaves out."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip('# ').strip() for t in tokens if t.type == tokenize.COMMENT}


def escaped(
    text: str,  # words of a comment
) -> str:
    "Markdown that shows these words as they are; what stands between backticks stays code."
    parts = text.split('`')
    parts[::2] = [re.sub(r'([\\*_\[\]<>$|])', r'\\\1', p) for p in parts[::2]]
    return '`'.join(parts)


def documented(
    function: ast.FunctionDef | ast.AsyncFunctionDef,
    comments: dict[int, str],      # of its module
) -> list[tuple[str, str]]:        # (argument or 'return', what the comment beside it says)
    "Comments beside arguments, one argument a line, and beside the result."
    a = function.args
    named = [*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs, *([a.kwarg] if a.kwarg else [])]
    last = {arg.lineno: arg for arg in named}   # a comment belongs to the last argument of its line
    found = [(arg.arg, comments[line]) for line, arg in sorted(last.items()) if line in comments]
    end = function.returns.end_lineno if function.returns else None
    if end in comments and end not in last: found.append(('return', comments[end]))
    return found


def fields(documented_arguments: list[tuple[str, str]]) -> Iterator[str]:
    for name, said in documented_arguments:
        yield f':returns: {escaped(said)}' if name == 'return' else f':param {name}: {escaped(said)}'


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> str:
    "Arguments and result, as the source has them; `self` is left out."
    a = function.args
    if method and a.args and a.args[0].arg in ('self', 'cls'): a.args = a.args[1:]
    result = f' -> {ast.unparse(function.returns)}' if function.returns else ''
    return f'({ast.unparse(a)}){result}'


def directive(kind: str, head: str, options: dict[str, str], body: list[str], fence: str) -> list[str]:
    return [f'{fence}{{py:{kind}}} {head}', *[f':{k}: {v}' for k, v in options.items()], '', *body, fence, '']


def function_page(function, comments: dict[int, str], kind: str = 'function', fence: str = '```') -> list[str]:
    arguments = list(fields(documented(function, comments)))
    body = [ast.get_docstring(function) or '', '', *arguments, '']
    decorators = {ast.unparse(d) for d in function.decorator_list}
    if 'property' in decorators:
        kind, head = 'property', function.name
        options = {'type': ast.unparse(function.returns)} if function.returns else {}
    else:
        head, options = function.name + signature(function, kind == 'method'), {}
        if 'classmethod' in decorators: options['classmethod'] = ''
        if 'staticmethod' in decorators: options['staticmethod'] = ''
    return directive(kind, head, options, body, fence)


def class_page(node: ast.ClassDef, comments: dict[int, str]) -> list[str]:
    "A class with its fields and its methods."
    methods = [f for f in node.body if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
    first = next((f for f in methods if f.name == '__init__'), None)
    bases = ', '.join(ast.unparse(b) for b in node.bases)
    body = [ast.get_docstring(node) or '', '', *([f'Bases: {escaped(bases)}', ''] if bases else [])]
    if first: body += [*fields(documented(first, comments)), '']
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and not ast.unparse(field.target).startswith('_'):
            options = {'type': ast.unparse(field.annotation)}
            if field.value is not None and len(value := ast.unparse(field.value)) <= 60: options['value'] = value
            said = escaped(comments.get(field.end_lineno, ''))
            body += directive('attribute', ast.unparse(field.target), options, [said], '```')
    for method in methods:
        shown = method.name == '__call__' or not method.name.startswith('_')
        if shown: body += function_page(method, comments, 'method', '```')
    return directive('class', node.name + (signature(first, True) if first else ''), {}, body, '````')


def module_page(
    path: str | Path,   # of a module
    name: str,          # as it is imported: 'patchgd_nb.sampler'
) -> str | None:        # Markdown for MyST; None where nothing is handed on
    "The public names of one module, in the order of its source."
    source = Path(path).read_text(encoding='utf-8')
    tree, comments = ast.parse(source), comments_of(source)
    public, lines = _handed_on(tree), []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name in public:
            lines += function_page(node, comments)
        elif isinstance(node, ast.ClassDef) and node.name in public: lines += class_page(node, comments)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in public:
            value = ast.unparse(node.value)
            lines += directive('data', ast.unparse(node.targets[0]), {'value': value} if len(value) <= 60 else {},
                               [escaped(comments.get(node.end_lineno, ''))], '```')
    if not lines: return None
    notebook = re.search(r'File to edit: (?:\.\./)*(nbs/\S+?)\.ipynb', source)
    made_from = [f'Made from [{notebook[1].removeprefix("nbs/")}](../{notebook[1]}.ipynb).', ''] if notebook else []
    head = [f'# {escaped(name)}', '', ast.get_docstring(tree) or '', '', *made_from,
            f'```{{py:module}} {name}', '```', '']
    return '\n'.join(head + lines)


def _handed_on(tree: ast.Module) -> set[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            try: return {*ast.literal_eval(node.value)}
            except ValueError: return set()   # made by a computation: a wing's lazy names
    return set()


def api_pages(
    package: str | Path,   # the folder of the package
) -> dict[str, str]:       # name of a file -> Markdown
    "One page a module, and an index."
    package, pages = Path(package), {}
    for path in sorted(package.rglob('*.py')):
        parts = path.relative_to(package.parent).with_suffix('').parts
        if path.name in ('__init__.py', '_modidx.py') or '__pycache__' in parts: continue
        name = '.'.join(parts)
        if page := module_page(path, name): pages[name] = page
    names = sorted(pages, key=lambda n: (n.count('.') > 1, n))
    index = ['# Modules', '', 'Every public name, with what the comments beside its arguments say; '
             'each page links to the notebook that builds the module, where the reasons are.', '',
             '```{toctree}', ':maxdepth: 1', '', *names, '```', '']
    return {f'{name}.md': page for name, page in pages.items()} | {'index.md': '\n'.join(index)}
