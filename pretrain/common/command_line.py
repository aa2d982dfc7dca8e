"""Command lines that end in `KEY VALUE` pairs of the config: subcommands, and `--resume [FROM]` before the pairs."""

import argparse
import os
import sys
from pathlib import Path

from pretrain.common.errors import UserError, label

_RESUME = "--resume"


def add_overrides(command: argparse.ArgumentParser) -> None:
    """Add trailing KEY VALUE pairs to a command; the namespace holds them as `overrides`."""
    command.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their new values")


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse options and KEY VALUE pairs in any order, which argparse does not allow in subcommands."""
    args, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("--")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.overrides += rest
    return args


def add_resume(parser: argparse.ArgumentParser, last: str) -> None:
    """Add `--resume [FROM]`; the namespace holds a path, or whether the flag was given.

    Args:
        last: the file in OUTPUT_DIR that is used without FROM.
    """
    parser.add_argument(
        _RESUME,
        nargs="?",
        type=_start,
        default=False,
        metavar="FROM",
        help=f"continue the run in OUTPUT_DIR from {last}, or from the file FROM",
    )


def mark_resume(arguments: list[str] | None = None) -> list[str]:
    """Return the arguments (default: those of this process) with each `--resume [FROM]` in one word, for argparse.

    The word after the flag is FROM if it contains a slash, ends in .pth or .tar, or is an existing file: argparse alone
    would also take the KEY of `--resume KEY VALUE`.

    Raises:
        UserError: the flag is given again with another meaning.
    """
    words, marked, starts = list(sys.argv[1:] if arguments is None else arguments), list[str](), set[str]()
    while words and words[0] != "--":
        word = words.pop(0)
        flag, joined, start = word.partition("=")
        if len(flag) > 2 and _RESUME.startswith(flag):  # argparse allows abbreviations
            if not joined and words and _is_file(words[0]):
                start = words.pop(0)
            starts.add(start)
            word = f"{_RESUME}={start}"
        marked.append(word)
    if len(starts) > 1:
        raise UserError(
            "--resume is given twice, with and without FROM or with two files: give it once (job.sbatch and "
            "reproduce.py add --resume themselves)"
        )
    return [*marked, *words]


def _is_file(word: str) -> bool:
    return not word.startswith("-") and (
        "/" in word or word.endswith((".pth", ".tar")) or os.path.isfile(word)
    )


def _start(word: str) -> bool | Path:
    if word and not os.path.isfile(word):
        what = "is not a file" if os.path.lexists(word) else "no such file"
        raise UserError(
            f"--resume {label(word)}: {what}; name a checkpoint, or leave it out to resume from the last one"
        )
    return Path(word) if word else True
