"""FPN and box head of checkpoints that pre-train them too (SoCo, InstanceLoc), by detectron2's names."""

import re
from collections.abc import Mapping

import numpy
import torch

from pretrain.common.errors import UserError
from transfer.convert.tensor_names import Candidate, clean

PARTS = ("fpn", "box_head")
_FPN = re.compile(r"neck\.(lateral|fpn)_convs\.(\d+)\.(conv|bn)\.(weight|bias|running_mean|running_var)")
# mmdetection's names in InstanceLoc, plain ones in SoCo
_BOX = re.compile(
    r"(?:roi_head\.bbox_head\.shared_(conv|fc)s\.(\d+)\.(?:(conv|bn)\.)?|head\.(conv|bn|fc)(\d)\.)"
    r"(weight|bias|running_mean|running_var)"
)


def kept(
    tensors: Mapping[str, torch.Tensor], chosen: Candidate, parts: tuple[str, ...]
) -> dict[str, numpy.ndarray]:
    """The wanted parts beside the chosen backbone.

    Args:
        tensors: all of the file's.
        chosen: the backbone whose neighbours they are (`neck` beside `backbone`, not `neck_k`).
        parts: of `PARTS`.
    Returns:
        detectron2's name, such as `fpn_lateral2.weight` or `roi_heads.box_head.conv1.norm.bias` -> float32.
    Raises:
        UserError: the file has no such part beside this backbone, half of one, or numbers that are not finite.
    """
    root = chosen.branch.rpartition(".")[0]
    beside = {clean(name).removeprefix(f"{root}."): tensor for name, tensor in tensors.items()}
    if chosen.branch.endswith("_k"):  # the key network's neck is `neck_k`
        beside = {name.replace("_k.", ".", 1): t for name, t in beside.items() if re.match(r"\w+_k\.", name)}
    found: dict[str, numpy.ndarray] = {}
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--keep {part}: choose {' or '.join(PARTS)}, or both as {','.join(PARTS)}")
        named = _fpn(beside) if part == "fpn" else _box_head(beside)
        if not named:
            raise UserError(f"--keep {part}: the file has none beside {chosen} by names that are known here")
        found |= {name: _checked(name, tensor) for name, tensor in named.items()}
    return found


def _checked(name: str, tensor: torch.Tensor) -> numpy.ndarray:
    single = tensor.detach().to(torch.float32)
    if not tensor.is_floating_point() or not torch.isfinite(single).all():
        raise UserError(
            f"--keep: {name} holds NaN, infinity or no floating-point numbers; convert without it"
        )
    return single.numpy()


def settings(arrays: Mapping[str, numpy.ndarray]) -> dict[str, int]:
    """The detectron2 configuration that the kept parts need."""
    needed = {}
    if laterals := [name for name in arrays if re.fullmatch(r"fpn_lateral\d\.weight", name)]:
        needed["MODEL.FPN.OUT_CHANNELS"] = int(arrays[laterals[0]].shape[0])
    box = [name for name in arrays if name.startswith("roi_heads.box_head.")]
    for kind, key, dim in (("conv", "NUM_CONV", "CONV_DIM"), ("fc", "NUM_FC", "FC_DIM")):
        weights = [n for n in box if re.fullmatch(rf"roi_heads\.box_head\.{kind}\d\.weight", n)]
        if weights:
            needed[f"MODEL.ROI_BOX_HEAD.{key}"] = len(weights)
            needed[f"MODEL.ROI_BOX_HEAD.{dim}"] = int(arrays[weights[0]].shape[0])
    return needed


def _fpn(beside: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    matches = {name: match for name in beside if (match := _FPN.fullmatch(name))}
    levels = {int(match[2]) for match in matches.values()}
    for part in ("lateral", "fpn"):
        if {int(match[2]) for match in matches.values() if match[1] == part} != set(range(len(levels))):
            raise UserError(f"--keep fpn: the file's {part}_convs are not complete: levels {sorted(levels)}")
    start = 6 - len(levels)  # the last one is res5's
    named = {}
    for name, match in matches.items():
        kind = "lateral" if match[1] == "lateral" else "output"
        norm = "norm." if match[3] == "bn" else ""
        named[f"fpn_{kind}{start + int(match[2])}.{norm}{match[4]}"] = beside[name]
    return named


def _box_head(beside: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {}
    for name, tensor in beside.items():
        match = _BOX.fullmatch(name)
        if not match:
            continue
        if match[1]:
            kind, number, norm = match[1], int(match[2]) + 1, match[3] == "bn"
        else:
            kind, number, norm = match[4].replace("bn", "conv"), int(match[5]), match[4] == "bn"
        named[f"roi_heads.box_head.{kind}{number}.{'norm.' if norm else ''}{match[6]}"] = tensor
    return named
