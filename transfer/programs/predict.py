"""Use a fine-tuned detector: find the objects in new images, with the folder of its run.

python tools/predict.py --run output/mine --json found.json --pictures found/ my/photos
python tools/predict.py --run output/mine --json found.json --threshold 0.3 a.jpg b.jpg more/photos
python tools/predict.py --run output/mine --results found.json --threshold 0.05 --images-json val.json val/
python tools/predict.py --run output/mine --weights output/mine/model_last.pth --pictures found/ my/photos

--json writes a COCO json with images, categories and annotations, each with its score; --results writes the list that
pycocotools' loadRes takes. Exit status: 0, 1 if some images could not be read, 2 after a mistake.
"""

from typing import NoReturn

from pretrain.common.errors import run_tool
from transfer.predict.arguments import parse


def main() -> int:
    args = parse(__doc__)
    # Imported only now: it loads PyTorch and detectron2, which --help does not need.
    from transfer.predict import command

    return command.run(args)


def program() -> NoReturn:
    run_tool(main)


if __name__ == "__main__":
    program()
