"""Fine-tune Faster or Mask R-CNN from converted weights, test it, and write results.json.

python tools/train_net.py --config transfer/coco_R50_FPN.yaml --num-gpus 8 MODEL.WEIGHTS moco_v2.pkl
python tools/train_net.py --config transfer/voc_R50_C4_24k.yaml --scale 1 MODEL.WEIGHTS moco_v2.pkl
python tools/train_net.py --config transfer/demo_R18_FPN.yaml MODEL.INIT random OUTPUT_DIR output/random
python tools/train_net.py --config transfer/coco_R50_FPN.yaml --eval-only MODEL.WEIGHTS output/random/model_final.pth
python tools/train_net.py --config transfer/coco_R50_FPN.yaml --explain

Several machines, stopping and resuming, memory: docs/running.md
"""

from typing import NoReturn

from pretrain.common.errors import run_tool
from transfer.train.command import main


def program() -> NoReturn:
    run_tool(lambda: main(__doc__), processes=True)


if __name__ == "__main__":
    program()
