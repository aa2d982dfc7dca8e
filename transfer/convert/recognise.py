"""Recognise a checkpoint by its structure and take its ResNet out, with an account of every tensor in it."""

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import torch

from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from pretrain.model.encoders import Architecture, ResNet
from pretrain.tensor_files.read_any import Loaded, read_file
from transfer.convert import refusals
from transfer.convert.architecture import checked, read_architecture
from transfer.convert.extra_heads import kept
from transfer.convert.layouts import LAYOUTS, Layout
from transfer.convert.preprocessing import IMAGENET, Input, read_input
from transfer.convert.tensor_names import Candidate, Tensors, clean, find_candidates, places, same, translated

MAX_NETWORKS = 32  # in one file: each is held against each
_COUNTER = "num_batches_tracked"
# What looks like a part of a ResNet's trunk: where it has no place there, the network is of another kind.
_TRUNK_LIKE = re.compile(r"(conv|bn|norm|layer|stem|maxpool|res)\d*")


@dataclass(frozen=True)
class Source:
    """A backbone found in a checkpoint.

    Attributes:
        kind: a key of `LAYOUTS`, or `unknown`: one ResNet at a place that no entry names.
        branch: the prefix of the chosen network in the file, such as `module.encoder_q` (empty: none).
        why: what this branch is among the file's networks.
        passed_over: the other networks in the file.
        architecture: read from the shapes.
        backbone: torchvision's names -> float32 tensors, in torchvision's order, no `num_batches_tracked`.
        dropped: everything else: group -> number of tensors.
        opaque: names of the classes in the file that were not loaded.
        epoch: as the file states it, if it does.
        digest: SHA-256 of the file.
        input: what the network was fed: the file's own statement if it has one, the layout's otherwise.
        kept: FPN and box head, where asked for, by detectron2's names.
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
    kept: dict[str, numpy.ndarray] = field(default_factory=dict)


def read_source(path: Path, *, source: str = "auto", branch: str = "", keep: tuple[str, ...] = ()) -> Source:
    """Read a checkpoint and take its backbone out.

    Args:
        path: by `torch.save`, safetensors, or a pickle of numpy arrays such as detectron2's.
        source: a key of `LAYOUTS`, or `auto`.
        branch: the network to take, as `--inspect` names it; empty: the one that the layout says.
        keep: parts beside the backbone to keep: of `transfer.convert.extra_heads.PARTS`.
    Raises:
        UserError: unreadable, unsafe, no ResNet that detectron2 can build, or several and no rule to choose.
    """
    if source != "auto" and source not in LAYOUTS:
        raise UserError(f"--source {source}: choose auto, {', '.join(LAYOUTS)}")
    loaded = read_file(path)
    tensors = loaded.tensors
    candidates = find_candidates(tensors)
    if len(candidates) > MAX_NETWORKS:
        raise UserError(f"{path}: holds {len(candidates)} ResNets: damaged or hostile; refused")
    if not candidates:
        raise UserError(f"{path}: {refusals.no_resnet(loaded)}")
    kind, chosen, why = _choose(path, tensors, candidates, source=source, branch=branch)
    network, dropped = _account(path, tensors, chosen, LAYOUTS.get(kind))
    network = _merged_norm(chosen, network)
    if reason := refusals.other_resnet(network) or refusals.stated_variant(path, loaded, chosen.dialect.name):
        raise UserError(f"{path}: {reason}")
    counters = [name for name in network if name.endswith(_COUNTER)]
    for name in counters:
        del network[name]
    if counters:
        dropped[_COUNTER] = len(counters)
    architecture = read_architecture(path, network)
    backbone = checked(path, network, architecture)
    layout_input = LAYOUTS[kind].input if kind in LAYOUTS else IMAGENET
    return Source(
        kind=kind,
        branch=re.sub(r"^state_dict(\.|$)", "", chosen.prefix).rstrip("."),
        why=why,
        passed_over=tuple(str(c) for c in candidates if c is not chosen),
        architecture=architecture,
        backbone=backbone,
        dropped=dropped,
        opaque=loaded.opaque,
        epoch=_epoch(loaded),
        digest=file_digest(path),
        input=read_input(path, kind, chosen.dialect.name, loaded, architecture, default=layout_input),
        kept=kept(tensors, chosen, keep),
    )


def _choose(
    path: Path, tensors: Tensors, candidates: list[Candidate], *, source: str, branch: str
) -> tuple[str, Candidate, str]:
    """Kind, network, and what that network is."""
    pool = _named(path, candidates, branch) if branch else candidates
    names = [clean(name) for name in tensors]
    for kind in LAYOUTS if source == "auto" else (source,):
        layout = LAYOUTS[kind]
        if source == "auto" and not (layout.guess and _evident(layout, names)):
            continue
        # with --branch the file is of this kind if any of its networks is; the wanted one is given
        if branch:
            if any(_matches(layout, layout.wanted, c) for c in candidates):
                return kind, pool[0], "as --branch says"
            continue
        wanted = [c for c in candidates if _matches(layout, layout.wanted, c)]
        if not wanted:
            continue
        others = [c for c in candidates if c not in wanted and not _matches(layout, layout.over, c)]
        choices = [wanted[0], *(c for c in (*wanted[1:], *others) if not same(tensors, wanted[0], c))]
        if len(choices) > 1:
            raise UserError(
                f"{path}: ambiguous: {kind} networks at {places(choices)}; choose by --branch, "
                f"such as --branch {_quoted(choices[0])}"
            )
        return kind, wanted[0], layout.why if len(candidates) > 1 else "the only network"
    if branch:
        return "unknown", pool[0], "as --branch says"
    distinct = [candidates[0], *(c for c in candidates[1:] if not same(tensors, candidates[0], c))]
    if source == "auto" and len(distinct) == 1:
        if kind := _passed_over(candidates[0]):
            raise UserError(
                f"{path}: its only ResNet, at {candidates[0]}, is one that {kind} files hold beside the wanted one: "
                f"not the whole file? Take it by --branch {_quoted(candidates[0])}"
            )
        return "unknown", candidates[0], "the only network"
    wanted_text = f"--source {source}" if source != "auto" else "a known layout"
    raise UserError(
        f"{path}: ambiguous: its ResNets, at {places(candidates)}, are not where {wanted_text} has them; "
        f"choose by --branch, such as --branch {_quoted(candidates[0])}"
    )


def _quoted(candidate: Candidate) -> str:
    return shlex.quote(candidate.branch or str(candidate))


def _named(path: Path, candidates: list[Candidate], branch: str) -> list[Candidate]:
    """The one network that `--branch` means: its whole branch, or the last parts of it."""
    wanted = clean(branch)
    exact = [c for c in candidates if c.branch == wanted or str(c) == branch]
    matching = exact or [c for c in candidates if f".{c.branch}".endswith(f".{wanted}")]
    matching = matching or [c for c in candidates if wanted in c.branch.split(".")]
    if len(matching) != 1:
        raise UserError(f"{path}: --branch {branch}: the file's networks are at {places(candidates)}")
    return matching


def _matches(layout: Layout, pattern: str, candidate: Candidate) -> bool:
    if layout.dialect and candidate.dialect.name != layout.dialect:
        return False
    return bool(re.fullmatch(pattern, candidate.branch)) if pattern or not layout.over else False


def _passed_over(candidate: Candidate) -> str:
    """The kind of file in which a network of this name is never the one to take; empty: none."""
    if candidate.branch == "backbone":  # only beside lightly's `query_backbone`
        return ""
    return next((k for k, v in LAYOUTS.items() if v.over and _matches(v, v.over, candidate)), "")


def _evident(layout: Layout, names: list[str]) -> bool:
    return not layout.evidence or any(re.search(layout.evidence, name) for name in names)


def _account(
    path: Path, tensors: Tensors, chosen: Candidate, layout: Layout | None
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Split the file's tensors into the network, by torchvision's names, and dropped groups with counts."""
    network: dict[str, torch.Tensor] = {}
    dropped: Counter[str] = Counter()
    own_stages = {name.split(".")[0] for name in translated(tensors, chosen)}
    # what lies elsewhere belongs to the wanted network, not to one that --branch took instead
    outside = layout.elsewhere if layout and _matches(layout, layout.wanted, chosen) else {}
    elsewhere = {stage: place for stage, place in outside.items() if stage not in own_stages}
    root = chosen.branch.partition("backbone")[0]  # a stage that lies elsewhere belongs to the same network
    elsewhere = {stage: f"{root}{place}" for stage, place in elsewhere.items()}
    for name, tensor in tensors.items():
        inside = name.startswith(chosen.prefix)
        rest = name.removeprefix(chosen.prefix) if inside else ""
        named = chosen.dialect.translate(rest) if inside else _moved(name, chosen, elsewhere)
        if not named and inside and _TRUNK_LIKE.fullmatch(rest.split(".")[0]) and ".fc." not in f".{rest}":
            named = rest  # `checked` will say that it has no place
        if named in network:
            raise UserError(
                f"{path}: holds two tensors for {named}, one is {name}: save the wanted network alone"
            )
        if named:
            network[named] = tensor
        else:
            dropped[_group(clean(rest) if inside else clean(name))] += 1
    return network, dict(dropped)


def _moved(name: str, chosen: Candidate, elsewhere: Mapping[str, str]) -> str | None:
    """Torchvision's name of a tensor of a stage that lies outside of the backbone, as conv5 in a C4 detector."""
    for stage, place in elsewhere.items():
        rest = clean(name).removeprefix(f"{place}.")
        named = chosen.dialect.translate(rest) if rest != clean(name) else None
        if named and named.startswith(f"{stage}."):
            return named
    return None


def _group(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first in ("model", "stem") and "." in rest else first


def _merged_norm(chosen: Candidate, network: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give Caffe2's batch norms, merged into scale and shift, the statistics under which they change nothing."""
    if chosen.dialect.name != "caffe2" or any(name.endswith("running_var") for name in network):
        return network
    full = dict(network)
    for name, tensor in network.items():
        if name.endswith(".bias"):
            norm = name.removesuffix("bias")
            full[f"{norm}running_mean"] = torch.zeros(tensor.shape)
            full[f"{norm}running_var"] = torch.ones(tensor.shape) - 1e-5  # what BN adds to it
    return full


def _epoch(loaded: Loaded) -> int | None:
    epoch = loaded.other.get("epoch")
    return epoch if type(epoch) is int and 0 <= epoch < 1 << 31 else None


def build_network(source: Source) -> ResNet:
    """The backbone with its weights, in training mode, on the CPU; `fc` is the identity."""
    network = ResNet(source.architecture)
    network.load_state_dict(source.backbone)
    if source.input.stride_in_1x1:
        for stage in (network.layer2, network.layer3, network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride
    return network
