"""The command line of `tools/linear_eval.py`.

torch takes seconds to import, so it is imported inside of the functions: `--help` is answered at once.
"""

import argparse
import os

from pretrain.common import command_line, launcher
from pretrain.common.errors import UserError, label


def main(about: str | None) -> None:
    """Run a linear probe as the command line says. `about` is the text of `--help`.

    Raises:
        UserError: a mistake in the flags, the config, the weights or the data.
    """
    args = _parse(about)
    if not (args.rank or args.knn):
        launcher.check_restarts(args.resume)
    from transfer.linear import config

    sweep = ["SWEEP", f"[{args.sweep}]"] if args.sweep else []
    needed = ("DATA.TRAIN",) if args.rank else config.FOLDERS
    cfg = config.load(args.config, [*args.overrides, *sweep], processes=launcher.join(), folders=needed)
    # Imported only now, because it takes seconds: mistakes in the config are reported before.
    from pretrain.common import distributed
    from transfer.linear import rank, run

    distributed.init_from_env(distributed.pick_device(cfg.DEVICE))
    choice = {"source": args.source, "branch": args.branch, "heads": args.heads}
    if args.rank:
        rank.run(cfg, args.rank, **choice)
    else:
        run.run(cfg, args.weights, knn=args.knn, resume=args.resume, **choice)
    distributed.shutdown()  # not after an error: NCCL would wait for the other processes


def _parse(about: str | None) -> argparse.Namespace:
    parser = command_line.Parser(description=about)
    add = parser.add_argument
    add("--weights", metavar="FILE", help="a checkpoint, or `random` for an untrained network")
    add(
        "--rank",
        nargs="+",
        metavar="FILE",
        default=[],
        help="order these checkpoints by RankMe on the images of DATA.TRAIN, which needs no labels",
    )
    add(
        "--config",
        "--config-file",
        default="linear/imagenet.yaml",
        help="YAML file, as a path or relative to configs/",
    )
    add("--knn", action="store_true", help="weighted kNN (KNN.K, KNN.T) instead of a trained classifier")
    add(
        "--sweep", metavar="RATES", help="train one classifier per learning rate, e.g. 10,30,100, in one pass"
    )
    command_line.add_resume(parser, "linear_last.pth")
    add("--source", default="auto", metavar="KIND", help="kind of checkpoint, as in tools/convert_to_d2.py")
    add("--branch", default="", help="which network to take if the file holds several")
    add("--heads", type=int, metavar="N", help="of a ViT's attention, if they cannot be known")
    add("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their new values")
    args = parser.parse_intermixed_args(command_line.mark_resume())
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    if not args.weights and not args.rank:
        raise UserError("give --weights FILE, or --rank FILE FILE ... to order checkpoints without labels")
    others = {"--weights": args.weights, "--knn": args.knn, "--sweep": args.sweep, "--resume": args.resume}
    given = [flag for flag, value in others.items() if value]
    if args.rank and given:
        raise UserError(f"--rank and {given[0]}: give one of them; --rank trains nothing and uses no labels")
    for file in (args.weights, *args.rank):  # before the config, whose data may be missing too
        if file and file != "random" and not os.path.lexists(file):
            raise UserError(f"{label(file)}: no such file")
