"""`tools/convert_to_d2.py` for one file or many: what is printed, and what becomes of failures."""

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.common.console import say
from pretrain.common.errors import UserError
from pretrain.common.files import write_text
from transfer.convert import config_block, convert
from transfer.describe import describe, describe_input
from transfer.layouts import Input


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
