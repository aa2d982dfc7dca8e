"""Build the demo's data, or check a data set's layout.

python tools/prepare_data.py demo --size standard          # into datasets/demo_standard
python tools/prepare_data.py demo --size standard --check  # looks into every file of it
python tools/prepare_data.py demo --deb A.deb B.deb        # packages fetched elsewhere
python tools/prepare_data.py coco --check --root datasets  # what is missing, and where it comes from
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from pretrain.errors import run_tool
from transfer.prepare.command import main

if __name__ == "__main__":
    run_tool(lambda: main(__doc__))
