"""Show training data as the model sees them, in pre-training or fine-tuning, or the mistakes of a fine-tuned model.

`python tools/visualize.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.visualize import program

if __name__ == "__main__":
    program()
