"""The command line of `tools/prepare_data.py`."""

import argparse
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from pretrain.common.errors import UserError
from transfer.prepare.demo.check import check_set
from transfer.prepare.demo.demo_set import SOURCES, build_demo
from transfer.prepare.demo.recipe import RECIPES

SETS = {  # name: the module with its build(root, args) and check(root, args), and what --help says
    "voc": ("voc", "PASCAL VOC 2007 and 2012: boxes of 20 classes (2.9 GB to download)"),
    "voc-masks": ("voc_masks", "masks and labels per pixel on VOC 2012, with SBD's (3.4 GB)"),
    "coco": ("coco", "COCO 2017: boxes, masks and keypoints (20.4 GB)"),
    "lvis": ("lvis", "LVIS: masks of 1200 classes on COCO's images, which 'coco' gets"),
    "cityscapes": ("cityscapes", "Cityscapes: street scenes (account needed: give its files by --archives)"),
    "imagenet": ("imagenet", "ImageNet-1k, for pre-training (account needed: --archives)"),
    "imagenette": ("imagenette", "ten classes of ImageNet, for small pre-training runs"),
    "custom": ("custom", "your own images with a COCO json: checked, repaired, split into subsets"),
}


def main(about: str | None, arguments: list[str] | None = None) -> int:
    """Parse `arguments` (the command line's if None) and do what they say; exit status 0."""
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
    except BrokenPipeError:  # of `| head`
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
    layout: dict[str, Any] = {
        "epilog": "examples:\n" + examples.strip("\n"),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }
    parser = argparse.ArgumentParser(prog="prepare_data.py", description=summary, **layout)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    common = _common()
    demo = names.add_parser("demo", parents=[common], help="compose the demo's photographs", **layout)
    demo.add_argument("--size", choices=RECIPES, default="standard", help="[%(default)s]")
    demo.add_argument("--seed", type=_natural, default=0, help="[%(default)s]")
    demo.add_argument("--deb", type=Path, nargs="+", default=[], metavar="FILE", help="instead of apt-get")
    demo.add_argument("--source", choices=SOURCES, default="auto", help="auto = packages if possible [auto]")
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
        "--version", choices=("v0.5", "v1"), default="v0.5", help="v0.5 is the paper's [%(default)s]"
    )
    parsers["imagenette"].add_argument(
        "--size",
        choices=("160", "320", "full"),
        default="160",
        help="pixels of the shorter side [%(default)s]",
    )
    _add_custom(parsers["custom"])
    return parser.parse_args(arguments)


def _common() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="data sets' folder [%(default)s]")
    parser.add_argument("--check", action="store_true", help="verify, change nothing")
    parser.add_argument("--workers", type=_positive, default=_cores(), help="processes [all cores]")
    return parser


def _archives() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--archives", type=Path, metavar="FOLDER", help="take the archives from here, download none"
    )
    parser.add_argument("--keep-archives", action="store_true", help="do not remove what was downloaded")
    parser.add_argument(
        "--no-checksum", action="store_true", help="take a mirror's archives of other content"
    )
    return parser


def _add_custom(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="annotations in COCO's format"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="its images")
    parser.add_argument("--fraction", type=_fraction, default=1.0, help="keep this share of the images [all]")
    parser.add_argument(
        "--shots",
        type=_natural,
        default=0,
        metavar="K",
        help="keep images with K objects of each class [all]",
    )
    parser.add_argument("--seed", type=_natural, default=0, help="which ones [%(default)s]")
    parser.add_argument(
        "--learn",
        nargs="+",
        choices=("boxes", "masks", "keypoints"),
        help="what annotations must have [what any has]",
    )
    parser.add_argument("--repair", action="store_true", help="leave out or mend what cannot be trained on")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write what is kept")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0 and up to 1")
    return value


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if not _natural(text):
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)
