"""Fine-tune Faster or Mask R-CNN from converted weights, test it, and write results.json.

`python tools/train_net.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.train_net import program

if __name__ == "__main__":
    program()
