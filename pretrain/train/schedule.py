"""Learning-rate schedules: MoCo v1's steps, its exponential for a billion images (He et al. Sec. 4), v2's cosine."""

import math

from fvcore.common.config import CfgNode


def learning_rate(solver: CfgNode, epoch: int, iteration: int) -> float:
    """Return the learning rate of a step, given its zero-based epoch and its zero-based iteration in the whole run.

    There is no warm-up. `cosine`: BASE_LR * (1 + cos(pi * epoch / MAX_EPOCH)) / 2. `step`: BASE_LR,
    times 0.1 at each epoch in STEPS. `exponential`: BASE_LR * GAMMA ** floor(iteration / GAMMA_PERIOD).
    """
    if solver.SCHEDULE == "cosine":
        return solver.BASE_LR * 0.5 * (1 + math.cos(math.pi * epoch / solver.MAX_EPOCH))
    if solver.SCHEDULE == "exponential":
        return solver.BASE_LR * solver.GAMMA ** (iteration // solver.GAMMA_PERIOD)
    return solver.BASE_LR * 0.1 ** sum(epoch >= step for step in solver.STEPS)
