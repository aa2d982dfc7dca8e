"""Learning rates of the backbone: a factor for all of it, and a decay from its last stage to its stem.

The decay is the layer-wise one of fine-tuned transformers (as in ViTDet, Li et al. 2022); the layers are the stages of
a ResNet.
"""

import re
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from pretrain.common.errors import UserError

STAGES = ("stem", "res2", "res3", "res4", "res5")
# The C4 detectors have res5 in their head; it is initialised from the backbone's weights like the other stages.
_STAGE = re.compile(r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)(stem|res[2-5])\.")

Groups = list[dict[str, Any]]


def stage_of(name: str) -> str | None:
    """Return the stage of a ResNet that a parameter belongs to; None for the feature pyramid and the heads."""
    found = _STAGE.match(name)
    return found[1] if found else None


def factors(cfg: CfgNode) -> dict[str, float]:
    """Return stage -> factor of its learning rate: `BACKBONE_LR_FACTOR` x `LR_DECAY`^n.

    n is 1 for res5, 2 for res4, ... and 5 for the stem.
    """
    solver = cfg.SOLVER
    count = len(STAGES)
    return {
        stage: solver.BACKBONE_LR_FACTOR * solver.LR_DECAY ** (count - place)
        for place, stage in enumerate(STAGES)
    }


def scale(groups: Groups, cfg: CfgNode, model: nn.Module) -> Groups:
    """Return the optimizer's parameter groups, split by stage where the stages' learning rates differ.

    Groups of the other layers come first, since the log shows the learning rate of the first group.

    Args:
        groups: as from detectron2's `get_default_optimizer_params`, each with its own `lr`.
    Raises:
        UserError: the keys are set, but the model has no stages of a ResNet.
    """
    by_stage = factors(cfg)
    if all(factor == 1 for factor in by_stage.values()):
        return groups
    stages = {id(parameter): stage_of(name) for name, parameter in model.named_parameters()}
    if not any(stages.values()):
        raise UserError(
            "SOLVER.BACKBONE_LR_FACTOR and SOLVER.LR_DECAY are for ResNets, and this model has another backbone: leave "
            "both at 1"
        )
    found: Groups = []
    for stage, factor in ((None, 1.0), *by_stage.items()):
        for group in groups:
            parameters = [each for each in group["params"] if stages[id(each)] == stage]
            if parameters:
                found.append({**group, "params": parameters, "lr": group["lr"] * factor})
    return found
