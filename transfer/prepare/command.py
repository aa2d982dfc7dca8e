"""The command line of `tools/prepare_data.py`."""

import argparse
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from pretrain.common.command_line import Parser
from pretrain.common.errors import UserError
from transfer.config.keys import data_root
from transfer.data.coco.box_formats import FORMATS
from transfer.prepare.demo.check import check_set
from transfer.prepare.demo.demo_set import SOURCES, build_demo
from transfer.prepare.demo.recipe import RECIPES

# Name -> module with build(root, args) and check(root, args), and the text for --help.
SETS = {
    "voc": ("voc", "PASCAL VOC 2007 and 2012: boxes of 20 classes (2.9 GB to download)"),
    "voc-masks": ("voc_masks", "VOC 2012 with masks and per-pixel labels, including those of SBD (3.4 GB)"),
    "coco": ("coco", "COCO 2017: boxes, masks and keypoints (20.4 GB)"),
    "lvis": ("lvis", "LVIS: masks of 1200 classes on COCO's images (get those with 'coco')"),
    "cityscapes": (
        "cityscapes",
        "Cityscapes: street scenes (needs an account: give the files with --archives)",
    ),
    "imagenet": (
        "imagenet",
        "ImageNet-1k, for pre-training (needs an account: give the files with --archives)",
    ),
    "imagenette": ("imagenette", "ten classes of ImageNet, for small pre-training runs"),
    "custom": ("custom", "your own images with a COCO json: check, repair, or take a subset"),
}


def main(about: str | None, arguments: list[str] | None = None) -> int:
    """Run the command line, or `arguments` if given. Return the exit status 0."""
    args = _parse(about, arguments)
    args.root = args.root.expanduser()
    if args.name == "demo":
        _demo(args)
        return 0
    module = import_module(f"transfer.prepare.sets.{SETS[args.name.replace('_', '-')][0]}")
    try:
        if args.check:
            print(module.check(args.root, args))
        else:
            module.build(args.root, args)
    except BrokenPipeError:  # from `| head`
        raise
    except OSError as error:
        raise UserError(f"{error.filename or args.root}: {error.strerror or error}") from error
    return 0


def _demo(args: argparse.Namespace) -> None:
    if args.check:
        print(check_set(args.root / f"demo_{args.size}", args.size))
    else:
        build_demo(
            args.root, size=args.size, seed=args.seed, workers=args.workers, debs=tuple(args.deb),
            source=args.source,
        )  # fmt: skip


def _parse(about: str | None, arguments: list[str] | None) -> argparse.Namespace:
    summary, _, examples = (about or "").partition("\n")
    layout: dict[str, Any] = {"epilog": "examples:\n" + examples.strip("\n")}
    parser = Parser(description=summary, **layout)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    common = _common()
    demo = names.add_parser(
        "demo", parents=[common], help="compose the demo's data set from photographs", **layout
    )
    demo.add_argument("--size", choices=RECIPES, default="standard", help="[%(default)s]")
    demo.add_argument("--seed", type=_natural, default=0, help="[%(default)s]")
    demo.add_argument(
        "--deb", type=Path, nargs="+", default=[], metavar="FILE", help="use these packages, not apt-get"
    )
    demo.add_argument("--source", choices=SOURCES, default="auto", help="auto: packages if possible [auto]")
    archives = _archives()
    parsers = {
        name: names.add_parser(
            name,
            parents=[common] if name == "custom" else [common, archives],
            aliases=[name.replace("-", "_")] if "-" in name else [],
            help=text,
            description=text,
            **layout,
        )
        for name, (_, text) in SETS.items()
    }
    parsers["lvis"].add_argument(
        "--version", choices=("v0.5", "v1"), default="v0.5", help="the paper uses v0.5 [%(default)s]"
    )
    parsers["imagenette"].add_argument(
        "--size",
        choices=("160", "320", "full"),
        default="160",
        help="length of the shorter side in pixels [%(default)s]",
    )
    _add_custom(parsers["custom"])
    return parser.parse_args(arguments)


def _common() -> Parser:
    parser = Parser(add_help=False)
    parser.add_argument(
        "--root", type=Path, default=Path(data_root()), help="folder of all data sets [%(default)s]"
    )
    parser.add_argument("--check", action="store_true", help="only check; change nothing")
    parser.add_argument("--workers", type=_positive, default=_cores(), help="number of processes [all cores]")
    return parser


def _archives() -> Parser:
    parser = Parser(add_help=False)
    parser.add_argument(
        "--archives", type=Path, metavar="FOLDER", help="use the archives in this folder; download nothing"
    )
    parser.add_argument(
        "--keep-archives", action="store_true", help="keep downloaded archives after unpacking"
    )
    parser.add_argument(
        "--no-checksum",
        action="store_true",
        help="accept archives that differ from the originals, such as a mirror's",
    )
    return parser


def _add_custom(parser: Parser) -> None:
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="annotations in COCO's format"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="folder of its images")
    parser.add_argument(
        "--fraction", type=_fraction, default=1.0, help="keep this fraction of the images [all]"
    )
    parser.add_argument(
        "--shots",
        type=_natural,
        default=0,
        metavar="K",
        help="keep images with K objects of each class [all]",
    )
    parser.add_argument("--seed", type=_natural, default=0, help="seed of that choice [%(default)s]")
    parser.add_argument(
        "--learn",
        nargs="+",
        choices=("boxes", "masks", "keypoints"),
        help="what every annotation must have [whatever any of them has]",
    )
    parser.add_argument(
        "--box-format", choices=FORMATS, default="xywh",
        help="what the boxes of the file are; they are converted to x, y, width, height in pixels [%(default)s]",
    )  # fmt: skip
    parser.add_argument(
        "--category-shift",
        type=int,
        default=0,
        metavar="N",
        help="add this to each annotation's category_id [0]",
    )
    parser.add_argument("--repair", action="store_true", help="repair or leave out what training cannot use")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write the result to")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0 and up to 1")
    return value


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: give a whole number, 0 or more")
    return int(text)


def _positive(text: str) -> int:
    if not _natural(text):
        raise argparse.ArgumentTypeError("give 1 or more")
    return int(text)
