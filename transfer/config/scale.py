"""Scale a recipe to fewer or more GPUs: batch, learning rate and schedule together, by the linear rule."""

from detectron2.config import CfgNode

from pretrain.common.errors import UserError

REFERENCE_GPUS = 8  # of the paper and of detectron2's zoo; used if SOLVER.REFERENCE_WORLD_SIZE is not set


def rescale(cfg: CfgNode, gpus: int) -> tuple[CfgNode, str]:
    """Return the config for `gpus` GPUs with the same number of images on each, and a sentence about the change.

    This is the rule of detectron2's `DefaultTrainer.auto_scale_workers`: batch and learning rate change in proportion
    (Goyal et al. 2017); iterations, steps, warm-up and the periods of tests and checkpoints change in inverse
    proportion, so that the total number of images stays the same. The recipe is for `SOLVER.REFERENCE_WORLD_SIZE`
    GPUs, or 8.

    Raises:
        UserError: `gpus` is below 1, or the batch cannot be divided among the GPUs of the recipe.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE or REFERENCE_GPUS
    if gpus < 1:
        raise UserError(f"--scale {gpus}: give the number of GPUs to scale the recipe to, 1 or more")
    if cfg.SOLVER.IMS_PER_BATCH % reference:
        raise UserError(
            f"--scale {gpus}: SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is not a multiple of the {reference} "
            "GPUs that the recipe is written for; set their number in SOLVER.REFERENCE_WORLD_SIZE"
        )
    old, new = cfg.SOLVER, cfg.clone()
    new.defrost()
    new.SOLVER.IMS_PER_BATCH = old.IMS_PER_BATCH // reference * gpus
    new.SOLVER.BASE_LR = old.BASE_LR * gpus / reference
    for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
        new.SOLVER[key] = _stretch(old[key], gpus, reference)
    if not old.EPOCHS:  # otherwise they follow from the number of images
        new.SOLVER.STEPS = tuple(_stretch(step, gpus, reference) for step in old.STEPS)
    new.TEST.EVAL_PERIOD = _stretch(cfg.TEST.EVAL_PERIOD, gpus, reference)
    new.SOLVER.REFERENCE_WORLD_SIZE = gpus
    parts = [
        f"batch {old.IMS_PER_BATCH} -> {new.SOLVER.IMS_PER_BATCH}",
        f"lr {old.BASE_LR:g} -> {new.SOLVER.BASE_LR:g}",
        *(
            [f"still {old.EPOCHS:g} epochs"]
            if old.EPOCHS
            else [
                f"{old.MAX_ITER} -> {new.SOLVER.MAX_ITER} iterations",
                f"steps {tuple(old.STEPS)} -> {tuple(new.SOLVER.STEPS)}",
            ]
        ),
        f"warm-up {old.WARMUP_ITERS} -> {new.SOLVER.WARMUP_ITERS}",
    ]
    return new, f"the recipe for {reference} GPUs, scaled to {gpus}: {', '.join(parts)}"


def lr_warning(cfg: CfgNode, recipe: CfgNode) -> str | None:
    """Return a warning if the learning rate is out of proportion to the batch, else None.

    Args:
        cfg: the config that will run.
        recipe: the same file without overrides.
    """
    now, meant = (c.SOLVER.BASE_LR / c.SOLVER.IMS_PER_BATCH for c in (cfg, recipe))
    if cfg.SOLVER.OPTIMIZER != "SGD" or 2 / 3 < now / meant < 3 / 2:  # the linear rule holds for SGD
        return None
    return (
        f"warning: SOLVER.BASE_LR {cfg.SOLVER.BASE_LR:g} for a batch of {cfg.SOLVER.IMS_PER_BATCH}: the recipe's "
        f"{recipe.SOLVER.BASE_LR:g} for {recipe.SOLVER.IMS_PER_BATCH} corresponds to "
        f"{meant * cfg.SOLVER.IMS_PER_BATCH:g}; --scale N sets batch, rate and schedule together"
    )


def _stretch(count: int, gpus: int, reference: int) -> int:
    return max(1, round(count * reference / gpus)) if count > 0 else count  # 0: never, or none
