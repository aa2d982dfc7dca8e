"""Command lines: mistakes in one line, `--resume [FROM]`, and `KEY VALUE` pairs of the config at the end."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from pretrain.common.errors import UserError, label
from pretrain.installed import as_typed

_RESUME = "--resume"


class Parser(argparse.ArgumentParser):
    """argparse's parser, which keeps the line breaks of its texts and reports a mistake in one line, without its usage.

    Raises `UserError` where argparse would exit.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})
        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        return as_typed(super().format_help())

    def error(self, message: str) -> NoReturn:
        from pretrain.common.configs import nearest  # takes longer to import than most commands need

        known = self._flags()
        given = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        # An abbreviation is a flag, too. Otherwise argparse would name the flag that is missing, not the wrong one.
        unknown = [flag for flag in given if not any(option.startswith(flag) for option in known)]
        if unknown:
            message = f"{unknown[0]}: no such flag{nearest(unknown[0], known, prefix='--')}"
        elif misplaced := self._misplaced(given):
            message = misplaced
        raise UserError(f"{label(message, 1000)}; {self.prog} --help lists everything that can be given")

    def _misplaced(self, given: list[str]) -> str:
        """Return a message about the first flag that the given subcommand does not have, but another one does."""
        for action in self._actions:
            commands = action.choices if isinstance(action.choices, dict) else {}
            chosen = next((word for word in self._words if word in commands), None)
            for flag in given if chosen else ():
                parsers = {
                    id(p): (name, p) for name, p in reversed(commands.items())
                }  # each by its first name
                owners = [name for name, parser in reversed(parsers.values()) if _has(parser, flag)]
                if owners and not _has(self, flag) and not _has(commands[chosen], flag):
                    have = "has" if len(owners) == 1 else "have"
                    return f"{chosen} has no flag {flag}: {', '.join(owners)} {have} it"
        return ""

    def _flags(self) -> list[str]:
        """Return the flags of this command and of its subcommands."""
        commands = [action.choices.values() for action in self._actions if isinstance(action.choices, dict)]
        parsers = [self, *(parser for several in commands for parser in several)]
        return list(dict.fromkeys(flag for parser in parsers for flag in parser._option_string_actions))


def _has(parser: argparse.ArgumentParser, flag: str) -> bool:
    return any(option.startswith(flag) for option in parser._option_string_actions)


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
            "tools/reproduce.py add --resume themselves)"
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
