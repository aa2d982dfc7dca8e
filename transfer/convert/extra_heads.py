"""FPN and box head of checkpoints that also pre-train them (SoCo, InstanceLoc), under detectron2's names."""

import re
from collections.abc import Mapping

import numpy
import torch

from pretrain.common.errors import UserError
from transfer.convert.tensor_names import Candidate, clean

PARTS = ("fpn", "box_head")
_FPN = re.compile(r"neck\.(lateral|fpn)_convs\.(\d+)\.(conv|bn)\.(weight|bias|running_mean|running_var)")
# InstanceLoc has mmdetection's names, SoCo has plain ones.
_BOX = re.compile(
    r"(?:roi_head\.bbox_head\.shared_(conv|fc)s\.(\d+)\.(?:(conv|bn)\.)?|head\.(conv|bn|fc)(\d)\.)"
    r"(weight|bias|running_mean|running_var)"
)


def kept(
    tensors: Mapping[str, torch.Tensor], chosen: Candidate, parts: tuple[str, ...]
) -> dict[str, numpy.ndarray]:
    """Return the requested parts that belong to the chosen backbone.

    Args:
        tensors: all tensors of the file.
        chosen: the backbone; with `backbone`, for example, `neck` is used and not `neck_k`.
        parts: members of `PARTS`.
    Returns:
        detectron2's name, such as `fpn_lateral2.weight` or `roi_heads.box_head.conv1.norm.bias` -> float32 array.
    Raises:
        UserError: a part is not in the file or is incomplete, or holds numbers that are not finite.
    """
    root = chosen.branch.rpartition(".")[0]
    neighbours = {clean(name).removeprefix(f"{root}."): tensor for name, tensor in tensors.items()}
    if chosen.branch.endswith("_k"):  # the key network's neck is `neck_k`
        neighbours = {
            name.replace("_k.", ".", 1): t for name, t in neighbours.items() if re.match(r"\w+_k\.", name)
        }
    found: dict[str, numpy.ndarray] = {}
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--keep {part}: choose {' or '.join(PARTS)}, or both as {','.join(PARTS)}")
        named = _fpn(neighbours) if part == "fpn" else _box_head(neighbours)
        if not named:
            raise UserError(f"--keep {part}: the file has none for {chosen} under a name that is known here")
        found |= {name: _checked(name, tensor) for name, tensor in named.items()}
    return found


def _checked(name: str, tensor: torch.Tensor) -> numpy.ndarray:
    single = tensor.detach().to(torch.float32)
    if not tensor.is_floating_point() or not torch.isfinite(single).all():
        raise UserError(f"--keep: {name} is not floating-point, or holds NaN or infinity; convert without it")
    return single.numpy()


def settings(arrays: Mapping[str, numpy.ndarray]) -> dict[str, int]:
    """Return the detectron2 settings that the kept parts need."""
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


def _fpn(neighbours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    matches = {name: match for name in neighbours if (match := _FPN.fullmatch(name))}
    levels = {int(match[2]) for match in matches.values()}
    for part in ("lateral", "fpn"):
        if {int(match[2]) for match in matches.values() if match[1] == part} != set(range(len(levels))):
            raise UserError(f"--keep fpn: the file's {part}_convs are incomplete: levels {sorted(levels)}")
    start = 6 - len(levels)  # the last level belongs to res5
    named = {}
    for name, match in matches.items():
        kind = "lateral" if match[1] == "lateral" else "output"
        norm = "norm." if match[3] == "bn" else ""
        named[f"fpn_{kind}{start + int(match[2])}.{norm}{match[4]}"] = neighbours[name]
    return named


def _box_head(neighbours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    named = {}
    for name, tensor in neighbours.items():
        match = _BOX.fullmatch(name)
        if not match:
            continue
        if match[1]:
            kind, number, norm = match[1], int(match[2]) + 1, match[3] == "bn"
        else:
            kind, number, norm = match[4].replace("bn", "conv"), int(match[5]), match[4] == "bn"
        named[f"roi_heads.box_head.{kind}{number}.{'norm.' if norm else ''}{match[6]}"] = tensor
    return named
