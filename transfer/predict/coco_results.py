"""Detections in COCO's formats: a list of results, and a whole annotation file with scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from transfer.detector_files import Category
from transfer.predict.predictor import Detections

Result = dict[str, Any]


def results(found: Detections, image_id: int | str, category_ids: Sequence[int | str]) -> list[Result]:
    """Return an image's detections as COCO results.

    Each has `image_id`, `category_id`, `bbox` (x, y, width, height in pixels), `score`, and, if the model has them,
    `segmentation` (compressed RLE with `counts` as a string) and `keypoints` (x, y, score; x and y are pixel indices,
    half a pixel less than the coordinates, as in COCO's annotations and detectron2's evaluation).
    """
    listed: list[Result] = []
    boxes = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
    for i, kind in enumerate(found.classes.tolist()):
        result: Result = {
            "image_id": image_id,
            "category_id": category_ids[kind],
            "bbox": boxes[i].tolist(),
            "score": float(found.scores[i]),
        }
        if found.masks is not None:
            rle = coco_mask.encode(np.asfortranarray(found.masks[i], np.uint8))
            result["segmentation"] = {"size": list(found.size), "counts": rle["counts"].decode("ascii")}
        if found.keypoints is not None:
            points = found.keypoints[i] - np.array((0.5, 0.5, 0), np.float32)
            result["keypoints"] = points.flatten().tolist()
        listed.append(result)
    return listed


def whole_file(
    images: list[dict[str, Any]], categories: list[Category], listed: list[Result], info: dict[str, Any]
) -> dict[str, Any]:
    """Return a COCO json with the detections as annotations, which have ids from 1, `area`, `iscrowd` and `score`."""
    annotations = []
    for number, result in enumerate(listed, start=1):
        mask = result.get("segmentation")
        area = coco_mask.area(mask) if mask else result["bbox"][2] * result["bbox"][3]
        annotations.append({"id": number, **result, "area": float(area), "iscrowd": 0})
    return {"info": info, "images": images, "categories": categories, "annotations": annotations}
