"""The commands `views` and `step` of `tools/benchmark.py`.

torch takes seconds to import, so it is imported inside the functions: `--help` and wrong flags are answered at once.
"""

import argparse

from pretrain.common import command_line
from pretrain.common.errors import UserError


def add_views(commands: argparse._SubParsersAction) -> None:
    """Add `views`, which compares our view pipelines with torchvision's."""
    command = commands.add_parser(
        "views", help="make view pairs on one core, with our code and with torchvision"
    )
    command.add_argument(
        "--config", default="pretrain/moco_v2_R50.yaml", help="config whose INPUT.* is used (%(default)s)"
    )
    _add_images(command)
    command.add_argument("--rounds", type=int, default=5, help="number of blocks of each pipeline (5)")
    command_line.add_overrides(command)
    command.set_defaults(run=_run_views)


def add_step(commands: argparse._SubParsersAction) -> None:
    """Add `step`, which splits the time of a pre-training step."""
    command = commands.add_parser(
        "step", help="split a pre-training step into phases: the encoders and the rest"
    )
    command.add_argument("--config", default="pretrain/moco_v2_R50.yaml", help="any recipe (%(default)s)")
    _add_images(command)
    command.add_argument("--iterations", type=int, default=10, help="number of measured steps (10)")
    command_line.add_overrides(command)
    command.set_defaults(run=_run_step)


def _add_images(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--images", default="", metavar="FOLDER", help="folder of photographs; without it, synthetic pictures"
    )


def _run_views(args: argparse.Namespace) -> None:
    if args.rounds < 1:
        raise UserError("--rounds: give 1 or more")
    from pretrain import config
    from pretrain.benchmark import views

    views.run(config.load(args.config, args.overrides), folder=args.images, rounds=args.rounds)


def _run_step(args: argparse.Namespace) -> None:
    if args.iterations < 1:
        raise UserError("--iterations: give 1 or more")
    from pretrain import config
    from pretrain.benchmark import step

    step.run(config.load(args.config, args.overrides), folder=args.images, iterations=args.iterations)
