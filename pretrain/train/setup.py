"""A pre-training run: everything that it holds, built from scratch or restored from its last checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from pretrain.common import distributed
from pretrain.common.configs import digest_text
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import write_text
from pretrain.common.run_folder import remove_leftovers, take_up
from pretrain.data import sources, views_sheet
from pretrain.data.folders import Endings, Images
from pretrain.data.loader import iterations_per_epoch
from pretrain.data.on_device import Pixels
from pretrain.model import build, memory, precision
from pretrain.model.contrast import Mechanism
from pretrain.tensor_files.states import Stored
from pretrain.train import resume as restoring
from pretrain.train import start_notes
from pretrain.train.checkpoints import LAST, Progress, is_ours, numbered
from pretrain.train.knn_monitor import Probe, bank_folder


@dataclass
class Run:
    """Everything that a run holds while it trains."""

    cfg: CfgNode
    device: torch.device
    files: Images
    pixels: Pixels
    model: Mechanism
    optimizer: torch.optim.Optimizer
    progress: Progress
    scaler: torch.amp.GradScaler | None
    probe: Probe | None

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def total(self) -> int:
        """Iterations of the whole run, over all sessions."""
        whole = self.cfg.SOLVER.MAX_EPOCH * self.progress.per_epoch
        return min(whole, self.cfg.SOLVER.MAX_ITER or whole)

    @property
    def knn_is_due(self) -> bool:
        """Before the first step, every KNN.PERIOD epochs, and at the end; False without labelled images."""
        done, per_epoch = self.progress.iteration, self.progress.per_epoch
        return self.probe is not None and (
            done % (per_epoch * self.cfg.KNN.PERIOD) == 0 or done == self.total
        )

    @property
    def bf16(self) -> bool:
        return self.progress.amp.startswith("bf16")

    @property
    def amp(self) -> torch.dtype | None:
        """The dtype of the encoders' autocast; None means float32."""
        return torch.float16 if self.scaler else torch.bfloat16 if self.bf16 else None


def set_up(cfg: CfgNode, *, resume: bool | Path, other_processes: bool = False) -> Run:
    """Build everything, load the checkpoint of a resumed run, and write what a new run starts with.

    Args:
        resume: continue from this checkpoint, or, if True, from the last one if there is one.
        other_processes: continue even if another number of processes wrote that checkpoint.
    """
    folder, device = Path(cfg.OUTPUT_DIR), distributed.pick_device(cfg.DEVICE)
    stored = restoring.find(folder, resume=resume)
    files = sources.find(cfg.DATA.TRAIN, Endings(cfg.DATA.ENDINGS))
    _compare(stored, files, device)  # before any process writes
    per_epoch = iterations_per_epoch(len(files), cfg)
    torch.backends.cudnn.benchmark = True
    precision.forbid_tf32()
    channels_last = precision.channels_last(cfg, device)
    pixels = Pixels(cfg.INPUT.MEAN, cfg.INPUT.STD, channels_last=channels_last).to(device)
    probe = Probe(cfg, pixels, device=device) if bank_folder(cfg)[1] else None
    decide = stored is None or cfg.SOLVER.AMP != "auto"
    model, optimizer, decision = build.build(cfg, device, images=len(files), decide=decide)
    progress = Progress(0, per_epoch, len(files), decision, files.digest)
    if stored:
        progress = restoring.restore(
            stored, model, optimizer, cfg=cfg, files=files, other_processes=other_processes
        )
        progress = replace(progress, amp=decision or progress.amp)
        say(f"resuming from {stored.path}, iteration {progress.iteration}")
    elif resume:
        say(f"--resume: no checkpoint in {folder}; starting from scratch")
    scaler = torch.amp.GradScaler(device.type) if progress.amp.startswith("fp16") else None
    if stored and scaler:
        stored.restore_scaler(scaler)
    run = Run(cfg, device, files, pixels, model, optimizer, progress, scaler, probe)
    if distributed.is_main():
        remove_leftovers(folder, is_ours)
        if isinstance(resume, Path):
            take_up(resume, folder / LAST, iteration=progress.iteration, numbered=numbered(folder))
    if progress.iteration < run.total:
        start_notes.say_start(
            cfg, images=len(files), per_epoch=per_epoch, total=run.total, device=device, amp=progress.amp
        )
        start_notes.say_knn(cfg)
        memory.fit(cfg, model, device)
        if distributed.is_main():
            write_text(folder / "config.yaml", digest_text(cfg))
            views_sheet.write(folder / "views.jpg", files, cfg)
    return run


def _compare(stored: Stored | None, files: Images, device: torch.device) -> None:
    """Raise `UserError` in every process if they start from different data: they would wait for each other forever."""
    names = int(files.digest[:15] or "0", 16)  # as many digits as fit in an int64
    own = torch.tensor([[len(files), names, stored.count("iteration") if stored else -1]], device=device)
    if len(distributed.all_gather_interleaved(own).unique(dim=0)) > 1:
        raise UserError(
            "the processes see different images (DATA.TRAIN) or checkpoints (OUTPUT_DIR): put both on storage "
            "that all machines share"
        )
