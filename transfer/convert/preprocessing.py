"""The preprocessing that a network expects: as its file states, otherwise the default of its layout."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pretrain.common.errors import UserError, brief, label
from pretrain.model.encoders import Architecture
from pretrain.tensor_files.read_any import Loaded
from pretrain.yaml_text import parse_yaml
from transfer.convert.tensor_names import caffe_name

MAX_CONFIG = 100_000  # characters
_BUFFERS = re.compile(r"(^|\.)(data_preprocessor\.|pixel_)(mean|std)$")


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
CAFFE = Input("BGR", (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), stride_in_1x1=True)
FAIR = Input("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))  # detectron2's ResNeXts from Caffe2

FLAGS = {  # a field of `Input` -> the flag that sets it
    "format": "--channel-order",
    "mean": "--pixel-mean",
    "std": "--pixel-std",
    "stride_in_1x1": "--stride-in-1x1",
}
KEYS = {  # a field of `Input` -> detectron2's key
    "format": "INPUT.FORMAT",
    "mean": "MODEL.PIXEL_MEAN",
    "std": "MODEL.PIXEL_STD",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
}
BY_FLAG, BY_FILE, BY_NOBODY = "flag", "file", "assumed"  # who states a field; recorded in weights files
_ASSUMED = f"assumed, since the file does not state it (to change it: {', '.join(FLAGS.values())})"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= 1 << 16


def _is_between(value: Any, lowest: float, highest: float) -> bool:
    return type(value) in (int, float) and lowest < value < highest


def _are_statistics(value: Any, *, positive: bool = False) -> bool:
    try:
        return max(map(abs, three_numbers(value, positive=positive))) <= 1e6
    except (TypeError, ValueError, OverflowError):
        return False


# What the preprocessing record of converted weights may set, and the check of its value
_RECORD: dict[str, Callable[[Any], bool]] = {
    "INPUT.FORMAT": lambda value: value in ("RGB", "BGR"),
    "MODEL.PIXEL_MEAN": _are_statistics,
    "MODEL.PIXEL_STD": partial(_are_statistics, positive=True),
    "MODEL.RESNETS.STRIDE_IN_1X1": lambda value: isinstance(value, bool),
    "MODEL.RESNETS.DEPTH": _is_count,
    "MODEL.RESNETS.NUM_GROUPS": _is_count,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _is_count,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _is_count,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _is_count,
    "MODEL.BACKBONE.NAME": lambda value: value == "build_vit_sfp_backbone",
    "MODEL.VIT.PATCH_SIZE": _is_count,
    "MODEL.VIT.WIDTH": _is_count,
    "MODEL.VIT.DEPTH": _is_count,
    "MODEL.VIT.HEADS": _is_count,
    "MODEL.VIT.MLP_RATIO": lambda value: _is_between(value, 0, 1 << 16),
    "MODEL.VIT.NORM_EPS": lambda value: _is_between(value, 0, 1),
    "MODEL.VIT.PRETRAIN_SIZE": _is_count,
    "MODEL.VIT.CLASS_POSITION": lambda value: isinstance(value, bool),
    "MODEL.FPN.OUT_CHANNELS": _is_count,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": _is_count,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _is_count,
    "MODEL.ROI_BOX_HEAD.NUM_FC": _is_count,
    "MODEL.ROI_BOX_HEAD.FC_DIM": _is_count,
}


def check_record(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise `UserError` unless a record holds only settings of the network and its input, with possible values.

    `--follow-weights` puts them into the config of a run, so a file of a stranger must not set anything else.
    """
    for key, value in settings.items():
        if key not in _RECORD:
            raise UserError(
                f"{path}: its preprocessing record sets {label(key)}, which is not a setting of the network or its "
                "input: convert the original checkpoint again"
            )
        if not _RECORD[key](value):
            raise UserError(
                f"{path}: its preprocessing record is damaged: {key} {brief(value)}; convert the original checkpoint "
                "again"
            )


@dataclass(frozen=True)
class Found:
    """A network's input and where its parts come from.

    Attributes:
        input: what the network is fed.
        origin: one line on where that is stated, or that it is assumed; printed and recorded.
        assumed: the fields of `input` that neither the user nor the file states, and that the tensors do not show.
        given: the fields that the user states.
    """

    input: Input
    origin: str
    assumed: tuple[str, ...] = ()
    given: tuple[str, ...] = ()

    def by_key(self) -> dict[str, str]:
        """Return who states each field: detectron2's key -> `BY_FLAG`, `BY_FILE` or `BY_NOBODY`."""
        return {
            key: BY_FLAG if name in self.given else BY_NOBODY if name in self.assumed else BY_FILE
            for name, key in KEYS.items()
        }


def read_input(
    path: Path,
    kind: str,
    dialect: str,
    loaded: Loaded,
    architecture: Architecture | None,
    *,
    default: Input,
    given: Mapping[str, Any] | None = None,
) -> Found:
    """Return what flags or the file state (our record, pixel statistics, timm's card), else the layout's `default`.

    Args:
        architecture: of a ResNet, which matters to some layouts; None for another network.
        given: fields of `Input` that the user states with flags; they replace the file's.
    Raises:
        UserError: the file's record is damaged, or it holds several pixel statistics that differ.
    """
    given = given or {}
    try:
        stated = _stated(path, kind, dialect, loaded, architecture, default)
    except UserError:
        if not {"mean", "std"} <= given.keys():
            raise
        stated = Found(default, _ASSUMED, tuple(FLAGS))
    if not given:
        return stated
    found = stated.input
    if given.get("format", found.format) != found.format:  # an assumed mean and std turn with the channels
        turned = {name: getattr(found, name)[::-1] for name in ("mean", "std") if name in stated.assumed}
        found = replace(found, **turned)
    found = replace(found, **given)
    differ = [name for name in given if getattr(stated.input, name) != getattr(found, name)]
    replaced = [name for name in differ if name not in stated.assumed]
    names = ", ".join(FLAGS[name] for name in given)
    origin = f"{names} as given" + (f"; the rest {stated.origin}" if len(given) < len(FLAGS) else "")
    if replaced:
        origin = f"{names} as given, although the file has {describe_input(stated.input)} ({stated.origin})"
    return Found(found, origin, tuple(n for n in stated.assumed if n not in given), tuple(given))


def _stated(
    path: Path, kind: str, dialect: str, loaded: Loaded, architecture: Architecture | None, default: Input
) -> Found:
    settings = loaded.other.get("preprocessing")
    if isinstance(settings, dict) and any(str(key).startswith(("INPUT.", "MODEL.")) for key in settings):
        record = loaded.other.get("record")
        before = record.get("origins") if isinstance(record, dict) else None
        before = before if isinstance(before, dict) else {}
        assumed = tuple(name for name, key in KEYS.items() if before.get(key) == BY_NOBODY)
        return Found(_recorded(path, settings), "as its record states", assumed)
    text = loaded.other.get("config")
    if isinstance(text, str) and "iterations_per_epoch" in loaded.other:
        return Found(_configured(path, text), "as its config states")  # written by tools/pretrain.py
    if architecture and kind == "caffe2":
        return Found(_zoo(architecture), _ASSUMED, tuple(FLAGS))
    zoo = kind == "detectron2"
    if architecture and zoo and (found := _of_detector(path, loaded, architecture)):
        return found
    if found := _of_buffers(path, loaded, architecture):
        return found
    if architecture and zoo and loaded.other.get("__author__") == "Detectron2 Model Zoo":
        return Found(_zoo(architecture), "as in detectron2's model zoo")
    input, origin, assumed = default, _ASSUMED, tuple(FLAGS)
    if dialect == "caffe" and (strides := _first_strides(loaded)) in ((2, 1), (1, 2)):
        origin = f"the stride as its layers state; the rest {_ASSUMED}"
        return Found(replace(input, stride_in_1x1=strides == (2, 1)), origin, ("format", "mean", "std"))
    if unusable := next(filter(_BUFFERS.search, loaded.tensors), ""):
        origin = origin.replace("the file does not state it", f"its {unusable} is not usable")
    if "mean" in loaded.card:
        mean, std = (tuple(255 * value for value in loaded.card[key]) for key in ("mean", "std"))
        input, origin = replace(input, mean=mean, std=std), "as its config.json states"
        assumed = ("format", "stride_in_1x1")
    in_first = loaded.card.get("downsample_in_bottleneck") is True
    if dialect == "transformers" and architecture and architecture.bottleneck and in_first:
        input = replace(input, stride_in_1x1=True)
        assumed = tuple(name for name in assumed if name != "stride_in_1x1")
    return Found(input, origin, assumed)


def _first_strides(loaded: Loaded) -> tuple[Any, ...]:
    """Return the strides of the first two convolutions of a Caffe network's second stage."""
    layers = {name: layer for name, layer in loaded.other.items() if isinstance(layer, dict)}
    found = {caffe_name(f"{name}.weight"): layer.get("stride") for name, layer in layers.items()}
    return tuple(found.get(f"layer2.0.conv{number}.weight") for number in (1, 2))


def _zoo(architecture: Architecture) -> Input:
    return MSRA if architecture.groups == 1 else FAIR


def _of_detector(path: Path, loaded: Loaded, architecture: Architecture) -> Found | None:
    """Return the input of a detectron2 model without our record, if its `pixel_mean` is that of detectron2's zoo.

    No tensor shows which convolution has the stride. The zoo's ResNets start from MSRA's, with the stride in the 1x1
    convolution, and its ResNeXts from Caffe2's, with the stride in the 3x3.
    """
    statistics = _pair(path, loaded, "pixel_")
    zoo = _zoo(architecture)
    if not statistics or statistics[0] != zoo.mean:
        return None
    origin = "as its pixel_mean and pixel_std state; the stride as in detectron2's zoo"
    return Found(replace(zoo, std=statistics[1]), origin, ("stride_in_1x1",))


def _of_buffers(path: Path, loaded: Loaded, architecture: Architecture | None) -> Found | None:
    """Return the input that a file's pixel statistics state, and its OpenMMLab config for what no tensor shows.

    OpenMMLab's `data_preprocessor` has mean and std in the order in which the network gets the channels, after any
    conversion. Its config states this order; most of its files have only the config.
    """
    config = _openmmlab_config(loaded)
    if statistics := _pair(path, loaded, "data_preprocessor."):
        where = "data_preprocessor.mean and .std"
    elif statistics := _pair(path, loaded, "pixel_"):
        where = "pixel_mean and pixel_std"
    elif statistics := _in_config(config):
        where = "config"
    else:
        return None
    mean, std = statistics
    order, why = _order(mean)
    turned = set(re.findall(r"\b(?:bgr_to_rgb|to_rgb)['\"]?\s*[=:]\s*(True|False)\b", config))
    if len(turned) == 1:
        order = "RGB" if turned == {"True"} else "BGR"
        why = f"{order} as its config states"
    # `style='caffe'` stands for networks like MSRA's, whose std is 1.
    styles = set(re.findall(r"\bstyle['\"]?\s*[=:]\s*['\"](caffe|pytorch)['\"]", config))
    bottleneck = architecture is not None and architecture.bottleneck
    msra = bottleneck and getattr(architecture, "groups", 0) == 1 and order == "BGR" and set(std) == {1.0}
    stride = styles == {"caffe"} if len(styles) == 1 else msra
    if msra and len(styles) != 1:
        why += "; the stride as in MSRA's networks, which have this std"
    known = {"stride_in_1x1": styles, "format": turned or mean[0] != mean[2]}
    input = Input(order, mean, std, stride and bottleneck)
    origin = f"as its {where} state{'s' if where == 'config' else ''}; {why}"
    return Found(input, origin, tuple(name for name, evidence in known.items() if not evidence))


def _openmmlab_config(loaded: Loaded) -> str:
    meta = loaded.other.get("meta")
    texts = (meta.get(key) for key in ("cfg", "config")) if isinstance(meta, dict) else ()
    return "\n".join(text[:MAX_CONFIG] for text in texts if isinstance(text, str))


def _in_config(config: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the only `mean` and `std` in the text of a configuration, or nothing."""
    found = []
    for part in ("mean", "std"):
        texts = set(re.findall(rf"\b{part}['\"]?\s*[=:]\s*[\[(]([-\d.,e\s]*)[\])]", config))
        try:
            values = {
                three_numbers([float(v) for v in t.split(",") if v.strip()], positive=part == "std")
                for t in texts
            }
        except ValueError:
            return None
        if len(values) != 1:
            return None
        found.append(values.pop())
    return _scaled(*found)


def _order(mean: tuple[float, ...]) -> tuple[str, str]:
    """Return the order of a network's channels and the reason; pictures have more red than blue on average."""
    if mean[0] < mean[2]:
        return "BGR", "BGR, because the mean rises from channel to channel, as ImageNet's from blue to red"
    if mean[0] > mean[2]:
        return "RGB", "RGB, because the mean falls from channel to channel, as ImageNet's from red to blue"
    return "RGB", f"RGB is assumed, since the mean does not show the order ({FLAGS['format']})"


def _pair(path: Path, loaded: Loaded, prefix: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std of pixels in 0..255 from the buffers `{prefix}mean` and `{prefix}std`, if they are usable."""
    mean, std = (_statistics(path, loaded, f"{prefix}{part}") for part in ("mean", "std"))
    return _scaled(mean, std) if mean and std else None


def _scaled(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if 0 < max(mean) <= 1 and max(std) < 1:  # of pixels in [0, 1]
        return tuple(255 * value for value in mean), tuple(255 * value for value in std)
    return mean, std


def _statistics(path: Path, loaded: Loaded, name: str) -> tuple[float, ...]:
    """Return the three numbers of the buffer with this name, or nothing if there is no usable one.

    A single number is for all channels. Raises `UserError` if the file holds several that differ.
    """
    found = [tensor for key, tensor in loaded.tensors.items() if f".{key}".endswith(f".{name}")]
    if not found or not all(t.numel() in (1, 3) and not t.is_complex() for t in found):
        return ()
    values = {tuple(float(f"{value:.7g}") for value in tensor.flatten().tolist()) for tensor in found}
    if len(values) > 1:
        raise UserError(
            f"{path}: it holds several {name} that differ, so its networks have different inputs; "
            f"save only the wanted network, or state its input with {FLAGS['mean']} and {FLAGS['std']}"
        )
    try:
        numbers = list(values.pop())
        return three_numbers(numbers * 3 if len(numbers) == 1 else numbers, positive=name.endswith("std"))
    except ValueError:
        return ()


def _configured(path: Path, text: str) -> Input:
    """Return the input stated by the configuration in a checkpoint of tools/pretrain.py."""
    try:
        ours = parse_yaml(text[:MAX_CONFIG])["INPUT"]
        mean, std = (
            three_numbers([255 * v for v in ours[key]], positive=key == "STD") for key in ("MEAN", "STD")
        )
        return replace(IMAGENET, mean=mean, std=std)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(
            f"{path}: its `config` is damaged: it holds no valid INPUT.MEAN and INPUT.STD"
        ) from None


def _recorded(path: Path, settings: Mapping[str, Any]) -> Input:
    try:
        if settings["INPUT.FORMAT"] not in ("RGB", "BGR"):
            raise ValueError("INPUT.FORMAT")
        mean, std = (
            three_numbers(settings[f"MODEL.PIXEL_{part}"], positive=part == "STD") for part in ("MEAN", "STD")
        )
        stride = False if "MODEL.VIT.DEPTH" in settings else settings["MODEL.RESNETS.STRIDE_IN_1X1"]
        if not isinstance(stride, bool):
            raise ValueError("MODEL.RESNETS.STRIDE_IN_1X1")
        return Input(settings["INPUT.FORMAT"], mean, std, stride)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: its preprocessing record is damaged: {label(str(error), 80)}") from None


def three_numbers(values: Any, *, positive: bool) -> tuple[float, ...]:
    """Return three finite numbers, above 0 if `positive`. Raises `ValueError` for anything else."""
    found = tuple(float(value) for value in values) if isinstance(values, list | tuple) else ()
    if len(found) != 3 or not all(map(math.isfinite, found)) or (positive and min(found) <= 0):
        raise ValueError("not three numbers")
    return found


def describe_input(settings: Input, *, resnet: bool = True) -> str:
    """Return `RGB, mean ..., std ...; stride in the 3x3 convolution`, for pixels in 0..255.

    Only a ResNet has such a stride.
    """
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (settings.mean, settings.std))
    kernel = "1x1" if settings.stride_in_1x1 else "3x3"
    stride = f"; stride in the {kernel} convolution" if resnet else ""
    return f"{settings.format}, mean {mean}, std {std}{stride}"
