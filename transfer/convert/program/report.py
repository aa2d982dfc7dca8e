"""What is printed about a file: as it is (`--inspect`), and after its conversion."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pretrain.common.errors import UserError, label
from pretrain.tensor_files.read_any import Loaded
from pretrain.tensor_files.shards import combined_digest, read_checkpoint
from transfer.convert.architecture import described, recorded
from transfer.convert.convert import config_block
from transfer.convert.preprocessing import Input, describe_input
from transfer.convert.program.networks import read_any
from transfer.convert.recognise import Source
from transfer.convert.tensor_names import clean, find_candidates, unwrapped
from transfer.convert.vit import lines as vit_lines
from transfer.convert.vit.names import find_vits
from transfer.convert.vit.recognise import VitSource

LISTED = 12  # groups of tensors that are listed; the others are only counted


def report(written: dict[str, Any], output: Path) -> list[str]:
    """Return lines about a converted file: what was taken, how it was verified, and its configuration.

    Args:
        written: the contents of the file except the tensors, as `convert` returns them.
    """
    record, settings = written["record"], written["preprocessing"]
    vit = "MODEL.VIT.DEPTH" in settings
    fed = Input(
        settings["INPUT.FORMAT"], settings["MODEL.PIXEL_MEAN"], settings["MODEL.PIXEL_STD"],
        settings.get("MODEL.RESNETS.STRIDE_IN_1X1", False),
    )  # fmt: skip
    lines = [
        f"source    {_kind(record['source'])}, branch {record['branch'] or '(none)'}{_epoch(record['epoch'])}"
    ]
    if record["passed_over"]:
        lines.append(f"          {record['why']}; passed over: {', '.join(record['passed_over'])} (--branch)")
    lines += [
        *(vit_lines.network(record) if vit else [f"network   {described(record['architecture'])}"]),
        f"input     {describe_input(fed, resnet=not vit)}",
        f"          {record['input']}",
        *_dropped(record["dropped"]),
    ]
    if record["kept"]:
        lines.append(f"kept      {len(record['kept'])} tensors: {record['kept'][0]} ... {record['kept'][-1]}")
    if record["opaque"]:
        lines.append("not read  " + ", ".join(record["opaque"]))
    if record["proof"] and vit:
        lines += vit_lines.verified(record, settings)
    elif record["proof"]:
        from transfer.convert.verify import TOLERANCE  # imports detectron2, which --no-verify does not need

        lines.append(
            "verified  the source network and detectron2's backbone differ by at most "
            f"(relative; limit {TOLERANCE:.0e}):"
        )
        lines.append("          " + ", ".join(f"{level} {v:.1e}" for level, v in record["proof"].items()))
    else:
        lines.append("verified  no (--no-verify)")
    if pooling := record.get("pooling"):
        lines += [
            "pooling   Caffe pools the stem without padding, detectron2 with one pixel, and so sees the image shifted",
            "          by two pixels. This alone changes the features by (root mean square, relative):",
            "          " + ", ".join(f"{level} {figure:.0%}" for level, figure in pooling.items()),
        ]
    if output.suffix == ".safetensors":
        lines.append("note      detectron2 itself reads .pkl and .pth; tools/train_net.py reads this one too")
    lines += [f"wrote     {output}; its configuration:", "", config_block(settings, output)]
    return [*lines, *vit_lines.lazy_config(settings, output)] if vit else lines


def describe(path: Path, **choice: Any) -> list[str]:
    """Return lines about any file that can be read safely. If it cannot be converted, the last one gives the reason.

    Args:
        choice: options of `read_any`.
    Raises:
        UserError: the file cannot be read.
    """
    loaded = read_checkpoint(path)
    total = sum(tensor.numel() for tensor in loaded.tensors.values())
    size = sum(part.stat().st_size for part in loaded.parts) / 1e6
    parts = f" in {len(loaded.parts)} parts" if len(loaded.parts) > 1 else ""
    top = list(dict.fromkeys(key.partition(".")[0] for key in loaded.keys))
    lines = [
        f"file      {path}, {loaded.format}{parts}, {size:.1f} MB, "
        f"sha256 {combined_digest(loaded.parts)[:16]}...",
        f"holds     {len(loaded.tensors)} tensors, {total / 1e6:.2f} M numbers; top level: "
        + (", ".join(top[:8]) + (", ..." if len(top) > 8 else "") or loaded.kind),
    ]
    if loaded.opaque:
        lines.append("not read  " + ", ".join(loaded.opaque))
    tensors = unwrapped(path, loaded.tensors)
    networks = find_candidates(tensors) or find_vits(tensors)
    lines += [f"network   {c} ({c.dialect.name}'s names)" for c in networks]
    try:
        found = read_any(path, loaded, **choice)
    except UserError as error:
        return [
            *lines,
            *_groups(loaded),
            f"verdict   cannot be converted: {str(error).removeprefix(f'{path}: ')}",
        ]
    return [*lines, *_about(found), *_heads(loaded, found), *_record(loaded)]


def _about(found: Source | VitSource) -> list[str]:
    resnet = isinstance(found, Source)
    lines = [
        f"taken     {found.branch or 'the top'}: {found.why}; {_kind(found.kind)}{_epoch(found.epoch)}",
        *(_depth(found) if isinstance(found, Source) else vit_lines.shape(found)),
        f"input     {describe_input(found.input, resnet=resnet)}",
        f"          {found.input_origin}",
        *_dropped(found.dropped),
    ]
    if found.passed_over:
        lines.append("passed    " + ", ".join(found.passed_over) + " (take one with --branch)")
    return lines


def _dropped(groups: Mapping[str, int]) -> list[str]:
    """Return lines about what is not taken, by the first part of the names, and why."""
    if not groups:
        return ["dropped   nothing"]
    return [
        "dropped   " + ", ".join(f"{group} ({count})" for group, count in groups.items()),
        "          (number of tensors): heads, other networks, counters and the like, which a detector does not need",
    ]


def _kind(kind: str) -> str:
    return "a checkpoint of no known project" if kind == "unknown" else f"{kind} checkpoint"


def _epoch(epoch: object) -> str:
    return "" if epoch is None else f", epoch {epoch}"


def _depth(found: Source) -> list[str]:
    net = found.architecture
    what = "bottleneck" if net.bottleneck else "basic"
    return [f"depth     {described(recorded(net))}; {what} blocks {net.blocks}"]


def _heads(loaded: Loaded, found: Source | VitSource) -> list[str]:
    """Describe the dropped matrices, in order: the layers of projection heads and classifiers."""
    shapes = defaultdict(list)
    for name, tensor in loaded.tensors.items():
        plain = f".{clean(name)}."
        places = {plain.find(f".{group}."): group for group in found.dropped if f".{group}." in plain}
        if places and isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and plain.endswith(".weight."):
            shapes[places[min(places)]].append(f"{tensor.shape[1]} -> {tensor.shape[0]}")
    return [f"head      {group}: {', '.join(layers[:6])}" for group, layers in shapes.items()]


def _record(loaded: Loaded) -> list[str]:
    record = loaded.other.get("record")
    if not isinstance(record, dict):
        return []
    proof = record.get("proof")
    # The record is only printed, never trusted.
    figures = [
        f"{label(level, 20)} {value:.0e}"
        for level, value in (proof.items() if isinstance(proof, dict) else ())
        if isinstance(value, float)
    ]
    source, branch = (label(record.get(key), 80) for key in ("source", "branch"))
    return [f"record    from {source}, branch {branch}; verified: {', '.join(figures[:8]) or 'no'}"]


def _groups(loaded: Loaded) -> list[str]:
    counts: dict[str, int] = defaultdict(int)
    for name in loaded.tensors:
        counts[".".join(clean(name).split(".")[:2])] += 1
    lines = [f"group     {group} ({count})" for group, count in list(counts.items())[:LISTED]]
    return [*lines, f"group     and {len(counts) - LISTED} more"] if len(counts) > LISTED else lines
