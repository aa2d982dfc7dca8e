"""Build the model and the optimizer of a run from its config."""

from collections.abc import Callable

import torch
from fvcore.common.config import CfgNode
from torch import nn

from pretrain.common import distributed
from pretrain.common.errors import UserError
from pretrain.model import encoders, moco_v3, norm, optimizers, precision
from pretrain.model.contrast import Mechanism
from pretrain.model.encoders import ResNet
from pretrain.model.mechanisms import EndToEnd, MemoryBank
from pretrain.model.memory import machine_bytes
from pretrain.model.moco import MoCo
from pretrain.model.moco_v3 import MoCoV3
from pretrain.model.vit import ViT

Norm = Callable[..., nn.Module]  # makes a normalisation layer from its number of channels


def build(
    cfg: CfgNode, device: torch.device, *, images: int, decide: bool
) -> tuple[Mechanism, torch.optim.Optimizer, str]:
    """Return the model, the optimizer and the choice of precision (empty if `decide` is False).

    Args:
        images: number of images in the data set; a memory bank stores one vector for each.
        decide: whether to choose the precision (SOLVER.AMP); this may time a few steps.
    Raises:
        UserError: the queue or the bank would not fit in the memory of this machine or GPU.
    """
    _check_memory(cfg, device, images)
    layer = norm.norm_layer(cfg, device)
    make = encoder_maker(cfg, layer)
    decision = (
        precision.decide(
            cfg.SOLVER.AMP,
            make,
            size=cfg.INPUT.SIZE,
            group_size=cfg.MODEL.BN_GROUP_SIZE,
            device=device,
            layout=torch.channels_last if precision.channels_last(cfg, device) else torch.contiguous_format,
        )
        if decide
        else ""
    )
    torch.manual_seed(cfg.SEED)
    model = mechanism(cfg, make, layer, images=images).to(device)
    if device.type == "cuda":  # as the images are; otherwise each convolution would reorder its weights
        model.to(memory_format=torch.channels_last)
    for encoder in model.children():  # the seed is the same, but machines may differ in the last bit
        distributed.copy_from_main(encoder.state_dict().values())
    if cfg.MODEL.COMPILE:
        for encoder in model.children():
            encoder.compile()  # in place, so that the weights keep their names
    return model, optimizers.make(cfg, model.trained()), decision


def _check_memory(cfg: CfgNode, device: torch.device, images: int) -> None:
    """Raise `UserError` if the vectors of the queue or the bank do not fit in memory."""
    vectors = {"MOCO.K": cfg.MOCO.K} if cfg.MOCO.MECHANISM in ("moco", "memorybank") else {}
    if cfg.MOCO.MECHANISM == "memorybank":
        vectors["DATA.TRAIN, images:"] = images
    memory = machine_bytes()  # they are drawn there first, even for a GPU
    if device.type == "cuda":
        memory = min(memory, torch.cuda.get_device_properties(device).total_memory)
    for name, number in vectors.items():
        needed = 4 * number * cfg.MODEL.DIM
        if needed > memory:
            raise UserError(
                f"{name} {number}: this many vectors of MODEL.DIM {cfg.MODEL.DIM} take {needed / 1e9:.0f} GB, but "
                f"there are only {memory / 1e9:.0f} GB of memory: use fewer, or a smaller MODEL.DIM"
            )


def mechanism(cfg: CfgNode, make: Callable[[], nn.Module], layer: Norm, *, images: int) -> Mechanism:
    """Return the model of MOCO.MECHANISM, with encoders from `make`, for a data set of `images` images."""
    if cfg.MOCO.MECHANISM == "mocov3":
        # Two layers; for a ResNet the batch norm after the last one is left out.
        widths = (cfg.MODEL.DIM, cfg.MODEL.HIDDEN, cfg.MODEL.DIM)
        predictor = moco_v3.mlp(widths, layer, last_norm=cfg.MODEL.ARCH == "vit")
        return MoCoV3(make, predictor, momentum=cfg.MOCO.M, temperature=cfg.MOCO.T)
    if cfg.MOCO.MECHANISM == "endtoend":
        return EndToEnd(make, temperature=cfg.MOCO.T)
    if cfg.MOCO.MECHANISM == "memorybank":
        return MemoryBank(
            make, images=images, dim=cfg.MODEL.DIM, negatives=cfg.MOCO.K, momentum=cfg.MOCO.BANK_M,
            temperature=cfg.MOCO.T, seed=cfg.SEED,
        )  # fmt: skip
    return MoCo(make, dim=cfg.MODEL.DIM, queue_length=cfg.MOCO.K, momentum=cfg.MOCO.M, temperature=cfg.MOCO.T)


def encoder_maker(cfg: CfgNode, layer: Norm) -> Callable[[], ResNet | ViT]:
    """Return a function that makes the config's encoder, projection head included, with newly drawn weights.

    Args:
        layer: of `pretrain.model.norm.norm_layer`.
    """
    if cfg.MODEL.ARCH == "vit":
        return lambda: _vit(cfg, layer)
    architecture = encoders.architecture(cfg.MODEL.ARCH, cfg.MODEL.WIDTH, stem=cfg.MODEL.STEM_CHANNELS)
    v3 = cfg.MOCO.MECHANISM == "mocov3"

    def make() -> ResNet:
        features = architecture.feature_channels
        if v3:
            head: nn.Module = moco_v3.mlp((features, cfg.MODEL.HIDDEN, cfg.MODEL.DIM), layer, last_norm=True)
        else:
            head = encoders.projection_head(cfg.MODEL.HEAD, features, cfg.MODEL.DIM)
        return ResNet(architecture, head=head, norm_layer=layer, zero_init_residual=v3)

    return make


def _vit(cfg: CfgNode, layer: Norm) -> ViT:
    shape, hidden = cfg.MODEL.VIT, cfg.MODEL.HIDDEN
    projector = moco_v3.mlp((shape.WIDTH, hidden, hidden, cfg.MODEL.DIM), layer, last_norm=True)
    return ViT(
        width=shape.WIDTH, depth=shape.DEPTH, heads=shape.HEADS, patch_size=shape.PATCH_SIZE,
        image_size=cfg.INPUT.SIZE, head=projector,
    )  # fmt: skip
