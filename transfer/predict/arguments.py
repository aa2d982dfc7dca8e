"""The command line of `tools/predict.py`. It imports nothing heavy, so that --help answers at once."""

import argparse
import os
from pathlib import Path

from pretrain.common.command_line import Parser
from pretrain.common.errors import UserError


def parse(about: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Raises `UserError` for values that cannot be."""
    parser = Parser(description=about)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="OUTPUT_DIR of a run of tools/train_net.py")
    add(
        "inputs", nargs="*", metavar="IMAGES", help="image files, and folders, which are searched recursively"
    )
    add(
        "--images-json", type=Path, metavar="FILE",
        help="COCO json (annotations are not needed) with the ids and file names of the images, relative to one folder",
    )  # fmt: skip
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="write a COCO json: images, categories, annotations with scores",
    )
    add(
        "--results",
        type=Path,
        metavar="FILE",
        help="write a COCO list of results, for loadRes of pycocotools",
    )
    add("--pictures", type=Path, metavar="DIR", help="draw the detections of each image into this folder")
    add("--threshold", type=float, default=0.5, metavar="S", help="leave out scores up to S (%(default)s)")
    add("--weights", type=Path, metavar="FILE", help="a checkpoint (model_final.pth of the run)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one")
    add("--batch", type=int, default=4, metavar="N", help="images at a time (%(default)s)")
    add(
        "--train-json",
        type=Path,
        metavar="FILE",
        help="for a run without categories.json: what it was trained on",
    )
    add("--overwrite", action="store_true", help="replace the files --json and --results")
    args = parser.parse_intermixed_args(arguments)
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    if not (args.json or args.results or args.pictures):
        raise UserError("nothing to write: give --json FILE, --pictures DIR, or both")
    if not args.inputs:
        raise UserError("no images: give image files or folders after the flags")
    if args.images_json and len(args.inputs) != 1:
        raise UserError("--images-json: give exactly one folder, from which its file names start")
    if args.images_json and not os.path.isdir(args.inputs[0]):
        raise UserError(f"{args.inputs[0]}: no such folder; --images-json needs the folder of its file names")
    if args.results and not args.images_json:
        raise UserError("--results needs --images-json, the json with the ids of the images; --json does not")
    if not 0 <= args.threshold <= 1:  # NaN too
        raise UserError(f"--threshold {args.threshold:g}: give a score from 0 to 1")
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give 1 or more")
    _check_outputs(args)


def _check_outputs(args: argparse.Namespace) -> None:
    if args.json and args.results and os.path.abspath(args.json) == os.path.abspath(args.results):
        raise UserError(f"--json, --results: both are {args.json}; name two files")
    for flag, path in (("--json", args.json), ("--results", args.results)):
        if path and os.path.isdir(path):
            raise UserError(f"{flag} {path}: is a folder; name a file")
        if path and os.path.lexists(path) and not args.overwrite:
            raise UserError(f"{flag} {path} exists: name another file, or add --overwrite")
    if args.pictures and os.path.lexists(args.pictures) and not os.path.isdir(args.pictures):
        raise UserError(f"--pictures {args.pictures}: is a file; name a folder")
    reads = [args.images_json, args.train_json]
    for path in filter(None, (args.json, args.results)):
        if any(other and os.path.abspath(other) == os.path.abspath(path) for other in reads):
            raise UserError(f"{path} is read, so it is never overwritten: name another file")
