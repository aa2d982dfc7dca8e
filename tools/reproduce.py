"""Reproduce a table of the papers with one command: pre-train, convert, fine-tune every init, and compare.

`python tools/reproduce.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.reproduce import program

if __name__ == "__main__":
    program()
