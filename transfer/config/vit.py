"""The checks of MODEL.VIT, whose backbone is `build_vit_sfp_backbone`."""

import math
from typing import Any

from detectron2.config import CfgNode

from pretrain.common.configs import get
from pretrain.common.errors import UserError

_LEAST = {"WIDTH": 4, "DEPTH": 1, "HEADS": 1, "PATCH_SIZE": 8, "WINDOW": 0}
_ABOVE_0 = ("MLP_RATIO", "NORM_EPS")
_DETECTOR = ("MODEL.RPN", "MODEL.ROI_HEADS")
_READERS = {  # meta-architecture -> the sections whose IN_FEATURES name the maps that it reads
    "GeneralizedRCNN": _DETECTOR,
    "PanopticFPN": (*_DETECTOR, "MODEL.SEM_SEG_HEAD"),
    "RetinaNet": ("MODEL.RETINANET",),
    "SemanticSegmentor": ("MODEL.SEM_SEG_HEAD",),
}


def check_vit(cfg: CfgNode) -> None:
    """Raise `UserError` for a value of MODEL.VIT that cannot be built or trained."""
    vit = cfg.MODEL.VIT
    for key, least in _LEAST.items():
        if vit[key] < least:
            raise UserError(f"MODEL.VIT.{key} {vit[key]}: give {least} or more")
    for key in _ABOVE_0:
        if vit[key] <= 0:
            raise UserError(f"MODEL.VIT.{key} {vit[key]:g}: give a number above 0")
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
    _check_readers(cfg)
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


def _check_readers(cfg: CfgNode) -> None:
    """Raise `UserError` for heads that need a ResNet, or a map that the pyramid does not have."""
    if cfg.MODEL.ROI_HEADS.NAME.startswith("Res5") and "RCNN" in cfg.MODEL.META_ARCHITECTURE:
        raise UserError(
            f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME}: its res5 is a ResNet's: base the config of a ViT on "
            "transfer/base_rcnn_vit.yaml"
        )
    finest = int(math.log2(cfg.MODEL.VIT.PATCH_SIZE)) - 2
    levels = [f"p{level}" for level in range(finest, finest + 5)]
    for section in _READERS.get(cfg.MODEL.META_ARCHITECTURE, ()):
        wanted = get(cfg, f"{section}.IN_FEATURES")
        if not set(wanted) <= set(levels):
            raise UserError(
                f"{section}.IN_FEATURES {list(wanted)}: with MODEL.VIT.PATCH_SIZE {cfg.MODEL.VIT.PATCH_SIZE} the "
                f"pyramid has {', '.join(levels)}"
            )


def _error(key: str, value: Any, advice: str) -> UserError:
    return UserError(f"MODEL.VIT.{key} {value}: {advice}")
