"""From a config to the model and the optimizer of a run."""

from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode

from pretrain import amp, encoders, norm
from pretrain.encoders import ResNet
from pretrain.moco import MoCo


def build(cfg: CfgNode, device: torch.device, *, decide: bool) -> tuple[MoCo, torch.optim.SGD, str]:
    """Model, optimizer, and the decision about bf16 (empty unless it is to be taken)."""
    make = encoder_maker(cfg, device)
    decision = (
        amp.decide(
            cfg.SOLVER.AMP, make, size=cfg.INPUT.SIZE, group_size=cfg.MODEL.BN_GROUP_SIZE, device=device
        )
        if decide
        else ""
    )
    torch.manual_seed(cfg.SEED)
    model = MoCo(
        make,
        dim=cfg.MODEL.DIM,
        queue_length=cfg.MOCO.K,
        momentum=cfg.MOCO.M,
        temperature=cfg.MOCO.T,
    ).to(device)
    optimizer = torch.optim.SGD(
        model.encoder_q.parameters(),
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
    return model, optimizer, decision


def encoder_maker(cfg: CfgNode, device: torch.device) -> Callable[[], ResNet]:
    """What makes the config's encoder, projection head included, with newly drawn weights."""
    architecture = encoders.architecture(cfg.MODEL.ARCH, cfg.MODEL.WIDTH)
    layer = norm.norm_layer(cfg, device)

    def make() -> ResNet:
        head = encoders.projection_head(cfg.MODEL.HEAD, architecture.feature_channels, cfg.MODEL.DIM)
        return ResNet(architecture, head=head, norm_layer=layer)

    return make
