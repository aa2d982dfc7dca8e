"""Measure how fast this machine trains and makes views, compared with plain detectron2 and torchvision.

`python tools/benchmark.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.benchmark import program

if __name__ == "__main__":
    program()
