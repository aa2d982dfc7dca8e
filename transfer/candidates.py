"""The ResNets in a file: where they are, by whose names, and which are one and the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from transfer.dialects import DIALECTS, Dialect

Tensors = dict[str, torch.Tensor]  # by the whole way to the tensor, joined by dots

# Wrappers in names that tell nothing about the network: of the file, of DistributedDataParallel, of torch.compile.
_WRAPPERS = ("state_dict", "model_state_dict", "module", "_orig_mod")


@dataclass(frozen=True)
class Candidate:
    """A ResNet somewhere in a file."""

    prefix: str
    dialect: Dialect

    @property
    def branch(self) -> str:
        """The prefix without wrappers: `encoder_q` for `state_dict.module.encoder_q.`."""
        return clean(self.prefix).rstrip(".")

    def __str__(self) -> str:
        return self.prefix.rstrip(".") or "the top"


def clean(name: str) -> str:
    """A tensor's name or prefix without the wrappers that say nothing."""
    return ".".join(token for token in name.split(".") if token not in _WRAPPERS)


def find_candidates(tensors: Mapping[str, Any]) -> list[Candidate]:
    """Every ResNet in a file, in the file's order."""
    found = {}
    for name in tensors:
        for dialect in DIALECTS:
            if match := dialect.anchor.fullmatch(name):
                found[match[1] or "", dialect.name] = Candidate(match[1] or "", dialect)
    return list(found.values())


def has_resnet(tensors: Mapping[str, Any]) -> bool:
    """Whether tensors by their names hold a ResNet that is not in detectron2's or Caffe2's dialect."""
    return any(c.dialect.name not in ("detectron2", "caffe2") for c in find_candidates(tensors))


def translated(tensors: Tensors, candidate: Candidate) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(candidate.prefix):
            translated = candidate.dialect.translate(name.removeprefix(candidate.prefix))
            if translated:
                found[translated] = tensor
    return found


def same(tensors: Tensors, first: Candidate, second: Candidate) -> bool:
    """Whether two names stand for one network: OpenSelfSup's `backbone` is an alias of `encoder_q.0`."""
    pair = [translated(tensors, candidate) for candidate in (first, second)]
    return pair[0].keys() == pair[1].keys() and all(
        (tensor.shape, tensor.dtype) == (pair[1][name].shape, pair[1][name].dtype)
        and torch.equal(tensor, pair[1][name])
        for name, tensor in pair[0].items()
    )


def places(candidates: list[Candidate]) -> str:
    return ", ".join(map(str, candidates[:8])) + (", ..." if len(candidates) > 8 else "")
