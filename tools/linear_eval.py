"""Measure how well a linear classifier does on frozen features (He et al. 2020, Sec. 4.1), or a kNN classifier.

`python tools/linear_eval.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.linear_eval import program

if __name__ == "__main__":
    program()
