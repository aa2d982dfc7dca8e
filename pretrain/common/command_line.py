"""Command lines of tools with commands of their own and config keys behind them."""

import argparse


def add_overrides(command: argparse.ArgumentParser) -> None:
    """Let a command end in KEY VALUE pairs: `overrides` of the namespace."""
    command.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their new values")


def parse(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse with options and KEY VALUE pairs in any order, which argparse does not allow in subcommands."""
    args, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("--")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.overrides += rest
    return args
