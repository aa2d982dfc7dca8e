"""Measure how fast this machine trains, beside plain detectron2.

python tools/benchmark.py train                                      # the demo's model
python tools/benchmark.py train --config transfer/coco_R50_FPN.yaml SOLVER.IMS_PER_BATCH 2
python tools/benchmark.py train --iterations 50 --rounds 7 SOLVER.AMP.ENABLED True
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from pretrain.errors import UserError, run_tool
from transfer import arguments


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="train")
    _add_train(commands)
    args = arguments.parse(parser)
    args.run(args)


def _add_train(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("train", help="fine-tuning: our loop and plain detectron2's in turns")
    command.add_argument("--config", default="transfer/demo_R50w25_FPN.yaml", help="the demo's by default")
    command.add_argument("--iterations", type=int, default=20, help="of a block (20)")
    command.add_argument("--rounds", type=int, default=5, help="blocks of each loop (5)")
    arguments.add_overrides(command)
    command.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> None:
    from transfer import benchmark, config

    if args.iterations < 1 or args.rounds < 1:
        raise UserError("--iterations and --rounds: give 1 or more")
    cfg = config.load(args.config, [*args.overrides, "MODEL.INIT", "random", "MODEL.WEIGHTS", ""])
    benchmark.train(cfg, iterations=args.iterations, rounds=args.rounds)


if __name__ == "__main__":
    run_tool(main)
