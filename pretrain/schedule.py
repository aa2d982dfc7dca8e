"""Learning rate of each epoch: MoCo v1's steps (He et al. Sec. 4), MoCo v2's half cosine (Chen et al.)."""

import math

from fvcore.common.config import CfgNode


def learning_rate(solver: CfgNode, epoch: int) -> float:
    """Learning rate during the zero-based `epoch`; there is no warm-up, and it changes once an epoch.

    `cosine`: BASE_LR * (1 + cos(pi * epoch / MAX_EPOCH)) / 2. `step`: BASE_LR, x 0.1 at each of STEPS.
    """
    if solver.SCHEDULE == "cosine":
        return solver.BASE_LR * 0.5 * (1 + math.cos(math.pi * epoch / solver.MAX_EPOCH))
    return solver.BASE_LR * 0.1 ** sum(epoch >= step for step in solver.STEPS)
