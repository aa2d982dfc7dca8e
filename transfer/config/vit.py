"""The checks of MODEL.VIT, whose backbone is `build_vit_sfp_backbone`."""

from typing import Any

from detectron2.config import CfgNode

from pretrain.common.configs import get
from pretrain.common.errors import UserError

_LEAST = {"WIDTH": 1, "DEPTH": 1, "HEADS": 1, "PATCH_SIZE": 8, "WINDOW": 0}


def check_vit(cfg: CfgNode) -> None:
    """Raise `UserError` for a value of MODEL.VIT that cannot be built or trained."""
    vit = cfg.MODEL.VIT
    for key, least in _LEAST.items():
        if vit[key] < least:
            raise UserError(f"MODEL.VIT.{key} {vit[key]}: give {least} or more")
    if vit.WIDTH % vit.HEADS:
        raise _error(
            "HEADS", vit.HEADS, f"the {vit.WIDTH} channels of MODEL.VIT.WIDTH must divide among the heads"
        )
    if vit.PATCH_SIZE.bit_count() != 1:
        raise _error(
            "PATCH_SIZE", vit.PATCH_SIZE, "the strides of the pyramid need a power of two, such as 16"
        )
    if vit.PRETRAIN_SIZE < vit.PATCH_SIZE or vit.PRETRAIN_SIZE % vit.PATCH_SIZE:
        raise _error(
            "PRETRAIN_SIZE", vit.PRETRAIN_SIZE, f"give a multiple of MODEL.VIT.PATCH_SIZE {vit.PATCH_SIZE}"
        )
    coarsest = 2 * vit.PATCH_SIZE  # stride of the pyramid's last map but the subsampled one
    if coarsest > vit.IMAGE_SIZE or vit.IMAGE_SIZE % coarsest:
        raise _error(
            "IMAGE_SIZE", vit.IMAGE_SIZE, f"give a multiple of {coarsest}, twice MODEL.VIT.PATCH_SIZE"
        )
    if not 0 <= vit.DROP_PATH < 1:
        raise _error("DROP_PATH", vit.DROP_PATH, "give a probability from 0 to below 1")
    outside = [block for block in vit.GLOBAL_BLOCKS if block not in range(vit.DEPTH)]
    if outside:
        raise _error(
            "GLOBAL_BLOCKS", tuple(vit.GLOBAL_BLOCKS), f"blocks are numbered from 0 to {vit.DEPTH - 1}"
        )
    if cfg.MODEL.BACKBONE.FREEZE_AT != 0:
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT}: only ResNets can be frozen; set it to 0, and "
            "SOLVER.LR_DECAY or SOLVER.BACKBONE_LR_FACTOR to train the ViT more slowly"
        )
    for key in ("LSJ.SIZE" if cfg.INPUT.LSJ.ENABLED else "MAX_SIZE_TRAIN", "MAX_SIZE_TEST"):
        side = get(cfg.INPUT, key)
        if side > vit.IMAGE_SIZE:
            raise UserError(
                f"INPUT.{key} {side}: such images are larger than the squares of MODEL.VIT.IMAGE_SIZE {vit.IMAGE_SIZE} "
                "that they are padded to: set both to the same size"
            )


def _error(key: str, value: Any, advice: str) -> UserError:
    return UserError(f"MODEL.VIT.{key} {value}: {advice}")
