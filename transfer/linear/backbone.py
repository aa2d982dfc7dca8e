"""The frozen backbone of a linear probe, from any checkpoint that the converter takes, or at random."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from pretrain.common.errors import UserError
from pretrain.data.on_device import Pixels
from pretrain.model.encoders import Architecture, ResNet, architecture
from transfer.convert.preprocessing import IMAGENET, Input
from transfer.convert.recognise import build_network, read_source

RANDOM = "random"
_DETECTOR = ("proposal_generator", "rpn_head", "rpn")  # what only a whole detector has


@dataclass(frozen=True)
class Backbone:
    """A backbone to probe.

    Attributes:
        network: in evaluation mode, on the CPU.
        input: what the network was fed in pre-training.
        what: one phrase for people.
        file_digest: SHA-256 of the file; empty for random weights.
        digest: SHA-256 of the tensors and of the preprocessing: equal for equal features.
    """

    network: ResNet
    architecture: Architecture
    input: Input
    what: str
    file_digest: str
    digest: str


def load(weights: str, cfg: CfgNode, *, source: str = "auto", branch: str = "") -> Backbone:
    """Read `--weights`: a checkpoint, of which nothing is executed, or `random`, an untrained MODEL.ARCH.

    Raises `UserError` for a file that the converter would not take, and for a fine-tuned detector.
    """
    if weights == RANDOM:
        shape = architecture(cfg.MODEL.ARCH, cfg.MODEL.WIDTH)
        torch.manual_seed(cfg.SEED)
        net, settings, file_digest, what = ResNet(shape), IMAGENET, "", f"random {cfg.MODEL.ARCH}"
    else:
        found = read_source(Path(weights), source=source, branch=branch)
        part = next((name for name in found.dropped if name.split(".")[-1] in _DETECTOR), None)
        if part:
            raise UserError(
                f"{weights}: holds a whole detector ({part}), whose backbone was trained on boxes; give the "
                "weights that it started from"
            )
        net, shape, settings, file_digest = (
            build_network(found),
            found.architecture,
            found.input,
            found.digest,
        )
        what = f"{found.kind}, {found.branch or 'top'}: {found.why}"
    return Backbone(net.eval(), shape, settings, what, file_digest, _digest(net, settings))


def describe_architecture(shape: Architecture) -> str:
    """`ResNet-50`, `ResNeXt-50 32x8d`, `ResNet-50 w2x`."""
    name = f"ResNet-{shape.depth}"
    if shape.groups > 1:
        name = f"ResNeXt-{shape.depth} {shape.groups}x{round(shape.width_per_group * shape.width)}d"
    return name if shape.width == 1 else f"{name} w{shape.width:g}x"


def _digest(net: ResNet, settings: Input) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Extractor:
    """Images -> features: the global average of `res5`, batch norm with its running statistics."""

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self.network = backbone.network.requires_grad_(False).to(device)
        self.channels = backbone.architecture.feature_channels
        self.device, self.bgr = device, backbone.input.format == "BGR"
        mean, std = (
            [value / 255 for value in (values[::-1] if self.bgr else values)]  # of R, G, B in [0, 1]
            for values in (backbone.input.mean, backbone.input.std)
        )
        self.pixels = Pixels(mean, std, channels_last=device.type == "cuda").to(device)
        if device.type == "cuda":
            self.network.to(memory_format=torch.channels_last)
            torch.backends.cudnn.benchmark = True

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 RGB on any device -> (N, C) float32 on the extractor's."""
        batch = self.pixels(images.to(self.device, non_blocking=True))
        maps = self.network.features(batch.flip(1) if self.bgr else batch)["res5"]  # (N, C, h, w)
        return maps.mean((2, 3))
