"""The command line of `tools/train_net.py`: its flags, and what they change in the config and the processes.

torch and detectron2 take seconds to import, so they are imported inside the functions: `--help` and wrong flags
are answered at once.
"""

import argparse
import os
import shutil
import sys
from functools import partial
from typing import Any

from pretrain.common import command_line, launcher
from pretrain.common.configs import find_config
from pretrain.common.errors import UserError

# key of the config -> the flag that sets it
_FLAG_OF_KEY = {
    "DATASETS.FRACTION": "fraction",
    "DATASETS.SHOTS": "shots",
    "MODEL.BACKBONE.FREEZE_AT": "frozen",
}

_NARROWEST = 40  # columns for which --explain wraps its lines


def main(about: str | None, arguments: list[str] | None = None) -> None:
    """Train and test, only test, or explain a config, as `arguments` (default: the command line) say.

    Args:
        about: the text of `--help`.
    Raises:
        UserError: a mistake in the flags, the config, the weights or the data.
    """
    args = _parse(about, arguments)
    find_config(args.config)  # a wrong name is reported before anything slow is imported
    if not (args.eval_only or args.explain):
        launcher.check_restarts(args.resume)
    started = launcher.join(srun=args.num_machines == 1)
    from transfer.config.load import check_processes, load_config

    overrides = _overrides(args)
    cfg = load_config(args.config, overrides, need_weights=not args.explain)
    if args.eval_only:
        cfg.OUTPUT_DIR = _folder_of_weights(args.config, overrides, cfg)
    processes, local = _count_processes(args, started)
    is_first = int(os.environ.get("RANK") or 0) == 0 and args.machine_rank == 0
    cfg, sentence = _rescale(cfg, args, processes)
    if sentence and is_first:
        print(sentence, flush=True)
    if args.explain:
        from transfer.config.explain import explain

        width = max(shutil.get_terminal_size().columns, _NARROWEST) if sys.stdout.isatty() else 0
        print("\n".join(explain(cfg, args.config, width=width)))
        return
    check_processes(cfg, processes, local=local, train=not args.eval_only)
    if is_first and not args.eval_only:
        _warn_about_learning_rate(cfg, args)
    _run(cfg, args)


def _overrides(args: argparse.Namespace) -> list[str]:
    """Return KEY VALUE pairs: those that MODEL.WEIGHTS asks for, then the user's, then those of the flags."""
    overrides = list(args.overrides)
    for key, flag in _FLAG_OF_KEY.items():
        value = getattr(args, flag)
        overrides += [] if value is None else [key, str(value)]
    if args.follow_weights:
        from transfer.config.load import read_config
        from transfer.models import init_weights

        weights = read_config(args.config, overrides).MODEL.WEIGHTS
        overrides = [*init_weights.settings(weights), *overrides]
    return overrides


def _folder_of_weights(config: str, overrides: list[str], cfg: Any) -> str:
    """Return where `--eval-only` writes: next to the weights that it tests, unless an OUTPUT_DIR is given."""
    from pretrain.common.configs import default_output, find_config

    folder = os.path.dirname(cfg.MODEL.WEIGHTS) or "."
    is_named = not default_output(find_config(config), overrides)
    if is_named or not os.path.isfile(cfg.MODEL.WEIGHTS) or not os.access(folder, os.W_OK):
        return str(cfg.OUTPUT_DIR)
    return folder


def _count_processes(args: argparse.Namespace, started: int) -> tuple[int, int]:
    """Return the number of processes of the whole job, and of this machine; a launcher has `started` some of them.

    Raises:
        UserError: `--num-gpus` below 1, or flags that would start processes under torchrun or srun.
    """
    if started > 1:
        if (args.num_gpus, args.num_machines) != (1, 1):
            raise UserError(
                "--num-gpus, --num-machines: torchrun or srun has already started the processes; leave these flags out"
            )
        return started, int(os.environ.get("LOCAL_WORLD_SIZE", started))
    if args.num_gpus < 1:
        raise UserError(
            f"--num-gpus {args.num_gpus}: give 1 or more (without a GPU, one process runs on the CPU)"
        )
    return max(1, args.num_gpus * args.num_machines), args.num_gpus


def _rescale(cfg: Any, args: argparse.Namespace, processes: int) -> tuple[Any, str]:
    """Return the config scaled to another number of GPUs, and a sentence that describes the change.

    `--scale` gives the number. Without it, a config that sets SOLVER.REFERENCE_WORLD_SIZE is scaled to the number
    of processes, as in detectron2. The sentence is empty if nothing is scaled.
    """
    gpus = processes if args.scale is None and cfg.SOLVER.REFERENCE_WORLD_SIZE else args.scale
    if gpus is None or args.eval_only:
        return cfg, ""
    from transfer.config import scale

    return scale.rescale(cfg, gpus)


def _warn_about_learning_rate(cfg: Any, args: argparse.Namespace) -> None:
    from transfer.config import scale
    from transfer.config.load import read_config

    warning = scale.lr_warning(cfg, read_config(args.config))
    if warning:
        print(warning, flush=True)


def _run(cfg: Any, args: argparse.Namespace) -> None:
    """Run the job in `--num-gpus` processes on this machine, or in the one process that a launcher started."""
    from pretrain.common import distributed
    from transfer.train import run

    worker = partial(run.run, cfg, resume=args.resume, eval_only=args.eval_only)
    distributed.spawn(
        worker, args.num_gpus,
        machines=args.num_machines, machine_rank=args.machine_rank, url=args.dist_url,
    )  # fmt: skip
    distributed.shutdown()  # not after an error: NCCL would wait for the other processes


def _parse(about: str | None, arguments: list[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(description=about)
    add = parser.add_argument
    add("--config", "--config-file", required=True, help="YAML file, as given or under configs/")
    add("--num-gpus", type=int, default=1, help="processes on each machine; the total batch stays the same")
    add("--num-machines", type=int, default=1, help="run this command on each, with its own --machine-rank")
    add("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    add("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0; auto: this machine only")
    command_line.add_resume(parser, "model_last.pth")
    add(
        "--eval-only",
        action="store_true",
        help="only test MODEL.WEIGHTS, a fine-tuned detector, and write next to it",
    )
    add("--explain", action="store_true", help="only print how the config differs from paper and detectron2")
    add("--scale", type=int, metavar="GPUS", help="adapt batch, learning rate and schedule to this many GPUs")
    add("--fraction", type=float, help="share of the training images to train on (DATASETS.FRACTION)")
    add("--shots", type=int, help="number of objects of each class to train on (DATASETS.SHOTS)")
    add(
        "--frozen", action="store_const", const=5,
        help="keep the backbone as it is, with batch norm in evaluation mode (MODEL.BACKBONE.FREEZE_AT 5)",
    )  # fmt: skip
    add("--follow-weights", action="store_true", help="use the settings that the MODEL.WEIGHTS file records")
    add("overrides", nargs="*", metavar="KEY VALUE", help="config keys and their new values")
    return parser.parse_intermixed_args(command_line.mark_resume(arguments))
