"""Show training data as the model sees them, in pre-training or fine-tuning, or the mistakes of a fine-tuned model.

python tools/visualize.py views --config pretrain/moco_v2_R50.yaml --output views.jpg DATA.TRAIN my/photos
python tools/visualize.py data --config transfer/coco_R50_FPN.yaml --output pictures/data
python tools/visualize.py data --config transfer/voc_R50_C4_24k.yaml --raw --count 40 --output pictures/raw
python tools/visualize.py predictions --run output/transfer/custom_R50_FPN --output pictures/predictions
python tools/visualize.py predictions --config A.yaml --output pictures/b MODEL.WEIGHTS model_final.pth
"""

from typing import NoReturn

from pretrain.common.errors import run_tool
from transfer.visualize.command import main


def program() -> NoReturn:
    run_tool(lambda: main(__doc__))


if __name__ == "__main__":
    program()
