"A run's trace in TensorBoard, Weights & Biases, MLflow and trackio: each point once, also after a crash."
import json, os, subprocess, sys, warnings
from pathlib import Path
import pytest, torch
from torch import nn
from patchgd_nb import MLflowLog, TensorBoardLog, TrackioLog, WandbLog
from patchgd_nb.dashboard import PatchGDDashboard
from patchgd_nb.experiment.tracking import TraceLog, batch_points, epoch_points
from patchgd_nb.model import PatchModel
from patchgd_nb.patches import PatchGrid
from patchgd_nb.sampler import CoverSampler
from patchgd_nb.strategy import GradientDescent, PatchGD
from patchgd_nb.trainer import Trainer
from patchgd_nb.training.callback import Callback
from patchgd_nb.training.trace import Trace

EPOCHS, BATCHES, J = 3, 4, 4
LOSSES = [J * (i + 1) for i in range(EPOCHS * BATCHES)]
METRICS = [J * BATCHES * (i + 1) for i in range(EPOCHS)]


class Crash(Callback):
    "The power goes in the middle of an epoch: nothing more is written."
    def __init__(self, epoch, batch): self.place = epoch, batch
    def on_batch_end(self, trainer, result):
        if (trainer.epoch, trainer.batch) == self.place: os._exit(7)


def train(folder, *callbacks, epochs=EPOCHS, resume=False, strategy=None):
    torch.manual_seed(0)
    model = PatchModel(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 8)), PatchGrid(32, 8), 3, 8, 'smaller')
    images = torch.randint(0, 255, (2 * BATCHES, 3, 32, 32), dtype=torch.uint8)
    data = [(images[i:i + 2], torch.tensor([0, 1]), None, [f'im{i}', f'im{i + 1}']) for i in range(0, 2 * BATCHES, 2)]
    return Trainer(model, strategy or PatchGD(CoverSampler(1 / J)), data, data[:1], epochs=epochs, checkpoint=folder, callbacks=callbacks, device='cpu', progress=False, schedule=lambda share: 1.).fit(resume)


def crashed(folder, log, epoch=1, batch=2):
    "The run in a process of its own, which ends without a word; the log is ahead of the last checkpoint by then."
    code = f'''import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_tracking import *
train({str(folder)!r}, PatchGDDashboard('text'), {log}, Crash({epoch}, {batch}))'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 7, done.stderr[-3000:]


def tensorboard_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    log, = (folder / 'tensorboard').iterdir()
    return EventAccumulator(str(log)).Reload()


class ListLog(TraceLog):
    def __init__(self, fail=0, **options):
        super().__init__(**options)
        self.points, self.pictures_sent, self.fail, self.outcome = [], [], fail, None
    def send(self, points):
        if self.fail: self.fail -= 1; raise ConnectionError('no network')
        self.points += points
    def send_picture(self, step, name, pixels): self.pictures_sent.append((step, pixels.shape))
    def close(self, outcome): self.outcome = outcome
    def steps(self, name): return [step for step, values in self.points if name in values]


def test_points_are_the_trace():
    run = train(None, epochs=2)
    points = batch_points(run.trace)
    assert [step for step, _ in points] == LOSSES[:8]
    assert [v['train/loss'] for _, v in points] == pytest.approx([sum(run.trace.inner.losses[i:i + J]) / J for i in range(0, 32, J)])
    every = batch_points(run.trace, every=3)
    assert [step for step, _ in every] == [12, 24] and every[0][1]['train/loss'] == pytest.approx(sum(run.trace.inner.losses[:12]) / 12)
    assert batch_points(run.trace, start=12, every=3) == every[1:] and batch_points(run.trace, start=32) == [] == batch_points(Trace())
    assert [(step, v['valid/loss']) for step, v in epoch_points(run.trace, 0, 2)] == [(e, m['loss']) for e, m in zip((16, 32), run.trace.epochs)]
    assert epoch_points(run.trace, 1, 1) == [] == epoch_points(Trace(), 0, 3)


@pytest.mark.parametrize('seconds', [0, 1000])
def test_each_point_once_however_often_it_sends(tmp_path, seconds):
    log = ListLog(seconds=seconds)
    run = train(tmp_path, PatchGDDashboard('text'), log)
    assert log.steps('train/loss') == LOSSES and log.steps('valid/loss') == METRICS and log.outcome == 'finished'
    assert log.pictures_sent == [(step, (256, 256, 3)) for step in METRICS]
    run.epochs += 1
    run.fit()   # and goes on
    assert log.steps('train/loss') == [*LOSSES, *(LOSSES[-1] + J * (i + 1) for i in range(BATCHES))] and len(log.steps('valid/loss')) == EPOCHS + 1


def test_a_stop_inside_an_epoch_doubles_nothing(tmp_path):
    "The epoch that was broken off is measured for the eye, and once more when it is over: the log has it once."
    class Stop(Callback):
        def on_batch_end(self, trainer, result): trainer.stop = trainer.stop or (trainer.epoch, trainer.batch) == (1, 2)
    first, second = ListLog(), ListLog()
    train(tmp_path, first, Stop())
    train(tmp_path, second, resume=True)
    assert first.outcome == 'stopped' and first.steps('valid/loss') == METRICS[:1] and first.steps('train/loss') == LOSSES[:6]
    assert second.steps('train/loss') == LOSSES[6:] and second.steps('valid/loss') == METRICS[1:]


def test_another_run_in_the_folder_is_another_log(tmp_path):
    names = []
    for resume in (False, False, True):
        log = ListLog()
        train(tmp_path, log, epochs=1, resume=resume)
        names.append(log.state['run'])
    assert names[0] != names[1] == names[2] and names[0].startswith('-'.join(tmp_path.parts[-2:])) and log.steps('train/loss') == []


def test_a_network_that_fails_is_a_warning(tmp_path):
    log = ListLog(fail=2, seconds=0)
    with pytest.warns(UserWarning, match='could not send .ConnectionError: no network.; training goes on'): train(tmp_path, log)
    assert log.steps('train/loss') == LOSSES and log.steps('valid/loss') == METRICS


def test_what_is_missing_is_said_before_training(tmp_path, monkeypatch):
    from patchgd_nb.experiment import tracking
    with pytest.raises(ValueError, match='ListLog has no folder .*folder=.runs/a'): train(None, ListLog())
    assert train(None, log := ListLog(folder=tmp_path)) and log.steps('train/loss') == LOSSES
    monkeypatch.setattr(tracking, 'find_spec', lambda name: None)
    for kind in (TensorBoardLog, WandbLog, MLflowLog, TrackioLog):
        with pytest.raises(ValueError, match=f'{kind.package}, which {kind.__name__} writes with, is not installed: `pip install {kind.package}`'): kind()
    class Closed(TraceLog):
        def open(self, trainer, run, settings): raise PermissionError('no account')
    with pytest.raises(ValueError, match='Closed cannot open its log .no account.'): train(tmp_path / 'b', Closed())


def test_one_rank_of_several_writes(tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    log = ListLog()
    train(tmp_path, log, epochs=1)
    assert log.points == [] and not (tmp_path / 'tracking.json').exists()


def test_whole_images_are_tracked_without_pictures(tmp_path):
    log = ListLog()
    train(tmp_path, PatchGDDashboard('text'), log, strategy=GradientDescent())
    assert log.steps('train/loss') == list(range(1, EPOCHS * BATCHES + 1)) and not log.pictures_sent


def test_logs_go_on_after_a_crash(tmp_path, monkeypatch):
    "TensorBoard and MLflow, ahead of the last checkpoint when the run ended without a word, have each point once in the end."
    monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'store').as_uri())
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    run = tmp_path / 'run'
    crashed(run, 'TensorBoardLog(seconds=0), MLflowLog(seconds=0)')
    before = [e.step for e in tensorboard_events(run).Scalars('train/loss')]
    assert before in (LOSSES[:5], LOSSES[:6]) and before[-1] > BATCHES * J   # beyond the checkpoint of the first epoch
    with pytest.warns(UserWarning, match='its lock is taken over'): train(run, PatchGDDashboard('text'), TensorBoardLog(), MLflowLog(), resume=True)
    events = tensorboard_events(run)
    assert [e.step for e in events.Scalars('train/loss')] == LOSSES == [e.step for e in events.Scalars('train/lr')]
    assert [e.step for e in events.Scalars('valid/loss')] == METRICS == [e.step for e in events.Images('Z')]
    assert len(events.Tensors('settings/text_summary')) == 1
    from mlflow import MlflowClient
    client = MlflowClient()
    found, = client.search_runs([client.get_experiment_by_name('patchgd').experiment_id])
    assert found.info.status == 'FINISHED' and found.data.params['precision'] == "'off'"
    assert [m.step for m in client.get_metric_history(found.info.run_id, 'train/loss')] == LOSSES
    assert [m.step for m in client.get_metric_history(found.info.run_id, 'valid/loss')] == METRICS
    assert len([f for f in client.list_artifacts(found.info.run_id, 'images') if f.path.endswith('.png')]) == EPOCHS


def wandb_records(data):
    "The records of a run file: LevelDB's log, in blocks of 32 KiB, behind seven bytes of wandb's own."
    at, parts = 7, b''
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7: at += 2**15 - at % 2**15   # no room for a header: the block ends here
        size, kind = int.from_bytes(data[at + 4:at + 6], 'little'), data[at + 6]
        parts, at = (parts if kind in (3, 4) else b'') + data[at + 7:at + 7 + size], at + 7 + size   # 1 whole, 2 first, 3 middle, 4 last
        if kind in (1, 4): yield parts


def wandb_rows(folder):
    from wandb.proto.wandb_internal_pb2 import Record
    rows = []
    for path in sorted(folder.glob('wandb/offline-run-*/run-*.wandb')):
        for record in map(Record.FromString, wandb_records(path.read_bytes())):
            if record.WhichOneof('record_type') == 'history': rows.append({'/'.join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    return rows


def test_wandb_goes_on(tmp_path, monkeypatch):
    for name, value in dict(WANDB_MODE='offline', WANDB_SILENT='true', WANDB_DIR=str(tmp_path), WANDB_CONFIG_DIR=str(tmp_path / 'c'), WANDB_CACHE_DIR=str(tmp_path / 'c'), WANDB_DATA_DIR=str(tmp_path / 'c')).items(): monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')   # wandb's own, on resuming offline
        train(tmp_path, PatchGDDashboard('text'), WandbLog(), epochs=1)
        train(tmp_path, PatchGDDashboard('text'), WandbLog(), resume=True)
    rows = wandb_rows(tmp_path)
    assert [r['_step'] for r in rows if 'train/loss' in r] == LOSSES and [r['_step'] for r in rows if 'valid/loss' in r] == METRICS
    assert len({p.name.rpartition('-')[2] for p in tmp_path.glob('wandb/offline-run-*')}) == 1   # one run, in two parts


@pytest.mark.slow
def test_trackio_goes_on(tmp_path, monkeypatch):
    pytest.importorskip('trackio')
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'store'))
    code = f'''import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_tracking import *
import sqlite3
folder = Path({str(tmp_path)!r})
train(folder / 'run', PatchGDDashboard('text'), TrackioLog(), epochs=1)
train(folder / 'run', PatchGDDashboard('text'), TrackioLog(), resume=True)
rows = [(step, json.loads(values)) for path in (folder / 'store').glob('*.db') for step, values in sqlite3.connect(path).execute('select step, metrics from metrics order by id')]
assert [step for step, v in rows if 'train/loss' in v] == LOSSES and [step for step, v in rows if 'valid/loss' in v] == METRICS, rows'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_experiment_is_tracked_by_a_parameter(tmp_path):
    "`-p track tensorboard`: what is missing is said before anything is made."
    from patchgd_nb.experiment import parameters
    from patchgd_nb.experiment.command import read_defaults
    defaults = read_defaults(Path(__file__).resolve().parents[1] / 'nbs/train_har.ipynb')
    assert parameters.Har.check(defaults).trackers == []
    for name, kind in dict(tensorboard=TensorBoardLog, wandb=WandbLog, mlflow=MLflowLog).items():
        log, = parameters.Har.check(defaults | dict(track=name)).trackers
        assert type(log) is kind
    with pytest.raises(ValueError, match='track=.tensorbord. is not .*did you mean tensorboard'): parameters.Har.check(defaults | dict(track='tensorbord'))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parameters, 'find_spec', lambda name: None)
        with pytest.raises(ValueError, match='track=.wandb. needs wandb, which is not installed: `pip install wandb`'): parameters.Har.check(defaults | dict(track='wandb'))
