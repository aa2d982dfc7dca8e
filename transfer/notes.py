"""What a fine-tuning run says before it starts about settings whose consequences do not show."""

from functools import partial

import torch
import torchvision
from fvcore.common.config import CfgNode
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.model import precision


def check_amp(cfg: CfgNode) -> None:
    """Say so where this machine is no faster in bfloat16; raise `UserError` where float16 makes no sense."""
    if not cfg.SOLVER.AMP.ENABLED:
        return
    if cfg.MODEL.DEVICE == "cuda":
        if cfg.SOLVER.AMP.DTYPE == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            say("note: this GPU has no bfloat16 of its own: SOLVER.AMP.DTYPE float16 is faster")
    elif cfg.SOLVER.AMP.DTYPE == "float16":
        raise UserError(
            "SOLVER.AMP.DTYPE float16 is for GPUs (a CPU takes a hundred times as long): use bfloat16 here, or set "
            "SOLVER.AMP.ENABLED False"
        )
    else:
        make = partial(torchvision.models.resnet18, weights=None)
        verdict = precision.decide("auto", make, size=64, group_size=1, device=torch.device("cpu"))
        if verdict.startswith("off"):
            say(f"note: SOLVER.AMP.ENABLED True is of no use on this processor: {verdict}")


def say_parts(cfg: CfgNode, model: nn.Module) -> None:
    """What `SOLVER.ACCUMULATE` does to the batch, and to batch norm, which sees a part at a time."""
    parts = cfg.SOLVER.ACCUMULATE
    if parts == 1:
        return
    share = cfg.SOLVER.IMS_PER_BATCH // distributed.world_size()
    line = (
        f"SOLVER.ACCUMULATE {parts}: a process takes its {share} images in {parts} parts of {share // parts}"
    )
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.weight.requires_grad]
    if norms:
        synchronised = all("Sync" in type(norm).__name__ for norm in norms)
        over = (share // parts) * (distributed.world_size() if synchronised else 1)
        line += f"; batch norm is over {over} image(s) at a time, undivided it would be {over * parts}"
    say(line)
