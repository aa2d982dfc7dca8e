"""Show why two runs have different numbers: metrics, settings, weights, versions, data, seed, hardware.

`python tools/compare_runs.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.compare_runs import program

if __name__ == "__main__":
    program()
