"All settings are in settings.ini; edit there, not here."
from configparser import ConfigParser
from pathlib import Path
import shlex, setuptools
from setuptools.command.build_py import build_py

cp = ConfigParser(delimiters=['='])
cp.read('settings.ini', encoding='utf-8')
cfg = cp['DEFAULT']
lib = cfg['lib_path']
pythons = ['3.10', '3.11', '3.12', '3.13', '3.14']


class BuildWithNotebooks(build_py):
    "The notebooks travel in the wheel, as patchgd_nb/notebooks; see nbs/experiment/notebooks.ipynb."
    def run(self):
        super().run()
        if self.editable_mode: return   # a checkout has them in nbs
        for path in sorted(Path('nbs').rglob('*')):
            parts = path.relative_to('nbs').parts
            if path.suffix not in ('.ipynb', '.md', '.png', '.json') or path.name.endswith('.out.ipynb'): continue
            if any(part[0] == '.' or part in ('runs', 'data') for part in parts): continue
            target = Path(self.build_lib, lib, 'notebooks', *parts)
            self.mkpath(str(target.parent))
            self.copy_file(str(path), str(target))


setuptools.setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Developers', 'Intended Audience :: Science/Research'] +
                [f'Programming Language :: Python :: {v}' for v in pythons[pythons.index(cfg['min_python']):]],
    packages=setuptools.find_packages(include=[lib, lib + '.*']),
    install_requires=shlex.split(cfg['requirements']),
    extras_require={'docs': shlex.split(cfg['docs_requirements']), 'track': shlex.split(cfg['track_requirements']),
                    'dev': sum((shlex.split(cfg[f'{name}_requirements']) for name in ('dev', 'docs', 'track')), [])},   # every extra
    python_requires='>=' + cfg['min_python'],
    long_description=open('README.md', encoding='utf-8').read(), long_description_content_type='text/markdown',
    package_data={lib: ['py.typed', '**/*.js', '**/*.html']}, zip_safe=False,
    cmdclass={'build_py': BuildWithNotebooks},
    entry_points={'console_scripts': shlex.split(cfg['console_scripts']), 'nbdev': [f'{lib}={lib}._modidx:d']})
