"""The command `gpu` of `tools/benchmark.py`.

torch and detectron2 take seconds to import, so they are imported inside the functions: `--help` and wrong flags are
answered at once.
"""

import argparse
import math
import os
from pathlib import Path

from pretrain.common.errors import UserError, label


def add_gpu(commands: argparse._SubParsersAction) -> None:
    """Add `gpu`, which measures everything that the docs say about speed on one GPU."""
    command = commands.add_parser(
        "gpu", help="pre-training, fine-tuning and evaluation on this machine's GPU: one JSON and one table"
    )
    add = command.add_argument
    add("--output", required=True, metavar="FILE", help="a new .json file; the table is next to it, as .md")
    add(
        "--minutes", type=float, default=30, help="time for all cells; those that do not fit are dropped (30)"
    )
    add("--rounds", type=int, default=3, help="number of blocks of each figure (3)")
    add(
        "--images", default="", metavar="FOLDER", help="folder of photographs; without it, synthetic pictures"
    )
    add(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: only try the command, with tiny networks",
    )
    command.set_defaults(run=_run, overrides=[])


def _run(args: argparse.Namespace) -> None:
    output, given = Path(args.output), f"--output {label(args.output)}"
    if output.suffix != ".json":
        raise UserError(f"{given}: name a file that ends in .json; the table is written next to it")
    for path in (output, output.with_suffix(".md")):
        if os.path.lexists(path):
            raise UserError(f"{given}: {label(str(path))} exists: name another file, or remove it")
    if args.rounds < 1:
        raise UserError(f"--rounds {args.rounds}: give 1 or more")
    if not 0 < args.minutes < math.inf:
        raise UserError(f"--minutes {args.minutes:g}: give a number above 0")
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "PyTorch sees no GPU here, so nothing is measured; to try the command on the CPU, with tiny networks: "
            f"python tools/benchmark.py gpu --device cpu --output {label(args.output)}"
        )
    from transfer.benchmark import command

    command.run(output, device=args.device, minutes=args.minutes, rounds=args.rounds, images=args.images)
