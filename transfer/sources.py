"""Recognise a checkpoint by its structure and take its ResNet out, with an account of every tensor in it."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from pretrain import checkpoint
from pretrain.encoders import Architecture
from pretrain.errors import UserError
from transfer.shapes import checked, read_architecture


# What MoCo's public code and torchvision's training subtract and divide by, on RGB in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Layout:
    """How the files of one kind name their tensors, after an optional `module.` in front.

    Attributes:
        prefix: in front of the backbone's torchvision names.
        dropped: first parts of names that are left behind on purpose, besides the head `fc` under `prefix`.
    """

    prefix: str
    dropped: tuple[str, ...] = ()


# In this order: the first layout that a file has wins.
LAYOUTS = {
    "moco": Layout("encoder_q.", dropped=("encoder_k", "queue", "queue_ptr", "memory_bank")),
    "torchvision": Layout(""),
}


@dataclass(frozen=True)
class Source:
    """A backbone found in a checkpoint.

    Attributes:
        kind: a key of `LAYOUTS`.
        branch: the prefix of the chosen network in the file, such as `module.encoder_q` (empty: none).
        architecture: read from the shapes.
        backbone: torchvision's names -> float32 tensors, in torchvision's order, no `num_batches_tracked`.
        dropped: everything else: group -> number of tensors.
        opaque: names of the classes in the file that were not loaded.
        epoch: as the file states it, if it does.
        digest: SHA-256 of the file.
        mean: what the network's input was centred by, of RGB in [0, 1]: the file's own setting if it is ours,
            ImageNet's otherwise.
        std: what the input was divided by.
    """

    kind: str
    branch: str
    architecture: Architecture
    backbone: dict[str, torch.Tensor]
    dropped: dict[str, int]
    opaque: tuple[str, ...]
    epoch: int | None
    digest: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


Tensors = dict[tuple[str, ...], torch.Tensor]  # the keys on the way to a tensor; the last one is its name
_RESNET_NAME = re.compile(r"(.*\.)?layer[1-4]\.\d+\.conv[1-3]\.weight")
_HEAD_NAME = re.compile(r"(.*\.)?(fc|head|mlp|projector|predictor|classifier)\..*")
_COUNTER = "num_batches_tracked"  # used by no BN layer with a momentum: optional in, left out


def read_source(path: Path, *, source: str = "auto") -> Source:
    """Read a checkpoint and recognise its ResNet.

    Args:
        path: a file by `torch.save`.
        source: a key of `LAYOUTS`, or `auto` to try them in turn.
    Raises:
        UserError: unreadable, no ResNet, an unknown or ambiguous layout, or a tensor that is missing,
            left over, mis-shaped or not finite; the message names it.
    """
    opaque: list[str] = []
    contents = checkpoint.load(path, opaque=opaque)
    tensors = dict(_tensors(contents))
    kind, container, prefix = _choose(path, contents, tensors, source)
    network, dropped = _account(path, tensors, container, prefix, kind)
    architecture = read_architecture(path, network)
    counters = [name for name in network if name.endswith(_COUNTER)]
    backbone = checked(path, {n: t for n, t in network.items() if n not in counters}, architecture)
    if counters:
        dropped[_COUNTER] = len(counters)
    epoch = contents.get("epoch") if isinstance(contents, dict) else None
    mean, std = _input_statistics(contents)
    return Source(
        kind=kind,
        branch=prefix.rstrip("."),
        architecture=architecture,
        backbone=backbone,
        dropped=dropped,
        opaque=tuple(opaque),
        epoch=epoch if isinstance(epoch, int) else None,
        digest=file_digest(path),
        mean=mean,
        std=std,
    )


def _input_statistics(contents: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by which `tools/pretrain.py` says that it normalised; else ImageNet's."""
    text = contents.get("config") if isinstance(contents, dict) else None
    if not isinstance(text, str) or "iterations_per_epoch" not in contents:
        return IMAGENET_MEAN, IMAGENET_STD
    settings = yaml.safe_load(text)["INPUT"]
    return tuple(settings["MEAN"]), tuple(settings["STD"])


def has_resnet(contents: Any) -> bool:
    """Whether a loaded checkpoint holds a ResNet by torchvision's names, under any prefix."""
    return bool(_resnets(dict(_tensors(contents))))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _tensors(node: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield keys, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _tensors(value, (*keys, str(key)))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _tensors(value, (*keys, str(index)))


def _resnets(tensors: Tensors) -> list[tuple[tuple[str, ...], str]]:
    """(container, prefix) of every ResNet in the file, in the file's order."""
    found = {}
    for keys in tensors:
        match = _RESNET_NAME.fullmatch(keys[-1]) if keys else None
        if match:
            found[keys[:-1], match[1] or ""] = True
    return list(found)


def _choose(path: Path, contents: Any, tensors: Tensors, source: str) -> tuple[str, tuple[str, ...], str]:
    """Layout, container and prefix of the one network to convert."""
    if source != "auto" and source not in LAYOUTS:
        raise UserError(f"--source {source}: choose auto, {', '.join(LAYOUTS)}")
    resnets = _resnets(tensors)
    if not resnets:
        raise UserError(f"{path}: {_no_resnet(contents, tensors)}")
    for kind in LAYOUTS if source == "auto" else (source,):
        prefixes = (LAYOUTS[kind].prefix, f"module.{LAYOUTS[kind].prefix}")
        matching = [(container, prefix) for container, prefix in resnets if prefix in prefixes]
        if len(matching) > 1:
            places = " and ".join(
                ".".join((*container, prefix)) or "the top" for container, prefix in matching
            )
            raise UserError(f"{path}: ambiguous: {kind} networks at {places}; save the wanted one alone")
        if matching:
            return kind, *matching[0]
    places = ", ".join(".".join((*container, prefix)) or "the top" for container, prefix in resnets)
    wanted = f"--source {source}" if source != "auto" else f"a known layout ({', '.join(LAYOUTS)})"
    raise UserError(f"{path}: its ResNets, at {places}, are not where {wanted} has them")


def _no_resnet(contents: Any, tensors: Tensors) -> str:
    names = [keys[-1] for keys in tensors if keys]
    heads = [name for name in names if _HEAD_NAME.fullmatch(name)]
    if heads:
        others = len(names) - len(heads)
        only = "only a head" if not others else f"a head and {others} other tensors, but no ResNet"
        return f"it holds {only} ({heads[0]}, ...); give the whole checkpoint"
    if not isinstance(contents, dict):
        return f"it holds a {type(contents).__name__}, not a dict of tensors; save model.state_dict()"
    keys = ", ".join(map(str, list(contents)[:6])) or "none"
    return f"no ResNet with torchvision's names in it (*layer1.0.conv1.weight); its top-level keys: {keys}"


def _account(
    path: Path, tensors: Tensors, container: tuple[str, ...], prefix: str, kind: str
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Split the file's tensors into the network, by torchvision's names, and dropped groups with counts."""
    network: dict[str, torch.Tensor] = {}
    dropped: Counter[str] = Counter()
    for keys, tensor in tensors.items():
        name = keys[-1] if keys else ""
        if keys[:-1] != container:
            dropped[keys[0]] += 1  # beside the state dict: optimizer, random state
        elif name.startswith(prefix):
            name = name.removeprefix(prefix)
            if name.startswith("fc."):
                dropped["fc"] += 1
            else:
                network[name] = tensor
        else:
            group = name.removeprefix("module.").split(".")[0]
            if group not in LAYOUTS[kind].dropped:
                raise UserError(
                    f"{path}: tensor {name} has no place in a {kind} checkpoint; remove it from the file"
                )
            dropped[group] += 1
    return network, dict(dropped)
