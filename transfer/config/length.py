"""How long to train if only the number of images says so: the rule for data that no paper has a schedule for."""

import math

from detectron2.config import CfgNode

EPOCHS = 29.0  # of the paper's smallest data set: 9,000 iterations of 16 images for 5,011 images (He et al., Table 4)
USUAL = 500  # iterations at least, if the time allows it: with less, the heads are hardly trained
_STEPS = (3 / 4, 11 / 12)  # of the schedule, as in the paper's recipes


def iterations(images: float, batch: int, *, epochs: float = EPOCHS) -> int:
    """Return the number of iterations for this number of images: `epochs` epochs, and at least `USUAL` iterations."""
    return max(USUAL, math.ceil(epochs * max(1, images) / batch))


def steps(length: int) -> tuple[int, ...]:
    """Return the iterations after which a schedule of this length lowers the learning rate: at 3/4 and 11/12."""
    drops = (round(part * length) for part in _STEPS)
    return tuple(dict.fromkeys(drop for drop in drops if 0 < drop < length))


def warm_up(length: int, usual: int) -> int:
    """Return the iterations of the warm-up: `usual`, but at most a tenth of the schedule."""
    return min(usual, length // 10)


def follow_images(cfg: CfgNode, images: int) -> str:
    """Replace `SOLVER.EPOCHS`, if it is set, by the MAX_ITER, STEPS and WARMUP_ITERS for this number of images.

    Returns:
        The rule in a few words for the log, or an empty string if the config has a length of its own.
    """
    epochs = cfg.SOLVER.EPOCHS
    if not epochs:
        return ""
    length = iterations(images, cfg.SOLVER.IMS_PER_BATCH, epochs=epochs)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = length, steps(length)
    cfg.SOLVER.WARMUP_ITERS = warm_up(length, cfg.SOLVER.WARMUP_ITERS)
    cfg.SOLVER.EPOCHS = 0.0
    return f"SOLVER.EPOCHS {epochs:g}, at least {USUAL} iterations"
