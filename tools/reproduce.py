"""A table of the papers by one command: pre-train, convert, fine-tune every init, and compare.

python tools/reproduce.py --list                                     # all tables, with their cost
python tools/reproduce.py --table voc_C4 --dry-run                   # every command, in order, and what is there
python tools/reproduce.py --table voc_C4 --num-gpus 8 --trials 5
python tools/reproduce.py --table voc_C4 --fetch --inits random,supervised,moco_v2 --init mine=backbone.pth
python tools/reproduce.py --table coco_FPN_1x --smoke                # minutes, on a laptop: does everything run?
python tools/reproduce.py --table voc_C4 --status

Finished work is kept and never repeated; the same command goes on where it stopped. docs/reproducing.md has more.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from pretrain.common.errors import run_tool


def main() -> int:
    args = _parse()
    from transfer.reproduce import command

    if args.list:
        print("\n".join(command.listing()))
        return 0
    return command.run(args)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--table", default="", help="which table; --list shows them")
    add("--list", action="store_true", help="show all tables with their cost and do nothing")
    add("--dry-run", action="store_true", help="print every command and what is there already; run nothing")
    add("--status", action="store_true", help="what runs, how far it is, and what is done")
    add("--inits", "--only", default="", metavar="A,B", help="run only these rows; the table shows all")
    add("--init", action="append", default=[], metavar="NAME=FILE", help="a checkpoint as one more row")
    add("--trials", type=int, metavar="N", help="runs of each row, seeds 0, 1, ... (1)")
    add("--seeds", default="", metavar="0,1,2", help="these seeds instead of --trials")
    add("--sweep", default="", metavar="KEY=A,B", help="every value for every row; the table has the best")
    add("--schedule", type=float, default=1.0, metavar="SHARE", help="of all iterations and epochs (1)")
    add("--smoke", action="store_true", help="tiny data, tiny networks, a few iterations; downloads nothing")
    add("--fetch", action="store_true", help="download released checkpoints instead of pre-training")
    add("--num-gpus", type=int, default=1, metavar="N", help="GPUs of each job (1)")
    add("--jobs", type=int, default=0, metavar="N", help="jobs at a time at most (as many as the GPUs allow)")
    add(
        "--launcher",
        default="",
        help="what starts a job instead of torchrun; {port} and {id} are each job's own",
    )
    add("--slurm", default="", metavar="K=V,K=V", help="run the jobs through SLURM: partition=gpu,time=2880")
    add("--root", type=Path, default=Path("datasets"), help="folder of the data sets (datasets)")
    add("--output", type=Path, default=Path("results"), help="folder of runs and tables (results)")
    return parser.parse_args()


if __name__ == "__main__":
    run_tool(main)
