"""A picture of each image with its detections."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb

from transfer.predict.predictor import Detections
from transfer.visualize import drawing
from transfer.visualize.instances import Objects

_NAME = "classes of the predictions"  # in detectron2's catalog, from which names are drawn
_LONGEST = 100  # characters of a file's own name


class Pictures:
    """Writes `0001_NAME.jpg` for the first image of `count`, and so on, to a folder."""

    def __init__(self, folder: Path, names: Sequence[str], *, count: int) -> None:
        self.folder, self.digits = folder, max(4, len(str(count)))
        if _NAME in MetadataCatalog.list():
            MetadataCatalog.remove(_NAME)  # of another detector
        MetadataCatalog.get(_NAME).set(thing_classes=list(names))

    def write(self, number: int, path: str, pixels: np.ndarray, found: Detections, *, channels: str) -> Path:
        """Draw the detections. `pixels` are (H, W, C) uint8, with `channels` as in INPUT.FORMAT. Return the file."""
        image = np.ascontiguousarray(convert_image_to_rgb(pixels, channels))
        shown = Objects(
            boxes=found.boxes,
            classes=found.classes,
            scores=found.scores,
            masks=None if found.masks is None else list(found.masks),
            keypoints=found.keypoints,
        )
        file = self.folder / f"{number:0{self.digits}}_{Path(path).stem[:_LONGEST]}.jpg"
        drawing.write_jpeg(file, drawing.draw_objects(image, shown, _NAME))
        return file
