"""Extract a ViT from a checkpoint, accounting for every tensor in the file."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pretrain.common.errors import UserError
from pretrain.model.vit import ViT
from pretrain.tensor_files.read_any import Loaded
from pretrain.tensor_files.shards import combined_digest, read_checkpoint
from transfer.convert.architecture import FLOATS
from transfer.convert.choose import choose
from transfer.convert.preprocessing import FLAGS, IMAGENET, KEYS, Input, read_input
from transfer.convert.recognise import MAX_NETWORKS, group_of, printed_branch, stated_epoch
from transfer.convert.tensor_names import Candidate, Tensors, find_candidates, unwrapped
from transfer.convert.vit import refusals
from transfer.convert.vit.architecture import Shape, checked, empty_network, read_shape
from transfer.convert.vit.kinds import KINDS, read_eps, read_heads
from transfer.convert.vit.names import find_vits, fused

_STRIDE = "stride_in_1x1"  # the field of `Input` that only a ResNet has


@dataclass(frozen=True)
class VitSource:
    """A ViT found in a checkpoint; the fields that `transfer.convert.recognise.Source` has, too, mean the same.

    Attributes:
        kind: a key of `KINDS`, or `unknown` for a single ViT at a place that no entry lists.
        shape: read from the tensors; the heads are not.
        backbone: timm's names -> float32 tensors, in timm's order: the whole network with its class token, registers
            and final norm, as far as the file has them.
        fused: whether the file has separate queries, keys and values.
        heads_origin: where the number of heads comes from.
    """

    kind: str
    branch: str
    why: str
    passed_over: tuple[str, ...]
    shape: Shape
    backbone: Tensors
    dropped: dict[str, int]
    opaque: tuple[str, ...]
    epoch: int | None
    digest: str
    fused: bool = False
    heads_origin: str = ""
    input: Input = IMAGENET
    input_origin: str = ""
    origins: dict[str, str] = field(default_factory=dict)


def holds_vit(path: Path, loaded: Loaded) -> bool:
    """Return whether a file holds a transformer with a ViT's names, and no ResNet."""
    tensors = unwrapped(path, loaded.tensors)
    return bool(find_vits(tensors)) and not find_candidates(tensors)


def read_vit(
    path: Path,
    *,
    source: str = "auto",
    branch: str = "",
    heads: int | None = None,
    given: Mapping[str, Any] | None = None,
    loaded: Loaded | None = None,
) -> VitSource:
    """Read a checkpoint and extract its ViT.

    Args:
        source: a key of `KINDS`, or `auto`.
        branch: the network to take, as `--inspect` prints it; if empty, the kind decides.
        heads: of the attention, if they cannot be known.
        given: fields of `Input` that replace what the file states or its kind implies.
        loaded: the contents of the file, if it has been read already.
    Raises:
        UserError: the file is unreadable, unsafe or holds no plain ViT, or holds several and no rule chooses one.
    """
    if source != "auto" and source not in KINDS:
        raise UserError(f"--source {source}: it holds a ViT; choose auto, {', '.join(KINDS)}")
    loaded = loaded or read_checkpoint(path)
    tensors = unwrapped(path, loaded.tensors)
    if reason := refusals.of_file(tensors) or refusals.of_name(path, loaded):
        raise UserError(f"{path}: {reason}")
    candidates = find_vits(tensors)
    if not candidates:
        raise UserError(f"{path}: it does not contain a ViT (no tensor like *blocks.0.attn.qkv.weight)")
    if len(candidates) > MAX_NETWORKS:
        raise UserError(f"{path}: it holds {len(candidates)} ViTs: damaged or hostile")
    kind, chosen, why = choose(
        path, tensors, candidates, source=source, branch=branch, layouts=KINDS, what="ViT"
    )
    if _has_record(loaded) and len(candidates) == 1:
        kind = "detectron2"
    network, dropped = _account(path, tensors, chosen)
    if reason := refusals.of_network(loaded, network, chosen.dialect.name):
        raise UserError(f"{path}: {reason}")
    joined = fused(network)
    network = _without_their_positions(joined)
    if network.pop("dist_token", None) is not None:
        dropped["dist_token"] = 1
    sizes = read_shape(path, network)
    number, heads_origin = read_heads(path, kind, loaded, network, width=sizes["width"], given=heads)
    shape = Shape(heads=number, eps=read_eps(kind, loaded, layer_scale=sizes["layer_scale"]), **sizes)
    backbone = checked(path, network, shape)
    layout = KINDS.get(kind)
    found = read_input(
        path,
        kind,
        chosen.dialect.name,
        loaded,
        None,
        default=layout.input if layout else IMAGENET,
        given=given,
    )
    return VitSource(
        kind=kind,
        branch=printed_branch(chosen),
        why=why,
        passed_over=tuple(str(c) for c in candidates if c is not chosen),
        shape=shape,
        backbone=backbone,
        dropped=dropped,
        opaque=loaded.opaque,
        epoch=stated_epoch(loaded),
        digest=combined_digest(loaded.parts),
        fused=any(re.search(r"\.attn\.q\.", name) for name in _names(tensors, chosen)),
        heads_origin=heads_origin,
        input=found.input,
        input_origin=found.origin.replace(f", {FLAGS[_STRIDE]}", ""),
        origins={key: who for key, who in found.by_key().items() if key != KEYS[_STRIDE]},
    )  # fmt: skip


def _has_record(loaded: Loaded) -> bool:
    settings = loaded.other.get("preprocessing")
    return isinstance(settings, dict) and "MODEL.VIT.DEPTH" in settings


def _names(tensors: Tensors, chosen: Candidate) -> list[str]:
    inside = [name.removeprefix(chosen.prefix) for name in tensors if name.startswith(chosen.prefix)]
    return [named for name in inside if (named := chosen.dialect.translate(name))]


def _account(path: Path, tensors: Tensors, chosen: Candidate) -> tuple[Tensors, dict[str, int]]:
    """Split the file's tensors into the network, under timm's names, and dropped groups with counts.

    Raises:
        UserError: two tensors have the same place, or one that looks like a ViT's has no place in it.
    """
    network: Tensors = {}
    dropped: Counter[str] = Counter()
    for name, tensor in tensors.items():
        inside = name.startswith(chosen.prefix)
        rest = name.removeprefix(chosen.prefix) if inside else ""
        named = chosen.dialect.translate(rest) if inside else None
        if named in network:
            raise UserError(
                f"{path}: it holds two tensors for {named}, one of them {name}: save only the wanted network"
            )
        if named:
            network[named] = tensor
        elif inside and _is_zero_relative_position(rest, tensor):
            dropped["rel_pos"] += 1
        elif inside and refusals.TRUNK_LIKE.match(rest):
            reason = refusals.inside([rest])
            raise UserError(
                f"{path}: {reason}"
                if reason
                else f"{path}: tensor {name} has no place in a plain ViT: is it another kind of transformer?"
            )
        else:
            dropped[group_of(rest) if inside else group_of(name, branch=chosen.branch)] += 1
    return network, dict(dropped)


def _is_zero_relative_position(name: str, tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a table of relative positions, as in a ViTDet, that has not been trained."""
    known = re.fullmatch(r"blocks\.\d+\.attn\.rel_pos_[hw]", name) and tensor.dtype in FLOATS
    return bool(known) and not bool(tensor.any())


def _without_their_positions(network: Tensors) -> Tensors:
    """Move the positions of registers and of a distillation token from the table into these tokens.

    The table then has entries for the class token and the patches only.
    """
    table = network.get("pos_embed")
    tokens = {name: network[name] for name in ("dist_token", "reg_token") if name in network}
    if table is None or table.ndim != 3 or not tokens:
        return network
    if any(token.ndim != 3 or token.shape[2] != table.shape[2] for token in tokens.values()):
        return network
    if any(tensor.dtype not in FLOATS for tensor in (table, *tokens.values())):
        return network
    patches = table.shape[1] - 1  # if only the class token has an entry, too
    more = sum(token.shape[1] for token in tokens.values())
    if "cls_token" not in network or _is_square(patches) or not _is_square(patches - more):
        return network
    moved = dict(network)
    moved["pos_embed"] = torch.cat([table[:, :1], table[:, 1 + more :]], dim=1)
    first = 1
    for name, token in tokens.items():
        moved[name] = token.float() + table[:, first : first + token.shape[1]].float()
        first += token.shape[1]
    return moved


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def build_vit(source: VitSource) -> ViT:
    """Return the source's network with its weights, on the CPU, in evaluation mode. It shares the source's tensors.

    A final norm that the file does not have is the identity's: weight 1, bias 0.
    """
    shape = source.shape
    with torch.device("meta"):
        network = empty_network(shape)
    tensors = dict(source.backbone)
    if shape.class_position and not shape.class_token:
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    tensors.setdefault("norm.weight", torch.ones(shape.width))
    tensors.setdefault("norm.bias", torch.zeros(shape.width))
    network.load_state_dict(tensors, assign=True)
    return network.eval()
