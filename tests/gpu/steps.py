"""Steps of pre-training with a small network, the same ones on any device."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from fvcore.common.config import CfgNode
from torch import nn

from pretrain import config
from pretrain.data.on_device import Pixels
from pretrain.model import build, moco, norm, precision
from pretrain.model.contrast import Mechanism
from pretrain.train.step import train_step
from tests.support.contrast_models import BANK, random_numbers, random_views

IMAGES = 16
CONFIGS = {
    "v1": "pretrain/moco_v1_R50.yaml", "v2": "pretrain/moco_v2_R50.yaml", "endtoend": "pretrain/endtoend_R50.yaml",
    "memorybank": "pretrain/memorybank_R50.yaml", "v3": "pretrain/moco_v3_R50_100ep.yaml",
    "v3_vit": "pretrain/moco_v3_ViTB.yaml", "v3_chunks": "pretrain/moco_v3_ViTB.yaml",
}  # fmt: skip
SMALL = [
    "MODEL.ARCH", "resnet18", "MODEL.WIDTH", "0.125", "MODEL.DIM", "16", "MODEL.BN_GROUP_SIZE", "8", "MOCO.K", "48",
    "MOCO.M", "0.9", "INPUT.SIZE", "64", "SOLVER.IMS_PER_BATCH", str(IMAGES), "SOLVER.BASE_LR", "0.01",
]  # fmt: skip

_VIT = [
    "MODEL.ARCH", "vit", "MODEL.WIDTH", "1.0", "MODEL.VIT.WIDTH", "24", "MODEL.VIT.DEPTH", "2", "MODEL.VIT.HEADS", "3",
    "MODEL.HIDDEN", "32", "SOLVER.WARMUP_EPOCHS", "1", "SOLVER.BASE_LR", "0.001",
]  # fmt: skip
OWN = {
    "v3": ["MODEL.HIDDEN", "32", "SOLVER.WARMUP_EPOCHS", "1", "SOLVER.BASE_LR", "1.0"],
    "v3_vit": _VIT,
    "v3_chunks": [*_VIT, "SOLVER.CHUNK", "6"],  # the last chunk has four images
}
WHOLE = {"v3_chunks": "v3_vit"}  # the kind whose steps are the same without chunks
# What MoCo v3 keeps as it was drawn.
FROZEN = {
    f"{encoder}.{name}"
    for encoder in ("base_encoder", "momentum_encoder")
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed")
}

Watch = Callable[[], contextlib.AbstractContextManager[object]]


def overrides(kind: str, *more: str) -> list[str]:
    """What makes the config of a kind of pre-training small: two groups of 8 images."""
    return [*SMALL, *OWN.get(kind, []), *more]


def settings(kind: str, *more: str) -> CfgNode:
    """The small config of a kind of pre-training."""
    return config.load(CONFIGS[kind], overrides(kind, *more))


@dataclass
class Trainee:
    """A model with what its steps need; every step sees other images, which depend on its number alone."""

    cfg: CfgNode
    device: torch.device
    model: Mechanism
    optimizer: torch.optim.Optimizer
    pixels: Pixels
    scaler: torch.amp.GradScaler | None
    done: int = 0

    def step(self, *, watch: Watch = contextlib.nullcontext) -> torch.Tensor:
        """Take a step under `watch`, which does not see the images being copied; its METRICS."""
        pair = random_views(IMAGES, self.done, size=self.cfg.INPUT.SIZE)
        query, key = (views.to(self.device) for views in pair)
        images, order = random_numbers(IMAGES, self.done).to(self.device), moco.key_order(self.cfg, self.done)
        with watch():
            metrics = train_step(
                self.model, self.optimizer, (query, key), pixels=self.pixels, images=images, iteration=self.done,
                order=order, bf16=self.cfg.SOLVER.AMP == "bf16", scaler=self.scaler,
                parts=norm.parts(self.cfg, self.device), chunk=self.cfg.SOLVER.CHUNK,
            )  # fmt: skip
        self.done += 1
        return metrics

    def continue_from(self, other: "Trainee") -> None:
        """Take over the weights and the optimizer's state of a trainee on any device."""
        self.model.load_state_dict(other.model.state_dict())
        for p, theirs in zip(self.model.trained(), other.model.trained(), strict=True):
            for name, value in other.optimizer.state[theirs].items():
                like = torch.empty_like(p if value.ndim else value, device=self.device)
                self.optimizer.state[p][name] = like.copy_(value)

    def momenta(self) -> list[dict[str, torch.Tensor]]:
        """A copy of the optimizer's state of each trained parameter; empty if there is none yet."""
        states = (self.optimizer.state.get(p, {}) for p in self.model.trained())
        return [{name: value.detach().clone() for name, value in each.items()} for each in states]

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the whole state, on the CPU."""
        return copied(self.model)


def trainee(cfg: CfgNode, device: torch.device) -> Trainee:
    """What `pretrain.train.setup` builds, without data; a scaler starts at a scale that does not overflow."""
    precision.forbid_tf32()
    model, optimizer, _ = build.build(cfg, device, images=BANK, decide=False)
    last = precision.channels_last(cfg, device)
    pixels = Pixels(cfg.INPUT.MEAN, cfg.INPUT.STD, channels_last=last).to(device)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8) if cfg.SOLVER.AMP == "fp16" else None
    return Trainee(cfg, device, model, optimizer, pixels, scaler)


def poison(own: Trainee) -> Callable[[], object]:
    """Make the loss of the next steps a NaN, by what the queries are compared with; returns what ends that.

    That is the temperature for MoCo v3, whose keys are of the same step: a NaN in them would stay in the statistics.
    """
    model, mechanism = own.model, own.cfg.MOCO.MECHANISM
    if mechanism == "mocov3":
        before, model.temperature = model.temperature, math.nan
        return lambda: setattr(model, "temperature", before)
    name = {"endtoend": "encoder_k.fc.bias", "memorybank": "memory_bank"}.get(mechanism, "queue")
    spoilt = model.state_dict()[name]
    with torch.no_grad():
        spoilt.fill_(torch.nan)
    return lambda: nn.init.normal_(spoilt)


def raise_eps(optimizer: torch.optim.Optimizer) -> None:
    """Keep Adam from moving weights by chance.

    Some gradients of a ViT are zero but for rounding, those of the keys' biases for example. Adam divides each gradient
    by its size plus `eps`, so these weights would move as far as all others.
    """
    for group in optimizer.param_groups:
        if "eps" in group:
            group["eps"] = 1e-5


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64, also what asks for float32: there rounding stays as small as it starts.

    In float32 the order of sums comes to percents of the gradients after a few steps. What is no floating-point number
    still becomes float32, as the optimizer needs it.
    """
    original = torch.Tensor.float

    def double(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double() if tensor.is_floating_point() else original(tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a model on the CPU, in memory of its own."""
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference between two states, over their tensors."""
    assert one.keys() == other.keys()
    found = 0.0
    for name, value in one.items():
        difference = (value.double() - other[name].double()).norm()
        found = max(found, float(difference / value.double().norm().clamp(min=1e-2)))
    return found
