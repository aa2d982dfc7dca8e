"""Schedules. Learning rate: MoCo v1's steps, its exponential for a billion images (He et al. Sec. 4), v2's cosine, v3's
cosine after a warm-up. Momentum of the key encoder: constant, in v3 a cosine.
"""

import math

from fvcore.common.config import CfgNode


def learning_rate(solver: CfgNode, iteration: int, per_epoch: int) -> float:
    """Return the learning rate of a step, given its zero-based iteration in the run and the iterations of an epoch.

    With e the zero-based epoch:  `cosine`: BASE_LR * (1 + cos(pi * e / MAX_EPOCH)) / 2. `step`: BASE_LR, times 0.1
    at each epoch in STEPS. `exponential`: BASE_LR * GAMMA ** floor(iteration / GAMMA_PERIOD).
    `warmup_cosine`, with x = iteration / per_epoch: BASE_LR * x / WARMUP_EPOCHS up to that epoch, then
    BASE_LR * (1 + cos(pi * (x - WARMUP_EPOCHS) / (MAX_EPOCH - WARMUP_EPOCHS))) / 2.
    """
    epoch = iteration // per_epoch
    if solver.SCHEDULE == "warmup_cosine":
        place, warm_up = iteration / per_epoch, solver.WARMUP_EPOCHS
        if place < warm_up:
            return solver.BASE_LR * place / warm_up
        return (
            solver.BASE_LR * 0.5 * (1 + math.cos(math.pi * (place - warm_up) / (solver.MAX_EPOCH - warm_up)))
        )
    if solver.SCHEDULE == "cosine":
        return solver.BASE_LR * 0.5 * (1 + math.cos(math.pi * epoch / solver.MAX_EPOCH))
    if solver.SCHEDULE == "exponential":
        return solver.BASE_LR * solver.GAMMA ** (iteration // solver.GAMMA_PERIOD)
    return solver.BASE_LR * 0.1 ** sum(epoch >= step for step in solver.STEPS)


def key_momentum(cfg: CfgNode, iteration: int, per_epoch: int) -> float:
    """Return the momentum of the key encoder at a step: MOCO.M, with MoCo v3 rising to 1 by a cosine.

    That is 1 - (1 - MOCO.M) * (1 + cos(pi * x / MAX_EPOCH)) / 2, with x = iteration / per_epoch.
    """
    if cfg.MOCO.MECHANISM != "mocov3":
        return cfg.MOCO.M
    done = iteration / per_epoch / cfg.SOLVER.MAX_EPOCH
    return 1 - (1 - cfg.MOCO.M) * 0.5 * (1 + math.cos(math.pi * done))
