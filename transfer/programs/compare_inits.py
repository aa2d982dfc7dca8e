"""Does a backbone make a better detector on your data? Fine-tune from it and from others, and compare the results.

python tools/compare_inits.py --train train.json --train-images train/ --test val.json --test-images val/ \\
    --init mine=backbone.pth --init random --init imagenet
python tools/compare_inits.py --train all.json --train-images images/ --holdout 0.2 --fractions 0.1 1.0 --hours 8 \\
    --init mine=backbone.pth --init random
python tools/compare_inits.py ... --dry-run            # only what it will cost

The first init is compared with each of the others, seed by seed. Finished runs are kept: the same command resumes.
"""

from typing import NoReturn

from pretrain.common.errors import run_tool
from transfer.compare.arguments import parse


def main() -> int:
    args = parse(__doc__)
    # Imported only now: it loads PyTorch and detectron2, which --help does not need.
    from transfer.compare import command

    return command.run(args)


def program() -> NoReturn:
    run_tool(main)


if __name__ == "__main__":
    program()
