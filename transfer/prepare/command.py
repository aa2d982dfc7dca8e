"""The command line of `tools/prepare_data.py`."""

import argparse
import os
from pathlib import Path
from typing import Any

from pretrain.errors import UserError
from transfer.prepare import layouts
from transfer.prepare.check import check_set
from transfer.prepare.demo import SOURCES, build_demo
from transfer.prepare.recipe import RECIPES


def main(about: str | None, arguments: list[str] | None = None) -> int:
    """Parse `arguments` (the command line's if None) and do what they say; exit status 0."""
    args = _parse(about, arguments)
    if args.name == "demo":
        if args.check:
            print(check_set(args.root / f"demo_{args.size}", args.size))
        else:
            build_demo(
                args.root, size=args.size, seed=args.seed, workers=args.workers, debs=tuple(args.deb),
                source=args.source,
            )  # fmt: skip
        return 0
    if not args.check:
        raise UserError(f"{args.name} can only be checked yet, not built. {layouts.HOW_TO[args.name]}")
    print(layouts.CHECKS[args.name](args.root))
    return 0


def _parse(about: str | None, arguments: list[str] | None) -> argparse.Namespace:
    summary, _, examples = (about or "").partition("\n")
    layout: dict[str, Any] = {
        "epilog": "examples:\n" + examples.strip("\n"),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
    parser = argparse.ArgumentParser(prog="prepare_data.py", description=summary, **layout)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--root", type=Path, default=Path("datasets"), help="data sets' folder [%(default)s]")
    common.add_argument("--check", action="store_true", help="verify, change nothing")
    demo = names.add_parser("demo", parents=[common], help="compose the demo's photographs", **layout)
    demo.add_argument("--size", choices=RECIPES, default="standard", help="[%(default)s]")
    demo.add_argument("--seed", type=_natural, default=0, help="[%(default)s]")
    demo.add_argument("--workers", type=_positive, default=_cores(), help="processes [all cores]")
    demo.add_argument("--deb", type=Path, nargs="+", default=[], metavar="FILE", help="instead of apt-get")
    demo.add_argument("--source", choices=SOURCES, default="auto", help="auto = packages if possible [auto]")
    names.add_parser("coco", parents=[common], help="COCO 2017 (check only)")
    names.add_parser("voc", parents=[common], help="PASCAL VOC 2007 and 2012 (check only)")
    names.add_parser("voc_masks", parents=[common], help="instance masks on VOC 2012 (check only)")
    return parser.parse_args(arguments)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if not _natural(text):
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)
