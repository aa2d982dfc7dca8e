"""Command lines with subcommands that end in `KEY VALUE` pairs of the config."""

import argparse


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
