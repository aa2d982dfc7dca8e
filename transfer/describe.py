"""What is in a weights file: its networks, heads and settings, without converting anything."""

from collections import defaultdict
from pathlib import Path

import torch

from pretrain.common.errors import UserError
from pretrain.common.files import file_digest
from pretrain.tensor_files.pickle_machine import label
from pretrain.tensor_files.read_any import Loaded, read_file
from transfer.candidates import clean, find_candidates
from transfer.layouts import Input
from transfer.sources import Source, read_source

LISTED = 12  # groups of tensors in full; more are summed up


def describe(path: Path, *, source: str = "auto", branch: str = "") -> list[str]:
    """Lines about any file that can be read safely; one says why it could not be converted, if so.

    Raises:
        UserError: the file cannot be read.
    """
    loaded = read_file(path)
    total = sum(tensor.numel() for tensor in loaded.tensors.values())
    size = path.stat().st_size / 1e6
    lines = [
        f"file      {path}, {loaded.format}, {size:.1f} MB, sha256 {file_digest(path)[:16]}...",
        f"holds     {len(loaded.tensors)} tensors, {total / 1e6:.2f} M numbers; top level: "
        + (", ".join(loaded.keys[:8]) + (", ..." if len(loaded.keys) > 8 else "") or loaded.kind),
    ]
    if loaded.opaque:
        lines.append("not read  " + ", ".join(loaded.opaque))
    lines += [f"network   {c} ({c.dialect.name}'s names)" for c in find_candidates(loaded.tensors)]
    try:
        found = read_source(path, source=source, branch=branch)
    except UserError as error:
        return [
            *lines,
            *_groups(loaded),
            f"verdict   cannot be converted: {str(error).removeprefix(f'{path}: ')}",
        ]
    return [*lines, *_about(found), *_heads(loaded, found), *_record(loaded)]


def _about(found: Source) -> list[str]:
    net = found.architecture
    what = "bottleneck" if net.bottleneck else "basic"
    lines = [
        f"taken     {found.branch or 'the top'}: {found.why}; layout {found.kind}, epoch {found.epoch}",
        f"depth     ResNet-{net.depth}, {what} blocks {net.blocks}, width {net.width:g}, {net.groups} group(s) of "
        f"{net.width_per_group} (at width 1)",
        f"input     {describe_input(found.input)}",
        "dropped   " + (", ".join(f"{name} ({count})" for name, count in found.dropped.items()) or "nothing"),
    ]
    if found.passed_over:
        lines.append("passed    " + ", ".join(found.passed_over) + " (take one by --branch)")
    return lines


def describe_input(settings: Input) -> str:
    """`RGB, mean ..., std ..., stride in the 3x3 convolution`, of pixels in 0..255."""
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (settings.mean, settings.std))
    kernel = "1x1" if settings.stride_in_1x1 else "3x3"
    return f"{settings.format}, mean {mean}, std {std}; stride in the {kernel} convolution"


def _heads(loaded: Loaded, found: Source) -> list[str]:
    """The matrices among what is dropped: the layers of projection heads and classifiers, in order."""
    shapes = defaultdict(list)
    for name, tensor in loaded.tensors.items():
        tokens = clean(name).split(".")
        group = next((token for token in tokens if token in found.dropped), None)
        if group and isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and tokens[-1] == "weight":
            shapes[group].append(f"{tensor.shape[1]} -> {tensor.shape[0]}")
    return [f"head      {group}: {', '.join(layers[:6])}" for group, layers in shapes.items()]


def _record(loaded: Loaded) -> list[str]:
    record = loaded.other.get("record")
    if not isinstance(record, dict):
        return []
    proof = record.get("proof")
    figures = [  # whatever the file says of itself is only shown
        f"{label(level, 20)} {value:.0e}"
        for level, value in (proof.items() if isinstance(proof, dict) else ())
        if isinstance(value, float)
    ]
    source, branch = (label(record.get(key), 80) for key in ("source", "branch"))
    return [f"record    from {source}, branch {branch}; proof: {', '.join(figures[:8]) or 'none'}"]


def _groups(loaded: Loaded) -> list[str]:
    counts: dict[str, int] = defaultdict(int)
    for name in loaded.tensors:
        counts[".".join(clean(name).split(".")[:2])] += 1
    lines = [f"group     {group} ({count})" for group, count in list(counts.items())[:LISTED]]
    return [*lines, f"group     and {len(counts) - LISTED} more"] if len(counts) > LISTED else lines
