"JupyterLab on loopback and a headless Chromium, for the tests that carry the marker `browser`."
from contextlib import contextmanager
import json, os, secrets, shutil, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import psutil
from playwright.sync_api import TimeoutError as TooLate

KERNEL = 'window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel'
# a kernel writes what its threads do when it is asked to: for a test that waits in vain
STACK = '''import faulthandler, os, signal
faulthandler.register(signal.SIGUSR1, open(f'{home}/stack-{{os.getpid()}}', 'w'), all_threads=True)'''
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking']


def chromium(playwright):
    "A browser's path: one that is there, else Debian's package where apt may install it, else Playwright's own download."
    for name in (os.environ.get('CHROMIUM'), 'chromium', 'chromium-browser', 'google-chrome'):
        if name and (path := shutil.which(name)): return path
    own = playwright.chromium.executable_path
    if os.path.exists(own): return own
    if shutil.which('apt-get') and os.getuid() == 0:
        subprocess.run('apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core', shell=True, env=dict(os.environ, DEBIAN_FRONTEND='noninteractive'), timeout=600, stdout=subprocess.DEVNULL)
        if path := shutil.which('chromium'): return path
    subprocess.run([sys.executable, '-m', 'playwright', 'install', 'chromium'], timeout=600)
    if os.path.exists(own): return own
    raise RuntimeError('there is no browser, and none could be installed: install Chromium, or set CHROMIUM to its path.')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@contextmanager
def voila(notebook, home):
    "A notebook as a page, and its address."
    port, token, log = free_port(), secrets.token_hex(16), Path(home) / 'voila.log'
    env = dict(os.environ, JUPYTER_RUNTIME_DIR=f'{home}/run', JUPYTER_CONFIG_DIR=f'{home}/cfg', IPYTHONDIR=f'{home}/ipython', OMP_NUM_THREADS='1')
    process = subprocess.Popen([sys.executable, '-m', 'voila', '--no-browser', '--Voila.ip=127.0.0.1', f'--port={port}', f'--token={token}', str(notebook)], env=env, cwd=Path(notebook).parent, stdout=log.open('w'), stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            if process.poll() is not None: raise RuntimeError(f'Voila ended with {process.returncode}: {log.read_text()[-1000:]}')
            with socket.socket() as s:
                if s.connect_ex(('127.0.0.1', port)) == 0: break
            time.sleep(.1)
        yield f'http://127.0.0.1:{port}/?token={token}'
    finally:
        process.terminate()
        try: process.wait(15)
        except subprocess.TimeoutExpired: process.kill()


class Lab:
    "A server with settings of its own, in a folder of its own."
    def __init__(self, root, home):
        self.port = free_port()
        self.token, self.root, settings = secrets.token_hex(16), Path(root), Path(home) / 'settings/@jupyterlab/apputils-extension'
        settings.mkdir(parents=True)
        (settings / 'notification.jupyterlab-settings').write_text(json.dumps({'fetchNews': 'false', 'checkForUpdates': False, 'doNotDisturbMode': True}))
        startup = Path(home) / 'ipython/profile_default/startup'
        startup.mkdir(parents=True)
        (startup / 'stack.py').write_text(STACK.format(home=home))
        self.home = Path(home)
        env = dict(os.environ, JUPYTERLAB_SETTINGS_DIR=f'{home}/settings', JUPYTERLAB_WORKSPACES_DIR=f'{home}/workspaces', JUPYTER_RUNTIME_DIR=f'{home}/run', JUPYTER_CONFIG_DIR=f'{home}/cfg', IPYTHONDIR=f'{home}/ipython', OMP_NUM_THREADS='1')
        self.log = open(Path(home) / 'lab.log', 'w')
        self.process = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={self.port}', '--ServerApp.port_retries=0', f'--IdentityProvider.token={self.token}',
                                         f'--ServerApp.root_dir={root}', '--LabApp.expose_app_in_browser=True', '--LabApp.extension_manager=readonly'], env=env, cwd=root, stdout=self.log, stderr=subprocess.STDOUT)
        for _ in range(600):
            if self.process.poll() is not None: raise RuntimeError(f'JupyterLab ended with {self.process.returncode}: {Path(home) / "lab.log"} says why.')
            try: return urllib.request.urlopen(f'http://127.0.0.1:{self.port}/api', timeout=2).read() and None
            except OSError: time.sleep(.1)

    def close(self):
        self.process.terminate()
        try: self.process.wait(15)
        except subprocess.TimeoutExpired: self.process.kill()
        self.log.close()

    def ask(self, path, method='GET'):
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}/api/{path}', method=method, headers=dict(Authorization=f'token {self.token}'))
        with urllib.request.urlopen(request, timeout=30) as answer: return json.loads(answer.read() or 'null')

    def shut_down(self):
        "End all kernels: one that is left takes a gigabyte and, if it still works, a core."
        for kernel in self.ask('kernels'): self.ask(f'kernels/{kernel["id"]}', 'DELETE')

    def wait(self, page, condition, seconds):
        "Wait until a condition holds in the page; if it does not, say what page, server and kernels do."
        try: page.wait_for_function(f'() => {condition}', timeout=1000 * seconds)
        except TooLate:
            cells = page.evaluate("() => [...(window.jupyterapp?.shell.currentWidget?.content?.model?.cells ?? [])].map(c => [c.executionCount, c.executionState])")
            kernels = [p for p in psutil.Process(self.process.pid).children() if 'ipykernel' in ' '.join(p.cmdline())]
            for p in kernels: p.send_signal(signal.SIGUSR1)
            time.sleep(2)
            stacks = '\n'.join(f.read_text()[-3000:] for p in kernels if (f := self.home / f'stack-{p.pid}').exists())
            raise AssertionError(f'waited {seconds} s for {condition}: kernels {self.ask("kernels")}, cells {cells}, '
                                 f'page {page.inner_text("body")[-300:]!r}\n{(self.home / "lab.log").read_text()[-2000:]}\n{stacks}') from None

    def open(self, page, name):
        "Open a notebook alone; back when its kernel is idle."
        page.goto(f'http://127.0.0.1:{self.port}/lab/workspaces/auto-t{time.time_ns()}/tree/{name}?token={self.token}')
        page.locator('.jp-NotebookPanel .jp-Notebook').wait_for(timeout=90_000)
        self.wait(page, f"{KERNEL}?.status === 'idle'", 90)

    def start(self, page):
        "Run all cells; `finished` waits for the end."
        page.evaluate("() => { window.__ran = false; window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => window.__ran = true) }")

    def finished(self, page, timeout=240):
        self.wait(page, f"window.__ran && {KERNEL}?.status === 'idle'", timeout)
        return page.evaluate("() => [...window.jupyterapp.shell.currentWidget.content.model.cells].filter(c => c.type === 'code').flatMap(c => c.outputs.toJSON().filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue))")
