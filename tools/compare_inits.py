"""Does a backbone make a better detector on your data? Fine-tune from it and from others, and compare the results.

`python tools/compare_inits.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.compare_inits import program

if __name__ == "__main__":
    program()
