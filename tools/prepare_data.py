"""Download, unpack and convert a data set into the layout that training expects, or check one.

`python tools/prepare_data.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.prepare_data import program

if __name__ == "__main__":
    program()
