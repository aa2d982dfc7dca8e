"""The command `train` of `tools/benchmark.py`.

torch and detectron2 take seconds to import, so they are imported inside the functions: `--help` and wrong flags are
answered at once.
"""

import argparse

from pretrain.common import command_line
from pretrain.common.errors import UserError


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add `train`, which compares the speed of our training loop with plain detectron2's."""
    command = commands.add_parser(
        "train", help="fine-tune, alternating between our loop and plain detectron2's"
    )
    command.add_argument(
        "--config", default="transfer/demo_R50w50_FPN.yaml", help="any config (%(default)s, the demo's)"
    )
    command.add_argument("--iterations", type=int, default=20, help="iterations in each block (20)")
    command.add_argument("--rounds", type=int, default=5, help="number of blocks of each loop (5)")
    command_line.add_overrides(command)
    command.set_defaults(run=_run_train)


def _run_train(args: argparse.Namespace) -> None:
    if args.iterations < 1 or args.rounds < 1:
        raise UserError("--iterations and --rounds: give 1 or more")
    from transfer.config.load import load_config
    from transfer.train import benchmark

    cfg = load_config(args.config, [*args.overrides, "MODEL.INIT", "random", "MODEL.WEIGHTS", ""])
    benchmark.train(cfg, iterations=args.iterations, rounds=args.rounds)
