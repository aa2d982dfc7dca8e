"""The frozen backbone of a linear probe, read from any checkpoint that the converter accepts, or untrained."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from pretrain.common.errors import UserError
from pretrain.data.on_device import Pixels
from pretrain.model import precision
from pretrain.model.encoders import ARCHITECTURES, Architecture, ResNet, architecture
from pretrain.model.vit import ViT
from transfer.convert.architecture import recorded
from transfer.convert.preprocessing import IMAGENET, Input
from transfer.convert.program.networks import read_any
from transfer.convert.recognise import build_network
from transfer.convert.vit.architecture import Shape, empty_network
from transfer.convert.vit.recognise import VitSource, build_vit

RANDOM = "random"
# Parts of tensor names that occur only in a complete detector.
_DETECTOR = ("proposal_generator", "rpn_head", "rpn")


@dataclass(frozen=True)
class Backbone:
    """A backbone to probe.

    Attributes:
        network: in evaluation mode, on the CPU.
        input: the preprocessing that the network was pre-trained with.
        what: a short description to print.
        file_digest: SHA-256 of the file; empty for random weights.
        digest: SHA-256 of the tensors and of the preprocessing. Equal digests mean equal features.
    """

    network: ResNet | ViT
    architecture: Architecture | Shape
    input: Input
    what: str
    file_digest: str
    digest: str


def load(
    weights: str, cfg: CfgNode, *, source: str = "auto", branch: str = "", heads: int | None = None
) -> Backbone:
    """Load `--weights`: a checkpoint file, from which no code is run, or `random` for an untrained MODEL.ARCH.

    Raises `UserError` for a file that the converter would refuse, for a fine-tuned detector, and for a ViT without the
    final norm, as in a converted file, or for images that do not divide into its patches.
    """
    if weights == RANDOM:
        return _random(cfg)
    found = read_any(Path(weights), source=source, branch=branch, heads=heads)
    part = next((name for name in found.dropped if name.split(".")[-1] in _DETECTOR), None)
    if part:
        raise UserError(
            f"{weights}: this file holds a complete detector ({part}), whose backbone was trained on boxes; give the "
            "weights that it was initialised from"
        )
    network: ResNet | ViT
    if isinstance(found, VitSource):
        _check_vit(weights, found, cfg.INPUT.SIZE)
        network = build_vit(found)
    else:
        network = build_network(found).eval()
    what = f"{found.kind}, {found.branch or 'top'}: {found.why}"
    shape = found.shape if isinstance(found, VitSource) else found.architecture
    digest = _digest(network, found.input, shape if isinstance(shape, Shape) else None)
    return Backbone(network, shape, found.input, what, file_digest=found.digest, digest=digest)


def _random(cfg: CfgNode) -> Backbone:
    torch.manual_seed(cfg.SEED)
    net: ResNet | ViT
    shape: Architecture | Shape
    if cfg.MODEL.ARCH == "vit":
        vit, size = cfg.MODEL.VIT, cfg.INPUT.SIZE
        _check_size(size, vit.PATCH_SIZE)
        shape = Shape(vit.WIDTH, vit.DEPTH, vit.HEADS, vit.PATCH_SIZE, size // vit.PATCH_SIZE, 4 * vit.WIDTH)
        net = empty_network(shape).eval()
    else:
        if cfg.MODEL.ARCH not in ARCHITECTURES:
            known = ", ".join((*ARCHITECTURES, "vit"))
            raise UserError(f"MODEL.ARCH {cfg.MODEL.ARCH}: unknown architecture; choose one of {known}")
        shape = architecture(cfg.MODEL.ARCH, cfg.MODEL.WIDTH, stem=cfg.MODEL.STEM_CHANNELS)
        net = ResNet(shape).eval()
    digest = _digest(net, IMAGENET, shape if isinstance(shape, Shape) else None)
    return Backbone(net, shape, IMAGENET, f"random {cfg.MODEL.ARCH}", file_digest="", digest=digest)


def _check_vit(weights: str, found: VitSource, size: int) -> None:
    if "norm.weight" not in found.backbone or (
        found.shape.class_position and "cls_token" not in found.backbone
    ):
        raise UserError(
            f"{weights}: it holds a ViT without the class token or the final norm, as those converted for detectors: "
            "give the checkpoint that it was converted from"
        )
    _check_size(size, found.shape.patch_size)


def _check_size(size: int, patch: int) -> None:
    if size % patch:
        raise UserError(
            f"INPUT.SIZE {size}: not a multiple of the ViT's patches of {patch} pixels: set it to "
            f"{max(1, size // patch) * patch}"
        )


def record_architecture(shape: Architecture | Shape) -> dict[str, Any]:
    """Return the architecture as it is written into records."""
    return asdict(shape) if isinstance(shape, Shape) else recorded(shape)


def describe_architecture(shape: Architecture | Shape) -> str:
    """Return a name such as `ResNet-50`, `ResNeXt-50 32x8d` or `ResNet-50 w2x`, or the sizes of a ViT."""
    if isinstance(shape, Shape):
        return str(shape)
    name = f"ResNet-{shape.depth}"
    if shape.groups > 1:
        name = f"ResNeXt-{shape.depth} {shape.groups}x{shape.width_per_group}d"
    return name if shape.width == 1 else f"{name} w{shape.width:g}x"


def _digest(net: ResNet | ViT, settings: Input, shape: Shape | None = None) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    if shape:  # no tensor shows the number of heads
        digest.update(repr(shape).encode())
    for name, tensor in net.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Extractor:
    """Computes the features of images: the global average of `res5`, or a ViT's class token after the final norm.

    Batch norm uses its running statistics. A ViT without a class token gives the average of its patches' tokens.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self.network = backbone.network.requires_grad_(False).to(device)
        precision.forbid_tf32()
        shape = backbone.architecture
        self.channels = shape.width if isinstance(shape, Shape) else shape.feature_channels
        self.device, self.bgr = device, backbone.input.format == "BGR"
        mean, std = (
            [value / 255 for value in (values[::-1] if self.bgr else values)]  # R, G, B in [0, 1]
            for values in (backbone.input.mean, backbone.input.std)
        )
        self.pixels = Pixels(mean, std, channels_last=device.type == "cuda").to(device)
        if device.type == "cuda":
            self.network.to(memory_format=torch.channels_last)
            torch.backends.cudnn.benchmark = True

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (N, C) float32 on the extractor's device for (N, H, W, 3) uint8 RGB on any device."""
        batch = self.pixels(images.to(self.device, non_blocking=True))
        batch = batch.flip(1) if self.bgr else batch
        if isinstance(self.network, ViT):
            return self.network.feature(batch)
        maps = self.network.features(batch)["res5"]  # (N, C, h, w)
        return maps.mean((2, 3))
