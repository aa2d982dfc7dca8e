"""Any self-supervised ResNet as detectron2 weights, verified to compute the same.

`python tools/convert_to_d2.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.convert_to_d2 import program

if __name__ == "__main__":
    program()
