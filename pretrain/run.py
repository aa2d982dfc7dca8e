"""A run of pre-training: everything that it holds, built new or taken up from its last checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from pretrain import build, checkpoint, data, dist, images, memory, norm, notes, snapshot
from pretrain.config import digest_text
from pretrain.console import say
from pretrain.encoders import ResNet
from pretrain.errors import UserError
from pretrain.moco import MoCo
from pretrain.probe import Probe, bank_folder
from pretrain.snapshot import Progress
from pretrain.step import Pixels


@dataclass
class Run:
    """Everything that a run holds."""

    cfg: CfgNode
    device: torch.device
    files: images.ImageFiles
    pixels: Pixels
    model: MoCo
    optimizer: torch.optim.Optimizer
    progress: Progress
    probe: Probe | None

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def total(self) -> int:
        """Iterations of the whole run."""
        whole = self.cfg.SOLVER.MAX_EPOCH * self.progress.per_epoch
        return min(whole, self.cfg.SOLVER.MAX_ITER or whole)

    @property
    def bf16(self) -> bool:
        return self.progress.amp.startswith("bf16")


def set_up(cfg: CfgNode, *, resume: bool) -> Run:
    """Build everything, load the checkpoint of a run that goes on, and write what a new run starts with."""
    folder, device = Path(cfg.OUTPUT_DIR), dist.pick_device(cfg.DEVICE)
    stored = snapshot.find(folder, resume=resume)
    files = images.find_images(cfg.DATA.TRAIN, key="DATA.TRAIN")
    _compare(stored, len(files), device)  # nobody writes before everybody has looked
    per_epoch = data.iterations_per_epoch(len(files), cfg)
    torch.backends.cudnn.benchmark = True
    channels_last = device.type == "cuda" and norm.local_groups(cfg) == 1  # groups need NCHW, see norm
    pixels = Pixels(cfg.INPUT.MEAN, cfg.INPUT.STD, channels_last=channels_last).to(device)
    probe = Probe(cfg, pixels, device=device) if bank_folder(cfg)[1] else None
    model, optimizer, decision = build.build(cfg, device, decide=stored is None or cfg.SOLVER.AMP != "auto")
    progress = Progress(0, per_epoch, len(files), decision)
    if stored:
        progress = snapshot.restore(stored, model, optimizer, cfg=cfg, images=len(files))
        progress = replace(progress, amp=decision or progress.amp)
        say(f"going on from {folder / snapshot.LAST}, iteration {progress.iteration}")
    elif resume:
        say(f"--resume: no checkpoint in {folder}; starting at the beginning")
    run = Run(cfg, device, files, pixels, model, optimizer, progress, probe)
    if progress.iteration < run.total:
        notes.say_start(cfg, images=len(files), per_epoch=per_epoch, device=device, amp=progress.amp)
        if probe and not cfg.KNN.TRAIN:
            say(f"KNN.TRAIN is empty: kNN, leave-one-out, among the class folders of {cfg.DATA.TRAIN[0]}")
        memory.fit(cfg, cast(ResNet, model.encoder_q), device)
        if dist.is_main():
            text = digest_text(cfg)
            checkpoint.write_atomic(folder / "config.yaml", lambda file: file.write(text.encode()))
            _write_views(run)
    return run


def _compare(stored: dict[str, Any] | None, images: int, device: torch.device) -> None:
    """Raise `UserError` in every process if they start from different data: they would wait for ever."""
    own = torch.tensor([[images, stored["iteration"] if stored else -1]], device=device)
    if len(dist.all_gather_interleaved(own).unique(dim=0)) > 1:
        raise UserError(
            "the processes see different images (DATA.TRAIN) or checkpoints (OUTPUT_DIR): put both on storage "
            "that all machines share"
        )


def _write_views(run: Run) -> None:
    """`views.jpg`: eight images as the encoders see them, query views above, key views below."""
    pairs = data.ViewPairs(run.files, run.cfg)
    chosen = data.epoch_order(len(run.files), run.cfg.SEED, 0)[:8]
    columns = []
    for index in chosen:
        pair = pairs[0, int(index)]
        views = [np.pad(view, ((1, 1), (1, 1), (0, 0))) for view in (pair.query, pair.key)]
        columns.append(np.concatenate(views))
    picture = Image.fromarray(np.concatenate(columns, axis=1))
    path = run.folder / "views.jpg"
    checkpoint.write_atomic(path, lambda file: picture.save(file, "JPEG", quality=92))
