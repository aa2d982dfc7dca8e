"""The preprocessing that a network expects: as its file states, otherwise the default of its layout."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pretrain.common.configs import read_dump
from pretrain.common.errors import UserError
from pretrain.model.encoders import Architecture
from pretrain.tensor_files.pickle_machine import label
from pretrain.tensor_files.read_any import Loaded

MAX_CONFIG = 100_000  # characters


@dataclass(frozen=True)
class Input:
    """The input that a network was trained on, in detectron2's terms.

    Attributes:
        format: RGB or BGR.
        mean: subtracted from pixels in 0..255, in the channel order of `format`.
        std: divides the result.
        stride_in_1x1: whether the stride of a bottleneck is in its first 1x1 convolution.
    """

    format: str = "RGB"
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    stride_in_1x1: bool = False


IMAGENET = Input()
SWAV = Input(std=(255 * 0.228, 255 * 0.224, 255 * 0.225))  # 0.228 is in SwAV's own transforms
UNIT = Input(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))  # SimCLR: pixels in [0, 1], no mean
MSRA = Input("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), stride_in_1x1=True)  # detectron2's default
FAIR = Input("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))  # detectron2's ResNeXts from Caffe2


def read_input(
    path: Path, kind: str, dialect: str, loaded: Loaded, architecture: Architecture, *, default: Input
) -> Input:
    """Return what the file states (our checkpoint, a converted file, timm's card), else its layout's `default`.

    Raises:
        UserError: the file's record is damaged.
    """
    settings = loaded.other.get("preprocessing")
    if isinstance(settings, dict) and any(str(key).startswith(("INPUT.", "MODEL.")) for key in settings):
        return _recorded(path, settings)
    text = loaded.other.get("config")
    if isinstance(text, str) and "iterations_per_epoch" in loaded.other:
        return _configured(path, text)  # written by tools/pretrain.py
    if kind == "caffe2" and architecture.groups > 1:
        return FAIR
    if kind == "detectron2" and (found := _detectors(path, loaded, architecture)):
        return found
    found = default
    if "mean" in loaded.card:
        mean, std = (tuple(255 * value for value in loaded.card[key]) for key in ("mean", "std"))
        found = replace(found, mean=mean, std=std)
    in_first = loaded.card.get("downsample_in_bottleneck") is True
    if dialect == "transformers" and architecture.bottleneck and in_first:
        found = replace(found, stride_in_1x1=True)
    return found


def _detectors(path: Path, loaded: Loaded, architecture: Architecture) -> Input | None:
    """Return the input of a detector without our record: its pixel statistics, or those of detectron2's zoo.

    No tensor shows which convolution has the stride. The zoo's ResNets start from MSRA's, with the stride in the 1x1
    convolution, and its ResNeXts from Caffe2's, with the stride in the 3x3.
    """
    zoo = MSRA if architecture.groups == 1 else FAIR
    mean, std = (_statistics(path, loaded, f"pixel_{part}") for part in ("mean", "std"))
    if mean and std:
        if mean == zoo.mean:
            return replace(zoo, std=std)
        return replace(IMAGENET, format="BGR" if mean[0] < mean[2] else "RGB", mean=mean, std=std)
    if loaded.other.get("__author__") == "Detectron2 Model Zoo":
        return zoo
    return None


def _statistics(path: Path, loaded: Loaded, name: str) -> tuple[float, ...]:
    """Return the three numbers of the buffer with this name, or nothing if there is no usable one.

    Raises `UserError` if the file holds several that differ.
    """
    found = [tensor for key, tensor in loaded.tensors.items() if key.rpartition(".")[2] == name]
    if not found or not all(t.is_floating_point() and t.numel() == 3 for t in found):
        return ()
    values = {tuple(round(float(value), 4) for value in tensor.flatten()) for tensor in found}
    if len(values) > 1:
        raise UserError(
            f"{path}: it holds several {name} that differ, so its networks have different inputs; "
            "save only the wanted network"
        )
    try:
        return _three(list(values.pop()), positive=name == "pixel_std")
    except ValueError:
        return ()


def _configured(path: Path, text: str) -> Input:
    """Return the input stated by the configuration in a checkpoint of tools/pretrain.py."""
    try:
        ours = read_dump(text[:MAX_CONFIG])["INPUT"]
        mean, std = (_three([255 * v for v in ours[key]], positive=key == "STD") for key in ("MEAN", "STD"))
        return replace(IMAGENET, mean=mean, std=std)
    except (yaml.YAMLError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise UserError(
            f"{path}: its `config` is damaged: it holds no valid INPUT.MEAN and INPUT.STD"
        ) from None


def _recorded(path: Path, settings: Mapping[str, Any]) -> Input:
    try:
        if settings["INPUT.FORMAT"] not in ("RGB", "BGR"):
            raise ValueError("INPUT.FORMAT")
        mean, std = (
            _three(settings[f"MODEL.PIXEL_{part}"], positive=part == "STD") for part in ("MEAN", "STD")
        )
        stride = settings["MODEL.RESNETS.STRIDE_IN_1X1"]
        if not isinstance(stride, bool):
            raise ValueError("MODEL.RESNETS.STRIDE_IN_1X1")
        return Input(settings["INPUT.FORMAT"], mean, std, stride)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: its preprocessing record is damaged: {label(str(error), 80)}") from None


def _three(values: Any, *, positive: bool) -> tuple[float, ...]:
    found = tuple(float(value) for value in values) if isinstance(values, list | tuple) else ()
    if len(found) != 3 or not all(map(math.isfinite, found)) or (positive and min(found) <= 0):
        raise ValueError("not three numbers")
    return found


def preprocessing(architecture: Architecture, input: Input = IMAGENET) -> dict[str, Any]:
    """Return the detectron2 settings, dotted key -> value, that the converted weights need."""
    stem = architecture.stem_channels
    # detectron2 has no width factor: WIDTH_PER_GROUP is the actual number of channels.
    group_channels = int(architecture.width_per_group * stem / 64) if architecture.bottleneck else 64
    return {
        "INPUT.FORMAT": input.format,
        "MODEL.PIXEL_MEAN": [round(value, 6) for value in input.mean],
        "MODEL.PIXEL_STD": [round(value, 6) for value in input.std],
        "MODEL.RESNETS.DEPTH": architecture.depth,
        "MODEL.RESNETS.STRIDE_IN_1X1": input.stride_in_1x1,
        "MODEL.RESNETS.NUM_GROUPS": architecture.groups,
        "MODEL.RESNETS.WIDTH_PER_GROUP": group_channels,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": stem,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": stem * (4 if architecture.bottleneck else 1),
    }


def config_block(settings: dict[str, Any], weights: Path) -> str:
    """Return the settings and the file's name as YAML to paste into a detectron2 configuration."""
    tree: dict[str, Any] = {"MODEL": {"WEIGHTS": str(weights)}}
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return "\n".join(_yaml_lines(tree))


def _yaml_lines(tree: dict[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _yaml_lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {json.dumps(value)}"  # JSON is YAML on one line


def describe_input(settings: Input) -> str:
    """Return `RGB, mean ..., std ...; stride in the 3x3 convolution`, for pixels in 0..255."""
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (settings.mean, settings.std))
    kernel = "1x1" if settings.stride_in_1x1 else "3x3"
    return f"{settings.format}, mean {mean}, std {std}; stride in the {kernel} convolution"
