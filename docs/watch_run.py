"A short run on synthetic biopsies, saved as a page that plays without a kernel, and as a picture."
from pathlib import Path
import torch
from patchgd_nb import CoverSampler, PatchGD, PatchGrid, PatchModel, Trainer
from patchgd_nb.dashboard.page import about_message
from patchgd_nb.dashboard.player import Replay
from patchgd_nb.dashboard.recorder import FrameRecorder
from patchgd_nb.datasets.biopsy import draw_biopsy
from patchgd_nb.images.canvas import Canvas, content_share
from patchgd_nb.images.readers import ArrayImage


def train(
    epochs: int = 12, lr: float = 3e-3,
) -> Trainer:    # after its run
    "Eight slides of 1024 pixels a side, four a batch, two classes."
    torch.manual_seed(0)
    grid = PatchGrid(1024, 64)
    slides = [Canvas(ArrayImage(draw_biopsy(seed, *[(3, 3), (5, 5)][seed % 2]).pixels), 1024) for seed in range(8)]
    images = torch.stack([torch.from_numpy(s.read(0, 0, 1024, 1024)).movedim(-1, 0) for s in slides])
    content = torch.stack([content_share(s, grid) for s in slides])
    names = [f'slide {i}' for i in range(8)]
    batches = [(images[i:i + 4], torch.arange(4) % 2, content[i:i + 4], names[i:i + 4]) for i in (0, 4)]
    model = PatchModel('test_resnet', grid, 2, latent_dim=32, head='smaller')
    recorder = FrameRecorder('slide 3', every=0, share=1)
    return Trainer(model, PatchGD(CoverSampler(1 / 4)), batches, batches, epochs=epochs, lr=lr, callbacks=[recorder],
                   progress=False).fit()


def save_run(
    folder: str | Path,   # for run.html and run.png, each smaller than 1 MB
) -> None:
    trainer = train()
    about = about_message(trainer.model, trainer.strategy, live=False) | dict(classes=['pattern 3', 'pattern 5'])
    again = Replay(trainer.trace, about, view='static')
    again.save(Path(folder, 'run.html'), max_bytes=600_000)
    again.save(Path(folder, 'run.png'))
