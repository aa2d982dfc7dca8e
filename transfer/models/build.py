"""Build the model with its initial weights, and the optimizer, in the form that runs best on this machine."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pretrain.common import distributed
from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from pretrain.model import precision
from pretrain.model.norm import convert_sync_batchnorm
from transfer.models import init_weights, learning_rates
from transfer.models.feature_pyramid import SimpleFeaturePyramid


def check_amp(cfg: CfgNode) -> None:
    """Print a note if another precision is faster on this machine; raise `UserError` for float16 on a CPU."""
    if not cfg.SOLVER.AMP.ENABLED:
        if cfg.MODEL.DEVICE == "cuda" and precision.native_bf16():
            say(
                "note: SOLVER.AMP.ENABLED False computes in float32 without TF32, as in the papers; bfloat16 is faster "
                "on this GPU: SOLVER.AMP.ENABLED True"
            )
        return
    if cfg.MODEL.DEVICE == "cuda":
        if cfg.SOLVER.AMP.DTYPE == "bfloat16" and not precision.native_bf16():
            say("note: this GPU has no native bfloat16: SOLVER.AMP.DTYPE float16 is faster")
    elif cfg.SOLVER.AMP.DTYPE == "float16":
        raise UserError(
            "SOLVER.AMP.DTYPE float16 is for GPUs (on a CPU it is about a hundred times slower): use bfloat16 here, or "
            "set SOLVER.AMP.ENABLED False"
        )
    else:
        make = partial(torchvision.models.resnet18, weights=None)
        verdict = precision.decide("auto", make, size=64, group_size=1, device=torch.device("cpu"))
        if verdict.startswith("off"):
            say(f"note: SOLVER.AMP.ENABLED True does not help on this processor: {verdict}")


def say_parts(cfg: CfgNode, model: nn.Module) -> None:
    """Print how `SOLVER.ACCUMULATE` splits the batch, and how many images batch norm then averages over."""
    parts = cfg.SOLVER.ACCUMULATE
    if parts == 1:
        return
    share = cfg.SOLVER.IMS_PER_BATCH // distributed.world_size()
    line = f"SOLVER.ACCUMULATE {parts}: each process splits its {share} images into {parts} parts of {share // parts}"
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.weight.requires_grad]
    if norms:
        synchronised = all("Sync" in type(norm).__name__ for norm in norms)
        over = (share // parts) * (distributed.world_size() if synchronised else 1)
        line += (
            f"; batch norm averages over {over} image(s), instead of {over * parts} for the undivided batch"
        )
    say(line)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return `SOLVER.OPTIMIZER` (SGD or AdamW) for a model, with detectron2's rules for the parameter groups.

    Both apply `SOLVER.WEIGHT_DECAY_NORM` to norm layers and no decay to a transformer's positions, scale the backbone's
    learning rates (`learning_rates.factor`) and clip gradients according to `SOLVER.CLIP_GRADIENTS`.

    Raises `UserError` for rates of a backbone that is neither a ResNet nor a ViT.
    """
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        overrides={"pos_embed": {"weight_decay": 0.0}},  # as in ViTDet; only transformers have it
    )
    groups = learning_rates.scale(groups, cfg, model)
    if solver.OPTIMIZER == "SGD":
        sgd = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
        return sgd(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw(groups, lr=solver.BASE_LR, fused=True)  # takes a quarter of the time, on a CPU too


def build(cfg: CfgNode, *, eval_only: bool = False) -> tuple[nn.Module, dict[str, Any] | None]:
    """Return the model with its weights, in the form that runs best on this machine, and the record of the weights.

    Args:
        cfg: frozen; `MODEL.DEVICE` is cpu or cuda.
        eval_only: whether `MODEL.WEIGHTS` is a whole detector, not only a backbone.
    """
    check_amp(cfg)
    precision.forbid_tf32()
    torch.manual_seed(cfg.SEED)
    model = build_model(cfg)
    if cfg.SOLVER.AMP.ENABLED:
        pool_in_float32(model)
        if distributed.world_size() > 1:
            normalise_in_float32(model)
    record = _load_weights(cfg, model, eval_only=eval_only)
    use_memory_format(cfg, model)
    if cfg.MODEL.DEVICE == "cpu" and distributed.world_size() > 1:
        convert_sync_batchnorm(model)  # torch's own SyncBatchNorm refuses CPU tensors
    if cfg.MODEL.COMPILE:
        # In place, so the weights keep their names. Image sizes vary, but not a ViT's, which are padded to one square:
        # for unknown sizes, its windows and positions would take many minutes to trace.
        model.backbone.compile(dynamic=not isinstance(model.backbone, SimpleFeaturePyramid))
    if not eval_only:
        say_parts(cfg, model)
    return model, record


def use_memory_format(cfg: CfgNode, model: Any) -> None:
    """Store the weights as `MODEL.CHANNELS_LAST` says, in place."""
    if cfg.MODEL.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)  # saves 8 % of an iteration's time in the demo, on a CPU
        if cfg.MODEL.KEYPOINT_ON:  # detectron2 needs contiguous output from this head
            model.roi_heads.keypoint_head.to(memory_format=torch.contiguous_format)


def _load_weights(cfg: CfgNode, model: nn.Module, *, eval_only: bool) -> dict[str, Any] | None:
    if eval_only:
        if not cfg.MODEL.WEIGHTS:
            raise UserError("--eval-only needs MODEL.WEIGHTS: the model_final.pth of a fine-tuning run")
        path = init_weights.local_path(cfg.MODEL.WEIGHTS)
        init_weights.load_detector(model, path)
        return {"path": str(path), "sha256": file_digest(path)}
    if cfg.MODEL.INIT == "random":
        say("MODEL.INIT random: training from scratch")
        return None
    return init_weights.load_into(model, cfg)


def pool_in_float32(model: nn.Module) -> None:
    """Keep box coordinates exact under AMP, where ROIAlign would cast the boxes to the type of the features.

    bf16 represents integers exactly only up to 256: a box edge at 601.3 would be pooled from 600.
    """

    def to_float32(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        features, *rest = arguments
        return ([feature.float() for feature in features], *rest)

    for module in model.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(to_float32)


def normalise_in_float32(model: nn.Module) -> None:
    """Make naiveSyncBN compute in float32 under AMP; its outputs keep the type of its inputs.

    Between processes it subtracts the squared mean from the mean square. It does so in float32 for float16 inputs, but
    not for bfloat16, whose 8 bits leave nothing of the variance where the mean is large.
    """
    for module in model.modules():
        if isinstance(module, NaiveSyncBatchNorm):
            module.forward = partial(_in_float32, module.forward)


def _in_float32(norm: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    return norm(maps.float()).to(maps.dtype)
