"""Reproduce a table of the papers with one command: pre-train, convert, fine-tune every init, and compare.

python tools/reproduce.py --list                                     # all tables and what they cost
python tools/reproduce.py --table voc_C4 --dry-run                   # every command, in order, and what is done
python tools/reproduce.py --table voc_C4 --num-gpus 8 --trials 5
python tools/reproduce.py --table voc_C4 --fetch --inits random,supervised,moco_v2 --init mine=backbone.pth
python tools/reproduce.py --table coco_FPN_1x --smoke                # minutes, on a laptop: does everything run?
python tools/reproduce.py --table voc_C4 --status

Finished work is kept and never repeated: the same command resumes where it stopped. See docs/reproducing.md.
"""

from typing import NoReturn

from pretrain.common.errors import run_tool
from transfer.reproduce.arguments import parse


def main() -> int:
    args = parse(__doc__)
    if args.list:
        from transfer.reproduce.listing import listing

        print("\n".join(listing()))
        return 0
    # Imported only now: it loads PyTorch and detectron2, which --help does not need.
    from transfer.reproduce import command

    return command.run(args)


def program() -> NoReturn:
    run_tool(main)


if __name__ == "__main__":
    program()
