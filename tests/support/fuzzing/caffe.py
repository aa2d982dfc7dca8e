"""Caffe models written byte by byte, from Caffe's documentation and not from our table of fields.

A network here is a dict: layer -> part -> array. The parts of a convolution are `weight` and `bias`, those of a
BatchNorm `mean`, `variance` and `factor`, those of a Scale `gamma` and `beta`.
"""

from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch.nn import functional

from tests.support.checkpoints import State

PARTS = {
    "Convolution": ("weight", "bias"),
    "InnerProduct": ("weight", "bias"),
    "BatchNorm": ("mean", "variance", "factor"),
    "Scale": ("gamma", "beta"),
}
FACTOR = 2.0  # divides without rounding, and is no other number if one of its bytes becomes zero


def varint(number: int) -> bytes:
    """Encode a number below 2**64, seven bits in each byte."""
    number &= (1 << 64) - 1
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes | str | int) -> bytes:
    """Encode one field of a message: a number, or bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def blob(array: Any, *, old: bool = False, dims: list[int] | None = None) -> bytes:
    """Encode a BlobProto; an `old` one has four dimensions. `dims` replaces the array's own."""
    shape = list(array.shape) if dims is None else dims
    data = field(5, array.astype("<f4").tobytes()) if array.dtype.kind == "f" else b""
    if old:
        four = [1] * (4 - len(shape)) + shape
        return b"".join(field(number, size) for number, size in enumerate(four, 1)) + data
    return field(7, field(1, b"".join(map(varint, shape)))) + data


def layer(name: str, kind: str, *blobs: bytes, stride: int = 0, eps: float = 0) -> bytes:
    """Encode a LayerParameter as a field of a network, with other fields that real files have."""
    content = field(1, name) + field(2, kind) + field(3, "data") + field(4, name) + field(10, 1)
    content += b"".join(field(7, one) for one in blobs)
    if stride:
        content += field(106, field(1, 64) + field(3, 0) + field(4, 1) + field(6, stride))
    if eps:
        content += field(139, varint(3 << 3 | 5) + numpy.float32(eps).tobytes())
    return field(100, content)


def kind_of(name: str) -> str:
    """Return a layer's type, which its name tells."""
    kinds = {"bn": "BatchNorm", "scale": "Scale", "fc": "InnerProduct"}
    return next((kind for start, kind in kinds.items() if name.startswith(start)), "Convolution")


def caffemodel(network: Any, *, old: bool = False, strides: Mapping[str, int] | None = None) -> bytes:
    """Encode a network. What is not as described at the top is left out; a bare array becomes a layer of its own."""
    if not isinstance(network, dict):
        return b""
    data = field(1, "ResNet") + layer("data", "MemoryData")
    for name, parts in network.items():
        if isinstance(parts, numpy.ndarray):
            data += layer(str(name), "Bias", blob(parts, old=old))
        if not isinstance(parts, dict):
            continue
        known = [parts.get(part) for part in PARTS[kind_of(str(name))]]
        blobs = [blob(part, old=old) for part in known if isinstance(part, numpy.ndarray)]
        data += layer(str(name), kind_of(str(name)), *blobs, stride=(strides or {}).get(name, 0))
    return data + layer("relu", "ReLU")


def he_names(module: str, blocks: int = 6) -> tuple[str, str, str]:
    """Return the names of convolution, BatchNorm and Scale at torchvision's `conv1` or `layer2.0.conv1`."""
    if module == "conv1":
        return "conv1", "bn_conv1", "scale_conv1"
    stage, block, part = module.split(".", 2)
    letter = "a" if block == "0" else f"b{block}" if blocks > 6 and stage in ("layer2", "layer3") else ""
    letter = letter or "abcdef"[int(block)]
    place = f"{int(stage[-1]) + 1}{letter}_branch" + (
        "1" if "downsample" in part else f"2{' abc'[int(part[-1])]}"
    )
    return f"res{place}", f"bn{place}", f"scale{place}"


def yahoo_names(module: str) -> tuple[str, str, str]:
    """Return the same in open_nsfw."""
    if module == "conv1":
        return "conv_1", "bn_1", "scale_1"
    stage, block, part = module.split(".", 2)
    place = f"stage{int(stage[-1]) - 1}_block{block}_"
    place += "proj_shortcut" if "downsample" in part else f"branch2{' abc'[int(part[-1])]}"
    return f"conv_{place}", f"bn_{place}", f"scale_{place}"


def from_torchvision(
    state: State, names: Any = he_names, *, biases: bool = False
) -> dict[str, dict[str, Any]]:
    """Return a network with these tensors, and a classifier; if `biases`, its convolutions have random ones."""
    random = numpy.random.default_rng(0)
    network: dict[str, dict[str, Any]] = {}
    for name, weight in state.items():
        if weight.ndim != 4:
            continue
        module = name.removesuffix(".weight")
        norm = module.replace("conv", "bn").replace("downsample.0", "downsample.1")
        found = (
            state[f"{norm}.{part}"].numpy() for part in ("running_mean", "running_var", "weight", "bias")
        )
        mean, variance, gamma, beta = found
        bias = random.normal(0, 0.1 * biases, len(mean)).astype("f4")
        convolution, statistics, scale = names(module)
        network[convolution] = {"weight": weight.numpy(), "bias": bias}
        network[statistics] = {
            "mean": mean * mean.dtype.type(FACTOR),
            "variance": variance * mean.dtype.type(FACTOR),
            "factor": numpy.array([FACTOR], "f4"),
        }
        network[scale] = {"gamma": gamma, "beta": beta}
    network["fc1000"] = {"weight": random.normal(size=(10, 16)).astype("f4"), "bias": numpy.zeros(10, "f4")}
    return network


def features(
    network: Mapping[str, Mapping[str, Any]], images: torch.Tensor, blocks: list[int], *, padded: bool
) -> list[torch.Tensor]:
    """Run a network with He's names layer by layer, as Caffe would; return the outputs of its four stages.

    Args:
        images: (N, 3, H, W) float64.
        blocks: number of bottleneck blocks in each stage.
        padded: pool as detectron2 does; otherwise as Caffe does, without padding, rounding up.
    """

    def normalised(x: torch.Tensor, name: str, *, stride: int = 1) -> torch.Tensor:
        place = name.removeprefix("res") if name != "conv1" else "_conv1"
        weight, bias = (torch.from_numpy(network[name][part]).double() for part in ("weight", "bias"))
        x = functional.conv2d(x, weight, bias, stride, weight.shape[-1] // 2)
        statistics = {part: torch.from_numpy(a).double() for part, a in network[f"bn{place}"].items()}
        scale = {
            part: torch.from_numpy(a).double()[:, None, None] for part, a in network[f"scale{place}"].items()
        }
        mean, variance = (
            statistics[part][:, None, None] / statistics["factor"] for part in ("mean", "variance")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale["gamma"] + scale["beta"]

    x = normalised(images, "conv1", stride=2).relu()
    x = (
        functional.max_pool2d(x, 3, 2, padding=1)
        if padded
        else functional.max_pool2d(x, 3, 2, ceil_mode=True)
    )
    outputs = []
    for stage, count in enumerate(blocks):
        for block in range(count):
            place = f"res{stage + 2}{'abcdef'[block]}_branch"
            stride = 2 if stage and not block else 1
            y = normalised(x, f"{place}2a", stride=stride).relu()  # the stride is in the 1x1 convolution
            y = normalised(normalised(y, f"{place}2b").relu(), f"{place}2c")
            x = (y + (normalised(x, f"{place}1", stride=stride) if not block else x)).relu()
        outputs.append(x)
    return outputs
