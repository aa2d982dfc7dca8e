"""Fine-tune Faster or Mask R-CNN from converted weights, test it, and write results.json.

python tools/train_net.py --config transfer/coco_R50_FPN.yaml --num-gpus 8 MODEL.WEIGHTS moco_v2.pkl
python tools/train_net.py --config transfer/voc_R50_C4_24k.yaml --scale 1 MODEL.WEIGHTS moco_v2.pkl
python tools/train_net.py --config transfer/demo_R18_FPN.yaml MODEL.INIT random OUTPUT_DIR output/random
python tools/train_net.py --config transfer/coco_R50_FPN.yaml --eval-only MODEL.WEIGHTS output/random/model_final.pth
python tools/train_net.py --config transfer/coco_R50_FPN.yaml --explain

Several machines, stopping and resuming, memory: docs/running.md
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not tools/: tools/pretrain.py would shadow pretrain

from pretrain.common.errors import run_tool
from transfer.train.command import main

if __name__ == "__main__":
    run_tool(lambda: main(__doc__), processes=True)
