"""Pre-train an encoder by Momentum Contrast on a folder of images; labels are not needed.

`python tools/pretrain.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: this file would shadow the package

from transfer.programs.pretrain import program

if __name__ == "__main__":
    program()
