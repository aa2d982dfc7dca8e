"""Overrides for a shorter schedule (`--schedule 0.1`) and for smoke runs (`--smoke`)."""

import math
from typing import Any

from fvcore.common.config import CfgNode

from pretrain.common.errors import UserError

STAND_IN = "stand_in.pth"  # a random quarter-width ResNet-50 that replaces downloaded weights
STAND_IN_VIT = "stand_in_vit.pth"  # the same for ViTs: a random narrow one
_WIDTH = 0.25
# A quarter-width network and few proposals: the same modules, at a fraction of the cost.
_NARROW = ("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
           "MODEL.RESNETS.WIDTH_PER_GROUP", "16")  # fmt: skip
_FINETUNE = (
    "SOLVER.MAX_ITER", "3", "SOLVER.STEPS", "(2,)", "SOLVER.WARMUP_ITERS", "1",
    "SOLVER.BASE_LR", "0.001", "SOLVER.LOG_PERIOD", "1", "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64",
    "INPUT.MAX_SIZE_TRAIN", "96", "INPUT.MAX_SIZE_TEST", "96", "TEST.PRECISE_BN.NUM_ITER", "1",
    "DATALOADER.NUM_WORKERS", "0", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100", "MODEL.RPN.PRE_NMS_TOPK_TEST", "50",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "20",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "TEST.PICTURES", "4", "LOG.TENSORBOARD", "False",
)  # fmt: skip
# Long enough for the running statistics to leave their initial values, with which features grow to 1e30.
_PRETRAIN = (
    "SOLVER.MAX_ITER", "25", "SOLVER.BASE_LR", "0.001", "SOLVER.AMP", "off", "SOLVER.LOG_PERIOD", "5", "MOCO.K", "32",
    "INPUT.SIZE", "32", "DATA.NUM_WORKERS", "0", "KNN.PERIOD", "0", "LOG.TENSORBOARD", "False",
)  # fmt: skip
# A multiple of 3, 6, 12 and 16 heads. Depth and heads stay, because the detectors' configs list their global blocks.
_VIT_WIDTH = "48"

# Iterations of fine-tuning; epochs of pre-training and of the linear probe; iterations of pre-training.
_COUNTS = ("MAX_ITER", "WARMUP_ITERS", "MAX_EPOCH", "GAMMA_PERIOD", "CHECKPOINT_PERIOD")


def shorter(cfg: Any, share: float) -> tuple[str, ...]:
    """Return KEY, VALUE, ... that shorten a config's schedule to the fraction `share`; nothing for 1.

    Args:
        cfg: config of any of the training tools.
    Raises:
        UserError: `share` is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UserError(f"--schedule {share:g}: give a number above 0, at most 1")
    if share == 1:
        return ()
    solver = cfg.SOLVER
    counts = {key: solver[key] for key in _COUNTS if solver.get(key, 0) > 0}
    pairs = [(f"SOLVER.{key}", str(max(1, round(count * share)))) for key, count in counts.items()]
    steps = [max(1, round(step * share)) for step in solver.STEPS]
    last = max(1, round((counts.get("MAX_ITER") or counts["MAX_EPOCH"]) * share))
    steps = [step for step in steps if step < last]
    pairs.append(("SOLVER.STEPS", str(type(solver.STEPS)(steps))))
    if solver.get("SCHEDULE") == "warmup_cosine":
        # The same part of all epochs, even if those are rounded.
        epochs = max(1, round(solver.MAX_EPOCH * share))
        pairs.append(("SOLVER.WARMUP_EPOCHS", str(solver.WARMUP_EPOCHS * epochs / solver.MAX_EPOCH)))
    return tuple(part for pair in pairs for part in pair)


def smoke_finetune(cfg: CfgNode, *, random: bool, processes: int, cpu: bool) -> tuple[str, ...]:
    """Return KEY, VALUE, ... for `tools/train_net.py`; only random weights need the width to be set."""
    crop = ("INPUT.SCALE_CROP.SIZE", "64") if cfg.INPUT.SCALE_CROP.ENABLED else ()
    jitter = ("INPUT.LSJ.SIZE", "96") if cfg.INPUT.LSJ.ENABLED else ()
    is_vit = "vit" in cfg.MODEL.BACKBONE.NAME
    narrow = ("MODEL.VIT.WIDTH", _VIT_WIDTH) if is_vit else _NARROW
    batch = ("SOLVER.IMS_PER_BATCH", str(max(2, processes)))
    return (
        *_FINETUNE,
        *batch,
        *crop,
        *jitter,
        *(("MODEL.VIT.IMAGE_SIZE", "96") if is_vit else ()),
        *(narrow if random else ()),
        *(("MODEL.DEVICE", "cpu") if cpu else ()),
    )


def smoke_pretrain(cfg: CfgNode, *, processes: int, cpu: bool) -> tuple[str, ...]:
    """Return KEY, VALUE, ... for `tools/pretrain.py`."""
    is_vit = cfg.MODEL.ARCH == "vit"
    narrow = ("MODEL.VIT.WIDTH", _VIT_WIDTH) if is_vit else ("MODEL.WIDTH", str(_WIDTH * cfg.MODEL.WIDTH))
    is_v3 = cfg.MOCO.MECHANISM == "mocov3"
    others = "MODEL.HIDDEN 64 SOLVER.WARMUP_EPOCHS 1" if is_v3 else "MODEL.BN_GROUP_SIZE 4"
    return (
        *_PRETRAIN,
        *_batch(processes),
        *others.split(),
        *narrow,
        *(("DEVICE", "cpu") if cpu else ()),
    )


def smoke_linear(*, processes: int, cpu: bool) -> tuple[str, ...]:
    """Return KEY, VALUE, ... for `tools/linear_eval.py`."""
    return ("SOLVER.MAX_EPOCH", "2", "SOLVER.STEPS", "[1]", "INPUT.SIZE", "32", "SOLVER.BASE_LR", "0.01",
            "DATA.NUM_WORKERS", "0", *_batch(processes), *(("DEVICE", "cpu") if cpu else ()))  # fmt: skip


def _batch(processes: int) -> tuple[str, str]:
    """Return a batch size of groups of 4, divisible by `processes`; the miniature set has 16 images."""
    return "SOLVER.IMS_PER_BATCH", str(max(8, math.lcm(4, processes)))
