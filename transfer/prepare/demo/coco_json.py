"""Annotations in COCO's format, with masks as compressed RLE (for training with `INPUT.MASK_FORMAT: bitmask`)."""

from typing import Any

import numpy as np
from pycocotools import mask as rle

from transfer.prepare.demo.compose import Instance


def annotations_of(instances: list[Instance], classes: list[str]) -> list[dict[str, Any]]:
    """Return for each instance `category_id` (1 = first class), RLE mask, its tight box (x, y, w, h) and area."""
    found = []
    for instance in instances:
        encoded = rle.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
        found.append(
            {
                "category_id": classes.index(instance.name) + 1,
                "iscrowd": 0,
                "area": int(rle.area(encoded)),
                "bbox": [float(v) for v in rle.toBbox(encoded)],
                "segmentation": {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")},
            }
        )
    return found


def dataset(
    images: list[tuple[str, list[dict[str, Any]]]], *, classes: list[str], width: int, height: int, about: str
) -> dict[str, Any]:
    """Return the content of the file from (file name, annotations) of each image; ids count from 1 in that order."""
    annotations = [
        annotation | {"image_id": number}
        for number, (_, found) in enumerate(images, 1)
        for annotation in found
    ]
    return {
        "info": {"description": about},
        "licenses": [],
        "categories": [
            {"id": number, "name": name, "supercategory": ""} for number, name in enumerate(classes, 1)
        ],
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, (name, _) in enumerate(images, 1)
        ],
        "annotations": [annotation | {"id": number} for number, annotation in enumerate(annotations, 1)],
    }
