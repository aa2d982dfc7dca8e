"""`tools/convert_to_d2.py` for one file or many: what is printed, and what becomes of failures."""

import glob
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import file_digest, write_text
from pretrain.tensor_files.pickle_machine import label
from pretrain.tensor_files.read_any import Loaded, read_file
from transfer.convert.convert import convert
from transfer.convert.preprocessing import Input, config_block, describe_input
from transfer.convert.recognise import Source, read_source
from transfer.convert.tensor_names import clean, find_candidates

LISTED = 12  # groups of tensors in full; more are summed up


def expand(names: Sequence[str]) -> list[Path]:
    """Files by name or glob (`'runs/*/checkpoint_last.pth.tar'`), each once, in order.

    Raises `UserError` for a pattern that matches nothing.
    """
    paths: dict[Path, None] = {}
    for name in names:
        matches = (
            sorted(glob.glob(name, recursive=True))
            if glob.has_magic(name) and not Path(name).exists()
            else [name]
        )
        if not matches:
            raise UserError(f"{name}: no file matches this pattern")
        paths |= dict.fromkeys(map(Path, matches))
    return list(paths)


def inspect_all(paths: Sequence[Path], **choice: str) -> None:
    """Say what each file is. Raises `UserError` at the end if one or more could not be read."""
    failed = []
    for path in paths:
        try:
            lines = describe(path, **choice)
        except UserError as error:
            failed.append(path)
            lines = [f"file      {path}", f"verdict   cannot be read: {str(error).removeprefix(f'{path}: ')}"]
        say("\n".join([*lines, ""]))
    if failed:
        raise UserError(f"{len(failed)} of {len(paths)} files could not be read; first {failed[0]}")


def convert_all(inputs: Sequence[Path], folder: Path, *, form: str, **options: Any) -> None:
    """Convert each file into `folder`, go on after failures, and print a table.

    Raises:
        UserError: two inputs would have one output; or, at the end, how many failed.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {folder}: is a file; name a folder")
    outputs = _outputs(inputs, folder, form)
    rows, failed = [], 0
    for path, output in zip(inputs, outputs, strict=True):
        try:
            written = convert(path, output, **options)
        except UserError as error:
            failed += 1
            rows.append((path.name, "FAILED", "", str(error).removeprefix(f"{path}: ")))
            continue
        record = written["record"]
        proof = record["proof"]
        worst = f"{max(proof.values()):.1e}" if proof else "none"
        branch = record["branch"] or "the top"
        rows.append((path.name, f"{record['source']}, {branch}", worst, str(output)))
    for line in _table([("file", "taken", "proof", "written"), *rows]):
        say(line)
    if failed:
        raise UserError(f"{failed} of {len(inputs)} files were not converted; the table says why")


def convert_one(path: Path, output: Path, *, record: Path | None, **options: Any) -> None:
    """Convert one file and print what was found, the proof, and the configuration to paste."""
    if record and record.suffix != ".json":
        raise UserError(f"--record {record}: name a file *.json")
    written = convert(path, output, **options)
    if record:
        text = json.dumps(written, indent=2) + "\n"
        write_text(record, text)
    for line in _report(written, output):
        say(line)


def _outputs(inputs: Sequence[Path], folder: Path, form: str) -> list[Path]:
    """Named by the file, and by its folder too where two files have one name."""
    stems = [path.name.removesuffix(".tar").rpartition(".")[0] or path.name for path in inputs]
    names = [
        f"{path.parent.name}_{stem}" if stems.count(stem) > 1 and path.parent.name else stem
        for path, stem in zip(inputs, stems, strict=True)
    ]
    for name, path in zip(names, inputs, strict=True):
        if names.count(name) > 1:
            raise UserError(f"{path}: two inputs would be written as {name}.{form}; convert them one by one")
    return [folder / f"{name}.{form}" for name in names]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return ["  ".join((*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1])) for row in rows]


def _report(written: dict[str, Any], output: Path) -> list[str]:
    record, net, settings = written["record"], written["record"]["architecture"], written["preprocessing"]
    fed = Input(
        settings["INPUT.FORMAT"], settings["MODEL.PIXEL_MEAN"], settings["MODEL.PIXEL_STD"],
        settings["MODEL.RESNETS.STRIDE_IN_1X1"],
    )  # fmt: skip
    lines = [
        f"source    {record['source']} checkpoint, branch {record['branch'] or '(none)'}, epoch {record['epoch']}"
    ]
    if record["passed_over"]:
        lines.append(f"          {record['why']}; passed over: {', '.join(record['passed_over'])} (--branch)")
    lines += [
        f"network   ResNet-{net['depth']}, width {net['width']:g}, {net['groups']} group(s)",
        f"input     {describe_input(fed)}",
        "dropped   " + (", ".join(f"{group} ({n})" for group, n in record["dropped"].items()) or "nothing"),
    ]
    if record["kept"]:
        lines.append(f"kept      {len(record['kept'])} tensors: {record['kept'][0]} ... {record['kept'][-1]}")
    if record["opaque"]:
        lines.append("not read  " + ", ".join(record["opaque"]))
    if record["proof"]:
        lines.append("proof     the source network and detectron2's backbone differ by at most (relative):")
        lines.append("          " + ", ".join(f"{level} {v:.1e}" for level, v in record["proof"].items()))
    else:
        lines.append("proof     none (--no-verify)")
    if output.suffix == ".safetensors":
        lines.append("note      detectron2 itself reads .pkl and .pth; tools/train_net.py reads this one too")
    return [*lines, f"wrote     {output}; its configuration:", "", config_block(settings, output)]


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
