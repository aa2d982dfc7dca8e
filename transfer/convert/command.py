"""What `tools/convert_to_d2.py` does with its flags: inspect, convert or export files, and print the results."""

import argparse
import glob
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from pretrain.common.console import say
from pretrain.common.errors import UserError, label
from pretrain.common.files import write_text
from pretrain.common.run_folder import held_file, remove_leftovers
from pretrain.tensor_files.read_any import Loaded
from pretrain.tensor_files.shards import combined_digest, read_checkpoint
from transfer.convert import export
from transfer.convert.architecture import described, recorded
from transfer.convert.convert import config_block, convert
from transfer.convert.preprocessing import FLAGS, Input, describe_input, three_numbers
from transfer.convert.recognise import Source, read_source
from transfer.convert.tensor_names import clean, find_candidates, unwrapped

_SCALES = {255: "the default of --scale", 1: "which --scale 1 says"}
LISTED = 12  # groups of tensors that are listed; the others are only counted


def run(args: argparse.Namespace) -> None:
    """Inspect, convert or export the files, as the flags say.

    Raises:
        UserError: flags that do not fit together, or a file that cannot be read, converted or written.
    """
    _refuse_idle_flags(args)
    choice = {
        "source": args.source, "branch": args.branch, "given": _given(args), "merged_norm": args.merged_norm,
    }  # fmt: skip
    keep = tuple(part for part in args.keep.split(",") if part)
    options = {**choice, "verify": args.verify, "keep": keep, "overwrite": args.overwrite}
    if args.inspect:
        inspect_all(expand(args.files), **choice)
        return
    if args.output_dir:
        convert_all(expand(args.files), args.output_dir, form=args.format or "pkl", **options)
        return
    if len(args.files) != 2:
        raise UserError("give INPUT OUTPUT.pkl, or several inputs with --output-dir DIR, or --inspect")
    source, output = map(Path, args.files)
    if args.to:
        with held_file(output):
            lines = export.export(source, output, to=args.to, overwrite=args.overwrite, **choice)
        say("\n".join(lines))
        return
    convert_one(source, output, record=args.record, **options)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `Input` that flags state. Raises `UserError` for values that no network was fed with."""
    given = {field: getattr(args, flag.removeprefix("--").replace("-", "_")) for field, flag in FLAGS.items()}
    given = {field: value for field, value in given.items() if value is not None}
    statistics: dict[str, str] = {field: given[field] for field in ("mean", "std") if field in given}
    if args.scale and not statistics:
        raise UserError(
            f"--scale {args.scale} has no effect without {FLAGS['mean']} and {FLAGS['std']}, whose units it states: "
            f"for pixels in 0..{args.scale} as they are, add {FLAGS['mean']} 0,0,0 {FLAGS['std']} 1,1,1"
        )
    numbers = {field: _numbers(field, text) for field, text in statistics.items()}
    _check_units(statistics, numbers, args.scale)
    factor = 255 // int(args.scale or 255)
    return given | {field: tuple(factor * v for v in values) for field, values in numbers.items()}


def _numbers(field: str, text: str) -> tuple[float, ...]:
    try:
        return three_numbers(text.strip("[]()").split(","), positive=field == "std")
    except ValueError:
        least = " above 0" if field == "std" else ""
        raise UserError(
            f"{FLAGS[field]} {label(text)}: give three numbers{least} in the network's channel order, for pixels in "
            f"0..255 as {FLAGS[field]} 127.5,127.5,127.5, or for pixels in 0..1 with --scale 1"
        ) from None


def _check_units(texts: dict[str, str], numbers: dict[str, tuple[float, ...]], scale: str | None) -> None:
    """Raise `UserError` for a mean or std that is of other units than `--scale` says."""
    top = int(scale or 255)
    for field, values in numbers.items():
        stated = f"{FLAGS[field]} {label(texts[field])}"
        lowest, highest = (0, top) if field == "mean" else (0, 2 * top)  # some divide by 255 without a mean
        if min(values) >= lowest and max(values) <= highest:
            continue
        hint = (
            "; leave out --scale 1 if they are for pixels in 0..255"
            if scale == "1" and max(values) > 1
            else ""
        )
        raise UserError(
            f"{stated}: out of place for pixels in 0..{top}, {_SCALES[top]}: each number must be between {lowest} and "
            f"{highest}{hint}"
        )
    mean, std = (max(numbers.get(field, ()) or (2,)) for field in ("mean", "std"))
    small = 0 < mean <= 1 or std < 1
    if small and scale is None:
        stated = " ".join(f"{FLAGS[field]} {label(text)}" for field, text in texts.items())
        raise UserError(
            f"{stated}: looks like values for pixels in 0..1: if the network saw these, add --scale 1, and if it saw "
            "pixels in 0..255 less this mean, add --scale 255"
        )


def _refuse_idle_flags(args: argparse.Namespace) -> None:
    """Raise `UserError` for a flag that would change nothing: the user expects something else from it."""
    given = {
        "--output-dir": args.output_dir, "--to": args.to, "--keep": args.keep, "--record": args.record,
        "--format": args.format, "--no-verify": not args.verify, "--overwrite": args.overwrite,
    }  # fmt: skip
    if args.inspect:
        mode, idle = "--inspect", set(given)
    elif args.output_dir:
        mode, idle = "--output-dir", {"--record", "--to"}
    else:
        mode, idle = "--to" if args.to else "INPUT OUTPUT", {"--format"}
    if args.to and not args.inspect:
        idle |= {"--keep", "--record", "--no-verify"}
    for flag, value in given.items():
        if value and flag in idle:
            hint = "; the extension of OUTPUT decides the format" if flag == "--format" else ""
            raise UserError(f"{flag} has no effect with {mode}{hint}: leave it out")


def expand(names: Sequence[str]) -> list[Path]:
    """Return the files given by name or glob (`'runs/*/checkpoint_last.pth.tar'`), each once, in order.

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


def inspect_all(paths: Sequence[Path], **choice: Any) -> None:
    """Print what each file holds. Raises `UserError` at the end if any file could not be read."""
    failed = []
    for path in paths:
        try:
            lines = describe(path, **choice)
        except UserError as error:
            failed.append(path)
            lines = [f"file      {path}", f"verdict   cannot be read: {str(error).removeprefix(f'{path}: ')}"]
        say("\n".join([*lines, ""]))
    if failed:
        raise UserError(f"{len(failed)} of {len(paths)} files could not be read, first {failed[0]}")


def convert_all(inputs: Sequence[Path], folder: Path, *, form: str, **options: Any) -> None:
    """Convert each file into `folder`, continue after failures, and print a table.

    Raises:
        UserError: two inputs would have the same output; or, after all files, how many failed.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output-dir {folder} is a file: give a folder")
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
        worst = f"{max(proof.values()):.1e}" if proof else "no"
        branch = record["branch"] or "the top"
        rows.append((path.name, f"{record['source']}, {branch}", worst, str(output)))
    header = ("file", "taken", "verified", "written")
    say(tabulate(rows, header, tablefmt="plain", disable_numparse=True))
    if failed:
        raise UserError(f"{failed} of {len(inputs)} files were not converted; the table gives the reasons")


def convert_one(path: Path, output: Path, *, record: Path | None, **options: Any) -> None:
    """Convert one file and print what was found, how it was verified, and the configuration to paste."""
    if record and record.suffix != ".json":
        raise UserError(f"--record {record}: the name must end in .json")
    written = convert(path, output, **options)
    if record:
        remove_leftovers(record.parent, lambda name: name == record.name)
        write_text(record, json.dumps(written, indent=2) + "\n")
    for line in _report(written, output):
        say(line)


def _outputs(inputs: Sequence[Path], folder: Path, form: str) -> list[Path]:
    """Name each output after its input, with the input's folder if several inputs have the same name."""
    stems = [path.name.removesuffix(".tar").rpartition(".")[0] or path.name for path in inputs]
    names = [
        f"{path.parent.name}_{stem}" if stems.count(stem) > 1 and path.parent.name else stem
        for path, stem in zip(inputs, stems, strict=True)
    ]
    for name, path in zip(names, inputs, strict=True):
        if names.count(name) > 1:
            raise UserError(f"{path}: two inputs would be written to {name}.{form}; convert them one by one")
    return [folder / f"{name}.{form}" for name in names]


def _report(written: dict[str, Any], output: Path) -> list[str]:
    record, settings = written["record"], written["preprocessing"]
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
        f"network   {described(record['architecture'])}",
        f"input     {describe_input(fed)}",
        f"          {record['input']}",
        "dropped   " + (", ".join(f"{group} ({n})" for group, n in record["dropped"].items()) or "nothing"),
    ]
    if record["kept"]:
        lines.append(f"kept      {len(record['kept'])} tensors: {record['kept'][0]} ... {record['kept'][-1]}")
    if record["opaque"]:
        lines.append("not read  " + ", ".join(record["opaque"]))
    if record["proof"]:
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
    return [*lines, f"wrote     {output}; its configuration:", "", config_block(settings, output)]


def describe(path: Path, **choice: Any) -> list[str]:
    """Return lines about any file that can be read safely. If it cannot be converted, the last one gives the reason.

    Args:
        choice: options of `read_source`.
    Raises:
        UserError: the file cannot be read.
    """
    loaded = read_checkpoint(path)
    total = sum(tensor.numel() for tensor in loaded.tensors.values())
    size = sum(part.stat().st_size for part in loaded.parts) / 1e6
    parts = f" in {len(loaded.parts)} parts" if len(loaded.parts) > 1 else ""
    lines = [
        f"file      {path}, {loaded.format}{parts}, {size:.1f} MB, "
        f"sha256 {combined_digest(loaded.parts)[:16]}...",
        f"holds     {len(loaded.tensors)} tensors, {total / 1e6:.2f} M numbers; top level: "
        + (", ".join(loaded.keys[:8]) + (", ..." if len(loaded.keys) > 8 else "") or loaded.kind),
    ]
    if loaded.opaque:
        lines.append("not read  " + ", ".join(loaded.opaque))
    lines += [
        f"network   {c} ({c.dialect.name}'s names)" for c in find_candidates(unwrapped(path, loaded.tensors))
    ]
    try:
        found = read_source(path, **choice)
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
        f"depth     {described(recorded(net))}; {what} blocks {net.blocks}",
        f"input     {describe_input(found.input)}",
        f"          {found.input_origin}",
        "dropped   " + (", ".join(f"{name} ({count})" for name, count in found.dropped.items()) or "nothing"),
    ]
    if found.passed_over:
        lines.append("passed    " + ", ".join(found.passed_over) + " (take one with --branch)")
    return lines


def _heads(loaded: Loaded, found: Source) -> list[str]:
    """Describe the dropped matrices, in order: the layers of projection heads and classifiers."""
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
