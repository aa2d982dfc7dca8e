"""Recognise a checkpoint by its structure and extract its ResNet, accounting for every tensor in the file."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch

from pretrain.common.errors import UserError
from pretrain.model.encoders import Architecture, ResNet
from pretrain.tensor_files.read_any import Loaded
from pretrain.tensor_files.shards import combined_digest, read_checkpoint
from transfer.convert import refusals
from transfer.convert.architecture import checked, read_architecture
from transfer.convert.choose import choose, matches
from transfer.convert.extra_heads import kept
from transfer.convert.layouts import LAYOUTS, Layout
from transfer.convert.preprocessing import FAIR, IMAGENET, MSRA, Input, describe_input, read_input
from transfer.convert.tensor_names import (
    Candidate,
    Tensors,
    clean,
    find_candidates,
    translated,
    unwrapped,
)

MAX_NETWORKS = 32  # in one file; each is compared with each other one
_COUNTER = "num_batches_tracked"
# Names that look like parts of a ResNet's trunk. If one has no place in it, the network is of another kind.
_TRUNK_LIKE = re.compile(r"(conv|bn|norm|layer|stem|maxpool|res)\d*")


@dataclass(frozen=True)
class Source:
    """A backbone found in a checkpoint.

    Attributes:
        kind: a key of `LAYOUTS`, or `unknown` for a single ResNet at a place that no entry lists.
        branch: the prefix of the chosen network in the file, such as `module.encoder_q`; empty if there is none.
        why: why this one of the file's networks was taken.
        passed_over: the other networks in the file.
        architecture: read from the tensors' shapes.
        backbone: torchvision's names -> float32 tensors, in torchvision's order, without `num_batches_tracked`.
        dropped: all other tensors: group -> number of tensors.
        opaque: names of the classes in the file that were not loaded.
        epoch: as stated in the file, if it is.
        digest: SHA-256 of the file; of a checkpoint in parts, of their digests.
        input: the preprocessing that the network expects, from flags, the file or the layout.
        input_origin: where it comes from.
        origins: who states each part of it, as `Found.by_key`.
        kept: FPN and box head if requested, under detectron2's names.
    """

    kind: str
    branch: str
    why: str
    passed_over: tuple[str, ...]
    architecture: Architecture
    backbone: dict[str, torch.Tensor]
    dropped: dict[str, int]
    opaque: tuple[str, ...]
    epoch: int | None
    digest: str
    input: Input = IMAGENET
    input_origin: str = ""
    origins: dict[str, str] = field(default_factory=dict)
    kept: dict[str, numpy.ndarray] = field(default_factory=dict)


def read_source(
    path: Path,
    *,
    source: str = "auto",
    branch: str = "",
    keep: tuple[str, ...] = (),
    given: Mapping[str, Any] | None = None,
    merged_norm: bool = False,
    loaded: Loaded | None = None,
) -> Source:
    """Read a checkpoint and extract its ResNet.

    Args:
        path: a file by `torch.save` or safetensors, a pickle of numpy arrays such as detectron2's, or a `.caffemodel`;
            for a checkpoint in parts, any of them, their index or their folder.
        source: a key of `LAYOUTS`, or `auto`.
        branch: the network to take, as `--inspect` prints it; if empty, the layout decides.
        keep: parts outside the backbone to keep, from `transfer.convert.extra_heads.PARTS`.
        given: fields of `Input` that replace what the file states or its layout implies.
        merged_norm: batch norms without running statistics are merged into scale and shift, as in Caffe2's files.
        loaded: the contents of the file, if it has been read already.
    Raises:
        UserError: the file is unreadable or unsafe, holds no ResNet that detectron2 can build, or holds several and
            no rule chooses one.
    """
    if source != "auto" and source not in LAYOUTS:
        raise UserError(f"--source {source}: choose auto, {', '.join(LAYOUTS)}")
    loaded = loaded or read_checkpoint(path)
    tensors = unwrapped(path, loaded.tensors)
    candidates = find_candidates(tensors)
    if len(candidates) > MAX_NETWORKS:
        raise UserError(f"{path}: it holds {len(candidates)} ResNets: damaged or hostile")
    if not candidates:
        raise UserError(f"{path}: {refusals.no_resnet(loaded)}")
    kind, chosen, why = choose(path, tensors, candidates, source=source, branch=branch)
    network, dropped = _account(path, tensors, chosen, LAYOUTS.get(kind))
    network = _merged_norm(network, merged=merged_norm or chosen.dialect.name == "caffe2")
    if chosen.dialect.name == "caffe":
        network = _folded_biases(network)
    if reason := refusals.other_resnet(network) or refusals.stated_variant(path, loaded, chosen.dialect.name):
        raise UserError(f"{path}: {reason}")
    counters = [name for name in network if name.endswith(_COUNTER)]
    for name in counters:
        del network[name]
    if counters:
        dropped[_COUNTER] = len(counters)
    architecture = read_architecture(path, network)
    backbone = checked(path, network, architecture)
    default = LAYOUTS[kind].input if kind in LAYOUTS else IMAGENET
    if merged_norm:  # only Caffe2's networks are known to have it
        default = MSRA if architecture.groups == 1 else FAIR
    found = read_input(path, kind, chosen.dialect.name, loaded, architecture, default=default, given=given)
    origin = found.origin
    if source != "auto" and not given:
        if found.input != default:
            origin += f"; this replaces what --source {source} implies: {describe_input(default)}"
        elif found.assumed:
            origin = f"as --source {source} implies"
    return Source(
        kind=kind,
        branch=printed_branch(chosen),
        why=why,
        passed_over=tuple(str(c) for c in candidates if c is not chosen),
        architecture=architecture,
        backbone=backbone,
        dropped=dropped,
        opaque=loaded.opaque,
        epoch=stated_epoch(loaded),
        digest=combined_digest(loaded.parts),
        input=found.input,
        input_origin=origin,
        origins=found.by_key(),
        kept=kept(tensors, chosen, keep),
    )


def _account(
    path: Path, tensors: Tensors, chosen: Candidate, layout: Layout | None
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Split the file's tensors into the network, under torchvision's names, and dropped groups with counts."""
    network: dict[str, torch.Tensor] = {}
    dropped: Counter[str] = Counter()
    own_stages = {name.split(".")[0] for name in translated(tensors, chosen)}
    # Stages outside the branch belong to the layout's network, not to another one taken with --branch.
    outside = layout.elsewhere if layout and matches(layout, layout.wanted, chosen) else {}
    elsewhere = {stage: place for stage, place in outside.items() if stage not in own_stages}
    root = chosen.branch.partition("backbone")[0]  # such a stage must be under the same root
    elsewhere = {stage: f"{root}{place}" for stage, place in elsewhere.items()}
    for name, tensor in tensors.items():
        inside = name.startswith(chosen.prefix)
        rest = name.removeprefix(chosen.prefix) if inside else ""
        named = chosen.dialect.translate(rest) if inside else _moved(name, chosen, elsewhere)
        if not named and inside and _TRUNK_LIKE.fullmatch(rest.split(".")[0]) and ".fc." not in f".{rest}":
            named = rest  # `checked` will refuse it
        if named in network:
            raise UserError(
                f"{path}: it holds two tensors for {named}, one of them {name}: save only the wanted network"
            )
        if named:
            network[named] = tensor
        else:
            dropped[group_of(rest) if inside else group_of(name, branch=chosen.branch)] += 1
    return network, dict(dropped)


def _moved(name: str, chosen: Candidate, elsewhere: Mapping[str, str]) -> str | None:
    """Return torchvision's name for a tensor of a stage stored outside the backbone, such as res5 of a C4 detector."""
    for stage, place in elsewhere.items():
        rest = clean(name).removeprefix(f"{place}.")
        named = chosen.dialect.translate(rest) if rest != clean(name) else None
        if named and named.startswith(f"{stage}."):
            return named
    return None


def group_of(name: str, branch: str = "") -> str:
    """Return the group of a dropped tensor, such as `fc`, from its name.

    Args:
        branch: that of the network: with `state.backbone`, the group of `state.head.weight` is `state.head`.
    """
    first, _, rest = clean(name).partition(".")
    shared = ("model", "stem", branch.partition(".")[0])
    return f"{first}.{rest.partition('.')[0]}" if first in shared and "." in rest else first


def _merged_norm(network: dict[str, torch.Tensor], *, merged: bool) -> dict[str, torch.Tensor]:
    """Add neutral running statistics to batch norms that are merged into scale and shift."""
    if not merged or any(name.endswith("running_var") for name in network):
        return network
    full = dict(network)
    for name, tensor in network.items():
        if name.endswith(".bias"):
            norm = name.removesuffix("bias")
            full[f"{norm}running_mean"] = torch.zeros(tensor.shape)
            full[f"{norm}running_var"] = torch.ones(tensor.shape) - 1e-5  # BN adds this epsilon
    return full


def _folded_biases(network: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Subtract the biases of convolutions from the means of the batch norms that follow, which is the same network."""
    folded = dict(network)
    for name, bias in network.items():
        module, _, leaf = name.rpartition(".")
        norm = re.sub(r"conv(\d)$", r"bn\1", module).replace("downsample.0", "downsample.1")
        mean = network.get(f"{norm}.running_mean")
        if leaf == "bias" and norm != module and mean is not None and mean.shape == bias.shape:
            folded[f"{norm}.running_mean"] = (mean.double() - bias.double()).float()
            del folded[name]
    return folded


def printed_branch(chosen: Candidate) -> str:
    """Return the prefix of a network as it is printed and recorded, such as `module.encoder_q`."""
    return re.sub(r"^state_dict(\.|$)", "", chosen.prefix).rstrip(".")


def stated_epoch(loaded: Loaded) -> int | None:
    """Return the epoch that a file states, if it does."""
    epoch = loaded.other.get("epoch")
    return epoch if type(epoch) is int and 0 <= epoch < 1 << 31 else None


def build_network(source: Source) -> ResNet:
    """Return the backbone with its weights, in training mode, on the CPU. Its `fc` is the identity."""
    network = ResNet(source.architecture)
    network.load_state_dict(source.backbone)
    if source.input.stride_in_1x1 and source.architecture.bottleneck:
        for stage in (network.layer2, network.layer3, network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride
    return network
