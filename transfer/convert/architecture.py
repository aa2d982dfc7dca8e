"""Determine from tensor names and shapes which ResNet a file holds, and check that it is complete."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pretrain.common.errors import UserError
from pretrain.model.encoders import ARCHITECTURES, Architecture, ResNet

_NORM = ("weight", "bias", "running_mean", "running_var")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_architecture(path: Path, network: dict[str, torch.Tensor]) -> Architecture:
    """Read depth, widths and groups of a ResNet with torchvision's names from the names and shapes.

    Stem, inner and output channels are independent. Each size is the most frequent one among several tensors, so that
    `checked` can name a single wrong tensor.

    Raises:
        UserError: detectron2 cannot build this network; the message starts with `path`.
    """
    blocks = [0, 0, 0, 0]
    for name in network:
        if match := re.match(r"layer([1-4])\.(\d+)\.", name):
            stage = int(match[1]) - 1
            blocks[stage] = max(blocks[stage], int(match[2]) + 1)
    bottleneck = any(re.fullmatch(r"layer\d\.\d+\.conv3\.weight", name) for name in network)
    depths: dict[tuple[int, ...], int] = {(*a.blocks, a.bottleneck): a.depth for a in ARCHITECTURES.values()}
    depth = depths.get((*blocks, bottleneck))
    if depth is None:
        block = "bottleneck" if bottleneck else "basic"
        raise UserError(
            f"{path}: this is a ResNet with {blocks} {block} blocks, which detectron2 cannot build; "
            f"it builds depths {', '.join(map(str, sorted(set(depths.values()))))}"
        )
    stem = _size(path, network, [f"bn1.{part}" for part in _NORM])
    shape: dict[str, Any] = {"depth": depth, "blocks": tuple(blocks), "bottleneck": bottleneck}
    last = "bn3" if bottleneck else "bn2"
    shape |= {"stem_channels": stem, "out_channels": _doubling(path, network, blocks, last, "output")}
    if bottleneck:
        inner = _doubling(path, network, blocks, "bn1", "inner")
        kernels = [f"layer1.{block}.conv2.weight" for block in range(blocks[0])]
        per_group = _size(path, network, kernels, 1)
        if inner % per_group:
            raise UserError(
                f"{path}: layer1 has blocks of {inner} channels in groups of {per_group}, which do not divide them: "
                "this is not a ResNet, ResNeXt or wide ResNet"
            )
        shape |= {"groups": inner // per_group, "width_per_group": per_group}
    return Architecture(**shape)


def _doubling(path: Path, network: dict[str, torch.Tensor], blocks: list[int], norm: str, what: str) -> int:
    """Return the first stage's channels at a block's norm. Raises `UserError` unless they double with each stage."""
    sizes = [
        _size(path, network, [f"layer{s}.{b}.{norm}.{part}" for b in range(count) for part in _NORM])
        for s, count in enumerate(blocks, 1)
    ]
    for stage, size in enumerate(sizes):
        if size != sizes[0] * 2**stage:
            raise UserError(
                f"{path}: layer{stage + 1} has {size} {what} channels; detectron2 builds only {sizes[0] * 2**stage} "
                f"there, because it doubles the {sizes[0]} of layer1 with each stage"
            )
    return sizes[0]


def recorded(architecture: Architecture) -> dict[str, Any]:
    """Return the architecture as it is written into records."""
    return asdict(architecture) | {"width": architecture.width}


def described(record: Mapping[str, Any]) -> str:
    """Return `ResNet-50, width 0.5, 1 group(s) of 32, stem 64, res2 128` for a result of `recorded`, in channels."""
    return (
        "ResNet-{depth}, width {width:g}, {groups} group(s) of {width_per_group}, stem {stem_channels}, "
        "res2 {out_channels}"
    ).format(**record)


def _size(path: Path, network: dict[str, torch.Tensor], names: list[str], dim: int = 0) -> int:
    """Return the most frequent size along `dim` among the named tensors."""
    held = [network[name] for name in names if name in network]
    sizes = [tensor.shape[dim] for tensor in held if tensor.ndim > dim and tensor.numel()]
    if not sizes:
        raise UserError(f"{path}: tensor {names[0]} is missing or empty")
    return Counter(sizes).most_common(1)[0][0]


@lru_cache(8)
def _expected(architecture: Architecture) -> dict[str, torch.Size]:
    """Return a network's tensor names and shapes, in its order. Cached, so callers must not change the result."""
    with torch.device("meta"):
        reference = ResNet(architecture).state_dict()
    return {
        name: tensor.shape for name, tensor in reference.items() if not name.endswith("num_batches_tracked")
    }


def checked(
    path: Path, network: dict[str, torch.Tensor], architecture: Architecture
) -> dict[str, torch.Tensor]:
    """Return the network's tensors as float32, in torchvision's order.

    Raises:
        UserError: a tensor is missing, unexpected, not floating-point or not finite, or has the wrong shape, or most
            convolutions are zero; the message names the first one.
    """
    expected = _expected(architecture)
    missing = [name for name in expected if name not in network]
    extra = [name for name in network if name not in expected]
    what = f"a ResNet-{architecture.depth}"
    if missing:
        raise UserError(
            f"{path}: {what} without tensor {missing[0]} ({len(missing)} missing): the backbone is incomplete"
        )
    if extra:
        raise UserError(
            f"{path}: tensor {extra[0]} has no place in {what} ({len(extra)} such tensors): "
            "is it another kind of ResNet?"
        )
    for name, shape in expected.items():
        tensor = network[name]
        if tensor.shape != shape:
            raise UserError(
                f"{path}: tensor {name} has shape {tuple(tensor.shape)}, not {tuple(shape)} as in {what}: "
                "is it another kind of ResNet?"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(f"{path}: tensor {name} holds {tensor.dtype}, not floating-point numbers")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {not_finite(network, expected, name)}")
        if name.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{path}: tensor {name} holds negative variances: the file is damaged")
        if tensor.dtype == torch.float64 and not torch.isfinite(tensor.to(torch.float32)).all():
            raise UserError(
                f"{path}: tensor {name} holds numbers beyond float32's range: the training run diverged"
            )
    kernels = [name for name, shape in expected.items() if len(shape) == 4]
    zero = [name for name in kernels if not network[name].any()]
    # A single one can have decayed to zero in a residual branch, which the network survives.
    if "conv1.weight" in zero or len(zero) * 2 > len(kernels):
        raise UserError(
            f"{path}: tensor {zero[0]} holds only zeros, as do {len(zero)} of {len(kernels)} convolutions: the "
            "network is dead or was never filled; use another checkpoint"
        )
    return {name: network[name].detach().to(torch.float32).contiguous() for name in expected}


def not_finite(network: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size], name: str) -> str:
    """Return what is wrong with a tensor that holds NaN or infinity, among all that are expected."""
    tensor = network[name]
    count = int((~torch.isfinite(tensor)).sum())
    others = sum(not bool(torch.isfinite(network[n]).all()) for n in expected if n in network) - 1
    more = f", as do {others} other tensors" if others > 1 else ", as does 1 other tensor" if others else ""
    return (
        f"tensor {name} holds NaN or infinity ({count} of {tensor.numel()} numbers){more}: the training run "
        "diverged; use an earlier checkpoint"
    )
