"""The command line of `tools/reproduce.py`. It imports nothing heavy, so that --help answers at once."""

import argparse
from pathlib import Path

from pretrain.common.command_line import Parser
from transfer.config.keys import data_root


def parse(about: str | None) -> argparse.Namespace:
    """Parse the command line; `about` is the text at the top of --help, and defaults are in parentheses."""
    parser = Parser(description=about)
    add = parser.add_argument
    add("--table", default="", help="name of the table; --list shows them all")
    add("--list", action="store_true", help="list all tables with their cost, and exit")
    add("--dry-run", action="store_true", help="print every command and whether it is done; run nothing")
    add("--status", action="store_true", help="show which jobs are done or running, and their progress")
    add(
        "--inits", "--only", nargs="+", default=[], metavar="A,B",
        help="run only these rows or released networks, or all-released; the table still shows all",
    )  # fmt: skip
    add(
        "--init", action="append", default=[], metavar="NAME[=FILE]",
        help="add a row for your own checkpoint, or for a released network by its name",
    )  # fmt: skip
    add("--trials", type=int, metavar="N", help="runs per row, with seeds 0, 1, ... (1)")
    add("--seeds", default="", metavar="0,1,2", help="use these seeds instead of --trials")
    add("--sweep", default="", metavar="KEY=A,B", help="try every value in every row; the table has the best")
    add("--schedule", type=float, default=1.0, metavar="SHARE", help="fraction of iterations and epochs (1)")
    add("--smoke", action="store_true", help="a few iterations on tiny data and networks; downloads nothing")
    add("--fetch", action="store_true", help="download released checkpoints instead of pre-training")
    add("--num-gpus", type=int, default=1, metavar="N", help="GPUs per job (1)")
    add(
        "--jobs", type=int, default=0, metavar="N", help="at most N jobs at a time (0: as many as GPUs allow)"
    )
    add("--launcher", default="", help="start jobs with this, not torchrun; each has its own {port} and {id}")
    add("--slurm", default="", metavar="K=V,K=V", help="run jobs through SLURM: partition=gpu,time=2880")
    add("--root", type=Path, default=Path(data_root()), help="folder of the data sets (%(default)s)")
    add("--output", type=Path, default=Path("results"), help="folder for runs and tables (%(default)s)")
    return parser.parse_args()
