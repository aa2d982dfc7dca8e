"""What a run prints before it starts, including settings that will probably not give the paper's numbers."""

import shlex
import sys
from collections.abc import Sequence

import torch
from fvcore.common.config import CfgNode

from pretrain import config
from pretrain.common import distributed
from pretrain.common.configs import CONFIG_ROOT, get
from pretrain.common.console import say
from pretrain.model import norm, precision
from pretrain.train import alarms
from pretrain.train.knn_monitor import bank_folder


def say_start(
    cfg: CfgNode, *, images: int, per_epoch: int, total: int, device: torch.device, amp: str
) -> None:
    """Print the set-up in three lines, then a `note:` line for each setting that looks unusual.

    Args:
        per_epoch, total: iterations of an epoch and of the whole run.
    """
    batch, processes = cfg.SOLVER.IMS_PER_BATCH, distributed.world_size()
    groups = f", {norm.groups_of(cfg)} groups" if cfg.MODEL.NORM == "ShuffleBN" else ""
    say(
        f"{images} images, {per_epoch} iterations of {batch} per epoch, {total} in all; {processes} process(es), "
        f"{device.type}; results in {cfg.OUTPUT_DIR}"
    )
    say(f"{network(cfg)}, views of {cfg.INPUT.SIZE} pixels, {cfg.MODEL.NORM}{groups}; bf16: {amp}")
    say(_about_chance(cfg, images))
    for note in [*_unused_gpus(device), *_faster_precision(cfg, device), *_notes(cfg, images)]:
        say(f"note: {note}")


def network(cfg: CfgNode) -> str:
    """Return the encoder in a few words."""
    if cfg.MODEL.ARCH != "vit":
        return f"{cfg.MODEL.ARCH} x {cfg.MODEL.WIDTH:g}"
    shape = cfg.MODEL.VIT
    return f"vit of width {shape.WIDTH}, {shape.DEPTH} blocks, {shape.HEADS} heads, patches of {shape.PATCH_SIZE}"


def say_knn(cfg: CfgNode) -> None:
    """Print on which images kNN is measured, or why it is not; nothing if KNN.PERIOD turns it off."""
    if not cfg.KNN.PERIOD:
        return
    key, folder = bank_folder(cfg)
    if key == "DATA.TRAIN":
        say(f"KNN.TRAIN is empty: kNN is measured, leave-one-out, on the class folders of {folder}")
    elif folder:
        say(f"kNN is measured on {cfg.KNN.VAL or folder} (KNN.{'VAL' if cfg.KNN.VAL else 'TRAIN'})")
    else:
        say(
            "kNN is not measured: there are no labelled images, neither class folders in DATA.TRAIN nor a KNN.TRAIN; "
            "training needs none"
        )


def _unused_gpus(device: torch.device) -> list[str]:
    """Return a note on the idle GPUs of this machine if only one process runs: torchrun starts one per GPU."""
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if gpus < 2 or distributed.world_size() > 1:
        return []
    command = f"torchrun --nproc-per-node {gpus} {shlex.join(sys.argv)}"
    return [f"1 of the {gpus} GPUs of this machine is used; to use all of them: {command}"]


def _faster_precision(cfg: CfgNode, device: torch.device) -> list[str]:
    """Return a note that bf16 is faster, where `SOLVER.AMP auto` would take it without timing a step: on a GPU."""
    if cfg.SOLVER.AMP != "off" or device.type != "cuda" or not precision.native_bf16():
        return []
    return [
        "SOLVER.AMP off computes in float32 without TF32, as in the papers; bf16 is faster on this GPU: SOLVER.AMP auto"
    ]


def _about_chance(cfg: CfgNode, images: int) -> str:
    """Return a sentence on the loss of a run that learns nothing, so that the log can be read."""
    young = {
        "moco": "; the loss is lower at first, while the queue still holds noise",
        "memorybank": "; the loss is higher in the first epoch, while the bank still holds noise",
    }.get(cfg.MOCO.MECHANISM, "")
    count, chance = alarms.negatives(cfg, images=images), alarms.chance_loss(cfg, images=images)
    factor = f"4 x {cfg.MOCO.T:g} x " if cfg.MOCO.MECHANISM == "mocov3" else ""
    return f"a loss near {factor}ln({count} + 1) = {chance:.2f} is chance: the model cannot tell the keys apart{young}"


def unreached_steps(steps: Sequence[int], epochs: int) -> list[str]:
    """Return a note if a learning-rate drop comes after the last epoch, as when a recipe is shortened."""
    late = [step for step in steps if step >= epochs]
    if not late:
        return []
    return [f"SOLVER.STEPS {list(steps)}: epoch {late[0]} is not reached in SOLVER.MAX_EPOCH {epochs}, so the learning "
            "rate stays high; scale both alike"]  # fmt: skip


def _as_shipped(cfg: CfgNode) -> bool:
    """Return whether network, views, batch and rate are those of a config of this project, which are deliberate."""
    keys = ("MODEL.ARCH", "MODEL.WIDTH", "INPUT.SIZE", "SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR")
    shipped = (config.load(str(path)) for path in sorted((CONFIG_ROOT / "pretrain").glob("*.yaml")))
    return any(all(get(cfg, key) == get(other, key) for key in keys) for other in shipped)


def _paper_rate(cfg: CfgNode) -> float:
    """Return the papers' learning rate for a batch of 256 (MoCo v3: LARS 0.6 for 100 epochs, 0.3 for more)."""
    if cfg.SOLVER.OPTIMIZER == "lars":
        return 0.6 if cfg.SOLVER.MAX_EPOCH <= 100 else 0.3
    return 1.5e-4 if cfg.SOLVER.OPTIMIZER == "adamw" else 0.03


def _notes(cfg: CfgNode, images: int) -> list[str]:
    notes = []
    batch, rate = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR
    base = _paper_rate(cfg)
    scaled = base * batch / 256  # the ratio of every recipe in the papers, also 0.12 at 1024
    if not scaled / 2 < rate < scaled * 2 and not _as_shipped(cfg):
        notes.append(
            f"SOLVER.BASE_LR {rate:g} for a batch of {batch}: the paper's {base:g} for 256 corresponds to {scaled:.4g}"
        )
    if cfg.SOLVER.SCHEDULE == "warmup_cosine" and cfg.SOLVER.WARMUP_EPOCHS >= cfg.SOLVER.MAX_EPOCH:
        notes.append(
            f"SOLVER.WARMUP_EPOCHS {cfg.SOLVER.WARMUP_EPOCHS:g} is the whole run (SOLVER.MAX_EPOCH "
            f"{cfg.SOLVER.MAX_EPOCH}): the learning rate never falls; scale both alike"
        )
    notes += unreached_steps(cfg.SOLVER.STEPS if cfg.SOLVER.SCHEDULE == "step" else [], cfg.SOLVER.MAX_EPOCH)
    usable = 2 ** (max(images // 2, 1).bit_length() - 1)
    if cfg.MOCO.MECHANISM == "moco" and images < 2 * cfg.MOCO.K:
        notes.append(
            f"MOCO.K {cfg.MOCO.K} keys from {images} images: the queue holds old views of the same images as "
            f"negatives; MOCO.K {usable} or less avoids most of them"
        )
    if cfg.MOCO.MECHANISM == "memorybank" and images < 2 * cfg.MOCO.K:
        notes.append(
            f"MOCO.K {cfg.MOCO.K} negatives from {images} images: many are drawn more than once in a step; "
            f"MOCO.K {usable} is just as informative"
        )
    if cfg.MODEL.ARCH in ("resnet18", "resnet34") and cfg.MODEL.WIDTH != 1 and not _as_shipped(cfg):
        notes.append(
            f"MODEL.WIDTH {cfg.MODEL.WIDTH:g}: detectron2 builds {cfg.MODEL.ARCH} only at width 1, so the result "
            "cannot be converted"
        )
    leaks = "batch norm leaks which key belongs to which query (Figure A.1)"
    if cfg.MODEL.NORM == "ShuffleBN" and not cfg.MOCO.SHUFFLE and cfg.MOCO.MECHANISM != "memorybank":
        notes.append(f"MOCO.SHUFFLE False: {leaks}")
    if cfg.MODEL.NORM == "BN" and cfg.MOCO.MECHANISM != "memorybank":
        notes.append(f"MODEL.NORM BN: {leaks}; ShuffleBN prevents it")
    return notes
