"""Measure how well a linear classifier does on frozen features (He et al. 2020, Sec. 4.1), or a kNN classifier.

python tools/linear_eval.py --weights output/moco_v2_R50/checkpoint_last.pth.tar
python tools/linear_eval.py --weights moco_v2_R50.pkl --sweep 10,30,100 OUTPUT_DIR output/sweep
python tools/linear_eval.py --weights random --config linear/demo.yaml --knn
torchrun --nproc-per-node 8 tools/linear_eval.py --weights checkpoint.pth DATA.TRAIN a/train DATA.VAL a/val

Accepts every checkpoint that tools/convert_to_d2.py accepts; no code in the file is run. KEY VALUE pairs override
the config. docs/linear.md describes what is computed, and our choices where the paper leaves something open.
"""

from typing import NoReturn

from pretrain.common.errors import run_tool
from transfer.linear.command import main


def program() -> NoReturn:
    run_tool(lambda: main(__doc__), processes=True)


if __name__ == "__main__":
    program()
