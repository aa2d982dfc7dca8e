"""PASCAL VOC's AP of boxes."""

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation

from transfer.data import voc_boxes
from transfer.metrics.patches import replaced

Results = dict[str, dict[str, float]] | None


class Voc(PascalVOCDetectionEvaluator):
    """VOC AP: 11-point for VOC2007, area under the curve for VOC2012, as in detectron2 and the papers.

    The boxes are those of training (`transfer.data.voc_boxes`): detectron2's own reader of XML files stops at files
    that training takes, and cuts off fractions of pixels. In the files that detectron2 writes and reads, images have
    numbers instead of names, so a name may contain spaces.

    Classes without any object in the list are left out of the means, whereas detectron2 would count them as 0. In
    VOC's own lists every class occurs.
    """

    def __init__(self, name: str) -> None:
        """Read the boxes of the registered set `name`. Raises `UserError` if they cannot be read."""
        super().__init__(name)
        metadata = MetadataCatalog.get(name)
        pictures = voc_boxes.read_split(Path(metadata.dirname), metadata.split)
        self._numbers = {picture.name: str(number) for number, picture in enumerate(pictures)}
        self._objects = {self._numbers[p.name]: [_object(box) for box in p.boxes] for p in pictures}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Collect the detections of a batch."""
        super().process([{**item, "image_id": self._numbers[item["image_id"]]} for item in inputs], outputs)

    def evaluate(self) -> Results:
        """Return the metrics. Collective; None except in the main process."""
        by_class: dict[str, list[float]] = defaultdict(list)
        voc_eval = pascal_voc_evaluation.voc_eval

        def recorded(detections: str, annotations: str, images: str, kind: str, **options: Any) -> Any:
            result = voc_eval(detections, annotations, images, kind, **options)
            by_class[kind].append(float(result[2]) * 100)
            return result

        self._anno_file_template = "{}"  # the name of an image's "XML file" is its number
        with (
            tempfile.TemporaryDirectory() as folder,
            replaced(pascal_voc_evaluation, "parse_rec", self._objects.__getitem__),
            replaced(pascal_voc_evaluation, "voc_eval", recorded),
            np.errstate(invalid="ignore"),
        ):
            self._image_set_path = str(Path(folder, "images.txt"))
            Path(self._image_set_path).write_text("".join(f"{number}\n" for number in self._objects))
            if super().evaluate() is None:
                return None
        present = {o["name"] for objects in self._objects.values() for o in objects if not o["difficult"]}
        means = np.mean([by_class[kind] for kind in self._class_names if kind in present], axis=0)  # (10,)
        values = {"AP": float(means.mean()), "AP50": float(means[0]), "AP75": float(means[5])}
        for kind in self._class_names:
            values[f"AP-{kind}"] = float(np.mean(by_class[kind])) if kind in present else float("nan")
        return {"bbox": values}


def _object(box: voc_boxes.Box) -> dict[str, Any]:
    """Return a box as detectron2's `parse_rec` would: corners as VOC counts them, from 1."""
    left, top, right, bottom = box.xyxy
    return {
        "name": voc_boxes.CLASSES[box.category - 1],
        "difficult": int(box.difficult),
        "bbox": [left + 1, top + 1, right, bottom],
    }
