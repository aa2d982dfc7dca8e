"""Pictures of predictions beside the ground truth."""

from functools import partial
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import torch
from torch import nn

from transfer import d2_compat  # noqa: F401 (first)

# isort: split
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import ColorMode, Visualizer

from pretrain.checkpoint import write_atomic

COLUMN_GAP = 6  # pixels
# RGB of the classes in turn, told apart on photographs: a prediction has the colour of its class, as the truth has
PALETTE = [
    (230, 25, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
]


class _Steady(Visualizer):
    """detectron2's visualizer without its random shift of each colour."""

    def _jitter(self, color: Any) -> Any:
        return color


@torch.no_grad()
def draw_predictions(cfg: CfgNode, model: nn.Module, folder: Path) -> list[Path]:
    """Write `TEST.PICTURES` JPEGs, ground truth left and predictions right, of the first test set.

    The images are spread evenly over the set, so that two runs show the same ones.

    Args:
        model: gives detectron2's inference output; its mode is left as it was found.
        folder: receives `00.jpg`, `01.jpg`, ...
    """
    name = cfg.DATASETS.TEST[0]
    records: list[dict[str, Any]] = DatasetCatalog.get(name)
    count = min(cfg.TEST.PICTURES, len(records))
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, count).round().astype(int)]
    mapper = DatasetMapper(cfg, is_train=False)
    training = model.training
    model.eval()
    paths = []
    for number, record in enumerate(chosen):
        instances = model([mapper(record)])[0]["instances"].to("cpu")
        picture = _side_by_side(record, instances[instances.scores >= cfg.TEST.PICTURE_SCORE], name)
        paths.append(folder / f"{number:02}.jpg")
        _, encoded = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
        write_atomic(paths[-1], partial(_write, encoded.tobytes()))
    model.train(training)
    return paths


def _drawable(record: dict[str, Any]) -> dict[str, Any]:
    """The record, without its masks where some of its objects have none: detectron2 draws all or nothing."""
    objects = record["annotations"]
    if all("segmentation" in item for item in objects):
        return record
    bare = [{key: value for key, value in item.items() if key != "segmentation"} for item in objects]
    return {**record, "annotations": bare}


def _write(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


def _side_by_side(record: dict[str, Any], instances: Any, name: str) -> np.ndarray:
    """(H, 2 W + gap, 3) RGB uint8."""
    image = read_image(record["file_name"], format="RGB")
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "thing_colors"):
        metadata.thing_colors = [PALETTE[i % len(PALETTE)] for i in range(len(metadata.thing_classes))]
    truth, predicted = (_Steady(image, metadata, instance_mode=ColorMode.SEGMENTATION) for _ in range(2))
    left = truth.draw_dataset_dict(_drawable(record)).get_image()
    right = predicted.draw_instance_predictions(instances).get_image()
    gap = np.full((left.shape[0], COLUMN_GAP, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)
