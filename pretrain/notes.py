"""What a run says before it starts, including what will probably not give the paper's numbers."""

import torch
from fvcore.common.config import CfgNode

from pretrain import dist, norm
from pretrain.console import say


def say_start(cfg: CfgNode, *, images: int, per_epoch: int, device: torch.device, amp: str) -> None:
    """Print the set-up in two lines, then one `note:` line for each thing that looks unusual."""
    batch, processes = cfg.SOLVER.IMS_PER_BATCH, dist.world_size()
    groups = f", {norm.groups_of(cfg)} groups" if cfg.MODEL.NORM == "ShuffleBN" else ""
    say(
        f"{images} images, {per_epoch} iterations of {batch} an epoch; {processes} process(es), {device.type}"
    )
    say(f"{cfg.MODEL.ARCH} x {cfg.MODEL.WIDTH:g}, {cfg.MODEL.NORM}{groups}; bf16: {amp}")
    for note in _notes(cfg, images):
        say(f"note: {note}")


def _notes(cfg: CfgNode, images: int) -> list[str]:
    notes = []
    scaled = 0.03 * cfg.SOLVER.IMS_PER_BATCH / 256  # the paper's rate, in proportion to the batch
    rate = cfg.SOLVER.BASE_LR
    if rate < scaled / 3 or rate > scaled * 3:
        notes.append(f"SOLVER.BASE_LR {rate:g}; the paper's rate in proportion to this batch is {scaled:.4g}")
    if images < 2 * cfg.MOCO.K:
        notes.append(
            f"MOCO.K {cfg.MOCO.K} keys from {images} images: the queue holds old views of the same images as "
            f"negatives; MOCO.K {2 ** ((images // 2).bit_length() - 1)} or less avoids most of them"
        )
    if cfg.MODEL.ARCH in ("resnet18", "resnet34") and cfg.MODEL.WIDTH != 1:
        notes.append(
            f"MODEL.WIDTH {cfg.MODEL.WIDTH:g}: detectron2 builds {cfg.MODEL.ARCH} at width 1 only, so the result "
            "cannot be converted"
        )
    if cfg.MODEL.NORM == "ShuffleBN" and not cfg.MOCO.SHUFFLE:
        notes.append("MOCO.SHUFFLE False: batch norm leaks which key belongs to which query (Figure A.1)")
    return notes
