"""The checks of a pre-training config: values that no run can work with, each refused in one line."""

import itertools
from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode

from pretrain.common.configs import get
from pretrain.common.errors import UserError
from pretrain.data.folders import Endings
from pretrain.data.views import PAIRS, PARTS
from pretrain.model.encoders import ARCHITECTURES, architecture, projection_head

_CHOICES = {
    "MODEL.NORM": ("ShuffleBN", "SyncBN", "BN"),
    "MOCO.MECHANISM": ("moco", "endtoend", "memorybank", "mocov3"),
    "INPUT.AUG": tuple(PAIRS),
    "INPUT.VIEWS": ("cpu", "gpu"),
    "SOLVER.OPTIMIZER": ("sgd", "lars", "adamw"),
    "SOLVER.SCHEDULE": ("cosine", "step", "exponential", "warmup_cosine"),
    "SOLVER.AMP": ("auto", "bf16", "fp16", "off"),
    "SOLVER.SAVE_ERRORS": ("stop", "continue"),
    "DEVICE": ("auto", "cpu", "cuda"),
}

_POSITIVE = (
    "MODEL.DIM", "MODEL.HIDDEN", "MODEL.VIT.WIDTH", "MODEL.VIT.DEPTH", "MODEL.VIT.HEADS", "MODEL.VIT.PATCH_SIZE",
    "MODEL.BN_GROUP_SIZE", "MOCO.K", "MOCO.T", "INPUT.SIZE", "SOLVER.IMS_PER_BATCH",
    "SOLVER.GAMMA", "SOLVER.GAMMA_PERIOD", "SOLVER.MAX_EPOCH", "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.LOG_PERIOD", "KNN.K", "KNN.T", "KNN.MAX_IMAGES",
)  # fmt: skip

_RANGES: dict[str, tuple[float, float]] = {  # both ends included
    "MOCO.M": (0, 1),
    "MOCO.BANK_M": (0, 1),
    "INPUT.MIN_SCALE": (1e-6, 1),
    "DATA.MAX_BROKEN": (0, 1),
    "DATA.NUM_WORKERS": (0, 1024),
    "SOLVER.BASE_LR": (0, float("inf")),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.WEIGHT_DECAY": (0, float("inf")),
    "SOLVER.WARMUP_EPOCHS": (0, float("inf")),
    "SOLVER.CHUNK": (0, float("inf")),
    "SOLVER.MAX_ITER": (0, float("inf")),
    "SOLVER.KEEP_LAST": (0, float("inf")),
    "SOLVER.SAVE_MINUTES": (0, float("inf")),
    "KNN.PERIOD": (0, float("inf")),
    "SEED": (0, 2**63),
}


def validate(cfg: CfgNode, *, processes: int = 1) -> None:
    """Raise `UserError` if a value cannot work with this number of processes."""
    for key, choices in _CHOICES.items():
        if get(cfg, key) not in choices:
            raise UserError(f"{key} {get(cfg, key)}: choose {' or '.join(choices)}")
    for key in _POSITIVE:
        if not get(cfg, key) > 0:
            raise UserError(f"{key} {get(cfg, key)}: must be positive")
    for key, (low, high) in _RANGES.items():
        if not low <= get(cfg, key) <= high:
            raise UserError(f"{key} {get(cfg, key)}: must be between {low:g} and {high:g}")
    for part in cfg.INPUT.WITHOUT:
        if part not in PARTS:
            raise UserError(f"INPUT.WITHOUT {part}: choose from {' '.join(PARTS)}")
    Endings(cfg.DATA.ENDINGS)
    _check_pixels(cfg.INPUT.MEAN, cfg.INPUT.STD)
    _check_network(cfg)
    if cfg.MODEL.STEM_CHANNELS < 0:
        raise UserError(f"MODEL.STEM_CHANNELS {cfg.MODEL.STEM_CHANNELS}: give 0 (64 x MODEL.WIDTH) or more")
    projection_head(cfg.MODEL.HEAD, 1, 1)
    if cfg.KNN.VAL and not cfg.KNN.TRAIN:
        raise UserError(
            "KNN.VAL needs KNN.TRAIN: set it to a folder of class folders, in which neighbours are searched"
        )
    _check_batch(cfg, processes)


def _check_network(cfg: CfgNode) -> None:
    model, v3 = cfg.MODEL, cfg.MOCO.MECHANISM == "mocov3"
    if model.ARCH not in (*ARCHITECTURES, "vit"):
        raise UserError(
            f"MODEL.ARCH {model.ARCH}: unknown architecture; choose one of {', '.join(ARCHITECTURES)}, vit"
        )
    if v3 and model.NORM != "SyncBN":
        raise UserError(f"MODEL.NORM {model.NORM}: MoCo v3 (MOCO.MECHANISM mocov3) needs MODEL.NORM SyncBN")
    if cfg.SOLVER.CHUNK and model.ARCH != "vit":
        raise UserError(
            f"SOLVER.CHUNK {cfg.SOLVER.CHUNK}: a ResNet normalises over the whole batch, so chunks would change the "
            "result: use SOLVER.CHUNK 0, or MODEL.ARCH vit"
        )
    if model.ARCH != "vit":
        _check_width(model.ARCH, model.WIDTH)
        return
    if not v3:
        raise UserError("MODEL.ARCH vit: only MoCo v3 trains a ViT: set MOCO.MECHANISM mocov3")
    if cfg.SOLVER.CHUNK and model.COMPILE:
        raise UserError("SOLVER.CHUNK does not work with MODEL.COMPILE: set one of them to 0 or False")
    if model.WIDTH != 1 or model.STEM_CHANNELS:
        raise UserError("MODEL.WIDTH and MODEL.STEM_CHANNELS are for ResNets: use MODEL.VIT.WIDTH for a ViT")
    width, patch, size = model.VIT.WIDTH, model.VIT.PATCH_SIZE, cfg.INPUT.SIZE
    if width % model.VIT.HEADS or width % 4:
        raise UserError(
            f"MODEL.VIT.WIDTH {width}: must be a multiple of MODEL.VIT.HEADS {model.VIT.HEADS} and of 4"
        )
    if size % patch:
        raise UserError(
            f"INPUT.SIZE {size}: must be a multiple of MODEL.VIT.PATCH_SIZE {patch}: use INPUT.SIZE "
            f"{max(round(size / patch), 1) * patch}"
        )


def _check_width(name: str, width: float) -> None:
    if architecture(name, width).width_per_group < 1:
        # Number of stem channels at which each group of a convolution still has one channel, rounded up.
        narrowest = -(-64 // architecture(name).width_per_group)
        raise UserError(f"MODEL.WIDTH {width}: {name} needs {narrowest / 64:g} or more")


def _check_pixels(mean: Sequence[Any], std: Sequence[Any]) -> None:
    for key, values in (("INPUT.MEAN", mean), ("INPUT.STD", std)):
        if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
            raise UserError(f"{key} {list(values)}: must be three numbers, for R, G and B in [0, 1]")
    if min(std) <= 0:
        raise UserError(f"INPUT.STD {list(std)}: must be positive")


def _check_batch(cfg: CfgNode, processes: int) -> None:
    batch, size = cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.BN_GROUP_SIZE
    if batch % processes:
        whole = max(batch // processes, 2 if cfg.MODEL.NORM == "BN" else 1) * processes
        use = _batch_for_groups(whole, size, processes) if cfg.MODEL.NORM == "ShuffleBN" else whole
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch} does not divide evenly into {processes} processes: use "
            f"SOLVER.IMS_PER_BATCH {use}"
        )
    if cfg.MODEL.NORM == "ShuffleBN":
        _check_groups(batch, size, processes)
    elif cfg.MODEL.NORM == "BN" and batch // processes < 2:
        raise UserError(
            f"MODEL.NORM BN normalises over the images of each process, here {batch // processes}: use "
            f"SOLVER.IMS_PER_BATCH {2 * processes} or more, or MODEL.NORM SyncBN"
        )
    elif batch < 2:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch}: batch norm needs 2 or more images: use SOLVER.IMS_PER_BATCH 2"
        )


def _check_groups(batch: int, size: int, processes: int) -> None:
    fitting = _group_sizes(batch, processes)
    if size in fitting:
        return
    if not fitting:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH {batch} on {processes} process(es) does not divide into groups (at least two, each "
            f"of 2 or more images): use SOLVER.IMS_PER_BATCH {_batch_for_groups(batch, size, processes)}, or "
            "MODEL.NORM SyncBN"
        )
    use = f"use MODEL.BN_GROUP_SIZE {_nearest(fitting, size)}"
    if size < 2:
        raise UserError(f"MODEL.BN_GROUP_SIZE {size}: ShuffleBN needs 2 or more images in a group; {use}")
    if batch <= size:
        raise UserError(
            f"MODEL.BN_GROUP_SIZE {size}: ShuffleBN needs at least two groups in SOLVER.IMS_PER_BATCH "
            f"{batch} to shuffle between; {use}"
        )
    local = batch // processes
    raise UserError(
        f"MODEL.BN_GROUP_SIZE {size} does not fit {local} images on each of {processes} process(es): {use}"
    )


def _batch_for_groups(batch: int, size: int, processes: int) -> str:
    """Return advice: the first usable batch size of `batch`, `batch` + `processes`, ..., and a group size for it."""
    usable = next(n for n in itertools.count(batch, processes) if _group_sizes(n, processes))
    return f"{usable} with MODEL.BN_GROUP_SIZE {_nearest(_group_sizes(usable, processes), size)}"


def _group_sizes(batch: int, processes: int) -> list[int]:
    """Return the sizes of two or more equal groups that do not cross processes, or that consist of whole processes."""
    local = batch // processes
    sizes = [n for n in range(2, batch // 2 + 1) if not batch % n]
    return [n for n in sizes if not local % n or not n % local]


def _nearest(sizes: list[int], wanted: int) -> int:
    return min(sizes, key=lambda size: abs(size - wanted))
