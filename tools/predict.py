"""Use a fine-tuned detector: find the objects in new images, with the folder of its run.

`python tools/predict.py --help` shows examples.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from transfer.programs.predict import program

if __name__ == "__main__":
    program()
