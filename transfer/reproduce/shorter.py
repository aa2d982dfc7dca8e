"""A schedule shortened in proportion: `--schedule 0.1`."""

from typing import Any

from pretrain.common.errors import UserError

# Iterations of fine-tuning; epochs of pre-training and of the linear probe; iterations of pre-training.
_COUNTS = ("MAX_ITER", "WARMUP_ITERS", "MAX_EPOCH", "GAMMA_PERIOD", "CHECKPOINT_PERIOD")


def shorter(cfg: Any, share: float) -> tuple[str, ...]:
    """KEY VALUE pairs that make a config's schedule as long as `share` of it; none for 1.

    Args:
        cfg: of any of the tools that train.
    Raises:
        UserError: a share that is not above 0 and up to 1.
    """
    if not 0 < share <= 1:
        raise UserError(f"--schedule {share:g}: give a number above 0 and up to 1")
    if share == 1:
        return ()
    solver = cfg.SOLVER
    counts = {key: solver[key] for key in _COUNTS if solver.get(key, 0) > 0}
    pairs = [(f"SOLVER.{key}", str(max(1, round(count * share)))) for key, count in counts.items()]
    steps = [max(1, round(step * share)) for step in solver.STEPS]
    last = max(1, round((counts.get("MAX_ITER") or counts["MAX_EPOCH"]) * share))
    steps = [step for step in steps if step < last]
    pairs.append(("SOLVER.STEPS", str(type(solver.STEPS)(steps))))
    return tuple(part for pair in pairs for part in pair)
