"""The command line of `tools/compare_inits.py`. It imports nothing heavy, so that --help answers at once."""

import argparse
from pathlib import Path

from pretrain.common.command_line import Parser
from pretrain.common.errors import UserError


def parse(about: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Raises `UserError` for values that no run could have."""
    parser = Parser(description=about)
    add = parser.add_argument
    add("--train", type=Path, required=True, metavar="JSON", help="COCO-format annotations to train on")
    add("--train-images", type=Path, required=True, metavar="DIR", help="folder of their images")
    add("--test", type=Path, metavar="JSON", help="COCO-format annotations to test on")
    add("--test-images", type=Path, metavar="DIR", help="folder of their images")
    add("--holdout", type=float, metavar="SHARE", help="test on this share of the training images instead")
    add(
        "--init", action="append", default=[], metavar="NAME=FILE",
        help="an initialisation: your checkpoint, `random`, or the name of a released network; give two or more",
    )  # fmt: skip
    add("--config", default="transfer/custom_R50_FPN.yaml", help="the detector (%(default)s)")
    add("--fractions", type=float, nargs="+", default=[1.0], metavar="F", help="shares of the labels (1.0)")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each init and fraction (%(default)s)")
    add("--hours", type=float, metavar="H", help="shorten the schedule, of all alike, to fit into H hours")
    add("--frozen", action="store_true", help="train no part of the backbone")
    add(
        "--lr-sweep", action="store_true",
        help="also compare with the learning rate that suits each init, chosen on a part of the training images",
    )  # fmt: skip
    add("--num-gpus", type=int, default=1, metavar="N", help="GPUs per run (%(default)s)")
    add("--jobs", type=int, default=0, metavar="N", help="runs at a time (0: as many as GPUs or cores allow)")
    add("--launcher", default="", help="start runs with this, not torchrun; each has its own {port} and {id}")
    add("--slurm", default="", metavar="K=V,K=V", help="start runs through SLURM: partition=gpu,time=2880")
    add("--output", type=Path, default=Path("results/compare"), help="folder of the results (%(default)s)")
    add("--dry-run", action="store_true", help="only say what it will cost")
    add("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their new values, for every run")
    parser.set_defaults(smoke=False)  # which the executors of reproduce.py ask for
    args = parser.parse_intermixed_args(arguments)
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    if len(args.init) < 2:
        raise UserError(
            "--init: give two or more, such as --init mine=backbone.pth --init random; the first is compared with "
            "each of the others"
        )
    both = args.test is not None and args.test_images is not None
    if args.holdout is None and not both:
        raise UserError("--test and --test-images: give both, or --holdout 0.2 to test on a part of --train")
    if args.holdout is not None and (args.test or args.test_images):
        raise UserError("--holdout takes the test images from --train: leave out --test and --test-images")
    if args.holdout is not None and not 0 < args.holdout < 1:
        raise UserError(f"--holdout {args.holdout:g}: give a share between 0 and 1, such as 0.2")
    for share in args.fractions:
        if not 0 < share <= 1:
            raise UserError(f"--fractions {share:g}: give numbers above 0 and up to 1")
    if len(set(args.fractions)) < len(args.fractions):
        raise UserError(f"--fractions {' '.join(map('{:g}'.format, args.fractions))}: give each share once")
    for flag, value in (("--seeds", args.seeds), ("--num-gpus", args.num_gpus)):
        if value < 1:
            raise UserError(f"{flag} {value}: give 1 or more")
    if args.hours is not None and not 0 < args.hours < float("inf"):
        raise UserError(f"--hours {args.hours:g}: give a number above 0")
