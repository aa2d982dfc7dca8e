"""Measure how fast this machine trains and makes views, beside plain detectron2 and torchvision.

python tools/benchmark.py train                                      # the demo's model
python tools/benchmark.py train --config transfer/coco_R50_FPN.yaml SOLVER.IMS_PER_BATCH 2
python tools/benchmark.py train --iterations 50 --rounds 7 SOLVER.AMP.ENABLED True
python tools/benchmark.py views --images my/photos --rounds 9        # pairs a second of one core
python tools/benchmark.py step --config pretrain/demo_R18.yaml       # what a step of pre-training spends its time on
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from pretrain.common import command_line
from pretrain.common.errors import UserError, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="train,views,step")
    _add_train(commands)
    _add_views(commands)
    _add_step(commands)
    args = command_line.parse(parser)
    args.run(args)


def _add_train(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("train", help="fine-tuning: our loop and plain detectron2's in turns")
    command.add_argument("--config", default="transfer/demo_R50w25_FPN.yaml", help="the demo's by default")
    command.add_argument("--iterations", type=int, default=20, help="of a block (20)")
    command.add_argument("--rounds", type=int, default=5, help="blocks of each loop (5)")
    command_line.add_overrides(command)
    command.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from transfer.config.load import load_config
    from transfer.train import benchmark

    if args.iterations < 1 or args.rounds < 1:
        raise UserError("--iterations and --rounds: give 1 or more")
    cfg = load_config(args.config, [*args.overrides, "MODEL.INIT", "random", "MODEL.WEIGHTS", ""])
    benchmark.train(cfg, iterations=args.iterations, rounds=args.rounds)


def _add_views(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "views", help="pairs of views: ours and torchvision's in turns, on one core"
    )
    command.add_argument("--config", default="pretrain/moco_v2_R50.yaml", help="for INPUT.* (%(default)s)")
    command.add_argument("--images", default="", metavar="FOLDER", help="photographs; made here by default")
    command.add_argument("--rounds", type=int, default=5, help="blocks of each pipeline (5)")
    command_line.add_overrides(command)
    command.set_defaults(run=_views)


def _views(args: argparse.Namespace) -> None:
    from pretrain import config
    from pretrain.benchmark import views

    if args.rounds < 1:
        raise UserError("--rounds: give 1 or more")
    views.run(config.load(args.config, args.overrides), folder=args.images, rounds=args.rounds)


def _add_step(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("step", help="a step of pre-training, by phases: encoders and all else")
    command.add_argument("--config", default="pretrain/moco_v2_R50.yaml", help="any recipe (%(default)s)")
    command.add_argument("--images", default="", metavar="FOLDER", help="photographs; made here by default")
    command.add_argument("--iterations", type=int, default=10, help="steps that count (10)")
    command_line.add_overrides(command)
    command.set_defaults(run=_step)


def _step(args: argparse.Namespace) -> None:
    from pretrain import config
    from pretrain.benchmark import step

    if args.iterations < 1:
        raise UserError("--iterations: give 1 or more")
    cfg = config.load(args.config, args.overrides)
    step.run(cfg, folder=args.images, iterations=args.iterations)


if __name__ == "__main__":
    run_tool(main)
