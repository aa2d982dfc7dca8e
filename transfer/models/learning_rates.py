"""Learning rates of the backbone: a factor for all of it, and a decay from its last layer to its first.

The decay is the layer-wise one of fine-tuned transformers (as in ViTDet, Li et al. 2022): the layers are the blocks of
a ViT, or the stages of a ResNet.
"""

import re
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from pretrain.common.errors import UserError

STAGES = ("stem", "res2", "res3", "res4", "res5")
# The C4 detectors have res5 in their head; it is initialised from the backbone's weights like the other stages.
_STAGE = re.compile(r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)(stem|res[2-5])\.")
_LAYER = re.compile(r"backbone\.net\.(?:blocks\.(\d+)\.|patch_embed\.|pos_embed)")

Groups = list[dict[str, Any]]


def steps_below(name: str, depth: int) -> int:
    """Return how many layers of the backbone a parameter is below the heads; 0 for the pyramid and the heads.

    Of a ResNet, that is 1 for res5, 2 for res4, ... and 5 for the stem. Of a ViT it is 1 for the last block, `depth`
    for the first one, and `depth` + 1 for the patch embedding and the positions.

    Args:
        name: of the parameter in the detector.
        depth: number of blocks of a ViT.
    """
    if stage := _STAGE.match(name):
        return len(STAGES) - STAGES.index(stage[1])
    if layer := _LAYER.match(name):
        return depth - int(layer[1]) if layer[1] else depth + 1
    return 0


def factor(cfg: CfgNode, steps: int) -> float:
    """Return the factor of a learning rate: `BACKBONE_LR_FACTOR` x `LR_DECAY`^steps, and 1 outside of the backbone."""
    solver = cfg.SOLVER
    return float(solver.BACKBONE_LR_FACTOR * solver.LR_DECAY**steps) if steps else 1.0


def scale(groups: Groups, cfg: CfgNode, model: nn.Module) -> Groups:
    """Return the optimizer's parameter groups, split by layer where the layers' learning rates differ.

    Groups of the pyramid and the heads come first, since the log shows the learning rate of the first group; those of
    the backbone follow from its first layer to its last.

    Args:
        groups: as from detectron2's `get_default_optimizer_params`, each with its own `lr`.
    Raises:
        UserError: the keys are set, but the model has neither stages of a ResNet nor blocks of a ViT.
    """
    if cfg.SOLVER.BACKBONE_LR_FACTOR == cfg.SOLVER.LR_DECAY == 1:
        return groups
    depth = cfg.MODEL.VIT.DEPTH
    below = {id(parameter): steps_below(name, depth) for name, parameter in model.named_parameters()}
    if not any(below.values()):
        raise UserError(
            "SOLVER.BACKBONE_LR_FACTOR and SOLVER.LR_DECAY are for ResNets and ViTs, and this model has another "
            "backbone: leave both at 1"
        )
    found: Groups = []
    for steps in sorted(set(below.values()), key=lambda steps: (steps > 0, -steps)):
        for group in groups:
            parameters = [each for each in group["params"] if below[id(each)] == steps]
            if parameters:
                found.append({**group, "params": parameters, "lr": group["lr"] * factor(cfg, steps)})
    return found
