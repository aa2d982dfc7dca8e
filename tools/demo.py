"""Run the demo: from photographs to a detection table and demo/report.html.

`python tools/demo.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.demo import program

if __name__ == "__main__":
    program()
