"""What `tools/convert_to_d2.py` does with its flags: inspect, convert or export files, and print the results."""

import argparse
import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from pretrain.common.console import say
from pretrain.common.errors import UserError, label
from pretrain.common.files import write_text
from pretrain.common.run_folder import held_file, remove_leftovers
from transfer.convert.preprocessing import FLAGS, three_numbers
from transfer.convert.program.networks import convert_any, export_any
from transfer.convert.program.report import describe, report

_SCALES = {255: "the default of --scale", 1: "which --scale 1 says"}


def run(args: argparse.Namespace) -> None:
    """Inspect, convert or export the files, as the flags say.

    Raises:
        UserError: flags that do not fit together, or a file that cannot be read, converted or written.
    """
    _refuse_idle_flags(args)
    choice = {
        "source": args.source, "branch": args.branch, "given": _given(args), "merged_norm": args.merged_norm,
        "heads": args.heads, "resample": args.resample_patch,
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
            lines = export_any(source, output, to=args.to, overwrite=args.overwrite, **choice)
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
            written = convert_any(path, output, **options)
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
    written = convert_any(path, output, **options)
    if record:
        remove_leftovers(record.parent, lambda name: name == record.name)
        write_text(record, json.dumps(written, indent=2) + "\n")
    for line in report(written, output):
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
